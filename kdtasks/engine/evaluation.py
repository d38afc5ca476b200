"""A task's evaluation, in which nothing that is not finite passes for an answer."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdtasks.core.trial import keep_state
from kdtasks.engine.task import Task


def evaluate(
    task: Task,
    model: nn.Module,
    loader: Iterable[dict],
    before: Callable[[int, dict], None] | None = None,
    after: Callable[[int, dict], None] | None = None,
) -> dict[str, float]:
    """``task.evaluate(model, loader)`` in eval mode and without gradients, with the model's inputs
    and outputs watched.

    The argmax of NaN is class 0 and a box with a score of NaN is no box: a number would come out of
    either. So what is not finite is noted on the device, and read once at the end. In rows of
    scores (B, C) -inf may stand for classes that are masked, as long as one is left. What test
    images move in the model, as the observers of a quantization-aware one do in eval too, is put
    back.

    Args:
        task: whose metrics; the outputs of the modules that its ``deciding`` lists are watched.
        model: in any mode; it stays in eval.
        loader: gives the batches.
        before, after: called with each batch and its number, before the task gets it and when it
            asks for the next.

    Raises:
        ValueError: an input or an output is not finite; names the first such sample.
    """
    watch = _Watch(loader, before, after)
    hooks = [module.register_forward_hook(watch.note_output) for module in task.deciding(model)]
    try:
        with keep_state(model.modules()), torch.no_grad():
            # which some models do not return
            model.eval()
            metrics = task.evaluate(model, watch)
    except Exception:
        # what went wrong then is what it led to
        watch.check()
        raise
    finally:
        for hook in hooks:
            hook.remove()
    watch.check()
    return {name: float(value) for name, value in metrics.items()}


class _Watch:
    """A loader that notes which samples are not finite, and is the loader otherwise."""

    def __init__(
        self,
        loader: Iterable[dict],
        before: Callable[[int, dict], None] | None,
        after: Callable[[int, dict], None] | None,
    ):
        self.loader: Any = loader
        self.before, self.after = before, after
        # of each: how many samples, and which they are
        self.batches: list[dict] = []
        # batch, what, (B,) or (1,) bool on the device
        self.notes: list[tuple[int, str, Tensor]] = []

    def __iter__(self) -> Iterator[dict]:
        for count, batch in enumerate(self.loader):
            if self.before:
                self.before(count, batch)
            self.batches.append({"index": batch.get("index"), "size": len(batch["input"])})
            self._note("input", batch["input"])
            yield batch
            if self.after:
                self.after(count, batch)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str):
        return getattr(self.loader, name)

    def note_output(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        if self.batches:
            self._note("output", output)

    def _note(self, what: str, value: Any) -> None:
        size = self.batches[-1]["size"]
        for bad in _rows_not_finite(value, size):
            self.notes.append((len(self.batches) - 1, what, bad))

    def check(self) -> None:
        """Raise ValueError if anything was not finite, inputs first."""
        # 'input' before 'output'; stable
        self.notes.sort(key=lambda note: note[1])
        device = next((bad.device for _, what, bad in self.notes if what == "output"), "cpu")
        wrong = [bad.any().to(device, non_blocking=True) for _, _, bad in self.notes]
        # the one wait
        first = torch.stack(wrong).nonzero().flatten().tolist() if wrong else []
        if not first:
            return
        number, what, bad = self.notes[first[0]]
        batch, rows = self.batches[number], bad.nonzero().flatten().tolist()
        where = f"batch {number}" if len(bad) != batch["size"] else self._sample(batch, rows[0])
        raise ValueError(
            f"the model's {what} is not finite (NaN or infinite) for {where} of the test data"
            + (
                "; expected an image without such values"
                if what == "input"
                else ", though the image is; no metric can be computed of it"
            )
        )

    def _sample(self, batch: Mapping, row: int) -> str:
        index = row if batch["index"] is None else int(batch["index"][row])
        data: Any = getattr(self.loader, "dataset", None)
        try:
            path = data.path(index) if hasattr(data, "path") else data.samples[index][0]
        # a data set that tells no path
        except Exception:
            return f"sample {index}"
        return f"sample {index} ({path})"


def _rows_not_finite(value: Any, size: int) -> list[Tensor]:
    """Of every float tensor in ``value``: (size,) bool where its rows are samples, else (1,)."""
    if isinstance(value, Mapping):
        return [bad for part in value.values() for bad in _rows_not_finite(part, size)]
    if isinstance(value, list | tuple):
        parts = [_rows_not_finite(part, size) for part in value]
        if len(value) == size and not any(
            isinstance(part, Tensor) and part.shape[:1] == (size,) for part in value
        ):
            each = [torch.stack([bad.any() for bad in part]).any() for part in parts if part]
            return (
                [torch.stack(each)]
                if len(each) == size
                else [bad for part in parts for bad in part]
            )
        return [bad for part in parts for bad in part]
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return []
    rows = value if value.ndim and len(value) == size else value[None]
    if rows.ndim == 2:
        # a class that is masked has -inf
        rows = rows.amax(1, keepdim=True)
    return [~rows.isfinite().reshape(len(rows), -1).all(1)]
