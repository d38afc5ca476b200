r"""Similarity-preserving knowledge distillation (Tung and Mori, ICCV 2019, arXiv 1907.09682).

Two images that activate the teacher alike shall activate the student alike. Of features F, one row
an image, the Gram matrix :math:`G = F F^\top` says how alike two images are; with its rows brought
to length 1,

.. math:: L = \frac{1}{B^2} \lVert \hat G^t - \hat G^s \rVert_F^2

so neither the channels nor the places of the two need to agree.

**Weight.** 3000 beside cross-entropy at weight 1, at a batch of 64 (released, for the last map
before the pooling). The value falls as 1/B, since rows have length 1 whatever B is: another batch,
and a batch of several processes, ask for another weight.
"""

import torch
from torch import Tensor

from kdtasks.core.precision import raised
from kdtasks.general.directions import directions


def similarity_preserving_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared distance of two Gram matrices with rows of length 1, over B².

    Args:
        student: ``(B, *)`` features; carries the gradient. A dead row (zeros) has none.
        teacher: ``(B, *)`` features of the same images, of any shape; never receives a gradient.

    Returns:
        A scalar; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there are no rows; with one row always 0.

    Raises:
        ValueError: no two batches of equal length.
    """
    if student.dim() < 2 or teacher.dim() < 2 or len(student) != len(teacher):
        raise ValueError(
            f"expected features (B, *) of the same images, got student {tuple(student.shape)} and "
            f"teacher {tuple(teacher.shape)}"
        )
    student, teacher = raised(student, teacher.detach())
    with torch.autocast(student.device.type, enabled=False):
        difference = _similarity(student) - _similarity(teacher)
    return difference.square().sum() / max(difference.numel(), 1)


def _similarity(features: Tensor) -> Tensor:
    """``(B, *)`` -> ``(B, B)``, rows of length 1."""
    rows = features.flatten(1)
    return directions(rows @ rows.T)
