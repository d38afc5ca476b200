"""Tensors of all processes, for losses that relate samples to each other or divide by a sum over
the batch.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of every process, in the order of their ranks; ``rows`` itself where there is one
    process.

    A row's gradient is the sum of what it receives in all W processes. A loss of the gathered rows
    is the same number in each, so that is W times the gradient of one process with all rows; and
    DDP, which averages the parameters' gradients over the processes, makes of it the step of that
    one process.

    Args:
        rows: ``(N, *)``, of the same shape and dtype in every process; each of them must make this
            call, and backpropagate through it or not, alike.

    Returns:
        ``(W * N, *)``. Differentiable once.
    """
    return _GatherRows.apply(rows) if _several() else rows


def mean_over_processes(value: Tensor) -> tuple[Tensor, float]:
    """A normaliser's mean over the W processes, and 1 / W: what a total of 1 is in each.

    A sum divided by that mean, averaged by DDP, is the total sum divided by the total normaliser:
    the step of one process.

    Args:
        value: what this process would divide by alone; overwritten where there are several.
    """
    if not _several():
        return value, 1.0
    distributed.all_reduce(value)
    return value / distributed.get_world_size(), 1 / distributed.get_world_size()


def _several() -> bool:
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        gathered = rows.new_empty(distributed.get_world_size(), *rows.shape)
        distributed.all_gather(list(gathered), rows.contiguous())
        return gathered.flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient.narrow(0, distributed.get_rank() * ctx.rows, ctx.rows)
