"""What results.json and the report say of student and teachers: against counts by hand, in every
task.
"""

import json

import pytest
import torch
from small_runs import ROOT, small
from torch import nn

from kdtasks.core import Teacher
from kdtasks.engine import config as configs
from kdtasks.engine import deployment
from kdtasks.engine.deployment import count_flops, measure_model, table
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.latency import median_ms
from kdtasks.engine.models import named_model
from kdtasks.engine.report.page import render
from kdtasks.engine.run import Run


class Net(nn.Module):
    """A convolution, and a linear map of its mean."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, 7)

    def forward(self, images):
        return self.fc(self.conv(images).mean((2, 3)))


def by_hand(height, width):
    """Multiplications and additions of :class:`Net` for one image."""
    count = 0
    for _ in range(height * width * 5):  # outputs of the convolution
        count += 2 * 3 * 3 * 3
    return count + 2 * 5 * 7


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("run")
    run = Run(small(length=1, deployment=True), folder / "run", name="small", quiet=True)
    run.train()
    return run


def test_a_network_by_hand(tmp_path):
    net = Net()
    found = measure_model(net, torch.rand(1, 3, 6, 4), 0.05)
    assert found["parameters"] == 3 * 5 * 9 + 5 + 5 * 7 + 7
    assert found["flops"] == by_hand(6, 4)
    torch.save(net.state_dict(), tmp_path / "archive")  # the file's name is in it
    assert abs(found["bytes"] - (tmp_path / "archive").stat().st_size) <= 64
    assert found["cpu_ms"] > 0 and 1 <= found["cpu_rounds"] <= deployment.ROUNDS
    assert "note" not in found


def test_a_teacher_counts_at_its_own_size():
    teacher = Teacher(Net(), input_size=12)
    found = measure_model(teacher, torch.rand(1, 3, 6, 4), 0.0)
    assert found["flops"] == by_hand(12, 12) and found["cpu_rounds"] == 1


def test_the_fused_transformer_layer_counts_as_the_plain_one():
    """In eval torch computes it by one operator, which its counter passes over."""
    layer, tokens, width, hidden = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 5, 8, 16
    with torch.no_grad():
        flops, _ = count_flops(lambda: layer.eval()(torch.rand(1, tokens, width)))
    linear = 2 * tokens * width * (3 * width + width + 2 * hidden)
    assert flops == linear + 2 * 2 * tokens * tokens * width
    assert torch.backends.mha.get_fastpath_enabled()


def test_operators_of_others_are_named_and_nothing_is_no_count():
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]])
    assert count_flops(lambda: nms(boxes, torch.rand(2), 0.5)) == (None, ["torchvision::nms"])
    assert measure_model(nn.Identity(), torch.rand(1, 2), 0.0)["flops"] is None


def test_what_an_evaluation_moves_is_put_back():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    measure_model(net, torch.rand(1, 2), 0.0)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_an_onnx_teacher_has_bytes_and_a_latency_only(tmp_path):
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "t.onnx")
    found = measure_model(named_model(f"onnx:{tmp_path / 't.onnx'}"), torch.rand(1, 3), 0.0)
    assert found["parameters"] is None and found["flops"] is None and found["cpu_ms"] > 0
    assert found["bytes"] == (tmp_path / "t.onnx").stat().st_size
    assert "ONNX" in found["note"]


@pytest.mark.parametrize(
    "name", ["detection/default", "metric_learning/default", "super_resolution/default"]
)
def test_each_task_has_a_sample_that_its_student_takes(name):
    config = configs.load(ROOT / "configs" / f"{name}.py")
    experiment = Experiment(config, device="cpu")
    sample = experiment.task.example(config, 1)["input"]
    found = measure_model(experiment.model("student"), sample, 0.0)
    assert found["flops"] > 0 and found["cpu_ms"] > 0
    assert len(deployment._shape(sample)) == 4


def test_a_student_in_few_bits_has_its_packed_size_too():
    from kdtasks.quantization import quantized

    net = quantized(nn.Sequential(nn.Flatten(), nn.Linear(64, 64)), bits=4)
    found = measure_model(net, torch.rand(1, 1, 8, 8), 0.0)
    assert 64 * 64 / 2 < found["packed_bytes"] < found["bytes"] and "simulated" in found["note"]


def test_the_time_is_bounded():
    calls = []
    assert median_ms(lambda: calls.append(0), rounds=7, seconds=60)[1] == 7 and len(calls) == 8
    assert median_ms(lambda: calls.append(0), seconds=0.0)[1] == 1


def test_results_and_report_have_it_and_a_second_look_does_not_measure_anew(run, monkeypatch):
    monkeypatch.setattr("kdtasks.engine.report.write_report", lambda run: None)
    found = json.loads((run.work_dir / "results.json").read_text())["deployment"]
    assert found["input"] == [1, 1, 8, 8] and list(found["models"]) == ["student", "teacher"]
    for name, values in found["models"].items():
        model = run.experiment.model(name)
        assert values["parameters"] == sum(p.numel() for p in model.parameters())
    size = (run.work_dir / "student.pth").stat().st_size
    assert found["models"]["student"]["bytes"] == size
    page = (run.work_dir / "report.html").read_text()
    for row in table(found)["rows"]:
        assert "".join(f'<td class="n">{cell}</td>' for cell in row[1:]) in page
    again = Run(run.experiment.config, run.work_dir, name="small", quiet=True)
    assert again.train(resume=True)["deployment"] == found


def test_it_can_be_switched_off_and_a_model_that_cannot_run_says_so(run, monkeypatch):
    monkeypatch.setattr(run.experiment, "teacher", lambda *given, **more: nn.Linear(3, 3))
    found = deployment.measure(run)
    values = found["models"]["teacher"]
    assert values["flops"] is None and values["cpu_ms"] is None
    assert "could not be measured: RuntimeError" in values["note"]
    assert found["models"]["student"]["cpu_ms"] > 0
    assert table(found)["rows"][1] == ["teacher", "–", "–", "–", "–"]
    (run.work_dir / "stages" / "deployment.json").unlink()
    assert "Deployment" not in render(run, [], [], [], "")
    assert "deployment" not in run.results
