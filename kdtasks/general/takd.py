r"""Teacher Assistant Knowledge Distillation (Mirzadeh et al., arXiv 1902.03393).

A student much smaller than its teacher learns less from it than from a mediocre one: networks of
sizes between them ("assistants") pass the knowledge on. In a chain
:math:`T \to A_1 \to \dots \to S` each hop is plain KD from the network before, with
its own weights:

.. math:: L = (1 - \lambda)\, \mathrm{CE}(z, y) + \lambda\, \mathrm{KD}(z, z_\mathrm{before}; T)

where KD has its :math:`T^2` (:func:`kdtasks.general.kd_loss`). The paper's code divides the soft
term by the number of classes as well, so that a :math:`\lambda` from there weighs it C times less,
and hands on each hop's best checkpoint as the *test* images have it; here it is the last.

With sizes between teacher and student there are :func:`all_paths`. Of single assistants,
:func:`nearest_mean` chooses the one whose accuracy is nearest the mean of teacher's and student's,
which need not be the one of the mean depth. (That this choice is the best one is the paper's
finding as we remember it, not checked against its text.) A chain costs the training of its
assistants: compare it with plain KD, and with a student that has the whole chain's budget.
:func:`stages` writes the list of hops.
"""

import itertools
from collections.abc import Mapping, Sequence

from kdtasks.core.control import control_losses
from kdtasks.general.chains import chain, epochs_of, total_length


def all_paths(sizes: Sequence) -> list[tuple]:
    """Every chain from the first of ``sizes`` (the teacher) to the last (the student).

    Args:
        sizes: at least two, by falling size: numbers, names, anything.

    Returns:
        2 ** (n - 2) tuples: the direct one first, then by length, the longest last; in each, the
        order of ``sizes``.

    Raises:
        ValueError: fewer than two.
    """
    sizes = tuple(sizes)
    if len(sizes) < 2:
        raise ValueError(f"expected a teacher and a student at least, got {sizes}")
    between = sizes[1:-1]
    return [
        (sizes[0], *middle, sizes[-1])
        for length in range(len(between) + 1)
        for middle in itertools.combinations(between, length)
    ]


def nearest_mean(accuracies: Mapping[str, float], teacher: float, student: float) -> str:
    """The assistant whose accuracy, trained alone, is nearest the mean of the two.

    Args:
        accuracies: ``{assistant: accuracy}``; on ties the first counts.
        teacher, student: their accuracies, alone.

    Raises:
        ValueError: there is no assistant.
    """
    if not accuracies:
        raise ValueError("expected the accuracy of one assistant at least, got none")
    mean = (teacher + student) / 2
    return min(accuracies, key=lambda name: abs(accuracies[name] - mean))


def stages(
    config: Mapping,
    assistants: Mapping[str, Mapping],
    student: Mapping | None = None,
    direct: bool = True,
    whole_budget: bool = True,
) -> list[dict]:
    """The stages of a chain, for a config: ``stages=dict(type='kdtasks.general.takd.stages', …)``.

    ``teacher``, then each assistant taught by the one before, then the student: ``distilled``.
    Beside them what a chain has to be compared with.

    Args:
        config: given by the engine; the assistants are keys of its ``models``.
        assistants: ``{name: changes}``, from the teacher's side on: each hop's own ``length``,
            ``optimizer``, ``schedule``, ``data``, ``arguments``, and what its ``losses`` have that
            the config's have not, ``dict(loss_kd=dict(weight=0.7))``.
        student: the same of the last hop.
        direct: a stage ``direct``: plain KD from the teacher, with the student's budget.
        whole_budget: a stage ``whole_budget``: the student without a teacher, with the steps of all
            hops; else it has what "alone" has, the last hop's changes among it.

    Raises:
        ValueError: an assistant that is no model, or of other classes than the student; no such
            loss. For ``whole_budget``: some hops count in epochs and others in iterations; or in
            epochs of different ``data``, whose sum is not the steps of all.
    """
    stages_of_chain = chain(config, assistants, student)
    hops = [stage for stage in stages_of_chain if stage["role"] != "teacher"]
    references = []
    if direct:
        (hop,) = (stage for stage in chain(config, {}, student) if stage["role"] == "taught")
        references.append({**hop, "name": "direct"})
    if whole_budget:
        references.append(_whole_budget(config, hops, student or {}))
    return [*stages_of_chain[:-1], *references, stages_of_chain[-1]]


def _whole_budget(config: Mapping, hops: Sequence[Mapping], changes: Mapping) -> dict:
    """What the engine makes "alone" of, but with the length of all hops."""
    length, last = total_length(config, hops), hops[-1]
    if epochs_of(length) and any(hop.get("data") != last.get("data") for hop in hops):
        data = {hop["name"]: hop.get("data") for hop in hops}
        raise ValueError(
            "whole_budget has the steps of all hops, which epochs of different data do not add up "
            f"to, got data {data}: expected lengths dict(iterations=n), or whole_budget=False"
        )
    shared = {
        key: last[key] for key in ("arguments", "optimizer", "schedule", "data") if key in last
    }
    if changes.get("losses"):
        names = {
            name for part in (config, last) for name in (part.get("data") or {}).get("own") or ()
        }
        shared["losses"] = control_losses(last["losses"], config["teachers"], names)
    return {**shared, "name": "whole_budget", "role": "joint", "length": length}
