"""Images with boxes: COCO's json, Pascal VOC's folders, images without labels, and a set that needs no download.

All functions return :class:`DetectionData`. A path is taken as it stands, or else below
:func:`kdtasks.general.data.data_root` (the environment variable KDTASKS_DATA).
"""

import copy
import functools
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from kdtasks.core.classes import UNLABELLED, class_numbers, counted
from kdtasks.core.names import did_you_mean
from kdtasks.core.views import view_hash
from kdtasks.general.data import data_root
from kdtasks.general.data import digits as digit_images
from kdtasks.images.files import SUFFIXES, image_size, images_below, is_hidden, is_image, read_image

_FEW, _SCATTER = 0x2A, 0x2B                                                     # salts of view_hash; _SCATTER + 1: test
_THIN = 0.01                                                                    # pixels; a thinner box has no area
_NAMED = 5                                                                      # broken boxes that a warning names
_TRIES, _OVERLAP = 10, 0.1                                                      # places tried; share of the smaller box

VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
               "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
BCCD_CLASSES = ("RBC", "WBC", "Platelets")
_VOC_LAYOUT = "<root>/JPEGImages/<name>.jpg, <root>/Annotations/<name>.xml, <root>/ImageSets/Main/<split>.txt"


class DetectionData:
    """A map-style data set of images with boxes. A sample is a dict:

    - ``input``: float32 (3,H,W) in [0,1];
    - ``target``: None if the sample is unlabelled, or else a dict of ``boxes`` float32 (n,4), the left, upper, right, lower
      edge in pixels of this image; ``labels`` int64 (n,), 1..K (0 is torchvision's background); ``area`` float32 (n,) in
      pixels of this image, the annotation's own where it has one; ``iscrowd`` uint8 (n,); ``scale`` float32 (2,), pixels of
      this image per original pixel, across and down.

    **Crowds.** Training data has no crowd boxes. Test data keeps them with ``iscrowd=1``, and COCO's evaluation then counts a
    detection there neither as right nor as wrong.

    **Broken boxes** (no area, outside of the image, not finite) are left out, with one warning that names them; what reaches
    beyond the image is cut off.

    **Random views** come from torch's generator, which the Loader sets for each sample.

    **Files** are read as :func:`~kdtasks.images.files.read_image` says. The boxes of a photo whose camera was held otherwise
    (EXIF) are of the pixels as stored if the annotation names the stored size, as COCO's own tools have it, or else, and where
    it names no size, of the upright image. A warning says so once where the size is the same either way.

    Args:
        paths: (N,) image files; without ``images`` they are read.
        targets: (N,), None = unlabelled, or a dict of ``boxes`` (n,4) as above, in original pixels, ``labels`` (n,), and
            perhaps ``iscrowd`` and ``area`` (n,); lists, arrays or tensors.
        classes: K names; label k is ``classes[k - 1]``.
        sizes: (N,) original (height, width), or None where unknown; None: the labelled files are asked.
        train: crowd boxes are left out, and ``augment`` and ``keep_empty`` apply.
        size: (height, width) that every image is resized to, whatever its aspect ratio, when it is first read.
        in_memory: keep decoded images, uint8, in this process (each worker of a Loader keeps its own); None: if ``size``.
        augment: ``'flip'``, mirrored left to right with probability 1/2; None; or a list of torchvision.transforms.v2, called
            one after the other with (tv_tensors.Image uint8, dict(boxes=tv_tensors.BoundingBoxes, labels=…)). Then boxes
            are cut at the edges, those under 1 pixel left out, ``area`` is the boxes', and ``scale`` still that of ``size``.
        keep_empty: False leaves out labelled images that have no box.
        images: (N,) decoded images, uint8 (3,H,W), instead of files.
        skip_bad: leave out files whose size has to be asked and cannot be read, with a warning; the Loader does so with the
            others (``data.skip_bad``).

    Attributes:
        classes, paths, size, augment: as given; ``augment`` None in the test.
        target: int64 (N,), 0 = labelled, -100 = unlabelled.

    Raises:
        ValueError: numbers of things that do not fit, labelled images of which none has a box, a label outside 1..K, an unknown
            ``augment``, a wrong ``size``.
        RuntimeError: (the size of) an image cannot be read.
    """

    def __init__(self, paths: Sequence, targets: Sequence[dict | None], classes: Sequence[str],
                 sizes: Sequence | None = None, train: bool = True, size: Sequence[int] | None = None,
                 in_memory: bool | None = None, augment: str | Sequence[Callable] | None = "flip", keep_empty: bool = True,
                 images: Sequence[Tensor] | None = None, skip_bad: bool = False):
        self.size = None if size is None else _checked_size(size)
        self.in_memory = size is not None if in_memory is None else in_memory
        self.augment = _checked_augment(augment) if train else None
        self.classes, self.paths = list(classes), [str(path) for path in paths]
        n = len(self.paths)
        for what, values in (("targets", targets), ("sizes", sizes), ("images", images)):
            if values is not None and len(values) != n:
                raise ValueError(f"{n} paths, but {len(values)} {what}")
        self.memory = [None] * n if images is None else list(images)
        sizes = [None if image is None else image.shape[-2:] for image in self.memory] if sizes is None else sizes
        self.unreadable: dict[str, str] = {}
        self.sizes = [self._file_size(path, skip_bad) if size is None and target is not None else size and tuple(map(int, size))
                      for path, target, size in zip(self.paths, targets, sizes)]
        if self.unreadable:
            targets = self._without_unreadable(targets)
        self.target = torch.tensor([UNLABELLED if target is None else 0 for target in targets], dtype=torch.int64)
        self._take_boxes(targets, train)
        labelled = int((self.target != UNLABELLED).sum())
        if labelled and not len(self.boxes):
            raise ValueError(f"none of the {labelled} labelled images has a box that counts: nothing to learn or to test")
        if train and not keep_empty:
            self._leave_out_empty()

    def _file_size(self, path: str, skip_bad: bool) -> tuple[int, int] | None:
        try:
            return _file_size(path)
        except RuntimeError as error:
            if not skip_bad:
                raise
            self.unreadable[path] = str(error.__cause__)
            return None

    def _without_unreadable(self, targets: Sequence[dict | None]) -> list[dict | None]:
        path, why = next(iter(self.unreadable.items()))
        warnings.warn(f"left out {len(self.unreadable)} unreadable of {len(self.paths)} images: {path}: {why}", stacklevel=3)
        kept = [i for i, path in enumerate(self.paths) if path not in self.unreadable]
        self.paths, self.sizes, self.memory, targets = ([values[i] for i in kept] for values in (
            self.paths, self.sizes, self.memory, targets))
        return targets

    def _take_boxes(self, targets: Sequence[dict | None], train: bool) -> None:
        """All boxes in one tensor each: of 100,000 images, that many small ones would cost every worker their memory."""
        boxes, labels, crowd, area, image = _flat(targets, len(self.classes), self.paths)
        limit = np.array([size or (0, 0) for size in self.sizes], dtype=np.float64).reshape(-1, 2)[:, ::-1]
        edge = np.tile(limit, 2)[image]                                                          # (M,4) width, height, twice
        cut = np.clip(boxes, 0, edge)
        finite = np.isfinite(boxes).all(1)
        good = finite & (cut[:, 2:] - cut[:, :2] >= _THIN).all(1)
        relevant = ~(train & crowd)
        self._warn_of(np.flatnonzero(~good & relevant), boxes, finite, image, int(relevant.sum()))
        kept = good & relevant
        boxes, image = cut[kept], image[kept]
        area = np.where(np.isfinite(area[kept]), area[kept], (boxes[:, 2:] - boxes[:, :2]).prod(1))
        self.boxes, self.area = torch.from_numpy(boxes).float(), torch.from_numpy(area).float()
        self.labels, self.crowd = torch.from_numpy(labels[kept]), torch.from_numpy(crowd[kept]).to(torch.uint8)
        self.start = [0, *np.bincount(image, minlength=len(self)).cumsum().tolist()]    # image i has boxes start[i]:start[i+1]

    def _warn_of(self, broken: np.ndarray, boxes: np.ndarray, finite: np.ndarray, image: np.ndarray, count: int) -> None:
        if not len(broken):
            return
        named = []
        for b in broken[:_NAMED].tolist():
            why = ("not finite" if not finite[b] else "outside of the image" if (boxes[b, 2:] - boxes[b, :2] >= _THIN).all()
                   else "no area")
            number = b - int(np.searchsorted(image, image[b]))
            corners = ", ".join(f"{value:g}" for value in boxes[b])
            named.append(f"{os.path.basename(self.paths[image[b]])} box {number} [{corners}] ({why})")
        more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        warnings.warn(f"left out {len(broken)} broken of {count} boxes: {'; '.join(named)}{more}", stacklevel=4)

    def _leave_out_empty(self) -> None:
        """Empty images have no box, so the boxes stay as they are."""
        kept = [i for i in range(len(self)) if self.target[i] == UNLABELLED or self.start[i] < self.start[i + 1]]
        self.start = [0, *(self.start[i + 1] for i in kept)]
        self.target = self.target[kept]
        self.paths, self.sizes, self.memory = ([values[i] for i in kept] for values in (self.paths, self.sizes, self.memory))

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return self.paths[index]

    def with_classes(self, names: Sequence[str], drop: bool = False) -> "DetectionData":
        """The same images, their classes numbered as in ``names``; boxes of others are left out where ``drop`` says so.

        See :func:`kdtasks.core.classes.class_numbers`.
        """
        numbers = class_numbers(self.classes, names, counted(self.labels - 1, len(self.classes)), drop)
        other, labels = copy.copy(self), numbers[self.labels - 1] + 1
        kept = labels > 0
        before = [0, *kept.cumsum(0).tolist()]                                      # boxes that stay, before each
        other.start = [before[at] for at in self.start]
        other.boxes, other.area, other.crowd = self.boxes[kept], self.area[kept], self.crowd[kept]
        other.classes, other.labels = list(names), labels[kept]
        return other

    def __getitem__(self, index: int) -> dict:
        image = self._image(index)
        target = None if self.target[index] == UNLABELLED else self._target(index, image.shape[-2:])
        if self.augment == "flip":
            image, target = _maybe_flipped(image, target)
        elif self.augment:
            image, target = _transformed(image, target, self.augment)
        return {"input": image if image.is_floating_point() else image.float().div_(255), "target": target}

    def _image(self, index: int) -> Tensor:
        """uint8 (3,H,W); also notes the original size of an unlabelled one."""
        image = self.memory[index]
        if image is None:
            image, self.sizes[index] = _read(self.paths[index], self.sizes[index], self.size)
            if self.in_memory:
                self.memory[index] = image
        return image

    def _target(self, index: int, size: Sequence[int]) -> dict[str, Tensor]:
        own = slice(self.start[index], self.start[index + 1])
        across, down = size[1] / self.sizes[index][1], size[0] / self.sizes[index][0]
        return {"boxes": self.boxes[own] * torch.tensor([across, down, across, down]), "labels": self.labels[own].clone(),
                "area": self.area[own] * (across * down), "iscrowd": self.crowd[own].clone(),
                "scale": torch.tensor([across, down])}

    @staticmethod
    def collate(samples: list[dict]) -> dict[str, list]:
        """Samples -> ``dict(input=[(3,H,W), …], target=[dict or None, …])``, the lists that torchvision's detectors take."""
        return {name: [sample[name] for sample in samples] for name in ("input", "target")}


def _checked_size(size) -> tuple[int, int]:
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(v, int) and v > 0 for v in size):
        raise ValueError(f"size must be (height, width) in pixels, got {size!r}")
    return tuple(size)


def _checked_augment(augment):
    if augment is None or augment == "flip":
        return augment
    if isinstance(augment, str):
        raise ValueError(f"unknown augment {augment!r}: {did_you_mean(augment, ['flip'])}, or pass None or a list of "
                         f"torchvision.transforms.v2")
    if not isinstance(augment, list | tuple) or not all(map(callable, augment)):
        raise ValueError(f"augment must be 'flip', None, or a list of torchvision.transforms.v2, got {augment!r}")
    return list(augment)


def _flat(targets: Sequence[dict | None], classes: int, paths: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Boxes (M,4), labels, crowd, area (NaN where not given), image number; (M,) each."""
    columns = [], [], [], [], []
    for i, target in enumerate(targets):
        if target is None or not len(target["labels"]):
            continue
        labels = np.asarray(target["labels"], dtype=np.int64)
        n, boxes = len(labels), np.asarray(target["boxes"], dtype=np.float64)
        crowd = np.asarray(target.get("iscrowd", [0] * n), dtype=bool)
        area = np.asarray(target.get("area", [np.nan] * n), dtype=np.float64)
        if boxes.shape != (n, 4) or not labels.shape == crowd.shape == area.shape == (n,):
            raise ValueError(f"{paths[i]}: expected boxes ({n},4) and labels, iscrowd, area ({n},), got {boxes.shape}, "
                             f"{labels.shape}, {crowd.shape}, {area.shape}")
        if not 1 <= labels.min() <= labels.max() <= classes:
            raise ValueError(f"{paths[i]}: a label is in 1..{classes} (0 is the background), got {labels.tolist()}")
        for column, values in zip(columns, (boxes, labels, crowd, area, np.full(n, i))):
            column.append(values)
    if not columns[0]:
        return np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64)
    return tuple(map(np.concatenate, columns))


def _file_size(path: str) -> tuple[int, int]:
    """(height, width) from the head of an image file, after the turn that its camera noted."""
    try:
        return image_size(path)
    except Exception as error:
        raise RuntimeError(f"cannot read image {path}: {error}") from error


def _read(path: str, annotated: tuple[int, int] | None, size: tuple[int, int] | None) -> tuple[Tensor, tuple[int, int]]:
    """An image, uint8 (3,H,W), and its original (height, width).

    The camera's note on how it was held is followed if the annotation does not contradict it.
    """
    from PIL import Image

    image = read_image(path, annotated=annotated)
    original = image.height, image.width
    if annotated not in (None, original):
        raise ValueError(f"the annotation is of an image of {annotated[0]} x {annotated[1]} (height x width), "
                         f"the file has {original[0]} x {original[1]}")
    if size not in (None, original):
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)                          # antialiased when it shrinks
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), original


def _maybe_flipped(image: Tensor, target: dict | None) -> tuple[Tensor, dict | None]:
    if torch.rand(()) >= 0.5:
        return image, target
    if target is not None:
        boxes = target["boxes"]                                                                 # a tensor of this sample alone
        boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    return image.flip(-1), target


def _transformed(image: Tensor, target: dict | None, transforms: Sequence[Callable]) -> tuple[Tensor, dict | None]:
    """A training sample through torchvision's transforms; an unlabelled one goes with no box, which some of them need."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as F

    boxes, labels = (target["boxes"], target["labels"]) if target else (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    image = tv_tensors.Image(image.clone())                                # a transform in place must not reach what is kept
    sample = {"boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(image.shape[-2:])), "labels": labels}
    for transform in transforms:
        image, sample = transform(image, sample)
    image = F.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor)
    if target is None:
        return image, None
    boxes = F.clamp_bounding_boxes(F.convert_bounding_box_format(sample["boxes"], new_format="XYXY"))
    boxes, good = F.sanitize_bounding_boxes(boxes)
    boxes = boxes.as_subclass(Tensor)
    return image, {"boxes": boxes, "labels": sample["labels"][good], "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
                   "iscrowd": torch.zeros(len(boxes), dtype=torch.uint8), "scale": target["scale"]}


def _there(path, argument: str, layout: str) -> Path:
    """``path`` as it stands or below :func:`data_root`, whichever exists."""
    looked = list(dict.fromkeys((Path(path), data_root() / path)))
    for place in looked:
        if place.exists():
            return place
    raise FileNotFoundError(f"nothing at {' nor at '.join(map(str, looked))}. Set the environment variable KDTASKS_DATA to the "
                            f"folder that holds it, or pass {argument}=<path>. Expected layout: {layout}")


# COCO -----------------------------------------------------------------------------------------------------------------

def coco(images, annotations, train: bool = True, size: Sequence[int] | None = None, in_memory: bool | None = None,
         augment: str | Sequence[Callable] | None = "flip", keep_empty: bool = True, skip_bad: bool = False) -> DetectionData:
    """A folder of images with a json file of COCO's "object detection" format; pycocotools is not needed.

    The categories become the labels 1..K in the order of their ids, gaps closed. A json file without ``annotations`` (COCO's
    unlabelled images) gives unlabelled samples.

    Args:
        images: the folder that the file names in the json are relative to.
        annotations: the json file.
        train: whether crowd boxes (``iscrowd=1``) are left out, and ``augment`` and ``keep_empty`` apply.
        size, in_memory, augment, keep_empty, skip_bad: see :class:`DetectionData`.

    Raises:
        FileNotFoundError: no such folder or file, or the folder lacks the first image.
        ValueError: not such a json file; says what is wrong.
    """
    folder = _there(images, "images", "the folder of the images that the json names")
    file = _there(annotations, "annotations", "a json file with images, annotations and categories, as COCO's instances_*.json")
    content = _parsed(file)
    try:
        categories = sorted(content["categories"], key=lambda category: category["id"])
    except TypeError as error:
        ids = [category["id"] for category in content["categories"]]
        raise ValueError(f"{file}: some ids of its categories are numbers, others texts: {ids!r:.200}") from error
    targets = {image["id"]: None for image in content["images"]}
    if "annotations" in content:
        _sort_in(content["annotations"], targets, {c["id"]: label for label, c in enumerate(categories, 1)}, file)
    paths = [os.path.join(folder, _file_name(image["file_name"])) for image in content["images"]]
    if paths and not os.path.exists(paths[0]) and not skip_bad:
        raise FileNotFoundError(f"{file} names the image {paths[0]}, which is not there; pass images=<its folder>")
    sizes = [(image["height"], image["width"]) if image.get("height") and image.get("width") else None
             for image in content["images"]]
    return DetectionData(paths, list(targets.values()), [c["name"] for c in categories], sizes, train, size, in_memory,
                         augment, keep_empty, skip_bad=skip_bad)


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
            raise ValueError(f"{file} has no {name!r}: {did_you_mean(name, content if isinstance(content, dict) else ())}")
    for name, what in (("images", "file_name"), ("categories", "name")):
        for entry in content[name]:
            lacks = [key for key in ("id", what) if key not in entry]
            if lacks:
                raise ValueError(f"{file}: one of its {name} has no {lacks[0]!r}: {entry}")
        if len({entry["id"] for entry in content[name]}) < len(content[name]):
            raise ValueError(f"{file}: two {name} have the same id")
    names = [category["name"] for category in content["categories"]]
    for k, name in enumerate(names):
        if name in names[:k]:
            ids = [category["id"] for category in content["categories"] if category["name"] == name]
            raise ValueError(f"{file}: the categories {ids[0]!r} and {ids[1]!r} are both called {name!r}: rename one, or merge "
                             "them")
    return content


def _sort_in(annotations: Sequence[dict], targets: dict, number: dict, file: Path) -> None:
    """Puts each annotation into the target of its image; ``number`` is category id -> label."""
    for image in targets:
        targets[image] = {"boxes": [], "labels": [], "iscrowd": [], "area": []}
    for annotation in annotations:
        where = f"{file}: annotation {annotation.get('id')!r}"
        if annotation.get("image_id") not in targets:
            raise ValueError(f"{where} belongs to image {annotation.get('image_id')!r}, which the file does not list"
                             + _other_type(annotation.get("image_id"), targets))
        if annotation.get("category_id") not in number:
            raise ValueError(f"{where} has category {annotation.get('category_id')!r}; there are {list(number)}"
                             + _other_type(annotation.get("category_id"), number))
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            raise ValueError(f"{where}: bbox must be [left, top, width, height], got {box!r}")
        left, top, width, height = box
        target = targets[annotation["image_id"]]
        target["boxes"].append([left, top, left + width, top + height])
        target["labels"].append(number[annotation["category_id"]])
        target["iscrowd"].append(bool(annotation.get("iscrowd", 0)))
        target["area"].append(annotation.get("area", float("nan")))


def _other_type(value, known) -> str:
    """What to say where an id is a text here and a number there."""
    same = next((one for one in known if str(one) == str(value)), None)
    return "" if same is None else f": it has {same!r}, a {type(same).__name__}, not a {type(value).__name__}"


def coco2017(train: bool = True, root="coco", size: Sequence[int] | None = None, in_memory: bool | None = None,
             augment: str | Sequence[Callable] | None = "flip", keep_empty: bool = True,
             skip_bad: bool = False) -> DetectionData:
    """COCO 2017: the training images, or those of the validation set, which is what everyone tests on; 80 classes.

    Args:
        train: ``train2017`` or ``val2017``.
        root: the folder of ``train2017/``, ``val2017/`` and ``annotations/instances_{train,val}2017.json``.
        size, in_memory, augment, keep_empty, skip_bad: see :class:`DetectionData`.

    Raises:
        FileNotFoundError: it is not there.
    """
    split = "train2017" if train else "val2017"
    layout = f"<root>/{split}/*.jpg and <root>/annotations/instances_{split}.json"
    images, annotations = (_there(Path(root) / part, "root", layout) for part in (split, f"annotations/instances_{split}.json"))
    return coco(images, annotations, train, size, in_memory, augment, keep_empty, skip_bad)


# Pascal VOC -----------------------------------------------------------------------------------------------------------

def voc(root, split: str, classes: Sequence[str] | None = None, train: bool | None = None, inclusive: bool | None = None,
        size: Sequence[int] | None = None, in_memory: bool | None = None, augment: str | Sequence[Callable] | None = "flip",
        keep_empty: bool = True, skip_bad: bool = False) -> DetectionData:
    """Pascal VOC's folders: ``JPEGImages/``, ``Annotations/*.xml`` and ``ImageSets/Main/<split>.txt``.

    An object with ``difficult`` = 1 is left out in training and has ``iscrowd=1`` in the test: COCO's evaluation then counts
    a detection on it neither as right nor as wrong, as VOC's own does (but it may excuse several detections, and by the share
    of the detection that the object covers, where VOC asks for their intersection over union).

    Args:
        root: the folder of those three.
        split: name of the list of images, without ``.txt``.
        classes: their order numbers the labels from 1 on; None: VOC's twenty if the folder is called VOC…, or else all names in
            ``Annotations``, sorted.
        train: as for :func:`coco`, whatever ``split`` is called; a config says it by itself. None: whether ``split`` begins
            with 'train'.
        inclusive: the numbers in the file are the first and the last pixel, counted from 1, as VOC's own are, so the box is
            [xmin - 1, ymin - 1, xmax, ymax]; or (False) edges, which most drawing tools write, and the box is as it stands.
            None: whether the folder is called VOC….
        size, in_memory, augment, keep_empty, skip_bad: see :class:`DetectionData`.

    Raises:
        FileNotFoundError: no such folder, list of images, image or annotation.
        ValueError: an annotation names an unknown class or cannot be read; says which.
    """
    train = split.startswith("train") if train is None else train
    parts = [(_there(root, "root", _VOC_LAYOUT), split)]
    return _voc(parts, classes, inclusive, train, size, in_memory, augment, keep_empty, None, skip_bad)


def _voc(parts: Sequence[tuple[Path, str]], classes: Sequence[str] | None, inclusive: bool | None, *settings) -> DetectionData:
    """The images of all ``parts``, (folder, split) each; ``settings`` from ``train`` on, as for :class:`DetectionData`."""
    for folder in (root / part for root, _ in parts for part in ("JPEGImages", "Annotations", "ImageSets/Main")):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}. Expected layout: {_VOC_LAYOUT}")
    original = all(root.resolve().name.startswith("VOC") for root, _ in parts)
    if classes is None:
        classes = VOC_CLASSES if original else _class_names(parts[0][0] / "Annotations")
    inclusive = original if inclusive is None else inclusive
    paths, targets, sizes = [], [], []
    for root, split in parts:
        files = {path.stem: path for path in sorted((root / "JPEGImages").iterdir()) if is_image(path.name)}
        for name in _listed(root, split):
            if name not in files:
                raise FileNotFoundError(f"{split}.txt names {name!r}, which {root / 'JPEGImages'} lacks: "
                                        f"{did_you_mean(name, files)}")
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
    names = os.fsdecode(file.read_bytes())                                  # of files, decoded as theirs are
    rows = [line.strip() for line in names.splitlines() if line.strip()]
    flags = [row.rpartition(" ")[2] in ("-1", "0", "1") and " " in row for row in rows]
    if rows and all(flags):
        raise ValueError(f"{file} lists one class, with 1 and -1 behind the names: expected a list of all images, as "
                         "'trainval'")
    return rows


def _tree(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _class_names(folder: Path) -> list[str]:
    return sorted({name.text.strip() for file in folder.glob("*.xml") if not is_hidden(file.name)
                   for name in _tree(file).iterfind("object/name")})


def _annotation(file: Path, classes: Sequence[str], inclusive: bool) -> tuple[dict, tuple[int, int] | None]:
    """The target, and (height, width), None if the file does not tell."""
    if not file.is_file():
        raise FileNotFoundError(f"no annotation {file}")
    tree, target = _tree(file), {"boxes": [], "labels": [], "iscrowd": []}
    try:
        for thing in tree.iterfind("object"):
            name = thing.findtext("name", "").strip()
            if name not in classes:
                raise ValueError(f"unknown class {name!r}: {did_you_mean(name, classes)}")
            box = [float(thing.findtext(f"bndbox/{side}", f"no {side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
            target["boxes"].append([box[0] - inclusive, box[1] - inclusive, *box[2:]])
            target["labels"].append(classes.index(name) + 1)
            target["iscrowd"].append(thing.findtext("difficult", "0").strip() == "1")
        size = int(float(tree.findtext("size/height", "0"))), int(float(tree.findtext("size/width", "0")))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return target, size if min(size) > 0 else None


def bccd(train: bool = True, split: str | None = None, root="bccd", size: Sequence[int] | None = None,
         in_memory: bool | None = None, augment: str | Sequence[Callable] | None = "flip",
         keep_empty: bool = True, skip_bad: bool = False) -> DetectionData:
    """BCCD: 364 photos of blood cells, 480x640, with 4,888 boxes in 3 classes; 205 for training, 87 for validation, 72 for the
    test. One box of the training and one of the validation images have no area, which a warning tells.

    Args:
        train: whether ``augment`` and ``keep_empty`` apply.
        split: ``'train'``, ``'val'``, ``'trainval'`` or ``'test'``; None: ``'train'`` or ``'test'``.
        root: the folder, in Pascal VOC's layout.
        size, in_memory, augment, keep_empty, skip_bad: see :class:`DetectionData`.

    Raises:
        FileNotFoundError: it is not there, or has no such split.
    """
    split = split or ("train" if train else "test")
    return voc(root, split, BCCD_CLASSES, train, False, size, in_memory, augment, keep_empty, skip_bad)


def voc0712(train: bool = True, root="VOCdevkit", size: Sequence[int] | None = None, in_memory: bool | None = None,
            augment: str | Sequence[Callable] | None = "flip", keep_empty: bool = True,
            skip_bad: bool = False) -> DetectionData:
    """Pascal VOC, 20 classes: the training and validation images of 2007 and 2012 together, or 2007's test.

    Args:
        train: which of the two.
        root: the folder of ``VOC2007/`` and ``VOC2012/``.
        size, in_memory, augment, keep_empty, skip_bad: see :class:`DetectionData`.

    Raises:
        FileNotFoundError: it is not there.
    """
    years = {"VOC2007": "trainval", "VOC2012": "trainval"} if train else {"VOC2007": "test"}
    parts = [(_there(Path(root) / year, "root", f"<root>/{' and <root>/'.join(years)}, each with {_VOC_LAYOUT}"), split)
             for year, split in years.items()]
    return _voc(parts, VOC_CLASSES, True, train, size, in_memory, augment, keep_empty, None, skip_bad)


# Unlabelled -----------------------------------------------------------------------------------------------------------

def unlabelled(folder, like: DetectionData | None = None, classes: Sequence[str] | None = None,
               size: Sequence[int] | None = None, in_memory: bool | None = None,
               augment: str | Sequence[Callable] | None = "flip", limit: int | None = None,
               train: bool = True) -> DetectionData:
    """All images at any depth below a folder, without labels, in the order of their paths.

    Args:
        folder: where.
        like: a data set whose classes, size, augmentation and use of memory these images take.
        classes, size, in_memory, augment: without ``like``; see :class:`DetectionData`.
        limit: only the first so many.
        train: whether ``augment`` applies.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: both or neither of ``like`` and ``classes``, or ``like`` with what it gives.
    """
    if (like is None) == (classes is None):
        raise ValueError("unlabelled needs like=<data set>, or else classes=<names>")
    if like is not None:
        if not size is in_memory is None or augment != "flip":
            raise ValueError("unlabelled: size, in_memory and augment come from `like`; pass either")
        classes, size, in_memory, augment = like.classes, like.size, like.in_memory, like.augment
    folder = _there(folder, "folder", "<folder>/<any name>.jpg (or .png, .bmp, .webp, …), in folders or not")
    paths = images_below(folder)[:limit]
    if not paths:
        raise FileNotFoundError(f"no image below {folder}; known are {', '.join(sorted(SUFFIXES))}")
    return DetectionData(paths, [None] * len(paths), classes, None, train, size, in_memory, augment)


def few_labels(dataset: DetectionData, images: int, seed: int = 0) -> DetectionData:
    """The same data set, in which only ``images`` of the labelled images keep their label; the others become unlabelled.

    Which ones follows from (seed, index). With the same seed a smaller number gives a subset of a larger one.

    Raises:
        ValueError: ``images`` is below 1, or more than are labelled.
    """
    known = (dataset.target != UNLABELLED).nonzero()[:, 0]
    if not isinstance(images, int):
        raise ValueError(f"images must be a whole number, got {images!r}")
    if not 1 <= images <= len(known):
        raise ValueError(f"images={images}: expected at least 1 and at most {len(known)}, the labelled images there are")
    kept = known[view_hash(seed, known, 0, _FEW).argsort(stable=True)[:images]]
    few = copy.copy(dataset)
    few.target = torch.full_like(dataset.target, UNLABELLED).index_fill_(0, kept, 0)
    return few


def with_unlabelled(dataset: DetectionData, unlabelled: DetectionData) -> DetectionData:
    """``dataset``, and after it the images of ``unlabelled``, whose labels, if they have any, are left out.

    Augmentation and use of memory are those of ``dataset``.

    Raises:
        ValueError: the two differ in ``size``.
    """
    if dataset.size != unlabelled.size:
        raise ValueError(f"size={dataset.size} and size={unlabelled.size} do not go together: "
                         f"unlabelled(folder, like=<data set>) makes them equal")
    both = copy.copy(dataset)
    both.target = torch.cat([dataset.target, torch.full_like(unlabelled.target, UNLABELLED)])
    both.start = dataset.start + [dataset.start[-1]] * len(unlabelled)
    for name in ("paths", "sizes", "memory"):
        setattr(both, name, getattr(dataset, name) + getattr(unlabelled, name))
    return both


# Digits on photos -----------------------------------------------------------------------------------------------------

def digits_on_photos(train: bool = True, images: int | None = None, size: int = 96, classes: int = 10,
                     objects: Sequence[int] = (1, 5), seed: int = 0,
                     augment: str | Sequence[Callable] | None = None) -> DetectionData:
    """Handwritten digits to be found on photos: real digits, real photos, but where and how the digits lie is synthetic.

    Nothing is downloaded: both come with scikit-learn. The digits, 8x8, are enlarged, stretched, tinted and blended over
    windows of two photos, at full and at half size, mirrored or not. Digits and photo regions of the test (the right two
    fifths of each photo) are none of the training's, whatever the seed. Every number follows from (seed, index).

    A digit is about 1/4 to 1/2 of ``size`` high; two boxes share at most a tenth of the smaller one. A box holds exactly the
    pixels that its digit changes.

    Args:
        train: the training or the test images.
        images: how many; None: 600 in training, 200 in the test.
        size: of the square images, 32 to 240 pixels.
        classes: 1 to 10, the digits 0..classes-1.
        objects: the least and the largest number of digits on an image; fewer where no more find a place.
        seed: of the layout.
        augment: see :class:`DetectionData`; by default none, since digits are not mirrored.

    Raises:
        ValueError: an argument outside its range.
    """
    images = (600 if train else 200) if images is None else images
    for name, value, low, high in (("images", images, 1, 10**6), ("size", size, 32, 240), ("classes", classes, 1, 10)):
        if not low <= value <= high:
            raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
    low, high = objects
    if not 0 <= low <= high or not high:
        raise ValueError(f"objects must be (least, largest) with 0 <= least <= largest and largest > 0, got {objects}")
    digits = digit_images(train)
    known = (digits.target < classes).nonzero()[:, 0]
    inks, labels = digits.images[known, 0].numpy().astype(np.float32) / 255, (digits.target[known] + 1).tolist()
    numbers = _numbers(seed, images, 5 + high * (7 + 2 * _TRIES), train)
    pictures, targets = np.empty((images, size, size, 3), np.uint8), []
    for picture, row in zip(pictures, numbers):
        picture[:] = _window(row[:4], size, train)
        count = low + int(row[4] * (high - low + 1))
        targets.append(_scattered(picture, inks, labels, count, iter(row[5:].tolist())))
    pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    paths = [f"digits_on_photos(train={train}, seed={seed}), image {i}" for i in range(images)]
    return DetectionData(paths, targets, [str(d) for d in range(classes)], None, train, (size, size), True, augment,
                         images=pictures.unbind())


def _numbers(seed: int, images: int, count: int, train: bool) -> np.ndarray:
    """(images, count) in [0, 1), each from (seed, image, place in the row)."""
    salt = _SCATTER if train else _SCATTER + 1
    number = view_hash(seed, torch.arange(images)[:, None], torch.arange(count)[None], salt)
    return (number % 2**53).double().div_(2**53).numpy()


@functools.cache
def _photos(train: bool) -> list[np.ndarray]:
    """The regions (h,w,3) of the two photos that belong to one part, at full and at half size."""
    from sklearn.datasets import load_sample_images

    full = [photo[:, :384] if train else photo[:, 384:] for photo in load_sample_images().images]           # 427 x 384 or 256
    even = [photo[:-1].astype(np.float32) for photo in full]
    half = [(p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]) / 4 for p in even]
    return full + [photo.round().astype(np.uint8) for photo in half]


def _window(numbers: Sequence[float], size: int, train: bool) -> np.ndarray:
    """A window (size,size,3) of a photo: which, across, down, mirrored."""
    photos = [photo for photo in _photos(train) if min(photo.shape[:2]) >= size]
    photo = photos[int(numbers[0] * len(photos))]
    left, top = (int(u * (side - size + 1)) for u, side in zip(numbers[1:3], (photo.shape[1], photo.shape[0])))
    window = photo[top:top + size, left:left + size]
    return window[:, ::-1] if numbers[3] < 0.5 else window


def _scattered(picture: np.ndarray, inks: np.ndarray, labels: Sequence[int], count: int, number) -> dict:
    """Blends up to ``count`` digits into ``picture`` (size,size,3); ``number`` gives numbers in [0, 1)."""
    size, boxes, found = len(picture), [], []
    for _ in range(count):
        which, side, aspect, opacity, *tint = (next(number) for _ in range(7))
        which, side = int(which * len(inks)), size * (0.25 + 0.25 * side)
        ink = _enlarged(inks[which], round(side), round(side * (0.8 + 0.4 * aspect)))
        height, width = ink.shape
        for _ in range(_TRIES):
            left, top = int(next(number) * (size - width + 1)), int(next(number) * (size - height + 1))
            box = [left, top, left + width, top + height]
            if all(_shared(box, other) <= _OVERLAP for other in boxes):
                boxes.append(box)
                found.append(labels[which])
                _blend(picture[top:top + height, left:left + width], ink * (0.75 + 0.25 * opacity), np.array(tint))
                break
    return {"boxes": boxes, "labels": found}


@functools.cache
def _interpolation(side: int) -> np.ndarray:
    """(side, 8): linear interpolation between 8 pixel centres, the outer ones continued."""
    at = np.clip((np.arange(side) + 0.5) * 8 / side - 0.5, 0, 7)
    return np.maximum(0, 1 - abs(at[:, None] - np.arange(8))).astype(np.float32)


def _enlarged(digit: np.ndarray, height: int, width: int) -> np.ndarray:
    """A digit (8,8) as opacity in [0,1], enlarged to height x width, then cut to what can be seen of it."""
    ink = np.clip((_interpolation(height) @ digit @ _interpolation(width).T - 0.25) / 0.4, 0, 1)
    ink[ink < 0.1] = 0
    rows, columns = ink.any(1).nonzero()[0], ink.any(0).nonzero()[0]
    return ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def _shared(box: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over the smaller area."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(width, 0) * max(height, 0) / smaller


def _blend(patch: np.ndarray, ink: np.ndarray, tint: np.ndarray) -> None:
    """A dark colour over what is light, a light one over what is dark; ``tint`` (3,) in [0,1)."""
    colour = 90 * tint if patch.mean() > 127 else 255 - 90 * tint
    patch[:] = (patch + ink[..., None] * (colour - patch)).round()


coco.image_shape, coco2017.image_shape = (3, 800, 800), (3, 800, 800)       # what --dry-run needs to know without reading
voc.image_shape, voc0712.image_shape = (3, 600, 600), (3, 600, 600)
bccd.image_shape, digits_on_photos.image_shape = (3, 480, 640), (3, 96, 96)
unlabelled.image_shape = (3, 800, 800)
