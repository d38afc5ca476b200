"""Names of tensors taken apart."""

import pytest

from kdtasks.core.names import TensorName, as_names, did_you_mean, learner_roles


@pytest.mark.parametrize(
    "text, role, path, call, local",
    [
        ("student", "student", "", None, ""),
        ("teacher.layer1.0", "teacher", "layer1.0", None, "layer1.0"),
        ("student.fc@-1", "student", "fc", -1, "fc@-1"),
        ("rois.teacher.logits", "rois", "teacher.logits", None, "teacher.logits"),
        ("student.a.b@2", "student", "a.b", 2, "a.b@2"),
    ],
)
def test_a_name_has_a_role_a_path_and_a_call(text, role, path, call, local):
    name = TensorName.parse(text)
    assert name == TensorName(role, path, call)
    assert name.local == local and name.base == text.partition("@")[0]


def test_a_call_is_a_number():
    with pytest.raises(ValueError, match=r"'student.fc@last': after '@' comes the number.*'last'"):
        TensorName.parse("student.fc@last")


def test_an_entry_has_no_path_and_no_call():
    entries = {"student.0", "student.-1", "student.logits"}
    others = {"student", "student.a.b", "student.fc@0"}
    assert {t for t in entries | others if TensorName.parse(t).may_be_entry} == entries


def test_the_roles_that_learn_and_what_is_of_peers():
    assert learner_roles(0) == ["student"] and learner_roles(2) == ["student", "peer1", "peer2"]
    of_peers = {"peers", "peer1", "peer12.layer1", "peer2.fc@0"}
    others = {"student", "peer", "peering", "peerage.logits", "student.peer1", "peerless1"}
    assert {t for t in of_peers | others if TensorName.parse(t).is_of_peers} == of_peers


def test_one_name_or_several():
    assert as_names("student") == ("student",) and as_names(["a", "b"]) == ("a", "b")


def test_the_nearest_names_or_all_or_none():
    known = ["student.layer1", "student.layer2", "target"]
    assert did_you_mean("student.layr1", known).startswith("did you mean 'student.layer1'")
    assert did_you_mean("xyz", known) == "there are " + ", ".join(map(repr, known))
    assert did_you_mean("xyz", map(str, range(30))).endswith("'19' and 10 more")
    assert did_you_mean("xyz", []) == "there are none"
