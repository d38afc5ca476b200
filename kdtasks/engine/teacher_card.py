"""The teacher card: what a teacher that the run does not train reaches on the student's test data,
told before the first step.

A teacher whose inputs are normalised otherwise, whose classes stand in another order or whose
weights are of another network still gives logits, and a student learns from them without a word.
The card costs one pass of the teacher over the test data, once a run; ``teacher_card=False`` leaves
it out.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdtasks.core import Stage, Teacher
from kdtasks.core.names import as_names
from kdtasks.core.trial import keep_random_streams
from kdtasks.engine.evaluation import evaluate

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment
    from kdtasks.engine.notices import Notices
    from kdtasks.engine.work_dir import WorkDir

Cards = dict[str, dict[str, Any]]


def teacher_cards(
    experiment: "Experiment", files: "WorkDir", done: Mapping[str, Mapping], notices: "Notices"
) -> dict[str, Cards]:
    """``{stage: {teacher: its metrics}}`` of the stages that are not done; what is doubtful is said
    on the screen.

    Scored are teachers whose whole output a loss reads, and that no stage of the run trains: those
    have metrics of their own in its results. One that cannot be scored on this data (its output is
    of another shape than the student's) is left out.

    Args:
        experiment: whose teachers they are.
        files: of finished stages.
        done: results of finished stages.
        notices: the screen.
    """
    cards: dict[str, Cards] = {}
    if not experiment.config["teacher_card"]:
        return cards
    scored: dict[tuple, dict[str, Any]] = {}
    for stage, name in _scored(experiment, done):
        data = str(experiment.setting(stage, "data")["test"])
        key = (name, stage.teachers[name], data, experiment.normalization(stage))
        if key not in scored:
            with keep_random_streams():
                scored[key] = _card(experiment, stage, name, files, notices)
        if scored[key]:
            cards.setdefault(stage.name, {})[name] = scored[key]
    return cards


def doubts(
    experiment: "Experiment", stage: Stage, name: str, model: nn.Module, metrics: Mapping
) -> list[str]:
    """What in the metrics of a teacher speaks for a mistake, and what to look at.

    Args:
        experiment: whose task says it.
        stage: whose test data it is.
        name: of the teacher.
        model: itself.
        metrics: of it, on that data.
    """
    try:
        said = experiment.task.doubts(metrics, model, experiment.test_loader(stage))
    # what was trained is worth more than a doubt
    except (ValueError, RuntimeError):
        said = []
    hint = (
        "Look at its normalisation (mean, std), its input_size, the order of its classes, and "
        "whether its weights and BatchNorm statistics are those of this network"
    )
    return [f"the teacher {name!r}: {doubt}. {hint}" for doubt in said]


def _scored(experiment: "Experiment", done: Mapping) -> Iterator[tuple[Stage, str]]:
    for stage in experiment.stages:
        if stage.name in done:
            continue
        read = {name for entry in stage.losses.values() for name in as_names(entry["of"])}
        for name, origin in stage.teachers.items():
            fixed = isinstance(origin, str | None) and experiment.is_from_outside(origin)
            if fixed and (name in read or not experiment.factory.has_plain_distiller):
                yield stage, name


def _card(
    experiment: "Experiment", stage: Stage, name: str, files: "WorkDir", notices: "Notices"
) -> dict[str, Any]:
    task, teacher = experiment.task, experiment.teacher(stage, name, files)
    loader = experiment.test_loader(stage)
    try:
        if not _is_comparable(experiment, stage, teacher, next(iter(loader))):
            return {}
        metrics = evaluate(task, plain_network(teacher), loader)
    # the run's own checks say what it cannot do without
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        notices.warn(f"the teacher {name!r} cannot be scored on the test data: {error}")
        return {}
    primary = task.primary
    if primary in metrics:
        value = f"{metrics[primary]:.{task.decimals(primary)}f}{task.unit(primary)}"
        notices.say(f"{name}: {value} {task.label(primary)} on the student's test data")
    for text in doubts(experiment, stage, name, plain_network(teacher), metrics):
        notices.warn(text)
    return metrics


def plain_network(teacher: Teacher) -> nn.Module:
    """The network itself, where it is given the student's inputs as they are; else the teacher."""
    prepared = teacher.scale is not None or teacher.input_size is not None
    return teacher if prepared or teacher.precision is not None else teacher.model


@torch.no_grad()
def _is_comparable(
    experiment: "Experiment", stage: Stage, teacher: Teacher, batch: Mapping
) -> bool:
    """Whether what the task measures of the student can be measured of the teacher's output."""
    student = experiment.learner(stage)
    student.eval()
    with experiment.precision():
        student_output, teacher_output = student(batch["input"]), teacher(batch["input"])
    return experiment.task.is_comparable(student_output, teacher_output, experiment.config)
