"""The absolute and the relative teacher against loops, their gradients, their laws, and the
projection.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.core import Distiller
from kdtasks.metric_learning import (
    AbsoluteTeacherLoss,
    RelativeTeacherLoss,
    absolute_teacher_loss,
    relative_teacher_loss,
)
from tests.relations import F64, gradient, rows


def by_pairs(student, teacher):
    return relative_teacher_loss(student, teacher, form="pairs")


RELATIVE = (relative_teacher_loss, by_pairs)
LOSSES = (absolute_teacher_loss, *RELATIVE)


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def slow_absolute(student, teacher):
    return sum(
        math.dist(s, t) for s, t in zip(student.double().tolist(), teacher.double().tolist())
    ) / len(student)


def slow_errors(student, teacher):
    s, t = student.double().tolist(), teacher.double().tolist()
    return [
        math.dist(s[i], s[j]) - math.dist(t[i], t[j])
        for i in range(len(s))
        for j in range(len(s))
        if i != j
    ]


def slow_frobenius(student, teacher):
    return math.hypot(*slow_errors(student, teacher))


def slow_pairs(student, teacher):
    errors = slow_errors(student, teacher)
    return math.fsum(map(abs, errors)) / len(errors)


SLOW = dict(zip(LOSSES, (slow_absolute, slow_frobenius, slow_pairs)))


# -------------------------------------------------------------------------------------- the formula
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n, ds, dt", [(2, 3, 3), (5, 2, 4), (9, 6, 3)])
def test_they_equal_the_loop(loss, n, ds, dt):
    student, teacher = rows(n, ds, scale=3.0), rows(n, ds if loss is absolute_teacher_loss else dt)
    assert loss(student, teacher).item() == pytest.approx(SLOW[loss](student, teacher), rel=1e-12)


def test_known_numbers():
    """Distances 3, 4, 5 between the student's rows, 3, 3, 6 between the teacher's."""
    student, teacher = (
        torch.tensor([[0.0, 0], [3, 0], [0, 4]], dtype=F64),
        torch.tensor([[3.0, 0], [0, 0], [6, 0]], dtype=F64),
    )
    assert absolute_teacher_loss(student, teacher).item() == pytest.approx(
        (3 + 3 + math.sqrt(52)) / 3, rel=1e-14
    )
    # each pair twice
    assert relative_teacher_loss(student, teacher).item() == pytest.approx(2, rel=1e-14)
    assert by_pairs(student, teacher).item() == pytest.approx(2 / 3, rel=1e-14)


def test_frobenius_grows_with_the_batch_and_pairs_does_not():
    # all √2 from 2 √2
    student, teacher = torch.eye(16, dtype=F64), 2 * torch.eye(16, dtype=F64)
    for n in (2, 4, 16):
        assert relative_teacher_loss(student[:n], teacher[:n]).item() == pytest.approx(
            math.sqrt(2 * n * (n - 1)), rel=1e-13
        )
        assert by_pairs(student[:n], teacher[:n]).item() == pytest.approx(math.sqrt(2), rel=1e-13)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss):
    teacher = rows(5, 3)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), rows(5, 3).requires_grad_())


# ----------------------------------------------------------------------------------------- the laws
def test_zero_at_equality_and_nowhere_a_gradient_there():
    teacher = rows(6, 4)
    turn, _ = torch.linalg.qr(rows(4, 4))
    for loss in LOSSES:
        value, pull = gradient(loss, teacher, teacher)
        assert value == 0 and not pull.any()
    # other spaces, the same distances
    for student in (teacher @ turn, teacher + 5, -teacher, F.pad(teacher, (0, 3))):
        for loss in RELATIVE:
            assert loss(student, teacher) < 1e-13
        if student.shape == teacher.shape:
            assert absolute_teacher_loss(student, teacher) > 0.5
    for loss in LOSSES:
        # scale matters
        assert loss(2 * teacher, teacher) > 0.5


@pytest.mark.parametrize("loss", LOSSES)
def test_moving_turning_and_scaling_both_and_the_order_of_the_batch(loss):
    student, teacher, order = rows(7, 4), rows(7, 4), torch.randperm(7)
    turn, _ = torch.linalg.qr(rows(4, 4))
    value, pull = gradient(loss, student, teacher)
    for other, targets, expected, expected_pull in (
        (student @ turn, teacher @ turn, value, pull @ turn),
        (student + 3, teacher + 3, value, pull),
        (1e-9 * student, 1e-9 * teacher, 1e-9 * value, pull),
        (student[order], teacher[order], value, pull[order]),
    ):
        found, found_pull = gradient(loss, other, targets)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
        torch.testing.assert_close(found_pull, expected_pull, rtol=1e-9, atol=1e-13)
    assert (loss(student[order], teacher) - value).abs() > 1e-3


def test_each_row_is_pulled_straight_and_equally_to_its_teacher():
    student, teacher = rows(5, 3), rows(5, 3, scale=100.0)
    _, pull = gradient(absolute_teacher_loss, student, teacher)
    torch.testing.assert_close(pull, F.normalize(student - teacher) / 5)


# ----------------------------------------------------------------------------- duplicates, few rows
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_rows_that_coincide_equal_the_loop_and_have_a_finite_gradient(loss, dtype):
    student, teacher = rows(6, 3, dtype), rows(6, 3, dtype)
    student[[1, 4]], teacher[[2, 4]], student[3] = 0.7, -1.3, teacher[3]
    student[5] = 0
    value, pull = gradient(loss, student, teacher)
    assert value.item() == pytest.approx(SLOW[loss](student, teacher), rel=1e-6) and pull[0].any()
    assert pull.isfinite().all() and pull.abs().max() < 2
    if loss is absolute_teacher_loss:
        # has arrived
        assert not pull[3].any()
    everywhere = torch.full_like(student, 0.7)
    value, pull = gradient(loss, everywhere, teacher)
    assert value.item() == pytest.approx(SLOW[loss](everywhere, teacher), rel=1e-6)
    assert pull.isfinite().all() and pull.any() == (loss is absolute_teacher_loss)


@pytest.mark.parametrize("loss", [*LOSSES, AbsoluteTeacherLoss()])
@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64])
def test_few_rows_are_a_number_that_backpropagates(loss, n, dtype):
    student = rows(n, 4, dtype).requires_grad_()
    value = loss(student, rows(n, 4, dtype))
    value.backward()
    assert value.shape == () and student.grad.shape == (n, 4) and student.grad.isfinite().all()
    something = n >= (2 if loss in RELATIVE else 1)
    assert (value > 0) == something and student.grad.any() == something


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_that_is_not_finite_shows(loss):
    for at in (0, 1):
        pair = [rows(5, 3), rows(5, 3)]
        pair[at][2, 0] = math.nan
        assert loss(*pair).isnan()


# ---------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_float32_rows_are_exact_far_from_the_origin_and_near_each_other(loss, spread):
    student, teacher = (rows(10, 8) * spread + 100).float(), (rows(10, 8) * spread + 100).float()
    value, pull = gradient(loss, student, teacher)
    assert value.item() == pytest.approx(SLOW[loss](student, teacher), rel=1e-6)
    exact_pull = gradient(loss, student.double(), teacher.double())[1]
    assert (pull - exact_pull).norm() < 1e-6 * exact_pull.norm()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "dtype, result",
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (F64, F64),
    ],
)
def test_half_precision_is_raised_and_float64_stays(loss, dtype, result):
    # a squared distance overflows in half
    student, teacher = rows(9, 6, dtype, scale=300.0), rows(9, 6, dtype)
    value, pull = gradient(loss, student, teacher)
    exact, exact_pull = gradient(loss, student.double(), teacher.double())
    assert value.dtype is result and pull.dtype is dtype
    assert value.item() == pytest.approx(exact.item(), rel=1e-14 if dtype is F64 else 1e-6)
    torch.testing.assert_close(pull, exact_pull.to(dtype))
    assert loss(student, teacher.double()).dtype is loss(student.double(), teacher).dtype is F64
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(student, teacher) == value


# ----------------------------------------------------------------------- modules and the projection
def built(student, teacher, **options):
    loss = AbsoluteTeacherLoss(**options)
    loss.build(student, teacher)
    return loss


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64])
def test_the_projection_is_a_linear_layer_to_the_teachers_width(dtype):
    student, teacher = rows(6, 3, dtype).requires_grad_(), rows(6, 5, dtype).requires_grad_()
    loss = built(student, teacher)
    weight, bias = loss.projection.weight, loss.projection.bias
    assert weight.shape == (5, 3) and weight.dtype is (F64 if dtype is F64 else torch.float32)
    value = loss(student, teacher)
    value.backward()
    moved = student.detach().double() @ weight.detach().double().T + bias.detach().double()
    assert value.item() == pytest.approx(
        slow_absolute(moved, teacher), rel=1e-12 if dtype is F64 else 1e-6
    )
    assert (
        value.dtype is weight.dtype
        and student.grad.any()
        and weight.grad.any()
        and bias.grad.any()
        and teacher.grad is None
    )


def test_equal_widths_have_a_projection_only_when_asked_and_other_widths_always():
    student, teacher = rows(4, 3), rows(4, 3)
    assert list(built(student, teacher).parameters()) == [] and built(student, teacher)(
        student, teacher
    ) == absolute_teacher_loss(student, teacher)
    # nothing to build
    assert AbsoluteTeacherLoss()(student, teacher) == absolute_teacher_loss(student, teacher)
    assert built(student, teacher, projection=True).projection.weight.shape == (3, 3)
    assert built(student, rows(4, 7)).projection.weight.shape == (7, 3)


def test_the_distiller_builds_the_projection_trains_it_and_keeps_it_out_of_the_student():
    x, teacher, student = torch.randn(24, 6), nn.Linear(6, 8), nn.Linear(6, 4)
    names = set(student.state_dict())
    distiller = Distiller(
        student,
        {"teacher": teacher},
        {"loss_absolute": (AbsoluteTeacherLoss(), ("student", "teacher"), 1.0)},
    )
    distiller.build(x)
    projection = distiller.losses["loss_absolute"].projection
    assert (
        sum(p.numel() for p in distiller.parameters())
        == sum(p.numel() for p in student.parameters()) + 8 * 5
    )
    optimizer, losses, before = (
        torch.optim.Adam(distiller.parameters(), lr=0.03),
        [],
        copy.deepcopy(projection.weight),
    )
    for _ in range(60):
        loss = distiller(x)["loss_absolute"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2 and not torch.equal(projection.weight, before)
    distiller.losses["loss_absolute"].build(student(x), teacher(x))
    # built once
    assert distiller.losses["loss_absolute"].projection is projection
    assert set(student.state_dict()) == names


def test_an_empty_batch_reaches_the_projection():
    loss, student = built(rows(2, 3), rows(2, 5)), torch.zeros(0, 3, dtype=F64, requires_grad=True)
    value = loss(student, torch.zeros(0, 5, dtype=F64))
    value.backward()
    assert value == 0 and student.grad.shape == (0, 3) and not loss.projection.weight.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_teacher_receives_no_gradient(loss):
    student, teacher = rows(5, 3).requires_grad_(), rows(5, 3).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()


def test_the_modules_are_the_functions():
    student, teacher = rows(6, 4), rows(6, 3)
    assert (
        RelativeTeacherLoss()(student, teacher)
        == relative_teacher_loss(student, teacher, form="frobenius")
        == relative_teacher_loss(student, teacher)
    )
    assert RelativeTeacherLoss("pairs", gather=True)(student, teacher) == by_pairs(student, teacher)
    assert repr(RelativeTeacherLoss("pairs")) == "RelativeTeacherLoss(form='pairs', gather=False)"


@pytest.mark.parametrize(
    "student, teacher",
    [((2, 3), (3, 3)), ((3,), (3,)), ((), ()), ((2, 3, 4), (2, 3, 4)), ((2, 3), (2,))],
)
def test_shapes_that_do_not_fit_are_in_the_message(student, teacher):
    calls = (
        *LOSSES,
        RelativeTeacherLoss(gather=True),
        AbsoluteTeacherLoss(),
        AbsoluteTeacherLoss().build,
        built(rows(2, 3), rows(2, 5)),
    )
    for call in calls:
        with pytest.raises(ValueError) as caught:
            call(torch.zeros(student), torch.zeros(teacher))
        assert f"got student {student} and teacher {teacher}" in str(caught.value)


def test_other_widths_without_a_projection_and_than_it_was_built_for_are_errors():
    for loss in (absolute_teacher_loss, AbsoluteTeacherLoss(), built(rows(2, 3), rows(2, 3))):
        with pytest.raises(ValueError) as caught:
            loss(rows(2, 3), rows(2, 5))
        assert str(caught.value).startswith(
            "expected equal widths, got student (2, 3) and teacher (2, 5); AbsoluteTeacherLoss has "
            "a projection"
        )
    loss = built(rows(2, 3), rows(2, 5))
    for student, teacher in (((2, 4), (2, 5)), ((2, 3), (2, 3))):
        with pytest.raises(ValueError) as caught:
            loss(torch.zeros(student), torch.zeros(teacher))
        assert (
            str(caught.value)
            == f"the projection goes from width 3 to 5, got student {student} and teacher {teacher}"
        )
    with pytest.raises(
        RuntimeError,
        match=r"call build\(student, teacher\) before the optimizer "
        r"is made",
    ):
        AbsoluteTeacherLoss(projection=True)(rows(2, 3), rows(2, 3))


def test_an_unknown_form_is_an_error():
    for call in (
        lambda: relative_teacher_loss(rows(2, 3), rows(2, 3), form="pair"),
        lambda: RelativeTeacherLoss("pair"),
    ):
        with pytest.raises(ValueError, match="no form 'pair'; did you mean 'pairs'?"):
            call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loss", LOSSES)
def test_on_a_gpu_it_is_the_same_and_never_waits(loss):
    student, teacher = rows(64, 32, torch.float32), rows(64, 32, torch.float32)
    expected, expected_pull = gradient(loss, student.double(), teacher.double())
    student, teacher = student.cuda(), teacher.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value, pull = gradient(loss, student, teacher)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (pull.cpu() - expected_pull).norm() < 1e-6 * expected_pull.norm()
