"""Images without labels, alone or beside labelled ones."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from kdtasks.core.classes import UNLABELLED
from kdtasks.core.views import view_hash
from kdtasks.detection.data.data_set import DetectionData, locate
from kdtasks.images.listing import SUFFIXES, images_below

# a salt of view_hash
_FEW = 0x2A


def unlabelled(
    folder: str | Path,
    like: DetectionData | None = None,
    classes: Sequence[str] | None = None,
    size: Sequence[int] | None = None,
    in_memory: bool | None = None,
    augment: str | Sequence[Callable] | None = "flip",
    limit: int | None = None,
    train: bool = True,
) -> DetectionData:
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
            raise ValueError(
                "unlabelled: size, in_memory and augment come from `like`; pass either"
            )
        classes, size, in_memory, augment = like.classes, like.size, like.in_memory, like.augment
    folder = locate(
        folder, "folder", "<folder>/<any name>.jpg (or .png, .bmp, .webp, …), in folders or not"
    )
    paths = images_below(folder)[:limit]
    if not paths:
        raise FileNotFoundError(f"no image below {folder}; known are {', '.join(sorted(SUFFIXES))}")
    return DetectionData(paths, [None] * len(paths), classes, None, train, size, in_memory, augment)


def few_labels(dataset: DetectionData, images: int, seed: int = 0) -> DetectionData:
    """The same data set, in which only ``images`` of the labelled images keep their label; the
    others become unlabelled.

    Which ones follows from (seed, index). With the same seed a smaller number gives a subset of a
    larger one.

    Raises:
        ValueError: ``images`` is below 1, or more than are labelled.
    """
    rows = (dataset.target != UNLABELLED).nonzero()[:, 0]
    if not isinstance(images, int):
        raise ValueError(f"images must be a whole number, got {images!r}")
    if not 1 <= images <= len(rows):
        raise ValueError(
            f"images={images}: expected at least 1 and at most {len(rows)}, the labelled images "
            "there are"
        )
    index = rows[view_hash(seed, rows, 0, _FEW).argsort(stable=True)[:images]]
    few = copy.copy(dataset)
    few.target = torch.full_like(dataset.target, UNLABELLED).index_fill_(0, index, 0)
    return few


def with_unlabelled(dataset: DetectionData, unlabelled: DetectionData) -> DetectionData:
    """``dataset``, and after it the images of ``unlabelled``, whose labels, if they have any, are
    left out.

    Augmentation and use of memory are those of ``dataset``.

    Raises:
        ValueError: the two differ in ``size``.
    """
    if dataset.size != unlabelled.size:
        raise ValueError(
            f"size={dataset.size} and size={unlabelled.size} do not go together: "
            f"unlabelled(folder, like=<data set>) makes them equal"
        )
    joined = copy.copy(dataset)
    joined.target = torch.cat([dataset.target, torch.full_like(unlabelled.target, UNLABELLED)])
    joined.start = dataset.start + [dataset.start[-1]] * len(unlabelled)
    for name in ("paths", "sizes", "memory"):
        setattr(joined, name, getattr(dataset, name) + getattr(unlabelled, name))
    return joined


unlabelled.image_shape = (3, 800, 800)  # what --dry-run needs to know without reading
