"""Test images whose answer changed from one model to another, or that a model gets wrong."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from kdtasks.classification.pictures.counting import Answers
from kdtasks.core.choices import evenly_spaced
from kdtasks.engine.report.style import INK, WIDTH, free_figure
from kdtasks.images.display import add_axes, darker, draw_image, shortened, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy import ndarray


def draw_changes(
    before: Answers,
    after: Answers,
    names: Sequence[str],
    images: Callable[[Tensor], list],
    labels: Sequence[str],
    colors: Mapping[str, str],
) -> tuple:
    """``(title, figure)``: test images that one model gets wrong and the other right, and those the
    other way round.

    Those shown are spread evenly over the test set, not chosen.

    Args:
        before, after: answers of the two models to the same images.
        names: of the classes.
        images: gives arrays (H,W) or (H,W,3) for places in the data set.
        labels: names of the two models.
        colors: by name of the model.
    """
    fixed = (~before.right & after.right).nonzero()[:, 0]
    broken = (before.right & ~after.right).nonzero()[:, 0]
    title = (
        f"From {labels[0]} to {labels[1]}: {len(fixed)} fixed, {len(broken)} broken of "
        f"{len(before.right)} test images"
    )
    first, second = f"{labels[0]} (first answer)", f"{labels[1]} (second)"
    groups = [
        (f"{len(fixed)} fixed: {first} is wrong, {second} is right", fixed, 2),
        (f"{len(broken)} broken: {first} is right, {second} is wrong", broken, 1),
    ]
    return title, _gallery(groups, dict(zip(labels, (before, after))), names, images, colors)


def draw_mistakes(
    answers: Answers,
    names: Sequence[str],
    images: Callable[[Tensor], list],
    label: str,
    colors: Mapping[str, str],
) -> tuple:
    """``(title, figure)``: test images that a single model gets wrong; arguments as for
    :func:`draw_changes`.
    """
    wrong = (~answers.right).nonzero()[:, 0]
    title = f"{label}: {len(wrong)} wrong of {len(answers.right)} test images"
    groups = [(f"{len(wrong)} wrong", wrong, 2)]
    return title, _gallery(groups, {label: answers}, names, images, colors)


def _gallery(
    groups: Sequence[tuple[str, Tensor, int]],
    models: Mapping[str, Answers],
    names: Sequence[str],
    images: Callable[[Tensor], list],
    colors: Mapping[str, str],
) -> "Figure":
    """Groups of images, each ``(heading, which of the answers, most rows)``; under each image the
    answer of each model.
    """

    columns = 8 if max(map(len, names)) <= 8 else 6
    groups = [
        (heading, chosen[evenly_spaced(len(chosen), most_rows * columns)])
        for heading, chosen, most_rows in groups
        if len(chosen)
    ]
    cell = WIDTH / columns
    side = cell * 0.78
    height = side + 0.17 * (1 + len(models)) + 0.16
    rows = [-(-len(chosen) // columns) for _, chosen in groups]
    total = sum(0.45 + count * height for count in rows)
    figure = free_figure(WIDTH, max(total, 0.6))
    if not groups:
        figure.text(0.01, 0.5, "No such image.", va="center", fontsize=11)
        return figure
    index, top = next(iter(models.values())).index, 0.0
    for (heading, chosen), count in zip(groups, rows):
        write(figure, 0, top + 0.08, heading, fontsize=11, fontweight="bold")
        pictures = images(index[chosen])
        for k, place in enumerate(chosen.tolist()):
            row, column = divmod(k, columns)
            lines = _answer_lines(models, place, names, colors)
            corner = column * cell, top + 0.4 + row * height
            _draw_answers(figure, pictures[k], lines, *corner, side)
        top += 0.45 + count * height
    return figure


def _answer_lines(
    models: Mapping[str, Answers], place: int, names: Sequence[str], colors: Mapping[str, str]
) -> list[tuple[str, str]]:
    """``[(text, colour)]``: the true class, then each model's answer."""
    target = next(iter(models.values())).target[place]
    lines = [(f"true: {shortened(names[target], 13)}", INK)]
    for label, answers in models.items():
        mark = "✓" if answers.right[place] else "✗"
        name = shortened(names[answers.answer[place]], 13)
        text = f"{mark} {name}, {100 * answers.confidence[place]:.0f} %"
        lines.append((text, darker(colors[label])))
    return lines


def _draw_answers(
    figure: "Figure",
    image: "ndarray",
    lines: Sequence[tuple[str, str]],
    left: float,
    top: float,
    side: float,
) -> None:
    axes = add_axes(figure, left, top, side, side)
    draw_image(axes, image)
    axes.set_anchor("W")
    for n, (text, color) in enumerate(lines):
        font = {"fontsize": 8.5, "color": color, "fontweight": "bold" if n else "normal"}
        write(figure, left, top + side + 0.05 + 0.17 * n, text, **font)
