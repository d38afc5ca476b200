"""The optimizer step: mixed precision on any device, accumulation, clipping a peer at a time, a moving average."""

import copy
from collections.abc import Mapping
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from kdtasks.core.names import did_you_mean
from kdtasks.engine.builder import ConfigError, check_arguments


class StepWrapper(OptimWrapper):
    """mmengine's OptimWrapper with autocast on any device, and no read of the device in a step.

    mmengine's own AMP wrapper refuses a CPU, and its clipping reads the norm every step. The one exception is float16:
    torch's gradient scaler reads whether a gradient was infinite.

    Args:
        optimizer: a torch optimizer.
        precision: ``'bfloat16'`` (CPU, CUDA), ``'float16'`` (CUDA, with a gradient scaler), or None.
        device: the device type the model runs on.
        accumulate: steps whose gradients are averaged.
        clip: groups of parameters, each clipped to ``max_norm`` by itself (L2).
    """

    def __init__(self, optimizer, precision: str | None = None, device: str = "cpu", accumulate: int = 1,
                 clip: list[list[nn.Parameter]] | None = None, max_norm: float | None = None):
        super().__init__(optimizer, accumulative_counts=accumulate)
        self.precision = getattr(torch, precision) if precision else None
        self.device = device
        self.scaler = torch.amp.GradScaler(device) if precision == "float16" else None
        self.groups = clip if max_norm is not None else None
        self.max_norm = max_norm

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast, and no gradient exchange between processes while gradients accumulate."""
        with super().optim_context(model), torch.autocast(self.device, self.precision, enabled=self.precision is not None):
            yield

    def backward(self, loss: torch.Tensor, **kwargs) -> None:
        super().backward(self.scaler.scale(loss) if self.scaler else loss, **kwargs)

    def step(self, **kwargs) -> None:
        if self.scaler and self.groups:
            self.scaler.unscale_(self.optimizer)
        for group in self.groups or []:
            nn.utils.clip_grad_norm_(group, self.max_norm)
        if self.scaler:
            self.scaler.step(self.optimizer, **kwargs)
            self.scaler.update()
        else:
            self.optimizer.step(**kwargs)

    def state_dict(self) -> dict:
        return {**super().state_dict(), **({"scaler": self.scaler.state_dict()} if self.scaler else {})}

    def load_state_dict(self, state_dict: dict) -> None:
        state_dict = dict(state_dict)
        scaler = state_dict.pop("scaler", None)
        if self.scaler and scaler:
            self.scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)


def build_schedulers(schedule: list[dict], optimizer, length: int, per_epoch: int) -> list:
    """mmengine's parameter schedulers, stepped every iteration; those by epoch are turned into iterations.

    Args:
        schedule: ``dict(type='MultiStepLR', …)`` each; ``by_epoch=False`` for one that counts in iterations.
        optimizer: an optimizer or its wrapper.
        length, per_epoch: iterations of the stage and of an epoch; a scheduler without ``end`` runs to the end.

    Raises:
        ConfigError: an unknown scheduler or argument, or one that cannot be built.
    """
    built = []
    for entry in schedule:
        if not isinstance(entry, Mapping) or "type" not in entry:
            raise ConfigError(f"schedule must be a dict(type='MultiStepLR', …) or a list of them, got {entry!r}")
        kind = PARAM_SCHEDULERS.get(entry["type"]) if isinstance(entry["type"], str) else entry["type"]
        if kind is None:
            raise ConfigError(f"schedule.type={entry['type']!r}: {did_you_mean(entry['type'], PARAM_SCHEDULERS.module_dict)}")
        by_epoch = entry.get("by_epoch", True)
        arguments = {"end": -(-length // per_epoch) if by_epoch else length, **entry, "by_epoch": by_epoch}
        check_arguments(kind, {k: v for k, v in arguments.items() if k != "type"}, "schedule", ("optimizer",))
        if by_epoch:
            arguments["convert_to_iter_based"] = True
        try:
            built.append(PARAM_SCHEDULERS.build(arguments, default_args={"optimizer": optimizer, "epoch_length": per_epoch}))
        except Exception as error:
            raise ConfigError(f"schedule {entry}: {type(error).__name__}: {error}") from error
    return built


class MovingAverage:
    """e <- decay·e + (1 - decay)·w after every step, for a model's parameters; its buffers are copied.

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
        self._buffers = [(e._buffers, w._buffers, name) for e, w in zip(self.model.modules(), model.modules())
                         for name, buffer in w._buffers.items() if buffer is not None]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_([e for e, _ in self._pairs], [w for _, w in self._pairs], 1 - self.decay)
        for own, followed, name in self._buffers:                # by name: an observer puts other tensors in their place
            if own[name].shape == followed[name].shape:
                own[name].copy_(followed[name])
            else:
                own[name] = followed[name].clone()
