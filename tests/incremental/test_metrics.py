"""Accuracy and forgetting against loops and by hand."""

import math

import pytest
import torch

from kdtasks.incremental.metrics import (
    average_accuracy,
    average_incremental_accuracy,
    forgetting,
    forgetting_diag,
    forgetting_gd,
)

ALL = [average_accuracy, average_incremental_accuracy, forgetting, forgetting_diag, forgetting_gd]
# task 0 falls to 70, then rises to 75
HAND = [[90.0], [70, 80], [75, 60, 50]]


def slow(A, s):
    T = len(A)

    def mean(pairs):
        return sum(v * w for v, w in pairs) / sum(w for _, w in pairs)

    best = [(max(A[i][j] for i in range(j, T - 1)) - A[T - 1][j], s[j]) for j in range(T - 1)]
    diag = [(A[j][j] - A[T - 1][j], s[j]) for j in range(T - 1)]
    stages = [mean([(A[i][j], s[j]) for j in range(i + 1)]) for i in range(T)]
    gd = [sum(s[j] / sum(s) * (A[j][j] - A[t][j]) for j in range(t)) for t in range(T)]
    return {
        "average_accuracy": stages[-1],
        "average_incremental_accuracy": sum(stages) / T,
        "forgetting": mean(best) if best else 0,
        "forgetting_diag": mean(diag) if diag else 0,
        "forgetting_gd": sum(gd) / T,
    }


def test_by_hand():
    assert average_accuracy(HAND) == pytest.approx(185 / 3)
    assert average_incremental_accuracy(HAND) == pytest.approx((90 + 75 + 185 / 3) / 3)
    assert average_incremental_accuracy(HAND, skip_first=True) == pytest.approx((75 + 185 / 3) / 2)
    assert forgetting(HAND) == pytest.approx((15 + 20) / 2)
    assert forgetting_diag(HAND) == pytest.approx((15 + 20) / 2)
    assert forgetting_gd(HAND) == pytest.approx((0 + 20 / 3 + (15 + 20) / 3) / 3)
    sizes = [2, 1, 1]
    assert average_accuracy(HAND, sizes) == pytest.approx((150 + 60 + 50) / 4)
    assert average_incremental_accuracy(HAND, sizes=sizes) == pytest.approx((90 + 220 / 3 + 65) / 3)
    assert forgetting(HAND, sizes) == pytest.approx((2 * 15 + 20) / 3)
    assert forgetting_gd(HAND, sizes) == pytest.approx((0 + 20 / 2 + 15 / 2 + 20 / 4) / 3)


def test_where_the_best_is_not_the_first():
    """Task 0 rises to 95 before the end, and the last row, where it is best of all, is not in the
    maximum.
    """
    A = [[60.0], [95, 70], [99, 40, 50]]
    assert forgetting(A) == pytest.approx((-4 + 30) / 2) and forgetting_diag(A) == pytest.approx(
        (-39 + 30) / 2
    )
    A[2][0] = 90
    assert forgetting(A) == pytest.approx((5 + 30) / 2) and forgetting_diag(A) == pytest.approx(
        (-30 + 30) / 2
    )


@pytest.mark.parametrize("tasks", [1, 2, 3, 6])
@pytest.mark.parametrize("sized", [False, True])
def test_they_are_the_loops_in_every_form_of_matrix(tasks, sized):
    A = torch.rand(
        tasks, tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(tasks)
    )
    sizes = list(range(5, 5 + 3 * tasks, 3)) if sized else None
    expected = slow(A.tolist(), sizes or [1] * tasks)
    hidden = A.clone()
    hidden[torch.ones(tasks, tasks).triu(1).bool()] = torch.nan
    ragged = [row[: i + 1] for i, row in enumerate(A.tolist())]
    none = [row + [None] * (tasks - i - 1) for i, row in enumerate(ragged)]
    for form in (
        A,
        hidden,
        hidden.numpy(),
        hidden.tolist(),
        ragged,
        none,
        [torch.tensor(row) for row in ragged],
    ):
        for metric in ALL:
            found = metric(form, sizes=sizes)
            assert type(found) is float and found == pytest.approx(
                expected[metric.__name__], rel=1e-6, abs=1e-7
            )
    for metric in ALL:
        assert metric(A, sizes=sizes) == pytest.approx(
            expected[metric.__name__], rel=1e-13, abs=1e-15
        )
        if sized:
            assert metric(A, sizes=10 * torch.tensor(sizes)) == pytest.approx(
                expected[metric.__name__], rel=1e-13, abs=1e-15
            )


def test_one_task_forgets_nothing():
    assert [metric([[80]]) for metric in ALL] == [80, 80, 0, 0, 0]
    with pytest.raises(ValueError, match="no stage"):
        average_incremental_accuracy([[80]], skip_first=True)


def test_a_nan_that_is_read_is_seen():
    assert all(math.isnan(metric([[90], [70, 80], [math.nan, 60, 50]])) for metric in ALL)
    for A in ([[math.nan], [70, 80], [75, 60, 50]], [[90], [math.nan, 80], [75, 60, 50]]):
        assert math.isnan(forgetting(A))


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize(
    "A, sizes, expected",
    [
        ([], None, "no row"),
        ([[1], [1]], None, "row 1 has 1 entries"),
        ([[1], [], [1, 1, 1]], None, "row 1 has 0"),
        (torch.zeros(2, 3), None, "row 0 has 3 entries; of 2 tasks"),
        (torch.zeros(3, 2), None, "row 2 has 2"),
        (HAND, [1, 2], "sizes of 3 tasks"),
        (HAND, [1, 2, 0], r"\[1, 2, 0\]"),
        (HAND, [[1], [2], [3]], "3 tasks"),
    ],
    ids=str,
)
def test_what_is_no_matrix_is_named(metric, A, sizes, expected):
    with pytest.raises(ValueError, match=expected):
        metric(A, sizes=sizes)
