"""The precision in which losses are computed: float32 at least, and never below an input's."""

import torch
from torch import Tensor


def raised_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if one of them has it, else float32."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def raised(*tensors: Tensor) -> list[Tensor]:
    """All of them in :func:`raised_dtype`; those that are so already are not copied."""
    dtype = raised_dtype(*tensors)
    return [tensor.to(dtype) for tensor in tensors]
