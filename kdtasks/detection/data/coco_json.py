"""COCO's json files and COCO 2017."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kdtasks.core.names import did_you_mean
from kdtasks.detection.data.data_set import DetectionData, locate


def coco(
    images: str | Path,
    annotations: str | Path,
    train: bool = True,
    size: Sequence[int] | None = None,
    in_memory: bool | None = None,
    augment: str | Sequence[Callable] | None = "flip",
    keep_empty: bool = True,
    skip_bad: bool = False,
) -> DetectionData:
    """A folder of images with a json file of COCO's "object detection" format; pycocotools is not
    needed.

    The categories become the labels 1..K in the order of their ids, gaps closed. A json file
    without ``annotations`` (COCO's unlabelled images) gives unlabelled samples.

    Args:
        images: the folder that the file names in the json are relative to.
        annotations: the json file.
        train: whether crowd boxes (``iscrowd=1``) are left out, and ``augment`` and ``keep_empty``
            apply.
        size, in_memory, augment, keep_empty, skip_bad: see :class:`DetectionData`.

    Raises:
        FileNotFoundError: no such folder or file, or the folder lacks the first image.
        ValueError: not such a json file; says what is wrong.
    """
    folder = locate(images, "images", "the folder of the images that the json names")
    file = locate(
        annotations,
        "annotations",
        "a json file with images, annotations and categories, as COCO's instances_*.json",
    )
    content = _parsed(file)
    categories = _sorted_categories(content, file)
    targets = {image["id"]: None for image in content["images"]}
    if "annotations" in content:
        numbers = {category["id"]: label for label, category in enumerate(categories, 1)}
        _sort_in(content["annotations"], targets, numbers, file)
    paths = [os.path.join(folder, _file_name(image["file_name"])) for image in content["images"]]
    if paths and not os.path.exists(paths[0]) and not skip_bad:
        raise FileNotFoundError(
            f"{file} names the image {paths[0]}, which is not there; pass images=<its folder>"
        )
    sizes = [_size(image) for image in content["images"]]
    return DetectionData(
        paths,
        list(targets.values()),
        [c["name"] for c in categories],
        sizes,
        train,
        size,
        in_memory,
        augment,
        keep_empty,
        skip_bad=skip_bad,
    )


def _sorted_categories(content: dict, file: Path) -> list[dict]:
    try:
        return sorted(content["categories"], key=lambda category: category["id"])
    except TypeError as error:
        ids = [category["id"] for category in content["categories"]]
        raise ValueError(
            f"{file}: some ids of its categories are numbers, others texts: {ids!r:.200}"
        ) from error


def _size(image: dict) -> tuple[int, int] | None:
    """(height, width), if the json tells."""
    is_told = image.get("height") and image.get("width")
    return (image["height"], image["width"]) if is_told else None


def _file_name(name: str) -> str:
    """A name that is UTF-8 on the disk, as it must be written where the locale is another."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def _parsed(file: Path) -> dict:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not a json file: {error}") from error
    for name in ("images", "categories"):
        if not isinstance(content, dict) or name not in content:
            raise ValueError(
                f"{file} has no {name!r}: "
                f"{did_you_mean(name, content if isinstance(content, dict) else ())}"
            )
    for name, field in (("images", "file_name"), ("categories", "name")):
        for entry in content[name]:
            missing = [key for key in ("id", field) if key not in entry]
            if missing:
                raise ValueError(f"{file}: one of its {name} has no {missing[0]!r}: {entry}")
        if len({entry["id"] for entry in content[name]}) < len(content[name]):
            raise ValueError(f"{file}: two {name} have the same id")
    names = [category["name"] for category in content["categories"]]
    for k, name in enumerate(names):
        if name in names[:k]:
            ids = [category["id"] for category in content["categories"] if category["name"] == name]
            raise ValueError(
                f"{file}: the categories {ids[0]!r} and {ids[1]!r} are both called "
                f"{name!r}: rename one, or merge them"
            )
    return content


def _sort_in(annotations: Sequence[dict], targets: dict, number: dict, file: Path) -> None:
    """Puts each annotation into the target of its image; ``number`` is category id -> label."""
    for image in targets:
        targets[image] = {"boxes": [], "labels": [], "iscrowd": [], "area": []}
    for annotation in annotations:
        entry = f"{file}: annotation {annotation.get('id')!r}"
        if annotation.get("image_id") not in targets:
            raise ValueError(
                f"{entry} belongs to image {annotation.get('image_id')!r}, which the file does not "
                "list" + _other_type(annotation.get("image_id"), targets)
            )
        if annotation.get("category_id") not in number:
            raise ValueError(
                f"{entry} has category {annotation.get('category_id')!r}; there are "
                f"{list(number)}" + _other_type(annotation.get("category_id"), number)
            )
        box = annotation.get("bbox")
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(isinstance(value, int | float) for value in box)
        ):
            raise ValueError(f"{entry}: bbox must be [left, top, width, height], got {box!r}")
        left, top, width, height = box
        target = targets[annotation["image_id"]]
        target["boxes"].append([left, top, left + width, top + height])
        target["labels"].append(number[annotation["category_id"]])
        target["iscrowd"].append(bool(annotation.get("iscrowd", 0)))
        target["area"].append(annotation.get("area", float("nan")))


def _other_type(value: object, ids: Iterable) -> str:
    """What to say where an id is a text here and a number there."""
    twin = next((entry for entry in ids if str(entry) == str(value)), None)
    return (
        ""
        if twin is None
        else f": it has {twin!r}, a {type(twin).__name__}, not a {type(value).__name__}"
    )


def coco2017(
    train: bool = True,
    root: str | Path = "coco",
    size: Sequence[int] | None = None,
    in_memory: bool | None = None,
    augment: str | Sequence[Callable] | None = "flip",
    keep_empty: bool = True,
    skip_bad: bool = False,
) -> DetectionData:
    """COCO 2017: the training images, or those of the validation set, which is what everyone tests
    on; 80 classes.

    Args:
        train: ``train2017`` or ``val2017``.
        root: the folder of ``train2017/``, ``val2017/`` and
            ``annotations/instances_{train,val}2017.json``.
        size, in_memory, augment, keep_empty, skip_bad: see :class:`DetectionData`.

    Raises:
        FileNotFoundError: it is not there.
    """
    split = "train2017" if train else "val2017"
    layout = f"<root>/{split}/*.jpg and <root>/annotations/instances_{split}.json"
    images, annotations = (
        locate(Path(root) / part, "root", layout)
        for part in (split, f"annotations/instances_{split}.json")
    )
    return coco(images, annotations, train, size, in_memory, augment, keep_empty, skip_bad)


# what --dry-run needs to know without reading
coco.image_shape, coco2017.image_shape = (3, 800, 800), (3, 800, 800)
