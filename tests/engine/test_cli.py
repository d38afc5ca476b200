"""The commands."""

import os
import subprocess
import sys

import pytest
from small_runs import ROOT, SMALL, small

from kdtasks.engine import cli
from kdtasks.engine.cli.arguments import option
from kdtasks.engine.cli.endings import pipe_may_close
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run_names import config_name, config_names


def test_dry_run_and_lists(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.train([str(SMALL), "--dry-run"])
    out = capsys.readouterr().out
    assert "distilled:" in out and "teacher (32, 10)" in out and not list(tmp_path.iterdir())
    cli.train([str(SMALL), "--list"])
    out = capsys.readouterr().out
    assert "distilled: trains student, taught by teacher" in out and "student.10" in out
    cli.train(["--list"])
    assert "configs/classification/default.py" in capsys.readouterr().out


def test_tools_test_gives_the_runs_figure(undisturbed, capsys):
    cli.test([str(SMALL), str(undisturbed.work_dir / "student.pth"), "--device", "cpu"])
    assert (
        f"accuracy {undisturbed.results['stages']['distilled']['accuracy']:.3f}"
        in capsys.readouterr().out
    )


@pytest.fixture
def closed_pipe():
    """The end to write to of a pipe whose reader has gone, as head does after its last line."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("config", [[], [str(SMALL)]])
def test_a_reader_that_has_gone_ends_a_list_without_a_traceback(closed_pipe, config):
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "train.py", *config, "--list"],
        stdout=closed_pipe,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (141, "")


def test_a_reader_that_has_gone_ends_the_other_tools_too(
    undisturbed, closed_pipe, capsys, monkeypatch, tmp_path
):
    file = str(undisturbed.work_dir / "student.pth")
    for tool, arguments in (
        (cli.test, [str(SMALL), file, "--device", "cpu"]),
        (cli.train, [str(SMALL), "--dry-run"]),
        (
            cli.export,
            [str(undisturbed.work_dir), "--format", "pth", "--output", str(tmp_path / "a.pth")],
        ),
    ):
        with open(os.dup(closed_pipe), "w") as stdout, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            with pytest.raises(SystemExit) as stopped:
                tool(arguments)
        assert stopped.value.code == 141 and not capsys.readouterr().err


def test_a_broken_pipe_that_is_not_the_readers_is_an_error():
    with pytest.raises(BrokenPipeError), pipe_may_close():
        raise BrokenPipeError("a worker's")


def test_a_configs_name_does_not_depend_on_how_its_path_is_written(tmp_path, monkeypatch):
    for name in ("configs/x.py", "configs/task/x.py", "configs/task/sub/y.py", "mine/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("configs/task")
    cases = {
        ".": {
            "configs/x.py": "x",
            "configs/task/x.py": "task_x",
            "link/x.py": "task_x",
            "mine/x.py": "mine_x",
            "mine/../configs/task/x.py": "task_x",
            "configs/task/sub/../x.py": "task_x",
            "configs/task/../x.py": "x",
        },
        "configs/task/sub": {
            "../x.py": "task_x",
            "../../x.py": "x",
            "y.py": "y",
            "./y.py": "y",
            "../sub/y.py": "y",
        },
        "mine": {
            "x.py": "x",
            "../mine/x.py": "x",
            "../link/sub/../x.py": "task_x",
            "../configs/task/sub/y.py": "sub_y",
        },
    }
    for here, names in cases.items():
        monkeypatch.chdir(tmp_path / here)
        for path, name in names.items():
            assert config_name(path) == config_name(os.path.abspath(path)) == name, (here, path)
    monkeypatch.chdir(tmp_path)
    assert config_names(["mine/x.py", "configs/task/x.py"]) == ["mine_x", "task_x"]
    for name in ("a/task/x.py", "b/task/x.py"):
        (tmp_path / name).parent.mkdir(parents=True)
    assert config_names(["a/task/x.py", "configs/../b/task/x.py"]) == ["a_task_x", "b_task_x"]
    with pytest.raises(ConfigError, match="a config is given twice"):
        config_names(["a/task/x.py", "a/../a/task/x.py"])


NOWHERE = {"type": "kdtasks.classification.data.image_folder", "root": "nowhere", "size": 8}
COLOURED = "|".join(
    f"{model}.{option}"
    for model in ("student", "teacher")
    for option in ("type=kdtasks.classification.models.digits_cnn", "in_channels=3")
)


@pytest.mark.parametrize(
    "given, message, told",
    [
        ("teacher.checkpoint='nowhere.pth'", "no checkpoint 'nowhere.pth'", True),
        ("teacher.checkpoint='notes.txt'", "'notes.txt', which is neither a file nor", False),
        (f"data.train={NOWHERE}|" + COLOURED, "no data set at nowhere", True),
        (f"data.test={NOWHERE}", "no data set at nowhere", True),
        (
            "custom_hooks=[dict(type='EMAHook')]",
            "custom_hooks[0]: mmengine's EMAHook cannot work here",
            False,
        ),
        (
            "custom_hooks.0.type=EarlyStoppingHook",
            "custom_hooks[0]: EarlyStoppingHook needs 'monitor'",
            False,
        ),
    ],
)
def test_dry_run_reads_what_the_run_will_read(given, message, told, capsys, tmp_path, monkeypatch):
    """What is told without the data is told; then the missing file is an error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(SystemExit) as stopped:
        cli.train([str(SMALL), "--dry-run", "--device", "cpu", "--cfg-options", *given.split("|")])
    said = capsys.readouterr()
    assert (
        stopped.value.code == 1
        and said.err.startswith("error: ")
        and message in said.err
        and said.err.count("\n") == 1
    )
    assert ("distilled:" in said.out) == told


def test_hooks_given_on_the_command_line_are_dicts():
    written = [option("custom_hooks=[dict(type='EarlyStoppingHook', monitor='accuracy')]")]
    by_key = [
        option("custom_hooks.0.type=EarlyStoppingHook"),
        option("custom_hooks.0.monitor=accuracy"),
    ]
    for options in (written, by_key):
        assert small(**dict(options))["custom_hooks"] == [
            {"type": "EarlyStoppingHook", "monitor": "accuracy"}
        ]
