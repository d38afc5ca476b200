"""The relational losses against loops over indices, their gradients, their laws, coincident rows,
and what they cost.
"""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.core import Distiller
from kdtasks.engine import config as configs
from kdtasks.engine.experiment import Experiment
from kdtasks.general import RKDLoss, rkd, rkd_angle_loss, rkd_distance_loss, rkd_kernel
from kdtasks.general.distances import squared_distances
from tests.live_bytes import LiveBytes
from tests.relations import F64, check_two_processes, distance, gradient, rows

BOTH = (rkd_distance_loss, rkd_angle_loss)
DIVISORS = {rkd_distance_loss: ("all", "pairs", "sum"), rkd_angle_loss: ("all", "triplets", "sum")}
CASES = [(loss, divisor) for loss in BOTH for divisor in DIVISORS[loss]]


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def huber(x, y):
    return 0.5 * (x - y) ** 2 if abs(x - y) <= 1 else abs(x - y) - 0.5


def cosine(x, vertex, y, shortest):
    one, two = distance(x, vertex), distance(y, vertex)
    if min(one, two) <= shortest:
        return 0.0
    return sum((a - v) * (b - v) for a, v, b in zip(x, vertex, y)) / (one * two)


def slow_distance(student, teacher, divisor="all"):
    s, t, n = student.double().tolist(), teacher.double().tolist(), len(student)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    mean_s, mean_t = (sum(distance(x[i], x[j]) for i, j in pairs) / len(pairs) for x in (s, t))
    total = sum(
        huber(distance(s[i], s[j]) / (mean_s or 1), distance(t[i], t[j]) / (mean_t or 1))
        for i, j in pairs
    )
    return total / {"all": n * n, "pairs": len(pairs), "sum": 1}[divisor]


def slow_angle(student, teacher, divisor="all"):
    s, t, n = student.double().tolist(), teacher.double().tolist(), len(student)
    none_s, none_t = (1e-6 * max(distance(a, b) for a in x for b in x) for x in (s, t))
    total, count = 0.0, 0
    for i in range(n):
        for j in range(n):
            for k in range(n):
                if divisor == "all" or len({i, j, k}) == 3:
                    total += huber(
                        cosine(s[i], s[j], s[k], none_s), cosine(t[i], t[j], t[k], none_t)
                    )
                    count += 1
    return total if divisor == "sum" else total / count


SLOW = {rkd_distance_loss: slow_distance, rkd_angle_loss: slow_angle}


def distance_by_autograd(student, teacher):
    def relative(x):
        i, j = torch.triu_indices(len(x), len(x), 1)
        d = (x[i] - x[j]).norm(dim=1)
        return d / d.mean()

    return (
        2
        * F.smooth_l1_loss(relative(student), relative(teacher), reduction="sum")
        / len(student) ** 2
    )


def angle_by_autograd(student, teacher):
    """All difference vectors, divided by their norms: N² times the width in memory, 1e12 of
    gradient where a norm is 0.
    """

    def cosines(x):
        arms = F.normalize(x[None] - x[:, None], dim=2)
        return arms @ arms.transpose(1, 2)

    return F.smooth_l1_loss(cosines(student), cosines(teacher))


AUTOGRAD = {rkd_distance_loss: distance_by_autograd, rkd_angle_loss: angle_by_autograd}


# -------------------------------------------------------------------------------------- the formula
@pytest.mark.parametrize("loss, divisor", CASES)
@pytest.mark.parametrize("n, ds, dt", [(3, 2, 2), (3, 1, 4), (5, 3, 2), (9, 4, 7)])
def test_they_equal_the_loop_over_indices(loss, divisor, n, ds, dt):
    for scale in (1.0, 5.0):
        student, teacher = rows(n, ds, scale=scale), rows(n, dt)
        assert loss(student, teacher, divisor=divisor).item() == pytest.approx(
            SLOW[loss](student, teacher, divisor), rel=1e-12
        )


@pytest.mark.parametrize(
    ("name", "beside"),
    [("rkd_digits", {"loss_cls": 1.0}), ("rkd_kd_digits", {"loss_cls": 0.1, "loss_kd": 0.9})],
)
def test_in_classification_it_is_25_distances_and_50_angles_of_the_pooled_features(name, beside):
    """Of all images, labelled or not, and beside the labels or KD."""
    path = Path(__file__).parents[2] / "configs" / "classification" / f"{name}.py"
    experiment = Experiment(configs.load(path), device="cpu")
    distiller = experiment.distiller(experiment.stage("distilled"), load=False).eval()
    assert {k: t.weight for k, t in distiller.terms.items()} == {**beside, "loss_rkd": 1.0}
    batch = {
        "input": torch.randn(7, 1, 8, 8),
        "target": torch.tensor([0, 1, 2, 3, -100, -100, -100]),
        "labelled": torch.arange(7) < 4,
    }
    features = distiller.tensors(batch)
    student, teacher = features["student.flatten"], features["teacher.flatten"]
    assert (student.shape, teacher.shape) == ((7, 8), (7, 64))
    expected = 25 * slow_distance(student, teacher) + 50 * slow_angle(student, teacher)
    assert distiller(batch)["loss_rkd"].item() == pytest.approx(expected, rel=1e-5)


def test_known_numbers():
    """A right angle taught by a straight one, worked out by hand."""
    student, teacher = (
        torch.tensor([[1.0, 0], [0, 0], [0, 1]], dtype=F64),
        torch.tensor([[0.0], [1], [2]], dtype=F64),
    )
    # angles: 45°, 90°, 45° and 0°, 180°, 0°
    half = math.sqrt(0.5)
    angles = 2 * (2 * 0.5 * (1 - half) ** 2 + 0.5 * 1**2)
    assert rkd_angle_loss(student, teacher, divisor="sum").item() == pytest.approx(
        angles, rel=1e-14
    )
    assert rkd_angle_loss(student, teacher, divisor="triplets").item() == pytest.approx(
        angles / 6, rel=1e-14
    )
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(angles / 27, rel=1e-14)
    # distances 1, 1, √2 and 1, 1, 2 of mean 4/3
    mean = (2 + math.sqrt(2)) / 3
    distances = 2 * (2 * 0.5 * (1 / mean - 3 / 4) ** 2 + 0.5 * (math.sqrt(2) / mean - 3 / 2) ** 2)
    assert rkd_distance_loss(student, teacher, divisor="sum").item() == pytest.approx(
        distances, rel=1e-14
    )
    assert rkd_distance_loss(student, teacher, divisor="pairs").item() == pytest.approx(
        distances / 6, rel=1e-14
    )
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(distances / 9, rel=1e-14)


def test_beyond_one_the_huber_loss_is_linear():
    student, teacher = (
        torch.tensor([[0.0], [1], [2]], dtype=F64),
        torch.tensor([[1.0], [0], [2]], dtype=F64),
    )
    value = rkd_angle_loss(student, teacher, divisor="sum").item()
    # cosines of -1 and 1, at two vertices: 1.5, not 2
    assert value == pytest.approx(2 * 2 * 1.5, rel=1e-14)
    student, teacher = (
        torch.tensor([[0.0], [1], [1], [60]], dtype=F64),
        torch.tensor([[0.0], [60], [1], [1]], dtype=F64),
    )
    errors = [
        abs(
            distance(student[i], student[j]) / 30.166666666666668
            - distance(teacher[i], teacher[j]) / 30.166666666666668
        )
        for i in range(4)
        for j in range(4)
    ]
    assert max(errors) > 1.5
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(
        slow_distance(student, teacher), rel=1e-13
    )


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("n", [3, 7, 31, 32, 33, 65])
def test_the_gradient_is_autograds(loss, n):
    """Also through the mean distance, and across the blocks' borders."""
    student, teacher = rows(n, 5), rows(n, 3)
    # relations far apart too, where Huber is linear
    teacher[: n // 2] *= 30
    value, pull = gradient(loss, student, teacher)
    expected, expected_pull = gradient(AUTOGRAD[loss], student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(pull, expected_pull, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("loss, divisor", CASES)
def test_gradcheck(loss, divisor):
    teacher = rows(5, 3)
    assert torch.autograd.gradcheck(
        lambda s: loss(s, teacher, divisor=divisor), rows(5, 2).requires_grad_()
    )
    assert torch.autograd.gradcheck(
        lambda s: loss(s, teacher, divisor=divisor), rows(5, 4, scale=0.01).requires_grad_()
    )


@pytest.mark.parametrize("detach_query", [False, True])
def test_squared_distances(detach_query):
    x = rows(5, 3)
    found = squared_distances(x, detach_query)
    torch.testing.assert_close(found, (x[:, None] - x[None]).square().sum(2), rtol=1e-14, atol=0)
    assert (
        torch.equal(found, found.T)
        and not found.diagonal().any()
        and squared_distances(x.float()).dtype is F64
    )
    weight = rows(5, 5)
    plain = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(
        (
            ((plain.detach() if detach_query else plain)[:, None] - plain[None]).square().sum(2)
            * weight
        ).sum(),
        plain,
    )
    torch.testing.assert_close(
        gradient(lambda z: (squared_distances(z, detach_query) * weight).sum(), x)[1], expected
    )
    if not detach_query:
        assert torch.autograd.gradcheck(squared_distances, x.requires_grad_())
        assert torch.autograd.gradgradcheck(squared_distances, x)


@pytest.mark.parametrize("loss", BOTH)
def test_far_from_the_origin_no_digit_is_lost(loss):
    # so that the sum below is not rounded
    student, teacher = (rows(9, 4) * 2**20).round() / 2**20, rows(9, 3)
    value, pull = gradient(loss, student, teacher)
    far, far_pull = gradient(loss, student + 2**16, teacher)
    assert far == value and (far_pull - pull).norm() < 1e-14 * pull.norm()


# ----------------------------------------------------------------------------------------- the laws
@pytest.mark.parametrize("loss", BOTH)
def test_a_student_that_is_the_teacher_moved_turned_mirrored_scaled_or_padded_is_at_zero(loss):
    teacher = rows(8, 4)
    turn, _ = torch.linalg.qr(rows(4, 4))
    for student in (
        teacher,
        teacher + 3,
        teacher @ turn,
        teacher * torch.tensor([1.0, -1, 1, 1]),
        7 * teacher,
        F.pad(teacher, (0, 3)),
        0.1 * (teacher @ turn) - 100,
    ):
        value, pull = gradient(loss, student, teacher)
        assert value < 1e-24 and pull.abs().max() < 1e-11
    assert (
        loss(teacher + 0.1 * rows(8, 4), teacher) > 1e-5
        and loss(teacher * torch.tensor([1.0, 1, 1, 3]), teacher) > 1e-4
    )


@pytest.mark.parametrize("loss", BOTH)
def test_either_side_may_be_moved_turned_or_scaled_and_the_gradient_goes_along(loss):
    student, teacher = rows(7, 4), rows(7, 3)
    turn, _ = torch.linalg.qr(rows(4, 4))
    value, pull = gradient(loss, student, teacher)
    for other, expected in (
        (student + 5, pull),
        (student @ turn, pull @ turn),
        (4 * student, pull / 4),
    ):
        moved, moved_pull = gradient(loss, other, teacher)
        torch.testing.assert_close(moved, value, rtol=1e-12, atol=0)
        torch.testing.assert_close(moved_pull, expected, rtol=1e-10, atol=1e-15)
    for other in (teacher - 2, 10 * teacher, F.pad(teacher, (1, 1))):
        torch.testing.assert_close(loss(student, other), value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("n", [6, 40])
def test_the_order_of_the_batch_does_not_matter(loss, n):
    student, teacher, order = rows(n, 4), rows(n, 3), torch.randperm(n)
    value, pull = gradient(loss, student, teacher)
    shuffled, shuffled_pull = gradient(loss, student[order], teacher[order])
    torch.testing.assert_close(shuffled, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(shuffled_pull, pull[order], rtol=1e-10, atol=1e-15)
    # but the rows belong together
    assert (loss(student[order], teacher) - value).abs() > 1e-4


@pytest.mark.parametrize("loss", BOTH)
def test_nothing_moves_or_scales_the_student_as_a_whole(loss):
    student = rows(9, 5) + 2
    _, pull = gradient(loss, student, rows(9, 3))
    assert (
        pull.abs().max() > 1e-4
        and pull.sum(0).abs().max() < 1e-16
        and (pull * student).sum().abs() < 1e-15
    )


def test_the_divisors_are_multiples_of_each_other_but_for_coincident_rows():
    student, teacher, n = rows(7, 3), rows(7, 3), 7
    values = {
        divisor: rkd_distance_loss(student, teacher, divisor=divisor).item()
        for divisor in ("sum", "pairs", "all")
    }
    assert (
        values["sum"]
        == pytest.approx(values["pairs"] * n * (n - 1))
        == pytest.approx(values["all"] * n**2)
    )
    values = {
        divisor: rkd_angle_loss(student, teacher, divisor=divisor).item()
        for divisor in ("sum", "triplets", "all")
    }
    assert (
        values["sum"]
        == pytest.approx(values["triplets"] * n * (n - 1) * (n - 2))
        == pytest.approx(values["all"] * n**3)
    )
    # (0, 1, 1), (1, 0, 0): an arm and itself, no cosine of 1
    student[1] = student[0]
    both = [rkd_angle_loss(student, teacher, divisor=divisor).item() for divisor in ("all", "sum")]
    assert both[0] * n**3 - both[1] == pytest.approx(2 * 0.5, rel=1e-12)


# ---------------------------------------------------------------------------------- coincident rows
@pytest.mark.parametrize("loss, divisor", CASES)
def test_coincident_rows_equal_the_loop(loss, divisor):
    for same_s, same_t in (
        ([0, 1], []),
        ([], [2, 3]),
        ([0, 1, 4], [2, 3]),
        ([1, 2], [1, 2]),
        (range(6), []),
        ([], range(6)),
        (range(6), range(6)),
    ):
        student, teacher = rows(6, 3), rows(6, 4)
        student[list(same_s)], teacher[list(same_t)] = 0.7, -1.3
        value, pull = gradient(loss, student, teacher, divisor=divisor)
        assert value.item() == pytest.approx(
            SLOW[loss](student, teacher, divisor), rel=1e-12, abs=1e-15
        )
        assert pull.isfinite().all() and pull.abs().max() < 10 * (1 if divisor != "sum" else 216)


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_coincident_student_rows_receive_the_gradient_of_the_arms_that_have_a_length(loss, dtype):
    """The usual angle loss gives 1e9 here."""
    student, teacher = rows(9, 4, dtype), rows(9, 4, dtype)
    student[3] = student[7]
    _, pull = gradient(loss, student, teacher)
    moved = student.double().clone().requires_grad_()
    arms, straight = (
        moved[None] - moved[:, None],
        teacher.double()[None] - teacher.double()[:, None],
    )
    # (9, 9) 0 for no length
    length = (arms.square().sum(2) + (arms.detach() == 0).all(2)).sqrt() * (arms.detach() != 0).any(
        2
    )
    if loss is rkd_angle_loss:
        unit = (arms / length.where(length > 0, 1)[..., None]).where((length > 0)[..., None], 0)
        expected = F.smooth_l1_loss(
            unit @ unit.transpose(1, 2), (u := F.normalize(straight, dim=2)) @ u.transpose(1, 2)
        )
    else:
        far = straight.norm(dim=2)
        expected = F.smooth_l1_loss(length / length.sum() * 72, far / far.sum() * 72)
    (expected_pull,) = torch.autograd.grad(expected, moved)
    assert (
        pull - expected_pull
    ).norm() < 1e-6 * expected_pull.norm() and expected_pull.abs().max() < 0.1


@pytest.mark.parametrize("apart", [1e-16, 1e-12, 1e-8, 0.9e-6, 1.1e-6, 1e-4])
def test_an_arm_has_a_length_from_a_millionth_of_the_largest_on(apart):
    student, teacher = (
        torch.tensor([[0.0], [apart], [1]], dtype=F64),
        torch.tensor([[0.0], [1], [2]], dtype=F64),
    )
    for divisor in DIVISORS[rkd_angle_loss]:
        for a, b in ((student, teacher), (teacher, 1e5 * student)):
            value = rkd_angle_loss(a, b, divisor=divisor).item()
            assert value == pytest.approx(slow_angle(a, b, divisor), rel=1e-9, abs=1e-15)
            assert (value > 0.05) == (apart < 1e-6)


def test_twins_that_differ_in_the_last_bit_do_not_explode():
    """The same image twice in both spaces, by kernels that round differently."""
    student, teacher = rows(20, 64, torch.float32), rows(20, 48, torch.float32)
    _, plain = gradient(rkd_angle_loss, student, teacher)
    for x in (student, teacher):
        x[1] = x[0] * (1 + 6e-8 * torch.randint(-1, 2, x[0].shape))
    _, pull = gradient(rkd_angle_loss, student, teacher)
    assert (
        student[1].ne(student[0]).any()
        and teacher[1].ne(teacher[0]).any()
        and pull.abs().max() < 2 * plain.abs().max()
    )


@pytest.mark.parametrize("loss", [*BOTH, RKDLoss()])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64])
def test_few_rows_are_a_number_that_backpropagates(loss, n, dtype):
    student = rows(n, 4, dtype).requires_grad_()
    value = loss(student, rows(n, 2, dtype))
    value.backward()
    assert (
        value.shape == ()
        and value.isfinite()
        and student.grad.shape == (n, 4)
        and student.grad.isfinite().all()
    )
    if n < (2 if loss is rkd_distance_loss else 3) and loss in BOTH:
        assert value == 0 and not student.grad.any()
    elif n == 3:
        assert value > 0 and student.grad.any()
    for divisor in DIVISORS.get(loss, ()):
        assert loss(student, rows(n, 2, dtype), divisor=divisor).isfinite()


def test_two_rows_have_one_distance_and_no_angle():
    value, pull = gradient(RKDLoss(), rows(2, 4), rows(2, 4))
    # it is the mean distance on both sides
    assert value == 0 and pull.abs().max() < 1e-15
    # nor one where the two coincide
    assert RKDLoss(0, 1)(torch.ones(2, 4), rows(2, 4)) == 0


@pytest.mark.parametrize("loss", BOTH)
def test_rows_without_columns_coincide(loss):
    student = torch.zeros(4, 0, requires_grad=True)
    value = loss(student, rows(4, 2, torch.float32))
    value.backward()
    assert value.isfinite() and student.grad.shape == (4, 0)


# ---------------------------------------------------------------------------------- precision, size
@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("spread", [None, 1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("offset", [0, 100])
def test_float32_rows_are_exact_to_1e_6_in_clusters_and_far_from_the_origin(loss, spread, offset):
    student, teacher = rows(24, 16), rows(24, 16)
    if spread:
        student = rows(4, 16).repeat(6, 1) + spread * student
    student, teacher = (student + offset).float(), (teacher + offset).float()
    value, pull = gradient(loss, student, teacher)
    exact, exact_pull = gradient(AUTOGRAD[loss], student.double(), teacher.double())
    # float32 has rounded some of these rows together
    if spread == 1e-5 and offset:
        assert pull.isfinite().all()
        assert value.item() == pytest.approx(SLOW[loss](student, teacher), rel=1e-6)
    else:
        assert value.item() == pytest.approx(exact.item(), rel=1e-6)
        assert (pull - exact_pull).norm() < 1e-6 * exact_pull.norm()


@pytest.mark.parametrize("loss", BOTH)
def test_duplicates_in_a_batch_equal_the_loop(loss):
    """A sampler with replacement gives the same image twice: both spaces coincide there."""
    student, teacher = (
        rows(5, 8, torch.float32)[[0, 1, 2, 3, 4, 1, 1, 3]],
        rows(5, 6, torch.float32)[[0, 1, 2, 3, 4, 1, 1, 3]],
    )
    for offset in (0, 100):
        value, pull = gradient(loss, student + offset, teacher + offset)
        assert value.item() == pytest.approx(
            SLOW[loss](student + offset, teacher + offset), rel=1e-6
        )
        assert pull.isfinite().all() and pull.abs().max() < 1


@pytest.mark.parametrize("loss", [*BOTH, RKDLoss()])
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
    student, teacher = rows(12, 6, dtype, scale=300.0), rows(12, 6, dtype)
    value, pull = gradient(loss, student, teacher)
    exact, exact_pull = gradient(loss, student.double(), teacher.double())
    assert value.dtype is result and pull.dtype is dtype
    assert value.item() == pytest.approx(exact.item(), rel=1e-14 if dtype is F64 else 1e-6)
    torch.testing.assert_close(
        pull, exact_pull.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-7
    )
    assert loss(student, teacher.double()).dtype is loss(student.double(), teacher).dtype is F64


@pytest.mark.parametrize("loss", BOTH)
def test_autocast_changes_nothing(loss):
    student, teacher = rows(12, 6, torch.float32), rows(12, 6, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradient(loss, student, teacher)
    assert all(map(torch.equal, inside, gradient(loss, student, teacher)))


@pytest.mark.parametrize("n", [5, 33, 70])
def test_blocks_do_not_show(monkeypatch, n):
    student, teacher = rows(n, 5), rows(n, 3)
    whole = gradient(rkd_angle_loss, student, teacher)
    for row_count, entries in ((1, 1), (7, 50), (32, 32 * n), (33, 100_000), (1000, 10**9)):
        monkeypatch.setattr(rkd_kernel, "ROWS", row_count)
        monkeypatch.setitem(rkd_kernel.BLOCK, "cpu", entries)
        value, pull = gradient(rkd_angle_loss, student, teacher)
        torch.testing.assert_close(value, whole[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(pull, whole[1], rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("loss", BOTH)
def test_no_tensor_of_n_cubed_or_of_n_squared_times_the_width(loss):
    n, d = 160, 256
    student, teacher = torch.randn(n, d).requires_grad_(), torch.randn(n, d)
    with LiveBytes() as usual:
        torch.autograd.grad(angle_by_autograd(student, teacher), student)
    # what is measured is really there
    assert usual.peak > 4 * n**2 * d * 4
    with LiveBytes() as live:
        torch.autograd.grad(loss(student, teacher), student)
    assert (
        live.largest <= max(8 * n**2, 8 * n * d, 8 * rkd_kernel.BLOCK["cpu"])
        and live.largest < 8 * n**3 / 20
    )
    assert 2 * live.largest < live.peak < usual.peak / 15


def test_memory_grows_with_n_squared():
    peaks = []
    for n in (256, 512):
        student, teacher = torch.randn(n, 4).requires_grad_(), torch.randn(n, 4)
        with LiveBytes() as live:
            torch.autograd.grad(rkd_distance_loss(student, teacher), student)
        peaks.append(live.peak)
    assert 3.5 < peaks[1] / peaks[0] < 4.5
    n = 256
    squared = squared_distances(torch.randn(n, 4))
    with LiveBytes() as live:
        rkd_kernel.angle_sum(squared, squared, True)
    # of n³, in float32, it would be six times this
    assert live.peak < 8 * (3 * n**2 + 8 * rkd_kernel.BLOCK["cpu"]) < 4 * n**3 / 6


@pytest.mark.parametrize("loss", BOTH)
def test_a_row_that_is_not_a_number_is_not_hidden(loss):
    for side in (0, 1):
        for bad in (math.nan, math.inf):
            pair = [rows(5, 3), rows(5, 3)]
            pair[side][2, 1] = bad
            assert not loss(*pair).isfinite()


# ----------------------------------------------------------------------------------------- autograd
@pytest.mark.parametrize("loss", [*BOTH, RKDLoss()])
def test_the_teacher_receives_no_gradient_and_nothing_is_changed(loss):
    student, teacher = rows(6, 4).requires_grad_(), rows(6, 3).requires_grad_()
    copies = student.detach().clone(), teacher.detach().clone()
    value = loss(student, teacher)
    value.backward()
    assert (
        teacher.grad is None
        and student.grad.any()
        and not loss(student.detach(), teacher).requires_grad
    )
    assert torch.equal(student, copies[0]) and torch.equal(teacher, copies[1])
    with torch.no_grad():
        assert loss(student, teacher) == value and not loss(student, teacher).requires_grad


@pytest.mark.parametrize("loss", BOTH)
def test_backward_twice_adds_the_same_gradient_again(loss):
    student = rows(6, 4).requires_grad_()
    value = loss(student, rows(6, 3))
    value.backward(retain_graph=True)
    once = student.grad.clone()
    (3 * value).backward()
    torch.testing.assert_close(student.grad, 4 * once, rtol=1e-13, atol=0)


@pytest.mark.parametrize("loss", [*BOTH, RKDLoss()])
def test_the_gradient_has_derivatives(loss):
    student, teacher = rows(5, 3).requires_grad_(), rows(5, 2)
    assert torch.autograd.gradgradcheck(lambda s: loss(s, teacher), student)
    (once,) = torch.autograd.grad(loss(student, teacher), student)
    (again,) = torch.autograd.grad(loss(student, teacher), student, create_graph=True)
    torch.testing.assert_close(again.detach(), once, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("n", [3, 8, 40])
@pytest.mark.parametrize("same", [[], [0, 2]])
def test_the_kernel_of_angles_equals_the_formula(n, same):
    """In all of N³; and where rows coincide, up to their gradient through the distances."""
    student, teacher = rows(n, 4), rows(n, 3)
    student[same], teacher[same[:1]] = 0.3, 30.0
    apart, taught = squared_distances(student).requires_grad_(), squared_distances(teacher)
    expected = rkd.angle_sum(apart, taught)
    (expected_pull,) = torch.autograd.grad(expected, apart)
    found, pull = rkd_kernel.angle_sum(apart.detach(), taught, True)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=0)
    # a distance stands in two places, and the kernel writes to one of them what an end pulls
    both, expected_both = pull + pull.T, expected_pull + expected_pull.T
    assert (both - expected_both).norm() < 1e-12 * expected_both.norm()
    value, none = rkd_kernel.angle_sum(apart.detach(), taught, False)
    assert value == found and none is None


# ------------------------------------------------------------------------------------------- module
def test_the_module_is_the_weighted_sum():
    student, teacher = rows(6, 4), rows(6, 3)
    distance, angle = rkd_distance_loss(student, teacher), rkd_angle_loss(student, teacher)
    assert RKDLoss()(student, teacher).item() == pytest.approx(
        distance.item() + 2 * angle.item(), rel=1e-14
    )
    assert RKDLoss(25, 50)(student, teacher).item() == pytest.approx(
        25 * distance.item() + 50 * angle.item(), rel=1e-14
    )
    assert (
        RKDLoss(distance_weight=0)(student, teacher) == 2 * angle
        and RKDLoss(angle_weight=0)(student, teacher) == distance
    )
    assert repr(RKDLoss()) == "RKDLoss(distance_weight=1.0, angle_weight=2.0, gather=False)"


def test_a_weight_of_nought_costs_nothing_and_both_losses_share_their_distances(monkeypatch):
    calls = []
    monkeypatch.setattr(
        rkd, "squared_distances", lambda x: calls.append(len(x)) or squared_distances(x)
    )
    student = rows(4, 2).requires_grad_()
    RKDLoss(0, 0)(student, rows(4, 2)).backward()
    assert not student.grad.any() and not calls
    assert RKDLoss()(student, rows(4, 2)) > 0 and calls == [4, 4]
    monkeypatch.setattr(rkd, "angle_sum", None)
    monkeypatch.setattr(rkd_kernel, "angle_sum", None)
    assert RKDLoss(angle_weight=0)(student, rows(4, 2)) > 0


@pytest.mark.parametrize(
    "student, teacher",
    [((2, 3), (3, 3)), ((3,), (3,)), ((), ()), ((2, 3, 4), (2, 3, 4)), ((2, 3), (2,))],
)
def test_shapes_that_do_not_fit_are_in_the_message(student, teacher):
    for loss in (*BOTH, RKDLoss(), RKDLoss(0, 0)):
        with pytest.raises(ValueError) as caught:
            loss(torch.zeros(student), torch.zeros(teacher))
        assert f"got student {student} and teacher {teacher}" in str(caught.value)


def test_an_unknown_divisor_names_the_nearest():
    for loss, given, message in (
        (rkd_distance_loss, "pair", "no divisor 'pair'; did you mean 'pairs'?"),
        (rkd_angle_loss, "triples", "no divisor 'triples'; did you mean 'triplets'?"),
        (rkd_angle_loss, "pairs", "no divisor 'pairs'; there are 'all', 'triplets', 'sum'"),
    ):
        for n in (0, 4):
            with pytest.raises(ValueError) as caught:
                loss(rows(n, 2), rows(n, 2), divisor=given)
            assert str(caught.value) == message


@pytest.mark.parametrize(
    "given", [{"distance_weight": -1.0}, {"angle_weight": math.nan}, {"angle_weight": math.inf}]
)
def test_weights_out_of_range_are_errors(given):
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=f"{name} must be >= 0 and finite, got {value}"):
        RKDLoss(**given)


def test_through_the_distiller_a_narrow_student_takes_over_the_teachers_shape():
    x, teacher, student = torch.randn(40, 6), nn.Linear(6, 8), nn.Linear(6, 4)
    distiller = Distiller(
        student, {"teacher": teacher}, {"loss_rkd": (RKDLoss(), ("student", "teacher"), 1.0)}
    )
    distiller.build(x)
    before, optimizer, losses = (
        teacher.weight.clone(),
        torch.optim.Adam(distiller.parameters(), lr=0.05),
        [],
    )
    for _ in range(60):
        loss = distiller(x)["loss_rkd"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0] and torch.equal(teacher.weight, before)


# ---------------------------------------------------------------------------------------- processes
def test_two_processes_that_gather_equal_one():
    check_two_processes([RKDLoss])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loss, divisor", CASES)
def test_on_a_gpu_it_is_the_same_and_never_waits(loss, divisor):
    student, teacher = rows(300, 64, torch.float32), rows(300, 64, torch.float32)
    student[5] = student[9]
    expected, expected_pull = gradient(loss, student.double(), teacher.double(), divisor=divisor)
    student, teacher = student.cuda(), teacher.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value, pull = gradient(loss, student, teacher, divisor=divisor)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (pull.cpu() - expected_pull).norm() < 1e-6 * expected_pull.norm()
