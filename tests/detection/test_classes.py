"""Boxes of a test set have the training data's class numbers, whatever their file calls them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from kdtasks.detection.data import DetectionData, coco, unlabelled, voc
from kdtasks.engine.builder import build
from kdtasks.engine.data_sets import Renumbered, told, with_classes
from kdtasks.engine.errors import ConfigError

TRAINED = ["cat", "dog", "eel"]


def images(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.fromarray(np.full((20, 30, 3), 40 * k, np.uint8)).save(folder / f"{k}.png")


def coco_file(tmp_path, categories, boxes):
    """``boxes``: (image, category id), each with a left edge of its own."""
    images(tmp_path)
    content = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 20, "width": 30} for k in range(3)],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [
            {"id": n, "image_id": image, "category_id": c, "bbox": [n, 0, 5, 5]}
            for n, (image, c) in enumerate(boxes)
        ],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return {"images": str(tmp_path), "annotations": str(tmp_path / "boxes.json")}


def names_of(data):
    """[[class of each box, by its left edge] of each image]"""
    targets = [data[i]["target"] for i in range(len(data))]
    return [
        [
            (int(box[0]), list(data.classes)[label - 1])
            for box, label in zip(t["boxes"], t["labels"])
        ]
        for t in targets
    ]


BOXES = [(0, 7), (0, 3), (2, 7), (2, 5)]
NAMED = {7: "cat", 3: "dog", 5: "eel"}
FOUND = [[(0, "cat"), (1, "dog")], [], [(2, "cat"), (3, "eel")]]


def as_own(data):
    """A user's own map-style set of the same."""

    class Own:
        classes, collate = data.classes, staticmethod(data.collate)

        def __len__(self):
            return len(data)

        def __getitem__(self, i):
            return data[i]

    return Own()


@pytest.mark.parametrize("own", [False, True])
def test_other_category_ids_of_the_same_names(tmp_path, own):
    data = coco(**coco_file(tmp_path, [(n, NAMED[n]) for n in NAMED], BOXES), train=False)
    assert data.classes == ["dog", "eel", "cat"] and names_of(data) == FOUND
    data = as_own(data) if own else data
    made = with_classes(data, TRAINED, False, "data.test")
    assert (
        isinstance(made, Renumbered) == own and made.classes == TRAINED and names_of(made) == FOUND
    )
    assert made[2]["target"]["labels"].tolist() == [1, 3] and data[2]["target"][
        "labels"
    ].tolist() == [3, 2]
    # the test has fewer classes
    more = with_classes(data, ["bee", *TRAINED], False, "data.test")
    assert more[2]["target"]["labels"].tolist() == [2, 4] and names_of(more) == FOUND


@pytest.mark.parametrize("own", [False, True])
def test_boxes_of_a_class_that_nobody_trained_on(tmp_path, own):
    data = coco(
        **coco_file(tmp_path, [*((n, NAMED[n]) for n in NAMED), (9, "fly")], BOXES), train=False
    )
    trained = ["dog", "cat"]
    data = as_own(data) if own else data
    with pytest.raises(
        ConfigError,
        match=r"data.test: it has .* the training data lacks: 'eel'.* "
        r"2: \['dog', 'cat'\].* 4: \['dog', 'eel', 'cat', "
        r"'fly'\]",
    ):
        with_classes(data, trained, False, "data.test")
    with pytest.warns(
        UserWarning, match="left out what is of the . classes that the training data lacks: 'eel'"
    ):
        made = with_classes(data, trained, True, "data.test")
    assert names_of(made) == [[(0, "cat"), (1, "dog")], [], [(2, "cat")]]
    assert all(len(v) == 1 for k, v in made[2]["target"].items() if k != "scale")
    # a class without boxes does no harm, where one can tell
    if not own:
        assert names_of(with_classes(data, TRAINED, False, "data.test")) == FOUND


def voc_folder(root, split, names):
    images(root / "JPEGImages", len(names))
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text(
        "\n".join(map(str, range(len(names))))
    )
    for k, name in enumerate(names):
        (root / "Annotations" / f"{k}.xml").write_text(
            "<annotation><size><width>30</width><height>20</height></size><object><name>"
            + name
            + f"</name><bndbox><xmin>{k}</xmin><ymin>0</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
        )
    return str(root)


def test_voc_folders_that_hold_other_names(tmp_path):
    train = voc(voc_folder(tmp_path / "a", "fold0", ["ant", "bee", "cat"]), "fold0")
    test = voc(voc_folder(tmp_path / "b", "fold1", ["cat", "bee"]), "fold1")
    assert test[0]["target"]["labels"].tolist() == [2]
    made = with_classes(test, train.classes, False, "data.test")
    assert [made[i]["target"]["labels"].tolist() for i in range(2)] == [[3], [2]]


def test_a_split_augments_where_it_trains_and_nowhere_else(tmp_path):
    root = voc_folder(tmp_path / "a", "train_fold0", ["ant", "bee"])
    (tmp_path / "a" / "ImageSets" / "Main" / "fold0.txt").write_text("0\n1")
    made = {
        (split, train): build(told({"type": voc, "root": root, "split": split}, train), "data")
        for split in ("fold0", "train_fold0")
        for train in (True, False)
    }
    assert {key: data.augment for key, data in made.items()} == {
        key: "flip" if key[1] else None for key in made
    }
    boxes = coco_file(tmp_path / "c", [(1, "cat")], [(0, 1)])
    for spec in (
        {"type": coco, **boxes},
        {"type": unlabelled, "folder": boxes["images"], "classes": ["cat"]},
        {
            "type": "kdtasks.detection.data.with_unlabelled",
            "dataset": {"type": coco, **boxes},
            "unlabelled": {"type": unlabelled, "folder": boxes["images"], "classes": ["cat"]},
        },
    ):
        assert [build(told(spec, train), "data").augment for train in (True, False)] == [
            "flip",
            None,
        ]


# Files that cannot be meant -----------------------------------------------------------------------
@pytest.mark.parametrize(
    "categories, boxes, message",
    [
        (
            [(1, "cat"), (2, "dog"), ("3", "cat")],
            [(0, 1)],
            r"some ids of its categories are numbers, "
            r"others texts|the categories 1 and '3' are "
            r"both called 'cat'",
        ),
        ([(1, "cat"), (4, "cat")], [(0, 1)], "the categories 1 and 4 are both called 'cat'"),
        (
            [("1", "cat"), ("2", "dog")],
            [(0, 1)],
            "annotation 0 has category 1; there are .'1', '2'.: it has '1', a str, not a int",
        ),
        (
            [(1, "cat")],
            [("0", 1)],
            "annotation 0 belongs to image '0', which the file does not list: it has 0, a int, not "
            "a str",
        ),
        (
            [(1, "cat"), ("2", "dog")],
            [(0, 1)],
            "some ids of its categories are numbers, others texts: .1, '2'.",
        ),
        ([(1, "cat")], [], "none of the 3 labelled images has a box"),
    ],
)
def test_a_coco_file_that_contradicts_itself(tmp_path, categories, boxes, message):
    with pytest.raises(ValueError, match=message):
        coco(**coco_file(tmp_path, categories, boxes))


@pytest.mark.parametrize("train", [True, False])
def test_labelled_images_without_any_box(train):
    image = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * 2
    nothing, broken = {"boxes": [], "labels": []}, {"boxes": [[3, 3, 3, 3]], "labels": [1]}
    for targets in ([nothing, nothing], [nothing, None]):
        with pytest.raises(ValueError, match="labelled images has a box"):
            DetectionData(["a", "b"], targets, ["cat"], train=train, images=image)
    with (
        pytest.warns(UserWarning, match="broken"),
        pytest.raises(ValueError, match="none of the 2 labelled images has a box"),
    ):
        DetectionData(["a", "b"], [nothing, broken], ["cat"], train=train, images=image)
    assert len(DetectionData(["a", "b"], [None, None], ["cat"], train=train, images=image)) == 2
