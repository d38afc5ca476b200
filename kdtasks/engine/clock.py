"""What takes time, on a machine that has other work too."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

# Linux: of this thread, ns on a processor, ns ready to run and waiting for one, and turns
_SCHEDULED = Path("/proc/thread-self/schedstat")
# seconds: in which this process was stopped, and when it was last known to run
_stopped, _last_beat = 0.0, time.perf_counter()


def working_seconds() -> float:
    """A clock that stands still while this thread is ready to run and another has its processor,
    and within :func:`stops_noted` while this process is stopped.

    Where the system does not say how long that was, it is the clock on the wall; a machine that
    sleeps counts in neither.
    """
    beat()
    return _last_beat - _waited_seconds() - _stopped


def beat() -> None:
    """This process runs: a stop that is noted later began after this. To be called at each step."""
    global _last_beat
    _last_beat = time.perf_counter()


@contextmanager
def stops_noted() -> Iterator[None]:
    """Within it :func:`working_seconds` leaves out the time between SIGSTOP or Ctrl-Z and SIGCONT;
    in the main thread, and where nobody else has set a handler.

    A process learns only afterwards that it was stopped: what it has done since the last
    :func:`beat`, a part of one step, is left out as well.
    """
    number = getattr(signal, "SIGCONT", None)
    is_main = threading.current_thread() is threading.main_thread()
    if number is None or not is_main or signal.getsignal(number) != signal.SIG_DFL:
        yield
        return
    signal.signal(number, _note_stop)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)


def _note_stop(number: int, frame: FrameType | None) -> None:
    global _stopped
    before = _last_beat
    beat()
    _stopped += _last_beat - before


def _waited_seconds() -> float:
    try:
        return int(_SCHEDULED.read_bytes().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
