"""CrossKD: its losses against loops and torchvision's own boxes, and the teacher's head that goes
on from the student's features against the same convolutions by hand.
"""

import copy
import math

import pytest
import torch
from small_detectors import SIZE, batch, faster_rcnn, fcos, retinanet, ssdlite
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import generalized_box_iou_loss

from kdtasks.detection import (
    CrossBoxLoss,
    LDLoss,
    QualityFocalLoss,
    box_distances,
    models,
    quality_focal_loss,
)
from kdtasks.detection.cross_heads import aligned
from kdtasks.detection.torchvision_distiller import TorchvisionDistiller
from tests.ranks import two_ranks

F64 = torch.float64
CROSSED = ("cross.teacher.cls_logits", "cross.teacher.box_deltas")
CROSS = {
    "loss_cross_cls": (
        QualityFocalLoss(),
        (CROSSED[0], "teacher.cls_logits", "anchors.valid", "anchors.count"),
    ),
    "loss_cross_box": (
        CrossBoxLoss(),
        (CROSSED[1], "teacher.box_deltas", "teacher.cls_logits", "anchors.valid"),
    ),
}


@pytest.fixture(autouse=True)
def one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def normal(*shape):
    return 2 * torch.randn(*shape, dtype=F64)


# ----------------------------------------------------------------------------------------- classes
def slow_quality_focal(student, teacher, valid, count, beta):
    found = 0.0
    for b, rows in enumerate(student.tolist()):
        for a, row in enumerate(rows):
            for k, x in enumerate(row):
                if valid[b, a]:
                    p, q = (1 / (1 + math.exp(-z)) for z in (x, teacher[b, a, k].item()))
                    bce = -q * math.log(p) - (1 - q) * math.log(1 - p)
                    found += abs(p - q) ** beta * bce
    return found / max(count, 1)


@pytest.mark.parametrize("beta", [1.0, 2.0, 0.5, 0.0])
@pytest.mark.parametrize("count", [5, 0, torch.tensor(5)])
def test_the_quality_focal_loss_equals_the_loop(beta, count):
    student, teacher, valid = normal(2, 6, 3), normal(2, 6, 3), torch.rand(2, 6) < 0.6
    expected = slow_quality_focal(student, teacher, valid, int(count), beta)
    loss = QualityFocalLoss(beta)
    found = loss(student, teacher, valid, count)
    assert found.item() == pytest.approx(expected, rel=1e-11)
    assert quality_focal_loss(student, teacher, valid, max(int(count), 1), beta) == found
    expected = slow_quality_focal(student, teacher, valid, int(valid.sum()), beta)
    assert loss(student, teacher, valid).item() == pytest.approx(expected, rel=1e-11)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, valid, count), student)
    same = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(quality_focal_loss(same, teacher, beta=beta), same)
    assert gradient.isfinite().all()
    if beta:
        assert quality_focal_loss(same, teacher, beta=beta) == 0


def test_ignored_anchors_may_hold_anything_and_extreme_logits_are_finite():
    student, teacher, valid = normal(2, 6, 3), normal(2, 6, 3), torch.rand(2, 6) < 0.6
    found = quality_focal_loss(student, teacher, valid)
    student[~valid], teacher[~valid] = math.nan, math.inf
    student.requires_grad_()
    again = quality_focal_loss(student, teacher, valid)
    (gradient,) = torch.autograd.grad(again, student)
    assert again == found and gradient.isfinite().all() and not gradient[~valid].any()
    far = torch.tensor([[65504.0, -65504.0]]).half().requires_grad_()
    loss = quality_focal_loss(far, -far.detach())
    loss.backward()
    assert loss.item() == pytest.approx(2 * 65504) and far.grad.isfinite().all()
    none = torch.zeros(2, 0, 3, requires_grad=True)
    assert quality_focal_loss(none, none.detach(), torch.zeros(2, 0, dtype=torch.bool)) == 0
    with pytest.raises(ValueError, match=r"expected valid \(2, 6\), got \(6,\)"):
        quality_focal_loss(normal(2, 6, 3), teacher, valid[0])
    with pytest.raises(ValueError, match="beta must be >= 0"):
        QualityFocalLoss(-1)


# ------------------------------------------------------------------------------------------- boxes
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_deltas_are_compared_as_torchvision_would_decode_them_on_any_anchor(weights):
    corner = 100 * torch.rand(8, 2, dtype=F64)
    anchors = torch.cat([corner, corner + 5 + 50 * torch.rand(8, 2, dtype=F64)], 1)
    student, teacher = normal(8, 4), normal(8, 4)
    student[0, 3] = 9.0 * weights[3]
    boxes = [BoxCoder(weights).decode_single(deltas, anchors) for deltas in (student, teacher)]
    expected = generalized_box_iou_loss(*boxes)
    stds = tuple(1 / weight for weight in weights)
    torch.testing.assert_close(box_distances(student, teacher, stds=stds), expected)
    assert box_distances(teacher, teacher).abs().max() < 1e-12
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: box_distances(s, teacher, stds=stds), student)


def test_distances_are_boxes_around_a_point():
    student, teacher = normal(8, 4).abs(), normal(8, 4).abs()
    boxes = [torch.cat([50 - 8 * d[:, :2], 50 + 8 * d[:, 2:]], 1) for d in (student, teacher)]
    found = box_distances(student, teacher, "distances")
    torch.testing.assert_close(found, generalized_box_iou_loss(*boxes))
    flat = torch.zeros(2, 4, requires_grad=True)
    found = box_distances(flat, torch.zeros(2, 4), "distances")
    (gradient,) = torch.autograd.grad(found.sum(), flat)
    assert found.isfinite().all() and gradient.isfinite().all()


def test_edges_equal_the_loop():
    student, teacher = normal(3, 20), normal(3, 20)
    for found, s_box, t_box in zip(box_distances(student, teacher, "edges"), student, teacher):
        expected = 0.0
        for s, t in zip(s_box.view(4, 5), t_box.view(4, 5)):
            p, q = s.softmax(0).tolist(), t.softmax(0).tolist()
            expected += sum(b * math.log(b / a) for a, b in zip(p, q)) / 4
        assert found.item() == pytest.approx(expected, rel=1e-11)


def test_boxes_are_weighted_by_the_teachers_best_class():
    student, teacher, logits = normal(2, 6, 4), normal(2, 6, 4), normal(2, 6, 3) - 1
    valid = torch.rand(2, 6) < 0.6
    weight = logits.sigmoid().max(-1).values * valid
    assert weight.sum() > 1
    expected = (weight * box_distances(student, teacher)).sum() / weight.sum()
    torch.testing.assert_close(CrossBoxLoss()(student, teacher, logits, valid), expected)
    few = CrossBoxLoss()(student[:1, :1], teacher[:1, :1], logits[:1, :1])
    weight = logits[0, 0].sigmoid().max()
    torch.testing.assert_close(few, weight * box_distances(student[0, 0], teacher[0, 0]))
    student[~valid] = math.nan
    torch.testing.assert_close(CrossBoxLoss()(student, teacher, logits, valid), expected)


def on_rows(rows, deltas, teacher, edges, taught, logits):
    """Each loss that divides by a sum over all processes, of some of the matched anchors."""
    deltas, edges = (tensor[rows].clone().requires_grad_() for tensor in (deltas, edges))
    found = [
        CrossBoxLoss()(deltas, teacher[rows], logits[rows]),
        QualityFocalLoss()(deltas, teacher[rows], None, len(teacher[rows])),
        LDLoss(normalize=True)(edges, taught[rows], logits[rows]),
    ]
    return [
        (value.detach(), *torch.autograd.grad(value, of))
        for value, of in zip(found, (deltas, deltas, edges))
    ]


def on_a_rank(rank, tensors):
    # not the same number of anchors
    return on_rows(slice(0, 5) if rank == 0 else slice(5, None), *tensors)


def test_two_processes_equal_one():
    """Losses and gradients averaged over the ranks, as DDP does, are those of all anchors in one:
    of CrossKD's two, and LD.
    """
    tensors = normal(12, 4), normal(12, 4), normal(12, 4, 5), normal(12, 4, 5), normal(12, 3)
    for (value, pull), *both in zip(on_rows(slice(None), *tensors), *two_ranks(on_a_rank, tensors)):
        torch.testing.assert_close(sum(v for v, _ in both) / 2, value, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.cat([p for _, p in both]) / 2, pull, rtol=1e-11, atol=0)


def test_boxes_that_do_not_fit_their_kind_are_refused():
    with pytest.raises(ValueError, match=r"kind='edges': expected two equal shapes of 4·\(n \+ 1"):
        box_distances(normal(6, 4), normal(6, 4), "edges")
    with pytest.raises(ValueError, match=r"kind='deltas': expected two equal shapes of 4 numbers"):
        box_distances(normal(6, 36), normal(6, 36))
    with pytest.raises(ValueError, match="no kind 'delta'; .*'deltas'"):
        CrossBoxLoss("delta")
    with pytest.raises(ValueError, match="of the same anchors"):
        CrossBoxLoss()(normal(6, 4), normal(6, 4), normal(5, 3))


# ----------------------------------------------------------------------------- the head that goes on
class Seen:
    """A loss that keeps what it is called with."""

    def __call__(self, *tensors):
        self.tensors = tensors
        return sum((t.sum() for t in tensors if t.requires_grad), torch.zeros(()))


def by_hand(student, teacher, features, cross_after, columns):
    """One stack: the student's layers, then the teacher's with its own statistics."""
    stacks = [
        [layer for layer in head.conv.modules() if not [*layer.children()]]
        for head in (student, teacher)
    ]
    relus = [i for i, layer in enumerate(stacks[0]) if isinstance(layer, torch.nn.ReLU)]
    middle = relus[cross_after - 1]
    predict = teacher.cls_logits if hasattr(teacher, "cls_logits") else teacher.bbox_reg
    rows = []
    for own, theirs in features:
        own, theirs = (
            torch.nn.Sequential(*stack[:middle])(maps) for stack, maps in zip(stacks, (own, theirs))
        )
        scores = (own - own.mean((0, 2, 3), keepdim=True)) / (
            own.std((0, 2, 3), keepdim=True) + 1e-6
        )
        crossed = scores * theirs.std((0, 2, 3), keepdim=True) + theirs.mean(
            (0, 2, 3), keepdim=True
        )
        found = predict(torch.nn.Sequential(*stacks[1][middle:])(crossed))
        rows.append(found.permute(0, 2, 3, 1).reshape(len(found), -1, columns))
    return torch.cat(rows, 1)


@pytest.mark.parametrize("make, cross_after", [(retinanet, 3), (retinanet, 1), (fcos, 2)])
def test_crossed_predictions_are_those_by_hand_and_reach_the_students_features_only(
    make, cross_after
):
    student, teacher = make(4), make(8)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    attributes = [set(module.__dict__) for module in teacher.modules()]
    keys = TorchvisionDistiller(student).feature_keys("student")
    names = [f"features.{role}.{key}" for key in keys for role in ("student", "teacher")]
    seen = Seen()
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {"loss_seen": (seen, (*CROSSED, *names))},
        cross_after=cross_after,
    )
    distiller.build(batch())
    distiller.train()
    losses = distiller(batch())
    logits, deltas, *levels = seen.tensors
    features = list(zip(levels[::2], levels[1::2]))
    for crossed, head, columns in (
        (logits, "classification_head", 4),
        (deltas, "regression_head", 4),
    ):
        heads = [getattr(model.head, head) for model in (student, teacher)]
        with torch.no_grad():
            expected = by_hand(*heads, features, cross_after, columns)
        if make is fcos and head == "regression_head":
            expected = expected.relu()
        torch.testing.assert_close(crossed.detach(), expected, rtol=1e-4, atol=1e-5)
    student.zero_grad()
    (logits.sum() + deltas.square().sum()).backward()
    reached = {name for name, value in student.named_parameters() if value.grad is not None}
    assert any(name.startswith("backbone") for name in reached)
    heads = {name for name in reached if name.startswith("head")}
    layer = max(int(name.split(".")[3]) for name in heads)
    assert layer == (cross_after - 1 if make is retinanet else 3 * (cross_after - 1) + 1)
    assert all(".conv." in name for name in heads)
    assert losses["loss_seen"].requires_grad
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert [set(module.__dict__) for module in teacher.modules()] == attributes


def test_a_teachers_copy_crosses_to_the_teachers_own_predictions_and_learns_otherwise():
    teacher = retinanet(8)
    own = ("teacher.cls_logits", "teacher.box_deltas")
    seen = Seen()
    same = TorchvisionDistiller(
        copy.deepcopy(teacher).eval(), {"teacher": teacher}, {"loss_seen": (seen, (*CROSSED, *own))}
    )
    same.eval()(batch())
    for crossed, theirs in zip(seen.tensors, seen.tensors[2:]):
        torch.testing.assert_close(crossed.detach(), theirs, rtol=1e-3, atol=1e-4)
    student = retinanet(4)
    distiller = TorchvisionDistiller(student, {"teacher": teacher}, CROSS).train()
    optimizer = torch.optim.AdamW(student.parameters(), 2e-3)
    taught = []
    for _ in range(12):
        losses = distiller(batch())
        taught.append(sum(losses[name] for name in CROSS).item())
        optimizer.zero_grad()
        sum(losses[name] for name in CROSS).backward()
        optimizer.step()
    assert 0 < taught[-1] < 0.8 * taught[0]
    known = distiller.tensors(batch())
    assert not known[CROSSED[0]].requires_grad


def wide_retinanet():
    settings = {"extra": None, "anchor_sizes": [12, 24, 48], "scales": 2, "groups": 2} | SIZE
    return models.retinanet(4, models.small_resnet(4), 16, **settings)


@pytest.mark.parametrize(
    "make, teacher, options, words",
    [
        (retinanet, wide_retinanet, {}, "expected equally many channels"),
        (retinanet, lambda: retinanet(8), {"cross_after": 5}, "cross_after must be from 1 to 4"),
        (lambda _: ssdlite(), ssdlite, {}, "student: SSD has no 'head.classification_head.conv'"),
        (faster_rcnn, lambda: faster_rcnn(8), {}, "no model supplies 'teacher.cls_logits'"),
    ],
    ids=["other channels", "too deep", "SSDlite", "Faster R-CNN"],
)
def test_a_head_that_cannot_go_on_is_named_before_the_first_step(make, teacher, options, words):
    with pytest.raises(ValueError, match=words):
        TorchvisionDistiller(make(4), {"teacher": teacher()}, CROSS, **options).build(batch())


def test_a_teacher_cannot_be_called_cross():
    with pytest.raises(ValueError, match="a teacher cannot be called 'cross'"):
        TorchvisionDistiller(retinanet(4), {"cross": retinanet(8)}, CROSS)


def test_one_place_of_one_image_is_the_teachers_and_constant_channels_are_finite():
    student, teacher = normal(1, 3, 1, 1).requires_grad_(), normal(1, 3, 1, 1)
    found = aligned(student, teacher, "")
    assert torch.equal(found, teacher)
    assert not torch.autograd.grad(found.sum(), student)[0].any()
    student, teacher = normal(2, 3, 4, 5), normal(2, 3, 4, 5)
    student[:, 1], teacher[:, 2] = 5.0, -1.0
    student.requires_grad_()
    found = aligned(student, teacher, "")
    (gradient,) = torch.autograd.grad(found.square().sum(), student)
    assert found.isfinite().all() and gradient.isfinite().all()
    assert not gradient[:, [1, 2]].any() and gradient[:, 0].any()
    torch.testing.assert_close(found.mean((0, 2, 3)), teacher.mean((0, 2, 3)))
