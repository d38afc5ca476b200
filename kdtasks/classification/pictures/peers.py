"""Peers that teach each other (DML): their agreement in training and on each class, and the
accuracy of each.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtasks.classification.pictures.counting import Answers, answers
from kdtasks.core.control import has_peers
from kdtasks.core.names import STUDENT
from kdtasks.engine.report.facts import curve, histories
from kdtasks.engine.report.style import SLATE, WIDTH
from kdtasks.general import Ensemble, peer_agreement
from kdtasks.images.display import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kdtasks.core import Distiller, Stage
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.run import Run

# accuracies are drawn in these: of the peers, and of all together
PEER, ENSEMBLE = "#56B4E9", "#009E73"
RIGHT, WRONG = "#0072B2", "#D55E00"


def pictures(
    run: "Run", loader: "Loader", names: Sequence[str], colors: Mapping[str, str]
) -> list[tuple]:
    """``[(title, figure)]`` of the last finished stage that has peers; none without one.

    Args:
        run: of stages that have finished.
        loader: of the test data.
        names: of the classes.
        colors: by name of the stage.
    """
    stage = next((s for s in reversed(run.finished) if has_peers(s.losses)), None)
    if stage is None:
        return []
    distiller = run.distiller(stage)
    members = [distiller.student, *distiller.peers]
    answers_of_role = {
        role: answers(model, loader) for role, model in zip(distiller.learners, members)
    }
    together = answers(Ensemble(members), loader)
    control = run.arms.control
    alone = {control.name: run.done[control.name]["accuracy"]} if control else {}
    return [
        draw_agreement(answers_of_role, names, _in_training(run, stage, distiller)),
        draw_accuracies(answers_of_role, together, stage.name, alone, colors),
    ]


def _in_training(
    run: "Run", stage: "Stage", distiller: "Distiller"
) -> tuple[list[int], list[float]]:
    """Iterations and percentages that an entry of :func:`~kdtasks.general.peer_agreement` has
    noted; none without such an entry.
    """
    for name, term in distiller.terms.items():
        if term.loss is peer_agreement:
            return curve(histories(run)[stage.name], name)
    return [], []


def agreement(answers_of_role: Mapping[str, Answers], classes: int) -> tuple[list, list, float]:
    """Percent of the test images of each class to which two peers give the same answer, and of
    those the right one, means over all pairs; None for a class without images; and the first over
    all images.
    """
    models = list(answers_of_role.values())
    target = models[0].target
    same, right = torch.zeros(2, len(target), dtype=torch.float64)
    pairs = list(combinations(models, 2))
    for first, second in pairs:
        agree = first.answer == second.answer
        same, right = same + agree / len(pairs), right + (agree & first.right) / len(pairs)
    every = 100 * same.mean().item() if len(same) else 0.0
    return _of_classes(same, target, classes), _of_classes(right, target, classes), every


def _of_classes(values: Tensor, target: Tensor, classes: int) -> list[float | None]:
    rows = [target == c for c in range(classes)]
    return [100 * values[of_class].mean().item() if of_class.any() else None for of_class in rows]


def draw_agreement(
    answers_of_role: Mapping[str, Answers],
    names: Sequence[str],
    training: tuple[Sequence[int], Sequence[float]] = ((), ()),
) -> tuple:
    """``(title, figure)``: how often peers give the same answer, in the course of training and to
    each class's test images.

    Args:
        answers_of_role: answers by role, the student first; all to the same images.
        names: of the classes.
        training: iterations, and percent of a batch.
    """
    from matplotlib.figure import Figure

    same, right, every = agreement(answers_of_role, len(names))
    title = (
        f"Agreement of the {len(answers_of_role)} peers: the same answer to {every:.1f} % of the "
        "test images; of each class, the same right answer and the same wrong one"
    )
    figure = Figure(figsize=(WIDTH, 3.6))
    if len(training[0]):
        left, axes = figure.subplots(1, 2, width_ratios=[1, 2])
        left.plot(*training, color=SLATE, marker="o" if len(training[0]) <= 60 else "", ms=4)
        left.set(ylim=(0, 102), xlabel="iteration", ylabel="same answer, % of the batch")
        left.set_title("In training")
    else:
        axes = figure.subplots()
    _draw_classes(axes, same, right, names)
    axes.set_title("On the test data")
    axes.set_ylabel("same answer, % of the class")
    shown = axes.get_legend_handles_labels()
    figure.legend(*shown, title="the same answer:", ncols=2, loc="outside upper right")
    return title, figure


def _draw_classes(
    axes: "Axes", same: Sequence[float | None], right: Sequence[float | None], names: Sequence[str]
) -> None:
    """Bars of few classes; of more than 20, areas in the order of the right answers."""
    shown = [c for c in range(len(names)) if same[c] is not None]
    both = [right[c] for c in shown]
    wrong = [same[c] - right[c] for c in shown]
    if len(shown) <= 20:
        axes.bar(range(len(shown)), both, color=RIGHT, label="the right one")
        axes.bar(range(len(shown)), wrong, bottom=both, color=WRONG, label="a wrong one")
        labels = [literal(names[c]) for c in shown]
        turned = {"rotation": 40, "ha": "right"} if max(map(len, labels), default=0) > 4 else {}
        axes.set_xticks(range(len(shown)), labels, **turned)
        axes.grid(visible=False, axis="x")
    else:
        order = sorted(range(len(shown)), key=both.__getitem__)
        low, more = [both[k] for k in order], [wrong[k] for k in order]
        axes.stackplot(
            range(len(shown)),
            low,
            more,
            colors=(RIGHT, WRONG),
            labels=("the right one", "a wrong one"),
        )
        axes.set_xlabel("classes, sorted by the same right answer")
        axes.set_xlim(0, len(shown) - 1)
    axes.set_ylim(0, 102)


def draw_accuracies(
    answers_of_role: Mapping[str, Answers],
    together: Answers,
    stage: str,
    alone: Mapping[str, float],
    colors: Mapping[str, str],
) -> tuple:
    """``(title, figure)``: the accuracy of the student, of each peer and of all together, with the
    control.

    Args:
        answers_of_role: answers by role, the student first.
        together: answers by the mean of their probabilities.
        stage: whose student it is.
        alone: ``{name: accuracy}`` of the control; may be empty.
        colors: by name of the stage.
    """
    from matplotlib.figure import Figure

    accuracies = {role: _percent(given) for role, given in answers_of_role.items()}
    rows = [(name, value, colors[name]) for name, value in alone.items()]
    rows += [
        (f"{stage} (the student)", value, colors[stage]) if role == STUDENT else (role, value, PEER)
        for role, value in accuracies.items()
    ]
    rows.append(("mean of their probabilities", _percent(together), ENSEMBLE))
    title = (
        f"Accuracy of each peer: {', '.join(f'{value:.1f} %' for value in accuracies.values())}; "
        f"of the mean of their probabilities {_percent(together):.1f} %"
    )
    title += "".join(f"; of the same student {name} {v:.1f} %" for name, v in alone.items())
    figure = Figure(figsize=(WIDTH, 0.75 + 0.42 * len(rows)))
    axes = figure.subplots()
    places = range(len(rows))
    axes.barh(places, [v for _, v, _ in rows], color=[color for *_, color in rows], height=0.62)
    axes.set_yticks(places, [name for name, _, _ in rows], fontsize=11)
    axes.invert_yaxis()
    for place, (_, value, _) in enumerate(rows):
        axes.annotate(
            f"{value:.2f}",
            (value, place),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
        )
    axes.set(xlim=(0, 108), xlabel="accuracy, %", xticks=range(0, 101, 20))
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return title, figure


def _percent(found: Answers) -> float:
    return 100 * found.right.double().mean().item()
