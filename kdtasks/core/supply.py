"""Tensors of a step by name: which role supplies which, and each model run once, in its turn."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kdtasks.core.build import mode_of
from kdtasks.core.names import TensorName, did_you_mean
from kdtasks.core.outputs import describe_output, entries_of
from kdtasks.core.participants import Participants
from kdtasks.core.recorder import FeatureRecorder, module_paths
from kdtasks.core.roles import NameTable, Turns, needed_names, turn_order


class TensorSupply(Participants):
    """The participants of a step, and the tensors that they give by name.

    A subclass may override :meth:`names` and :meth:`outputs`, to supply names of its own, and
    :meth:`needs`, where a role reads names of another.
    """

    # whether, or how, each model's forward is compiled
    _compile: bool | dict = False

    # What a role supplies -------------------------------------------------------------------------
    def names(self, role: str) -> list[str]:
        """What a role can supply. May be overridden to add names, of any form, to the role that
        computes them.
        """
        return [role, *self.submodules(role)]

    def submodules(self, role: str) -> list[str]:
        """The names of a role's submodules."""
        return [f"{role}.{path}" for path in module_paths(self.model(role))]

    def needs(self, role: str) -> Sequence[str]:
        """The names of other roles that :meth:`outputs` reads from ``batch`` in this role's turn.

        They decide the order of turns: a role runs after those that it needs; else teachers run
        first, then the student, then the peers. May be overridden, as where a teacher follows what
        the student chose; ``self.wanted[role]``, what the losses read of a role, is known here.
        """
        return ()

    def outputs(
        self, role: str, batch: Mapping[str, object], wanted: list[str]
    ) -> dict[str, object]:
        """The wanted names of one role; may be overridden together with :meth:`names`.

        ``batch`` has what the loop gave, and of other roles the names that :meth:`needs` declares.
        A teacher's turn is under ``no_grad``.
        """
        return self.run(role, self.read(batch, "input", role), wanted)

    def run(self, role: str, input: Any, wanted: Sequence[str]) -> dict[str, object]:
        """One forward of a role: ``{role: output, role.<path>: value}`` for the ``role.<path>``
        among ``wanted``.

        An entry that the output lacks is left out.
        """
        output, values = self._recorder(role, tuple(wanted))(input)
        given = {role: output, **{f"{role}.{path}": value for path, value in values.items()}}
        others = [name for name in wanted if name not in given]
        entries = entries_of(output) if others else {}
        for name in others:
            entry = name.partition(".")[2]
            if entry in entries:
                given[name] = entries[entry]
        return given

    def _recorder(self, role: str, wanted: tuple[str, ...]) -> FeatureRecorder:
        """The forward of a role that records the submodules among the wanted names; made once."""
        facts, key = self.facts(role), ("recorder", *wanted)
        if key not in facts:
            call = self.teachers[role] if role in self.teachers else self.model(role)
            modules = set(self.submodules(role))
            parts = [TensorName.parse(name) for name in wanted]
            paths = [name.local for name in parts if name.base in modules]
            facts[key] = FeatureRecorder(self.model(role), paths, call, self._compile)
        return facts[key]

    # What a batch needs ---------------------------------------------------------------------------
    def plan(self, names: NameTable, readers: Mapping[str, Sequence[str]]) -> None:
        """Find out what is read of each role, what roles need of each other, and so their order.

        Args:
            names: who supplies what.
            readers: ``{loss: names that it is of}``.

        Raises:
            ValueError: a name that its role does not supply; a circle of needs.
        """
        self._names, self._readers = names, readers
        self.wanted = names.wanted(readers, self.learners)
        needed = {
            role: needed_names(role, self.needs(role), names, type(self).__name__)
            for role in self.roles
        }
        # teachers first: what they need on the way is free again before the student's graph takes
        # its memory (the other way round costs a fifth of a step on a CPU, in page faults)
        order = turn_order([*self.teachers, *self.learners], needed)
        self._turns = Turns(order, self.wanted, needed)

    @property
    def order(self) -> Sequence[str]:
        """The roles in the order in which they run."""
        return self._turns.order

    def list_names(self) -> NameTable:
        """What the roles say that they supply."""
        return NameTable({role: self.names(role) for role in self.roles})

    def supply(
        self, batch: Mapping[str, object], resting: Sequence[str] = (), partly: bool = False
    ) -> dict[str, object]:
        """The batch and every name that some loss reads: roles run in turn, each at most once.

        Args:
            batch: what it carries stays as it is, and is not computed.
            resting: teachers that run only where another role needs them.
            partly: leave out the entries that an output lacks in this mode.
        """
        tensors = dict(batch)
        gradients = torch.is_grad_enabled()
        for role, asked in self._turns.of_batch(batch, resting):
            with torch.set_grad_enabled(gradients and role in self.learners):
                given = self._take_turn(role, batch, tensors, asked)
            self._check_given(role, asked, given, partly)
            for name, value in given.items():
                tensors.setdefault(name, value)
        if all(role in tensors for role in self.learners):
            tensors["peers"] = [tensors[role] for role in self.learners]
        return tensors

    def _take_turn(
        self,
        role: str,
        batch: Mapping[str, object],
        tensors: Mapping[str, object],
        asked: list[str],
    ) -> dict[str, object]:
        """What a role gives, which sees the batch and the names that it needs of others."""
        needed = self._turns.needed[role]
        seen = {**batch, **{name: tensors[name] for name in needed if name in tensors}}
        try:
            return self.outputs(role, seen, asked)
        except KeyError as error:
            name = error.args[0] if error.args else None
            owner = self._names.role_of(name) if isinstance(name, str) else None
            if owner in (None, role) or name in needed:
                raise
            raise ValueError(
                f"{type(self).__name__}.outputs({role!r}) reads {name!r}, which {owner} supplies, "
                f"and does not say so: needs({role!r}) must name it"
            ) from error

    def read(self, tensors: Mapping[str, Any], name: str, reader: str) -> Any:
        """The value of a name.

        Args:
            tensors: by name.
            name: which one.
            reader: the loss or role that reads it, for the message.

        Raises:
            ValueError: it is not there; with the nearest name.
        """
        if name in tensors:
            return tensors[name]
        lacks_teacher = not self.teachers and name.startswith("teacher")
        raise ValueError(
            f"{reader}: neither a model nor the batch supplies {name!r}"
            f"{', and there is no teacher' if lacks_teacher else ''}; "
            f"{did_you_mean(name, [*tensors, *self._names])}"
        )

    def _check_given(
        self, role: str, asked: Sequence[str], given: Mapping[str, object], partly: bool
    ) -> None:
        """Names that a role did not give are entries that its output lacks, or a subclass forgot
        them.
        """
        absent = [name for name in asked if name not in given]
        if not absent:
            return
        if role not in given or any(self._names.is_listed(name, role) for name in absent):
            raise ValueError(
                f"{type(self).__name__}.outputs({role!r}) did not give {absent}; it gave "
                f"{list(given)}"
            )
        if not partly:
            name = absent[0]
            reader = next((loss for loss, of in self._readers.items() if name in of), role)
            raise ValueError(
                f"{reader}: {name!r} is no submodule, and the output of {role} "
                f"{mode_of(self.model(role))} has no such entry: it is "
                f"{describe_output(role, given[role])}; {did_you_mean(name, self._names.of(role))}"
            )
