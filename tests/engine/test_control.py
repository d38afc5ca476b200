"""No teacher has a part in "alone", whoever brings the teacher; and one stage counts, everywhere."""

import json

import pytest
import torch
from small_runs import same, small, weights

from kdtasks.engine.check import check
from kdtasks.engine.compare.plan import ConfigArm
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run import Run

SUPPLIED = {
    "teacher": None,
    "data.train.type": "small_parts.Embedded",
    "data.train.logits": "teacher",
    "length": 1,
}


def test_teachers_logits_in_the_data_without_a_configured_teacher_leave_the_control_alone(tmp_path):
    run = Run(small(**SUPPLIED), tmp_path / "run", quiet=True)
    assert [(s.name, s.taught, list(s.losses)) for s in run.experiment.stages] == [
        ("alone", False, ["loss_cls"]),
        ("distilled", True, ["loss_cls", "loss_kd"]),
    ]
    run.train()
    # the control of the same config with its teacher
    other = Run(small(length=1), tmp_path / "other", quiet=True)
    other.train(only=["alone"])
    assert same(weights(run, "alone")["state_dict"], weights(other, "alone")["state_dict"])
    assert not same(weights(run, "alone")["state_dict"], weights(run, "distilled")["state_dict"])


def test_a_name_of_the_data_is_the_controls_only_where_it_is_marked(tmp_path):
    losses = {"losses.loss_kd": {"type": "torch.nn.MSELoss", "of": ("student", "masks")}}
    options = {**SUPPLIED, "data.train.logits": "masks", **losses}
    run = Run(small(**options), tmp_path)
    assert list(run.experiment.stages[0].losses) == ["loss_cls"]
    with pytest.warns(UserWarning, match=r"loss_kd is of 'masks'.*data.own=\['masks'\]"):
        check(run.experiment)
    assert list(
        Run(small(**options, **{"data.own": ["masks"]}), tmp_path).experiment.stages[0].losses
    ) == ["loss_cls", "loss_kd"]
    with pytest.raises(ConfigError, match="data.own must be a list of names"):
        small(**options, **{"data.own": "masks"})


def test_a_listed_control_cannot_be_taught_by_the_data(tmp_path):
    entry = {"type": "kdtasks.general.KDLoss", "of": ("student", "teacher")}
    with pytest.raises(
        ConfigError, match="'alone' is the control.*has loss_kd, which is of 'teacher'"
    ):
        Run(
            small(
                **SUPPLIED,
                stages=[{"name": "alone", "role": "control", "losses": {"loss_kd": entry}}],
            ),
            tmp_path,
        )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    stages = [
        {"name": "teacher", "model": "teacher"},
        {"name": "alone", "role": "control", "length": 2},
        {"name": "taught", "teachers": {"teacher": "teacher"}},
        {"name": "finetune", "student": "taught"},
    ]
    run = Run(small(stages=stages, length=1), tmp_path_factory.mktemp("tuned") / "run", quiet=True)
    run.train()
    return run


def test_after_a_fine_tuning_every_part_means_the_same_stage(tuned):
    assert same(
        torch.load(tuned.work_dir / "student.pth", weights_only=True),
        weights(tuned, "finetune")["state_dict"],
    )
    assert json.loads((tuned.work_dir / "student.json").read_text())["stage"] == "finetune"
    assert (
        ConfigArm("tuned", tuned.experiment.config, "cpu").final
        == "finetune"
        == tuned.experiment.final.name
    )
    page = (tuned.work_dir / "report.html").read_text()
    assert "finetune: " in page and "taught: " not in page  # the sentence on top
