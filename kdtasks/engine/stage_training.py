"""One stage of an experiment, from its models and data to its results."""

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kdtasks.core import Distiller, Stage
from kdtasks.core.names import STUDENT
from kdtasks.engine import builder
from kdtasks.engine.anchors import check_kept, routes_of
from kdtasks.engine.clock import working_seconds
from kdtasks.engine.config_checks import iterations
from kdtasks.engine.data_facts import check_data
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.loader import Loader
from kdtasks.engine.loop import Lengths
from kdtasks.engine.notices import Notices, differing_ranks
from kdtasks.engine.parameters import build_optimizer, leaves_parameters_out
from kdtasks.engine.preparation import preparation
from kdtasks.engine.processes import led
from kdtasks.engine.resume import resume_from, take_optimizer_state
from kdtasks.engine.runner import StageRunner, StageSetup
from kdtasks.engine.show import Bar
from kdtasks.engine.sources import check_sources
from kdtasks.engine.trackers import open_tracker
from kdtasks.engine.work_dir import WorkDir


@dataclass(frozen=True)
class Outcome:
    """What a stage came to.

    Attributes:
        metrics: of its last evaluation, and ``seconds``.
        facts: where there is something to say, ``ended_early``, ``unreadable``, the ``routes`` of
            anchors that were chosen and, of networks that learn side by side, which one ``counts``.
        timing: what its training took, as :attr:`WorkDir.timings` has it; empty where a part of it
            was trained by a version that did not record it.
    """

    metrics: dict[str, float]
    facts: dict[str, Any]
    timing: dict[str, float]


def train_stage(
    experiment: Experiment, stage: Stage, files: WorkDir, resume: bool, notices: Notices
) -> Outcome:
    """Train a stage to its end; its checkpoints are then in its folder.

    Its models and its loader are made anew: those of :func:`kdtasks.engine.check.check` lack what
    earlier stages have left, and of all stages they would not fit into the memory at once.

    Args:
        experiment: whose stage it is.
        stage: which.
        files: of the run.
        resume: go on from the stage's last checkpoint, if there is one.
        notices: what is told on the screen.
    """
    led(lambda beat: check_sources(experiment.config, files, notices))
    led(lambda beat: check_data(experiment, stage, files, notices))
    loader = experiment.train_loader(stage, files)
    first = experiment.first_batch(stage, files)
    distiller = experiment.built_distiller(stage, files, first)
    experiment.task.equip(experiment, stage, distiller, files)
    lengths = _lengths(experiment, stage, files, loader)
    begun = working_seconds()
    routes = routes_of(experiment, stage, distiller, files)
    before_step = preparation(experiment, stage, distiller, files, first, routes, notices.quiet)
    prepared = working_seconds() - begun
    with Bar(stage.name, lengths.total, notices.quiet) as bar:
        setup = dataclasses.replace(
            _setup(experiment, stage, files, loader, distiller, lengths),
            find_unused_parameters=experiment.world > 1 and leaves_parameters_out(distiller, first),
            before_step=before_step,
            routes=routes,
            show=bar,
        )
        runner = StageRunner(setup)
        if differs := differing_ranks(experiment, distiller):
            runner.logger.warning(differs)
            notices.say(f"note: {differs}")
        last = files.weights(stage.name)
        if resume and last.exists():
            resume_from(runner, last)
        elif stage.optimizer_state == "keep":
            source = experiment.source(stage)
            assert source is not None  # check_stages has seen to it
            take_optimizer_state(runner, files.weights(source))
        runner.train()
    check_kept(experiment, stage, files)
    return _outcome(runner, lengths.total, prepared)


def _setup(
    experiment: Experiment,
    stage: Stage,
    files: WorkDir,
    loader: Loader,
    distiller: Distiller,
    lengths: Lengths,
) -> StageSetup:
    """What the config says of a stage's training; what the run adds is not there yet."""
    config = experiment.config

    def optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return build_optimizer(experiment.setting(stage, "optimizer"), distiller, parameters)

    return StageSetup(
        name=stage.name,
        folder=files.folder(stage.name),
        log_file=files.path / "train.log",
        distiller=distiller,
        loader=loader,
        test_loader=experiment.test_loader(stage),
        task=experiment.task,
        optimizer=optimizer,
        schedule=experiment.schedule(stage),
        train=stage.train,
        lengths=lengths,
        options=config,
        keep=stage.keep,
        seed=experiment.seed,
        meta=experiment.meta(stage),
        custom_hooks=copy.deepcopy(config["custom_hooks"]),
        tracker=open_tracker(experiment, files, stage.name),
        finish=_finish(experiment, stage, files),
    )


def _finish(
    experiment: Experiment, stage: Stage, files: WorkDir
) -> Callable[[torch.nn.Module], None] | None:
    """What the stage does to its model after the last step."""
    if stage.finish is None:
        return None
    function = builder.bind(stage.finish, f"{stage.name}.finish")
    return lambda model: function(model, experiment, stage, files)


def _lengths(experiment: Experiment, stage: Stage, files: WorkDir, loader: Loader) -> Lengths:
    config, per_epoch = experiment.config, len(loader)

    def interval(key: str) -> int:
        return iterations(config[key], per_epoch, key)

    return Lengths(
        total=experiment.iterations(stage, per_epoch),
        log=config["log_interval"],
        validate=interval("val_interval"),
        checkpoint=interval("checkpoint_interval"),
        first_epoch=experiment.first_epoch(stage, files),
    )


def _outcome(runner: StageRunner, length: int, prepared: float) -> Outcome:
    facts: dict[str, Any] = {}
    steps = runner.loop.iter
    if steps < length:
        facts["ended_early"] = {"iterations": steps, "of": length}
    unreadable = {part: paths for part, paths in runner.unreadable.items() if paths}
    if unreadable:
        facts["unreadable"] = unreadable
    taken = {name: route.taken for name, route in runner.setup.routes.items() if route.chosen}
    if taken:
        facts["routes"] = taken
    if runner.distiller.peers:
        facts["counts"] = STUDENT
    timing = {}
    if math.isfinite(runner.loop.seconds):
        timing = {
            "iterations": steps,
            "training_seconds": round(runner.loop.seconds, 3),
            "preparation_seconds": round(prepared, 3),
        }
    return Outcome({**runner.metrics, "seconds": round(runner.seconds, 3)}, facts, timing)
