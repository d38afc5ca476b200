"""tools/test.py with flags of the task: what it asks of a task, and what it does with the answer."""

import sys
import types

import pytest
from small_runs import SMALL

from kdtasks.classification import trainer
from kdtasks.engine import cli
from kdtasks.images.folder_flags import add_folder_flags


@pytest.fixture
def task(monkeypatch):
    """A task like the small config's that can predict; it notes what it is given, and leaves out
    what ``failed`` names.
    """
    module = types.ModuleType("task_with_predict")
    for name in ("PRIMARY", "HIGHER_IS_BETTER", "evaluate", "example", "pictures"):
        setattr(module, name, getattr(trainer, name))
    module.given, module.failed = [], []

    def predict(model, config, **own):
        module.given.append((model.training, config["task"], own))
        return module.failed

    def predict_arguments(parser):
        add_folder_flags(parser, images="compared")
        parser.add_argument("--tile", type=int, help="so many pixels")
        parser.add_argument("--all-sides", action="store_true")

    module.predict, module.predict_arguments = predict, predict_arguments
    monkeypatch.setitem(sys.modules, "task_with_predict", module)
    return module


def call(run, *arguments, options=("task=task_with_predict",)):
    cli.test(
        [
            str(SMALL),
            str(run.work_dir / "student.pth"),
            "--device",
            "cpu",
            *arguments,
            "--cfg-options",
            *options,
        ]
    )


def test_the_task_predicts(undisturbed, task, capsys):
    call(undisturbed, "--images", "here", "--out", "there")
    call(undisturbed, "--inputs", "here", "--out", "there", "--tile", "64", "--all-sides")
    own = {"classes": [str(k) for k in range(10)], "folder": "here", "out": "there"}
    assert task.given == [
        (False, "task_with_predict", {**own, "measured": True, "tile": None, "all_sides": False}),
        (False, "task_with_predict", {**own, "measured": False, "tile": 64, "all_sides": True}),
    ]
    assert "accuracy" not in capsys.readouterr().out


def test_what_is_left_out_is_named_and_the_command_fails(undisturbed, task, capsys):
    task.failed = ["a.png", "b.png"]
    with pytest.raises(SystemExit) as stopped:
        call(undisturbed, "--inputs", "here", "--out", "there")
    assert stopped.value.code == 1 and "left out a.png, b.png" in capsys.readouterr().err


def test_a_task_that_takes_no_folder(undisturbed, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(undisturbed, "--inputs", "here", options=("threads=1",))
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "unrecognized arguments: --inputs here" in said


def test_flags_that_do_not_go_together(undisturbed, task, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(undisturbed, "--images", "here", "--inputs", "here", "--out", "there")
    assert stopped.value.code == 2 and "not allowed with" in capsys.readouterr().err
    assert not task.given


@pytest.mark.parametrize("arguments", [["--images", "here"], ["--out", "there"], ["--tile", "0"]])
def test_any_flag_of_the_task_asks_it(undisturbed, task, arguments):
    """What else it needs, the task says: :func:`kdtasks.images.listing.results_of`."""
    call(undisturbed, *arguments)
    assert len(task.given) == 1


def test_help_shows_the_flags_of_the_task(task, capsys):
    cli.test(["--help"])
    said = capsys.readouterr().out
    assert "--seed" in said and "--inputs" not in said
    cli.test([str(SMALL), "--help", "--cfg-options", "task=task_with_predict"])
    said = capsys.readouterr().out
    assert "of task_with_predict" in said and "--tile TILE" in said and "so many pixels" in said


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "expected a config and a checkpoint"),
        ([str(SMALL)], "expected a config and a checkpoint"),
        ([str(SMALL), "student.pth", "--tile", "3"], "unrecognized arguments: --tile 3"),
    ],
)
def test_what_is_missing_or_unknown(capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        cli.test(arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err
