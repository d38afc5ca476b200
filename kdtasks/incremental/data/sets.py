"""What a stage learns from and is tested on: samples of data sets, with columns as targets."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from kdtasks.core.classes import UNLABELLED, class_numbers, count_classes, renumber
from kdtasks.core.names import did_you_mean
from kdtasks.engine.reader import stack
from kdtasks.incremental.data.memory import Memory
from kdtasks.incremental.data.parts import Part, classes_of, columns_of, part_of

# how exemplars are chosen
SELECTIONS = ("random", "herding")


def experiences(
    stream: Sequence,
    experience: int | None = None,
    test: bool = False,
    memory: int = 0,
    pool: object | None = None,
    sampling: dict | None = None,
    seed: int = 0,
    memory_per_class: int = 0,
    exemplars: str = "random",
    held_out: float = 0.0,
) -> "IncrementalSet":
    """The samples of one experience: to train on, with exemplars of the classes before; or to test
    on.

    Args:
        stream: see :mod:`kdtasks.incremental.data`.
        experience: its number, from 0; None: all of them together.
        test: the samples of this experience and all before.
        memory: exemplars of the classes before, in all: ``floor(memory / l)`` of each of l classes,
            what remains one each to the latest; a smaller choice lies within a larger one, as if
            redrawn from what is kept.
        pool: unlabelled samples from which a stage may draw; see
            :func:`kdtasks.incremental.trainer.training_set`.
        sampling: arguments of :func:`kdtasks.incremental.sampling.sample_external`, where they
            differ from its defaults.
        seed: of the exemplars.
        memory_per_class: exemplars of each class before, in the place of ``memory``.
        exemplars: ``'random'``; or ``'herding'``: in a run, those that the network of the
            experience which brought a class has chosen (:mod:`kdtasks.incremental.exemplars`);
            before that is trained, random ones stand for them.
        held_out: share of the exemplars that is not trained on, one of each class at least, and as
            many of each new class: ``held_out`` of the set, with which a network's bias towards the
            new classes is corrected. In the first experience there are none.

    Raises:
        ValueError: no such experience, a class in two of them, a label that its experience does not
            have; both kinds of memory, or another choice of exemplars; samples held out of no
            memory, or of classes with one exemplar.
    """
    if memory and memory_per_class:
        raise ValueError(
            f"expected memory, in all, or memory_per_class, got {memory} and {memory_per_class}"
        )
    if exemplars not in SELECTIONS:
        raise ValueError(
            f"exemplars: no choice {exemplars!r}; {did_you_mean(str(exemplars), SELECTIONS)}"
        )
    trains = not test and experience is not None
    if not 0 <= held_out < 1 or (held_out and trains and not (memory or memory_per_class)):
        raise ValueError(
            f"held_out={held_out}: expected a share below 1 of the exemplars of a memory, got "
            f"memory={memory}, memory_per_class={memory_per_class}"
        )
    stream = list(stream)
    if experience is not None and not 0 <= experience < len(stream):
        raise ValueError(f"experience={experience}, the stream has 0..{len(stream) - 1}")
    last = len(stream) - 1 if experience is None else experience
    columns, names = columns_of(stream[: last + 1])
    is_alone = trains and not (memory or memory_per_class)
    parts = [part_of(element, columns) for element in stream[last if is_alone else 0 : last + 1]]
    batched = all(callable(getattr(part.dataset, "batch", None)) for part in parts)
    kind = BatchedSet if batched else IncrementalSet
    if not trains:
        return kind(parts, names, pool, sampling or {}, seed)
    store = None
    if memory or memory_per_class:
        numbers = [[columns[c] for c in classes_of(element)] for element in stream[: last + 1]]
        store = Memory(parts, numbers, memory, memory_per_class, exemplars, held_out)
    samples = kind([parts[-1]], names, pool, sampling or {}, seed, store)
    return samples.with_old(store.at_random(seed)) if store else samples


class IncrementalSet:
    """Samples of one or several data sets, with columns as their targets; made by
    :func:`experiences`.

    A sample is a dict ``input``, ``target``; a batch also has ``class_counts``, int64 (r,), the
    labelled samples of each class.

    Attributes:
        target: (n,) columns; -100 of unlabelled samples, which :meth:`with_external` adds.
        source_index, places: (n,) which of the data sets a sample is of, and its index in that one.
        classes: names of the columns.
        class_counts: int64 (r,).
        pool: unlabelled samples to draw from, or None.
        sampling: how they are drawn.
        memory: what exemplars are chosen from, or None.
        held_out: samples that are not in the set, see :func:`experiences`.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        classes: Sequence[str],
        pool: object | None,
        sampling: dict,
        seed: int,
        memory: Memory | None = None,
        held_out: Sequence[Part] = (),
    ):
        self.memory, self.held_out = memory, list(held_out)
        self.parts, self.classes = list(parts), list(classes)
        self.pool, self.sampling, self.seed = pool, sampling, seed
        self.sources = list({id(part.dataset): part.dataset for part in parts}.values())
        number = {id(source): k for k, source in enumerate(self.sources)}
        self.source_index = torch.cat(
            [torch.full_like(part.index, number[id(part.dataset)]) for part in parts]
        )
        self.places = torch.cat([part.index for part in parts])
        self.target = torch.cat([part.target for part in parts])
        self.class_counts = torch.bincount(self.target[self.target >= 0], minlength=len(classes))

    def __len__(self) -> int:
        return len(self.target)

    @property
    def unreadable(self) -> dict[str, str]:
        """``{path: why}`` of the files that the data sets left out when they were made."""
        reasons: dict[str, str] = {}
        for dataset in self._all_sources():
            reasons |= getattr(dataset, "unreadable", None) or {}
        return reasons

    def _all_sources(self) -> list:
        """The data sets, the pool among them."""
        return self.sources if self.pool is None else [*self.sources, self.pool]

    def path(self, index: int) -> str:
        """The file of a sample, if its data set has ``path``."""
        return self.sources[int(self.source_index[index])].path(int(self.places[index]))

    def with_classes(self, names: Sequence[str], drop: bool = False) -> "IncrementalSet":
        """The same samples, their columns those of ``names``; see
        :func:`kdtasks.core.classes.class_numbers`.
        """
        numbers = class_numbers(
            self.classes, names, count_classes(self.target, len(self.classes)), drop
        )
        other = copy.copy(self)
        other.parts = [part.renumbered(numbers) for part in self.parts]
        other.held_out = [part.renumbered(numbers) for part in self.held_out]
        other.memory = self.memory and self.memory.renumbered(numbers)
        other.classes, other.target = list(names), renumber(self.target, numbers)
        other.class_counts = torch.bincount(other.target[other.target >= 0], minlength=len(names))
        return other

    def with_exemplars(self, orders: Sequence[Tensor]) -> "IncrementalSet":
        """The newest experience's samples, and these exemplars in the place of the random ones.

        Args:
            orders: of the classes before, see :meth:`Memory.chosen`.

        Raises:
            ValueError: there is no memory.
        """
        if self.memory is None:
            raise ValueError("there is no memory for exemplars: experiences(memory=…)")
        return self.with_old(self.memory.chosen(orders))

    def with_old(self, exemplars: Sequence[Part]) -> "IncrementalSet":
        """The newest experience's samples and these, less what the memory holds out."""
        parts, held_out = self.memory.split([self.memory.parts[-1], *exemplars], self.seed)
        return type(self)(
            parts, self.classes, self.pool, self.sampling, self.seed, self.memory, held_out
        )

    def only(self, parts: Sequence[Part]) -> "IncrementalSet":
        """Other samples of the same data sets, in the test's view."""
        plain = {id(part.dataset): unaugmented(part.dataset) for part in parts}
        parts = [Part(plain[id(part.dataset)], part.index, part.target) for part in parts]
        return type(self)(parts, self.classes, None, {}, self.seed)

    def with_external(self, index: Tensor) -> "IncrementalSet":
        """The same and, unlabelled, the pool's samples ``index``.

        Raises:
            ValueError: there is no pool, or it is batched and the rest is not.
        """
        return self._with_pool(self.parts, self.pool, index)

    def whole_pool(self) -> "IncrementalSet":
        """The pool alone, in its order, in the test's view; errors as in :meth:`with_external`."""
        count = 0 if self.pool is None else len(self.pool)
        return self._with_pool([], unaugmented(self.pool), torch.arange(count))

    def _with_pool(
        self, parts: Sequence[Part], pool: object | None, index: Tensor
    ) -> "IncrementalSet":
        if pool is None:
            raise ValueError("there is no pool of unlabelled samples: experiences(pool=…)")
        if callable(getattr(pool, "batch", None)) != isinstance(self, BatchedSet):
            raise ValueError(
                f"the pool {type(pool).__name__} and the labelled data "
                f"{type(self.sources[0]).__name__} must both be batched, or both map-style"
            )
        unlabelled = Part(pool, index, torch.full_like(index, UNLABELLED))
        parts = [*parts, unlabelled]
        return type(self)(parts, self.classes, None, {}, self.seed, self.memory, self.held_out)

    def __getitem__(self, i: int) -> dict:
        sample = self.sources[int(self.source_index[i])][int(self.places[i])]
        if isinstance(sample, dict):
            sample = sample["input"]
        elif isinstance(sample, list | tuple):
            sample = sample[0]
        return {"input": sample, "target": int(self.target[i])}

    def collate(self, samples: Sequence[dict]) -> dict:
        """A batch of samples."""
        return {**stack(samples), "class_counts": self.class_counts}


class BatchedSet(IncrementalSet):
    """The same of data sets that make whole batches, on their own device."""

    def to(self, device: torch.device | str) -> "BatchedSet":
        """Move the data sets to ``device``; returns itself."""
        for source in self._all_sources():
            if hasattr(source, "to"):
                source.to(device)
        return self

    def batch(self, index: Tensor, view: Tensor, seed: int) -> dict[str, Tensor]:
        """``input``, ``target`` (b,) and ``class_counts`` (r,) of the samples ``index`` (b,) in
        their views ``view`` (b,).
        """
        source, place = self.source_index[index], self.places[index]
        order = source.argsort(stable=True)
        numbers, counts = source[order].unique_consecutive(return_counts=True)
        batches = [
            self.sources[k].batch(place[rows], view[rows], seed)["input"]
            for k, rows in zip(numbers.tolist(), order.split(counts.tolist()))
        ]
        images = batches[0] if len(batches) == 1 else torch.cat(batches)
        # labelled rows come first already
        if not torch.equal(order, torch.arange(len(order))):
            images = images[order.argsort().to(images.device, non_blocking=True)]
        return {
            "input": images,
            "target": self.target[index].to(images.device, non_blocking=True),
            "class_counts": self.class_counts.to(images.device, non_blocking=True),
        }


def unaugmented(dataset: object) -> object:
    """A copy of the data set without its ``augment``; one that has none stays as it is."""
    if getattr(dataset, "augment", None) is None:
        return dataset
    plain = copy.copy(dataset)
    plain.augment = None
    return plain
