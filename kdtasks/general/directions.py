"""Vectors brought to length 1, for losses that compare directions."""

from torch import Tensor

# a vector shorter than this has no direction
NO_LENGTH = 1e-6


def directions(vectors: Tensor, dim: int = 1) -> Tensor:
    """Vectors along ``dim`` over their lengths; one shorter than 1e-6 becomes zeros, without
    gradient.

    A dead vector over ``max(length, 1e-12)``, as is usual, is also zeros, but its gradient is 1e12
    times what comes back.
    """
    length = vectors.norm(dim=dim, keepdim=True)
    short = length < NO_LENGTH
    return vectors.masked_fill(short, 0) / length.masked_fill(short, 1)
