"""What the engine tells the data sets of a config: whether they train, and their classes."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdtasks.core.classes import class_name, class_numbers, count_classes, renumber
from kdtasks.engine import builder
from kdtasks.engine.errors import ConfigError

# arguments of a data function that the engine gives where the config does not
TOLD = ("train", "skip_bad")
_LOOKED_AT = 10  # samples, to see what a target is


def told(spec: Mapping, train: bool, skip_bad: bool = False) -> dict:
    """A description of data in which every function that accepts ``train`` is told it, those inside
    it too.

    ``skip_bad`` likewise, where it is True. What the config says itself stays.
    """
    arguments = {name: _told(value, train, skip_bad) for name, value in spec.items()}
    accepts = _parameters(spec["type"])
    values = {"train": train, **({"skip_bad": True} if skip_bad else {})}
    return {
        **arguments,
        **{name: values[name] for name in values if name in accepts and name not in spec},
    }


def _told(value: object, train: bool, skip_bad: bool) -> object:
    if isinstance(value, Mapping) and "type" in value:
        return told(value, train, skip_bad)
    if isinstance(value, list | tuple) and any(
        isinstance(item, Mapping) and "type" in item for item in value
    ):
        return [_told(item, train, skip_bad) for item in value]
    return value


def _parameters(function: str | Callable) -> Sequence[str]:
    try:
        return tuple(inspect.signature(builder.resolve(function, "data")).parameters)
    # a builtin without a signature
    except (TypeError, ValueError):
        return ()


def image_shape(spec: Mapping, default: Sequence[int] = (3, 224, 224)) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a description of data stands for, without
    reading it.

    Of a set made of others, the first one's. ``size`` as the description has it; otherwise what the
    function's attribute ``image_shape`` says; otherwise ``default``.
    """
    inner = spec.get("dataset") or next(iter(spec.get("sets", [])), None)
    if isinstance(inner, Mapping) and "type" in inner:
        return image_shape(inner, default)
    channels, *usual = (
        getattr(builder.resolve(spec["type"], "data.train"), "image_shape", None) or default
    )
    size = spec.get("size")
    height, width = (size, size) if isinstance(size, int) else tuple(size or usual)
    return channels, height, width


def check_test(spec: Mapping, where: str) -> None:
    """A description of test data says nowhere that it trains or augments.

    Raises:
        ConfigError: the key that says so.
    """
    if spec.get("train") is True:
        raise ConfigError(
            f"{where}.train=True: test data does not train; expected False, which is the default "
            "here"
        )
    if spec.get("augment") not in (None, False):
        raise ConfigError(
            f"{where}.augment={spec['augment']!r}: test data is never augmented; leave it out"
        )
    for name, value in spec.items():
        items = enumerate(value) if isinstance(value, list | tuple) else [(None, value)]
        for k, item in items:
            if isinstance(item, Mapping) and "type" in item:
                check_test(item, f"{where}.{name}" if k is None else f"{where}.{name}[{k}]")


def check_plain(dataset: Any, where: str) -> None:
    """A test set that has been made does not augment.

    Raises:
        ConfigError: it has an ``augment``.
    """
    augment = getattr(dataset, "augment", None)
    if augment is not None and augment is not False and not inspect.ismethod(augment):
        raise ConfigError(
            f"{where}: the {type(dataset).__name__} has augment={augment!r}, but test data is "
            "never augmented: expected augment=None, as where train=False"
        )


def class_names(dataset: Any) -> list[str] | None:
    """The names of a data set's classes, where it knows them."""
    classes: Any = getattr(dataset, "classes", None)
    if isinstance(classes, str | Mapping) or not hasattr(classes, "__getitem__"):
        return None
    names = [class_name(name) for name in classes] if hasattr(classes, "__len__") else []
    return names or None


def normalization(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The ``mean`` and ``std`` that a data set, or the one that it wraps, says it normalises its
    images in [0,1] with; None: it says nothing.
    """
    mean, std = (_channels(getattr(dataset, name, None)) for name in ("mean", "std"))
    if mean and std and len(mean) == len(std):
        return mean, std
    inner = getattr(dataset, "dataset", None)
    return None if inner is None or inner is dataset else normalization(inner)


def _channels(value: Any) -> tuple[float, ...] | None:
    """A number for each channel, of a list, an array, a tensor or one number; None of what is none
    of these, such as a method.
    """
    if isinstance(value, str) or (callable(value) and not hasattr(value, "shape")):
        return None
    try:
        return tuple(torch.as_tensor(value, dtype=torch.float64).flatten().tolist()) or None
    except (TypeError, ValueError, RuntimeError):
        return None


def with_classes(dataset: Any, names: Sequence[str] | None, drop: bool, where: str) -> Any:
    """The data set with the numbers that its classes have in ``names``; itself where nothing
    changes or nothing is known.

    A data set may do it by a method of its own, ``with_classes(names, drop)``; any other one that
    has ``classes`` is wrapped.

    Raises:
        ConfigError: it has samples of a class that ``names`` lacks, and not ``drop``.
    """
    classes = class_names(dataset)
    try:
        if names is None or classes == list(names) == [str(name) for name in dataset.classes]:
            return dataset
        if classes is None:
            numbers = targets(dataset)
            if numbers is not None:
                count_classes(numbers, len(names))
            return dataset
        made = getattr(dataset, "with_classes", None)
        return made(names, drop) if made else Renumbered(dataset, names, drop)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def targets(dataset: Any) -> Tensor | None:
    """(n,) class numbers of all samples, where the data set lists them as ``target`` or
    ``targets``.
    """
    for name in ("target", "targets"):
        try:
            values = torch.as_tensor(getattr(dataset, name))
        except (AttributeError, TypeError, ValueError, RuntimeError):
            continue
        if values.ndim == 1 and not values.is_floating_point() and values.dtype != torch.bool:
            return values.long()
    return None


class Renumbered:
    """A data set of one's own whose classes have the numbers of another list; everything else is as
    it was.

    Class numbers are targets counted from 0, or, in a target that is a dict, ``labels`` counted
    from 1.

    Args:
        dataset: of either of the loader's kinds, with ``classes``.
        names: the list.
        drop: see :func:`kdtasks.core.classes.class_numbers`; what is dropped becomes unlabelled
            (-100), a box is left out.
    """

    def __init__(self, dataset: Any, names: Sequence[str], drop: bool = False):
        self.dataset, self.classes = dataset, list(names)
        classes, self._boxes = class_names(dataset) or [], has_boxes(dataset)
        labels = None if self._boxes else targets(dataset)
        self._numbers = class_numbers(
            classes, names, None if labels is None else count_classes(labels, len(classes)), drop
        )
        if labels is not None:
            self.target = self.targets = renumber(labels, self._numbers)
        if callable(getattr(dataset, "batch", None)):
            self.batch = self._batch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str):
        if name.startswith("__") or name in ("dataset", "batch", "to", "with_classes"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int):
        sample = self.dataset[index]
        if isinstance(sample, Mapping):
            return (
                {**sample, "target": self._renumbered(sample["target"])}
                if "target" in sample
                else sample
            )
        input, target = sample
        return input, self._renumbered(target)

    def _batch(self, index: Tensor, view: Tensor, seed: int) -> dict:
        batch = self.dataset.batch(index, view, seed)
        return {**batch, "target": self._renumbered(batch["target"])}

    def _renumbered(self, target: Any) -> Any:
        if target is None:
            return None
        if isinstance(target, Mapping):
            labels = torch.as_tensor(target["labels"])
            new = torch.where(labels > 0, renumber(labels - 1, self._numbers) + 1, labels)
            kept = new >= 0
            tensors = {
                k: v for k, v in target.items() if isinstance(v, Tensor) and v.ndim and k != "scale"
            }
            of_boxes = [k for k, v in tensors.items() if len(v) == len(labels)]
            return {**target, **{k: target[k][kept] for k in of_boxes}, "labels": new[kept]}
        if isinstance(target, Tensor) and target.is_floating_point():
            raise ValueError(
                "its classes have another order than the training data's, and its targets are not "
                "class numbers: expected the same order"
            )
        if isinstance(target, Tensor):
            return renumber(target.long(), self._numbers)
        return int(self._numbers[int(target)]) if int(target) >= 0 else target


def has_boxes(dataset: Any) -> bool:
    """Whether a sample's target is a dict, by the first one that can be read and has one."""
    if callable(getattr(dataset, "batch", None)):
        return False
    with torch.random.fork_rng(devices=[]):
        for i in range(min(len(dataset), _LOOKED_AT)):
            try:
                sample = dataset[i]
            # the Loader says so when its turn comes
            except Exception:
                continue
            target = sample.get("target") if isinstance(sample, Mapping) else sample[1]
            if target is not None:
                return isinstance(target, Mapping)
    return False
