"""Accuracy of each class."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdtasks.classification.pictures.counting import Answers, class_accuracy
from kdtasks.engine.report.style import SLATE, WIDTH
from kdtasks.images.display import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    axes.axvline(0, color=SLATE, linewidth=1)
    axes.grid(visible=False, axis="y")
    axes.set_title("largest changes")
    axes.set_xlabel(f"{after} − {before}, points")
