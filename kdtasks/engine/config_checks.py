"""What is wrong in a config, found before anything is built, part by part."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kdtasks.core.names import did_you_mean
from kdtasks.core.terms import trains
from kdtasks.engine import builder, data_sets
from kdtasks.engine.config_keys import (
    CARD_KEYS,
    DATA_KEYS,
    FURTHER_MODEL_KEYS,
    LOSS_KEYS,
    MODEL_KEYS,
    OPTIMIZER_KEYS,
    STAGE_KEYS,
    TEACHER_KEYS,
    TRAINING_KEYS,
)
from kdtasks.engine.errors import ConfigError


def check_config(config: Mapping) -> None:
    """Every value of a complete config is what its key can mean, and every ``type`` is there.

    Raises:
        ConfigError: naming the key, and the nearest right one.
    """
    check_numbers(config, "")
    _check_models(config)
    check_losses(config["losses"], "losses")
    _check_data(config["data"])
    builder.check(config["optimizer"], "optimizer", ("params",), OPTIMIZER_KEYS)
    for key in config["teacher_training"]:
        if key not in TRAINING_KEYS:
            raise ConfigError(
                f"teacher_training has no key {key!r}; {did_you_mean(key, TRAINING_KEYS)}"
            )
    if isinstance(config["stages"], Mapping):
        builder.check(config["stages"], "stages", supplied=("config",))
    iterations(config["length"], 1, "length")
    _check_training(config["teacher_training"], "teacher_training.")
    for k, stage in enumerate(stages_of(config)):
        _check_stage(stage, f"stages[{k}]", config["student"])
    _check_values(config)


def _check_models(config: Mapping) -> None:
    student, control = config["student"], config["control"]
    _check_learners(config)
    builder.check(student, "student", reserved=MODEL_KEYS)
    _expect(isinstance(control, Mapping), "control", "a dict of arguments of the student", control)
    builder.check({**student, **control}, "control", reserved=MODEL_KEYS)
    for name, model in config["teachers"].items():
        where = "teacher" if name == "teacher" else f"teachers.{name}"
        builder.check(model, where, reserved=TEACHER_KEYS)
    for name, model in config["models"].items():
        builder.check(model, f"models.{name}", reserved=FURTHER_MODEL_KEYS)
        parts = model.get("parts", {})
        _expect(_is_parts(parts), f"models.{name}.parts", "a dict {path of a part: stage}", parts)
    for k, model in enumerate(config["peers"]):
        builder.check(model, f"peers[{k}]", reserved=MODEL_KEYS)
    supplied = ("student", "teachers", "losses", "peers", "compile")
    builder.check(config["distiller"], "distiller", supplied=supplied)


def _check_learners(config: Mapping) -> None:
    """What is to learn is no file that only computes."""
    peers = {f"peers[{k}]": spec for k, spec in enumerate(config["peers"])}
    models = {f"models.{name}": spec for name, spec in config["models"].items()}
    for where, spec in {"student": config["student"], **peers, **models}.items():
        name = spec.get("type") if isinstance(spec, Mapping) else None
        if str(name).startswith("onnx:"):
            raise ConfigError(
                f"{where}.type={name!r}: an ONNX file cannot learn; expected it as a teacher"
            )


def _check_data(data: Mapping) -> None:
    for key in ("train", "test"):
        if not data[key]:
            raise ConfigError(f"the config has no data.{key}: dict(type=…) of the {key} data")
        builder.check(data[key], f"data.{key}")
    data_sets.check_test(data["test"], "data.test")
    for key, (fits, what) in _DATA_VALUES.items():
        _expect(fits(data[key]), f"data.{key}", what, data[key])


def data_keys(data: Mapping, where: str) -> dict:
    """A data setting with its defaults.

    Raises:
        ConfigError: a key that there is not.
    """
    for key in data:
        if key not in DATA_KEYS:
            raise ConfigError(f"{where} has no key {key!r}; {did_you_mean(key, DATA_KEYS)}")
    return {key: data.get(key, default) for key, (_, default) in DATA_KEYS.items()}


def _check_stage(stage: Mapping, where: str, student: Mapping) -> None:
    for key in stage:
        if key not in STAGE_KEYS:
            raise ConfigError(f"{where} has no key {key!r}; {did_you_mean(key, STAGE_KEYS)}")
    if "name" not in stage:
        raise ConfigError(f"{where} has no name")
    if stage.get("arguments") and stage.get("model", "student") == "student":
        spec = {**student, **stage["arguments"]}
        builder.check(spec, f"{where}.arguments", reserved=MODEL_KEYS)
    check_losses(stage.get("losses", {}), f"{where}.losses")
    if stage.get("route"):
        _check_route(stage["route"], f"{where}.route")
    if stage.get("finish"):
        arguments = {**stage["finish"]}
        function = builder.resolve(arguments.pop("type", None), f"{where}.finish")
        builder.check_bound(function, arguments, f"{where}.finish")
    _check_training(stage, f"{where}.")


def _check_route(route: Mapping, where: str) -> None:
    builder.check(route, where, reserved=("held_out",))
    if not route.get("held_out"):
        raise ConfigError(
            f"{where} has no held_out: dict(type=…) of images that the student does not learn from"
        )
    builder.check(route["held_out"], f"{where}.held_out")


def _check_training(part: Mapping, where: str) -> None:
    """What a stage, or a teacher's training, changes of ``length``, ``data`` and ``optimizer``."""
    if part.get("length"):
        iterations(part["length"], 1, where + "length", least=0)
    data = part.get("data") or {}
    data_keys(data, where + "data")
    for key in ("train", "test"):
        if data.get(key) and "type" in data[key]:
            builder.check(data[key], f"{where}data.{key}")
    if data.get("test"):
        data_sets.check_test(data["test"], f"{where}data.test")
    if part.get("optimizer") and "type" in part["optimizer"]:
        builder.check(part["optimizer"], where + "optimizer", ("params",), OPTIMIZER_KEYS)


def _check_values(config: Mapping) -> None:
    for key, (fits, what) in _VALUES.items():
        _expect(fits(config[key]), key, what, config[key])
    for key in config["card"]:
        if key not in CARD_KEYS:
            raise ConfigError(f"card has no key {key!r}; {did_you_mean(key, CARD_KEYS)}")
    for key in ("val_interval", "checkpoint_interval"):
        iterations(config[key], 1, key)
    if config["diagnose"] and config["compile"]:
        raise ConfigError(
            "diagnose and compile do not go together: a compiled backward pass runs once; "
            "expected compile=False while you look at the shares"
        )
    if config["cache"] and config["data"]["skip_bad"]:
        raise ConfigError(
            "cache and data.skip_bad do not go together: remove the images that cannot be read, or "
            "cache=None"
        )


def stages_of(config: Mapping) -> list[dict]:
    """The stages that a config lists, or that its function makes; none where it has neither."""
    stages = config["stages"]
    return (
        builder.build(stages, "stages", config=config)
        if isinstance(stages, Mapping)
        else list(stages or [])
    )


def check_losses(losses: Mapping, where: str) -> None:
    """Each entry has an ``of`` and known arguments.

    Raises:
        ConfigError: naming the entry.
    """
    if not isinstance(losses, Mapping):
        raise ConfigError(f"{where} must be a dict of name=dict(type=…, of=…), got {losses!r}")
    for name, entry in losses.items():
        if not isinstance(entry, Mapping) or "of" not in entry:
            raise ConfigError(
                f"{where}.{name} must be a dict with 'of', the tensors it is called with, got "
                f"{entry!r}"
            )
        arguments = {k: v for k, v in entry.items() if k not in ("type", *LOSS_KEYS)}
        if "type" in entry:
            builder.check_bound(
                builder.resolve(entry["type"], f"{where}.{name}"), arguments, f"{where}.{name}"
            )
        elif arguments:
            unknown = next(iter(arguments))
            raise ConfigError(
                f"{where}.{name} has no type, so it takes the tensor {entry['of']!r} as it is; it "
                f"has no {unknown!r}; {did_you_mean(unknown, ('type', *LOSS_KEYS))}"
            )
        if entry.get("weight", 0) != 0 and not trains(name):
            raise ConfigError(
                f"{where}.{name} has a weight, but no 'loss' in its name, so it would only inform "
                f"and train nothing: call it loss_{name}, or leave the weight out"
            )
        if isinstance(entry.get("weight"), Mapping):
            builder.check(entry["weight"], f"{where}.{name}.weight")
        else:
            weight = entry.get("weight", 1)
            _expect(
                _number(weight),
                f"{where}.{name}.weight",
                "a number or a dict(type=…) of a schedule",
                weight,
            )
        _expect(
            _number(entry.get("alone", 1)), f"{where}.{name}.alone", "a number", entry.get("alone")
        )


def check_numbers(value: object, where: str) -> None:
    """No NaN and no infinity anywhere: a learning rate of NaN would cost the whole run.

    Raises:
        ConfigError: naming the key.
    """
    if isinstance(value, float):
        _expect(math.isfinite(value), where, "a finite number", value)
    for key, part in _parts(value):
        check_numbers(part, f"{where}.{key}" if where else f"{key}")


def _parts(value: object) -> Iterator[tuple[object, object]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def iterations(length: object, per_epoch: int, where: str, least: int = 1) -> int:
    """``n`` epochs or ``dict(iterations=n)`` or ``dict(epochs=n)`` as a number of iterations.

    Raises:
        ConfigError: it is none of these, or below ``least``.
    """
    if isinstance(length, int) and not isinstance(length, bool):
        length = {"epochs": length}
    if (
        not isinstance(length, Mapping)
        or len(length) != 1
        or next(iter(length)) not in ("epochs", "iterations")
    ):
        raise ConfigError(
            f"{where} must be a number of epochs or dict(iterations=n), got {length!r}"
        )
    ((unit, count),) = length.items()
    if not isinstance(count, int) or count < least:
        bound = "> 0" if least == 1 else f">= {least}"
        raise ConfigError(f"{where}: {unit} must be a whole number {bound}, got {count!r}")
    return count * per_epoch if unit == "epochs" else count


def _expect(right: bool, where: str, what: str, value: object) -> None:
    if not right:
        raise ConfigError(f"{where} must be {what}, got {value!r}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _whole(least: int, none: bool = False) -> tuple[Callable[[Any], bool], str]:
    """A whole number from ``least`` on, or None."""
    what = f"a whole number {'> 0' if least == 1 and none else f'>= {least}'}"
    return (
        lambda value: (none and value is None) or _count(value, least),
        f"None or {what}" if none else what,
    )


def _is_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _is_parts(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(text, str) for entry in value.items() for text in entry
    )


def _is_cache(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, Mapping) and set(value) == {"views"} and _count(value["views"], 1)


def _is_robustness(value: object) -> bool:
    if isinstance(value, bool):
        return True
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(spec, Mapping) and "type" in spec for spec in value.values())
    )


_FLAG = (lambda value: isinstance(value, bool), "True or False")
# what a value must be, and how an error says it
_DATA_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "unknown_classes": (lambda value: value in ("error", "drop"), "'error' or 'drop'"),
    "batch_size": _whole(1),
    "test_batch_size": _whole(1),
    "workers": _whole(0),
    "unlabelled_per_batch": _whole(0),
    "timeout": _whole(0),
    "own": (_is_names, "a list of names"),
    "per_class": _whole(1, none=True),
    "skip_bad": _FLAG,
}
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "channels_last": _FLAG,
    "sync_bn": _FLAG,
    "deployment": _FLAG,
    "robustness": (_is_robustness, "True, False or {name: dict(type=…)}"),
    "card": (
        lambda value: (
            isinstance(value, Mapping)
            and isinstance(value.get("licence"), str | None)
            and _is_names(value.get("datasets", []))
        ),
        "dict(licence=a text, datasets=[names])",
    ),
    "vis_backends": (lambda value: isinstance(value, list | tuple), "a list of dict(type=…)"),
    "teacher_card": _FLAG,
    "diagnose": _FLAG,
    "compile": (
        lambda value: isinstance(value, bool | dict),
        "True, False or a dict of torch.compile's arguments",
    ),
    "clip_grad": (
        lambda value: value is None or (_number(value) and value > 0),
        "None or a number > 0",
    ),
    "threads": _whole(1, none=True),
    "amp": (lambda value: value in (None, "bfloat16", "float16"), "None, 'bfloat16' or 'float16'"),
    "ema": (
        lambda value: value is None or (_number(value) and 0 < value < 1),
        "None or the decay of a moving average, between 0 and 1",
    ),
    "cache": (_is_cache, "None or dict(views=k) with k > 0"),
    "accumulate": (lambda value: _count(value, 1), "a whole number > 0"),
    "log_interval": (lambda value: _count(value, 1), "a whole number > 0"),
}
