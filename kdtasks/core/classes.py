"""Classes are matched by name between the splits of the data, never by number."""

import os
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from kdtasks.core.names import did_you_mean

# the target of a sample without a label: torch's cross-entropy ignores it
UNLABELLED = -100


def class_name(name: object) -> str:
    r"""The name of a class as text that can be shown and stored.

    A folder's name that the locale cannot decode is taken as UTF-8, whatever the locale; bytes that
    are not UTF-8 either are written ``\xe4``.
    """
    try:
        str(name).encode()
    except UnicodeEncodeError:  # os.fsdecode's stand-ins for bytes
        return os.fsencode(str(name)).decode("utf-8", "backslashreplace")
    return str(name)


def check_class(name: str, names: Sequence[str]) -> str:
    """``name``, if it is one of ``names``.

    Raises:
        ValueError: it is not; with the nearest one.
    """
    if name not in names:
        raise ValueError(f"no class {name!r}: {did_you_mean(name, names)}")
    return name


def class_numbers(
    classes: Sequence[str],
    names: Sequence[str],
    counts: Sequence[int] | None = None,
    drop: bool = False,
) -> Tensor:
    """The number in ``names`` of each class of a data set.

    Args:
        classes: names of the data set's classes, in the order of its numbers.
        names: those that count, the training data's.
        counts: how many samples (or boxes) the data set has of each; None: unknown.
        drop: what is of a class that ``names`` lacks becomes unlabelled, with a warning that counts
            it, instead of an error.

    Returns:
        int64 (len(own),): a place in ``names``, or -100 for a class that it lacks.

    Raises:
        ValueError: a name stands twice in one of the lists; or the data set has samples of a class
            that ``names`` lacks.

    Warns:
        UserWarning: what ``drop`` leaves out.
    """
    classes, names = [class_name(name) for name in classes], [class_name(name) for name in names]
    for which in (classes, names):
        twice = next((name for k, name in enumerate(which) if name in which[:k]), None)
        if twice is not None:
            raise ValueError(f"two classes are called {twice!r}: {_some(which)}")
    place = {name: k for k, name in enumerate(names)}
    unknown = {
        name: None if counts is None else counts[k]
        for k, name in enumerate(classes)
        if name not in place and (counts is None or counts[k])
    }
    if unknown:
        of = ", ".join(
            repr(name) if count is None else f"{name!r} ({count})"
            for name, count in unknown.items()
        )
        if not drop:
            raise ValueError(
                f"it has {len(unknown)} classes that the training data lacks: {of}. The training "
                f"data has {len(names)}: {_some(names)}; this has {len(classes)}: "
                f"{_some(classes)}. "
                "data.unknown_classes='drop' leaves out what is of them"
            )
        warnings.warn(
            f"left out what is of the {len(unknown)} classes that the training data lacks: {of}",
            stacklevel=3,
        )
    return torch.tensor([place.get(name, UNLABELLED) for name in classes], dtype=torch.int64)


def renumber(target: Tensor, numbers: Tensor) -> Tensor:
    """Replace each class number k of ``target``, of any shape, by ``numbers[k]``; negative ones
    (unlabelled) stay.
    """
    return torch.where(target < 0, target, numbers.to(target.device)[target.clamp(min=0)])


def count_classes(target: Tensor, classes: int) -> list[int]:
    """How often each class number occurs in ``target``, int64; negative ones do not count.

    Raises:
        ValueError: a number without a class.
    """
    labelled = target[target >= 0].flatten()
    if len(labelled) and int(labelled.max()) >= classes:
        raise ValueError(f"a target is {int(labelled.max())}, but there are {classes} classes")
    return torch.bincount(labelled, minlength=classes).tolist()


def _some(names: Sequence[str], most: int = 12) -> str:
    return f"[{', '.join(map(repr, names[:most]))}{', …' if len(names) > most else ''}]"
