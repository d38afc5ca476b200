"""DML's algorithm 1 through a Distiller: bit for bit what the loop over peers does."""

import copy

import pytest
import torch
from torch import nn

from kdtasks.core import Distiller
from kdtasks.core.terms import total_loss
from kdtasks.general import (
    SequentialDMLDistiller,
    mean_posterior_losses,
    mutual_losses,
    peer_agreement,
    sequential_step,
)

F64 = torch.float64
OF = ("peers", "target")


def network(width):
    """With what a second forward moves: batch statistics and the random stream."""
    parts = [nn.Linear(3, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.3)]
    return nn.Sequential(*parts, nn.Linear(width, 4)).to(F64)


def batch():
    return {"input": torch.randn(8, 3, dtype=F64), "target": torch.arange(8) % 4}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("losses", [mutual_losses, mean_posterior_losses])
def test_it_is_the_sequential_step_of_a_loop(count, losses):
    """Weights, momentum, statistics and random stream; one optimizer is one for each."""
    peers = [network(5 + k) for k in range(count)]
    others, batches = copy.deepcopy(peers), [batch() for _ in range(3)]
    entries = {"loss_dml": (losses, OF), "agreement": (peer_agreement, ("peers",))}
    distiller = SequentialDMLDistiller(peers[0], losses=entries, peers=peers[1:])
    settings = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01}
    together = torch.optim.SGD(distiller.parameters(), **settings)
    apart = [torch.optim.SGD(other.parameters(), **settings) for other in others]

    torch.manual_seed(5)
    ours = []
    for one in batches:
        for k, found in enumerate(distiller.steps(one)):
            total_loss(found).backward()
            together.step()
            together.zero_grad()
            ours.append(found[f"loss_dml_{k}"].detach())
            others_pull = [n for n, v in found.items() if v.requires_grad and n[-1] != str(k)]
            assert not others_pull, others_pull
    torch.manual_seed(5)
    theirs = []
    for one in batches:
        theirs += sequential_step(others, apart, one["input"], one["target"], losses)
    assert torch.equal(torch.stack(ours), torch.stack(theirs))
    for peer, other in zip(peers, others):
        for (name, value), wanted in zip(peer.state_dict().items(), other.state_dict().values()):
            assert torch.equal(value, wanted), name


def test_called_by_itself_all_learn_at_once():
    peers, one = [network(5), network(6)], batch()
    both = copy.deepcopy(peers)
    entries = {"loss_dml": (mutual_losses, OF)}
    torch.manual_seed(1)
    found = SequentialDMLDistiller(peers[0], losses=entries, peers=peers[1:])(one)
    torch.manual_seed(1)
    wanted = Distiller(both[0], losses=entries, peers=both[1:])(one)
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in wanted.items()}
    assert all(value.requires_grad for value in found.values())


def test_a_teacher_runs_once_and_nothing_of_a_batch_is_kept():
    calls = []
    teacher, one = network(9), batch()
    teacher.register_forward_hook(lambda *_: calls.append(1))
    peers = [network(5), network(6)]
    entries = {"loss_dml": (mutual_losses, OF), "loss_kd": (nn.MSELoss(), ("peer1.4", "teacher.4"))}
    distiller = SequentialDMLDistiller(peers[0], {"teacher": teacher}, entries, peers=peers[1:])
    pulled = [
        {name for name, value in found.items() if value.requires_grad}
        for found in distiller.steps(one)
    ]
    assert pulled == [{"loss_dml_0"}, {"loss_dml_1", "loss_kd"}] and calls == [1]
    assert distiller.step is None and not distiller._given
    # left in the middle, as by an error, the next batch starts anew
    for _ in distiller.steps(one):
        break
    assert distiller.step is None
    copy.deepcopy(Distiller(peers[0], losses={"loss_dml": entries["loss_dml"]}, peers=peers[1:]))


def test_a_student_without_peers_has_one_step():
    distiller = SequentialDMLDistiller(
        network(5), losses={"loss_cls": (nn.CrossEntropyLoss(), ("student", "target"))}
    )
    assert distiller.steps_per_batch == 1
    assert [list(found) for found in distiller.steps(batch())] == [["loss_cls"]]


def test_a_peer_that_nothing_pulls_on_is_an_error():
    entries = {"loss_kd": (nn.MSELoss(), ("student", "peer1"))}
    with pytest.raises(ValueError, match=r"no loss pulls on 'peer2': .* among \['loss_kd'\]"):
        SequentialDMLDistiller(network(5), losses=entries, peers=[network(5), network(5)])
