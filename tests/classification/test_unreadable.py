"""Every task's data leaves out files that cannot be read where ``data.skip_bad`` says so, and says
which and why.
"""

import json

import numpy as np
import pytest
from PIL import Image

from kdtasks.engine.builder import build
from kdtasks.engine.data_sets import told
from kdtasks.engine.loader import Loader

TASKS = {
    "classes": {"type": "kdtasks.classification.data.image_folder"},
    "classes of files": {
        "type": "kdtasks.classification.data.image_folder",
        "small": False,
        "size": 16,
    },
    "unlabelled": {"type": "kdtasks.classification.data.unlabelled_folder"},
    "concat": {
        "type": "kdtasks.classification.data.concat",
        "sets": [{"type": "kdtasks.classification.data.image_folder"}],
    },
    "torchvision": {
        "type": "kdtasks.classification.data.torchvision_set",
        "dataset": "ImageFolder",
        "size": 16,
    },
    "retrieval": {"type": "kdtasks.metric_learning.data.image_folder", "test_classes": ["a", "b"]},
    "retrieval of files": {
        "type": "kdtasks.metric_learning.data.image_folder",
        "test_classes": ["a", "b"],
        "small": False,
        "size": 16,
    },
    "super-resolution": {"type": "kdtasks.super_resolution.data.image_folder"},
    "pairs": {"type": "kdtasks.super_resolution.data.paired_folders"},
    "boxes": {"type": "kdtasks.detection.data.coco"},
    "boxes, size asked": {"type": "kdtasks.detection.data.coco"},
    "no boxes": {"type": "kdtasks.detection.data.unlabelled", "classes": ["x"]},
}


def described(task, root):
    """The description of the test data, its root filled in; 8 images in folders a, b, c, some of
    them broken.
    """

    def picture(path, side=32):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(str(path))).integers(
            0, 255, (side, side, 3), dtype=np.uint8
        )
        Image.fromarray(noise).save(path)

    names = [
        f"{folder}/{k}.png"
        for folder in ("abc" if task.startswith("retrieval") else "ab")
        for k in range(4)
    ]
    for name in names:
        picture(root / "hr" / name)
        if task == "pairs":
            picture(root / "lr" / name, 16)
    half = root / ("lr" if task == "pairs" else "hr") / "a/1.png"
    half.write_bytes(half.read_bytes()[:400])
    (root / "hr" / "b/2.png").write_bytes(b"")
    spec = dict(TASKS[task])
    if task == "pairs":
        return {**spec, "hr": str(root / "hr"), "lr": str(root / "lr")}
    if task == "concat":
        return {**spec, "sets": [{**spec["sets"][0], "root": str(root / "hr")}]}
    if task.startswith("boxes"):
        size = {} if "size" in task else {"height": 32, "width": 32}
        content = {
            "images": [{"id": k, "file_name": name, **size} for k, name in enumerate(names)],
            "categories": [{"id": 1, "name": "x"}],
            "annotations": [
                {"id": k, "image_id": k, "category_id": 1, "bbox": [1, 1, 9, 9]}
                for k in range(len(names))
            ],
        }
        (root / "boxes.json").write_text(json.dumps(content))
        return {**spec, "images": str(root / "hr"), "annotations": str(root / "boxes.json")}
    return {**spec, {"no boxes": "folder"}.get(task, "root"): str(root / "hr")}


@pytest.mark.parametrize("task", TASKS)
def test_a_test_set_of_any_task(tmp_path, task):
    spec = described(task, tmp_path)
    with pytest.warns(UserWarning, match="unreadable"):
        made = build(told(spec, False, skip_bad=True), "data.test")
        loader = Loader(made, 1, shuffle=False, skip_bad=True)
        index = [int(i) for batch in loader for i in batch["index"]]
    assert len(index) == 6 == len(set(index))
    broken = {
        str(tmp_path / name)
        for name in ("lr/a/1.png" if task == "pairs" else "hr/a/1.png", "hr/b/2.png")
    }
    assert set(loader.unreadable) == broken and all(
        why.strip() for why in loader.unreadable.values()
    )
    paths = (
        {str(loader.dataset.path(i)) for i in index}
        if hasattr(made, "path")
        else {made.samples[i][0] for i in index}
    )
    assert len(paths) == 6 and not paths & broken
    with pytest.raises(RuntimeError, match=r"a.1\.png|b.2\.png"):
        list(Loader(build(told(spec, False), "data.test"), 1, shuffle=False))


def test_unreadable_training_patches(tmp_path):
    with pytest.warns(UserWarning, match="left out 2 unreadable of 8 images"):
        made = build(
            told(
                {**described("super-resolution", tmp_path), "patch": 8, "repeat": 2},
                True,
                skip_bad=True,
            ),
            "data.train",
        )
    assert len(made) == 12 and len(made.unreadable) == 2
