"""One stage of an experiment, from its models and data to its results."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kdtasks.core import Distiller, Stage
from kdtasks.engine import builder
from kdtasks.engine.config import iterations
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.loader import Loader
from kdtasks.engine.notices import Notices, differing_ranks
from kdtasks.engine.preparation import preparation
from kdtasks.engine.runner import StageRunner, leaves_parameters_out
from kdtasks.engine.show import Bar
from kdtasks.engine.work_dir import WorkDir


@dataclass(frozen=True)
class Outcome:
    """What a stage came to.

    Attributes:
        metrics: of its last evaluation, and ``seconds``.
        facts: ``ended_early`` and ``unreadable``, where there is something to say.
    """

    metrics: dict[str, float]
    facts: dict[str, Any]


def train_stage(
    experiment: Experiment, stage: Stage, files: WorkDir, resume: bool, notices: Notices
) -> Outcome:
    """Train a stage to its end; its checkpoints are then in its folder.

    Args:
        experiment: whose stage it is.
        stage: which.
        files: of the run.
        resume: go on from the stage's last checkpoint, if there is one.
        notices: what is told on the screen.
    """
    loader = experiment.train_loader(stage, files)
    distiller = experiment.distiller(stage, files)
    first = experiment.first_batch(stage, files)
    with experiment.seeded(f"{stage.name}:build"):
        distiller.build(first)
    length = _iterations(experiment, stage, loader)["length"]
    with Bar(stage.name, length, notices.quiet) as bar:
        runner = _runner(experiment, stage, files, loader, distiller, first, bar)
        if differs := differing_ranks(experiment, distiller):
            runner.logger.warning(differs)
            notices.say(f"note: {differs}")
        last = files.weights(stage.name)
        if resume and last.exists():
            runner.resume_from(last)
        elif stage.optimizer_state == "keep":
            source = experiment.source(stage)
            assert source is not None  # check_stages has seen to it
            runner.take_optimizer_state(files.weights(source))
        runner.train()
    return _outcome(runner, length)


def _runner(
    experiment: Experiment,
    stage: Stage,
    files: WorkDir,
    loader: Loader,
    distiller: Distiller,
    first: Mapping,
    bar: Bar,
) -> StageRunner:
    config = experiment.config
    tensorboard = None
    if config["tensorboard"] and experiment.rank == 0:
        tensorboard = files.path / "tensorboard" / stage.name

    def optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return builder.build(experiment.setting(stage, "optimizer"), "optimizer", params=parameters)

    return StageRunner(
        name=stage.name,
        folder=files.folder(stage.name),
        log_file=files.path / "train.log",
        seed=experiment.seed,
        distiller=distiller,
        loader=loader,
        test_loader=experiment.test_loader(stage),
        task=experiment.task,
        find_unused_parameters=experiment.world > 1 and leaves_parameters_out(distiller, first),
        prepare=preparation(experiment, stage, distiller, files, first),
        optimizer=optimizer,
        schedule=experiment.schedule(stage),
        train=stage.train,
        log_interval=config["log_interval"],
        keep=stage.keep,
        **_iterations(experiment, stage, loader),
        first_epoch=experiment.first_epoch(stage, files),
        meta=experiment.meta(stage),
        show=bar,
        options=config,
        custom_hooks=copy.deepcopy(config["custom_hooks"]),
        tensorboard=tensorboard,
    )


def _iterations(experiment: Experiment, stage: Stage, loader: Loader) -> dict[str, int]:
    """What a config gives in epochs or iterations, in iterations."""
    settings = {
        "length": (experiment.setting(stage, "length"), f"{stage.name}.length"),
        "val_interval": (experiment.config["val_interval"], "val_interval"),
        "checkpoint_interval": (experiment.config["checkpoint_interval"], "checkpoint_interval"),
    }
    return {key: iterations(value, len(loader), where) for key, (value, where) in settings.items()}


def _outcome(runner: StageRunner, length: int) -> Outcome:
    facts: dict[str, Any] = {}
    steps = runner.train_loop.iter
    if steps < length:
        facts["ended_early"] = {"iterations": steps, "of": length}
    unreadable = {part: paths for part, paths in runner.unreadable.items() if paths}
    if unreadable:
        facts["unreadable"] = unreadable
    return Outcome({**runner.metrics, "seconds": round(runner.seconds, 3)}, facts)
