"""Names of configs, and of the folders of their runs."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdtasks.engine.errors import ConfigError

LONGEST_OPTIONS = 60  # characters of a folder's name


def config_name(path: str | Path) -> str:
    """``configs/detection/default.py`` -> ``detection_default``: the folder is part of the name,
    unless it is the current one.

    It does not matter how the path is written: relative, absolute, with ``..`` or by a link to the
    folder.
    """
    folder = Path(path).parent.resolve()
    return (
        Path(path).stem
        if folder == Path.cwd() or folder.name in ("", "configs")
        else f"{folder.name}_{Path(path).stem}"
    )


def config_names(paths: Sequence[str | Path]) -> list[str]:
    """Different names of several configs: with as many folders as tell them apart.

    Raises:
        ConfigError: a config is given twice.
    """
    whole = [Path(path).parent.resolve() / Path(path).stem for path in paths]
    if len(set(whole)) < len(whole):
        raise ConfigError(f"a config is given twice: {' '.join(map(str, paths))}")
    names, folders = [config_name(path) for path in paths], 1
    while len(set(names)) < len(names) and folders < max(len(path.parts) for path in whole):
        folders += 1
        names = ["_".join(path.parts[1:][-1 - folders :]) for path in whole]
    return names


def folder_name(name: str, options: Mapping[str, object]) -> str:
    """A config's name and the options that it runs with, so that each has a folder of its own.

    ``('detection_default', {'length': 2})`` -> ``detection_default-length=2``. What is long, or no
    letter, digit or plain sign, is cut or replaced, and a hash of all options then tells such
    folders apart.
    """
    said = ",".join(f"{key}={value}" for key, value in sorted(options.items()))
    safe = re.sub(r"[^\w.,=+-]", "_", said, flags=re.ASCII)
    if safe != said or len(said) > LONGEST_OPTIONS:
        safe = f"{safe[:LONGEST_OPTIONS]}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    return f"{name}-{safe}" if said else name
