"""Anchors at equal intervals, the greedy choice against the rule in words, and hardness."""

import itertools
import math

import pytest
import torch

from kdtasks.general import anchor_hardness, equal_interval_anchors, greedy_route, next_anchor


@pytest.mark.parametrize(
    "epochs, interval, expected",
    [
        (240, 60, [60, 120, 180, 240]),
        (10, 4, [4, 8, 10]),
        (10, 3, [3, 6, 9, 10]),
        (5, 1, [1, 2, 3, 4, 5]),
        (5, 5, [5]),
        (5, 9, [5]),
        (1, 1, [1]),
    ],
)
def test_anchors_at_equal_intervals_end_with_the_last_epoch(epochs, interval, expected):
    assert equal_interval_anchors(epochs, interval) == expected


@pytest.mark.parametrize("epochs, interval", [(0, 1), (5, 0), (5, -1)])
def test_epochs_and_interval_are_positive(epochs, interval):
    with pytest.raises(ValueError, match=f"got {epochs} and {interval}"):
        equal_interval_anchors(epochs, interval)


def slow(hardness, current, threshold):
    """The last one before the first whose ratio is above, at least the next."""
    if current == len(hardness) - 1:
        return None
    above = [
        j for j in range(current + 1, len(hardness)) if hardness[j] / hardness[current] > threshold
    ]
    first = above[0] if above else len(hardness)
    return max(first - 1, current + 1)


def test_the_greedy_choice_stops_before_the_first_that_is_too_hard():
    values = (0.5, 1.0, 2.0, 4.0)
    for hardness in itertools.product(values, repeat=4):
        for current in range(4):
            for threshold in (0.5, 1.0, 2.0, 3.0, 100.0):
                expected = slow(hardness, current, threshold)
                assert next_anchor(hardness, current, threshold) == expected
    # further ones that are easy again do not count
    assert next_anchor([1.0, 1.5, 9.0, 1.0], 0, 2.0) == 1
    # one that is just at the threshold does; and the next one is taken however hard it is
    assert next_anchor([1.0, 2.0, 2.0, 2.1], 0, 2.0) == 2
    assert next_anchor([1.0, 9.0, 1.0], 0, 2.0) == 1


def test_an_anchor_that_is_matched_exactly():
    assert next_anchor([0.0, 0.0, 0.0, 0.1], 0, 2.0) == 2
    assert next_anchor([0.0, 0.1], 0, 2.0) == 1


def test_any_number_is_a_hardness():
    assert next_anchor(torch.tensor([1.0, 1.1, 5.0]), 0, 2.0) == 1


@pytest.mark.parametrize(
    "hardness, current, threshold, message",
    [
        ([1.0, 2.0], 2, 2.0, "there are 2 anchors"),
        ([1.0, 2.0], -1, 2.0, "none is -1"),
        ([], 0, 2.0, "there are 0 anchors"),
        ([1.0, -2.0], 0, 2.0, "hardness is a divergence"),
        ([1.0, math.nan], 0, 2.0, "hardness is a divergence"),
        ([1.0, 2.0], 0, 0.0, "threshold must be > 0"),
    ],
)
def test_a_choice_says_what_is_wrong(hardness, current, threshold, message):
    with pytest.raises(ValueError, match=message):
        next_anchor(hardness, current, threshold)


def test_hardness_is_the_mean_divergence_from_the_student():
    student, anchors = torch.randn(6, 4).double(), [torch.randn(6, 4).double() for _ in range(3)]
    found = anchor_hardness(student, [*anchors, student])
    for value, anchor in zip(found, anchors):
        p, q = anchor.softmax(1), student.softmax(1)
        expected = sum(p[n, c] * math.log(p[n, c] / q[n, c]) for n in range(6) for c in range(4))
        assert value == pytest.approx(expected.item() / 6)
    assert found[-1] == 0


def test_hardness_needs_images():
    with pytest.raises(ValueError, match=r"one image at least, got \(0, 4\)"):
        anchor_hardness(torch.zeros(0, 4), [torch.zeros(0, 4)])


def test_the_greedy_search_teaches_anchor_after_anchor_to_the_last():
    """A student that is taught by an anchor stands there; hardness grows with the distance."""
    places, stands, taught = [0.0, 1.0, 2.0, 2.5, 6.0, 9.0], [0.0], []

    def teach(anchor):
        stands.append(places[anchor])
        taught.append(anchor)

    def hardness():
        return [1 + abs(place - stands[-1]) for place in places]

    assert greedy_route(teach, hardness, 3.1) == taught == [0, 2, 3, 4, 5]
    assert greedy_route(lambda anchor: stands.append(places[anchor]), hardness, 9.0) == [0, 4, 5]
    assert greedy_route(lambda anchor: stands.append(places[anchor]), hardness, 9.0, first=4) == [
        4,
        5,
    ]


@pytest.mark.parametrize(
    "first, threshold, message",
    [
        (3, 2.0, "there are 3 anchors, from 0 on, and none is 3"),
        (-1, 2.0, "none is -1"),
        (0, 0.0, "threshold must be > 0, got 0.0"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_any_teaching(first, threshold, message):
    taught = []
    with pytest.raises(ValueError, match=message):
        greedy_route(taught.append, lambda: [1.0, 2.0, 3.0], threshold, first)
    assert not taught
