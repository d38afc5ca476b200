"""Mutual losses against a loop over indices, who receives which gradient, and algorithm 1 against
the same written out for two peers.
"""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.core import Distiller
from kdtasks.general import (
    mean_posterior_losses,
    mutual_divergences,
    mutual_losses,
    peer_agreement,
    peer_cross_entropies,
    sequential_step,
)

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def logits(*shape, dtype=F64):
    return 2 * torch.randn(*shape, dtype=dtype)


def softmax(row):
    e = [math.exp(z - max(row)) for z in row]
    return [x / sum(e) for x in e]


def slow(peers, target, mean_posterior=False):
    """L_k of each peer, number by number."""
    p = [[softmax(row.tolist()) for row in z] for z in peers]
    rows, found = len(target), []
    labelled = [b for b in range(rows) if target[b] != -100]
    for k in range(len(peers)):
        cross = -sum(math.log(p[k][b][target[b]]) for b in labelled) / max(len(labelled), 1)
        others = [l for l in range(len(peers)) if l != k]
        divergence = 0.0
        for b in range(rows):
            targets = [p[l][b] for l in others]
            if mean_posterior:
                targets = [[sum(q) / len(others) for q in zip(*targets)]]
            for q in targets:
                kl = sum(x * (math.log(x) - math.log(y)) for x, y in zip(q, p[k][b]))
                divergence += kl / len(targets)
        found.append(cross + divergence / rows)
    return found


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("mean_posterior", [False, True])
def test_they_equal_the_loop_over_indices(count, mean_posterior):
    peers, target = [logits(6, 4) for _ in range(count)], torch.tensor([0, 1, -100, 3, 3, -100])
    loss = mean_posterior_losses if mean_posterior else mutual_losses
    expected = slow(peers, target.tolist(), mean_posterior)
    assert [value.item() for value in loss(peers, target)] == pytest.approx(expected, rel=1e-12)


def test_two_peers_have_one_target_and_three_do_not():
    two, three = [logits(5, 4) for _ in range(2)], [logits(5, 4) for _ in range(3)]
    target = torch.arange(5) % 4
    torch.testing.assert_close(mean_posterior_losses(two, target), mutual_losses(two, target))
    for of_mean, of_each in zip(mean_posterior_losses(three, target), mutual_losses(three, target)):
        assert of_mean < of_each  # KL is convex


def test_the_gradient_of_the_sum_is_that_of_each_peers_own_loss():
    peers, target = [logits(4, 3).requires_grad_() for _ in range(3)], torch.tensor([0, 1, 2, 1])
    whole = torch.autograd.grad(sum(mutual_losses(peers, target)), peers)
    for k, peer in enumerate(peers):
        loss = mutual_losses(peers, target)[k]
        grads = torch.autograd.grad(loss, peers, allow_unused=True)
        assert [grad is None for grad in grads] == [l != k for l in range(3)]
        torch.testing.assert_close(grads[k], whole[k])
        # p_k - y, and the mean over the others of p_k - p_l
        p = [z.detach().softmax(1) for z in peers]
        pull = p[k] - F.one_hot(target, 3) + p[k] - (sum(p) - p[k]) / 2
        torch.testing.assert_close(whole[k], pull / 4, rtol=1e-12, atol=1e-14)
        others = [z.detach() for z in peers]

        def own(z, k=k, others=others):
            return mutual_losses([*others[:k], z, *others[k + 1 :]], target)[k]

        assert torch.autograd.gradcheck(own, peer)


def test_peers_that_agree_have_the_cross_entropy_left():
    z, target = logits(5, 4).requires_grad_(), torch.tensor([3, 0, 1, 2, 2])
    for loss in mutual_losses([z, z.detach().clone(), z.detach().clone()], target)[:1]:
        torch.testing.assert_close(loss, F.cross_entropy(z, target))
    assert all(value.abs() < 1e-15 for value in mutual_divergences([z, z.clone()]))


def test_cross_entropy_and_divergence_add_up():
    peers, target = [logits(5, 4) for _ in range(3)], torch.tensor([3, 0, 1, 2, 2])
    for whole, pull, z in zip(mutual_losses(peers, target), mutual_divergences(peers), peers):
        torch.testing.assert_close(whole, pull + F.cross_entropy(z, target))


def test_the_halves_add_up_with_unlabelled_rows_too():
    peers, target = [logits(6, 4) for _ in range(3)], torch.tensor([0, 1, -100, 3, 3, -100])
    cross = peer_cross_entropies(peers, target)
    torch.testing.assert_close(cross, [F.cross_entropy(z, target) for z in peers])
    for whole, one, pull in zip(mutual_losses(peers, target), cross, mutual_divergences(peers)):
        torch.testing.assert_close(whole, one + pull)


def test_in_a_distiller_the_halves_are_the_loss_over_labelled_and_unlabelled_rows():
    peers, (x, y) = [network(5), network(7)], batch()
    labelled = torch.arange(8) < 3
    y[~labelled] = -100
    losses = {
        "loss_ce": (peer_cross_entropies, ("peers", "target")),
        "loss_dml": (mutual_divergences, ("peers",)),
    }
    distiller = Distiller(peers[0], losses=losses, peers=peers[1:])
    found = distiller({"input": x, "target": y, "labelled": labelled})
    for k, expected in enumerate(mutual_losses([peer(x) for peer in peers], y)):
        torch.testing.assert_close(found[f"loss_ce_{k}"] + found[f"loss_dml_{k}"], expected)


def test_without_labels_or_rows_it_is_connected_and_finite():
    peers, unlabelled = [logits(3, 4).requires_grad_() for _ in range(2)], torch.full((3,), -100)
    torch.testing.assert_close(mutual_losses(peers, unlabelled), mutual_divergences(peers))
    assert peer_cross_entropies(peers, unlabelled) == [0, 0]
    empty = [torch.zeros(0, 4, requires_grad=True) for _ in range(2)]
    for losses in (mutual_losses, mean_posterior_losses, peer_cross_entropies):
        found = losses(empty, torch.zeros(0, dtype=torch.long))
        assert found == [0, 0]
        sum(found).backward()
        assert all(z.grad.shape == (0, 4) for z in empty)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    peers, target = [logits(4, 5).to(dtype) for _ in range(2)], torch.tensor([0, 1, 2, 3])
    found = mutual_losses(peers, target)
    torch.testing.assert_close(found, mutual_losses([z.float() for z in peers], target))
    saturated = [torch.tensor([[6e4, 0.0]], dtype=torch.float16), torch.zeros(1, 2).half()]
    assert all(value.isfinite() for value in mutual_losses(saturated, torch.tensor([1])))


def test_a_masked_class_costs_nothing():
    peers, target = [logits(4, 5) for _ in range(3)], torch.tensor([0, 2, 4, 0])
    for z in peers:
        z[:, [1, 3]] = -math.inf
    few = [z[:, [0, 2, 4]] for z in peers]
    for losses in (mutual_losses, mean_posterior_losses):
        torch.testing.assert_close(losses(peers, target), losses(few, target // 2))


@pytest.mark.parametrize(
    "shapes, target, message",
    [
        ([(3, 4)], (3,), r"two peers or more, got \[\(3, 4\)\]"),
        ([(3, 4), (3, 5)], (3,), r"one shape \(B, C\), got \[\(3, 4\), \(3, 5\)\]"),
        ([(3, 4, 2), (3, 4, 2)], (3,), r"one shape \(B, C\)"),
        ([(3, 4), (3, 4)], (2,), r"target \(2,\) and logits \(3, 4\)"),
    ],
)
def test_wrong_shapes_are_named(shapes, target, message):
    target = torch.zeros(target, dtype=torch.long)
    for losses in (mutual_losses, mean_posterior_losses, peer_cross_entropies):
        with pytest.raises(ValueError, match=message):
            losses([torch.zeros(shape) for shape in shapes], target)


def test_agreement_counts_pairs():
    answers = [[0, 1, 2, 0], [0, 1, 0, 0], [0, 2, 2, 0]]
    peers = [F.one_hot(torch.tensor(row), 3).float() for row in answers]
    pairs = list(itertools.combinations(answers, 2))
    expected = 100 * sum(a == b for one, two in pairs for a, b in zip(one, two)) / 12
    assert peer_agreement(peers).item() == pytest.approx(expected)
    assert peer_agreement([torch.zeros(0, 3)] * 2) == 0


# ------------------------------------------------------------------------------------------- steps
def network(width):
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 4)).double()


def batch():
    return torch.randn(8, 3, dtype=F64), torch.arange(8) % 4


def test_the_second_peer_learns_from_what_the_first_thinks_after_its_step():
    peers, (x, y) = [network(5), network(7)], batch()
    others = copy.deepcopy(peers)
    optimizers = [torch.optim.SGD(peer.parameters(), lr=0.5) for peer in peers]
    found = sequential_step(peers, optimizers, x, y)
    for k in range(2):
        own, other = others[k](x), others[1 - k](x).detach()
        loss = F.cross_entropy(own, y) + F.kl_div(
            own.log_softmax(1), other.log_softmax(1), reduction="batchmean", log_target=True
        )
        torch.testing.assert_close(found[k], loss.detach())
        parameters = list(others[k].parameters())
        for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.data -= 0.5 * grad
    for peer, other in zip(peers, others):
        torch.testing.assert_close(list(peer.parameters()), list(other.parameters()))


def test_the_simultaneous_step_is_that_of_separate_optimizers():
    """One Distiller, one optimizer of all peers, against one for each."""
    peers, (x, y) = [network(5), network(7), network(3)], batch()
    others = copy.deepcopy(peers)
    distiller = Distiller(
        peers[0], losses={"loss_dml": (mutual_losses, ("peers", "target"))}, peers=peers[1:]
    )
    together = torch.optim.SGD(distiller.parameters(), lr=0.3, momentum=0.9)
    apart = [torch.optim.SGD(other.parameters(), lr=0.3, momentum=0.9) for other in others]
    for _ in range(3):
        together.zero_grad()
        losses = distiller(x, y)
        assert list(losses) == ["loss_dml_0", "loss_dml_1", "loss_dml_2"]
        sum(losses.values()).backward()
        together.step()
        for loss, optimizer in zip(mutual_losses([other(x) for other in others], y), apart):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for peer, other in zip(peers, others):
        torch.testing.assert_close(list(peer.parameters()), list(other.parameters()))


def test_a_step_needs_an_optimizer_for_each():
    peers, (x, y) = [network(3), network(3)], batch()
    with pytest.raises(ValueError, match="2 peers and 1 optimizers"):
        sequential_step(peers, [torch.optim.SGD(peers[0].parameters(), lr=0.1)], x, y)
