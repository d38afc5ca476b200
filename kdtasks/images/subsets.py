"""Chosen samples of a data set: the first of each class, a balanced labelled subset, an order that
only a seed decides.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from kdtasks.core.classes import UNLABELLED
from kdtasks.core.views import view_hash
from kdtasks.images.arrays import ImageArrays

# salt of view_hash
_SUBSET = 0x1B


def labelled_subset(target: Tensor | Sequence[int], per_class: int, seed: int = 0) -> Tensor:
    """A class-balanced choice of labelled samples.

    Args:
        target: (N,) class numbers; -100 is never chosen.
        per_class: how many of each class. With the same seed a smaller number gives a subset of a
            larger one.
        seed: of the choice.

    Returns:
        int64 (classes·per_class,), indices in rising order.

    Raises:
        ValueError: a class has fewer samples, or ``per_class < 1``.
    """
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    places_by_class = in_hash_order(torch.as_tensor(target).cpu(), seed, _SUBSET)
    for c, places in places_by_class.items():
        if len(places) < per_class:
            raise ValueError(
                f"per_class={per_class}, but class {c} has {len(places)} labelled samples"
            )
    return torch.cat([places[:per_class] for places in places_by_class.values()]).sort().values


def few_labels(dataset: ImageArrays, per_class: int, seed: int = 0) -> ImageArrays:
    """The same images, of which only ``per_class`` of each class keep their label (see
    :func:`labelled_subset`).
    """
    hidden = torch.full_like(dataset.target, UNLABELLED)
    index = labelled_subset(dataset.target, per_class, seed).to(hidden.device)
    hidden[index] = dataset.target[index]
    few = copy.copy(dataset)
    few.target = hidden
    return few


def in_hash_order(target: Tensor, seed: int, salt: int) -> dict[int, Tensor]:
    """For each class its places in ``target``, in an order made from (seed, place); unlabelled ones
    left out.
    """
    order = view_hash(seed, torch.arange(len(target)), 0, salt).argsort(stable=True)
    return {c: order[target[order] == c] for c in target.unique().tolist() if c != UNLABELLED}


def first_of_each(target: Tensor, per_class: int | None, classes: Sequence[str]) -> Tensor:
    """Indices of the first ``per_class`` samples of each class, in rising order; None: all."""
    if per_class is None:
        return torch.arange(len(target))
    index = (
        torch.cat([(target == c).nonzero()[:per_class, 0] for c in range(len(classes))])
        .sort()
        .values
    )
    if per_class < 1 or len(index) < per_class * len(classes):
        counts = {
            name: int((target == c).sum())
            for c, name in enumerate(classes)
            if (target == c).sum() < per_class
        }
        raise ValueError(
            f"per_class={per_class}: "
            + (f"too few samples in {counts}" if counts else "expected at least 1")
        )
    return index


def concat(*parts: ImageArrays, sets: Sequence[ImageArrays] = ()) -> ImageArrays:
    """Several sets as one, for example a labelled one and unlabelled images; ``sets`` is the same
    for a config.

    Raises:
        ValueError: nothing given, or the sets differ in image shape, normalisation, augmentation or
            class names (a set that is wholly unlabelled needs no class names).
    """
    parts = (*parts, *sets)
    if not parts:
        raise ValueError("concat needs at least one data set")
    first = next((part for part in parts if part.classes), parts[0])
    for part in parts:
        for name in ("mean", "std", "augment", "classes"):
            expected, value = getattr(first, name), getattr(part, name)
            if expected != value and not (name == "classes" and (part.target == UNLABELLED).all()):
                raise ValueError(f"concat: the sets differ in {name}: {expected} and {value}")
        if part.images.shape[1:] != first.images.shape[1:]:
            raise ValueError(
                f"concat: images of {tuple(first.images.shape[1:])} and "
                f"{tuple(part.images.shape[1:])}"
            )
    device = first.images.device
    images = torch.cat([part.images.to(device) for part in parts])
    target = torch.cat([part.target.to(device) for part in parts])
    paths = [part.path(i) for part in parts for i in range(len(part))]
    unreadable = {path: reason for part in parts for path, reason in part.unreadable.items()}
    return ImageArrays(
        images, target, first.classes, first.mean, first.std, first.augment, paths, unreadable
    )
