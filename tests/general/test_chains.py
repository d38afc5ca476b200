"""The lists of stages of TAKD, BAN, AB and RCO: who teaches whom, for how long, beside which control."""

import pytest

from kdtasks.core import Stage
from kdtasks.core.stage_checks import check_stages
from kdtasks.core.stage_lists import with_control
from kdtasks.general import ab, ban, rco, takd
from kdtasks.general.chains import epochs_of

KD = {"type": "kdtasks.general.KDLoss", "temperature": 4.0, "of": ("student", "teacher")}
CLS = {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target"), "weight": 0.1}


def config(**changes) -> dict:
    net = {"type": "torch.nn.Linear", "num_classes": 10}
    return {
        "student": net,
        "teachers": {"teacher": {**net, "width": 8}},
        "models": {"big": net, "middle": net, "small": net},
        "losses": {"loss_cls": CLS, "loss_kd": KD},
        "length": 4,
        "teacher_training": {"length": 6},
        **changes,
    }


def whole(listed: list[dict], given: dict) -> dict[str, Stage]:
    """The stages with their control, checked as the engine does."""
    teachers = {name: spec.get("checkpoint") for name, spec in given["teachers"].items()}
    found = with_control([Stage(**stage) for stage in listed], given["losses"], teachers)
    check_stages(found, ["student", *given["teachers"], *given["models"]])
    return {stage.name: stage for stage in found}


def teacher_of(stage: Stage):
    return stage.teachers["teacher"]


def given_teacher() -> dict:
    return {"teacher": {"type": "torch.nn.Linear", "num_classes": 10, "checkpoint": "t.pth"}}


# -------------------------------------------------------------------------------------------- TAKD
def test_a_chain_hands_on_from_size_to_size():
    given = config()
    hops = {"big": {}, "middle": {"length": 3, "losses": {"loss_kd": {"temperature": 2.0}}}}
    found = whole(takd.stages(given, hops, {"losses": {"loss_cls": {"weight": 0.5}}}), given)
    assert list(found) == [
        "teacher",
        "big",
        "middle",
        "direct",
        "whole_budget",
        "alone",
        "distilled",
    ]
    assert [teacher_of(found[name]) for name in ("big", "middle", "distilled", "direct")] == [
        "teacher",
        "big",
        "middle",
        "teacher",
    ]
    assert [found[name].model for name in ("big", "middle", "distilled")] == [
        "big",
        "middle",
        "student",
    ]
    # each hop has its own weights, and the config's are as they were
    assert found["big"].losses["loss_kd"]["temperature"] == 4.0 == KD["temperature"]
    assert found["middle"].losses["loss_kd"]["temperature"] == 2.0
    assert found["distilled"].losses["loss_cls"]["weight"] == 0.5
    assert found["direct"].losses == found["distilled"].losses
    # the control of the whole chain has the steps of its hops: 4 + 3 + 4
    assert found["whole_budget"].length == 11 and found["alone"].length is None
    assert (
        not found["whole_budget"].taught and found["whole_budget"].losses["loss_cls"]["weight"] == 1
    )
    assert all(stage.student == "fresh" for stage in found.values())


def test_a_chain_without_what_it_is_compared_with_and_of_a_given_teacher():
    given = config(teachers=given_teacher(), length={"iterations": 50})
    found = whole(takd.stages(given, {"big": {}}, direct=False, whole_budget=False), given)
    assert list(found) == ["big", "alone", "distilled"] and teacher_of(found["big"]) is None
    listed = takd.stages(given, {"big": {"length": {"iterations": 20}}}, direct=False)
    assert listed[1]["length"] == {"iterations": 70}


def test_the_whole_budget_has_what_alone_has_but_its_length():
    changes = {
        "arguments": {"width": 3},
        "optimizer": {"lr": 0.3},
        "schedule": {"type": "CosineAnnealingLR"},
        "data": {"labelled_per_batch": 5},
        "losses": {"loss_cls": {"alone": 0.5, "label_smoothing": 0.1}},
    }
    given = config(length={"iterations": 4})
    assert "losses" not in takd.stages(given, {"big": {}})[-2]  # the engine fills in the control's
    found = whole(takd.stages(given, {"big": {}}, changes), given)
    for key in ("arguments", "optimizer", "schedule", "data", "losses"):
        assert getattr(found["whole_budget"], key) == getattr(found["alone"], key), key
    assert found["whole_budget"].optimizer == {"lr": 0.3}
    assert found["whole_budget"].losses["loss_cls"]["label_smoothing"] == 0.1
    assert found["whole_budget"].length == {"iterations": 8}


def test_epochs_of_different_data_do_not_add_up():
    data = {"labelled_per_batch": 5}
    for hop, last in (({"data": data}, {}), ({}, {"data": data})):
        with pytest.raises(ValueError, match="epochs of different data.*whole_budget=False"):
            takd.stages(config(), {"big": hop}, last)
        takd.stages(config(), {"big": hop}, last, whole_budget=False)
        takd.stages(config(length={"iterations": 4}), {"big": hop}, last)
    given = config()
    found = whole(takd.stages(given, {"big": {"data": data}}, {"data": data}), given)
    assert found["whole_budget"].data == data
    assert found["whole_budget"].length == 8


@pytest.mark.parametrize("length, epochs", [(4, 4), ({"epochs": 4}, 4), ({"iterations": 4}, None)])
def test_a_length_says_its_epochs(length, epochs):
    assert epochs_of(length) == epochs


def test_lengths_in_epochs_add_up_however_they_are_written():
    (budget,) = (
        stage
        for stage in takd.stages(config(), {"big": {"length": {"epochs": 3}}})
        if stage["name"] == "whole_budget"
    )
    assert budget["length"] == 7


def test_a_chain_says_what_does_not_fit():
    with pytest.raises(ValueError, match="models have no 'bigg'.*'big'"):
        takd.stages(config(), {"bigg": {}})
    with pytest.raises(ValueError, match="no loss 'loss_kdd'.*'loss_kd'"):
        takd.stages(config(), {"big": {"losses": {"loss_kdd": {}}}})
    models = {"big": {"type": "torch.nn.Linear", "num_classes": 7}}
    with pytest.raises(ValueError, match="big has num_classes=7, and the student 10"):
        takd.stages(config(models=models), {"big": {}})
    with pytest.raises(ValueError, match="all in epochs or all in iterations"):
        takd.stages(config(), {"big": {"length": {"iterations": 20}}})
    with pytest.raises(ValueError, match=r"expected a teacher=dict\(type=…\)"):
        takd.stages(config(teachers={}), {"big": {}})


# --------------------------------------------------------------------------------------------- BAN
def test_generations_teach_each_other_and_none_starts_like_another():
    given = config()
    found = whole(ban.stages(given, ["big", "middle"], seed_noise="small"), given)
    assert list(found) == ["teacher", "big", "middle", "small", "alone", "distilled"]
    assert [teacher_of(found[name]) for name in ("big", "middle", "distilled")] == [
        "teacher",
        "big",
        "middle",
    ]
    # first weights go by the model's name; the last generation's are those of the control
    models = [found[name].model for name in ("teacher", "big", "middle", "small", "distilled")]
    assert len(set(models)) == 5 and found["alone"].model == found["distilled"].model
    assert found["small"].losses == found["alone"].losses and not found["small"].taught
    assert list(whole(ban.stages(given), given)) == ["teacher", "alone", "distilled"]
    with pytest.raises(ValueError, match="no 'second'"):
        ban.stages(given, ["big"], seed_noise="second")


# ---------------------------------------------------------------------------------------------- AB
def test_signs_come_first_and_the_control_has_both_phases():
    given, first = config(), {"length": 3, "optimizer": {"lr": 0.1}}
    found = whole(ab.stages(given, ["a", "b"], ["x", "y"], first, weight=0.02), given)
    assert list(found) == ["teacher", "alone_first", "alone", "boundaries", "distilled"]
    signs = found["boundaries"]
    assert {n: (e["of"], e["weight"]) for n, e in signs.losses.items()} == {
        "loss_ab1": (("student.a", "teacher.x"), 0.01),
        "loss_ab2": (("student.b", "teacher.y"), 0.02),
    }
    assert signs.student == found["alone_first"].student == "fresh"
    assert found["distilled"].student == "boundaries" and found["alone"].student == "alone_first"
    for one, other in (("boundaries", "alone_first"), ("distilled", "alone")):
        for key in ("length", "optimizer", "schedule", "data"):
            assert getattr(found[one], key) == getattr(found[other], key)
    assert signs.length == 3 and signs.optimizer == {"lr": 0.1}
    assert not found["alone_first"].taught and found["distilled"].losses["loss_kd"] == KD
    with pytest.raises(ValueError, match="as many layers"):
        ab.stages(given, ["a"], ["x", "y"])


# --------------------------------------------------------------------------------------------- RCO
def test_anchors_are_kept_by_the_teacher_and_teach_in_turn():
    given = config()
    found = whole(rco.stages(given, interval=2), given)
    assert list(found) == ["teacher", "alone", "distilled"]
    assert list(found["teacher"].keep) == [2, 4] and found["teacher"].length == 6
    assert teacher_of(found["distilled"]) == ["teacher.2", "teacher.4", "teacher"]
    assert found["distilled"].length is None and found["alone"].length is None
    spelled = config(teacher_training={"length": {"epochs": 6}})
    assert list(whole(rco.stages(spelled, interval=2), spelled)["teacher"].keep) == [2, 4]
    chosen = whole(rco.stages(given, epochs=[5, 1]), given)
    assert teacher_of(chosen["distilled"]) == ["teacher.1", "teacher.5", "teacher"]


def test_a_stage_for_each_anchor_goes_on_with_the_last_ones_student():
    given = config()
    found = whole(rco.stages(given, epochs=[1, 3, 6], multi_stage=True), given)
    assert list(found) == [
        "teacher",
        "alone1",
        "alone3",
        "alone",
        "anchor1",
        "anchor3",
        "distilled",
    ]
    for names in (("alone1", "alone3", "alone"), ("anchor1", "anchor3", "distilled")):
        assert [found[name].student for name in names] == ["fresh", *names[:2]]
    assert [teacher_of(found[name]) for name in ("anchor1", "anchor3", "distilled")] == [
        "teacher.1",
        "teacher.3",
        "teacher",
    ]
    assert not any(found[name].taught for name in ("alone1", "alone3", "alone"))


@pytest.mark.parametrize(
    "changes, arguments, message",
    [
        ({}, {}, "expected interval or epochs"),
        ({}, {"interval": 2, "epochs": [1]}, "expected interval or epochs"),
        ({}, {"interval": 6}, "interval=6 of a teacher that is trained for 6 epochs"),
        ({}, {"interval": 9}, r"leaves the anchors \[6\]: expected some between 1 and 5"),
        ({}, {"epochs": [2, 7]}, r"epochs=\[2, 7\] of a teacher that is trained for 6 epochs"),
        ({}, {"epochs": [0]}, r"epochs=\[0\]"),
        (
            {"teachers": given_teacher()},
            {"interval": 2},
            "a teacher with a checkpoint is not trained",
        ),
        (
            {"teacher_training": {"length": {"iterations": 90}}},
            {"interval": 2},
            r"whose length is \{'iterations': 90\}",
        ),
    ],
)
def test_a_route_that_is_not_there_is_said_before_anything_is_trained(changes, arguments, message):
    with pytest.raises(ValueError, match=message):
        rco.stages(config(**changes), **arguments)
