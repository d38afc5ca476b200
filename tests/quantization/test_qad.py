"""Fake quantization starts as the student it is made of, and ships as what it is; QAD's stages."""

import copy
import json
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdtasks.classification.models import digits_cnn, resnet8, wrn
from kdtasks.core import Distiller
from kdtasks.core.weights import load_weights
from kdtasks.engine import config as configs
from kdtasks.engine.cli import export as export_main
from kdtasks.engine.cli import test as evaluate_main
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.export import export, shipped
from kdtasks.engine.loop import StageLoop
from kdtasks.engine.onnx_model import OnnxModel
from kdtasks.engine.report.facts import stage_table
from kdtasks.engine.run import Run
from kdtasks.general import KDLoss, kd_loss
from kdtasks.quantization import FakeQuantized, fake_quantized
from kdtasks.quantization.qad import KL, stages
from kdtasks.super_resolution.models import ESPCN, VDSR
from tests.ranks import two_ranks

CONFIG = Path(__file__).parents[2] / "configs" / "quantization" / "qad_digits.py"
STAGES = ["full", "ptq", "alone", "qad"]
STUDENTS = {
    "resnet8": (lambda: resnet8(10, 1, 4), (8, 1, 8, 8)),
    # its first BatchNorms follow no convolution
    "wrn": (lambda: wrn(10, 1, 10, 1), (8, 1, 8, 8)),
    "digits_cnn": (lambda: digits_cnn(width=4), (8, 1, 8, 8)),
    "vdsr": (lambda: VDSR(8, 4), (2, 1, 12, 10)),
    "espcn": (lambda: ESPCN(2, widths=(8,)), (2, 1, 12, 10)),
}


def used(make, shape) -> tuple[nn.Module, torch.Tensor]:
    """A network in eval whose BatchNorms have seen images, and images."""
    torch.manual_seed(0)
    model, images = make(), torch.rand(shape)
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(images)
    return model.eval(), images


def calibrated(model: nn.Module, images: torch.Tensor, batches: int = 3) -> FakeQuantized:
    student = FakeQuantized(model, batches).train()
    with torch.no_grad():
        for _ in range(batches):
            student(images)
    return student.eval()


def state_of(module: nn.Module) -> dict:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_plain_students_file_starts_it_exactly_and_it_ships_as_it_is(name, tmp_path):
    model, images = used(*STUDENTS[name])
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    student = FakeQuantized(STUDENTS[name][0](), 3)
    assert student.names.keys() == model.state_dict().keys()
    load_weights(student, tmp_path / "plain.pth", grown=True)
    for plain, own in student.names.items():
        assert torch.equal(student.state_dict()[own], model.state_dict()[plain])
    quantizers = student._quantizers()
    for quantizer in quantizers:
        quantizer.disable_fake_quant()
    with torch.no_grad():
        # folding a BatchNorm rounds in float32
        torch.testing.assert_close(student.eval()(images), model(images), rtol=1e-5, atol=1e-5)
        for quantizer in quantizers:
            quantizer.enable_fake_quant()
        student.train()
        for _ in range(3):
            student(images)
        student.eval()
        expected = student(images)
        shipped = student.deployed()(images)
        assert not torch.equal(expected, model(images))
        # a step of the output: rounding of a folded weight moves a code at most now and then
        step = (expected.amax() - expected.amin()) / 255
        assert (shipped - expected).abs().mean() < 0.05 * step
    # its own file loads too, without being grown
    torch.save(student.state_dict(), tmp_path / "own.pth")
    again = FakeQuantized(STUDENTS[name][0](), 3)
    load_weights(again, tmp_path / "own.pth")
    assert same(state_of(again), state_of(student)) and again.is_calibrated


def test_the_int8_weights_are_rounded_at_the_scale_that_trained():
    """torch's own conversion takes each channel's range anew, of weights that have moved since."""
    model, images = used(*STUDENTS["resnet8"])
    student = calibrated(model, images)
    with torch.no_grad():
        student.network.conv1.weight.mul_(0.9)
    part, held = student.network.conv1, student.deployed().conv1[0]
    factor = part.bn.weight / (part.bn.running_var + part.bn.eps).sqrt()
    folded = part.weight * factor[:, None, None, None]
    assert held.weight.dtype == torch.int8 and torch.equal(held.scale, part.weight_fake_quant.scale)
    codes = (folded / held.scale[:, None, None, None]).round().clamp(-128, 127)
    apart = (held.weight - codes).abs()  # folding rounds in float32
    assert apart.max() <= 1 and apart.mean() < 0.01 and codes.abs().max() < 127


def test_ranges_follow_the_first_batches_of_training_alone_and_statistics_none():
    model, images = used(*STUDENTS["wrn"])
    student = FakeQuantized(model, 2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)

    def step(x):
        optimizer.zero_grad()
        student.train()(x).square().mean().backward()
        optimizer.step()

    def seen(state):
        return {n: t for n, t in state.items() if n == "seen" or n.endswith(("_val", "_enabled"))}

    def ranges():
        return {n: t for n, t in state_of(student).items() if "activation_post_process" in n}

    def statistics():
        return {n: t for n, t in state_of(student).items() if "running_" in n or "tracked" in n}

    frozen, before = statistics(), state_of(student)
    student.eval()(3 * images)
    assert same(seen(before), seen(state_of(student))) and not student.is_calibrated
    step(images)
    first = ranges()
    step(2 * images)
    second = ranges()
    assert not same(first, second)
    student.eval()(5 * images)
    step(5 * images)
    moving = {n for n, t in ranges().items() if "min_val" in n or "max_val" in n or "scale" in n}
    assert all(torch.equal(ranges()[n], second[n]) for n in moving) and int(student.seen) == 3
    assert same(statistics(), frozen) and len(frozen) > 6
    weights = dict(student.named_parameters())
    assert all(p.grad is not None and p.grad.any() for p in weights.values())


def test_it_is_in_float32_under_autocast():
    model, images = used(*STUDENTS["digits_cnn"])
    student = calibrated(model, images)
    expected = student(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(student(images), expected)


def test_qads_loss_is_kd_at_temperature_1_of_the_full_precision_self():
    model, images = used(*STUDENTS["resnet8"])
    full = copy.deepcopy(model)
    student = calibrated(model, images)
    distiller = Distiller(
        student,
        {"teacher": full},
        {"loss_qad": (KDLoss(temperature=1.0), ("student", "teacher"), 1)},
    )
    losses = distiller.eval()(images, torch.zeros(8, dtype=torch.long))
    with torch.no_grad():
        expected = kd_loss(student(images), full(images), temperature=1.0)
    assert torch.equal(losses["loss_qad"].detach(), expected) and expected > 0


def of_rank(rank: int) -> torch.Tensor:
    return (1 + rank) * torch.rand(6, 4, 1, 8, 8, generator=torch.Generator().manual_seed(rank))


def trained_in_ranks(rank: int) -> tuple[dict, dict]:
    """State after three calibrating batches and after three steps more, BatchNorm frozen as ever."""
    torch.manual_seed(0)
    student = FakeQuantized(digits_cnn(width=4), 3).train()
    wrapped = DistributedDataParallel(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    states = []
    for step, images in enumerate(of_rank(rank)):
        if step == 3:
            states.append(state_of(student))
            optimizer.param_groups[0]["lr"] = 0.05
        optimizer.zero_grad()
        wrapped(images).square().mean().backward()
        optimizer.step()
    return states[0], state_of(student)


@pytest.mark.slow
def test_two_processes_have_the_first_ones_ranges_and_the_same_weights():
    """Slow, as it loads torch twice."""
    (first, last), (_, other) = two_ranks(trained_in_ranks)
    torch.manual_seed(0)
    single = FakeQuantized(digits_cnn(width=4), 3).train()
    for images in of_rank(0)[:3]:
        single(images)
    assert same(first, state_of(single))
    assert same(last, other)  # ranges that the other found itself are gone
    moved = [name for name, value in last.items() if not torch.equal(value, first[name])]
    assert {name.rpartition(".")[2] for name in moved} >= {"weight", "bias"}
    assert not any(name.endswith(("scale", "zero_point", "_val")) for name in moved)


# ------------------------------------------------------------------------------------------- errors
class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.gate = nn.Conv2d(1, 2, 3), Gate()

    def forward(self, x):
        return self.gate(self.stem(x))


class Gate(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


def parametrized():
    model = nn.Sequential(nn.Linear(2, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    return model


def not_a_number():
    model = nn.Sequential(nn.Linear(2, 2))
    nn.init.constant_(model[0].bias, float("nan"))
    return model


@pytest.mark.parametrize(
    "make, message",
    [
        (not_a_number, r"not finite: \['0.bias'\]"),
        (lambda: nn.Sequential(nn.ReLU()), "no convolution and no linear layer"),
        (lambda: FakeQuantized(nn.Sequential(nn.Linear(2, 2))), "quantized already: it is a FakeQ"),
        (parametrized, r"'0' is parametrized \(weight\)"),
        (Branches, r"torch.fx cannot trace a Branches.*module 'gate' \(Gate\) decides in Python"),
    ],
)
def test_what_cannot_be_quantized_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        FakeQuantized(make())


@pytest.mark.parametrize("calibrate", [0, 2.5, True])
def test_a_number_of_batches_is_one(calibrate):
    with pytest.raises(ValueError, match="calibrate must be a number of batches >= 1, got"):
        fake_quantized(nn.Sequential(nn.Linear(2, 2)), calibrate=calibrate)


def test_what_was_never_calibrated_does_not_ship():
    with pytest.raises(ValueError, match="never calibrated"):
        FakeQuantized(resnet8(10, 1, 4)).deployed()


def test_stages_need_such_a_student_in_full_precision():
    plain = {"student": {"type": "kdtasks.classification.models.resnet8"}, "teachers": {}}
    with pytest.raises(ValueError, match=r"expected student=dict\(type='kdtasks.quantization.fake"):
        stages(plain)
    with pytest.raises(ValueError, match="expected amp=None, got 'bfloat16'"):
        stages({"student": {"type": fake_quantized}, "teachers": {}, "amp": "bfloat16"})


def test_with_a_teacher_the_distilled_student_is_what_is_quantized():
    config = {
        "student": {"type": "kdtasks.quantization.fake_quantized"},
        "teachers": {"teacher": {"type": "…"}},
        "teacher_training": {},
        "losses": {"loss_kd": {"of": ("student", "teacher")}},
    }
    found = stages(config, training={"length": 3})
    names = ["teacher", "full", "ptq", "full_alone", "ptq_alone", "alone", "qad"]
    assert [stage["name"] for stage in found] == names
    found = {stage["name"]: stage for stage in found}
    assert found["qad"]["teachers"] == {"teacher": "full"} and found["ptq"]["student"] == "full"
    assert found["qad"]["length"] == found["alone"]["length"] == 3 and "length" not in found["full"]
    # no teacher has led to the control
    assert found["full"]["teachers"] and "teachers" not in found["full_alone"]
    assert found["alone"]["student"] == "ptq_alone"
    assert found["ptq_alone"]["student"] == "full_alone"


# ------------------------------------------------------------------------------------ a run, shipped
def short(**options) -> dict:
    """A small network; its stages hold what those of the config's hold."""
    given = {
        "student.model.type": "kdtasks.classification.models.digits_cnn",
        "student.model.width": 32,
        "length": 4,
        "stages.training.length": 1,
        "val_interval": 100,
    }
    return configs.load(CONFIG, {**given, **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "seed0"
    trained = Run(short(onnx=False), folder, 0, "cpu", quiet=True)
    trained.train()
    return trained


@pytest.fixture(scope="module")
def files(run):
    """What onnx=True in the config adds to the results."""
    names = ("full", "qad")
    return {name: shipped(run.experiment, run.experiment.stage(name), run.files) for name in names}


def check_shipped(run, results, files):
    for name, found in files.items():
        # three of 540 images
        assert abs(found["onnx_accuracy"] - results[name]["accuracy"]) < 0.6
        assert found["onnx_ms"] > 0 and found["onnx_threads"] == 1
        file = run.files.folder(name) / "student.onnx"
        assert found["onnx_bytes"] == file.stat().st_size
    assert files["full"]["onnx_accuracy"] == results["full"]["accuracy"] > 90
    assert files["qad"]["onnx_bytes"] < 0.4 * files["full"]["onnx_bytes"]


def test_what_ships_is_measured_as_the_student_is(run, files):
    check_shipped(run, run.done, files)


@pytest.mark.slow
def test_every_stage_of_the_config_ships_a_file(tmp_path):
    run = Run(configs.load(CONFIG, {"length": 5}), tmp_path / "run", 0, "cpu", quiet=True)
    run.train()
    results = json.loads((run.work_dir / "results.json").read_text())["stages"]
    assert list(results) == STAGES
    check_shipped(run, results, results)
    table = stage_table(run, Counter())
    rows = {row["name"]: dict(row["metrics"]) for row in (*table["rows"], *table["way"])}
    for name, values in results.items():
        assert rows[name]["onnx_bytes"] == f"{values['onnx_bytes']:,}"
        assert rows[name]["onnx_accuracy"] == f"{values['onnx_accuracy']:.2f}"
        assert float(rows[name]["onnx_ms"]) > 0 and "onnx_threads" not in rows[name]


def test_the_file_holds_int8_weights_and_answers_as_the_student(run, files):
    path = run.files.folder("qad") / "student.onnx"
    program = onnx.load(path)
    onnx.checker.check_model(program, full_check=True)
    held = {i.name: i for i in program.graph.initializer}
    codes = [i for i in held.values() if i.data_type == onnx.TensorProto.INT8 and len(i.dims) > 1]
    assert len(codes) == 4  # three convolutions and a linear layer
    floats = [i for i in held.values() if i.data_type == onnx.TensorProto.FLOAT]
    assert max(len(i.raw_data) for i in floats) <= 4 * 64  # scales and biases alone
    assert not any(n.op_type in ("Clip", "Round") for n in program.graph.node)
    student, model = run.trained("qad"), OnnxModel(path)
    different = count = 0
    for batch in run.experiment.test_loader(run.experiment.final):
        answers = model(batch["input"]).argmax(1), student(batch["input"]).argmax(1)
        different += int((answers[0] != answers[1]).sum())
        count += len(batch["input"])
    # of equal or nearly equal logits either may be the largest
    assert count > 500 and different <= 0.02 * count


def test_no_two_nodes_share_the_zero_points_of_int8(run, files):
    """onnxruntime could not sum exactly on x86 without VNNI."""
    program = onnx.load(run.files.folder("qad") / "student.onnx")
    eight = {i.name for i in program.graph.initializer if i.data_type == onnx.TensorProto.INT8}
    used = [name for node in program.graph.node for name in node.input if name in eight]
    assert len(used) == len({*used}) == 8
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    providers = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(program.SerializeToString(), options, providers=providers)


def test_ptq_moves_no_weight_and_qad_starts_from_it(run):
    full, ptq, qad = (run.trained(name) for name in ("full", "ptq", "qad"))
    names, before = ptq.names, full.state_dict()
    assert all(torch.equal(ptq.state_dict()[own], before[name]) for name, own in names.items())
    assert int(ptq.seen) == 20 and int(qad.seen) == 40
    weights = [name for name in names.values() if ptq.state_dict()[name].dim() == 4]
    assert not any(torch.equal(ptq.state_dict()[n], qad.state_dict()[n]) for n in weights)
    fixed = [n for n in ptq.state_dict() if n.endswith(("scale", "zero_point", "running_var"))]
    assert all(torch.equal(ptq.state_dict()[n], qad.state_dict()[n]) for n in fixed) and fixed


def test_the_tools_take_the_run_and_the_file(run, files, tmp_path, capsys):
    changes = ["student.model.type=kdtasks.classification.models.digits_cnn"]
    changes = ["--cfg-options", "threads=1", *changes, "student.model.width=32"]
    done = export(run.work_dir, "safetensors", tmp_path / "student.safetensors")
    assert done["difference"] <= done["allowed"] and not done["rounded"]
    with pytest.raises(ConfigError, match="packed: a FakeQuantized .*: expected --format onnx"):
        export(run.work_dir, "packed", tmp_path / "packed.safetensors")
    said = []
    for file in (run.files.folder("qad") / "student.onnx", run.work_dir / "student.pth"):
        evaluate_main([str(CONFIG), str(file), "--device", "cpu", *changes])
        said.append(dict(line.split() for line in capsys.readouterr().out.splitlines()))
    assert said[0]["onnx_bytes"].replace(",", "") and float(said[0]["onnx_ms"]) > 0
    assert abs(float(said[0]["accuracy"]) - float(said[1]["accuracy"])) < 0.6
    # a stage in full precision is built as that
    for stage in STAGES:
        file = run.files.weights(stage)
        evaluate_main([str(CONFIG), str(file), "--device", "cpu", *changes])
        found = dict(line.split() for line in capsys.readouterr().out.splitlines())
        assert float(found["accuracy"]) == pytest.approx(run.done[stage]["accuracy"], abs=1e-3)
        done = export(run.work_dir, "safetensors", tmp_path / f"{stage}.safetensors", file)
        assert done["difference"] <= done["allowed"]


def test_the_exported_file_is_measured_and_a_bad_student_leaves_it(run, files, tmp_path, capsys):
    path, raw = tmp_path / "student.onnx", tmp_path / "raw.pth"
    export_main([str(run.work_dir), "--format", "onnx", "--output", str(path)])
    said = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert float(said["onnx_accuracy"]) == pytest.approx(files["qad"]["onnx_accuracy"], abs=1e-3)
    content = path.read_bytes()
    torch.save(run.experiment.model("student").state_dict(), raw)
    with pytest.raises(ValueError, match="were never calibrated"):
        export(run.work_dir, "onnx", path, raw)
    assert path.read_bytes() == content and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("taught", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_stopped_in_several_stages_goes_on_to_the_same_weights(taught, tmp_path, monkeypatch):
    """While the ranges move, and after they were frozen in another stage, with an average; with a
    teacher there are all stages that there can be, and each is stopped.
    """
    small = {"type": "kdtasks.classification.models.digits_cnn", "width": 4}
    options = {"student.model.width": 4, "data.iterations_per_epoch": 4, "student.calibrate": 6}
    options |= {"length": 1, "checkpoint_interval": {"iterations": 2}, "ema": 0.5, "onnx": False}
    names = ["full", "ptq", "qad"]
    if taught:
        options |= {"teacher": small, "losses.loss_kd": {**KL, "weight": 0.5}}
        names = ["teacher", "full", "ptq", "full_alone", "ptq_alone", "alone", "qad"]

    def trained(folder: str, resume: bool) -> Run:
        run = Run(short(**options), tmp_path / folder, 0, "cpu", quiet=True)
        run.train(resume=resume, only=names)
        return run

    expected = trained("whole", False)
    step, left = StageLoop._step, [*names[0 if taught else 1 :]]

    def stopping(loop, batch):
        if left and loop.runner.meta["stage"] == left[0] and loop.iter == 3:
            left.pop(0)
            raise KeyboardInterrupt
        step(loop, batch)

    monkeypatch.setattr(StageLoop, "_step", stopping)
    while left:
        with pytest.raises(KeyboardInterrupt):
            trained("cut", True)
    again = trained("cut", True)
    for stage in names:
        found, whole = (
            torch.load(one.files.weights(stage), weights_only=True) for one in (again, expected)
        )
        assert whole["resume"]["iteration"] == (6 if "ptq" in stage else 4)
        assert same(found["state_dict"], whole["state_dict"])
        assert same(found["resume"]["learners"][0], whole["resume"]["learners"][0])
