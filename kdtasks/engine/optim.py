"""The optimizer step: mixed precision on any device, accumulation, clipping a peer at a time, a
moving average.
"""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from kdtasks.core.names import did_you_mean
from kdtasks.engine.builder import check_arguments, resolve
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.from_mmengine import (
    PARAM_SCHEDULERS,
    OptimWrapper,
    ParamScheduler,
    ReduceOnPlateauParamScheduler,
)
from kdtasks.engine.task import Task

# iterations of a stage that its schedule is tried for: a fiftieth of a second
_TRIED = 1000


class StepWrapper(OptimWrapper):
    """mmengine's OptimWrapper with autocast on any device, and no read of the device in a step.

    mmengine's own AMP wrapper refuses a CPU, and its clipping reads the norm every step. The one
    exception is float16: torch's gradient scaler reads whether a gradient was infinite.

    Args:
        optimizer: a torch optimizer.
        precision: ``'bfloat16'`` (CPU, CUDA), ``'float16'`` (CUDA, with a gradient scaler), or
            None.
        device: the device type the model runs on.
        accumulate: steps whose gradients are averaged.
        clip: groups of parameters, each clipped to ``max_norm`` by itself (L2).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        precision: str | None = None,
        device: str = "cpu",
        accumulate: int = 1,
        clip: list[list[nn.Parameter]] | None = None,
        max_norm: float | None = None,
    ):
        super().__init__(optimizer, accumulative_counts=accumulate)
        self.accumulate = accumulate
        self.precision = getattr(torch, precision) if precision else None
        self.device = device
        self.scaler = torch.amp.GradScaler(device) if precision == "float16" else None
        self.groups = [] if clip is None or max_norm is None else clip
        self.max_norm = max_norm or 0.0

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and no gradient exchange between processes while gradients accumulate."""
        with (
            super().optim_context(model),
            torch.autocast(self.device, self.precision, enabled=self.precision is not None),
        ):
            yield

    def backward(self, loss: torch.Tensor, **kwargs) -> None:
        """Gradients of the loss, scaled in float16."""
        super().backward(self.scaler.scale(loss) if self.scaler else loss, **kwargs)

    def step(self, **kwargs) -> None:
        """Clip and step; in float16, where a gradient is infinite, only make the scale smaller."""
        if self.scaler and self.groups:
            self.scaler.unscale_(self.optimizer)
        for group in self.groups:
            nn.utils.clip_grad_norm_(group, self.max_norm)
        if self.scaler:
            self.scaler.step(self.optimizer, **kwargs)
            self.scaler.update()
        else:
            self.optimizer.step(**kwargs)

    def state_dict(self) -> dict:
        """The optimizer's, and the scaler's beside it."""
        return {
            **super().state_dict(),
            **({"scaler": self.scaler.state_dict()} if self.scaler else {}),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Put both back; a scaler's only where there is one before and now."""
        state_dict = dict(state_dict)
        scaler = state_dict.pop("scaler", None)
        if self.scaler and scaler:
            self.scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)


class ForeignScheduler:
    """A scheduler of torch's, or of the same form, among mmengine's: stepped after every ``every``
    iterations.

    Its state, in attributes, is saved and put back by :mod:`kdtasks.core.attributes`, so that
    functions in it do no harm.

    Args:
        scheduler: with a method ``step``.
        every: iterations between two of its steps.
        metric: for ``ReduceLROnPlateau``: it steps at each evaluation, on this metric.
    """

    # mmengine's hook then steps it every iteration
    by_epoch = False

    def __init__(self, scheduler: Any, every: int, metric: str | None = None):
        self.scheduler, self.every, self.metric, self.count = scheduler, every, metric, 0

    def step(self) -> None:
        """Count an iteration."""
        self.count += 1
        if self.metric is None and self.count % self.every == 0:
            self.scheduler.step()

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Step on what an evaluation found.

        Raises:
            ValueError: it has not found the metric.
        """
        if self.metric is None:
            return
        if self.metric not in metrics:
            raise ValueError(
                f"schedule: an evaluation gives no {self.metric!r}; "
                f"{did_you_mean(self.metric, metrics)}"
            )
        self.scheduler.step(metrics[self.metric])

    def state_dict(self) -> dict:
        """Empty: see above."""
        return {}

    def load_state_dict(self, state_dict: Mapping) -> None:
        """Nothing: see above."""


def build_schedulers(
    schedule: list[dict], optimizer: Any, length: int, per_epoch: int, task: Task | None = None
) -> list:
    """Parameter schedulers: mmengine's by their names, torch's or others of that form by their
    dotted paths.

    mmengine's are stepped every iteration; those by epoch are turned into iterations. Others are
    stepped after each epoch, or each iteration with ``by_epoch=False``; ``ReduceLROnPlateau`` at
    each evaluation, on the primary metric or ``metric``.

    Args:
        schedule: ``dict(type='MultiStepLR', …)`` or ``dict(type='torch.optim.lr_scheduler.StepLR',
            …)`` each; ``by_epoch=False`` for one that counts in iterations.
        optimizer: an optimizer or its wrapper.
        length, per_epoch: iterations of the stage and of an epoch; a scheduler without ``end``
            (OneCycleLR: ``total_steps``) runs to the end.
        task: says what the primary metric is.

    Raises:
        ConfigError: an unknown scheduler or argument, or one that cannot be built.
    """
    built = []
    for entry in schedule:
        kind = _scheduler_class(entry)
        if isinstance(kind, type) and issubclass(kind, ParamScheduler):
            built.append(_own_scheduler(kind, entry, optimizer, length, per_epoch))
        else:
            built.append(_foreign_scheduler(kind, entry, optimizer, length, per_epoch, task))
    return built


def try_schedulers(schedulers: list, schedule: list[dict], optimizer: Any, length: int) -> None:
    """Go through the first iterations of a stage with schedulers and an optimizer that are not
    needed any more.

    Args:
        schedulers: as :func:`build_schedulers` gives them for ``schedule`` and ``optimizer``.
        schedule, optimizer, length: as there.

    Raises:
        ConfigError: a scheduler fails, or makes a learning rate negative.
    """
    with warnings.catch_warnings(action="ignore"):
        for iteration in range(min(length, _TRIED)):
            for scheduler, entry in zip(schedulers, schedule):
                try:
                    scheduler.step()
                except Exception as error:
                    raise ConfigError(
                        f"schedule {dict(entry)}, after iteration {iteration + 1}: "
                        f"{type(error).__name__}: {error}"
                    ) from error
            lowest = min(float(group["lr"]) for group in optimizer.param_groups)
            if lowest < 0:
                raise ConfigError(
                    f"schedule {[dict(entry) for entry in schedule]}: the learning rate is "
                    f"{lowest:g} after iteration {iteration + 1}; expected one >= 0"
                )


def _scheduler_class(entry: object) -> Callable:
    """mmengine's class of this name, or what a dotted path leads to."""
    if not isinstance(entry, Mapping) or "type" not in entry:
        raise ConfigError(
            f"schedule must be a dict(type='MultiStepLR', …) or a list of them, got {entry!r}"
        )
    kind = entry["type"]
    if callable(kind) or (isinstance(kind, str) and "." in kind):
        return resolve(kind, "schedule")
    scheduler = PARAM_SCHEDULERS.get(kind)
    if scheduler is None:
        raise ConfigError(
            f"schedule.type={kind!r}: {did_you_mean(kind, PARAM_SCHEDULERS.module_dict)}; torch's "
            "have dotted paths, as 'torch.optim.lr_scheduler.StepLR'"
        )
    return scheduler


def _own_scheduler(
    kind: type[ParamScheduler], entry: Mapping, optimizer: Any, length: int, per_epoch: int
) -> ParamScheduler:
    """One of mmengine's, stepped every iteration."""
    if issubclass(kind, ReduceOnPlateauParamScheduler):
        raise ConfigError(
            f"schedule: mmengine's {kind.__name__} steps with its own loop only; expected "
            "dict(type='torch.optim.lr_scheduler.ReduceLROnPlateau')"
        )
    by_epoch = entry.get("by_epoch", True)
    end = -(-length // per_epoch) if by_epoch else length
    arguments = {"end": end, **entry, "by_epoch": by_epoch}
    given = {name: value for name, value in arguments.items() if name != "type"}
    check_arguments(kind, given, "schedule", ("optimizer",))
    if by_epoch:
        arguments["convert_to_iter_based"] = True
    supplied = {"optimizer": optimizer, "epoch_length": per_epoch}
    try:
        return PARAM_SCHEDULERS.build(arguments, default_args=supplied)
    except Exception as error:
        raise ConfigError(f"schedule {entry}: {type(error).__name__}: {error}") from error


def _foreign_scheduler(
    kind: Callable, entry: Mapping, optimizer: Any, length: int, per_epoch: int, task: Task | None
) -> ForeignScheduler:
    reserved = ("type", "by_epoch", "metric")
    arguments = {name: value for name, value in entry.items() if name not in reserved}
    parameters, where = inspect.signature(kind).parameters, f"schedule ({kind.__name__})"
    if "schedulers" in parameters:
        raise ConfigError(
            f"{where}: it takes schedulers that are built; expected them one by one, in the list "
            "'schedule'"
        )
    metric = _plateau_metric(kind, entry, arguments, where, task)
    every = per_epoch if entry.get("by_epoch", True) else 1
    counted = {"total_steps", "epochs", "steps_per_epoch"}
    if "total_steps" in parameters and not counted & arguments.keys():
        arguments["total_steps"] = -(-length // every)
    if "lr_lambda" in arguments:
        arguments["lr_lambda"] = _functions(arguments["lr_lambda"], f"{where}.lr_lambda")
    check_arguments(kind, arguments, where, ("optimizer",))
    scheduler = _build_foreign(kind, arguments, optimizer, entry)
    if not callable(getattr(scheduler, "step", None)):
        raise ConfigError(f"{where}: it has no step(), so it is no scheduler")
    return ForeignScheduler(scheduler, every, metric)


def _plateau_metric(
    kind: Callable, entry: Mapping, arguments: dict, where: str, task: Task | None
) -> str | None:
    """What ``ReduceLROnPlateau`` steps on, whose ``mode`` is added; None for all others."""
    metric = entry.get("metric")
    if not (isinstance(kind, type) and issubclass(kind, lr_scheduler.ReduceLROnPlateau)):
        if metric is not None:
            raise ConfigError(f"{where}: metric={metric!r} belongs to ReduceLROnPlateau")
        return None
    if "by_epoch" in entry:
        raise ConfigError(
            f"{where}: it steps at each evaluation (val_interval), not by_epoch={entry['by_epoch']}"
        )
    if task and metric in (None, task.primary):
        metric = task.primary
        arguments.setdefault("mode", "max" if task.higher_is_better else "min")
    elif "mode" not in arguments:
        raise ConfigError(f"{where}: expected mode='min' or 'max' for the metric {metric!r}")
    return metric


def _functions(given: Any, where: str) -> Any:
    """A function, or a list of some, by their dotted paths."""
    if isinstance(given, list | tuple):
        return [resolve(item, where) for item in given]
    return resolve(given, where)


def _build_foreign(kind: Callable, arguments: Mapping, optimizer: Any, entry: Mapping) -> Any:
    optimizer = getattr(optimizer, "optimizer", optimizer)
    # mmengine's counter of steps does not fit inside torch's; both only serve a warning
    counted = optimizer.__dict__.pop("step", None)
    try:
        scheduler = kind(optimizer, **arguments)
    except Exception as error:
        raise ConfigError(f"schedule {dict(entry)}: {type(error).__name__}: {error}") from error
    optimizer.__dict__.pop("step", None)
    optimizer.__dict__ |= {"_opt_called": True, **({"step": counted} if counted else {})}
    return scheduler


class MovingAverage:
    """e <- decay·e + (1 - decay)·w after every step, for a model's parameters; its buffers are
    copied, and so are the parameters of a module whose buffer ``started`` (() bool) says that they
    have not been set from data before this step, as a quantizer's.

    Args:
        model: starts as, and follows, its weights.
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.followed = decay, model
        self.model = copy.deepcopy(model)
        self.model.eval()
        self.model.requires_grad_(False)
        self._pairs = [(e, w) for e, w in zip(self.model.parameters(), model.parameters())]
        self._buffers = [
            (e._buffers, w._buffers, name)
            for e, w in zip(self.model.modules(), model.modules())
            for name, buffer in w._buffers.items()
            if buffer is not None
        ]

        self._starting = [
            (e, w)
            for e, w in zip(self.model.modules(), model.modules())
            if e._buffers.get("started") is not None
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Follow the model by one step; buffers are copied."""
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [e for e, _ in self._pairs], [w for _, w in self._pairs], 1 - self.decay
        )
        for mine, other in self._starting:
            started = mine.get_buffer("started")
            for e, w in zip(mine.parameters(False), other.parameters(False)):
                e.copy_(torch.where(started, e, w))
        # by name: an observer puts other tensors in their place
        for buffers, followed, name in self._buffers:
            mine, other = buffers[name], followed[name]
            assert mine is not None and other is not None  # those that are None were left out
            if mine.shape == other.shape:
                mine.copy_(other)
            else:
                buffers[name] = other.clone()
