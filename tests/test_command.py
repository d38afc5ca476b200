"""The ``kdtasks`` command: configs by their names, a copy to change, and every tool behind a word."""

from pathlib import Path

import pytest

from kdtasks import cli
from kdtasks.engine.config_files import config_titles, copy_config, find_config, library_of

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for path in CONFIGS.rglob("*.py")
    if "_base_" not in path.parts
)


def test_list_names_every_config_and_its_purpose(capsys):
    cli.main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == NAMES and all(
        line.startswith("    ") and len(line) > 14 for line in lines[1::2]
    )
    assert list(config_titles()) == NAMES


@pytest.mark.parametrize("given", ["classification/default", "classification/default.py"])
def test_a_config_of_the_package_is_found_by_its_name(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(given) == CONFIGS / "classification" / "default.py"
    own = tmp_path / "classification" / "default.py"
    own.parent.mkdir()
    own.write_text("length = 1\n")
    # a file that lies there comes first
    assert find_config("classification/default.py").resolve() == own


def test_a_name_that_does_not_exist_comes_with_the_nearest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (
        ["train", "classification/defualt"],
        ["copy", "classification/defualt"],
        ["test", "classification/defualt", "x.pth"],
        ["compare", "classification/defualt"],
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(command)
        assert end.value.code == 1
        assert (
            "error: no config 'classification/defualt'; did you mean 'classification/default'"
            in capsys.readouterr().err
        )


def test_a_command_that_does_not_exist(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["trian"])
    assert end.value.code == 2 and "invalid choice: 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_means_what_the_original_means(name, tmp_path):
    from mmengine.config import Config

    files = copy_config(name, tmp_path / "mine")
    assert (
        files[0] == tmp_path / "mine" / f"{name}.py"
        and files[0].read_bytes() == (CONFIGS / f"{name}.py").read_bytes()
    )
    # its base comes with that library
    if library_of(files[0]):
        assert len(files) == 1
        return
    assert Config.fromfile(files[0]).to_dict() == Config.fromfile(CONFIGS / f"{name}.py").to_dict()


def test_a_config_for_another_librarys_tools_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = next(name for name in NAMES if library_of(CONFIGS / f"{name}.py"))
    cli.main(["copy", name])
    assert capsys.readouterr().out.splitlines() == [f"configs/{name}.py", "for mmdet's own tools"]
    with pytest.raises(SystemExit):
        cli.main(["train", name, "--dry-run"])
    assert "is for mmdet's own tools: its first lines say how" in capsys.readouterr().err


def test_a_copy_overwrites_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["copy", "classification/default"])
    printed = capsys.readouterr().out.splitlines()
    assert (
        printed[0] == "configs/classification/default.py"
        and printed[-1] == "kdtasks train configs/classification/default.py"
    )
    # equal files: nothing to lose
    cli.main(["copy", "classification/default"])
    mine = tmp_path / "configs" / "classification" / "default.py"
    mine.write_text(mine.read_text() + "length = 1\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.py")}
    with pytest.raises(SystemExit):
        # the name means the file that lies here, and it is one's own
        cli.main(["copy", "classification/default"])
    with pytest.raises(SystemExit):
        cli.main(["copy", str(CONFIGS / "classification" / "default.py")])
    assert (
        "'configs/classification/default.py' is there already and differs"
        in capsys.readouterr().err
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.py")} == before


def test_a_short_run_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["train", "classification/default", "--dry-run", "--device", "cpu"])
    assert "distilled" in capsys.readouterr().out and not list(tmp_path.iterdir())
