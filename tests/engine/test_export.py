"""An exported file gives the student's outputs, whoever runs it; one that does not is not kept."""

import copy
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kdtasks
from kdtasks.core.weight_files import read_weights
from kdtasks.engine import config as configurations
from kdtasks.engine.check import check
from kdtasks.engine.cli import export as main
from kdtasks.engine.cli import test as evaluate_main
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.export import export
from kdtasks.engine.export_form import OnnxForm, compare, leaves
from kdtasks.engine.export_formats import FORMATS
from kdtasks.engine.onnx_model import OnnxModel
from kdtasks.engine.run import Run

SMALL = Path(__file__).parent / "small" / "small.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run; its average, not its last weights, is the student."""
    folder = tmp_path_factory.mktemp("run") / "seed0"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdtasks.engine.report.write_report", lambda run: None)
        config = configurations.load(SMALL, {"length": 1, "ema": 0.9})
        trained = Run(config, folder, 0, "cpu", "small", quiet=True)
        trained.train()
    yield trained
    torch.set_num_threads(threads)


@pytest.fixture
def reference(run):
    """(student, images) made without the code under test."""
    from small_parts import Digits, Net

    student = Net(4).eval()
    student.load_state_dict(torch.load(run.work_dir / "student.pth", weights_only=True))
    return student, Digits(1000, 200).images


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_pth_is_a_plain_state_dict(run, reference):
    done = export(run.work_dir, "pth")
    assert (
        done["output"] == str(run.work_dir / "student_plain.pth")
        and done["images"] == 200
        and done["difference"] == 0
    )
    state = torch.load(done["output"], weights_only=True)
    student, _ = reference
    assert list(state) == list(student.state_dict())
    assert all(torch.equal(state[name], value) for name, value in student.state_dict().items())
    assert read_weights(done["output"])[1] == read_weights(run.work_dir / "student.pth")[1] != {}


def test_a_file_of_somebody_else_beside_the_output_is_not_overwritten(run, tmp_path):
    (tmp_path / "net.json").write_text('{"mine": 1}')
    with pytest.raises(
        ValueError,
        match=r"net.json' is no file of a run, and 'net.pth' needs its "
        r"name",
    ):
        export(run.work_dir, "pth", tmp_path / "net.pth")
    assert files(tmp_path) == {"net.json"} and (tmp_path / "net.json").read_text() == '{"mine": 1}'


def test_safetensors_loads_elsewhere(run, reference, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_model
    from small_parts import Net

    done = export(run.work_dir, "safetensors", tmp_path / "new" / "s.safetensors")
    assert files(tmp_path / "new") == {"s.safetensors"} and done["difference"] == 0
    model, (student, images) = Net(4), reference
    load_model(model, done["output"], strict=True)
    assert torch.equal(model.eval()(images), student(images))
    with safe_open(done["output"], "pt") as file:
        facts = file.metadata()
    assert (facts["stage"], facts["seed"]) == ("distilled", "0")
    assert json.loads(facts["classes"]) == [str(k) for k in range(10)]


def test_tied_weights_are_all_written(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

    FORMATS["safetensors"].write(
        OnnxForm(model := Tied(), []), {}, tmp_path / "t.safetensors", None
    )
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / "t.safetensors")) == set(model.state_dict())


def test_onnx_runs_for_any_batch_size(run, reference, tmp_path, capsys):
    import onnxruntime

    main(
        [
            str(run.work_dir),
            "--format",
            "onnx",
            "--output",
            str(tmp_path / "s.onnx"),
            "--opset",
            "18",
        ]
    )
    said = capsys.readouterr()
    assert (
        "on 200 test images its outputs differ" in said.out
        and len(said.out.splitlines()) == 1
        and not said.err
    )
    assert files(tmp_path) == {"s.onnx"}
    session = onnxruntime.InferenceSession(
        str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"]
    )
    student, images = reference
    for count in (1, 2, 7, 200):
        (output,) = session.run(None, {"input": images[:count].numpy()})
        np.testing.assert_allclose(
            output, student(images[:count]).detach().numpy(), rtol=0, atol=1e-5
        )
    assert session.get_modelmeta().custom_metadata_map["stage"] == "distilled"
    import onnx

    assert {o.domain: o.version for o in onnx.load(tmp_path / "s.onnx").opset_import}[""] == 18


def test_any_stage_of_a_student_can_be_exported(run, tmp_path):
    done = export(run.work_dir, "pth", tmp_path / "alone.pth", "stages/1_alone/last.pth")
    state = torch.load(run.work_dir / "stages/1_alone/last.pth", weights_only=True)["state_dict"]
    assert all(
        torch.equal(value, state[name])
        for name, value in torch.load(done["output"], weights_only=True).items()
    )
    with pytest.raises(ValueError, match="is not a checkpoint of this Net"):
        export(run.work_dir, "pth", tmp_path / "teacher.pth", "stages/0_teacher/last.pth")


# What is wrong is not kept ------------------------------------------------------------------------
def spoilt(student: nn.Module) -> nn.Module:
    other = copy.deepcopy(student)
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-2
    return other


@pytest.mark.parametrize("format", ["pth", "safetensors", "onnx"])
def test_spoilt_weights_are_found_and_the_former_file_stands(run, tmp_path, monkeypatch, format):
    write = FORMATS[format].write
    monkeypatch.setitem(
        FORMATS,
        format,
        FORMATS[format]._replace(
            write=lambda form, *rest: write(
                dataclasses.replace(form, model=spoilt(form.model)), *rest
            )
        ),
    )
    with pytest.raises(ConfigError, match=r"was not kept: on real test images its outputs differ"):
        export(run.work_dir, format, tmp_path / f"new.{format}")
    assert not files(tmp_path)
    (tmp_path / "old").write_text("former")
    with pytest.raises(ConfigError):
        export(run.work_dir, format, tmp_path / "old")
    assert files(tmp_path) == {"old"} and (tmp_path / "old").read_text() == "former"


@pytest.mark.parametrize(
    ("expected", "outputs", "message"),
    [
        ([torch.ones(3)], [torch.tensor([1, 1, 1 + 2e-6])], "differ from the student's by 2"),
        ([100 * torch.ones(3)], [100 * torch.tensor([1, 1, 1 + 2e-6])], "differ"),
        ([torch.ones(3)], [torch.tensor([1, 1, float("nan")])], "differ from the student's by nan"),
        ([torch.full((3,), float("nan"))], [torch.ones(3)], "differ"),
        ([torch.ones(3)], [torch.ones(1, 3)], "shapes"),
        ([torch.ones(3)], [torch.ones(3), torch.ones(3)], "shapes"),
    ],
)
def test_outputs_that_differ(expected, outputs, message):
    with pytest.raises(ConfigError, match=message):
        compare([expected], [outputs], 1e-6)


def test_outputs_that_agree():
    expected, nested = (
        [torch.ones(3), torch.zeros(0, 4)],
        [{"boxes": torch.zeros(0, 4), "scores": (torch.ones(3), None)}],
    )
    assert [tuple(t.shape) for t in leaves(nested)] == [(0, 4), (3,)]
    assert compare([expected], [[torch.ones(3), torch.zeros(0, 4)]], 1e-6) == (0.0, 1e-6)


def test_truncated_weights(run, tmp_path):
    whole = (run.work_dir / "student.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half.pth' is truncated"):
        export(run.work_dir, "pth", tmp_path / "out.pth", tmp_path / "half.pth")
    assert files(tmp_path) == {"half.pth"}


@pytest.mark.parametrize(
    ("format", "package"),
    [("safetensors", "safetensors"), ("onnx", "onnxruntime"), ("onnx", "onnxscript")],
)
def test_a_missing_package_is_named(run, monkeypatch, capsys, format, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit):
        main([str(run.work_dir), "--format", format])
    assert f"needs the package {package}: pip install 'kdtasks[export]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"work_dir": "nowhere"}, "'nowhere' holds no run"),
        ({"output": "student.pth"}, "is the file that is exported"),
        ({"format": "tflite"}, "format must be one of"),
    ],
)
def test_what_cannot_be(run, monkeypatch, arguments, message):
    monkeypatch.chdir(run.work_dir)
    with pytest.raises(ConfigError, match=message):
        export(**{"work_dir": run.work_dir, "format": "pth", **arguments})


def test_packed_files_are_of_students_in_few_bits(run, tmp_path):
    with pytest.raises(ConfigError, match="a Net whose weights are not quantized cannot be packed"):
        export(run.work_dir, "packed", tmp_path / "s.safetensors")
    assert not files(tmp_path)
    experiment = Experiment(configurations.load(SMALL, {"packed": True}), 0, "cpu", "small")
    with pytest.raises(ConfigError, match="packed=True, stage 'distilled': a Net whose weights"):
        check(experiment)


def test_a_model_that_onnx_cannot_hold(run, tmp_path, monkeypatch, capsys):
    forward = nn.Sequential.forward
    monkeypatch.setattr(
        "small_parts.Net.forward", lambda self, x: forward(self, x if x.sum().item() > 0 else -x)
    )
    with pytest.raises(
        ConfigError,
        match=r"torch.onnx cannot export this student: "
        r".*data-dependent",
    ):
        export(run.work_dir, "onnx", tmp_path / "s.onnx")
    assert not files(tmp_path) and capsys.readouterr() == ("", "")


# -------------------------------------------------------------------------- an ONNX file as a model
@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    export(run.work_dir, "onnx", path)
    return path


def test_an_onnx_file_is_a_model(file, reference):
    student, images = reference
    model = OnnxModel(file)
    torch.testing.assert_close(model(images), student(images).detach(), rtol=0, atol=1e-5)
    # as detectors are called: a list of images, an answer for each
    torch.testing.assert_close(model([images[:2], images[5:6]])[1], model(images[5:6]))
    assert model.meta["stage"] == "distilled" and model.meta["classes"] == [
        str(k) for k in range(10)
    ]
    assert model.bytes == file.stat().st_size and model.latency(images[:1], rounds=5) > 0
    assert not list(model.parameters())


def test_a_file_tells_no_path_of_this_machine(file):
    assert str(Path(kdtasks.__file__).parents[1]).encode() not in file.read_bytes()
    assert b"site-packages" not in file.read_bytes()


def test_tools_test_runs_an_onnx_file(run, file, capsys):
    evaluate_main(
        [str(SMALL), str(file), "--device", "cpu", "--cfg-options", "length=1", "ema=0.9"]
    )
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(said["accuracy"]) == pytest.approx(run.done["distilled"]["accuracy"], abs=0.51)
    assert int(said["onnx_bytes"].replace(",", "")) == file.stat().st_size
    assert float(said["onnx_ms"]) > 0


def test_what_is_no_onnx_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file '.*none.onnx'"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"this is no program")
    with pytest.raises(ConfigError, match="onnxruntime cannot run '.*bad.onnx'"):
        OnnxModel(tmp_path / "bad.onnx")
