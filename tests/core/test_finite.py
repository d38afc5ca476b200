"""Which tensors are not finite, of any kind; and weights from a file that are not."""

import math

import pytest
import torch
from torch import nn

from kdtasks.core.finite import not_finite
from kdtasks.core.weights import load_weights


def test_every_kind_of_tensor():
    right = {
        "huge": torch.full((3,), 3e38),
        "half": torch.full((2,), 6e4, dtype=torch.float16),
        "empty": torch.empty(0, 3),
        "whole": torch.arange(3),
        "flag": torch.tensor(True),
        "double": torch.tensor(1e300, dtype=torch.float64),
        "bfloat16": torch.full((2, 2), 3e38, dtype=torch.bfloat16),
    }
    wrong = {
        f"{dtype}_{value}": torch.tensor([[0.0, value]], dtype=dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        for value in (math.nan, math.inf, -math.inf)
    }
    assert not_finite(right) == []
    assert not_finite({**wrong, **right}) == list(wrong)
    assert not_finite({}) == []


class Masked(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "mask"])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_file_with_such_weights_is_refused_by_name(tmp_path, name, kind):
    state, path = Masked().state_dict(), tmp_path / f"w.{kind}"

    def save():
        if kind == "pth":
            torch.save(state, path)
        else:
            from safetensors.torch import save_file

            save_file(state, path)

    save()
    # -inf where the model has it too
    load_weights(Masked(), path)
    state[name].view(-1)[0] = math.nan
    save()
    model = Masked()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=rf"w.{kind}' holds nan in '{name}' \(1 of its \d "
        r"values\)",
    ):
        load_weights(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
