"""Figures of a distilled classifier: accuracy of each class, images whose answer changed, and
reliability of the confidence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.core.choices import evenly_spaced
from kdtasks.images.display import (
    add_axes,
    darker,
    draw_image,
    literal,
    pictures_of,
    shortened,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

    from kdtasks.engine.loader import Loader

# inches
WIDTH = 10.4
INK = "#1B2330"


@dataclass
class Answers:
    """A model's answers to the labelled test images; all (N,), on the CPU.

    Args:
        index: places of the images in the data set.
        target: their classes.
        answer: the class with the largest probability.
        confidence: that probability, in [0,1].
    """

    index: Tensor
    target: Tensor
    answer: Tensor
    confidence: Tensor

    @property
    def right(self) -> Tensor:
        """bool (N,)."""
        return self.answer == self.target


@torch.no_grad()
def answers(model: nn.Module, loader: "Loader") -> Answers:
    """The answers of ``model``, in eval, to the labelled samples of ``loader``, whose batches have
    ``input``, ``target`` and ``index``.
    """
    parts = []
    for batch in loader:
        # (B,) each
        confidence, answer = model(batch["input"]).float().softmax(1).max(1)
        columns = batch["index"], batch["target"], answer, confidence
        parts.append([column.cpu() for column in columns])
    index, target, answer, confidence = (torch.cat(column) for column in zip(*parts))
    labelled = target >= 0
    return Answers(index[labelled], target[labelled], answer[labelled], confidence[labelled])


def calibration(
    confidence: Tensor, right: Tensor, bins: int = 10
) -> tuple[float, list[tuple[int, float, float]]]:
    r"""Expected calibration error in percent, and for each bin its count, accuracy and mean
    confidence in percent.

    .. math:: \text{ECE} = \sum_b \frac{n_b}{N} \, |\text{accuracy}_b - \text{confidence}_b|

    Bins are of equal width, open below and closed above: ((b-1)/bins, b/bins]. An empty bin counts
    (0, 0, 0).

    Args:
        confidence: (N,) in [0,1].
        right: bool (N,).
        bins: their number.
    """
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    # (N,) in 0..bins-1
    place = torch.bucketize(confidence.double(), edges)
    rows, error = [], 0.0
    for b in range(bins):
        inside, count = place == b, int((place == b).sum())
        accuracy = 100 * right[inside].double().mean().item() if count else 0.0
        mean = 100 * confidence[inside].double().mean().item() if count else 0.0
        rows.append((count, accuracy, mean))
        error += count / max(len(right), 1) * abs(accuracy - mean)
    return error, rows


def class_accuracy(answers: Answers, classes: int) -> list[float | None]:
    """Percent right of each class; None for one without test images."""
    count = torch.bincount(answers.target, minlength=classes)
    right = torch.bincount(answers.target[answers.right], minlength=classes)
    return [100 * r / n if n else None for r, n in zip(right.tolist(), count.tolist())]


# Figures ------------------------------------------------------------------------------------------
def draw(
    models: Mapping[str, Answers], pair: Sequence[str], loader: "Loader", colors: Mapping[str, str]
) -> list[tuple]:
    """``[(title, figure)]``: all figures.

    Args:
        models: answers by name, in the order of drawing; none: no pictures.
        pair: those of them that are students, the one without a teacher first: two, one or none.
        loader: of the test data; ``loader.dataset.classes`` are the names of the classes.
        colors: by name of the model.
    """
    if not models:
        return []
    names = _class_names(models, loader)

    def images(index: Tensor) -> list:
        return pictures_of(loader, index)

    if len(pair) == 2:
        first = draw_classes(models, names, colors, pair)
        second = draw_changes(models[pair[0]], models[pair[1]], names, images, pair, colors)
    else:
        model = [*pair, *models][0]
        first = draw_classes(models, names, colors)
        second = draw_mistakes(models[model], names, images, model, colors)
    return [first, second, draw_reliability(models, colors)]


def _class_names(models: Mapping[str, Answers], loader: "Loader") -> list[str]:
    """Names of the data set, and numbers of further classes."""
    names = [str(name) for name in getattr(loader.dataset, "classes", None) or ()]
    numbers = []
    for answers in models.values():
        numbers += [answers.target, answers.answer]
    highest = max(int(column.max()) for column in numbers if len(column))
    return names + [str(number) for number in range(len(names), highest + 1)]


def draw_classes(
    models: Mapping[str, Answers],
    names: Sequence[str],
    colors: Mapping[str, str],
    pair: Sequence[str] = (),
) -> tuple:
    """``(title, figure)``: accuracy per class; bars up to 20 classes, sorted dots and the largest
    changes above that.

    Args:
        models: answers by name, in the order of drawing.
        names: of the classes.
        colors: by name of the model.
        pair: the two models (before, after) whose changes are named; left out where one is missing.
    """
    from matplotlib.figure import Figure

    shares = {name: class_accuracy(answers, len(names)) for name, answers in models.items()}
    shown = [c for c in range(len(names)) if next(iter(shares.values()))[c] is not None]
    title = "Accuracy of each class, percent"
    gains = {}
    if pair:
        gains = {c: shares[pair[1]][c] - shares[pair[0]][c] for c in shown}
        up, down = sum(g > 0 for g in gains.values()), sum(g < 0 for g in gains.values())
        title += f": {pair[1]} above {pair[0]} in {up} of {len(shown)} classes, below in {down}"
    figure = Figure(figsize=(WIDTH, 4.6 if len(shown) > 20 else 3.6))
    if len(shown) <= 20:
        _draw_bars(figure, shares, shown, names, colors)
    elif gains:
        left, right = figure.subplots(1, 2, width_ratios=[2.2, 1])
        _draw_sorted(left, shares, shown, colors, pair)
        _draw_gains(right, gains, names, colors, pair)
    else:
        _draw_sorted(figure.subplots(), shares, shown, colors, pair)
    return title, figure


# accuracy of each class by name of the model
Shares = Mapping[str, Sequence[float | None]]


def _draw_bars(
    figure: "Figure",
    shares: Shares,
    shown: Sequence[int],
    names: Sequence[str],
    colors: Mapping[str, str],
) -> None:
    """Few classes, side by side."""
    axes = figure.subplots()
    width = 0.8 / len(shares)
    for k, (name, share) in enumerate(shares.items()):
        places = [i + (k - (len(shares) - 1) / 2) * width for i in range(len(shown))]
        axes.bar(places, [share[c] for c in shown], width * 0.92, color=colors[name], label=name)
    labels = [literal(names[c]) for c in shown]
    if max(map(len, labels), default=0) * len(shown) > 110:
        axes.set_xticks(range(len(shown)), labels, rotation=40, ha="right")
    else:
        axes.set_xticks(range(len(shown)), labels)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy, %")
    figure.legend(loc="outside upper right", ncols=len(shares))


def _draw_sorted(
    axes: "Axes",
    shares: Shares,
    shown: Sequence[int],
    colors: Mapping[str, str],
    pair: Sequence[str],
) -> None:
    """Many classes, as a line of the first model in the order of its accuracy, and dots of the
    others.
    """
    first = pair[0] if pair else next(iter(shares))
    order = sorted(shown, key=lambda c: shares[first][c])
    for name, share in shares.items():
        if name == first:
            looks = {"linestyle": "-"}
        else:
            looks = {"linestyle": "", "marker": "o" if name in pair else "x", "alpha": 0.75}
        values = [share[c] for c in order]
        axes.plot(values, markersize=4, color=colors[name], label=name, **looks)
    axes.set_xlabel(f"classes, sorted by the accuracy of {first}")
    axes.set_ylabel("accuracy, %")
    axes.legend(loc="lower right")


def _draw_gains(
    axes: "Axes",
    gains: Mapping[int, float],
    names: Sequence[str],
    colors: Mapping[str, str],
    pair: Sequence[str],
) -> None:
    """The classes that lost and won most."""
    before, after = pair
    ranked = sorted(gains, key=gains.get)
    ends = [c for c in ranked[:6] if gains[c] < 0] + [c for c in ranked[-6:] if gains[c] > 0]
    better = [colors[after if gains[c] > 0 else before] for c in ends]
    axes.barh(range(len(ends)), [gains[c] for c in ends], color=better, height=0.65)
    axes.set_yticks(range(len(ends)), [literal(names[c]) for c in ends])
    axes.axvline(0, color="#3C4758", linewidth=1)
    axes.grid(visible=False, axis="y")
    axes.set_title("largest changes")
    axes.set_xlabel(f"{after} − {before}, points")


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
    from matplotlib.figure import Figure

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
    figure = Figure(figsize=(WIDTH, max(total, 0.6)), layout="none")
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


def draw_reliability(models: Mapping[str, Answers], colors: Mapping[str, str]) -> tuple:
    """``(title, figure)``: accuracy against confidence in ten bins for each model, with its
    expected calibration error.
    """
    from matplotlib.figure import Figure

    columns = max(len(models), 2)
    figure = Figure(figsize=(WIDTH / 3 * columns, 4.3))
    panels = figure.subplots(2, columns, height_ratios=[3.2, 1], sharex=True, squeeze=False)
    for (top, bottom), (name, answers) in zip(panels.T, models.items()):
        error, bins = calibration(answers.confidence, answers.right)
        _draw_bins(top, bottom, bins, colors[name])
        top.set_title(f"{name}: ECE {error:.1f} %")
    for empty in panels[:, len(models) :].flat:
        empty.remove()
    panels[0, 0].set_ylabel("accuracy, %")
    panels[1, 0].set_ylabel("images, %")
    return (
        "Reliability: accuracy against confidence (dashed: as often right as it is sure; pale: "
        "fewer than 10 images)",
        figure,
    )


def _draw_bins(
    top: "Axes", bottom: "Axes", bins: Sequence[tuple[int, float, float]], color: str
) -> None:
    """Above accuracy and mean confidence of each bin, below its share of the images; ``bins`` of
    :func:`calibration`.
    """
    total = max(sum(count for count, _, _ in bins), 1)
    means, accuracies = [], []
    for b, (count, accuracy, mean) in enumerate(bins):
        middle = 10 * b + 5
        bottom.bar(middle, 100 * count / total, 9.2, color=color, alpha=0.85)
        if count:
            top.bar(middle, accuracy, 9.2, color=color, alpha=0.3 if count < 10 else 0.85)
            means.append(mean)
            accuracies.append(accuracy)
    top.plot(means, accuracies, "o", color=INK, markersize=4, clip_on=False, zorder=5)
    top.plot([0, 100], [0, 100], color="#3C4758", linewidth=1.1, linestyle=(0, (4, 3)))
    top.set(xlim=(0, 100), ylim=(0, 100))
    bottom.set(xlabel="confidence, %", ylim=(0, 100))
