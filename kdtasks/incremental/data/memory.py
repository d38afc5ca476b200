"""Exemplars of earlier experiences: what they are chosen from, and how many are kept."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdtasks.incremental.data.parts import Part, starts
from kdtasks.incremental.sampling import coreset_indices, coreset_quota


class Memory:
    """The exemplars of a stream: what they are chosen from, and how many there are.

    Args:
        parts: the samples of each experience, the newest one's last.
        columns: of each experience's classes, in their order.
        total, per_class: see :func:`~kdtasks.incremental.data.sets.experiences`; one of them is 0.
        selection: ``'random'`` or ``'herding'``.
        held_out: share that is not trained on.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        columns: Sequence[Sequence[int]],
        total: int,
        per_class: int,
        selection: str,
        held_out: float,
    ):
        self.parts, self.columns = list(parts), [list(numbers) for numbers in columns]
        self.total, self.per_class = total, per_class
        self.selection, self.held_out = selection, held_out

    def quota(self, classes: int) -> list[int]:
        """How many there are of each of so many classes."""
        if self.per_class:
            return [self.per_class] * classes
        return coreset_quota(self.total, classes)

    def at_random(self, seed: int) -> list[Part]:
        """Random ones of each experience but the newest."""
        old = self.parts[:-1]
        if not old:
            return []
        target = torch.cat([part.target for part in old])
        rows = coreset_indices(target, self.quota(sum(map(len, self.columns[:-1]))), seed)
        return [part.subset(rows, start) for part, start in zip(old, starts(old))]

    def newest(self) -> list[Part]:
        """All samples of the newest experience, a part a class."""
        return [self.parts[-1].of_class(column) for column in self.columns[-1]]

    def chosen(self, orders: Sequence[Tensor]) -> list[Part]:
        """The first of each class, a part a class.

        Args:
            orders: int64 places in the data set, in the order in which they are taken, a tensor a
                class; of the classes of as many experiences as are wanted.

        Raises:
            ValueError: a place that is no sample of the class.
        """
        classes = [
            part.of_class(column)
            for part, columns in zip(self.parts, self.columns)
            for column in columns
        ]
        parts = []
        for part, order, count in zip(classes, orders, self.quota(len(orders))):
            places = order[:count].sort().values
            if not torch.isin(places, part.index).all():
                raise ValueError("exemplars of other data: expected samples of their class")
            parts.append(Part(part.dataset, places, part.target[: len(places)]))
        return parts

    def renumbered(self, numbers: Tensor) -> "Memory":
        """The same with other columns; see :func:`kdtasks.core.classes.renumber`."""
        parts = [part.renumbered(numbers) for part in self.parts]
        columns = [numbers[torch.tensor(columns)].tolist() for columns in self.columns]
        return Memory(parts, columns, self.total, self.per_class, self.selection, self.held_out)

    def split(self, parts: Sequence[Part], seed: int) -> tuple[list[Part], list[Part]]:
        """What of some samples is trained on, and what is held out: equally many of each class,
        chosen at random.

        Raises:
            ValueError: a class has one exemplar only.
        """
        old = sum(map(len, self.columns[:-1]))
        if not self.held_out or not old:
            return list(parts), []
        least = min(self.quota(old))
        if least < 2:
            raise ValueError(
                f"held_out={self.held_out} of {least} exemplars of a class: expected a memory of "
                "two or more a class, one to train on and one to hold out"
            )
        count = max(1, int(self.held_out * least))
        target = torch.cat([part.target for part in parts])
        classes = old + len(self.columns[-1])
        places = torch.cat([part.index for part in parts])
        held_out_rows = coreset_indices(target, [count] * classes, seed, places)
        training_rows = torch.arange(len(target))[
            ~torch.isin(torch.arange(len(target)), held_out_rows)
        ]
        training_parts, held_out_parts = (
            [part.subset(rows, start) for part, start in zip(parts, starts(parts))]
            for rows in (training_rows, held_out_rows)
        )
        return training_parts, [part for part in held_out_parts if len(part.index)]
