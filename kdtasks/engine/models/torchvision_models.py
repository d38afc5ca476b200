"""torchvision's models by name: ``'torchvision:resnet18'``."""

import importlib
from typing import Any

from torch import nn

from kdtasks.core.heads import last_layer, replace_head
from kdtasks.core.names import did_you_mean
from kdtasks.core.weight_files import read_weights
from kdtasks.core.weights import load_weights
from kdtasks.engine.listed import check_listed
from kdtasks.engine.models.facts import Facts, weights_file
from kdtasks.engine.models.packaged import check_package


def build(
    name: str, weights: str | bool | None = None, num_classes: int | None = None, **options: Any
) -> nn.Module:
    """A network of torchvision's, with its own names of parameters.

    Args:
        name: as ``torchvision.models.list_models()`` has it.
        weights: None or False: fresh ones; True or ``'DEFAULT'``: the newest; the name of others
            (these may be downloaded); or a file.
        num_classes: width of the head; a fresh one where the weights have another; 0: none, the
            network gives the features that its head would take. None: as the weights have it.
        options: of torchvision's function.

    Raises:
        ValueError: torchvision has no such network or weights, or the file is of another one.
    """
    models = importlib.import_module("torchvision").models
    check(name, weights)
    file, given = weights_file(weights), {} if num_classes is None else {"num_classes": num_classes}
    classifier = name in models.list_models(module=models)
    try:
        if not weights or not classifier:
            plain = not num_classes and classifier
            model = models.get_model(
                name, weights=_listed(weights), **options, **({} if plain else given)
            )
        elif file is None:
            model = models.get_model(name, weights=_listed(weights), **options)
        else:
            model = _of_file(name, file, options)
    except RuntimeError as error:
        raise ValueError(f"torchvision cannot build {name!r}: {error}") from error
    if classifier and num_classes is not None and num_classes != _width(model):
        replace_head(model, num_classes)
    return model


def check(name: str, weights: object = None, **options: Any) -> None:
    """The network and its weights are there; nothing is read or downloaded.

    Raises:
        ValueError, FileNotFoundError: they are not; the nearest is named.
    """
    models = importlib.import_module("torchvision").models
    names = models.list_models()
    if name not in names:
        raise ValueError(f"torchvision has no {name!r}; {did_you_mean(name, names)}")
    check_package(str(weights), name)
    if weights_file(weights) is None:
        check_listed(models.get_model_builder(name), {"weights": _listed(weights)})


def facts(name: str, weights: object = None, **options: Any) -> Facts:
    """What torchvision says of its own weights; of a file, what it says of its newest ones."""
    models = importlib.import_module("torchvision").models
    file, listed = weights_file(weights), models.get_model_weights(name)
    called = _listed(weights)
    if not len(listed):
        return Facts(f"torchvision:{name}", called)
    kind = listed.DEFAULT
    if called and file is None:
        kind = listed[str(called).rpartition(".")[2]]
        called = kind.name
    how, meta = kind.transforms(), kind.meta
    size = getattr(how, "crop_size", None)
    return Facts(
        f"torchvision:{name}",
        called,
        meta.get("license") if weights and file is None else None,
        _numbers(getattr(how, "mean", None)),
        _numbers(getattr(how, "std", None)),
        (size[0], size[-1]) if size else None,
        getattr(getattr(how, "interpolation", None), "value", None),
        meta.get("categories") if weights and file is None else None,
        len(meta.get("categories", ())) or None,
        normalizes=name not in models.list_models(module=models),
    )


def _listed(weights: object) -> str | None:
    """The name of weights, as torchvision wants it."""
    if weights is True:
        return "DEFAULT"
    return str(weights) if weights else None


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _width(model: nn.Module) -> int:
    head: Any = model.get_submodule(last_layer(model))
    return head.out_features if isinstance(head, nn.Linear) else head.out_channels


def _of_file(name: str, file: Any, options: dict) -> nn.Module:
    """The network with the weights of a file, whose head decides its width."""
    models = importlib.import_module("torchvision").models
    probe = models.get_model(name, weights=None, **options)
    state, head = read_weights(file)[0], f"{last_layer(probe)}.weight"
    head_weight = next(
        (value for key, value in state.items() if f".{key}".endswith(f".{head}")), None
    )
    if head_weight is None:
        replace_head(probe, 0)
    else:
        probe = models.get_model(name, weights=None, num_classes=len(head_weight), **options)
    load_weights(probe, file)
    return probe
