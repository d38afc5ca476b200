"""Names of tensors and the errors for a name that does not exist.

A name is ``<role>`` (a model's output), ``<role>.<path>`` (the output of its submodule ``path``,
or an entry of its own output), or ``<role>.<path>@<call>`` (of the submodule's ``call``-th run
within one forward, counted from 0, or from the end if negative). The roles that learn are
``student`` and ``peer1``, ``peer2``, …; ``peers`` are the outputs of all of them.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STUDENT = "student"
PEERS = "peers"


@dataclass(frozen=True)
class TensorName:
    """The parts of a name.

    Args:
        role: what stands before the first dot: a role, a part of the model (``'rois'``), or the
            key of a batch.
        path: what stands behind it, ``''`` for the output itself.
        call: which run of the submodule; None where the name does not say.
    """

    role: str
    path: str = ""
    call: int | None = None

    @classmethod
    def parse(cls, name: str) -> "TensorName":
        """``'student.fc@-1'`` -> ``TensorName('student', 'fc', -1)``.

        Raises:
            ValueError: what follows ``@`` is not an integer.
        """
        base, call = split_call(name)
        role, _, path = base.partition(".")
        return cls(role, path, call)

    @property
    def base(self) -> str:
        """The name without its call."""
        return f"{self.role}.{self.path}" if self.path else self.role

    @property
    def local(self) -> str:
        """The name without its role: ``'fc@-1'``."""
        return self.path if self.call is None else f"{self.path}@{self.call}"

    @property
    def is_of_peers(self) -> bool:
        """Whether it is of a peer, or of all of them."""
        return self.role == PEERS or _is_peer(self.role)

    @property
    def may_be_entry(self) -> bool:
        """Whether it may be an entry of its role's output, which has no paths and no calls."""
        return bool(self.path) and "." not in self.path and self.call is None


def learner_roles(peers: int) -> list[str]:
    """The roles that learn: the student and so many peers."""
    return [STUDENT, *(f"peer{k + 1}" for k in range(peers))]


def as_names(of: str | Sequence[str]) -> tuple[str, ...]:
    """The names that a loss is of, which may be given as one string."""
    return (of,) if isinstance(of, str) else tuple(of)


def split_call(name: str) -> tuple[str, int | None]:
    """``'student.fc@-1'`` -> ``('student.fc', -1)``; without ``@`` the call is None.

    Raises:
        ValueError: what follows ``@`` is not an integer.
    """
    base, at, call = name.rpartition("@")
    if not at:
        return name, None
    try:
        return base, int(call)
    except ValueError:
        raise ValueError(
            f"{name!r}: after '@' comes the number of the call, as in '{base}@-1', not {call!r}"
        ) from None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of an error message: the nearest known names, or all of them when they are few."""
    names = list(dict.fromkeys(names))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(map(repr, near)) + "?"
    if not names:
        return "there are none"
    shown = ", ".join(map(repr, names[:20]))
    return f"there are {shown}" + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _is_peer(role: str) -> bool:
    return role.startswith("peer") and role[4:].isdigit()
