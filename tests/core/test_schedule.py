"""Schedules: the value at every point of a run, by hand."""

import math

import pytest

from kdtasks.core import Cosine, Linear, Steps


@pytest.mark.parametrize(
    "iteration, expected", [(0, 4.0), (25, 3.25), (50, 2.5), (99, 1.03), (100, 1.0)]
)
def test_linear(iteration, expected):
    assert Linear(4.0, 1.0)((iteration, 100)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "iteration, expected", [(0, 2.0), (20, 2.0), (40, 1.5), (60, 1.0), (80, 1.0), (100, 1.0)]
)
def test_linear_between_two_fractions_is_constant_outside(iteration, expected):
    assert Linear(2.0, 1.0, begin=0.2, until=0.6)((iteration, 100)) == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("iteration", range(0, 101, 10))
def test_bss_falls_to_zero_at_three_quarters(iteration):
    assert Linear(2.0, 0.0, until=0.75)((iteration, 100)) == pytest.approx(
        max(2 * (1 - 4 / 3 * iteration / 100), 0), abs=1e-12
    )


def test_a_linear_end_is_reached_exactly():
    for start, end in ((0.1, 0.7), (3.0, 0.0), (-1e9, 1e-9)):
        assert (
            Linear(start, end)((0, 7)) == start
            and Linear(start, end)((7, 7)) == end
            and Linear(start, end)((9, 7)) == end
        )


@pytest.mark.parametrize("iteration", range(0, 101, 10))
def test_cosine(iteration):
    expected = 1.0 + (3.0 - 1.0) * (1 + math.cos(math.pi * iteration / 100)) / 2
    assert Cosine(3.0, 1.0)((iteration, 100)) == pytest.approx(expected, abs=1e-12)
    late = Cosine(3.0, 1.0, begin=0.5)((iteration, 100))
    assert late == pytest.approx(
        3.0 if iteration <= 50 else 2.0 + math.cos(math.pi * (iteration - 50) / 50), abs=1e-12
    )


@pytest.mark.parametrize(
    "iteration, expected",
    [(0, 1.0), (29, 1.0), (30, 0.5), (59, 0.5), (60, 0.0), (100, 0.0), (200, 0.0)],
)
def test_steps_change_at_their_fraction(iteration, expected):
    assert Steps([1.0, 0.5, 0.0], at=[0.3, 0.6])((iteration, 100)) == expected


def test_the_length_of_the_run_does_not_change_a_schedule():
    for schedule in (Linear(4.0, 1.0, 0.1, 0.9), Cosine(4.0, 1.0), Steps([3, 2], [0.5])):
        assert schedule((30, 100)) == pytest.approx(schedule((300, 1000)), abs=1e-12)
        assert math.isfinite(schedule((0, 0)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Linear(1, 0, begin=0.5, until=0.5), r"begin=0.5, until=0.5"),
        (lambda: Cosine(1, 0, until=1.5), r"until=1.5"),
        (lambda: Linear(1, 0, begin=-0.1), r"begin=-0.1"),
        (lambda: Steps([1, 2], at=[]), r"2 values and 0 fractions"),
        (
            lambda: Steps([1, 2, 3], at=[0.6, 0.3]),
            r"rise strictly between 0 and 1, got \[0.6, 0.3\]",
        ),
        (lambda: Steps([1, 2, 3], at=[0.3, 0.3]), r"rise strictly"),
        (lambda: Steps([1, 2], at=[10]), r"rise strictly"),
    ],
)
def test_what_is_no_schedule_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
