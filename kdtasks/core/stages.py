"""Stages: who teaches whom, for how long, starting from what; and the control that every run has
beside it.

A method that changes the course of training is a list of these, not a trainer of its own. The
entries of ``losses`` are as in a config: ``{name: dict(type=…, of=…, weight=…, alone=…)}``.
"""

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kdtasks.core.names import TensorName, as_names, did_you_mean
from kdtasks.core.terms import trains

# what the default list calls its control and its taught student
ALONE, DISTILLED = "alone", "distilled"
ROLES = {
    "teacher": "a model that teaches, and that no teacher has taught",
    "control": "the student without a teacher: the taught one is compared with it",
    "taught": "a student that teachers have pulled on; the last one is what the run is about",
    "joint": "a further student, for reference: one that learns all classes at once, say",
    "step": "on the way to other stages: an assistant, a warm-up, a round, an earlier experience",
}
# weights that a model has from the start, as its `type` builds it
OWN = "own"
# what stands in front of a name, or is it
NO_TEACHERS = ("student", "target", "input", "index", "view", "labelled")


@dataclass
class Stage:
    """One run of training with one optimizer.

    Args:
        name: identifier in results, file names and stage references.
        model: which model of the config learns: ``'student'``, ``'teacher'``, or a key of
            ``models``.
        student: what it starts from: ``'fresh'``; ``'keep'``, the last stage that trained this
            model; a stage (``'<stage>'``, ``'<stage>.last'``, ``'<stage>.best'``,
            ``'<stage>.<epoch>'``); or a file. After a stage, the data's order and random views go
            on with the epoch after its last one.
        teachers: ``{name: from}`` where from is a file, a stage as above, ``'own'``, the weights
            that its ``type`` brings, or None: the ``checkpoint`` of the model of that name. A list
            of them is a route of anchors, each of which teaches for an equal share of the stage.
        route: None, or what chooses among the anchors after each share: ``dict(type=…,
            held_out=dict(type=…))``, called with answers of the student and the anchors for images
            of a data set that it names.
        losses: the entries that pull in this stage.
        train: patterns (``fnmatch``) of the parameters that learn: ``'student'``, ``'losses'``,
            ``'student.layer3.*'``.
        optimizer, schedule, length, data: as at the top of a config, whose values they replace.
            ``dict(iterations=0)`` takes no step: what the stage starts from is tested and kept.
            Unlabelled samples are for stages with teachers, unless the stage's own data says
            ``unlabelled_per_batch``.
        optimizer_state: ``'fresh'``; or ``'keep'``: the momentum (or Adam's averages) of the stage
            that the student comes from goes on, while the learning rate starts anew.
        keep: epochs whose checkpoints are kept, for anchors.
        arguments: of the model's ``type``, in the place of the config's, in this stage and where it
            later teaches.
        finish: ``dict(type=…)`` of a function of a trained model, ``function(model, experiment,
            stage, files)``, that is called after the last step, with the model in eval and without
            gradient: what it changes of the model is what is evaluated, saved, and later goes on or
            teaches.
        role: what it is for, one of ``ROLES``: what counts, what is compared and what is drawn
            follows from it (:func:`arms`). None: found from what the stage is
            (:func:`with_roles`).
        own: further names that are no teacher's: the task or the data set supplies them; the run
            fills this in.
    """

    name: str
    model: str = "student"
    student: str = "fresh"
    teachers: dict[str, str | Sequence[str] | None] = field(default_factory=dict)
    losses: dict[str, dict] = field(default_factory=dict)
    train: Sequence[str] = ("student", "losses")
    optimizer: dict | None = None
    schedule: dict | list | None = None
    length: dict | int | None = None
    data: dict | None = None
    optimizer_state: str = "fresh"
    keep: Sequence[int] = ()
    arguments: dict = field(default_factory=dict)
    finish: dict | None = None
    role: str | None = None
    route: dict | None = None
    own: Container[str] = ()

    @property
    def taught(self) -> bool:
        """Whether teachers pull: those of the stage, or what else than the student, its target or
        ``own`` a loss is of.
        """
        return bool(self.teachers) or any(
            taught_names(entry["of"], self.own) for entry in self.losses.values()
        )


def taught_names(
    of: str | Sequence[str], own: Container[str] = (), teachers: Container[str] = ()
) -> list[str]:
    """Those of the names a loss is of that some teacher, or a peer, has a part in.

    They are all but the student's (``'student'``, ``'student.…'``), ``'target'``, ``'input'``,
    ``'index'``, ``'view'``, ``'labelled'`` and what is in ``own``: what a batch carries under any
    other name may be a teacher's, computed beforehand.

    Args:
        of: of a loss.
        own: names that are no teacher's, such as the student's own ``'rois.target'``.
        teachers: names that teachers have, whatever they are.
    """

    def taught(name: str) -> bool:
        parts = TensorName.parse(name)
        return parts.role in teachers or not (parts.role in NO_TEACHERS or parts.base in own)

    return [name for name in as_names(of) if taught(name)]


def has_peers(losses: Mapping[str, Mapping]) -> bool:
    """Whether some loss is of a peer."""
    names = itertools.chain(*(as_names(entry["of"]) for entry in losses.values()))
    return any(TensorName.parse(name).is_of_peers for name in names)


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
        own: names that are no teacher's, see :func:`taught_names`.
        own_losses: whether the student has losses of its own (a detector), which train where no
            other does.
    """
    plain = control(losses, teachers, own, own_losses)
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


def control(
    losses: Mapping[str, dict],
    teachers: Container[str],
    own: Container[str] = (),
    own_losses: bool = False,
) -> dict[str, dict]:
    """The losses of the control, "alone": those that no teacher and no peer has a part in, each at
    weight 1 or its ``alone``.

    A weight that makes room for the teacher is not kept: 0.1·CE under SGD is a tenth of the
    learning rate, and a student trained so without a teacher is a crippled control.

    Args:
        losses: the config's losses.
        teachers: names of the teachers.
        own: names that are no teacher's, see :func:`taught_names`.
        own_losses: whether the student has losses of its own (a detector), which train where no
            other does.

    Raises:
        ValueError: every loss names a teacher, so that nothing is left to learn from; unless the
            student has ``own_losses``.
    """
    plain = {}
    for name, entry in losses.items():
        taught = taught_names(entry["of"], own, teachers)
        weight = entry.get("alone", 0 if taught else 1)
        if taught and weight:
            raise ValueError(
                f"{name} is of {entry['of']}, which needs a teacher, so it cannot have "
                f"alone={weight}; a name that the data supplies and no teacher has a part in "
                "stands in data.own"
            )
        # an own loss that is not listed would have weight 1
        if weight or (own_losses and not taught):
            plain[name] = {**{k: v for k, v in entry.items() if k != "alone"}, "weight": weight}
    if not own_losses and not any(trains(name) for name in plain):
        unknown = next(iter(unmarked(losses, teachers, own).values()), "")
        hint = (
            f" ({unknown!r} counts as a teacher's; {did_you_mean(unknown, ('student', 'target'))})"
            if unknown
            else ""
        )
        raise ValueError(
            f"the losses {list(losses)} all need a teacher{hint}, so there is no control: add one "
            "that does not, with weight=0 if it must not pull when taught (it still trains the "
            "control)"
        )
    return plain


def unmarked(
    losses: Mapping[str, dict], teachers: Container[str], own: Container[str] = ()
) -> dict[str, str]:
    """``{loss: name}`` of the losses that :func:`control` leaves out for a name that belongs to
    none of the teachers.

    What a data set brings beside the target may be a teacher's, computed beforehand, and here may
    not. An entry that says ``alone`` is not among them.
    """

    def unknown(name: str) -> bool:
        is_teachers = _of_role(name, teachers) or _of_role(name, ("teacher",))
        return not (is_teachers or TensorName.parse(name).is_of_peers)

    candidates = {
        name: next(filter(unknown, taught_names(entry["of"], own, teachers)), None)
        for name, entry in losses.items()
        if "alone" not in entry
    }
    return {name: candidate for name, candidate in candidates.items() if candidate}


@dataclass(frozen=True)
class Arms:
    """What a list of stages compares, by role.

    Attributes:
        control: the student without a teacher; None: there is none.
        final: the stage that a run is about, whose student is exported, compared with the control
            and reported: the last ``taught`` one; without any, the last one of the student but the
            control.
        teachers, taught, joint, steps: the stages of these roles, in their order.
    """

    control: Stage | None
    final: Stage | None
    teachers: tuple[Stage, ...]
    taught: tuple[Stage, ...]
    joint: tuple[Stage, ...]
    steps: tuple[Stage, ...]

    @property
    def pair(self) -> tuple[Stage, ...]:
        """Control and final student, as far as they are there."""
        return tuple(stage for stage in (self.control, self.final) if stage is not None)

    @property
    def compared(self) -> tuple[Stage, ...]:
        """The students whose difference to the control means something."""
        return self.taught + self.joint


def arms(stages: Sequence[Stage]) -> Arms:
    """The arms of stages that have their roles: of a whole run, or of its finished ones.

    Everything that asks which stage counts, which are compared, or which are drawn asks this.
    """

    def of_role(role: str) -> tuple[Stage, ...]:
        return tuple(stage for stage in stages if stage.role == role)

    control, taught = of_role("control"), of_role("taught")
    students = [stage for stage in stages if stage.model == "student" and stage not in control]
    return Arms(
        control=next(iter(control), None),
        final=next(reversed(taught or students), None),
        teachers=of_role("teacher"),
        taught=taught,
        joint=of_role("joint"),
        steps=of_role("step"),
    )


def with_roles(stages: Sequence[Stage]) -> list[Stage]:
    """The stages, each with a role; one that a stage has already stays.

    The control says that it is one: another student without a teacher may have another budget. A
    model other than the student is a teacher, or a step if some teacher has pulled on it. Of the
    student, the last stage that some teacher has pulled on is ``taught``. Any other is a step if a
    later stage goes on with it or learns from it; else ``taught`` or ``joint``, as a teacher has
    pulled on it or not.

    Raises:
        ValueError: no such role; two controls; a control that is not the student's; a stage with
            the name of the control that is made where there is none, and with no role.
    """
    for stage in stages:
        if stage.role is not None and stage.role not in ROLES:
            raise ValueError(
                f"stage {stage.name!r}: there is no role {stage.role!r}; "
                f"{did_you_mean(stage.role, ROLES)}"
            )
        if stage.role is None and stage.name == ALONE:
            raise ValueError(
                f"the stage {ALONE!r} says no role: expected role='control', if the taught student "
                "is compared with it; else another name, for the control that is made"
            )
    final, led, used = _usual_final(stages), _led(stages), _used(stages)
    filled = [
        replace(stage, role=stage.role or _usual_role(stage, stage is final, led, used))
        for stage in stages
    ]
    controls = [stage for stage in filled if stage.role == "control"]
    if len(controls) > 1:
        names = " and ".join(repr(stage.name) for stage in controls)
        raise ValueError(f"expected one stage of the role 'control', got {names}")
    if controls and controls[0].model != "student":
        raise ValueError(
            f"the control {controls[0].name!r} trains {controls[0].model!r}: expected 'student'"
        )
    return filled


def _usual_role(stage: Stage, is_final: bool, led: Container[str], used: Container[str]) -> str:
    """The role of a stage that says none."""
    if stage.model != "student":
        return "step" if stage.name in led else "teacher"
    if stage.name in used and not (is_final and stage.name in led):
        return "step"
    return "taught" if stage.name in led else "joint"


def _usual_final(stages: Sequence[Stage]) -> Stage | None:
    """The student that counts where no role says it."""
    students = [s for s in stages if s.model == "student" and s.role in (None, "taught")]
    led = _led(stages)
    ends = [stage for stage in students if stage.name in led] or students
    return ends[-1] if ends else None


def _used(stages: Sequence[Stage]) -> set[str]:
    """The names of the stages that later ones go on with or learn from."""
    used: set[str] = set()
    for place, stage in enumerate(stages):
        before = stages[:place]
        used.update(_source(stage, before))
        names = [earlier.name for earlier in before]
        references = (stage_reference(source, names) for source in anchors_of(stage))
        used.update(reference[0] for reference in references if reference)
    return used


def anchors_of(stage: Stage) -> list[str]:
    """Where the weights of a stage's teachers come from, a route of anchors one by one."""
    origins = stage.teachers.values()
    routes = [[origin] if isinstance(origin, str | None) else origin for origin in origins]
    return [source for route in routes for source in route if source is not None]


def _led(stages: Sequence[Stage]) -> set[str]:
    """The stages whose student some teacher has pulled on, in them or in those that they go on
    with.
    """
    led: set[str] = set()
    for place, stage in enumerate(stages):
        if stage.taught or any(source in led for source in _source(stage, stages[:place])):
            led.add(stage.name)
    return led


def _source(stage: Stage, before: Sequence[Stage]) -> list[str]:
    """The name of the stage whose student this one goes on with, in a list; none where it is fresh
    or of a file.
    """
    if stage.student == "keep":
        return [s.name for s in before if s.model == stage.model][-1:]
    reference = stage_reference(stage.student, [s.name for s in before])
    return [reference[0]] if reference else []


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
            a loss with a weight and another ``alone``; or as :func:`with_roles`.
    """
    teacher_names = {*teachers, *(name for stage in stages for name in stage.teachers)}
    filled = []
    for stage in stages:
        entries = stage.losses
        _check_weights(stage)
        if not entries:
            entries = (
                dict(losses) if stage.teachers else control(losses, teacher_names, own, own_losses)
            )
        filled.append(replace(stage, own=own, losses=entries))
    stages = with_roles(filled)
    parts = arms(stages)
    if parts.control is not None:
        _check_control(parts.control, stages)
    final = parts.final
    if final is None or final.name not in _led(stages) or parts.control is not None:
        return stages
    if _source(final, stages[: stages.index(final)]):
        raise ValueError(
            f"stage {final.name!r} goes on with another stage's student, so its control must be in "
            "the list: a stage of role='control' with the steps of all of them"
        )
    budget = {
        key: getattr(final, key) for key in ("arguments", "optimizer", "schedule", "length", "data")
    }
    plain = control(final.losses, teacher_names, own, own_losses)
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
    led = _led(stages)
    for source in _source(alone, stages[: stages.index(alone)]):
        if source in led:
            return f"goes on with the student of {source!r}, on which a teacher has pulled"
    return ""


def _of_role(name: str, roles: Container[str]) -> bool:
    """Whether a name is of one of these roles: ``'<role>'``, ``'<role>.…'`` or
    ``'<part>.<role>.…'``.
    """
    parts = TensorName.parse(name)
    return parts.role in roles or parts.path.split(".")[0] in roles


def check_stages(stages: Sequence[Stage], models: Sequence[str]) -> None:
    """Every stage has a name of its own, and what it refers to exists and comes before it.

    Raises:
        ValueError: naming the stage, the reference, and the nearest right one.
    """
    for place, stage in enumerate(stages):
        before = {earlier.name: earlier for earlier in stages[:place]}
        _check_names(stage, before, models)
        for source in _sources(stage):
            _check_source(stage, source, before)
        if stage.student == "keep" and not any(s.model == stage.model for s in before.values()):
            raise ValueError(
                f"stage {stage.name!r} keeps its student, but no stage before it trains "
                f"{stage.model!r}; expected student='fresh'"
            )
        _check_optimizer_state(stage, before)


def _check_names(stage: Stage, before: Mapping[str, Stage], models: Sequence[str]) -> None:
    if stage.name in before:
        raise ValueError(f"two stages are called {stage.name!r}")
    if not stage.name.isidentifier():
        raise ValueError(
            f"a stage cannot be called {stage.name!r}: expected an identifier (it names files and "
            "results)"
        )
    if stage.model not in models:
        raise ValueError(
            f"stage {stage.name!r} trains the model {stage.model!r}; "
            f"{did_you_mean(stage.model, models)}"
        )


def _sources(stage: Stage) -> list[str]:
    """What the student and the teachers of a stage start from."""
    for name, origin in stage.teachers.items():
        if not isinstance(origin, str | None) and not list(origin):
            raise ValueError(f"stage {stage.name!r}: the route of {name!r} has no anchor")
    start = [] if stage.student in ("fresh", "keep") else [stage.student]
    return start + anchors_of(stage)


def _check_source(stage: Stage, source: str, before: Mapping[str, Stage]) -> None:
    """A source is a file, or a checkpoint that an earlier stage keeps."""
    reference = stage_reference(source, list(before))
    if reference is None:
        if source == OWN or "/" in source or source.endswith((".pth", ".pt", ".safetensors")):
            return
        raise ValueError(
            f"stage {stage.name!r} needs {source!r}, which is neither a file nor a stage before "
            f"it; {did_you_mean(source.split('.')[0], list(before))}"
        )
    name, which = reference
    keep = before[name].keep
    if which not in ("last", "best", *(f"epoch_{epoch}" for epoch in keep)):
        raise ValueError(
            f"stage {stage.name!r} needs {source!r}, but the stage {name!r} keeps the epochs "
            f"{list(keep)}: add it to its keep"
        )


def _check_optimizer_state(stage: Stage, before: Mapping[str, Stage]) -> None:
    if stage.optimizer_state not in ("fresh", "keep"):
        raise ValueError(
            f"stage {stage.name!r}: optimizer_state must be 'fresh' or 'keep', got "
            f"{stage.optimizer_state!r}"
        )
    if stage.optimizer_state == "fresh" or stage.student == "keep":
        return
    reference = stage_reference(stage.student, list(before))
    if reference is None or reference[1] != "last":
        raise ValueError(
            f"stage {stage.name!r} keeps an optimizer's state, so its student must be 'keep' or "
            f"the last weights of a stage, got student={stage.student!r}"
        )


def stage_reference(source: str, stages: Sequence[str]) -> tuple[str, str] | None:
    """``'teacher.best'`` -> ``('teacher', 'best')``, ``'teacher'`` -> ``('teacher', 'last')``,
    ``'teacher.10'`` -> epoch 10.

    None when the text is no reference to one of ``stages``.
    """
    name, _, which = source.partition(".")
    if name not in stages or not (which in ("", "last", "best") or which.isdigit()):
        return None
    return name, (which and (f"epoch_{which}" if which.isdigit() else which)) or "last"
