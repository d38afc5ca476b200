"""Images with boxes: counts and boxes against the files, views against the pixels, and messages for
what is wrong.
"""

import json
import math
import os
import pickle
import random
import time
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from kdtasks.classification.data import digits as digit_images
from kdtasks.detection import data
from kdtasks.detection.data import DetectionData, synthetic
from kdtasks.engine.loader import Loader

BCCD = Path(os.environ.get("KDTASKS_DATA") or "data") / "bccd"
real = pytest.mark.skipif(
    not BCCD.is_dir(), reason="KDTASKS_DATA has no bccd: python ../shared/data/unpack.py DATA_ROOT"
)
quiet = pytest.mark.filterwarnings("ignore:left out")
# left, upper, right, lower edge of the red block in `photo`
BLOCK = (10, 20, 30, 50)


def photo(height=60, width=80, block=BLOCK):
    """Gray noise with one red block, whose place a test can find again in any view."""
    pixels = (
        np.random.default_rng(0).integers(0, 100, (height, width, 1), dtype=np.uint8).repeat(3, 2)
    )
    pixels[block[1] : block[3], block[0] : block[2]] = 255, 0, 0
    return pixels


def block_in(image):
    """The edges of the red block, as a float tensor (1,4)."""
    down, across = ((image[0] > 0.7) & (image[1] < 0.3)).nonzero().T
    return torch.tensor([[across.min(), down.min(), across.max() + 1, down.max() + 1]]).float()


def write_coco(folder, **changes):
    """Five photos: two boxes and a crowd; none; one beyond the edge, one outside; a crowd alone;
    one without width.
    """
    (folder / "images").mkdir(exist_ok=True)
    for i in range(5):
        Image.fromarray(photo()).save(folder / "images" / f"{i}.png")
    things = [
        (70, [10, 20, 20, 30], 0, 7, 450.5),
        (70, [0, 0, 5.5, 8], 0, 90, 44),
        (70, [40, 0, 40, 60], 1, 7, 2000),
        (72, [70, 50, 20, 20], 0, 3, 400),
        (72, [100, 10, 5, 5], 0, 3, 25),
        (73, [0, 0, 80, 60], 1, 3, 4800),
        (74, [10, 10, 0, 9], 0, 3, 0),
    ]
    content = {
        "images": [
            {"id": 70 + i, "file_name": f"{i}.png", "height": 60, "width": 80} for i in range(5)
        ],
        "categories": [
            {"id": 90, "name": "cat"},
            {"id": 3, "name": "yak"},
            {"id": 7, "name": "bee"},
        ],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "bbox": box,
                "iscrowd": crowd,
                "category_id": category,
                "area": area,
            }
            for i, (image, box, crowd, category, area) in enumerate(things)
        ],
    } | changes
    (folder / "boxes.json").write_text(
        json.dumps({name: part for name, part in content.items() if part is not None})
    )
    return folder / "images", folder / "boxes.json"


def write_voc(root, objects, split="train", size=(60, 80)):
    """Images ``a``, ``b``, …, each with the objects ``(name, (xmin, ymin, xmax, ymax), difficult)``
    of its row.
    """
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for name, row in zip("abcdef", objects):
        Image.fromarray(photo()).save(root / "JPEGImages" / f"{name}.png")
        things = "".join(
            f"<object><name>{thing}</name><difficult>{difficult}</difficult><bndbox>"
            + "".join(
                f"<{side}>{v}</{side}>" for side, v in zip(("xmin", "ymin", "xmax", "ymax"), box)
            )
            + "</bndbox></object>"
            for thing, box, difficult in row
        )
        shape = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>" if size else ""
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation>{shape}{things}</annotation>"
        )
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text(
        "".join(f"{name}\n" for name in "abcdef"[: len(objects)])
    )
    return root


def one_photo(tmp_path, n=1, **settings):
    """``n`` times the same photo with the box of its block."""
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    target = {"boxes": [BLOCK], "labels": [1]}
    return DetectionData([tmp_path / "photo.png"] * n, [target] * n, ["block"], **settings)


def boxes_of(dataset):
    return [
        None if (target := dataset[i]["target"]) is None else target["boxes"].tolist()
        for i in range(len(dataset))
    ]


# Real data ----------------------------------------------------------------------------------------


@real
@quiet
def test_bccd_has_the_published_counts_and_the_boxes_of_its_files():
    sets = {split: data.bccd(split=split, augment=None) for split in ("train", "val", "test")}
    assert {split: len(dataset) for split, dataset in sets.items()} == {
        "train": 205,
        "val": 87,
        "test": 72,
    }
    count = sum(torch.bincount(dataset.labels, minlength=4) for dataset in sets.values()).tolist()
    assert sum(count) == 4888 - 2 and count[0] == 0 and count[2:] == [372, 361]
    assert sets["train"].classes == ["RBC", "WBC", "Platelets"]
    assert (
        len(data.bccd()) == 205
        and len(data.bccd(train=False)) == 72
        and len(data.bccd(split="trainval")) == 292
    )
    for i in (0, 100, 204):
        tree = ElementTree.parse(BCCD / "Annotations" / (Path(sets["train"].path(i)).stem + ".xml"))
        written = [[float(side.text) for side in box] for box in tree.iter("bndbox")]
        sample = sets["train"][i]
        assert (
            sample["input"].shape == data.bccd.image_shape
            and sample["target"]["boxes"].tolist() == written
        )
        assert [sets["train"].classes[k - 1] for k in sample["target"]["labels"]] == [
            n.text for n in tree.iterfind("object/name")
        ]


@real
def test_bccd_warns_once_of_each_box_without_area():
    with pytest.warns(UserWarning) as caught:
        data.bccd(split="trainval")
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "left out 2 broken of 3943 boxes" in message
    assert "BloodImage_00338.jpg box 12 [504, 337, 504, 337] (no area)" in message
    assert "BloodImage_00343.jpg box 3 [181, 329, 181, 329] (no area)" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.bccd(train=False)


@real
@quiet
def test_a_sample_in_memory_takes_less_than_a_millisecond():
    dataset = data.bccd(size=(120, 160))
    for i in range(20):
        dataset[i]
    seconds = []
    for i in range(100):
        begun = time.perf_counter()
        dataset[i % 20]
        seconds.append(time.perf_counter() - begun)
    assert sorted(seconds)[50] < 1e-3  # about 0.11 ms


# COCO ---------------------------------------------------------------------------------------------


def test_coco_training_has_no_crowd_and_test_marks_it(tmp_path):
    files = write_coco(tmp_path)
    with pytest.warns(UserWarning, match="left out 2 broken of 5 boxes") as caught:
        train = data.coco(*files, augment=None)
    assert len(caught) == 1 and "2.png box 1 [100, 10, 105, 15] (outside of the image)" in str(
        caught[0].message
    )
    assert "4.png box 0 [10, 10, 10, 19] (no area)" in str(caught[0].message)
    # ids 3, 7, 90
    assert train.classes == ["yak", "bee", "cat"] and train.target.tolist() == [0] * 5
    assert boxes_of(train) == [[[10, 20, 30, 50], [0, 0, 5.5, 8]], [], [[70, 50, 80, 60]], [], []]
    first = train[0]["target"]
    assert (
        first["labels"].tolist() == [2, 3]
        and first["area"].tolist() == [450.5, 44]
        and first["iscrowd"].tolist() == [0, 0]
    )
    assert train[1]["target"]["boxes"].shape == (0, 4)
    assert {name: value.dtype for name, value in train[1]["target"].items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "area": torch.float32,
        "iscrowd": torch.uint8,
        "scale": torch.float32,
    }
    with pytest.warns(UserWarning, match="2 broken of 7"):
        test = data.coco(*files, train=False, keep_empty=False)
    assert len(test) == 5 and test.augment is None
    assert test[0]["target"]["iscrowd"].tolist() == [0, 0, 1] and test[3]["target"][
        "iscrowd"
    ].tolist() == [1]


@quiet
def test_coco_can_leave_out_empty_images_in_training(tmp_path):
    full, kept = (
        data.coco(*write_coco(tmp_path), augment=None, keep_empty=keep) for keep in (True, False)
    )
    assert [Path(kept.path(i)).name for i in range(len(kept))] == ["0.png", "2.png"]
    assert boxes_of(kept) == [boxes_of(full)[0], boxes_of(full)[2]] and len(kept.target) == 2


@quiet
def test_coco_without_annotations_is_unlabelled_and_without_sizes_asks_the_files(tmp_path):
    dataset = data.coco(*write_coco(tmp_path, annotations=None))
    assert dataset.target.tolist() == [-100] * 5 and dataset[0]["target"] is None
    bare = [{"id": 70 + i, "file_name": f"{i}.png"} for i in range(5)]
    assert boxes_of(data.coco(*write_coco(tmp_path, images=bare), augment=None))[2] == [
        [70, 50, 80, 60]
    ]


def test_a_warning_names_five_broken_boxes_and_counts_the_others():
    boxes = [
        [math.nan, 0, 5, 5],
        [0, 0, math.inf, 5],
        [5, 5, 5, 9],
        [9, 9, 5, 5],
        [-9, -9, 0, 0],
        [0, 0, 9, 0],
        [1, 1, 9, 9],
    ]
    target = {"boxes": boxes, "labels": [1] * 7}
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    with pytest.warns(UserWarning, match=r"left out 6 broken of 7 boxes: .*and 1 more") as caught:
        dataset = DetectionData(["one.png"], [target], ["x"], augment=None, images=[image])
    message = str(caught[0].message)
    assert (
        message.count("one.png box") == 5
        and message.count("not finite") == 2
        and message.count("no area") == 2
    )
    assert boxes_of(dataset) == [[[1, 1, 9, 9]]]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"annotations": [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}]},
            "annotation 5 belongs to image 1, which",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 70, "category_id": 4, "bbox": [0, 0, 1, 1]}]},
            "category 4; there are [3, 7, 90]",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 70, "category_id": 3, "bbox": [0, 0]}]},
            "bbox must be [left, top, width, height]",
        ),
        ({"categories": None, "categoris": []}, "has no 'categories': did you mean 'categoris'?"),
        ({"images": [{"id": 1, "file_name": "0.png"}] * 2}, "two images have the same id"),
    ],
)
def test_a_wrong_json_says_what_is_wrong(tmp_path, change, message):
    with pytest.raises(ValueError) as error:
        data.coco(*write_coco(tmp_path, **change))
    assert message in str(error.value) and "boxes.json" in str(error.value)


def test_coco_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setenv("KDTASKS_DATA", str(tmp_path / "nowhere"))
    images, annotations = write_coco(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"nowhere/coco/train2017.*KDTASKS_DATA.*root=<path>"
    ):
        data.coco2017()
    with pytest.raises(FileNotFoundError, match="annotations=<path>"):
        data.coco(images, "other.json")
    with pytest.raises(
        FileNotFoundError,
        match=r"names the image .*0\.png, which is not there; "
        r"pass images=",
    ):
        data.coco(tmp_path, annotations)
    annotations.write_text("{")
    with pytest.raises(ValueError, match=r"boxes\.json is not a json file"):
        data.coco(images, annotations)


@quiet
def test_the_standard_layouts_below_the_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("KDTASKS_DATA", str(tmp_path))
    images, annotations = write_coco(tmp_path)
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    images.rename(tmp_path / "coco" / "val2017")
    annotations.rename(tmp_path / "coco" / "annotations" / "instances_val2017.json")
    assert len(data.coco2017(train=False)) == 5
    rows = [[("dog", (1, 1, 80, 60), 0), ("person", (11, 21, 30, 50), 1)]]
    for year, split in (("VOC2007", "trainval"), ("VOC2012", "trainval"), ("VOC2007", "test")):
        write_voc(tmp_path / "VOCdevkit" / year, rows, split)
    train, test = data.voc0712(augment=None), data.voc0712(train=False)
    assert (
        len(train) == 2
        and len(test) == 1
        and train.classes == list(data.VOC_CLASSES)
        and len(data.VOC_CLASSES) == 20
    )
    # pixels 1..80 become edges 0..80
    assert boxes_of(train) == [[[0, 0, 80, 60]]] * 2
    assert boxes_of(test) == [[[0, 0, 80, 60], [10, 20, 30, 50]]]
    assert test[0]["target"]["iscrowd"].tolist() == [0, 1] and test[0]["target"][
        "labels"
    ].tolist() == [12, 15]
    with pytest.raises(FileNotFoundError, match=r"elsewhere/VOC2007 nor at .*root=<path>"):
        data.voc0712(root="elsewhere")


# Pascal VOC ---------------------------------------------------------------------------------------


def test_voc_numbers_the_names_it_finds(tmp_path):
    root = write_voc(tmp_path / "mine", [[("wolf", BLOCK, 0)], [("elk", BLOCK, 1)], []])
    train = data.voc(root, "train", augment=None)
    # edges, as drawn
    assert train.classes == ["elk", "wolf"] and boxes_of(train) == [[list(BLOCK)], [], []]
    assert train[0]["target"]["labels"].tolist() == [2]
    assert data.voc(root, "train", train=False)[1]["target"]["iscrowd"].tolist() == [1]
    shifted = data.voc(root, "train", ["wolf", "elk"], inclusive=True, augment=None)
    assert boxes_of(shifted)[0] == [[9, 19, 30, 50]] and shifted.classes == ["wolf", "elk"]
    assert len(data.voc(root, "train", keep_empty=False)) == 1


def test_voc_errors_name_the_file_and_the_nearest(tmp_path):
    root = write_voc(tmp_path / "mine", [[("wolff", BLOCK, 0)]])
    with pytest.raises(ValueError, match=r"a\.xml: unknown class 'wolff': did you mean 'wolf'\?"):
        data.voc(root, "train", ["elk", "wolf"])
    with pytest.raises(FileNotFoundError, match=r"trian\.txt: did you mean 'train'\?"):
        data.voc(root, "trian")
    (root / "ImageSets" / "Main" / "more.txt").write_text("a\nb\n")
    with pytest.raises(FileNotFoundError, match=r"more\.txt names 'b'"):
        data.voc(root, "more")
    Image.fromarray(photo()).save(root / "JPEGImages" / "b.png")
    with pytest.raises(FileNotFoundError, match=r"no annotation .*b\.xml"):
        data.voc(root, "more")
    (root / "Annotations" / "b.xml").write_text(
        "<annotation><object><name>wolff</name></object></annotation>"
    )
    with pytest.raises(ValueError, match=r"b\.xml: .*no xmin"):
        data.voc(root, "more")
    (root / "Annotations" / "b.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"b\.xml cannot be read"):
        data.voc(root, "more")
    with pytest.raises(FileNotFoundError, match="no folder .*JPEGImages.*Expected layout"):
        data.voc(tmp_path, "train")


def test_an_annotation_of_another_image_is_an_error_and_a_turned_photo_is_not(tmp_path):
    root = write_voc(tmp_path / "mine", [[("wolf", BLOCK, 0)]], size=(80, 60))
    with pytest.raises(
        RuntimeError,
        match=r"a\.png: ValueError: the annotation is of an image of "
        r"80 x 60.*file has 60 x 80",
    ):
        next(iter(Loader(data.voc(root, "train"), 1, collate=DetectionData.collate)))
    held = Image.Exif()
    # orientation: turned by 90 degrees
    held[0x0112] = 6
    Image.fromarray(photo()).save(root / "JPEGImages" / "a.png", exif=held)
    assert data.voc(root, "train")[0]["input"].shape == (3, 80, 60)
    unsized = write_voc(tmp_path / "unsized", [[("wolf", (70, 50, 90, 90), 0)]], size=None)
    assert boxes_of(data.voc(unsized, "train", augment=None)) == [[[70, 50, 80, 60]]]


# Views --------------------------------------------------------------------------------------------


def test_a_flip_moves_box_and_pixels_alike(tmp_path):
    dataset = one_photo(tmp_path, 200)
    torch.manual_seed(0)
    samples = [dataset[i] for i in range(200)]
    flipped = [sample for sample in samples if sample["target"]["boxes"][0, 0] != BLOCK[0]]
    assert 70 < len(flipped) < 130
    for sample in (samples[0], flipped[0], flipped[-1]):
        assert torch.equal(block_in(sample["input"]), sample["target"]["boxes"])
    assert flipped[0]["target"]["boxes"].tolist() == [[50, 20, 70, 50]]
    pixels = torch.from_numpy(photo()).permute(2, 0, 1).float() / 255
    assert torch.equal(flipped[0]["input"], pixels.flip(2))
    assert not one_photo(tmp_path, train=False).augment and one_photo(tmp_path, augment=None)[0][
        "input"
    ].equal(pixels)


def test_a_sample_is_its_own_copy(tmp_path):
    dataset = one_photo(tmp_path, augment=None, size=(60, 80))
    for part in (sample := dataset[0])["target"].values():
        part.zero_()
    sample["input"].zero_()
    again = dataset[0]
    assert again["target"]["boxes"].tolist() == [list(BLOCK)] and again["target"][
        "labels"
    ].tolist() == [1]
    assert again["input"].max() == 1


@pytest.mark.parametrize("size", [(30, 40), (120, 80), (60, 20)])
def test_size_stretches_image_boxes_area_and_says_how(tmp_path, size):
    sample = one_photo(tmp_path, augment=None, size=size)[0]
    down, across = size[0] / 60, size[1] / 80
    target = sample["target"]
    assert sample["input"].shape == (3, *size) and sample["input"].dtype == torch.float32
    assert torch.equal(target["scale"], torch.tensor([across, down]))
    torch.testing.assert_close(
        target["boxes"] / target["scale"].repeat(2), torch.tensor([BLOCK]).float()
    )
    torch.testing.assert_close(
        target["area"], (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1)
    )
    assert (block_in(sample["input"]) - target["boxes"]).abs().max() <= 1


def test_images_with_a_size_are_decoded_once(tmp_path):
    for settings, kept in (
        ({"size": (30, 40)}, True),
        ({}, False),
        ({"in_memory": True}, True),
        ({"size": (30, 40), "in_memory": False}, False),
    ):
        dataset = one_photo(tmp_path, augment=None, **settings)
        first = dataset[0]
        (tmp_path / "photo.png").unlink()
        if kept:
            assert torch.equal(dataset[0]["input"], first["input"])
        else:
            with pytest.raises(FileNotFoundError):
                dataset[0]


def test_a_list_of_transforms(tmp_path):
    dataset = one_photo(
        tmp_path,
        augment=[v2.RandomHorizontalFlip(1.0), v2.Resize((120, 160)), v2.CenterCrop((120, 100))],
    )
    sample = dataset[0]
    target = sample["target"]
    assert type(sample["input"]) is type(target["boxes"]) is torch.Tensor and sample[
        "input"
    ].shape == (3, 120, 100)
    # 70..110, cut
    assert target["boxes"].tolist() == [[70, 40, 100, 100]] and target["area"].tolist() == [30 * 60]
    assert target["labels"].tolist() == [1] and target["scale"].tolist() == [1, 1]
    assert sample["input"].min() >= 0 and sample["input"].max() == 1
    gone = one_photo(tmp_path, augment=[v2.RandomHorizontalFlip(1.0), v2.CenterCrop((60, 20))])[0][
        "target"
    ]
    assert gone["boxes"].shape == (0, 4) and gone["labels"].shape == gone["iscrowd"].shape == gone[
        "area"
    ].shape == (0,)


def test_transforms_follow_torchs_generator_and_take_unlabelled_samples(tmp_path):
    recipe = [
        v2.RandomIoUCrop(),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.2),
        v2.SanitizeBoundingBoxes(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    dataset = one_photo(tmp_path, 2, augment=recipe)
    views = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        views.append(dataset[0])
    assert (
        torch.equal(views[0]["input"], views[1]["input"])
        and views[0]["input"].dtype == torch.float32
    )
    assert torch.equal(views[0]["target"]["boxes"], views[1]["target"]["boxes"])
    assert views[0]["input"].shape != views[2]["input"].shape or not torch.equal(
        views[0]["input"], views[2]["input"]
    )
    sample = data.unlabelled(tmp_path, like=dataset)[0]
    assert sample["target"] is None and sample["input"].shape[0] == 3


def kornia_transforms():
    return pytest.importorskip(
        "kornia.augmentation", reason="needs kornia: pip install 'kdtasks[augment]'"
    )


@pytest.mark.parametrize(
    "recipe, expected",
    [
        (lambda K: [K.RandomHorizontalFlip(p=1.0)], [50, 20, 70, 50]),
        (lambda K: [K.RandomVerticalFlip(p=1.0)], [10, 10, 30, 40]),
        (lambda K: [K.RandomRotation90((1, 1), p=1.0), K.RandomInvert(p=0.0)], None),
        (lambda K: [K.CenterCrop((40, 50)), K.RandomHorizontalFlip(p=1.0)], [35, 10, 50, 40]),
        (lambda K: [K.RandomCrop((60, 80), padding=9)], None),
        (lambda K: [K.Resize((120, 160), align_corners=False)], [20, 40, 60, 100]),
    ],
)
def test_boxes_move_with_kornias_transforms(tmp_path, recipe, expected):
    dataset = one_photo(tmp_path, augment=recipe(kornia_transforms()), size=(60, 80))
    torch.manual_seed(0)
    sample = dataset[0]
    target = sample["target"]
    assert (block_in(sample["input"]) - target["boxes"]).abs().max() <= 1e-3
    if expected:
        torch.testing.assert_close(target["boxes"], torch.tensor([expected]).float())
    torch.testing.assert_close(
        target["area"], (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1)
    )
    assert target["labels"].tolist() == [1] and target["scale"].tolist() == [1, 1]
    assert type(sample["input"]) is type(target["boxes"]) is torch.Tensor


def test_kornias_views_of_photos_and_what_leaves_them(tmp_path):
    K = kornia_transforms()
    recipe = [K.RandomResizedCrop((40, 40)), K.RandomHorizontalFlip(), K.ColorJitter(0.1, p=1.0)]
    dataset = one_photo(tmp_path, 30, augment=recipe)
    loaded = [
        {
            int(i): (image, target["boxes"])
            for batch in Loader(dataset, size, seed=1, workers=workers, drop_last=False)
            for i, image, target in zip(batch["index"], batch["input"], batch["target"])
        }
        for size, workers in ((1, 0), (15, 2))
    ]
    counts = set()
    for i, (image, boxes) in loaded[0].items():
        assert torch.equal(image, loaded[1][i][0]) and torch.equal(boxes, loaded[1][i][1])
        assert boxes.min() >= 0 and boxes.max() <= 40 if len(boxes) else True
        counts.add(len(boxes))
    # where the crop does not show the block, its box is gone
    assert counts == {0, 1}
    assert data.unlabelled(tmp_path, like=dataset)[0]["target"] is None
    assert one_photo(tmp_path, augment=recipe, train=False).augment is None
    with pytest.raises(
        ValueError, match="RandomElasticTransform bends the image, and boxes cannot follow"
    ):
        one_photo(tmp_path, augment=[K.RandomElasticTransform()])
    with pytest.raises(TypeError, match="expected a 2D transform of kornia.* got Resize"):
        one_photo(tmp_path, augment=[K.RandomInvert(), v2.Resize(9)])


def test_what_a_data_set_refuses(tmp_path):
    for settings, message in (
        ({"size": 120}, r"size must be \(height, width\)"),
        ({"augment": "flipp"}, "did you mean 'flip'"),
        ({"augment": {"flip": True}}, "augment must be 'flip', None, or a list"),
        ({"sizes": [(1, 1), (2, 2)]}, "1 paths, but 2 sizes"),
    ):
        with pytest.raises(ValueError, match=message):
            one_photo(tmp_path, **settings)
    for target, message in (
        (
            {"boxes": [BLOCK], "labels": [2]},
            r"photo\.png: a label is in "
            r"1\.\.1",
        ),
        (
            {"boxes": [BLOCK], "labels": [1, 1]},
            r"photo\.png: expected boxes "
            r"\(2,4\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            DetectionData([tmp_path / "photo.png"], [target], ["block"])
    (tmp_path / "photo.png").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match=r"cannot read image .*photo\.png"):
        DetectionData([tmp_path / "photo.png"], [{"boxes": [BLOCK], "labels": [1]}], ["block"])


# Unlabelled ---------------------------------------------------------------------------------------


def test_unlabelled_images_of_a_folder(tmp_path):
    labelled = one_photo(tmp_path, size=(30, 40))
    (tmp_path / "wild" / "deep").mkdir(parents=True)
    for i, shape in enumerate([(20, 30), (50, 10)]):
        # gray
        Image.fromarray(photo(*shape, (0, 0, 5, 5))[..., 0]).save(
            tmp_path / "wild" / "deep" / f"{i}.png"
        )
    wild = data.unlabelled(tmp_path / "wild", like=labelled)
    assert (
        wild.classes == ["block"] and wild.target.tolist() == [-100, -100] and wild.size == (30, 40)
    )
    assert wild[1]["target"] is None and wild[1]["input"].shape == (3, 30, 40)
    assert data.unlabelled(tmp_path / "wild", classes=["x"], limit=1)[0]["input"].shape == (
        3,
        20,
        30,
    )
    both = data.with_unlabelled(labelled, wild)
    assert (
        both.target.tolist() == [0, -100, -100]
        and both.path(2) == wild.path(1)
        and len(labelled) == 1
    )
    assert [both[i]["target"] is None for i in range(3)] == [False, True, True]
    assert data.with_unlabelled(labelled, labelled)[1]["target"] is None
    with pytest.raises(ValueError, match=r"size=\(30, 40\) and size=None"):
        data.with_unlabelled(labelled, one_photo(tmp_path))
    with pytest.raises(ValueError, match="needs like=<data set>, or else classes="):
        data.unlabelled(tmp_path / "wild")
    with pytest.raises(ValueError, match="come from `like`"):
        data.unlabelled(tmp_path / "wild", like=labelled, size=(1, 1))
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match="no image below"):
        data.unlabelled(tmp_path / "bare", classes=["x"])


def test_few_labels_are_always_the_same_and_nested():
    full = data.digits_on_photos(images=40, size=48)
    torch.manual_seed(0)
    few = data.few_labels(full, 10)
    torch.manual_seed(1)
    random.seed(5)
    again, more, other = (
        data.few_labels(full, *arguments) for arguments in ((10,), (20,), (10, 1))
    )
    kept = few.target == 0
    assert (
        kept.sum() == 10
        and torch.equal(few.target, again.target)
        and not torch.equal(few.target, other.target)
    )
    assert (more.target[kept] == 0).all() and (full.target == 0).all()
    assert [few[i]["target"] is not None for i in range(40)] == kept.tolist()
    i = int(kept.nonzero()[3])
    assert torch.equal(few[i]["target"]["boxes"], full[i]["target"]["boxes"])
    assert data.few_labels(more, 5).target.eq(0).sum() == 5
    for count in (0, 11):
        with pytest.raises(ValueError, match="at least 1 and at most 10"):
            data.few_labels(few, count)


@pytest.mark.parametrize("workers", [0, 2])
def test_through_the_loader_with_unlabelled_rows(workers):
    few = data.few_labels(data.digits_on_photos(images=30, size=48, augment="flip"), 6)
    loader = Loader(
        few, 5, unlabelled_per_batch=3, labelled="target", collate=few.collate, workers=workers
    )
    batches = list(loader.epoch(0)) + list(loader.epoch(1))
    assert len(loader) == 3
    for batch in batches:
        assert batch["labelled"].tolist() == [True] * 2 + [False] * 3
        assert [target is None for target in batch["target"]] == [False] * 2 + [True] * 3
        assert all(image.shape == (3, 48, 48) for image in batch["input"])
    direct = next(
        Loader(few, 5, unlabelled_per_batch=3, labelled="target", collate=few.collate).epoch(
            1, start=2
        )
    )
    assert all(map(torch.equal, direct["input"], batches[-1]["input"]))
    assert all(
        torch.equal(a["boxes"], b["boxes"])
        for a, b in zip(direct["target"][:2], batches[-1]["target"][:2])
    )


# Digits on photos ---------------------------------------------------------------------------------


def test_digits_on_photos_follow_from_seed_and_index():
    first = data.digits_on_photos(images=30, size=64)
    torch.manual_seed(7)
    longer = data.digits_on_photos(images=40, size=64)
    assert len(data.digits_on_photos(train=False, size=32)) == 200 and len(longer) == 40
    assert first.augment is None and first.classes == [str(d) for d in range(10)]
    for i in range(30):
        a, b = first[i], longer[i]
        assert torch.equal(a["input"], b["input"]) and all(
            torch.equal(a["target"][k], b["target"][k]) for k in a["target"]
        )
    for other in (
        data.digits_on_photos(images=30, size=64, seed=1),
        data.digits_on_photos(False, images=30, size=64),
    ):
        assert not any(torch.equal(first[i]["input"], other[i]["input"]) for i in range(30))
    assert not np.intersect1d(
        synthetic._numbers(0, 30, 9, True), synthetic._numbers(0, 30, 9, False)
    ).size
    assert first[0]["input"].shape == (3, 64, 64) and data.digits_on_photos.image_shape == (
        3,
        96,
        96,
    )


def test_boxes_hold_exactly_what_a_digit_changes():
    dataset = data.digits_on_photos(images=40, objects=(1, 1))
    numbers = synthetic._numbers(0, 40, 5 + 7 + 2 * synthetic._TRIES, True)
    for i in range(40):
        before = torch.from_numpy(synthetic._window(numbers[i, :4], 96, True).copy()).permute(
            2, 0, 1
        )
        down, across = (dataset.memory[i] != before).any(0).nonzero().T
        changed = torch.tensor([across.min(), down.min(), across.max() + 1, down.max() + 1])
        # a faint edge may round to no change
        assert (changed - dataset[i]["target"]["boxes"][0]).abs().max() <= 1
        assert 0.2 * 96 <= changed[3] - changed[1] <= 0.51 * 96


def test_the_edge_of_a_digit_can_be_seen():
    for image in digit_images().images[:50, 0]:
        ink = synthetic._enlarged(image.numpy().astype(np.float32) / 255, 40, 33)
        assert ink[ink > 0].min() >= 0.1 and ink.max() == 1
        assert all(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))


def test_digits_do_not_hide_each_other_and_all_classes_come():
    dataset = data.digits_on_photos(images=100, classes=4, objects=(2, 6))
    counts = []
    for i in range(100):
        target = dataset[i]["target"]
        boxes = target["boxes"].tolist()
        assert all(synthetic._shared(a, b) <= 0.1 for n, a in enumerate(boxes) for b in boxes[:n])
        assert all(
            0 <= left < right <= 96 and 0 <= upper < lower <= 96
            for left, upper, right, lower in boxes
        )
        counts.append(len(boxes))
    assert torch.bincount(dataset.labels, minlength=5)[1:].min() > 20 and dataset.labels.max() == 4
    assert max(counts) >= 5 and min(counts) >= 1


def test_test_digits_and_test_photos_are_none_of_the_trainings():
    train, test = (
        {image.numpy().tobytes() for image in digit_images(part).images} for part in (True, False)
    )
    assert (len(train), len(test)) == (1258, 539) and not train & test
    from sklearn.datasets import load_sample_images

    for photo_, left, right in zip(
        load_sample_images().images, synthetic._photos(True), synthetic._photos(False)
    ):
        assert left.shape[1] + right.shape[1] == photo_.shape[1] == 640
        assert np.array_equal(np.concatenate([left, right], 1), photo_)


def test_digits_on_photos_are_made_quickly():
    # imports scikit-learn, decodes the photos
    data.digits_on_photos(images=1, size=128)
    begun = time.perf_counter()
    data.digits_on_photos(images=600, size=128)
    assert time.perf_counter() - begun < 3  # about 0.2 s


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": 300}, r"size must be in \[32, 240\]"),
        ({"classes": 11}, "classes"),
        ({"images": 0}, "images"),
        ({"objects": (3, 2)}, "least <= largest"),
    ],
)
def test_digits_on_photos_say_what_they_cannot(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.digits_on_photos(**arguments)


def test_a_data_set_travels_to_another_process(tmp_path):
    dataset = one_photo(tmp_path, 3, size=(30, 40))
    copy = pickle.loads(pickle.dumps(dataset))
    assert (
        len(copy) == 3
        and copy[0]["target"]["boxes"].shape == (1, 4)
        and copy.path(0) == dataset.path(0)
    )


def test_pixels_of_sixteen_bits_are_scaled_and_not_cut(tmp_path):
    deep = np.linspace(0, 65000, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    found = data.unlabelled(tmp_path, classes=["a"], augment=None)[0]["input"].numpy()
    assert abs(found - deep / 65535).max() < 0.51 / 255


def test_a_transform_in_place_does_not_reach_the_image_that_is_kept():
    def black(image, sample):
        return image.fill_(0), sample

    kept = data.digits_on_photos(images=2, size=64, augment=[black])
    before = kept.memory[0].clone()
    assert kept[0]["input"].max() == 0 and torch.equal(kept.memory[0], before)


def test_the_turn_that_a_camera_noted_counts_with_and_without_labels(tmp_path):

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    box = {"boxes": [[1, 2, 30, 50]], "labels": [1]}
    sizes = {
        tuple(DetectionData([tmp_path / "a.jpg"], [target], ["a"], augment=None)[0]["input"].shape)
        for target in (None, box)
    }
    assert sizes == {(3, 60, 40)}


def test_a_list_of_one_class_is_no_split(tmp_path):
    folder = tmp_path / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for other in ("JPEGImages", "Annotations"):
        (tmp_path / other).mkdir()
    (folder / "cat_train.txt").write_text("000001  1\n000002 -1\n")
    with pytest.raises(ValueError, match="lists one class"):
        data.voc(tmp_path, "cat_train", classes=["cat"])


def test_coco_entries_that_lack_something_are_named(tmp_path):
    import json

    def refused(words, **changes):
        content = {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 8}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}],
        } | changes
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=words):
            data.coco(tmp_path, tmp_path / "a.json")

    refused(
        "annotation 7: bbox must be",
        annotations=[{"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, None, 4]}],
    )
    refused("one of its images has no 'file_name'", images=[{"id": 1}])
    refused(
        "two categories have the same id",
        categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}],
    )
