"""Peers of a config: at once or one after the other, in one process or two, on a resume."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from small_runs import ROOT, SMALL, same, small, weights

from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run import Run

SEQUENTIAL = {"distiller": {"type": "kdtasks.general.SequentialDMLDistiller"}}
MUTUAL = {"type": "kdtasks.general.mutual_losses", "of": ("peers", "target")}
LOSSES = {
    "loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target"), "weight": 0},
    "loss_dml": MUTUAL,
    "agreement": {"type": "kdtasks.general.peer_agreement", "of": ("peers",)},
}


def mutual(norm=True, **options):
    """Two peers of the small config, in a stage of their own."""
    config = small(student__norm=norm, length={"iterations": 8}, schedule=[], **options)
    peers = [{"type": "small_parts.Net", "width": 6, "norm": norm}]
    stages = [{"name": "distilled", "losses": LOSSES}]
    return {**config, "losses": LOSSES, "stages": stages, "peers": peers, "teachers": {}}


def states(run):
    learners = weights(run, "distilled")["resume"]["learners"]
    return {f"{k}.{name}": v for k, one in enumerate(learners) for name, v in one.items()}


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    """Every way of a step that has several, in one process, float32."""
    run = Run(mutual(**SEQUENTIAL), tmp_path_factory.mktemp("sequential") / "run", quiet=True)
    run.train()
    return run


def test_a_step_of_several_logs_each_loss_as_it_pulled(sequential):
    history = weights(sequential, "distilled")["resume"]["history"]
    row = next(row for row in history if "loss" in row)
    assert {"loss_dml_0", "loss_dml_1", "agreement"} <= row.keys()
    assert row["loss"] == pytest.approx(row["loss_dml_0"] + row["loss_dml_1"], rel=1e-6)


def test_a_step_of_several_resumes_to_the_same_bits(sequential, tmp_path):
    """With momentum, whose buffers of the peers stand in one optimizer."""
    options = {**SEQUENTIAL, "checkpoint_interval": {"iterations": 3}}
    hook = [{"type": "small_parts.StopAt", "stage": "distilled", "iteration": 4}]
    with pytest.raises(KeyboardInterrupt):
        Run({**mutual(**options), "custom_hooks": hook}, tmp_path / "run", quiet=True).train()
    stamp = tmp_path / "run" / "stages" / "config.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "custom_hooks": []}))
    run = Run(mutual(**options), tmp_path / "run", quiet=True)
    run.train(resume=True)
    assert same(states(run), states(sequential))


def test_half_precision_clipping_and_average_go_with_it(tmp_path):
    options = {"amp": "bfloat16", "clip_grad": 0.1, "ema": 0.9, "compile": False}
    run = Run(mutual(**SEQUENTIAL, **options), tmp_path / "run", quiet=True)
    run.train()
    assert all(value.isfinite().all() for value in states(run).values())


def test_gradients_of_several_batches_are_refused_before_the_first_step(tmp_path):
    run = Run(mutual(**SEQUENTIAL, accumulate=2), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="SequentialDMLDistiller takes 2 steps on each: expected"):
        run.train()
    assert not (tmp_path / "run").exists()


SCRIPT = """
import sys
sys.path[:0] = [{here!r}, {small!r}]
import torch
torch.set_num_threads(1)
from test_peers import SEQUENTIAL, mutual
from kdtasks.engine.processes import start_processes
from kdtasks.engine.run import Run
start_processes("pytorch", "cpu")
for name, config in (("simultaneous", mutual(norm=False)), ("sequential", mutual(norm=False, **SEQUENTIAL)),
                     ("with_norm", mutual(**SEQUENTIAL))):
    Run(config, f"{{sys.argv[1]}}/{{name}}", device="cpu", quiet=True).train()
"""


def test_two_processes_equal_one(tmp_path):
    """All peers in one DDP wrapper, at once and in turn; with BatchNorm, whose statistics are those
    of a process's own rows, it goes through.
    """
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(ROOT / "tests" / "engine"), small=str(SMALL.parent)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "two")],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = {}
    for name, options in (("simultaneous", {}), ("sequential", SEQUENTIAL)):
        run = Run(mutual(norm=False, **options), tmp_path / "one" / name, quiet=True)
        run.train()
        found[name] = states(run)
    for rank in ranks:
        error = rank.communicate(timeout=200)[1]
        assert rank.returncode == 0, error[-3000:]
    for name, ours in found.items():
        run = Run(mutual(norm=False), tmp_path / "two" / name, quiet=True)
        for key, theirs in states(run).items():
            torch.testing.assert_close(ours[key], theirs, rtol=1e-4, atol=1e-6, msg=key)
    # the student's first step is the same, but not what its peer then learns from
    assert not same(found["simultaneous"], found["sequential"])
    norm = torch.load(tmp_path / "two" / "with_norm" / "student.pth")
    assert all(value.isfinite().all() for value in norm.values())
