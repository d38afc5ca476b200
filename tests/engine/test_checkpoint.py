"""Files of a run that belong together never stand mixed."""

import os

import pytest
import torch
from torch import nn

from kdtasks.core.weight_files import read_weights
from kdtasks.engine import checkpoint


@pytest.mark.parametrize("formerly", [True, False])
@pytest.mark.parametrize("write", range(1, 3))
@pytest.mark.parametrize("replaced", [True, False])
def test_killed_between_weights_and_what_is_known_of_them(
    tmp_path, monkeypatch, formerly, write, replaced
):
    """Killed just before or just after each of the two files is moved to its place."""
    path, states = tmp_path / "student.pth", [nn.Linear(2, 2).state_dict() for _ in range(2)]
    if formerly:
        checkpoint.save_weights(states[0], {"seed": 0}, path)
    count, move = 0, os.replace

    def killed(source, target):
        nonlocal count
        count += 1
        if count < write or (count == write and replaced):
            move(source, target)
        if count == write:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_weights(states[1], {"seed": 1}, path)
    monkeypatch.undo()
    try:
        state, meta = read_weights(path)
    except FileNotFoundError:
        assert not formerly and not (write == 2 and replaced)
    except ValueError as error:
        assert (
            formerly
            and (write, replaced) in ((1, True), (2, False))
            and "is about other weights" in str(error)
        )
    else:
        assert torch.equal(state["weight"], states[meta["seed"]]["weight"])
        assert meta["seed"] == (write == 2 and replaced)
    # as --resume does
    checkpoint.save_weights(states[1], {"seed": 1}, path)
    state, meta = read_weights(path)
    assert meta["seed"] == 1 and torch.equal(state["weight"], states[1]["weight"])
    assert {p.name for p in tmp_path.iterdir()} == {"student.pth", "student.json"}


def test_plain_weights_keep_the_versions_of_their_modules(tmp_path):
    """By these a module knows an old file, and upgrades it."""
    state = nn.BatchNorm1d(2).state_dict()
    checkpoint.save_weights(state, {}, tmp_path / "student.pth")
    assert torch.load(tmp_path / "student.pth", weights_only=True)._metadata == state._metadata
