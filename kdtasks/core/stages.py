"""Stages: who teaches whom, for how long, starting from what.

A method that changes the course of training is a list of these, not a trainer of its own. The
entries of ``losses`` are as in a config: ``{name: dict(type=…, of=…, weight=…, alone=…)}``.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from kdtasks.core.control import taught_names

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
            follows from it (:func:`kdtasks.core.arms.arms`). None: found from what the stage is
            (:func:`kdtasks.core.arms.with_roles`).
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


def stage_reference(source: str, stages: Sequence[str]) -> tuple[str, str] | None:
    """``'teacher.best'`` -> ``('teacher', 'best')``, ``'teacher'`` -> ``('teacher', 'last')``,
    ``'teacher.10'`` -> epoch 10.

    None when the text is no reference to one of ``stages``.
    """
    name, _, which = source.partition(".")
    if name not in stages or not (which in ("", "last", "best") or which.isdigit()):
        return None
    return name, (which and (f"epoch_{which}" if which.isdigit() else which)) or "last"


def as_route(origin: str | Sequence[str] | None) -> list[str | None]:
    """Where a teacher comes from, as its anchors one by one; most have one."""
    return [origin] if isinstance(origin, str | None) else list(origin)


def anchors_of(stage: Stage) -> list[str]:
    """Where the weights of a stage's teachers come from, a route of anchors one by one."""
    routes = map(as_route, stage.teachers.values())
    return [source for route in routes for source in route if source is not None]


def start_of(stage: Stage, before: Sequence[Stage]) -> str | None:
    """What the student of a stage starts from, a stage or a file; None: from fresh weights.

    Args:
        stage: which.
        before: the stages before it; of ``'keep'``, the last of its model.
    """
    if stage.student == "keep":
        return next((s.name for s in reversed(before) if s.model == stage.model), None)
    return None if stage.student == "fresh" else stage.student


def source_of(stage: Stage, before: Sequence[Stage]) -> str | None:
    """The name of the stage whose student this one goes on with; None: it is fresh, or of a file.

    Args: as of :func:`start_of`.
    """
    reference = stage_reference(start_of(stage, before) or "", [s.name for s in before])
    return reference and reference[0]
