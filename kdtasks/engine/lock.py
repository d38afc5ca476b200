"""One process at a time works in a folder: an advisory lock that ends with its process, however
that ends.

The file ``.lock`` in the folder says who holds it. It is locked as POSIX has it (``lockf``): the
system gives the lock back when the process dies, forked workers do not inherit it, and NFS passes
it on to other hosts. Where a file system has no such locks, what the file says decides.
"""

import errno
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from kdtasks.core.files import disk_error
from kdtasks.engine.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_held: dict[tuple[int, Path], int] = {}  # (process, folder): the open file


def acquire(folder: Path) -> None:
    """Take the lock of a folder, which is made if it is not there; what this process holds, it
    keeps.

    Raises:
        ConfigError: another process holds it; says which one, on which host, since when.
    """
    if _key(folder) in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked_file(folder)
    except OSError as error:
        explained = disk_error(error, folder)
        if explained is None:
            raise
        raise explained from error
    me = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(me).encode(), 0)
    _held[_key(folder)] = descriptor


def release(folder: Path) -> None:
    """Give back the lock of a folder, if this process holds it."""
    descriptor = _held.pop(_key(folder), None)
    if descriptor is not None:
        (folder / NAME).unlink(missing_ok=True)
        os.close(descriptor)


def move(folder: Path, aside: Path) -> None:
    """Rename a folder whose lock this process holds, and take the lock of a new folder in its
    place.

    Raises:
        ConfigError: another process has taken the place in between; what was there is in ``aside``
            then.
    """
    descriptor = _held.pop(_key(folder))
    try:
        folder.rename(aside)
        acquire(folder)
        (aside / NAME).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def check_free(folder: Path) -> None:
    """Raise what :func:`acquire` would, and take nothing."""
    if (folder / NAME).exists() and _key(folder) not in _held:
        acquire(folder)
        release(folder)


def alive(pid: int) -> bool:
    """Whether a process of this host lives; where that cannot be found out, it does."""
    if fcntl is None:
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _key(folder: Path) -> tuple[int, Path]:
    return os.getpid(), folder.resolve()


def _locked_file(folder: Path) -> int:
    while True:
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, folder)
            # else: given back, or moved away, before it was locked
            with suppress(FileNotFoundError):
                if os.stat(folder / NAME).st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks")
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = _owner(descriptor)
        if error.errno in _NO_LOCKS:
            if not owner or (owner["host"] == socket.gethostname() and not alive(owner["pid"])):
                return
        elif error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        who = (
            f"process {owner['pid']} on {owner['host']} has worked in it since {owner['since']}"
            if owner
            else "another process has just begun to work in it"
        )
        hint = (
            f" (if it is gone, remove {str(folder / NAME)!r})" if error.errno in _NO_LOCKS else ""
        )
        raise ConfigError(
            f"{str(folder)!r} is in use: {who}{hint}; wait for it, or use another --work-dir"
        ) from None


def _owner(descriptor: int) -> dict | None:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return {"pid": int(owner["pid"]), "host": str(owner["host"]), "since": str(owner["since"])}
    except (ValueError, KeyError, TypeError):
        return None  # not written yet
