"""The models of a step by their roles: one student, its peers, its frozen teachers."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kdtasks.core.names import STUDENT, learner_roles
from kdtasks.core.teacher import Teachers, check_teachers
from kdtasks.core.trial import keep_modes, keep_random_streams, keep_state, set_learning


class Participants(nn.Module):
    """Models by role, and the losses that are modules; each may be replaced at any time.

    Args:
        student: the model that learns.
        teachers: ``{name: model}``; each becomes a frozen
            :class:`~kdtasks.core.teacher.Teacher`.
        peers: further models that learn.

    Raises:
        ValueError: a teacher's name that cannot be one, or a parameter that a learner shares with a
            teacher.
    """

    def __init__(
        self, student: nn.Module, teachers: Mapping[str, nn.Module], peers: Sequence[nn.Module]
    ):
        super().__init__()
        self.student = student
        self.peers = nn.ModuleList(peers)
        self.learners = learner_roles(len(self.peers))
        check_teachers(teachers, self.learning_models())
        self.teachers = Teachers(teachers)
        self.losses = nn.ModuleDict()
        self._facts: dict[tuple[str, ...], tuple[list, dict]] = {}
        self._former: list[nn.Module] = []

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "teachers" and not isinstance(value, Teachers):
            value = Teachers(value)
        super().__setattr__(name, value)

    @property
    def roles(self) -> list[str]:
        """The student, its peers and the teachers."""
        return [*self.learners, *self.teachers]

    def model(self, role: str) -> nn.Module:
        """The model that plays a role: the student, a peer, or the network inside a
        :class:`~kdtasks.core.teacher.Teacher`.
        """
        if role == STUDENT:
            return self.student
        if role in self.teachers:
            return self.teachers[role].model
        return self.peers[self.learners.index(role) - 1]

    def learning_models(self) -> dict[str, nn.Module]:
        """The student and its peers, by role."""
        return dict(zip(self.learners, (self.student, *self.peers)))

    def facts(self, *roles: str) -> dict:
        """What has been found out about the models of some roles, to be kept; empty again when one
        of them was replaced.
        """
        owners = [self.model(role) for role in roles]
        owners += [self.teachers[role] for role in roles if role in self.teachers]
        kept = self._facts.get(roles)
        if kept is None or any(a is not b for a, b in zip(kept[0], owners)):
            kept = self._facts[roles] = (owners, {})
        return kept[1]

    def is_changed(self) -> bool:
        """Whether a model or a loss was replaced since :meth:`note_parts`."""
        parts = self._parts()
        return len(parts) != len(self._former) or any(
            a is not b for a, b in zip(parts, self._former)
        )

    def note_parts(self) -> None:
        """Remember which models and losses there are."""
        self._former = self._parts()

    def _parts(self) -> list[nn.Module]:
        teachers = [(teacher, teacher.model) for teacher in self.teachers.values()]
        return [self.student, *self.peers, *itertools.chain(*teachers), *self.losses.values()]

    @contextmanager
    def at_rest(self, training: bool = False) -> Iterator[None]:
        """Without gradient, in eval, or learners in training mode; afterwards all is as it was, but
        for what losses built.
        """
        parts = [part for role in self.roles for part in self.model(role).modules()]
        with (
            keep_modes(self),
            keep_random_streams([*self.modules(), *parts]),
            keep_state(parts),
            torch.no_grad(),
        ):
            if training:
                self.losses.eval()
                for model in self.learning_models().values():
                    set_learning(model)
            else:
                self.eval()
            yield

    def __deepcopy__(self, memo: dict[int, Any]) -> "Participants":
        """A copy has its own student, peers and losses, and shares the teachers."""
        other = self.__class__.__new__(self.__class__)
        memo[id(self)] = other
        for key, value in self.__dict__.items():
            new = key in ("_facts", "_former")
            other.__dict__[key] = type(value)() if new else copy.deepcopy(value, memo)
        return other
