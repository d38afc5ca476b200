"""What to look at after a detector was distilled: boxes side by side, classes, where the teacher's
bound and weights act.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtasks.core.choices import evenly_spaced
from kdtasks.detection.chen2017 import is_above_bound
from kdtasks.detection.coco_metrics import class_figures
from kdtasks.detection.matching import crowds, match
from kdtasks.images.display import darker, literal, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Okabe and Ito's colours first, then others that stand out on a photograph.
CLASS_COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7B4FA3",
    "#C2185B",
    "#5C8A00",
    "#00838F",
    "#8C5A2B",
    "#3949AB",
)
TRUTH = "ground truth"
INK = "#1B2330"
LABEL_SIZE = 5.5  # points


# Which images are drawn ---------------------------------------------------------------------------
def choose_labelled(targets: Sequence, count: int = 4) -> list[int]:
    """Places of at most ``count`` images that have a target, evenly spaced."""
    labelled = [i for i, target in enumerate(targets) if target is not None]
    return [labelled[k] for k in evenly_spaced(len(labelled), count)]


def images_of(loader: Iterable[Mapping], index: Sequence[int]) -> list[Tensor]:
    """Images (3,H,W) on the CPU by the ``index`` that their detections have; a loader without a
    data set is read through.
    """
    index, dataset = [int(i) for i in index], getattr(loader, "dataset", None)
    if dataset is not None:
        samples = [dataset[i] for i in index]
        images = [
            sample["input"] if isinstance(sample, Mapping) else sample[0] for sample in samples
        ]
    else:
        image_at, start = {}, 0
        for batch in loader:
            places = (
                batch["index"].tolist()
                if "index" in batch
                else range(start, start + len(batch["input"]))
            )
            image_at |= {
                place: image for place, image in zip(places, batch["input"]) if place in index
            }
            start += len(batch["input"])
        images = [image_at[i] for i in index]
    return [image.detach().float().cpu() for image in images]


# Figures ------------------------------------------------------------------------------------------
def draw(
    images: Sequence[Tensor],
    targets: Sequence[Mapping],
    models: Mapping[str, Sequence[Mapping]],
    metrics: Mapping[str, Mapping[str, float]],
    classes: Sequence[str] | None,
    colors: Mapping[str, str],
    pair: Sequence[str] = (),
    bounded: Mapping[str, tuple] | None = None,
    weights: Sequence[tuple] = (),
    threshold: float | Mapping[str, float] = 0.5,
) -> list[tuple[str, "Figure"]]:
    """``[(title, figure)]``: all that there is to see; what is empty is left out.

    Args:
        images: (3,H,W) in [0,1], a few test images.
        targets: what is in them.
        models: detections in them, by name of the model, in the order of drawing.
        metrics: what :func:`kdtasks.detection.coco_metrics.coco_metrics` gives, by name of the
            model.
        classes: names; label k is ``classes[k-1]``.
        colors: by name of the model.
        pair: the two models (before, after) whose classes are compared.
        bounded: see :func:`draw_bounded`.
        weights: see :func:`draw_weights`.
        threshold: the least score of drawn boxes; one for all, or by name of the model.
    """
    figures = []
    if images:
        figures.append(draw_detections(images, targets, models, classes, colors, threshold))
    if any(name.startswith("map") for values in metrics.values() for name in values):
        figures.append(draw_classes(metrics, classes, colors, pair))
    if bounded:
        figures.append(draw_bounded(bounded))
    if weights:
        figures.append(draw_weights(weights))
    return figures


def draw_detections(
    images: Sequence[Tensor],
    targets: Sequence[Mapping],
    models: Mapping[str, Sequence[Mapping]],
    classes: Sequence[str] | None,
    colors: Mapping[str, str],
    threshold: float | Mapping[str, float] = 0.5,
) -> tuple[str, "Figure"]:
    """``(title, figure)``: a row for each image, the ground truth and what each model finds;
    arguments as for :func:`draw`.

    Right boxes are solid, wrong ones dashed, objects that are not found dotted.
    """
    per_model = isinstance(threshold, Mapping)
    least = dict(threshold) if per_model else dict.fromkeys(models, threshold)
    models = {
        name: [_above(answer, least[name]) for answer in answers]
        for name, answers in models.items()
    }
    entries = [*targets, *itertools.chain.from_iterable(models.values())]
    names = _names(classes, *entries)
    labels = sorted({int(label) for entry in entries for label in entry["labels"]})
    # more colours than eyes tell apart
    legend = labels if len(labels) <= 24 else []
    lines = max(math.ceil(len(legend) / 6), 1)
    grid = _PictureGrid(images, 1 + len(models), top=0.36 + 0.22 * lines, below=0.3)
    _draw_legend(grid, [(names[label - 1], _class_color(label)) for label in legend])
    texts = [f"{name}, score ≥ {least[name]:.2f}" if per_model else name for name in models]
    inks = [darker(colors[name]) if name in colors else INK for name in models]
    grid.titles([TRUTH, *texts], [INK, *inks])
    for row, (image, target) in enumerate(zip(images, targets)):
        panels = [_truth_panel(target)]
        panels += [_answer_panel(answers[row], target) for answers in models.values()]
        for column, panel in enumerate(panels):
            axes = grid.add_picture(row, column, image)
            _draw_boxes(axes, panel, names, grid.picture_width * 72 / image.shape[2])
            grid.caption(row, column, panel.caption)
    rule = (
        "above the score that gives each model its best F1"
        if per_model
        else f"with a score of at least {threshold:g}"
    )
    title = f"The same test images: boxes {rule}; right is the same class and IoU ≥ 0.5"
    return title, grid.figure


class _PictureGrid:
    """A figure of rows of pictures, an image a row, each as wide as the others; lengths in inches.

    Args:
        images: (3,H,W), one for each row.
        columns: how many pictures a row has.
        top, bottom: what is left free above the first row and below the last.
        below: what is left free below each row.
        widest: the most that a column may take.
    """

    GAP, WIDTH = 0.08, 10.4

    def __init__(
        self,
        images: Sequence[Tensor],
        columns: int,
        top: float,
        below: float,
        bottom: float = 0.0,
        widest: float = math.inf,
    ):
        self.side = min(self.WIDTH / columns, widest)
        self.picture_width = self.side - self.GAP
        self.heights = [
            self.picture_width * min(image.shape[1] / image.shape[2], 1.5) for image in images
        ]
        pitches = [height + below for height in self.heights]
        self.width, self.height = self.side * columns, top + sum(pitches) + bottom
        # where the upper edge of each row is
        self.tops = [self.height - top - sum(pitches[:row]) for row in range(len(pitches))]
        self.figure = _free_figure(self.width, self.height)

    def text(self, left: float, y: float, text: str, **style) -> None:
        self.figure.text(left / self.width, y / self.height, text, **style)

    def titles(self, texts: Iterable[str], colors: Sequence[str] | None = None) -> None:
        """Above each column; as large as the column is wide."""
        for column, text in enumerate(texts):
            size = 11 if colors else min(11, self.picture_width * 72 / (0.63 * len(text)))
            color = colors[column] if colors else INK
            y = self.tops[0] + 0.07
            self.text(column * self.side, y, text, fontsize=size, fontweight="bold", color=color)

    def caption(self, row: int, column: int, text: str) -> None:
        y = self.tops[row] - self.heights[row] - 0.05
        self.text(column * self.side, y, text, va="top", fontsize=8.5)

    def add_axes(self, column: int, bottom: float, height: float) -> "Axes":
        return self.figure.add_axes(
            (
                column * self.side / self.width,
                bottom / self.height,
                self.picture_width / self.width,
                height / self.height,
            )
        )

    def add_picture(self, row: int, column: int, image: Tensor, gray: bool = False) -> "Axes":
        height = self.heights[row]
        axes = self.add_axes(column, self.tops[row] - height, height)
        _picture(axes, image, self.picture_width, gray)
        return axes


def _draw_legend(grid: _PictureGrid, classes: Sequence[tuple[str, str]]) -> None:
    """Names and colours, six a line, and what the lines of the boxes mean."""
    for k, (name, color) in enumerate(classes):
        left, y = k % 6 * 0.118 * grid.width, grid.height - 0.1 - 0.22 * (k // 6)
        grid.text(left, y, "■", color=color, fontsize=11, va="center")
        grid.text(left + 0.017 * grid.width, y, shortened(name, 13), fontsize=9, va="center")
    meaning = "solid: right   dashed: wrong   dotted: missed"
    style = {"fontsize": 9, "va": "center", "ha": "right", "color": "#3C4758"}
    grid.text(grid.width - grid.GAP, grid.height - 0.1, meaning, **style)


class _Panel(NamedTuple):
    """The boxes that are drawn into one picture."""

    boxes: Tensor  # (n,4)
    labels: Tensor  # (n,)
    scores: Tensor | None  # (n,)
    state: Tensor  # (n,) as `match` gives it
    missed: list[list[float]]
    caption: str


def _truth_panel(target: Mapping[str, Tensor]) -> _Panel:
    right = torch.ones(len(target["labels"]))
    caption = _counted(int((~crowds(target)).sum()), "object")
    return _Panel(target["boxes"], target["labels"], None, right, [], caption)


def _answer_panel(answer: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> _Panel:
    state, is_found = match(answer, target)
    missed = target["boxes"][~(is_found | crowds(target))].tolist()
    right, wrong = int((state == 1).sum()), int((state == 0).sum())
    caption = f"{right} right, {wrong} wrong, {len(missed)} missed"
    return _Panel(answer["boxes"], answer["labels"], answer["scores"], state, missed, caption)


def _draw_boxes(axes: "Axes", panel: _Panel, names: Sequence[str], scale: float) -> None:
    """Boxes and what they say, the surest first; a text that would cover another one is shortened
    or left out.

    Args:
        scale: points on the page for a pixel.
    """
    for box in panel.missed:
        _draw_frame(axes, box, 1.1, edgecolor=INK, linestyle=(0, (1, 1.6)))
    order = range(len(panel.labels))
    if panel.scores is not None:
        order = panel.scores.argsort(descending=True, stable=True).tolist()
    areas: list[tuple] = []
    for n in order:
        box, label = panel.boxes[n].tolist(), int(panel.labels[n])
        color = _class_color(label)
        line = (0, (3, 1.8)) if panel.state[n] == 0 else "-"
        _draw_frame(axes, box, 1.3, edgecolor=color, linestyle=line)
        name = literal(names[label - 1])
        texts = [name]
        if panel.scores is not None:
            score = f"{float(panel.scores[n]):.2f}"
            texts = [f"{name} {score}", score]
        place = _free_place(box, texts, scale, areas, axes)
        if place:
            x, y, text, area = place
            areas.append(area)
            _draw_label(axes, x, y, text, color)


def _draw_frame(axes: "Axes", box: Sequence[float], width: float, **style) -> None:
    """A pale edge, then the line."""
    from matplotlib.patches import Rectangle

    place = box[:2], box[2] - box[0], box[3] - box[1]
    axes.add_patch(Rectangle(*place, fill=False, linewidth=width + 1.0, edgecolor="#FFFFFFB0"))
    axes.add_patch(Rectangle(*place, fill=False, linewidth=1.3, **style))


def _draw_label(axes: "Axes", x: float, y: float, text: str, color: str) -> None:
    frame = {"facecolor": color, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
    place = {"va": "top", "ha": "left", "clip_on": True}
    axes.text(x, y, text, fontsize=LABEL_SIZE, color="white", bbox=frame, **place)


def _free_place(
    box: Sequence[float], texts: Sequence[str], scale: float, areas: Sequence[tuple], axes: "Axes"
) -> tuple[float, float, str, tuple] | None:
    """``(x, y, text, area)`` for the first of the texts that fits inside the box, at its top or its
    bottom, and free of the others; None where none does.
    """
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    left, top = max(box[0], 0), max(box[1], 0)
    for text in texts:
        width = (0.62 * LABEL_SIZE * len(text) + 2) / scale
        height = (LABEL_SIZE + 2.6) / scale
        if left + width > min(max(box[2], left + 14 / scale), right) or height > box[3] - box[1]:
            continue
        for y in (top, min(box[3], bottom) - height):
            area = (left, y, left + width, y + height)
            if not any(_overlap(area, other) for other in areas):
                return left + 0.8 / scale, y + 0.8 / scale, text, area
    return None


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def draw_classes(
    metrics: Mapping[str, Mapping[str, float]],
    classes: Sequence[str] | None,
    colors: Mapping[str, str],
    pair: Sequence[str] = (),
) -> tuple[str, "Figure"]:
    """``(title, figure)``: average precision of all classes together and of each one; bars, points
    from 21 classes on.
    """
    from matplotlib.figure import Figure

    names = _class_names(metrics, classes)
    keys = [key for key in names if any(key in values for values in metrics.values())]
    many = len(keys) > 20
    if many:
        first = metrics[pair[0] if pair else next(iter(metrics))]
        keys.sort(key=lambda key: first.get(key, 0))
    groups = ["map", *keys]
    figure = Figure(figsize=(10.4, 4.4 if many else 3.6))
    axes = figure.subplots()
    (_draw_points if many else _draw_bars)(axes, groups, metrics, colors)
    _label_classes(axes, ["all classes", *(shortened(names[key], 22) for key in keys)], many)
    highest = max([1, *(v[key] for v in metrics.values() for key in groups if key in v)])
    axes.set_ylim(0, min(100, 1.15 * highest))
    axes.margins(x=0.01)
    axes.set_ylabel("average precision, %")
    figure.legend(loc="outside upper right", ncols=len(metrics))
    title = "Average precision (COCO, IoU 0.50 to 0.95) of each class, percent"
    if len(pair) == 2:
        title += f": {_gains(metrics, keys, *pair)}"
    return title, figure


def _class_names(
    metrics: Mapping[str, Mapping[str, float]], classes: Sequence[str] | None
) -> dict[str, str]:
    """``{figure: name of its class}``."""
    if classes is not None:
        return dict(zip(class_figures(classes), map(str, classes)))
    start = "map_class_"
    figures = {key for values in metrics.values() for key in values if key.startswith(start)}
    labels = sorted(int(key.removeprefix(start)) for key in figures)
    return {f"{start}{label}": f"class {label}" for label in labels}


def _gains(
    metrics: Mapping[str, Mapping[str, float]], keys: Sequence[str], before: str, after: str
) -> str:
    shared = [key for key in keys if key in metrics[before] and key in metrics[after]]
    gains = [metrics[after][key] - metrics[before][key] for key in shared]
    up, down = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return f"{after} above {before} in {up} of {len(gains)} classes, below in {down}"


def _class_places(count: int) -> list[float]:
    """Where the classes stand; the first group, which is all of them, a little apart."""
    return [i + 0.25 * (i > 0) for i in range(count)]


def _draw_points(
    axes: "Axes", groups: Sequence[str], metrics: Mapping[str, Mapping], colors: Mapping[str, str]
) -> None:
    for name, values in metrics.items():
        heights = [values.get(group, 0) for group in groups]
        style = {"markersize": 4, "alpha": 0.8, "color": colors[name], "label": name}
        axes.plot(_class_places(len(groups)), heights, "o", **style)


def _draw_bars(
    axes: "Axes", groups: Sequence[str], metrics: Mapping[str, Mapping], colors: Mapping[str, str]
) -> None:
    width = 0.8 / len(metrics)
    for k, (name, values) in enumerate(metrics.items()):
        offset = (k - (len(metrics) - 1) / 2) * width
        places = [place + offset for place in _class_places(len(groups))]
        heights = [values.get(group, 0) for group in groups]
        bars = axes.bar(places, heights, width * 0.92, color=colors[name], label=name)
        if len(groups) * len(metrics) <= 24:
            axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)


def _label_classes(axes: "Axes", texts: Sequence[str], many: bool) -> None:
    style = {"fontsize": 10, "rotation": 0, "ha": "center"}
    if many:
        style = {"fontsize": 7, "rotation": 90, "ha": "center"}
    elif sum(map(len, texts)) > 100:
        style = {"fontsize": 10, "rotation": 40, "ha": "right"}
    axes.set_xticks(_class_places(len(texts)), texts, **style)
    axes.grid(visible=many, axis="x")


def draw_bounded(heads: Mapping[str, tuple]) -> tuple[str, "Figure"]:
    """``(title, figure)``: the student's against the teacher's squared error of each positive box,
    and the gate between.

    Args:
        heads: by name (``rpn``, ``rois``) ``(e_s, e_t, margin)``; errors (P,) as
            :func:`~kdtasks.detection.chen2017.box_errors` gives them.
    """
    from matplotlib.figure import Figure

    data = {
        name: (torch.as_tensor(s).double(), torch.as_tensor(t).double(), float(m))
        for name, (s, t, m) in heads.items()
    }
    figure = Figure(figsize=(10.4, 5.0) if len(data) > 1 else (6.4, 5.4))
    shares = []
    for axes, (name, errors) in zip(figure.subplots(1, len(data), squeeze=False)[0], data.items()):
        is_open = is_above_bound(*errors)
        _draw_gate(axes, name, *errors, is_open)
        boxes = _counted(len(is_open), "positive box", "es")
        shares.append(f"{_share(is_open):.1f} % of {boxes} ({name})")
    title = "Where the teacher bounds the student's boxes: the gate is open for "
    return title + ", ".join(shares), figure


def _draw_gate(
    axes: "Axes", name: str, student: Tensor, teacher: Tensor, margin: float, is_open: Tensor
) -> None:
    """One head: a point for each box, the line where the gate opens, and what lies below it."""
    low, high = _log_range(student, teacher)
    ends = torch.tensor([low, high]).log10().tolist()
    line = torch.logspace(*ends, 400, dtype=torch.float64)
    gate = line - margin
    axes.fill_between(line, gate.clamp(low, high), low, color="#EEF1F5", zorder=0)
    visible = gate > low
    style = {"color": "#3C4758", "linewidth": 1.2, "linestyle": (0, (4, 3))}
    axes.plot(line[visible], gate[visible], **style)
    opacity = 0.8 if len(student) <= 200 else 0.45
    faint = opacity if len(student) <= 2000 else 0.2
    style = {"markersize": 4, "markeredgewidth": 0, "alpha": faint}
    for mask, color, label in (
        (is_open, "#0072B2", r"open, $e_s + m > e_t$: pulled to the ground truth"),
        (~is_open, "#8A94A3", r"closed, $e_s + m \leq e_t$: left alone"),
    ):
        points = teacher[mask].clamp(low, high), student[mask].clamp(low, high)
        axes.plot(*points, "o", color=color, label=f"{label} ({_share(mask):.1f} %)", **style)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(low, high),
        aspect="equal",
        title=f"{name}: {_counted(len(student), 'box', 'es')}, margin {margin:g}",
        xlabel="teacher's squared error $e_t$",
        ylabel="student's squared error $e_s$",
    )
    legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=9)
    for handle in legend.legend_handles:
        handle.set_alpha(1)


def _log_range(*errors: Tensor) -> tuple[float, float]:
    """What of the axis is shown: at most seven powers of ten."""
    positive = torch.cat([error[error > 0] for error in errors])
    if not len(positive):
        return 1e-3, 1.0
    high = float(positive.max()) * 1.6
    return max(float(positive.min()) / 1.6, high * 1e-7), high


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
    grid = _PictureGrid(images, 1 + len(names), top=0.3, below=0.08, bottom=0.55, widest=4.2)
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


def _free_figure(width: float, height: float) -> "Figure":
    """A figure whose axes stay where they are put; with ``layout='none'`` only its first
    ``savefig`` would leave them.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import PlaceHolderLayoutEngine

    return Figure(
        figsize=(width, height),
        layout=PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True),
    )


def _picture(axes: "Axes", image: Tensor, inches: float, gray: bool = False) -> None:
    """An image without axes, 80 pixels an inch and 64 tones: boxes and texts stay sharp, and the
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
    axes.set(xticks=[], yticks=[])
    axes.set_anchor("W")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _above(detection: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    mask = detection["scores"] >= threshold
    return {key: detection[key][mask].cpu() for key in ("boxes", "labels", "scores")}


def _names(classes: Sequence[str] | None, *entries: Mapping[str, Tensor]) -> list[str]:
    names = [str(name) for name in classes or ()]
    highest = max([int(e["labels"].max()) for e in entries if len(e["labels"])], default=0)
    return names + [f"class {k}" for k in range(len(names) + 1, highest + 1)]


def _class_color(label: int) -> str:
    return CLASS_COLORS[(label - 1) % len(CLASS_COLORS)]


def _share(mask: Tensor) -> float:
    return 100 * float(mask.double().mean()) if len(mask) else 0.0


def _counted(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}" + ("" if count == 1 else ending)
