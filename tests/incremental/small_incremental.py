"""The small configs as Python, and what tests ask of a run of them."""

import sys
from pathlib import Path

from kdtasks.engine import config as configs
from kdtasks.engine.run import Run

SMALL = Path(__file__).parent / "small"
# small_streams, as from a config beside it
sys.path.insert(0, str(SMALL))


def small(name="lwf", **options):
    """A small config with some keys changed, as --cfg-options would."""
    return configs.load(
        SMALL / f"{name}.py", {key.replace("__", "."): value for key, value in options.items()}
    )


def run_of(folder, name="lwf", seed=0, **options):
    return Run(small(name, **options), folder, seed, "cpu", quiet=True)


def stage(run, name):
    return next(s for s in run.experiment.stages if s.name == name)


def batches(run, name):
    """All training batches of a stage, in the order in which the run sees them."""
    one = stage(run, name)
    loader, first = (
        run.experiment.train_loader(one, run.files),
        run.experiment.first_epoch(one, run.files),
    )
    return [
        batch
        for epoch in range(run.experiment.setting(one, "length"))
        for batch in loader.epoch(first + epoch)
    ]
