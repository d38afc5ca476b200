"""The optimizer step: mixed precision on any device, accumulation, clipping a peer at a time, a moving average."""

import copy
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn


class StepWrapper(OptimWrapper):
    """mmengine's OptimWrapper with autocast on any device, and no read of the device in a step.

    mmengine's own AMP wrapper refuses a CPU, and its clipping reads the norm every step.

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


class MovingAverage:
    """e <- decay·e + (1 - decay)·w after every step, for a model's parameters; its buffers are copied.

    Args:
        model: starts as, and follows, its weights.
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._pairs = [(e, w) for e, w in zip(self.model.parameters(), model.parameters())]
        self._buffers = [(e, w) for e, w in zip(self.model.buffers(), model.buffers())]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_([e for e, _ in self._pairs], [w for _, w in self._pairs], 1 - self.decay)
        for e, w in self._buffers:
            e.copy_(w)
