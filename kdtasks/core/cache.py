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

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtasks.core.cache_files import (
    check_files,
    inspect_cache,
    little_endian,
    row_numbers,
    write_meta,
)
from kdtasks.core.cache_writer import ArrayWriter
from kdtasks.core.files import disk_error, sync_folder


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
                    little_endian(array["dtype"]),
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
        meta, reason = inspect_cache(Path(folder), key)
        if reason:
            return None
        folder = Path(folder).resolve()
        try:
            check_files(folder, meta)
            return cls(folder, meta)
        # replaced by another process at this moment
        except FileNotFoundError:
            return None

    @staticmethod
    def difference(folder: str | Path, key: dict) -> str:
        """Why :meth:`open` would not use ``folder``, in one line; '' if it would."""
        return inspect_cache(Path(folder), key)[1]

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
                writer = ArrayWriter(built, samples, views, files)
                for batch in batches:
                    writer.add(batch, outputs(batch))
                arrays = writer.finish(half)
            write_meta(built, key, samples, views, arrays)
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
        flat = row_numbers(index, view, self.samples, self.views)
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
