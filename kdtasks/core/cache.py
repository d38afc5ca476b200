"""Teacher outputs kept between epochs.

The teacher runs once over ``samples x views`` inputs; from then on a batch carries its outputs::

    key = {"teacher": model_hash(model), "data": "cifar100-train", "seed": 0, "views": 4,
           "names": ["teacher"]}
    cache = TeacherCache.open(folder, key)
    if cache is None:
        cache = TeacherCache.write(folder, key, samples, 4, batches, outputs)
    batch.update(cache.fetch(batch["index"], batch["view"], device))

A cache is a folder: ``0.bin``, ``1.bin``, ... hold one name each, a plain little-endian array
(views, samples, *shape); ``meta.json`` holds the key, the names, shapes, dtypes, sizes and
checksums; a process compares the bytes of a file with its checksum once, when it first opens the
cache. The folder is built under another name and renamed when it is complete, so it is never seen
half written.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from kdtasks.core.files import (
    DiskError,
    check_own,
    describe_room,
    disk_error,
    sync_file,
    sync_folder,
)

FORMAT = 2  # of the folder; another number is not read
HALF_MAX = 65504.0  # the largest float16
DTYPES = ("float16", "float32", "bool", "uint8", "int8", "int16", "int32", "int64")
# values converted to float16 at a time: 16 MiB of float32
CHUNK = 2**22


def model_hash(model: nn.Module, extra: str = "") -> str:
    """One hash over a model's structure and every bit of its weights, for the key of a cache.

    It covers the class and ``extra_repr`` (stride, slope, eps, ...) of each submodule, and name,
    dtype, shape and bytes of each parameter and buffer (those out of ``state_dict`` too). It does
    not depend on the device, the memory format, or the order in which submodules were registered.
    Code is not covered: give ``extra`` whatever else decides the outputs.

    Args:
        model: the network itself.
        extra: any text.

    Returns:
        64 hexadecimal digits (sha256).

    Raises:
        ValueError: ``state_dict()`` has no tensor, so all such models would look the same. A
            ``Teacher`` hides its network from it: pass ``teacher.model``, and the precision, input
            size and normalisation in ``extra``.
    """
    state = model.state_dict()
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"model_hash: {type(model).__name__} has no weights in its state_dict(); pass the "
            "network itself (teacher.model, for a Teacher)"
        )
    # the non-persistent ones
    state |= dict(model.named_buffers(remove_duplicate=False))
    digest = hashlib.sha256()

    def line(*parts: object) -> None:
        digest.update(json.dumps(parts).encode() + b"\n")

    line("extra", extra)
    for name, module in sorted(
        model.named_modules(remove_duplicate=False), key=lambda item: item[0]
    ):
        # an object's address differs from run to run
        described = re.sub(r" at 0x[0-9a-fA-F]+", "", module.extra_repr())
        line("module", name, type(module).__module__, type(module).__qualname__, described)
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor):
            line("tensor", name, str(value.dtype), list(value.shape))
            digest.update(
                value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
        # a module's get_extra_state()
        else:
            line("state", name, repr(value))
    return digest.hexdigest()


class TeacherCache:
    """Outputs of a teacher for each (index, view), by name. Made by :meth:`open` or :meth:`write`.

    Attributes:
        folder: where it lies.
        key: what it was made from, as JSON gives it back.
        samples, views: index < samples, view < views.
        shapes: {name: shape of one sample's output}.
        dtypes: {name: torch dtype of the stored values, and of what :meth:`fetch` returns}.
        device: where :meth:`fetch` puts its tensors; the CPU until :meth:`to`.
    """

    def __init__(self, folder: Path, meta: dict):
        self.folder, self.key = folder, meta["key"]
        self.samples, self.views = meta["samples"], meta["views"]
        self.shapes = {array["name"]: tuple(array["shape"]) for array in meta["arrays"]}
        self.dtypes = {array["name"]: getattr(torch, array["dtype"]) for array in meta["arrays"]}
        self.device = torch.device("cpu")
        self._mapped = {
            array["name"]: np.asarray(
                np.memmap(
                    folder / f"{i}.bin",
                    _little(array["dtype"]),
                    mode="r",
                    shape=(self.views * self.samples, *array["shape"]),
                )
            )
            # (views * samples, *shape), read-only
            for i, array in enumerate(meta["arrays"])
        }
        self._resident: dict[str, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """What :meth:`fetch` gives, in the order of the files."""
        return tuple(self.shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of all values, as they lie on disk."""
        return sum(array.nbytes for array in self._mapped.values())

    @classmethod
    def open(cls, folder: str | Path, key: dict) -> "TeacherCache | None":
        """The cache in ``folder`` if it is complete and of an equal ``key``, else None
        (:meth:`difference` says why).

        Raises:
            TypeError, ValueError: ``key`` is not a dict of JSON values.
            PermissionError: a file in it is a link, or it is somebody else's.
            RuntimeError: a file's bytes are not those that were written.
        """
        meta, reason = _inspect(Path(folder), key)
        if reason:
            return None
        folder = Path(folder).resolve()
        try:
            _check_files(folder, meta)
            return cls(folder, meta)
        # replaced by another process at this moment
        except FileNotFoundError:
            return None

    @staticmethod
    def difference(folder: str | Path, key: dict) -> str:
        """Why :meth:`open` would not use ``folder``, in one line; '' if it would."""
        return _inspect(Path(folder), key)[1]

    @classmethod
    def write(
        cls,
        folder: str | Path,
        key: dict,
        samples: int,
        views: int,
        batches: Iterable[Mapping],
        outputs: Callable[[Mapping], Mapping[str, Tensor]],
        half: bool = True,
    ) -> "TeacherCache":
        """Run ``outputs`` over ``batches`` and keep what it returns; a usable cache in ``folder``
        is returned as it is.

        Float outputs are stored as float16 if every value of their name is at most 65504 in size,
        else as float32 (bfloat16 and float64 become float32 too). float16 keeps 11 bits: for |x| >=
        6.1e-5 the relative error is at most 2**-11 (0.05 %); below, the error is at most 2**-25
        (3e-8), and |x| <= 3e-8 becomes 0. That is harmless for logits and features, but not for
        probabilities whose logarithm is taken: ``half=False`` keeps float32 (put it in the key if
        it varies). Integers and bool stay as they are.

        No more than a batch is ever held in memory. The disk needs room for float32, beside an
        older cache in ``folder``, which is replaced once the new one stands. Two processes that
        write the same cache do no harm: the later one uses the earlier one's. With several ranks,
        let rank 0 write while the others wait at a barrier and then open it: that is the caller's
        job. A process killed in the middle leaves ``.<folder>.<hex>.tmp`` beside ``folder``; it is
        never read.

        Args:
            folder: made here, parents too; one that exists may hold nothing but an old or broken
                cache.
            key: JSON values that the outputs depend on: hash of the teacher, fingerprint of the
                data, seed, views, names, ...
            samples, views: how many there are.
            batches: dicts with CPU integer tensors ``index`` (B,) and ``view`` (B,), and what
                ``outputs`` needs; all of them together hold every (index, view) exactly once, in
                any order.
            outputs: ``batch -> {name: (B, *shape) tensor}`` on any device, the same names and
                shapes each time. The caller opens ``no_grad`` and puts the teacher in eval.
            half: False: never float16.

        Raises:
            ValueError: a pair is missing, out of range or given twice; names, shapes or dtypes
                change, or do not fit the batch; a value is NaN or infinite (in float32);
                ``samples`` or ``views`` is below 1, or not what the usable cache in ``folder`` has.
            TypeError: an output is no tensor, or of a dtype that cannot be stored; ``key`` is not
                JSON.
            FileExistsError: ``folder`` holds other files; none is touched.
            OSError: the disk is full (said after the first batch, where it is so then), or cannot
                be written.
            PermissionError, RuntimeError: see :meth:`open`.
            After an error or an interrupt ``folder`` is as it was before.
        """
        folder = Path(folder).resolve()
        cache = cls.open(folder, key)
        if cache is not None:
            if (cache.samples, cache.views) != (samples, views):
                raise ValueError(
                    f"{folder} has this key, but {cache.samples} samples and "
                    f"{cache.views} views, not {samples} and "
                    f"{views}: these numbers belong in the key"
                )
            return cache
        if samples < 1 or views < 1:
            raise ValueError(f"samples and views must be at least 1, got {samples} and {views}")
        _refuse_other_files(folder)
        built = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        try:
            built.mkdir(parents=True)
            with ExitStack() as files:
                writer = _ArrayWriter(built, samples, views, files)
                for batch in batches:
                    writer.add(batch, outputs(batch))
                arrays = writer.finish(half)
            _write_meta(built, key, samples, views, arrays)
            sync_folder(built)
            return _publish(built, folder, key)
        except OSError as error:
            explained = disk_error(error, folder)
            if explained is None:
                raise
            raise explained from error
        finally:
            # gone already, unless something went wrong
            shutil.rmtree(built, ignore_errors=True)

    def to(self, device: torch.device | str, limit: int = 2**30) -> "TeacherCache":
        """Let :meth:`fetch` return tensors on ``device``, and keep there what fits in ``limit``
        bytes; in place, as a module's.

        The smallest names come first. The others stay memory-mapped: their rows are read from disk
        (from the page cache, as far as memory goes) and copied. ``to('cpu')`` keeps a copy in this
        process's memory; ``limit=0`` frees all.

        Args:
            device: of the student.
            limit: bytes in all; 1 GiB by default (CIFAR-100: 10 MB a view; ImageNet-1k logits: 2.6
                GB a view).
        """
        # 'cuda' becomes 'cuda:0'
        self.device = torch.empty(0, device=device).device
        self._resident = {}
        for name, array in sorted(self._mapped.items(), key=lambda item: item[1].nbytes):
            limit -= array.nbytes
            if limit < 0:
                break
            self._resident[name] = torch.from_numpy(np.array(array)).to(self.device)
        return self

    def fetch(
        self, index: Tensor, view: Tensor, device: torch.device | str | None = None
    ) -> dict[str, Tensor]:
        """The outputs for each (index, view), in their order; a row may be asked for more than
        once.

        Nothing here waits for a GPU: what has to be copied to it is copied asynchronously.

        Args:
            index, view: (B,) integers on the CPU.
            device: of the result; None: ``self.device``.

        Returns:
            {name: (B, *shape)} in the stored dtype (a loss raises float16 to float32 itself). The
            tensors are the caller's own.

        Raises:
            ValueError: wrong shapes, not on the CPU, or out of range.
        """
        flat = _flat(index, view, self.samples, self.views)
        device = self.device if device is None else torch.device(device)
        rows = torch.from_numpy(flat)
        if self._resident:
            rows = rows.to(self.device, non_blocking=self.device.type != "cpu")
        fetched = {}
        for name, array in self._mapped.items():
            if name in self._resident:
                value = self._resident[name].index_select(0, rows)
            else:
                value = torch.empty(
                    (len(flat), *array.shape[1:]),
                    dtype=self.dtypes[name],
                    pin_memory=device.type == "cuda",
                )
                # in range already; 'raise' would copy twice
                np.take(array, flat, axis=0, out=value.numpy(), mode="clip")
            # to the CPU it must wait: nobody else would
            fetched[name] = value.to(device, non_blocking=device.type != "cpu")
        return fetched


# --------------------------------------------------------------------------------------------- rows


def _flat(index: Tensor, view: Tensor, samples: int, views: int) -> np.ndarray:
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


# ------------------------------------------------------------------------------------------ writing


class _ArrayWriter:
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
        places = _flat(batch["index"], batch["view"], self.samples, self.views).tolist()
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
        for place, row in zip(places, value.astype(_little(value.dtype.name), copy=False)):
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
            array |= {"bytes": _size(self.samples, self.views, array), "crc32": _checksum(file)}
            _checked.add(_identity(file))
        return [{"name": name, **array} for name, array in self.arrays.items()]


def _write_meta(folder: Path, key: dict, samples: int, views: int, arrays: list[dict]) -> None:
    meta = {"format": FORMAT, "key": key, "samples": samples, "views": views, "arrays": arrays}
    with (folder / "meta.json").open("w", encoding="utf-8") as file:
        json.dump(meta, file, indent=2)
        sync_file(file)


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
        values = np.frombuffer(file.read(4 * min(CHUNK, count - start)), _little("float32"))
        file.seek(2 * start)
        file.write(values.astype(_little("float16")).tobytes())
    file.truncate(2 * count)


def _publish(built: Path, folder: Path, key: dict) -> TeacherCache:
    """Rename ``built`` to ``folder``, in one step. Another process's cache with this key wins; any
    other cache is replaced.
    """
    error = None
    # two may be replacing the same old cache
    for _ in range(100):
        try:
            # fails on a folder that is not empty
            os.rename(built, folder)
            sync_folder(folder.parent)
        except OSError as e:
            error = e
        cache = TeacherCache.open(folder, key)
        if cache is not None:
            return cache
        _refuse_other_files(folder)
        old = built.with_suffix(".old.tmp")
        # else ours stood there, and its replacer's will
        if built.exists():
            with suppress(FileNotFoundError):
                os.rename(folder, old)
                shutil.rmtree(old, ignore_errors=True)
        time.sleep(0.01)
    raise RuntimeError(
        f"the cache cannot be put in place: {TeacherCache.difference(folder, key)}"
    ) from error


def _refuse_other_files(folder: Path) -> None:
    """An error if replacing ``folder`` would delete anything but a cache."""
    with suppress(FileNotFoundError):
        # a file: NotADirectoryError
        for entry in folder.iterdir():
            if entry.is_dir() or not re.fullmatch(r"meta\.json|\d+\.bin", entry.name):
                raise FileExistsError(
                    f"{folder} holds {entry.name!r}, which is no part of a cache; choose a folder "
                    "of its own"
                )


# ------------------------------------------------------------------------------------------ reading


def _inspect(folder: Path, key: dict) -> tuple[dict, str]:
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
            expected = _size(meta["samples"], meta["views"], array)
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


def _check_files(folder: Path, meta: Mapping) -> None:
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
            if _checksum(file) != array["crc32"]:
                raise RuntimeError(
                    f"{path} is damaged: its bytes do not have the checksum that was written with "
                    f"them; delete {folder}, and it is made again"
                )
        _checked.add(identity)


# files whose bytes are known to be right
_checked: set[tuple[int, int, int, int]] = set()


def _identity(file: BinaryIO) -> tuple[int, int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _checksum(file: BinaryIO) -> int:
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


def _size(samples: int, views: int, array: Mapping) -> int:
    """Bytes of one file."""
    if array["dtype"] not in DTYPES:
        raise ValueError(f"dtype {array['dtype']!r} is none of {', '.join(DTYPES)}")
    return samples * views * math.prod(array["shape"]) * np.dtype(array["dtype"]).itemsize


def _little(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")
