r"""Learned levels: differentiable quantization (Polino, Pascanu and Alistarh, ICLR 2018, arXiv
1802.05668, section 4).

The weights stay as they are, and the **points** that they are rounded to are learned: m of them for
a tensor, :math:`p_1 < \dots < p_m` in the scaled space [0, 1] of its buckets
(:mod:`kdtasks.quantization.quantizer`),

.. math:: Q(v_i) = \alpha\, p_{c(i)} + \beta, \qquad c(i) = \text{the nearest point to }
    \frac{v_i - \beta}{\alpha}, \qquad
    \frac{\partial L}{\partial p_j} = \sum_{i: c(i) = j} \alpha_{\mathrm{bucket}(i)}\,
    \frac{\partial L}{\partial Q(v_i)}

As released: the points start at quantiles of the scaled weights, and are sorted after each step,
which here is the order in which they are read; the teacher is the network in full precision.
Between tensors they may be shared out by how much the loss depends on each (:func:`share_levels`,
:func:`~kdtasks.quantization.assign_levels`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdtasks.core.precision import raised_dtype
from kdtasks.quantization.quantizer import (
    check_settings,
    check_tensor,
    from_buckets,
    ranges,
    scaled,
    to_buckets,
)


def level_quantize(tensor: Tensor, levels: Tensor, bucket_size: int | None = 256) -> Tensor:
    """Each value at the nearest level of its bucket's scaled space; of two equally near ones the
    lower.

    Args:
        tensor: floating, of one value at least; its gradient goes straight through.
        levels: ``(m,)``, in any order; carry the gradient above.
        bucket_size: see :func:`~kdtasks.quantization.uniform_quantize`.

    Returns:
        The shape and dtype of ``tensor``.

    Raises:
        ValueError: a tensor that is empty or not floating; levels that are not ``(m,)``, m at least
            1.
    """
    check_settings(1, bucket_size)
    check_tensor(tensor)
    if levels.dim() != 1 or not len(levels):
        raise ValueError(f"expected levels (m,), one at least, got {tuple(levels.shape)}")
    levels = levels.sort().values
    return _LevelQuantize.apply(tensor, levels, bucket_size)


def initial_levels(
    tensor: Tensor, count: int, bucket_size: int | None = 256, kind: str = "quantile"
) -> Tensor:
    """``(count,)`` levels to begin with.

    Args:
        tensor: the weights.
        count: m >= 1.
        bucket_size: of their buckets.
        kind: ``'quantile'`` of the scaled weights, from the smallest to the largest, as released;
            or ``'uniform'``, at equal distances in [0, 1].

    Raises:
        ValueError: a setting out of its range; a tensor that cannot be quantized.
    """
    check_settings(1, bucket_size)
    check_tensor(tensor)
    if count < 1 or kind not in ("quantile", "uniform"):
        raise ValueError(
            f"expected count >= 1 and kind 'quantile' or 'uniform', got {count} and {kind!r}"
        )
    dtype = raised_dtype(tensor)
    shares = torch.linspace(0, 1, count, dtype=dtype, device=tensor.device)
    if kind == "uniform":
        return shares
    buckets = to_buckets(tensor, bucket_size)
    values = scaled(buckets, *ranges(buckets), top=1).view(-1)[: tensor.numel()].sort().values
    # linear between two of them; torch.quantile takes 16 million values at most
    places = shares * (len(values) - 1)
    below = places.floor().long()
    above = (below + 1).clamp(max=len(values) - 1)
    return values[below].lerp(values[above], places - below)


def share_levels(gradient_norms: Sequence[float], levels: int) -> list[int]:
    """How many levels each tensor gets, of ``levels`` each on average: half of that for all, the
    rest in proportion to the norms of their gradients.

    Args:
        gradient_norms: of each tensor, over a few batches.
        levels: m >= 2.

    Returns:
        As many whole numbers, each at least ``levels // 2``, which add up to ``levels`` each. What
        rounding down leaves goes to the largest remainders.

    Raises:
        ValueError: no tensors, norms that are negative or all 0, or fewer levels.
    """
    norms = [float(norm) for norm in gradient_norms]
    if not norms or not all(norm >= 0 for norm in norms) or not 0 < sum(norms) < float("inf"):
        raise ValueError(f"expected norms >= 0 that are not all 0, got {norms}")
    if levels < 2:
        raise ValueError(f"expected levels >= 2, got {levels}")
    least = levels // 2
    rest = (levels - least) * len(norms)
    exact = [rest * norm / sum(norms) for norm in norms]
    counts = [least + int(share) for share in exact]
    by_remainder = sorted(range(len(norms)), key=lambda k: int(exact[k]) - exact[k])
    for k in by_remainder[: levels * len(norms) - sum(counts)]:
        counts[k] += 1
    return counts


def nearest(buckets: Tensor, levels: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """The number of the nearest of the sorted levels, for each value of ``(buckets, k)``."""
    middles = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(scaled(buckets, low, width, top=1), middles.to(buckets.dtype))


def at_levels(codes: Tensor, levels: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """The values of numbers of levels; a constant bucket stays."""
    return torch.addcmul(low, levels.to(low.dtype)[codes], width)


class _LevelQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, levels: Tensor, bucket_size: int | None) -> Tensor:
        buckets = to_buckets(tensor, bucket_size)
        low, width = ranges(buckets)
        codes = nearest(buckets, levels, low, width)
        ctx.save_for_backward(codes, width)
        ctx.levels = levels.shape, levels.dtype
        return from_buckets(at_levels(codes, levels, low, width), tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        (gradient,) = gradients
        codes, width = ctx.saved_tensors
        shape, dtype = ctx.levels
        pull = gradient.reshape(-1).to(width.dtype)
        of_each = width.expand_as(codes).reshape(-1)[: pull.numel()]
        slopes = pull.new_zeros(shape).index_add_(0, codes.view(-1)[: pull.numel()], pull * of_each)
        return gradient, slopes.to(dtype), None
