"""The networks of a chain, with the accuracies of the results."""

from picture_runs import drawn, loader

from kdtasks.classification.pictures import chain
from kdtasks.engine.report import stage_colors


def test_a_chain_begins_with_the_teacher_of_a_file(takd, bss):
    (picture,) = chain.pictures(takd, loader(takd), stage_colors(takd))
    title, texts = drawn(picture)
    done = takd.done
    teacher = bss.done["teacher"]["accuracy"]
    for value in (teacher, done["middle"]["accuracy"], done["distilled"]["accuracy"]):
        assert f"{value:.2f}" in texts
    for name, width in (("teacher", 8), ("middle", 6), ("distilled", 4)):
        # two convolutions with their BatchNorms, and the head
        count = 9 * width + 9 * width**2 + 4 * width + 10 * width + 10
        assert f"{name}\n{count:,}" in texts
    for name in ("alone", "direct", "whole_budget"):
        assert f"{name} {done[name]['accuracy']:.1f} %" in title and name in texts
    assert [stage.name for stage in chain.chain(takd)] == ["middle", "distilled"]
