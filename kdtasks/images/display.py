"""Samples of a data set as pictures, and what galleries of them are made with.

Places are in inches from a figure's upper left corner.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray


# Okabe and Ito's colours that stand out on white, and a violet
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B4FA3")
HIT = "#009E73"


class _OfDataSet(Protocol):
    """What has a data set, and the seed of its views: a loader."""

    dataset: Any
    seed: int


def pictures_of(loader: _OfDataSet, index: Tensor) -> "list[ndarray]":
    """Arrays (H,W) or (H,W,3) of samples of the loader's data set: its uint8 images, or its inputs
    stretched to [0,1].
    """
    dataset, raw = loader.dataset, getattr(loader.dataset, "images", None)
    if isinstance(raw, Tensor) and raw.dtype == torch.uint8:
        images = raw[index.to(raw.device)].cpu() / 255
    else:
        if callable(getattr(dataset, "batch", None)):
            images = dataset.batch(index, torch.zeros_like(index), loader.seed)["input"]
        else:
            samples = [dataset[i] for i in index.tolist()]
            images = [
                sample["input"] if isinstance(sample, Mapping) else sample[0] for sample in samples
            ]
        images = [image.detach().float().cpu() for image in images]
        images = [
            (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12) for image in images
        ]
    return [(image[:3].movedim(0, -1) if len(image) >= 3 else image[0]).numpy() for image in images]


def add_axes(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Axes without ticks, grid and frame."""
    wide, high = figure.get_size_inches()
    box = left / wide, 1 - (top + height) / high, width / wide, height / high
    axes = figure.add_axes(box, xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return axes


def draw_image(axes: "Axes", image: "ndarray", **options: object) -> None:
    """An array (H,W), in grey, or (H,W,3) in [0,1]; the pixels of a small one are seen."""
    interpolation = "nearest" if max(image.shape[:2]) <= 64 else "antialiased"
    axes.imshow(image, cmap="gray", interpolation=interpolation, **options)


def draw_found(
    figure: "Figure", image: "ndarray", left: float, top: float, side: float, hit: bool | None
) -> None:
    """An image in a square, framed if it is a hit, pale if it is not; None: it is the query."""
    axes = add_axes(figure, left, top, side, side)
    draw_image(axes, image, aspect="auto")
    for spine in axes.spines.values():
        spine.set(visible=bool(hit), color=HIT, linewidth=3)
    if hit is False:
        axes.images[0].set_alpha(0.55)


def write(figure: "Figure", left: float, top: float, text: str, **font: object) -> None:
    """A line of text whose upper left corner lies there."""
    wide, high = figure.get_size_inches()
    figure.text(left / wide, 1 - top / high, text, va="top", **font)


def literal(text: str) -> str:
    """A text as matplotlib is to draw it: a $, of a class's name say, begins no formula."""
    return text.replace("$", r"\$")


def shortened(text: str, most: int) -> str:
    """At most ``most`` characters of a text, :func:`literal`."""
    return literal(text if len(text) <= most else text[: most - 1] + "…")


def counted(count: int, noun: str, ending: str = "s") -> str:
    """``'1 box'``, ``'2 boxes'``."""
    return f"{count} {noun}" + ("" if count == 1 else ending)


def darker(color: str) -> str:
    """``'#RRGGBB'`` at 72 % of its intensities: the colour of bars as that of text on white."""
    levels = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(0.72 * level):02X}" for level in levels)
