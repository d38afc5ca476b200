"""Chen's three terms against loops over indices, their gradients by formula, their laws, and the
inputs at the edge.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.core import Distiller
from kdtasks.detection import (
    BoundedRegressionLoss,
    HintLoss,
    WeightedSoftCrossEntropyLoss,
    bounded_regression_loss,
    hint_loss,
    weighted_soft_cross_entropy,
)

F64 = torch.float64
DTYPES = [
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32),
    (F64, F64),
]


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def values(*shape, scale=2.0, dtype=F64):
    return scale * torch.randn(*shape, dtype=dtype)


# -------------------------------------------------------------- weighted soft cross-entropy (eq. 3)
def slow_soft(student, teacher, weight, temperature):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        p, q = ([math.exp(z / temperature) for z in row] for row in (s, t))
        for c in range(len(s)):
            total -= weight[c] * q[c] / sum(q) * math.log(p[c] / sum(p))
    return total / len(student)


@pytest.mark.parametrize("n, classes", [(6, 5), (1, 3), (4, 2), (3, 21)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_targets_equal_the_loop_over_indices(n, classes, temperature):
    student, teacher, weight = (
        values(n, classes),
        values(n, classes),
        torch.rand(classes, dtype=F64) + 0.5,
    )
    expected = pytest.approx(slow_soft(student, teacher, weight.tolist(), temperature), rel=1e-12)
    assert weighted_soft_cross_entropy(student, teacher, weight, temperature).item() == expected
    assert (
        weighted_soft_cross_entropy(student, teacher, weight.tolist(), temperature).item()
        == expected
    )
    assert (
        weighted_soft_cross_entropy(student, teacher, tuple(weight.tolist()), temperature).item()
        == expected
    )


def test_one_sigmoid_logit_is_the_two_class_form():
    student, teacher = values(7, 1).requires_grad_(), values(7, 1)
    two = [torch.cat([torch.zeros_like(z), z], 1) for z in (student, teacher)]
    for temperature in (1.0, 3.0):
        one, expected = (
            weighted_soft_cross_entropy(*pair, (1.5, 1.0), temperature)
            for pair in ((student, teacher), two)
        )
        torch.testing.assert_close(one, expected, rtol=1e-13, atol=0)
        torch.testing.assert_close(
            *(torch.autograd.grad(loss, student)[0] for loss in (one, expected)),
            rtol=1e-11,
            atol=1e-15,
        )


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_targets_gradcheck(classes, temperature):
    teacher, weight = values(3, classes), torch.rand(max(classes, 2), dtype=F64) + 0.5
    assert torch.autograd.gradcheck(
        lambda s: weighted_soft_cross_entropy(s, teacher, weight, temperature),
        values(3, classes).requires_grad_(),
    )


def test_the_gradient_at_student_equal_to_teacher_is_not_zero():
    """q = (½, ½), w = (1.5, 1): dL/dz = p Σ w q - w q = (-0.125, 0.125), which pulls towards
    background.
    """
    student = torch.zeros(1, 2, dtype=F64, requires_grad=True)
    loss = weighted_soft_cross_entropy(student, torch.zeros(1, 2, dtype=F64), (1.5, 1.0))
    loss.backward()
    torch.testing.assert_close(
        student.grad, torch.tensor([[-0.125, 0.125]], dtype=F64), rtol=0, atol=1e-15
    )
    assert loss.item() == pytest.approx(1.25 * math.log(2))
    even = torch.zeros(1, 2, dtype=F64, requires_grad=True)
    weighted_soft_cross_entropy(even, torch.zeros(1, 2, dtype=F64), (1.0, 1.0)).backward()
    # only the weights move it
    assert not even.grad.any()


def test_the_minimum_lies_at_the_weighted_teacher_and_is_not_zero():
    teacher, weight = values(4, 5), torch.tensor([1.5, 1, 1, 1, 1], dtype=F64)
    best = (weight * teacher.softmax(1)).log().requires_grad_()  # p ∝ w·q
    loss = weighted_soft_cross_entropy(best, teacher, weight)
    loss.backward()
    assert best.grad.abs().max() < 1e-15 and loss > 0.1
    for _ in range(20):
        assert weighted_soft_cross_entropy(best + values(4, 5, scale=0.1), teacher, weight) > loss
    half = torch.tensor([[math.log(1.5), 0.0]], dtype=F64).softmax(1)
    # a teacher's 0.5 becomes 0.6
    assert half[0, 0].item() == pytest.approx(0.6)


def test_the_weight_sits_on_the_class_and_not_on_the_box():
    student, teacher = values(5, 3), values(5, 3)
    plain, more = (
        weighted_soft_cross_entropy(student, teacher, w) for w in ((1.0, 1, 1), (1.5, 1, 1))
    )
    background = -(teacher.softmax(1)[:, 0] * student.log_softmax(1)[:, 0]).mean()
    torch.testing.assert_close(more - plain, 0.5 * background, rtol=1e-12, atol=0)


def test_temperature_divides_the_logits_and_nothing_multiplies_by_its_square():
    student, teacher = values(4, 6), values(4, 6)
    torch.testing.assert_close(
        weighted_soft_cross_entropy(3 * student, 3 * teacher, [1.0] * 6, 3.0),
        weighted_soft_cross_entropy(student, teacher, [1.0] * 6),
        rtol=1e-12,
        atol=0,
    )


def test_rows_and_classes_permute_together_and_a_constant_of_a_row_is_nothing():
    student, teacher, weight = values(6, 4), values(6, 4), torch.rand(4, dtype=F64)
    loss, rows, columns = (
        weighted_soft_cross_entropy(student, teacher, weight),
        torch.randperm(6),
        torch.tensor([2, 0, 3, 1]),
    )
    moved = weighted_soft_cross_entropy(
        student[rows][:, columns], teacher[rows][:, columns], weight[columns]
    )
    torch.testing.assert_close(moved, loss)
    torch.testing.assert_close(
        weighted_soft_cross_entropy(student + values(6, 1), teacher + values(6, 1), weight), loss
    )


def test_the_module_weighs_the_background_of_as_many_classes_as_there_are():
    for classes in (2, 4, 7):
        student, teacher = values(3, classes), values(3, classes)
        first, last = [1.5] + [1.0] * (classes - 1), [1.0] * (classes - 1) + [1.5]
        assert WeightedSoftCrossEntropyLoss()(student, teacher) == weighted_soft_cross_entropy(
            student, teacher, first
        )
        assert WeightedSoftCrossEntropyLoss(background_index=-1)(
            student, teacher
        ) == weighted_soft_cross_entropy(student, teacher, last)
    student, teacher = values(3, 1), values(3, 1)
    # one logit is foreground's, wherever background is
    for index in (0, -1):
        loss = WeightedSoftCrossEntropyLoss(2.0, index, temperature=3.0)(student, teacher)
        assert loss == weighted_soft_cross_entropy(student, teacher, (2.0, 1.0), 3.0)
    assert (
        repr(WeightedSoftCrossEntropyLoss())
        == "WeightedSoftCrossEntropyLoss(background_weight=1.5, background_index=0, temperature=1.0)"
    )
    with pytest.raises(
        ValueError,
        match=r"background_index 5 is not one of the 3 classes of "
        r"student \(2, 3\)",
    ):
        WeightedSoftCrossEntropyLoss(background_index=5)(values(2, 3), values(2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64])
@pytest.mark.parametrize("classes", [1, 3])
def test_saturated_logits_are_finite_where_the_naive_form_is_not(dtype, classes):
    rows = {1: [[1e4], [-1e4], [1e4]], 3: [[1e4, -1e4, 0], [-1e4, 1e4, 0], [0, 0, 1e4]]}[classes]
    student = torch.tensor(rows, dtype=dtype, requires_grad=True)
    teacher = -torch.tensor(rows, dtype=dtype)
    loss = WeightedSoftCrossEntropyLoss()(student, teacher)
    loss.backward()
    assert loss.isfinite() and loss > 1e3 and student.grad.isfinite().all() and student.grad.any()
    again = student.detach().float().requires_grad_()
    p = torch.cat([1 - again.sigmoid(), again.sigmoid()], 1) if classes == 1 else again.softmax(1)
    q = (
        torch.cat([1 - teacher.float().sigmoid(), teacher.float().sigmoid()], 1)
        if classes == 1
        else teacher.float().softmax(1)
    )
    naive = -(q * p.log()).sum()
    naive.backward()
    assert not naive.isfinite() and not again.grad.isfinite().all()


@pytest.mark.parametrize("logit", [-20.0, 20.0])
def test_a_sure_answer_keeps_its_digits_in_float32(logit):
    student, teacher = torch.full((4, 1), logit), torch.full((4, 1), logit)
    exact = weighted_soft_cross_entropy(student.double(), teacher.double(), (1.5, 1.0))
    assert weighted_soft_cross_entropy(student, teacher, (1.5, 1.0)).item() == pytest.approx(
        exact.item(), rel=1e-6
    )


# ----------------------------------------------------------------------- bounded regression (eq. 4)
def slow_bounded(student, teacher, target, margin):
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist()):
        e_s, e_t = (sum((a - b) ** 2 for a, b in zip(row, y)) for row in (s, t))
        total += e_s if e_s + margin > e_t else 0.0
    return total


@pytest.mark.parametrize("n", [1, 2, 40])
@pytest.mark.parametrize("margin", [0.0, 5.0, 1e6])
def test_bounded_boxes_equal_the_loop_over_indices(n, margin):
    boxes = values(n, 4), values(n, 4), values(n, 4)
    total = slow_bounded(*boxes, margin)
    assert bounded_regression_loss(*boxes, margin).item() == pytest.approx(total / n, rel=1e-12)
    assert BoundedRegressionLoss(margin)(*boxes).item() == pytest.approx(total / n, rel=1e-12)
    for normalizer in (256, torch.tensor(256.0), torch.tensor(256.0, requires_grad=True)):
        assert bounded_regression_loss(*boxes, margin, normalizer).item() == pytest.approx(
            total / 256, rel=1e-12
        )
        assert BoundedRegressionLoss(margin)(*boxes, normalizer).item() == pytest.approx(
            total / 256, rel=1e-12
        )
    assert not bounded_regression_loss(
        *boxes, margin, torch.tensor(2.0, requires_grad=True)
    ).requires_grad
    assert bounded_regression_loss(*boxes, margin, 0).item() == pytest.approx(total / n, rel=1e-12)


def test_some_boxes_cost_and_some_do_not_in_those_tests():
    student, teacher, target = values(40, 4), values(40, 4), values(40, 4)
    each = [
        bounded_regression_loss(*(x[i : i + 1] for x in (student, teacher, target))) > 0
        for i in range(40)
    ]
    assert 10 < sum(each) < 30


def test_the_gate_is_of_each_box_and_not_of_the_batch():
    target = torch.zeros(2, 4, dtype=F64)
    student = torch.tensor([[2.0, 0, 0, 0], [0.1, 0, 0, 0]], dtype=F64, requires_grad=True)
    # on the whole the student is better
    teacher = torch.tensor([[1.0, 0, 0, 0], [9.0, 0, 0, 0]], dtype=F64)
    loss = bounded_regression_loss(student, teacher, target)
    loss.backward()
    # 2² of the first box, over two boxes
    assert loss.item() == 2.0
    torch.testing.assert_close(
        student.grad, torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 0]], dtype=F64)
    )


def test_a_tie_closes_the_gate_and_any_margin_opens_it():
    student, target = values(3, 4).requires_grad_(), torch.zeros(3, 4, dtype=F64)
    # another box, the same error
    teacher = -student.detach()
    assert bounded_regression_loss(student, teacher, target).item() == 0
    torch.testing.assert_close(
        bounded_regression_loss(student, teacher, target, 1e-9), student.square().sum() / 3
    )


def test_the_margin_is_in_squared_units_and_never_lowers_the_loss():
    target = torch.zeros(1, 4, dtype=F64)
    # e_s = 1, e_t = 4
    student, teacher = target + torch.tensor([1.0, 0, 0, 0]), target + torch.tensor([0, 2.0, 0, 0])
    assert [
        bounded_regression_loss(student, teacher, target, m).item() for m in (0, 2.99, 3.0, 3.01)
    ] == [0, 0, 0, 1]
    boxes = values(30, 4), values(30, 4), values(30, 4)
    losses = [bounded_regression_loss(*boxes, m).item() for m in (0, 1, 3, 10, 30, 100)]
    assert losses == sorted(losses) and len(set(losses)) > 3


def test_the_pull_is_to_the_ground_truth_and_never_to_the_teacher():
    student, target = values(5, 4).requires_grad_(), values(5, 4)
    # a perfect teacher bounds nothing off
    bounded_regression_loss(student, target.clone(), target).backward()
    torch.testing.assert_close(student.grad, 2 * (student.detach() - target) / 5)
    # nor is there a cost at the ground truth
    assert bounded_regression_loss(target, values(5, 4), target).item() == 0


def test_bounded_boxes_gradcheck_away_from_ties():
    student, teacher, target = values(8, 4), values(8, 4), values(8, 4)
    gap = (student - target).square().sum(1) + 0.5 - (teacher - target).square().sum(1)
    assert gap.abs().min() > 0.01 and 0 < (gap > 0).sum() < 8
    assert torch.autograd.gradcheck(
        lambda s: bounded_regression_loss(s, teacher, target, 0.5), student.requires_grad_()
    )


def test_no_positive_box_is_a_zero_whatever_the_others_targets_are():
    """torchvision's coder gives -inf for every anchor of an image without boxes: positives are
    picked first.
    """
    head = nn.Linear(3, 4)
    student, target, positive = (
        head(torch.randn(6, 3)),
        torch.full((6, 4), -math.inf),
        torch.zeros(6, dtype=torch.bool),
    )
    for normalizer in (None, 6, 0):
        head.zero_grad()
        loss = bounded_regression_loss(
            student[positive], torch.randn(6, 4)[positive], target[positive], normalizer=normalizer
        )
        loss.backward(retain_graph=True)
        assert loss.item() == 0 and head.weight.grad is not None and not head.weight.grad.any()
    positive[2], target[2] = True, 0.0
    loss = bounded_regression_loss(student[positive], torch.zeros(1, 4), target[positive])
    loss.backward()
    assert (
        loss.item() == pytest.approx(student[2].square().sum().item())
        and head.weight.grad.isfinite().all()
    )


def test_a_box_behind_the_gate_is_not_multiplied_by_zero():
    student, target = torch.ones(2, 4, requires_grad=True), torch.zeros(2, 4)
    # both errors are inf: not better, not worse
    target[0] = -math.inf
    loss = bounded_regression_loss(student, torch.zeros(2, 4), target)
    loss.backward()
    assert loss.item() == 2 and student.grad.tolist() == [[0.0] * 4, [1.0] * 4]


# --------------------------------------------------------------------------------- hints (eq. 6, 7)
@pytest.mark.parametrize("p", [1, 2, 1.5, 3])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4), (5,)])
def test_hints_equal_the_loop_over_indices(p, shape):
    student, teacher = values(*shape), values(*shape)
    pairs = list(zip(student.flatten().tolist(), teacher.flatten().tolist()))
    assert hint_loss(student, teacher, p).item() == pytest.approx(
        sum(abs(a - b) ** p for a, b in pairs) / len(pairs), rel=1e-12
    )
    assert torch.autograd.gradcheck(lambda s: hint_loss(s, teacher, p), student.requires_grad_())


@pytest.mark.parametrize("p", [1, 1.5, 2])
def test_hints_are_zero_at_equality_with_a_finite_gradient(p):
    student = values(2, 3).requires_grad_()
    loss = hint_loss(student, student.detach().clone(), p)
    loss.backward()
    assert loss.item() == 0 and not student.grad.any()
    assert hint_loss(3 * student, 3 * values(2, 3) * 0, p).item() == pytest.approx(
        3**p * hint_loss(student, student * 0, p).item()
    )


def test_the_default_power_is_two():
    student, teacher = values(2, 3), values(2, 3)
    assert (
        hint_loss(student, teacher)
        == hint_loss(student, teacher, p=2)
        != hint_loss(student, teacher, p=1)
    )


@pytest.mark.parametrize(
    "student, teacher",
    [((2, 3, 6, 5), (2, 7, 6, 5)), ((4, 3), (4, 7)), ((2, 3, 1, 1), (2, 3, 1, 1))],
)
def test_the_adapter_is_one_matrix_over_the_channels(student, teacher):
    student, teacher = values(*student), values(*teacher)
    hint = HintLoss()
    hint.build(student, teacher)
    weight, bias = hint.projector.weight[:, :, 0, 0], hint.projector.bias
    assert weight.shape == (teacher.shape[1], student.shape[1]) and weight.dtype is F64
    moved = torch.einsum("oc,nc...->no...", weight, student) + bias.view(
        -1, *[1] * (student.dim() - 2)
    )
    torch.testing.assert_close(
        hint(student, teacher), (moved - teacher).square().mean(), rtol=1e-12, atol=0
    )
    hint(student.requires_grad_(), teacher.requires_grad_()).backward()
    assert hint.projector.weight.grad.any() and student.grad.any() and teacher.grad is None


def test_the_adapter_is_there_where_the_channels_agree_too():
    assert isinstance(HintLoss(4, 4).projector, nn.Conv2d)


def test_where_sizes_differ_the_teachers_map_takes_the_students():
    hint, student = HintLoss(3, 3).double(), values(2, 3, 4, 6)
    nn.init.dirac_(hint.projector.weight)
    nn.init.zeros_(hint.projector.bias)
    for size in ((8, 12), (9, 13), (2, 3)):
        teacher = values(2, 3, *size)
        small = F.interpolate(teacher, (4, 6), mode="bilinear", antialias=True)
        torch.testing.assert_close(
            hint(student, teacher), (student - small).square().mean(), rtol=1e-12, atol=0
        )
    # a constant stays
    assert (
        hint(torch.ones(1, 3, 4, 6, dtype=F64), torch.ones(1, 3, 9, 11, dtype=F64)).item() < 1e-28
    )


def test_hints_learn_a_map_of_other_channels():
    """A hint without a working adapter, or with the gradient stopped before it, does not get there."""
    torch.manual_seed(1)
    student, mix = torch.randn(4, 3, 5, 5), torch.randn(6, 3)
    teacher, hint = torch.einsum("oc,nchw->nohw", mix, student), HintLoss(3, 6)
    optimizer = torch.optim.SGD(hint.parameters(), lr=1.0)
    first = hint(student, teacher).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = hint(student, teacher)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3 * first
    torch.testing.assert_close(hint.projector.weight[:, :, 0, 0], mix, rtol=0, atol=0.02)


def test_the_distiller_builds_the_adapter_and_trains_it():
    student, teacher = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 9, 3)
    distiller = Distiller(
        student, {"teacher": teacher}, {"loss_hint": (HintLoss(), ("student", "teacher"), 0.5)}
    )
    image = torch.randn(2, 3, 8, 8)
    distiller.build(image)
    hint = distiller.losses["loss_hint"]
    assert (hint.student_channels, hint.teacher_channels) == (
        4,
        9,
    ) and hint.projector.weight.requires_grad
    assert (
        sum(p.numel() for p in distiller.parameters())
        == sum(p.numel() for p in student.parameters()) + 9 * 5
    )
    adapter = hint.projector
    hint.build(student(image), teacher(image))
    assert hint.projector is adapter  # built once
    sum(distiller(image).values()).backward()
    assert adapter.weight.grad.any() and student.weight.grad.any() and teacher.weight.grad is None


def test_an_adapter_without_channels_and_other_channels_than_said_are_errors():
    with pytest.raises(
        RuntimeError,
        match=r"call build\(student, teacher\) before the optimizer "
        r"is made",
    ):
        HintLoss()(values(1, 2, 3, 3), values(1, 2, 3, 3))
    with pytest.raises(
        ValueError,
        match=r"expected 4 channels of the student, got student \(1, 2, "
        r"3, 3\) and teacher \(1, 5, 3, 3\)",
    ):
        HintLoss(student_channels=4).build(values(1, 2, 3, 3), values(1, 5, 3, 3))
    with pytest.raises(
        ValueError,
        match=r"expected 4 channels of the teacher, got student \(1, 2, "
        r"3, 3\) and teacher \(1, 5, 3, 3\)",
    ):
        HintLoss(2, 4)(values(1, 2, 3, 3), values(1, 5, 3, 3))
    for student, teacher in (
        ((2, 3, 4), (2, 3, 4)),
        ((2, 3), (2, 3, 1, 1)),
        ((2, 3, 4, 4), (3, 3, 4, 4)),
    ):
        with pytest.raises(ValueError, match="two maps") as caught:
            HintLoss(3, 3)(torch.zeros(student), torch.zeros(teacher))
        assert f"student {student} and teacher {teacher}" in str(caught.value)
    assert repr(HintLoss(2, 4)).startswith(
        "HintLoss(\n  student_channels=2, teacher_channels=4, p=2"
    )


# ---------------------------------------------------------------------------------------- all three
LOSSES = {
    "soft": (lambda s, t: weighted_soft_cross_entropy(s, t, (1.5, 1, 1, 1)), 4),
    "soft, one logit": (lambda s, t: weighted_soft_cross_entropy(s, t, (1.5, 1)), 1),
    "soft module": (WeightedSoftCrossEntropyLoss(), 4),
    "bounded": (lambda s, t: bounded_regression_loss(s, t, torch.ones_like(s), margin=1e6), 4),
    "hint 1": (lambda s, t: hint_loss(s, t, 1), 4),
    "hint 2": (hint_loss, 4),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_receives_no_gradient(name):
    loss, columns = LOSSES[name]
    student, teacher = values(6, columns).requires_grad_(), values(6, columns).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()


def test_the_target_receives_no_gradient():
    student, target = values(6, 4).requires_grad_(), values(6, 4).requires_grad_()
    bounded_regression_loss(student, values(6, 4), target, 1e6).backward()
    assert target.grad is None and student.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch_is_a_zero_that_backpropagates(name):
    loss, columns = LOSSES[name]
    student = torch.zeros(0, columns, requires_grad=True)
    zero = loss(student, torch.zeros(0, columns))
    zero.backward()
    assert zero.item() == 0 and zero.shape == () and student.grad.shape == (0, columns)


def test_an_empty_hint_is_a_zero_that_backpropagates_into_the_adapter():
    for shape in ((0, 3, 4, 4), (0, 3)):
        hint, student = HintLoss(3, 3), torch.zeros(shape, requires_grad=True)
        hint(student, torch.zeros(shape)).backward()
        assert student.grad.shape == shape and not hint.projector.weight.grad.any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype, result", DTYPES)
def test_half_precision_is_raised_and_float64_stays(name, dtype, result):
    loss, columns = LOSSES[name]
    student, teacher = values(6, columns).to(dtype).requires_grad_(), values(6, columns).to(dtype)
    found = loss(student, teacher)
    found.backward()
    assert found.dtype is result and student.grad.dtype is dtype
    exact = loss(student.detach().double(), teacher.double()).item()
    # the arithmetic is not half
    assert found.item() == pytest.approx(exact, rel=1e-12 if dtype is F64 else 1e-5)


def test_a_hint_of_half_maps_is_computed_in_float32():
    hint, student, teacher = (
        HintLoss(3, 5),
        values(2, 3, 4, 4).half().requires_grad_(),
        values(2, 5, 8, 8).half(),
    )
    loss = hint(student, teacher)
    loss.backward()
    assert loss.dtype is torch.float32 and student.grad.dtype is torch.float16
    assert loss.item() == pytest.approx(
        hint(student.detach().float(), teacher.float()).item(), rel=1e-6
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert hint(student, teacher).item() == pytest.approx(loss.item(), rel=2e-2)


@pytest.mark.parametrize(
    "student, teacher",
    [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((3,), (3,)), ((2, 3, 4), (2, 3, 4)), ((2, 0), (2, 0))],
)
def test_soft_targets_of_wrong_shapes_are_in_the_message(student, teacher):
    for loss in (
        lambda s, t: weighted_soft_cross_entropy(s, t, (1.0,) * 3),
        WeightedSoftCrossEntropyLoss(),
    ):
        with pytest.raises(ValueError) as caught:
            loss(torch.zeros(student), torch.zeros(teacher))
        assert f"got student {student} and teacher {teacher}" in str(caught.value)


@pytest.mark.parametrize(
    "columns, weight, want",
    [(3, (1.5, 1), "(3,)"), (1, (1.0,), "(2,)"), (3, 1.5, "(3,)"), (2, [[1.0, 1]], "(2,)")],
)
def test_a_class_weight_of_another_length_is_in_the_message(columns, weight, want):
    with pytest.raises(ValueError) as caught:
        weighted_soft_cross_entropy(torch.zeros(4, columns), torch.zeros(4, columns), weight)
    shape = tuple(torch.as_tensor(weight).shape)
    assert (
        str(caught.value) == f"expected class_weight {want} for student {(4, columns)}, got {shape}"
    )


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 4), (2, 4), (3, 4)),
        ((2, 4), (3, 4), (2, 4)),
        ((2, 5), (2, 5), (2, 5)),
        ((4,), (4,), (4,)),
    ],
)
def test_boxes_of_wrong_shapes_are_in_the_message(shapes):
    with pytest.raises(ValueError) as caught:
        bounded_regression_loss(*map(torch.zeros, shapes))
    assert "student {}, teacher {} and target {}".format(*shapes) in str(caught.value)


def test_hints_of_wrong_shapes_are_in_the_message():
    with pytest.raises(ValueError, match=r"got student \(2, 3\) and teacher \(1, 3\)"):
        hint_loss(torch.zeros(2, 3), torch.zeros(1, 3))


NUMBERS = [
    (
        lambda bad: bounded_regression_loss(*[torch.zeros(1, 4)] * 3, margin=bad),
        "margin must be >= 0",
        -0.1,
    ),
    (BoundedRegressionLoss, "margin must be >= 0", -0.1),
    (
        lambda bad: weighted_soft_cross_entropy(*[torch.zeros(1, 4)] * 2, [1.0] * 4, bad),
        "temperature must be > 0",
        0,
    ),
    (lambda bad: WeightedSoftCrossEntropyLoss(temperature=bad), "temperature must be > 0", -1.0),
    (lambda bad: hint_loss(*[torch.zeros(1, 4)] * 2, bad), "p must be >= 1", 0.5),
    (lambda bad: HintLoss(p=bad), "p must be >= 1", 0.5),
]


@pytest.mark.parametrize(
    "make, message, bad", [*NUMBERS, *((make, message, math.nan) for make, message, _ in NUMBERS)]
)
def test_numbers_out_of_range_are_errors(make, message, bad):
    with pytest.raises(ValueError, match=f"{message}, got {bad}"):
        make(bad)


def test_a_module_shows_its_margin():
    assert repr(BoundedRegressionLoss(0.5)) == "BoundedRegressionLoss(margin=0.5)"
