"""The figures of a report: each stage's result, the curves, and all of them stored as PNG."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from kdtasks.core.stages import ALONE, DISTILLED
from kdtasks.engine.report import facts, narrow
from kdtasks.engine.report.style import CONTROL, OTHERS, TAUGHT, TEACHER, WIDTH, hold
from kdtasks.engine.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kdtasks.engine.run import Run

# points of a loss, from which on its mean is drawn too
SMOOTHED = 60
# of a figure on the page; stored finer
PIXELS_PER_INCH = 100
# bytes of all pictures, before base64 adds a third
LARGEST = 1_300_000
# of what is drawn again for a phone
NARROW_DPI = 120


def stage_colors(run: "Run") -> dict[str, str]:
    """One colour for each stage and each teacher of the config, the same in every picture of a
    report: six extra colours beside the three, intermediate stages are assigned last.
    """
    experiment, parts = run.experiment, run.experiment.arms
    control = parts.control.name if parts.control else ALONE
    final = parts.final.name if parts.final else DISTILLED
    teachers = [name for name in experiment.config["teachers"] if name != control]
    fixed = {"teacher": TEACHER, control: CONTROL, final: TAUGHT}
    if teachers and "teacher" not in teachers:
        fixed[teachers[0]] = TEACHER
    names = [*teachers, *(stage.name for stage in experiment.stages)]
    names += [name for stage in experiment.stages for name in stage.teachers]
    names += run.done
    others = sorted(
        (name for name in dict.fromkeys(names) if name not in fixed),
        key=experiment.on_the_way.__contains__,
    )
    return fixed | {name: OTHERS[k % len(OTHERS)] for k, name in enumerate(others)}


def draw(run: "Run") -> tuple[list, list]:
    """``[(title, figure)]`` of the results, and of the curves."""
    history, colors, task = facts.histories(run), stage_colors(run), run.experiment.task
    primary, charts, curves = task.primary, [], []
    values = {name: v[primary] for name, v in run.done.items() if facts.is_number(v.get(primary))}
    if values:
        shown, way = facts.comparable(run, values), run.experiment.on_the_way
        title = f"{primary} of each stage"
        if way and way.isdisjoint(shown):
            title += " that has the whole network"
        control = run.experiment.arms.control
        charts.append((title, _bars(shown, task, colors, control.name if control else "")))
    finished = facts.comparable(run, {name: h for name, h in history.items() if h})
    if finished:
        title = f"{primary} on the test data, and the learning rate"
        curves.append((title, _progress(finished, task, colors)))
        names = _loss_names(finished)
        if names:
            lengths = [len(facts.curve(h, n)[0]) for h in finished.values() for n in names]
            title = "The losses, each times its weight"
            if max(lengths) > SMOOTHED:
                title += "; dark: running mean, pale: as read"
            curves.append((title, _losses(finished, names, colors)))
    return charts, curves


def _loss_names(history: Mapping[str, list[dict]]) -> list[str]:
    """What was read in training, the total last."""
    read = (entry for entries in history.values() for entry in entries if "lr" in entry)
    names = dict.fromkeys(name for entry in read for name in entry)
    losses = [name for name in names if name not in ("iteration", "lr", "loss")]
    return [*losses, "loss"] if "loss" in names else losses


def _bars(
    values: Mapping[str, float], task: Task, colors: Mapping[str, str], control: str
) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 0.75 + 0.42 * len(values)))
    axes = figure.subplots()
    rows = range(len(values))
    axes.barh(rows, list(values.values()), color=[colors[name] for name in values], height=0.62)
    axes.set_yticks(rows, values, fontsize=11)
    axes.invert_yaxis()
    for row, value in zip(rows, values.values()):
        axes.annotate(
            facts.number(value),
            (value, row),
            (5 if value >= 0 else -5, 0),
            textcoords="offset points",
            va="center",
            ha="left" if value >= 0 else "right",
            fontweight="bold",
        )
    if control in values:
        axes.axvline(values[control], color=colors[control], linestyle=(0, (4, 3)), linewidth=1.2)
    axes.margins(x=0.08)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(task.axis(task.primary))
    return figure


def _progress(history: Mapping[str, list[dict]], task: Task, colors: Mapping[str, str]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 4.6))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for stage, entries in history.items():
        x, y = facts.curve(entries, task.primary)
        top.plot(
            x, y, color=colors[stage], label=stage, marker="o" if len(x) <= 60 else "", markersize=4
        )
        bottom.plot(*facts.curve(entries, "lr"), color=colors[stage], linewidth=1.3)
    top.set_ylabel(task.axis(task.primary))
    figure.legend(
        *top.get_legend_handles_labels(), ncols=min(len(history), 6), loc="outside upper right"
    )
    bottom.set_ylabel("lr")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("iteration of the stage")
    return figure


def _losses(
    history: Mapping[str, list[dict]], names: Sequence[str], colors: Mapping[str, str]
) -> "Figure":
    from matplotlib.figure import Figure

    columns = 2 if len(names) in (1, 2, 4) else 3
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.7 * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, name in zip(panels, names):
        values = []
        for stage, entries in history.items():
            values += _draw_loss(axes, _loss_curve(entries, name), stage, colors[stage])
        if values and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.set_title("sum of all losses" if name == "loss" else name)
        axes.set_xlabel("iteration of the stage")
    for axes in panels[len(names) :]:
        axes.remove()
    shown = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels())
    }
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=min(len(shown), 6))
    return figure


def _loss_curve(entries: Sequence[Mapping], name: str) -> tuple[list[int], list[float]]:
    """Of a stage; where it has one loss, this is the sum of all too."""
    read = [entry for entry in entries if "lr" in entry]
    keys = {key for entry in read for key in entry} - {"iteration", "lr"}
    return facts.curve(read, next(iter(keys)) if name == "loss" and len(keys) == 1 else name)


def _draw_loss(
    axes: "Axes", curve: tuple[list[int], list[float]], stage: str, color: str
) -> list[float]:
    """Draw the points that a curve has, if any, and return their values; many of them are pale,
    with their running mean.
    """
    x, y = curve
    if not y:
        return y
    many = len(x) > SMOOTHED
    axes.plot(
        x,
        y,
        color=color,
        linewidth=1 if many else 1.5,
        alpha=0.25 if many else 1,
        label=None if many else stage,
        marker="o" if len(x) == 1 else "",
    )
    if many:
        mean = facts.running_mean(y, len(y) // 30)
        axes.plot(x, mean, color=color, linewidth=1.6, label=stage)
    return y


class Piece(NamedTuple):
    """A picture, or a part of one: data URI, pixels on the page, and the URI of what stands above
    it where pieces are stacked.
    """

    uri: str
    width: float
    head: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure as it lies in a page."""

    title: str
    # pixels on the page
    width: int
    # one of one, unless it is a gallery
    rows: list[list[Piece]] = field(default_factory=list)
    # the data URI of what is shown in its place where the page is narrow
    narrow: str = ""
    # whether it shows images, whose colours stay as they are on a dark page
    images: bool = False
    # the data URI of all of it in one; empty: not drawn
    whole: str = ""


def embed(pictures: Sequence[tuple]) -> list[Picture]:
    """Figures as a page holds them, see :mod:`kdtasks.engine.report.narrow`; many or large ones are
    stored less finely. What is drawn again for a phone stays so narrow.
    """
    for _, figure in pictures:
        hold(figure)
    for dpi in (160, 120, 85, 60):
        drawn = [_stored(figure, dpi) for _, figure in pictures]
        stored = [_rows(figure, png, dpi) for (_, figure), png in zip(pictures, drawn)]
        # base64 adds a third
        if sum(len(part.uri) for rows in stored for row in rows for part in row) <= LARGEST * 4 / 3:
            break
    shown = []
    for (title, figure), png, rows in zip(pictures, drawn, stored):
        width = round(figure.get_figwidth() * PIXELS_PER_INCH)
        images = any(axes.images for axes in figure.axes)
        again = narrow.is_laid_out(figure) and narrow.make_narrow(figure)
        small = _uri(_stored(figure, min(dpi, NARROW_DPI))) if again else ""
        shown.append(Picture(title, width, rows, small, images, _uri(png)))
    return shown


def _rows(figure: "Figure", png: bytes, dpi: int) -> list[list[Piece]]:
    if narrow.is_laid_out(figure):
        return [[Piece(_uri(png), figure.get_figwidth() * PIXELS_PER_INCH)]]
    scale, rows = PIXELS_PER_INCH / dpi, []
    for row in narrow.cut(figure, png):
        # nothing may stand above a piece
        heads = [_of_array(head) if (head != 255).any() else "" for head in row.heads]
        heads = heads or [""] * len(row.pieces)
        rows.append(
            [
                Piece(_of_array(piece), piece.shape[1] * scale, head)
                for piece, head in zip(row.pieces, heads)
            ]
        )
    return rows


def _stored(figure: "Figure", dpi: int) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def _of_array(image: np.ndarray) -> str:
    """The URI of uint8 (h,w,3)."""
    from matplotlib.image import imsave

    file, nothing_said = io.BytesIO(), cast(Any, {"Software": None})
    imsave(file, np.ascontiguousarray(image), format="png", metadata=nothing_said)
    return _uri(file.getvalue())


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
