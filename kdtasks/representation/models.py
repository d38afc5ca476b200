"""Backbones: networks without their classifying head, whose output is the representation.

What a network gives is one of these, and :func:`embedding_of` knows them all: rows ``(B, D)``; a
map ``(B, D, H, W)``, or several by name or in a list, the last of which counts; tokens ``(B, N,
D)``, the class token first; or an output of transformers with ``pooler_output`` or
``last_hidden_state``.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdtasks.core import Teacher
from kdtasks.core.names import did_you_mean


class NoHead(nn.Identity):
    """Stands where a network had its head; a file that has weights there loads, without them."""

    def _load_from_state_dict(self, *args: object) -> None:
        # so the names below this module are neither missing nor unexpected
        return


def backbone(network: nn.Module | Callable, head: str | None = None, **options: Any) -> nn.Module:
    """A network without its head; its other parameters keep their names.

    So a file of the whole network loads here, and ``student.pth`` of this task loads into the
    network, into an embedder or a detector that is built on it, as ``checkpoint``.

    Args:
        network: a module (in a config ``dict(type=…)``), or a function or class that makes one of
            ``options``.
        head: the path of its head; None: the linear layer behind which there are no other
            parameters; where there is none, or the network says ``has_head = False``, it is taken
            as it is.

    Raises:
        ValueError: there is no such path; or options for a network that is made already.
    """
    if isinstance(network, nn.Module):
        if options:
            raise ValueError(f"{sorted(options)} belong to the network, which is made already")
        model = network
    else:
        model = network(**options)
    path = _final_linear(model) if head is None else head
    if path is None:
        return model
    paths = [name for name, _ in model.named_modules() if name]
    if path not in paths:
        raise ValueError(f"{type(model).__name__} has no {path!r}; {did_you_mean(path, paths)}")
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, NoHead())
    return model


def _final_linear(model: nn.Module) -> str | None:
    """The path of the linear layer that owns the parameters registered last; None where another
    layer does.
    """
    if not getattr(model, "has_head", True):
        return None
    owners = [(path, part) for path, part in model.named_modules() if part._parameters]
    path, last = owners[-1] if owners else ("", model)
    return path if isinstance(last, nn.Linear) and path else None


def embedding_of(output: Any) -> Tensor:
    """The representation ``(B, D)`` in a network's output: rows as they are, of a map the mean over
    its places, of tokens the first.

    Raises:
        TypeError, ValueError: an output in which there is none.
    """
    values = _representation(output)
    if values.dim() == 4:
        return values.mean((2, 3))
    return values[:, 0] if values.dim() == 3 else values


def _representation(output: Any) -> Tensor:
    """Rows, tokens or a map."""
    if isinstance(output, Mapping):
        for key in ("pooler_output", "last_hidden_state"):
            if isinstance(output.get(key), Tensor):
                return output[key]
        output = list(output.values())
    if isinstance(output, list | tuple) and output:
        return _representation(output[-1])
    if not isinstance(output, Tensor):
        raise TypeError(
            f"expected rows, a map or tokens, or some of them by name, got {type(output).__name__}"
        )
    if output.dim() not in (2, 3, 4):
        raise ValueError(
            f"expected rows (B, D), tokens (B, N, D) or a map (B, D, H, W), got "
            f"{tuple(output.shape)}"
        )
    return output


def map_path(model: nn.Module, images: Tensor, call: Callable | None = None) -> str | None:
    """The path of the module with the network's last map or tokens; '' where its output is one;
    None where there is none.

    Args:
        model: any network.
        images: two or more.
        call: what runs the model; None: a copy of the model itself, in eval.
    """
    if call is None:
        model = copy.deepcopy(model)
        model.eval()
    maps: list[tuple[str, Any]] = []
    with _noting(model, maps), torch.no_grad():
        (call or model)(images)
    return maps[-1][0] if maps else None


@torch.no_grad()
def network_map(model: nn.Module, images: Tensor) -> Tensor | None:
    """A network's last map ``(B, D, H, W)``, as the Distiller names it; None where there is none.

    Args:
        model: in eval; a frozen :class:`~kdtasks.core.Teacher` too.
        images: what it is called with.
    """
    inner = model.model if isinstance(model, Teacher) else model
    maps: list[tuple[str, Any]] = []
    with _noting(inner, maps):
        width = embedding_of(model(images)).shape[1]
    if not maps:
        return None
    prefix = getattr(inner, "num_prefix_tokens", None)
    return map_of(maps[-1][1], width, prefix, seen_size(model, images))


def seen_size(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """(height, width) of the images as a network sees them: a teacher may resize them."""
    size = model.input_size if isinstance(model, Teacher) else None
    return size or (images.shape[-2], images.shape[-1])


@contextmanager
def _noting(model: nn.Module, maps: list[tuple[str, Any]]) -> Iterator[None]:
    """In ``maps`` path and output of modules that give something with several places, as they
    end.
    """

    def note(path: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            try:
                values = _representation(output)
            except (TypeError, ValueError):
                return
            if values.dim() == 3 or (values.dim() == 4 and values[0, 0].numel() > 1):
                maps[:] = [(path, values)]

        return hook

    hooks = [part.register_forward_hook(note(path)) for path, part in model.named_modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def map_of(
    output: Any, width: int, prefix_tokens: int | None = None, size: tuple[int, int] = (1, 1)
) -> Tensor:
    """What a module gives as a map ``(B, D, H, W)``.

    Args:
        output: a map of either layout or tokens, or several of them, the last of which counts.
        width: D, which tells the layouts apart.
        prefix_tokens: that come before those of places; None: the fewest, 8 at most (DINOv2 has a
            class token and four registers), that leave a grid.
        size: (height, width) of the images, whose proportions the grid has.

    Raises:
        ValueError: tokens that leave no such grid.
    """
    values = _representation(output)
    if values.dim() == 4:
        is_last = values.shape[1] != width and values.shape[3] == width
        return values.permute(0, 3, 1, 2) if is_last else values
    count = values.shape[1]
    for prefix in range(9) if prefix_tokens is None else (prefix_tokens,):
        grid = _grid(count - prefix, *size)
        if grid is not None:
            return values[:, prefix:].transpose(1, 2).unflatten(2, grid)
    raise ValueError(
        f"{count} tokens, {'up to 8' if prefix_tokens is None else prefix_tokens} of them before "
        f"those of places, are no map of an image of {size[0]} x {size[1]}"
    )


def _grid(places: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of square patches of an image; None: there is no such number of them."""
    if places < 1:
        return None
    if height == width:
        side = round(places**0.5)
        return (side, side) if side * side == places else None
    for side in range(1, min(height, width) + 1):
        # what is left over is cut off, or filled up
        for rows, columns in (
            (height // side, width // side),
            (-(-height // side), -(-width // side)),
        ):
            if rows * columns == places:
                return rows, columns
    return None
