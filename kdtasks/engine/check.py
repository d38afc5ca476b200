"""The check before the first step: every stage is built and tried on one real batch."""

import copy
import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdtasks.core import Distiller, Stage
from kdtasks.core.control import unmarked
from kdtasks.core.finite import not_finite
from kdtasks.engine import robustness
from kdtasks.engine.anchors import check_routes
from kdtasks.engine.assemblies import check_assemblies
from kdtasks.engine.config_checks import stages_of
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.evaluation import evaluate
from kdtasks.engine.loader import Loader
from kdtasks.engine.parameters import build_optimizer, select_parameters

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from kdtasks.engine.experiment import Experiment


class _FirstBatch:
    """A loader of its first batch only."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def __iter__(self) -> Iterator[dict]:
        return itertools.islice(iter(self.loader), 1)

    def __len__(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def check(experiment: "Experiment") -> None:
    """Build every stage on one real batch, so that what is wrong is said before the first step.

    What is built is dropped: nothing of the earlier stages is in it, and one stage at a time fits
    into the memory. The data sets stay.

    Raises:
        ConfigError, ValueError, FileNotFoundError, RuntimeError: what is wrong, and where.
    """
    from kdtasks.engine.hooks import build_hooks  # imports mmengine's Runner, which is slow

    build_hooks(copy.deepcopy(experiment.config["custom_hooks"]))
    if experiment.config["onnx"]:
        from kdtasks.engine.export_formats import check_packages

        check_packages("onnx")
    if experiment.config["packed"]:
        _check_packed(experiment)
    # first where most names are known
    stages = sorted(experiment.stages, key=lambda stage: not stage.taught)
    optimizers = {stage.name: _check_stage(experiment, stage) for stage in stages}
    check_assemblies(experiment)
    if experiment.config["robustness"]:
        robustness.check(experiment)
    _say_what_the_control_lacks(experiment)
    for stage in experiment.stages:
        source = experiment.source(stage)
        if stage.optimizer_state == "keep" and source is not None:
            _check_optimizer_state(stage, source, optimizers)


def _check_stage(experiment: "Experiment", stage: Stage) -> "Optimizer":
    """Build a stage on its first batch, and evaluate its student on one test batch."""
    loader = experiment.train_loader(stage, workers=0)
    distiller, batch = experiment.distiller(stage), next(iter(loader.epoch(0)))
    length = experiment.iterations(stage, len(loader))
    try:
        _check_tensors(experiment, distiller, batch)
        optimizer = _check_training(experiment, stage, distiller, length, len(loader))
        _check_teachers(distiller)
        check_routes(experiment, stage, distiller, length)
        test = _FirstBatch(experiment.test_loader(stage, workers=0))
        evaluate(experiment.task, distiller.student, test)
    except ValueError as error:
        raise ConfigError(f"stage {stage.name!r}: {error}") from error
    if max(stage.keep, default=0) * len(loader) > length:
        raise ConfigError(
            f"stage {stage.name!r} keeps epoch {max(stage.keep)}, but ends after "
            f"{length / len(loader):g}"
        )
    return optimizer


def _check_packed(experiment: "Experiment") -> None:
    """Something of the run can be packed."""
    from kdtasks.engine.export_formats import check_packages
    from kdtasks.engine.packed import check_packable

    check_packages("packed")
    if experiment.final is not None:
        student = experiment.learner(experiment.final)
        check_packable(student, f"packed=True, stage {experiment.final.name!r}")


def _check_tensors(experiment: "Experiment", distiller: Distiller, batch: dict) -> None:
    """The names that losses are called with are there, and a cache can keep the teachers' ones."""
    # of teachers not trained yet
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        shapes = distiller.build(batch)
    if experiment.config["cache"]:
        _check_cached(distiller, shapes)


def _check_training(
    experiment: "Experiment", stage: Stage, distiller: Distiller, length: int, per_epoch: int
) -> "Optimizer":
    """What trains is there, and its optimizer and schedule can be built."""
    from kdtasks.engine.optim import build_schedulers, try_schedulers  # as above

    accumulate = experiment.config["accumulate"]
    if accumulate > 1 and distiller.steps_per_batch > 1:
        raise ConfigError(
            f"accumulate={accumulate} sums the gradients of several batches before a step, and "
            f"{type(distiller).__name__} takes {distiller.steps_per_batch} steps on each: expected "
            "accumulate=1"
        )
    trained = select_parameters(distiller, stage.train)
    optimizer = build_optimizer(experiment.setting(stage, "optimizer"), distiller, trained)
    schedule = experiment.schedule(stage)
    schedulers = build_schedulers(schedule, optimizer, length, per_epoch, experiment.task)
    try_schedulers(schedulers, schedule, optimizer, length)
    return optimizer


def _check_optimizer_state(
    stage: Stage, source: str, optimizers: Mapping[str, "Optimizer"]
) -> None:
    """A stage that goes on with an optimizer's state has the same optimizer and parameters."""
    (former, former_groups), (kind, groups) = (
        (type(optimizer).__name__, [len(group["params"]) for group in optimizer.param_groups])
        for optimizer in (optimizers[source], optimizers[stage.name])
    )
    if (former, former_groups) != (kind, groups):
        raise ConfigError(
            f"stage {stage.name!r}: optimizer_state='keep' needs the optimizer and the parameters "
            f"of stage {source!r}: it has {former} of {sum(former_groups)} parameters, this one "
            f"{kind} of {sum(groups)}"
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
            f"{name} is of {unknown!r}, which is not the student's, so it counts as a teacher's, "
            "and the control, "
            f"{parts.control.name!r}, goes without {name}. If no teacher has a part in it: "
            f"data.own=[{unknown!r}]; else losses.{name}.alone=0 says that this is right",
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
