"""Figures of numbers: accuracy matrices, and accuracy and forgetting after each experience."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from kdtasks.engine.report.style import INK, WIDTH
from kdtasks.incremental.metrics import forgetting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERED = 20  # experiences up to which the numbers fit into a matrix
SOFT = "#526071"
CLASS_IL = "class-incremental: the answer is one of all classes seen so far"
TASK_IL = "task-incremental: the answer is one of the classes of the image's own experience"


def draw_matrices(matrices: Mapping[str, Sequence[Sequence[float]]], meaning: str) -> tuple:
    """``(title, figure)``: accuracy matrices in percent side by side, each with rows of 1, 2, … T
    entries, by name of the stage; what the accuracy is of.
    """
    from matplotlib.figure import Figure

    count = max(map(len, matrices.values()))
    figure = Figure(figsize=(WIDTH * (1 + len(matrices)) / 3, 0.85 + min(0.42 * count, 4.6)))
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (name, matrix) in zip(panels, matrices.items()):
        mesh = _draw_matrix(axes, matrix, count)
        axes.set(title=name, ylim=(count, 0), xlabel="tested on experience")
    panels[0].set_ylabel("after experience")
    figure.colorbar(mesh, ax=list(panels), fraction=0.03, pad=0.02).outline.set_visible(False)
    return (
        f"Accuracy, %, on the test images of each experience (columns) after each experience "
        f"(rows); {meaning}",
        figure,
    )


def _draw_matrix(axes: "Axes", matrix: Sequence[Sequence[float]], count: int) -> object:
    """One matrix, of a figure whose largest has ``count`` rows; returns what a colorbar needs."""
    values = torch.full((count, count), torch.nan)
    for i, row in enumerate(matrix):
        values[i, : i + 1] = torch.tensor(row)
    mesh = axes.pcolormesh(
        values.numpy(),
        cmap="viridis",
        vmin=0,
        vmax=100,
        edgecolor="white",
        linewidth=1 if count <= NUMBERED else 0.3,
    )
    if count <= NUMBERED:
        _write_numbers(axes, matrix, count)
    numbers = _numbers(count)
    axes.set_xticks([k - 0.5 for k in numbers], numbers)
    axes.set_yticks([k - 0.5 for k in numbers], numbers)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return mesh


def _write_numbers(axes: "Axes", matrix: Sequence[Sequence[float]], count: int) -> None:
    digits, size = (1, 9.5) if count <= 10 else (0, 8)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            axes.text(
                j + 0.5,
                i + 0.5,
                f"{value:.{digits}f}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if value < 50 else INK,
            )


def draw_course(
    class_il: Mapping[str, Sequence],
    task_il: Mapping[str, Sequence],
    colors: Mapping[str, str],
    joint: Sequence[float | None] = (None, None),
    joint_name: str = "joint",
) -> tuple:
    """``(title, figure)``: the average accuracy on all that was seen, and forgetting, after each
    experience.

    Args:
        class_il, task_il: matrices by name of the model.
        colors: by name of the model, and of ``joint_name``.
        joint: average accuracies of the model that has learned all at once, class- and
            task-incremental.
        joint_name: its name.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 3.9))
    left, right = figure.subplots(1, 2)
    styles = {"class-IL": "-", "task-IL": (0, (4, 2))}
    for style, matrices, accuracy in zip(styles.values(), (class_il, task_il), joint):
        for name, matrix in matrices.items():
            _draw_line(left, right, matrix, colors[name], style)
        if accuracy is not None:
            left.axhline(accuracy, color=colors[joint_name], linestyle=style, linewidth=1.5)
    longest = max(map(len, class_il.values()))
    for axes in (left, right):
        axes.set(xticks=_numbers(longest), xlim=(0.8, longest + 0.2), xlabel="after experience")
    left.set(ylim=(0, 100), ylabel="accuracy, %", title="Mean accuracy over the experiences so far")
    right.set(ylabel="points", title="Forgetting: the best so far − now, mean over the old")
    right.axhline(0, color="#AEB7C4", linewidth=1, zorder=0)
    models = list(class_il) if joint[0] is None else [*class_il, joint_name]
    _draw_legend(figure, {name: colors[name] for name in models}, styles)
    both = min(map(len, class_il.values()))
    results = []
    for name, matrix in class_il.items():
        accuracy, lost = sum(matrix[both - 1]) / both, forgetting(matrix[:both])
        results.append(f"{name} {accuracy:.1f} % and {lost:.1f} points")
    return (
        f"Accuracy and forgetting after each experience; after experience {both}, "
        f"class-incremental: {'; '.join(results)}",
        figure,
    )


def _draw_line(
    left: "Axes", right: "Axes", matrix: Sequence[Sequence[float]], color: str, style: str | tuple
) -> None:
    """One model's mean accuracy, and its forgetting from the second experience on."""
    looks = {"color": color, "linestyle": style, "marker": "o", "markersize": 4.5, "clip_on": False}
    count = range(1, len(matrix) + 1)
    left.plot(count, [sum(row) / len(row) for row in matrix], **looks)
    right.plot(count[1:], [forgetting(matrix[:k]) for k in count[1:]], **looks)


def _draw_legend(
    figure: "Figure", colors: Mapping[str, str], styles: Mapping[str, str | tuple]
) -> None:
    """Colours are the models, styles the kinds of accuracy."""
    from matplotlib.lines import Line2D

    lines = {name: Line2D([], [], color=color) for name, color in colors.items()}
    for name, style in styles.items():
        lines[name] = Line2D([], [], color=SOFT, linestyle=style)
    place = {"loc": "outside upper right", "ncols": len(lines), "handlelength": 2.6}
    figure.legend(lines.values(), lines, **place)


def _numbers(count: int) -> range:
    """The experiences whose numbers stand on an axis."""
    return range(1, count + 1) if count <= NUMBERED else range(5, count + 1, 5)
