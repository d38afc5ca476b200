"""Quantized weights and activations in two processes: as one process with both batches has them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdtasks.quantization import LSQ, PACT, quantized
from tests.ranks import two_ranks

KINDS = ("uniform", "levels", "lsq")


def batches(rank: int) -> torch.Tensor:
    """Four batches; the ranges of the two ranks differ."""
    generator = torch.Generator().manual_seed(rank)
    return (1 + rank) * torch.rand(4, 6, 1, 8, 8, generator=generator)


def trained(kind: str, images: torch.Tensor, wrap: Callable[[nn.Module], nn.Module]) -> dict:
    torch.manual_seed(0)
    parts = (
        nn.Conv2d(1, 4, 3),
        LSQ(4, signed=None),
        nn.ReLU(),
        LSQ(4),
        nn.Conv2d(4, 4, 3),
        PACT(4),
        nn.Flatten(),
    )
    model = nn.Sequential(*parts, nn.Linear(64, 5))
    model = quantized(model, bits=4, kind=kind, bucket_size=64, every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    wrapped = wrap(model)
    for batch in images:
        optimizer.zero_grad()
        wrapped(batch).square().mean().backward()
        optimizer.step()
    return model.state_dict()


def of_rank(rank: int) -> dict[str, dict]:
    return {kind: trained(kind, batches(rank), DistributedDataParallel) for kind in KINDS}


@pytest.mark.slow
def test_two_processes_have_equal_weights_those_of_the_mean_gradient():
    """Slow, as it loads torch twice."""
    first, second = two_ranks(of_rank)
    both = torch.cat([batches(0), batches(1)], dim=1)
    for kind in KINDS:
        expected = trained(kind, both, lambda model: model)
        assert first[kind].keys() == second[kind].keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(first[kind][name], second[kind][name]), name
            torch.testing.assert_close(first[kind][name], value, rtol=1e-4, atol=1e-6)
