"""A hash of a model: what the key of its kept outputs says of it."""

import hashlib
import json
import re

import torch
from torch import Tensor, nn


def model_hash(model: nn.Module, extra: str = "") -> str:
    """One hash over a model's structure and every bit of its weights, for the key of a cache.

    It covers the class and ``extra_repr`` (stride, slope, eps, ...) of each submodule, and name,
    dtype, shape and bytes of each parameter and buffer (those out of ``state_dict`` too). It does
    not depend on the device, the memory format, or the order in which submodules were registered.
    Code is not covered: give ``extra`` whatever else decides the outputs.

    Args:
        model: the network itself.
        extra: any text.

    Returns:
        64 hexadecimal digits (sha256).

    Raises:
        ValueError: ``state_dict()`` has no tensor, so all such models would look the same. A
            ``Teacher`` hides its network from it: pass ``teacher.model``, and the precision, input
            size and normalisation in ``extra``.
    """
    state = model.state_dict()
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"model_hash: {type(model).__name__} has no weights in its state_dict(); pass the "
            "network itself (teacher.model, for a Teacher)"
        )
    # the non-persistent ones
    state |= dict(model.named_buffers(remove_duplicate=False))
    digest = hashlib.sha256()

    def line(*parts: object) -> None:
        digest.update(json.dumps(parts).encode() + b"\n")

    line("extra", extra)
    for name, module in sorted(
        model.named_modules(remove_duplicate=False), key=lambda item: item[0]
    ):
        # an object's address differs from run to run
        described = re.sub(r" at 0x[0-9a-fA-F]+", "", module.extra_repr())
        line("module", name, type(module).__module__, type(module).__qualname__, described)
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor):
            line("tensor", name, str(value.dtype), list(value.shape))
            digest.update(
                value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
        # a module's get_extra_state()
        else:
            line("state", name, repr(value))
    return digest.hexdigest()
