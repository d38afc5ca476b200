"""DarkRank against loops over queries, places and permutations, its gradient, its laws, and its
limits.
"""

import itertools
import math
import time
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.core import Distiller
from kdtasks.metric_learning import (
    DarkRankLoss,
    darkrank,
    darkrank_hard_loss,
    darkrank_kernel,
    darkrank_soft_loss,
)
from tests.relations import F64, check_two_processes, distance, gradient, rows

BOTH = (darkrank_hard_loss, darkrank_soft_loss)
SETTINGS = [
    {},
    {"alpha": 12.25, "beta": 4.0},
    {"beta": 1.0},
    {"alpha": 0.5, "beta": 2.0, "list_length": 3},
    {"list_length": 1},
    {"list_length": 2},
    {"list_length": None},
    {"normalize": False, "alpha": 0.3},
    {"alpha": 0.0, "list_length": None},
    {"beta": 12.0},
]


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def lists(student, teacher, alpha=3.0, beta=3.0, list_length=4, normalize=True):
    """For each query the student's and the teacher's scores of its candidates, in the teacher's
    order.
    """
    s, t = (
        [[a / (math.hypot(*x) or 1) if normalize else a for a in x] for x in z.double().tolist()]
        for z in (student, teacher)
    )
    for q in range(len(s)):
        others = sorted(
            (c for c in range(len(s)) if c != q), key=lambda c: (distance(t[q], t[c]), c)
        )[:list_length]
        yield tuple([-alpha * distance(z[q], z[c]) ** beta for c in others] for z in (s, t))


def log_probability(scores):
    """Of the ordering as it stands, place by place; scores less the largest that is left, so that
    exp does not overflow.
    """
    total = 0.0
    for i, score in enumerate(scores):
        top = max(scores[i:])
        total += score - top - math.log(math.fsum(math.exp(z - top) for z in scores[i:]))
    return total


def hard_costs(*args, **settings):
    return [-log_probability(s) for s, _ in lists(*args, **settings)]


def soft_costs(*args, **settings):
    return [over_all_orderings(s, t) for s, t in lists(*args, **settings)]


def over_all_orderings(s, t):
    logs = [
        [log_probability([z[i] for i in order]) for z in (s, t)]
        for order in itertools.permutations(range(len(s)))
    ]
    assert math.fsum(math.exp(log_t) for _, log_t in logs) == pytest.approx(1, rel=1e-12)
    return math.fsum(math.exp(log_t) * (log_t - log_s) for log_s, log_t in logs)


def slow_hard(*args, **settings):
    return sum(costs := hard_costs(*args, **settings)) / len(costs)


def slow_soft(*args, **settings):
    return sum(costs := soft_costs(*args, **settings)) / len(costs)


SLOW = {darkrank_hard_loss: slow_hard, darkrank_soft_loss: slow_soft}


def hard_by_autograd(student, teacher, alpha=3.0, beta=3.0, list_length=4, detach_query=False):
    """Query by query, the distances as norms of differences, one log-sum-exp for every place."""
    s, t, costs = F.normalize(student), F.normalize(teacher), []
    for q in range(len(s)):
        others = [c for c in range(len(s)) if c != q]
        others = sorted(others, key=lambda c: (t[q] - t[c]).norm().item())[:list_length]
        z = torch.stack(
            [
                -alpha * ((s[q].detach() if detach_query else s[q]) - s[c]).norm() ** beta
                for c in others
            ]
        )
        costs.append(sum(z[i:].logsumexp(0) - z[i] for i in range(len(z))))
    return sum(costs) / len(costs)


# -------------------------------------------------------------------------------------- the formula
@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("n, ds, dt", [(3, 2, 4), (6, 3, 2), (7, 5, 5)])
def test_they_equal_the_loop(loss, settings, n, ds, dt):
    student, teacher = rows(n, ds), rows(n, dt, scale=3.0)
    expected = SLOW[loss](student, teacher, **settings)
    assert loss(student, teacher, **settings).item() == pytest.approx(
        expected, rel=1e-11, abs=1e-13
    )


def test_known_numbers():
    """On a line, normalised to ±1: each query has one candidate at 0 and two at 2, or none at 0 and
    three at 2.
    """
    student = torch.tensor([[1.0], [2], [-1], [-3]], dtype=F64)
    near, far = 1.0, math.exp(-0.5 * 2.0)  # alpha ½, beta 1
    teacher = torch.tensor([[0.0, 1], [1, 1], [-1, -1], [0, -1]], dtype=F64)
    # both order the same one first, then a tie
    expected = -math.log(near / (near + 2 * far)) + math.log(2)
    assert darkrank_hard_loss(student, teacher, alpha=0.5, beta=1.0).item() == pytest.approx(
        expected, rel=1e-14
    )


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_soft_over_sets_equals_all_orderings(length):
    """Also where the scores are sharp, far from 0, or both; n = 8 are 40 320 orderings."""
    for scale in (0.1, 3.0, 60.0) if length < 8 else (3.0,):
        student, teacher = (
            scale * torch.randn(2, length, dtype=F64) - 1000,
            scale * torch.randn(2, length, dtype=F64),
        )
        for s, t, found in zip(
            student.tolist(),
            teacher.tolist(),
            darkrank_kernel.soft_costs(student, teacher)[0].tolist(),
        ):
            assert found == pytest.approx(over_all_orderings(s, t), rel=1e-12, abs=1e-12 * scale)


@pytest.mark.parametrize("scale", [100, 300, 1000])
def test_soft_keeps_its_digits_where_the_teachers_distances_are_large_and_some_of_them_equal(scale):
    student, teacher = rows(6, 8), rows(6, 8, scale=scale / math.sqrt(8))
    teacher[3] = teacher[4] = teacher[0]
    found = darkrank_soft_loss(student, teacher, normalize=False).item()
    assert found == pytest.approx(slow_soft(student, teacher, normalize=False), rel=5e-8)
    assert darkrank_soft_loss(teacher, teacher, normalize=False) == 0


@pytest.mark.parametrize("kind, costs", [("hard", hard_costs), ("soft", soft_costs)])
def test_without_reduction_there_is_a_cost_for_each_query(kind, costs):
    student, teacher = rows(6, 4), rows(6, 3)
    loss = DarkRankLoss(kind, reduction="none")
    assert loss(student, teacher).tolist() == pytest.approx(costs(student, teacher), rel=1e-11)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())
    for n in (0, 1):
        student = rows(n, 4, torch.float16).requires_grad_()
        loss(student, rows(n, 3)).sum().backward()
        assert (
            torch.equal(loss(student, rows(n, 3)), torch.zeros(n, dtype=F64))
            and not student.grad.any()
        )


@pytest.mark.parametrize("detach_query", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"list_length": None}, {"alpha": 12.25, "beta": 4.0}, {"beta": 1.0, "list_length": 5}],
    ids=str,
)
def test_the_gradient_of_the_hard_form_is_autograds(settings, detach_query):
    student, teacher = rows(9, 4), rows(9, 3)
    module = DarkRankLoss("hard", detach_query=detach_query, **settings)
    value, pull = gradient(module, student, teacher)
    expected, expected_pull = gradient(
        hard_by_autograd, student, teacher, detach_query=detach_query, **settings
    )
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(pull, expected_pull, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradcheck(loss, settings):
    teacher = rows(5, 3)
    assert torch.autograd.gradcheck(
        lambda s: loss(s, teacher, **settings), rows(5, 3).requires_grad_()
    )


@pytest.mark.parametrize("places", [1, 3, 7])
@pytest.mark.parametrize("bounded", [True, False])
def test_what_the_places_of_a_list_cost_and_the_derivatives(bounded, places):
    """Also where the last candidates, or all but one, stand as far below the best as the fast sum
    is allowed to see.
    """
    z = torch.randn(5, 7, dtype=F64)
    z[3:] = darkrank_kernel.EXP_LIMIT * torch.tensor(
        [[0.0, -0.2, -0.999, -1, -0.998, -0.5, -1], [-1, -0.999, 0, -0.002, -1, -1, -1]]
    )
    z.requires_grad_()
    expected = sum(z[:, i:].logsumexp(1) - z[:, i] for i in range(places))
    found, pull = darkrank_kernel.hard_costs(z.detach(), places, bounded)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        pull, torch.autograd.grad(expected.sum(), z)[0], rtol=1e-11, atol=1e-12
    )


# ----------------------------------------------------------------------------------------- the laws
@pytest.mark.parametrize("list_length", [3, 4, None])
def test_soft_is_zero_where_all_scores_agree_and_hard_is_not(list_length):
    teacher = rows(7, 4)
    turn, _ = torch.linalg.qr(rows(4, 4))
    for student in (teacher, teacher @ turn, 5 * teacher, F.pad(teacher, (0, 2)), -teacher):
        value, pull = gradient(darkrank_soft_loss, student, teacher, list_length=list_length)
        assert value.abs() < 1e-13 and pull.abs().max() < 1e-12
        value, pull = gradient(darkrank_hard_loss, student, teacher, list_length=list_length)
        assert value > 0.1 and pull.abs().max() > 1e-3
    assert darkrank_soft_loss(rows(7, 4), teacher, list_length=list_length) > 0.01


def test_an_indifferent_student_costs_log_n_factorial():
    student, teacher = torch.ones(6, 3, dtype=F64), rows(6, 4)
    assert darkrank_hard_loss(student, teacher).item() == pytest.approx(math.log(24), rel=1e-14)
    assert darkrank_hard_loss(student, teacher, list_length=None).item() == pytest.approx(
        math.log(120), rel=1e-14
    )
    assert darkrank_hard_loss(rows(6, 3), teacher, alpha=0.0).item() == pytest.approx(
        math.log(24), rel=1e-14
    )
    assert darkrank_soft_loss(rows(6, 3), teacher, alpha=0.0) == 0
    assert darkrank_soft_loss(student, teacher, list_length=2) > 0


def test_a_sharp_teacher_makes_soft_the_hard_one():
    student, teacher = 0.05 * rows(6, 3), 300 * rows(6, 3)
    settings = {"normalize": False, "alpha": 5.0, "beta": 2.0}
    assert darkrank_soft_loss(student, teacher, **settings).item() == pytest.approx(
        darkrank_hard_loss(student, teacher, **settings).item(), rel=1e-9
    )


def test_only_the_teachers_order_counts_in_the_hard_form_and_its_scores_in_the_soft_one():
    student, teacher = rows(7, 4), rows(7, 3)
    for other in (9 * teacher, 0.01 * teacher, F.pad(teacher, (0, 2))):
        assert darkrank_hard_loss(student, other, normalize=False) == darkrank_hard_loss(
            student, teacher, normalize=False
        )
    assert (
        darkrank_soft_loss(student, 0.5 * teacher, normalize=False)
        - darkrank_soft_loss(student, teacher, normalize=False)
    ).abs() > 1e-3


@pytest.mark.parametrize("loss", BOTH)
def test_moving_turning_and_scaling(loss):
    student, teacher = rows(7, 4), rows(7, 3)
    turn, _ = torch.linalg.qr(rows(4, 4))
    value, pull = gradient(loss, student, teacher)
    for other, expected in ((student @ turn, pull @ turn), (4 * student, pull / 4)):
        moved, moved_pull = gradient(loss, other, teacher)
        torch.testing.assert_close(moved, value, rtol=1e-11, atol=1e-15)
        torch.testing.assert_close(moved_pull, expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(loss(student, 4 * teacher), value, rtol=1e-11, atol=0)
    raw = loss(student, teacher, normalize=False, alpha=0.5)
    torch.testing.assert_close(
        loss(student + 3, teacher - 2, normalize=False, alpha=0.5), raw, rtol=1e-11, atol=1e-15
    )
    # scaling both is another alpha
    c, (alpha, beta) = 1.5, (0.5, 3.0)
    torch.testing.assert_close(
        loss(c * student, c * teacher, alpha, beta, normalize=False),
        loss(student, teacher, alpha * c**beta, beta, normalize=False),
        rtol=1e-11,
        atol=1e-15,
    )
    assert (value - raw).abs() > 1e-3


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("list_length", [4, None])
def test_the_order_of_the_batch_does_not_matter(loss, list_length):
    student, teacher, order = rows(8, 4), rows(8, 3), torch.randperm(8)
    value, pull = gradient(loss, student, teacher, list_length=list_length)
    shuffled, shuffled_pull = gradient(
        loss, student[order], teacher[order], list_length=list_length
    )
    torch.testing.assert_close(shuffled, value, rtol=1e-11, atol=0)
    torch.testing.assert_close(shuffled_pull, pull[order], rtol=1e-9, atol=1e-14)
    assert (loss(student[order], teacher, list_length=list_length) - value).abs() > 1e-3


# -------------------------------------------------------------------------- lists, ties, duplicates
@pytest.mark.parametrize("loss", BOTH)
def test_a_list_is_clamped_to_the_other_rows_and_none_takes_all(loss):
    student, teacher = rows(6, 4), rows(6, 3)
    whole = loss(student, teacher, list_length=5)
    for list_length in (None, 6, 13, 1000):
        assert loss(student, teacher, list_length=list_length) == whole
    assert (loss(student, teacher, list_length=4) - whole).abs() > 1e-3


def test_equally_near_candidates_stand_by_their_index():
    # query 0: all four equally near
    teacher = torch.tensor([[0.0, 0], [0, 2], [2, 0], [0, -2], [-2, 0]], dtype=F64)
    student = torch.tensor([[0.0], [1], [2], [3], [4]], dtype=F64)
    settings = {"normalize": False, "alpha": 1.0, "beta": 1.0}
    z = [-1.0, -2, -3, -4]  # 1, 2, 3, 4
    (first,) = list(lists(student, teacher, **settings))[:1]
    assert first[0] == z and darkrank_hard_loss(
        student, teacher, **settings
    ).item() == pytest.approx(slow_hard(student, teacher, **settings), rel=1e-13)
    for length in (1, 2, 3):
        found = darkrank_hard_loss(student, teacher, list_length=length, **settings).item()
        assert found == pytest.approx(
            slow_hard(student, teacher, list_length=length, **settings), rel=1e-13
        )
    # an unstable sort shows from 17 on
    student, everywhere = rows(40, 1), torch.zeros(40, 2, dtype=F64)
    for length in (3, 16, 17, None):
        found = darkrank_hard_loss(student, everywhere, normalize=False, list_length=length).item()
        assert found == pytest.approx(
            slow_hard(student, everywhere, normalize=False, list_length=length), rel=1e-12
        )


@pytest.mark.parametrize("loss", BOTH)
def test_a_query_is_left_out_by_its_index_also_where_a_duplicate_stands_before_it(loss):
    student, teacher = rows(7, 4), rows(7, 3)
    # for query 5 the nearest is 2, not itself
    teacher[5] = teacher[2]
    assert loss(student, teacher, list_length=1) == 0
    for list_length in (2, 3):
        assert loss(student, teacher, list_length=list_length).item() == pytest.approx(
            SLOW[loss](student, teacher, list_length=list_length), rel=1e-11
        )


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_coincident_rows_and_duplicates_equal_the_loop_and_have_a_gradient(loss, beta, dtype):
    for same_s, same_t in (
        ([0, 1], []),
        ([], [2, 3]),
        ([0, 1, 4], [0, 1, 4]),
        (range(6), []),
        (range(6), range(6)),
    ):
        student, teacher = rows(6, 3, dtype), rows(6, 4, dtype)
        student[list(same_s)], teacher[list(same_t)] = 0.7, -1.3
        value, pull = gradient(loss, student, teacher, beta=beta)
        assert value.item() == pytest.approx(
            SLOW[loss](student, teacher, beta=beta), rel=1e-6, abs=1e-13
        )
        assert pull.isfinite().all() and pull.abs().max() < 100
    if len(same_s) == 6:
        assert not pull.any()


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("normalize", [True, False])
def test_a_row_of_zeros_has_no_direction(loss, normalize):
    student, teacher = rows(6, 3), rows(6, 4)
    student[1] = student[4] = 0
    # else all are equally far from it, but for rounding
    if not normalize:
        teacher[2] = 0
    value, pull = gradient(loss, student, teacher, normalize=normalize)
    assert value.item() == pytest.approx(
        SLOW[loss](student, teacher, normalize=normalize), rel=1e-11
    )
    assert (
        pull.isfinite().all()
        and pull.abs().max() < 200
        and pull[0].any()
        and pull[1].any() == (not normalize)
    )


@pytest.mark.parametrize("loss", [*BOTH, DarkRankLoss(), DarkRankLoss("soft", "released")])
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
    # one candidate is always the first
    if n < 3:
        assert value == 0 and not student.grad.any()
    else:
        assert value > 0 and student.grad.any()


# ---------------------------------------------------------------------------------- precision, size
@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-3])
@pytest.mark.parametrize("offset", [0, 100])
def test_float32_rows_are_exact_to_1e_6_far_from_the_origin_and_near_each_other(
    loss, spread, offset
):
    student, teacher = (
        (rows(10, 4) * spread + offset).float(),
        (rows(10, 4) * spread + offset).float(),
    )
    for settings in (
        {"normalize": False, "alpha": 0.5 / spread, "beta": 1.0},
        {"alpha": 3.0, "beta": 2.0},
    ):
        value, pull = gradient(loss, student, teacher, **settings)
        assert value.item() == pytest.approx(
            SLOW[loss](student, teacher, **settings), rel=1e-6, abs=1e-12
        )
        exact_pull = gradient(loss, student.double(), teacher.double(), **settings)[1]
        assert (pull - exact_pull).norm() < 1e-6 * exact_pull.norm()


@pytest.mark.parametrize("loss", [*BOTH, DarkRankLoss("soft", "released")])
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
    assert value.dtype is result and pull.dtype is dtype and value > 0.1
    assert value.item() == pytest.approx(exact.item(), rel=1e-14 if dtype is F64 else 1e-6)
    torch.testing.assert_close(
        pull, exact_pull.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-7
    )
    assert loss(student, teacher.double()).dtype is loss(student.double(), teacher).dtype is F64
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(student, teacher) == value


@pytest.mark.parametrize("loss", BOTH)
def test_scores_of_long_rows_do_not_overflow(loss):
    """1e-12 inside a logarithm would stop at 27.63 for a query, and exp of these scores is 0."""
    student, teacher = rows(9, 6, torch.float32, scale=300.0), rows(9, 6, torch.float32)
    value, pull = gradient(loss, student, teacher, normalize=False)
    assert value > 1e6 and pull.isfinite().all()
    assert value.item() == pytest.approx(SLOW[loss](student, teacher, normalize=False), rel=1e-6)


def test_a_whole_batch_is_one_list_and_soft_goes_to_twelve():
    student, teacher = rows(40, 8), rows(40, 8)
    assert darkrank_hard_loss(student, teacher, list_length=None).item() == pytest.approx(
        slow_hard(student, teacher, list_length=None), rel=1e-12
    )
    start = time.process_time()
    value, pull = gradient(darkrank_soft_loss, student, teacher, list_length=12)
    # 12! orderings would take weeks
    assert time.process_time() - start < 20 and value > 0 and pull.isfinite().all()
    picked = darkrank_soft_loss(student[:13], teacher[:13], list_length=12)
    assert picked == darkrank_soft_loss(student[:13], teacher[:13], list_length=None)
    # the first 8 places of a ranking know less
    assert picked > darkrank_soft_loss(student[:13], teacher[:13], list_length=8)


@pytest.mark.parametrize("list_length", [13, 20, None])
def test_soft_above_twelve_is_an_error_that_names_the_way_out(list_length):
    for loss in (
        darkrank_soft_loss,
        lambda s, t, list_length: DarkRankLoss("soft", list_length=list_length)(s, t),
    ):
        with pytest.raises(
            ValueError,
            match="soft form takes lists of at most 12, got (13|20|29) .*use the hard form",
        ):
            loss(rows(30, 4), rows(30, 4), list_length=list_length)
        # clamped to 8
        assert loss(rows(9, 4), rows(9, 4), list_length=list_length).isfinite()


def test_no_tensor_of_n_cubed_or_of_n_squared_times_the_width():
    student, teacher = torch.randn(128, 256).requires_grad_(), torch.randn(128, 256)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        torch.autograd.grad(darkrank_hard_loss(student, teacher, list_length=None), student)
    sizes = [
        event.nbytes()
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    assert 8 * 128 * 128 <= max(sizes) <= 8 * 128 * 256  # the rows in float64


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("normalize", [True, False])
def test_a_row_that_is_not_a_number_is_not_hidden(loss, normalize):
    for side in (0, 1):
        for bad in (math.nan, math.inf):
            pair = [rows(5, 3), rows(5, 3)]
            pair[side][2, 1] = bad
            assert not loss(*pair, list_length=3, normalize=normalize).isfinite()


# ----------------------------------------------------------------------------------------- autograd
@pytest.mark.parametrize("loss", [*BOTH, DarkRankLoss(), DarkRankLoss("soft", "released")])
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


@pytest.mark.parametrize(
    "loss",
    [
        *BOTH,
        DarkRankLoss("soft", "released", detach_query=False),
        DarkRankLoss(list_length=None, places=2, reduction="none"),
    ],
)
def test_the_gradient_has_derivatives(loss):
    student, teacher = rows(6, 4).requires_grad_(), rows(6, 3)
    assert torch.autograd.gradgradcheck(lambda s: loss(s, teacher), student)
    (once,) = torch.autograd.grad(loss(student, teacher).sum(), student)
    (again,) = torch.autograd.grad(loss(student, teacher).sum(), student, create_graph=True)
    torch.testing.assert_close(again.detach(), once, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_gradient_of_a_detached_query_has_no_derivative(kind):
    """It is not the gradient of the value, and what it depends on is not recorded."""
    student, teacher = rows(6, 4).requires_grad_(), rows(6, 3)
    value = DarkRankLoss(kind, detach_query=True)(student, teacher)
    with pytest.raises(RuntimeError, match="detach_query=True .* differentiated once"):
        torch.autograd.grad(value, student, create_graph=True)


@pytest.mark.parametrize("n", [1, 2, 4, 7])
@pytest.mark.parametrize("spread", [0.1, 3.0, 60.0])
def test_the_kernels_equal_the_formulas(n, spread):
    student, teacher = (spread * rows(5, n)).requires_grad_(), spread * rows(5, n) - 100
    places = (n + 1) // 2
    for plain, (found, pull) in (
        (darkrank.soft_costs(student, teacher), darkrank_kernel.soft_costs(student, teacher)),
        (
            darkrank.hard_costs(student, places),
            darkrank_kernel.hard_costs(student.detach(), places, bounded=spread < 60),
        ),
    ):
        torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12 * spread)
        (expected,) = torch.autograd.grad(plain.sum(), student)
        torch.testing.assert_close(pull, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 3.0])
def test_scores_and_their_slope_equal_the_formula_also_where_rows_coincide(beta):
    squared = rows(4, 4).square().fill_diagonal_(0).requires_grad_()
    scores = darkrank.scores(squared, 3.0, beta)
    found, slope = darkrank_kernel.scores_and_slope(squared.detach(), 3.0, beta)
    assert found[1, 2].item() == pytest.approx(-3 * squared[1, 2].item() ** (beta / 2), rel=1e-12)
    torch.testing.assert_close(found, scores.detach(), rtol=1e-12, atol=0)
    (expected,) = torch.autograd.grad(scores.sum(), squared)
    if beta == 2:
        # there the slope at 0 is neither 0 nor infinite; a distance of 0 has no gradient anyway
        slope.fill_diagonal_(0)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------------- module
def test_presets_and_what_replaces_them():
    student, teacher = rows(9, 4), rows(9, 3)
    assert DarkRankLoss()(student, teacher) == darkrank_hard_loss(student, teacher)
    assert DarkRankLoss("soft")(student, teacher) == darkrank_soft_loss(student, teacher)
    released = DarkRankLoss("soft", "released")
    assert released(student, teacher) == darkrank_soft_loss(
        student, teacher, alpha=3.5**2, beta=2 * 2.0
    )
    assert released.settings["detach_query"] and not DarkRankLoss().settings["detach_query"]
    assert not DarkRankLoss(preset="released", detach_query=False).settings["detach_query"]
    for given in (
        {"alpha": 0.0},
        {"beta": 1.0},
        {"list_length": None},
        {"list_length": 2},
        {"normalize": False},
    ):
        for kind, loss in zip(("hard", "soft"), BOTH):
            assert (
                DarkRankLoss(kind, **given)(student, teacher)
                == loss(student, teacher, **given)
                != loss(student, teacher)
            )
    assert darkrank.PRESETS == {
        "quoted": {"alpha": 3.0, "beta": 3.0, "detach_query": False},
        # no object changed them
        "released": {"alpha": 12.25, "beta": 4.0, "detach_query": True},
    }
    assert repr(DarkRankLoss()) == (
        "DarkRankLoss(kind='hard', alpha=3.0, beta=3.0, detach_query=False, list_length=4, "
        "normalize=True, places=None, reduction='mean', gather=False)"
    )


def test_the_released_scores_are_those_of_its_code():
    """-(scale · d²)^power of normalised rows; cross-entropy over all orderings has the same
    gradient, at the candidates only.
    """
    student, teacher = rows(6, 4), rows(6, 3)
    _, pull = gradient(DarkRankLoss("soft", "released"), student, teacher)
    s = student.clone().requires_grad_()
    unit, taught, total = F.normalize(s), F.normalize(teacher), 0.0
    for q in range(6):
        far = (taught[q] - taught).square().sum(1)
        others = far.argsort()[1:5]
        scores = [
            -((3.5 * (z[q].detach() - z[others]).square().sum(1)) ** 2.0) for z in (unit, taught)
        ]
        for order in itertools.permutations(range(4)):
            log_s, log_t = (
                sum(z[list(order[i:])].log_softmax(0)[0] for i in range(4)) for z in scores
            )
            total = total - log_t.exp() * log_s
    torch.testing.assert_close(pull, torch.autograd.grad(total / 6, s)[0], rtol=1e-9, atol=1e-13)


def test_a_detached_query_changes_the_gradient_only():
    student, teacher = rows(6, 4), rows(6, 3)
    for kind in ("hard", "soft"):
        (a, full), (b, detached) = (
            gradient(DarkRankLoss(kind, detach_query=d), student, teacher) for d in (False, True)
        )
        assert a == b and (full - detached).norm() > 0.1 * full.norm()
    raw = {"normalize": False, "alpha": 0.1}
    # pushes and is pushed
    assert gradient(DarkRankLoss(**raw), student, teacher)[1].sum(0).abs().max() < 1e-14
    assert (
        gradient(DarkRankLoss(detach_query=True, **raw), student, teacher)[1].sum(0).abs().max()
        > 1e-3
    )


def test_first_places_of_the_whole_batch_have_full_denominators():
    student, teacher = rows(9, 4), rows(9, 3)
    costs = []
    for s, _ in lists(student, teacher, list_length=None):
        costs.append(sum(math.log(sum(map(math.exp, s[i:]))) - s[i] for i in range(3)))
    expected = sum(costs) / len(costs)
    assert DarkRankLoss(list_length=None, places=3)(student, teacher).item() == pytest.approx(
        expected, rel=1e-12
    )
    assert abs(darkrank_hard_loss(student, teacher, list_length=3).item() - expected) > 0.1
    for places in (8, 100):
        assert DarkRankLoss(list_length=None, places=places)(
            student, teacher
        ) == darkrank_hard_loss(student, teacher, list_length=None)


@pytest.mark.parametrize(
    "student, teacher",
    [((2, 3), (3, 3)), ((3,), (3,)), ((), ()), ((2, 3, 4), (2, 3, 4)), ((2, 3), (2,))],
)
def test_shapes_that_do_not_fit_are_in_the_message(student, teacher):
    for loss in (*BOTH, DarkRankLoss(), DarkRankLoss(gather=True)):
        with pytest.raises(ValueError) as caught:
            loss(torch.zeros(student), torch.zeros(teacher))
        assert f"got student {student} and teacher {teacher}" in str(caught.value)


@pytest.mark.parametrize(
    "given, message",
    [
        *(
            ({"alpha": value}, f"alpha must be >= 0 and finite, got {value}")
            for value in (-1.0, math.nan, math.inf)
        ),
        *(
            ({"beta": value}, f"beta must be > 0 and at most 1000, got {value}")
            for value in (0.0, 2000.0)
        ),
        *(
            (
                {"list_length": value},
                f"list_length must be an integer of at least 1 or None, got {value}",
            )
            for value in (0, 4.0, 2.5)
        ),
    ],
)
def test_settings_out_of_range_are_errors(given, message):
    calls = [
        lambda: DarkRankLoss(**given),
        *(lambda loss=loss: loss(rows(4, 2), rows(4, 2), **given) for loss in BOTH),
    ]
    for call in calls:
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == message


@pytest.mark.parametrize(
    "given, message",
    [
        ({"kind": "sort"}, "no kind 'sort'; did you mean 'soft'?"),
        ({"preset": "release"}, "no preset 'release'; did you mean 'released'?"),
        ({"reduction": "sum"}, "no reduction 'sum'; there are 'mean', 'none'"),
        ({"places": 2.0}, "places must be an integer of at least 1 or None, got 2.0"),
        (
            {"kind": "soft", "places": 2},
            "places=2 cuts the hard form's ordering; the soft one has all orderings of its lists",
        ),
    ],
)
def test_unknown_kinds_and_presets_are_errors(given, message):
    with pytest.raises(ValueError) as caught:
        DarkRankLoss(**given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "loss", [DarkRankLoss(list_length=None), DarkRankLoss("soft", list_length=6)]
)
def test_through_the_distiller_a_narrow_student_ranks_as_the_teacher_does(loss):
    x, teacher, student = torch.randn(24, 6), nn.Linear(6, 8), nn.Linear(6, 4)
    distiller = Distiller(
        student, {"teacher": teacher}, {"loss_rank": (loss, ("student", "teacher"), 1.0)}
    )
    distiller.build(x)

    def order(model):
        return torch.cdist(*[F.normalize(model(x))] * 2).argsort(1)[:, 1]

    before, agreed = teacher.weight.clone(), (order(student) == order(teacher)).float().mean()
    optimizer, losses = torch.optim.Adam(distiller.parameters(), lr=0.03), []
    for _ in range(80):
        value = distiller(x)["loss_rank"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0] and torch.equal(teacher.weight, before)
    assert (order(student) == order(teacher)).float().mean() > agreed + 0.15


# ---------------------------------------------------------------------------------------- processes
def test_two_processes_that_gather_equal_one():
    check_two_processes(
        [
            partial(DarkRankLoss, kind="hard", list_length=None),
            partial(DarkRankLoss, kind="soft", preset="released"),
        ]
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "loss", [*BOTH, DarkRankLoss(list_length=None), DarkRankLoss("soft", list_length=12)]
)
def test_on_a_gpu_it_is_the_same_and_never_waits(loss):
    student, teacher = rows(64, 32, torch.float32), rows(64, 32, torch.float32)
    expected, expected_pull = gradient(loss, student.double(), teacher.double())
    student, teacher = student.cuda(), teacher.cuda()
    # the table of sets is made once
    loss(student, teacher)
    torch.cuda.set_sync_debug_mode("error")
    try:
        value, pull = gradient(loss, student, teacher)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (pull.cpu() - expected_pull).norm() < 1e-6 * expected_pull.norm()
