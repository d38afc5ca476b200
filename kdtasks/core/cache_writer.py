"""Write the arrays of a cache of teacher outputs, batch by batch."""

import errno
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from kdtasks.core.cache_files import (
    DTYPES,
    array_bytes,
    crc32_of,
    little_endian,
    note_checked,
    row_numbers,
)
from kdtasks.core.files import DiskError, describe_room, sync_file

HALF_MAX = 65504.0  # the largest float16
# values converted to float16 at a time: 16 MiB of float32
CHUNK = 2**22


class ArrayWriter:
    """Writes ``0.bin``, ``1.bin``, ... batch by batch.

    Args:
        folder: where to.
        samples, views: how many there are.
        files: closes the files at the end.
    """

    def __init__(self, folder: Path, samples: int, views: int, files: ExitStack):
        self.folder, self.samples, self.views = folder, samples, views
        self.arrays: dict[str, dict] = {}
        self._stack = files
        self._files: dict[str, BinaryIO] = {}
        # the largest |x| of each name of floats
        self._peaks: dict[str, float] = {}
        self._written = bytearray(views * samples)

    def add(self, batch: Mapping, values: Mapping[str, Tensor]) -> None:
        """Write the rows of a batch to their places."""
        places = row_numbers(batch["index"], batch["view"], self.samples, self.views).tolist()
        self._check_places(places, batch)
        rows = {name: _storable(name, value, batch) for name, value in values.items()}
        kinds = {
            name: {"shape": list(value.shape[1:]), "dtype": value.dtype.name}
            for name, value in rows.items()
        }
        if not self._files:
            self._begin(kinds, sum(value[:1].nbytes for value in rows.values()))
        if kinds != self.arrays:
            raise ValueError(
                f"outputs changed their names, shapes or dtypes: first {self.arrays}, now {kinds}"
            )
        for name, value in rows.items():
            if value.dtype == np.float32:
                self._peaks[name] = max(self._peaks.get(name, 0.0), _peak(name, value, batch))
            self._write(self._files[name], places, value)

    def _check_places(self, places: list[int], batch: Mapping) -> None:
        for row, place in enumerate(places):
            if self._written[place]:
                raise ValueError(
                    f"{_pair(batch, row)} is given twice; batches must hold each (index, view) "
                    "exactly once"
                )
            self._written[place] = 1

    def _begin(self, kinds: dict[str, dict], row_bytes: int) -> None:
        if not kinds:
            raise ValueError("outputs returned an empty dict; there is nothing to keep")
        self.arrays = kinds
        _check_room(self.folder, row_bytes * self.samples * self.views)
        for i, name in enumerate(kinds):
            file = (self.folder / f"{i}.bin").open("w+b")
            self._files[name] = self._stack.enter_context(file)

    @staticmethod
    def _write(file: BinaryIO, places: list[int], value: np.ndarray) -> None:
        bytes_each = value[:1].nbytes
        for place, row in zip(places, value.astype(little_endian(value.dtype.name), copy=False)):
            file.seek(place * bytes_each)
            file.write(row.tobytes())

    def finish(self, half: bool) -> list[dict]:
        """The entries of ``meta.json``.

        Args:
            half: store floats as float16 where they fit.
        """
        missing = self._written.count(0)
        if missing:
            view, index = divmod(self._written.find(0), self.samples)
            raise ValueError(
                f"{missing} of {self.samples} x {self.views} (index, view) are missing, the first "
                f"is index {index}, view {view}; batches must hold each exactly once"
            )
        for name, file in self._files.items():
            array = self.arrays[name]
            if half and self._peaks.get(name, math.inf) <= HALF_MAX:
                _halve(file, self.samples * self.views * math.prod(array["shape"]))
                array["dtype"] = "float16"
            sync_file(file)
            array |= {
                "bytes": array_bytes(self.samples, self.views, array),
                "crc32": crc32_of(file),
            }
            note_checked(file)
        return [{"name": name, **array} for name, array in self.arrays.items()]


def _check_room(folder: Path, size: int) -> None:
    """Raise DiskError after the first batch, not after hours, if the disk is too small."""
    if shutil.disk_usage(folder).free < size:
        raise DiskError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: a cache in {str(folder.parent)!r} cannot be written: "
            f"{describe_room(folder, size)}",
        )


def _storable(name: str, value: Tensor, batch: Mapping) -> np.ndarray:
    """``value`` on the CPU, floats as float32; an error unless it has one row a sample, and
    something in each.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name!r} must be a tensor, got {type(value).__name__}; give its parts names of their "
            "own"
        )
    value = value.detach().cpu()
    if value.is_floating_point():
        value = value.float()
    if str(value.dtype).removeprefix("torch.") not in DTYPES:
        raise TypeError(
            f"{name!r} is {value.dtype}, which cannot be stored; expected floats or "
            f"{', '.join(DTYPES[2:])}"
        )
    rows = len(batch["index"])
    if value.shape[:1] != (rows,) or 0 in value.shape[1:]:
        raise ValueError(
            f"{name!r} must be ({rows}, ...), one row a sample and none of them empty, got "
            f"{tuple(value.shape)}"
        )
    return value.numpy()


def _peak(name: str, value: np.ndarray, batch: Mapping) -> float:
    """The largest |x|; an error that names the sample if it is not finite."""
    if not value.size:
        return 0.0
    peak = max(float(value.max()), -float(value.min()))
    # max and min of a NaN are NaN
    if not math.isfinite(peak):
        wrong = ~np.isfinite(value.reshape(len(value), -1))
        row = int(wrong.any(1).argmax())
        first = value.reshape(len(value), -1)[row, wrong[row].argmax()]
        raise ValueError(
            f"{name!r} of {_pair(batch, row)} is not finite: {int(wrong[row].sum())} of its "
            f"{wrong.shape[1]} values, the first is "
            f"{first}; a teacher that overflows in float16 may do well in bfloat16"
        )
    return peak


def _pair(batch: Mapping, row: int) -> str:
    return f"index {int(batch['index'][row])}, view {int(batch['view'][row])}"


def _halve(file: BinaryIO, count: int) -> None:
    """Turn ``count`` float32 into float16, in the file itself: the part written is always behind
    the part still to read.
    """
    for start in range(0, count, CHUNK):
        file.seek(4 * start)
        values = np.frombuffer(file.read(4 * min(CHUNK, count - start)), little_endian("float32"))
        file.seek(2 * start)
        file.write(values.astype(little_endian("float16")).tobytes())
    file.truncate(2 * count)
