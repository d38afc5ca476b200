r"""CrossKD: distillation through the teacher's head (Wang et al., CVPR 2024, arXiv 2306.11369).

A student that imitates the teacher's predictions is pulled two ways where the teacher contradicts
the labels. So its own predictions are left to the labels, and what it has halfway in its head runs
on through the frozen rest of the *teacher's* head; these crossed predictions are drawn to the
teacher's own, and their gradient reaches the student's features only. The distiller supplies them
as ``cross.teacher.cls_logits`` and ``cross.teacher.box_deltas``
(:class:`~kdtasks.detection.distiller.DetectionDistiller`, whose ``cross_after`` says where the head
goes on); any loss may be of them. The authors':

**Classes**, quality focal loss, with :math:`q` the teacher's probability and :math:`x` the crossed
logit, over all anchors that the student's labels do not ignore and all classes,

.. math::
    L = \frac{1}{P} \sum \lvert \mathrm{sigmoid}(x) - q \rvert^\beta \,
    \mathrm{BCE}(x, q), \qquad \beta = 1

P is the number of matched anchors. With :math:`\beta > 0` an entry is 0 where the probabilities
agree.

**Boxes**, each anchor weighted by the teacher's best class probability :math:`w`, over
:math:`\sum w` (at least 1): ``'deltas'``, 1 - GIoU of the two boxes; ``'distances'``, the same of
FCOS's distances to the edges; ``'edges'``, a quarter of the sum over edges of KL(teacher ‖ student)
of GFL's bins, T = 1, summed over bins.

GIoU does not change when both boxes are moved or stretched alike, so the boxes are decoded on an
anchor of unit size and the real ones are not needed; only the coder's scale (``stds``) is.

================  ===========  ================  ======================================
family            cross_after  weight, classes   boxes
================  ===========  ================  ======================================
RetinaNet, ATSS   3            1                 ``'deltas'``, weight 1
GFL               3            1                 ``'edges'``, weight 4
FCOS              2            0.4               ``'distances'``, weight 0.75
================  ===========  ================  ======================================

Those are the release's, but for FCOS, whose boxes it compares by IoU, and for a cross-entropy of
centernesses at ATSS, which is not supplied here.
"""

import math

import torch
from torch import Tensor, nn

from kdtasks.core.gather import mean_over_processes
from kdtasks.core.names import did_you_mean
from kdtasks.core.precision import raised, raised_dtype
from kdtasks.general.divergences import binary_cross_entropy_terms, kl_terms

KINDS = ("deltas", "distances", "edges")
# the largest logarithm of a side over the anchor's, as torchvision's and MMDetection's coders have
MAX_LOG_RATIO = math.log(1000 / 16)


def quality_focal_loss(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    beta: float = 1.0,
) -> Tensor:
    """Sum over anchors and classes of ``|p - q|^beta · BCE(x, q)``, over the normalizer.

    Args:
        student: ``(…, A, K)`` logits x of sigmoid classes, p their probabilities; carries the
            gradient.
        teacher: logits of the same shape, q their probabilities; never receives a gradient.
        valid: bool ``(…, A)``; the other anchors give neither loss nor gradient. None: all count.
        normalizer: a number or scalar tensor > 0, taken as it is: the number of matched anchors.
            None: that of the valid ones, at least 1.
        beta: >= 0; 1 as released.

    Returns:
        A scalar in nats; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there are no anchors.

    Raises:
        ValueError: the shapes do not fit, or beta is negative.
    """
    _check_logits(student, teacher)
    _check_beta(beta)
    if valid is not None and valid.shape != student.shape[:-1]:
        raise ValueError(
            f"expected valid {tuple(student.shape[:-1])}, got {tuple(valid.shape)} with student "
            f"{tuple(student.shape)}"
        )
    student, teacher = raised(student, teacher.detach())
    ignored = None if valid is None else ~valid[..., None]
    if ignored is not None:
        # whatever they hold
        student, teacher = student.masked_fill(ignored, 0), teacher.masked_fill(ignored, 0)
    q = teacher.sigmoid()
    terms = binary_cross_entropy_terms(student, q)
    if beta:
        gap = (student.sigmoid() - q).abs()
        if beta != 1:
            # no gradient at 0, where a power below 1 has an infinite slope
            is_zero = gap == 0
            gap = gap.masked_fill(is_zero, 1).pow(beta).masked_fill(is_zero, 0)
        terms = gap * terms
    if ignored is not None:
        terms = terms.masked_fill(ignored, 0)
    if normalizer is None:
        rows = student.shape[:-1].numel()
        normalizer = max(rows, 1) if valid is None else valid.sum().clamp(min=1)
    return terms.sum() / normalizer


def box_distances(
    student: Tensor, teacher: Tensor, kind: str = "deltas", stds: tuple[float, ...] = (1, 1, 1, 1)
) -> Tensor:
    """How far two boxes of the same anchor lie apart, entry by entry: 1 - GIoU, in [0, 2], or the
    divergence of their edges in nats.

    Args:
        student: ``(…, 4)`` deltas or distances, or ``(…, 4 · (n + 1))`` logits of bins; carries the
            gradient.
        teacher: of the same shape; never receives a gradient.
        kind: ``'deltas'`` of centre and logarithm of the sides, ``'distances'`` to left, top,
            right and bottom, or ``'edges'``.
        stds: what the coder multiplies deltas by when it decodes; MMDetection's ``target_stds``,
            the inverse of torchvision's ``weights``.

    Returns:
        ``(…,)``; half precision is raised to float32, float64 stays.

    Raises:
        ValueError: the shapes differ or are not of this kind; another kind.
    """
    _check_kind(kind)
    numbers = student.shape[-1] if student.dim() else 0
    fits = numbers > 4 and numbers % 4 == 0 if kind == "edges" else numbers == 4
    if student.shape != teacher.shape or not fits:
        expected = "4·(n + 1) logits of bins" if kind == "edges" else "4 numbers"
        raise ValueError(
            f"kind={kind!r}: expected two equal shapes of {expected} a box, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    student, teacher = raised(student, teacher.detach())
    if kind == "edges":
        bins = [edges.reshape(-1, numbers // 4) for edges in (student, teacher)]
        return kl_terms(*bins).sum(1).view(*student.shape[:-1], 4).mean(-1)
    if any(std != 1 for std in stds):
        student, teacher = (boxes * boxes.new_tensor(stds) for boxes in (student, teacher))
    decode = _from_deltas if kind == "deltas" else _from_distances
    return 1 - _giou(decode(student), decode(teacher))


def _from_deltas(deltas: Tensor) -> Tensor:
    """Boxes x1, y1, x2, y2 on an anchor of side 1 around 0."""
    half = deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp() / 2
    return torch.cat([deltas[..., :2] - half, deltas[..., :2] + half], -1)


def _from_distances(distances: Tensor) -> Tensor:
    return torch.cat([-distances[..., :2], distances[..., 2:]], -1)


def _giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalized IoU of ``(…, 4)`` boxes, one by one."""
    eps = torch.finfo(first.dtype).eps

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    (a, b), (c, d) = (boxes.split(2, -1) for boxes in (first, second))
    common = area(torch.maximum(a, c), torch.minimum(b, d))
    union = area(a, b) + area(c, d) - common
    hull = area(torch.minimum(a, c), torch.maximum(b, d))
    return common / union.clamp(min=eps) - (hull - union) / hull.clamp(min=eps)


def _check_logits(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.dim() < 2:
        raise ValueError(
            f"expected two equal shapes (..., A, K), got student {tuple(student.shape)} and "
            f"teacher {tuple(teacher.shape)}"
        )


def _check_beta(beta: float) -> None:
    if not beta >= 0:
        raise ValueError(f"beta must be >= 0, got {beta}")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; {did_you_mean(str(kind), KINDS)}")


class QualityFocalLoss(nn.Module):
    """:func:`quality_focal_loss` over the number of matched anchors, at least 1; of
    ``of=('cross.teacher.cls_logits', 'teacher.cls_logits', 'anchors.valid', 'anchors.count')``.

    In a run of W processes it is the number of all together, over W, so each of them must call it
    in each step.
    """

    def __init__(self, beta: float = 1.0):
        super().__init__()
        _check_beta(beta)
        self.beta = beta

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        valid: Tensor | None = None,
        count: float | Tensor | None = None,
    ) -> Tensor:
        """The loss of logits (…, A, K), a scalar; ``count`` None: the number of valid anchors."""
        normalizer = None
        if count is not None:
            if not isinstance(count, Tensor):
                count = torch.full((), count, device=student.device)
            # which overwrites what it is given
            total, share = mean_over_processes(count.to(raised_dtype(student, teacher), copy=True))
            normalizer = total.clamp(min=share)
        return quality_focal_loss(student, teacher, valid, normalizer, self.beta)

    def extra_repr(self) -> str:
        """The power."""
        return f"beta={self.beta}"


class CrossBoxLoss(nn.Module):
    """:func:`box_distances`, each anchor weighted by the teacher's best class probability, over the
    sum of the weights, at least 1; of ``of=('cross.teacher.box_deltas', 'teacher.box_deltas',
    'teacher.cls_logits', 'anchors.valid')``.

    In a run of W processes the sum is that of all together, over W, so each of them must call it in
    each step.

    Args:
        kind, stds: of :func:`box_distances`.
    """

    def __init__(self, kind: str = "deltas", stds: tuple[float, ...] = (1, 1, 1, 1)):
        super().__init__()
        _check_kind(kind)
        self.kind, self.stds = kind, tuple(stds)

    def forward(
        self, student: Tensor, teacher: Tensor, logits: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """The loss of boxes (…, A, n) and the teacher's class logits (…, A, K), a scalar."""
        if student.shape[:-1] != logits.shape[:-1] or not logits.shape[-1:].numel():
            raise ValueError(
                "expected boxes (…, n) and class logits (…, K), K >= 1, of the same anchors, got "
                f"student {tuple(student.shape)} and logits {tuple(logits.shape)}"
            )
        logits = logits.detach().to(raised_dtype(student, teacher, logits))
        weight = logits.sigmoid().amax(-1)
        distances = box_distances(student, teacher, self.kind, self.stds)
        if valid is not None:
            weight, distances = weight.masked_fill(~valid, 0), distances.masked_fill(~valid, 0)
        total, share = mean_over_processes(weight.sum())
        return (weight * distances).sum() / total.clamp(min=share)

    def extra_repr(self) -> str:
        """Kind, and the coder's scale."""
        return f"kind={self.kind!r}, stds={self.stds}"
