"""What a process does when it is told to stop: by a scheduler (SIGTERM), or at the keyboard
(SIGINT, Ctrl-C).

Within :func:`handled` either one ends it at once, by an exception; within :func:`deferred` the
first waits for whoever asks :attr:`Deferral.told`, as a stage does after each step, and a second
Ctrl-C ends it at once. Imports nothing that takes time.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# as a shell has it: 128 and the signal's number
INTERRUPTED, TERMINATED = 130, 143
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Terminated(SystemExit):
    """The process was told to end; where nobody catches this, it exits with 143, and in silence.

    Args:
        said: what there is to say of it; '': nothing, for another process says it.
    """

    def __init__(self, said: str | None = None):
        super().__init__(said)
        self.code = TERMINATED


class Deferral:
    """The signal that has come since the block was entered.

    Attributes:
        told: its number; 0: none has.
        announce: whether to say that the first Ctrl-C has been heard.
    """

    def __init__(self, announce: bool):
        self.told, self.announce = 0, announce


_deferrals: list[Deferral] = []
# a forked child has the handlers, too, and they are not meant for it
_owner = 0


@contextmanager
def handled() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated`, SIGINT KeyboardInterrupt, so that what has been begun is
    cleaned up; in the main thread, and where nobody else has set a handler.
    """
    global _owner
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    ours = {
        number: usual for number, usual in defaults.items() if signal.getsignal(number) == usual
    }
    if ours:
        _owner = os.getpid()
    for number in ours:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, usual in ours.items():
            signal.signal(number, usual)


@contextmanager
def deferred(announce: bool = False) -> Iterator[Deferral]:
    """Within it, and :func:`handled`, a signal is noted; SIGINT for the second time is not."""
    deferral = Deferral(announce)
    _deferrals.append(deferral)
    try:
        yield deferral
    finally:
        _deferrals.remove(deferral)


def stopped(number: int, said: str) -> BaseException:
    """What to raise where a noted signal is obeyed."""
    if number == signal.SIGINT:
        return KeyboardInterrupt(said)
    return Terminated(said)


def name_of(number: int) -> str:
    """What people call it."""
    return _NAMES.get(signal.Signals(number), signal.Signals(number).name)


def _handle(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _owner:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    deferral = _deferrals[-1] if _deferrals else None
    if deferral and (number != signal.SIGINT or deferral.told != signal.SIGINT):
        if number == signal.SIGINT and deferral.announce:
            # print() may have been interrupted itself
            os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")
        deferral.told = number
        return
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def leave_stops_to_parent(worker: int = 0) -> None:
    """In a process that reads data for another: that one decides when both end.

    A terminal's Ctrl-C and a scheduler's SIGTERM reach all processes of a job, and a reader that
    ended by itself would take the step with it that is to be finished. SIGTERM of the parent's own
    still ends it.

    Args:
        worker: its number, which torch gives; not looked at.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # also of the threads that it starts from here on
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
