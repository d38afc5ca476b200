"""Random numbers that depend on a seed and a name, and on nothing that was drawn before."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Random numbers that depend on ``seed`` and ``name`` only; the stream around stays."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        yield
