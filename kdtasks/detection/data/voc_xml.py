"""Pascal VOC's folders, VOC 2007 and 2012, and BCCD."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from kdtasks.core.names import did_you_mean
from kdtasks.detection.data.data_set import DetectionData, locate
from kdtasks.images.listing import is_hidden, is_image

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
BCCD_CLASSES = ("RBC", "WBC", "Platelets")
_VOC_LAYOUT = (
    "<root>/JPEGImages/<name>.jpg, <root>/Annotations/<name>.xml, <root>/ImageSets/Main/<split>.txt"
)


def voc(
    root: str | Path,
    split: str,
    classes: Sequence[str] | None = None,
    train: bool | None = None,
    inclusive: bool | None = None,
    size: Sequence[int] | None = None,
    in_memory: bool | None = None,
    augment: str | Sequence[Callable] | None = "flip",
    keep_empty: bool = True,
    skip_bad: bool = False,
) -> DetectionData:
    """Pascal VOC's folders: ``JPEGImages/``, ``Annotations/*.xml`` and
    ``ImageSets/Main/<split>.txt``.

    An object with ``difficult`` = 1 is left out in training and has ``iscrowd=1`` in the test:
    COCO's evaluation then counts a detection on it neither as right nor as wrong, as VOC's own does
    (but it may excuse several detections, and by the share of the detection that the object covers,
    where VOC asks for their intersection over union).

    Args:
        root: the folder of those three.
        split: name of the list of images, without ``.txt``.
        classes: their order numbers the labels from 1 on; None: VOC's twenty if the folder is
            called VOC…, or else all names in ``Annotations``, sorted.
        train: as for :func:`coco`, whatever ``split`` is called; a config says it by itself. None:
            whether ``split`` begins with 'train'.
        inclusive: the numbers in the file are the first and the last pixel, counted from 1, as
            VOC's own are, so the box is [xmin - 1, ymin - 1, xmax, ymax]; or (False) edges, which
            most drawing tools write, and the box is as it stands. None: whether the folder is
            called VOC….
        size, in_memory, augment, keep_empty, skip_bad: see :class:`DetectionData`.

    Raises:
        FileNotFoundError: no such folder, list of images, image or annotation.
        ValueError: an annotation names an unknown class or cannot be read; says which.
    """
    train = split.startswith("train") if train is None else train
    parts = [(locate(root, "root", _VOC_LAYOUT), split)]
    return _voc(
        parts, classes, inclusive, train, size, in_memory, augment, keep_empty, None, skip_bad
    )


def _voc(
    parts: Sequence[tuple[Path, str]],
    classes: Sequence[str] | None,
    inclusive: bool | None,
    *settings: object,
) -> DetectionData:
    """The images of all ``parts``, (folder, split) each; ``settings`` from ``train`` on, as for
    :class:`DetectionData`.
    """
    for folder in (
        root / part for root, _ in parts for part in ("JPEGImages", "Annotations", "ImageSets/Main")
    ):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}. Expected layout: {_VOC_LAYOUT}")
    original = all(root.resolve().name.startswith("VOC") for root, _ in parts)
    if classes is None:
        classes = VOC_CLASSES if original else _class_names(parts[0][0] / "Annotations")
    inclusive = original if inclusive is None else inclusive
    paths, targets, sizes = [], [], []
    for root, split in parts:
        files = {
            path.stem: path
            for path in sorted((root / "JPEGImages").iterdir())
            if is_image(path.name)
        }
        for name in _listed(root, split):
            if name not in files:
                raise FileNotFoundError(
                    f"{split}.txt names {name!r}, which {root / 'JPEGImages'} lacks: "
                    f"{did_you_mean(name, files)}"
                )
            target, size = _annotation(root / "Annotations" / f"{name}.xml", classes, inclusive)
            paths.append(files[name])
            targets.append(target)
            sizes.append(size)
    return DetectionData(paths, targets, classes, sizes, *settings)


def _listed(root: Path, split: str) -> list[str]:
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        splits = sorted(path.stem for path in file.parent.glob("*.txt"))
        raise FileNotFoundError(f"no list of images {file}: {did_you_mean(split, splits)}")
    # of files, decoded as theirs are
    names = os.fsdecode(file.read_bytes())
    rows = [line.strip() for line in names.splitlines() if line.strip()]
    flags = [row.rpartition(" ")[2] in ("-1", "0", "1") and " " in row for row in rows]
    if rows and all(flags):
        raise ValueError(
            f"{file} lists one class, with 1 and -1 behind the names: expected a list of all "
            "images, as 'trainval'"
        )
    return rows


def _tree(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _class_names(folder: Path) -> list[str]:
    return sorted(
        {
            name.text.strip()
            for file in folder.glob("*.xml")
            if not is_hidden(file.name)
            for name in _tree(file).iterfind("object/name")
        }
    )


def _annotation(
    file: Path, classes: Sequence[str], inclusive: bool
) -> tuple[dict, tuple[int, int] | None]:
    """The target, and (height, width), None if the file does not tell."""
    if not file.is_file():
        raise FileNotFoundError(f"no annotation {file}")
    tree, target = _tree(file), {"boxes": [], "labels": [], "iscrowd": []}
    try:
        for element in tree.iterfind("object"):
            name = element.findtext("name", "").strip()
            if name not in classes:
                raise ValueError(f"unknown class {name!r}: {did_you_mean(name, classes)}")
            box = [
                float(element.findtext(f"bndbox/{side}", f"no {side}"))
                for side in ("xmin", "ymin", "xmax", "ymax")
            ]
            target["boxes"].append([box[0] - inclusive, box[1] - inclusive, *box[2:]])
            target["labels"].append(classes.index(name) + 1)
            target["iscrowd"].append(element.findtext("difficult", "0").strip() == "1")
        size = (
            int(float(tree.findtext("size/height", "0"))),
            int(float(tree.findtext("size/width", "0"))),
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return target, size if min(size) > 0 else None


def bccd(
    train: bool = True,
    split: str | None = None,
    root: str | Path = "bccd",
    size: Sequence[int] | None = None,
    in_memory: bool | None = None,
    augment: str | Sequence[Callable] | None = "flip",
    keep_empty: bool = True,
    skip_bad: bool = False,
) -> DetectionData:
    """BCCD: 364 photos of blood cells, 480x640, with 4,888 boxes in 3 classes; 205 for training, 87
    for validation, 72 for the test. One box of the training and one of the validation images have
    no area, which a warning tells.

    Args:
        train: whether ``augment`` and ``keep_empty`` apply.
        split: ``'train'``, ``'val'``, ``'trainval'`` or ``'test'``; None: ``'train'`` or
            ``'test'``.
        root: the folder, in Pascal VOC's layout.
        size, in_memory, augment, keep_empty, skip_bad: see :class:`DetectionData`.

    Raises:
        FileNotFoundError: it is not there, or has no such split.
    """
    split = split or ("train" if train else "test")
    return voc(
        root, split, BCCD_CLASSES, train, False, size, in_memory, augment, keep_empty, skip_bad
    )


def voc0712(
    train: bool = True,
    root: str | Path = "VOCdevkit",
    size: Sequence[int] | None = None,
    in_memory: bool | None = None,
    augment: str | Sequence[Callable] | None = "flip",
    keep_empty: bool = True,
    skip_bad: bool = False,
) -> DetectionData:
    """Pascal VOC, 20 classes: the training and validation images of 2007 and 2012 together, or
    2007's test.

    Args:
        train: which of the two.
        root: the folder of ``VOC2007/`` and ``VOC2012/``.
        size, in_memory, augment, keep_empty, skip_bad: see :class:`DetectionData`.

    Raises:
        FileNotFoundError: it is not there.
    """
    years = {"VOC2007": "trainval", "VOC2012": "trainval"} if train else {"VOC2007": "test"}
    parts = [
        (
            locate(
                Path(root) / year,
                "root",
                f"<root>/{' and <root>/'.join(years)}, each with {_VOC_LAYOUT}",
            ),
            split,
        )
        for year, split in years.items()
    ]
    return _voc(
        parts, VOC_CLASSES, True, train, size, in_memory, augment, keep_empty, None, skip_bad
    )


# what --dry-run needs to know without reading
voc.image_shape, voc0712.image_shape = (3, 600, 600), (3, 600, 600)
bccd.image_shape = (3, 480, 640)
