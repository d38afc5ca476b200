"""Backward-compatible embeddings: the loss against slow loops, its state, and the cross-model recall."""

import math

import pytest
import torch
from torch import nn

from kdtasks.engine import config as configs
from kdtasks.engine.run import Run
from kdtasks.metric_learning import InfluenceLoss, influence_loss
from kdtasks.metric_learning.retrieval import cross_recall, recall_and_map
from tests.ranks import two_ranks


def slow(features, weight, target, bias=None):
    """The formula, number by number in float64."""
    total, known = 0.0, 0
    for f, y in zip(features.tolist(), target.tolist()):
        if y == -100:
            continue
        logits = []
        for c, row in enumerate(weight.tolist()):
            value = sum(f[d] * row[d] for d in range(min(len(f), len(row))))
            logits.append(value + (bias.tolist()[c] if bias is not None else 0.0))
        total += math.log(sum(math.exp(z) for z in logits)) - logits[y]
        known += 1
    return total / max(known, 1)


@pytest.mark.parametrize("wide", [3, 5, 8])
@pytest.mark.parametrize("biased", [False, True])
def test_influence_is_the_slow_loop(wide, biased):
    torch.manual_seed(wide)
    features = torch.randn(6, wide, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64) if biased else None
    target = torch.tensor([0, 3, -100, 1, 1, -100])
    loss = influence_loss(features, weight, target, bias)
    assert loss.item() == pytest.approx(slow(features, weight, target, bias), rel=1e-12)
    assert torch.autograd.gradcheck(lambda f: influence_loss(f, weight, target, bias), features)
    loss.backward()
    # what the old classifier does not know, and what it has no coordinate for, stays
    assert weight.grad is None and not features.grad[[2, 5]].any()
    assert not features.grad[:, 5:].any()


def test_no_known_row_is_a_zero_that_backpropagates():
    features = torch.randn(2, 3, requires_grad=True)
    for rows, target in (
        (features, torch.tensor([-100, -100])),
        (features[:0], torch.zeros(0).long()),
    ):
        loss = influence_loss(rows, torch.randn(4, 3), target)
        loss.backward()
        assert float(loss) == 0 and not features.grad.any()


@pytest.mark.parametrize(
    "shapes, target, message",
    [
        (((2, 3), (4, 3)), [0, 4], "has 4 classes, got the target 4"),
        (((2, 3), (4, 3)), [0, -1], "has 4 classes, got the target -1"),
        (((2, 3), (4, 3)), [0], r"expected features \(B,D\).*got \(2, 3\), \(4, 3\) and \(1,\)"),
        (((2, 3, 1), (4, 3)), [0, 1], r"got \(2, 3, 1\)"),
    ],
)
def test_what_does_not_fit_is_named(shapes, target, message):
    with pytest.raises(ValueError, match=message):
        influence_loss(*map(torch.zeros, shapes), torch.tensor(target))
    with pytest.raises(ValueError, match=r"expected bias \(4,\), got \(3,\)"):
        influence_loss(torch.zeros(1, 3), torch.zeros(4, 3), torch.zeros(1).long(), torch.zeros(3))


def test_rows_are_the_class_means_of_all_that_was_seen():
    torch.manual_seed(0)
    loss, scale = InfluenceLoss(classes=5, dim=3, scale=7.0), 7.0
    seen = {}
    for step in range(3):
        student, teacher = (
            torch.randn(6, 3, dtype=torch.float64, requires_grad=True),
            torch.randn(6, 3).double(),
        )
        target = torch.tensor([0, 1, 1, 2, -100, step + 1])
        for row, y in zip(teacher, target.tolist()):
            if y >= 0:
                seen.setdefault(y, []).append(row)
        found = loss(student, teacher.requires_grad_(), target)
        # classes that have not come yet are no choice
        names = sorted(seen)
        means = [sum(seen[c]) / len(seen[c]) for c in names]
        weight = torch.stack([scale * m / math.sqrt(sum(float(v) ** 2 for v in m)) for m in means])
        place = torch.tensor([names.index(y) if y >= 0 else -100 for y in target.tolist()])
        assert float(found) == pytest.approx(slow(student, weight, place), rel=1e-9)
        found.backward()
        assert teacher.grad is None and student.grad.isfinite().all()
    # a checkpoint has them
    other = InfluenceLoss(classes=5, dim=3, scale=7.0)
    other.load_state_dict(loss.state_dict())
    loss.eval(), other.eval()
    before = loss.counts.clone()
    assert torch.equal(loss(student, teacher, target), other(student, teacher, target))
    assert torch.equal(before, loss.counts)
    # in eval a class that never came counts as unknown
    assert float(InfluenceLoss(5, 3).eval()(student, teacher, target)) == 0
    with pytest.raises(ValueError, match=r"expected teacher \(6,3\), got \(6, 4\)"):
        loss(student, torch.zeros(6, 4), target)
    with pytest.raises(ValueError, match=r"expected targets in 0\.\.4, got 5; -100"):
        loss(student, teacher, target + 3)
    with pytest.raises(ValueError, match="expected classes, dim and scale > 0"):
        InfluenceLoss(5, 0)


def of_a_rank(rank):
    """Two steps with half of each batch; the loss that a third one has, and what it has seen."""
    torch.manual_seed(3)
    teacher, target = torch.randn(3, 8, 3), torch.randint(5, (3, 8))
    target[:, 1::3] = -100
    loss, own = InfluenceLoss(classes=5, dim=3), slice(4 * rank, 4 * rank + 4)
    for rows, classes in zip(teacher, target):
        loss(rows[own], rows[own], classes[own])
    return loss.state_dict()


def test_two_processes_see_what_one_sees():
    torch.manual_seed(3)
    teacher, target = torch.randn(3, 8, 3), torch.randint(5, (3, 8))
    target[:, 1::3] = -100
    one = InfluenceLoss(classes=5, dim=3)
    for rows, classes in zip(teacher, target):
        one(rows, rows, classes)
    for two in two_ranks(of_a_rank):
        assert torch.equal(two["counts"], one.counts)
        torch.testing.assert_close(two["sums"], one.sums, rtol=1e-12, atol=0)


def test_what_a_row_without_label_holds_does_not_matter():
    loss, rows = InfluenceLoss(classes=2, dim=3), torch.ones(3, 3)
    rows[1] = float("nan")
    loss(torch.ones(3, 3), rows, torch.tensor([0, -100, 1]))
    assert loss.counts.tolist() == [1, 1] and bool((loss.sums == 1).all())


def slow_cross(queries, gallery, target, k):
    hits = []
    for i, q in enumerate(queries.tolist()):
        others = [j for j in range(len(gallery)) if j != i]
        if not any(target[j] == target[i] for j in others):
            continue
        distance = {j: math.dist(q, gallery[j].tolist()) for j in others}
        nearest = sorted(others, key=lambda j: (distance[j], j))[:k]
        hits.append(any(target[j] == target[i] for j in nearest))
    return 100 * sum(hits) / len(hits)


def test_cross_recall_is_the_slow_loop():
    torch.manual_seed(0)
    target = torch.randint(0, 5, (40,)).tolist() + [9]
    queries, gallery = torch.randn(41, 4).double(), torch.randn(41, 4).double()
    # one image twice in the gallery: the smaller number comes first
    gallery[7] = gallery[3]
    found = cross_recall(queries, gallery, torch.tensor(target))
    for k in (1, 2, 4, 8):
        assert found[f"cross_recall_at_{k}"] == pytest.approx(
            slow_cross(queries, gallery, target, k)
        )
    # a model that searches its own gallery
    same = cross_recall(queries, queries, torch.tensor(target))
    own = recall_and_map(queries, torch.tensor(target))
    assert same["cross_recall_at_1"] == pytest.approx(own["recall_at_1"])
    with pytest.raises(ValueError, match="expected queries"):
        cross_recall(queries, gallery[:, :3], torch.tensor(target))
    with pytest.raises(ValueError, match="not finite"):
        cross_recall(queries, gallery / 0, torch.tensor(target))
    with pytest.raises(ValueError, match="nothing to find"):
        cross_recall(queries[:2], gallery[:2], torch.tensor([0, 1]))


@pytest.mark.slow
def test_a_small_model_learns_to_search_the_old_gallery(tmp_path):
    network = "kdtasks.classification.models.digits_cnn"
    made = {
        "type": "kdtasks.metric_learning.models.embedder",
        "backbone": network,
        "in_channels": 1,
    }
    digits = {"type": "kdtasks.metric_learning.data.digits"}
    influence = {
        "type": "kdtasks.metric_learning.InfluenceLoss",
        "classes": 6,
        "dim": 16,
        "of": ("student", "teacher", "target"),
    }
    triplet = {
        "type": "kdtasks.metric_learning.plugin.PMLLoss",
        "of": ("student", "target"),
        "loss": {"type": "pytorch_metric_learning.losses.TripletMarginLoss", "margin": 0.2},
    }
    pytest.importorskip("pytorch_metric_learning")
    config = configs.complete(
        {
            "task": "kdtasks.metric_learning.trainer",
            "student": {**made, "width": 4, "dim": 16},
            "teacher": {**made, "width": 8, "dim": 16},
            "losses": {"loss_triplet": triplet, "loss_bct": influence},
            "data": {"train": digits, "test": digits, "batch_size": 60, "per_class": 10},
            "optimizer": {"type": "torch.optim.Adam", "lr": 5e-3},
            "length": 2,
            "val_interval": 2,
            "threads": 1,
        }
    )
    run = Run(config, tmp_path / "run", quiet=True)
    stages = run.train()["stages"]
    cross = {name: values.get("cross_recall_at_1") for name, values in stages.items()}
    assert cross["teacher"] is None and cross["distilled"] > cross["alone"] + 10
    # nothing of the classifier is in what is shipped
    student = torch.load(run.work_dir / "student.pth", weights_only=True)
    assert student.keys() == run.experiment.model("student").state_dict().keys()
    assert isinstance(run.distiller(run.experiment.final).losses["loss_bct"], nn.Module)
