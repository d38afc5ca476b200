"""Batches that can start anywhere: the order comes from (seed, epoch), each random view from (seed,
index, view).

Nothing here is drawn from a stream, so no position of a stream has to be saved, and Python's,
NumPy's and torch's own random states stay where they are. A resume in the middle of an epoch, other
numbers of workers, and more processes give the same samples and the same views, bit for bit.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kdtasks.core.classes import UNLABELLED
from kdtasks.engine.order import expect, make_plan
from kdtasks.engine.reader import MapReader, path_of, stack

# kept on the CPU: indexing a GPU tensor with them would synchronise
CPU_KEYS = ("index", "view", "labelled")


class Loader:
    """Batches of one data set, in an order fixed by (seed, epoch), that can start anywhere.

    **Order.** A pool of n samples is an endless concatenation of passes, each a permutation made
    from (seed, pass). Without ``length`` epoch e begins at pass e and has ``n // batch_size``
    batches; the rest of the pass is dropped. With ``length``, or if n < batch_size, no sample is
    dropped: batch i of epoch e is what stands in the endless concatenation at the global iteration
    ``e * len(self) + i``, and a pass may end inside a batch.

    **Views.** A sample's view is the number of the pass it is in (so without ``length`` the epoch),
    or with ``views=k`` that number modulo k: each sample then has k fixed views, which a cache can
    keep.

    **Labelled and unlabelled.** The labelled samples are one pool, all others a second one with an
    order of its own. Each batch has ``batch_size - unlabelled_per_batch`` labelled rows first, then
    the unlabelled ones, whose target is -100 (None in a list), whatever the data set says. The
    length of an epoch is counted over the labelled pool; the unlabelled one is always endless. So a
    run with ``batch_size=L`` and one with ``batch_size=L + U, unlabelled_per_batch=U`` see the same
    labelled rows, in the same views, at the same steps.

    **Classes.** With ``per_class=m`` a batch has ``batch_size / m`` different classes and m samples
    of each, class after class. In a pass over the classes, a permutation made from (seed, pass),
    each class has at most one turn; those that would not fill a batch wait for another pass. In its
    p-th pass a class gives the p-th m samples of its own passes, each a permutation made from
    (seed, pass), of which the rest that is smaller than m is dropped; they are different ones,
    unless the class has fewer than m: then all of them, over and over. A view is the number of the
    pass over the class. The length of an epoch is as ever; passes go on from epoch to epoch.

    **Evaluation** (``shuffle=False, drop_last=False``): the samples in their order, each once; the
    last batch may be short.

    **Processes.** ``batch_size`` counts the rows of all ``world`` processes together. Rank r takes
    rows ``r::world`` of every batch in training (with ``per_class`` the whole classes
    ``r::world``); samples ``r::world``, without padding, in evaluation.

    A data set is one of two kinds. *Batched*: it has ``batch(index, view, seed) -> dict`` of
    stacked tensors for the two int64 tensors ``(b,)`` on the CPU; it is called directly, without
    workers, and may live on the GPU. *Map-style*: it has ``__getitem__(i)``, which gives ``(input,
    target)`` or a dict, and goes through torch's DataLoader. While a sample is read, the states of
    ``random``, ``numpy.random`` and torch's CPU generator are set from (seed, index, view), then
    put back; for ``collate`` likewise, from its first sample.

    A batch is a dict: ``input`` and ``target`` on ``device`` as the data set made them; ``index``
    and ``view``, int64 ``(b,)`` on the CPU; with unlabelled rows also ``labelled``, bool ``(b,)``
    on the CPU.

    Args:
        dataset: of either kind.
        batch_size: rows of a batch, over all ranks, unlabelled ones included.
        seed: of the order and of the views.
        shuffle: False keeps the order of the data set.
        drop_last: None: as ``shuffle``.
        views: 0, a fresh view in each pass; k > 0, k fixed ones.
        labelled: indices of the labelled samples, a bool mask, ``'target'`` (those whose
            ``dataset.target`` is not -100), or None (all). Without ``unlabelled_per_batch`` the
            others are left out.
        unlabelled_per_batch: rows of a batch, over all ranks, that are unlabelled.
        per_class: samples of a class in a batch, in training; classes are those of
            ``dataset.target``, (n,) whole numbers. None: as it comes.
        length: iterations of an epoch; None: see Order.
        workers: processes that read a map-style data set. They live as long as the Loader.
        device: where the tensors of a batch go; from the CPU to CUDA through pinned memory, without
            waiting.
        rank, world: this process and their number.
        collate: map-style only; list of samples as the data set gave them -> dict or ``(input,
            target)``; None: the data set's own ``collate``, or stacking.
        skip_bad: go on without the samples that cannot be read: warn once, and note them in
            :attr:`bad`. In training the next readable sample of the same pool stands in the place
            of an unreadable one, at most 100 in a row. In evaluation it is left out, so that a
            batch has fewer rows; one that would have none does not come.
        channels_last: memory format of a 4-D ``input``.
        timeout: seconds that the workers may take for a batch; 0: no limit.

    Attributes:
        bad: ``{index: 'path: error'}`` of the unreadable samples met so far by this process.
        unreadable: ``{path: error}`` of the same, and of what the data set has left out when it was
            made, where it says so by an ``unreadable`` of its own.

    Raises:
        ValueError: an empty data set or pool, a number out of its range, or rows that the ranks
            cannot share equally.
        TypeError: the data set is of neither kind.
        IndexError: ``labelled`` names a sample that does not exist.
        RuntimeError: (while iterating) a sample cannot be read; says its index, its path where the
            data set has ``path(i)`` or ``samples[i][0]``, and the cause. Or the workers gave no
            batch within ``timeout``.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool | None = None,
        views: int = 0,
        labelled: Any = None,
        unlabelled_per_batch: int = 0,
        per_class: int | None = None,
        length: int | None = None,
        workers: int = 0,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world: int = 1,
        collate: Callable | None = None,
        skip_bad: bool = False,
        channels_last: bool = False,
        timeout: float = 0,
    ):
        self.batched = callable(getattr(dataset, "batch", None))
        _check_dataset(dataset, self.batched)
        drop_last = shuffle if drop_last is None else drop_last
        self.plan = make_plan(
            dataset,
            batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            views=views,
            labelled=labelled,
            unlabelled_per_batch=unlabelled_per_batch,
            per_class=per_class,
            length=length,
            rank=rank,
            world=world,
        )
        self.dataset, self.seed, self.channels_last = dataset, seed, channels_last
        self.device, self.bad = torch.device(device), {}
        reading = {
            "workers": workers,
            "collate": collate or getattr(dataset, "collate", None) or stack,
            "skip_bad": skip_bad,
            "training": shuffle or drop_last,
            "timeout": timeout,
            "pinned": self.device.type == "cuda",
        }
        self.reader = None
        if not self.batched:
            self.reader = MapReader(dataset, seed, self.plan, self.bad, **reading)

    def __len__(self) -> int:
        """Iterations of an epoch, on this rank."""
        return self.plan.length

    def __iter__(self) -> Iterator[dict]:
        return self.epoch(0)

    @property
    def unreadable(self) -> dict[str, str]:
        """``{file or place of a sample: why it cannot be read}``, of what was met so far."""
        met = {}
        for i, why in self.bad.items():
            path = path_of(self.dataset, i)
            met[f"sample {i} {path}" if path.startswith("of ") else path] = why.removeprefix(
                f"{path}: "
            )
        return {**(getattr(self.dataset, "unreadable", None) or {}), **met}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict]:
        """The batches ``start, start + 1, …`` of epoch ``epoch``; the earlier ones are not read.

        With workers, an iterator ends when a newer one of the same Loader begins: going on with it
        raises RuntimeError.

        Raises:
            ValueError: ``epoch < 0``, or ``start`` is not in [0, len(self)].
        """
        expect(epoch >= 0, f"epoch must not be negative, got {epoch}")
        expect(
            0 <= start <= len(self),
            f"start must be in [0, {len(self)}], the length of an epoch, got {start}",
        )
        if self.reader is None:
            return self._finished(self._read(epoch, start))
        return self._finished(self.reader.read(epoch, start))

    def close(self) -> None:
        """End the workers; they start again with the next epoch."""
        if self.reader is not None:
            self.reader.close()

    def _read(self, epoch: int, start: int) -> Iterator[tuple[dict, Tensor, Tensor]]:
        for i in range(start, len(self)):
            index, view = self.plan.rows(epoch, i)
            yield self.dataset.batch(index, view, self.seed), index, view

    def _finished(self, read: Iterator[tuple[dict, Tensor, Tensor]]) -> Iterator[dict]:
        """Labels hidden, tensors on the device, ``index`` and ``view`` beside them."""
        for batch, index, view in read:
            batch = {**batch, "index": index, "view": view}
            if self.plan.take_others:
                labelled = self.plan.known
                batch["labelled"] = torch.arange(len(index), device="cpu") < labelled
                if isinstance(batch.get("target"), Tensor):
                    batch["target"] = batch["target"].clone()
                    batch["target"][labelled:] = UNLABELLED
                elif isinstance(batch.get("target"), list):
                    batch["target"] = batch["target"][:labelled] + [None] * (len(index) - labelled)
            batch = {k: v if k in CPU_KEYS else to_device(v, self.device) for k, v in batch.items()}
            images = batch.get("input")
            if self.channels_last and isinstance(images, Tensor) and images.ndim == 4:
                batch["input"] = images.contiguous(memory_format=torch.channels_last)
            yield batch


def _check_dataset(dataset: Any, batched: bool) -> None:
    if not hasattr(dataset, "__len__") or not (batched or hasattr(dataset, "__getitem__")):
        raise TypeError(
            "expected a data set with __len__ and either batch(index, view, seed) or "
            f"__getitem__(i), got {type(dataset).__name__}"
        )
    expect(len(dataset) > 0, f"the data set {type(dataset).__name__} is empty")


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors, also within dicts, lists and tuples, on ``device``; to CUDA without waiting."""
    if isinstance(value, Tensor):
        if device.type == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: to_device(part, device) for name, part in value.items()}
    return (
        type(value)(to_device(part, device) for part in value)
        if type(value) in (list, tuple)
        else value
    )
