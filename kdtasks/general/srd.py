r"""The role of the projector in knowledge distillation (Miles and Mikolajczyk, AAAI 2024, arXiv
2303.11098); SRD, "a simple recipe".

The student's features go through a linear projector to the teacher's width, and both are normalised
over the batch (a batch norm without weights): :math:`u = \mathrm{BN}(W f^s)`, :math:`v =
\mathrm{BN}(f^t)`. Then, with :math:`\alpha = 4`, which lets few large differences count most,

.. math:: L = \log \Bigl( \sum_{b, d} |u_{bd} - v_{bd}|^\alpha + \varepsilon \Bigr)

(``'logsum'``, the released ImageNet code), or of the correlation of each feature with its
counterpart (``'correlation'``, the released code for transformers):

.. math:: L = \log \Bigl( \sum_d \bigl|\operatorname*{mean}_b u_{bd} v_{bd} - 1\bigr|^\alpha +
    \varepsilon \Bigr)

The gradient of a logarithm is that of its argument over its value: it does not shrink with the
difference, and the weight does not depend on B and D. Without :math:`\varepsilon`, which only the
second code has, equal features give -inf.

The released weight is 2 with cross-entropy and KD (T = 1) at 1, on the pooled features of the last
stage. Both batch norms use the batch's statistics, so the teacher's targets depend on the batch.
"""

from torch import Tensor

from kdtasks.core.precision import raised
from kdtasks.general.projection import ProjectedLoss

NORM_EPS = 1e-4  # of the batch norms: the released ImageNet code
KINDS = ("logsum", "correlation")


def srd_loss(
    student: Tensor, teacher: Tensor, alpha: float = 4.0, kind: str = "logsum", eps: float = 1e-5
) -> Tensor:
    """The logarithm of the features' differences, both normalised over the batch.

    Args:
        student: ``(B, D)`` features behind the projector; carries the gradient.
        teacher: features of the same shape; never receives a gradient.
        alpha: power > 0; 4 as released.
        kind: ``'logsum'`` or ``'correlation'``.
        eps: > 0, added to the sum; 1e-5 as in the second release.

    Returns:
        A scalar, log(eps) at least (not 0 at equality); half precision is raised to float32,
        float64 stays. A zero that still backpropagates when there are no rows.

    Raises:
        ValueError: the shapes differ or are not ``(B, D)``; one row, which has no statistics; or
            another kind, alpha or eps.
    """
    fit = student.shape == teacher.shape and student.dim() == 2 and student.shape[1]
    if not fit or len(student) == 1:
        raise ValueError(
            "expected two equal shapes (B, D) of two rows or more, D at least 1, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    _check_settings(alpha, kind, eps)
    student, teacher = raised(student, teacher.detach())
    if not len(student):
        return student.sum()
    student, teacher = _normalized(student), _normalized(teacher)
    if kind == "logsum":
        return ((student - teacher).abs().pow(alpha).sum() + eps).log()
    return (((student * teacher).mean(0) - 1).abs().pow(alpha).sum() + eps).log()


def _normalized(rows: Tensor) -> Tensor:
    """A batch norm without weights: ``(B, D)``, over the rows."""
    variance, mean = rows.var(dim=0, correction=0), rows.mean(dim=0)
    return (rows - mean) * (variance + NORM_EPS).rsqrt()


def _check_settings(alpha: float, kind: str, eps: float) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    if not alpha > 0 or not eps > 0:
        raise ValueError(f"expected alpha > 0 and eps > 0, got alpha={alpha} and eps={eps}")


class SRDLoss(ProjectedLoss):
    """:func:`srd_loss` behind a linear projector of the student's features, with bias.

    Maps ``(B, C, H, W)`` are averaged over their places first.

    Args:
        alpha, kind, eps: of :func:`srd_loss`.
        student_channels, teacher_channels: None: found by :meth:`build`.
    """

    def __init__(
        self,
        alpha: float = 4.0,
        kind: str = "logsum",
        eps: float = 1e-5,
        student_channels: int | None = None,
        teacher_channels: int | None = None,
    ):
        super().__init__(student_channels, teacher_channels)
        _check_settings(alpha, kind, eps)
        self.alpha, self.kind, self.eps = alpha, kind, eps

    def features(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Rows ``(B, C)``; of maps, their means over all places."""
        pooled = (f.mean((2, 3)) if f.dim() == 4 else f for f in (student, teacher))
        return super().features(*pooled)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of features (B, C) or (B, C, H, W), a scalar, after the student's projection."""
        student, teacher = self.projected(*raised(student, teacher.detach()))
        return srd_loss(student, teacher, self.alpha, self.kind, self.eps)

    def extra_repr(self) -> str:
        """The settings of the function."""
        return f"alpha={self.alpha}, kind={self.kind!r}, eps={self.eps}"
