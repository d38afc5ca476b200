"""On which device, and in how many processes."""

import os
from datetime import timedelta

import torch

from kdtasks.engine.builder import ConfigError


def start_processes(launcher: str, device: str | None) -> None:
    """Join the process group that torchrun describes: nccl on CUDA, gloo on a CPU."""
    if launcher == "none":
        return
    if "RANK" not in os.environ:
        raise ConfigError("--launcher pytorch is for torchrun: "
                          "torchrun --nproc-per-node 2 tools/train.py CONFIG --launcher pytorch")
    if device_type(device) == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if device_type(device) == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=timedelta(days=1))       # the others wait while one fills a cache


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
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
