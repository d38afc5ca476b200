"""Try a model out and leave no trace: its modes, buffers, other state and every random stream are
put back.
"""

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
# BatchNorm of any kind, and InstanceNorm
_NORMS = nn.modules.batchnorm._NormBase


@contextmanager
def try_out(model: nn.Module, training: bool = False) -> Iterator[None]:
    """A model in eval or in training mode, without gradient; afterwards it is as it was."""
    with (
        keep_modes(model),
        keep_random_streams(model.modules()),
        keep_state(model.modules()),
        torch.no_grad(),
    ):
        model.train(training)
        yield


def set_learning(model: nn.Module) -> None:
    """Put a model into training mode, but for BatchNorms, which would refuse a batch of one row.

    A model that is in training mode already keeps the flags of its parts.
    """
    if not model.training:
        model.train()
    for part in model.modules():
        if isinstance(part, _NORMS):
            part.training = False


@contextmanager
def keep_modes(module: nn.Module) -> Iterator[None]:
    """Put the training flags of all parts back; new parts get that of the whole."""
    modes = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        for part in module.modules():
            part.training = modes.get(part, modes[module])


@contextmanager
def keep_random_streams(modules: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Put the random streams of Python, NumPy and torch back: the CPU's, and those of the modules'
    devices.
    """
    tensors = (
        t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None
    )
    devices = sorted({t.device.index for t in tensors if t.is_cuda})
    # nothing is drawn from it before it is imported
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)


@contextmanager
def keep_state(owners: Iterable[object]) -> Iterator[None]:
    """Put back buffers, parameters that need no gradient, and other attributes of modules or of
    other objects.

    A module that gets parameters, buffers or submodules meanwhile (a lazy one) keeps them all.
    """
    with ExitStack() as stack:
        for owner in owners:
            stack.callback(_memory_of(owner))
        yield


def _memory_of(owner: object) -> Callable[[], None]:
    namespace = getattr(owner, "__dict__", {})
    is_module = isinstance(owner, nn.Module)
    kept_apart = _OF_EVERY_MODULE if is_module else ()
    attributes = {
        name: _memory(value) for name, value in namespace.items() if name not in kept_apart
    }
    tensors: list[tuple[dict[str, Any], str, Callable[[], object]]] = [
        (part, name, _memory(value))
        for part in ((owner._buffers, owner._parameters) if is_module else ())
        for name, value in part.items()
    ]
    shape = _shape_of(owner)

    def put_back() -> None:
        if shape != _shape_of(owner):
            return
        for part, name, back in tensors:
            part[name] = back()
        for name in [
            name for name in namespace if name not in attributes and name not in kept_apart
        ]:
            del namespace[name]
        namespace.update({name: back() for name, back in attributes.items()})

    return put_back


def _shape_of(owner: object) -> list:
    """Names and kinds of a module's parts, which change when it grows."""
    if not isinstance(owner, nn.Module):
        return []
    tensors = [*owner._parameters.items(), *owner._buffers.items()]
    return [
        type(owner),
        [(name, is_lazy(tensor)) for name, tensor in tensors],
        list(owner._modules),
    ]


def _memory(value: Any) -> Callable[[], object]:
    """A function that gives a value back as it is now: the same tensors and containers, with their
    present content.
    """
    if isinstance(value, Tensor):
        return _memory_of_tensor(value)
    if type(value) in (dict, OrderedDict):
        items = {key: _memory(item) for key, item in value.items()}
        return lambda: _refilled(value, value.update, {key: back() for key, back in items.items()})
    if type(value) in (list, deque):
        rows = [_memory(item) for item in value]
        return lambda: _refilled(value, value.extend, [back() for back in rows])
    if type(value) is set:
        members = set(value)
        return lambda: _refilled(value, value.update, members)
    if type(value) is tuple:
        rows = [_memory(item) for item in value]
        return lambda: (value, [back() for back in rows])[0]
    return lambda: value


def _memory_of_tensor(tensor: Tensor) -> Callable[[], Tensor]:
    if tensor.requires_grad or is_lazy(tensor) or tensor.is_inference():
        return lambda: tensor
    before = tensor.detach().clone()

    def put_back() -> Tensor:
        if tensor.shape != before.shape:
            tensor.data = before
        elif not torch.equal(tensor, before):
            with torch.no_grad():
                tensor.copy_(before)
        return tensor

    return put_back


def _refilled(container: Any, fill: Callable, content: object) -> object:
    container.clear()
    fill(content)
    return container
