"""Reading a map-style data set through torch's DataLoader, each sample from random states of its
own.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from kdtasks.core.views import view_hash
from kdtasks.engine.order import Plan
from kdtasks.engine.signals import leave_stops_to_parent

_SAMPLE, _COLLATE = 0x0C, 0x0D  # salts of view_hash: two random states
# consecutive unreadable samples before skip_bad gives up
_TRIES = 100


class MapReader:
    """A map-style data set through torch's DataLoader; what cannot be read is noted in ``bad``."""

    def __init__(
        self,
        dataset: Any,
        seed: int,
        plan: Plan,
        bad: dict[int, str],
        workers: int,
        collate: Callable,
        skip_bad: bool,
        training: bool,
        timeout: float,
        pinned: bool,
    ):
        self.plan, self.bad, self.left_out = plan, bad, not training
        self.workers, self.begun, self.timeout = workers, 0, timeout
        self.data = torch.utils.data.DataLoader(
            cast(Any, _Samples(dataset, seed, plan, skip_bad, training)),
            batch_sampler=cast(Any, plan),
            collate_fn=_Collate(collate, seed),
            num_workers=workers,
            persistent_workers=workers > 0,
            timeout=timeout if workers else 0,
            pin_memory=pinned,
            generator=torch.Generator(device="cpu"),
            worker_init_fn=leave_stops_to_parent if workers else None,
        )

    def read(self, epoch: int, start: int) -> Iterator[tuple[dict, Tensor, Tensor]]:
        """(batch, index, view) of each iteration of an epoch from ``start`` on."""
        self.plan.at, self.begun = (epoch, start), self.begun + 1
        return self._read(iter(self.data), self.begun)

    def close(self) -> None:
        """End the workers, until the next read; left to the garbage collector, each takes 5 s."""
        batches, self.data._iterator = self.data._iterator, None
        if batches is not None and self.workers:
            cast(Any, batches)._shutdown_workers()

    def _read(self, batches: Iterator, mine: int) -> Iterator[tuple[dict, Tensor, Tensor]]:
        while True:
            if self.workers and self.begun != mine:
                raise RuntimeError(
                    "a newer iterator of this Loader has taken over its workers: use a second "
                    "Loader beside it"
                )
            read = self._next(batches)
            if read is None:
                return
            batch, index, view, bad = read
            if bad and not self.bad:
                how = "left out" if self.left_out else "skipped"
                first = next(iter(bad.values()))
                warnings.warn(
                    f"{how} an unreadable sample: {first} (said once; Loader.bad has all)",
                    stacklevel=3,
                )
            self.bad.update(bad)
            if batch is not None:
                yield batch, index, view

    def _next(self, batches: Iterator) -> tuple[dict | None, Tensor, Tensor, dict] | None:
        """What :class:`_Collate` gives of the next batch; None behind the last one."""
        try:
            return next(batches)
        except StopIteration:
            if self.left_out and len(self.bad) == len(self.plan.pool):
                raise RuntimeError(
                    f"none of the {len(self.bad)} samples can be read; the first: "
                    f"{next(iter(self.bad.values()))}"
                ) from None
            return None
        except Exception as error:
            if not self.workers:
                raise
            if "timed out after" in str(error):
                raise RuntimeError(
                    f"the {self.workers} workers of the loader gave no batch within "
                    f"{self.timeout:g} s: they hang, or the data is on a disk that does not "
                    "answer; data.timeout=<seconds> gives them longer, data.workers=0 shows where "
                    "they hang"
                ) from None
            # The frames of torch hold error and workers in a cycle; the collector then waits 5 s
            # for each worker.
            raise error.with_traceback(None)  # noqa: B904


class _Samples:
    """A map-style data set whose samples are asked for by ``(index, view, whether of the plan's
    pool)``.
    """

    def __init__(self, dataset: Any, seed: int, plan: Plan, skip_bad: bool, replace: bool):
        self.dataset, self.seed, self.plan, self.skip_bad, self.replace = (
            dataset,
            seed,
            plan,
            skip_bad,
            replace,
        )

    def __getitem__(self, key: tuple[int, int, bool]) -> tuple[int, int, object, dict[int, str]]:
        index, view, is_labelled = key
        pool = self.plan.pool if is_labelled else self.plan.others
        bad = {}
        for i in pool.after(index):
            try:
                with _seeded(self.seed, i, view, _SAMPLE):
                    return i, view, self.dataset[i], bad
            except Exception as error:
                bad[i] = f"{path_of(self.dataset, i)}: {type(error).__name__}: {error}"
                if not self.skip_bad:
                    raise RuntimeError(
                        f"cannot read sample {i}, {bad[i]} (skip_bad=True goes on without it)"
                    ) from error
                if not self.replace:
                    return i, view, None, bad
                if len(bad) == min(_TRIES, len(pool)):
                    raise RuntimeError(
                        f"cannot read sample {index} nor the {len(bad) - 1} after it; the last is "
                        f"{bad[i]}"
                    ) from error
        raise IndexError(f"there is no sample {index}")


class _Collate:
    """List of what :class:`_Samples` gives -> (batch, index, view, bad)."""

    def __init__(self, collate: Callable, seed: int):
        self.collate, self.seed = collate, seed

    def __call__(self, items: list) -> tuple[dict | None, Tensor, Tensor, dict[int, str]]:
        errors = {i: why for *_, some in items for i, why in some.items()}
        # in evaluation nothing stands in its place
        items = [item for item in items if item[0] not in item[3]]
        if not items:
            return None, torch.empty(0), torch.empty(0), errors
        index, view, samples, _ = zip(*items)
        with _seeded(self.seed, index[0], view[0], _COLLATE):
            batch = self.collate(list(samples))
        if not isinstance(batch, dict):
            batch = dict(zip(("input", "target"), batch, strict=True))
        return batch, torch.tensor(index), torch.tensor(view), errors


def stack(samples: list) -> dict:
    """Dicts or (input, target) pairs -> one dict; tensors, arrays and numbers stacked, anything
    else as a list.
    """
    if not isinstance(samples[0], dict):
        if not isinstance(samples[0], tuple | list) or len(samples[0]) != 2:
            raise TypeError(
                f"a sample must be (input, target) or a dict, got "
                f"{type(samples[0]).__name__}: {samples[0]!r:.80}"
            )
        samples = [{"input": input, "target": target} for input, target in samples]
    return {name: _stacked(name, [sample[name] for sample in samples]) for name in samples[0]}


def _stacked(name: str, values: list) -> Any:
    if isinstance(values[0], Tensor | np.ndarray | np.generic | int | float):
        values = [torch.as_tensor(value) for value in values]
        if len({value.shape for value in values}) > 1:
            raise ValueError(
                f"samples of different shapes cannot be stacked: {name!r} has "
                f"{[tuple(v.shape) for v in values][:8]}; resize them to one shape, or pass "
                "collate="
            )
        return torch.stack(values)
    if name == "input":
        raise TypeError(
            f"'input' must be a tensor, an array or a number, got "
            f"{type(values[0]).__name__}; a PIL image becomes one through "
            "torchvision.transforms.v2.ToImage and ToDtype(torch.float32, scale=True)"
        )
    return values


@contextmanager
def _seeded(seed: int, index: int, view: int, salt: int):
    """Python's, NumPy's and torch's CPU generator start from (seed, index, view) in the block,
    which leaves no trace.
    """
    number = int(view_hash(seed, torch.tensor(index, device="cpu"), view, salt))
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])


def read_rows(
    dataset: Any, index: Tensor, view: Tensor, seed: int, collate: Callable | None = None
) -> dict:
    """Some samples of a data set of either kind, read now and in this process, as a
    :class:`~kdtasks.engine.loader.Loader` would read them in these views.

    Args:
        dataset: batched or map-style.
        index, view: int64 ``(b,)`` on the CPU.
        seed: of the views.
        collate: as the Loader's.
    """
    if callable(getattr(dataset, "batch", None)):
        return dataset.batch(index, view, seed)
    samples = []
    for i, v in zip(index.tolist(), view.tolist()):
        with _seeded(seed, i, v, _SAMPLE):
            samples.append((i, v, dataset[i], {}))
    batch = _Collate(collate or getattr(dataset, "collate", None) or stack, seed)(samples)[0]
    return batch or {}


def readable(dataset: Any, index: Sequence[int]) -> dict[int, object]:
    """Those of the samples ``index`` of a map-style data set that can be read: for pictures, since
    who evaluates is told.
    """
    samples = {}
    for i in index:
        with suppress(Exception):
            samples[i] = dataset[i]
    return samples


def path_of(dataset: Any, index: int) -> str:
    """The file of a sample, or that the data set tells none."""
    try:
        return str(dataset.path(index) if hasattr(dataset, "path") else dataset.samples[index][0])
    except Exception:
        return f"of {type(dataset).__name__}, which tells no path"
