"""Accumulation, clipping, the moving average, precision and compilation do what their formulas say."""

import math

import pytest
import torch
from small_runs import small, weights

from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run import Run
from kdtasks.engine.runner import StageRunner


def test_accumulation_equals_a_larger_batch(tmp_path):
    """Two batches of 16 whose gradients are averaged against one of 32 of the same rows; no
    BatchNorm, no dropout.
    """
    common = {"student.norm": False, "teacher.norm": False, "data.train.noise": 0.0, "schedule": []}
    half = Run(
        small(
            **common,
            **{
                "data.batch_size": 16,
                "accumulate": 2,
                "length": {"iterations": 12},
                "checkpoint_interval": {"iterations": 12},
            },
        ),
        tmp_path / "half",
        quiet=True,
    )
    full = Run(small(**common, **{"length": {"iterations": 6}}), tmp_path / "full", quiet=True)
    half.train(only=["alone"])
    full.train(only=["alone"])
    a, b = weights(half, "alone")["state_dict"], weights(full, "alone")["state_dict"]
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)


def test_clipping_bounds_the_step(tmp_path):
    options = {
        "clip_grad": 1e-4,
        "schedule": [],
        "length": {"iterations": 1},
        "optimizer": {"type": "torch.optim.SGD", "lr": 1.0},
    }
    run = Run(small(**options), tmp_path / "run", quiet=True)
    run.train(only=["alone"])
    before, after = run.experiment.model("student"), weights(run, "alone")["state_dict"]
    moved = math.sqrt(
        sum(float((after[n] - p).detach().square().sum()) for n, p in before.named_parameters())
    )
    assert 0.5e-4 < moved < 1.01e-4


def test_average_is_what_the_formula_says(tmp_path):
    run = Run(
        small(
            ema=0.5,
            length={"iterations": 3},
            checkpoint_interval={"iterations": 1},
            schedule=[],
            val_interval={"iterations": 1},
        ),
        tmp_path / "run",
        quiet=True,
    )
    seen = []

    original = StageRunner.save_now

    def spy(self):
        seen.append({k: v.clone() for k, v in self.distiller.student.named_parameters()})
        original(self)

    StageRunner.save_now = spy
    try:
        run.train(only=["alone"])
    finally:
        StageRunner.save_now = original
    average = {k: v.clone() for k, v in run.experiment.model("student").named_parameters()}
    for step in seen:
        average = {k: 0.5 * average[k] + 0.5 * step[k] for k in average}
    exported = weights(run, "alone")["state_dict"]
    assert all(torch.allclose(exported[k], average[k], atol=1e-6) for k in average)


def test_bfloat16_on_a_cpu(tmp_path):
    """Convolutions run in bfloat16 in a step; weights and evaluation stay in float32."""
    run = Run(small(amp="bfloat16"), tmp_path / "run", quiet=True)
    kinds = set()
    original = StageRunner.train

    def spy(self):
        self.distiller.student[0].register_forward_hook(
            lambda m, a, out: kinds.add((out.dtype, torch.is_grad_enabled()))
        )
        return original(self)

    StageRunner.train = spy
    try:
        run.train(only=["alone"])
    finally:
        StageRunner.train = original
    assert kinds == {(torch.bfloat16, True), (torch.float32, False)}
    assert all(
        v.dtype in (torch.float32, torch.int64)
        for v in weights(run, "alone")["state_dict"].values()
    )
    with pytest.raises(ConfigError, match="float16.*CUDA"):
        Run(small(amp="float16"), tmp_path / "other", device="cpu")


def test_validation_then_taps_compiled(tmp_path):
    """A run that evaluates first and trains compiled with taps gets the taps, and the weights of
    the eager run.
    """
    loss = {"type": "torch.nn.MSELoss", "of": ("student.2", "teacher.2"), "weight": 1.0}
    options = {
        "teacher.width": 4,
        "losses.loss_hint": loss,
        "length": {"iterations": 4},
        "val_interval": {"iterations": 1},
        "student.norm": False,
        "teacher.norm": False,
    }
    eager = Run(small(**options), tmp_path / "eager", quiet=True)
    compiled = Run(
        small(**options, compile={"backend": "aot_eager"}), tmp_path / "compiled", quiet=True
    )
    eager.train()
    compiled.train()
    for run in (eager, compiled):
        assert all(
            e["loss_hint"] > 0
            for e in weights(run, "distilled")["resume"]["history"]
            if "loss_kd" in e
        )
    a, b = weights(eager, "distilled")["state_dict"], weights(compiled, "distilled")["state_dict"]
    assert all(torch.allclose(a[k], b[k], rtol=1e-3, atol=1e-5) for k in a)
