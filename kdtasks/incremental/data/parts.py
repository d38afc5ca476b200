"""The samples of an experience with the columns that its classes have."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdtasks.core.classes import UNLABELLED, renumber
from kdtasks.incremental.data.streams import Experience, targets_of


@dataclass
class Part:
    """Some samples of a data set: their places in it, and their columns."""

    dataset: object
    index: Tensor
    target: Tensor

    def subset(self, index: Tensor, start: int) -> "Part":
        """Those of ``index``, which counts this part's samples from ``start``."""
        rows = index[(index >= start) & (index < start + len(self.index))] - start
        return Part(self.dataset, self.index[rows], self.target[rows])

    def of_class(self, column: int) -> "Part":
        """The samples of one class."""
        rows = (self.target == column).nonzero()[:, 0]
        return Part(self.dataset, self.index[rows], self.target[rows])

    def renumbered(self, numbers: Tensor) -> "Part":
        """The same samples with other columns; see :func:`kdtasks.core.classes.renumber`."""
        return Part(self.dataset, self.index, renumber(self.target, numbers))


def part_of(experience: Experience, columns: dict[int, int]) -> Part:
    """The samples of an experience, whose classes have these columns.

    Raises:
        ValueError: a sample is of no class of the experience.
    """
    target, index = getattr(experience, "target", None), getattr(experience, "index", None)
    target = targets_of(experience.dataset) if target is None else target
    index = torch.arange(len(target)) if index is None else index
    target, classes = target[index], classes_of(experience)
    wrong = target[~torch.isin(target, torch.tensor(classes))]
    if len(wrong):
        raise ValueError(
            f"an experience of the classes {classes} has a sample of class {int(wrong[0])}"
        )
    column_of = torch.full((max(classes) + 1,), UNLABELLED)
    column_of[torch.tensor(classes)] = torch.tensor([columns[c] for c in classes])
    return Part(experience.dataset, index, column_of[target])


def starts(parts: Sequence[Part]) -> list[int]:
    """Where each part begins, when the samples of all are counted on."""
    ends = torch.tensor([len(part.index) for part in parts]).cumsum(0)
    return [0, *ends[:-1].tolist()]


def columns_of(stream: Sequence) -> tuple[dict[int, int], list[str]]:
    """``{class number: column}`` in the order in which the classes come, and their names.

    Raises:
        ValueError: a class is in two experiences.
    """
    columns, names = {}, []
    for number, experience in enumerate(stream):
        classes = classes_of(experience)
        again = [c for c in classes if c in columns]
        if again:
            raise ValueError(
                f"the class {again[0]} is in experience {number} and in an earlier one: expected "
                "each class in one"
            )
        columns |= {c: len(columns) + k for k, c in enumerate(classes)}
        names += getattr(experience, "names", None) or [str(c) for c in classes]
    return columns, names


def classes_of(experience: Experience) -> list[int]:
    """The class numbers of an experience, in its order; a set is unordered, so it is sorted."""
    classes = [int(number) for number in experience.classes_in_this_experience]
    if isinstance(experience.classes_in_this_experience, set | frozenset):
        return sorted(classes)
    return classes
