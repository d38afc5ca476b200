"""Find the tensors that hold a NaN or an infinity, with one synchronisation for each device."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors in which not every value is finite; integers always are.

    Args:
        tensors: by name, of any shapes and dtypes, on any devices.
    """
    bad = []
    floats = {
        name: t.detach()
        for name, t in tensors.items()
        if (t.is_floating_point() or t.is_complex()) and t.numel() and t.layout == torch.strided
    }
    for device in {t.device for t in floats.values()}:
        here = {name: t for name, t in floats.items() if t.device == device}
        norms = torch._foreach_norm(  # pyright: ignore[reportPrivateImportUsage]
            list(here.values()), math.inf
        )
        greatest = torch.stack([norm.double() for norm in norms])
        bad += [name for name, value in zip(here, greatest.tolist()) if not value < math.inf]
    return [name for name in tensors if name in set(bad)]
