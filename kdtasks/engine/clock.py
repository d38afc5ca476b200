"""What takes time, on a machine that has other work too."""

import time
from pathlib import Path

# Linux: of this thread, ns on a processor, ns ready to run and waiting for one, and turns
_SCHEDULED = Path("/proc/thread-self/schedstat")


def working_seconds() -> float:
    """A clock that stands still while this thread is ready to run and another has its processor.

    Where the system does not say how long that was, it is the clock on the wall.
    """
    return time.perf_counter() - _waited_seconds()


def _waited_seconds() -> float:
    try:
        return int(_SCHEDULED.read_bytes().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
