r"""LD: localization distillation (Zheng et al., CVPR 2022, arXiv 2102.12252).

A head of the GFL kind gives no number for an edge of a box but logits of n + 1 bins, how far away
it may be; a blurred edge has a flat distribution. So boxes can be distilled as classes are: with s
and t the logits of one edge,

.. math::
    \mathrm{LD} = \frac{T^2}{n + 1}\, \mathrm{KL}\bigl( \mathrm{softmax}(t / T) \,\|\,
    \mathrm{softmax}(s / T) \bigr), \qquad
    L = \frac14 \sum_{\text{boxes } p} w_p \sum_{\text{edges}} \mathrm{LD}

over the boxes p that the student's assigner matches to an object, each weighted by its best class
probability :math:`w_p = \max_k \mathrm{sigmoid}(z^s_{pk})`, without gradient.

**Weight** 0.25, beside DFL at 0.25 and GIoU at 2; T = 10. In the authors' code and in MMDetection's
LDHead those two are divided by :math:`\sum w_p` and this sum is not, so it grows with the number of
matched boxes, and a batch twice as large doubles it. ``LDLoss(normalize=True)`` divides by
:math:`\max(1, \sum w_p)`, ours; its weight is another one. (The authors also distil edges of
unmatched boxes near an object, at a quarter of that; that is not here.)

MMDetection's GFL is such a head; RetinaNet and FCOS give four deltas, as all of torchvision's heads
do, and have no bins to compare. Student and teacher need the same anchors and the same n (reg_max).
"""

from torch import Tensor, nn

from kdtasks.core.gather import mean_over_processes
from kdtasks.core.precision import raised, raised_dtype
from kdtasks.general.divergences import kl_terms


def ld_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 10.0,
    weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """T² KL(teacher ‖ student) / (n + 1) of each edge, weighted, over the normalizer.

    Args:
        student: ``(*, n + 1)`` logits of the bins of edges, as ``(M, n + 1)`` or ``(P, 4, n + 1)``;
            carries the gradient.
        teacher: logits of the same edges and shape; never receives a gradient.
        temperature: T > 0; 10 as released.
        weight: of the edges, of a shape that broadcasts to theirs (``(P, 1)``); never receives a
            gradient. None: 1.
        normalizer: what the weighted sum is divided by, taken as it is. None: the number of edges.

    Returns:
        A scalar in nats; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there are no edges.

    Raises:
        ValueError: the shapes differ, or there is one bin; the temperature is not positive.
    """
    if student.shape != teacher.shape or student.dim() < 2 or student.shape[-1] < 2:
        raise ValueError(
            "expected two equal shapes (…, n + 1) of two bins or more for each edge, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    _check_temperature(temperature)
    student, teacher = (z / temperature for z in raised(student, teacher.detach()))
    bins = [z.flatten(0, -2) for z in (student, teacher)]
    # the mean over bins, not their sum, is part of the released weight
    edges = temperature**2 * kl_terms(*bins).mean(1).view(student.shape[:-1])
    if weight is not None:
        edges = edges * weight.detach()
    if normalizer is None:
        normalizer = max(edges.numel(), 1)
    elif isinstance(normalizer, Tensor):
        normalizer = normalizer.detach()
    return edges.sum() / normalizer


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


class LDLoss(nn.Module):
    """:func:`ld_loss` of the matched boxes' edges, each box with the student's best class
    probability for weight.

    ``of=('anchors.student.edges', 'anchors.teacher.edges', 'anchors.student.logits')``: ``(P, 4,
    n + 1)`` twice, and ``(P, K)``.

    Args:
        temperature: T > 0; 10 as released.
        normalize: False, as released: a sum over the matched boxes. True: divided by the sum of
            their weights, at least 1; of a run of W processes that of all together, over W, so that
            each of them must call it in each step.
    """

    def __init__(self, temperature: float = 10.0, normalize: bool = False):
        super().__init__()
        _check_temperature(temperature)
        self.temperature, self.normalize = temperature, normalize

    def forward(self, student: Tensor, teacher: Tensor, logits: Tensor) -> Tensor:
        """The loss of edges (P, 4, n + 1) and the student's class logits (P, K), a scalar."""
        fit = logits.dim() == 2 and logits.shape[1] and len(student) == len(logits)
        if student.dim() != 3 or not fit:
            raise ValueError(
                "expected edges (P, 4, n + 1) and class logits (P, K), K >= 1, of the same boxes, "
                f"got student {tuple(student.shape)} and logits {tuple(logits.shape)}"
            )
        logits = logits.detach().to(raised_dtype(student, teacher, logits))
        weight = logits.sigmoid().amax(1)
        normalizer = float(student.shape[1])
        if self.normalize:
            total, share = mean_over_processes(weight.sum())
            normalizer = normalizer * total.clamp(min=share)
        return ld_loss(student, teacher, self.temperature, weight[:, None], normalizer)

    def extra_repr(self) -> str:
        """Temperature, and whether it is normalised."""
        return f"temperature={self.temperature}, normalize={self.normalize}"
