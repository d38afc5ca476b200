"""What cannot work is said before the first step, with the nearest right thing."""

import subprocess
import sys

import pytest
import torch
from small_runs import ROOT, SMALL, small, weights

from kdtasks.engine import builder
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.run import Run
from kdtasks.engine.runner import NotFiniteError


def test_config_key_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"no key 'optimzer'; did you mean 'optimizer'"):
        small(optimzer={})
    with pytest.raises(ConfigError, match=r"KDLoss has no argument 'temprature'; did you mean 'temperature'"):
        small(losses__loss_kd__temprature=3.0)
    with pytest.raises(ConfigError, match=r"data has no key 'batchsize'; did you mean 'batch_size'"):
        small(data__batchsize=3)
    with pytest.raises(ConfigError, match=r"kdtasks.general has no 'KDLos'; did you mean 'KDLoss'"):
        small(losses__loss_kd__type="kdtasks.general.KDLos")
    with pytest.raises(ConfigError, match=r"SGD has no argument 'momentun'; did you mean 'momentum'"):
        small(optimizer__momentun=0.9)
    with pytest.raises(ConfigError, match=r"loss_kd must be a dict with 'of'"):
        small(losses__loss_kd={"type": "kdtasks.general.KDLoss"})


def test_wrong_names_and_sizes_are_said_before_the_first_step(tmp_path):
    for options, message in (
        ({"losses__loss_kd__of": ("student", "teacher.fcc")}, r"no model supplies 'teacher.fcc'"),
        ({"losses__loss_kd__of": ("student", "techer")}, r"neither a model nor the batch supplies 'techer'; did you mean 'teacher'"),
        ({"teacher__num_classes": 7}, r"loss_kd cannot be computed from student \(32, 10\), teacher \(32, 7\)"),
        ({"losses__loss_x": {"type": "torch.nn.MSELoss", "of": ("student.0", "teacher.0")}}, r"loss_x cannot be computed from student.0"),
        ({"schedule": [{"type": "MultiStepLRR"}]}, r"MultiStepLRR.*did you mean 'MultiStepLR'"),
        ({"teacher__checkpoint": "nowhere.pth"}, r"no checkpoint 'nowhere.pth'"),
    ):
        with pytest.raises((ConfigError, ValueError, FileNotFoundError), match=message):
            Run(small(**options), tmp_path / "run", quiet=True).train()
        assert not (tmp_path / "run").exists()


def test_a_teacher_that_knows_other_classes(undisturbed, tmp_path):
    file = str(undisturbed.folder(undisturbed.stages[0]) / "last.pth")
    names = [str(k) for k in range(9)] + ["ten"]
    with pytest.raises(ConfigError, match=r"lacks \['9'\] and adds \['ten'\]"):
        Run(small(teacher__checkpoint=file, data__train__classes=names), tmp_path / "run", quiet=True).train()


def test_infinite_loss_names_term_and_step_and_saves(tmp_path):
    hooks = [{"type": "small_parts.BreakWeights", "stage": "distilled", "iteration": 9}]
    run = Run({**small(), "custom_hooks": hooks}, tmp_path / "run", quiet=True)
    with pytest.raises(NotFiniteError, match=r"loss_\w+ is (nan|inf) at iteration 9 of stage 'distilled'.*failed.pth.*last.pth"):
        run.train()
    state = weights(run, "distilled")
    assert state["resume"]["iteration"] == 9                               # written after 9 good steps, before the bad one
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    assert "state_dict" in torch.load(run.folder(run.stages[2]) / "failed.pth", weights_only=True)


def test_a_wrong_input_ends_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "train.py"), str(SMALL), "--cfg-options", "losses.loss_kd.temperatur=3"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.strip() == "error: losses.loss_kd: KDLoss has no argument 'temperatur'; did you mean 'temperature'?"


def test_a_file_from_elsewhere_is_never_unpickled(tmp_path):
    bad = tmp_path / "teacher.pth"
    torch.save(torch.nn.Linear(2, 2), bad)
    with pytest.raises(ValueError, match="is not unpickled, since that can run code"):
        Run(small(teacher__checkpoint=str(bad)), tmp_path / "run", quiet=True).train()


def test_builder_says_what_is_near():
    with pytest.raises(ConfigError, match="full dotted path"):
        builder.resolve("KDLoss", "losses.x")
    with pytest.raises(ConfigError, match="no module 'nowhere'"):
        builder.resolve("nowhere.Thing", "losses.x")
