r"""Route Constrained Optimization (Jin et al., arXiv 1904.09149).

A converged teacher is far from a fresh student, but the way that it went is not: the student is
taught by checkpoints of the teacher's own training ("anchors"), easy ones first, the converged one
last, and keeps its weights from anchor to anchor. Each anchor teaches by the usual KD loss.

**Equal interval** (:func:`equal_interval_anchors`): every so many epochs of the teacher.

**Greedy** (:func:`next_anchor`): the hardness of anchor j for the student as it stands after anchor
i is its divergence on held-out images,

.. math:: H(j) = \frac{1}{N} \sum_n \mathrm{KL}\big(p_j(x_n) \,\|\, p_\mathrm{student}(x_n)\big),
    \qquad r_{ij} = H(j) / H(i)

and the next anchor is the last one before the first whose ratio exceeds a threshold
:math:`\delta > 0` (the idea needs :math:`\delta > 1`), at least i + 1. Not verified against the
paper: descriptions of it name a divergence, a threshold and held-out images; the form of the ratio
and a :math:`\delta` are ours to choose. There is no code of the authors.

Anchors are checkpoints that the teacher's stage keeps (``keep``); an anchor is loaded into the same
module, so one teacher is in memory at a time. :func:`stages` writes the list of stages; with
``greedy`` the stage itself chooses its anchors (:class:`GreedyRoute`).
"""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from kdtasks.core.stages import ALONE, DISTILLED
from kdtasks.general.chains import epochs_of, teacher_stages
from kdtasks.general.kd import kd_loss


def equal_interval_anchors(epochs: int, interval: int) -> list[int]:
    """Epochs ``interval, 2·interval, …``, always ending with ``epochs``.

    Raises:
        ValueError: one of the two is not positive.
    """
    if epochs < 1 or interval < 1:
        raise ValueError(f"expected epochs >= 1 and interval >= 1, got {epochs} and {interval}")
    return [*range(interval, epochs, interval), epochs]


def anchor_hardness(student: Tensor, anchors: Sequence[Tensor]) -> list[float]:
    """H(j) of each anchor: the mean of KL(anchor ‖ student) over held-out images, temperature 1.

    Args:
        student: ``(N, C)`` logits of the student as it stands.
        anchors: logits of each anchor for the same images, of the same shape.

    Raises:
        ValueError: the shapes differ, or there are no images.
    """
    if not len(student):
        raise ValueError(
            f"expected logits (N, C) of one image at least, got {tuple(student.shape)}"
        )
    return [kd_loss(student.detach(), anchor, temperature=1.0).item() for anchor in anchors]


def next_anchor(hardness: Sequence[float], current: int, threshold: float) -> int | None:
    """The greedy choice: from ``current + 1`` on, go on while the next one's hardness over the
    current one's is at most ``threshold``; at least one step.

    Args:
        hardness: H(j) of every anchor, for the student just taught by ``current``.
        current: number of that anchor, from 0.
        threshold: delta > 0; the idea needs > 1.

    Returns:
        The number of the next anchor; None when ``current`` is the last.

    Raises:
        ValueError: there is no such anchor, a hardness is negative or NaN, or the threshold is not
            positive.
    """
    hardness = [float(value) for value in hardness]
    if not 0 <= current < len(hardness):
        raise ValueError(f"there are {len(hardness)} anchors, from 0 on, and none is {current}")
    if not all(value >= 0 for value in hardness):
        raise ValueError(f"a hardness is a divergence, >= 0, got {hardness}")
    if not threshold > 0:
        raise ValueError(f"threshold must be > 0, got {threshold}")
    if current == len(hardness) - 1:
        return None
    anchor = current
    while anchor + 1 < len(hardness) and _ratio(hardness, anchor + 1, current) <= threshold:
        anchor += 1
    return max(anchor, current + 1)


def greedy_route(
    teach: Callable[[int], None],
    hardness: Callable[[], Sequence[float]],
    threshold: float,
    first: int = 0,
) -> list[int]:
    """The greedy search from beginning to end, for a loop of your own; anchors are numbered from 0.

    Args:
        teach: trains the student on an anchor, from where it stands.
        hardness: H(j) of every anchor for the student as it stands: :func:`anchor_hardness` of
            logits on held-out images. Asked once before the first teaching, too.
        threshold: delta > 0; the idea needs > 1.
        first: the anchor to begin with; our choice: the first.

    Returns:
        The anchors in the order in which they taught, the last one included. Their epochs are what
        :func:`stages` takes as ``epochs``.

    Raises:
        ValueError: as :func:`next_anchor`; ``first`` and ``threshold`` before anything is taught.
    """
    next_anchor(hardness(), first, threshold)
    route: list[int] = []
    anchor: int | None = first
    while anchor is not None:
        teach(anchor)
        route.append(anchor)
        anchor = next_anchor(hardness(), anchor, threshold)
    return route


class GreedyRoute:
    """The greedy choice at the end of each share of a stage, for its ``route``.

    With n anchors there are n shares of the stage, whichever are taken, so that the student has the
    budget of plain KD: what is left when the last one is reached is the last one's.

    Args:
        threshold: delta > 0; the idea needs > 1. There is no default: nobody has verified one.

    Raises:
        ValueError: the threshold is not positive.
    """

    def __init__(self, threshold: float):
        if not threshold > 0:
            raise ValueError(f"threshold must be > 0, got {threshold}")
        self.threshold = threshold

    def __call__(self, student: Tensor, anchors: Sequence[Tensor]) -> int:
        """How many anchors to go on.

        Args:
            student: ``(N, C)`` logits of the student for held-out images.
            anchors: the same of the anchor that has just taught it and of all behind it.
        """
        step = next_anchor(anchor_hardness(student, anchors), 0, self.threshold)
        assert step is not None  # there are anchors behind
        return step


def _ratio(hardness: Sequence[float], j: int, current: int) -> float:
    if hardness[current] == 0:
        return 0.0 if hardness[j] == 0 else math.inf
    return hardness[j] / hardness[current]


def stages(
    config: Mapping,
    interval: int | None = None,
    epochs: Sequence[int] | None = None,
    multi_stage: bool = False,
    greedy: Mapping | None = None,
) -> list[dict]:
    """The route, for a config: ``stages=dict(type='kdtasks.general.rco.stages', interval=10)``.

    ``teacher`` keeps the anchors. Then the student: in one stage, ``distilled``, in which each
    anchor teaches for an equal share of one schedule (the budget of plain KD); or in a stage for
    each, ``anchor<epoch>``, the last one ``distilled``, with a whole length and schedule each
    (several times that budget, which "alone" then has too: ``alone<epoch>`` …, ``alone``).

    Args:
        config: given by the engine; the length of the teacher's training is in epochs.
        interval: of the anchors, in epochs of the teacher.
        epochs: the anchors themselves instead; the last epoch is added where it is not among them.
        multi_stage: a stage for each anchor.
        greedy: None; or ``dict(threshold=…, held_out=dict(type=…))``: these are candidates, the
            first of which teaches first, and the greedy search chooses the next one at the end of
            each share. ``held_out`` is of images that the student neither learns from nor is tested
            on. results.json says which they were (``routes``): their epochs are what
            ``multi_stage`` can take.

    Raises:
        ValueError: not one of ``interval`` and ``epochs``; they are not epochs of the teacher's
            training; the teacher has a checkpoint, so that no route of it is known; ``greedy`` has
            other keys, or a stage for each anchor, which must be known beforehand.
    """
    if greedy is not None and (set(greedy) != {"threshold", "held_out"} or multi_stage):
        raise ValueError(
            "expected greedy=dict(threshold=…, held_out=dict(type=…)), inside one stage "
            f"(multi_stage=False), got greedy={dict(greedy)}, multi_stage={multi_stage}"
        )
    anchors = _anchors(config, interval, epochs)
    teacher = teacher_stages(config, keep=anchors[:-1])
    route = [*(f"teacher.{epoch}" for epoch in anchors[:-1]), "teacher"]
    if not multi_stage:
        stage = {"name": DISTILLED, "role": "taught", "teachers": {"teacher": route}}
        if greedy is not None:
            stage["route"] = {"type": "kdtasks.general.GreedyRoute", **greedy}
        return [*teacher, stage]

    def arm(prefix: str, last: str, role: str, teach: bool) -> list[dict]:
        names = [*(f"{prefix}{epoch}" for epoch in anchors[:-1]), last]
        return [
            {
                "name": name,
                "role": role if name == last else "step",
                "student": names[k - 1] if k else "fresh",
                "teachers": {"teacher": route[k]} if teach else {},
            }
            for k, name in enumerate(names)
        ]

    return [
        *teacher,
        *arm(ALONE, ALONE, "control", False),
        *arm("anchor", DISTILLED, "taught", True),
    ]


def _anchors(config: Mapping, interval: int | None, epochs: Sequence[int] | None) -> list[int]:
    if (interval is None) == (epochs is None):
        raise ValueError(f"expected interval or epochs, got interval={interval}, epochs={epochs}")
    if config["teachers"].get("teacher", {}).get("checkpoint"):
        raise ValueError(
            "anchors are what the teacher's own training keeps on its way, and a teacher with a "
            "checkpoint is not trained: expected no teacher.checkpoint"
        )
    length = config["teacher_training"].get("length") or config["length"]
    last = epochs_of(length)
    if last is None:
        raise ValueError(f"anchors are epochs of the teacher's training, whose length is {length}")
    anchors = equal_interval_anchors(last, interval) if epochs is None else [*epochs, last]
    anchors = sorted(set(anchors))
    if len(anchors) < 2 or anchors[0] < 1 or anchors[-1] > last:
        setting = f"interval={interval}" if epochs is None else f"epochs={list(epochs)}"
        raise ValueError(
            f"{setting} of a teacher that is trained for {last} epochs leaves the anchors "
            f"{anchors}: expected some between 1 and {last - 1}, and the last epoch"
        )
    return anchors
