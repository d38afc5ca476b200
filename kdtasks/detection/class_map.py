"""A teacher that knows other classes than the student, and which of its classes the student's are.

A class map is int64 (Ks,), the teacher's class for each of the student's, both counted from 0 and
without the background; None: the classes are the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_EXPECTED = (
    "class_map, the teacher's class for each of the student's, counted from 0 and without the "
    "background"
)


def pick_classes(logits: Tensor, class_map: Tensor | None, background: str | None) -> Tensor:
    """(…, Kt) -> (…, Ks): the columns of the student's classes, and the background's.

    Args:
        logits: of a teacher.
        class_map: see above.
        background: its column, ``'first'`` or ``'last'``; None: there is none.
    """
    if class_map is None:
        return logits
    columns = class_map
    if background == "first":
        columns = torch.cat([columns.new_zeros(1), columns + 1])
    elif background == "last":
        columns = torch.cat([columns, columns.new_full((1,), logits.shape[-1] - 1)])
    return logits.index_select(-1, columns)


def students_classes(classes: Tensor, class_map: Tensor | None) -> Tensor:
    """The student's class of each of a teacher's (n,), both from 0 on; -1: it has none."""
    if class_map is None:
        return classes
    match = classes[:, None] == class_map[None]  # (n, classes)
    return torch.where(match.any(1), match.long().argmax(1), -1)


def check_classes(
    role: str,
    numbers: tuple[int, int],
    names: tuple[Sequence | None, Sequence | None],
    class_map: Tensor | None,
) -> None:
    """The teacher's classes are the student's, or a class map says which are.

    Args:
        role: of the teacher.
        numbers: of the teacher's classes and of the student's, without the background.
        names: of the teacher's classes and of the data's; None: not known.
        class_map: see above.

    Raises:
        ValueError: they are not, and it does not.
    """
    theirs, ours = numbers
    if class_map is not None:
        chosen = class_map.tolist()
        if len(chosen) != ours or not all(0 <= k < theirs for k in chosen):
            raise ValueError(
                f"class_map must give {ours} of the classes 0 to {theirs - 1} of {role}, one "
                f"for each class of the student, without the background; got {chosen}"
            )
        return
    if theirs != ours:
        raise ValueError(
            f"{role} has {theirs} classes (without the background), the student {ours}: "
            f"expected {_EXPECTED}"
        )
    known, wanted = names
    if known and wanted and list(known) != list(wanted):
        raise ValueError(
            f"{role} knows the classes {list(known)[:8]}, the data has "
            f"{list(wanted)[:8]}: expected the same in the same order, or {_EXPECTED}"
        )
