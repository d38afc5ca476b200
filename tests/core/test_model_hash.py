"""The hash of a model: what it sees, and what it does not."""

import copy

import pytest
import torch
from torch import nn

from kdtasks.core.model_hash import model_hash


def network(seed=0, slope=0.01):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(slope), nn.Linear(4, 2))
    net[0].register_buffer("mean", torch.zeros(3), persistent=False)
    return net


def test_hash_is_the_same_for_the_same_model():
    net = network()
    clone = copy.deepcopy(net).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    network(1)  # another one in between
    assert len({model_hash(x) for x in (net, clone, network())}) == 1 and len(model_hash(net)) == 64
    loaded = network(5)
    loaded.load_state_dict(net.state_dict())
    assert model_hash(loaded) == model_hash(net)
    a, b = nn.Module(), nn.Module()
    for parent, names in ((a, "xy"), (b, "yx")):  # registered in another order
        for name in names:
            parent.add_module(name, net[0] if name == "x" else net[3])
    assert model_hash(a) == model_hash(b)


def _flip(tensor):
    """Change the lowest bit of the last element."""
    tensor.detach().reshape(-1).view(torch.uint8)[-tensor.element_size()] ^= 1


@pytest.mark.parametrize(
    "change",
    [
        lambda n: _flip(n[0].weight),
        lambda n: _flip(n[3].bias),
        lambda n: _flip(n[1].running_var),
        lambda n: _flip(n[1].num_batches_tracked),
        lambda n: _flip(n[0].mean),
        lambda n: n.__setitem__(2, nn.Tanh()),
        lambda n: n.__setitem__(2, nn.LeakyReLU(0.2)),
        lambda n: n[3].double(),
        lambda n: setattr(n[0], "stride", (2, 2)),
        lambda n: setattr(n[3], "weight", nn.Parameter(n[3].weight.detach().reshape(4, 2))),
        lambda n: n.append(nn.Identity()),
    ],
)
def test_hash_sees(change):
    net = network()
    before = model_hash(net)
    change(net)
    assert model_hash(net) != before


def test_hash_extra_and_dtypes():
    net = network()
    assert len({model_hash(net), model_hash(net, "a"), model_hash(net, "b")}) == 3
    assert model_hash(network().bfloat16()) != model_hash(net)
    net.register_buffer("nothing", torch.zeros(0, 3))  # a tensor without elements
    assert model_hash(net) == model_hash(copy.deepcopy(net)) != model_hash(network())


def test_hash_does_not_see_addresses():
    class Odd(nn.Linear):
        def extra_repr(self):
            return f"function={self.function}"

    net = Odd(3, 3)
    hashes, functions = set(), [object(), object()]  # both alive: two addresses
    for net.function in functions:
        assert " at 0x" in repr(net)
        hashes.add(model_hash(net))
    assert len(hashes) == 1


def test_hash_refuses_what_has_no_weights():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.__dict__["model"] = network()
            self.register_buffer("scale", torch.ones(1), persistent=False)

    with pytest.raises(ValueError, match=r"Hidden has no weights .*teacher\.model"):
        model_hash(Hidden())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_hash_does_not_depend_on_the_device():
    net = network()
    assert model_hash(net) == model_hash(copy.deepcopy(net).cuda())
