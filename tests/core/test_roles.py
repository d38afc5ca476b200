"""Who supplies which name, and who runs when."""

import itertools

import pytest

from kdtasks.core.roles import NameTable, Turns, needed_names, turn_order

TABLE = NameTable(
    {
        "student": ["student", "student.fc", "chosen"],
        "peer1": ["peer1"],
        "teacher": ["teacher.seen", "rois.teacher"],
    }
)


@pytest.mark.parametrize(
    "name, role",
    [
        ("student.fc@-1", "student"),
        ("chosen", "student"),
        ("rois.teacher", "teacher"),
        ("student.logits", "student"),  # perhaps an entry of its output
        ("student.layer.fc", None),
        ("student.other@0", None),
        ("teacher.logits", None),  # it gives no output
        ("target", None),
    ],
)
def test_a_name_is_of_the_role_that_lists_it_or_may_be_an_entry_of_its_output(name, role):
    assert TABLE.role_of(name) == role


def test_what_losses_read_of_each_role():
    names_of = {"loss_a": ("peers", "target"), "loss_b": ("student", "chosen", "rois.teacher")}
    assert TABLE.wanted(names_of, ["student", "peer1"]) == {
        "student": ["student", "chosen"],
        "peer1": ["peer1"],
        "teacher": ["rois.teacher"],
    }
    with pytest.raises(ValueError, match=r"loss_c: no model supplies 'teacher.sen'; .*'teacher.se"):
        TABLE.wanted({"loss_c": ("teacher.sen",)}, ["student"])


@pytest.mark.parametrize("name", ["chosn", "student.fc", "target"])
def test_what_a_role_needs_is_of_another_role(name):
    assert needed_names("teacher", ["chosen"], TABLE, "Mine") == {"chosen": "student"}
    with pytest.raises(ValueError, match=rf"Mine.needs\('student'\) names '{name}', which no"):
        needed_names("student", [name], TABLE, "Mine")


def test_each_role_comes_after_those_that_it_needs_and_else_in_the_given_order():
    names = ["a", "b", "c", "d"]
    needed = {"a": {"x": "c"}, "b": {}, "c": {"y": "d"}, "d": {}}
    assert turn_order(names, needed) == ["b", "d", "c", "a"]
    assert turn_order(names, {name: {} for name in names}) == names
    for order in itertools.permutations(names):
        found = turn_order(order, needed)
        assert found.index("d") < found.index("c") < found.index("a") and sorted(found) == names


def test_a_circle_is_named_without_those_that_only_wait_for_it():
    needed = {"a": {"x": "b"}, "b": {"y": "c"}, "c": {"z": "b"}, "d": {}}
    with pytest.raises(
        ValueError, match="no role can run first: b needs 'y' of c, c needs 'z' of b$"
    ):
        turn_order(["a", "b", "c", "d"], needed)


def test_who_runs_for_a_batch_and_for_what():
    wanted = {"teacher": ["t"], "other": ["o"], "student": ["s"]}
    needed = {"teacher": {"chosen": "student"}, "other": {}, "student": {}}
    turns = Turns(["other", "student", "teacher"], wanted, needed)
    all_run = [("other", ["o"]), ("student", ["s", "chosen"]), ("teacher", ["t"])]
    assert turns.of_batch({}) == all_run
    assert turns.of_batch({"t": 1}) == [("other", ["o"]), ("student", ["s"])]
    assert turns.of_batch({"s": 1, "o": 1}) == [("student", ["chosen"]), ("teacher", ["t"])]
    assert turns.of_batch({"s": 1, "chosen": 1}, ["other"]) == [("teacher", ["t"])]
    # one that rests is woken by who needs it
    needed["student"] = {"o.all": "other"}
    assert turns.of_batch({"t": 1}, ["other"]) == [("other", ["o.all"]), ("student", ["s"])]
    assert wanted == {"teacher": ["t"], "other": ["o"], "student": ["s"]}
