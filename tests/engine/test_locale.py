"""Annotations are UTF-8, in a locale that knows no letter but ASCII's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def python(*arguments, cwd):
    """In a locale of ASCII, where Python would not go over to UTF-8 by itself."""
    environment = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING"))
    }
    environment |= {"LC_ALL": "C", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("Fotos-ä")
    return place


def test_annotations_are_read_as_utf_8(place):
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (place / "voc" / part).mkdir(parents=True, exist_ok=True)
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    Image.new("RGB", (8, 8)).save(place / "voc" / "JPEGImages" / "Öl.png")
    (place / "voc" / "Annotations" / "Öl.xml").write_text(
        f"<annotation><object><name>Käse</name>{box}</object></annotation>", encoding="utf-8"
    )
    (place / "voc" / "ImageSets" / "Main" / "train.txt").write_text("Öl\n", encoding="utf-8")
    coco = {
        "images": [{"id": 1, "file_name": "Öl.png"}],
        "categories": [{"id": 7, "name": "Käse"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 5, 5]}],
    }
    (place / "coco.json").write_text(json.dumps(coco, ensure_ascii=False), encoding="utf-8")
    code = (
        "from kdtasks.detection import data\nfor found in (data.voc('voc', 'train'), "
        "data.coco('voc/JPEGImages', 'coco.json')):\n    print(ascii(found.classes), "
        "found[0]['target']['labels'].tolist(), tuple(found[0]['input'].shape))\n"
    )
    lines = python("-c", code, cwd=place).stdout.decode().splitlines()
    assert lines == [f"{['Käse']!a} [1] (3, 8, 8)"] * 2


RUNS = """
import json, sys
sys.path.insert(0, {here!r})
import torch
from small_runs import small
from torch import nn
from kdtasks.engine.run import Run

def net(**options):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))

kinds = {{"folder": {{"type": "kdtasks.classification.data.image_folder"}},
          "torchvision": {{"type": "kdtasks.classification.data.torchvision_set", "dataset": "ImageFolder", "size": 8}}}}
losses = {{"loss_cls": {{"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}}}}
for train, test in (("folder", "torchvision"), ("torchvision", "folder")):
    data = {{"train": {{**kinds[train], "root": "photos"}}, "test": {{**kinds[test], "root": "photos"}}, "batch_size": 6, "skip_bad": True}}
    config = small(length={{"iterations": 1}}, student={{"type": "__main__.net"}}, losses=losses, teacher=None, stages=[{{"name": "plain"}}], schedule=[],
                   **{{f"data.{{key}}": value for key, value in data.items()}})
    run = Run(config, f"{{train}}-{{test}}", quiet=True)
    run.train()
    print(ascii(json.loads((run.work_dir / "student.json").read_text())["classes"]))
"""


def test_a_run_on_class_folders_with_other_letters(place):
    """Classes are UTF-8 text in the report and beside the weights; the files keep the names that
    they have on the disk.
    """
    names = ["Käse", "b\udce4d", "Öl"]  # one is not UTF-8
    for k, name in enumerate(names):
        folder = os.fsencode(place / "photos") + b"/" + name.encode("utf-8", "surrogateescape")
        os.makedirs(folder)
        for i in range(2):
            with open(folder + f"/ü{i}.png".encode(), "wb") as file:
                Image.new("RGB", (8, 8), (80 * k, i, 0)).save(file, "PNG")
    with open(folder + "/ß.png".encode(), "wb") as file:
        file.write(b"no image")
    done = python("-c", RUNS.format(here=str(ROOT / "tests" / "engine")), cwd=place)
    assert done.stdout.decode().splitlines() == [ascii(["Käse", "b\\xe4d", "Öl"])] * 2
    for run in ("folder-torchvision", "torchvision-folder"):
        assert "Öl/ß.png" in (place / run / "train.log").read_bytes().decode("utf-8", "replace")
