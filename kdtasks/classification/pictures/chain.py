"""Accuracy along a chain of students, each taught by the one before (TAKD, BAN)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdtasks.classification.pictures.counting import answers
from kdtasks.core.stages import as_route, stage_reference
from kdtasks.engine.report.facts import parameter_count
from kdtasks.engine.report.style import INK, WIDTH
from kdtasks.images.display import darker

if TYPE_CHECKING:
    from kdtasks.core import Stage
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.run import Run


@dataclass(frozen=True)
class Point:
    """A network of the chain: its name, accuracy in percent, and number of parameters."""

    name: str
    accuracy: float
    parameters: int


def pictures(run: "Run", loader: "Loader", colors: Mapping[str, str]) -> list[tuple]:
    """``[(title, figure)]`` of the chain that ends with the student that counts; none where fewer
    than two of its networks have been taught.

    Args:
        run: of stages that have finished.
        loader: of the test data.
        colors: by name of the stage.
    """
    hops = chain(run)
    if sum(bool(stage.teachers) for stage in hops) < 2:
        return []
    points = [_point(run, stage) for stage in hops]
    if hops[0].teachers:
        # from a file: nobody has measured it yet
        name, teacher = next(iter(run.experiment.distiller(hops[0], run.files).teachers.items()))
        right = answers(teacher, loader).right
        accuracy = 100 * right.double().mean().item()
        points.insert(0, Point(name, accuracy, parameter_count(teacher.model)))
    control = [run.arms.control] if run.arms.control else []
    beside = [s for s in (*control, *run.arms.compared) if s not in hops]
    return [draw_chain(points, {s.name: _point(run, s).accuracy for s in beside}, colors)]


def chain(run: "Run") -> list["Stage"]:
    """The stage whose student counts, behind the one that has taught it, and so on; the last anchor
    of a route, and the first of several teachers.
    """
    names = [stage.name for stage in run.experiment.stages]
    hops = [run.arms.final] if run.arms.final else []
    while hops and hops[0].teachers:
        origin = next(iter(hops[0].teachers.values()))
        reference = stage_reference(as_route(origin)[-1] or "", names)
        if reference is None:
            break
        hops.insert(0, run.experiment.stage(reference[0]))
    return hops


def _point(run: "Run", stage: "Stage") -> Point:
    accuracy = run.done[stage.name]["accuracy"]
    return Point(stage.name, accuracy, parameter_count(run.experiment.learner(stage)))


def draw_chain(
    points: Sequence[Point], beside: Mapping[str, float], colors: Mapping[str, str]
) -> tuple:
    """``(title, figure)``: the accuracy of each network of the chain.

    Args:
        points: the first teacher first, the student last.
        beside: accuracies that are drawn as lines: of students out of the chain.
        colors: by name.
    """
    from matplotlib.figure import Figure

    first, last = points[0], points[-1]
    title = (
        f"Accuracy along the chain: each network is taught by the one to its left, from "
        f"{first.name} ({first.accuracy:.1f} %) to {last.name} ({last.accuracy:.1f} %)"
    )
    lines = {first.name: first.accuracy, **beside}
    if beside:
        title += "; lines: " + ", ".join(f"{name} {value:.1f} %" for name, value in lines.items())
    figure = Figure(figsize=(WIDTH, 3.9))
    axes = figure.subplots()
    accuracies = [point.accuracy for point in points]
    for k, (name, value) in enumerate(lines.items()):
        style = (0, (6, 3)) if k < 2 else (0, (1.5, 2))
        axes.axhline(value, color=colors[name], linestyle=style, linewidth=1.4, label=name)
    axes.plot(accuracies, color="#AEB7C4", linewidth=2, zorder=2)
    for place, point in enumerate(points):
        axes.plot(place, point.accuracy, "o", color=colors[point.name], markersize=11, zorder=3)
        axes.annotate(
            f"{point.accuracy:.2f}",
            (place, point.accuracy),
            (0, 9),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
            color=darker(colors[point.name]),
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            zorder=4,
        )
    labels = [f"{point.name}\n{point.parameters:,}" for point in points]
    axes.set_xticks(range(len(points)), labels, color=INK)
    axes.set_xlim(-0.45, len(points) - 0.55)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.16)
    axes.set(xlabel="network, and how many parameters it has", ylabel="accuracy, %")
    figure.legend(ncols=min(len(lines), 6), loc="outside upper right")
    return title, figure
