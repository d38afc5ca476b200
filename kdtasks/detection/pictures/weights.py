"""Where ADL's adaptive weights are large: maps over their images."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtasks.detection.pictures.grid import PictureGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


def draw_weights(rows: Sequence[tuple]) -> tuple[str, "Figure"]:
    """``(title, figure)``: maps drawn over their images, one image a row, one scale of colours a
    column.

    Args:
        rows: ``(image (3,H,W), [(name, map (h,w))])`` or ``(image, maps, (height, width))``, pixels
            of the image that its maps span: a batch's padding lies beyond its edges.
    """
    images = [image for image, *_ in rows]
    maps = [{name: torch.as_tensor(values) for name, values in row[1]} for row in rows]
    spans = [tuple(row[2]) if len(row) > 2 else tuple(row[0].shape[1:]) for row in rows]
    names = list(dict.fromkeys(name for row in maps for name in row))
    grid = PictureGrid(images, 1 + len(names), top=0.3, below=0.08, bottom=0.55, widest=4.2)
    grid.titles(["image", *names])
    for row, image in enumerate(images):
        grid.add_picture(row, 0, image)
    for column, name in enumerate(names, 1):
        largest = [float(row[name].max()) for row in maps if name in row and row[name].numel()]
        scale = {"cmap": "inferno", "vmin": 0, "vmax": max(largest + [1e-9])}
        for row, image in enumerate(images):
            axes = grid.add_picture(row, column, image, gray=True)
            if name in maps[row]:
                artist = _draw_map(axes, maps[row][name], spans[row], image, scale)
        bar = grid.figure.colorbar(
            artist, cax=grid.add_axes(column, 0.3, 0.1), orientation="horizontal"
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=2)
    title = (
        "Adaptive weight of ADL, the largest over classes and anchors at each place: bright is "
        "hard to learn or to mimic"
    )
    return title, grid.figure


def _draw_map(
    axes: "Axes", values: Tensor, span: tuple[int, int], image: Tensor, scale: Mapping
) -> "AxesImage":
    extent = (0, span[1], span[0], 0)
    pixels = values.float().numpy()
    artist = axes.imshow(pixels, alpha=0.72, extent=extent, interpolation="nearest", **scale)
    axes.set(xlim=(0, image.shape[2]), ylim=(image.shape[1], 0))
    return artist
