"""Embedders: an image classifier whose last layer gives ``dim`` numbers, L2-normalised or not."""

import importlib
from collections.abc import Callable

import torchvision
from torch import Tensor, nn

from kdtasks.core.names import did_you_mean
from kdtasks.core.precision import raised
from kdtasks.engine.listed import check_listed, check_timm_name


class Embedder(nn.Module):
    """``backbone``, whose output is an embedding, and at the end its direction only.

    Args:
        backbone: images -> (B, dim) or (B, dim, 1, 1).
        normalize: divide each row by its length, in float32 at least. A row of zeros stays, and
            receives no gradient.
        dim: what the width should be; None: whatever it is.

    Raises:
        TypeError, ValueError: (when called) the backbone gives no tensor, or not rows of width
            ``dim``.
    """

    def __init__(self, backbone: nn.Module, normalize: bool = True, dim: int | None = None):
        super().__init__()
        self.backbone, self.normalize, self.dim = backbone, normalize, dim

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) -> embeddings (B, dim)."""
        rows = self.backbone(image)
        if not isinstance(rows, Tensor):
            raise TypeError(
                f"a backbone gives one tensor, {type(self.backbone).__name__} gives "
                f"{type(rows).__name__} (networks with auxiliary heads: aux_logits=False)"
            )
        rows = rows.flatten(1)
        if self.dim not in (None, rows.shape[1]):
            raise ValueError(
                f"{type(self.backbone).__name__} gives rows of width {rows.shape[1]}, not "
                f"{self.dim}: its last layer is not its head. Make a head of this width yourself, "
                "and an Embedder of the network"
            )
        if not self.normalize:
            return rows
        (rows,) = raised(rows)
        squared = rows.square().sum(1, keepdim=True)
        return rows * squared.where(squared > 0, float("inf")).rsqrt()

    def extra_repr(self) -> str:
        """The arguments."""
        return f"normalize={self.normalize}, dim={self.dim}"


def embedder(
    backbone: str | Callable | nn.Module,
    dim: int = 128,
    normalize: bool = True,
    pretrained: str | bool | None = None,
    **options: object,
) -> Embedder:
    """An embedder from a classifier: its last layer, linear or a 1x1 convolution, is replaced by a
    fresh one to ``dim``.

    All else stays, also what comes after it (SqueezeNet: a ReLU and the mean over places). The last
    layer is the one registered last; that the output has the width ``dim`` is checked in each
    forward.

    Args:
        backbone: ``'resnet50'`` or any other name of torchvision's; ``'timm/resnet18'``, any of
            timm's; the dotted path of a function or class of yours,
            ``'kdtasks.classification.models.resnet8'``, or the function itself; or a module.
        dim: width of the embedding.
        normalize: see :class:`Embedder`. RKD's recipe normalises the teacher's embeddings, and not
            the student's.
        pretrained: torchvision: the name of its weights, ``'DEFAULT'`` for the newest; timm: True;
            None: none. They may be downloaded.
        options: further arguments of the backbone, ``width=16, in_channels=1``.

    Raises:
        ValueError: no such backbone or weights, a backbone without such a layer, weights for one
            that has none, or ``dim < 1``.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    if isinstance(backbone, str) and backbone.startswith("timm/"):
        # timm puts the head of the right width in by itself
        model = _timm_model(backbone, dim, pretrained, options)
        return Embedder(model, normalize, dim)
    if isinstance(backbone, str) and "." not in backbone:
        model = _torchvision_model(backbone, pretrained, options)
    elif pretrained:
        raise ValueError(f"pretrained={pretrained!r} belongs to torchvision's and timm's backbones")
    else:
        model = backbone if isinstance(backbone, nn.Module) else _function(backbone)(**options)
    _replace_head(model, dim)
    return Embedder(model, normalize, dim)


def _timm_model(backbone: str, dim: int, pretrained: str | bool | None, options: dict) -> nn.Module:
    import timm

    name = backbone.removeprefix("timm/")
    check_timm_name(name)
    return timm.create_model(name, pretrained=bool(pretrained), num_classes=dim, **options)


def _torchvision_model(backbone: str, pretrained: str | None, options: dict) -> nn.Module:
    names = torchvision.models.list_models(module=torchvision.models)
    if backbone not in names:
        raise ValueError(
            f"torchvision has no {backbone!r}: {did_you_mean(backbone, names)} ('timm/<name>' for "
            "one of timm's, a dotted path for one of yours)"
        )
    check_listed(torchvision.models.get_model_builder(backbone), {"weights": pretrained})
    return torchvision.models.get_model(backbone, weights=pretrained, **options)


def _function(backbone: str | Callable) -> Callable:
    if callable(backbone):
        return backbone
    module, _, name = backbone.rpartition(".")
    module = importlib.import_module(module)
    if not hasattr(module, name):
        names = [public for public in dir(module) if not public.startswith("_")]
        raise ValueError(f"{module.__name__} has no {name!r}: {did_you_mean(name, names)}")
    return getattr(module, name)


def _replace_head(model: nn.Module, dim: int) -> None:
    """The module registered last among the linear ones gets the width ``dim``."""
    heads = [(path, module) for path, module in model.named_modules() if _is_linear(module)]
    if not heads:
        raise ValueError(
            f"{type(model).__name__} has no linear layer and no 1x1 convolution, whose place a new "
            "one could take"
        )
    path, last = heads[-1]
    if isinstance(last, nn.Linear):
        head = nn.Linear(last.in_features, dim)
    else:
        head = nn.Conv2d(last.in_channels, dim, 1)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, head)


def _is_linear(module: nn.Module) -> bool:
    """A linear layer or a 1x1 convolution."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1)
    return isinstance(module, nn.Linear)
