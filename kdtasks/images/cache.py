"""Arrays kept in a file, with a checksum each: that of the zip archive that NumPy's ``.npz`` is."""

import warnings
from pathlib import Path

import numpy as np

from kdtasks.core.files import check_own, write_atomically


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays that :func:`save_arrays` kept; None if there is no such file.

    Raises:
        PermissionError: the file is a link, or somebody else's.
        RuntimeError: its bytes are not those that were written.
    """
    if not check_own(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            # reading to the end compares the checksum
            return {name: archive[name] for name in archive.files}
    # damaged bytes raise whatever they happen to
    except Exception as error:
        raise RuntimeError(
            f"the cache {path} is damaged ({error}): delete it, and it is made again"
        ) from error


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Keeps ``arrays``; where that is not possible, as on a full disk, a warning says why, and
    nothing is left.
    """
    size = sum(array.nbytes for array in arrays.values())
    try:
        write_atomically(path, lambda temporary: _write(temporary, arrays), size)
    except OSError as error:
        warnings.warn(
            f"the cache {path} was not written, the images are decoded again next time: "
            f"{error.strerror or error}",
            stacklevel=4,
        )


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    # np.savez would add .npz to the name
    with path.open("wb") as file:
        np.savez(file, **arrays)
