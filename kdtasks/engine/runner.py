"""One stage as one mmengine Runner: a loop counted in iterations, read from the device once per log
interval.
"""

import fnmatch
import itertools
import logging
import time
import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import MMLogger
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdtasks.core import Distiller
from kdtasks.core.attributes import attributes_of, changed_attributes, set_attributes
from kdtasks.core.finite import not_finite
from kdtasks.core.names import did_you_mean
from kdtasks.core.terms import total_loss
from kdtasks.core.trial import keep_state
from kdtasks.engine import checkpoint
from kdtasks.engine.evaluation import evaluate
from kdtasks.engine.hooks import build_hooks
from kdtasks.engine.optim import ForeignScheduler, MovingAverage, StepWrapper, build_schedulers
from kdtasks.engine.show import METRICS

_numbers = itertools.count()


class NotFiniteError(RuntimeError):
    """A loss or a weight became NaN or infinite; the message says which, and when."""


class LossBuffer:
    """Losses of the last steps, kept on the device; reading them is the only wait for it."""

    def __init__(self):
        self.rows: list[tuple[int, tuple[str, ...], Tensor]] = []

    def add(self, iteration: int, losses: dict[str, Tensor]) -> None:
        """Keep the losses of one step."""
        self.rows.append(
            (
                iteration,
                tuple(losses),
                torch.stack([v.detach().float().reshape(()) for v in losses.values()]),
            )
        )

    def read(self) -> dict[str, float]:
        """The mean of each loss over the steps since the last read.

        Raises:
            NotFiniteError: the first loss that is NaN or infinite, and its iteration.
        """
        if not self.rows:
            return {}
        lengths = [len(names) for _, names, _ in self.rows]
        values = torch.cat([row for _, _, row in self.rows])
        # the mean over ranks: all see a NaN of one
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(values)
            values = values / torch.distributed.get_world_size()
        # the one wait
        values = values.cpu().split(lengths)
        sums: dict[str, list[float]] = {}
        for (iteration, names, _), row in zip(self.rows, values):
            for name, value in zip(names, row.tolist()):
                if not abs(value) < float("inf"):
                    raise NotFiniteError(f"{name} is {value} at iteration {iteration}")
                sums.setdefault(name, []).append(value)
        self.rows.clear()
        return {name: sum(v) / len(v) for name, v in sums.items()}


class StageLoop(BaseLoop):
    """Step, read, evaluate, save; from any iteration on.

    Args:
        runner: the stage's runner.
        dataloader: an :class:`kdtasks.engine.loader.Loader`.
        length: iterations in all.
        log_interval, val_interval, checkpoint_interval: iterations between reads, evaluations and
            checkpoints.
        prepare: called with each batch before the step; adds what a cache knows.
        first_epoch: the number that the data's order and views give to the stage's first epoch.
    """

    def __init__(
        self,
        runner: "StageRunner",
        dataloader,
        length: int,
        log_interval: int,
        val_interval: int,
        checkpoint_interval: int,
        prepare: Callable[[dict], dict] | None = None,
        first_epoch: int = 0,
    ):
        super().__init__(runner, dataloader)
        self._max_iters, self._iter, self.first_epoch = length, 0, first_epoch
        self.log_interval, self.val_interval, self.checkpoint_interval = (
            log_interval,
            val_interval,
            checkpoint_interval,
        )
        self.prepare = prepare
        # a hook may set it: EarlyStoppingHook does
        self.stop_training = False
        self.buffer = LossBuffer()

    iter = property(lambda self: self._iter)
    max_iters = property(lambda self: self._max_iters)
    epoch = property(lambda self: self._iter // len(self.dataloader))
    max_epochs = property(lambda self: -(-self._max_iters // len(self.dataloader)))

    def run(self) -> nn.Module:
        """Train to the end and return the model."""
        runner = self.runner
        runner.call_hook("before_train")
        while self._iter < self._max_iters and not self.stop_training:
            runner.distiller.train()
            runner.call_hook("before_train_epoch")
            for batch in self.dataloader.epoch(
                self.first_epoch + self.epoch, start=self._iter % len(self.dataloader)
            ):
                self._step(batch)
                if self._iter == self._max_iters or self.stop_training:
                    break
            runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def move_to(self, iteration: int) -> None:
        """Go on from an iteration."""
        self._iter = iteration

    def _step(self, batch: dict) -> None:
        runner, iteration = self.runner, self._iter
        runner.message_hub.update_info("iter", iteration)
        runner.distiller.progress = (iteration, self._max_iters)
        if self.prepare:
            batch = self.prepare(batch)
        runner.call_hook("before_train_iter", batch_idx=iteration, data_batch=batch)
        with runner.optim_wrapper.optim_context(runner.model):
            losses = runner.model(batch)
            total = total_loss(losses)
        runner.optim_wrapper.update_params(total)
        if runner.average and runner.optim_wrapper.should_update():
            runner.average.update()
        losses = losses if len(losses) == 1 or "loss" in losses else {**losses, "loss": total}
        losses = {name: value.detach() for name, value in losses.items()}
        self.buffer.add(iteration, losses)
        runner.call_hook("after_train_iter", batch_idx=iteration, data_batch=batch, outputs=losses)
        self._iter += 1
        self._after()

    def _after(self) -> None:
        done, runner = self._iter, self.runner
        last = done == self._max_iters or self.stop_training
        validate = last or done % self.val_interval == 0
        keep = self._ends_kept_epoch()
        save = last or done % self.checkpoint_interval == 0
        save = save and (last or done % runner.optim_wrapper.accumulate == 0)
        if validate or save or keep or done % self.log_interval == 0:
            runner.note(self._read())
        if validate:
            runner.evaluate_now()
            save = save or self.stop_training
        if keep:
            # before last.pth: a kill in between then loses none
            runner.keep_now(done // len(self.dataloader))
        if save:
            runner.save_now()

    def _ends_kept_epoch(self) -> bool:
        return (
            self._iter % len(self.dataloader) == 0
            and self._iter // len(self.dataloader) in self.runner.keep
        )

    def _read(self) -> dict[str, float]:
        try:
            return self.buffer.read()
        except NotFiniteError as error:
            self.runner.save_and_raise(str(error))


class StageRunner(Runner):
    """mmengine's Runner, with what breaks on a current torch put right in one place.

    Hooks, message hub, visualizer, optimizer wrapper and parameter schedulers are mmengine's; the
    process group (gloo on a CPU), DDP, checkpoints and the log file are ours. ``custom_hooks`` of a
    config get the usual calls; ``outputs`` of ``after_train_iter`` are the losses as detached
    tensors on the device, which has to wait for whoever reads them; what a batch of an evaluation
    came to stays with the task, so ``after_val_iter`` gets None.

    Args:
        folder: where the stage's checkpoints go.
        log_file: the run's log.
        distiller: built (:meth:`Distiller.build`), on its device.
        task: the :class:`~kdtasks.engine.task.Task`.
        test_loader: what :func:`task.evaluate` is given.
        optimizer: builds the torch optimizer from the parameters that train.
        schedule: mmengine scheduler dicts; those by epoch are turned into iterations.
        train: patterns of parameters that train.
        meta: plain facts saved with every checkpoint.
        show: called with ``(iteration, total, {name: value})`` at each read.
        options: the parts of the config that concern a step (amp, accumulate, clip_grad, ema,
            sync_bn).
        first_epoch: see :class:`StageLoop`.
    """

    def __init__(
        self,
        *,
        name: str,
        folder: Path,
        log_file: Path,
        distiller: Distiller,
        loader,
        test_loader,
        task,
        optimizer: Callable,
        schedule: list[dict],
        train,
        length: int,
        log_interval: int,
        val_interval: int,
        checkpoint_interval: int,
        keep=(),
        prepare=None,
        seed: int = 0,
        meta: dict | None = None,
        show: Callable | None = None,
        options: dict,
        custom_hooks: list | None = None,
        tensorboard: Path | None = None,
        find_unused_parameters: bool = False,
        first_epoch: int = 0,
    ):
        self.distiller, self.device = distiller, next(distiller.student.parameters()).device
        self.task, self.test_loader, self.keep, self.options = task, test_loader, set(keep), options
        self.folder, self.log_file, self.meta, self.show = (
            Path(folder),
            log_file,
            dict(meta or {}),
            show,
        )
        self.find_unused_parameters = find_unused_parameters
        self.metrics: dict[str, float] = {}
        # 'train' and 'test': path and why, of all processes
        self.unreadable: dict[str, dict[str, str]] = {}
        self.history: list[dict] = []
        self.best: float | None = None
        self.seconds, self._since = 0.0, time.perf_counter()
        trained = select_parameters(distiller, train)
        hooks = build_hooks(custom_hooks or [])
        # mmengine keeps loggers and visualizers by name
        unique = f"{name}_{next(_numbers)}"
        super().__init__(
            model=distiller,
            work_dir=str(self.folder),
            train_dataloader=loader,
            train_cfg={},
            optim_wrapper={},
            default_hooks={
                "runtime_info": None,
                "timer": None,
                "sampler_seed": None,
                "logger": None,
                "checkpoint": None,
            },
            custom_hooks=hooks,
            launcher="none" if get_dist_info()[1] == 1 else "pytorch",
            visualizer={
                "type": "Visualizer",
                "name": unique,
                "vis_backends": [{"type": "TensorboardVisBackend", "save_dir": str(tensorboard)}]
                if tensorboard
                else [],
            },
            randomness={"seed": seed},
            experiment_name=unique,
            default_scope="mmengine",
        )
        apart = [
            [*distiller.student.parameters(), *distiller.losses.parameters()],
            *(p.parameters() for p in distiller.peers),
        ]
        groups = [[p for p in part if p.requires_grad] for part in apart]
        self.optim_wrapper = StepWrapper(
            optimizer(trained),
            options["amp"],
            self.device.type,
            options["accumulate"],
            groups,
            options["clip_grad"],
        )
        self._train_loop = StageLoop(
            self,
            loader,
            length,
            log_interval,
            val_interval,
            checkpoint_interval,
            prepare,
            first_epoch,
        )
        self.param_schedulers = build_schedulers(
            schedule, self.optim_wrapper, length, len(loader), task
        )
        self.average = MovingAverage(distiller.student, options["ema"]) if options["ema"] else None
        # masks of -inf, the first range of an observer
        self._never_finite = set(not_finite(self._buffers()))
        self._owners = self._with_attributes(hooks)
        self._as_made = {
            name: attributes_of(owner, inside) for name, (owner, inside) in self._owners.items()
        }

    def _with_attributes(self, hooks: list) -> dict[str, tuple[object, bool]]:
        """What may keep a state in attributes, and whether in objects inside them too."""
        foreign = {
            f"schedule {k}": s
            for k, s in enumerate(self.param_schedulers)
            if isinstance(s, ForeignScheduler)
        }
        learners = {
            f"{role}.{path}": part
            for role in self.distiller.learners
            for path, part in self.distiller.model(role).named_modules()
        }
        flat = {
            **{f"hook {k} {type(hook).__name__}": hook for k, hook in enumerate(hooks)},
            **learners,
        }
        deep = {**foreign, **losses_with_state(self.distiller)}
        return {
            name: (owner, inside)
            for owners, inside in ((flat, False), (deep, True))
            for name, owner in owners.items()
        }

    # What mmengine's Runner does otherwise --------------------------------------------------------
    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = MMLogger.get_instance(
            self._experiment_name, log_file=str(self.log_file), log_level="INFO", file_mode="a"
        )
        # the screen has the bar
        logger.handlers = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]
        # whatever the locale
        for handler in logger.handlers:
            handler.stream.reconfigure(encoding="utf-8", errors="surrogateescape")
        with suppress(OSError):
            # made, and not needed
            Path(self._log_dir).rmdir()
        return logger

    def _log_env(self, env_cfg: dict) -> None:
        self.logger.info(
            "torch %s, %s, %d process(es)", torch.__version__, self.device, self.world_size
        )

    def dump_config(self) -> None:
        # the run writes it once
        pass

    def get_hooks_info(self) -> str:
        return ", ".join(type(hook).__name__ for hook in self._hooks)

    def wrap_model(self, model_wrapper_cfg, model: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return model
        if self.options["sync_bn"]:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # No device_ids: inputs are in place already, and some (index, view, labelled) stay on the
        # CPU.
        return DistributedDataParallel(model, find_unused_parameters=self.find_unused_parameters)

    def train(self) -> nn.Module:
        """Run the stage from where it stands to its end."""
        loop = self._train_loop
        self.call_hook("before_run")
        self.optim_wrapper.initialize_count_status(self.model, loop.iter, loop.max_iters)
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
            self.visualizer.close()
            for handler in self.logger.handlers:
                handler.close()
            # by name, for ever
            for kept in (self.logger, self.message_hub, self.visualizer, self.default_scope):
                type(kept)._instance_dict.pop(kept.instance_name, None)

    # Reading, evaluating, saving ------------------------------------------------------------------
    @property
    def evaluated(self) -> nn.Module:
        """The model that counts: the student, or its moving average.

        Raises:
            RuntimeError: the average is of a student that was replaced since.
        """
        if self.average and self.average.followed is not self.distiller.student:
            raise RuntimeError(
                "the student was replaced in the course of the stage, and ema "
                "averages the former one: expected "
                "ema=None, or runner.average = MovingAverage(student, decay) of the "
                "new one"
            )
        return self.average.model if self.average else self.distiller.student

    def note(self, losses: dict[str, float]) -> None:
        """Log what was read."""
        rate = self.optim_wrapper.optimizer.param_groups[0]["lr"]
        iteration = self._train_loop.iter
        self.history.append({"iteration": iteration, "lr": rate, **losses})
        for name, value in losses.items():
            self.message_hub.update_scalar(f"train/{name}", value)
        self.visualizer.add_scalars({"lr": rate, **losses}, step=iteration)
        self.logger.info(
            "%d/%d  lr %.4g  %s",
            iteration,
            self._train_loop.max_iters,
            rate,
            "  ".join(f"{k} {v:.4f}" for k, v in losses.items()),
        )
        if self.show:
            self.show(iteration, self._train_loop.max_iters, losses)

    def evaluate_now(self) -> None:
        """Evaluate, note the metrics, and keep the best weights."""
        self.call_hook("before_val")
        self.call_hook("before_val_epoch")
        try:
            self.metrics = self._evaluate_learners()
        # an answer that is not finite, say
        except ValueError as error:
            self._check_finite()
            raise ValueError(
                f"evaluation after iteration {self._train_loop.iter} of stage "
                f"{self.meta.get('stage')!r}: "
                f"{error}"
            ) from error
        self.distiller.train()
        self.history.append({"iteration": self._train_loop.iter, **self.metrics})
        self.logger.info(
            "%d/%d  %s",
            self._train_loop.iter,
            self._train_loop.max_iters,
            "  ".join(f"{k} {v:.{self.task.decimals(k, 3)}f}" for k, v in self.metrics.items()),
        )
        self.visualizer.add_scalars(self.metrics, step=self._train_loop.iter)
        if self.show:
            self.show(
                self._train_loop.iter,
                self._train_loop.max_iters,
                dict(itertools.islice(self.metrics.items(), METRICS)),
            )
        self._step_on_metrics()
        self.call_hook("after_val_epoch", metrics=self.metrics)
        self.call_hook("after_val")
        value = self.metrics[self.task.primary]
        better = self.best is None or (
            value > self.best if self.task.higher_is_better else value < self.best
        )
        if better:
            self.best = value
            self._check_finite()
            if self.rank == 0:
                checkpoint.save(self._weights(), self.folder / "best.pth")

    def _evaluate_learners(self) -> dict[str, float]:
        """The student's metrics, and each peer's as ``peer1_<metric>``."""
        found = evaluate(
            self.task, self.evaluated, self.test_loader, self._before_batch, self._after_batch
        )
        for role, peer in zip(self.distiller.learners[1:], self.distiller.peers):
            own = evaluate(self.task, peer, self.test_loader)
            found |= {f"{role}_{name}": value for name, value in own.items()}
        return found

    def _step_on_metrics(self) -> None:
        for scheduler in self.param_schedulers:
            if isinstance(scheduler, ForeignScheduler):
                scheduler.evaluated(self.metrics)

    def _before_batch(self, count: int, batch: dict) -> None:
        if self.show:
            self.show(
                self._train_loop.iter,
                self._train_loop.max_iters,
                {},
                note=f"evaluating, {count / len(self.test_loader):.0%}",
            )
        self.call_hook("before_val_iter", batch_idx=count, data_batch=batch)

    def _after_batch(self, count: int, batch: dict) -> None:
        self.call_hook("after_val_iter", batch_idx=count, data_batch=batch, outputs=None)

    def _weights(self) -> dict:
        meta = {**self.meta, "iteration": self._train_loop.iter, "metrics": self.metrics}
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
        states = [(checkpoint.random_state(), self._met(), self._attributes())]
        if self.world_size > 1:
            own, states = states[0], [None] * self.world_size
            torch.distributed.all_gather_object(states, own)
        self._note_unreadable([met for _, met, _ in states])
        if self.rank == 0:
            state = {
                **self._weights(),
                "resume": self._resume_state([s[0] for s in states], [s[2] for s in states]),
            }
            self.call_hook("before_save_checkpoint", checkpoint=state)
            checkpoint.save(state, self.folder / "last.pth")
            checkpoint.save_json(self.history, self.folder / "history.json")
        if self.world_size > 1:
            barrier()

    def _attributes(self) -> dict[str, dict]:
        """What is held in attributes, and has changed since it was made."""
        found = {
            name: changed_attributes(attributes_of(owner, inside), self._as_made[name])
            for name, (owner, inside) in self._owners.items()
        }
        return {name: attributes for name, attributes in found.items() if attributes}

    def _met(self) -> dict[str, dict[str, str]]:
        """``{'train' or 'test': {path: why}}`` of what this process could not read in the stage so
        far.
        """
        loaders = {"train": self._train_loop.dataloader, "test": self.test_loader}
        return {
            part: dict(getattr(loader, "unreadable", None) or {})
            for part, loader in loaders.items()
        }

    def _note_unreadable(self, met: list[dict]) -> None:
        """Add what the processes have met to :attr:`unreadable`, and log what is new."""
        for part, found in ((part, found) for one in met for part, found in one.items()):
            known = self.unreadable.setdefault(part, {})
            for path in sorted(found.keys() - known.keys()):
                self.logger.warning(
                    f"unreadable, left out of the {part} data: {path}: {found[path]}"
                )
            known.update(found)

    def _resume_state(self, random_states: list[dict], attributes: list[dict]) -> dict:
        return {
            "stopped": self._train_loop.stop_training,
            "attributes": attributes,
            "iteration": self._train_loop.iter,
            "length": self._train_loop.max_iters,
            "seconds": self.seconds,
            "best": self.best,
            "metrics": self.metrics,
            "history": self.history,
            "random": random_states,
            "unreadable": self.unreadable,
            "learners": [
                self.distiller.model(role).state_dict() for role in self.distiller.learners
            ],
            "losses": self.distiller.losses.state_dict(),
            "optimizer": self.optim_wrapper.state_dict(),
            "schedulers": [
                {k: v for k, v in s.state_dict().items() if not callable(v)}
                for s in self.param_schedulers
            ],
        }

    def resume_from(self, path: Path) -> None:
        """Put everything back to where ``path`` (a ``last.pth``) left it.

        Raises:
            ValueError: the file is not whole, or not of this stage.
        """
        state = checkpoint.load(path)
        resume = state["resume"]
        if len(resume["random"]) != self.world_size:
            raise ValueError(
                f"{str(path)!r} is of a run with {len(resume['random'])} processes "
                "and cannot go on exactly "
                f"with {self.world_size}"
            )
        if resume["length"] != self._train_loop.max_iters:
            raise ValueError(
                f"{str(path)!r} is of a stage of {resume['length']} iterations, this "
                "one has "
                f"{self._train_loop.max_iters}: the data has changed"
            )
        for role, weights in zip(self.distiller.learners, resume["learners"], strict=True):
            self.distiller.model(role).load_state_dict(weights)
        if self.average:
            self.average.model.load_state_dict(state["state_dict"])
        self.distiller.losses.load_state_dict(resume["losses"])
        self.optim_wrapper.load_state_dict(resume["optimizer"])
        for scheduler, scheduler_state in zip(
            self.param_schedulers, resume["schedulers"], strict=True
        ):
            scheduler.load_state_dict(scheduler_state)
        for name, attributes in resume.get("attributes", [{}] * self.world_size)[self.rank].items():
            if name in self._owners:
                set_attributes(self._owners[name][0], attributes, self.device)
        self._train_loop.move_to(resume["iteration"])
        self._train_loop.stop_training = resume.get("stopped", False)
        self.metrics, self.history = resume["metrics"], resume["history"]
        self.unreadable = resume.get("unreadable", {})
        self.best, self.seconds = resume["best"], resume["seconds"]
        self.call_hook("after_load_checkpoint", checkpoint=state)
        checkpoint.set_random_state(resume["random"][self.rank])
        # a kill between the two files
        if self.rank == 0:
            checkpoint.save_json(self.history, self.folder / "history.json")

    def take_optimizer_state(self, path: Path) -> None:
        """Go on with the momentum in another stage's ``last.pth``; the learning rate stays this
        stage's own.
        """
        optimizer = self.optim_wrapper.optimizer
        former = checkpoint.load(path)["resume"]["optimizer"]["state"]
        optimizer.load_state_dict({**optimizer.state_dict(), "state": former})

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
                f"the {what} {bad[0]!r} are not finite after iteration {self._train_loop.iter - 1}"
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
            f"{what} of stage {self.meta.get('stage')!r}. The weights now are in "
            f"{str(failed)!r}; "
            + (
                f"the last good ones are in {str(good)!r}"
                if good.exists()
                else "there are no earlier ones"
            )
            + ". --resume would repeat the same steps: use another --work-dir "
            "with a lower learning rate, "
            "clip_grad, or amp=None; teacher.checkpoint=<its stage's last.pth> "
            "keeps a finished teacher"
        )


def losses_with_state(distiller: Distiller) -> dict[str, object]:
    """The losses that are no functions, by name, and every module inside them."""
    found: dict[str, object] = {}
    for name, (loss, _, _) in distiller.terms.items():
        if isinstance(loss, nn.Module):
            found |= {f"losses.{name}.{path}": part for path, part in loss.named_modules()}
        elif not isinstance(loss, types.FunctionType):
            found[f"losses.{name}"] = loss
    return found


def leaves_parameters_out(distiller: Distiller, batch: dict) -> bool:
    """Whether some parameter that trains may get no gradient in a step, which DDP has to be told.

    It is seen on one batch; a loss with a schedule may stop pulling later. Nothing moves, as in
    :meth:`Distiller.build`.
    """
    distiller.progress = (0, 1)
    with (
        distiller.at_rest(training=True),
        keep_state(distiller.losses.modules()),
        torch.enable_grad(),
    ):
        losses = distiller(batch)
        trained = [p for p in distiller.parameters() if p.requires_grad]
        total = total_loss(losses)
        found = torch.autograd.grad(total, trained, allow_unused=True)
    return any(g is None for g in found) or any(
        callable(weight) for _, _, weight in distiller.terms.values()
    )


def select_parameters(distiller: Distiller, patterns) -> list[nn.Parameter]:
    """The parameters named by the patterns; the others need no gradient from here on.

    A pattern names a parameter, a module (``'student'``, ``'student.layer3'``: all below it) or
    many (``fnmatch``). Peers train whenever the student does. What the model itself has frozen
    stays frozen.

    Raises:
        ValueError: a pattern matches nothing.
    """
    named = {name: p for name, p in distiller.named_parameters() if p.requires_grad}
    patterns = [
        *patterns,
        *(["peers"] if any(p.split(".")[0] == "student" for p in patterns) else []),
    ]

    def matches(name: str, pattern: str) -> bool:
        return name.startswith(pattern + ".") or fnmatch.fnmatchcase(name, pattern)

    for pattern in patterns:
        if pattern not in ("losses", "peers") and not any(matches(name, pattern) for name in named):
            known = [
                name.rsplit(".", cut)[0] for name in named for cut in range(name.count(".") + 1)
            ]
            raise ValueError(
                f"train={list(patterns)!r}: nothing that can train is called "
                f"{pattern!r}; "
                f"{did_you_mean(pattern, known)}"
            )
    chosen = []
    for name, parameter in named.items():
        if any(matches(name, pattern) for pattern in patterns):
            chosen.append(parameter)
        else:
            parameter.requires_grad_(False)
    return chosen
