"""S2SD's divergence and PKT against loops over rows, their gradients, their laws, and their limits."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.core import Distiller
from kdtasks.metric_learning import (
    PKTLoss,
    RelativeTeacherLoss,
    SimilarityKLLoss,
    pkt_loss,
    similarity_kl_loss,
)
from tests.relations import F64, check_two_processes, gradient, rows


def others_kl(student, teacher):
    return similarity_kl_loss(student, teacher, temperature=0.2, include_self=False)


LOSSES = (similarity_kl_loss, others_kl, pkt_loss)


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def cosine(x, y):
    return sum(a * b for a, b in zip(x, y)) / ((math.hypot(*x) * math.hypot(*y)) or 1)


def slow_kl(student, teacher, temperature=1.0, include_self=True):
    s, t = student.double().tolist(), teacher.double().tolist()
    total = 0.0
    for i in range(len(s)):
        seen = [j for j in range(len(s)) if include_self or j != i]
        scores = [[cosine(z[i], z[j]) / temperature for j in seen] for z in (s, t)]
        p_s, p_t = (
            [math.exp(c - max(row)) / math.fsum(math.exp(k - max(row)) for k in row) for c in row]
            for row in scores
        )
        total += math.fsum(q * math.log(q / p) for p, q in zip(p_s, p_t) if q > 0)
    return total / len(s)


def slow_pkt(student, teacher):
    s, t, eps = student.double().tolist(), teacher.double().tolist(), 1e-7
    total = 0.0
    for i in range(len(s)):
        kernels = [[(cosine(z[i], z[j]) + 1) / 2 for j in range(len(z))] for z in (s, t)]
        q_s, q_t = ([k / math.fsum(row) for k in row] for row in kernels)
        total += math.fsum(q * math.log((q + eps) / (p + eps)) for p, q in zip(q_s, q_t))
    return total / len(s) ** 2


SLOW = {
    similarity_kl_loss: slow_kl,
    pkt_loss: slow_pkt,
    others_kl: lambda s, t: slow_kl(s, t, 0.2, False),
}


# -------------------------------------------------------------------------------------- the formula
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n, ds, dt", [(2, 3, 3), (3, 2, 4), (8, 5, 3)])
def test_they_equal_the_loop(loss, n, ds, dt):
    student, teacher = rows(n, ds, scale=4.0), rows(n, dt)
    assert loss(student, teacher).item() == pytest.approx(
        SLOW[loss](student, teacher), rel=1e-11, abs=1e-15
    )


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 4.0])
def test_the_temperature_divides_the_cosines_and_nothing_else(temperature, include_self):
    student, teacher = rows(6, 3), rows(6, 4)
    found = similarity_kl_loss(student, teacher, temperature, include_self).item()
    assert found == pytest.approx(slow_kl(student, teacher, temperature, include_self), rel=1e-11)
    assert SimilarityKLLoss(temperature, include_self)(student, teacher) == found


def test_known_numbers():
    """Two rows at a right angle, taught by two in one direction."""
    student, teacher = torch.eye(2, dtype=F64), torch.tensor([[1.0, 0], [3, 0]], dtype=F64)
    # ½, ½ and e, 1
    kl = math.log(0.5) - (math.log(math.e / (math.e + 1)) + math.log(1 / (math.e + 1))) / 2
    assert similarity_kl_loss(student, teacher).item() == pytest.approx(kl, rel=1e-14)
    # ½, ½ and 2, 1
    kl = math.log(0.5) - (math.log(2 / 3) + math.log(1 / 3)) / 2
    # of four entries two rows
    assert pkt_loss(student, teacher).item() == pytest.approx(kl / 2, rel=1e-6)


def test_the_epsilon_of_pkt_bounds_what_the_student_rules_out():
    """The student's cosine is -1 where the teacher's is 1: a probability of 0 that should be ½."""
    student, teacher = torch.tensor([[1.0], [-2]], dtype=F64), torch.tensor([[1.0], [2]], dtype=F64)
    value, pull = gradient(pkt_loss, student, teacher)
    expected = (
        2 * (0.5 * math.log((0.5 + 1e-7) / (1 + 1e-7)) + 0.5 * math.log((0.5 + 1e-7) / 1e-7)) / 4
    )
    assert value.item() == pytest.approx(expected, rel=1e-12) and pull.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss):
    teacher = rows(5, 3)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), rows(5, 4).requires_grad_())


# ----------------------------------------------------------------------------------------- the laws
@pytest.mark.parametrize("loss", LOSSES)
def test_zero_at_equal_cosines(loss):
    teacher = rows(7, 4)
    turn, _ = torch.linalg.qr(rows(4, 4))
    for student in (
        teacher,
        teacher @ turn,
        -teacher,
        F.pad(teacher, (0, 2)),
        teacher * torch.rand(7, 1, dtype=F64).add(0.1),
    ):
        value, pull = gradient(loss, student, teacher)
        # its epsilon
        assert value.abs() < 1e-15 and pull.abs().max() < (1e-7 if loss is pkt_loss else 1e-14)
    # moved, or others
    assert loss(teacher + 1, teacher) > 1e-4 and loss(rows(7, 4), teacher) > 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_the_teacher_that_weighs(loss):
    student, teacher = rows(6, 4), rows(6, 4, scale=0.3) + 1
    assert (loss(student, teacher) - loss(teacher, student)).abs() > 1e-3 * loss(student, teacher)


@pytest.mark.parametrize("loss", LOSSES)
def test_turning_scaling_and_the_order_of_the_batch(loss):
    student, teacher, order, c = (
        rows(7, 4),
        rows(7, 3),
        torch.randperm(7),
        torch.rand(7, 1, dtype=F64) + 0.5,
    )
    turn, _ = torch.linalg.qr(rows(4, 4))
    value, pull = gradient(loss, student, teacher)
    for other, targets, expected in (
        (student @ turn, teacher, pull @ turn),
        (c * student, 9 * teacher, pull / c),
        (student[order], teacher[order], pull[order]),
    ):
        found, found_pull = gradient(loss, other, targets)
        torch.testing.assert_close(found, value, rtol=1e-11, atol=0)
        torch.testing.assert_close(found_pull, expected, rtol=1e-9, atol=1e-15)
    assert (loss(student[order], teacher) - value).abs() > 1e-4
    # only directions count
    assert (pull * student).sum(1).abs().max() < 1e-15


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_coincident_rows_and_rows_of_zeros(loss, dtype):
    student, teacher = rows(6, 3, dtype), rows(6, 4, dtype)
    student[1] = student[4] = 0
    student[2], teacher[3], teacher[0] = student[5], teacher[5], 0
    value, pull = gradient(loss, student, teacher)
    assert value.item() == pytest.approx(
        SLOW[loss](student, teacher), rel=1e-6 if dtype is not F64 else 1e-12
    )
    assert pull.isfinite().all() and pull[0].any() and not pull[[1, 4]].any()
    value, pull = gradient(loss, torch.zeros_like(student), teacher)
    assert value > 0 and not pull.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_that_is_not_finite_shows(loss):
    for at in (0, 1):
        pair = [rows(5, 3), rows(5, 4)]
        pair[at][2, 0] = math.nan
        assert loss(*pair).isnan()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64])
def test_few_rows_are_a_number_that_backpropagates(loss, n, dtype):
    student, teacher = rows(n, 4, dtype).requires_grad_(), rows(n, 2, dtype)
    with torch.autograd.set_detect_anomaly(True):
        value = loss(student, teacher)
        value.backward()
    assert value.shape == () and student.grad.shape == (n, 4) and student.grad.isfinite().all()
    if n == 2 and loss is not others_kl:
        assert value > 0 and student.grad.any()
    # one choice has no divergence
    else:
        assert value == 0 and not student.grad.any()


# ------------------------------------------------------------------------------- precision, modules
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
    # a squared length overflows in half
    student, teacher = rows(9, 6, dtype, scale=300.0), rows(9, 6, dtype)
    value, pull = gradient(loss, student, teacher)
    exact, exact_pull = gradient(loss, student.double(), teacher.double())
    assert value.dtype is result and pull.dtype is dtype
    assert value.item() == pytest.approx(exact.item(), rel=1e-14 if dtype is F64 else 1e-7)
    torch.testing.assert_close(pull, exact_pull.to(dtype))
    assert loss(student, teacher.double()).dtype is loss(student.double(), teacher).dtype is F64
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(student, teacher) == value


def test_a_small_divergence_keeps_its_digits_in_float32():
    teacher = rows(8, 16, torch.float32)
    student = teacher + rows(8, 16, torch.float32, scale=1e-4)
    for loss in LOSSES:
        assert loss(student, teacher).item() == pytest.approx(
            SLOW[loss](student, teacher), rel=1e-5
        )


@pytest.mark.parametrize("loss", [*LOSSES, SimilarityKLLoss(), PKTLoss()])
def test_the_teacher_receives_no_gradient(loss):
    student, teacher = rows(5, 3).requires_grad_(), rows(5, 4).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()


def test_the_modules_are_the_functions():
    student, teacher = rows(6, 4), rows(6, 3)
    assert (
        similarity_kl_loss(student, teacher)
        == SimilarityKLLoss()(student, teacher)
        == SimilarityKLLoss(1.0, True)(student, teacher)
    )
    assert SimilarityKLLoss(0.2, include_self=False)(student, teacher) == others_kl(
        student, teacher
    )
    assert (
        PKTLoss()(student, teacher)
        == PKTLoss(gather=True)(student, teacher)
        == pkt_loss(student, teacher)
    )
    assert (
        repr(SimilarityKLLoss(0.2, False))
        == "SimilarityKLLoss(temperature=0.2, include_self=False, gather=False)"
    )
    assert repr(PKTLoss(True)) == "PKTLoss(gather=True)"


@pytest.mark.parametrize(
    "student, teacher",
    [((2, 3), (3, 3)), ((3,), (3,)), ((), ()), ((2, 3, 4), (2, 3, 4)), ((2, 3), (2,))],
)
def test_shapes_that_do_not_fit_are_in_the_message(student, teacher):
    for loss in (*LOSSES, SimilarityKLLoss(gather=True), PKTLoss(gather=True)):
        with pytest.raises(ValueError) as caught:
            loss(torch.zeros(student), torch.zeros(teacher))
        assert f"got student {student} and teacher {teacher}" in str(caught.value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_out_of_range_is_an_error(temperature):
    for call in (
        lambda: similarity_kl_loss(rows(3, 2), rows(3, 2), temperature),
        lambda: SimilarityKLLoss(temperature),
    ):
        with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
            call()


@pytest.mark.parametrize("loss", [SimilarityKLLoss(0.1), PKTLoss()])
def test_through_the_distiller_a_narrow_student_takes_the_teachers_cosines(loss):
    x, teacher, student = torch.randn(24, 6), nn.Linear(6, 8), nn.Linear(6, 4)
    distiller = Distiller(
        student, {"teacher": teacher}, {"loss_similarity": (loss, ("student", "teacher"), 1.0)}
    )
    distiller.build(x)

    def apart():
        own, taught = (F.normalize(model(x)) for model in (student, teacher))
        return (own @ own.T - taught @ taught.T).square().mean().item()

    before, optimizer = apart(), torch.optim.Adam(distiller.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        distiller(x)["loss_similarity"].backward()
        optimizer.step()
    assert apart() < before / 3


# ---------------------------------------------------------------------------------------- processes
def test_two_processes_that_gather_equal_one():
    check_two_processes([SimilarityKLLoss, PKTLoss, RelativeTeacherLoss])


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
