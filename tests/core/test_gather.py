"""Rows of all processes: their order, and that a row's gradient is the sum over losses that differ
from process to process.
"""

import torch

from kdtasks.core.gather import gather_rows
from tests.ranks import two_ranks


def batch(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A process's rows, not contiguous, and the weights of its loss."""
    generator = torch.Generator().manual_seed(rank)
    rows = torch.randn(4, 3, 2, dtype=torch.float64, generator=generator).transpose(0, 1)
    return rows, torch.randn(6, 4, 2, dtype=torch.float64, generator=generator)


def gathered(rank: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
    rows, weight = batch(rank)
    together = gather_rows(rows.requires_grad_())
    (gradient,) = torch.autograd.grad((together * weight).sum(), rows)
    return together.detach(), gradient, gather_rows(rows.detach()).requires_grad


def test_two_processes_gather_in_order_and_each_row_gets_what_both_losses_give():
    (rows_0, weight_0), (rows_1, weight_1) = batch(0), batch(1)
    for rank, (together, gradient, detached_needs_it) in enumerate(two_ranks(gathered)):
        assert torch.equal(together, torch.cat([rows_0, rows_1])) and not detached_needs_it
        assert torch.equal(gradient, (weight_0 + weight_1)[3 * rank : 3 * rank + 3])


def test_one_process_gathers_nothing():
    rows = torch.randn(4, 3)
    assert gather_rows(rows) is rows
