"""Rows of all processes: their order, and that a row's gradient is the sum over losses that differ
from process to process.
"""

from datetime import timedelta

import torch
import torch.distributed

from kdtasks.core.gather import gather_rows


def batch(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A process's rows, not contiguous, and the weights of its loss."""
    generator = torch.Generator().manual_seed(rank)
    rows = torch.randn(4, 3, 2, dtype=torch.float64, generator=generator).transpose(0, 1)
    return rows, torch.randn(6, 4, 2, dtype=torch.float64, generator=generator)


def two_ranks(rank: int, folder: str):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    rows, weight = batch(rank)
    gathered = gather_rows(rows.requires_grad_())
    (gradient,) = torch.autograd.grad((gathered * weight).sum(), rows)
    plain = gather_rows(rows.detach())
    torch.save((gathered.detach(), gradient, plain.requires_grad), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_gather_in_order_and_each_row_gets_what_both_losses_give(tmp_path):
    torch.multiprocessing.spawn(two_ranks, (str(tmp_path),), nprocs=2)
    (rows_0, weight_0), (rows_1, weight_1) = batch(0), batch(1)
    for rank in range(2):
        gathered, gradient, detached_needs_it = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(gathered, torch.cat([rows_0, rows_1])) and not detached_needs_it
        assert torch.equal(gradient, (weight_0 + weight_1)[3 * rank : 3 * rank + 3])


def test_one_process_gathers_nothing():
    rows = torch.randn(4, 3)
    assert gather_rows(rows) is rows
