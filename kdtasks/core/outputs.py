"""What a model returns: a tensor, or tuples, lists and dicts of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``function`` on every tensor of a tensor, tuple, list or dict; the same containers again."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return type(value)((key, map_tensors(function, item)) for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        items = [map_tensors(function, item) for item in value]
        made = cast(Callable, type(value))
        return made(*items) if hasattr(value, "_fields") else made(items)
    return value


def tensors_in(value: object) -> list[Tensor]:
    """Every tensor of a tensor, tuple, list or dict."""
    tensors: list[Tensor] = []
    map_tensors(lambda tensor: tensors.append(tensor) or tensor, value)
    return tensors


def entries_of(output: object) -> dict[str, object]:
    """The entries of a tuple, list or dict by index (``'0'``, ``'-1'``), key or field; none of a
    tensor or of another object.
    """
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if not isinstance(output, tuple | list):
        return {}
    fields = dict(zip(getattr(output, "_fields", ()), output))
    return fields | {str(k): output[k] for k in range(-len(output), len(output))}


def describe_output(role: str, output: object, most: int = 8) -> str:
    """An output with the names of its entries, for a message."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    entries = {key: value for key, value in entries_of(output).items() if not key.startswith("-")}
    text = f"a {type(output).__name__}"
    if not entries:
        return text
    shown = [f"'{role}.{key}' {describe_shape(entries[key])}" for key in list(entries)[:most]]
    return f"{text} of {', '.join(shown)}" + (", …" if len(entries) > most else "")


def describe_shape(value: object) -> str:
    """The shape of a tensor, or the type of anything else."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
