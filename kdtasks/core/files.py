"""Files that are there whole or not at all, and are one's own."""

import os
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, then move it into place.

    Whatever happens before the move (a full disk, a kill), a former file at ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_own(path: Path) -> bool:
    """Whether there is something at ``path``; it then is no link, and this user's or its folder's owner's.

    In a folder where many may write, anybody could have put a file under a name that can be foreseen.
    The folder's owner counts as this user does: a cache may be shared, or lie on a disk that knows other
    users.

    Raises:
        PermissionError: it is a link, or somebody else's.
    """
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISLNK(found.st_mode):
        raise PermissionError(f"the cache {path} is a link, which may lead anywhere: delete it, or choose "
                              "another folder")
    owner = os.stat(path.parent).st_uid
    if os.name == "posix" and found.st_uid not in (os.geteuid(), owner):
        raise PermissionError(f"the cache {path} belongs to user {found.st_uid}, neither to this one "
                              f"({os.geteuid()}) nor to the owner of its folder ({owner}): delete it, or "
                              "choose another folder")
    return True


def room(path: Path, wanted: int) -> str:
    """How many bytes were needed at ``path``, and how many are free there."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return f"{wanted:,} bytes were needed, {shutil.disk_usage(folder).free:,} are free"
