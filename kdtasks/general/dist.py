r"""DIST, knowledge distillation from a stronger teacher (Huang et al., NeurIPS 2022, arXiv
2205.10536).

A strong teacher's probabilities are too far from a student's for a divergence; what is asked here
is only that they are correlated. With :math:`P = \mathrm{softmax}(z / T)` of a batch, a matrix (B,
C), and Pearson's correlation

.. math::
    \rho(u, v) = \frac{\langle u - \bar u, v - \bar v \rangle}
    {\lVert u - \bar u \rVert \, \lVert v - \bar v \rVert + \varepsilon}

of the classes within a sample (rows), and of the samples within a class (columns):

.. math::
    L = T^2 \Bigl( w_\mathrm{inter}
    \bigl(1 - \operatorname*{mean}_b \rho(P^s_{b\cdot}, P^t_{b\cdot}) \bigr) + w_\mathrm{intra}
    \bigl(1 - \operatorname*{mean}_c \rho(P^s_{\cdot c}, P^t_{\cdot c}) \bigr) \Bigr)

:math:`\varepsilon = 10^{-8}`, added to the product as released, is part of the method: the columns
of classes that are rare in a batch have norms near it, their correlation is drawn to 0, and they
neither pull nor count as learned. So the loss of a student that equals its teacher is not 0.

The columns are of one process's batch, as released. The authors' total is ``1·CE + 2·DIST``, with T
= 1 on ImageNet and T = 4 on CIFAR-100.
"""

import math

import torch
from torch import Tensor, nn

from kdtasks.core.precision import raised

EPS = 1e-8
# a row is flat whose deviation is below this share of its length: float32 leaves about 1e-7
FLAT = 1e-6


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    inter: float = 1.0,
    intra: float = 1.0,
) -> Tensor:
    """T² (inter · (1 - mean correlation of rows) + intra · (1 - mean correlation of columns)).

    Args:
        student: ``(B, C)`` logits, C at least 2, or ``(B, C, *)``, whose places are rows; carries
            the gradient. Of one row, the columns have no correlation, and their part is constant.
            A row of equal logits correlates with nothing and has no gradient of its own; where all
            are so, as in a head that begins with zeros, cross-entropy has to move it first.
        teacher: logits of the same shape; never receives a gradient.
        temperature: T > 0; 1 as released for ImageNet.
        inter, intra: weights >= 0 of the two parts; 1 and 1 as released.

    Returns:
        A scalar; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there are no rows.

    Raises:
        ValueError: the shapes differ or have no class axis, there is one class, or the temperature
            is not positive.
    """
    if student.shape != teacher.shape or student.dim() < 2 or student.shape[1] < 2:
        raise ValueError(
            "expected two equal shapes (B, C) or (B, C, *) of two classes or more, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    student, teacher = (
        (z / temperature).softmax(1).movedim(1, -1).flatten(0, -2)
        for z in raised(student, teacher.detach())
    )
    if not len(student):
        return student.sum()
    rows = 1 - correlation(student, teacher).mean()
    columns = 1 - correlation(student.T, teacher.T).mean()
    return temperature**2 * (inter * rows + intra * columns)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's, of each row of ``first`` with the same of ``second``; ``(N, M)``, ``(N, M)`` ->
    ``(N,)``. A row of ``first`` that is flat, all of it equal, has 0 and no gradient.
    """
    lengths = FLAT * first.detach().norm(dim=1)
    first, second = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    # over EPS alone, a flat row's slope would be 1e8
    flat = first.detach().norm(dim=1) < lengths
    first = torch.where(flat[:, None], first.detach(), first)
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1) + EPS)


class DISTLoss(nn.Module):
    """Module form of :func:`dist_loss`."""

    def __init__(self, temperature: float = 1.0, inter: float = 1.0, intra: float = 1.0):
        super().__init__()
        for name, weight in (("inter", inter), ("intra", intra)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {weight}")
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.temperature, self.inter, self.intra = temperature, inter, intra

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits (B, C) twice -> a scalar."""
        return dist_loss(student, teacher, self.temperature, self.inter, self.intra)

    def extra_repr(self) -> str:
        """Temperature and both weights."""
        return f"temperature={self.temperature}, inter={self.inter}, intra={self.intra}"
