r"""Knowledge distillation with soft targets (Hinton, Vinyals and Dean, arXiv 1503.02531, section 2).

The student matches the teacher's class probabilities, both softened by a temperature :math:`T`, so that the small
probabilities (which wrong classes look alike) count too:

.. math:: L = \frac{T^2}{B} \sum_{b=1}^{B} \sum_{c=1}^{C} p^t_{bc} \,(\log p^t_{bc} - \log p^s_{bc}),
    \qquad p = \mathrm{softmax}(z / T)

Its gradient is :math:`(T / B)(p^s - p^t)`. The paper minimises the cross-entropy with the soft targets, which has the
same gradient; the divergence is 0 when the two agree. :math:`T^2` keeps the size of the gradients when T changes
(the paper's section 2). For every code base that leaves it out, or divides by C as well, a weight copied from there
has to be converted.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def kd_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T² · KL(teacher ‖ student), summed over classes, mean over the batch and all positions.

    Args:
        student: ``(B, C)`` or ``(B, C, *)`` logits; carries the gradient.
        teacher: logits of the same shape; never receives a gradient.
        temperature: T > 0; 4 as in the CIFAR-100 comparisons that followed the paper (RepDistiller).

    Returns:
        A scalar in nats, T² times; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there are no rows.

    Raises:
        ValueError: the shapes differ or have no class axis, or the temperature is not positive.
    """
    if student.shape != teacher.shape or student.dim() < 2:
        raise ValueError(f"expected two equal shapes (B, C) or (B, C, *), got student {tuple(student.shape)} "
                         f"and teacher {tuple(teacher.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    student, teacher = (z.double() if z.element_size() == 8 else z.float() for z in (student, teacher.detach()))
    log_p_student = F.log_softmax(student / temperature, dim=1)               # (B, C, *)
    log_p_teacher = F.log_softmax(teacher / temperature, dim=1)
    positions = student.numel() // max(student.shape[1], 1)                   # B times all positions
    divergence = F.kl_div(log_p_student, log_p_teacher, reduction="sum", log_target=True)
    return divergence * (temperature**2 / max(positions, 1))


class KDLoss(nn.Module):
    """Module form of :func:`kd_loss`."""

    def __init__(self, temperature: float = 4.0):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return kd_loss(student, teacher, self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
