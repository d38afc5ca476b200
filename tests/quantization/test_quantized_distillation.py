"""The stages of quantized distillation: a short run of the default config, its files, its stops."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from kdtasks.classification.models import digits_cnn
from kdtasks.engine import config as configs
from kdtasks.engine.cli import test as evaluate_main
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.export import export
from kdtasks.engine.loop import StageLoop
from kdtasks.engine.report.facts import stage_table
from kdtasks.engine.run import Run
from kdtasks.quantization import compression, dequantized, load_packed, read_packed
from kdtasks.quantization.quantized_distillation import stages
from kdtasks.quantization.tensors import quantized_tensors

CONFIG = Path(__file__).parents[2] / "configs" / "quantization" / "default.py"
STAGES = ["teacher", "full", "rounded", "levels", "alone", "distilled"]


def short(**options) -> dict:
    """Eight steps a stage; what a stop could lose is switched on: random rounding, turns, an
    average.
    """
    given = {
        "data.iterations_per_epoch": 4,
        "length": 2,
        "teacher.width": 4,
        "val_interval": 100,
        "stages.levels.length": 2,
        "stages.levels.optimizer.lr": 0.01,
        "student.stochastic": True,
        "student.every": 3,
        "ema": 0.5,
        "cache": None,
        "checkpoint_interval": {"iterations": 3},
        "log_interval": 1,
    }
    return configs.load(CONFIG, {**given, **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    trained = Run(short(), tmp_path_factory.mktemp("run") / "seed0", 0, "cpu", quiet=True)
    trained.train()
    return trained


def weights(run, stage):
    return torch.load(run.files.weights(stage), weights_only=True)


def of_weights(run, stage):
    """The tensors that are rounded, by their plain names."""
    state = run.trained(stage).state_dict()
    return {
        name.replace("parametrizations.", "").removesuffix(".original"): value
        for name, value in state.items()
        if name.endswith(("weight", ".original"))
    }


def test_every_arm_is_there_and_starts_where_it_should(run):
    results = json.loads((run.work_dir / "results.json").read_text())["stages"]
    assert list(results) == STAGES
    full, rounded, levels = (of_weights(run, name) for name in ("full", "rounded", "levels"))
    assert full.keys() == rounded.keys() == levels.keys() and full
    assert all(torch.equal(full[name], rounded[name]) for name in full)
    assert all(torch.equal(full[name], levels[name]) for name in full)
    assert weights(run, "rounded")["resume"]["iteration"] == 0
    student = run.trained("rounded")
    plain = dequantized(student).state_dict()
    names = [name for name, *_ in quantized_tensors(student)]
    assert len(names) > 3
    assert all(len(plain[name].flatten()[:256].unique()) <= 4 for name in names)
    moved = {n: v for n, v in weights(run, "levels")["state_dict"].items() if n.endswith("levels")}
    stage = run.experiment.stage("levels")
    start = run.experiment.distiller(stage, run.files).student.state_dict()
    assert moved and not any(torch.equal(value, start[name]) for name, value in moved.items())


def test_the_tools_take_each_student_and_its_packed_file_is_the_plain_one(run, tmp_path, capsys):
    options = ["--device", "cpu", "--cfg-options", "threads=1", "student.every=3"]
    options += ["teacher.width=4"]
    for format in ("safetensors", "onnx", "packed"):
        done = export(run.work_dir, format, tmp_path / f"student.{format}")
        assert done["difference"] <= done["allowed"]
    with pytest.raises(ConfigError, match="a PlainNet whose weights are not quantized cannot be"):
        export(run.work_dir, "packed", tmp_path / "full", run.files.weights("full"))
    assert not (tmp_path / "full").exists()
    for stage in (*STAGES, "student"):
        model = "teacher" if stage == "teacher" else "student"
        own = "distilled" if stage == "student" else stage
        file = run.work_dir / "student.pth" if stage == "student" else run.files.weights(stage)
        evaluate_main([str(CONFIG), str(file), "--model", model, *options])
        said = dict(line.split() for line in capsys.readouterr().out.splitlines())
        assert float(said["accuracy"]) == pytest.approx(run.done[own]["accuracy"], abs=1e-3)
        path = tmp_path / f"{stage}.safetensors"
        done = export(run.work_dir, "safetensors", path, file, model=model)
        assert done["difference"] <= done["allowed"]
    images = next(iter(run.experiment.test_loader(run.experiment.final)))["input"]
    for stage in ("rounded", "levels", "alone", "distilled"):
        student = run.trained(stage)
        # written by the run
        file = run.files.folder(stage) / "student_packed.safetensors"
        plain = load_packed(digits_cnn(width=16, num_classes=10), file)
        plain.eval()
        with torch.no_grad():
            assert torch.equal(plain(images), student(images))
        assert run.done[stage]["packed_bytes"] == file.stat().st_size < 0.33 * 4 * 14_701
        expected = sum(v.numel() * v.element_size() for v in plain.state_dict().values())
        assert run.done[stage]["packed_ratio"] == pytest.approx(expected / file.stat().st_size)
        # a tensor of 144 values fills no bucket
        assert run.done[stage]["packed_formula"] == pytest.approx(compression(2, 256), rel=0.01)
    table = stage_table(run, Counter())
    shown = {row["name"]: dict(row["metrics"]) for row in (*table["rows"], *table["way"])}
    names = ("packed_bytes", "packed_ratio", "packed_formula")
    shown = {name: [row[key] for key in names] for name, row in shown.items()}
    assert shown["full"] == ["–"] * 3
    ratio = run.done["distilled"]["packed_ratio"]
    assert shown["distilled"] == [f"{file.stat().st_size:,}", f"{ratio:.2f}", shown["alone"][2]]
    assert "packed_bytes" not in run.done["full"]
    assert (tmp_path / "student.packed").stat().st_size == file.stat().st_size
    exported, written = read_packed(tmp_path / "student.packed"), read_packed(file)
    assert exported.keys() == written.keys()
    assert all(torch.equal(exported[name], written[name]) for name in written)


@pytest.mark.parametrize(
    "stops",
    [("levels", "distilled"), pytest.param(("teacher", "full", "alone"), marks=pytest.mark.slow)],
)
def test_a_run_stopped_in_several_stages_goes_on_to_the_same_weights(
    run, stops, tmp_path, monkeypatch
):
    step, left = StageLoop._step, [*stops]

    def stopping(loop, batch):
        if left and loop.runner.meta["stage"] == left[0] and loop.iter == 5:
            left.pop(0)
            raise KeyboardInterrupt
        step(loop, batch)

    monkeypatch.setattr(StageLoop, "_step", stopping)
    while left:
        with pytest.raises(KeyboardInterrupt):
            Run(short(), tmp_path / "cut", 0, "cpu", quiet=True).train(resume=True)
    again = Run(short(), tmp_path / "cut", 0, "cpu", quiet=True)
    again.train(resume=True)
    for name in STAGES:
        ours, theirs = (weights(one, name)["state_dict"] for one in (again, run))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_stages_need_a_quantized_student_and_levels_need_the_full_one():
    config = short()
    with pytest.raises(ValueError, match="expected student=dict"):
        stages({**config, "student": {"type": "kdtasks.classification.models.digits_cnn"}})
    with pytest.raises(ValueError, match="expected full=True"):
        stages(config, levels={}, full=False)
    names = [stage["name"] for stage in stages(config, full=False)]
    assert names == ["teacher", "alone", "distilled"]
