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
:math:`\delta > 1`, at least i + 1. The form of the ratio is known from descriptions of the paper,
its :math:`\delta` is not; there is no code of the authors.

Anchors are checkpoints that the teacher's stage keeps (``keep``); an anchor is loaded into the same
module, so one teacher is in memory at a time.
"""

import math
from collections.abc import Sequence

from torch import Tensor

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
        ValueError: the shapes differ.
    """
    return [kd_loss(student.detach(), anchor, temperature=1.0).item() for anchor in anchors]


def next_anchor(hardness: Sequence[float], current: int, threshold: float) -> int | None:
    """The greedy choice: from ``current + 1`` on, go on while the next one's hardness over the
    current one's is at most ``threshold``; at least one step.

    Args:
        hardness: H(j) of every anchor, for the student just taught by ``current``.
        current: number of that anchor, from 0.
        threshold: delta > 0.

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
    chosen = current
    while chosen + 1 < len(hardness) and _ratio(hardness, chosen + 1, current) <= threshold:
        chosen += 1
    return max(chosen, current + 1)


def _ratio(hardness: Sequence[float], j: int, current: int) -> float:
    if hardness[current] == 0:
        return 0.0 if hardness[j] == 0 else math.inf
    return hardness[j] / hardness[current]
