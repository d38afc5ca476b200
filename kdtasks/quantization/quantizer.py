r"""Uniform quantization in buckets (Polino, Pascanu and Alistarh, ICLR 2018, arXiv 1802.05668,
section 2).

A tensor is laid out flat and cut into buckets of k values. In each, :math:`\beta = \min v` and
:math:`\alpha = \max v - \min v` scale it to [0, 1], where :math:`2^b` points lie at equal
distances, :math:`s = 2^b - 1` intervals:

.. math:: Q(v) = \alpha\, \hat Q\Bigl( \frac{v - \beta}{\alpha} \Bigr) + \beta, \qquad
    \hat Q(u) = \frac{1}{s} \mathrm{round}(s u)

so that both ends of a bucket stay as they are. Stochastically, ``s u`` is rounded up with the
probability of its fraction, and the mean of many :math:`Q(v)` is v.

As in the released code: 2^b is the number of points, not of intervals; halves are rounded to even
(the paper: down); the last bucket is filled up with the tensor's last value, which moves no end; a
tensor shorter than a bucket is one; a bucket whose range is below 1e-10 is kept. Each bucket costs
two numbers beside its codes: with f = 32 bits for them, :func:`compression` says what is saved.

**Gradients.** ``'straight'``: that of Q(v) is v's, as if nothing had been rounded (the paper's).
``'scale'``: the ends of the bucket move too, and with them all that is between. With g the gradient
of Q(v),

.. math:: \frac{\partial L}{\partial v_j} = g_j + \sum_{i \in \mathrm{bucket}} g_i\,
    \bigl(\hat Q(u_i) - u_i\bigr) \bigl([j = \arg\max] - [j = \arg\min]\bigr)

The released code has a third kind, which cuts weights at ±1; it is not here.
"""

from typing import Any

import torch
from torch import Tensor

from kdtasks.core.precision import raised_dtype

GRADIENTS = ("straight", "scale")
MAX_BITS = 16
# a bucket of a smaller range is constant
MIN_RANGE = 1e-10


def uniform_quantize(
    tensor: Tensor,
    bits: int,
    bucket_size: int | None = 256,
    stochastic: bool = False,
    gradient: str = "straight",
) -> Tensor:
    """Q(v), of the same shape and dtype.

    Args:
        tensor: floating, of one value at least; carries the gradient. A NaN makes its bucket NaN.
        bits: b, from 1 to 16.
        bucket_size: k; None: the whole tensor is one bucket. 256 is recalled of the paper, not
            verified; the released code has no default.
        stochastic: round at random, by torch's random stream.
        gradient: ``'straight'`` or ``'scale'``.

    Returns:
        The quantized tensor; half precision is computed in float32, float64 stays.

    Raises:
        ValueError: a setting out of its range; a tensor that is empty or not floating.
    """
    check_settings(bits, bucket_size)
    check_tensor(tensor)
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {GRADIENTS}, got {gradient!r}")
    return _UniformQuantize.apply(tensor, bits, bucket_size, stochastic, gradient)


def compression(bits: int, bucket_size: int, float_bits: int = 32) -> float:
    """How many times smaller codes and two numbers a bucket are: f·k / (b·k + 2f).

    7.53 at 4 bits and buckets of 256, 14.22 at 2 bits.
    """
    return float_bits * bucket_size / (bits * bucket_size + 2 * float_bits)


def check_settings(bits: int, bucket_size: int | None) -> None:
    """Raise ValueError if there is no such quantization."""
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be a whole number from 1 to {MAX_BITS}, got {bits!r}")
    whole = isinstance(bucket_size, int) and not isinstance(bucket_size, bool)
    if bucket_size is not None and not (whole and bucket_size >= 1):
        raise ValueError(f"bucket_size must be a whole number >= 1 or None, got {bucket_size!r}")


def check_tensor(tensor: Tensor) -> None:
    """Raise ValueError if it cannot be quantized."""
    if not tensor.is_floating_point() or not tensor.numel():
        raise ValueError(
            f"expected a floating tensor of one value at least, got {tensor.dtype} of the shape "
            f"{tuple(tensor.shape)}"
        )


# Buckets ------------------------------------------------------------------------------------------
def to_buckets(tensor: Tensor, bucket_size: int | None) -> Tensor:
    """Any shape -> ``(buckets, k)``, in float32 at least; the last one filled up with the last
    value.
    """
    flat = tensor.detach().to(raised_dtype(tensor)).reshape(-1)
    size = min(bucket_size or flat.numel(), flat.numel())
    missing = -flat.numel() % size
    if missing:
        flat = torch.cat([flat, flat[-1:].expand(missing)])
    return flat.view(-1, size)


def from_buckets(buckets: Tensor, like: Tensor) -> Tensor:
    """``(buckets, k)`` -> the shape and dtype of ``like``."""
    return buckets.view(-1)[: like.numel()].view(like.shape).to(like.dtype)


def ranges(buckets: Tensor) -> tuple[Tensor, Tensor]:
    """``(buckets, k)`` -> beta and alpha, ``(buckets, 1)`` each; alpha 0 where the bucket is
    constant.
    """
    low = buckets.amin(dim=1, keepdim=True)
    width = buckets.amax(dim=1, keepdim=True) - low
    return low, width.masked_fill(width < MIN_RANGE, 0)


def scaled(buckets: Tensor, low: Tensor, width: Tensor, top: float) -> Tensor:
    """A new tensor: the buckets brought to [0, top]; 0 where constant.

    Divided first, as the definition has it: the largest value is at ``top`` exactly.
    """
    return (buckets - low).div_(width.masked_fill(width == 0, torch.inf)).mul_(top)


# Codes --------------------------------------------------------------------------------------------
def encode(buckets: Tensor, bits: int, stochastic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """``(buckets, k)`` -> codes 0 … 2^b - 1 as numbers of its dtype; and what decodes them: beta
    and the distance of two points, ``(buckets, 1)``.
    """
    top = 2**bits - 1
    low, width = ranges(buckets)
    codes = scaled(buckets, low, width, top)
    if stochastic:
        below = codes.floor()
        # of the fraction alone: added to a large code, a draw near 1 would round up to the next
        codes = below.add_(torch.rand_like(codes) < codes.sub_(below))
    else:
        codes.round_()
    return codes, low, width / top


def decode(codes: Tensor, low: Tensor, step: Tensor, out: Tensor | None = None) -> Tensor:
    """What :func:`encode` took apart, quantized; ``out`` may be the codes."""
    return torch.addcmul(low, codes, step, out=out)


class _UniformQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        bits: int,
        bucket_size: int | None,
        stochastic: bool,
        gradient: str,
    ) -> Tensor:
        buckets = to_buckets(tensor, bucket_size)
        codes, low, step = encode(buckets, bits, stochastic)
        ctx.through_scale = gradient == "scale"
        if ctx.through_scale:
            low, width = ranges(buckets)
            top = 2**bits - 1
            rounding = (codes - scaled(buckets, low, width, top)).div_(top)
            ends = buckets.argmax(1, keepdim=True), buckets.argmin(1, keepdim=True)
            ctx.save_for_backward(rounding, *ends, width)
        return from_buckets(decode(codes, low, step, out=codes), tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        (gradient,) = gradients
        if not ctx.through_scale:
            return gradient, None, None, None, None
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradient through the scale can be differentiated once: no create_graph=True"
            )
        rounding, highest, lowest, width = ctx.saved_tensors
        rows = to_buckets(gradient, rounding.shape[1])
        missing = rows.numel() - gradient.numel()
        if missing:
            rows = rows.clone()
            rows.view(-1)[-missing:] = 0  # what fills the last bucket up is no output
        pull = (rows * rounding).sum(1, keepdim=True).masked_fill(width == 0, 0)
        rows = rows.scatter_add(1, highest, pull).scatter_add(1, lowest, -pull)
        # the end of the last bucket may be a copy of the last value
        flat = rows.view(-1)
        if missing:
            last = gradient.numel() - 1
            flat = flat.clone()
            flat[last] += flat[last + 1 :].sum()
        return from_buckets(flat, gradient), None, None, None, None
