"""Agreement and accuracy of peers equal counts by hand."""

import json

import numpy as np
import pytest
import torch
from picture_runs import accuracy, drawn, images_of, loader
from small_runs import weights

from kdtasks.classification import trainer
from kdtasks.classification.pictures import counting, peers


def test_peers_agree_as_often_as_a_loop_counts(dml):
    distiller = dml.distiller(dml.experiment.final)
    members = [distiller.student, *distiller.peers]
    images, target = images_of(dml)
    answer = [[int(m(images[i : i + 1]).argmax()) for m in members] for i in range(50)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    found = {f"m{k}": counting.answers(m, loader(dml)) for k, m in enumerate(members)}
    same, right, every = peers.agreement(found, 11)
    for c in range(10):
        rows = [a for a, t in zip(answer, target.tolist()) if t == c]
        share = [sum(a[i] == a[j] for a in rows for i, j in pairs)]
        share.append(sum(a[i] == a[j] == c for a in rows for i, j in pairs))
        expected = [100 * value / (3 * len(rows)) for value in share]
        assert [same[c], right[c]] == pytest.approx(expected)
    assert same[10] is None and right[10] is None
    total = sum(a[i] == a[j] for a in answer for i, j in pairs)
    assert every == pytest.approx(100 * total / 150)


def test_the_accuracy_of_peers_is_that_of_the_results(dml):
    agreement, accuracies = trainer.pictures(dml)[3:]
    title, texts = drawn(accuracies)
    done = dml.done["distilled"]
    for value in (done["accuracy"], done["peer1_accuracy"], done["peer2_accuracy"]):
        assert f"{value:.1f} %" in title and f"{value:.2f}" in texts
    images, target = images_of(dml)
    kept = weights(dml, "distilled")["resume"]["learners"]
    members = [dml.experiment.model("student"), *dml.distiller(dml.experiment.final).peers]
    for member, state in zip(members, kept, strict=True):
        member.load_state_dict(state)
        member.eval()
    mean = accuracy(lambda x: sum(m(x).softmax(1) for m in members), images, target)
    assert f"of the mean of their probabilities {mean:.1f} %" in title
    assert f"alone {dml.done['alone']['accuracy']:.1f} %" in title
    assert "peer2" in texts and "distilled (the student)" in texts
    (line,) = agreement[1].axes[0].lines
    history = json.loads((dml.folder(dml.experiment.final) / "history.json").read_text())
    noted = [(entry["iteration"], entry["agreement"]) for entry in history if "agreement" in entry]
    np.testing.assert_allclose(line.get_data(), np.array(noted).T)
    assert len(noted) > 3


def test_agreement_of_many_classes_and_without_a_curve():
    torch.manual_seed(0)
    target = torch.randint(30, (600,))
    found = {
        name: counting.Answers(torch.arange(600), target, torch.randint(30, (600,)), target * 0.0)
        for name in ("student", "peer1")
    }
    names = [f"class {c}" for c in range(30)]
    _, texts = drawn(peers.draw_agreement(found, names))
    assert "classes, sorted by the same right answer" in texts and "In training" not in texts
