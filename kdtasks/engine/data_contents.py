"""One sum of all that a data set holds, for what was computed of it once and is used again."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (bool, int, float, complex, bytes, type(None))
_PATHS = (str, os.PathLike)


def contents_sum(dataset: object, beat: Callable[[], object] = lambda: None) -> str:
    """A sum that changes with any sample of a data set, though no sample is read.

    Arrays, numbers and texts count by value; a text that names a file, as it stands or below a
    folder that the same object names, also by that file's size and time of last change in
    nanoseconds. So a file that was only touched counts as another one. Attributes, slots, dicts,
    lists and tuples are looked through, of sets inside sets too.

    What can be called (transforms) is left out, as the description of the data has it, and so is
    what shows nothing of itself, such as an open archive: its samples may change unnoticed.

    Args:
        dataset: of either of the loader's kinds, or any object.
        beat: called now and then.

    Returns:
        64 hexadecimal digits. 50,000 images of 32x32 in memory take 0.2 s, as many files about as
        long.
    """
    found = _Contents(beat)
    if callable(dataset):
        found.look_into(dataset, ())
    else:
        found.add(dataset, ())
    return found.digest.hexdigest()


def add_bytes(array: Tensor, digest: Any) -> None:
    """Add a tensor's type, shape and values to a hash."""
    array = array.detach().cpu().contiguous()
    digest.update(f"{array.dtype} {tuple(array.shape)}".encode())
    digest.update(array.flatten().view(torch.uint8).numpy())


class _Contents:
    """What has been found, in one sum; the same object counts once."""

    def __init__(self, beat: Callable[[], object]):
        self.beat, self.digest = beat, hashlib.sha256()
        # kept alive, so that no other object gets its number
        self.seen: dict[int, object] = {}

    def add(self, value: object, folders: tuple[str, ...]) -> None:
        if isinstance(value, _PATHS):
            self.beat()
            self.note(f"{value!r} {_file_facts(os.fsdecode(value), folders)}")
        elif isinstance(value, _PLAIN):
            self.note(repr(value))
        elif isinstance(value, tuple):
            self.add_all(value, folders)
        elif id(value) in self.seen:
            self.note("again")
        else:
            self.seen[id(value)] = value
            self.add_object(value, folders)

    def add_object(self, value: object, folders: tuple[str, ...]) -> None:
        if isinstance(value, Tensor | np.ndarray):
            self.add_array(value, folders)
        elif isinstance(value, Mapping):
            self.add_all(value.items(), folders)
        elif isinstance(value, list):
            self.add_all(value, folders)
        elif isinstance(value, set | frozenset):
            self.add_all(sorted(value, key=repr), folders)
        elif not callable(value):
            self.look_into(value, folders)

    def add_all(self, values: Iterable, folders: tuple[str, ...]) -> None:
        self.note("(")
        for value in values:
            self.add(value, folders)
        self.note(")")

    def add_array(self, array: Tensor | np.ndarray, folders: tuple[str, ...]) -> None:
        self.beat()
        if isinstance(array, np.memmap) and array.filename is not None:
            place = (os.fspath(array.filename), array.offset, array.shape, str(array.dtype))
            self.add(place, folders)
        elif isinstance(array, np.ndarray) and array.dtype.hasobject:
            self.add_all(array.ravel().tolist(), folders)
        elif isinstance(array, np.ndarray):
            self.note(f"{array.dtype} {array.shape}")
            self.digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        elif array.layout == torch.strided and array.device.type != "meta":
            add_bytes(array, self.digest)

    def look_into(self, value: object, folders: tuple[str, ...]) -> None:
        """All that an object holds, by name; of tables and images the array that they show."""
        self.note(type(value).__qualname__)
        if hasattr(type(value), "__array__") or hasattr(type(value), "__array_interface__"):
            # of a file that is closed, say
            with suppress(Exception):
                self.add_array(np.asarray(value), folders)
            return
        held = dict(getattr(value, "__dict__", {}))
        for kind in type(value).__mro__:
            slots = getattr(kind, "__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(value, name):
                    held[name] = getattr(value, name)
        named = (os.fsdecode(held[name]) for name in held if isinstance(held[name], _PATHS))
        inside = tuple(dict.fromkeys((*folders, *filter(_is_folder, named))))
        for name in sorted(held):
            self.note(name)
            self.add(held[name], inside)

    def note(self, text: str) -> None:
        self.digest.update(f"{text};".encode(errors="surrogateescape"))


def _file_facts(text: str, folders: tuple[str, ...]) -> str:
    """Size and time of the file that a text names; '' where it names none."""
    for place in (text, *(os.path.join(folder, text) for folder in folders)):
        try:
            status = os.stat(place)
        # no such file, too long for a name, or a NUL in it
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode):
            return f"{status.st_size} {status.st_mtime_ns}"
    return ""


def _is_folder(text: str) -> bool:
    try:
        return bool(text) and stat.S_ISDIR(os.stat(text).st_mode)
    except (OSError, ValueError):
        return False
