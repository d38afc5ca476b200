"""On which device, and in how many processes."""

import ctypes
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import Any

import torch

from kdtasks.engine import clock
from kdtasks.engine.errors import ConfigError

WAIT_LIMIT = 10  # minutes, as torch's own for nccl
# seconds between two signs of life of the rank that works while others wait
BEAT = 5.0
# of glibc's mallopt, and their greatest values: the free bytes at the top of the heap beyond which
# they are given back, and the size from which a piece is not of the heap
TRIM_THRESHOLD, MMAP_THRESHOLD = (-1, 2**31 - 1), (-3, 2**25)
_limit = timedelta(minutes=WAIT_LIMIT)
_OF_A_READER = re.compile(r"DataLoader worker \(pids?(?:\(s\))? ([\d, ]+)\) ([^\n.]*)")
_OF_AN_EXCHANGE = re.compile(
    "gloo|nccl|connection (closed|reset)|tcpstore|timed out waiting|broken pipe|pair closure",
    re.IGNORECASE,
)


def start_processes(launcher: str, device: str | None, minutes: float = WAIT_LIMIT) -> None:
    """Join the process group that torchrun describes: nccl on CUDA, gloo on a CPU.

    Args:
        launcher: ``'none'`` (nothing is done) or ``'pytorch'``.
        device: as in :func:`device_type`.
        minutes: how long a rank waits for another in one exchange; then it stops with an error.
            Work that takes longer on one rank goes through :func:`led`, which is not limited.
    """
    if launcher == "none":
        return
    if "RANK" not in os.environ:
        raise ConfigError(
            "--launcher pytorch is for torchrun: torchrun --nproc-per-node 2 tools/train.py CONFIG "
            "--launcher pytorch"
        )
    if device_type(device) == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    global _limit
    _limit = timedelta(minutes=minutes)
    backend = "nccl" if device_type(device) == "cuda" else "gloo"
    where: dict[str, Any] = {}
    if is_restart():
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        # under the names of before, the store still has the addresses of processes that are gone
        store, rank, world = next(rendezvous("env://", timeout=_limit))
        count = os.environ["TORCHELASTIC_RESTART_COUNT"]
        store = PrefixStore(f"restart_{count}", store)
        where = {"store": store, "rank": rank, "world_size": world}
    torch.distributed.init_process_group(backend, timeout=_limit, **where)


def is_restart() -> bool:
    """Whether torchrun has started this process in the place of one that failed
    (``--max-restarts``).
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def keep_memory() -> None:
    """Have this process keep the memory that a step frees, as the next step takes as much again.

    glibc's malloc gives it back to the system in between, which then hands out and clears every
    page anew: an eighth of a step of two small networks that learn side by side. Without effect
    where there is another malloc, or where an environment variable ``MALLOC_…`` says how this one
    works.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            mallopt(option, value)


class PeerError(RuntimeError):
    """Another process of this run has failed; the message says what it said."""


def led(work: Callable[[Callable[[], None]], Any]) -> Any:
    """What ``work(beat)`` gives rank 0, which runs it, while the other ranks wait, and get None;
    what fails there ends them too.

    However long the work takes: ``beat()``, called now and then, tells the others that it goes on,
    so that a rank which has stalled or died is noticed within the limit of one exchange.

    Raises:
        PeerError: on the other ranks, where the work has failed.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return work(lambda: None)
    if torch.distributed.get_rank() > 0:
        while (told := told_by_first("")) == "going on":
            pass
        if told:
            raise PeerError(f"rank 0 has stopped: {told}")
        return None
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > BEAT:
            told_by_first("going on")
            last = time.monotonic()

    try:
        result = work(beat)
    except Exception as error:
        told_by_first(f"{error}" or type(error).__name__)
        raise
    told_by_first("")
    return result


def lost_peer(error: BaseException) -> str:
    """What to say of an exchange with a process that has died or does not answer; '' for any other
    error.
    """
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not grouped or not isinstance(error, RuntimeError) or not _OF_AN_EXCHANGE.search(str(error)):
        return ""
    what = (
        "does not answer within --wait-limit"
        if "imed out" in str(error) or "imeout" in str(error)
        else "has ended"
    )
    return (
        f"rank {torch.distributed.get_rank()} stops: another process of this run {what}; see what "
        "that one says. The same command with --resume goes on from the last checkpoint"
    )


class Vote:
    """The greatest number that any process of the run has, known to all of them after the same
    step; without a second process, its own.

    It is exchanged between the processors while the next step runs, and nothing is read from the
    device.
    """

    def __init__(self):
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        several = grouped and torch.distributed.get_world_size() > 1
        self._group = _host_group(torch.distributed.group.WORLD) if several else None
        self._pending: tuple | None = None

    def greatest(self, vote: int) -> int:
        """Give a number, and get the greatest of the ones that all gave at the call before; 0 at
        the first. One process gets its own at once.
        """
        if self._group is None:
            return vote
        outcome = self._found()
        ballot = torch.tensor(vote, device="cpu")
        work = torch.distributed.all_reduce(
            ballot, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        self._pending = work, ballot
        return outcome

    def end(self, vote: int) -> int:
        """The greatest of the last call; to be called when there is none to follow."""
        return vote if self._group is None else self._found()

    def _found(self) -> int:
        if self._pending is None:
            return 0
        work, ballot = self._pending
        work.wait()
        self._pending = None
        return int(ballot)


@cache
def _host_group(world: Any) -> Any:
    """The processes of the group ``world``, for numbers that no device has."""
    if torch.distributed.get_backend(world) == "gloo":
        return world
    return torch.distributed.new_group(backend="gloo", timeout=_limit)


class ReaderError(RuntimeError):
    """A process that reads the data has died; the message says how, and what helps."""


def lost_reader(error: BaseException) -> str:
    """What to say of a worker of a DataLoader that has died; '' for any other error."""
    match = _OF_A_READER.search(str(error)) if isinstance(error, RuntimeError) else None
    if match is None:
        return ""
    return (
        f"a process that reads the data (pid {match[1]}) {match[2].strip()}. Often the machine's "
        "memory, or /dev/shm, is full: fewer data.workers need less, and data.workers=0 shows an "
        "error of the data set itself. The last checkpoint stands; --resume goes on from it"
    )


def beating(beat: Callable[[], None], items: Iterable) -> Iterator:
    """The items, with a ``beat()`` before each, for the others and for the clock."""
    for item in items:
        beat()
        clock.beat()
        yield item


def told_by_first(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    told = [value]
    torch.distributed.broadcast_object_list(told, src=0)
    return told[0]


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many there are; (0, 1) without a process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def device_type(device: str | None) -> str:
    """The device asked for, or CUDA where there is one.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but torch sees no CUDA device here; use --device cpu")
    return device


def device_name(device: torch.device) -> str:
    """What the results call the device."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu ({torch.get_num_threads()} threads)"
    )
