r"""Weighted k nearest neighbours, as Wu et al. (arXiv 1805.01978, section 3.4) classify by features
that were learned without labels, and DINO's code after them.

With vectors of length 1, a query's k most alike of a labelled bank each vote for their class:

.. math:: s_c = \sum_{i \in N_k,\, y_i = c} \exp(\cos(q, b_i) / \tau)
"""

import torch
from torch import Tensor

from kdtasks.core.precision import raised
from kdtasks.general.directions import directions

# of a block of similarities: 64 MB
_ENTRIES = 2**24


def nearest_in_bank(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine and place of each query's k most alike rows of the bank, the most alike first, of
    equally alike ones the smaller place.

    Args:
        bank, queries: ``(N, D)`` and ``(M, D)`` of any length; a row shorter than 1e-6 has cosine 0
            with all.
        k: at most N.

    Returns:
        float ``(M, k)`` and int64 ``(M, k)``, on the device of the bank.

    Raises:
        ValueError: other shapes, a k that is not in [1, N], or a value that is not finite.
    """
    if bank.dim() != 2 or queries.dim() != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"expected a bank (N, D) and queries (M, D), got {tuple(bank.shape)} and "
            f"{tuple(queries.shape)}"
        )
    if not 1 <= k <= len(bank):
        raise ValueError(f"expected k in 1..{len(bank)}, the rows of the bank, got {k}")
    for name, rows in (("bank", bank), ("queries", queries)):
        bad = (~rows.isfinite().all(1)).nonzero()[:, 0]
        if len(bad):
            raise ValueError(f"{len(bad)} rows of the {name} are not finite (first: {int(bad[0])})")
    bank, queries = (directions(rows) for rows in raised(bank, queries))
    values, places = [], []
    for block in queries.split(max(1, _ENTRIES // len(bank))):
        # a stable sort: topk takes any of equal ones
        ordered, place = (block @ bank.T).sort(dim=1, descending=True, stable=True)
        values.append(ordered[:, :k])
        places.append(place[:, :k])
    empty = bank.new_empty(0, k)
    return torch.cat(values or [empty]), torch.cat(places or [empty.long()])


def weighted_knn(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    classes: int | None = None,
) -> Tensor:
    """Each query's score of each class.

    Args:
        bank: ``(N, D)`` features of labelled images, the queries not among them.
        labels: ``(N,)`` int64, their classes.
        queries: ``(M, D)``.
        k: 20 as DINO's code finds best, chosen beforehand; of a smaller bank all.
        temperature: tau, 0.07 in the paper.
        classes: how many; None: the highest label and one.

    Returns:
        ``(M, classes)`` sums of votes, each divided by that of a copy of the query, which changes
        no order and does not overflow. The answer is the argmax, of equal scores the smaller class.

    Raises:
        ValueError: shapes, labels, k or temperature that cannot be.
    """
    if labels.shape != bank.shape[:1] or not len(labels):
        raise ValueError(
            f"expected a label for each of {len(bank)} rows and at least one, got "
            f"{tuple(labels.shape)}"
        )
    classes = int(labels.max()) + 1 if classes is None else classes
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"expected labels in 0..{classes - 1}, got {int(labels.min())} to {int(labels.max())}"
        )
    if k < 1 or not temperature > 0:
        raise ValueError(f"expected k >= 1 and temperature > 0, got {k} and {temperature}")
    cosine, place = nearest_in_bank(bank, queries, min(k, len(bank)))
    votes = ((cosine - 1) / temperature).exp()
    return votes.new_zeros(len(queries), classes).scatter_add_(1, labels[place], votes)
