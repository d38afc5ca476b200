"""Accuracy along a route of anchors (RCO): of the checkpoints of a teacher that teach one after the
other, and of the student meanwhile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from kdtasks.classification.pictures.counting import answers
from kdtasks.core.choices import evenly_spaced
from kdtasks.core.names import STUDENT, as_names
from kdtasks.core.stages import as_route, stage_reference
from kdtasks.core.terms import trains
from kdtasks.engine.report.facts import curve, histories
from kdtasks.engine.report.style import WIDTH
from kdtasks.images.display import darker

if TYPE_CHECKING:
    from kdtasks.core import Stage
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.run import Run

# anchors that are named
NAMED = 8
Curve = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Anchor:
    """A checkpoint that teaches from one iteration of the student to another.

    Args:
        teacher: the stage that has kept it.
        which: ``'epoch_<e>'``, ``'last'`` or ``'best'``.
        begin, end: iterations, counted over all stages of the student.
    """

    teacher: str
    which: str
    begin: int
    end: int


def pictures(run: "Run", loader: "Loader", colors: Mapping[str, str]) -> list[tuple]:
    """``[(title, figure)]`` of the route to the student that counts; none where one set of weights
    has taught it all the time.

    Args:
        run: of stages that have finished.
        loader: of the test data.
        colors: by name of the stage.
    """
    final, control = run.arms.final, run.arms.control
    anchors = route(run, final) if final else []
    if len({(anchor.teacher, anchor.which) for anchor in anchors}) < 2:
        return []
    accuracies = [_accuracy(run, anchor, loader) for anchor in anchors]
    curves = {s.name: _course(run, run.experiment.chain(s)) for s in (control, final) if s}
    return [draw_route(anchors, accuracies, curves, colors)]


def route(run: "Run", final: "Stage") -> list[Anchor]:
    """The anchors that have taught a stage's student, in it and in those that it goes on with;
    those stages are left out whose losses do not read what the student answers.

    Empty where some anchor is no stage's.
    """
    stages = run.experiment.chain(final)
    names = [stage.name for stage in run.experiment.stages]
    anchors = []
    for stage, end in zip(stages, _ends(run, stages)):
        if not stage.teachers or not _reads_answers(stage):
            continue
        origins = as_route(next(iter(stage.teachers.values())))
        references = [stage_reference(source or "", names) for source in origins]
        length = _length(run, stage)
        for k, reference in enumerate(references):
            if reference is None:
                return []
            # as they are loaded: in iteration i the anchor of number i * len(route) // length
            begin, until = (-(-(k + more) * length // len(origins)) for more in (0, 1))
            anchors.append(Anchor(*reference, end - length + begin, end - length + until))
    return anchors


def _reads_answers(stage: "Stage") -> bool:
    return any(STUDENT in as_names(e["of"]) for name, e in stage.losses.items() if trains(name))


def _length(run: "Run", stage: "Stage") -> int:
    return max((entry["iteration"] for entry in histories(run).get(stage.name, ())), default=0)


def _ends(run: "Run", stages: Sequence["Stage"]) -> list[int]:
    """Where each of successive stages ends, in iterations of all."""
    return list(accumulate(_length(run, stage) for stage in stages))


def _accuracy(run: "Run", anchor: Anchor, loader: "Loader") -> float:
    right = answers(run.trained(anchor.teacher, anchor.which), loader).right
    return 100 * right.double().mean().item()


def _course(run: "Run", stages: Sequence["Stage"]) -> Curve:
    """The accuracy on the test data, over the iterations of successive stages."""
    x, y = [], []
    for stage, end in zip(stages, _ends(run, stages)):
        at, values = curve(histories(run).get(stage.name, ()), "accuracy")
        x += [end - _length(run, stage) + iteration for iteration in at]
        y += values
    return x, y


def draw_route(
    anchors: Sequence[Anchor],
    accuracies: Sequence[float],
    curves: Mapping[str, Curve],
    colors: Mapping[str, str],
) -> tuple:
    """``(title, figure)``: steps of the anchors' accuracy, and the curves of the students.

    Args:
        anchors: in the order in which they teach.
        accuracies: of each, in percent.
        curves: iterations and accuracy by stage; the control's is dashed.
        colors: by name of the stage.
    """
    from matplotlib.figure import Figure

    *others, final = curves
    teacher = anchors[-1].teacher
    title = (
        f"Accuracy along the route: {len(anchors)} anchors, from {accuracies[0]:.1f} % to "
        f"{accuracies[-1]:.1f} %, teach {final}, which ends with {curves[final][1][-1]:.1f} %"
    )
    title += "".join(f" ({name}: {curves[name][1][-1]:.1f} %)" for name in others)
    figure = Figure(figsize=(WIDTH, 4.2))
    axes = figure.subplots()
    for name in (*others, final):
        line = {"marker": "o" if len(curves[name][0]) <= 60 else "", "markersize": 4}
        line |= {"linestyle": (0, (5, 2))} if name != final else {}
        axes.plot(*curves[name], color=colors[name], label=name, **line)
    edges = [anchors[0].begin, *(anchor.end for anchor in anchors)]
    color = colors[teacher]
    axes.stairs(accuracies, edges, baseline=None, color=color, linewidth=2.4, label="its anchor")
    for edge in edges[1:-1]:
        axes.axvline(edge, color="#D5DBE3", linewidth=0.8, zorder=0)
    for k in evenly_spaced(len(anchors), NAMED):
        middle = (anchors[k].begin + anchors[k].end) / 2
        text = f"{anchors[k].which.replace('_', ' ')}\n{accuracies[k]:.1f}"
        axes.annotate(
            text,
            (middle, accuracies[k]),
            (0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9.5,
            color=darker(color),
        )
    axes.margins(x=0.02, y=0.2)
    axes.set(xlabel="iteration of the student", ylabel="accuracy, %")
    figure.legend(ncols=3, loc="outside upper right")
    return title, figure
