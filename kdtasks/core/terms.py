"""The terms of a step's loss: what is computed, of which tensors, at which weight, under which
name.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdtasks.core.names import as_names
from kdtasks.core.outputs import tensors_in

Loss = Callable[..., Tensor | dict | list | tuple]
Weight = float | Callable[[tuple[int, int]], float]


class Term(NamedTuple):
    """A loss, the names of the tensors that it is called with, and its weight."""

    loss: Loss
    of: tuple[str, ...]
    weight: Weight = 1.0


def trains(name: str) -> bool:
    """Whether a term of this name trains; any other only informs."""
    return "loss" in name


def total_loss(losses: Mapping[str, Tensor]) -> Tensor | int:
    """The sum of the terms that train: what a step differentiates; 0 where there are none."""
    return sum(value for name, value in losses.items() if trains(name))


class Terms(dict[str, Term]):
    """The terms of a step by name."""

    def add(
        self, name: str, loss: Loss | None, of: str | Sequence[str], weight: Weight = 1.0
    ) -> Loss | None:
        """Add a term; one of weight 0 is left out.

        Args:
            name: of the term.
            loss: None takes the one tensor of ``of`` as it is.
            of: names of tensors.
            weight: a number, or a function of ``(iteration, total)``.

        Returns:
            The loss, or None where the term is left out.

        Raises:
            ValueError: a name that is there already; ``loss`` cannot be called, or is None with
                several tensors.
        """
        of = as_names(of)
        if name in self:
            raise ValueError(
                f"two losses are called {name!r}; the student's own 'student.{name}' is one: list "
                "it in some 'of', or rename yours"
            )
        if loss is None and len(of) != 1:
            raise ValueError(
                f"{name}: an entry without a loss takes one tensor as it is, got of={of}"
            )
        if loss is not None and not callable(loss):
            raise ValueError(f"{name}: {loss!r} is no loss; expected a function or a module")
        if not callable(weight) and weight == 0:
            return None
        self[name] = Term(_identity if loss is None else loss, of, weight)
        return self[name].loss

    def check_some_train(self, given: Iterable[str]) -> None:
        """Raise ValueError if none trains; the message names those that were given."""
        if not any(trains(name) for name in self):
            raise ValueError(
                f"no loss trains the student: the losses are {list(given)}; a name that contains "
                "'loss', with a weight other than 0, does"
            )

    def names_of(self) -> dict[str, tuple[str, ...]]:
        """The names of the tensors that each term is of."""
        return {name: term.of for name, term in self.items()}

    def weights(self, progress: tuple[int, int] | None) -> dict[str, float]:
        """The weight of each term at this point of the run.

        Raises:
            RuntimeError: a weight is a schedule, and ``progress`` is None.
        """
        weights = {}
        for name, term in self.items():
            if not callable(term.weight):
                weights[name] = term.weight
            elif progress is None:
                raise RuntimeError(
                    f"the weight of {name} is a schedule: set distiller.progress = (iteration, "
                    "total) before each step"
                )
            else:
                weights[name] = term.weight(progress)
        return weights


def named_values(name: str, value: Tensor | dict | list | tuple) -> dict[str, Tensor]:
    """What a loss returned, by name: ``{name: value}``, or ``<name>_<key or index>`` for each entry
    of a dict or list.
    """
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    return {f"{name}_{key}": entry for key, entry in value.items()}


def check_informs(name: str, values: Mapping[str, object]) -> None:
    """Raise ValueError if a term that only informs gave something under a name that would train."""
    if not trains(name) and any(trains(key) for key in values):
        raise ValueError(
            f"{name} gave {[key.removeprefix(f'{name}_') for key in values]}, but only informs, as "
            f"no 'loss' is in its own name: call it loss_{name}"
        )


def weighted_values(name: str, loss: Loss, tensors: Sequence, weight: float) -> dict[str, Tensor]:
    """A term's values, each times the weight; without gradient where it only informs."""
    if trains(name):
        values = named_values(name, loss(*tensors))
        return values if weight == 1 else {key: weight * value for key, value in values.items()}
    with torch.no_grad():
        values = {key: weight * value for key, value in named_values(name, loss(*tensors)).items()}
    check_informs(name, values)
    return values


def connected_zero(values: Sequence) -> Tensor:
    """A zero that backpropagates zeros into all tensors among the values that have a gradient."""
    floats = [tensor for tensor in tensors_in(values) if tensor.is_floating_point()]
    connected = [t for t in floats if t.requires_grad] or floats[:1] or [torch.zeros(())]
    # sums of no elements: 0 · inf would be nan
    zeros = ((t if t.dim() else t[None])[:0].sum() for t in connected)
    return functools.reduce(torch.add, zeros)


def _identity(tensor: Tensor) -> Tensor:
    """The loss of an entry that has none."""
    return tensor
