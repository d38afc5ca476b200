"""The commands."""

from small_runs import SMALL

from kdtasks.engine import cli


def test_dry_run_and_lists(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.train([str(SMALL), "--dry-run"])
    out = capsys.readouterr().out
    assert "distilled:" in out and "teacher (32, 10)" in out and not list(tmp_path.iterdir())
    cli.train([str(SMALL), "--list"])
    out = capsys.readouterr().out
    assert "distilled: trains student, taught by teacher" in out and "student.10" in out
    cli.train(["--list"])
    assert "configs/general/default.py" in capsys.readouterr().out


def test_tools_test_gives_the_runs_figure(undisturbed, capsys):
    cli.test([str(SMALL), str(undisturbed.work_dir / "student.pth"), "--device", "cpu"])
    assert f"accuracy {undisturbed.results['stages']['distilled']['accuracy']:.3f}" in capsys.readouterr().out
