r"""Deep Mutual Learning (Zhang, Xiang, Hospedales and Lu, arXiv 1706.00384).

No teacher: K networks ("peers") learn the same batch side by side, and each also learns what the
others think of it. With :math:`p_k = \mathrm{softmax}(z_k)`, the temperature being 1:

.. math:: L_k = \mathrm{CE}(z_k, y) + \frac{1}{K-1} \sum_{l \neq k} \mathrm{KL}(p_l \,\|\, p_k)

The other peer is the target, and a constant: the gradient of the sum of all :math:`L_k` with
respect to peer k is that of :math:`L_k`, so one forward of each peer, one backward of the sum and
one optimizer serve all (the "simultaneous" form). In a config that is an entry of ``'peers'``:

    student = dict(…); peers = [dict(…)]
    losses = dict(
        # alone: weight 1
        loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0),
        loss_dml=dict(type='kdtasks.general.mutual_losses', of=('peers', 'target')),
    )

In a Distiller whose batch has ``labelled``, unlabelled rows do not reach a loss of ``'target'``: an
entry as above leaves them out of the divergence too. The two halves as entries of their own, whose
sum is :math:`L_k`, have it over all rows:

    loss_ce=dict(type='kdtasks.general.peer_cross_entropies', of=('peers', 'target'))
    loss_dml=dict(type='kdtasks.general.mutual_divergences', of=('peers',))

The paper's algorithm 1 is sequential: peer 2 learns from what peer 1 thinks after its step. That is
``distiller=dict(type='kdtasks.general.SequentialDMLDistiller')`` in a config, and
:func:`sequential_step` in a loop of your own. The variant :func:`mean_posterior_losses`
(DML_e) has one target, the mean of the others' probabilities; the paper finds it worse: a mean says
less about which wrong classes look alike.

Every peer is tested and its weights are kept (``peer1.pth``); the student that counts is the first
of them, ``student``, whichever is best: choosing by the test images would be a gain of its own.

The published TensorFlow code adds the divergences up without :math:`1 / (K-1)`, the same for two
peers, and draws another batch for each peer.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.classes import UNLABELLED
from kdtasks.core.precision import raised
from kdtasks.general.divergences import times


def mutual_losses(logits: Sequence[Tensor], target: Tensor) -> list[Tensor]:
    """For each peer: cross-entropy, and the mean over the other peers of KL(other ‖ peer).

    Args:
        logits: of K >= 2 peers, ``(B, C)`` each; a peer's carry the gradient of its own loss alone.
            -inf: a masked class, see :mod:`kdtasks.general.divergences`.
        target: ``(B,)`` class numbers; -100: unlabelled, which only the peers speak about.

    Returns:
        K scalars in nats. The cross-entropy is a mean over the labelled rows, the divergence over
        all. Half precision is raised to float32, float64 stays; zeros that still backpropagate
        when there are no rows.

    Raises:
        ValueError: fewer than two peers, or shapes that do not fit.
    """
    return _with_labels(_log_probabilities(logits), target, _mean_divergence)


def mean_posterior_losses(logits: Sequence[Tensor], target: Tensor) -> list[Tensor]:
    """DML_e: as :func:`mutual_losses`, but KL(mean of the others' probabilities ‖ peer)."""
    return _with_labels(_log_probabilities(logits), target, _divergence_of_mean)


def peer_cross_entropies(logits: Sequence[Tensor], target: Tensor) -> list[Tensor]:
    """The first half of :func:`mutual_losses`: the cross-entropy of each peer, mean over the
    labelled rows; ``of=('peers', 'target')``. Arguments, precision and errors are those of
    :func:`mutual_losses`.
    """
    return _cross_entropies(_log_probabilities(logits), target)


def mutual_divergences(logits: Sequence[Tensor]) -> list[Tensor]:
    """The second half of :func:`mutual_losses`, which needs no labels: ``of=('peers',)``."""
    log_p = _log_probabilities(logits)
    return [_mean_divergence(log_p, k) for k in range(len(log_p))]


def peer_agreement(logits: Sequence[Tensor]) -> Tensor:
    """Percentage of rows to which two peers give the same class, mean over all pairs of peers.

    In a config an entry that only informs: ``agreement=dict(type=…, of=('peers',))``.
    """
    _check(logits)
    answers = torch.stack([z.detach().argmax(1) for z in logits])
    first, second = torch.triu_indices(len(logits), len(logits), 1, device=answers.device)
    agreements = answers[first] == answers[second]
    return 100 * agreements.sum() / max(agreements.numel(), 1)


def sequential_step(
    peers: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    input: Tensor,
    target: Tensor,
    losses: Callable[[Sequence[Tensor], Tensor], list[Tensor]] = mutual_losses,
) -> list[Tensor]:
    """The paper's algorithm 1 on one batch: each peer steps in turn, and the next one learns from
    what it thinks then.

    It costs 2K - 1 forwards, of which K record a graph; BatchNorm statistics of all peers but the
    last move twice.

    Args:
        peers: K >= 2 models, in training mode; each returns ``(B, C)`` logits.
        optimizers: one for each.
        input, target: the batch.
        losses: :func:`mutual_losses` or :func:`mean_posterior_losses`.

    Returns:
        The loss of each peer as it was before its step.

    Raises:
        ValueError: not one optimizer for each peer; as ``losses``.
    """
    if len(peers) != len(optimizers):
        raise ValueError(
            f"expected an optimizer for each peer, got {len(peers)} peers and "
            f"{len(optimizers)} optimizers"
        )
    logits, peer_losses = [peer(input) for peer in peers], []
    for k, (peer, optimizer) in enumerate(zip(peers, optimizers)):
        loss = losses(logits, target)[k]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        peer_losses.append(loss.detach())
        if k + 1 < len(peers):
            with torch.no_grad():
                logits[k] = peer(input)
    return peer_losses


def _with_labels(
    log_p: list[Tensor], target: Tensor, divergence: Callable[[list[Tensor], int], Tensor]
) -> list[Tensor]:
    return [loss + divergence(log_p, k) for k, loss in enumerate(_cross_entropies(log_p, target))]


def _cross_entropies(log_p: list[Tensor], target: Tensor) -> list[Tensor]:
    """Of each peer, mean over the labelled rows."""
    if target.shape != log_p[0].shape[:1]:
        raise ValueError(
            f"expected a target (B,), got target {tuple(target.shape)} and logits "
            f"{tuple(log_p[0].shape)}"
        )
    labelled = (target != UNLABELLED).sum().clamp(min=1)
    return [
        F.nll_loss(log_probability, target, ignore_index=UNLABELLED, reduction="sum") / labelled
        for log_probability in log_p
    ]


def _mean_divergence(log_p: list[Tensor], k: int) -> Tensor:
    """The mean over the others of KL(other ‖ peer k)."""
    others = [other.detach() for other in log_p[:k] + log_p[k + 1 :]]
    return sum(_divergence(log_p[k], other) for other in others) / len(others)


def _divergence_of_mean(log_p: list[Tensor], k: int) -> Tensor:
    """KL(mean of the others ‖ peer k)."""
    others = [other.detach().exp() for other in log_p[:k] + log_p[k + 1 :]]
    return _divergence(log_p[k], (sum(others) / len(others)).log())


def _divergence(log_own: Tensor, log_other: Tensor) -> Tensor:
    """KL(other ‖ own), mean over rows."""
    terms = times(log_other.exp(), log_other - log_own)
    return terms.sum() / max(len(log_own), 1)


def _log_probabilities(logits: Sequence[Tensor]) -> list[Tensor]:
    _check(logits)
    return [F.log_softmax(z, dim=1) for z in raised(*logits)]


def _check(logits: Sequence[Tensor]) -> None:
    shapes = [tuple(z.shape) for z in logits]
    if len(shapes) < 2:
        raise ValueError(
            f"expected the logits of two peers or more, got {shapes}: one alone has nobody to "
            "learn from (in a config: peers=[dict(type=…)])"
        )
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or not shapes[0][1]:
        raise ValueError(f"expected the peers' logits to be of one shape (B, C), got {shapes}")
