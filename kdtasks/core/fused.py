"""Losses with two forms: a plain one, which reads as the formula, and a fast one, the kernel.

A kernel works out the gradient together with the value, and keeps it for backward. That is all that
a training step needs, and all that a kernel can do: its gradient has no derivative, and neither
the transforms of ``torch.func`` nor ``torch.compile`` can look into it. There the plain form runs.
Tests hold the two equal.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def needs_plain(student: Tensor) -> bool:
    """Whether a compiler, a transform of ``torch.func`` or forward-mode differentiation is at work,
    which need a loss in torch's own operations.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad.unpack_dual(student).tangent is not None
    )


def fused(
    plain: Callable, kernel: Callable, student: Tensor, *others: Tensor | None
) -> Tensor | tuple[Tensor, ...]:
    """``plain(student, *others)``, by the kernel where that gives the same.

    A derivative of the gradient (``create_graph=True``) is the plain form's: backward sees whether
    one is asked for, and so keeps the arguments, as the losses of torch do.

    Args:
        plain: ``(student, *others)`` -> the value, or a tuple of it and more that has no gradient.
        kernel: ``(student, *others, with_gradient)`` -> the value, its gradient by ``student``
            (None without ``with_gradient``), and what more the plain form returns. The value is a
            scalar, or has the first axes of ``student``, whose entries it depends on each by
            themselves.
        student: the only tensor that receives a gradient.
        others: tensors without a gradient, or None; numbers are bound to both forms
            (``functools.partial``).
    """
    if needs_plain(student):
        return plain(student, *others)
    with_gradient = student.requires_grad and torch.is_grad_enabled()
    values = _Fused.apply(plain, kernel, with_gradient, student, *others)
    return values if len(values) > 1 else values[0]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plain: Callable,
        kernel: Callable,
        with_gradient: bool,
        student: Tensor,
        *others: Tensor | None,
    ) -> tuple[Tensor, ...]:
        value, gradient, *more = kernel(student, *others, with_gradient)
        ctx.mark_non_differentiable(*more)
        if with_gradient:
            ctx.save_for_backward(gradient, student, *others)
            ctx.plain = plain
        return value, *more

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_) -> tuple[Tensor | None, ...]:
        gradient, student, *others = ctx.saved_tensors
        # a derivative of the gradient is asked for
        if torch.is_grad_enabled():
            value = ctx.plain(student, *others)
            value = value[0] if isinstance(value, tuple) else value
            (slope,) = torch.autograd.grad(value, student, scale, create_graph=True)
        else:
            # one number stays one: with axes it would raise the gradient to its own precision
            if scale.dim():
                scale = scale.reshape(scale.shape + (1,) * (gradient.dim() - scale.dim()))
            slope = torch.empty_like(gradient, dtype=student.dtype)
            torch.mul(gradient, scale, out=slope)
        return None, None, None, slope, *(None for _ in others)
