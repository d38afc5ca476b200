"""The data sets of an experiment, each read once."""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from kdtasks.engine import builder, data_sets
from kdtasks.engine.config import jsonable


class DataStore:
    """The train and test sets that data settings describe.

    The same description, inside another one too, is read once. Its classes are numbered as in the
    data that the final student trains on (another stage's training data: where the classes are the
    same), those of a test set as in the training data of the same setting. A test set is told that
    it does not train.

    Args:
        device: where data sets with a ``to()`` go.
        seeded: the context in which a set draws random numbers.
        final: the data setting that the final student trains on; None: there is none.
        unseen: the test is of classes that nobody trained on.

    Attributes:
        made: ``{description: data set}`` of what was read.
        drawn: the descriptions of those that have drawn random numbers.
    """

    def __init__(
        self,
        device: torch.device,
        seeded: Callable[[], AbstractContextManager],
        final: Mapping | None,
        unseen: bool,
    ):
        self.device, self.seeded, self.final, self.unseen = device, seeded, final, unseen
        self.made: dict[str, object] = {}
        self.drawn: set[str] = set()
        self._kept: dict[Hashable, object] = {}

    def keep(self, key: Hashable, make: Callable[[], object]) -> Any:
        """What ``make()`` gives, which is called once for each key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def clear(self) -> None:
        """Forget what was read; it is read again when it is needed."""
        self._kept.clear()
        self.made.clear()

    def share(self, other: "DataStore") -> None:
        """Read with another one of the same seed and device: what one has read, the other has."""
        self.made, self.drawn = other.made, other.drawn

    @property
    def is_drawn(self) -> bool:
        """Whether a data set that was read has drawn random numbers."""
        return bool(self.drawn)

    def train_set(self, data: Mapping) -> Any:
        """The training set of a data setting."""
        made, names = self._read(data, "train"), self._final_names()
        classes = data_sets.class_names(made)
        same = names is not None and classes is not None and sorted(classes) == sorted(names)
        return self._with_classes(made, names if same else None, False, "data.train")

    def test_set(self, data: Mapping, classes: Sequence[str] | str | None = "train") -> Any:
        """The test set of a data setting.

        Args:
            data: the setting.
            classes: whose numbers count: ``'train'``, the training set's; a list, and the training
                set is not read; None: its own.

        Raises:
            ConfigError: it has samples of a class that ``classes`` lacks, or augments.
        """
        names = None if self.unseen else classes
        if classes == "train":
            names = self.class_names(data)
        made = self._read(data, "test")
        data_sets.check_plain(made, "data.test")
        drop = data["unknown_classes"] == "drop"
        return self._with_classes(
            made, None if names is None else [*map(str, names)], drop, "data.test"
        )

    def class_names(self, data: Mapping) -> list[str] | None:
        """The classes that a setting's training set brings; None where those of the test differ."""
        return None if self.unseen else data_sets.class_names(self.train_set(data))

    def _final_names(self) -> list[str] | None:
        if self.final is None or self.unseen:
            return None
        return data_sets.class_names(self._read(self.final, "train"))

    def _with_classes(
        self, made: object, names: Sequence[str] | None, drop: bool, where: str
    ) -> Any:
        key = ("classes", id(made), tuple(names or ()), drop)
        return self.keep(key, lambda: data_sets.with_classes(made, names, drop, where))

    def _read(self, data: Mapping, part: str) -> Any:
        spec = data_sets.told(data[part], part == "train", data["skip_bad"])
        return self._read_once(spec, f"data.{part}")

    def _read_once(self, spec: Mapping, where: str) -> Any:
        key = json.dumps(jsonable(spec), sort_keys=True, default=str)
        if key not in self.made:
            self.made[key], drawn = self._make(spec, where)
            self.drawn |= {key} if drawn else set()
        return self.made[key]

    def _make(self, spec: Mapping, where: str) -> tuple[Any, bool]:
        """A data set, and whether it has drawn random numbers."""
        arguments = {
            name: self._read_inner(value, f"{where}.{name}") for name, value in spec.items()
        }
        with self.seeded():
            before = torch.get_rng_state()
            made = builder.build(arguments, where)
            drawn = not torch.equal(before, torch.get_rng_state())
        return made.to(self.device) if hasattr(made, "to") else made, drawn

    def _read_inner(self, value: object, where: str) -> Any:
        if isinstance(value, Mapping) and "type" in value:
            return self._read_once(value, where)
        if isinstance(value, list):
            return [self._read_inner(item, f"{where}[{k}]") for k, item in enumerate(value)]
        return value
