"""Streams of experiences: of a classification data set, and of an avalanche benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtasks.core.names import did_you_mean
from kdtasks.incremental.avalanche_benchmarks import checked_benchmark

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
