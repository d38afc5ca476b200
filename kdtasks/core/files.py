"""Files that are written whole or not at all, and that belong to this user."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

# bytes that may be free on a disk that a failed write has filled
ALMOST_NOTHING = 2**16


def write_atomically(path: str | Path, write: Callable[[Path], None], size: int = 0) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, then move it into
    place.

    Whatever happens before the move (a full disk, a kill), a former file at ``path`` stays as it
    was.

    Args:
        path: of the file; its folder is made.
        write: is given the path of the temporary file.
        size: bytes that it will need about, for the message of a full disk; 0: not known.

    Raises:
        DiskError: as :func:`disk_error` says it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            sync_file(file)
        os.replace(temporary, path)
    # torch writes with a RuntimeError, without errno
    except (OSError, RuntimeError) as error:
        # before the space is given back
        explained = disk_error(error, path, size)
        if explained is None:
            raise
        try:
            raise explained from error
        finally:
            # its frames, in a cycle, would hold the open file
            del explained
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


class DiskError(OSError):
    """A disk that is full or cannot be written; the message says what was needed."""


def disk_error(error: Exception, path: Path, size: int = 0) -> "DiskError | None":
    """A clear error, with its errno, for one that a full or read-only disk caused; None for any
    other, which explains itself better.

    Args:
        error: raised while ``path`` was written; nothing is cleaned up yet.
        path: of a file or folder, perhaps not there yet.
        size: bytes that were needed; 0: not known.
    """
    if isinstance(error, DiskError):
        return error
    code = getattr(error, "errno", None)
    if code in (errno.EROFS, errno.EACCES, errno.EPERM):
        return DiskError(
            code, f"{os.strerror(code)}: {str(path)!r} cannot be written; use a folder that can"
        )
    if code not in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or not hasattr(os, "statvfs"):
        return None
    there = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    if code is None and free > ALMOST_NOTHING:
        return None
    code = code or errno.ENOSPC
    if disk.f_files and not disk.f_favail:
        why = "no inode is left for another file"
    else:
        why = describe_room(path, size) if size else f"{free:,} bytes are free"
    return DiskError(code, f"{os.strerror(code)}: {str(path)!r} cannot be written: {why}")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 whatever the locale; file names that it cannot decode keep their bytes."""
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def sync_file(file: IO) -> None:
    """Flush an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, to survive a power cut; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_own(path: Path) -> bool:
    """Whether ``path`` exists; if it does, check that it is no link and belongs to this user or to
    the owner of its folder.

    In a folder where many may write, anybody could have put a file under a name that can be
    foreseen. The folder's owner counts as this user does: a cache may be shared, or lie on a disk
    that knows other users.

    Raises:
        PermissionError: it is a link, or somebody else's.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISLNK(status.st_mode):
        raise PermissionError(
            f"the cache {path} is a link, which may lead anywhere: delete it, or choose another "
            "folder"
        )
    owner = os.stat(path.parent).st_uid
    if os.name == "posix" and status.st_uid not in (os.geteuid(), owner):
        raise PermissionError(
            f"the cache {path} belongs to user {status.st_uid}, neither to this one "
            f"({os.geteuid()}) nor to the owner of its folder ({owner}): delete it, or choose "
            "another folder"
        )
    return True


def describe_room(path: Path, needed: int) -> str:
    """How many bytes were needed at ``path``, and how many are free there."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return f"{needed:,} bytes were needed, {shutil.disk_usage(folder).free:,} are free"
