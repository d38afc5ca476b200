"""Distances between the rows of a batch, for losses that relate samples to each other.

What these losses cannot do: run on a device without float64 (Apple's MPS: move the embeddings to
the CPU), and relate float64 rows longer than 1e154, whose squares overflow (DarkRank takes them for
rows of zeros).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdtasks.core.fused import needs_plain

# squared, in units of the largest squared distance: rows nearer to each other coincide
NO_LENGTH = 1e-12


def squared_distances(rows: Tensor, detach_query: bool = False) -> Tensor:
    """Squared Euclidean distance of every row to every row, exact where rows lie close together or
    far from the origin.

    Each is a sum of squared differences in float64. Inner products would lose the digits of a
    distance that is small beside the rows. No tensor of ``N * N * D`` entries is made, not in
    backward either (but by ``torch.func`` and ``torch.compile``, which take the plain form).

    Args:
        rows: ``(N, D)`` of any floating type; carries the gradient.
        detach_query: entry (i, j) pulls on row j only.

    Returns:
        ``(N, N)`` float64, exactly symmetric; exactly 0 for equal rows, and there is no gradient
        there.
    """
    rows = rows.double()
    if needs_plain(rows):
        queries = rows.detach() if detach_query else rows
        return (queries[:, None] - rows).square().sum(2)
    return _SquaredDistances.apply(rows, detach_query)


def has_length(squared: Tensor) -> Tensor:
    """``(N, N)`` squared distances -> where two rows are far enough apart to have a direction."""
    return squared > NO_LENGTH * squared.max()


def inverse_distances(squared: Tensor) -> Tensor:
    """``(N, N)`` squared distances -> 1 / distance, and 0 where there is no direction."""
    return squared.where(has_length(squared), torch.inf).rsqrt()


class _SquaredDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, detach_query: bool) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.detach_query = detach_query
        distances = rows.new_zeros(len(rows), len(rows))
        if len(rows) > 1:
            i, j = torch.triu_indices(len(rows), len(rows), 1, device=rows.device)
            distances[i, j] = F.pdist(rows).square_()
        return distances + distances.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.detach_query and torch.is_grad_enabled():
            raise RuntimeError(
                "with detach_query=True the gradient is not that of the value, and it can be "
                "differentiated once: no create_graph=True"
            )
        (rows,) = ctx.saved_tensors
        # the differences stay, with more digits
        rows = rows - rows.mean(0)
        # (N, N) [row pulled, by which row]
        pull = gradient.T if ctx.detach_query else gradient + gradient.T
        return 2 * (pull.sum(1).diag() - pull) @ rows, None
