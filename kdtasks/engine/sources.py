"""What a run takes from outside beside its data, files of weights and code of one's own, so that
what changes under the same name is noticed.
"""

import functools
import inspect
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import kdtasks
from kdtasks.core.weight_files import checksum
from kdtasks.engine import builder, checkpoint
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.notices import Notices
from kdtasks.engine.work_dir import WorkDir

Sources = dict[str, dict[str, str]]

# files of data are compared by what the samples are (kdtasks.engine.data_facts); those of the last
# three may be written
_NO_WEIGHTS = ("data", "held_out", "custom_hooks", "vis_backends", "card")
# what is installed: it has a version, or is the interpreter's
_INSTALLED = tuple(
    os.path.realpath(folder) + os.sep
    for folder in (
        *(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")),
        Path(kdtasks.__file__).parent,
    )
)


def sources_of(config: Mapping) -> Sources:
    """``{'files': {path: sum}, 'code': {module: sum}, 'versions': {package: version}}`` of a
    config, as they are now.

    Files are those that a text of models, losses and stages names (``checkpoint``,
    ``'onnx:<file>'``, an argument); code is the module of each ``type`` that is not installed,
    without those that it imports. Sums are sha256, 16 digits of it.
    """
    files = {text: _sum(path) for text in _texts(config, _NO_WEIGHTS) if (path := _file(text))}
    modules = {kind.__module__: kind for kind in map(_resolved, _texts(config)) if kind}
    code = {name: _code(name) for name in modules}
    return {
        "files": dict(sorted(files.items())),
        "code": {name: _sum(path) for name, path in sorted(code.items()) if path},
        "versions": {"kdtasks": kdtasks.__version__, "torch": str(torch.__version__)},
    }


def noted_sources(files: WorkDir) -> Sources:
    """What :func:`check_sources` has noted of a run; empty: it has begun before this was noted."""
    path = _path(files)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def check_sources(config: Mapping, files: WorkDir, notices: Notices) -> None:
    """Compare what a run takes from outside with what it was when the run began, and note it in
    ``stages/sources.json``.

    Raises:
        ConfigError: another file of weights.
    """
    noted, now = noted_sources(files), sources_of(config)
    if not noted:
        checkpoint.save_json(now, _path(files))
        return
    changed = _changed(noted, now, "files")
    if changed:
        raise ConfigError(
            f"{', '.join(map(repr, changed))}: not what it was when the run in "
            f"{str(files.path)!r} began. Put it back, or use another --work-dir: what has been "
            "trained has been started from, or taught by, the former"
        )
    for kind in ("code", "versions"):
        if changed := _changed(noted, now, kind):
            notices.warn(
                f"{', '.join(changed)}: not what it was when the run began, so what was trained "
                "before and what is trained now may not belong together"
            )


def _path(files: WorkDir) -> Path:
    return files.path / "stages" / "sources.json"


def _changed(noted: Sources, now: Sources, kind: str) -> list[str]:
    before, after = noted.get(kind, {}), now[kind]
    return [name for name in before if name in after and before[name] != after[name]]


def _texts(value: object, without: tuple[str, ...] = ()) -> Iterator[str]:
    """All texts in a config, and functions and classes by their dotted paths."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in without:
                yield from _texts(part, without)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part, without)
    elif hasattr(value, "__module__") and hasattr(value, "__qualname__"):
        named: Any = value
        yield f"{named.__module__}.{named.__qualname__}"


def _file(text: str) -> str | None:
    """The file that a text names."""
    for path in (text, text.removeprefix("onnx:")):
        try:
            if os.path.isfile(path):
                return path
        # a NUL in it
        except ValueError:
            return None
    return None


def _resolved(text: str) -> Callable | None:
    """The class or function at a dotted path of a module that is loaded already."""
    root = text.partition(".")[0]
    if "." not in text or root == "kdtasks" or root not in sys.modules or not _is_path(text):
        return None
    try:
        found = builder.resolve(text, "")
    except ConfigError:
        return None
    return found if inspect.isclass(found) or inspect.isfunction(found) else None


def _is_path(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _code(module: str) -> str | None:
    """The file of a module, unless it is installed."""
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is None or os.path.realpath(path).startswith(_INSTALLED):
        return None
    return path


def _sum(path: str) -> str:
    status = os.stat(path)
    return _sum_of(os.path.realpath(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sum_of(path: str, size: int, changed: int) -> str:
    return checksum(path)[:16]
