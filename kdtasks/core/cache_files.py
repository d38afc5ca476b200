"""The files of a cache of teacher outputs: what they hold, and whether they may be used.

``0.bin``, ``1.bin``, ... hold one name each, a plain little-endian array (views, samples, *shape);
``meta.json`` holds the key, the names, shapes, dtypes, sizes and checksums.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from kdtasks.core.files import check_own, sync_file

FORMAT = 2  # of the folder; another number is not read
DTYPES = ("float16", "float32", "bool", "uint8", "int8", "int16", "int32", "int64")


def row_numbers(index: Tensor, view: Tensor, samples: int, views: int) -> np.ndarray:
    """``view * samples + index``, (B,) int64, after a check of both."""
    if (
        index.ndim != 1
        or index.shape != view.shape
        or index.device.type != "cpu"
        or view.device.type != "cpu"
    ):
        raise ValueError(
            "index and view must be (B,) tensors on the CPU, got "
            f"{tuple(index.shape)} on {index.device} and {tuple(view.shape)} on {view.device}"
        )
    rows, turns = index.numpy(), view.numpy()
    try:
        return np.ravel_multi_index((turns, rows), (views, samples)).astype(np.int64, copy=False)
    # out of range, or floats
    except (ValueError, TypeError):
        for name, value, limit in (("index", rows, samples), ("view", turns, views)):
            wrong = value[(value < 0) | (value >= limit) | (value != value.astype(np.int64))]
            if len(wrong):
                raise ValueError(
                    f"{name} {wrong[0]} is not in this cache: it holds the integers 0 to "
                    f"{limit - 1}"
                ) from None
        raise ValueError(
            f"index and view must be integers, got {rows.dtype} and {turns.dtype}"
        ) from None


def write_meta(folder: Path, key: dict, samples: int, views: int, arrays: list[dict]) -> None:
    """Write ``meta.json`` to the disk, which makes the files of a folder a cache."""
    meta = {"format": FORMAT, "key": key, "samples": samples, "views": views, "arrays": arrays}
    with (folder / "meta.json").open("w", encoding="utf-8") as file:
        json.dump(meta, file, indent=2)
        sync_file(file)


def inspect_cache(folder: Path, key: dict) -> tuple[dict, str]:
    """``meta.json``, and why the cache is not to be used ('' if it is)."""
    wanted = _json(key)
    if not folder.is_dir():
        return {}, f"there is no folder {folder}"
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            return {}, f"{folder} is of format {meta['format']!r}, expected {FORMAT}"
        stored = _json(meta["key"])
        if stored != wanted:
            return {}, f"{folder} is of another key: " + "; ".join(
                f"{name} is {stored.get(name, 'absent'):.80}, expected "
                f"{wanted.get(name, 'absent'):.80}"
                for name in sorted(stored | wanted)
                if stored.get(name) != wanted.get(name)
            )
        for i, array in enumerate(meta["arrays"]):
            expected = array_bytes(meta["samples"], meta["views"], array)
            actual = (folder / f"{i}.bin").stat().st_size
            if not expected == array["bytes"] == actual > 0 or not isinstance(array["name"], str):
                return (
                    {},
                    f"{folder}/{i}.bin ({array['name']!r}) has {actual} bytes, expected {expected}",
                )
    except FileNotFoundError as e:
        return {}, f"{folder} is incomplete: it has no {Path(e.filename).name}"
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        return {}, f"{folder}/meta.json is damaged: {type(e).__name__}: {e}"
    return meta, ""


# files whose bytes are known to be right
_checked: set[tuple[int, int, int, int]] = set()


def check_files(folder: Path, meta: Mapping) -> None:
    """An error unless the files are this user's, and hold what was written; their bytes are read
    once a process.
    """
    for path in (folder, folder / "meta.json"):
        check_own(path)
    for i, array in enumerate(meta["arrays"]):
        path = folder / f"{i}.bin"
        check_own(path)
        with path.open("rb") as file:
            if (identity := _identity(file)) in _checked:
                continue
            if crc32_of(file) != array["crc32"]:
                raise RuntimeError(
                    f"{path} is damaged: its bytes do not have the checksum that was written with "
                    f"them; delete {folder}, and it is made again"
                )
        _checked.add(identity)


def note_checked(file: BinaryIO) -> None:
    """Its bytes need not be compared again in this process, which has just written them."""
    _checked.add(_identity(file))


def _identity(file: BinaryIO) -> tuple[int, int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def crc32_of(file: BinaryIO) -> int:
    """CRC-32 of a whole file, about 1 GB/s."""
    file.seek(0)
    checksum = 0
    while part := file.read(2**24):
        checksum = zlib.crc32(part, checksum)
    return checksum


def _json(key: dict) -> dict[str, str]:
    """Each value of a key as JSON text, to compare; tuples are lists there."""
    if not isinstance(key, dict) or not all(isinstance(name, str) for name in key):
        raise TypeError(f"key must be a dict with names as its keys, got {key!r:.80}")
    try:
        return {
            name: json.dumps(value, sort_keys=True, allow_nan=False) for name, value in key.items()
        }
    except TypeError as e:
        raise TypeError(f"key must hold JSON values only ({e}), got {key!r:.200}") from None


def array_bytes(samples: int, views: int, array: Mapping) -> int:
    """Bytes of one file."""
    if array["dtype"] not in DTYPES:
        raise ValueError(f"dtype {array['dtype']!r} is none of {', '.join(DTYPES)}")
    return samples * views * math.prod(array["shape"]) * np.dtype(array["dtype"]).itemsize


def little_endian(dtype: str) -> np.dtype:
    """The dtype as the files have it, whatever the machine's order of bytes."""
    return np.dtype(dtype).newbyteorder("<")
