"""The head of a network: its last layer, whose place another one can take."""

from torch import nn


def last_layer(model: nn.Module) -> str:
    """The path of the module registered last among linear layers and 1x1 convolutions.

    Raises:
        ValueError: the model has none.
    """
    heads = [path for path, module in model.named_modules() if _is_linear(module)]
    if not heads:
        raise ValueError(
            f"{type(model).__name__} has no linear layer and no 1x1 convolution, whose place a new "
            "one could take"
        )
    return heads[-1]


def replace_head(model: nn.Module, dim: int) -> None:
    """Put a fresh last layer of width ``dim`` in the place of :func:`last_layer`; all else stays,
    also what comes after it (SqueezeNet: a ReLU and the mean over places).

    Args:
        model: changed in place.
        dim: 0: the layer's input goes through as it is.

    Raises:
        ValueError: the model has no such layer.
    """
    path = last_layer(model)
    last, head = model.get_submodule(path), nn.Identity()
    if dim and isinstance(last, nn.Linear):
        head = nn.Linear(last.in_features, dim)
    elif dim and isinstance(last, nn.Conv2d):
        head = nn.Conv2d(last.in_channels, dim, 1)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, head)


def _is_linear(module: nn.Module) -> bool:
    """A linear layer or a 1x1 convolution."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1)
    return isinstance(module, nn.Linear)
