"""The KD loss against a loop over indices, its gradient by formula, its laws, and the inputs at the
edge.
"""

import itertools
import math

import pytest
import torch
from torch import nn

from kdtasks.general import BinaryKDLoss, KDLoss, binary_kd_loss, kd, kd_kernel, kd_loss

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def logits(*shape, scale=2.0, **options):
    return scale * torch.randn(*shape, dtype=options.pop("dtype", F64), **options)


def softmax(row, temperature):
    top = max(row)
    e = [math.exp((z - top) / temperature) for z in row]
    return [x / sum(e) for x in e]


def slow(student, teacher, temperature):
    """T² · mean over all positions of Σ_c p_t (log p_t - log p_s), number by number."""
    total = positions = 0
    for b in range(student.shape[0]):
        for place in itertools.product(*map(range, student.shape[2:])):
            s, t = (
                [z[(b, c, *place)].item() for c in range(student.shape[1])]
                for z in (student, teacher)
            )
            p, q = softmax(t, temperature), softmax(s, temperature)
            total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))
            positions += 1
    return temperature**2 * total / positions


@pytest.mark.parametrize("shape", [(5, 7), (1, 3), (3, 4, 2, 3), (2, 5, 6), (4, 2, 1, 1, 2)])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 20.0, 0.5])
def test_it_equals_the_loop_over_indices(shape, temperature):
    student, teacher = logits(*shape), logits(*shape)
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(
        slow(student, teacher, temperature), rel=1e-12
    )
    assert (
        KDLoss(temperature)(student, teacher).item()
        == kd_loss(student, teacher, temperature).item()
    )


def test_the_default_temperature_is_four():
    student, teacher = logits(3, 5), logits(3, 5)
    assert (
        kd_loss(student, teacher)
        == kd_loss(student, teacher, temperature=4.0)
        == KDLoss()(student, teacher)
    )
    assert repr(KDLoss(2.5)) == "KDLoss(temperature=2.5)"


def test_a_dense_map_is_a_batch_of_its_positions():
    student, teacher = logits(3, 4, 5, 6), logits(3, 4, 5, 6)
    rows = [z.movedim(1, -1).reshape(-1, 4) for z in (student, teacher)]
    torch.testing.assert_close(kd_loss(student, teacher), kd_loss(*rows), rtol=1e-13, atol=0)


def test_scaling_logits_and_temperature_together_multiplies_by_the_square():
    student, teacher = logits(4, 6), logits(4, 6)
    torch.testing.assert_close(
        kd_loss(3 * student, 3 * teacher, 6.0),
        9 * kd_loss(student, teacher, 2.0),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 2, 2)])
def test_gradcheck(shape):
    teacher = logits(*shape)
    assert torch.autograd.gradcheck(
        lambda s: kd_loss(s, teacher, 3.0), logits(*shape).requires_grad_()
    )


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 2, 2)])
def test_the_gradient_has_derivatives(shape):
    teacher = logits(*shape)
    assert torch.autograd.gradgradcheck(
        lambda s: kd_loss(s, teacher, 3.0), logits(*shape).requires_grad_()
    )


@pytest.mark.parametrize("dtype, tight", [(torch.float32, 1e-6), (F64, 1e-12)])
def test_the_kernel_equals_the_formula(dtype, tight):
    """Also where classes are masked: in both, in one of them, all of a row; and where one is a
    NaN.
    """
    student, teacher = logits(9, 6, dtype=dtype), logits(9, 6, dtype=dtype)
    student[1, 2] = teacher[1, 2] = -math.inf
    teacher[2, 3] = -math.inf
    student[3, 1] = -math.inf
    student[4] = teacher[4] = -math.inf
    student[5, 0] = math.nan
    teacher[6, 5] = math.nan
    student[7, 2], teacher[7, 2] = math.nan, -math.inf
    student[8], teacher[8] = torch.tensor([[1e4, 0, -1e4, 5, 5, 5], [-1e4, 0, 1e4, 5, 5, 5]])
    for s, t in [
        *zip(student.split(1), teacher.split(1)),
        (student[:3, :, None], teacher[:3, :, None]),
    ]:
        s = s.clone().requires_grad_()
        expected = kd.softened_kl(s, t, 2.0)
        (slope,) = torch.autograd.grad(expected, s)
        found, gradient = kd_kernel.softened_kl(s.detach(), t, True, 2.0)
        close = {"rtol": tight, "atol": tight, "equal_nan": True}
        torch.testing.assert_close(found, expected.detach(), **close)
        torch.testing.assert_close(gradient, slope, **close)
        value, none = kd_kernel.softened_kl(s.detach(), t, False, 2.0)
        torch.testing.assert_close(value, found, rtol=0, atol=0, equal_nan=True)
        assert none is None


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_the_difference_of_the_probabilities(temperature):
    student, teacher = logits(6, 5).requires_grad_(), logits(6, 5)
    (gradient,) = torch.autograd.grad(kd_loss(student, teacher, temperature), student)
    p_student, p_teacher = (
        torch.softmax(student / temperature, 1),
        torch.softmax(teacher / temperature, 1),
    )
    torch.testing.assert_close(
        gradient, temperature / 6 * (p_student - p_teacher), rtol=1e-11, atol=1e-14
    )


def test_the_teacher_receives_no_gradient():
    student, teacher = logits(3, 4).requires_grad_(), logits(3, 4).requires_grad_()
    kd_loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()


def test_it_is_zero_at_equality_and_positive_elsewhere():
    student = logits(8, 10).requires_grad_()
    loss = kd_loss(student, student.detach().clone())
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().max() < 1e-15
    for _ in range(20):
        assert kd_loss(logits(2, 3), logits(2, 3)) > 0


def test_it_is_not_symmetric_and_weighs_by_the_teacher():
    sure, flat = torch.tensor([[8.0, 0, 0]], dtype=F64), torch.zeros(1, 3, dtype=F64)
    # KL(sure‖flat) ≈ log 3
    assert kd_loss(flat, sure, 1.0).item() == pytest.approx(math.log(3), abs=0.02)
    # KL(flat‖sure)
    assert kd_loss(sure, flat, 1.0).item() == pytest.approx(16 / 3 - math.log(3), abs=0.02)


def test_a_constant_added_to_a_row_changes_nothing():
    student, teacher = logits(4, 5), logits(4, 5)
    shifted = student + logits(4, 1, scale=50), teacher + logits(4, 1, scale=50)
    torch.testing.assert_close(kd_loss(*shifted), kd_loss(student, teacher), rtol=1e-11, atol=0)


def test_the_order_of_rows_and_of_classes_does_not_matter():
    student, teacher = logits(6, 5), logits(6, 5)
    rows, columns = torch.randperm(6), torch.randperm(5)
    torch.testing.assert_close(
        kd_loss(student[rows][:, columns], teacher[rows][:, columns]), kd_loss(student, teacher)
    )
    # but rows belong together
    assert (kd_loss(student[rows], teacher) - kd_loss(student, teacher)).abs() > 1e-3


def test_a_large_temperature_matches_centred_logits():
    student, teacher = logits(5, 7), logits(5, 7)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(
        kd_loss(student, teacher, 1e4), centred.square().sum() / (2 * 7 * 5), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3, 3), (2, 5, 0, 3)])
def test_an_empty_batch_is_a_zero_that_backpropagates(shape):
    student = torch.zeros(shape, requires_grad=True)
    loss = kd_loss(student, torch.zeros(shape))
    loss.backward()
    assert loss.item() == 0 and loss.shape == () and student.grad.shape == shape


@pytest.mark.parametrize(
    "dtype, result",
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (F64, F64),
    ],
)
def test_half_precision_is_raised_and_float64_stays(dtype, result):
    student, teacher = logits(4, 5).to(dtype).requires_grad_(), logits(4, 5).to(dtype)
    loss = kd_loss(student, teacher)
    loss.backward()
    assert loss.dtype is result and student.grad.dtype is dtype
    exact = kd_loss(student.detach().to(F64), teacher.to(F64))
    # the arithmetic is not half
    assert loss.item() == pytest.approx(exact.item(), rel=1e-12 if dtype is F64 else 1e-5)


def test_a_cached_half_teacher_beside_a_float_student():
    student, teacher = logits(4, 5, dtype=torch.float32), logits(4, 5).half()
    assert torch.equal(kd_loss(student, teacher), kd_loss(student, teacher.float()))
    assert kd_loss(student.double(), teacher).dtype is F64


def test_under_autocast_it_is_computed_in_float32():
    student, teacher = logits(4, 5, dtype=torch.float32), logits(4, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = kd_loss(student, teacher)
    assert torch.equal(inside, kd_loss(student, teacher))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_saturated_logits_are_finite(dtype, temperature):
    student = torch.tensor(
        [[1e4, -1e4, 0], [0, 0, 1e4], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True
    )
    teacher = torch.tensor([[-1e4, 1e4, 0], [0, 0, 1e4], [1e4, -1e4, -1e4]], dtype=dtype)
    loss = kd_loss(student, teacher, temperature)
    loss.backward()
    s = student.detach()
    # log p_student, at one class each
    expected = temperature / 3 * float(s[0, 0] - s[0, 1] + s[2, 1] - s[2, 0])
    assert loss.item() == pytest.approx(expected, rel=1e-3) and student.grad.isfinite().all()


@pytest.mark.parametrize(
    "student, teacher",
    [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((2, 3, 4, 4), (2, 3, 4, 5)), ((3,), (3,)), ((), ())],
)
def test_shapes_that_do_not_fit_are_in_the_message(student, teacher):
    with pytest.raises(ValueError, match=r"got student .* and teacher") as caught:
        kd_loss(torch.zeros(student), torch.zeros(teacher))
    assert f"student {student}" in str(caught.value) and f"teacher {teacher}" in str(caught.value)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_an_error(temperature):
    for make in (
        lambda: kd_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature),
        lambda: KDLoss(temperature),
    ):
        with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
            make()


def test_it_teaches_a_linear_student_the_teachers_answers():
    x, teacher, student = torch.randn(200, 6), nn.Linear(6, 4), nn.Linear(6, 4)
    target = teacher(x).detach()
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    losses = []
    for _ in range(60):
        loss = kd_loss(student(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]
    assert (student(x).argmax(1) == target.argmax(1)).float().mean() > 0.95


# ------------------------------------------------------------------------------------ sigmoid heads
def slow_binary(student, teacher, temperature):
    """T² · mean over rows of the sum over classes of the divergence of two answers, number by
    number.
    """

    def yes(z):
        return 1 / (1 + math.exp(-z / temperature))

    cells = [
        (yes(t), yes(s)) for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist())
    ]
    return (
        temperature**2
        / len(student)
        * math.fsum(q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)) for q, p in cells)
    )


@pytest.mark.parametrize("shape", [(5, 7), (4, 1), (1, 3)])
@pytest.mark.parametrize("temperature", [1.0, 3.0, 0.5])
def test_the_binary_form_equals_the_loop(shape, temperature):
    student, teacher = logits(*shape).requires_grad_(), logits(*shape)
    loss = binary_kd_loss(student, teacher, temperature)
    assert loss.item() == pytest.approx(
        slow_binary(student.detach(), teacher, temperature), rel=1e-11
    )
    assert (
        BinaryKDLoss(temperature)(student, teacher).item() == loss.item()
        and binary_kd_loss(teacher, teacher) == 0
    )
    (gradient,) = torch.autograd.grad(loss, student)
    difference = (student / temperature).sigmoid() - (teacher / temperature).sigmoid()
    torch.testing.assert_close(
        gradient, temperature / shape[0] * difference, rtol=1e-10, atol=1e-14
    )


def test_one_logit_is_the_softmax_of_two():
    """σ(z) is the softmax of (0, z): so a head of one logit learns what kd_loss would teach two."""
    student, teacher = logits(6, 1), logits(6, 1)
    two = [torch.cat([torch.zeros_like(z), z], 1) for z in (student, teacher)]
    torch.testing.assert_close(
        binary_kd_loss(student, teacher, 2.0), kd_loss(*two, 2.0), rtol=1e-11, atol=0
    )


def test_its_edges():
    empty = torch.zeros(0, 4, requires_grad=True)
    binary_kd_loss(empty, torch.zeros(0, 4)).backward()
    assert empty.grad.shape == (0, 4) and repr(BinaryKDLoss(2.0)) == "BinaryKDLoss(temperature=2.0)"
    saturated = torch.tensor([[1e4, -1e4]], dtype=torch.float16, requires_grad=True)
    loss = binary_kd_loss(saturated, -saturated.detach())
    loss.backward()
    assert (
        loss.dtype is torch.float32
        and loss.item() == pytest.approx(2e4, rel=1e-3)
        and saturated.grad.isfinite().all()
    )
    for call in (
        lambda: binary_kd_loss(torch.zeros(2, 3), torch.zeros(2, 4)),
        lambda: binary_kd_loss(torch.zeros(3), torch.zeros(3)),
    ):
        with pytest.raises(ValueError, match="expected two equal shapes"):
            call()
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        BinaryKDLoss(0)


@pytest.mark.parametrize("shape", [(4, 1), (0, 1), (2, 1, 3, 3)])
def test_one_class_has_no_softmax_and_the_error_names_the_form_that_has(shape):
    with pytest.raises(ValueError, match="expected at least two classes, .* binary_kd_loss"):
        kd_loss(torch.zeros(shape), torch.ones(shape))
