"""What the tests of losses on relations of a batch's samples share: RKD, DarkRank, S2SD, PKT, Yu 2019."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tests.ranks import two_ranks

F64 = torch.float64


def rows(n: int, d: int, dtype: torch.dtype = F64, scale: float = 1.0) -> Tensor:
    """Random embeddings."""
    return (scale * torch.randn(n, d, dtype=F64)).to(dtype)


def distance(x: Sequence[float], y: Sequence[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y)))


def gradient(loss: Callable, student: Tensor, *rest, **options) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in the student."""
    student = student.detach().clone().requires_grad_()
    value = loss(student, *rest, **options)
    return value.detach(), *torch.autograd.grad(value, student)


def _on_batch(weight: Tensor, loss: nn.Module, images: Tensor, teacher: Tensor) -> Tensor:
    return loss(images @ weight.T, teacher)


def _on_a_rank(
    rank: int, losses: Sequence[Callable[..., nn.Module]], batch: tuple[Tensor, Tensor, Tensor]
) -> list[dict]:
    """Each loss on one of two processes' half of the batch, gathered and not."""
    images, teacher, weight = batch
    mine = slice(5 * rank, 5 * rank + 5)
    return [
        {
            gather: gradient(_on_batch, weight, make(gather=gather), images[mine], teacher[mine])
            for gather in (True, False)
        }
        for make in losses
    ]


def check_two_processes(losses: Sequence[Callable[..., nn.Module]]) -> None:
    """Two processes that gather equal one: the loss, and the parameters' gradients averaged over the
    ranks, as DDP does. Ranks by themselves see other relations.

    ``losses`` are called with ``gather=``, and can be pickled.
    """
    images, teacher, weight = rows(10, 6), rows(10, 3), rows(4, 6)
    ranks = two_ranks(_on_a_rank, losses, (images, teacher, weight))
    for i, make in enumerate(losses):
        value, pull = gradient(_on_batch, weight, make(gather=True), images, teacher)
        for result in ranks:
            torch.testing.assert_close(result[i][True][0], value, rtol=1e-12, atol=0)
        together, apart = (sum(result[i][k][1] for result in ranks) / 2 for k in (True, False))
        torch.testing.assert_close(together, pull, rtol=1e-10, atol=1e-14)
        assert (apart - pull).norm() > 0.05 * pull.norm()
