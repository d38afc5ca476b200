"""Embedders: any image classifier whose last linear layer now gives ``dim`` numbers, L2-normalised or not."""

import importlib
from collections.abc import Callable

import torchvision
from torch import Tensor, nn

from kdtasks.core.names import did_you_mean


class Embedder(nn.Module):
    """``backbone``, whose output is an embedding, and at the end its direction only.

    Args:
        backbone: images -> (B, dim) or (B, dim, 1, 1).
        normalize: divide each row by its length, in float32 at least. A row of zeros stays, and receives no gradient.
    """

    def __init__(self, backbone: nn.Module, normalize: bool = True):
        super().__init__()
        self.backbone, self.normalize = backbone, normalize

    def forward(self, image: Tensor) -> Tensor:
        rows = self.backbone(image)
        if not isinstance(rows, Tensor):
            raise TypeError(f"a backbone gives one tensor, {type(self.backbone).__name__} gives {type(rows).__name__} "
                            "(networks with auxiliary heads: aux_logits=False)")
        rows = rows.flatten(1)
        if not self.normalize:
            return rows
        rows = rows if rows.element_size() == 8 else rows.float()
        squared = rows.square().sum(1, keepdim=True)
        return rows * squared.where(squared > 0, float("inf")).rsqrt()

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}"


def embedder(backbone: str | Callable | nn.Module, dim: int = 128, normalize: bool = True, pretrained: str | bool | None = None,
             **options) -> Embedder:
    """An embedder from a classifier: its last linear layer is replaced by a fresh one to ``dim``; all before it stays.

    Args:
        backbone: ``'resnet50'`` or any other name of torchvision's; ``'timm/resnet18'``, any of timm's; the dotted path of a
            function or class of yours, ``'kdtasks.general.models.resnet8'``, or the function itself; or a module.
        dim: width of the embedding.
        normalize: see :class:`Embedder`. RKD's recipe normalises the teacher's embeddings, and not the student's.
        pretrained: torchvision: the name of its weights, ``'DEFAULT'`` for the newest; timm: True; None: none. They may be
            downloaded.
        options: further arguments of the backbone, ``width=16, in_channels=1``.

    Raises:
        ValueError: no such backbone, one without a linear layer, weights for one that has none, or ``dim < 1``.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    if isinstance(backbone, str) and backbone.startswith("timm/"):
        import timm

        name = backbone.removeprefix("timm/")
        return Embedder(timm.create_model(name, pretrained=bool(pretrained), num_classes=dim, **options), normalize)
    if isinstance(backbone, str) and "." not in backbone:
        names = torchvision.models.list_models(module=torchvision.models)
        if backbone not in names:
            raise ValueError(f"torchvision has no {backbone!r}: {did_you_mean(backbone, names)} ('timm/<name>' for one of "
                             "timm's, a dotted path for one of yours)")
        model = torchvision.models.get_model(backbone, weights=pretrained, **options)
    else:
        if pretrained:
            raise ValueError(f"pretrained={pretrained!r} belongs to torchvision's and timm's backbones")
        model = backbone if isinstance(backbone, nn.Module) else _function(backbone)(**options)
    _replace_head(model, dim)
    return Embedder(model, normalize)


def _function(backbone: str | Callable) -> Callable:
    if callable(backbone):
        return backbone
    module, _, name = backbone.rpartition(".")
    module = importlib.import_module(module)
    if not hasattr(module, name):
        raise ValueError(f"{module.__name__} has no {name!r}: {did_you_mean(name, [n for n in dir(module) if n[0] != '_'])}")
    return getattr(module, name)


def _replace_head(model: nn.Module, dim: int) -> None:
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear layer that a new one could take the place of")
    parent, _, name = found[-1].rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Linear(model.get_submodule(found[-1]).in_features, dim))
