"""Two processes of ``torch.distributed``, for tests of what is the same in one."""

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed
import torch.multiprocessing

# Imported once, by the server that all processes are forked from: torch takes seconds of each.
multiprocessing.set_forkserver_preload(
    ["torch.distributed", "torch.nn.parallel", "torchvision", "pytest", "kdtasks.core"]
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
