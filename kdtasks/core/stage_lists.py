"""Lists of stages with their control: the one that a config without stages means, and one that it
has written itself.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from kdtasks.core.arms import arms, led_by_teachers, with_roles
from kdtasks.core.control import control_losses, taught_names
from kdtasks.core.stages import ALONE, DISTILLED, Stage, source_of


def standard_stages(
    losses: Mapping[str, dict],
    teachers: Mapping[str, str | None],
    teacher_training: Mapping | None = None,
    own: Container[str] = (),
    own_losses: bool = False,
) -> list[Stage]:
    """What a config without ``stages`` means: train the teachers that have no checkpoint, then
    alone, then distilled.

    Args:
        losses: the config's losses.
        teachers: ``{name: checkpoint or None}``.
        teacher_training: what differs when a teacher is trained: ``optimizer``, ``schedule``,
            ``length``, ``data``.
        own: names that are no teacher's, see :func:`~kdtasks.core.control.taught_names`.
        own_losses: whether the student has losses of its own (a detector), which train where no
            other does.
    """
    plain = control_losses(losses, teachers, own, own_losses)
    stages = [
        Stage(name, model=name, losses=plain, role="teacher", own=own, **(teacher_training or {}))
        for name, checkpoint in teachers.items()
        if checkpoint is None
    ]
    sources: dict[str, str | Sequence[str] | None] = {
        name: f"{name}.last" if checkpoint is None else checkpoint
        for name, checkpoint in teachers.items()
    }
    taught = {name: dict(entry) for name, entry in losses.items()}
    return [
        *stages,
        Stage(ALONE, losses=plain, role="control", own=own),
        Stage(DISTILLED, teachers=sources, losses=taught, role="taught", own=own),
    ]


def with_control(
    stages: Sequence[Stage],
    losses: Mapping[str, dict],
    teachers: Mapping[str, object],
    own: Container[str] = (),
    own_losses: bool = False,
) -> list[Stage]:
    """A list of stages in which each has its role, untaught ones have losses of their own, and the
    control is there.

    A stage without teachers and without losses gets the control's. Where no stage is the control
    and the final one is taught, "alone" comes before it: the same budget, from fresh weights,
    without teachers.

    Raises:
        ValueError: the final stage goes on with an earlier one's student, and there is no control
            whose budget is that of all; or the control itself is taught; or an untaught stage lists
            a loss with a weight and another ``alone``; or as
            :func:`~kdtasks.core.arms.with_roles`.
    """
    teacher_names = {*teachers, *(name for stage in stages for name in stage.teachers)}
    filled = []
    for stage in stages:
        entries = stage.losses
        _check_weights(stage)
        if not entries:
            entries = (
                dict(losses)
                if stage.teachers
                else control_losses(losses, teacher_names, own, own_losses)
            )
        filled.append(replace(stage, own=own, losses=entries))
    stages = with_roles(filled)
    parts = arms(stages)
    if parts.control is not None:
        _check_control(parts.control, stages)
    final = parts.final
    if final is None or final.name not in led_by_teachers(stages) or parts.control is not None:
        return stages
    if source_of(final, stages[: stages.index(final)]):
        raise ValueError(
            f"stage {final.name!r} goes on with another stage's student, so its control must be in "
            "the list: a stage of role='control' with the steps of all of them"
        )
    budget = {
        key: getattr(final, key) for key in ("arguments", "optimizer", "schedule", "length", "data")
    }
    plain = control_losses(final.losses, teacher_names, own, own_losses)
    alone = Stage(ALONE, losses=plain, own=own, role="control", **budget)
    where = stages.index(final)
    return [*stages[:where], alone, *stages[where:]]


def _check_weights(stage: Stage) -> None:
    """``alone`` is for the control's losses that are made of taught ones: where a stage without
    teachers lists its own, their ``weight`` counts.

    Raises:
        ValueError: an entry has both, and they differ.
    """
    for name, entry in stage.losses.items():
        weight = entry.get("weight", 1.0)
        if not stage.teachers and entry.get("alone", weight) != weight:
            raise ValueError(
                f"stage {stage.name!r} has no teacher and lists {name} with weight={weight} and "
                f"alone={entry['alone']}, of which its weight counts: expected one of them"
            )


def _check_control(alone: Stage, stages: Sequence[Stage]) -> None:
    """No teacher has a part in the control.

    Raises:
        ValueError: one has; says in what.
    """
    fault = _teacher_in(alone, stages)
    if fault:
        raise ValueError(
            f"the stage {alone.name!r} is the control, which no teacher may have a part in, but it "
            f"{fault}"
        )


def _teacher_in(alone: Stage, stages: Sequence[Stage]) -> str:
    """What a teacher has to do with a stage; empty: nothing."""
    if alone.teachers:
        return f"has the teachers {list(alone.teachers)}"
    for name, entry in alone.losses.items():
        for unknown in taught_names(entry["of"], alone.own):
            return (
                f"has {name}, which is of {unknown!r} (data.own=[{unknown!r}], if no teacher has a "
                "part in it)"
            )
    source = source_of(alone, stages[: stages.index(alone)])
    if source in led_by_teachers(stages):
        return f"goes on with the student of {source!r}, on which a teacher has pulled"
    return ""
