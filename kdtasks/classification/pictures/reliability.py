"""Reliability of the confidence."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdtasks.classification.pictures.counting import Answers, calibration
from kdtasks.engine.report.style import INK, SLATE, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    top.plot([0, 100], [0, 100], color=SLATE, linewidth=1.1, linestyle=(0, (4, 3)))
    top.set(xlim=(0, 100), ylim=(0, 100))
    bottom.set(xlabel="confidence, %", ylim=(0, 100))
