"""A few of many."""

from kdtasks.core.choices import evenly_spaced


def test_evenly_spaced_places_are_the_middles_of_equal_shares():
    assert evenly_spaced(100, 4) == [12, 37, 62, 87]
    assert evenly_spaced(3, 4) == [0, 1, 2] == evenly_spaced(3, 3)
    assert evenly_spaced(0, 4) == [] == evenly_spaced(4, 0)
    assert evenly_spaced(71, 1) == [35]
