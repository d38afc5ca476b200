"""The control beside every run, the stages a config means, and references that are checked before
anything runs.
"""

from dataclasses import replace

import pytest

from kdtasks.core.arms import arms, with_roles
from kdtasks.core.control import control_losses, unmarked
from kdtasks.core.stage_checks import check_stages
from kdtasks.core.stage_lists import standard_stages, with_control
from kdtasks.core.stages import Stage, stage_reference

CLS = {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}
KD = {
    "type": "kdtasks.general.KDLoss",
    "temperature": 4.0,
    "of": ("student", "teacher"),
    "weight": 0.9,
}
HINT = {"type": "torch.nn.MSELoss", "of": ("student.layer3", "teacher.layer3@-1")}


# -------------------------------------------------------------------------------------- the control
def test_a_weight_that_makes_room_for_the_teacher_is_not_kept():
    losses = {"loss_cls": {**CLS, "weight": 0.1}, "loss_kd": KD}
    assert control_losses(losses, {"teacher": None}) == {"loss_cls": {**CLS, "weight": 1}}
    # the config is left alone
    assert losses["loss_cls"]["weight"] == 0.1


@pytest.mark.parametrize(
    "entry, weight",
    [
        ({"weight": 0.1}, 1),
        ({}, 1),
        ({"weight": 0}, 1),
        ({"weight": 5, "alone": 5}, 5),
        ({"alone": 0.5}, 0.5),
        ({"weight": {"type": "kdtasks.core.Linear", "start": 0, "end": 1}}, 1),
        (
            {"alone": {"type": "kdtasks.core.Linear", "start": 0, "end": 1}},
            {"type": "kdtasks.core.Linear", "start": 0, "end": 1},
        ),
    ],
)
def test_the_weight_alone_is_one_unless_it_says_so(entry, weight):
    assert control_losses({"loss_cls": {**CLS, **entry}, "loss_kd": KD}, ["teacher"]) == {
        "loss_cls": {**CLS, "weight": weight}
    }


@pytest.mark.parametrize(
    "of",
    [
        "teacher",
        ("student", "teacher"),
        "teacher.layer3",
        ("student", "teacher.layer3@-1"),
        ("peers", "target"),
        "peer1",
        ("student.layer1", "peer12.layer1"),
        ("student", "rois.target"),
    ],
)
def test_what_needs_a_teacher_or_a_peer_is_not_in_the_control(of):
    losses = {"loss_cls": CLS, "loss_x": {"of": of}}
    assert list(control_losses(losses, ["teacher"])) == ["loss_cls"]


@pytest.mark.parametrize(
    "of",
    [
        "student",
        "student.teacher_head",
        ("input", "target"),
        "student.loss_box",
        "target.new",
        "student.peers",
        "rois.x",
        "index",
    ],
)
def test_what_needs_none_is_in_it(of):
    assert "loss_x" in control_losses(
        {"loss_cls": CLS, "loss_x": {"of": of}}, ["teacher"], {"rois.x"}
    )


@pytest.mark.parametrize(
    "name", ["teacher", "teacher.fc", "rois.teacher.logits", "logits", "embeddings"]
)
def test_what_the_data_supplies_is_a_teachers_unless_it_is_marked(name):
    """No teacher is configured: what a batch carries beside the student's own and the target may be
    one's, computed before.
    """
    losses = {"loss_cls": CLS, "loss_x": {"of": ("student", name)}}
    alone, distilled = standard_stages(losses, {})
    assert list(alone.losses) == ["loss_cls"] and not alone.taught and distilled.taught
    assert unmarked(losses, {}) == ({} if "teacher" in name else {"loss_x": name}) and not unmarked(
        losses, {}, {name}
    )
    assert list(standard_stages(losses, {}, own={name})[0].losses) == ["loss_cls", "loss_x"]
    quiet = {"loss_cls": CLS, "loss_x": {"of": ("student", name), "alone": 0}}
    assert list(control_losses(quiet, {})) == ["loss_cls"] and not unmarked(quiet, {})


@pytest.mark.parametrize(
    "alone",
    [
        {"losses": {"loss_cls": CLS, "loss_kd": KD}},
        {"teachers": {"t": "t.pth"}, "losses": {"loss_cls": CLS}},
        {"losses": {"loss_cls": CLS}, "student": "taught"},
        {"losses": {"loss_cls": CLS}, "student": "keep"},
        {"losses": {"loss_dml": {"of": ("peers", "target")}}},
    ],
)
def test_a_listed_control_in_which_a_teacher_has_a_part_is_an_error(alone):
    taught = Stage("taught", teachers={"teacher": "t.pth"}, losses=LOSSES)
    with pytest.raises(
        ValueError,
        match="'alone' is the control, which no teacher may have a part in, but it (has|goes on)",
    ):
        with_control([taught, Stage("alone", role="control", **alone)], LOSSES, {})


def test_several_teachers_and_the_students_own_losses():
    losses = {
        "loss_rpn": {"of": "student.loss_rpn", "weight": 0.5},
        "loss_a": {"of": ("student", "first")},
        "loss_b": {"of": ("student", "second.fc")},
        "accuracy": {"of": ("student", "target")},
    }
    plain = control_losses(losses, ["first", "second"])
    assert {name: entry["weight"] for name, entry in plain.items()} == {
        "loss_rpn": 1,
        "accuracy": 1,
    }
    # 'second' is then a key of the batch
    assert "loss_b" not in control_losses(losses, ["first"])
    assert unmarked(losses, ["first"]) == {"loss_b": "second.fc"}


def test_a_loss_that_must_not_train_alone_says_so():
    assert list(
        control_losses({"loss_cls": CLS, "loss_aux": {**CLS, "alone": 0}}, ["teacher"])
    ) == ["loss_cls"]


@pytest.mark.parametrize(
    "losses",
    [
        {"loss_kd": KD},
        {"loss_hint": HINT},
        {"loss_dml": {"of": ("peers", "target")}},
        {"loss_kd": KD, "accuracy": CLS},
        {},
        {"loss_kd": KD, "loss_cls": {**CLS, "alone": 0}},
    ],
)
def test_a_run_without_a_control_is_an_error_that_says_what_to_add(losses):
    with pytest.raises(ValueError, match=r"no control: add one that does not, with weight=0"):
        control_losses(losses, ["teacher"])


def test_a_loss_of_the_teacher_cannot_be_asked_for_alone():
    with pytest.raises(
        ValueError,
        match=r"loss_kd is of \('student', 'teacher'\), which needs a "
        r"teacher.*alone=1",
    ):
        control_losses({"loss_cls": CLS, "loss_kd": {**KD, "alone": 1}}, ["teacher"])


# -------------------------------------------------------------------------------- the standard list
LOSSES = {"loss_cls": {**CLS, "weight": 0.1}, "loss_kd": KD}
PLAIN = {"loss_cls": {**CLS, "weight": 1}}


def test_without_a_checkpoint_the_teacher_is_trained_first_and_teaches_with_its_last_weights():
    stages = standard_stages(
        LOSSES, {"teacher": None}, {"length": {"epochs": 3}, "optimizer": {"lr": 1}}
    )
    assert [(s.name, s.model, s.student, s.teachers, s.losses) for s in stages] == [
        ("teacher", "teacher", "fresh", {}, PLAIN),
        ("alone", "student", "fresh", {}, PLAIN),
        ("distilled", "student", "fresh", {"teacher": "teacher.last"}, LOSSES),
    ]
    assert [s.length for s in stages] == [{"epochs": 3}, None, None]
    assert [s.optimizer for s in stages] == [{"lr": 1}, None, None]
    assert [s.taught for s in stages] == [False, False, True]
    check_stages(stages, ["student", "teacher"])


def test_with_a_checkpoint_it_is_not_trained():
    stages = standard_stages(LOSSES, {"teacher": "work/t.pth", "second": None})
    assert [s.name for s in stages] == ["second", "alone", "distilled"]
    assert stages[-1].teachers == {"teacher": "work/t.pth", "second": "second.last"}


def test_alone_and_distilled_differ_in_nothing_but_teacher_and_losses():
    alone, distilled = standard_stages(LOSSES, {"teacher": "t.pth"})
    other = {name for name, value in vars(alone).items() if vars(distilled)[name] != value}
    assert other == {"name", "role", "teachers", "losses"}


def test_the_losses_of_a_stage_are_its_own():
    stages = standard_stages(LOSSES, {"teacher": None})
    stages[-1].losses["loss_kd"]["weight"] = 7
    assert LOSSES["loss_kd"]["weight"] == 0.9


# --------------------------------------------------------------------------------------- references
def test_references_name_a_stage_and_its_last_best_or_numbered_weights():
    names = ["teacher", "a1"]
    assert stage_reference("teacher", names) == ("teacher", "last")
    assert stage_reference("teacher.last", names) == ("teacher", "last")
    assert stage_reference("a1.best", names) == ("a1", "best")
    assert stage_reference("teacher.10", names) == ("teacher", "epoch_10")
    for other in (
        "teacher.pth",
        "teacher.first",
        "nobody",
        "work/teacher.pth",
        "teacher.last.pth",
        "teacher.-1",
        "",
    ):
        assert stage_reference(other, names) is None, other


def chain(**last):
    return [
        Stage("teacher", model="teacher", keep=[5, 10]),
        Stage("assistant", model="assistant", teachers={"teacher": "teacher.best"}),
        Stage("distilled", **last),
    ]


@pytest.mark.parametrize(
    "last",
    [
        {"teachers": {"teacher": "assistant"}},
        {"teachers": {"teacher": "teacher.10"}},
        {"teachers": {"teacher": None}},
        {"student": "work/x.pth"},
        {"student": "x.safetensors"},
        {"student": "assistant.best"},
        {"model": "assistant", "student": "keep"},
    ],
)
def test_right_references_pass(last):
    check_stages(chain(**last), ["student", "teacher", "assistant"])


@pytest.mark.parametrize(
    "last, message",
    [
        (
            {"teachers": {"teacher": "asistant.last"}},
            r"'distilled' needs 'asistant.last', which is "
            r"neither.*did you mean 'assis",
        ),
        (
            {"teachers": {"teacher": "distilled"}},
            r"needs 'distilled'.*neither a file nor a stage "
            r"before it",
        ),
        ({"teachers": {"teacher": "teacher.first"}}, r"needs 'teacher.first'"),
        (
            {"teachers": {"teacher": "teacher.7"}},
            r"needs 'teacher.7', but the stage 'teacher' keeps "
            r"the epochs \[5, 10\]",
        ),
        ({"student": "fersh"}, r"needs 'fersh'"),
        ({"student": "keep"}, r"keeps its student, but no stage before it trains 'student'"),
        ({"model": "studnt"}, r"trains the model 'studnt'; did you mean 'student'"),
    ],
)
def test_wrong_references_are_errors_before_anything_runs(last, message):
    with pytest.raises(ValueError, match=message):
        check_stages(chain(**last), ["student", "teacher", "assistant"])


@pytest.mark.parametrize(
    "names, message",
    [
        (["a", "a"], r"two stages are called 'a'"),
        (["a.b"], r"cannot be called 'a.b'"),
        (["../x"], r"cannot be called '../x'"),
        ([""], r"cannot be called ''"),
    ],
)
def test_names_of_stages(names, message):
    with pytest.raises(ValueError, match=message):
        check_stages([Stage(name) for name in names], ["student"])


def test_a_list_of_stages_gets_its_control_before_the_stage_it_controls():
    ce, kd = (
        dict(type="CE", of=("student", "target"), weight=0.1),
        dict(type="KD", of=("student", "assistant"), weight=0.9),
    )
    chain = [
        Stage("teacher", model="teacher"),
        Stage("assistant1", model="assistant", teachers={"teacher": "teacher"}),
        Stage("distilled", teachers={"assistant": "assistant1"}, length=7),
        Stage("tuned", student="distilled", role="joint"),
    ]
    losses = {"loss_cls": ce, "loss_kd": kd}
    stages = with_control(chain, losses, {})
    assert [s.name for s in stages] == ["teacher", "assistant1", "alone", "distilled", "tuned"]
    alone = stages[2]
    assert (
        alone.losses == {"loss_cls": {**ce, "weight": 1}}
        and alone.length == 7
        and not alone.taught
        and alone.student == "fresh"
    )
    assert stages[0].losses == stages[4].losses == alone.losses and stages[3].losses == losses
    assert arms(stages).final.name == "distilled"
    own = [*chain[:3], Stage("alone", role="control", losses={"loss_cls": ce})]
    # one of its own is kept as it is
    assert [s.name for s in with_control(own, losses, {})] == [s.name for s in own]
    assert [s.name for s in with_control(chain[:1], losses, {"assistant": None})] == ["teacher"]


def final(stages):
    return arms(with_roles(stages)).final


def roles(stages):
    return {stage.name: stage.role for stage in stages}


def test_the_final_stage_is_the_last_that_a_teacher_has_pulled_on():
    taught = [
        Stage("one", teachers={"teacher": None}),
        Stage("two", teachers={"teacher": None}),
        Stage("joint"),
        Stage("alone", role="control"),
    ]
    assert final(taught).name == "two" and final(taught[2:]).name == "joint"
    assert final(taught[3:]) is None
    for student in ("keep", "taught", "taught.best"):
        tuned = [
            Stage("teacher", model="teacher"),
            Stage("alone", role="control"),
            Stage("taught", teachers={"teacher": "teacher"}),
            Stage("finetune", student=student),
            Stage("joint"),
        ]
        # what teachers have pulled on counts, not where it stands
        assert final(tuned).name == "finetune"
    mutual = Stage("mutual", losses={"loss": dict(of=("peers", "target"))})
    assert mutual.taught and final([mutual, Stage("joint")]).name == "mutual"


# -------------------------------------------------------------------------------------------- roles
def test_the_default_list_says_its_roles():
    stages = standard_stages(LOSSES, {"teacher": None, "second": "t.pth"})
    assert roles(stages) == {"teacher": "teacher", "alone": "control", "distilled": "taught"}
    # what they would be found to be; the control says it
    bare = [replace(s, role=None) if s.role != "control" else s for s in stages]
    assert roles(with_roles(bare)) == roles(stages)


ASSISTANTS = [
    Stage("teacher", model="teacher"),
    Stage("assistant1", model="assistant", teachers={"teacher": "teacher"}),
    Stage("distilled", teachers={"assistant": "assistant1"}),
]
GENERATIONS = [
    Stage("teacher", model="teacher", keep=[1, 2]),
    Stage("generation1", teachers={"teacher": ["teacher.1", "teacher.2"]}),
    Stage("generation2", teachers={"before": "generation1"}),
]


@pytest.mark.parametrize(
    "stages, expected",
    [
        (ASSISTANTS, ["teacher", "step", "control", "taught"]),
        (
            [*ASSISTANTS, Stage("tuned", student="keep", role="joint")],
            ["teacher", "step", "control", "taught", "joint"],
        ),
        (GENERATIONS, ["teacher", "step", "control", "taught"]),
        (
            # they are compared too, if the list says so
            [GENERATIONS[0], replace(GENERATIONS[1], role="taught"), GENERATIONS[2]],
            ["teacher", "taught", "control", "taught"],
        ),
        (
            [
                Stage("plain"),
                Stage("alone", role="control", student="plain"),
                Stage("joint"),
                Stage("round1", student="plain", teachers={"teacher": "t.pth"}),
                Stage("last", student="round1", teachers={"teacher": "t.pth"}),
                Stage("other", teachers={"teacher": "t.pth"}, role="joint"),
            ],
            ["step", "control", "joint", "step", "taught", "joint"],
        ),
        # as a run of its own, which others share
        ([Stage("teacher", model="teacher")], ["teacher"]),
        ([Stage("first"), Stage("alone", role="control", student="first")], ["step", "control"]),
        ([Stage("first"), Stage("second", student="keep")], ["step", "joint"]),
    ],
)
def test_a_list_of_ones_own_has_its_roles_found(stages, expected):
    found = with_control(stages, LOSSES, {"teacher": "t.pth"})
    assert [stage.role for stage in found] == expected
    assert roles(with_roles(found)) == roles(found)


def test_a_control_may_have_another_name():
    stages = [
        Stage("baseline", role="control"),
        Stage("student", teachers={"teacher": "t.pth"}, losses=LOSSES),
    ]
    found = with_control(stages, LOSSES, {"teacher": "t.pth"})
    assert roles(found) == {"baseline": "control", "student": "taught"}
    assert [stage.name for stage in arms(found).pair] == ["baseline", "student"]
    wrong = [replace(stages[0], teachers={"teacher": "t.pth"}), stages[1]]
    with pytest.raises(ValueError, match="'baseline' is the control, which no teacher"):
        with_control(wrong, LOSSES, {"teacher": "t.pth"})


def test_arms_of_what_has_finished():
    """The control need not be there, nor the student that counts."""
    stages = with_control(ASSISTANTS, LOSSES, {})
    assert [stage.name for stage in arms(stages).pair] == ["alone", "distilled"]
    assert [stage.name for stage in arms(stages).teachers] == ["teacher"]
    assert [stage.name for stage in arms(stages).compared] == ["distilled"]
    assert arms(stages[:2]).pair == () and arms(stages[:2]).final is None
    assert [stage.name for stage in arms(stages[:3]).pair] == ["alone"]


@pytest.mark.parametrize(
    "stages, message",
    [
        ([Stage("a", role="tought")], "'a': there is no role 'tought'; did you mean 'taught'"),
        (
            [Stage("alone", role="control"), Stage("a", role="control")],
            "one stage of the role 'control', got 'alone' a",
        ),
        ([Stage("alone")], "'alone' says no role: expected role='control'"),
        ([Stage("a", model="teacher", role="control")], "'a' trains 'teacher': expected 'student'"),
    ],
)
def test_roles_that_cannot_be(stages, message):
    with pytest.raises(ValueError, match=message):
        with_roles(stages)


def test_a_stage_keeps_its_models_arguments_and_so_does_the_control_made_for_it():
    """Else "alone" would train another network than "distilled"."""
    assert Stage("one").arguments == {} and Stage("one").arguments is not Stage("two").arguments
    chain = [Stage("distilled", teachers={"teacher": "t.pth"}, arguments={"width": 3}, length=2)]
    alone, distilled = with_control(chain, LOSSES, {"teacher": "t.pth"})
    assert (
        alone.name == "alone"
        and alone.arguments == distilled.arguments == {"width": 3}
        and alone.length == 2
    )


def test_a_teacher_that_only_stages_name_is_no_part_of_the_control():
    """The config has no model of that name: the teacher is a stage of the student itself."""
    chain = [
        Stage("first"),
        Stage("alone", role="control", student="first"),
        Stage("distilled", student="first", teachers={"old": "first"}),
    ]
    losses = {
        "loss_cls": CLS,
        "loss_old": {"of": ("student", "old")},
        "loss_layer": {"of": ("student.layer1", "old.layer1")},
    }
    stages = with_control(chain, losses, {})
    assert [list(stage.losses) for stage in stages] == [["loss_cls"], ["loss_cls"], list(losses)]
    assert arms(stages).final.name == "distilled"
    check_stages(stages, ["student"])


def test_an_untaught_stage_that_lists_a_weight_and_another_alone():
    """Its weight would count: 0.1 of the cross-entropy cripples the control."""
    entry = {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target"), "weight": 0.1}

    def stages(alone):
        losses = {"loss_cls": {**entry, "alone": alone}}
        taught = Stage("distilled", teachers={"teacher": None}, losses=losses)
        return [Stage("alone", role="control", losses=losses), taught]

    with pytest.raises(ValueError, match=r"'alone' .*weight=0.1 and alone=1, of which its weight"):
        with_control(stages(1), {}, {"teacher": None})
    assert with_control(stages(0.1), {}, {"teacher": None})[0].losses["loss_cls"]["weight"] == 0.1
