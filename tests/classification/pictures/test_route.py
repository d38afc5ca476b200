"""Anchors are drawn when they taught, with the accuracy of the weights in their files."""

import pytest
import torch
from picture_runs import accuracy, drawn, images_of, loader, rco_stages, trained
from small_runs import weights

from kdtasks.classification.pictures import chain, route
from kdtasks.engine.report import stage_colors


def test_a_route_is_of_the_anchors_that_taught_when_they_did(rco):
    final = rco.experiment.final
    anchors = route.route(rco, final)
    # six steps an epoch, three epochs
    assert [(a.teacher, a.which) for a in anchors] == [
        ("teacher", "epoch_1"),
        ("teacher", "epoch_2"),
        ("teacher", "last"),
    ]
    for iteration in range(18):
        (now,) = (k for k, a in enumerate(anchors) if a.begin <= iteration < a.end)
        assert now == iteration * 3 // 18
    (picture,) = route.pictures(rco, loader(rco), stage_colors(rco))
    title, texts = drawn(picture)
    images, target = images_of(rco)
    model = rco.experiment.model("teacher").eval()
    for file, label in (("epoch_1", "epoch 1"), ("epoch_2", "epoch 2"), ("last", "last")):
        model.load_state_dict(weights(rco, "teacher", f"{file}.pth")["state_dict"])
        assert f"{label}\n{accuracy(model, images, target):.1f}" in texts
    assert f"ends with {rco.done['distilled']['accuracy']:.1f} %" in title
    assert f"alone: {rco.done['alone']['accuracy']:.1f} %" in title


def test_a_distiller_as_it_ended_has_the_last_anchor(rco):
    stage = rco.experiment.final
    for ended, file in ((True, "last.pth"), (False, "epoch_1.pth")):
        expected = weights(rco, "teacher", file)["state_dict"]
        found = rco.distiller(stage, ended).model("teacher").state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_route_of_a_stage_for_each_anchor_goes_on_from_stage_to_stage(folders):
    run = trained(folders(), length=2, stages=rco_stages(epochs=[1], multi_stage=True))
    anchors = route.route(run, run.experiment.final)
    assert [(a.which, a.begin, a.end) for a in anchors] == [("epoch_1", 0, 12), ("last", 12, 24)]
    (picture,) = route.pictures(run, loader(run), stage_colors(run))
    shown = {line.get_label(): line for line in picture[1].axes[0].lines}
    for name, first in (("distilled", "anchor1"), ("alone", "alone1")):
        x, y = shown[name].get_data()
        assert list(x) == [6, 12, 18, 24]
        assert y[1] == pytest.approx(run.done[first]["accuracy"])
        assert y[3] == pytest.approx(run.done[name]["accuracy"])
    assert chain.pictures(run, loader(run), stage_colors(run)) == []
