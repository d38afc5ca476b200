"""The precision in which losses are worked out: float32 at least, and never below an input's."""

import torch
from torch import Tensor


def raised(*tensors: Tensor) -> list[Tensor]:
    """All of them in float64 if one is, else in float32; those that are so already are not copied."""
    dtype = (
        torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    )
    return [tensor.to(dtype) for tensor in tensors]
