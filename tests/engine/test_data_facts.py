"""Data that changes between a stop and going on is named."""

import importlib
import shutil

import numpy as np
import pytest
from PIL import Image
from small_runs import small

from kdtasks.engine.data_facts import facts_of
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.notices import Notices
from kdtasks.engine.run import Run
from kdtasks.engine.sources import check_sources, sources_of
from kdtasks.engine.work_dir import WorkDir


def folder(path, shift=0, classes=("a", "b"), count=12):
    """Images of noise, one folder a class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (path / name).mkdir(parents=True)
        for k in range(count):
            pixels = rng.integers(0, 200, (8, 8), dtype=np.uint8) + shift
            Image.fromarray(pixels.astype(np.uint8)).save(path / name / f"{k}.png")
    return path


def run_of(tmp_path):
    data = {
        f"data.{part}": {
            "type": "kdtasks.classification.data.image_folder",
            "root": str(tmp_path / part),
            "size": 8,
        }
        for part in ("train", "test")
    }
    net = {"type": "small_parts.Net", "width": 4, "num_classes": 2, "channels": 3}
    options = {"data.batch_size": 8, "length": 1, "student": net, "teacher": net}
    return Run(small(**data, **options), tmp_path / "run", quiet=True)


@pytest.fixture
def begun(tmp_path):
    """A run whose teacher is trained."""
    for part in ("train", "test"):
        folder(tmp_path / part)
    run_of(tmp_path).train(only=["teacher"])
    return tmp_path


def lose(path):
    for part in ("train", "test"):
        (path / part / "b" / "0.png").unlink()


def rename(path):
    (path / "train" / "a" / "3.png").rename(path / "train" / "a" / "30.png")


def move(path):
    (path / "train" / "a" / "3.png").rename(path / "train" / "b" / "33.png")


@pytest.mark.parametrize(
    "change, said",
    [
        (lose, r"train.samples: 24 -> 23\n.*train.labels: .*\n.*train.files: .*test.samples: 24"),
        (rename, "began:\n  train.files: '.*' -> '.*'\nPut"),
        (move, r"began:\n  train.labels: .*\n  train.files: [^\n]*\nPut"),
    ],
)
def test_other_samples_are_an_error(begun, change, said):
    change(begun)
    with pytest.raises(ConfigError, match=f"(?s)the data is not what it was when .*{said}"):
        run_of(begun).train(resume=True)


def test_other_pixels_are_a_warning(begun, capsys):
    shutil.rmtree(begun / "train")
    folder(begun / "train", shift=9)
    run = run_of(begun)
    run.notices.quiet = False
    run.train(resume=True, only=["alone"])
    said = capsys.readouterr().err
    assert "samples of the train data do not hold what they did when the run began" in said


def test_the_same_data_elsewhere_is_the_same(tmp_path):
    from kdtasks.classification.data import image_folder

    one, other = (image_folder(folder(tmp_path / n / "set"), size=8) for n in ("a", "other"))
    assert facts_of(one) == facts_of(other)
    assert facts_of(one)["content"] and facts_of(one)["samples"] == 24


def test_another_file_of_weights_is_an_error_and_other_code_a_warning(
    tmp_path, monkeypatch, capsys
):
    weights, code = tmp_path / "teacher.pth", tmp_path / "my_losses.py"
    weights.write_bytes(b"one")
    code.write_text("def cosine(student, teacher):\n    return 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("my_losses")
    config = {
        "teachers": {"teacher": {"type": "small_parts.Net", "checkpoint": str(weights)}},
        "losses": {"loss_cosine": {"type": "my_losses.cosine"}},
        "data": {"train": {"root": str(code)}},
    }
    files, notices = WorkDir(tmp_path / "run", []), Notices(quiet=False)
    assert list(sources_of(config)["files"]) == [str(weights)]
    for _ in range(2):
        check_sources(config, files, notices)
    assert capsys.readouterr().err == ""
    code.write_text("def cosine(student, teacher):\n    return 12\n")
    check_sources(config, files, notices)
    assert "warning: my_losses: not what it was when the run began" in capsys.readouterr().err
    weights.write_bytes(b"another")
    with pytest.raises(ConfigError, match=r"teacher\.pth': not what it was when the run"):
        check_sources(config, files, notices)
