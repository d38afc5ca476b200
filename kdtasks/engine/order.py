"""Which samples a batch holds, and in which view: a function of (seed, epoch, iteration), without
state.

A :class:`Pool` is an endless concatenation of passes, a :class:`ClassPool` one of batches of whole
classes; a :class:`Plan` cuts batches out of them. :class:`kdtasks.engine.loader.Loader` says by
what rule.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdtasks.core.classes import UNLABELLED
from kdtasks.core.views import view_hash

# salts of view_hash: three orders
LABELLED, OTHERS, _CLASSES = 0x0A, 0x0B, 0x0E


class Pool:
    """The endless concatenation of passes over ``index`` (n,), which rises; without state beside a
    small cache.
    """

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
            index.append(self.order(turn)[at : at + count])
            turns.append(torch.full_like(index[-1], turn))
            begin, count = begin + len(index[-1]), count - len(index[-1])
        return torch.cat(index), torch.cat(turns)

    def order(self, turn: int) -> Tensor:
        """The indices of one pass, (len(self),) int64: in an order of its own, or as they rise."""
        if not self.shuffle:
            return self.index
        if turn not in self.recent:
            for old in list(self.recent)[:-1]:
                del self.recent[old]
            self.recent[turn] = self.index[
                view_hash(self.seed, self.index, turn, self.salt).argsort(stable=True)
            ]
        return self.recent[turn]

    def after(self, index: int) -> Iterator[int]:
        """``index`` and the samples that follow it in the data set's order, round and round."""
        at = int(torch.searchsorted(self.index, index))
        while True:
            yield int(self.index[at % len(self)])
            at += 1


class ClassPool:
    """As a :class:`Pool`, batches of ``take`` rows: some classes, ``per_class`` samples of each;
    without state too.
    """

    def __init__(
        self, index: Tensor, target: Tensor, seed: int, per_class: int, take: int, world: int
    ):
        expect(per_class > 0, f"per_class must be at least 1, got {per_class}")
        expect(
            take % per_class == 0,
            f"a batch of {take} labelled rows cannot have per_class={per_class} samples of each "
            f"class: expected a multiple of {per_class}",
        )
        classes = take // per_class
        expect(
            classes % world == 0,
            f"{world} processes cannot share the {classes} classes of a batch equally: expected a "
            f"multiple of {world}",
        )
        numbers, counts = target.unique(return_counts=True)
        expect(
            len(numbers) >= classes,
            f"a batch of {take} rows with per_class={per_class} has {classes} different classes, "
            f"but the data has {len(numbers)}",
        )
        self.index, self.target, self.per_class, self.take = index, target, per_class, take
        members = index[target.argsort(stable=True)].split(counts.tolist())
        self.members, self.seed = dict(zip(numbers.tolist(), members)), seed
        self.classes, self.batches = Pool(numbers, seed, _CLASSES, True), len(numbers) // classes
        # of a class: pass and order
        self.recent: dict[int, tuple[int, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.index)

    def __call__(self, begin: int, count: int) -> tuple[Tensor, Tensor]:
        """Samples (count,) of the batch that begins at ``begin``, and the pass (count,) over its
        class that each is in.
        """
        turn, at = divmod(begin // self.take, self.batches)
        classes, m = count // self.per_class, self.per_class
        # class, pass over it, first place, how many
        wanted = []
        for c in self.classes.order(turn)[at * classes : (at + 1) * classes].tolist():
            n = len(self.members[c])
            # turns that a pass over the class lasts
            whole = n // m
            place = turn // whole * n + turn % whole * m if whole else turn * m
            end = place + m
            while place < end:
                take = min(end - place, n - place % n)
                wanted.append((c, place // n, place % n, take))
                place += take
        orders = self._orders([(c, p) for c, p, _, _ in wanted])
        _, passes, _, takes = zip(*wanted)
        index = torch.cat([orders[c, p][start : start + take] for c, p, start, take in wanted])
        return index, torch.tensor(passes, device="cpu").repeat_interleave(
            torch.tensor(takes, device="cpu")
        )

    def _orders(self, wanted: list[tuple[int, int]]) -> dict[tuple[int, int], Tensor]:
        """Samples of a class in the order of a pass, for each (class, pass); what is missing is
        made in one go.
        """
        orders = {
            key: self.recent[key[0]][1]
            for key in wanted
            if self.recent.get(key[0], (None,))[0] == key[1]
        }
        missing = [key for key in wanted if key not in orders]
        if missing:
            members = [self.members[c] for c, _ in missing]
            sizes = torch.tensor([len(of_class) for of_class in members], device="cpu")
            number = torch.arange(len(missing), device="cpu").repeat_interleave(sizes)
            index, passes = (
                torch.cat(members),
                torch.tensor([p for _, p in missing], device="cpu")[number],
            )
            order = view_hash(self.seed, index, passes, LABELLED).argsort(stable=True)
            order = order[number[order].argsort(stable=True)]
            for key, part in zip(missing, index[order].split(sizes.tolist())):
                orders[key], self.recent[key[0]] = part, (key[1], part)
        return orders

    def after(self, index: int) -> Iterator[int]:
        """``index`` and the samples of its class that follow it, round and round."""
        return Pool(
            self.members[int(self.target[torch.searchsorted(self.index, index)])], 0, 0, False
        ).after(index)


@dataclass
class Plan:
    """Which samples a batch holds; :class:`Loader` says by what rule. Iterated, it gives the keys
    of the epoch ``at``.
    """

    pool: Pool | ClassPool
    take: int  # rows of `pool` in a batch, over all ranks
    others: Pool
    take_others: int
    length: int  # iterations of an epoch
    endless: bool  # epochs follow each other without a gap in the passes
    views: int
    rank: int
    world: int
    group: int = 1  # rows of `pool` that stay together when ranks share a batch
    at: tuple[int, int] = (0, 0)  # epoch, first iteration

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
            begin, count = (
                epoch * n + iteration * self.take,
                min(self.take, n - iteration * self.take),
            )
        mine = torch.arange(count, device="cpu") // self.group % self.world == self.rank
        index, turn = (rows[mine] for rows in self.pool(begin, count))
        if self.take_others:
            more, turns = (
                rows[self.rank :: self.world]
                for rows in self.others(step * self.take_others, self.take_others)
            )
            index, turn = torch.cat([index, more]), torch.cat([turn, turns])
        return index, turn % self.views if self.views else turn

    def __iter__(self) -> Iterator[list[tuple[int, int, bool]]]:
        return self._keys(*self.at)

    def _keys(self, epoch: int, start: int) -> Iterator[list[tuple[int, int, bool]]]:
        for i in range(start, self.length):
            index, view = self.rows(epoch, i)
            yield [
                (j, v, row < self.known)
                for row, (j, v) in enumerate(zip(index.tolist(), view.tolist()))
            ]


def make_plan(
    dataset: Any,
    batch_size: int,
    *,
    seed: int,
    shuffle: bool,
    drop_last: bool,
    views: int,
    labelled: Any,
    unlabelled_per_batch: int,
    per_class: int | None,
    length: int | None,
    rank: int,
    world: int,
) -> Plan:
    """The plan of a :class:`~kdtasks.engine.loader.Loader`; arguments and errors as there."""
    training = shuffle or drop_last
    _check_sizes(batch_size, unlabelled_per_batch, views, length)
    _check_ranks(batch_size, unlabelled_per_batch, rank, world, training)
    _check_ends(shuffle, drop_last, bool(unlabelled_per_batch or length), per_class, world)
    is_labelled = labelled_mask(labelled, dataset)
    _check_labelled(is_labelled, unlabelled_per_batch)
    # (n,)
    rows, take = is_labelled.nonzero()[:, 0], batch_size - unlabelled_per_batch
    # this rank's samples, in batches of its share of the size
    if not training:
        rows, take, rank, world = rows[rank::world].contiguous(), -(-batch_size // world), 0, 1
    if per_class is None:
        pool = Pool(rows, seed, LABELLED, shuffle)
    else:
        pool = ClassPool(rows, class_targets(dataset)[rows], seed, per_class, take, world)
    whole = max(1, len(rows) // take) if drop_last else -(-len(rows) // take)
    return Plan(
        pool=pool,
        take=take,
        others=Pool((~is_labelled).nonzero()[:, 0], seed, OTHERS, shuffle),
        take_others=unlabelled_per_batch,
        length=length or whole,
        endless=length is not None or per_class is not None or (drop_last and len(rows) < take),
        views=views,
        rank=rank,
        world=world,
        group=per_class or 1,
    )


def _check_sizes(
    batch_size: int, unlabelled_per_batch: int, views: int, length: int | None
) -> None:
    expect(batch_size > 0, f"batch_size must be at least 1, got {batch_size}")
    expect(views >= 0, f"views must be 0 (fresh ones) or a number of fixed ones, got {views}")
    expect(
        0 <= unlabelled_per_batch < batch_size,
        f"unlabelled_per_batch must be in [0, batch_size), got {unlabelled_per_batch} of "
        f"{batch_size}",
    )
    expect(length is None or length > 0, f"length must be at least 1, got {length}")


def _check_ranks(
    batch_size: int, unlabelled_per_batch: int, rank: int, world: int, training: bool
) -> None:
    expect(0 <= rank < world, f"rank must be in [0, world), got rank={rank}, world={world}")
    expect(
        not training or batch_size % world == 0 == unlabelled_per_batch % world,
        f"{world} processes cannot share batch_size={batch_size} and "
        f"unlabelled_per_batch={unlabelled_per_batch} equally: expected multiples of {world}",
    )


def _check_ends(
    shuffle: bool, drop_last: bool, endless: bool, per_class: int | None, world: int
) -> None:
    expect(
        drop_last or not (endless or (shuffle and world > 1)),
        "drop_last=False gives a short last batch: it goes neither with unlabelled_per_batch, nor "
        "with length, nor with shuffle on several processes",
    )
    expect(
        per_class is None or (shuffle and drop_last),
        "per_class goes with shuffle=True and drop_last=True, not with an evaluation",
    )


def _check_labelled(is_labelled: Tensor, unlabelled_per_batch: int) -> None:
    count = int(is_labelled.sum())
    expect(count > 0, "no sample is labelled")
    expect(
        not unlabelled_per_batch or count < len(is_labelled),
        f"unlabelled_per_batch={unlabelled_per_batch}, but all {len(is_labelled)} samples are "
        "labelled: pass labelled=",
    )


def labelled_mask(labelled: Any, dataset: Any) -> Tensor:
    """Which samples are labelled, bool (len(dataset),)."""
    n = len(dataset)
    if labelled is None:
        return torch.ones(n, dtype=torch.bool, device="cpu")
    if isinstance(labelled, str):
        expect(
            labelled == "target",
            f"labelled must be indices, a bool mask, 'target' or None, got {labelled!r}",
        )
        expect(
            hasattr(dataset, "target"),
            f"labelled='target' needs dataset.target, which {type(dataset).__name__} has not",
        )
        return torch.as_tensor(dataset.target).cpu() != UNLABELLED
    labelled = torch.as_tensor(labelled).cpu()
    if labelled.dtype == torch.bool:
        expect(
            labelled.shape == (n,),
            f"labelled: expected a mask of shape ({n},), got {tuple(labelled.shape)}",
        )
        return labelled
    if len(labelled) and not 0 <= int(labelled.min()) <= int(labelled.max()) < n:
        raise IndexError(
            f"labelled has {int(labelled.min())}..{int(labelled.max())}, the data set has samples "
            f"0..{n - 1}"
        )
    return torch.zeros(n, dtype=torch.bool, device="cpu").index_fill_(0, labelled.long(), True)


def class_targets(dataset: Any) -> Tensor:
    """``dataset.target``, int64 (n,)."""
    try:
        target = torch.as_tensor(dataset.target).cpu()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        target = torch.empty(0)
    expect(
        target.shape == (len(dataset),) and not target.is_floating_point(),
        f"per_class needs dataset.target, one class number a sample; {type(dataset).__name__} has "
        "none",
    )
    return target.long()


def expect(right: bool, message: str) -> None:
    """ValueError with the message, if it is not right."""
    if not right:
        raise ValueError(message)
