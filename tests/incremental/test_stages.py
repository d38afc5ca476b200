"""The lists of stages: two arms of one beginning and one budget, experience by experience."""

import pytest
from small_incremental import small

from kdtasks.core.arms import arms
from kdtasks.core.stage_checks import check_stages
from kdtasks.core.stage_lists import with_control
from kdtasks.core.stages import Stage
from kdtasks.engine.errors import ConfigError
from kdtasks.incremental.lwf import lwf_losses
from kdtasks.incremental.stages import (
    class_incremental_stages,
    experience_settings,
    global_distillation,
)

GD = "kdtasks.incremental.gd."


def by_name(stages):
    return {stage["name"]: stage for stage in stages}


def control_and_taught(stages):
    """Both arms as lists of stages, from the first on that they do not share."""
    named = by_name(stages)

    def arm(name):
        stage = named[name]
        return [*(arm(stage["student"]) if "student" in stage else []), stage]

    alone, taught = arm("alone"), arm("distilled")
    assert alone[0] is taught[0] is named["experience1"]
    return alone[1:], taught[1:]


def sizes(stage):
    return stage["arguments"]["sizes"]


@pytest.fixture
def config():
    return small()


@pytest.fixture
def gd():
    return small("gd")


# LwF, LwM: one stage an experience ----------------------------------------------------------------
def test_a_chain_of_experiences(config):
    stages = by_name(class_incremental_stages(config))
    assert list(stages) == ["experience1", "alone2", "alone", "joint", "taught2", "distilled"]
    assert {name: stage.get("student", "fresh") for name, stage in stages.items()} == {
        "experience1": "fresh",
        "alone2": "experience1",
        "alone": "alone2",
        "joint": "fresh",
        "taught2": "experience1",
        "distilled": "taught2",
    }
    assert {name: stage["teachers"] for name, stage in stages.items() if stage.get("teachers")} == {
        "taught2": {"teacher": "experience1"},
        "distilled": {"teacher": "taught2"},
    }
    for name, t in (
        ("experience1", 0),
        ("alone2", 1),
        ("taught2", 1),
        ("alone", 2),
        ("distilled", 2),
    ):
        assert sizes(stages[name]) == [2, 2, 3][: t + 1]
        assert [stages[name]["data"][part]["experience"] for part in ("train", "test")] == [t, t]
        assert not {"train", "optimizer", "length", "losses"} & set(stages[name])
    joint = stages["joint"]["data"]
    assert joint["train"]["experience"] is None and "experience" not in joint["test"]
    check_stages([Stage(**stage) for stage in stages.values()], ["student"])


@pytest.mark.parametrize("warm_up", [None, {"length": 1, "optimizer": {"lr": 0.5}}])
def test_the_arms_differ_in_the_teacher_alone(config, warm_up):
    for a, b in zip(*control_and_taught(class_incremental_stages(config, warm_up)), strict=True):
        other = {key for key in {**a, **b} if a.get(key) != b.get(key)}
        assert other <= {"name", "role", "student", "teachers"} and not a.get("teachers")


def test_the_control_of_a_chain_is_made_of_its_losses(config):
    stages = {
        stage.name: stage
        for stage in with_control(
            [Stage(**s) for s in class_incremental_stages(config)], config["losses"], {}
        )
    }
    for name in ("experience1", "alone2", "alone"):
        assert (
            stages[name].losses == {"loss_cls": {**config["losses"]["loss_cls"], "weight": 1}}
            and not stages[name].taught
        )
    assert (
        stages["distilled"].losses == config["losses"]
        and arms(list(stages.values())).final.name == "distilled"
    )


def test_joint_has_cross_entropy_of_all_classes_and_no_exemplars(gd, config):
    config["losses"]["loss_aux"] = {"type": "torch.nn.MSELoss", "of": "student.new", "alone": 0.5}
    joint = by_name(class_incremental_stages(config))["joint"]
    assert joint["losses"]["loss_cls"]["of"] == ["student", "target"] and list(joint["losses"]) == [
        "loss_cls",
        "loss_aux",
    ]
    assert (
        joint["losses"]["loss_aux"]["of"] == "student"
        and joint["losses"]["loss_aux"]["weight"] == 0.5
    )
    assert by_name(global_distillation(gd, {}))["joint"]["data"]["train"]["memory"] == 0
    gd["losses"]["loss_cls"]["label_smoothing"] = 0.1
    assert (
        by_name(global_distillation(gd, {}))["joint"]["losses"]["loss_cls"]["label_smoothing"]
        == 0.1
    )
    assert "joint" not in by_name(
        class_incremental_stages(config, joint=False)
    ) and "joint" not in by_name(global_distillation(gd, {}, joint=False))


def test_a_warm_up_trains_the_new_head_alone_with_fixed_norm(config):
    stages = by_name(class_incremental_stages(config, warm_up={"length": 3}, head="net.fc"))
    assert [name for name in stages if "warm" in name] == [
        "warm_alone2",
        "warm_alone",
        "warm_taught2",
        "warm_distilled",
    ]
    for name, t, before in (
        ("alone2", 1, "experience1"),
        ("alone", 2, "alone2"),
        ("taught2", 1, "experience1"),
        ("distilled", 2, "taught2"),
    ):
        warm = stages[f"warm_{name}"]
        assert (
            warm["train"] == [f"student.net.fc.blocks.{t}", "losses"]
            and warm["length"] == 3
            and not warm.get("teachers")
        )
        assert (
            warm["arguments"] == {"sizes": [2, 2, 3][: t + 1], "fixed_norm": True}
            and warm["student"] == before
        )
        assert (
            stages[name]["student"] == f"warm_{name}"
            and "fixed_norm" not in stages[name]["arguments"]
        )
        assert warm["data"] == stages[name]["data"]
    assert stages["distilled"]["teachers"] == {"teacher": "taught2"}


def test_the_first_experience_may_differ(config):
    stages = by_name(class_incremental_stages(config, first={"length": 9, "optimizer": {"lr": 1}}))
    assert (stages["experience1"]["length"], stages["experience1"]["optimizer"]) == (
        9,
        {"lr": 1},
    ) and "length" not in stages["alone2"]


def test_what_only_makes_sense_after_a_first_experience_waits_for_it():
    """BatchNorm without statistics, and old heads that never learned, are not held fixed."""
    config = small(student__fixed_norm=True, student__train_old_heads=False)
    stages = by_name(class_incremental_stages(config))
    for name in ("experience1", "joint"):
        assert {**config["student"], **stages[name]["arguments"]}["fixed_norm"] is False
        assert {**config["student"], **stages[name]["arguments"]}["train_old_heads"] is True
    assert (
        "fixed_norm" not in stages["taught2"]["arguments"]
        and "fixed_norm" not in by_name(class_incremental_stages(small()))["joint"]["arguments"]
    )


@pytest.mark.parametrize(
    "make", [class_incremental_stages, lambda config: global_distillation(config, {})]
)
@pytest.mark.parametrize("sizes", [None, (6,), ()])
def test_a_student_without_experiences(gd, make, sizes):
    gd["student"]["sizes"] = sizes
    with pytest.raises(
        ValueError, match="expected a student with the sizes of at least two experiences"
    ):
        make(gd)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"stages.warm_up": {"lenght": 1}},
            r"stages\[1\] has no key 'lenght'; did you mean 'length'",
        ),
        (
            {"stages.warmup": {}},
            "stages: class_incremental_stages has no argument 'warmup'; did you mean 'warm_up'",
        ),
        (
            {"student": {"type": "small_streams.Net"}},
            r"stages \(class_incremental_stages\): expected a student with the "
            r"sizes of at least two",
        ),
        (
            {"data.train": {"type": "small_streams.images"}},
            r"stages\[0\].data.train: images has no "
            r"argument 'experience'",
        ),
        ({"student.type": "small_streams.Net"}, "student: Net has no argument 'sizes'"),
    ],
)
def test_errors_of_a_config_say_where(options, message):
    with pytest.raises(ConfigError, match=message):
        small(**options)


# Global Distillation: three stages an experience --------------------------------------------------
def test_the_stages_of_global_distillation(gd):
    stages = by_name(
        global_distillation(
            gd, {"length": 1, "optimizer": {"lr": 0.01}}, current={"length": 7}, first={"length": 8}
        )
    )
    assert list(stages) == [
        "experience1",
        "alone2_main",
        "alone2",
        "alone3_main",
        "alone",
        "joint",
        "current2",
        "main2",
        "taught2",
        "current3",
        "main3",
        "distilled",
    ]
    assert {name: stage.get("student", "fresh") for name, stage in stages.items()} == {
        "experience1": "fresh",
        "joint": "fresh",
        "alone2_main": "experience1",
        "alone2": "alone2_main",
        "alone3_main": "alone2",
        "alone": "alone3_main",
        "current2": "experience1",
        "main2": "experience1",
        "taught2": "main2",
        "current3": "taught2",
        "main3": "taught2",
        "distilled": "main3",
    }
    assert {name: stage["teachers"] for name, stage in stages.items() if stage.get("teachers")} == {
        **{key: {"previous": "experience1", "current": "current2"} for key in ["main2", "taught2"]},
        **{key: {"previous": "taught2", "current": "current3"} for key in ["main3", "distilled"]},
    }
    assert {name: stage["length"] for name, stage in stages.items() if "length" in stage} == {
        "experience1": 8,
        "current2": 7,
        "current3": 7,
        **dict.fromkeys(["alone2", "alone", "taught2", "distilled"], 1),
    }
    assert {name for name, stage in stages.items() if "train" in stage} == {
        "alone2",
        "alone",
        "taught2",
        "distilled",
    }
    assert stages["distilled"]["train"] == ["student.fc", "losses"]
    # others are taught
    assert {name for name, stage in stages.items() if "unlabelled_per_batch" in stage["data"]} == {
        "current2",
        "current3",
    }
    check_stages([Stage(**stage) for stage in stages.values()], ["student"])


def test_the_losses_of_global_distillation(gd):
    stages = by_name(
        global_distillation(gd, {}, terms="PC", temperature=3.0, confidence=0.5, head="head")
    )
    kinds = {
        name: (entry["type"].removeprefix(GD), entry.get("balanced"))
        for name, stage in stages.items()
        for entry in stage["losses"].values()
    }
    assert kinds == {
        "experience1": ("BalancedCrossEntropyLoss", False),
        "joint": ("torch.nn.CrossEntropyLoss", None),
        **dict.fromkeys(["alone2_main", "alone3_main"], ("BalancedCrossEntropyLoss", False)),
        **dict.fromkeys(["alone2", "alone"], ("BalancedCrossEntropyLoss", True)),
        **dict.fromkeys(["current2", "current3"], ("CurrentTeacherLoss", None)),
        **dict.fromkeys(["main2", "main3"], ("GlobalDistillationLoss", False)),
        **dict.fromkeys(["taught2", "distilled"], ("GlobalDistillationLoss", True)),
    }
    entry = stages["distilled"]["losses"]["loss_gd"]
    assert (entry["terms"], entry["temperature"]) == ("PC", 3.0) and entry["of"] == [
        "student",
        "previous",
        "current.new",
        "target.all",
        "class_counts",
    ]
    entry = stages["current2"]["losses"]["loss_new"]
    assert (
        entry["confidence"] == 0.5
        and entry["of"] == ["student.new", "target.new"]
        and stages["alone"]["train"] == ["student.head", "losses"]
    )


def test_exemplars_want_a_loss_of_all_columns(config):
    data = {**config["data"], "train": {**config["data"]["train"], "memory": 4}}
    with pytest.raises(
        ValueError,
        match=r"loss_cls is of target.new, in which exemplars "
        r"\(data.train.memory=4\) have no class",
    ):
        class_incremental_stages({**config, "data": data})


def test_joint_has_the_steps_of_all_experiences(config):
    assert by_name(class_incremental_stages({**config, "length": {"iterations": 7}}))["joint"][
        "length"
    ] == {"iterations": 7 * len(config["student"]["sizes"])}
    # epochs are of all samples already
    assert "length" not in by_name(class_incremental_stages({**config, "length": 2}))["joint"]


def test_the_arms_of_global_distillation_differ_in_teachers_losses_and_the_pool(gd):
    for a, b in zip(*control_and_taught(global_distillation(gd, {"length": 1})), strict=True):
        other = {key for key in {**a, **b} if a.get(key) != b.get(key)}
        assert (
            other - {"student", "role"} == {"name", "teachers", "losses", "data"}
            and a["data"]["test"] == b["data"]["test"]
        )
        assert b["data"]["train"] == {**a["data"]["train"], "pool": gd["data"]["train"]["pool"]}


def test_a_pool_that_would_not_be_used(gd):
    with pytest.raises(
        ConfigError, match="data.train has a pool, and data.unlabelled_per_batch=0 leaves it unused"
    ):
        small("gd", **{"data.unlabelled_per_batch": 0})
    assert small("gd", **{"data.unlabelled_per_batch": 0, "data.train.pool": None})


def test_the_config_is_left_as_it_is(gd):
    before = repr(gd)
    global_distillation(gd, {"length": 1})
    class_incremental_stages(gd)
    experience_settings(gd, 1)
    assert repr(gd) == before and gd["stages"]["type"].endswith("global_distillation")


# One class, no softmax ----------------------------------------------------------------------------
def sized(config, *sizes, losses=None):
    return {
        **config,
        "student": {**config["student"], "sizes": list(sizes)},
        "losses": losses or config["losses"],
    }


@pytest.mark.parametrize(
    "preset, sizes, said",
    [
        (
            "paper",
            (2, 1, 2),
            r"loss_cls: CrossEntropyLoss of 'student.new' is a softmax over one class "
            r"in experience 2 of sizes \(2, 1, 2\)",
        ),
        ("pycil", (2, 2, 1), "loss_cls: CrossEntropyLoss of 'student.new' .* in experience 3"),
        ("avalanche", (1, 2, 2), "loss_cls: CrossEntropyLoss of 'student' .* in experience 1"),
        ("mammoth", (1, 1, 1), "experience 1"),
    ],
)
def test_an_experience_of_one_class_is_refused_where_a_softmax_would_not_learn_it(
    config, preset, sizes, said
):
    with pytest.raises(
        ValueError, match=f"(?s){said}.*lwf_losses\\('lwf_mc'\\), which learns one by one"
    ):
        class_incremental_stages(sized(config, *sizes, losses=lwf_losses(preset)))


def test_old_heads_and_the_only_old_class(config):
    only_old = {
        **lwf_losses("paper"),
        "loss_cls": dict(type="user.sigmoid", of=("student.new", "target.new")),
    }
    with pytest.raises(
        ValueError,
        match="loss_lwf: LwFLoss of 'student.old_heads' is a softmax "
        "over one class in experience 3",
    ):
        class_incremental_stages(sized(config, 2, 1, 2, losses=only_old))
    with pytest.raises(
        ValueError,
        match="loss_lwf: LwFLoss of 'student.old' is a softmax over one class in experience 2",
    ):
        class_incremental_stages(
            sized(config, 1, 2, 2, losses={**only_old, "loss_lwf": lwf_losses("facil")["loss_lwf"]})
        )


def test_the_forms_that_learn_one_class_are_not_refused(config):
    for preset, sizes in (("lwf_mc", (1, 1, 1)), ("avalanche", (2, 1, 1)), ("mammoth", (2, 1, 2))):
        assert by_name(class_incremental_stages(sized(config, *sizes, losses=lwf_losses(preset))))


def test_global_distillation_of_one_class(gd):
    with pytest.raises(
        ValueError,
        match="loss_new: CurrentTeacherLoss of 'student.new' is a softmax over one class in "
        "experience 2",
    ):
        global_distillation(sized(gd, 2, 1, 2), {"length": 1})
    with pytest.raises(
        ValueError, match="loss_cls: BalancedCrossEntropyLoss of 'student' .* in experience 1"
    ):
        global_distillation(sized(gd, 1, 2, 2), {"length": 1}, terms="P")
    # labels teach M the one class
    assert global_distillation(sized(gd, 2, 1, 2), {"length": 1}, terms="PQ")


@pytest.mark.parametrize("terms", ["Q", "P", "PQ"])
def test_without_its_term_no_current_teacher_is_trained(gd, terms):
    stages = by_name(global_distillation(gd, {"length": 1}, terms=terms))
    assert (
        not any(name.startswith("current") for name in stages)
        and {"main2", "main3", "distilled"} <= stages.keys()
    )
    assert all(
        stage["teachers"].keys() == {"previous"}
        for stage in stages.values()
        if stage.get("teachers")
    )
    entry = stages["main2"]["losses"]["loss_gd"]
    assert entry["terms"] == terms and entry["of"] == [
        "student",
        "previous",
        "previous",
        "target.all",
        "class_counts",
    ]
    check_stages([Stage(**stage) for stage in stages.values()], ["student"])
