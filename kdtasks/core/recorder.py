"""Outputs of submodules by dotted path, recorded during one forward."""

import contextlib
import copy
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from kdtasks.core.names import did_you_mean, split_call
from kdtasks.core.outputs import map_tensors, tensors_in


class FeatureRecorder:
    """The function ``input -> (output, {path: value})`` of one model and a few of its submodules.

    While it runs, the ``forward`` of each named submodule is replaced, on the instance, by one that
    also records its result; afterwards the model is as it was, so a copy of it carries nothing.
    Registered hooks are not used: ``torch.compile`` does not guard on them, and silently drops
    those that were not there when it first traced. It does guard on a replaced ``forward``, through
    recompilation and graph breaks.

    A value that the model later changes in place (a ReLU with ``inplace=True``, ``x += y``) is kept
    as it was when the submodule returned it: the first run in each mode copies every value and
    finds out which ones need it.

    Args:
        model: the module that holds the paths.
        paths: dotted paths; ``'fc@-1'`` names one call of a module that runs more than once.
        call: what is called, ``model`` unless given (a wrapper that prepares the input, say).
        compile: False, True, or keyword arguments for ``torch.compile``. Each unit is compiled by
            itself; the first run in each mode is eager.

    Raises:
        ValueError: the model has no submodule at a path. On a run: a submodule did not run, or ran
            more than once and the path does not say which call, or changed in place a value that it
            did not change before; or gradients are on, and it ran without, inside of reentrant
            gradient checkpointing or of the model's own ``no_grad``.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: Iterable[str] = (),
        call: Callable | None = None,
        compile: bool | dict = False,
    ):
        self.model, self.call, self.compile = model, call, compile
        self.paths = {path: split_call(path) for path in dict.fromkeys(paths)}
        for path, (module_path, _) in self.paths.items():
            _submodule(model, module_path, path)
        self._recorded = list(dict.fromkeys(module_path for module_path, _ in self.paths.values()))
        self._seen: dict[str, list] = {}
        self._recorders: dict[str, tuple[nn.Module, Callable | None, Callable]] = {}
        # mode -> the recorded modules whose values are changed in place
        self._changed: dict[bool, set[str]] = {}
        # the modules whose values this run copies
        self._copied: set[str] = set()
        # whether this run records a graph
        self._gradients = False
        self._run = _compiled(call or model, compile) if compile else call or model

    def __deepcopy__(self, memo: dict[int, Any]) -> "FeatureRecorder":
        return FeatureRecorder(
            copy.deepcopy(self.model, memo),
            self.paths,
            copy.deepcopy(self.call, memo),
            self.compile,
        )

    def __call__(self, *args, **kwargs) -> tuple[object, dict[str, Tensor]]:
        """Run the model once; return its output and the value at each path."""
        mode = self.model.training
        # in-place changes cannot be seen in these modes
        blind = torch.is_inference_mode_enabled() or torch.compiler.is_compiling()
        probing = blind or mode not in self._changed
        self._copied = set(self._recorded) if probing else self._changed[mode]
        self._gradients = torch.is_grad_enabled()
        replaced = []
        try:
            for path in self._recorded:
                module = _submodule(self.model, path, path)
                override = module.__dict__.get("forward")
                replaced.append((module, override))
                module.__dict__["forward"] = self._recorder(path, module, override)
            with _nothing_compiled() if probing and not blind else contextlib.nullcontext():
                output = self._run(*args, **kwargs)
            if not blind:
                self._check_changed(mode)
            return output, self._collect()
        finally:
            for module, override in reversed(replaced):
                if override is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = override
            self._seen.clear()

    def _recorder(self, path: str, module: nn.Module, override: Callable | None) -> Callable:
        """The recording ``forward`` of a module; kept until the module (a grown head) or the
        ``forward`` set on it (``override``) is replaced.
        """
        kept = self._recorders.get(path)
        if kept is None or kept[0] is not module or kept[1] is not override:
            kept = self._recorders[path] = (module, override, self._make_recorder(path, module))
        return kept[2]

    def _make_recorder(self, path: str, module: nn.Module) -> Callable:
        forward, seen = module.forward, self._seen

        def record(*args, **kwargs):
            output = forward(*args, **kwargs)
            compiling = torch.compiler.is_compiling()
            if self._gradients and not torch.is_grad_enabled() and not compiling:
                check_gradient(path, module)
            value = map_tensors(torch.clone, output) if path in self._copied else output
            versions = () if compiling else _versions(output)
            seen.setdefault(path, []).append((value, output, versions))
            return output

        return record

    def _check_changed(self, mode: bool) -> None:
        """On the first run in a mode, note which values the model changed in place; later, check
        that there are no others.
        """
        changed = {
            path
            for path, calls in self._seen.items()
            for _, output, versions in calls
            if versions and versions != _versions(output)
        }
        if not changed <= self._changed.setdefault(mode, changed):
            raise ValueError(
                f"{sorted(changed - self._changed[mode])}: the model changed this value in place, "
                "as it did not in the first run in this mode; make that operation out of place"
            )

    def _collect(self) -> dict[str, Tensor]:
        values = {}
        for path, (module_path, call) in self.paths.items():
            calls = self._seen.get(module_path, [])
            if not calls:
                raise ValueError(
                    f"{path!r} gave no value: this submodule of {type(self.model).__name__} does "
                    "not run in the forward (or is reached without being called)"
                )
            if call is None and len(calls) > 1:
                raise ValueError(
                    f"{path!r} ran {len(calls)} times in one forward: say which call, '{path}@0' "
                    f"to '{path}@{len(calls) - 1}', or '{path}@-1' for the last"
                )
            if call is not None and not -len(calls) <= call < len(calls):
                raise ValueError(
                    f"{path!r}: {module_path!r} ran {len(calls)} times, so there is no call {call}"
                )
            values[path] = calls[call or 0][0]
        return values


def check_gradient(path: str, module: nn.Module) -> None:
    """Check a submodule of a model that learns, while it runs with gradients off.

    Raises:
        ValueError: a loss of its output would train nothing: it runs inside an autograd function,
            as reentrant gradient checkpointing calls it, or has parameters that need a gradient. A
            frozen part may run so.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "forward" and isinstance(frame.f_locals.get("ctx"), FunctionCtx):
            raise ValueError(
                f"{path!r} is inside gradient checkpointing (use_reentrant=True), where its output "
                "has no gradient, so that a loss of it would train nothing: use "
                "use_reentrant=False, or a module outside"
            )
        frame = frame.f_back
    if any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(
            f"{path!r} runs without gradient, since the model itself switches it off there "
            "(torch.no_grad), so that a loss of it would train nothing, though its parameters need "
            "a gradient: freeze them (requires_grad_(False)) where that is meant, or name another "
            "module"
        )


def module_paths(model: nn.Module) -> list[str]:
    """Every path that :class:`FeatureRecorder` accepts for ``model``, in its order."""
    return [path for path, _ in model.named_modules(remove_duplicate=False) if path]


def _submodule(model: nn.Module, module_path: str, path: str) -> nn.Module:
    module = model
    for name in module_path.split("."):
        # a script's modules have no get()
        part = module._modules[name] if name in module._modules else None  # noqa: SIM401
        if part is None:
            break
        module = part
    else:
        return module
    # alone it would take a tenth of a small step
    try:
        return model.get_submodule(module_path)
    except AttributeError:
        raise ValueError(
            f"{type(model).__name__} has no submodule {path!r}; "
            f"{did_you_mean(module_path, module_paths(model))}"
        ) from None


def _compiled(function: Callable, options: bool | dict) -> Callable:
    """``function`` compiled with a code object of its own, since torch caches compiled code by
    code object.
    """

    def run(*args, **kwargs):
        return function(*args, **kwargs)

    copied = types.FunctionType(
        run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__
    )
    return torch.compile(copied, **(options if isinstance(options, dict) else {}))


def _nothing_compiled() -> contextlib.AbstractContextManager:
    """A context in which code compiled before (a part of the model, perhaps) runs eagerly:
    compiled, it hides its in-place changes.
    """
    # if it is not loaded nothing is compiled, and loading it takes seconds
    compiler_is_loaded = "torch._dynamo" in sys.modules
    return (
        torch.compiler.set_stance("force_eager") if compiler_is_loaded else contextlib.nullcontext()
    )


def _versions(value: object) -> tuple[int, ...]:
    """The in-place counters of the tensors of a value; -1 for a tensor of inference mode, which has
    none.
    """
    return tuple(-1 if t.is_inference() else t._version for t in tensors_in(value))
