"""Digits on photos: a set that needs no download."""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from kdtasks.core.views import view_hash
from kdtasks.detection.data.data_set import DetectionData
from kdtasks.images.digits import digits as digit_images

# a salt of view_hash; + 1: test
_SCATTER = 0x2B
# places tried; share of the smaller box
_TRIES, _OVERLAP = 10, 0.1


def digits_on_photos(
    train: bool = True,
    images: int | None = None,
    size: int = 96,
    classes: int = 10,
    objects: Sequence[int] = (1, 5),
    seed: int = 0,
    augment: str | Sequence[Callable] | None = None,
) -> DetectionData:
    """Handwritten digits to be found on photos: real digits, real photos, but where and how the
    digits lie is synthetic.

    Nothing is downloaded: both come with scikit-learn. The digits, 8x8, are enlarged, stretched,
    tinted and blended over windows of two photos, at full and at half size, mirrored or not. Digits
    and photo regions of the test (the right two fifths of each photo) are none of the training's,
    whatever the seed. Every number follows from (seed, index).

    A digit is about 1/4 to 1/2 of ``size`` high; two boxes share at most a tenth of the smaller
    one. A box holds exactly the pixels that its digit changes.

    Args:
        train: the training or the test images.
        images: how many; None: 600 in training, 200 in the test.
        size: of the square images, 32 to 240 pixels.
        classes: 1 to 10, the digits 0..classes-1.
        objects: the least and the largest number of digits on an image; fewer where no more find a
            place.
        seed: of the layout.
        augment: see :class:`DetectionData`; by default none, since digits are not mirrored.

    Raises:
        ValueError: an argument outside its range.
    """
    if images is None:
        images = 600 if train else 200
    _check_arguments(images, size, classes, objects)
    low, high = objects
    digits = digit_images(train)
    index = (digits.target < classes).nonzero()[:, 0]
    inks = digits.images[index, 0].numpy().astype(np.float32) / 255
    labels = (digits.target[index] + 1).tolist()
    numbers = _numbers(seed, images, 5 + high * (7 + 2 * _TRIES), train)
    pictures, targets = np.empty((images, size, size, 3), np.uint8), []
    for picture, row in zip(pictures, numbers):
        picture[:] = _window(row[:4], size, train)
        count = low + int(row[4] * (high - low + 1))
        targets.append(_scattered(picture, inks, labels, count, iter(row[5:].tolist())))
    pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    paths = [f"digits_on_photos(train={train}, seed={seed}), image {i}" for i in range(images)]
    return DetectionData(
        paths,
        targets,
        [str(d) for d in range(classes)],
        None,
        train,
        (size, size),
        True,
        augment,
        images=pictures.unbind(),
    )


def _check_arguments(images: int, size: int, classes: int, objects: Sequence[int]) -> None:
    for name, value, low, high in (
        ("images", images, 1, 10**6),
        ("size", size, 32, 240),
        ("classes", classes, 1, 10),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
    low, high = objects
    if not 0 <= low <= high or not high:
        raise ValueError(
            "objects must be (least, largest) with 0 <= least <= largest and largest > 0, got "
            f"{objects}"
        )


def _numbers(seed: int, images: int, count: int, train: bool) -> np.ndarray:
    """(images, count) in [0, 1), each from (seed, image, place in the row)."""
    salt = _SCATTER if train else _SCATTER + 1
    number = view_hash(seed, torch.arange(images)[:, None], torch.arange(count)[None], salt)
    return (number % 2**53).double().div_(2**53).numpy()


@functools.cache
def _photos(train: bool) -> list[np.ndarray]:
    """The regions (h,w,3) of the two photos that belong to one part, at full and at half size."""
    from sklearn.datasets import load_sample_images

    # 427 x 384 or 256
    full = [photo[:, :384] if train else photo[:, 384:] for photo in load_sample_images().images]
    even = [photo[:-1].astype(np.float32) for photo in full]
    half = [(p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]) / 4 for p in even]
    return full + [photo.round().astype(np.uint8) for photo in half]


def _window(numbers: Sequence[float], size: int, train: bool) -> np.ndarray:
    """A window (size,size,3) of a photo: which, across, down, mirrored."""
    photos = [photo for photo in _photos(train) if min(photo.shape[:2]) >= size]
    photo = photos[int(numbers[0] * len(photos))]
    left, top = (
        int(u * (side - size + 1))
        for u, side in zip(numbers[1:3], (photo.shape[1], photo.shape[0]))
    )
    window = photo[top : top + size, left : left + size]
    return window[:, ::-1] if numbers[3] < 0.5 else window


def _scattered(
    picture: np.ndarray,
    inks: np.ndarray,
    labels: Sequence[int],
    count: int,
    number: Iterator[float],
) -> dict:
    """Blends up to ``count`` digits into ``picture`` (size,size,3); ``number`` gives numbers in [0,
    1).
    """
    size, boxes, placed_labels = len(picture), [], []
    for _ in range(count):
        index, side, aspect, opacity, *tint = (next(number) for _ in range(7))
        index, side = int(index * len(inks)), size * (0.25 + 0.25 * side)
        ink = _enlarged(inks[index], round(side), round(side * (0.8 + 0.4 * aspect)))
        height, width = ink.shape
        for _ in range(_TRIES):
            left, top = (
                int(next(number) * (size - width + 1)),
                int(next(number) * (size - height + 1)),
            )
            box = [left, top, left + width, top + height]
            if all(_shared(box, other) <= _OVERLAP for other in boxes):
                boxes.append(box)
                placed_labels.append(labels[index])
                _blend(
                    picture[top : top + height, left : left + width],
                    ink * (0.75 + 0.25 * opacity),
                    np.array(tint),
                )
                break
    return {"boxes": boxes, "labels": placed_labels}


@functools.cache
def _interpolation(side: int) -> np.ndarray:
    """(side, 8): linear interpolation between 8 pixel centres, the outer ones continued."""
    place = np.clip((np.arange(side) + 0.5) * 8 / side - 0.5, 0, 7)
    return np.maximum(0, 1 - abs(place[:, None] - np.arange(8))).astype(np.float32)


def _enlarged(digit: np.ndarray, height: int, width: int) -> np.ndarray:
    """A digit (8,8) as opacity in [0,1], enlarged to height x width, then cut to what can be seen
    of it.
    """
    ink = np.clip((_interpolation(height) @ digit @ _interpolation(width).T - 0.25) / 0.4, 0, 1)
    ink[ink < 0.1] = 0
    rows, columns = ink.any(1).nonzero()[0], ink.any(0).nonzero()[0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


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


digits_on_photos.image_shape = (3, 96, 96)  # what --dry-run needs to know without reading
