"""Images of a stream's samples, and galleries of them: rows of pictures with text below."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtasks.engine.report.style import INK, WIDTH, free_figure
from kdtasks.images.display import add_axes, draw_image, pictures_of, shortened, write
from kdtasks.incremental.data import IncrementalSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHUNK = 64  # images in a forward
# inches
GAP, LINE, HEAD = 0.28, 0.155, 0.27


def inputs_of(dataset: object, index: Tensor, seed: int) -> Tensor:
    """``(b,C,H,W)``: a model's inputs of the samples ``index``."""
    if callable(getattr(dataset, "batch", None)):
        return dataset.batch(index, torch.zeros_like(index), seed)["input"]
    inputs = []
    for i in index.tolist():
        sample = dataset[i]
        if isinstance(sample, Mapping):
            sample = sample["input"]
        elif isinstance(sample, list | tuple):
            sample = sample[0]
        inputs.append(torch.as_tensor(sample))
    return torch.stack(inputs)


def chunks_of(dataset: object, index: Tensor, seed: int) -> Iterator[Tensor]:
    """A model's inputs, at most ``CHUNK`` samples at a time."""
    for part in index.split(CHUNK):
        yield inputs_of(dataset, part, seed)


def images_of(dataset: IncrementalSet, index: Tensor) -> list:
    """Arrays (H,W) or (H,W,3) in [0,1] of the samples ``index``, as their own data set has them."""
    images = []
    for i in index.tolist():
        source = source_of(dataset.sources[int(dataset.source_index[i])], dataset.seed)
        images += pictures_of(source, dataset.places[i : i + 1])
    return images


def source_of(dataset: object, seed: int) -> SimpleNamespace:
    """What :func:`kdtasks.images.display.pictures_of` reads of a loader."""
    return SimpleNamespace(dataset=dataset, seed=seed)


@dataclass
class Cell:
    """A picture in a gallery, the lines of text below it, and the cells that these may run over."""

    image: object
    text: tuple[str, ...] = ()
    span: int = 1


def gallery(
    rows: Sequence[tuple[Mapping[int, str], Sequence[Cell | None]]], gaps: Sequence[int] = ()
) -> "Figure":
    """A figure of rows of cells, each row with headings by column; ``gaps`` are columns that stand
    off from the one before.
    """
    columns = max(len(cells) for _, cells in rows)
    step = (WIDTH - 0.03 - GAP * len(gaps)) / columns
    side = step - 0.06
    lefts = [0.03 + k * step + GAP * sum(k >= gap for gap in gaps) for k in range(columns)]
    heights = [_row_height(headings, cells, side) for headings, cells in rows]
    figure = free_figure(WIDTH, sum(heights))
    top = 0.0
    for (headings, cells), height in zip(rows, heights):
        for column, text in headings.items():
            font = {"fontsize": 9, "fontweight": "bold", "color": INK}
            write(figure, lefts[column], top + 0.04, text, **font)
        below_headings = top + (HEAD if headings else 0)
        for left, cell in zip(lefts, cells):
            if cell is not None and cell.image is not None:
                _draw_cell(figure, cell, left, below_headings, side)
        top += height
    return figure


def _row_height(headings: Mapping[int, str], cells: Sequence[Cell | None], side: float) -> float:
    """In inches."""
    lines = max(len(cell.text) for cell in cells if cell)
    return (HEAD if headings else 0) + side + LINE * lines + 0.12


def _draw_cell(figure: "Figure", cell: Cell, left: float, top: float, side: float) -> None:
    """The picture, ``side`` inches wide, and its text."""
    axes = add_axes(figure, left, top, side, side)
    draw_image(axes, cell.image, vmin=0, vmax=1)
    most = int(72 * side * cell.span / 4.7)
    for k, line in enumerate(cell.text):
        text = shortened(line, most)
        write(figure, left, top + side + 0.03 + LINE * k, text, fontsize=8, color=INK)
