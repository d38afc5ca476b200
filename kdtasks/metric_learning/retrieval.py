r"""Metrics of retrieval: each sample in turn is the query, all others are the gallery, ranked by
Euclidean distance.

.. math::
    \text{Recall@}k = \operatorname*{mean}_q \;
    [\text{one of the } k \text{ nearest has q's class}], \qquad
    \text{MAP@R} = \operatorname*{mean}_q \frac{1}{R} \sum_{i=1}^{R} P(i) \,
    [\text{the i-th has q's class}]

R is the number of other samples of q's class, P(i) the share of its class among the i nearest
(Musgrave, Belongie and Lim, 2003.08505). A query is out of its own ranking by its number, not by
its distance, so that a copy of it in the gallery counts. A sample that is alone in its class is in
the gallery, but no query. Of equal distances the smaller number comes first. NMI compares the
classes with a k-means clustering:

.. math:: \text{NMI} = \frac{2 I(\text{class}; \text{cluster})}{H(\text{class}) + H(\text{cluster})}
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

ENTRIES = 2**24  # of a block of distances: 128 MB


def nearest(
    embeddings: Tensor, count: int, rows: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The ``count`` nearest others of each row, nearest first, of equal ones the smaller number,
    block by block.

    Distances are computed in float64 about the mean, so that samples close together keep their
    order.

    Args:
        embeddings: (N, D).
        count: at most N - 1.
        rows: int64 (M,), which queries; None: all.

    Yields:
        queries (b,), their neighbours (b, count); on the device of ``embeddings``.

    Raises:
        ValueError: a row, or its squared length in float64, is not finite.
    """
    x = embeddings.double()
    bad_rows = (~x.square().sum(1).isfinite()).nonzero()[:, 0].tolist()
    if bad_rows:
        raise ValueError(
            f"{len(bad_rows)} of {len(x)} embeddings are not finite (first: row {bad_rows[0]})"
        )
    x = x - x.mean(0)
    squared = x.square().sum(1)
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    for block in rows.split(max(1, ENTRIES // max(len(x), 1))):
        # (b, N)
        distance = torch.addmm(squared, x[block], x.T, alpha=-2).add_(squared[block, None])
        distance[torch.arange(len(block), device=x.device), block] = torch.inf
        yield block, _smallest(distance, count)


def _smallest(distance: Tensor, count: int) -> Tensor:
    """Where the ``count`` smallest of each row (b, N) are, smallest first, of equal ones the
    smaller place first.

    That is a stable sort of the row, cut; ``topk`` takes any of equal ones, and gives them in any
    order.
    """
    values, index = distance.topk(min(count + 1, distance.shape[1]), largest=False)
    index, order = index[:, :count].sort(1)
    order = values[:, :count].gather(1, order).argsort(dim=1, stable=True)
    index = index.gather(1, order)
    if values.shape[1] > count:
        # an equal one was left out
        rows = (values[:, count - 1] == values[:, count]).nonzero()[:, 0]
        index[rows] = distance[rows].argsort(dim=1, stable=True)[:, :count]
    return index


def recall_and_map(
    embeddings: Tensor, target: Tensor, ks: Sequence[int] = (1, 2, 4, 8)
) -> dict[str, float]:
    """``recall_at_<k>`` and ``map_at_r``, in percent; see above.

    Args:
        embeddings: (N, D).
        target: int64 (N,), class numbers.
        ks: how many neighbours count.

    Raises:
        ValueError: the shapes do not fit, an embedding is not finite, or no class has two samples.
    """
    if embeddings.ndim != 2 or target.shape != embeddings.shape[:1]:
        raise ValueError(
            f"expected embeddings (N, D) and target (N,), got "
            f"{tuple(embeddings.shape)} and {tuple(target.shape)}"
        )
    _, target, counts = target.to(embeddings.device).unique(return_inverse=True, return_counts=True)
    # (N,) R of each query
    peer_counts = counts[target] - 1
    queries = (peer_counts > 0).nonzero()[:, 0]
    if not len(queries):
        raise ValueError(
            f"no class of the {len(target)} samples has two of them: there is nothing to find"
        )
    reach = min(max(*ks, int(peer_counts.max())), len(target) - 1)
    recalled = torch.zeros(len(ks), dtype=torch.float64, device=target.device)
    precision = torch.zeros((), dtype=torch.float64, device=target.device)
    place = torch.arange(1, reach + 1, device=target.device)
    for block, neighbours in nearest(embeddings, reach, queries):
        # (b, reach)
        hit = target[neighbours] == target[block, None]
        recalled += torch.stack([hit[:, :k].any(1).sum() for k in ks])
        counted = hit & (place <= peer_counts[block, None])
        precision += ((hit.cumsum(1) / place.double() * counted).sum(1) / peer_counts[block]).sum()
    sums = {f"recall_at_{k}": value for k, value in zip(ks, recalled.tolist())}
    sums["map_at_r"] = float(precision)
    return {name: 100 * value / len(queries) for name, value in sums.items()}


def cross_recall(
    queries: Tensor, gallery: Tensor, target: Tensor, ks: Sequence[int] = (1, 2, 4, 8)
) -> dict[str, float]:
    """``cross_recall_at_<k>``, in percent: each sample, embedded by one model, searches the others,
    embedded by another.

    Args:
        queries: (N, D), of the model that searches.
        gallery: (N, D), of the other model, of the same samples.
        target: int64 (N,), class numbers.
        ks: how many neighbours count.

    Raises:
        ValueError: the shapes do not fit, an embedding is not finite, or no class has two samples.
    """
    if queries.ndim != 2 or queries.shape != gallery.shape or target.shape != queries.shape[:1]:
        raise ValueError(
            "expected queries (N, D), gallery (N, D) and target (N,), got "
            f"{tuple(queries.shape)}, {tuple(gallery.shape)} and {tuple(target.shape)}"
        )
    x, y = queries.double(), gallery.double()
    if not bool(x.isfinite().all() & y.isfinite().all()):
        raise ValueError("an embedding is not finite")
    _, target, counts = target.to(x.device).unique(return_inverse=True, return_counts=True)
    query_rows = (counts[target] > 1).nonzero()[:, 0]
    if not len(query_rows):
        raise ValueError(f"no class of the {len(target)} samples has two: there is nothing to find")
    middle = y.mean(0)
    x, y = x - middle, y - middle
    squared, reach = y.square().sum(1), min(max(ks), len(y) - 1)
    hit_counts = torch.zeros(len(ks), dtype=torch.float64, device=x.device)
    for block in query_rows.split(max(1, ENTRIES // len(y))):
        distance = torch.addmm(squared, x[block], y.T, alpha=-2)
        distance[torch.arange(len(block), device=x.device), block] = torch.inf
        hit = target[_smallest(distance, reach)] == target[block, None]
        hit_counts += torch.stack([hit[:, :k].any(1).sum() for k in ks])
    shares = (100 * hit_counts / len(query_rows)).tolist()
    return {f"cross_recall_at_{k}": share for k, share in zip(ks, shares)}


def nmi(first: Tensor, second: Tensor) -> float:
    """Normalised mutual information of two labellings (N,) of the same samples, in percent; 100 if
    both have one group only.
    """
    (_, a), (_, b) = (labels.unique(return_inverse=True) for labels in (first, second))
    pair, joint = (a * (int(b.max()) + 1) + b).unique(return_counts=True)
    p, pa, pb = (counts.double() / len(a) for counts in (joint, a.bincount(), b.bincount()))
    width = int(b.max()) + 1
    entropy = -((pa * pa.log()).sum() + (pb * pb.log()).sum())
    if entropy == 0:
        return 100.0
    mutual = (p * (p / (pa[pair // width] * pb[pair % width])).log()).sum()
    return 200 * float((mutual / entropy).clamp(0, 1 / 2))


def k_means(embeddings: Tensor, clusters: int, iterations: int = 50, seed: int = 0) -> Tensor:
    """Cluster numbers (N,): Lloyd's algorithm from k-means++ seeds, the same for the same seed on
    one kind of device.

    A centre that loses all its samples stays where it is.

    Args:
        embeddings: (N, D).
        clusters: 1 to N.
        iterations: at most; it ends where no sample changes its cluster.
        seed: of the first centres.
    """
    x = embeddings.double()
    x = x - x.mean(0)
    centres = _first_centres(x, clusters, seed)
    labels = _assigned(x, centres)
    for _ in range(iterations):
        sums = torch.zeros_like(centres).index_add_(0, labels, x)
        counts = labels.bincount(minlength=clusters)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        previous_labels, labels = labels, _assigned(x, centres)
        if torch.equal(previous_labels, labels):
            break
    return labels


def _first_centres(x: Tensor, clusters: int, seed: int) -> Tensor:
    """k-means++: D² sampling, without waiting for the device."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(clusters, generator=generator, dtype=torch.float64).to(x.device)
    centres = [x[(draws[0] * len(x)).long()]]
    # (N,) squared distance to the nearest centre
    nearest_centre = (x - centres[0]).square().sum(1)
    for draw in draws[1:]:
        total = nearest_centre.cumsum(0)
        index = torch.searchsorted(total, draw * total[-1]).clamp(max=len(x) - 1)
        centres.append(x[index])
        nearest_centre = torch.minimum(nearest_centre, (x - centres[-1]).square().sum(1))
    return torch.stack(centres)


def _assigned(x: Tensor, centres: Tensor) -> Tensor:
    squared = centres.square().sum(1)
    blocks = x.split(max(1, ENTRIES // len(centres)))
    return torch.cat(
        [torch.addmm(squared, block, centres.T, alpha=-2).argmin(1) for block in blocks]
    )


def kendall_tau(first: Tensor, second: Tensor) -> Tensor:
    r"""Kendall's :math:`\tau_b` of each row: 1, all pairs stand in the same order in both; -1, all
    in the opposite one.

    Args:
        first, second: (M, n) numbers, n small: time and memory M·n².

    Returns:
        float64 (M,); 0 for a row that is constant in one of the two.
    """
    # (M, n, n)
    a, b = ((x[:, :, None] - x[:, None, :]).sign().double() for x in (first, second))
    product = (a * b).sum((1, 2))
    scale = (a.square().sum((1, 2)) * b.square().sum((1, 2))).sqrt()
    return torch.where(scale > 0, product / scale.clamp(min=1), 0)
