"""The stages of a config."""

from collections.abc import Collection, Mapping, Sequence

from kdtasks.core import Stage
from kdtasks.core.stage_checks import check_stages
from kdtasks.core.stage_lists import standard_stages, with_control
from kdtasks.engine.config_checks import stages_of
from kdtasks.engine.errors import ConfigError


def make_stages(config: Mapping, own: Collection[str]) -> list[Stage]:
    """The stages that a config lists, with their control; or else teacher, control and student.

    Args:
        config: a complete one.
        own: tensor names that are no teacher's, though they are neither the student's submodules
            nor the batch's common keys.

    Raises:
        ConfigError: a stage refers to what is not there, or a teacher has no weights.
    """
    teachers = {name: spec.get("checkpoint") for name, spec in config["teachers"].items()}
    own_losses = any(name.startswith("student.loss_") for name in own)
    parts = [config, config["teacher_training"], *stages_of(config)]
    data = [part["data"] for part in parts if part.get("data")]
    names = {*own, *(name for setting in data for name in setting.get("own") or ())}
    try:
        listed = [Stage(**stage) for stage in stages_of(config)]
        if listed:
            stages = with_control(listed, config["losses"], teachers, names, own_losses)
        else:
            stages = standard_stages(
                config["losses"], teachers, config["teacher_training"], names, own_losses
            )
        check_stages(stages, ["student", *config["teachers"], *config["models"]])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check_weights(stages, config)
    return stages


def _check_weights(stages: Sequence[Stage], config: Mapping) -> None:
    models = {"student": config["student"], **config["teachers"], **config["models"]}
    for stage in stages:
        if stage.optimizer_state == "keep" and config["ema"]:
            raise ConfigError(
                f"stage {stage.name!r} keeps an optimizer's state, which is that of the weights, "
                "but with ema a stage hands on their average: ema=None, or optimizer_state='fresh'"
            )
        for name, origin in stage.teachers.items():
            if origin is None and not models.get(name, {}).get("checkpoint"):
                raise ConfigError(
                    f"stage {stage.name!r}: the teacher {name!r} has no weights: expected a stage, "
                    f"a file, or a checkpoint of the model {name!r}"
                )
