"""A figure of rows of pictures, an image a row."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from kdtasks.engine.report.style import INK, WIDTH, free_figure
from kdtasks.images.display import add_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PictureGrid:
    """A figure of rows of pictures, an image a row, each as wide as the others; lengths in inches.

    Args:
        images: (3,H,W), one for each row.
        columns: how many pictures a row has.
        top, bottom: what is left free above the first row and below the last.
        below: what is left free below each row.
        widest: the most that a column may take.
    """

    GAP = 0.08

    def __init__(
        self,
        images: Sequence[Tensor],
        columns: int,
        top: float,
        below: float,
        bottom: float = 0.0,
        widest: float = math.inf,
    ):
        self.side = min(WIDTH / columns, widest)
        self.picture_width = self.side - self.GAP
        self.heights = [
            self.picture_width * min(image.shape[1] / image.shape[2], 1.5) for image in images
        ]
        pitches = [height + below for height in self.heights]
        self.width, self.height = self.side * columns, top + sum(pitches) + bottom
        # where the upper edge of each row is
        self.tops = [self.height - top - sum(pitches[:row]) for row in range(len(pitches))]
        self.figure = free_figure(self.width, self.height)

    def text(self, left: float, y: float, text: str, **style) -> None:
        """A text at a place from the figure's lower left corner."""
        self.figure.text(left / self.width, y / self.height, text, **style)

    def titles(self, texts: Iterable[str], colors: Sequence[str] | None = None) -> None:
        """Above each column; as large as the column is wide."""
        for column, text in enumerate(texts):
            size = 11 if colors else min(11, self.picture_width * 72 / (0.63 * len(text)))
            color = colors[column] if colors else INK
            y = self.tops[0] + 0.07
            self.text(column * self.side, y, text, fontsize=size, fontweight="bold", color=color)

    def caption(self, row: int, column: int, text: str) -> None:
        """Below a picture."""
        y = self.tops[row] - self.heights[row] - 0.05
        self.text(column * self.side, y, text, va="top", fontsize=8.5)

    def add_axes(self, column: int, bottom: float, height: float) -> "Axes":
        """Empty axes as wide as a picture."""
        top = self.height - bottom - height
        return add_axes(self.figure, column * self.side, top, self.picture_width, height)

    def add_picture(self, row: int, column: int, image: Tensor, gray: bool = False) -> "Axes":
        """A picture, whose axes count pixels of the image."""
        height = self.heights[row]
        axes = self.add_axes(column, self.tops[row] - height, height)
        _draw_picture(axes, image, self.picture_width, gray)
        return axes


def _draw_picture(axes: "Axes", image: Tensor, inches: float, gray: bool = False) -> None:
    """An image of 80 pixels an inch and 64 tones: boxes and texts stay sharp, and the
    report stays small.
    """
    height, width = image.shape[1:]
    image = image.detach().float().cpu().clamp(0, 1).expand(3, -1, -1)
    shrink = min(1.0, 80 * inches / width)
    if shrink < 1:
        size = max(round(height * shrink), 1), max(round(width * shrink), 1)
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    tones = 15 if gray else 63
    image = (tones * (image.mean(0) if gray else image.movedim(0, -1))).round() / tones
    axes.imshow(
        image.numpy(),
        cmap="gray",
        vmin=0,
        vmax=1,
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
    axes.set_anchor("W")
