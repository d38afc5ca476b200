"""Strings become objects: a ``dict(type='package.module.Name', …)``, checked and built."""

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from kdtasks.core.names import did_you_mean
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.listed import check_listed
from kdtasks.engine.models import SOURCES, NamedModel, is_name

# optional packages whose names stand in configs -> the extra of kdtasks that brings them
_EXTRAS = {"kornia": "augment", "timm": "timm"}


def resolve(path: object, where: str) -> Callable:
    """The object at a dotted path (``'torch.nn.CrossEntropyLoss'``), or what a model's name
    (``'timm:resnet18'``) stands for; a callable is returned as it is.

    Raises:
        ConfigError: no such module or name, or it cannot be called.
    """
    if callable(path):
        return path
    if is_name(path):
        return _named(str(path), where)
    if not isinstance(path, str) or "." not in path or ":" in path:
        raise ConfigError(
            f"{where}.type must be a full dotted path such as 'torch.nn.CrossEntropyLoss', or a "
            f"model's name such as 'timm:resnet18', got {path!r}{_nearest_name(path)}"
        )
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            target = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (
                module_name == error.name or module_name.startswith(error.name + ".")
            ):
                continue
            raise ConfigError(f"{where}.type={path!r} cannot be imported: {error}") from error
        for part in parts[cut:]:
            if not hasattr(target, part):
                names = [n for n in dir(target) if not n.startswith("_")]
                raise ConfigError(
                    f"{where}.type={path!r}: {module_name} has no {part!r}; "
                    f"{did_you_mean(part, names)}"
                )
            target = getattr(target, part)
        if not callable(target):
            raise ConfigError(
                f"{where}.type={path!r} is a {type(target).__name__}, which cannot be called"
            )
        return target
    source = (
        "a file of your own must lie in the current folder, beside the config, or on PYTHONPATH"
    )
    if parts[0] in _EXTRAS:
        source = f"pip install 'kdtasks[{_EXTRAS[parts[0]]}]'"
    raise ConfigError(f"{where}.type={path!r}: there is no module {parts[0]!r} ({source})")


def _named(name: str, where: str) -> NamedModel:
    try:
        return NamedModel(name)
    except ValueError as error:
        raise ConfigError(f"{where}.type: {error}") from error


def _nearest_name(path: object) -> str:
    """What a name with another sign, another source, or nothing before it may have meant."""
    source, _, name = str(path).replace("/", ":", 1).partition(":")
    near = difflib.get_close_matches(source, SOURCES, 1, 0.6)
    for module in (torch.optim, torch.nn):
        if isinstance(path, str) and inspect.isclass(getattr(module, path, None)):
            return f"; did you mean '{module.__name__}.{path}'?"
    return f"; did you mean '{near[0]}:{name}'?" if near and name else ""


def check_arguments(
    function: Callable, arguments: Mapping, where: str, supplied: Collection[str] = ()
) -> None:
    """Every argument exists and none that is needed is missing; ``supplied`` ones are given later.

    Raises:
        ConfigError: naming the nearest argument that exists, or the nearest model or weights that
            timm or torchvision lists.
    """
    try:
        parameters = inspect.signature(function).parameters
    # a builtin without a signature
    except (TypeError, ValueError):
        return
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in arguments:
        if name not in parameters and not open_ended:
            names = [n for n in parameters if n not in supplied]
            raise ConfigError(
                f"{where}: {_title(function)} has no argument {name!r}; {did_you_mean(name, names)}"
            )
    for name, parameter in parameters.items():
        if (
            parameter.default is parameter.empty
            and name not in arguments
            and name not in supplied
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ):
            raise ConfigError(f"{where}: {_title(function)} needs {name!r}")
    try:
        if isinstance(function, NamedModel):
            function.check(**arguments)
        else:
            check_listed(function, arguments)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from error


def check(
    spec: object, where: str, supplied: Collection[str] = (), reserved: Collection[str] = ()
) -> None:
    """Check a ``dict(type=…)`` without building it, and every ``dict(type=…)`` inside it."""
    function, arguments = _split(spec, where, reserved)
    check_arguments(function, arguments, where, supplied)
    for name, value in arguments.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, Mapping) and "type" in item:
                check(item, f"{where}.{name}")


def build(spec: object, where: str, **supplied: Any) -> Any:
    """Build a ``dict(type=…, **arguments)``; nested ones first. ``supplied`` are further keyword
    arguments.

    Raises:
        ConfigError: a wrong type or argument, or an error from the constructor (its message is
            kept).
    """
    function, arguments = _split(spec, where)
    check_arguments(function, {**supplied, **arguments}, where)
    arguments = {name: _build_nested(value, f"{where}.{name}") for name, value in arguments.items()}
    return _call(function, {**supplied, **arguments}, where)


def bind(spec: object, where: str) -> Callable:
    """A loss of a config: a class is built, a function has its keyword arguments bound."""
    function, arguments = _split(spec, where)
    if inspect.isclass(function):
        return build(spec, where)
    check_bound(function, arguments, where)
    return functools.partial(function, **arguments) if arguments else function


def check_bound(function: Callable, arguments: Mapping, where: str) -> None:
    """As :func:`check_arguments` for a function whose tensors are given later, by position."""
    try:
        tensors = tuple(
            n for n, p in inspect.signature(function).parameters.items() if p.default is p.empty
        )
    except (TypeError, ValueError):
        tensors = ()
    check_arguments(function, arguments, where, supplied=tensors)


def _split(spec: object, where: str, reserved: Collection[str] = ()) -> tuple[Callable, dict]:
    if not isinstance(spec, Mapping) or "type" not in spec:
        raise ConfigError(f"{where} must be a dict(type='package.module.Name', …), got {spec!r}")
    arguments = {
        name: value for name, value in spec.items() if name != "type" and name not in reserved
    }
    return resolve(spec["type"], where), arguments


def _build_nested(value: Any, where: str) -> Any:
    if isinstance(value, Mapping) and "type" in value:
        return build(value, where)
    if isinstance(value, list | tuple) and any(
        isinstance(v, Mapping) and "type" in v for v in value
    ):
        return [_build_nested(v, f"{where}[{i}]") for i, v in enumerate(value)]
    return value


def _call(function: Callable, arguments: dict, where: str) -> Any:
    try:
        return function(**arguments)
    except (TypeError, ValueError, AssertionError, FileNotFoundError) as error:
        kind = type(error) if isinstance(error, FileNotFoundError) else ConfigError
        hint = "" if kind is FileNotFoundError else _hint_at_text(arguments)
        raise kind(f"{where} ({_title(function)}): {error}{hint}") from error


def _hint_at_text(arguments: Mapping[str, object]) -> str:
    """The arguments that are numbers in quotes, which a constructor's own error seldom names."""
    text = [(n, v) for n, v in arguments.items() if isinstance(v, str) and _is_number(v)]
    return "".join(f"; {name}={value!r} is text, not the number {value}" for name, value in text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _title(function: Callable) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
