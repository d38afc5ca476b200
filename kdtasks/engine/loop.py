"""The loop of a stage: counted in iterations, read from the device once per log interval."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from kdtasks.core.terms import total_loss, trains
from kdtasks.engine import signals
from kdtasks.engine.clock import beat, working_seconds
from kdtasks.engine.from_mmengine import BaseLoop
from kdtasks.engine.loader import Loader
from kdtasks.engine.processes import Vote

if TYPE_CHECKING:
    from kdtasks.engine.runner import StageRunner


@dataclass(frozen=True)
class Lengths:
    """Of a stage, in iterations.

    Attributes:
        total: of all.
        log, validate, checkpoint: between reads of the losses, evaluations and checkpoints.
        first_epoch: the number that the data's order and views give to the stage's first epoch.
    """

    total: int
    log: int
    validate: int
    checkpoint: int
    first_epoch: int = 0


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

    def state(self) -> list:
        """What has not been read yet, for a checkpoint."""
        return [[iteration, list(names), row.cpu()] for iteration, names, row in self.rows]

    def load_state(self, state: list, device: torch.device) -> None:
        """Put back what :meth:`state` gave."""
        self.rows = [(int(k), tuple(names), row.to(device)) for k, names, row in state]


def gradient_shares(losses: Mapping[str, Tensor], student: nn.Module) -> dict[str, Tensor]:
    r"""Each loss's share of the student's gradient, ``share_<name>`` without ``loss_``, on the
    device.

    .. math:: \text{share}_i = \frac{\lVert\nabla L_i\rVert_2}{\sum_j \lVert\nabla L_j\rVert_2}

    Norms over all of the student's parameters that learn, of the weighted losses. Two losses that
    pull in opposite directions have large shares each: it says how hard each one pulls, not what
    comes of it. Where a gradient is not finite, all shares are NaN. It costs a backward pass a
    loss.

    Args:
        losses: weighted scalars of one step, whose graph is kept; those that only inform are left
            out.
        student: whose gradient.
    """
    parameters = [p for p in student.parameters() if p.requires_grad]
    pulling = {n: v for n, v in losses.items() if trains(n) and v.requires_grad}
    if not parameters or not pulling:
        return {}
    norms = []
    for value in pulling.values():
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        parts = [part.float().norm() for part in gradients if part is not None]
        norms.append(torch.stack(parts).norm() if parts else value.detach().float() * 0)
    together = torch.stack(norms)
    total = together.sum()
    shares = together / total.clamp(min=torch.finfo(torch.float32).tiny)
    shares = torch.where(total.isfinite(), shares, torch.nan)
    # without 'loss', for it informs only
    names = (name.replace("loss", "").strip("_") or "all" for name in pulling)
    return {f"share_{name}": share for name, share in zip(names, shares.unbind())}


class StageLoop(BaseLoop):
    """Step, read, evaluate, save; from any iteration on.

    Told to stop (:mod:`kdtasks.engine.signals`), it saves after the step in hand, with several
    processes after the one that follows, and ends by Terminated or KeyboardInterrupt: going on from
    there leads to the same bits.

    Args:
        runner: the stage's runner.
        dataloader: an :class:`kdtasks.engine.loader.Loader`.
        lengths: of the stage and its intervals.
        before_step: called with each batch before the step; adds what a cache knows.

    Attributes:
        seconds: of training, without evaluations and checkpoints, and without those in which
            another process had the processor or this one was stopped; as it was when the last of
            these began.
    """

    def __init__(
        self,
        runner: "StageRunner",
        dataloader: Loader,
        lengths: Lengths,
        before_step: Callable[[dict], dict] | None = None,
    ):
        super().__init__(runner, cast(Any, dataloader))
        self.loader, self.lengths, self.before_step = dataloader, lengths, before_step
        self._iter, self._max_iters = 0, lengths.total
        self.seconds, self._since = 0.0, working_seconds()
        # the iteration of the last checkpoint
        self._saved = -1
        # a hook may set it: EarlyStoppingHook does
        self.stop_training = False
        self.buffer = LossBuffer()

    iter = property(lambda self: self._iter)
    max_iters = property(lambda self: self._max_iters)
    epoch = property(lambda self: self._iter // len(self.loader))
    max_epochs = property(lambda self: -(-self._max_iters // len(self.loader)))

    def run(self) -> nn.Module:
        """Train to the end and return the model."""
        runner = self.runner
        runner.call_hook("before_train")
        self._since = working_seconds()
        if not self._max_iters:
            # a stage of no steps: what it starts from is tested and kept
            runner.evaluate_now()
            runner.save_now()
        with signals.deferred(announce=runner.rank == 0) as deferral:
            vote = Vote()
            while not self._is_last():
                runner.distiller.train()
                runner.call_hook("before_train_epoch")
                for batch in self.loader.epoch(
                    self.lengths.first_epoch + self.epoch, start=self._iter % len(self.loader)
                ):
                    beat()
                    self._step(batch)
                    self._stop_if(vote.greatest(deferral.told))
                    if self._is_last():
                        break
                runner.call_hook("after_train_epoch")
            self._stop_if(vote.end(deferral.told))
        runner.call_hook("after_train")
        return runner.model

    def _stop_if(self, told: int) -> None:
        """Save and end, where a signal has come and the weights stand between two updates."""
        runner = self.runner
        if not told or (self._iter % runner.stepper.accumulate and not self._is_last()):
            return
        if self._saved != self._iter:
            self.seconds += working_seconds() - self._since
            runner.save_now()
        stage, steps = runner.meta.get("stage"), f"{self._iter} of {self._max_iters} steps"
        said = f"stopped by {signals.name_of(told)}: stage {stage!r} is saved after {steps}"
        raise signals.stopped(told, said if runner.rank == 0 else "")

    def move_to(self, iteration: int, seconds: float = 0.0) -> None:
        """Go on from an iteration, after so many seconds of training."""
        self._iter, self._saved, self.seconds = iteration, iteration, seconds

    def _step(self, batch: dict) -> None:
        runner, iteration = self.runner, self._iter
        runner.message_hub.update_info("iter", iteration)
        runner.distiller.progress = (iteration, self._max_iters)
        if self.before_step:
            batch = self.before_step(batch)
        runner.call_hook("before_train_iter", batch_idx=iteration, data_batch=batch)
        losses: dict[str, Tensor] = {}
        total = torch.zeros(())
        for step_losses in runner.distiller.steps(batch, runner.losses_of):
            total = torch.as_tensor(total_loss(step_losses))
            if runner.options["diagnose"] and self._is_read_next():
                losses |= gradient_shares(step_losses, runner.distiller.student)
            runner.stepper.update_params(total)
            # of several steps: as it was in the one in which it pulled
            losses |= {
                name: value.detach()
                for name, value in step_losses.items()
                if name not in losses or value.requires_grad
            }
        if runner.average and runner.stepper.should_update():
            runner.average.update()
        if len(losses) > 1 and "loss" not in losses:
            several = runner.distiller.steps_per_batch > 1
            losses["loss"] = torch.as_tensor(total_loss(losses)) if several else total.detach()
        self.buffer.add(iteration, losses)
        runner.call_hook("after_train_iter", batch_idx=iteration, data_batch=batch, outputs=losses)
        self._iter += 1
        self._after()

    def _is_read_next(self) -> bool:
        """Whether the losses are read after this step, as its interval says."""
        return (self._iter + 1) % self.lengths.log == 0 or self._iter + 1 == self._max_iters

    def _after(self) -> None:
        done, runner = self._iter, self.runner
        last = self._is_last()
        validate = last or done % self.lengths.validate == 0
        keep = self._ends_kept_epoch()
        save = last or done % self.lengths.checkpoint == 0
        save = save and (last or done % runner.stepper.accumulate == 0)
        if validate or save or keep or done % self.lengths.log == 0:
            runner.note(self._read())
        if not (validate or save or keep):
            return
        if last:
            runner.finish_now()
        # the read has waited for the device
        self.seconds += working_seconds() - self._since
        if validate:
            runner.evaluate_now()
            # a hook may end the stage here
            if self.stop_training and not last and runner.finish_now():
                runner.evaluate_now()
            save = save or self.stop_training
        if keep:
            # before last.pth: a kill in between then loses none
            runner.keep_now(done // len(self.loader))
        if save:
            runner.save_now()
            self._saved = done
        self._since = working_seconds()

    def _is_last(self) -> bool:
        return self._iter == self._max_iters or self.stop_training

    def _ends_kept_epoch(self) -> bool:
        return (
            self._iter % len(self.loader) == 0
            and self._iter // len(self.loader) in self.runner.keep
        )

    def _read(self) -> dict[str, float]:
        try:
            return self.buffer.read()
        except NotFiniteError as error:
            return self.runner.save_and_raise(str(error))
