r"""Logit standardization in knowledge distillation (Sun et al., CVPR 2024, arXiv 2403.01427).

KD asks the student's logits to have the teacher's spread, which a small network may not reach. Here
both are standardised over the classes first, so only the shape of the logits is taught:

.. math::
    n(z) = \frac{z - \bar z}{\mathrm{std}(z) + 10^{-7}}, \qquad
    L = \mathrm{KD}\bigl(n(z^s), n(z^t); T\bigr)

with :math:`\mathrm{std}` over C - 1, as torch has it and as released. Shift and scale of either do
not matter: the student learns its confidence from the labels alone, and T no longer depends on the
range of logits, but on C (the largest n is :math:`(C - 1) / \sqrt{C}`).

The released weights are 0.1 for cross-entropy and **9** for this loss, T = 2; part of what it gains
over KD at 0.9 is this weight, so plain KD at weight 9 belongs beside it. :func:`standardized` in
front of another loss of logits is the released form of that loss (DKD: both parts times 9).
"""

import torch
from torch import Tensor, nn

from kdtasks.core.precision import raised
from kdtasks.general.kd import kd_loss

EPS = 1e-7
FLAT = 1e-6


def standardized_kd_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """The KD loss of standardised logits.

    Args:
        student: ``(B, C)`` or ``(B, C, *)`` logits, C at least 2; carries the gradient. A row of
            equal logits (a spread below 1e-6) has none: a head that starts with zeros needs
            cross-entropy beside it.
        teacher: logits of the same shape; never receives a gradient.
        temperature: T > 0; 2 as released.

    Returns:
        A scalar in nats, T² times; half precision is raised to float32, float64 stays. A zero that
        still backpropagates when there are no rows. Masked classes (-inf) make it NaN.

    Raises:
        ValueError: as :func:`~kdtasks.general.kd_loss`.
    """
    student, teacher = raised(student, teacher.detach())
    fit = student.shape == teacher.shape and student.dim() > 1
    if not fit or not student.numel() or student.shape[1] < 2:
        return kd_loss(student, teacher, temperature)  # nothing to standardise: a zero, or an error
    return kd_loss(standardized(student), standardized(teacher), temperature)


def standardized(logits: Tensor) -> Tensor:
    """z-scores over axis 1; zeros where all are equal. Where the spread is below 1e-6 they have no
    gradient, which would be above a million.
    """
    spread = logits.std(dim=1, keepdim=True)
    # not by the spread, which rounding leaves above 0
    equal = logits.amax(1, keepdim=True) == logits.amin(1, keepdim=True)
    centred = (logits - logits.mean(dim=1, keepdim=True)).masked_fill(equal, 0)
    scores = centred / (spread + EPS)
    return torch.where(spread < FLAT, scores.detach(), scores)


class StandardizedKDLoss(nn.Module):
    """Module form of :func:`standardized_kd_loss`."""

    def __init__(self, temperature: float = 2.0):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits (B, C) or (B, C, *) twice -> a scalar."""
        return standardized_kd_loss(student, teacher, self.temperature)

    def extra_repr(self) -> str:
        """The temperature of the z-scores."""
        return f"temperature={self.temperature}"
