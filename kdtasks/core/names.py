"""Names of tensors and the errors for a name that does not exist.

A name is ``<role>`` (a model's output), ``<role>.<path>`` (the output of its submodule ``path``),
or ``<role>.<path>@<call>`` (of its ``call``-th run within one forward, counted from 0, or from the
end if negative).
"""

import difflib
from collections.abc import Iterable


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known names, or all of them when they are few."""
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(map(repr, near)) + "?"
    shown = ", ".join(map(repr, known[:20]))
    return (
        f"there are {shown}" + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        if known
        else "there are none"
    )
