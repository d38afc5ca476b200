"""What the tests of losses on relations of a batch's samples share: RKD, DarkRank, S2SD, PKT, Yu 2019."""

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn

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


def _rank(rank: int, folder: str, losses: Sequence[Callable[..., nn.Module]]) -> None:
    """One of two processes: each loss on its half of the batch, gathered and not."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    images, teacher, weight = torch.load(f"{folder}/batch.pt")
    mine = slice(5 * rank, 5 * rank + 5)
    results = [
        {
            gather: gradient(_on_batch, weight, make(gather=gather), images[mine], teacher[mine])
            for gather in (True, False)
        }
        for make in losses
    ]
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def check_two_processes(folder: Path, losses: Sequence[Callable[..., nn.Module]]) -> None:
    """Two processes that gather equal one: the loss, and the parameters' gradients averaged over the
    ranks, as DDP does. Ranks by themselves see other relations.

    ``losses`` are called with ``gather=``, and can be pickled.
    """
    images, teacher, weight = rows(10, 6), rows(10, 3), rows(4, 6)
    torch.save((images, teacher, weight), folder / "batch.pt")
    torch.multiprocessing.spawn(_rank, (str(folder), losses), nprocs=2)
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    for i, make in enumerate(losses):
        value, pull = gradient(_on_batch, weight, make(gather=True), images, teacher)
        for result in ranks:
            torch.testing.assert_close(result[i][True][0], value, rtol=1e-12, atol=0)
        together, apart = (sum(result[i][k][1] for result in ranks) / 2 for k in (True, False))
        torch.testing.assert_close(together, pull, rtol=1e-10, atol=1e-14)
        assert (apart - pull).norm() > 0.05 * pull.norm()
