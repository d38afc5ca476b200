"""Two steps of every stage on random tensors: is the config sound, how large and how slow is it?"""

import math
import time
import warnings
from collections.abc import Mapping

import torch

from kdtasks.core import Distiller, Stage
from kdtasks.core.outputs import describe_shape
from kdtasks.core.terms import total_loss
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.loader import to_device
from kdtasks.engine.parameters import build_optimizer


def dry_run(experiment: Experiment, steps: int = 2) -> list[dict]:
    """Build each stage and take ``steps`` steps on what the task's ``example`` gives; no data and
    no files are read (:func:`kdtasks.engine.check.check` does that).

    Returns:
        A row a stage: ``stage``, ``parameters`` that train, ``teacher_parameters``, ``step_ms`` of
        the last step, ``loss``, ``memory_mb`` (the peak, CUDA only), ``shapes`` of the tensors that
        the losses are called with.

    Raises:
        ConfigError: a loss is not finite after the steps, or a model cannot take such tensors.
    """
    return [_try_stage(experiment, stage, steps) for stage in experiment.stages]


def _try_stage(experiment: Experiment, stage: Stage, steps: int) -> dict:
    """The row of one stage."""
    data, share = experiment.setting(stage, "data"), experiment.unlabelled(stage)
    batch = example(experiment, stage, data["batch_size"] + share)
    if share:
        batch["labelled"] = torch.arange(len(batch["input"])) < data["batch_size"]
    distiller = experiment.distiller(stage, load=False)
    # of teachers not trained yet
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            shapes = distiller.build(batch)
    except RuntimeError as error:
        sizes = describe_shape(batch["input"])
        raise ConfigError(
            f"stage {stage.name!r}: its models cannot take random images {sizes}, "
            f"the size that the config says: {error}"
        ) from error
    on_cuda = experiment.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    loss, seconds = _take_steps(experiment, stage, distiller, batch, steps)
    if not math.isfinite(loss):
        raise ConfigError(
            f"stage {stage.name!r}: the loss is {loss} after {steps} steps on random tensors"
        )
    teachers = [p for role in distiller.teachers for p in distiller.model(role).parameters()]
    return {
        "stage": stage.name,
        "parameters": sum(p.numel() for p in distiller.parameters() if p.requires_grad),
        "shapes": shapes,
        "loss": loss,
        "teacher_parameters": sum(p.numel() for p in teachers),
        "step_ms": 1000 * seconds,
        "memory_mb": torch.cuda.max_memory_allocated() / 2**20 if on_cuda else None,
    }


def example(experiment: Experiment, stage: Stage, batch_size: int) -> dict:
    """Random tensors of the shapes of a stage's data, on the device."""
    config = {**experiment.config, "data": experiment.setting(stage, "data")}
    if stage.model == "student":
        config["student"] = {**config["student"], **stage.arguments}
    batch = experiment.task.example(config, batch_size)
    return {name: to_device(value, experiment.device) for name, value in batch.items()}


def _take_steps(
    experiment: Experiment, stage: Stage, distiller: Distiller, batch: dict, steps: int
) -> tuple[float, float]:
    """The loss of the last step, and its seconds."""
    trained = [p for p in distiller.parameters() if p.requires_grad]
    optimizer = build_optimizer(experiment.setting(stage, "optimizer"), distiller, trained)
    loss, started = math.nan, time.perf_counter()

    def losses_of(batch: Mapping) -> dict:
        with experiment.precision():
            return distiller(batch)

    for step in range(steps):
        started = time.perf_counter()
        distiller.progress = (step, steps)
        for losses in distiller.steps(batch, losses_of):
            total = torch.as_tensor(total_loss(losses))
            total.backward()
            if experiment.config["clip_grad"]:
                torch.nn.utils.clip_grad_norm_(trained, experiment.config["clip_grad"])
            optimizer.step()
            optimizer.zero_grad()
            loss = float(total.detach())
    return loss, time.perf_counter() - started
