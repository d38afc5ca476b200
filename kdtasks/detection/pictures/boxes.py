"""Detections side by side: the ground truth and what each model finds, image by image."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kdtasks.detection.class_colors import class_color
from kdtasks.detection.matching import crowds, match
from kdtasks.detection.pictures.grid import PictureGrid
from kdtasks.engine.report.style import INK, SLATE
from kdtasks.images.display import counted, darker, literal, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUTH = "ground truth"
LABEL_SIZE = 5.5  # points


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
    grid = PictureGrid(images, 1 + len(models), top=0.36 + 0.22 * lines, below=0.3)
    _draw_legend(grid, [(names[label - 1], class_color(label)) for label in legend])
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


def _above(detection: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    mask = detection["scores"] >= threshold
    return {key: detection[key][mask].cpu() for key in ("boxes", "labels", "scores")}


def _names(classes: Sequence[str] | None, *entries: Mapping[str, Tensor]) -> list[str]:
    names = [str(name) for name in classes or ()]
    highest = max([int(e["labels"].max()) for e in entries if len(e["labels"])], default=0)
    return names + [f"class {k}" for k in range(len(names) + 1, highest + 1)]


def _draw_legend(grid: PictureGrid, classes: Sequence[tuple[str, str]]) -> None:
    """Names and colours, six a line, and what the lines of the boxes mean."""
    for k, (name, color) in enumerate(classes):
        left, y = k % 6 * 0.118 * grid.width, grid.height - 0.1 - 0.22 * (k // 6)
        grid.text(left, y, "■", color=color, fontsize=11, va="center")
        grid.text(left + 0.017 * grid.width, y, shortened(name, 13), fontsize=9, va="center")
    meaning = "solid: right   dashed: wrong   dotted: missed"
    style = {"fontsize": 9, "va": "center", "ha": "right", "color": SLATE}
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
    caption = counted(int((~crowds(target)).sum()), "object")
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
        color = class_color(label)
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
