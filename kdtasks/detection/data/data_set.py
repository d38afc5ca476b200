"""The data set of images with boxes that every reader of this package returns."""

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtasks.core.classes import UNLABELLED, class_numbers, count_classes
from kdtasks.core.names import did_you_mean
from kdtasks.images.augmentation import KorniaAugmentation, is_kornia, kornia_augmentation
from kdtasks.images.reading import image_size, read_image
from kdtasks.images.roots import data_root

# pixels; a thinner box has no area
_THIN = 0.01
# (height, width) that transforms are tried on where images have sizes of their own
_USUAL = (256, 320)
# broken boxes that a warning names
_NAMED = 5


class DetectionData:
    """A map-style data set of images with boxes. A sample is a dict:

    - ``input``: float32 (3,H,W) in [0,1];
    - ``target``: None if the sample is unlabelled, or else a dict of ``boxes`` float32 (n,4), the
      left, upper, right, lower edge in pixels of this image; ``labels`` int64 (n,), 1..K (0 is
      torchvision's background); ``area`` float32 (n,) in pixels of this image, the annotation's own
      where it has one; ``iscrowd`` uint8 (n,); ``scale`` float32 (2,), pixels of this image per
      original pixel, across and down.

    **Crowds.** Training data has no crowd boxes. Test data keeps them with ``iscrowd=1``, and
    COCO's evaluation then counts a detection there neither as right nor as wrong.

    **Broken boxes** (no area, outside of the image, not finite) are left out, with one warning that
    names them; what reaches beyond the image is cut off.

    **Random views** come from torch's generator, which the Loader sets for each sample.

    **Files** are read as :func:`~kdtasks.images.reading.read_image` says. The boxes of a photo
    whose camera was held otherwise (EXIF) are of the pixels as stored if the annotation names the
    stored size, as COCO's own tools have it, or else, and where it names no size, of the upright
    image. A warning says so once where the size is the same either way.

    Args:
        paths: (N,) image files; without ``images`` they are read.
        targets: (N,), None = unlabelled, or a dict of ``boxes`` (n,4) as above, in original pixels,
            ``labels`` (n,), and perhaps ``iscrowd`` and ``area`` (n,); lists, arrays or tensors.
        classes: K names; label k is ``classes[k - 1]``.
        sizes: (N,) original (height, width), or None where unknown; None: the labelled files are
            asked.
        train: crowd boxes are left out, and ``augment`` and ``keep_empty`` apply.
        size: (height, width) that every image is resized to, whatever its aspect ratio, when it is
            first read.
        in_memory: keep decoded images, uint8, in this process (each worker of a Loader keeps its
            own); None: if ``size``.
        augment: ``'flip'``, mirrored left to right with probability 1/2; None; or a list: of
            torchvision.transforms.v2, called one after the other with (tv_tensors.Image uint8,
            dict(boxes=tv_tensors.BoundingBoxes, labels=…)); or of kornia's, of images in [0,1], see
            :class:`~kdtasks.images.augmentation.KorniaAugmentation`. After a list boxes are cut at
            the edges, those under 1 pixel left out, ``area`` is the boxes', and ``scale`` still
            that of ``size``.
        keep_empty: False leaves out labelled images that have no box.
        images: (N,) decoded images, uint8 (3,H,W), instead of files.
        skip_bad: leave out files whose size has to be asked and cannot be read, with a warning; the
            Loader does so with the others (``data.skip_bad``).

    Attributes:
        classes, paths, size, augment: as given; ``augment`` None in the test.
        target: int64 (N,), 0 = labelled, -100 = unlabelled.

    Raises:
        ValueError: numbers of things that do not fit, labelled images of which none has a box, a
            label outside 1..K, an unknown ``augment``, a wrong ``size``.
        RuntimeError: (the size of) an image cannot be read.
    """

    def __init__(
        self,
        paths: Sequence,
        targets: Sequence[dict | None],
        classes: Sequence[str],
        sizes: Sequence | None = None,
        train: bool = True,
        size: Sequence[int] | None = None,
        in_memory: bool | None = None,
        augment: str | Sequence[Callable] | None = "flip",
        keep_empty: bool = True,
        images: Sequence[Tensor] | None = None,
        skip_bad: bool = False,
    ):
        self.size = None if size is None else _checked_size(size)
        self.in_memory = size is not None if in_memory is None else in_memory
        self.augment = _checked_augment(augment, self.size) if train else None
        self.classes, self.paths = list(classes), [str(path) for path in paths]
        n = len(self.paths)
        for name, values in (("targets", targets), ("sizes", sizes), ("images", images)):
            if values is not None and len(values) != n:
                raise ValueError(f"{n} paths, but {len(values)} {name}")
        self.memory = [None] * n if images is None else list(images)
        targets = self._take_sizes(sizes, targets, skip_bad)
        self.target = torch.tensor(
            [UNLABELLED if target is None else 0 for target in targets], dtype=torch.int64
        )
        self._take_boxes(targets, train)
        labelled = int((self.target != UNLABELLED).sum())
        if labelled and not len(self.boxes):
            raise ValueError(
                f"none of the {labelled} labelled images has a box that counts: nothing to learn "
                "or to test"
            )
        if train and not keep_empty:
            self._leave_out_empty()

    def _take_sizes(
        self, sizes: Sequence | None, targets: Sequence[dict | None], skip_bad: bool
    ) -> Sequence[dict | None]:
        """The original sizes; the targets of the images that can be read."""
        if sizes is None:
            sizes = [None if image is None else image.shape[-2:] for image in self.memory]
        self.unreadable: dict[str, str] = {}
        self.sizes = [
            self._file_size(path, skip_bad)
            if size is None and target is not None
            else size and tuple(map(int, size))
            for path, target, size in zip(self.paths, targets, sizes)
        ]
        return self._without_unreadable(targets) if self.unreadable else targets

    def _file_size(self, path: str, skip_bad: bool) -> tuple[int, int] | None:
        try:
            return _file_size(path)
        except RuntimeError as error:
            if not skip_bad:
                raise
            self.unreadable[path] = str(error.__cause__)
            return None

    def _without_unreadable(self, targets: Sequence[dict | None]) -> list[dict | None]:
        path, reason = next(iter(self.unreadable.items()))
        warnings.warn(
            f"left out {len(self.unreadable)} unreadable of {len(self.paths)} images: "
            f"{path}: {reason}",
            stacklevel=4,
        )
        index = [i for i, path in enumerate(self.paths) if path not in self.unreadable]
        self.paths, self.sizes, self.memory, targets = (
            [values[i] for i in index] for values in (self.paths, self.sizes, self.memory, targets)
        )
        return targets

    def _take_boxes(self, targets: Sequence[dict | None], train: bool) -> None:
        """All boxes in one tensor each: of 100,000 images, that many small ones would cost every
        worker their memory.
        """
        boxes, labels, crowd, area, image = _flat(targets, len(self.classes), self.paths)
        limit = np.array([size or (0, 0) for size in self.sizes], dtype=np.float64).reshape(-1, 2)[
            :, ::-1
        ]
        # (M,4) width, height, twice
        edge = np.tile(limit, 2)[image]
        cut = np.clip(boxes, 0, edge)
        finite = np.isfinite(boxes).all(1)
        good = finite & (cut[:, 2:] - cut[:, :2] >= _THIN).all(1)
        relevant = ~(train & crowd)
        self._warn_of(np.flatnonzero(~good & relevant), boxes, finite, image, int(relevant.sum()))
        mask = good & relevant
        boxes, image = cut[mask], image[mask]
        area = np.where(np.isfinite(area[mask]), area[mask], (boxes[:, 2:] - boxes[:, :2]).prod(1))
        self.boxes, self.area = torch.from_numpy(boxes).float(), torch.from_numpy(area).float()
        self.labels, self.crowd = (
            torch.from_numpy(labels[mask]),
            torch.from_numpy(crowd[mask]).to(torch.uint8),
        )
        # image i has boxes start[i]:start[i+1]
        self.start = [0, *np.bincount(image, minlength=len(self)).cumsum().tolist()]

    def _warn_of(
        self,
        broken: np.ndarray,
        boxes: np.ndarray,
        finite: np.ndarray,
        image: np.ndarray,
        count: int,
    ) -> None:
        if not len(broken):
            return
        texts = []
        for b in broken[:_NAMED].tolist():
            thick = (boxes[b, 2:] - boxes[b, :2] >= _THIN).all()
            reason = "outside of the image" if thick else "no area"
            reason = reason if finite[b] else "not finite"
            number = b - int(np.searchsorted(image, image[b]))
            corners = ", ".join(f"{value:g}" for value in boxes[b])
            texts.append(
                f"{os.path.basename(self.paths[image[b]])} box {number} [{corners}] ({reason})"
            )
        rest = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        warnings.warn(
            f"left out {len(broken)} broken of {count} boxes: {'; '.join(texts)}{rest}",
            stacklevel=4,
        )

    def _leave_out_empty(self) -> None:
        """Empty images have no box, so the boxes stay as they are."""
        index = [
            i
            for i in range(len(self))
            if self.target[i] == UNLABELLED or self.start[i] < self.start[i + 1]
        ]
        self.start = [0, *(self.start[i + 1] for i in index)]
        self.target = self.target[index]
        self.paths, self.sizes, self.memory = (
            [values[i] for i in index] for values in (self.paths, self.sizes, self.memory)
        )

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """The file of a sample."""
        return self.paths[index]

    def with_classes(self, names: Sequence[str], drop: bool = False) -> "DetectionData":
        """The same images, their classes numbered as in ``names``; boxes of others are left out
        where ``drop`` says so.

        See :func:`kdtasks.core.classes.class_numbers`.
        """
        numbers = class_numbers(
            self.classes, names, count_classes(self.labels - 1, len(self.classes)), drop
        )
        data, labels = copy.copy(self), numbers[self.labels - 1] + 1
        mask = labels > 0
        # boxes that stay, before each
        counts = [0, *mask.cumsum(0).tolist()]
        data.start = [counts[place] for place in self.start]
        data.boxes, data.area, data.crowd = self.boxes[mask], self.area[mask], self.crowd[mask]
        data.classes, data.labels = list(names), labels[mask]
        return data

    def __getitem__(self, index: int) -> dict:
        image = self._image(index)
        target = None if self.target[index] == UNLABELLED else self._target(index, image.shape[-2:])
        if self.augment == "flip":
            image, target = _maybe_flipped(image, target)
        elif isinstance(self.augment, KorniaAugmentation):
            image, target = _moved_by_kornia(image, target, self.augment)
        elif self.augment:
            image, target = _transformed(image, target, self.augment)
        return {
            "input": image if image.is_floating_point() else image.float().div_(255),
            "target": target,
        }

    def _image(self, index: int) -> Tensor:
        """uint8 (3,H,W); also notes the original size of an unlabelled one."""
        image = self.memory[index]
        if image is None:
            image, self.sizes[index] = _read(self.paths[index], self.sizes[index], self.size)
            if self.in_memory:
                self.memory[index] = image
        return image

    def _target(self, index: int, size: Sequence[int]) -> dict[str, Tensor]:
        rows = slice(self.start[index], self.start[index + 1])
        across, down = size[1] / self.sizes[index][1], size[0] / self.sizes[index][0]
        return {
            "boxes": self.boxes[rows] * torch.tensor([across, down, across, down]),
            "labels": self.labels[rows].clone(),
            "area": self.area[rows] * (across * down),
            "iscrowd": self.crowd[rows].clone(),
            "scale": torch.tensor([across, down]),
        }

    @staticmethod
    def collate(samples: list[dict]) -> dict[str, list]:
        """Samples -> ``dict(input=[(3,H,W), …], target=[dict or None, …])``, the lists that
        torchvision's detectors take.
        """
        return {name: [sample[name] for sample in samples] for name in ("input", "target")}


def _checked_size(size: object) -> tuple[int, int]:
    if (
        not isinstance(size, Sequence)
        or len(size) != 2
        or not all(isinstance(v, int) and v > 0 for v in size)
    ):
        raise ValueError(f"size must be (height, width) in pixels, got {size!r}")
    return tuple(size)


def _checked_augment(
    augment: str | Sequence | KorniaAugmentation | None, size: tuple[int, int] | None
) -> str | KorniaAugmentation | None:
    if augment is None or augment == "flip":
        return augment
    if isinstance(augment, KorniaAugmentation) or is_kornia(augment):
        augmentation = kornia_augmentation(augment, (3, *(size or _USUAL)))
        augmentation.check_boxes()
        return augmentation
    if isinstance(augment, str):
        raise ValueError(
            f"unknown augment {augment!r}: {did_you_mean(augment, ['flip'])}, or pass None or a "
            "list of torchvision.transforms.v2 or of kornia.augmentation"
        )
    if not isinstance(augment, list | tuple) or not all(map(callable, augment)):
        raise ValueError(
            "augment must be 'flip', None, or a list of torchvision.transforms.v2 or of "
            f"kornia.augmentation, got {augment!r}"
        )
    return list(augment)


def _flat(
    targets: Sequence[dict | None], classes: int, paths: Sequence[str]
) -> tuple[np.ndarray, ...]:
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
            raise ValueError(
                f"{paths[i]}: expected boxes ({n},4) and labels, iscrowd, area "
                f"({n},), got {boxes.shape}, {labels.shape}, {crowd.shape}, {area.shape}"
            )
        if not 1 <= labels.min() <= labels.max() <= classes:
            raise ValueError(
                f"{paths[i]}: a label is in 1..{classes} (0 is the background), got "
                f"{labels.tolist()}"
            )
        for column, values in zip(columns, (boxes, labels, crowd, area, np.full(n, i))):
            column.append(values)
    if not columns[0]:
        return (
            np.zeros((0, 4)),
            np.zeros(0, np.int64),
            np.zeros(0, bool),
            np.zeros(0),
            np.zeros(0, np.int64),
        )
    return tuple(map(np.concatenate, columns))


def _file_size(path: str) -> tuple[int, int]:
    """(height, width) from the head of an image file, after the turn that its camera noted."""
    try:
        return image_size(path)
    except Exception as error:
        raise RuntimeError(f"cannot read image {path}: {error}") from error


def _read(
    path: str, annotated: tuple[int, int] | None, size: tuple[int, int] | None
) -> tuple[Tensor, tuple[int, int]]:
    """An image, uint8 (3,H,W), and its original (height, width).

    The camera's note on how it was held is followed if the annotation does not contradict it.
    """
    from PIL import Image

    image = read_image(path, annotated=annotated)
    original = image.height, image.width
    if annotated not in (None, original):
        raise ValueError(
            f"the annotation is of an image of {annotated[0]} x {annotated[1]} (height x width), "
            f"the file has {original[0]} x {original[1]}"
        )
    if size not in (None, original):
        # antialiased when it shrinks
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), original


def _maybe_flipped(image: Tensor, target: dict | None) -> tuple[Tensor, dict | None]:
    if torch.rand(()) >= 0.5:
        return image, target
    if target is not None:
        # a tensor of this sample alone
        boxes = target["boxes"]
        boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    return image.flip(-1), target


def _transformed(
    image: Tensor, target: dict | None, transforms: Sequence[Callable]
) -> tuple[Tensor, dict | None]:
    """A training sample through torchvision's transforms; an unlabelled one goes with no box, which
    some of them need.
    """
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as F

    boxes, labels = (
        (target["boxes"], target["labels"])
        if target
        else (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    )
    # a transform in place must not reach what is kept
    image = tv_tensors.Image(image.clone())
    sample = {
        "boxes": tv_tensors.BoundingBoxes(
            boxes, format="XYXY", canvas_size=tuple(image.shape[-2:])
        ),
        "labels": labels,
    }
    for transform in transforms:
        image, sample = transform(image, sample)
    image = F.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor)
    if target is None:
        return image, None
    boxes = F.convert_bounding_box_format(sample["boxes"], new_format="XYXY").as_subclass(Tensor)
    return image, _with_boxes(target, boxes, sample["labels"], image)


def _moved_by_kornia(
    image: Tensor, target: dict | None, augment: KorniaAugmentation
) -> tuple[Tensor, dict | None]:
    image = image.float().div_(255)
    if target is None:
        return augment.one(image), None
    image, boxes = augment.one(image, target["boxes"])
    return image, _with_boxes(target, boxes, target["labels"], image)


def _with_boxes(target: dict, boxes: Tensor, labels: Tensor, image: Tensor) -> dict[str, Tensor]:
    """The target with boxes that have moved: cut at the edges, those under 1 pixel left out."""
    from torchvision.ops import clip_boxes_to_image, remove_small_boxes

    boxes = clip_boxes_to_image(boxes, image.shape[-2:])
    index = remove_small_boxes(boxes, 1.0)
    boxes = boxes[index]
    return {
        "boxes": boxes,
        "labels": labels[index],
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.uint8),
        "scale": target["scale"],
    }


def locate(path: str | Path, argument: str, layout: str) -> Path:
    """``path`` as it stands or below :func:`~kdtasks.images.roots.data_root`, whichever exists."""
    places = list(dict.fromkeys((Path(path), data_root() / path)))
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(
        f"nothing at {' nor at '.join(map(str, places))}. Set the environment variable "
        f"KDTASKS_DATA to the folder that holds it, or pass {argument}=<path>. Expected layout: "
        f"{layout}"
    )
