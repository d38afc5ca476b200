"""What to look at after a super-resolution network was distilled: details, errors, AIL's
importance, the gain of each image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.choices import evenly_spaced
from kdtasks.super_resolution.batches import enlarged, scale_of
from kdtasks.super_resolution.metrics import imresize, luma, psnr_y

# images; pixels along the sides of a detail, and of the windows of its local variance
SHOWN, DETAIL, WINDOW = 4, 72, 7
# of a map, along the longer side: in every pixel and tone it would fill the report
SQUARES, TONES = 80, 13
MAPS, STAGES = 2, 6  # images and stages whose importance is drawn
# inches
WIDTH, GAP, HEAD, FOOT, BAR, WIDEST = 10.4, 0.06, 0.3, 0.24, 0.45, 2.6
BICUBIC, INK, PALE = "#7A8594", "#1B2330", "#AEB7C4"


@dataclass
class Shown:
    """A test image that is drawn: what the models were given, (1,C,h,w), or (1,C,H,W) where it was
    enlarged already; the image, (1,C,H,W); by what it is enlarged; and by name of the model,
    ``'bicubic'`` first, its output clipped to [0,1] and its PSNR-Y in dB. Tensors are on the CPU.
    """

    input: Tensor
    target: Tensor
    scale: int
    outputs: dict[str, Tensor]
    psnr: dict[str, float]


@dataclass
class Cell:
    """A picture in a table: (h,w) or (h,w,3) values, their colours and the ends of these, a text
    below, a bar of the colours beside it, and a white frame: left, bottom, width, height in shares
    of it.
    """

    values: Tensor
    shades: object = "gray"
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
    found = F.avg_pool2d(square - mean.square(), size, step)[0, 0]
    top, left = divmod(int(found.argmax()), found.shape[1])
    return step * left, step * top, size


def squares(values: Tensor) -> Tensor:
    """(1,C,H,W) -> (h,w): means over the channels and over squares of pixels, at most 80 along a
    side.
    """
    return F.avg_pool2d(
        values.mean(1, keepdim=True), -(-max(values.shape[2:]) // SQUARES), ceil_mode=True
    )[0, 0]


@torch.no_grad()
def look(
    models: Mapping[str, nn.Module], loader, count: int = SHOWN
) -> tuple[dict[str, Tensor], list[Shown]]:
    """PSNR of the luma of every test image, (N,) in dB, for ``'bicubic'`` and by name of the model;
    and ``count`` of the images, spread evenly over the set, not chosen by what comes out.
    """
    chosen, psnr, shown = evenly_spaced(len(loader.dataset), count), {}, []
    for batch in loader:
        input, target, scale = batch["input"], batch["target"], scale_of(batch)
        outputs = {"bicubic": enlarged(input, target)} | {
            name: model(input).float() for name, model in models.items()
        }
        found = {
            name: psnr_y(output, target, crop=scale).tolist() for name, output in outputs.items()
        }
        for name, values in found.items():
            psnr.setdefault(name, []).extend(values)
        for row, place in enumerate(batch["index"].tolist()):
            if place in chosen:
                own = {
                    name: output[row : row + 1].clamp(0, 1).cpu()
                    for name, output in outputs.items()
                }
                known = {name: values[row] for name, values in found.items()}
                shown.append(
                    Shown(
                        input[row : row + 1].cpu(), target[row : row + 1].cpu(), scale, own, known
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
    """``[(title, figure)]``: all that there is to see.

    Args:
        psnr, shown: from :func:`look`.
        pair: the students, the one without a teacher first: two, one or none. One is compared with
            bicubic interpolation.
        colors: by name of the model.
        importance: see :func:`draw_importance`.
    """
    colors, compared = {"bicubic": BICUBIC, **colors}, ["bicubic", *pair][-2:] if pair else []
    drawn = (
        [draw_details(shown, pair, colors), draw_errors(shown, compared, colors)] if shown else []
    )
    drawn += [draw_importance(importance, shown)] if shown and importance else []
    return [*drawn, draw_gains(psnr, compared, colors)] if compared else drawn


def draw_details(shown: Sequence[Shown], pair: Sequence[str], colors: Mapping[str, str]) -> tuple:
    """``(title, figure)``: a square of each image as it is given, as each model enlarges it, and as
    it was.
    """
    grey, rows = shown[0].target.shape[1] == 1, []
    for one in shown:
        small = (
            one.input
            if one.input.shape != one.target.shape
            else imresize(one.target, 1 / one.scale)
        )
        left, top, size = most_detailed(one.target, one.scale)
        images = {
            "LR": F.interpolate(small, scale_factor=one.scale),
            **one.outputs,
            "HR": one.target,
        }
        best = max((one.psnr[name] for name in pair), default=None)
        rows.append(
            [
                Cell(
                    _pixels(image[..., top : top + size, left : left + size]),
                    bold=name in pair and one.psnr[name] == best,
                    text=f"{one.psnr[name]:.2f} dB" if name in one.psnr else "",
                )
                for name, image in images.items()
            ]
        )
    title = (
        f"{len(shown)} images spread evenly over the test set, where each has most detail (local "
        "variance of the luma); "
        "below, PSNR-Y of the whole image, bold: the better student" + grey * "; grey: the "
        "networks see luma alone"
    )
    return title, _table(images, rows, colors)


def draw_errors(
    shown: Sequence[Shown], compared: Sequence[str], colors: Mapping[str, str]
) -> tuple:
    """``(title, figure)``: where each model is wrong, and where the second of ``compared`` is less
    so than the first.
    """
    from matplotlib.colors import LinearSegmentedColormap

    names, rows = [name for name in shown[0].outputs if name != "bicubic" or name in compared], []
    for one in shown:
        high, wide = one.target.shape[2:]
        left, top, size = most_detailed(one.target, one.scale)
        truth = brightness(one.target)
        errors = {
            name: squares(255 * (brightness(one.outputs[name]) - truth).abs()) for name in names
        }
        ends = 0, _highest(*errors.values())
        rows.append(
            [
                Cell(
                    _pixels(one.target),
                    frame=(left / wide, 1 - (top + size) / high, size / wide, size / high),
                ),
                *(
                    Cell(error, "inferno", ends, bar=name == names[-1])
                    for name, error in errors.items()
                ),
            ]
        )
        if compared:
            gain = errors[compared[0]] - errors[compared[1]]
            shades = LinearSegmentedColormap.from_list(
                "", [colors[compared[0]], "white", colors[compared[1]]]
            )
            rows[-1].append(
                Cell(gain, shades, (-_highest(gain.abs()), _highest(gain.abs())), bar=True)
            )
    title = (
        "Errors |output − HR| of the luma in grey levels of 255, means over small squares; framed: "
        "the detail above"
        + bool(compared)
        * "; right: their difference, in the colour of the better one"
    )
    return title, _table(["HR", *names, " − ".join(compared)][: len(rows[0])], rows, colors)


def _highest(*maps: Tensor) -> float:
    """Where the colours end: above all but the largest half percent."""
    return max(float(torch.stack(maps).flatten().quantile(0.995)), 1e-3)


def draw_importance(importance: Mapping[str, Sequence[Tensor]], shown: Sequence[Shown]) -> tuple:
    """``(title, figure)``: how much each pixel counts in each round of AIL, and the mean over the
    rounds; from (1,C,H,W) or (1,1,H,W) for each of the ``shown``, by name of the stage.
    """
    stages = list(importance)
    # both ends, too
    names = list(
        dict.fromkeys(stages[k * (len(stages) - 1) // (STAGES - 1)] for k in range(STAGES))
    )
    rows = []
    for k in evenly_spaced(len(shown), MAPS):
        maps = {name: importance[name][k] for name in names}
        rows.append(
            [
                Cell(_pixels(shown[k].target)),
                *(
                    Cell(squares(w), "viridis", text=f"mean {w.mean():.3f}", bar=name == names[-1])
                    for name, w in maps.items()
                ),
            ]
        )
    # (stages, images)
    means = torch.tensor([[float(weight.mean()) for weight in importance[name]] for name in stages])
    curve = 2.0 if len(stages) > 1 else 0.0
    figure = _table(["HR", *names], rows, {}, curve)
    if curve:
        tall = figure.get_figheight()
        axes = figure.add_axes((0.65 / WIDTH, 0.3 / tall, 1 - 0.7 / WIDTH, (curve - 0.5) / tall))
        axes.plot(
            stages,
            means.numpy(),
            color=PALE,
            linewidth=1,
            label=["each image", *[None] * (len(shown) - 1)],
        )
        axes.plot(
            stages,
            means.mean(1).numpy(),
            color=INK,
            marker="o",
            markersize=4,
            label=f"mean of {len(shown)} images",
        )
        axes.set(ylim=(0, 1.03), ylabel="mean importance")
        axes.legend(loc="lower right", ncols=2)
    return (
        f"AIL's importance of the pixels (1: counts fully), stage by stage: on average "
        f"{means[0].mean():.2f} in {stages[0]}, {means[-1].mean():.2f} in {stages[-1]}"
    ), figure


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
    known = gain.isfinite()
    gain, start = gain[known].numpy(), psnr[before][known].numpy()
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    axes.scatter(
        start, gain, s=18, color=[colors[compared[g > 0]] for g in gain.tolist()], alpha=0.8
    )
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
    if (shrink := 170 / max(image.shape[2:])) < 1:
        size = [max(round(side * shrink), 1) for side in image.shape[2:]]
        image = F.interpolate(image, size, mode="bilinear", antialias=True)
    image = image[0].clamp(0, 1)
    return image.movedim(0, -1) if len(image) == 3 else image[0]


def _table(names, rows: Sequence[Sequence[Cell]], colors: Mapping[str, str], below: float = 0.0):
    """A figure of columns with names, in the models' colours but darker; a row is as high as its
    first cell wants, and ``below`` inches stay free under the last one.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import PlaceHolderLayoutEngine
    from matplotlib.patches import Rectangle

    bars = [column for column, cell in enumerate(rows[0]) if cell.bar]
    side = min((WIDTH - BAR * len(bars)) / len(names), WIDEST)
    lefts = [
        column * side + BAR * sum(bar < column for bar in bars) for column in range(len(names))
    ]
    width, heights = (
        side - GAP,
        [(side - GAP) * row[0].values.shape[0] / row[0].values.shape[1] for row in rows],
    )
    foot = 2 * GAP + FOOT * any(cell.text for cell in rows[0])
    tall, y = HEAD + sum(heights) + foot * len(rows) + below, HEAD
    # not layout="none": only the first savefig would leave the axes where they are put
    figure = Figure(
        figsize=(WIDTH, tall),
        layout=PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True),
    )

    def axes_at(left: float, wide: float):
        axes = figure.add_axes(
            (left / WIDTH, 1 - (y + height) / tall, wide / WIDTH, height / tall),
            xticks=[],
            yticks=[],
        )
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        return axes

    for left, name in zip(lefts, names):
        color = "#" + "".join(
            f"{round(0.72 * int(colors.get(name, INK)[i : i + 2], 16)):02X}" for i in (1, 3, 5)
        )
        size = min(10.5, 72 * width / (0.68 * len(name)))
        figure.text(
            left / WIDTH,
            1 - 0.05 / tall,
            name,
            va="top",
            color=color,
            fontsize=size,
            fontweight="bold",
        )
    for row, height in zip(rows, heights):
        for left, cell in zip(lefts, row):
            axes, shades = axes_at(left, width), colormaps.get_cmap(cell.shades)
            drawn = axes.imshow(
                cell.values.numpy(),
                shades if cell.shades == "gray" else shades.resampled(TONES),
                vmin=cell.ends[0],
                vmax=cell.ends[1],
                interpolation="nearest",
                aspect="auto",
            )
            figure.text(
                left / WIDTH,
                1 - (y + height + 0.03) / tall,
                cell.text,
                va="top",
                fontsize=9.5,
                fontweight="bold" if cell.bold else "normal",
            )
            if cell.frame:
                corner, size = cell.frame[:2], cell.frame[2:]
                axes.add_patch(
                    Rectangle(
                        corner, *size, transform=axes.transAxes, fill=False, edgecolor="white"
                    )
                )
            if cell.bar:
                bar = figure.colorbar(drawn, cax=axes_at(left + side, 0.08))
                bar.outline.set_visible(False)
                bar.ax.tick_params(labelsize=8, length=2, pad=1.5)
        y += height + foot
    return figure
