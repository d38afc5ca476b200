"""Average precision class by class, and in how many of them the student gains."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdtasks.detection.coco_metrics import class_figures
from kdtasks.engine.report.style import WIDTH
from kdtasks.images.display import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    figure = Figure(figsize=(WIDTH, 4.4 if many else 3.6))
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
