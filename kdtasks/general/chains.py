"""Lists of stages that several papers share: the teacher first, then networks that teach the next.

For a config's ``stages=dict(type='kdtasks.general.<paper>.stages', …)``: they take the config as
the engine gives it, and return what could also be written there by hand.
"""

from collections.abc import Mapping

from kdtasks.core.names import did_you_mean
from kdtasks.core.stages import DISTILLED

Setting = Mapping[str, object]


def teacher_stages(config: Setting, **changes) -> list[dict]:
    """The stages that train the teachers which have no checkpoint.

    Args:
        config: given by the engine.
        changes: further keys of these stages.

    Raises:
        ValueError: the config has no ``teacher``.
    """
    if "teacher" not in config["teachers"]:
        raise ValueError(f"expected a teacher=dict(type=…), got {list(config['teachers'])}")
    return [
        {**config["teacher_training"], "name": name, "role": "teacher", "model": name, **changes}
        for name, spec in config["teachers"].items()
        if not spec.get("checkpoint")
    ]


def teacher_source(config: Setting) -> str | None:
    """Where a stage's ``teacher`` has its weights from: its own stage, or None, its checkpoint."""
    return None if config["teachers"]["teacher"].get("checkpoint") else "teacher"


def chain(config: Setting, hops: Mapping[str, Setting], last: Setting | None = None) -> list[dict]:
    """The teacher, then each of ``hops`` taught by the one before, then the student, ``distilled``.

    The control, "alone", is added by the engine: the student's budget without a teacher.

    Args:
        config: given by the engine.
        hops: ``{key of models: changes}``, in order. Changes are keys of a stage: ``length``,
            ``optimizer``, ``schedule``, ``data``, ``arguments``; and ``losses``, whose entries are
            changed key by key, ``dict(loss_kd=dict(temperature=2.0))``.
        last: the same of the student.

    Raises:
        ValueError: no such model or loss, or a model of other classes than the student's.
    """
    stages, before = teacher_stages(config), teacher_source(config)
    for name, changes in hops.items():
        if name not in config["models"]:
            raise ValueError(
                f"the config's models have no {name!r}; {did_you_mean(name, config['models'])}"
            )
        _check_classes(config, name)
        stages.append(
            {**_hop(config, before, changes), "name": name, "role": "step", "model": name}
        )
        before = name
    return [*stages, {**_hop(config, before, last or {}), "name": DISTILLED, "role": "taught"}]


def epochs_of(length: int | Mapping) -> int | None:
    """``n`` of a length ``n`` or ``dict(epochs=n)``; None: it is not in epochs."""
    return length.get("epochs") if isinstance(length, Mapping) else length


def total_length(config: Setting, stages: list[dict]) -> int | dict:
    """The length of several stages together.

    Raises:
        ValueError: some count in epochs and others in iterations.
    """
    lengths = [stage.get("length") or config["length"] for stage in stages]
    epochs = [epochs_of(length) for length in lengths]
    if None not in epochs:
        return sum(epochs)
    if all(isinstance(length, Mapping) and "iterations" in length for length in lengths):
        return {"iterations": sum(length["iterations"] for length in lengths)}
    raise ValueError(f"expected lengths all in epochs or all in iterations, got {lengths}")


def _hop(config: Setting, before: str | None, changes: Setting) -> dict:
    losses = {name: dict(entry) for name, entry in config["losses"].items()}
    for name, entry in changes.get("losses", {}).items():
        if name not in losses:
            raise ValueError(f"the config has no loss {name!r}; {did_you_mean(name, losses)}")
        losses[name] |= entry
    return {**changes, "teachers": {"teacher": before}, "losses": losses}


def _check_classes(config: Setting, name: str) -> None:
    num_classes, expected = (
        spec.get("num_classes") for spec in (config["models"][name], config["student"])
    )
    if None not in (num_classes, expected) and num_classes != expected:
        raise ValueError(
            f"models.{name} has num_classes={num_classes}, and the student {expected}: expected "
            "the same classes all along the chain"
        )
