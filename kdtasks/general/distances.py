"""Distances between the rows of a batch, for losses that relate samples to each other.

What these losses cannot do: run on a device without float64 (Apple's MPS: move the embeddings to
the CPU), be differentiated by ``torch.func``, and relate float64 rows longer than 1e154, whose
squares overflow (DarkRank takes them for rows of zeros).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def squared_distances(rows: Tensor, detach_query: bool = False) -> Tensor:
    """Squared Euclidean distance of every row to every row, exact where rows lie close together or
    far from the origin.

    Each is a sum of squared differences in float64. Inner products would lose the digits of a
    distance that is small beside the rows. No tensor of ``N * N * D`` entries is made, not in
    backward either.

    Args:
        rows: ``(N, D)`` of any floating type; carries the gradient.
        detach_query: entry (i, j) pulls on row j only.

    Returns:
        ``(N, N)`` float64, exactly symmetric; exactly 0 for equal rows, and there is no gradient
        there.
    """
    return _SquaredDistances.apply(rows.double(), detach_query)


class _SquaredDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, detach_query: bool) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.detach_query = detach_query
        distances = rows.new_zeros(len(rows), len(rows))
        if len(rows) > 1:
            i, j = torch.triu_indices(len(rows), len(rows), 1, device=rows.device)
            distances[i, j] = F.pdist(rows).square_()
        return distances + distances.T

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (rows,) = ctx.saved_tensors
        # the differences stay, with more digits
        rows = rows - rows.mean(0)
        # (N, N) [row pulled, by which row]
        pull = gradient.T if ctx.detach_query else gradient + gradient.T
        return 2 * (pull.sum(1).diag() - pull) @ rows, None
