"""An experiment: what a config and a seed describe, before anything is trained."""

import copy
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from kdtasks.core import Stage
from kdtasks.engine import builder
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.loader import Loader
from kdtasks.engine.model_factory import ModelFactory
from kdtasks.engine.processes import device_type, rank_and_world
from kdtasks.engine.stage_models import StageModels
from kdtasks.engine.stages import make_stages
from kdtasks.engine.task import load_task
from kdtasks.engine.work_dir import WorkDir


class Experiment(StageModels):
    """The stages, models, data and distillers that a config describes, for one seed.

    It writes nothing. What finished stages have left is read from a
    :class:`~kdtasks.engine.work_dir.WorkDir` that is given to the functions which need it:

        experiment = Experiment(config)
        for stage in experiment.stages:
            distiller = experiment.distiller(stage)

    How the stages hang together is in :class:`~kdtasks.engine.stage_plan.StagePlan`, their models
    and distillers in :class:`~kdtasks.engine.stage_models.StageModels`; here are their batches.

    Args:
        config: from :func:`kdtasks.engine.config.load` or :func:`~kdtasks.engine.config.complete`.
        seed: of the weights, the order and the views.
        device: ``'cpu'``, ``'cuda'``; None: CUDA where there is one.
        name: of the config, as it is written to results.json.

    Attributes:
        stages: all stages, in order.
        specs: ``{name: description}`` of the models: the student, teachers and further ones.
        task: the :class:`~kdtasks.engine.task.Task`.
        data: the :class:`~kdtasks.engine.data_store.DataStore`.
        rank, world: this process and their number.

    Raises:
        ConfigError: something in the config that can be known before any data or weights are read.
    """

    def __init__(
        self, config: Mapping, seed: int = 0, device: str | None = None, name: str = "config"
    ):
        config = copy.deepcopy(dict(config))
        self.rank, self.world = rank_and_world()
        factory = ModelFactory(config, seed, torch.device(device_type(device)))
        _check_process(config, factory.device, self.world)
        _check_hooks(config)
        task = load_task(config["task"])
        stages = make_stages(config, {*factory.supplied_names(), *task.own_names})
        super().__init__(config, stages, factory, task, name)

    def set_threads(self) -> None:
        """Give torch as many threads in this process as the config says."""
        if self.config["threads"]:
            torch.set_num_threads(self.config["threads"])

    def precision(self) -> AbstractContextManager:
        """The autocast context of a step."""
        amp = self.config["amp"]
        dtype = getattr(torch, amp or "bfloat16")
        return torch.autocast(self.device.type, dtype, enabled=bool(amp))

    def training_set(self, stage: Stage, files: WorkDir | None = None) -> Any:
        """What a stage learns from: the config's data, and what the task makes of it.

        Args:
            stage: which.
            files: what earlier stages have left may decide on the samples; None: nothing yet.
        """
        made = self.data.train_set(self.setting(stage, "data"))
        return self.task.training_set(self, stage, made, files)

    def train_loader(self, stage: Stage, files: WorkDir | None = None, **changes) -> Loader:
        """The training batches of a stage.

        Without teachers: the labelled samples only (see :meth:`unlabelled`).

        Args:
            stage: which.
            files: as in :meth:`training_set`.
            changes: of the stage's ``data``.
        """
        data = {**self.setting(stage, "data"), **changes}
        train, share = self.training_set(stage, files), self.unlabelled(stage)
        return Loader(
            train,
            data["batch_size"] + share,
            labelled="target" if _marks_unlabelled(train) else None,
            unlabelled_per_batch=share,
            views=self.config["cache"]["views"] if self.is_cached(stage) else 0,
            per_class=data["per_class"],
            length=data["iterations_per_epoch"],
            rank=self.rank,
            world=self.world,
            **self.loader_options(data),
        )

    def first_batch(self, stage: Stage, files: WorkDir | None = None) -> dict:
        """The first training batch of a stage.

        It is read by a loader of its own in this process: the training's would start its workers
        for it, and note as unreadable what no step of the training has met.
        """
        return next(iter(self.train_loader(stage, files, workers=0).epoch(0)))

    def first_epoch(self, stage: Stage, files: WorkDir | None = None) -> int:
        """The epoch whose order and views a stage begins with.

        A stage that goes on with an earlier one's student goes on with the next epoch.
        """
        source = self.source(stage)
        if source is None:
            return 0
        earlier = self.stage(source)
        per_epoch = len(self.train_loader(earlier, files, workers=0))
        epochs = -(-self.iterations(earlier, per_epoch) // per_epoch)
        return self.first_epoch(earlier, files) + epochs

    def test_loader(
        self, stage: Stage, classes: Sequence[str] | str | None = "train", **changes
    ) -> Loader:
        """All test samples, in order.

        Args:
            stage: which.
            classes: whose numbers count: ``'train'``, the training data's; a list, as a model knows
                them, and the training data is not read; None: the test set's own.
            changes: of the stage's ``data``.
        """
        data = {**self.setting(stage, "data"), **changes}
        return Loader(
            self.data.test_set(data, classes),
            data["test_batch_size"],
            shuffle=False,
            **self.loader_options(data),
        )

    def loader_options(self, data: Mapping) -> dict:
        """What every :class:`Loader` of a data setting is given."""
        collate = builder.resolve(data["collate"], "data.collate") if data["collate"] else None
        return {
            "seed": self.seed,
            "workers": data["workers"],
            "timeout": data["timeout"],
            "device": self.device,
            "skip_bad": data["skip_bad"],
            "collate": collate,
            "channels_last": self.config["channels_last"],
        }


def _check_process(config: Mapping, device: torch.device, world: int) -> None:
    """The config's precision and statistics are there on this device, and its processes are."""
    if world == 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(
            f"this is one of {os.environ['WORLD_SIZE']} processes: add --launcher pytorch"
        )
    if config["amp"] == "float16" and device.type != "cuda":
        raise ConfigError(
            "amp='float16' needs a CUDA device (its gradients need a scaler); use "
            "amp='bfloat16' here"
        )
    if config["sync_bn"] and device.type != "cuda":
        raise ConfigError(
            "sync_bn=True needs CUDA devices: torch shares BatchNorm statistics on no other"
        )


def _check_hooks(config: Mapping) -> None:
    hooks, backends = config["custom_hooks"], config["vis_backends"]
    if hooks or backends:
        from kdtasks.engine.trackers import check_plugins  # slow to import

        check_plugins(hooks, backends)


def _marks_unlabelled(dataset: Any) -> bool:
    """Whether ``target`` is one whole number a sample, of which -100 means unlabelled."""
    try:
        target = torch.as_tensor(dataset.target)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False
    return target.ndim == 1 and not target.is_floating_point()
