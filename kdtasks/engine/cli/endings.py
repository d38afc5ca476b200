"""How a command ends where it cannot go on: in one clear line, or in silence."""

import linecache
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TextIO

from kdtasks.engine import signals
from kdtasks.engine.errors import ConfigError

EXPECTED_ERRORS = (ConfigError, FileNotFoundError, ValueError, RuntimeError, OSError)


@contextmanager
def pipe_may_close() -> Iterator[None]:
    """Where the reader of what a tool prints has gone (``--list | head``), the tool ends with
    SIGPIPE's status, and quietly.
    """
    try:
        try:
            yield
        finally:
            # what is still in the buffer may find it closed
            sys.stdout.flush()
    except BrokenPipeError:
        closed = [stream.fileno() for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
        # another pipe, such as a worker's
        if not closed:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in closed:
            os.dup2(nowhere, descriptor)
        raise SystemExit(141) from None


def _is_closed(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    # no file, or a system without poll
    except (AttributeError, OSError, ValueError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


class plain_errors:
    """A wrong input ends in one clear line, not in a traceback, and so does being told to stop;
    anything else is a bug and shows where it happened.

    The process exits with 0, 1 after an error, 2 where the command line is wrong, 130 after Ctrl-C,
    141 where the reader of what it prints has gone, and 143 after SIGTERM.

    Args:
        resume: how a command that was stopped goes on; '': it has nothing to go on with.
    """

    def __init__(self, resume: str = ""):
        self.resume = resume

    def __enter__(self):
        self._handled = signals.handled()
        self._handled.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._handled.__exit__(None, None, None)
        if kind is None or error is None or trace is None:
            return False
        if isinstance(error, KeyboardInterrupt | signals.Terminated):
            self._stop(error)
        if issubclass(kind, EXPECTED_ERRORS) and _is_ours(trace):
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        if issubclass(kind, ImportError) and _is_of_opencv(trace):
            print(
                f"error: mmengine needs OpenCV, which cannot be imported here: {error}; on a "
                "machine without a screen: pip uninstall -y opencv-python; pip install "
                "opencv-python-headless",
                file=sys.stderr,
            )
            raise SystemExit(1) from None
        if "torch" in sys.modules:
            from kdtasks.engine.processes import lost_peer

            if why := lost_peer(error):
                print(f"error: {why}", file=sys.stderr)
                raise SystemExit(1) from None
        return False

    def _stop(self, error: KeyboardInterrupt | signals.Terminated) -> NoReturn:
        said = error.args[0] if error.args else None
        # '': another process says it
        if said != "":
            further = f"; {self.resume} goes on from {'there' if said else 'the last checkpoint'}"
            print((said or "stopped") + (further if self.resume else ""), file=sys.stderr)
        terminated = isinstance(error, signals.Terminated)
        raise SystemExit(signals.TERMINATED if terminated else signals.INTERRUPTED) from None


def _is_of_opencv(trace: TracebackType | None) -> bool:
    """Whether an ``import cv2`` failed: its wheel for desktops needs libGL, which servers lack."""
    while trace:
        line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).strip()
        if line.startswith(("import cv2", "from cv2")):
            return True
        trace = trace.tb_next
    return False


def _is_ours(trace: TracebackType) -> bool:
    """Whether a ``raise`` of this package's own code raised it: anything else is a bug, and shows
    where it happened.
    """
    while trace.tb_next:
        trace = trace.tb_next
    file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
    return Path(file).is_relative_to(Path(__file__).parents[2]) and linecache.getline(
        file, line
    ).lstrip().startswith("raise")
