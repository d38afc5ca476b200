"""The check before the first step: every stage is built and tried on one real batch."""

import copy
import itertools
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdtasks.core import Distiller
from kdtasks.core.finite import not_finite
from kdtasks.core.stages import unmarked
from kdtasks.engine import builder
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.config import iterations, stages_of
from kdtasks.engine.evaluation import evaluate

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment


class _First:
    """A loader of its first batch only."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return itertools.islice(iter(self.loader), 1)

    def __len__(self) -> int:
        return 1

    def __getattr__(self, name: str):
        return getattr(self.loader, name)


def check(experiment: "Experiment") -> None:
    """Build every stage on one real batch, so that what is wrong is said before the first step.

    Raises:
        ConfigError, ValueError, FileNotFoundError, RuntimeError: what is wrong, and where.
    """
    from kdtasks.engine.hooks import build_hooks  # these import mmengine's Runner, which is slow
    from kdtasks.engine.optim import build_schedulers
    from kdtasks.engine.runner import select_parameters

    build_hooks(copy.deepcopy(experiment.config["custom_hooks"]))
    optimizers = {}
    # first where most names are known
    for stage in sorted(experiment.stages, key=lambda s: not s.taught):
        loader = experiment.train_loader(stage, workers=0)
        distiller, batch = experiment.distiller(stage), next(iter(loader.epoch(0)))
        length = iterations(
            experiment.setting(stage, "length"), len(loader), f"{stage.name}.length"
        )
        try:
            # of teachers not trained yet
            with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
                shapes = distiller.build(batch)
            if experiment.config["cache"]:
                _check_cached(distiller, shapes)
            trained = select_parameters(distiller, stage.train)
            optimizer = builder.build(
                experiment.setting(stage, "optimizer"), "optimizer", params=trained
            )
            optimizers[stage.name] = optimizer
            build_schedulers(
                experiment.schedule(stage), optimizer, length, len(loader), experiment.task
            )
            _check_teachers(distiller)
            evaluate(
                experiment.task, distiller.student, _First(experiment.test_loader(stage, workers=0))
            )
        except ValueError as error:
            raise ConfigError(f"stage {stage.name!r}: {error}") from error
        if max(stage.keep, default=0) * len(loader) > length:
            raise ConfigError(
                f"stage {stage.name!r} keeps epoch {max(stage.keep)}, but ends after "
                f"{length / len(loader):g}"
            )
    _say_what_the_control_lacks(experiment)
    for stage in experiment.stages:
        if stage.optimizer_state == "keep":
            source, own = experiment.source(stage), optimizers[stage.name]
            kinds = [
                (type(o).__name__, [len(group["params"]) for group in o.param_groups])
                for o in (optimizers[source], own)
            ]
            if kinds[0] != kinds[1]:
                raise ConfigError(
                    f"stage {stage.name!r}: optimizer_state='keep' needs the "
                    "optimizer and the parameters of "
                    f"stage {source!r}: it has {kinds[0][0]} of {sum(kinds[0][1])} "
                    "parameters, this one "
                    f"{kinds[1][0]} of {sum(kinds[1][1])}"
                )


def _say_what_the_control_lacks(experiment: "Experiment") -> None:
    """Warn of losses that the control goes without for a name that the data supplies, and nobody
    has said is a teacher's.
    """
    parts = experiment.arms
    if parts.final is None or parts.control is None:
        return
    listed = stages_of(experiment.config)
    if any(stage["name"] == parts.control.name and stage.get("losses") for stage in listed):
        return
    teachers = {
        *experiment.config["teachers"],
        *(name for stage in experiment.stages for name in stage.teachers),
    }
    for name, unknown in unmarked(parts.final.losses, teachers, parts.final.own).items():
        warnings.warn(
            f"{name} is of {unknown!r}, which is not the student's, so it counts as a "
            "teacher's, and the control, "
            f"{parts.control.name!r}, goes without {name}. If no teacher has a part in it: "
            f"data.own=[{unknown!r}]; else "
            f"losses.{name}.alone=0 says that this is right",
            UserWarning,
            stacklevel=3,
        )


def _check_cached(distiller: Distiller, shapes: Mapping[str, tuple | None]) -> None:
    """A cache holds what teachers say of a sample, as one tensor, whatever the student does."""
    for role in distiller.teachers:
        for name in distiller.wanted[role]:
            if shapes.get(name, ()) is None:
                raise ValueError(
                    f"the cache keeps tensors, and {name!r} is none: cache=None, or a loss of one "
                    "tensor"
                )
        for name in distiller.needs(role):
            raise ValueError(
                f"the cache keeps what {role!r} says of a sample alone, but it needs {name!r}, "
                "which changes in training: cache=None"
            )


def _check_teachers(distiller: Distiller) -> None:
    """A teacher whose weights are not finite teaches nothing, and would be noticed only when its
    own stage comes.
    """
    for role in distiller.teachers:
        bad = not_finite(dict(distiller.model(role).named_parameters()))
        if bad:
            raise ConfigError(f"the weights {bad[0]!r} of {role!r} are not finite")
