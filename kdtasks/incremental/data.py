"""Streams of experiences, and what a stage learns from and is tested on.

A stream is any sequence of objects with ``.dataset`` and ``.classes_in_this_experience``:
:func:`class_incremental` makes one of a classification data set, :func:`avalanche_stream` takes one
of an avalanche benchmark, and a function of your own may give another. Classes have the numbers of
the data set, in any order; the **columns** of the head are the classes in the order in which the
stream brings them. :func:`experiences` maps one to the other, once, for training, test and
exemplars alike.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtasks.core.classes import UNLABELLED, class_numbers, count_classes, renumber
from kdtasks.core.names import did_you_mean
from kdtasks.engine.reader import stack
from kdtasks.incremental.avalanche_benchmarks import checked_benchmark
from kdtasks.incremental.sampling import coreset_indices, coreset_quota

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario

# how exemplars are chosen
SELECTIONS = ("random", "herding")


@dataclass
class Experience:
    """Some classes of a data set.

    Args:
        dataset: batched (it has ``batch(index, view, seed)``) or map-style, see
            :class:`kdtasks.engine.loader.Loader`.
        classes_in_this_experience: their numbers in the data set.
        index: int64 (n,), the samples; None: all.
        names: of the classes, in the same order; None: their numbers.
        target: int64, the class numbers of all of ``dataset``; None: they are looked up.
    """

    dataset: object
    classes_in_this_experience: list[int]
    index: Tensor | None = None
    names: list[str] | None = None
    target: Tensor | None = None


def class_incremental(
    dataset: object, sizes: Sequence[int], order: Sequence[int | str] | None = None
) -> list[Experience]:
    """The classes of a data set, some at a time.

    Args:
        dataset: with ``target`` (or ``targets``) and, where known, ``classes``.
        sizes: number of classes of each experience.
        order: numbers or names of all classes, in the order in which they come; None: a permutation
            drawn from torch's random stream, which is the run's seed in a config.

    Raises:
        ValueError: a class that the data lacks, twice in the order, or left without an experience.
            Fewer classes are for the data set to choose, as
            ``kdtasks.classification.data.cifar100(classes=…)`` does.
    """
    target = targets_of(dataset)
    names = [str(name) for name in getattr(dataset, "classes", [])]
    if not names:
        names = [str(number) for number in range(int(target.max()) + 1)]
    numbers = _class_order(order, names)
    if sum(sizes) != len(numbers) or min(sizes) < 1:
        raise ValueError(
            f"sizes={tuple(sizes)} are {sum(sizes)} classes, the order has "
            f"{len(numbers)}: every class belongs to one experience"
        )
    stream, start = [], 0
    for size in sizes:
        classes = numbers[start : start + size]
        index = torch.isin(target, torch.tensor(classes)).nonzero()[:, 0]
        stream.append(Experience(dataset, classes, index, [names[c] for c in classes], target))
        start += size
    return stream


def _class_order(order: Sequence[int | str] | None, names: list[str]) -> list[int]:
    """The numbers of all classes, each once, in their order."""
    if order is None:
        return torch.randperm(len(names)).tolist()
    numbers = [_class_number(value, names) for value in order]
    repeated = {number for number in numbers if numbers.count(number) > 1}
    if repeated:
        raise ValueError(f"order has the class {names[min(repeated)]!r} more than once")
    missing = [name for number, name in enumerate(names) if number not in numbers]
    if missing:
        raise ValueError(
            f"order leaves out {len(missing)} of the data's {len(names)} classes: {missing[:5]}"
        )
    return numbers


def _class_number(value: int | str, names: list[str]) -> int:
    if isinstance(value, str):
        if value not in names:
            raise ValueError(f"order has the class {value!r}; {did_you_mean(value, names)}")
        return names.index(value)
    if not 0 <= value < len(names):
        raise ValueError(f"order has the class {value}, the data has 0..{len(names) - 1}")
    return int(value)


def targets_of(dataset: object) -> Tensor:
    """(n,) int64 on the CPU: ``target`` or ``targets`` of a data set; if it has neither, every
    sample is read once.

    torch's random stream does not move, whatever augmentation draws from it meanwhile.
    """
    for name in ("target", "targets"):
        target = getattr(dataset, name, None)
        if isinstance(target, Tensor):
            return target.long().cpu()
        if target is not None:
            return torch.tensor([int(number) for number in target], dtype=torch.long)
    numbers = []
    with torch.random.fork_rng(devices=[]):
        for i in range(len(dataset)):
            sample = dataset[i]
            numbers.append(int(sample["target"] if isinstance(sample, dict) else sample[1]))
    return torch.tensor(numbers, dtype=torch.long)


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
        stream: see above.
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
    columns, names = _columns(stream[: last + 1])
    is_alone = trains and not (memory or memory_per_class)
    parts = [_part(element, columns) for element in stream[last if is_alone else 0 : last + 1]]
    batched = all(callable(getattr(part.dataset, "batch", None)) for part in parts)
    kind = BatchedSet if batched else IncrementalSet
    if not trains:
        return kind(parts, names, pool, sampling or {}, seed)
    store = None
    if memory or memory_per_class:
        numbers = [[columns[c] for c in _classes(element)] for element in stream[: last + 1]]
        store = Memory(parts, numbers, memory, memory_per_class, exemplars, held_out)
    samples = kind([parts[-1]], names, pool, sampling or {}, seed, store)
    return samples.with_old(store.at_random(seed)) if store else samples


def avalanche_stream(benchmark: "CLScenario", part: str | None = None, train: bool = True) -> list:
    """The experiences of an avalanche benchmark, checked
    (:func:`kdtasks.incremental.avalanche_benchmarks.checked_benchmark`).

    Args:
        benchmark: from avalanche, or ``dict(type='avalanche.benchmarks.SplitMNIST',
            n_experiences=5)`` in a config.
        part: ``'train'`` or ``'test'``; None: as ``train`` says.
        train: whether it is the training stream.
    """
    part = part or ("train" if train else "test")
    if part not in ("train", "test"):
        raise ValueError(f"part must be 'train' or 'test', got {part!r}")
    return list(getattr(checked_benchmark(benchmark), f"{part}_stream"))


def _columns(stream: Sequence) -> tuple[dict[int, int], list[str]]:
    """``{class number: column}`` in the order in which the classes come, and their names."""
    columns, names = {}, []
    for number, experience in enumerate(stream):
        classes = _classes(experience)
        again = [c for c in classes if c in columns]
        if again:
            raise ValueError(
                f"the class {again[0]} is in experience {number} and in an earlier one: expected "
                "each class in one"
            )
        columns |= {c: len(columns) + k for k, c in enumerate(classes)}
        names += getattr(experience, "names", None) or [str(c) for c in classes]
    return columns, names


def _classes(experience: Experience) -> list[int]:
    """The class numbers of an experience, in its order; a set is unordered, so it is sorted."""
    classes = [int(number) for number in experience.classes_in_this_experience]
    if isinstance(experience.classes_in_this_experience, set | frozenset):
        return sorted(classes)
    return classes


@dataclass
class _Part:
    """Some samples of a data set: their places in it, and their columns."""

    dataset: object
    index: Tensor
    target: Tensor

    def subset(self, index: Tensor, start: int) -> "_Part":
        """Those of ``index``, which counts this part's samples from ``start``."""
        rows = index[(index >= start) & (index < start + len(self.index))] - start
        return _Part(self.dataset, self.index[rows], self.target[rows])

    def of_class(self, column: int) -> "_Part":
        """The samples of one class."""
        rows = (self.target == column).nonzero()[:, 0]
        return _Part(self.dataset, self.index[rows], self.target[rows])

    def renumbered(self, numbers: Tensor) -> "_Part":
        """The same samples with other columns; see :func:`kdtasks.core.classes.renumber`."""
        return _Part(self.dataset, self.index, renumber(self.target, numbers))


def _part(experience: Experience, columns: dict[int, int]) -> _Part:
    target, index = getattr(experience, "target", None), getattr(experience, "index", None)
    target = targets_of(experience.dataset) if target is None else target
    index = torch.arange(len(target)) if index is None else index
    target, classes = target[index], _classes(experience)
    wrong = target[~torch.isin(target, torch.tensor(classes))]
    if len(wrong):
        raise ValueError(
            f"an experience of the classes {classes} has a sample of class {int(wrong[0])}"
        )
    column_of = torch.full((max(classes) + 1,), UNLABELLED)
    column_of[torch.tensor(classes)] = torch.tensor([columns[c] for c in classes])
    return _Part(experience.dataset, index, column_of[target])


class Memory:
    """The exemplars of a stream: what they are chosen from, and how many there are.

    Args:
        parts: the samples of each experience, the newest one's last.
        columns: of each experience's classes, in their order.
        total, per_class: see :func:`experiences`; one of them is 0.
        selection: ``'random'`` or ``'herding'``.
        held_out: share that is not trained on.
    """

    def __init__(
        self,
        parts: Sequence[_Part],
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

    def at_random(self, seed: int) -> list[_Part]:
        """Random ones of each experience but the newest."""
        old = self.parts[:-1]
        if not old:
            return []
        target = torch.cat([part.target for part in old])
        rows = coreset_indices(target, self.quota(sum(map(len, self.columns[:-1]))), seed)
        return [part.subset(rows, start) for part, start in zip(old, _starts(old))]

    def newest(self) -> list[_Part]:
        """All samples of the newest experience, a part a class."""
        return [self.parts[-1].of_class(column) for column in self.columns[-1]]

    def chosen(self, orders: Sequence[Tensor]) -> list[_Part]:
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
            parts.append(_Part(part.dataset, places, part.target[: len(places)]))
        return parts

    def renumbered(self, numbers: Tensor) -> "Memory":
        """The same with other columns; see :func:`kdtasks.core.classes.renumber`."""
        parts = [part.renumbered(numbers) for part in self.parts]
        columns = [numbers[torch.tensor(columns)].tolist() for columns in self.columns]
        return Memory(parts, columns, self.total, self.per_class, self.selection, self.held_out)

    def split(self, parts: Sequence[_Part], seed: int) -> tuple[list[_Part], list[_Part]]:
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
            [part.subset(rows, start) for part, start in zip(parts, _starts(parts))]
            for rows in (training_rows, held_out_rows)
        )
        return training_parts, [part for part in held_out_parts if len(part.index)]


def _starts(parts: Sequence[_Part]) -> list[int]:
    ends = torch.tensor([len(part.index) for part in parts]).cumsum(0)
    return [0, *ends[:-1].tolist()]


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
        parts: Sequence[_Part],
        classes: Sequence[str],
        pool: object | None,
        sampling: dict,
        seed: int,
        memory: Memory | None = None,
        held_out: Sequence[_Part] = (),
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

    def with_old(self, exemplars: Sequence[_Part]) -> "IncrementalSet":
        """The newest experience's samples and these, less what the memory holds out."""
        parts, held_out = self.memory.split([self.memory.parts[-1], *exemplars], self.seed)
        return type(self)(
            parts, self.classes, self.pool, self.sampling, self.seed, self.memory, held_out
        )

    def only(self, parts: Sequence[_Part]) -> "IncrementalSet":
        """Other samples of the same data sets, in the test's view."""
        plain = {id(part.dataset): unaugmented(part.dataset) for part in parts}
        parts = [_Part(plain[id(part.dataset)], part.index, part.target) for part in parts]
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
        self, parts: Sequence[_Part], pool: object | None, index: Tensor
    ) -> "IncrementalSet":
        if pool is None:
            raise ValueError("there is no pool of unlabelled samples: experiences(pool=…)")
        if callable(getattr(pool, "batch", None)) != isinstance(self, BatchedSet):
            raise ValueError(
                f"the pool {type(pool).__name__} and the labelled data "
                f"{type(self.sources[0]).__name__} must both be batched, or both map-style"
            )
        unlabelled = _Part(pool, index, torch.full_like(index, UNLABELLED))
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
