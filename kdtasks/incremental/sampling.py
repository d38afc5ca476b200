"""Which images an experience trains on beside its own: from an unlabelled pool of any size, and of
the classes before.

The pool may be a tensor of scores or a stream of unknown length: it is gone through once, and what
is kept does not grow with it. Every choice is a function of the scores, the seed and a sample's
number (:func:`kdtasks.core.views.view_hash`), not of how the pool is cut into batches. A sample's
number is its place in the stream, so the stream must come in a fixed order.

How Global Distillation samples (Lee et al., ICCV 2019, arXiv 1903.12648), as its authors' code
does: for N labelled images, N external ones. 70 % of N are drawn at random from the whole pool, as
images of no class; with the other 30 %, each of the l classes before has the same share, those on
which the model's raw logit of this class is largest. An image of several classes is one image, and
what was drawn at random is not counted where it was chosen already, so there may be fewer than N.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdtasks.core.names import did_you_mean
from kdtasks.core.precision import raised
from kdtasks.core.views import view_hash

ENTRIES = 2**18  # scores of a block: 1 MiB in float32
_POOL, _CORESET = 0x6D, 0xC0  # salts of view_hash


class ExternalSample(NamedTuple):
    """Numbers of pool images, int64, rising, no number in both."""

    confident: Tensor
    random: Tensor


def confident_indices(scores: Tensor | Iterable[Tensor], per_class: int) -> Tensor:
    """The best rows of each column, in one set.

    Args:
        scores: ``(M, l)``, or its rows in chunks ``(b, l)``, of any lengths: these are read once,
            one after the other, and may lie on a GPU.
        per_class: how many of each column, at most M; of equal ones the first.

    Returns:
        int64 on the CPU, rising, each number once: at most ``per_class * l``. Memory grows with
        that and with a chunk, not with M.

    Raises:
        ValueError: a NaN, chunks of other shapes, or a ``per_class`` that is no integer of at least
            0.
    """
    best = _Best(_whole("per_class", per_class))
    for first, block in _blocks(scores):
        best.add(block, first)
    return best.indices()


def sample_external(
    scores: Tensor | Iterable[Tensor] | int,
    total: int,
    out_of_distribution: float = 0.7,
    seed: int = 0,
    draw: int = 0,
    flattest: bool = False,
) -> ExternalSample:
    """The images that an experience takes from the pool; see above.

    Args:
        scores: of the pool's M images by the model before, ``(M, l)`` or in chunks ``(b, l)``, such
            as :func:`scores_of` gives. There is no such model in the first experience: M, or chunks
            ``(b, 0)``, and all are drawn at random.
        total: N, the labelled images, coreset included.
        out_of_distribution: share of N that is drawn at random; 0.7 as in the authors' code.
        seed: of the run.
        draw: which draw of it; another number in each experience, as there.
        flattest: in place of random ones, those with the highest mean log-softmax, which are the
            least sure of any class (an ablation of the paper). Logits or their log-softmax as
            scores give the same.

    Returns:
        ``(confident, random)``: :func:`confident_indices` with floor((N - n) / l) a class, and n =
        round(share · N) drawn at random without replacement, less those that are in ``confident``.

    Warns:
        UserWarning: there are more classes than images for them, so that none is confident; or the
            pool is too small.

    Raises:
        ValueError: as :func:`confident_indices`; ``total`` is no integer of at least 0, or the
            share is not in [0, 1].
    """
    total = _whole("total", total)
    if not 0 <= out_of_distribution <= 1:
        raise ValueError(f"out_of_distribution must be in [0, 1], got {out_of_distribution}")
    if isinstance(scores, int):
        scores = _of_no_class(scores)
    confident = random = None
    rows = 0
    for first, block in _blocks(scores):
        rows, classes = first + len(block), block.shape[1]
        if confident is None:
            random = _Best(round(out_of_distribution * total) if classes else total)
            left = total - random.number
            confident = _Best(left // max(1, classes))
            if 0 < left < classes:
                warnings.warn(
                    f"{left} confident images are fewer than the {classes} classes: none is taken",
                    stacklevel=2,
                )
        confident.add(block, first)
        if flattest and classes:
            random.add(block.double().log_softmax(1).mean(1, keepdim=True), first)
        else:
            random.add(-view_hash(seed, torch.arange(first, rows), draw, _POOL)[:, None], first)
    if rows < total:
        warnings.warn(
            f"the pool has {rows} images, fewer than the {total} that are wanted", stacklevel=2
        )
    if confident is None:  # no block at all
        nothing = torch.empty(0, dtype=torch.int64)
        return ExternalSample(nothing, nothing)
    best_indices, random_indices = confident.indices(), random.indices()
    return ExternalSample(best_indices, random_indices[~torch.isin(random_indices, best_indices)])


def scores_of(
    model: nn.Module,
    loader: Iterable,
    device: torch.device | str | None = None,
    score: str = "logit",
) -> Iterator[Tensor]:
    """The model's scores of each batch, in eval and without gradient; afterwards every module is in
    the mode it was in.

    Args:
        model: gives logits ``(b, l)``.
        loader: batches in a fixed order: tensors, tuples or lists that begin with one, or dicts
            with ``'input'``.
        device: to which batches go; None: where the model's parameters are.
        score: ``'logit'``, as the authors' code ranks, or ``'prob'``: by probability. What comes
            then is its logarithm, which ranks alike and does not underflow.

    Yields:
        ``(b, l)`` on the device; half precision raised to float32.

    Raises:
        ValueError: another score, or a batch of another kind.
    """
    if score not in ("logit", "prob"):
        raise ValueError(f"no score {score!r}; {did_you_mean(str(score), ('logit', 'prob'))}")
    if device is None:
        device = next((parameter.device for parameter in model.parameters()), None)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for batch in loader:
            with torch.no_grad():
                (logits,) = raised(model(_input_of(batch).to(device, non_blocking=True)))
                scores = logits if score == "logit" else logits.log_softmax(1)
            yield scores
    finally:
        for module, mode in modes.items():
            module.training = mode


def coreset_quota(total: int, classes: int) -> list[int]:
    """How many samples of each class are kept: floor(total / classes), and one more of the latest
    ones for what is left.

    Raises:
        ValueError: ``total`` is no integer of at least 0, or there is no class.
    """
    if _whole("classes", classes) == 0:
        raise ValueError("a coreset needs at least 1 class, got 0")
    share, remainder = divmod(_whole("total", total), classes)
    return [share + (k >= classes - remainder) for k in range(classes)]


def coreset_indices(
    target: Tensor | Sequence[int], quota: Sequence[int], seed: int = 0, index: Tensor | None = None
) -> Tensor:
    """A random choice of each class. A smaller quota gives a part of what a larger one gave.

    So what is kept after an experience is the same, whether it is drawn from all samples or from
    those kept before.

    Args:
        target: (n,) the column of each sample's class; samples of a class that has no quota, or a
            negative one, are left out.
        quota: how many of each class, as :func:`coreset_quota` gives; a class that has fewer gives
            all.
        seed: of the run.
        index: (n,) int64, each sample's number in its data set; None: its place in ``target``.

    Returns:
        int64 on the CPU, places in ``target``, rising.

    Raises:
        ValueError: not one target and one index a sample, or a quota that is no integer of at least
            0.
    """
    target = torch.as_tensor(target, device="cpu").long()
    index = torch.arange(len(target)) if index is None else index.cpu()
    if target.dim() != 1 or index.shape != target.shape:
        raise ValueError(
            f"expected target (n,) and index (n,), got {tuple(target.shape)} and "
            f"{tuple(index.shape)}"
        )
    quota = torch.tensor([_whole("quota", number) for number in quota], dtype=torch.int64)
    order = view_hash(seed, index, 0, _CORESET).argsort(stable=True)
    order = order[(target[order] >= 0) & (target[order] < len(quota))]
    # class by class, each in hash order
    order = order[target[order].argsort(stable=True)]
    target = target[order]
    place = torch.arange(len(order)) - torch.searchsorted(target, target)  # within its class
    return order[place < quota[target]].sort().values


class _Best:
    """The largest scores of each column so far, and in which rows they stand; of equal ones the
    first.
    """

    def __init__(self, number: int):
        self.number = number
        # (l, kept)
        self.scores, self.rows = torch.empty(0, 0), torch.empty(0, 0, dtype=torch.int64)

    def add(self, block: Tensor, first: int) -> None:
        """``(b, l)`` scores of the rows from ``first`` on, which follow those before."""
        if not (self.number and block.numel()):
            return
        scores, rows = block.T, torch.arange(first, first + len(block), device=block.device)
        if self.scores.shape[1] == self.number:
            better = (scores > self.scores[:, -1:]).any(0).nonzero().squeeze(1)
            scores, rows = scores[:, better], rows[better]
        rows = rows.expand(len(scores), -1)
        if self.scores.numel():
            scores, rows = torch.cat([self.scores, scores], 1), torch.cat([self.rows, rows], 1)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : self.number]
        self.scores, self.rows = scores.gather(1, order), rows.gather(1, order)

    def indices(self) -> Tensor:
        """The rows of all columns, rising, each once; on the CPU."""
        return self.rows.unique().cpu()


def _blocks(scores: Tensor | Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Checked blocks of rows, at most ENTRIES scores each, with the number of the first row."""
    first, columns = 0, None
    for chunk in [scores] if isinstance(scores, Tensor) else scores:
        if chunk.dim() != 2 or columns not in (None, chunk.shape[1]):
            after = "" if columns is None else f" after {first} rows of {columns} columns"
            raise ValueError(
                f"expected scores (M, l), or chunks (b, l), got {tuple(chunk.shape)}{after}"
            )
        columns = chunk.shape[1]
        for block in chunk.detach().split(max(1, ENTRIES // max(1, columns))):
            bad = block.isnan()
            if bad.any():
                row, column = bad.nonzero()[0].tolist()
                raise ValueError(f"the score of row {first + row}, class {column} is NaN")
            yield first, block
            first += len(block)


def _of_no_class(rows: int) -> Iterator[Tensor]:
    for first in range(0, _whole("the pool's size", rows), ENTRIES):
        yield torch.empty(min(ENTRIES, rows - first), 0)


def _input_of(batch: object) -> Tensor:
    if isinstance(batch, dict):
        images, kind = batch.get("input"), f"a dict with {list(batch)}"
    else:
        images = batch[0] if isinstance(batch, tuple | list) and batch else batch
        kind = type(batch).__name__
    if not isinstance(images, Tensor):
        raise ValueError(
            "expected a tensor, a tuple or list that begins with one, or a dict with 'input', got "
            f"{kind}"
        )
    return images


def _whole(name: str, number: int) -> int:
    if not hasattr(number, "__index__") or number < 0:
        raise ValueError(f"{name} must be an integer of at least 0, got {number!r}")
    return number.__index__()
