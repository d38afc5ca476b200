"""``kdtasks distill``: a folder of real patches becomes a config, a run and a table."""

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from kdtasks import cli
from kdtasks.classification.models import resnet8
from kdtasks.engine import config as configs
from kdtasks.engine.errors import ConfigError
from kdtasks.images.photos import photo_patches
from kdtasks.representation.clusters import without_singles
from kdtasks.representation.command import distill
from kdtasks.representation.data import labelled_by, unlabelled_folder

NETWORK = "kdtasks.classification.models.resnet8"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with pictures, labelled ones among them, a broken one, and a teacher."""
    monkeypatch.chdir(tmp_path)
    patches = photo_patches(rows=3, size=16)
    for k in range(54):
        # of three photos: six for each and split of the labelled ones, the others without
        name = f"labelled/{'test' if k % 3 else 'train'}/{patches.target[k] % 3}/{k}.png"
        path = tmp_path / (name if k < 27 else f"photos/deep/{k}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(patches.images[k].permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "photos" / "broken.png").write_bytes(b"\x89PNG")
    torch.manual_seed(0)
    torch.save(resnet8().state_dict(), tmp_path / "teacher.pth")
    return tmp_path


def arguments(**more):
    return {"teacher_weights": "teacher.pth", "epochs": 1, "size": 16, "batch_size": 9, **more}


def test_three_lines_of_python_with_labels(folder):
    with pytest.warns(UserWarning, match="left out 1 unreadable of 28"):
        results = distill(
            "photos", NETWORK, NETWORK, labelled="labelled", name="mine", quiet=True, **arguments()
        )
    assert list(results["stages"]) == ["random", "distilled"]
    assert {"knn", "linear", "teacher_knn"} <= results["stages"]["distilled"].keys()
    config = configs.load("mine.py")
    assert config["data"]["test"]["type"].endswith("bank_and_queries")
    assert config["data"]["train"]["augment"]["flip"] is True
    assert (folder / "work_dirs" / "mine" / "seed0" / "student.pth").exists()
    # to be changed: it is not written over
    (folder / "mine.py").write_text((folder / "mine.py").read_text() + "threads = 1\n")
    with pytest.raises(ConfigError, match=r"'mine.py' is there"):
        distill("photos", NETWORK, NETWORK, labelled="labelled", name="mine", **arguments())


def test_the_command_without_labels_tests_by_the_teachers_clusters(folder, capsys):
    given = ["--data", "photos", "--student", NETWORK, "--teacher", NETWORK, "--size", "16"]
    given += ["--teacher-weights", "teacher.pth", "--epochs", "1"]
    # of an earlier run, when other images were there
    np.savez("distill_resnet8_resnet8_photos_clusters.npz", labels=np.zeros(27, dtype=np.int64))
    with pytest.warns(UserWarning, match="left out 1 unreadable"):
        cli.main(["distill", *given])
    out = capsys.readouterr().out
    assert "distilled" in out and "distill_resnet8_resnet8_photos.py: the config" in out
    assert "27 images, 3 steps of 8; tested by the teacher's clusters of" in out
    assert re.search(
        r"4 classes: \d queries search \d\d images \(few: one query is 1[0-9.]+ %\)", out
    )
    assert "seed0/student.pth' starts a classifier" in out
    file = folder / "distill_resnet8_resnet8_photos_clusters.npz"
    labels = np.load(file)["labels"]
    assert len(labels) == 27 and len(set(labels.tolist())) == 4
    # another picture of the same name: its cluster is that of the one before
    with warnings.catch_warnings(action="error"):
        labelled_by(unlabelled_folder("photos/deep", size=16), file)
    Image.new("RGB", (16, 16)).save(folder / "photos" / "deep" / "30.jpg")
    with pytest.warns(UserWarning, match=r"1 of 27 images, as .*30\.jpg, have other pixels than"):
        labelled_by(unlabelled_folder("photos/deep", size=16), file)


def test_no_cluster_has_one_image():
    angles = torch.tensor([0.0, 0.1, 0.9, 1.0, 1.57, 3.1, 3.2, 1.4])
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([0, 1, 1, 1, 2, 3, 3, 1])
    # the nearest of the one cluster that has three images or more
    assert without_singles(rows, labels).tolist() == [0, 0, 1, 1, 2, 3, 3, 2]
    assert labels[1] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": "fotos"}, "no folder 'fotos'"),
        ({"--data": "teacher.pth"}, "no folder 'teacher.pth'"),
        ({"--labelled": "none"}, "no folder 'none'"),
        ({"--student": "kdtasks.classification.models.resnet9"}, "'resnet9'.*'resnet8'"),
        ({"--teacher-weights": "teachr.pth"}, "no checkpoint 'teachr.pth'.*'teacher.pth'"),
        ({"--size": "20000"}, "GiB of memory: expected at most 4"),
    ],
)
def test_what_is_not_right_is_one_clear_line(folder, capsys, change, message):
    given = {"--data": "photos", "--student": NETWORK, "--teacher": NETWORK, "--size": "16"}
    given = {**given, "--teacher-weights": "teacher.pth", **change}
    # before it the broken picture may be met
    with pytest.raises(SystemExit) as end, warnings.catch_warnings(action="ignore"):
        cli.main(["distill", *(text for pair in given.items() for text in pair)])
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.startswith("error: ") and len(error.splitlines()) == 1
    assert re.search(message, error)
