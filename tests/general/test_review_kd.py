"""Knowledge review: the loss at several scales, the fusion from deep to shallow, and what trains."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.classification.models import resnet8
from kdtasks.core import Distiller
from kdtasks.general import ReviewKDLoss, hierarchical_context_loss

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=F64)


def slow(student, teacher, levels):
    def mse(one, other):
        pairs = list(zip(one.flatten().tolist(), other.flatten().tolist()))
        return sum((a - b) ** 2 for a, b in pairs) / len(pairs)

    def pooled(maps, level):
        side = maps.shape[2] // level  # of maps whose side is a multiple
        return maps.unflatten(2, (level, side)).unflatten(4, (level, side)).mean((3, 5))

    total, weight, weights = mse(student, teacher), 1.0, 1.0
    for level in levels:
        if level >= student.shape[2]:
            continue
        weight /= 2
        total += weight * mse(pooled(student, level), pooled(teacher, level))
        weights += weight
    return total / weights


@pytest.mark.parametrize("side", [8, 4, 2, 1])
@pytest.mark.parametrize("levels", [(4, 2, 1), (2,), ()])
def test_it_equals_the_loop_over_scales(side, levels):
    student, teacher = normal(2, 3, side, side), normal(2, 3, side, side)
    found = hierarchical_context_loss(student, teacher, levels)
    assert found.item() == pytest.approx(slow(student, teacher, levels), rel=1e-12)


def test_of_a_map_that_is_not_square_the_smaller_side_counts():
    student, teacher = normal(2, 3, 8, 2), normal(2, 3, 8, 2)
    one = [F.adaptive_avg_pool2d(maps, 1) for maps in (student, teacher)]
    expected = (F.mse_loss(student, teacher) + F.mse_loss(*one) / 2) / 1.5
    torch.testing.assert_close(hierarchical_context_loss(student, teacher), expected)


def test_gradcheck_an_empty_batch_and_shapes():
    student, teacher = normal(2, 2, 4, 4).requires_grad_(), normal(2, 2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: hierarchical_context_loss(s, teacher), student)
    hierarchical_context_loss(student, teacher).backward()
    assert teacher.grad is None
    none = torch.zeros(0, 2, 4, 4, requires_grad=True)
    hierarchical_context_loss(none, none.detach()).backward()
    assert none.grad.shape == none.shape
    with pytest.raises(ValueError, match=r"got student \(2, 2, 4, 4\) and teacher \(2, 2, 4, 3\)"):
        hierarchical_context_loss(student, teacher[..., :3])
    with pytest.raises(ValueError, match="levels >= 1"):
        hierarchical_context_loss(student, teacher, (0,))


def features():
    """Two maps and pooled features of the student; the teacher's are larger in the second stage."""
    return (
        *(normal(4, 3, 8, 8), normal(4, 5, 4, 4), normal(4, 6)),
        *(normal(4, 7, 8, 8), normal(4, 8, 5, 5), normal(4, 9)),
    )


def test_the_review_goes_from_deep_to_shallow():
    """Against the same written out, stage by stage."""
    tensors, loss = features(), ReviewKDLoss()
    loss.build(*tensors)
    loss.train()
    first, second, last = loss.fusions
    assert last.attention is None and first.reduce[0].out_channels == 6
    x = last.reduce(tensors[2][:, :, None, None])
    expected = hierarchical_context_loss(last.expand(x), tensors[5][:, :, None, None])
    for fusion, student, teacher in ((second, *tensors[1:5:3]), (first, *tensors[0:4:3])):
        own = fusion.reduce(student)
        residual = F.interpolate(x, own.shape[2:], mode="nearest")
        a, b = fusion.attention(torch.cat([own, residual], 1)).sigmoid().split(1, 1)
        x = a * own + b * residual
        if x.shape[2:] != teacher.shape[2:]:
            x = F.interpolate(x, teacher.shape[2:], mode="nearest")
        expected = expected + hierarchical_context_loss(fusion.expand(x), teacher)
    torch.testing.assert_close(loss(*tensors), expected)


def test_all_stages_of_the_student_and_all_fusions_are_pulled_and_no_teacher():
    tensors, loss = [t.requires_grad_() for t in features()], ReviewKDLoss()
    loss.build(*tensors)
    loss(*tensors).backward()
    assert all(t.grad is not None and t.grad.any() for t in tensors[:3])
    assert all(t.grad is None for t in tensors[3:])
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_in_a_distiller_it_brings_a_student_to_its_teacher():
    student, teacher = resnet8(width=8), resnet8(width=16)
    maps = [
        *(f"student.layer{k}" for k in (1, 2, 3)),
        "student.flatten",
        *(f"teacher.layer{k}.0.add" for k in (1, 2, 3)),
        "teacher.flatten",
    ]
    distiller = Distiller(student, {"teacher": teacher}, {"loss_review": (ReviewKDLoss(), maps)})
    images = torch.randn(16, 3, 16, 16)
    distiller.build(images)
    optimizer = torch.optim.Adam(distiller.parameters(), lr=0.01)
    values = []
    for _ in range(12):
        loss = distiller(images)["loss_review"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]


def test_what_does_not_fit_is_named():
    tensors = features()
    with pytest.raises(ValueError, match="as many of the teacher's"):
        ReviewKDLoss().build(*tensors[:5])
    with pytest.raises(ValueError, match="of the same images"):
        ReviewKDLoss().build(*tensors[:5], tensors[5][:2])
    with pytest.raises(ValueError, match=r"got channels \(3,\) and \(3, 4\)"):
        ReviewKDLoss(student_channels=[3], teacher_channels=[3, 4])
    with pytest.raises(RuntimeError, match="fusions of 0 stages, got 3"):
        ReviewKDLoss()(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ReviewKDLoss()
        loss.build(*(t.bfloat16() for t in tensors))
        assert loss(*(t.bfloat16() for t in tensors)).dtype is torch.float32
    assert isinstance(loss.fusions[0], nn.Module)
