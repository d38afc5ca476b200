"""One stage as one mmengine Runner: what is read, evaluated and saved."""

import itertools
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdtasks.core import Distiller
from kdtasks.core.finite import not_finite
from kdtasks.engine import checkpoint
from kdtasks.engine.anchors import Route
from kdtasks.engine.evaluation import evaluate
from kdtasks.engine.from_mmengine import Runner
from kdtasks.engine.held_attributes import HeldAttributes
from kdtasks.engine.hooks import build_hooks
from kdtasks.engine.loader import Loader
from kdtasks.engine.loop import Lengths, NotFiniteError, StageLoop
from kdtasks.engine.optim import ForeignScheduler, MovingAverage, StepWrapper, build_schedulers
from kdtasks.engine.parameters import clip_groups, select_parameters
from kdtasks.engine.resume import process_state, resume_state
from kdtasks.engine.show import METRICS
from kdtasks.engine.task import Task
from kdtasks.engine.trackers import Tracker

_numbers = itertools.count()


@dataclass(frozen=True)
class StageSetup:
    """What a :class:`StageRunner` needs to know of its stage.

    Attributes:
        name: of the stage.
        folder: where its checkpoints go.
        log_file: the run's log.
        distiller: built (:meth:`Distiller.build`), on its device.
        loader: the training batches.
        test_loader: what ``task.evaluate`` is given.
        task: measures the student, and says what is better.
        optimizer: builds the torch optimizer from the parameters that train.
        schedule: mmengine scheduler dicts; those by epoch are turned into iterations.
        train: patterns of parameters that train.
        lengths: of the stage and its intervals.
        options: the parts of the config that concern a step (amp, accumulate, clip_grad, ema,
            sync_bn).
        keep: epochs whose checkpoints are kept.
        before_step: called with each batch before the step.
        routes: of teachers that are anchors; what they have chosen is saved and put back.
        seed: of the random streams.
        meta: plain facts saved with every checkpoint.
        show: called with ``(iteration, total, {name: value})`` at each read.
        custom_hooks: as in a config.
        tracker: where the curves go beside the log; None: nowhere.
        find_unused_parameters: of DDP.
        finish: called with the student, and its average, after the last step, before they are
            evaluated.
    """

    name: str
    folder: Path
    log_file: Path
    distiller: Distiller
    loader: Loader
    test_loader: Loader
    task: Task
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    schedule: list[dict]
    train: Sequence[str]
    lengths: Lengths
    options: Mapping[str, Any]
    keep: Sequence[int] = ()
    before_step: Callable[[dict], dict] | None = None
    routes: Mapping[str, Route] = field(default_factory=dict)
    seed: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    show: Callable[..., None] | None = None
    custom_hooks: Sequence = ()
    tracker: Tracker | None = None
    find_unused_parameters: bool = False
    finish: Callable[[nn.Module], None] | None = None


class StageRunner(Runner):
    """mmengine's Runner, with what breaks on a current torch put right in one place.

    Hooks, message hub, visualizer, optimizer wrapper and parameter schedulers are mmengine's; the
    process group (gloo on a CPU), DDP, checkpoints and the log file are ours. ``custom_hooks`` of a
    config get the usual calls; ``outputs`` of ``after_train_iter`` are the losses as detached
    tensors on the device, which has to wait for whoever reads them; what a batch of an evaluation
    came to stays with the task, so ``after_val_iter`` gets None.

    Args:
        setup: of the stage.
    """

    def __init__(self, setup: StageSetup):
        self.setup, self.distiller = setup, setup.distiller
        self.device = next(setup.distiller.student.parameters()).device
        self.task, self.test_loader = setup.task, setup.test_loader
        self.keep, self.options, self.show = set(setup.keep), setup.options, setup.show
        self.folder, self.meta = setup.folder, dict(setup.meta)
        self.metrics: dict[str, float] = {}
        # 'train' and 'test': path and why, of all processes
        self.unreadable: dict[str, dict[str, str]] = {}
        self.history: list[dict] = []
        self.best: float | None = None
        self.seconds, self._since = 0.0, time.perf_counter()
        trained = select_parameters(setup.distiller, setup.train)
        hooks = build_hooks(setup.custom_hooks)
        self._init_mmengine(setup, hooks)
        self.stepper = StepWrapper(
            setup.optimizer(trained),
            self.options["amp"],
            self.device.type,
            self.options["accumulate"],
            clip_groups(setup.distiller),
            self.options["clip_grad"],
        )
        # what mmengine calls it; so with the loop
        self.optim_wrapper = self.stepper
        self.loop = StageLoop(self, setup.loader, setup.lengths, setup.before_step)
        self._train_loop = self.loop
        self.param_schedulers = build_schedulers(
            setup.schedule, self.optim_wrapper, setup.lengths.total, len(setup.loader), setup.task
        )
        decay = self.options["ema"]
        self.average = MovingAverage(setup.distiller.student, decay) if decay else None
        # masks of -inf, the first range of an observer
        self._never_finite = set(not_finite(self._buffers()))
        self.held = HeldAttributes(setup.distiller, hooks, self.param_schedulers, setup.routes)

    def _init_mmengine(self, setup: StageSetup, hooks: list) -> None:
        # mmengine keeps loggers and visualizers by name
        unique = f"{setup.name}_{next(_numbers)}"
        left_out = ("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")
        super().__init__(
            model=setup.distiller,
            work_dir=str(self.folder),
            train_dataloader=cast(Any, setup.loader),
            train_cfg={},
            optim_wrapper={},
            default_hooks=cast(Any, dict.fromkeys(left_out)),
            custom_hooks=hooks,
            launcher="none" if get_dist_info()[1] == 1 else "pytorch",
            visualizer=setup.tracker or Tracker(unique, []),
            randomness={"seed": setup.seed},
            experiment_name=unique,
            default_scope="mmengine",
        )

    # What mmengine's Runner does otherwise --------------------------------------------------------
    def build_logger(self, *args, **kwargs) -> MMLogger:
        """A logger that writes to the run's file only, in UTF-8: the screen has the bar."""
        logger = MMLogger.get_instance(
            self._experiment_name,
            log_file=str(self.setup.log_file),
            log_level="INFO",
            file_mode="a",
        )
        files = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]
        logger.handlers = list(files)
        for handler in files:
            cast(Any, handler.stream).reconfigure(encoding="utf-8", errors="surrogateescape")
        with suppress(OSError):
            # made, and not needed
            Path(self._log_dir).rmdir()
        return logger

    def _log_env(self, env_cfg: dict) -> None:
        self.logger.info(
            "torch %s, %s, %d process(es)", torch.__version__, self.device, self.world_size
        )

    def dump_config(self) -> None:
        """Nothing: the run writes its config once, not each stage."""

    def get_hooks_info(self) -> str:
        """The hooks' names, in one line of the log."""
        return ", ".join(type(hook).__name__ for hook in self._hooks)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """DDP where there are several processes, with BatchNorm over all of them if asked for."""
        if self.world_size == 1:
            return model
        if self.options["sync_bn"]:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # No device_ids: inputs are in place already, and some (index, view, labelled) stay on the
        # CPU.
        return DistributedDataParallel(
            model, find_unused_parameters=self.setup.find_unused_parameters
        )

    def train(self) -> nn.Module:
        """Run the stage from where it stands to its end."""
        loop = self.loop
        self.call_hook("before_run")
        self.stepper.initialize_count_status(self.model, loop.iter, loop.max_iters)
        self._since = time.perf_counter()
        try:
            # accumulation: schedulers step before the first update
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore",
                    message="Detected call of `(lr_)?scheduler.step|Seems like `optimizer.step",
                )
                model = loop.run()
            self.call_hook("after_run")
            return model
        finally:
            for loader in (self.loop.loader, self.test_loader):
                if isinstance(loader, Loader):
                    loader.close()
            self.visualizer.close()
            for handler in self.logger.handlers:
                handler.close()
            # by name, for ever
            named: list[Any] = [self.logger, self.message_hub, self.default_scope]
            for kept in named:
                type(kept)._instance_dict.pop(kept.instance_name, None)

    def losses_of(self, batch: Mapping) -> dict[str, Tensor]:
        """The losses of a batch, in the precision of a step."""
        with self.stepper.optim_context(self.model):
            return self.model(batch)

    # Reading, evaluating, saving ------------------------------------------------------------------
    @property
    def evaluated(self) -> nn.Module:
        """The model that counts: the student, or its moving average.

        Raises:
            RuntimeError: the average is of a student that was replaced since.
        """
        if self.average and self.average.followed is not self.distiller.student:
            raise RuntimeError(
                "the student was replaced in the course of the stage, and ema averages the former "
                "one: expected ema=None, or runner.average = MovingAverage(student, decay) of the "
                "new one"
            )
        return self.average.model if self.average else self.distiller.student

    def note(self, losses: dict[str, float]) -> None:
        """Log what was read."""
        rate = self.stepper.optimizer.param_groups[0]["lr"]
        iteration = self.loop.iter
        self.history.append({"iteration": iteration, "lr": rate, **losses})
        for name, value in losses.items():
            self.message_hub.update_scalar(f"train/{name}", value)
        self.visualizer.add_scalars({"lr": rate, **losses}, step=iteration)
        self.logger.info(
            "%d/%d  lr %.4g  %s",
            iteration,
            self.loop.max_iters,
            rate,
            "  ".join(f"{k} {v:.4f}" for k, v in losses.items()),
        )
        if self.show:
            self.show(iteration, self.loop.max_iters, losses)

    def finish_now(self) -> bool:
        """Change the student as the stage says, and its average likewise; whether it says so."""
        if self.setup.finish is None:
            return False
        for model in {
            id(model): model for model in (self.distiller.student, self.evaluated)
        }.values():
            model.eval()
            with torch.no_grad():
                self.setup.finish(model)
        self.distiller.train()
        return True

    def evaluate_now(self) -> None:
        """Evaluate, note the metrics, and keep the best weights."""
        self.call_hook("before_val")
        self.call_hook("before_val_epoch")
        self.metrics = self._measured()
        self.distiller.train()
        self._note_metrics()
        self._step_on_metrics()
        self.call_hook("after_val_epoch", metrics=self.metrics)
        self.call_hook("after_val")
        value = self.metrics[self.task.primary]
        if self.best is None or self.task.is_better(value, self.best):
            self.best = value
            self._check_finite()
            if self.rank == 0:
                checkpoint.save(self._weights(), self.folder / "best.pth")

    def _measured(self) -> dict[str, float]:
        try:
            return self._evaluate_learners()
        # an answer that is not finite, say
        except ValueError as error:
            self._check_finite()
            raise ValueError(
                f"evaluation after iteration {self.loop.iter} of stage "
                f"{self.meta.get('stage')!r}: {error}"
            ) from error

    def _note_metrics(self) -> None:
        iteration, total = self.loop.iter, self.loop.max_iters
        self.history.append({"iteration": iteration, **self.metrics})
        texts = (f"{k} {v:.{self.task.decimals(k, 3)}f}" for k, v in self.metrics.items())
        self.logger.info("%d/%d  %s", iteration, total, "  ".join(texts))
        self.visualizer.add_scalars(self.metrics, step=iteration)
        if self.show:
            self.show(iteration, total, dict(itertools.islice(self.metrics.items(), METRICS)))

    def _evaluate_learners(self) -> dict[str, float]:
        """The student's metrics, and each peer's as ``peer1_<metric>``; rank 0's in all ranks."""
        metrics = evaluate(
            self.task, self.evaluated, self.test_loader, self._before_batch, self._after_batch
        )
        for role, peer in zip(self.distiller.learners[1:], self.distiller.peers):
            values = evaluate(self.task, peer, self.test_loader)
            metrics |= {f"{role}_{name}": value for name, value in values.items()}
        if self.world_size > 1:
            # where BatchNorm's statistics are each process's own, so are the metrics; schedules and
            # hooks of all have to read the same, and that of the weights that are saved
            first = [metrics]
            torch.distributed.broadcast_object_list(first, src=0)
            (metrics,) = first
        return metrics

    def _step_on_metrics(self) -> None:
        for scheduler in self.param_schedulers:
            if isinstance(scheduler, ForeignScheduler):
                scheduler.evaluated(self.metrics)

    def _before_batch(self, count: int, batch: dict) -> None:
        if self.show:
            self.show(
                self.loop.iter,
                self.loop.max_iters,
                {},
                note=f"evaluating, {count / len(self.test_loader):.0%}",
            )
        self.call_hook("before_val_iter", batch_idx=count, data_batch=batch)

    def _after_batch(self, count: int, batch: dict) -> None:
        self.call_hook("after_val_iter", batch_idx=count, data_batch=batch, outputs=None)

    def _weights(self) -> dict:
        meta = {**self.meta, "iteration": self.loop.iter, "metrics": self.metrics}
        return {"meta": meta, "state_dict": self.evaluated.state_dict()}

    def keep_now(self, epoch: int) -> None:
        """Save the weights of an epoch that is to be kept."""
        self._check_finite()
        if self.rank == 0:
            checkpoint.save(self._weights(), self.folder / f"epoch_{epoch}.pth")

    def save_now(self) -> None:
        """Save all that is needed to go on; every rank takes part."""
        self._check_finite()
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        ours = {**process_state(self), "met": self._met()}
        states: list[Any] = [ours]
        if self.world_size > 1:
            states = [None] * self.world_size
            torch.distributed.all_gather_object(states, ours)
        self._note_unreadable([state["met"] for state in states])
        if self.rank == 0:
            state = {**self._weights(), "resume": resume_state(self, states)}
            self.call_hook("before_save_checkpoint", checkpoint=state)
            checkpoint.save(state, self.folder / "last.pth")
            checkpoint.save_json(self.history, self.folder / "history.json")
        if self.world_size > 1:
            barrier()

    def _met(self) -> dict[str, dict[str, str]]:
        """``{'train' or 'test': {path: why}}`` of what this process could not read in the stage so
        far.
        """
        loaders = {"train": self.loop.loader, "test": self.test_loader}
        return {
            part: dict(getattr(loader, "unreadable", None) or {})
            for part, loader in loaders.items()
        }

    def _note_unreadable(self, met: list[dict]) -> None:
        """Add what the processes have met to :attr:`unreadable`, and log what is new."""
        for part, errors in (
            (part, errors) for reported in met for part, errors in reported.items()
        ):
            noted = self.unreadable.setdefault(part, {})
            for path in sorted(errors.keys() - noted.keys()):
                self.logger.warning(
                    f"unreadable, left out of the {part} data: {path}: {errors[path]}"
                )
            noted.update(errors)

    def _buffers(self) -> dict[str, Tensor]:
        average = (
            {f"average.{name}": b for name, b in self.average.model.named_buffers()}
            if self.average
            else {}
        )
        return {**dict(self.distiller.named_buffers()), **average}

    def _check_finite(self) -> None:
        weights = dict(self.distiller.named_parameters())
        bad = [
            name
            for name in not_finite({**weights, **self._buffers()})
            if name not in self._never_finite
        ]
        if bad:
            what = "weights" if bad[0] in weights else "statistics"
            self.save_and_raise(
                f"the {what} {bad[0]!r} are not finite after iteration {self.loop.iter - 1}"
            )

    def save_and_raise(self, what: str) -> NoReturn:
        """Save what there is beside the last good checkpoint, and stop.

        Raises:
            NotFiniteError: always.
        """
        failed, good = self.folder / "failed.pth", self.folder / "last.pth"
        if self.rank == 0:
            checkpoint.save({**self._weights(), "meta": {**self.meta, "failed": what}}, failed)
        raise NotFiniteError(
            f"{what} of stage {self.meta.get('stage')!r}. The weights now are in {str(failed)!r}; "
            + (
                f"the last good ones are in {str(good)!r}"
                if good.exists()
                else "there are no earlier ones"
            )
            + ". --resume would repeat the same steps: use another --work-dir with a lower "
            "learning rate, clip_grad, or amp=None; teacher.checkpoint=<its stage's last.pth> "
            "keeps a finished teacher"
        )
