"""Figures of a distilled super-resolution network: details, errors, AIL's importance, the gain of
each image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.choices import evenly_spaced
from kdtasks.engine.report.style import INK, PALE, WIDTH, free_figure
from kdtasks.images.display import add_axes, darker, write
from kdtasks.super_resolution.batches import enlarged, scale_of
from kdtasks.super_resolution.metrics import imresize, luma, psnr_y

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from kdtasks.engine.loader import Loader

# images; pixels along the sides of a detail, and of the windows of its local variance
SHOWN, DETAIL, WINDOW = 4, 72, 7
# of a map, along the longer side: in every pixel and tone it would fill the report
SQUARES, TONES = 80, 13
MAPS, STAGES = 2, 6  # images and stages whose importance is drawn
# inches
GAP, HEAD, FOOT, BAR, WIDEST = 0.06, 0.3, 0.24, 0.45, 2.6
BICUBIC = "#7A8594"


@dataclass
class Shown:
    """A test image that is drawn; tensors are on the CPU.

    Attributes:
        input: of the models, (1,C,h,w), or (1,C,H,W) if it was enlarged already.
        target: the image, (1,C,H,W).
        scale: by which it is enlarged.
        outputs: by name of the model, ``'bicubic'`` first, clipped to [0,1].
        psnr: by name, PSNR-Y in dB.
    """

    input: Tensor
    target: Tensor
    scale: int
    outputs: dict[str, Tensor]
    psnr: dict[str, float]

    @property
    def small(self) -> Tensor:
        """(1,C,h,w), before it was enlarged."""
        if self.input.shape != self.target.shape:
            return self.input
        return imresize(self.target, 1 / self.scale)


@dataclass
class Cell:
    """A picture in a table.

    Attributes:
        values: (h,w) or (h,w,3).
        shades, ends: their colours, and the values at the ends of these.
        text: below the picture.
        bold: the text.
        bar: a bar of the colours to the right.
        frame: a white frame: left, bottom, width, height in shares of the picture.
    """

    values: Tensor
    shades: "str | Colormap" = "gray"
    ends: tuple[float, float] = (0, 1)
    text: str = ""
    bold: bool = False
    bar: bool = False
    frame: tuple[float, ...] = ()


# From tensors to what is drawn --------------------------------------------------------------------
def brightness(image: Tensor) -> Tensor:
    """(B,1,H,W): the luma of RGB; one channel is luma already."""
    return luma(image) if image.shape[1] == 3 else image


def most_detailed(image: Tensor, scale: int, size: int = DETAIL) -> tuple[int, int, int]:
    """(1,C,H,W) -> left, top and side, all multiples of ``scale``, of the square of at most
    ``size`` pixels where the luma's variance within windows of 7x7 pixels is largest on average.
    """
    y = brightness(image).double()
    size = max(min(size, *y.shape[2:]) // scale, 1) * scale
    padded = F.pad(y - y.mean(), (WINDOW // 2,) * 4, mode="replicate")
    mean, square = (F.avg_pool2d(x, WINDOW, 1) for x in (padded, padded.square()))
    step = scale * max(size // (4 * scale), 1)
    variance = F.avg_pool2d(square - mean.square(), size, step)[0, 0]
    top, left = divmod(int(variance.argmax()), variance.shape[1])
    return step * left, step * top, size


def squares(values: Tensor) -> Tensor:
    """(1,C,H,W) -> (h,w): means over the channels and over squares of pixels, at most 80 along a
    side.
    """
    side = -(-max(values.shape[2:]) // SQUARES)
    return F.avg_pool2d(values.mean(1, keepdim=True), side, ceil_mode=True)[0, 0]


@torch.no_grad()
def look(
    models: Mapping[str, nn.Module], loader: "Loader", count: int = SHOWN
) -> tuple[dict[str, Tensor], list[Shown]]:
    """PSNR of the luma of every test image, (N,) in dB, for ``'bicubic'`` and by name of the model;
    and ``count`` of the images, spread evenly over the set, not chosen by what comes out.
    """
    chosen = set(evenly_spaced(len(loader.dataset), count))
    psnr: dict[str, list[float]] = {}
    shown: list[Shown] = []
    for batch in loader:
        input, target, scale = batch["input"], batch["target"], scale_of(batch)
        outputs = {"bicubic": enlarged(input, target)}
        outputs |= {name: model(input).float() for name, model in models.items()}
        batch_psnr = {
            name: psnr_y(output, target, crop=scale).tolist() for name, output in outputs.items()
        }
        for name, values in batch_psnr.items():
            psnr.setdefault(name, []).extend(values)
        for row, place in enumerate(batch["index"].tolist()):
            if place in chosen:
                only = slice(row, row + 1)
                shown.append(
                    Shown(
                        input[only].cpu(),
                        target[only].cpu(),
                        scale,
                        {name: z[only].clamp(0, 1).cpu() for name, z in outputs.items()},
                        {name: values[row] for name, values in batch_psnr.items()},
                    )
                )
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in psnr.items()}, shown


# Figures ------------------------------------------------------------------------------------------
def draw(
    psnr: Mapping[str, Tensor],
    shown: Sequence[Shown],
    pair: Sequence[str],
    colors: Mapping[str, str],
    importance: Mapping[str, Sequence[Tensor]] | None = None,
) -> list[tuple]:
    """``[(title, figure)]``: all figures.

    Args:
        psnr, shown: from :func:`look`.
        pair: the students, the one without a teacher first: two, one or none. One is compared with
            bicubic interpolation.
        colors: by name of the model.
        importance: see :func:`draw_importance`.
    """
    colors = {"bicubic": BICUBIC, **colors}
    compared = ["bicubic", *pair][-2:] if pair else []
    figures = []
    if shown:
        figures += [draw_details(shown, pair, colors), draw_errors(shown, compared, colors)]
    if shown and importance:
        figures.append(draw_importance(importance, shown))
    if compared:
        figures.append(draw_gains(psnr, compared, colors))
    return figures


def draw_details(shown: Sequence[Shown], pair: Sequence[str], colors: Mapping[str, str]) -> tuple:
    """``(title, figure)``: a square of each image as it is given, as each model enlarges it, and as
    it was.
    """
    rows = []
    for picture in shown:
        left, top, size = most_detailed(picture.target, picture.scale)
        rows_and_columns = slice(top, top + size), slice(left, left + size)
        images = {
            "LR": F.interpolate(picture.small, scale_factor=picture.scale),
            **picture.outputs,
            "HR": picture.target,
        }
        best = max((picture.psnr[name] for name in pair), default=None)
        cells = []
        for name, image in images.items():
            psnr = picture.psnr.get(name)
            cells.append(
                Cell(
                    _pixels(image[(..., *rows_and_columns)]),
                    bold=name in pair and psnr == best,
                    text="" if psnr is None else f"{psnr:.2f} dB",
                )
            )
        rows.append(cells)
    title = (
        f"{len(shown)} images spread evenly over the test set, where each has most detail (local "
        "variance of the luma); below, PSNR-Y of the whole image, bold: the better student"
    )
    if shown[0].target.shape[1] == 1:
        title += "; grey: the networks see luma alone"
    return title, _table(list(images), rows, colors)


def draw_errors(
    shown: Sequence[Shown], compared: Sequence[str], colors: Mapping[str, str]
) -> tuple:
    """``(title, figure)``: where each model is wrong, and where the second of ``compared`` is less
    so than the first.
    """
    names = [name for name in shown[0].outputs if name != "bicubic" or name in compared]
    rows = []
    for picture in shown:
        errors = _errors(picture, names)
        ends = 0, _highest(*errors.values())
        rows.append([Cell(_pixels(picture.target), frame=_detail_frame(picture))])
        for name, error in errors.items():
            rows[-1].append(Cell(error, "inferno", ends, bar=name == names[-1]))
        if compared:
            rows[-1].append(_difference(errors, compared, colors))
    title = (
        "Errors |output − HR| of the luma in grey levels of 255, means over small squares; framed: "
        "the detail above"
    )
    headings = ["HR", *names]
    if compared:
        title += "; right: their difference, in the colour of the better one"
        headings.append(" − ".join(compared))
    return title, _table(headings, rows, colors)


def _errors(picture: Shown, names: Sequence[str]) -> dict[str, Tensor]:
    """(h,w) absolute errors of the luma in grey levels, by name of the model."""
    truth = brightness(picture.target)
    return {
        name: squares(255 * (brightness(picture.outputs[name]) - truth).abs()) for name in names
    }


def _detail_frame(picture: Shown) -> tuple[float, float, float, float]:
    """Where the most detailed square lies: left, bottom, width, height in shares of the image."""
    height, width = picture.target.shape[2:]
    left, top, size = most_detailed(picture.target, picture.scale)
    return left / width, 1 - (top + size) / height, size / width, size / height


def _difference(
    errors: Mapping[str, Tensor], compared: Sequence[str], colors: Mapping[str, str]
) -> Cell:
    """By how much the second of ``compared`` errs less than the first."""
    from matplotlib.colors import LinearSegmentedColormap

    first, second = compared
    shades = LinearSegmentedColormap.from_list("", [colors[first], "white", colors[second]])
    gain = errors[first] - errors[second]
    end = _highest(gain.abs())
    return Cell(gain, shades, (-end, end), bar=True)


def _highest(*maps: Tensor) -> float:
    """The end of the colours: above all but the largest half percent."""
    return max(float(torch.stack(maps).flatten().quantile(0.995)), 1e-3)


def draw_importance(importance: Mapping[str, Sequence[Tensor]], shown: Sequence[Shown]) -> tuple:
    """``(title, figure)``: how much each pixel counts in each round of AIL, and the mean over the
    rounds; from (1,C,H,W) or (1,1,H,W) for each of the ``shown``, by name of the stage.
    """
    stages = list(importance)
    # some of them, the first and the last included
    places = [k * (len(stages) - 1) // (STAGES - 1) for k in range(STAGES)]
    names = list(dict.fromkeys(stages[place] for place in places))
    rows = []
    for k in evenly_spaced(len(shown), MAPS):
        cells = [Cell(_pixels(shown[k].target))]
        for name in names:
            weight = importance[name][k]
            text = f"mean {weight.mean():.3f}"
            cells.append(Cell(squares(weight), "viridis", text=text, bar=name == names[-1]))
        rows.append(cells)
    # (stages, images)
    means = torch.tensor([[float(weight.mean()) for weight in importance[name]] for name in stages])
    height = 2.0 if len(stages) > 1 else 0.0
    figure = _table(["HR", *names], rows, {}, height)
    if height:
        total = figure.get_figheight()
        box = 0.65 / WIDTH, 0.3 / total, 1 - 0.7 / WIDTH, (height - 0.5) / total
        _draw_course(figure.add_axes(box), stages, means)
    title = (
        f"AIL's importance of the pixels (1: counts fully), stage by stage: on average "
        f"{means[0].mean():.2f} in {stages[0]}, {means[-1].mean():.2f} in {stages[-1]}"
    )
    return title, figure


def _draw_course(axes: "Axes", stages: Sequence[str], means: Tensor) -> None:
    """Mean importance over the stages; ``means`` is (stages, images)."""
    images = means.shape[1]
    labels = ["each image", *[None] * (images - 1)]
    axes.plot(stages, means.numpy(), color=PALE, linewidth=1, label=labels)
    mean = {"color": INK, "marker": "o", "markersize": 4, "label": f"mean of {images} images"}
    axes.plot(stages, means.mean(1).numpy(), **mean)
    axes.set(ylim=(0, 1.03), ylabel="mean importance")
    axes.legend(loc="lower right", ncols=2)


def draw_gains(
    psnr: Mapping[str, Tensor], compared: Sequence[str], colors: Mapping[str, str]
) -> tuple:
    """``(title, figure)``: by how much each test image is better with the second of ``compared``
    than with the first.
    """
    from matplotlib.figure import Figure

    before, after = compared
    gain = psnr[after] - psnr[before]
    # a flat image can be without error
    finite = gain.isfinite()
    gain, start = gain[finite].numpy(), psnr[before][finite].numpy()
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    better = [colors[after if value > 0 else before] for value in gain.tolist()]
    axes.scatter(start, gain, s=18, color=better, alpha=0.8)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axhline(gain.mean(), color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="mean")
    axes.set(xlabel=f"PSNR-Y of {before}, dB", ylabel=f"{after} − {before}, dB")
    figure.legend(loc="outside upper right")
    return (
        f"Gain in PSNR-Y of each test image, from {before} to {after}: mean {gain.mean():+.3f} dB, "
        f"better in {int((gain > 0).sum())} of {len(gain)}"
    ), figure


def _pixels(image: Tensor) -> Tensor:
    """(1,C,H,W) -> (h,w) or (h,w,3), as fine as a column shows it."""
    shrink = 170 / max(image.shape[2:])
    if shrink < 1:
        size = [max(round(side * shrink), 1) for side in image.shape[2:]]
        image = F.interpolate(image, size, mode="bilinear", antialias=True)
    image = image[0].clamp(0, 1)
    return image.movedim(0, -1) if len(image) == 3 else image[0]


def _table(
    names: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    colors: Mapping[str, str],
    below: float = 0.0,
) -> "Figure":
    """A figure of columns with names, in the models' colours but darker; the first cell of a row
    gives its height, and ``below`` inches stay free under the last one.
    """
    bars = [column for column, cell in enumerate(rows[0]) if cell.bar]
    side = min((WIDTH - BAR * len(bars)) / len(names), WIDEST)
    width, lefts = side - GAP, []
    for column in range(len(names)):
        lefts.append(column * side + BAR * sum(bar < column for bar in bars))
    shapes = [row[0].values.shape for row in rows]
    heights = [width * shape[0] / shape[1] for shape in shapes]
    foot = 2 * GAP + FOOT * any(cell.text for cell in rows[0])
    figure = free_figure(WIDTH, HEAD + sum(heights) + foot * len(rows) + below)
    for left, name in zip(lefts, names):
        size = min(10.5, 72 * width / (0.68 * len(name)))
        color = darker(colors.get(name, INK))
        write(figure, left, 0.05, name, color=color, fontsize=size, fontweight="bold")
    top = HEAD
    for row, height in zip(rows, heights):
        for left, cell in zip(lefts, row):
            _draw_cell(figure, cell, left, top, width, height)
        top += height + foot
    return figure


def _draw_cell(
    figure: "Figure", cell: Cell, left: float, top: float, width: float, height: float
) -> None:
    """The picture at a place in inches from the figure's upper left corner, and all beside it."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    axes = add_axes(figure, left, top, width, height)
    shades = colormaps.get_cmap(cell.shades)
    image = axes.imshow(
        cell.values.numpy(),
        shades if cell.shades == "gray" else shades.resampled(TONES),
        vmin=cell.ends[0],
        vmax=cell.ends[1],
        interpolation="nearest",
        aspect="auto",
    )
    weight = "bold" if cell.bold else "normal"
    write(figure, left, top + height + 0.03, cell.text, fontsize=9.5, fontweight=weight)
    if cell.frame:
        looks = {"transform": axes.transAxes, "fill": False, "edgecolor": "white"}
        axes.add_patch(Rectangle(cell.frame[:2], *cell.frame[2:], **looks))
    if cell.bar:
        beside = add_axes(figure, left + width + GAP, top, 0.08, height)
        bar = figure.colorbar(image, cax=beside)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=2, pad=1.5)
