"""The small config as Python, and what tests look at in a finished run."""

from pathlib import Path

import torch

from kdtasks.engine import config as configs

ROOT = Path(__file__).parents[2]
SMALL = Path(__file__).parent / "small" / "small.py"


def small(**options):
    """The small config with some keys changed, as --cfg-options would."""
    return configs.load(SMALL, {key.replace("__", "."): value for key, value in options.items()})


def weights(run, stage, file="last.pth"):
    folder = run.folder(next(s for s in run.experiment.stages if s.name == stage))
    return torch.load(folder / file, weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def walk(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from walk(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from walk(item)
