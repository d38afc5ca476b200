"""Processes that tests start, most of them two of ``torch.distributed``: forked from one server that
has imported what takes seconds.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

ROOT = Path(__file__).parents[1]
multiprocessing.set_forkserver_preload(
    [
        *("torch.nn.parallel", "torchvision", "sklearn.datasets", "jinja2", "matplotlib.pyplot"),
        *("pytest", "kdtasks.engine.runner", "kdtasks.engine.run"),
    ]
)


def two_ranks(work: Callable, *args: object) -> list:
    """What ``work(rank, *args)`` returns in each of two processes of one gloo group, rank 0 first.

    ``work`` is a function of a module, and the arguments can be pickled.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _rank, (folder, work, args), nprocs=2, start_method="forkserver"
        )
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(2)]


def _rank(rank: int, folder: str, work: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    torch.save(work(rank, *args), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def start_tool(
    folder: Path, arguments: list[str], environment: dict[str, str] | None = None, number: int = 1
) -> list[BaseProcess]:
    """``python tools/NAME.py ARGUMENTS``, in the parent of ``folder``; several: as torchrun starts
    them, but nothing looks after them.

    What each prints is in ``folder/<rank>.out`` and ``folder/<rank>.err``.
    """
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, **(environment or {})}
    if number > 1:
        common |= {"WORLD_SIZE": f"{number}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    processes = []
    for rank in range(number):
        own = common | ({"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} if number > 1 else {})
        start = multiprocessing.get_context("forkserver").Process
        processes.append(start(target=_tool, args=(folder, rank, arguments, own)))
        processes[-1].start()
    return processes


def _tool(folder: Path, rank: int, arguments: list[str], environment: dict[str, str]) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(folder.parent)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = [str(ROOT / "tools" / arguments[0]), *arguments[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


def finish_tool(folder: Path, processes: list[BaseProcess], seconds: float = 200) -> str:
    """Wait until all have ended without an error; what the first has printed."""
    for rank, process in enumerate(processes):
        process.join(seconds)
        assert process.exitcode == 0, (folder / f"{rank}.err").read_text()[-3000:]
    return (folder / "0.out").read_text()
