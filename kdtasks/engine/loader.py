"""Batches that can start anywhere: the order comes from (seed, epoch), each random view from (seed, index, view).

Nothing here is drawn from a stream, so no position of a stream has to be saved, and Python's, NumPy's and torch's own
random states stay where they are. A resume in the middle of an epoch, other numbers of workers, and more processes give
the same samples and the same views, bit for bit.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdtasks.core.views import view_hash

_LABELLED, _UNLABELLED, _CLASSES = 0x0A, 0x0B, 0x0E                     # salts: three orders
_SAMPLE, _COLLATE = 0x0C, 0x0D              # and two random states
_TRIES = 100                                # consecutive unreadable samples before skip_bad gives up
_STAYS = ("index", "view", "labelled")      # these index caches and masks: on the CPU they cost no sync
UNLABELLED = -100                           # the target that torch's cross-entropy ignores


class Loader:
    """Batches of one data set, in an order fixed by (seed, epoch), that can start anywhere.

    **Order.** A pool of n samples is an endless concatenation of passes, each a permutation made from (seed, pass).
    Without ``length`` epoch e begins at pass e and has ``n // batch_size`` batches; the rest of the pass is dropped.
    With ``length``, or if n < batch_size, no sample is dropped: batch i of epoch e is what stands in the endless
    concatenation at the global iteration ``e * len(self) + i``, and a pass may end inside a batch.

    **Views.** A sample's view is the number of the pass it is in (so without ``length`` the epoch), or with ``views=k``
    that number modulo k: each sample then has k fixed views, which a cache can keep.

    **Labelled and unlabelled.** The labelled samples are one pool, all others a second one with an order of its own. Each
    batch has ``batch_size - unlabelled_per_batch`` labelled rows first, then the unlabelled ones, whose target is -100 (None
    in a list), whatever the data set says. The length of an epoch is counted over the labelled pool; the unlabelled one is
    always endless. So a run with ``batch_size=L`` and one with ``batch_size=L + U, unlabelled_per_batch=U`` see the same
    labelled rows, in the same views, at the same steps.

    **Classes.** With ``per_class=m`` a batch has ``batch_size / m`` different classes and m samples of each, class after
    class. In a pass over the classes, a permutation made from (seed, pass), each class has at most one turn; those that would
    not fill a batch wait for another pass. In its p-th pass a class gives the p-th m samples of its own passes, each a
    permutation made from (seed, pass), of which the rest that is smaller than m is dropped; they are different ones, unless the
    class has fewer than m: then all of them, over and over. A view is the number of the pass over the class. The length of an
    epoch is as ever; passes go on from epoch to epoch.

    **Evaluation** (``shuffle=False, drop_last=False``): the samples in their order, each once; the last batch may be short.

    **Processes.** ``batch_size`` counts the rows of all ``world`` processes together. Rank r takes rows ``r::world`` of every
    batch in training (with ``per_class`` the whole classes ``r::world``); samples ``r::world``, without padding, in evaluation.

    A data set is one of two kinds. *Batched*: it has ``batch(index, view, seed) -> dict`` of stacked tensors for the two
    int64 tensors ``(b,)`` on the CPU; it is called directly, without workers, and may live on the GPU. *Map-style*: it has
    ``__getitem__(i)``, which gives ``(input, target)`` or a dict, and goes through torch's DataLoader. While a sample is read,
    the states of ``random``, ``numpy.random`` and torch's CPU generator are set from (seed, index, view), then put back; for
    ``collate`` likewise, from its first sample.

    A batch is a dict: ``input`` and ``target`` on ``device`` as the data set made them; ``index`` and ``view``, int64 ``(b,)``
    on the CPU; with unlabelled rows also ``labelled``, bool ``(b,)`` on the CPU.

    Args:
        dataset: of either kind.
        batch_size: rows of a batch, over all ranks, unlabelled ones included.
        seed: of the order and of the views.
        shuffle: False keeps the order of the data set.
        drop_last: None: as ``shuffle``.
        views: 0, a fresh view in each pass; k > 0, k fixed ones.
        labelled: indices of the labelled samples, a bool mask, ``'target'`` (those whose ``dataset.target`` is not -100), or
            None (all). Without ``unlabelled_per_batch`` the others are left out.
        unlabelled_per_batch: rows of a batch, over all ranks, that are unlabelled.
        per_class: samples of a class in a batch, in training; classes are those of ``dataset.target``, (n,) whole numbers.
            None: as it comes.
        length: iterations of an epoch; None: see Order.
        workers: processes that read a map-style data set. They live as long as the Loader.
        device: where the tensors of a batch go; from the CPU to CUDA through pinned memory, without waiting.
        rank, world: this process and their number.
        collate: map-style only; list of samples as the data set gave them -> dict or ``(input, target)``; None: the data set's
            own ``collate``, or stacking.
        skip_bad: go on without the samples that cannot be read: warn once, and note them in :attr:`bad`. In training the next
            readable sample of the same pool stands in the place of an unreadable one, at most 100 in a row. In evaluation it is
            left out, so that a batch has fewer rows; one that would have none does not come.
        channels_last: memory format of a 4-D ``input``.
        timeout: seconds that the workers may take for a batch; 0: no limit.

    Attributes:
        bad: ``{index: 'path: error'}`` of the unreadable samples met so far by this process.
        unreadable: ``{path: error}`` of the same, and of what the data set has left out when it was made, where it says so by
            an ``unreadable`` of its own.

    Raises:
        ValueError: an empty data set or pool, a number out of its range, or rows that the ranks cannot share equally.
        TypeError: the data set is of neither kind.
        IndexError: ``labelled`` names a sample that does not exist.
        RuntimeError: (while iterating) a sample cannot be read; says its index, its path where the data set has
            ``path(i)`` or ``samples[i][0]``, and the cause. Or the workers gave no batch within ``timeout``.
    """

    def __init__(self, dataset, batch_size: int, *, seed: int = 0, shuffle: bool = True, drop_last: bool | None = None,
                 views: int = 0, labelled=None, unlabelled_per_batch: int = 0, per_class: int | None = None,
                 length: int | None = None, workers: int = 0, device="cpu", rank: int = 0, world: int = 1,
                 collate: Callable | None = None, skip_bad: bool = False, channels_last: bool = False,
                 timeout: float = 0):
        self.batched = callable(getattr(dataset, "batch", None))
        if not hasattr(dataset, "__len__") or not (self.batched or hasattr(dataset, "__getitem__")):
            raise TypeError(f"expected a data set with __len__ and either batch(index, view, seed) or __getitem__(i), "
                            f"got {type(dataset).__name__}")
        drop_last = shuffle if drop_last is None else drop_last
        training = shuffle or drop_last
        _check(len(dataset) > 0, f"the data set {type(dataset).__name__} is empty")
        _check(batch_size > 0, f"batch_size must be at least 1, got {batch_size}")
        _check(views >= 0, f"views must be 0 (fresh ones) or a number of fixed ones, got {views}")
        _check(0 <= rank < world, f"rank must be in [0, world), got rank={rank}, world={world}")
        _check(0 <= unlabelled_per_batch < batch_size,
               f"unlabelled_per_batch must be in [0, batch_size), got {unlabelled_per_batch} of {batch_size}")
        _check(not training or batch_size % world == 0 == unlabelled_per_batch % world,
               f"{world} processes cannot share batch_size={batch_size} and unlabelled_per_batch={unlabelled_per_batch} "
               f"equally: expected multiples of {world}")
        _check(drop_last or not (unlabelled_per_batch or length or (shuffle and world > 1)),
               "drop_last=False gives a short last batch: it goes neither with unlabelled_per_batch, nor with length, "
               "nor with shuffle on several processes")
        _check(length is None or length > 0, f"length must be at least 1, got {length}")

        known = _labelled_mask(labelled, dataset)
        own = known.nonzero()[:, 0]                                                                   # (n,)
        _check(len(own) > 0, "no sample is labelled")
        _check(not unlabelled_per_batch or len(own) < len(known),
               f"unlabelled_per_batch={unlabelled_per_batch}, but all {len(known)} samples are labelled: pass labelled=")
        take = batch_size - unlabelled_per_batch
        if not training:                             # this rank's samples, in batches of its share of the size
            own, take, rank, world = own[rank::world].contiguous(), -(-batch_size // world), 0, 1
        n = len(own)
        pool = _Pool(own, seed, _LABELLED, shuffle)
        if per_class is not None:
            _check(shuffle and drop_last, "per_class goes with shuffle=True and drop_last=True, not with an evaluation")
            pool = _ClassPool(own, _class_numbers(dataset)[own], seed, per_class, take, world)
        self.plan = _Plan(
            pool=pool, take=take,
            others=_Pool((~known).nonzero()[:, 0], seed, _UNLABELLED, shuffle), take_others=unlabelled_per_batch,
            length=length or (max(1, n // take) if drop_last else -(-n // take)),
            endless=length is not None or per_class is not None or (drop_last and n < take), views=views, rank=rank,
            world=world, group=per_class or 1)
        self.dataset, self.seed, self.device, self.channels_last = dataset, seed, torch.device(device), channels_last
        self.bad: dict[int, str] = {}
        collate = collate or getattr(dataset, "collate", None) or stack
        self.reader = None if self.batched else _Reader(self, workers, collate, skip_bad, training, timeout)

    def __len__(self) -> int:
        """Iterations of an epoch, on this rank."""
        return self.plan.length

    def __iter__(self) -> Iterator[dict]:
        return self.epoch(0)

    @property
    def unreadable(self) -> dict[str, str]:
        met = {}
        for i, why in self.bad.items():
            path = _path(self.dataset, i)
            met[f"sample {i} {path}" if path.startswith("of ") else path] = why.removeprefix(f"{path}: ")
        return {**(getattr(self.dataset, "unreadable", None) or {}), **met}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict]:
        """The batches ``start, start + 1, …`` of epoch ``epoch``; the earlier ones are not read.

        With workers, an iterator ends when a newer one of the same Loader begins: going on with it raises RuntimeError.

        Raises:
            ValueError: ``epoch < 0``, or ``start`` is not in [0, len(self)].
        """
        _check(epoch >= 0, f"epoch must not be negative, got {epoch}")
        _check(0 <= start <= len(self), f"start must be in [0, {len(self)}], the length of an epoch, got {start}")
        return self._finished(self._read(epoch, start) if self.batched else self.reader.read(epoch, start))

    def _read(self, epoch: int, start: int) -> Iterator[tuple[dict, Tensor, Tensor]]:
        for i in range(start, len(self)):
            index, view = self.plan.rows(epoch, i)
            yield self.dataset.batch(index, view, self.seed), index, view

    def _finished(self, read: Iterator[tuple[dict, Tensor, Tensor]]) -> Iterator[dict]:
        """Labels hidden, tensors on the device, ``index`` and ``view`` beside them."""
        for batch, index, view in read:
            batch = {**batch, "index": index, "view": view}
            if self.plan.take_others:
                known = self.plan.known
                batch["labelled"] = torch.arange(len(index), device="cpu") < known
                if isinstance(batch.get("target"), Tensor):
                    batch["target"] = batch["target"].clone()
                    batch["target"][known:] = UNLABELLED
                elif isinstance(batch.get("target"), list):
                    batch["target"] = batch["target"][:known] + [None] * (len(index) - known)
            batch = {k: v if k in _STAYS else moved(v, self.device) for k, v in batch.items()}
            if self.channels_last and isinstance(batch.get("input"), Tensor) and batch["input"].ndim == 4:
                batch["input"] = batch["input"].contiguous(memory_format=torch.channels_last)
            yield batch


class _Pool:
    """The endless concatenation of passes over ``index`` (n,), which rises; without state beside a small cache."""

    def __init__(self, index: Tensor, seed: int, salt: int, shuffle: bool):
        self.index, self.seed, self.salt, self.shuffle = index, seed, salt, shuffle
        self.recent: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.index)

    def __call__(self, begin: int, count: int) -> tuple[Tensor, Tensor]:
        """Samples (count,) from position ``begin`` on, and the pass (count,) that each is in."""
        index, turns = [], []
        while count > 0:
            turn, at = divmod(begin, len(self))
            index.append(self.order(turn)[at:at + count])
            turns.append(torch.full_like(index[-1], turn))
            begin, count = begin + len(index[-1]), count - len(index[-1])
        return torch.cat(index), torch.cat(turns)

    def order(self, turn: int) -> Tensor:
        if not self.shuffle:
            return self.index
        if turn not in self.recent:
            for old in list(self.recent)[:-1]:
                del self.recent[old]
            self.recent[turn] = self.index[view_hash(self.seed, self.index, turn, self.salt).argsort(stable=True)]
        return self.recent[turn]

    def after(self, index: int) -> Iterator[int]:
        """``index`` and the samples that follow it in the data set's order, round and round."""
        at = int(torch.searchsorted(self.index, index))
        while True:
            yield int(self.index[at % len(self)])
            at += 1


class _ClassPool:
    """As a :class:`_Pool`, batches of ``take`` rows: some classes, ``per_class`` samples of each; without state too."""

    def __init__(self, index: Tensor, target: Tensor, seed: int, per_class: int, take: int, world: int):
        _check(per_class > 0, f"per_class must be at least 1, got {per_class}")
        _check(take % per_class == 0, f"a batch of {take} labelled rows cannot have per_class={per_class} samples of each "
                                      f"class: expected a multiple of {per_class}")
        classes = take // per_class
        _check(classes % world == 0, f"{world} processes cannot share the {classes} classes of a batch equally: expected a "
                                     f"multiple of {world}")
        numbers, counts = target.unique(return_counts=True)
        _check(len(numbers) >= classes, f"a batch of {take} rows with per_class={per_class} has {classes} different classes, "
                                        f"but the data has {len(numbers)}")
        self.index, self.target, self.per_class, self.take = index, target, per_class, take
        members = index[target.argsort(stable=True)].split(counts.tolist())
        self.members, self.seed = dict(zip(numbers.tolist(), members)), seed
        self.classes, self.batches = _Pool(numbers, seed, _CLASSES, True), len(numbers) // classes
        self.recent: dict[int, tuple[int, Tensor]] = {}                      # of a class: pass and order

    def __len__(self) -> int:
        return len(self.index)

    def __call__(self, begin: int, count: int) -> tuple[Tensor, Tensor]:
        """Samples (count,) of the batch that begins at ``begin``, and the pass (count,) over its class that each is in."""
        turn, at = divmod(begin // self.take, self.batches)
        classes, m = count // self.per_class, self.per_class
        wanted = []                                                          # class, pass over it, first place, how many
        for c in self.classes.order(turn)[at * classes:(at + 1) * classes].tolist():
            n = len(self.members[c])
            whole = n // m                                                   # turns that a pass over the class lasts
            place = turn // whole * n + turn % whole * m if whole else turn * m
            end = place + m
            while place < end:
                take = min(end - place, n - place % n)
                wanted.append((c, place // n, place % n, take))
                place += take
        orders = self._orders([(c, p) for c, p, _, _ in wanted])
        _, passes, _, takes = zip(*wanted)
        index = torch.cat([orders[c, p][start:start + take] for c, p, start, take in wanted])
        return index, torch.tensor(passes, device="cpu").repeat_interleave(torch.tensor(takes, device="cpu"))

    def _orders(self, wanted: list[tuple[int, int]]) -> dict[tuple[int, int], Tensor]:
        """Samples of a class in the order of a pass, for each (class, pass); what is missing is made in one go."""
        known = {key: self.recent[key[0]][1] for key in wanted if self.recent.get(key[0], (None,))[0] == key[1]}
        missing = [key for key in wanted if key not in known]
        if missing:
            members = [self.members[c] for c, _ in missing]
            sizes = torch.tensor([len(of_class) for of_class in members], device="cpu")
            number = torch.arange(len(missing), device="cpu").repeat_interleave(sizes)
            index, passes = torch.cat(members), torch.tensor([p for _, p in missing], device="cpu")[number]
            order = view_hash(self.seed, index, passes, _LABELLED).argsort(stable=True)
            order = order[number[order].argsort(stable=True)]
            for key, part in zip(missing, index[order].split(sizes.tolist())):
                known[key], self.recent[key[0]] = part, (key[1], part)
        return known

    def after(self, index: int) -> Iterator[int]:
        """``index`` and the samples of its class that follow it, round and round."""
        return _Pool(self.members[int(self.target[torch.searchsorted(self.index, index)])], 0, 0, False).after(index)


@dataclass
class _Plan:
    """Which samples a batch holds; :class:`Loader` says by what rule. Iterated, it gives the keys of the epoch ``at``."""

    pool: "_Pool | _ClassPool"
    take: int                       # rows of `pool` in a batch, over all ranks
    others: _Pool
    take_others: int
    length: int                     # iterations of an epoch
    endless: bool                   # epochs follow each other without a gap in the passes
    views: int
    rank: int
    world: int
    group: int = 1                  # rows of `pool` that stay together when ranks share a batch
    at: tuple[int, int] = (0, 0)    # epoch, first iteration

    @property
    def known(self) -> int:
        """Rows of `pool` in a batch of this rank, which come first."""
        return self.take // self.world

    def rows(self, epoch: int, iteration: int) -> tuple[Tensor, Tensor]:
        """``index`` and ``view``, (b,) each, of this rank's batch."""
        step, n = epoch * self.length + iteration, len(self.pool)
        if self.endless:
            begin, count = step * self.take, self.take
        else:
            begin, count = epoch * n + iteration * self.take, min(self.take, n - iteration * self.take)
        mine = torch.arange(count, device="cpu") // self.group % self.world == self.rank
        index, turn = (rows[mine] for rows in self.pool(begin, count))
        if self.take_others:
            more, turns = (rows[self.rank::self.world] for rows in self.others(step * self.take_others, self.take_others))
            index, turn = torch.cat([index, more]), torch.cat([turn, turns])
        return index, turn % self.views if self.views else turn

    def __iter__(self) -> Iterator[list[tuple[int, int, bool]]]:
        return self._keys(*self.at)

    def _keys(self, epoch: int, start: int) -> Iterator[list[tuple[int, int, bool]]]:
        for i in range(start, self.length):
            index, view = self.rows(epoch, i)
            yield [(j, v, row < self.known) for row, (j, v) in enumerate(zip(index.tolist(), view.tolist()))]


class _Samples:
    """A map-style data set whose samples are asked for by ``(index, view, whether of the plan's pool)``."""

    def __init__(self, dataset, seed: int, plan: _Plan, skip_bad: bool, replace: bool):
        self.dataset, self.seed, self.plan, self.skip_bad, self.replace = dataset, seed, plan, skip_bad, replace

    def __getitem__(self, key: tuple[int, int, bool]) -> tuple[int, int, object, dict[int, str]]:
        index, view, known = key
        pool = self.plan.pool if known else self.plan.others
        bad = {}
        for i in pool.after(index):
            try:
                with _seeded(self.seed, i, view, _SAMPLE):
                    return i, view, self.dataset[i], bad
            except Exception as error:
                bad[i] = f"{_path(self.dataset, i)}: {type(error).__name__}: {error}"
                if not self.skip_bad:
                    raise RuntimeError(f"cannot read sample {i}, {bad[i]} (skip_bad=True goes on without it)") from error
                if not self.replace:
                    return i, view, None, bad
                if len(bad) == min(_TRIES, len(pool)):
                    raise RuntimeError(f"cannot read sample {index} nor the {len(bad) - 1} after it; "
                                       f"the last is {bad[i]}") from error


class _Collate:
    """List of what :class:`_Samples` gives -> (batch, index, view, bad)."""

    def __init__(self, collate: Callable, seed: int):
        self.collate, self.seed = collate, seed

    def __call__(self, items: list) -> tuple[dict | None, Tensor, Tensor, dict[int, str]]:
        found = {i: why for *_, some in items for i, why in some.items()}
        items = [item for item in items if item[0] not in item[3]]              # in evaluation nothing stands in its place
        if not items:
            return None, torch.empty(0), torch.empty(0), found
        index, view, samples, _ = zip(*items)
        with _seeded(self.seed, index[0], view[0], _COLLATE):
            batch = self.collate(list(samples))
        if not isinstance(batch, dict):
            batch = dict(zip(("input", "target"), batch, strict=True))
        return batch, torch.tensor(index), torch.tensor(view), found


class _Reader:
    """A map-style data set through torch's DataLoader."""

    def __init__(self, loader: Loader, workers: int, collate: Callable, skip_bad: bool, training: bool, timeout: float):
        self.plan, self.bad, self.left_out = loader.plan, loader.bad, not training
        self.workers, self.begun, self.timeout = workers, 0, timeout
        self.data = torch.utils.data.DataLoader(
            _Samples(loader.dataset, loader.seed, loader.plan, skip_bad, training), batch_sampler=loader.plan,
            collate_fn=_Collate(collate, loader.seed), num_workers=workers, persistent_workers=workers > 0,
            timeout=timeout if workers else 0,
            pin_memory=loader.device.type == "cuda", generator=torch.Generator(device="cpu"))

    def read(self, epoch: int, start: int) -> Iterator[tuple[dict, Tensor, Tensor]]:
        self.plan.at, self.begun = (epoch, start), self.begun + 1
        return self._read(iter(self.data), self.begun)

    def _read(self, batches: Iterator, mine: int) -> Iterator[tuple[dict, Tensor, Tensor]]:
        while True:
            if self.workers and self.begun != mine:
                raise RuntimeError("a newer iterator of this Loader has taken over its workers: use a second Loader beside it")
            try:
                batch, index, view, bad = next(batches)
            except StopIteration:
                if self.left_out and len(self.bad) == len(self.plan.pool):
                    raise RuntimeError(f"none of the {len(self.bad)} samples can be read; the first: "
                                       f"{next(iter(self.bad.values()))}") from None
                return
            except Exception as error:
                if not self.workers:
                    raise
                if "timed out after" in str(error):
                    raise RuntimeError(f"the {self.workers} workers of the loader gave no batch within {self.timeout:g} s: "
                                       "they hang, or the data is on a disk that does not answer; data.timeout=<seconds> "
                                       "gives them longer, data.workers=0 shows where they hang") from None
                # The frames of torch hold error and workers in a cycle; the collector then waits 5 s for each worker.
                raise error.with_traceback(None)  # noqa: B904
            if bad and not self.bad:
                how = "left out an unreadable sample" if self.left_out else "skipped an unreadable sample"
                warnings.warn(f"{how}: {next(iter(bad.values()))} (said once; Loader.bad has all)", stacklevel=3)
            self.bad.update(bad)
            if batch is not None:
                yield batch, index, view


def stack(samples: list) -> dict:
    """Dicts or (input, target) pairs -> one dict; tensors, arrays and numbers stacked, anything else as a list."""
    if not isinstance(samples[0], dict):
        if not isinstance(samples[0], tuple | list) or len(samples[0]) != 2:
            raise TypeError(f"a sample must be (input, target) or a dict, got {type(samples[0]).__name__}: {samples[0]!r:.80}")
        samples = [{"input": input, "target": target} for input, target in samples]
    return {name: _stacked(name, [sample[name] for sample in samples]) for name in samples[0]}


def _stacked(name: str, values: list):
    if isinstance(values[0], Tensor | np.ndarray | np.generic | int | float):
        values = [torch.as_tensor(value) for value in values]
        if len({value.shape for value in values}) > 1:
            raise ValueError(f"samples of different shapes cannot be stacked: {name!r} has "
                             f"{[tuple(v.shape) for v in values][:8]}; resize them to one shape, or pass collate=")
        return torch.stack(values)
    if name == "input":
        raise TypeError(f"'input' must be a tensor, an array or a number, got {type(values[0]).__name__}; a PIL "
                        f"image becomes one through torchvision.transforms.v2.ToImage and ToDtype(torch.float32, scale=True)")
    return values


@contextmanager
def _seeded(seed: int, index: int, view: int, salt: int):
    """Python's, NumPy's and torch's CPU generator start from (seed, index, view) in the block, which leaves no trace."""
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


def _labelled_mask(labelled, dataset) -> Tensor:
    """Which samples are labelled, bool (len(dataset),)."""
    n = len(dataset)
    if labelled is None:
        return torch.ones(n, dtype=torch.bool, device="cpu")
    if isinstance(labelled, str):
        _check(labelled == "target", f"labelled must be indices, a bool mask, 'target' or None, got {labelled!r}")
        _check(hasattr(dataset, "target"), f"labelled='target' needs dataset.target, which {type(dataset).__name__} has not")
        return torch.as_tensor(dataset.target).cpu() != UNLABELLED
    labelled = torch.as_tensor(labelled).cpu()
    if labelled.dtype == torch.bool:
        _check(labelled.shape == (n,), f"labelled: expected a mask of shape ({n},), got {tuple(labelled.shape)}")
        return labelled
    if len(labelled) and not 0 <= int(labelled.min()) <= int(labelled.max()) < n:
        raise IndexError(f"labelled has {int(labelled.min())}..{int(labelled.max())}, the data set has samples 0..{n - 1}")
    return torch.zeros(n, dtype=torch.bool, device="cpu").index_fill_(0, labelled.long(), True)


def _class_numbers(dataset) -> Tensor:
    """``dataset.target``, int64 (n,)."""
    try:
        target = torch.as_tensor(dataset.target).cpu()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        target = torch.empty(0)
    _check(target.shape == (len(dataset),) and not target.is_floating_point(),
           f"per_class needs dataset.target, one class number a sample; {type(dataset).__name__} has none")
    return target.long()


def readable(dataset, index: Sequence[int]) -> dict[int, object]:
    """Those of the samples ``index`` of a map-style data set that can be read: for pictures, since who evaluates is told."""
    found = {}
    for i in index:
        with suppress(Exception):
            found[i] = dataset[i]
    return found


def moved(value, device: torch.device):
    """Tensors, also within dicts, lists and tuples, on ``device``; to CUDA without waiting."""
    if isinstance(value, Tensor):
        if device.type == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    return type(value)(moved(part, device) for part in value) if type(value) in (list, tuple) else value


def _path(dataset, index: int) -> str:
    try:
        return str(dataset.path(index) if hasattr(dataset, "path") else dataset.samples[index][0])
    except Exception:
        return f"of {type(dataset).__name__}, which tells no path"


def _check(right: bool, message: str) -> None:
    if not right:
        raise ValueError(message)
