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

# weights that a model has from the start, as its `type` builds it
OWN = "own"
# what stands in front of a name, or is it
NO_TEACHERS = ("student", "target", "input", "index", "view", "labelled")


@dataclass
class Stage:
    """One run of training with one optimizer.

    Args:
        name: how the results, files and other stages call it.
        model: which model of the config learns: ``'student'``, ``'teacher'``, or a key of
            ``models``.
        student: what it starts from: ``'fresh'``; ``'keep'``, the last stage that trained this
            model; a stage (``'<stage>'``, ``'<stage>.last'``, ``'<stage>.best'``,
            ``'<stage>.<epoch>'``); or a file. After a stage, the data's order and random views go
            on with the epoch after its last one.
        teachers: ``{name: from}`` where from is a file, a stage as above, ``'own'``, the weights
            that its ``type`` brings, or None: the ``checkpoint`` of the model of that name. A list
            of them is a route of anchors, each of which teaches for an equal share of the stage.
        losses: the entries that pull in this stage.
        train: patterns (``fnmatch``) of the parameters that learn: ``'student'``, ``'losses'``,
            ``'student.layer3.*'``.
        optimizer, schedule, length, data: as at the top of a config, whose values they replace.
            Unlabelled samples are for stages with teachers, unless the stage's own data says
            ``unlabelled_per_batch``.
        optimizer_state: ``'fresh'``; or ``'keep'``: the momentum (or Adam's averages) of the stage
            that the student comes from goes on, while the learning rate starts anew.
        keep: epochs whose checkpoints are kept, for anchors.
        arguments: of the model's ``type``, in the place of the config's, in this stage and where it
            later teaches.
        own: further names that are no teacher's: the task or the data set supplies them; the run
            fills this in.
        taught: whether teachers pull: those of the stage, or what else than the student, its target
            or ``own`` a loss is of.
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
    own: Container[str] = ()

    @property
    def taught(self) -> bool:
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
        Stage(name, model=name, losses=plain, own=own, **(teacher_training or {}))
        for name, checkpoint in teachers.items()
        if checkpoint is None
    ]
    sources = {
        name: f"{name}.last" if checkpoint is None else checkpoint
        for name, checkpoint in teachers.items()
    }
    stages.append(Stage("alone", losses=plain, own=own))
    stages.append(
        Stage(
            "distilled",
            teachers=sources,
            losses={name: dict(entry) for name, entry in losses.items()},
            own=own,
        )
    )
    return stages


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
                f"{name} is of {entry['of']}, which needs a teacher, so it cannot "
                f"have alone={weight}; a name "
                "that the data supplies and no teacher has a part in stands in "
                "data.own"
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
            f"the losses {list(losses)} all need a teacher{hint}, so there is no "
            "control: add one that does not, "
            "with weight=0 if it must not pull when taught (it still trains the "
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

    found = {
        name: next(filter(unknown, taught_names(entry["of"], own, teachers)), None)
        for name, entry in losses.items()
        if "alone" not in entry
    }
    return {name: one for name, one in found.items() if one}


def final_stage(stages: Sequence[Stage]) -> Stage | None:
    """The stage that a run is about: whose student is exported, compared with "alone" and reported.

    It is ``distilled``; or else the last stage of the student in which teachers pull, or that goes
    on with such a one's student (a fine-tuning); or else the last one of the student but "alone".
    """
    students = [stage for stage in stages if stage.model == "student" and stage.name != "alone"]
    named = [stage for stage in students if stage.name == "distilled"]
    led = _led(stages)
    return (
        named or [stage for stage in students if stage.name in led][-1:] or students[-1:] or [None]
    )[0]


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
    """A list of stages in which untaught ones have losses of their own, and "alone" is there.

    A stage without teachers and without losses gets the control's. Where no stage is called "alone"
    and the last one is taught, "alone" comes before it: the same budget, from fresh weights,
    without teachers.

    Raises:
        ValueError: the last stage goes on with an earlier one's student, and there is no "alone"
            whose budget is that of all; or "alone" itself is taught.
    """
    known = {*teachers, *(name for stage in stages for name in stage.teachers)}
    stages = [
        replace(
            s,
            own=own,
            losses=s.losses
            or (dict(losses) if s.teachers else control(losses, known, own, own_losses)),
        )
        for s in stages
    ]
    _check_control(stages)
    final = final_stage(stages)
    if (
        final is None
        or final.name not in _led(stages)
        or any(stage.name == "alone" for stage in stages)
    ):
        return stages
    if _source(final, stages[: stages.index(final)]):
        raise ValueError(
            f"stage {final.name!r} goes on with another stage's student, so its "
            "control must be in the list: a "
            "stage called 'alone' with the steps of all of them"
        )
    budget = {
        key: getattr(final, key) for key in ("arguments", "optimizer", "schedule", "length", "data")
    }
    alone = Stage("alone", losses=control(final.losses, known, own, own_losses), own=own, **budget)
    where = stages.index(final)
    return [*stages[:where], alone, *stages[where:]]


def _check_control(stages: Sequence[Stage]) -> None:
    for place, alone in enumerate(stages):
        if alone.name != "alone":
            continue
        what = f"has the teachers {list(alone.teachers)}" if alone.teachers else ""
        for name, entry in alone.losses.items():
            taught = taught_names(entry["of"], alone.own)
            what = what or (
                f"has {name}, which is of {taught[0]!r} (data.own=[{taught[0]!r}], if "
                "no teacher has a part in it)"
                if taught
                else ""
            )
        led = [source for source in _source(alone, stages[:place]) if source in _led(stages)]
        what = what or (
            f"goes on with the student of {led[0]!r}, on which a teacher has pulled" if led else ""
        )
        if what:
            raise ValueError(
                f"the stage 'alone' is the control, which no teacher may have a part "
                f"in, but it {what}"
            )


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
    seen: list[str] = []
    for stage in stages:
        if stage.name in seen:
            raise ValueError(f"two stages are called {stage.name!r}")
        if not stage.name.isidentifier():
            raise ValueError(
                f"a stage cannot be called {stage.name!r}: expected an identifier (it "
                "names files and results)"
            )
        if stage.model not in models:
            raise ValueError(
                f"stage {stage.name!r} trains the model {stage.model!r}; "
                f"{did_you_mean(stage.model, models)}"
            )
        sources = [stage.student] if stage.student not in ("fresh", "keep") else []
        for name, origin in stage.teachers.items():
            route = [origin] if isinstance(origin, str | None) else list(origin)
            if not route:
                raise ValueError(f"stage {stage.name!r}: the route of {name!r} has no anchor")
            sources += [source for source in route if source is not None]
        for source in sources:
            is_file = (
                source == OWN or "/" in source or source.endswith((".pth", ".pt", ".safetensors"))
            )
            reference = stage_reference(source, seen)
            if reference is None and not is_file:
                raise ValueError(
                    f"stage {stage.name!r} needs {source!r}, which is neither a file "
                    "nor a stage before it; "
                    f"{did_you_mean(source.split('.')[0], seen)}"
                )
            keep = next(s.keep for s in stages if s.name == reference[0]) if reference else ()
            if reference and reference[1] not in (
                "last",
                "best",
                *(f"epoch_{epoch}" for epoch in keep),
            ):
                raise ValueError(
                    f"stage {stage.name!r} needs {source!r}, but the stage "
                    f"{reference[0]!r} keeps the epochs "
                    f"{list(keep)}: add it to its keep"
                )
        if stage.student == "keep" and not any(s.model == stage.model for s in stages[: len(seen)]):
            raise ValueError(
                f"stage {stage.name!r} keeps its student, but no stage before it "
                f"trains {stage.model!r}; "
                "expected student='fresh'"
            )
        if stage.optimizer_state not in ("fresh", "keep"):
            raise ValueError(
                f"stage {stage.name!r}: optimizer_state must be 'fresh' or 'keep', "
                f"got {stage.optimizer_state!r}"
            )
        reference = stage_reference(stage.student, seen)
        if (
            stage.optimizer_state == "keep"
            and stage.student != "keep"
            and (reference is None or reference[1] != "last")
        ):
            raise ValueError(
                f"stage {stage.name!r} keeps an optimizer's state, so its student "
                "must be 'keep' or the last "
                f"weights of a stage, got student={stage.student!r}"
            )
        seen.append(stage.name)


def stage_reference(source: str, stages: Sequence[str]) -> tuple[str, str] | None:
    """``'teacher.best'`` -> ``('teacher', 'best')``, ``'teacher'`` -> ``('teacher', 'last')``,
    ``'teacher.10'`` -> epoch 10.

    None when the text is no reference to one of ``stages``.
    """
    name, _, which = source.partition(".")
    if name not in stages or not (which in ("", "last", "best") or which.isdigit()):
        return None
    return name, (which and (f"epoch_{which}" if which.isdigit() else which)) or "last"
