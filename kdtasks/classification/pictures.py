"""What to look at after a classifier was distilled: classes, images whose answer changed, whether
confidence can be trusted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdtasks.core.choices import evenly_spaced
from kdtasks.images.display import pictures_of


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
        return self.answer == self.target


@torch.no_grad()
def answers(model: nn.Module, loader) -> Answers:
    """What ``model``, in eval, says to each labelled sample of ``loader``, whose batches have
    ``input``, ``target`` and ``index``.
    """
    rows = []
    for batch in loader:
        # (B,) each
        confidence, answer = model(batch["input"]).float().softmax(1).max(1)
        rows.append([v.cpu() for v in (batch["index"], batch["target"], answer, confidence)])
    index, target, answer, confidence = (torch.cat(column) for column in zip(*rows))
    known = target >= 0
    return Answers(index[known], target[known], answer[known], confidence[known])


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


def class_accuracy(found: Answers, classes: int) -> list[float | None]:
    """Percent right of each class; None for one without test images."""
    count = torch.bincount(found.target, minlength=classes)
    right = torch.bincount(found.target[found.right], minlength=classes)
    return [100 * r / n if n else None for r, n in zip(right.tolist(), count.tolist())]


# Figures ------------------------------------------------------------------------------------------
def draw(
    models: Mapping[str, Answers], pair: Sequence[str], loader, colors: Mapping[str, str]
) -> list[tuple]:
    """``[(title, figure)]``: all that there is to see.

    Args:
        models: answers by name, in the order of drawing; none: no pictures.
        pair: those of them that are students, the one without a teacher first: two, one or none.
        loader: of the test data; ``loader.dataset.classes`` are the names of the classes.
        colors: by name of the model.
    """
    if not models:
        return []
    names = [str(name) for name in getattr(loader.dataset, "classes", None) or ()]
    highest = max(
        int(v.max()) for found in models.values() for v in (found.target, found.answer) if len(v)
    )
    names += [str(c) for c in range(len(names), highest + 1)]

    def images(index: Tensor) -> list:
        return pictures_of(loader, index)

    drawn = [draw_classes(models, names, colors, pair if len(pair) == 2 else ())]
    if len(pair) == 2:
        drawn.append(draw_changes(models[pair[0]], models[pair[1]], names, images, pair, colors))
    else:
        one = [*pair, *models][0]
        drawn.append(draw_mistakes(models[one], names, images, one, colors))
    return [*drawn, draw_reliability(models, colors)]


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

    shares = {name: class_accuracy(found, len(names)) for name, found in models.items()}
    shown = [c for c in range(len(names)) if next(iter(shares.values()))[c] is not None]
    title = "Accuracy of each class, percent"
    gains = {}
    if pair:
        gains = {c: shares[pair[1]][c] - shares[pair[0]][c] for c in shown}
        up, down = sum(g > 0 for g in gains.values()), sum(g < 0 for g in gains.values())
        title += f": {pair[1]} above {pair[0]} in {up} of {len(shown)} classes, below in {down}"
    if len(shown) > 20:
        return title, _many_classes(shares, shown, names, colors, gains, pair)
    figure = Figure(figsize=(10.4, 3.6))
    axes = figure.subplots()
    width = 0.8 / len(shares)
    for k, (name, share) in enumerate(shares.items()):
        places = [i + (k - (len(shares) - 1) / 2) * width for i in range(len(shown))]
        axes.bar(places, [share[c] for c in shown], width * 0.92, color=colors[name], label=name)
    long = max((len(names[c]) for c in shown), default=0) * len(shown) > 110
    axes.set_xticks(
        range(len(shown)),
        [names[c] for c in shown],
        rotation=40 if long else 0,
        ha="right" if long else "center",
    )
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy, %")
    figure.legend(loc="outside upper right", ncols=len(shares))
    return title, figure


def _many_classes(shares, shown, names, colors, gains, pair):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.6))
    left, right = (
        figure.subplots(1, 2, width_ratios=[2.2, 1]) if gains else (figure.subplots(), None)
    )
    first = pair[0] if pair else next(iter(shares))
    order = sorted(shown, key=lambda c: shares[first][c])
    for name, share in shares.items():
        marker = "" if name == first else "x" if name not in pair else "o"
        left.plot(
            [share[c] for c in order],
            linestyle="-" if name == first else "",
            marker=marker,
            markersize=4,
            color=colors[name],
            label=name,
            alpha=1 if name == first else 0.75,
        )
    left.set_xlabel(f"classes, sorted by the accuracy of {first}")
    left.set_ylabel("accuracy, %")
    left.legend(loc="lower right")
    if gains:
        ranked = sorted(gains, key=gains.get)
        worst, best = (
            [c for c in ranked[:6] if gains[c] < 0],
            [c for c in ranked[-6:] if gains[c] > 0],
        )
        ends = worst + best
        right.barh(
            range(len(ends)),
            [gains[c] for c in ends],
            color=[colors[pair[gains[c] > 0]] for c in ends],
            height=0.65,
        )
        right.set_yticks(range(len(ends)), [names[c] for c in ends])
        right.axvline(0, color="#3C4758", linewidth=1)
        right.grid(visible=False, axis="y")
        right.set_title("largest changes")
        right.set_xlabel(f"{pair[1]} − {pair[0]}, points")
    return figure


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
    groups = [
        (
            f"{len(fixed)} fixed: {labels[0]} (first answer) is wrong, {labels[1]} (second) is "
            "right",
            fixed,
            2,
        ),
        (
            f"{len(broken)} broken: {labels[0]} (first answer) is right, {labels[1]} (second) is "
            "wrong",
            broken,
            1,
        ),
    ]
    return title, _gallery(groups, dict(zip(labels, (before, after))), names, images, colors)


def draw_mistakes(
    found: Answers,
    names: Sequence[str],
    images: Callable[[Tensor], list],
    label: str,
    colors: Mapping[str, str],
) -> tuple:
    """``(title, figure)``: test images that a single model gets wrong; arguments as for
    :func:`draw_changes`.
    """
    wrong = (~found.right).nonzero()[:, 0]
    title = f"{label}: {len(wrong)} wrong of {len(found.right)} test images"
    return title, _gallery(
        [(f"{len(wrong)} wrong", wrong, 2)], {label: found}, names, images, colors
    )


def _gallery(groups, models: Mapping[str, Answers], names, images, colors):
    """Groups of images, each ``(heading, which of the answers, most rows)``; under each image what
    each model says.
    """
    from matplotlib.figure import Figure

    columns = 8 if max(map(len, names)) <= 8 else 6
    groups = [
        (text, chosen[evenly_spaced(len(chosen), rows * columns)])
        for text, chosen, rows in groups
        if len(chosen)
    ]
    cell = 10.4 / columns
    height = cell * 0.78 + 0.17 * (1 + len(models)) + 0.16
    total = sum(0.45 - (-len(chosen) // columns) * height for _, chosen in groups)
    figure = Figure(figsize=(10.4, max(total, 0.6)), layout="none")
    if not groups:
        figure.text(0.01, 0.5, "No such image.", va="center", fontsize=11)
        return figure
    one, y = next(iter(models.values())), total
    for text, chosen in groups:
        figure.text(0, (y - 0.08) / total, text, va="top", fontsize=11, fontweight="bold")
        y -= 0.40
        pictures = images(one.index[chosen])
        for k, row in enumerate(chosen.tolist()):
            left, top = k % columns * cell, y - k // columns * height
            side = cell * 0.78
            axes = figure.add_axes((left / 10.4, (top - side) / total, side / 10.4, side / total))
            small = max(pictures[k].shape[:2]) <= 64
            axes.imshow(
                pictures[k], cmap="gray", interpolation="nearest" if small else "antialiased"
            )
            axes.set(xticks=[], yticks=[])
            axes.set_anchor("W")
            axes.spines[:].set_visible(False)
            lines = [(f"true: {_short(names[one.target[row]])}", "#1B2330")]
            for label, found in models.items():
                mark, answer = "✓" if found.right[row] else "✗", _short(names[found.answer[row]])
                lines.append(
                    (f"{mark} {answer}, {100 * found.confidence[row]:.0f} %", _dark(colors[label]))
                )
            for n, (line, color) in enumerate(lines):
                figure.text(
                    left / 10.4,
                    (top - side - 0.05 - 0.17 * n) / total,
                    line,
                    va="top",
                    fontsize=8.5,
                    color=color,
                    fontweight="bold" if n else "normal",
                )
        y -= -(-len(chosen) // columns) * height + 0.05
    return figure


def _dark(color: str) -> str:
    """A colour of bars, dark enough for small text on white."""
    return "#" + "".join(f"{round(0.72 * int(color[i : i + 2], 16)):02X}" for i in (1, 3, 5))


def _short(name: str, most: int = 13) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def draw_reliability(models: Mapping[str, Answers], colors: Mapping[str, str]) -> tuple:
    """``(title, figure)``: accuracy against confidence in ten bins for each model, with its
    expected calibration error.
    """
    from matplotlib.figure import Figure

    width = 10.4 / 3 * max(len(models), 2)
    figure = Figure(figsize=(width, 4.3))
    grid = figure.subplots(
        2, max(len(models), 2), height_ratios=[3.2, 1], sharex=True, squeeze=False
    )
    middle = [10 * b + 5 for b in range(10)]
    for k, (name, found) in enumerate(models.items()):
        top, bottom = grid[:, k]
        error, rows = calibration(found.confidence, found.right)
        filled = [(x, accuracy, mean) for x, (count, accuracy, mean) in zip(middle, rows) if count]
        places, heights, means = zip(*filled) if filled else ((), (), ())
        bars = top.bar(places, heights, 9.2, color=colors[name], alpha=0.85)
        for bar, count in zip(bars, [count for count, _, _ in rows if count]):
            bar.set_alpha(0.3 if count < 10 else 0.85)
        top.plot(means, heights, "o", color="#1B2330", markersize=4, clip_on=False, zorder=5)
        top.plot([0, 100], [0, 100], color="#3C4758", linewidth=1.1, linestyle=(0, (4, 3)))
        top.set(xlim=(0, 100), ylim=(0, 100), title=f"{name}: ECE {error:.1f} %")
        shares = [100 * count / max(len(found.right), 1) for count, _, _ in rows]
        bottom.bar(middle, shares, 9.2, color=colors[name], alpha=0.85)
        bottom.set(xlabel="confidence, %", ylim=(0, 100))
    for empty in grid[:, len(models) :].flat:
        empty.remove()
    grid[0, 0].set_ylabel("accuracy, %")
    grid[1, 0].set_ylabel("images, %")
    return (
        "Reliability: accuracy against confidence (dashed: as often right as it is sure; pale: "
        "fewer than 10 images)",
        figure,
    )
