"""State in plain attributes, which no ``state_dict`` holds: read as plain types, and put back.

A memory of embeddings, a counter, a best score so far: third-party losses, hooks and schedulers
keep these in attributes. Values are written as ``(kind, …)`` of plain types, which a checkpoint
that runs no code can hold. What has no such form (a function, an open file) is left as it is.
"""

import types
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
# stands for a value that has no plain form
_LEFT = ("left",)
_PLAIN = (bool, int, float, str, bytes, type(None))
_SEQUENCES = {"list": list, "tuple": tuple, "deque": deque, "set": set}
_MAPPINGS = {"dict": dict, "OrderedDict": OrderedDict}
_NO_OWNERS = (
    nn.Module,
    torch.optim.Optimizer,
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
)


def attributes_of(owner: object, inside: bool = False) -> dict[str, tuple]:
    """The attributes of an object that have a plain form; of a module those beside parameters,
    buffers and submodules.

    Tensors are copied. With ``inside``, objects in it are read in the same way, but for modules and
    optimizers.
    """
    return _read_attributes(owner, inside, frozenset())


def changed_attributes(now: Mapping[str, tuple], before: Mapping[str, tuple]) -> dict[str, tuple]:
    """Of two results of :func:`attributes_of`, the entries of ``now`` that ``before`` lacks or has
    with another value.
    """
    return {
        name: value
        for name, value in now.items()
        if name not in before or not _equal(value, before[name])
    }


def set_attributes(
    owner: object, attributes: Mapping[str, tuple], device: torch.device | str = "cpu"
) -> None:
    """Put back what :func:`attributes_of` read; in place where the object has a value of the same
    kind.

    Args:
        owner: the object, as it was made.
        attributes: of it.
        device: where tensors go that were on a GPU.
    """
    for name, value in attributes.items():
        # else it has not been made yet
        if name in owner.__dict__ or value[0] not in ("object", "generator"):
            owner.__dict__[name] = _restored(tuple(value), owner.__dict__.get(name), device)


def _read_attributes(owner: object, inside: bool, seen: frozenset[int]) -> dict[str, tuple]:
    apart = _OF_EVERY_MODULE if isinstance(owner, nn.Module) else ()
    readings = {
        name: _read(value, inside, seen)
        for name, value in getattr(owner, "__dict__", {}).items()
        if name not in apart
    }
    return {name: value for name, value in readings.items() if value != _LEFT}


def _read(value: Any, inside: bool, seen: frozenset[int]) -> tuple:
    if type(value) in _PLAIN:
        return ("plain", value)
    if isinstance(value, Tensor):
        is_plain = type(value) is Tensor and not value.requires_grad and not value.is_inference()
        return ("tensor", value.detach().clone(), value.is_cuda) if is_plain else _LEFT
    if isinstance(value, torch.Generator):
        return ("generator", value.get_state())
    if type(value).__module__ == "numpy":
        return _read_numpy(value)
    if isinstance(value, _NO_OWNERS) or id(value) in seen:
        return _LEFT
    seen = seen | {id(value)}
    for kind, sequence in _SEQUENCES.items():
        if type(value) is sequence:
            return (kind, [_read(item, inside, seen) for item in value])
    for kind, mapping in _MAPPINGS.items():
        if type(value) is mapping:
            plain_keys = all(type(key) in _PLAIN for key in value)
            return (
                (kind, [(key, _read(item, inside, seen)) for key, item in value.items()])
                if plain_keys
                else _LEFT
            )
    if not inside or callable(value) or not hasattr(value, "__dict__"):
        return _LEFT
    return ("object", _read_attributes(value, inside, seen))


def _read_numpy(value: Any) -> tuple:
    if hasattr(value, "shape") and value.shape == () and hasattr(value, "item"):
        return ("plain", value.item()) if type(value.item()) in _PLAIN else _LEFT
    try:
        return ("numpy", torch.from_numpy(value.copy()))
    # no array, or one of a type that torch has not
    except (AttributeError, TypeError):
        return _LEFT


def _restored(value: tuple, current: object, device: torch.device | str) -> object:
    kind, *content = value
    if kind == "left":
        return current
    if kind == "plain":
        return content[0]
    if kind == "tensor":
        return _restored_tensor(content[0], content[1], current, device)
    if kind == "generator":
        if isinstance(current, torch.Generator):
            current.set_state(content[0])
        return current
    if kind == "numpy":
        return content[0].numpy()
    if kind == "object":
        if hasattr(current, "__dict__"):
            set_attributes(current, content[0], device)
        return current
    return _refilled(kind, content[0], current, device)


def _restored_tensor(
    tensor: Tensor, on_gpu: bool, current: object, device: torch.device | str
) -> Tensor:
    tensor = tensor.to(device) if on_gpu else tensor
    if not isinstance(current, Tensor) or current.requires_grad or current.is_inference():
        return tensor
    if (current.shape, current.dtype, current.device) != (
        tensor.shape,
        tensor.dtype,
        tensor.device,
    ):
        return tensor
    with torch.no_grad():
        # whoever else holds it sees it
        return current.copy_(tensor)


def _refilled(kind: str, items: list, current: Any, device: torch.device | str) -> object:
    if kind in _MAPPINGS:
        former = current if isinstance(current, dict) else {}
        restored = {key: _restored(tuple(item), former.get(key), device) for key, item in items}
        if type(current) is _MAPPINGS[kind]:
            current.clear()
            current.update(restored)
            return current
        return _MAPPINGS[kind](restored)
    former = list(current) if isinstance(current, list | tuple | deque) else []
    former += [None] * (len(items) - len(former))
    restored = [_restored(tuple(item), now, device) for item, now in zip(items, former)]
    if isinstance(current, list | deque | set) and type(current) is _SEQUENCES[kind]:
        current.clear()
        if isinstance(current, set):
            current.update(restored)
        else:
            current.extend(restored)
        return current
    return _SEQUENCES[kind](restored)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return (
            isinstance(a, Tensor)
            and isinstance(b, Tensor)
            and a.dtype == b.dtype
            and torch.equal(a, b)
        )
    if isinstance(a, list | tuple):
        return (
            isinstance(b, list | tuple)
            and type(a) is type(b)
            and len(a) == len(b)
            and all(map(_equal, a, b))
        )
    if isinstance(a, dict):
        return (
            isinstance(b, dict)
            and a.keys() == b.keys()
            and all(_equal(value, b[key]) for key, value in a.items())
        )
    return type(a) is type(b) and a == b
