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
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING"))}
    environment |= {"LC_ALL": "C", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-X", "utf8=0", *map(str, arguments)], cwd=cwd, env=environment, capture_output=True)
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
    (place / "voc" / "Annotations" / "Öl.xml").write_text(f"<annotation><object><name>Käse</name>{box}</object></annotation>", encoding="utf-8")
    (place / "voc" / "ImageSets" / "Main" / "train.txt").write_text("Öl\n", encoding="utf-8")
    coco = {"images": [{"id": 1, "file_name": "Öl.png"}], "categories": [{"id": 7, "name": "Käse"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 5, 5]}]}
    (place / "coco.json").write_text(json.dumps(coco, ensure_ascii=False), encoding="utf-8")
    code = ("from kdtasks.detection import data\n"
            "for found in (data.voc('voc', 'train'), data.coco('voc/JPEGImages', 'coco.json')):\n"
            "    print(ascii(found.classes), found[0]['target']['labels'].tolist(), tuple(found[0]['input'].shape))\n")
    lines = python("-c", code, cwd=place).stdout.decode().splitlines()
    assert lines == [f"{['Käse']!a} [1] (3, 8, 8)"] * 2
