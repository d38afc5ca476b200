"""Reading a config, and refusing what it cannot mean."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdtasks.core.names import did_you_mean
from kdtasks.core.stages import OWN
from kdtasks.engine.config_checks import check_config, data_keys
from kdtasks.engine.config_files import library_of
from kdtasks.engine.config_keys import KEYS, LISTS, NEEDED, TEACHER_KEYS
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.models import NamedModel, is_name

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
        paths = [str(p) for p in Path("configs").rglob("*.py")]
        raise FileNotFoundError(f"no config {str(path)!r}; {did_you_mean(str(path), paths)}")
    library = library_of(path)
    if library == "kdtasks":
        raise ConfigError(
            f"{str(path)!r}: a base 'kdtasks::…' is not found by its name; expected a path: "
            "'kdtasks copy NAME' copies a config of the package, with its bases, to be built on"
        )
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


def set_option(config: dict, option: str, value: Any) -> None:
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


def _step(place: Any, key: str, option: str) -> Any:
    if isinstance(place, list) and key.isdigit() and int(key) < len(place):
        return place[int(key)]
    if isinstance(place, dict) and key in place:
        return place[key]
    keys = list(place) if isinstance(place, dict) else []
    if isinstance(place, list):
        keys = [str(i) for i in range(len(place))]
    raise ConfigError(f"--cfg-options {option}: there is no {key!r}; {did_you_mean(key, keys)}")


def complete(config: Mapping) -> dict:
    """The config with all defaults, every key and argument checked. Names that begin with '_' are
    the file's own.

    Raises:
        ConfigError: naming the key and the nearest right one.
    """
    config = renewed({key: value for key, value in config.items() if not key.startswith("_")})
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
    full["data"] = data_keys(full["data"], "data")
    check_config(full)
    full["teachers"] = {name: _with_origin(spec) for name, spec in full["teachers"].items()}
    return full


def _with_origin(teacher: Mapping) -> dict:
    """A teacher whose name brings trained weights has them as its checkpoint."""
    arguments = {key: value for key, value in teacher.items() if key not in TEACHER_KEYS}
    name = arguments.pop("type")
    if is_name(name) and "checkpoint" not in teacher and NamedModel(name).is_trained(**arguments):
        return {**teacher, "checkpoint": OWN}
    return dict(teacher)


def renewed(config: Mapping) -> dict:
    """A config as an earlier version wrote it, in the keys of now."""
    former = dict(config)
    if former.pop("tensorboard", False):
        backends = [*former.get("vis_backends", []), {"type": "TensorboardVisBackend"}]
        former["vis_backends"] = backends
    return former


def difference(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """The leaves in which two configs differ, as ``'losses.loss_kd.weight: 0.9 -> 0.5'``."""
    lines = []
    for key in dict.fromkeys((*old, *new)):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{prefix}{key}.")
        elif jsonable(a) != jsonable(b):
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def jsonable(value: Any) -> Any:
    """The value with tuples as lists, as it comes back from JSON."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [jsonable(v) for v in value]
    return value
