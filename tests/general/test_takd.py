"""All chains between teacher and student, and the choice of an assistant."""

import pytest

from kdtasks.general import all_paths, nearest_mean


def test_every_chain_is_there_once():
    assert all_paths([10, 2]) == [(10, 2)]
    assert all_paths([10, 4, 2]) == [(10, 2), (10, 4, 2)]
    paths = all_paths([10, 8, 6, 4, 2])
    assert len(paths) == len(set(paths)) == 2**3
    assert paths[0] == (10, 2) and paths[-1] == (10, 8, 6, 4, 2)
    assert all(path[0] == 10 and path[-1] == 2 for path in paths)
    assert all(list(path) == sorted(path, reverse=True) for path in paths)
    assert all_paths(("teacher", "a", "student"))[-1] == ("teacher", "a", "student")


def test_one_size_is_no_chain():
    with pytest.raises(ValueError, match=r"got \(10,\)"):
        all_paths([10])


def test_the_assistant_is_chosen_by_accuracy_and_not_by_size():
    accuracies = {"layers8": 74.0, "layers6": 71.5, "layers4": 66.0}
    assert nearest_mean(accuracies, teacher=75.0, student=67.0) == "layers6"
    assert nearest_mean({"a": 60.0, "b": 80.0}, 75.0, 65.0) == "a"
    with pytest.raises(ValueError, match="one assistant"):
        nearest_mean({}, 75.0, 65.0)
