"""Heads that grow: columns in order, old rows kept, new rows new; BatchNorm that stands still."""

import copy

import pytest
import torch
from small_incremental import SMALL  # noqa: F401  (small_streams can be imported then)
from small_streams import Net
from torch import nn

from kdtasks.core.weights import load_weights
from kdtasks.incremental.models import GrowingHead, growing, head_of


class Odd(nn.BatchNorm2d):
    """A BatchNorm of somebody's own."""

    def forward(self, x):
        return super().forward(x) + 1


# Columns ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bias", [True, False])
def test_the_blocks_are_the_columns_of_one_linear_layer_in_the_order_in_which_they_came(bias):
    head, x = GrowingHead(3, (2, 1, 3), bias), torch.randn(4, 3, requires_grad=True)
    whole = nn.Linear(3, 6, bias)
    with torch.no_grad():
        whole.weight.copy_(torch.cat([head.blocks[k].weight for k in range(3)]))
        if bias:
            whole.bias.copy_(torch.cat([head.blocks[k].bias for k in range(3)]))
    torch.testing.assert_close(head(x), whole(x))
    pull = torch.randn(4, 6)
    torch.testing.assert_close(
        *(torch.autograd.grad((f(x) * pull).sum(), x)[0] for f in (head, whole))
    )
    assert (
        head.sizes == (2, 1, 3)
        and head.old == 3
        and sum(p.numel() for p in head.parameters()) == 18 + 6 * bias
    )


def test_split_gives_the_columns_of_each_experience():
    logits = torch.arange(12.0).view(2, 6)
    parts = GrowingHead(3, (2, 1, 3)).split(logits)
    assert [part.tolist() for part in parts] == [
        [[0, 1], [6, 7]],
        [[2], [8]],
        [[3, 4, 5], [9, 10, 11]],
    ]


def test_one_experience_has_no_old_class():
    assert GrowingHead(3, [4]).old == 0


@pytest.mark.parametrize("sizes", [(), (2, 0), (3, -1)])
def test_experiences_have_classes(sizes):
    with pytest.raises(ValueError, match="sizes are the classes of each experience, at least one"):
        GrowingHead(3, sizes)


def test_grow_adds_columns_at_the_end_and_leaves_the_others():
    head, x = GrowingHead(3, (2,), bias=False).double(), torch.randn(4, 3, dtype=torch.float64)
    before = head(x)
    head.grow(3)
    assert (
        head.sizes == (2, 3)
        and head.old == 2
        and torch.equal(head(x)[:, :2], before)
        and head(x).dtype == torch.float64
    )
    assert head.blocks[1].bias is None and head.blocks[1].weight.abs().sum() > 0


# The network around it ----------------------------------------------------------------------------
def test_the_last_linear_layer_is_replaced_and_nothing_else():
    network = nn.Sequential(
        nn.Linear(4, 5), nn.ReLU(), nn.ModuleDict({"out": nn.Linear(5, 7, bias=False)})["out"]
    ).double()
    before, made = copy.deepcopy(network), growing(network, (2, 3))
    path, head = head_of(made)
    x = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(made(x), head(before[:2](x)))
    assert (
        path == "2"
        and (head.features, head.bias) == (5, False)
        and torch.equal(made[0].weight, before[0].weight)
    )


def test_a_network_without_a_linear_layer():
    with pytest.raises(
        ValueError, match="Sequential has no linear layer that a growing head could replace"
    ):
        growing(nn.Sequential(nn.Conv2d(1, 2, 1)), (2, 3))


@pytest.mark.parametrize(
    "network, count",
    [(nn.Linear(2, 2), 0), (nn.ModuleList(GrowingHead(2, (1,)) for _ in range(2)), 2)],
)
def test_head_of_wants_one_head(network, count):
    with pytest.raises(ValueError, match=f"has {count} growing heads, expected one"):
        head_of(network)


@pytest.mark.parametrize("train", [True, False])
def test_old_heads_are_frozen_on_request(train):
    head = growing(Net(), (2, 1, 3), train_old_heads=train).fc
    assert [all(p.requires_grad for p in block.parameters()) for block in head.blocks] == [
        train,
        train,
        True,
    ]


# BatchNorm ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "kind, shape",
    [
        (nn.BatchNorm1d, (5, 3)),
        (nn.BatchNorm2d, (5, 3, 2, 2)),
        (Odd, (5, 3, 2, 2)),
        (nn.BatchNorm3d, (5, 3, 2, 2, 2)),
    ],
)
def test_fixed_norm_stays_in_eval_and_its_statistics_stay(kind, shape):
    norm = kind(3)
    # what it knows from before
    norm(torch.randn(shape) * 3 + 1)
    expected, x = copy.deepcopy(norm).eval(), torch.randn(shape)
    network = growing(nn.Sequential(norm, nn.Flatten(), nn.Linear(3, 4)), (2, 2), fixed_norm=True)
    network.train()
    before = copy.deepcopy(norm.state_dict())
    assert torch.equal(network[0](x), expected(x)) and isinstance(norm, kind)
    network[0](x).square().sum().backward()
    assert (
        all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
        and norm.weight.grad.abs().sum() > 0
    )
    assert (
        network.training
        and not network[0].training
        and not copy.deepcopy(network).train()[0].training
    )
    assert torch.equal(growing(network, (2, 2), fixed_norm=True).train()[0](x), expected(x))


def test_without_fixed_norm_statistics_move_and_both_have_the_same_names():
    free, fixed = growing(Net(), (2,)), growing(Net(), (2,), fixed_norm=True)
    for network in (free.train(), fixed.train()):
        network(torch.randn(4, 1, 6, 6))
    assert free.norm1.running_mean.abs().sum() > 0 and fixed.norm1.running_mean.abs().sum() == 0
    fixed.load_state_dict(free.state_dict(), strict=True)


# Weights of an earlier time -----------------------------------------------------------------------
@pytest.fixture
def file(tmp_path):
    """Weights of two experiences."""
    network = growing(Net(), (2, 1))
    torch.save({"state_dict": network.state_dict(), "meta": {"seed": 3}}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_a_grown_model_loads_what_it_was_and_keeps_what_is_new(file):
    network = growing(Net(), (2, 1, 3, 2))
    own = copy.deepcopy(network.state_dict())
    assert load_weights(network, file, grown=True) == {"seed": 3}
    saved = torch.load(file, weights_only=True)["state_dict"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, saved.get(name, own[name])), name
    assert sum(name not in saved for name in own) == 4 and not torch.equal(
        own["fc.blocks.0.weight"], saved["fc.blocks.0.weight"]
    )


def test_only_who_says_so_loads_what_is_incomplete(file):
    """Else weights of the second experience would pass for those of the last, with columns that
    never learned.
    """
    with pytest.raises(ValueError, match=r"missing: fc.blocks.2.weight, fc.blocks.2.bias"):
        load_weights(growing(Net(), (2, 1, 3)), file)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((2,), "unexpected: fc.blocks.1.weight"),
        (
            (2, 3),
            r"other shape: fc.blocks.1.weight \(1, 4\) "
            r"instead of \(3, 4\)",
        ),
        ((1, 2, 3), "other shape: fc.blocks.0.weight"),
    ],
)
def test_other_heads_are_an_error_all_the_same(file, sizes, message):
    network = growing(Net(), sizes)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=message):
        load_weights(network, file, grown=True)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("lost", ["fc.blocks.0.weight", "fc.blocks.0", "fc", "conv1.weight"])
def test_what_a_file_lacks_in_between_is_missing(file, lost):
    state = {
        name: value
        for name, value in torch.load(file, weights_only=True)["state_dict"].items()
        if not name.startswith(lost)
    }
    torch.save(state, file)
    with pytest.raises(ValueError, match=f"missing: .*{lost}"):
        load_weights(growing(Net(), (2, 1, 3)), file, grown=True)
