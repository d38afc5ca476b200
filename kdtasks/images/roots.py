"""Where data lies: a path as it stands, or below the folder of all data sets."""

import os
from collections.abc import Sequence
from pathlib import Path


def data_root() -> Path:
    """The folder of all data sets: the environment variable KDTASKS_DATA, or else ``data`` in the
    current folder.
    """
    return Path(os.environ.get("KDTASKS_DATA") or "data")


def found_folder(roots: Sequence[str | Path], layout: str, parts: Sequence[str] = ("",)) -> Path:
    """The first of ``roots``, each as it stands or below :func:`data_root`, that has one of the
    folders ``parts``.
    """
    folders = list(
        dict.fromkeys(folder for root in roots for folder in (Path(root), data_root() / root))
    )
    for folder in folders:
        if any((folder / part).is_dir() for part in parts):
            return folder
    raise FileNotFoundError(
        f"no data set at {' nor at '.join(str(folder / parts[0]) for folder in folders)}. Set the "
        f"environment variable KDTASKS_DATA to the folder that holds it, or pass root=<folder>. "
        f"Expected layout: {layout}"
    )


def under_root(path: str | Path) -> Path:
    """``path`` as it stands, if something lies there; or else the same below :func:`data_root`."""
    return Path(path) if Path(path).exists() else data_root() / path
