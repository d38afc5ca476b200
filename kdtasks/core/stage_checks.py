"""What a list of stages refers to is there."""

from collections.abc import Mapping, Sequence

from kdtasks.core.names import did_you_mean
from kdtasks.core.stages import OWN, Stage, anchors_of, stage_reference, start_of


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
        if stage.student == "keep" and start_of(stage, stages[:place]) is None:
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
