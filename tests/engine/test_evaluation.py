"""What is not finite never becomes a metric: images, logits, embeddings, pictures, boxes; and is
said where it is.
"""

import math

import pytest
import torch
from torch import nn

from kdtasks.engine.evaluation import evaluate
from kdtasks.engine.task import load_task

NAN, INF = math.nan, math.inf


class Answers(nn.Module):
    """Gives what it is told to, whatever it is asked."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs, self.calls = outputs, 0

    def forward(self, images):
        self.calls += 1
        return self.outputs[(self.calls - 1) % len(self.outputs)]


class Data:
    def path(self, index):
        return f"folder/{index}.png"


class Batches(list):
    dataset = Data()


def batches(image=0.0, count=2, size=3):
    images = torch.zeros(count, size, 1, 4, 4)
    images[-1, -1, 0, 2, 2] = image
    return Batches(
        {"input": one, "target": torch.tensor([0, 1, 0]), "index": torch.arange(3) + 3 * k}
        for k, one in enumerate(images)
    )


def rows(*values):
    return torch.tensor(values)


# a masked class is none of our business
GOOD = rows([1.0, 0.0], [0.0, 1.0], [1.0, -INF])
CLASSIFICATION = load_task("kdtasks.classification.trainer")


def test_finite_answers_give_the_metrics_of_the_task():
    plain = CLASSIFICATION.evaluate(Answers(GOOD), batches())
    assert evaluate(CLASSIFICATION, Answers(GOOD), batches()) == plain == {"accuracy": 100.0}


@pytest.mark.parametrize("bad", [NAN, INF])
def test_logits(bad):
    wrong = rows([1.0, 0.0], [0.0, bad], [1.0, 0.0])
    with pytest.raises(ValueError, match=r"output is not finite .* sample 4 \(folder/4.png\)"):
        evaluate(CLASSIFICATION, Answers(GOOD, wrong), batches())


def test_a_row_of_masked_classes_only():
    with pytest.raises(ValueError, match="output is not finite .* sample 5"):
        evaluate(
            CLASSIFICATION, Answers(GOOD, rows([1.0, 0.0], [0.0, 1.0], [-INF, -INF])), batches()
        )


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_image(bad):
    with pytest.raises(ValueError, match=r"input is not finite .* sample 5 \(folder/5.png\)"):
        evaluate(CLASSIFICATION, Answers(GOOD), batches(bad))


def test_an_image_in_a_list():
    listed = [{**batch, "input": list(batch["input"])} for batch in batches(NAN)]
    with pytest.raises(ValueError, match="input is not finite .* sample 5"):
        evaluate(CLASSIFICATION, Answers(GOOD), listed)


def test_embeddings_name_the_sample_too():
    task = load_task("kdtasks.metric_learning.trainer")
    with pytest.raises(ValueError, match="output is not finite .* sample 3"):
        evaluate(
            task,
            Answers(GOOD[:, :1].repeat(1, 2), rows([NAN, 0.0], [0.0, 1.0], [1.0, 1.0])),
            batches(),
        )


@pytest.mark.parametrize("bad", [NAN, -INF])
def test_pictures(bad):
    task = load_task("kdtasks.super_resolution.trainer")
    data = [
        {
            "input": torch.rand(2, 1, 24, 24),
            "target": torch.rand(2, 1, 24, 24),
            "scale": torch.tensor([2, 2]),
        }
    ]
    output = torch.rand(2, 1, 24, 24)
    output[1, 0, 12, 12] = bad
    with pytest.raises(ValueError, match="output is not finite .* sample 1"):
        evaluate(task, Answers(output), data)


@pytest.mark.parametrize("make", ["small_retinanet", "small_faster_rcnn"])
def test_boxes(make):
    """A detector drops boxes with a score of NaN: without a look at its heads an empty answer and
    mAP 0 would come out.
    """
    from torchvision.models import detection as torchvision_detection

    task = load_task("kdtasks.detection.trainer")
    torch.manual_seed(0)
    kind = {
        "small_retinanet": "retinanet_resnet50_fpn",
        "small_faster_rcnn": "fasterrcnn_mobilenet_v3_large_320_fpn",
    }[make]
    model = getattr(torchvision_detection, kind)(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
    )
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}
    data = [{"input": [torch.rand(3, 64, 64)], "target": [target], "index": torch.tensor([7])}]
    assert "map" in evaluate(task, model, data)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        # finite, and its square is not
        first.weight[0, 0, 0, 0] = 3e38
        first.weight[1, 0, 0, 0] = -3e38
        for module in model.backbone.modules():
            if hasattr(module, "running_var"):
                module.running_var.fill_(1e-30)
    with pytest.raises(ValueError, match="output is not finite .* sample 7"):
        evaluate(task, model, data)


def test_what_fails_on_account_of_it_is_said_by_its_cause():
    def measure(model, loader):
        for batch in loader:
            [int(value) for value in model(batch["input"]).sum(1)]  # int(nan) raises
        return {}

    task = load_task("kdtasks.classification.trainer")
    task.evaluate = measure
    with pytest.raises(ValueError, match="output is not finite"):
        evaluate(task, Answers(rows([NAN, 0.0], [0.0, 1.0], [1.0, 0.0])), batches())


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated", "ignore:Please use quant_min"
)
def test_what_test_images_move_in_a_model_is_put_back():
    """torch's observers follow the range of what they see in eval too; a counter of a model's own
    is an attribute.
    """
    from torch.ao import quantization

    model = nn.Sequential(quantization.QuantStub(), nn.Flatten(), nn.Linear(16, 2))
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    model = quantization.prepare_qat(model.train())
    model(torch.randn(8, 1, 4, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(CLASSIFICATION, model, batches(image=100.0))
    after = model.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    counting = Answers(GOOD)
    evaluate(CLASSIFICATION, counting, batches())
    assert counting.calls == 0
