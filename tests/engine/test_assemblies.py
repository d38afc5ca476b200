"""A model made of what stages have trained: tested, written, used and exported as any other."""

import json

import numpy as np
import pytest
import torch
from small_runs import SMALL, small, weights

from kdtasks.core.weight_files import read_weights
from kdtasks.engine import cli
from kdtasks.engine.export import export
from kdtasks.engine.run import Run

MEMBERS = [{"type": "small_parts.Net", "width": 4} for _ in range(2)]
ENSEMBLE = {
    "type": "kdtasks.general.Ensemble",
    "members": MEMBERS,
    "parts": {"members.0": "alone", "members.1": "distilled.best"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(small(length=1, models={"ensemble": ENSEMBLE}), tmp_path_factory.mktemp("r") / "run")
    run.train()
    return run


@pytest.fixture(scope="module")
def by_hand(run):
    """The mean of the probabilities of the two, and the test data."""
    from small_parts import Digits, Net  # the config has said where it lies

    test, answers = Digits(1000, 200), []
    for stage, file in (("alone", "last.pth"), ("distilled", "best.pth")):
        net = Net(4).eval()
        net.load_state_dict(weights(run, stage, file)["state_dict"])
        with torch.no_grad():
            answers.append(net(test.images).softmax(1))
    return (answers[0] + answers[1]) / 2, test


def test_it_is_tested_and_written_when_the_run_has_finished(run, by_hand):
    mean, test = by_hand
    right = 100 * (mean.argmax(1) == test.target).float().mean().item()
    results = json.loads((run.work_dir / "results.json").read_text())["stages"]
    assert results["distilled"]["ensemble_accuracy"] == pytest.approx(right)
    assert not any(name.startswith("ensemble") for name in results["alone"])
    state, meta = read_weights(run.work_dir / "ensemble.pth")
    wanted = weights(run, "distilled", "best.pth")["state_dict"]
    assert all(torch.equal(state[f"members.1.{name}"], value) for name, value in wanted.items())
    assert meta["model"] == ENSEMBLE["type"] and meta["parts"] == ENSEMBLE["parts"]


def test_the_tools_take_it(run, by_hand, capsys):
    accuracy = run.done["distilled"]["ensemble_accuracy"]
    options = f"models={{'ensemble': {ENSEMBLE!r}}}"
    file = str(run.work_dir / "ensemble.pth")
    cli.test([str(SMALL), file, "--model", "ensemble", "--device", "cpu", "--cfg-options", options])
    assert f"accuracy {accuracy:.3f}" in capsys.readouterr().out
    cli.export([str(run.work_dir), "--model", "ensemble", "--format", "onnx"])
    assert "its outputs differ from the ensemble's by at most" in capsys.readouterr().out
    import onnxruntime

    session = onnxruntime.InferenceSession(run.work_dir / "ensemble.onnx")
    mean, test = by_hand
    (found,) = session.run(None, {session.get_inputs()[0].name: test.images[:7].numpy()})
    np.testing.assert_allclose(np.exp(found), mean[:7].numpy(), rtol=1e-4, atol=1e-6)
    done = export(run.work_dir, "pth", model="ensemble")
    assert done["output"] == str(run.work_dir / "ensemble_plain.pth") and done["difference"] == 0
