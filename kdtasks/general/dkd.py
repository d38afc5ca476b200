r"""Decoupled Knowledge Distillation (Zhao et al., CVPR 2022, arXiv 2203.08679).

The KD loss of one sample falls into two parts. With the class y of the label, its probability
:math:`b = \mathrm{softmax}(z / T)_y`, and :math:`q` the softmax over the other C - 1 classes alone,

.. math::
    \mathrm{TCKD} &= T^2 \Bigl( b^t \log \frac{b^t}{b^s} +
    (1 - b^t) \log \frac{1 - b^t}{1 - b^s} \Bigr), \qquad
    \mathrm{NCKD} = T^2\, \mathrm{KL}(q^t \,\|\, q^s)

    \mathrm{KD} &= \mathrm{TCKD} + (1 - b^t)\, \mathrm{NCKD}, \qquad
    \mathrm{DKD} = \alpha\, \mathrm{TCKD} + \beta\, \mathrm{NCKD}

A teacher that is sure of the label hides in KD what it thinks of the other classes, by the factor
:math:`1 - b^t`; here that part has a weight of its own.

**Weights** in the released code, beside cross-entropy at weight 1, on CIFAR-100 (T = 4, alpha = 1):
beta = 8 (ResNet-32x4 and its students; the default), 6 (VGG-13, wide ResNets), 2 (ResNet-56 and
-110); on ImageNet T = 1, beta = 0.5 (ResNet-34 to -18) or 2. The loss's weight grows
linearly to 1 over the first 20 epochs (ImageNet: one).

The released code masks the label's class by subtracting 1000 and takes the logarithm of a softmax:
for logits far apart it gives inf, and then NaN. Written with log-sum-exp, as here, the same
formula is finite for all finite logits.
"""

import math

from torch import Tensor, nn

from kdtasks.core.classes import UNLABELLED
from kdtasks.core.precision import raised
from kdtasks.general.divergences import binary_kl_terms, kl_terms


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """``alpha * TCKD + beta * NCKD``, mean over the labelled rows.

    Args:
        student: ``(B, C)`` logits, C at least 2 (with two, NCKD is 0); carries the gradient. -inf:
            a masked class, see :mod:`kdtasks.general.divergences`.
        teacher: logits of the same shape; never receives a gradient.
        target: ``(B,)`` class numbers; rows of -100 are unlabelled, and count as absent. Soft
            labels have no one class to set apart, and are refused.
        temperature: T > 0; 4 as released for CIFAR-100.
        alpha, beta: weights >= 0 of the two parts; 1 and 8 as released, see above.

    Returns:
        A scalar in nats, T² times; half precision is raised to float32, float64 stays. A zero that
        still backpropagates when there are no labelled rows.

    Raises:
        ValueError: the shapes do not fit, there is one class, the target is not of class numbers,
            or the temperature is not positive.
    """
    _check(student, teacher, target, temperature)
    student, teacher = (z / temperature for z in raised(student, teacher.detach()))
    labelled = target != UNLABELLED
    label = target.where(labelled, 0)[:, None]
    # the other classes alone, and the logit of b: log b - log(1 - b)
    (rest_student, logit_student), (rest_teacher, logit_teacher) = (
        _apart(z, label) for z in (student, teacher)
    )
    tckd = binary_kl_terms(logit_student, logit_teacher)
    nckd = kl_terms(rest_student, rest_teacher).sum(1)
    rows = (alpha * tckd + beta * nckd).masked_fill(~labelled, 0)
    return rows.sum() * temperature**2 / labelled.sum().clamp(min=1)


def _apart(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """``(B, C)``, ``(B, 1)`` -> the logits with the label's at -inf, and its log odds ``(B,)``."""
    rest = logits.scatter(1, label, -math.inf)
    return rest, logits.gather(1, label).squeeze(1) - rest.logsumexp(1)


def _check(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> None:
    if student.shape != teacher.shape or student.dim() != 2 or student.shape[1] < 2:
        raise ValueError(
            f"expected two equal shapes (B, C) of two classes or more, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    if target.shape != student.shape[:1] or target.is_floating_point():
        raise ValueError(
            f"expected a target (B,) of class numbers, got target {tuple(target.shape)} "
            f"{target.dtype} and student {tuple(student.shape)}: soft or mixed labels have no one "
            "class to set apart"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


class DKDLoss(nn.Module):
    """Module form of :func:`dkd_loss`."""

    def __init__(self, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0):
        super().__init__()
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {weight}")
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.temperature, self.alpha, self.beta = temperature, alpha, beta

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Logits (B, C) twice and class numbers (B,) -> a scalar."""
        return dkd_loss(student, teacher, target, self.temperature, self.alpha, self.beta)

    def extra_repr(self) -> str:
        """Temperature and both weights."""
        return f"temperature={self.temperature}, alpha={self.alpha}, beta={self.beta}"
