r"""Knowledge distillation with soft targets (Hinton, Vinyals and Dean, arXiv 1503.02531, section
2).

The student matches the teacher's class probabilities, both softened by a temperature :math:`T`, so
that the small probabilities (which wrong classes look alike) count too:

.. math::
    L = \frac{T^2}{B} \sum_{b=1}^{B} \sum_{c=1}^{C} p^t_{bc} \,(\log p^t_{bc} - \log p^s_{bc}),
    \qquad p = \mathrm{softmax}(z / T)

Its gradient is :math:`(T / B)(p^s - p^t)`. The paper minimises the cross-entropy with the soft
targets, which has the same gradient; the divergence is 0 when the two agree. :math:`T^2` keeps the
size of the gradients when T changes (the paper's section 2). For every code base that leaves it
out, or divides by C as well, a weight copied from there has to be converted. Of maps ``(B, C, H,
W)`` the mean here is over all B·H·W positions; mmrazor's ``KLDivergence`` divides its sum by B
alone (``reduction='batchmean'``, its default), so that a weight for it is H·W times larger here.

**Sigmoid heads** (multi-label classification, or one logit) have no softmax over their classes:
each class is a yes or no of its own, and :func:`binary_kd_loss` adds up their divergences. With
:math:`q = \sigma(z^t / T)`, :math:`p = \sigma(z^s / T)`:

.. math:: L = \frac{T^2}{B} \sum_{b=1}^{B} \sum_{c=1}^{C} q_{bc} \log \frac{q_{bc}}{p_{bc}}
    + (1 - q_{bc}) \log \frac{1 - q_{bc}}{1 - p_{bc}}

**Masked classes**, with logits of -inf: see :mod:`kdtasks.general.divergences`.
"""

import functools

from torch import Tensor, nn

from kdtasks.core.fused import fused
from kdtasks.core.precision import raised
from kdtasks.general import kd_kernel
from kdtasks.general.divergences import binary_kl_terms, kl_terms


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The formula, for ``(B, C, *)`` logits of one dtype; of maps the mean over all positions."""
    positions = student.numel() // max(student.shape[1], 1)  # B times all positions
    terms = kl_terms(student / temperature, teacher / temperature)
    return terms.sum() * (temperature**2 / max(positions, 1))


def kd_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T² · KL(teacher ‖ student), summed over classes, mean over the batch and all positions.

    Args:
        student: ``(B, C)`` or ``(B, C, *)`` logits, C at least 2; carries the gradient. -inf: a
            masked class, which must be one of the teacher's too (else the loss is +inf), and
            receives no gradient.
        teacher: logits of the same shape; never receives a gradient.
        temperature: T > 0; 4 as in the CIFAR-100 comparisons that followed the paper
            (RepDistiller).

    Returns:
        A scalar in nats, T² times; half precision is raised to float32, float64 stays. A zero that
        still backpropagates when there are no rows.

    Raises:
        ValueError: the shapes differ or have no class axis; there is one class, whose softmax is 1
            whatever its logit; or the temperature is not positive.
    """
    if student.shape != teacher.shape or student.dim() < 2:
        raise ValueError(
            f"expected two equal shapes (B, C) or (B, C, *), got student {tuple(student.shape)} "
            f"and teacher {tuple(teacher.shape)}"
        )
    if student.shape[1] == 1:
        raise ValueError(
            f"expected at least two classes, got student {tuple(student.shape)}: the softmax of "
            "one logit is 1 whatever the logit, and the loss 0; for sigmoid heads there is "
            "binary_kd_loss"
        )
    _check_temperature(temperature)
    plain, kernel = (
        functools.partial(form, temperature=temperature)
        for form in (softened_kl, kd_kernel.softened_kl)
    )
    return fused(plain, kernel, *raised(student, teacher.detach()))


def binary_kd_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(teacher ‖ student) of the sigmoids of heads that answer yes or no; sum over classes,
    mean over the batch.

    Args:
        student: ``(B, C)`` logits, one or more, each of a sigmoid; carries the gradient, (T / B)(p
            - q).
        teacher: logits of the same shape; never receives a gradient.
        temperature: T > 0; 1: sigmoids of a trained head are rarely as sure as softmax over many
            classes is.

    Returns:
        A scalar in nats, T² times; half precision is raised to float32, float64 stays. A zero that
        still backpropagates when there are no rows.

    Raises:
        ValueError: the shapes differ or are not ``(B, C)``, or the temperature is not positive.
    """
    if student.shape != teacher.shape or student.dim() != 2:
        raise ValueError(
            f"expected two equal shapes (B, C), got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )
    _check_temperature(temperature)
    student, teacher = raised(student, teacher.detach())
    return binary_kl_terms(student / temperature, teacher / temperature).sum() * (
        temperature**2 / max(len(student), 1)
    )


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


class KDLoss(nn.Module):
    """Module form of :func:`kd_loss`."""

    def __init__(self, temperature: float = 4.0):
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits (B, C) or (B, C, *) twice -> a scalar."""
        return kd_loss(student, teacher, self.temperature)

    def extra_repr(self) -> str:
        """The temperature."""
        return f"temperature={self.temperature}"


class BinaryKDLoss(nn.Module):
    """Module form of :func:`binary_kd_loss`."""

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits (B, C) twice -> a scalar."""
        return binary_kd_loss(student, teacher, self.temperature)

    def extra_repr(self) -> str:
        """The temperature."""
        return f"temperature={self.temperature}"
