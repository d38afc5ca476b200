"""tools/test.py on a folder of images: what it asks of a task, and what it does with the answer."""

import sys
import types

import pytest
from small_runs import SMALL

from kdtasks.engine import cli
from kdtasks.general import trainer


@pytest.fixture
def task(monkeypatch):
    """A task like the small config's that can predict; it notes what it is given, and leaves out what ``failed`` names."""
    module = types.ModuleType("task_with_predict")
    for name in ("PRIMARY", "HIGHER_IS_BETTER", "evaluate", "example", "pictures"):
        setattr(module, name, getattr(trainer, name))
    module.given, module.failed = [], []

    def predict(model, config, *rest):
        module.given.append((model.training, config["task"], *rest))
        return module.failed

    module.predict = predict
    monkeypatch.setitem(sys.modules, "task_with_predict", module)
    return module


def call(run, *arguments, options=("task=task_with_predict",)):
    cli.test([str(SMALL), str(run.work_dir / "student.pth"), "--device", "cpu", *arguments, "--cfg-options", *options])


def test_the_task_predicts(undisturbed, task, capsys):
    call(undisturbed, "--images", "here", "--out", "there")
    call(undisturbed, "--inputs", "here", "--out", "there", "--tile", "64", "--ensemble")
    assert task.given == [(False, "task_with_predict", "here", "there", True, None, False),
                          (False, "task_with_predict", "here", "there", False, 64, True)]
    assert "accuracy" not in capsys.readouterr().out


def test_what_is_left_out_is_named_and_the_command_fails(undisturbed, task, capsys):
    task.failed = ["a.png", "b.png"]
    with pytest.raises(SystemExit) as stopped:
        call(undisturbed, "--inputs", "here", "--out", "there")
    assert stopped.value.code == 1 and "left out a.png, b.png" in capsys.readouterr().err


def test_a_task_that_takes_no_folder(undisturbed, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(undisturbed, "--images", "here", "--out", "there", options=("threads=1",))
    assert stopped.value.code == 1 and "'kdtasks.general.trainer' takes no folder of images" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, said", [(["--images", "here"], "need --out"), (["--out", "there"], "need --images or --inputs"),
                                             (["--tile", "0"], "need --images or --inputs"), (["--ensemble"], "need --images"),
                                             (["--images", "here", "--inputs", "here", "--out", "there"], "not allowed with")])
def test_flags_that_do_not_go_together(undisturbed, task, capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        call(undisturbed, *arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err and not task.given
