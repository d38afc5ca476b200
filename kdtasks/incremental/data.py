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
    left = [name for number, name in enumerate(names) if number not in numbers]
    if left:
        raise ValueError(
            f"order leaves out {len(left)} of the data's {len(names)} classes: {left[:5]}"
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
) -> "IncrementalSet":
    """The samples of one experience: to train on, with exemplars of the classes before; or to test
    on.

    Args:
        stream: see above.
        experience: its number, from 0; None: all of them together.
        test: the samples of this experience and all before.
        memory: exemplars of the classes before, in all: ``floor(memory / l)`` of each of l classes,
            what remains one each to the latest; chosen at random, a smaller choice within a larger
            one, as if redrawn from what is kept.
        pool: unlabelled samples from which a stage may draw; see
            :func:`kdtasks.incremental.trainer.training_set`.
        sampling: arguments of :func:`kdtasks.incremental.sampling.sample_external`, where they
            differ from its defaults.
        seed: of the exemplars.

    Raises:
        ValueError: no such experience, a class in two of them, a label that its experience does not
            have.
    """
    stream = list(stream)
    if experience is not None and not 0 <= experience < len(stream):
        raise ValueError(f"experience={experience}, the stream has 0..{len(stream) - 1}")
    last = len(stream) - 1 if experience is None else experience
    columns, names = _columns(stream[: last + 1])
    if test or experience is None:
        parts = [_part(seen, columns) for seen in stream[: last + 1]]
    else:
        parts = [_part(stream[last], columns)]
        if memory and last:
            parts += _exemplars(stream[:last], columns, memory, seed)
    batched = all(callable(getattr(part.dataset, "batch", None)) for part in parts)
    kind = BatchedSet if batched else IncrementalSet
    return kind(parts, names, pool, sampling or {}, seed)


def _exemplars(
    stream: Sequence[Experience], columns: dict[int, int], memory: int, seed: int
) -> list["_Part"]:
    """The samples of past experiences that are kept."""
    parts = [_part(past, columns) for past in stream]
    classes = sum(len(past.classes_in_this_experience) for past in stream)
    target = torch.cat([part.target for part in parts])
    kept = coreset_indices(target, coreset_quota(memory, classes), seed)
    return [part.subset(kept, start) for part, start in zip(parts, _starts(parts))]


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
    """

    def __init__(
        self,
        parts: Sequence[_Part],
        classes: Sequence[str],
        pool: object | None,
        sampling: dict,
        seed: int,
    ):
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
        other.parts = [
            _Part(part.dataset, part.index, renumber(part.target, numbers)) for part in self.parts
        ]
        other.classes, other.target = list(names), renumber(self.target, numbers)
        other.class_counts = torch.bincount(other.target[other.target >= 0], minlength=len(names))
        return other

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
        return type(self)([*parts, unlabelled], self.classes, None, {}, self.seed)

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
