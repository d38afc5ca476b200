"""The stages of a run by dark experience replay:
``stages=dict(type='kdtasks.incremental.der_stages.dark_replay_stages')`` of a config.
"""

from collections.abc import Mapping

from kdtasks.core.control import control_losses
from kdtasks.core.names import as_names
from kdtasks.core.stages import ALONE, DISTILLED
from kdtasks.incremental.der_distiller import DRAWS, OWN_NAMES
from kdtasks.incremental.stages import (
    check_softmax,
    end_role,
    experience_settings,
    joint_stage,
    sizes_of,
)


def dark_replay_stages(
    config: Mapping, first: Mapping | None = None, joint: bool = True, ahead: bool = True
) -> list[dict]:
    """Experience by experience, each with the memory that the one before has left: "alone", with
    the losses that are of no stored logits, and the taught student.

    The memory works from the second step of the first experience on, so the two arms differ from
    there: ``alone1, alone2 … alone``, then ``joint``, then ``taught1, taught2 … distilled``. Both
    keep the same samples.

    Args:
        config: given by the engine; ``student`` has ``sizes``, ``data.train`` and ``data.test`` are
            :func:`kdtasks.incremental.data.experiences`, without exemplars, and the distiller is a
            :class:`~kdtasks.incremental.DERDistiller`.
        first: settings of the first experience that differ from the others'.
        joint: whether there is a stage ``joint``: fresh weights, the labelled samples of all
            experiences, no memory.
        ahead: whether the taught student's head has, in training, the columns of all classes from
            the start, as released: cross-entropy then keeps down those of classes that have not
            come, and the stored logits hold them there for old images when these classes come.
            False: columns come with their classes, and stored logits are compared where they have
            some. The control's come so in any case: with all from the start, replay by itself was
            worse in what was measured.

    Raises:
        ValueError: the student has no ``sizes``, or only one; there are exemplars beside the
            memory; a loss is a softmax over one class.
    """
    check_softmax(config["losses"], sizes_of(config))
    train = config["data"]["train"]
    memory = train.get("memory") or train.get("memory_per_class")
    if memory:
        raise ValueError(
            f"data.train keeps {memory} exemplars beside the distiller's memory: expected memory=0"
        )
    losses = {
        name: {key: value for key, value in entry.items() if key != "alone"}
        for name, entry in config["losses"].items()
    }
    plain = control_losses(config["losses"], {}, OWN_NAMES)
    stages = _arm(config, False, first or {}, False, plain)
    if joint:
        stages.append(joint_stage({**config, "losses": _without_draws(config["losses"])}))
    return [*stages, *_arm(config, True, first or {}, ahead, losses)]


def _arm(
    config: Mapping, with_teacher: bool, first: Mapping, ahead: bool, losses: Mapping
) -> list[dict]:
    """The stages of one arm."""
    prefix, last_name = ("taught", DISTILLED) if with_teacher else (ALONE, ALONE)
    stages: list[dict] = []
    sizes = sizes_of(config)
    for t in range(len(sizes)):
        is_last = t == len(sizes) - 1
        stage = {
            **experience_settings(config, t),
            **({} if t else first),
            "name": last_name if is_last else f"{prefix}{t + 1}",
            "role": end_role(is_last, with_teacher),
            "losses": losses,
        }
        if ahead and not is_last:
            stage["arguments"] = {**stage["arguments"], "ahead": list(sizes[t + 1 :])}
        if t:
            stage["student"] = stages[-1]["name"]
        stages.append(stage)
    return stages


def _without_draws(losses: Mapping[str, Mapping]) -> dict:
    return {
        name: entry
        for name, entry in losses.items()
        if not any(of.removeprefix("student.").startswith(DRAWS) for of in as_names(entry["of"]))
    }
