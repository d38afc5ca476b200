"""Terms: their names, weights and values."""

import pytest
import torch
from torch import nn

from kdtasks.core.terms import Terms, connected_zero, total_loss, weighted_values


def test_what_is_called_loss_is_summed():
    losses = {"loss_a": torch.tensor(1.0), "accuracy": torch.tensor(8.0), "my_loss": 2.0}
    assert total_loss(losses) == 3 and total_loss({"accuracy": 1.0}) == 0


def test_weights_follow_the_progress():
    terms = Terms()
    terms.add("loss_a", torch.sum, "student", 0.5)
    terms.add("loss_b", torch.sum, "student", lambda progress: progress[0] / progress[1])
    assert terms.weights((1, 4)) == {"loss_a": 0.5, "loss_b": 0.25}
    with pytest.raises(RuntimeError, match="the weight of loss_b is a schedule"):
        terms.weights(None)


def test_a_weight_of_zero_is_left_out_and_a_schedule_is_not():
    terms = Terms()
    assert terms.add("loss_a", torch.sum, "student", 0) is None
    assert terms.add("loss_b", torch.sum, ["student"], lambda _: 0) is torch.sum
    assert terms.names_of() == {"loss_b": ("student",)}


def test_values_are_weighted_and_named_entry_by_entry():
    x = torch.tensor(3.0, requires_grad=True)
    values = weighted_values("loss_a", lambda t: {"x": t, "y": 2 * t}, [x], 0.5)
    assert {name: value.item() for name, value in values.items()} == {
        "loss_a_x": 1.5,
        "loss_a_y": 3.0,
    }
    assert all(value.requires_grad for value in values.values())
    assert list(weighted_values("loss_b", lambda t: (t, t), [x], 1)) == ["loss_b_0", "loss_b_1"]
    assert not weighted_values("norm", lambda t: t, [x], 1)["norm"].requires_grad
    with pytest.raises(ValueError, match=r"gave \['loss_x'\], but only informs.*loss_norm"):
        weighted_values("norm", lambda t: {"loss_x": t}, [x], 1)


def test_a_connected_zero_gives_zeros_even_of_infinities():
    layer, x = nn.Linear(2, 2), torch.full((3, 2), torch.inf, requires_grad=True)
    y = torch.tensor(torch.nan, requires_grad=True)
    zero = connected_zero([*layer.parameters(), x, [torch.arange(3)], {"y": y}])
    zero.backward()
    assert zero == 0
    assert all(not p.grad.any() for p in (*layer.parameters(), x, y))
    # of no tensor at all it is still a tensor
    assert connected_zero([]) == 0
