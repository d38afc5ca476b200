r"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928).

Where a network looks is where its activations are large. Over the channels of a map f the attention
is :math:`A = \operatorname*{mean}_d |f_d|^p`, laid out as a vector over the places and brought to
length 1; the student's is drawn to the teacher's:

.. math:: L = \operatorname*{mean}_{b, \mathrm{places}} \Bigl( \frac{A^s}{\lVert A^s \rVert} -
    \frac{A^t}{\lVert A^t \rVert} \Bigr)^2

The channels may differ; of maps of different sizes, the larger is averaged down to the smaller
first. One entry of ``losses`` for each layer, of equal weights.

**Weight.** This is the released code's form, the authors' and those that followed: the mean over
the places is part of its weight, 1000 beside cross-entropy at weight 1. In the paper (as
torchdistill reads it, mode ``'paper'``) the sum over the layers is of norms of the difference, not
squared and not divided by the places.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kdtasks.core.layouts import pair_to_nchw
from kdtasks.core.precision import raised
from kdtasks.general.directions import directions


def attention_transfer_loss(
    student: Tensor,
    teacher: Tensor,
    p: float = 2,
    layout: str | Sequence[str | None] | None = None,
    prefix_tokens: int | Sequence[int] = 0,
    grid: Sequence | None = None,
) -> Tensor:
    """Mean squared difference of two attention maps of length 1.

    Args:
        student: ``(B, C, H, W)``, of more than one place; carries the gradient. An image whose
            map is dead (all zeros) has none.
        teacher: ``(B, C', H', W')``; never receives a gradient.
        p: power > 0 of the activations; 2 as released.
        layout, prefix_tokens, grid: of features that are no maps ``(B, C, H, W)``: of a Swin or
            ViT, one for both or (the student's, the teacher's), see
            :func:`~kdtasks.core.layouts.pair_to_nchw`.

    Returns:
        A scalar; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there are no rows.

    Raises:
        ValueError: no two batches of maps of equal length, or their channels can only be last; a
            map without channels or places, or of one place, whose attention is 1 whatever it holds;
            or p is not positive.
    """
    student, teacher = pair_to_nchw(student, teacher, layout, prefix_tokens, grid)
    shapes = f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
    if student.dim() != 4 or teacher.dim() != 4 or len(student) != len(teacher):
        raise ValueError(f"expected two batches of maps (B, C, H, W), got {shapes}")
    if 0 in (*student.shape[1:], *teacher.shape[1:]):
        raise ValueError(f"expected maps of a channel and a place at least, got {shapes}")
    if not p > 0:
        raise ValueError(f"p must be > 0, got {p}")
    size = [min(sizes) for sizes in zip(student.shape[2:], teacher.shape[2:])]
    if size == [1, 1]:
        raise ValueError(
            f"the attention of a map of one place is 1 whatever the map holds, got {shapes}: "
            "expected maps before the pooling"
        )
    student, teacher = raised(student, teacher.detach())
    difference = _attention(student, size, p) - _attention(teacher, size, p)
    return difference.square().sum() / max(difference.numel(), 1)


def _attention(maps: Tensor, size: list[int], p: float) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, places)``, rows of length 1."""
    if list(maps.shape[2:]) != size:
        maps = F.adaptive_avg_pool2d(maps, size)
    powers = maps.square() if p == 2 else maps.abs().pow(p)
    return directions(powers.mean(1).flatten(1))
