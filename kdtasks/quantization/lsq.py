r"""Learned step size quantization (Esser et al., ICLR 2020, arXiv 1902.08153), and PACT (Choi et
al., arXiv 1805.06085) for activations.

**LSQ.** The distance s of two steps is learned together with the weights:

.. math:: v_q = s \cdot \mathrm{round}\bigl(\mathrm{clip}(v / s, -Q_N, Q_P)\bigr), \qquad
    Q_N = 2^{b-1},\; Q_P = 2^{b-1} - 1 \text{ (signed)}; \quad 0,\; 2^b - 1 \text{ (unsigned)}

.. math::
    \frac{\partial v_q}{\partial v} = [-Q_N < v / s < Q_P], \qquad
    \frac{\partial v_q}{\partial s} = \begin{cases}
    -Q_N & v / s \le -Q_N \\ Q_P & v / s \ge Q_P \\ \mathrm{round}(v / s) - v / s & \text{else}
    \end{cases}

The step's gradient is multiplied by :math:`g = 1 / \sqrt{N Q_P}`, N being the number of weights, or
of features of **one** image; it starts at :math:`2 \,\mathrm{mean}|v| / \sqrt{Q_P}`. Halves are
rounded to even. There is one step for a tensor.

**PACT.** A learned ceiling in the place of ReLU:

.. math:: y_q = \frac{a}{2^b - 1} \mathrm{round}\Bigl( \frac{2^b - 1}{a} \mathrm{clip}(x, 0, a)
    \Bigr), \qquad \frac{\partial y_q}{\partial x} = [0 \le x < a], \quad
    \frac{\partial y_q}{\partial a} = [x \ge a]

It cuts what is negative.

Weight decay: none of s (our choice: decay shrinks the weights, and the step follows them by its own
gradient); a has the weights', which is recalled of the paper, not verified.
"""

import math
from typing import Any

import torch
from torch import Tensor, distributed, nn

from kdtasks.core.precision import raised_dtype
from kdtasks.quantization.quantizer import check_settings, check_tensor

# a step, or a ceiling, is never below
MIN_STEP = 1e-8
MIN_CEILING = 1e-3


def lsq_bounds(bits: int, signed: bool = True) -> tuple[int, int]:
    """``(-Q_N, Q_P)``.

    Raises:
        ValueError: bits below 1, or below 2 of signed values, whose largest would be 0.
    """
    check_settings(bits, None)
    if not signed:
        return 0, 2**bits - 1
    if bits < 2:
        raise ValueError(f"signed values need 2 bits or more, got {bits}: the largest would be 0")
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def lsq_init(tensor: Tensor, bits: int, signed: bool = True) -> Tensor:
    """The step to begin with, a scalar: 2 · mean |v| / sqrt(Q_P); 1 for a tensor of zeros.

    Raises:
        ValueError: as :func:`lsq_quantize`.
    """
    check_tensor(tensor)
    _, high = lsq_bounds(bits, signed)
    mean = tensor.detach().to(raised_dtype(tensor)).abs().mean()
    return (2 * mean / math.sqrt(high)).where(mean > 0, 1.0)


def lsq_quantize(
    tensor: Tensor, step: Tensor, bits: int, signed: bool = True, count: int | None = None
) -> Tensor:
    """The tensor at multiples of the step.

    Args:
        tensor: floating, of one value at least; carries the gradient.
        step: a scalar tensor > 0; carries the gradient. Below 1e-8 it counts as 1e-8.
        bits: of the codes.
        signed: weights are; activations behind a ReLU are not.
        count: N of the gradient's factor; None: the values of the tensor. Of activations give the
            features of one image.

    Returns:
        The shape and dtype of ``tensor``; computed in float32 at least.

    Raises:
        ValueError: bits out of range, a step of several values, a tensor that is empty or not
            floating.
    """
    check_tensor(tensor)
    low, high = lsq_bounds(bits, signed)
    if step.numel() != 1:
        raise ValueError(f"expected one step, got {tuple(step.shape)}")
    factor = 1 / math.sqrt((count or tensor.numel()) * high)
    return _LSQ.apply(tensor, step, low, high, factor)


def pact(tensor: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """A ReLU with a learned ceiling, quantized.

    Args:
        tensor: floating, of one value at least; carries the gradient.
        alpha: the ceiling, a scalar tensor > 0; carries the gradient. Below 1e-3 it counts as 1e-3.
        bits: of the codes.

    Raises:
        ValueError: as :func:`lsq_quantize`.
    """
    check_settings(bits, None)
    check_tensor(tensor)
    if alpha.numel() != 1:
        raise ValueError(f"expected one alpha, got {tuple(alpha.shape)}")
    return _PACT.apply(tensor, alpha, 2**bits - 1)


class LSQ(nn.Module):
    """:func:`lsq_quantize` of activations, with a step of its own that starts from the first batch
    in training that is not all zeros: in several processes from the mean of theirs, so that all
    have the same. In eval before that, each batch has a step of its own.

    Args:
        bits: of the codes.
        signed: False behind a ReLU; None: whether the first batch has a value below 0. Later ones
            are cut accordingly.

    Attributes:
        started: () bool, whether the step has started.
        negative: () bool, what the first batch has said, with ``signed=None``.
        undecayed: see :class:`~kdtasks.quantization.tensors.QuantizedTensor`.
    """

    undecayed = ("step",)

    def __init__(self, bits: int, signed: bool | None = False):
        super().__init__()
        lsq_bounds(bits, signed is not False)
        self.bits, self.signed = bits, signed
        # known without a read of the device
        self._has_started, self._is_signed = False, signed
        self.step = nn.Parameter(torch.ones(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        if signed is None:
            self.register_buffer("negative", torch.zeros((), dtype=torch.bool))

    def forward(self, tensor: Tensor) -> Tensor:
        """The activations, ``(B, *)``, quantized."""
        if not tensor.numel():
            return tensor
        step = self.step
        if not self._has_started:
            if self.training:
                self._start(tensor)
            else:
                step = self._step_in_eval(tensor)
        count = tensor.shape[1:].numel()
        return lsq_quantize(tensor, step, self.bits, bool(self._is_signed), count)

    @torch.no_grad()
    def _start(self, tensor: Tensor) -> None:
        """The step of the first batch; ``started`` is true where another process has sent it."""
        if self.signed is None:
            if not bool(self.started | _over_all(tensor != 0)):
                return
            self.negative.copy_(torch.where(self.started, self.negative, _over_all(tensor < 0)))
            self._is_signed = bool(self.negative)
        first = lsq_init(tensor, self.bits, bool(self._is_signed)).to(self.step.dtype)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(first)
            first /= distributed.get_world_size()
        self.step.copy_(torch.where(self.started, self.step, first))
        self.started.fill_(True)
        self._has_started = True

    @torch.no_grad()
    def _step_in_eval(self, tensor: Tensor) -> Tensor:
        """This batch's own; or, where the buffers have followed another module's, as those of an
        average of weights, the one that has started there.
        """
        if bool(self.started):
            self._take_state()
            return self.step
        if self.signed is None:
            self._is_signed = bool((tensor < 0).any())
        return lsq_init(tensor, self.bits, bool(self._is_signed)).to(self.step.dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.started.is_meta:
            self._take_state()

    def _take_state(self) -> None:
        """What the buffers say: reads the device."""
        self._has_started = bool(self.started)
        self._is_signed = bool(self.negative) if self.signed is None else self.signed

    @property
    def has_started(self) -> bool:
        """Whether the step has started, as far as is known without a read of the device."""
        return self._has_started

    def extra_repr(self) -> str:
        """The settings."""
        return f"bits={self.bits}, signed={self.signed}"


class PACT(nn.Module):
    """:func:`pact` with a ceiling of its own, in the place of a ReLU.

    Args:
        bits: of the codes.
        alpha: to begin with; 10 as re-implementations have it.
    """

    def __init__(self, bits: int = 4, alpha: float = 10.0):
        super().__init__()
        check_settings(bits, None)
        if not alpha > 0:
            raise ValueError(f"alpha must be > 0, got {alpha}")
        self.bits = bits
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    def forward(self, tensor: Tensor) -> Tensor:
        """The activations, cut and quantized."""
        return pact(tensor, self.alpha, self.bits)

    def extra_repr(self) -> str:
        """The settings."""
        return f"bits={self.bits}"


def _over_all(flags: Tensor) -> Tensor:
    """() bool, whether any is true, in any process."""
    flag = flags.any().float()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return flag > 0


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, step: Tensor, low: int, high: int, factor: float
    ) -> Tensor:
        dtype = raised_dtype(tensor, step)
        width = step.to(dtype).clamp(min=MIN_STEP)
        ratio = tensor.to(dtype) / width
        ctx.save_for_backward(ratio)
        ctx.settings = low, high, factor, step.shape, step.dtype
        # no negative zero, which codes cannot hold
        return (ratio.clamp(low, high).round().add_(0.0) * width).to(tensor.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        (gradient,) = gradients
        (ratio,) = ctx.saved_tensors
        low, high, factor, shape, dtype = ctx.settings
        inside = (ratio > low) & (ratio < high)
        slope = torch.where(inside, ratio.round() - ratio, ratio.clamp(low, high))
        of_step = (gradient.to(ratio.dtype) * slope).sum() * factor
        return gradient * inside, of_step.to(dtype).view(shape), None, None, None


class _PACT(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, alpha: Tensor, top: int) -> Tensor:
        dtype = raised_dtype(tensor, alpha)
        ceiling = alpha.to(dtype).clamp(min=MIN_CEILING)
        values = tensor.to(dtype)
        ctx.save_for_backward(values >= 0, values >= ceiling)
        ctx.alpha = alpha.shape, alpha.dtype
        codes = (values.clamp(min=0).minimum(ceiling) * (top / ceiling)).round()
        return (codes * (ceiling / top)).to(tensor.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        (gradient,) = gradients
        positive, above = ctx.saved_tensors
        shape, dtype = ctx.alpha
        return gradient * (positive & ~above), (gradient * above).sum().to(dtype).view(shape), None
