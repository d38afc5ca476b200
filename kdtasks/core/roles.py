"""Which role supplies which tensor, and in what order the roles of a step run."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdtasks.core.names import PEERS, TensorName, did_you_mean


class NameTable:
    """The names that each role supplies: ``{role: names}``.

    Every other name is a key of the batch, but for entries of a role's output
    (``'student.logits'``): whether there is such an entry shows once the model has run.
    """

    def __init__(self, supplied: Mapping[str, Iterable[str]]):
        self._supplied = {role: dict.fromkeys(names) for role, names in supplied.items()}

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(*self._supplied.values())

    @property
    def roles(self) -> list[str]:
        """All roles."""
        return list(self._supplied)

    def of(self, *roles: str) -> Iterator[str]:
        """The names that these roles supply."""
        return itertools.chain(*(self._supplied[role] for role in roles))

    def is_listed(self, name: str, role: str) -> bool:
        """Whether a role itself says that it supplies a name; if not, it may be an entry."""
        return TensorName.parse(name).base in self._supplied[role]

    def role_of(self, name: str) -> str | None:
        """The role that supplies a name; None: the batch does."""
        parts = TensorName.parse(name)
        for role, names in self._supplied.items():
            if parts.base in names:
                return role
        has_output = parts.role in self._supplied.get(parts.role, ())
        return parts.role if has_output and parts.may_be_entry else None

    def wanted(
        self, names_of: Mapping[str, Sequence[str]], learners: Sequence[str]
    ) -> dict[str, list[str]]:
        """What the losses read of each role.

        Args:
            names_of: ``{loss: names that it is of}``.
            learners: the roles whose outputs ``'peers'`` stands for.

        Raises:
            ValueError: a name of a role that the role does not supply.
        """
        wanted: dict[str, list[str]] = {role: [] for role in self._supplied}
        for loss, names in names_of.items():
            for name in itertools.chain(*(learners if n == PEERS else [n] for n in names)):
                role = self.role_of(name)
                if role is None and TensorName.parse(name).role in self._supplied:
                    raise ValueError(
                        f"{loss}: no model supplies {name!r}; {did_you_mean(name, self)}"
                    )
                if role is not None and name not in wanted[role]:
                    wanted[role].append(name)
        return wanted


@dataclass(frozen=True)
class Turns:
    """The order in which roles run.

    Args:
        order: the roles.
        wanted: ``{role: names that losses read of it}``.
        needed: ``{role: {name that it reads: the other role that supplies it}}``.
    """

    order: Sequence[str]
    wanted: Mapping[str, Sequence[str]]
    needed: Mapping[str, Mapping[str, str]]

    def of_batch(
        self, batch: Mapping[str, object], resting: Sequence[str] = ()
    ) -> list[tuple[str, list[str]]]:
        """The roles that run for a batch, in order, and the names that each is asked for: those
        that some loss reads, or a role after it needs, and the batch does not carry.

        Args:
            batch: whose keys are known already.
            resting: roles that run only where another needs them.
        """
        names_of_role = {
            role: [] if role in resting else [*self.wanted[role]] for role in self.order
        }
        for role in reversed(self.order):
            names_of_role[role] = [
                name for name in dict.fromkeys(names_of_role[role]) if name not in batch
            ]
            if names_of_role[role]:
                for name, owner in self.needed[role].items():
                    names_of_role[owner].append(name)
        return [(role, names) for role, names in names_of_role.items() if names]


def needed_names(role: str, names: Iterable[str], table: NameTable, whose: str) -> dict[str, str]:
    """``{name: the other role that supplies it}`` of the names that a role needs.

    Args:
        role: that needs them.
        names: what it needs.
        table: who supplies what.
        whose: the class that says so, for the message.

    Raises:
        ValueError: no other role supplies a name.
    """
    needed = {}
    for name in names:
        owner = table.role_of(name)
        if owner is None or owner == role:
            others = table.of(*(other for other in table.roles if other != role))
            raise ValueError(
                f"{whose}.needs({role!r}) names {name!r}, which no other role supplies; "
                f"{did_you_mean(name, others)}"
            )
        needed[name] = owner
    return needed


def turn_order(roles: Sequence[str], needed: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The roles, each after those that it needs; where nothing is needed, in the given order.

    Args:
        roles: in the order that is preferred.
        needed: ``{role: {name that it reads: the other role that supplies it}}``.

    Raises:
        ValueError: they need each other in a circle, which is named.
    """
    order: list[str] = []
    waiting = list(roles)
    while waiting:
        ready = [role for role in waiting if set(needed[role].values()) <= set(order)]
        if not ready:
            raise ValueError(f"no role can run first: {_circle(waiting, needed)}")
        order.append(ready[0])
        waiting.remove(ready[0])
    return order


def _circle(waiting: Sequence[str], needed: Mapping[str, Mapping[str, str]]) -> str:
    """A circle among roles that all wait for another one, in words."""
    path = [waiting[0]]
    while path[-1] not in path[:-1]:
        path.append(next(owner for owner in needed[path[-1]].values() if owner in waiting))
    steps = []
    for role, owner in itertools.pairwise(path[path.index(path[-1]) :]):
        name = next(name for name, supplier in needed[role].items() if supplier == owner)
        steps.append(f"{role} needs {name!r} of {owner}")
    return ", ".join(steps)
