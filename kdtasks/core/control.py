"""The losses of the control: those that no teacher, and no peer, has a part in."""

import itertools
from collections.abc import Container, Mapping, Sequence

from kdtasks.core.names import TensorName, as_names, did_you_mean
from kdtasks.core.terms import trains

# what stands in front of a name, or is it
NO_TEACHERS = ("student", "target", "input", "index", "view", "labelled")


def taught_names(
    of: str | Sequence[str], own: Container[str] = (), teachers: Container[str] = ()
) -> list[str]:
    """Those of the names a loss is of that some teacher, or a peer, has a part in.

    They are all but the student's (``'student'``, ``'student.…'``), ``'target'``, ``'input'``,
    ``'index'``, ``'view'``, ``'labelled'`` and what is in ``own``: what a batch carries under any
    other name may be a teacher's, computed beforehand.

    Args:
        of: of a loss.
        own: names that are no teacher's, such as the student's own ``'rois.target'``.
        teachers: names that teachers have, whatever they are.
    """

    def taught(name: str) -> bool:
        parts = TensorName.parse(name)
        return parts.role in teachers or not (parts.role in NO_TEACHERS or parts.base in own)

    return [name for name in as_names(of) if taught(name)]


def has_peers(losses: Mapping[str, Mapping]) -> bool:
    """Whether some loss is of a peer."""
    names = itertools.chain(*(as_names(entry["of"]) for entry in losses.values()))
    return any(TensorName.parse(name).is_of_peers for name in names)


def control_losses(
    losses: Mapping[str, dict],
    teachers: Container[str],
    own: Container[str] = (),
    own_losses: bool = False,
) -> dict[str, dict]:
    """The losses of the control, "alone": those that no teacher and no peer has a part in, each at
    weight 1 or its ``alone``.

    A weight that makes room for the teacher is not kept: 0.1·CE under SGD is a tenth of the
    learning rate, and a student trained so without a teacher is a crippled control.

    Args:
        losses: the config's losses.
        teachers: names of the teachers.
        own: names that are no teacher's, see :func:`taught_names`.
        own_losses: whether the student has losses of its own (a detector), which train where no
            other does.

    Raises:
        ValueError: every loss names a teacher, so that nothing is left to learn from; unless the
            student has ``own_losses``.
    """
    plain = {}
    for name, entry in losses.items():
        taught = taught_names(entry["of"], own, teachers)
        weight = entry.get("alone", 0 if taught else 1)
        if taught and weight:
            raise ValueError(
                f"{name} is of {entry['of']}, which needs a teacher, so it cannot have "
                f"alone={weight}; a name that the data supplies and no teacher has a part in "
                "stands in data.own"
            )
        # an own loss that is not listed would have weight 1
        if weight or (own_losses and not taught):
            plain[name] = {**{k: v for k, v in entry.items() if k != "alone"}, "weight": weight}
    if not own_losses and not any(trains(name) for name in plain):
        unknown = next(iter(unmarked(losses, teachers, own).values()), "")
        hint = (
            f" ({unknown!r} counts as a teacher's; {did_you_mean(unknown, ('student', 'target'))})"
            if unknown
            else ""
        )
        raise ValueError(
            f"the losses {list(losses)} all need a teacher{hint}, so there is no control: add one "
            "that does not, with weight=0 if it must not pull when taught (it still trains the "
            "control)"
        )
    return plain


def unmarked(
    losses: Mapping[str, dict], teachers: Container[str], own: Container[str] = ()
) -> dict[str, str]:
    """``{loss: name}`` of the losses that :func:`control_losses` leaves out for a name that belongs
    to none of the teachers.

    What a data set brings beside the target may be a teacher's, computed beforehand, and here may
    not. An entry that says ``alone`` is not among them.
    """

    def unknown(name: str) -> bool:
        is_teachers = _of_role(name, teachers) or _of_role(name, ("teacher",))
        return not (is_teachers or TensorName.parse(name).is_of_peers)

    candidates = {
        name: next(filter(unknown, taught_names(entry["of"], own, teachers)), None)
        for name, entry in losses.items()
        if "alone" not in entry
    }
    return {name: candidate for name, candidate in candidates.items() if candidate}


def _of_role(name: str, roles: Container[str]) -> bool:
    """Whether a name is of one of these roles: ``'<role>'``, ``'<role>.…'`` or
    ``'<part>.<role>.…'``.
    """
    parts = TensorName.parse(name)
    return parts.role in roles or parts.path.split(".")[0] in roles
