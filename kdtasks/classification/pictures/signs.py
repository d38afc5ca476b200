"""Signs of the responses before a ReLU (AB): how many of a student's are the teacher's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kdtasks.engine.builder import resolve
from kdtasks.engine.report.style import INK, WIDTH
from kdtasks.general import ABLoss, activation_disagreement

if TYPE_CHECKING:
    from kdtasks.core import Distiller, Stage
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.run import Run

START = "at the start"


@dataclass
class Layers:
    """What is found of the layers of a distiller's :class:`~kdtasks.general.ABLoss` entries, by the
    entry's name.

    Args:
        agreement: percent of the neurons of all images whose sign is the teacher's.
        commoner: the same if each neuron always had the sign that the teacher's has more often: a
            guess that looks at no image.
        label: of each layer, for an axis.
        count: of the images.
    """

    agreement: dict[str, float]
    commoner: dict[str, float]
    label: dict[str, str]
    count: int


@torch.no_grad()
def sign_agreement(distiller: "Distiller", loader: Iterable[Mapping]) -> Layers:
    """Compare the signs on the batches of ``loader``.

    Args:
        distiller: built, in eval; its student is read through the connectors of its losses.
        loader: batches of at least one image.
    """
    layers = {name: t for name, t in distiller.terms.items() if isinstance(t.loss, ABLoss)}
    differ, active, label = dict.fromkeys(layers, 0), dict.fromkeys(layers, 0), {}
    count = 0
    for batch in loader:
        tensors, rows = distiller.tensors(batch), len(batch["input"])
        for name, term in layers.items():
            student, teacher = term.loss.projected(*(tensors[of] for of in term.of))
            differ[name] = differ[name] + rows * activation_disagreement(student, teacher)
            active[name] = active[name] + (teacher > 0).sum(0)
            label[name] = _label(term.of, tuple(teacher.shape[1:]))
        count += rows
    often = {name: torch.maximum(number, count - number) for name, number in active.items()}
    return Layers(
        {name: 100 * (1 - float(number) / count) for name, number in differ.items()},
        {name: 100 * float(number.double().mean()) / count for name, number in often.items()},
        label,
        count,
    )


def _label(of: tuple[str, ...], shape: tuple[int, ...]) -> str:
    own, teacher = (name.partition(".")[2] for name in of)
    size = f"{shape[0]} channels" + (f", {shape[1]}×{shape[2]}" if len(shape) == 3 else "")
    return f"teacher's {teacher}\nstudent's {own}\n({size})"


def pictures(run: "Run", loader: "Loader", colors: Mapping[str, str]) -> list[tuple]:
    """``[(title, figure)]`` of the first finished stage with :class:`~kdtasks.general.ABLoss`: the
    agreement at its start, at its end, and after each stage that goes on with its student.

    All are read through its own connectors. A student that never had one, as the control, is left
    out where they have weights.

    Args:
        run: of stages that have finished.
        loader: of the test data.
        colors: by name of the stage.
    """
    stage = next((stage for stage in run.finished if _has_signs(stage)), None)
    if stage is None:
        return []
    layers_by_time = {START: sign_agreement(run.distiller(stage, ended=False), loader)}
    distiller = run.distiller(stage)
    layers_by_time[stage.name] = sign_agreement(distiller, loader)
    connected = any(
        True
        for term in distiller.terms.values()
        if isinstance(term.loss, ABLoss)
        for _ in term.loss.parameters()
    )
    for other in _comparable(run, stage, connected):
        distiller.student = run.trained(other.name)
        layers_by_time[other.name] = sign_agreement(distiller, loader)
    control = run.arms.control.name if run.arms.control else ""
    return [
        draw_signs(layers_by_time, stage.name, connected, {START: "#AEB7C4", **colors}, control)
    ]


def _has_signs(stage: "Stage") -> bool:
    kinds = [
        resolve(entry["type"], name) for name, entry in stage.losses.items() if "type" in entry
    ]
    return any(isinstance(kind, type) and issubclass(kind, ABLoss) for kind in kinds)


def _comparable(run: "Run", stage: "Stage", connected: bool) -> list["Stage"]:
    """The finished stages that go on with this one's student; without connectors the control too,
    if its network is the same.
    """
    chain = run.experiment.chain
    later = [other for other in run.finished if other is not stage and stage in chain(other)]
    control = run.arms.control
    if control and not connected and not run.experiment.config["control"]:
        later.append(control)
    return [other for other in later if other.arguments == stage.arguments]


def draw_signs(
    layers_by_time: Mapping[str, Layers],
    stage: str,
    connected: bool,
    colors: Mapping[str, str],
    control: str = "",
) -> tuple:
    """``(title, figure)``: bars of each layer.

    Args:
        layers_by_time: by when, the start first.
        stage: whose losses compare the signs.
        connected: whether it has connectors with weights.
        colors: by when.
        control: the name of the control, if there is one.
    """
    from matplotlib.figure import Figure

    first = next(iter(layers_by_time.values()))
    layers = list(first.label)
    title = f"Neurons whose sign before the ReLU is the teacher's, on {first.count:,} test images"
    if connected:
        without = f"; {control} never had any" if control else ""
        title += (
            f", read through the connectors of {stage} (fresh at the start, then as it left them"
            f"{without})"
        )
    title += "; black: each neuron's commoner sign, whatever the image"
    figure = Figure(figsize=(WIDTH, 3.9))
    axes = figure.subplots()
    width = 0.8 / len(layers_by_time)
    for k, (when, layer) in enumerate(layers_by_time.items()):
        places = [i + (k - (len(layers_by_time) - 1) / 2) * width for i in range(len(layers))]
        label = when if when == START else f"after {when}"
        bars = axes.bar(
            places,
            [layer.agreement[name] for name in layers],
            width * 0.92,
            color=colors[when],
            label=label,
        )
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=9.5)
    for place, name in enumerate(layers):
        line = axes.hlines(first.commoner[name], place - 0.45, place + 0.45, color=INK)
    line.set_label("each neuron's commoner sign")
    axes.set_xticks(range(len(layers)), [first.label[name] for name in layers])
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, 105)
    axes.set_ylabel("same sign, % of the neurons")
    figure.legend(ncols=len(layers_by_time) + 1, loc="outside upper right")
    return title, figure
