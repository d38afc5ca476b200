"""Trying a model out without a trace: its modes, buffers, other state and every random stream are
put back.
"""

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
# BatchNorm of any kind, and InstanceNorm
_NORMS = nn.modules.batchnorm._NormBase


@contextmanager
def tried(model: nn.Module, training: bool = False) -> Iterator[None]:
    """In eval or in training mode, without gradient; nothing has moved afterwards."""
    with (
        modes_kept(model),
        random_streams_kept(model.modules()),
        state_kept(model.modules()),
        torch.no_grad(),
    ):
        model.train(training)
        yield


def learn(model: nn.Module) -> None:
    """In training mode, but for BatchNorms, which would refuse a batch of one row; flags of a model
    that trains stay.
    """
    if not model.training:
        model.train()
    for part in model.modules():
        if isinstance(part, _NORMS):
            part.training = False


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Which parts are in training mode is put back; what is new is then as the whole is."""
    modes = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        for part in module.modules():
            part.training = modes.get(part, modes[module])


@contextmanager
def random_streams_kept(modules: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Python's, NumPy's and torch's random streams, the CPU's and those of the modules' devices,
    are put back.
    """
    tensors = (
        t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None
    )
    devices = sorted({t.device.index for t in tensors if t.is_cuda})
    # who has not imported it draws nothing from it
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
def state_kept(owners: Iterable[object]) -> Iterator[None]:
    """Buffers, parameters that need no gradient, and other attributes of modules, or of objects
    that are none, are put back.

    A module that has got parameters, buffers or submodules inside keeps what it found: it is a lazy
    one, and its sizes stay.
    """
    with ExitStack() as stack:
        for owner in owners:
            stack.callback(_memory_of(owner))
        yield


def _memory_of(owner: object) -> Callable[[], None]:
    own, is_module = getattr(owner, "__dict__", {}), isinstance(owner, nn.Module)
    kept_apart = _OF_EVERY_MODULE if is_module else ()
    attributes = {name: _memory(value) for name, value in own.items() if name not in kept_apart}
    tensors = [
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
        for name in [name for name in own if name not in attributes and name not in kept_apart]:
            del own[name]
        own.update({name: back() for name, back in attributes.items()})

    return put_back


def _shape_of(owner: object) -> list:
    """What changes when a module grows."""
    if not isinstance(owner, nn.Module):
        return []
    tensors = [*owner._parameters.items(), *owner._buffers.items()]
    return [
        type(owner),
        [(name, is_lazy(tensor)) for name, tensor in tensors],
        list(owner._modules),
    ]


def _memory(value) -> Callable[[], object]:
    """What gives a value back as it is now: tensors and containers themselves, with their content
    of now.
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


def _refilled(container, fill: Callable, content):
    container.clear()
    fill(content)
    return container
