"""Reading a config, and refusing what it cannot mean."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdtasks.core.names import did_you_mean
from kdtasks.engine import builder, data_sets
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.config_files import library_of

# Every key of a config, what it means, and its default. There are no others.
KEYS = {
    "task": ("dotted path of the task's trainer module", None),
    "student": ("the model that learns", None),
    "teacher": (
        "the model that teaches; with `checkpoint`, a file or 'own' (its type brings its "
        "weights), it is not trained",
        None,
    ),
    "teachers": ("several teachers by name, instead of `teacher`; each as that", None),
    "models": ("further models by name, for stages that train them (assistants)", {}),
    "control": (
        'arguments of the student that differ in the stage "alone", where its own losses '
        "need others",
        {},
    ),
    "peers": ("models that learn beside the student", []),
    "distiller": ("a subclass of Distiller", {"type": "kdtasks.core.Distiller"}),
    "losses": ("name=dict(type, its arguments, of, weight, alone)", None),
    "stages": (
        "a list of stages, or dict(type=…) of a function that makes one of the config; left "
        "out: teacher (without "
        "checkpoint), alone, distilled",
        None,
    ),
    "teacher_training": (
        "optimizer, schedule, length, data of the stage that trains a teacher, where they differ",
        {},
    ),
    "data": ("train, test, batch_size …", None),
    "optimizer": ("a torch optimizer", None),
    "schedule": ("one mmengine parameter scheduler or a list; epochs unless by_epoch=False", []),
    "length": ("epochs, or dict(iterations=n)", None),
    "val_interval": (
        "epochs, or dict(iterations=n), between evaluations; the end is always evaluated",
        1,
    ),
    "checkpoint_interval": ("epochs, or dict(iterations=n), between checkpoints to resume from", 1),
    "log_interval": ("iterations between reads of the losses", 50),
    "amp": ("None, 'bfloat16' or 'float16' (float16: CUDA only)", None),
    "accumulate": ("batches whose gradients are summed (as a mean) before a step", 1),
    "clip_grad": ("None, or the greatest gradient norm, of the student and of each peer", None),
    "ema": (
        "None, or the decay of the student's moving average, which is then evaluated and exported",
        None,
    ),
    "compile": ("False, True, or arguments of torch.compile", False),
    "channels_last": ("whether images and convolutions are laid out channels last", False),
    "sync_bn": ("whether BatchNorm statistics are shared between processes", False),
    "cache": (
        "None, or dict(views=k): teacher outputs kept for k fixed views of each sample",
        None,
    ),
    "threads": ("CPU threads; None: torch's choice", None),
    "tensorboard": ("whether to write TensorBoard files", False),
    "custom_hooks": ("mmengine hooks", []),
}
NEEDED = ("task", "student", "losses", "data", "optimizer", "length")
DATA_KEYS = {
    "train": ("dict(type=…) of the training data, a class or a function", None),
    "test": ("dict(type=…) of the test data", None),
    "batch_size": ("labelled samples in a batch, of all processes together", 64),
    "test_batch_size": ("samples in a batch of an evaluation", 256),
    "unlabelled_per_batch": (
        "unlabelled samples (target -100) that a batch has beside the "
        "labelled ones, where a teacher is",
        0,
    ),
    "per_class": ("None, or how many samples of each of its classes a batch has", None),
    "iterations_per_epoch": (
        "None: as many as the data fills; or how many batches count as an epoch",
        None,
    ),
    "workers": ("processes that read samples; 0: the training process does", 0),
    "collate": (
        "dotted path of a function from a list of samples to a batch; None: the data's "
        "own, or stacking",
        None,
    ),
    "own": (
        "names beside the target that the data supplies and no teacher has a part in: losses "
        "of them are also the "
        "control's",
        (),
    ),
    "unknown_classes": (
        "'error', or 'drop': what a test set has of classes that the training data "
        "lacks is left out, with a "
        "warning that counts it",
        "error",
    ),
    "skip_bad": (
        "whether to go on without the samples that cannot be read, which are noted, "
        "instead of stopping",
        False,
    ),
    "timeout": (
        "seconds that the workers may take for a batch before the run ends with an error; "
        "0: no limit",
        600,
    ),
}
# beside `type` and the model's arguments
MODEL_KEYS = {"checkpoint": "a file with the weights that the model starts from"}
TEACHER_KEYS = {
    "checkpoint": "a file with the teacher's weights, or 'own' (its type brings them): it is not "
    "trained then",
    "precision": "of its forward: 'float32', 'bfloat16' or 'float16'; None: as the student's",
    "input_size": "the side, or (height, width), to which its inputs are resized",
    "mean": "what its inputs are normalised with, where the student's differ; the next three go "
    "with it",
    "std": "as `mean`",
    "student_mean": "what the student's inputs, which the data gives, are normalised with",
    "student_std": "as `student_mean`",
}
LOSS_KEYS = {
    "of": "the names of the tensors that it is called with, in order",
    "weight": "a number, or dict(type=…) of a schedule; 1 where left out",
    "alone": "its weight in the control; left out: 1, or 0 if it needs a teacher",
}
STAGE_KEYS = {
    "name": "identifier in results, file names and stage references",
    "model": "which model learns: 'student' (also where left out), the name of a teacher, or a key "
    "of `models`",
    "arguments": "of the model's type, in the place of the config's, in this stage and where it "
    "later teaches",
    "student": "what the model starts from: 'fresh', 'keep' (the last stage that trained it), "
    "'<stage>', '<stage>.last', "
    "'<stage>.best', '<stage>.<epoch>', or a file",
    "teachers": "{name: its weights}: a file, a stage as above, 'own', None (its `checkpoint`), or "
    "a list of these, one after "
    "the other",
    "losses": "as at the top; those of this stage",
    "train": "patterns of the parameters that learn: 'student', 'losses', 'student.layer3.*'",
    "optimizer": "instead of the config's",
    "schedule": "instead of the config's",
    "length": "instead of the config's",
    "data": "keys of `data` that differ",
    "optimizer_state": "'fresh', or 'keep': the momentum of the stage that the student comes from "
    "goes on",
    "keep": "epochs whose checkpoints are kept, for stages that start from them",
    "role": "what it is for: 'teacher', 'control', 'taught', 'joint' or 'step'; left out: found from "
    "what the stage is",
}
TRAINING_KEYS = ("optimizer", "schedule", "length", "data")
# to which --cfg-options may add an entry
LISTS = ("custom_hooks", "schedule", "peers")


# folders that a config of this process may import from; config.py notes them
IMPORT_FROM: dict[str, None] = {}


def load(path: str | Path, options: Mapping | None = None) -> dict:
    """A config file with its bases and ``--cfg-options``, checked, its defaults filled in.

    The config's folder and the current one can be imported from, for losses and models of your own.

    Raises:
        FileNotFoundError: no such file, or a base of it.
        ConfigError: a key, argument or name that does not exist.
    """
    from mmengine.config import Config  # slow to import; a loss must not pay for it

    path = Path(path)
    if not path.is_file():
        known = [str(p) for p in Path("configs").rglob("*.py")]
        raise FileNotFoundError(f"no config {str(path)!r}; {did_you_mean(str(path), known)}")
    library = library_of(path)
    if library:
        raise ConfigError(
            f"{str(path)!r} builds on a config of {library}, so it is for {library}'s own tools: "
            f"its first lines say how to run it; expected a config with 'task' and 'student'"
        )
    try:
        config = Config.fromfile(path).to_dict()
    except Exception as error:
        raise ConfigError(
            f"{str(path)!r} cannot be read as a config: {type(error).__name__}: {error}"
        ) from error
    for folder in [*config.pop("_import_from", []), str(Path.cwd()), str(path.resolve().parent)]:
        IMPORT_FROM[folder] = None
        if folder not in sys.path:
            sys.path.insert(0, folder)
    for option, value in (options or {}).items():
        set_option(config, option, value)
    return complete(config)


def set_option(config: dict, option: str, value) -> None:
    """Put ``value`` at a dotted key such as ``'losses.loss_kd.weight'`` or ``'stages.0.length'``;
    it replaces what was there.

    Raises:
        ConfigError: the way to the key does not exist; the message names the nearest.
    """
    *way, last = option.split(".")
    place = config
    first = option.split(".")[0]
    if first not in KEYS:
        raise ConfigError(
            f"--cfg-options {option}: a config has no key {first!r}; {did_you_mean(first, KEYS)}"
        )
    for depth, key in enumerate(way):
        if isinstance(place, dict) and depth == 0 and place.get(key) is None:
            place[key] = [] if key in LISTS else {}
        if isinstance(place, list) and depth == 1 and first in LISTS and key == str(len(place)):
            place.append({})
        place = _step(place, key, option)
    if isinstance(place, list):
        _step(place, last, option)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(
            f"--cfg-options {option}: {'.'.join(way)} is {place!r}, which has no {last!r}"
        )


def _step(place, key: str, option: str):
    if isinstance(place, list) and key.isdigit() and int(key) < len(place):
        return place[int(key)]
    if isinstance(place, dict) and key in place:
        return place[key]
    known = (
        list(place)
        if isinstance(place, dict)
        else [str(i) for i in range(len(place))]
        if isinstance(place, list)
        else []
    )
    raise ConfigError(f"--cfg-options {option}: there is no {key!r}; {did_you_mean(key, known)}")


def complete(config: Mapping) -> dict:
    """The config with all defaults, every key and argument checked. Names that begin with '_' are
    the file's own.

    Raises:
        ConfigError: naming the key and the nearest right one.
    """
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    for key in config:
        if key not in KEYS:
            raise ConfigError(f"a config has no key {key!r}; {did_you_mean(key, KEYS)}")
    full = {key: config.get(key, default) for key, (_, default) in KEYS.items()}
    for key in NEEDED:
        if not full[key]:
            raise ConfigError(f"the config has no {key!r}: {KEYS[key][0]}")
    if full["teacher"] and full["teachers"]:
        raise ConfigError("a config has either 'teacher' or 'teachers', not both")
    full["teachers"] = full["teachers"] or ({"teacher": full["teacher"]} if full["teacher"] else {})
    full["teacher"] = None
    for name in full["models"]:
        if name in ("student", *full["teachers"]):
            raise ConfigError(f"models.{name}: the config has a model of that name already")
    full["data"] = _data(full["data"], "data")
    _check_numbers(full, "")
    _check(full)
    return full


def _data(data: Mapping, where: str) -> dict:
    for key in data:
        if key not in DATA_KEYS:
            raise ConfigError(f"{where} has no key {key!r}; {did_you_mean(key, DATA_KEYS)}")
    return {key: data.get(key, default) for key, (_, default) in DATA_KEYS.items()}


def _check(config: dict) -> None:
    builder.check(config["student"], "student", reserved=MODEL_KEYS)
    _want(
        isinstance(config["control"], Mapping),
        "control",
        "a dict of arguments of the student",
        config["control"],
    )
    builder.check({**config["student"], **config["control"]}, "control", reserved=MODEL_KEYS)
    for name, model in config["teachers"].items():
        builder.check(
            model, f"teachers.{name}" if name != "teacher" else "teacher", reserved=TEACHER_KEYS
        )
    for name, model in config["models"].items():
        builder.check(model, f"models.{name}", reserved=MODEL_KEYS)
    for k, model in enumerate(config["peers"]):
        builder.check(model, f"peers[{k}]", reserved=MODEL_KEYS)
    builder.check(
        config["distiller"],
        "distiller",
        supplied=("student", "teachers", "losses", "peers", "compile"),
    )
    check_losses(config["losses"], "losses")
    for key in ("train", "test"):
        if not config["data"][key]:
            raise ConfigError(f"the config has no data.{key}: dict(type=…) of the {key} data")
        builder.check(config["data"][key], f"data.{key}")
    data_sets.check_test(config["data"]["test"], "data.test")
    _want(
        config["data"]["unknown_classes"] in ("error", "drop"),
        "data.unknown_classes",
        "'error' or 'drop'",
        config["data"]["unknown_classes"],
    )
    builder.check(config["optimizer"], "optimizer", supplied=("params",))
    for key in config["teacher_training"]:
        if key not in TRAINING_KEYS:
            raise ConfigError(
                f"teacher_training has no key {key!r}; {did_you_mean(key, TRAINING_KEYS)}"
            )
    if isinstance(config["stages"], Mapping):
        builder.check(config["stages"], "stages", supplied=("config",))
    stages = stages_of(config)
    for k, stage in enumerate(stages):
        for key in stage:
            if key not in STAGE_KEYS:
                raise ConfigError(
                    f"stages[{k}] has no key {key!r}; {did_you_mean(key, STAGE_KEYS)}"
                )
        if "name" not in stage:
            raise ConfigError(f"stages[{k}] has no name")
        if stage.get("arguments") and stage.get("model", "student") == "student":
            builder.check(
                {**config["student"], **stage["arguments"]},
                f"stages[{k}].arguments",
                reserved=MODEL_KEYS,
            )
        check_losses(stage.get("losses", {}), f"stages[{k}].losses")
    for where, part in [
        ("", config),
        ("teacher_training.", config["teacher_training"]),
        *((f"stages[{k}].", stage) for k, stage in enumerate(stages)),
    ]:
        if part.get("length"):
            iterations(part["length"], 1, where + "length")
        if where and part.get("data"):
            _data(part["data"], where + "data")
            for key in ("train", "test"):
                if part["data"].get(key) and "type" in part["data"][key]:
                    builder.check(part["data"][key], f"{where}data.{key}")
            if part["data"].get("test"):
                data_sets.check_test(part["data"]["test"], f"{where}data.test")
        if where and part.get("optimizer") and "type" in part["optimizer"]:
            builder.check(part["optimizer"], where + "optimizer", supplied=("params",))
    for key in ("val_interval", "checkpoint_interval"):
        iterations(config[key], 1, key)
    for key in ("channels_last", "sync_bn", "tensorboard"):
        _want(isinstance(config[key], bool), key, "True or False", config[key])
    compiled, clip, threads = config["compile"], config["clip_grad"], config["threads"]
    _want(
        isinstance(compiled, bool | dict),
        "compile",
        "True, False or a dict of torch.compile's arguments",
        compiled,
    )
    _want(clip is None or (_number(clip) and clip > 0), "clip_grad", "None or a number > 0", clip)
    _want(threads is None or _count(threads, 1), "threads", "None or a whole number > 0", threads)
    for key, least in (
        ("batch_size", 1),
        ("test_batch_size", 1),
        ("workers", 0),
        ("unlabelled_per_batch", 0),
        ("timeout", 0),
    ):
        _want(
            _count(config["data"][key], least),
            f"data.{key}",
            f"a whole number >= {least}",
            config["data"][key],
        )
    own = config["data"]["own"]
    _want(
        isinstance(own, list | tuple) and all(isinstance(name, str) for name in own),
        "data.own",
        "a list of names",
        own,
    )
    per_class = config["data"]["per_class"]
    _want(
        per_class is None or _count(per_class, 1),
        "data.per_class",
        "None or a whole number > 0",
        per_class,
    )
    _want(
        isinstance(config["data"]["skip_bad"], bool),
        "data.skip_bad",
        "True or False",
        config["data"]["skip_bad"],
    )
    if config["cache"] and config["data"]["skip_bad"]:
        raise ConfigError(
            "cache and data.skip_bad do not go together: remove the images that "
            "cannot be read, or cache=None"
        )
    if config["amp"] not in (None, "bfloat16", "float16"):
        raise ConfigError(f"amp must be None, 'bfloat16' or 'float16', got {config['amp']!r}")
    if config["ema"] is not None and not 0 < config["ema"] < 1:
        raise ConfigError(
            f"ema is the decay of a moving average, between 0 and 1, got {config['ema']!r}"
        )
    if config["cache"] is not None and (
        set(config["cache"]) != {"views"} or not int(config["cache"]["views"]) > 0
    ):
        raise ConfigError(
            f"cache must be None or dict(views=k) with k > 0, got {config['cache']!r}"
        )
    for key in ("accumulate", "log_interval"):
        _want(_count(config[key], 1), key, "a whole number > 0", config[key])


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
                f"{where}.{name} must be a dict with 'of', the tensors it is called "
                f"with, got {entry!r}"
            )
        arguments = {k: v for k, v in entry.items() if k not in ("type", *LOSS_KEYS)}
        if "type" in entry:
            builder.check_bound(
                builder.resolve(entry["type"], f"{where}.{name}"), arguments, f"{where}.{name}"
            )
        elif arguments:
            unknown = next(iter(arguments))
            raise ConfigError(
                f"{where}.{name} has no type, so it takes the tensor {entry['of']!r} "
                "as it is; "
                f"it has no {unknown!r}; "
                f"{did_you_mean(unknown, ('type', *LOSS_KEYS))}"
            )
        if isinstance(entry.get("weight"), Mapping):
            builder.check(entry["weight"], f"{where}.{name}.weight")
        else:
            weight = entry.get("weight", 1)
            _want(
                _number(weight),
                f"{where}.{name}.weight",
                "a number or a dict(type=…) of a schedule",
                weight,
            )
        _want(
            _number(entry.get("alone", 1)), f"{where}.{name}.alone", "a number", entry.get("alone")
        )


def _check_numbers(value, where: str) -> None:
    """No NaN and no infinity anywhere: a learning rate of NaN would cost the whole run."""
    if isinstance(value, float):
        _want(math.isfinite(value), where, "a finite number", value)
    parts = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    for key, part in parts:
        _check_numbers(part, f"{where}.{key}" if where else f"{key}")


def _want(right: bool, where: str, what: str, value) -> None:
    if not right:
        raise ConfigError(f"{where} must be {what}, got {value!r}")


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(value, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def iterations(length, per_epoch: int, where: str) -> int:
    """``n`` epochs or ``dict(iterations=n)`` or ``dict(epochs=n)`` as a number of iterations.

    Raises:
        ConfigError: it is none of these, or not positive.
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
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"{where}: {unit} must be a whole number > 0, got {count!r}")
    return count * per_epoch if unit == "epochs" else count


def difference(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """The leaves in which two configs differ, as ``'losses.loss_kd.weight: 0.9 -> 0.5'``."""
    found = []
    for key in dict.fromkeys((*old, *new)):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += difference(a, b, f"{prefix}{key}.")
        elif jsonable(a) != jsonable(b):
            found.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return found


def jsonable(value):
    """The value with tuples as lists, as it comes back from JSON."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [jsonable(v) for v in value]
    return value
