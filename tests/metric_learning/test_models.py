"""Embedders: what is kept of a classifier, what is new, and the length of their rows."""

import pytest
import torch
from torch import nn

from kdtasks.classification.models import resnet8
from kdtasks.metric_learning.models import Embedder, embedder


@pytest.mark.parametrize(
    "backbone, size",
    [
        ("torchvision:resnet18", 32),
        ("vgg11", 32),
        ("squeezenet1_1", 32),
        ("mobilenet_v3_small", 32),
        ("convnext_tiny", 32),
        ("timm:resnet10t", 32),
        ("kdtasks.classification.models.resnet8", 16),
    ],
)
def test_any_classifier_becomes_an_embedder(backbone, size):
    model = embedder(backbone, dim=7).eval()
    rows = model(torch.randn(3, 3, size, size))
    assert rows.shape == (3, 7) and torch.allclose(rows.norm(dim=1), torch.ones(3), atol=1e-6)


def test_only_the_last_layer_is_new():
    torch.manual_seed(0)
    classifier = resnet8(10)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    model = embedder(classifier, dim=5, normalize=False)
    state = model.backbone.state_dict()
    assert {
        name
        for name in before
        if not (state[name].shape == before[name].shape and torch.equal(state[name], before[name]))
    } == {"fc.weight", "fc.bias"}
    x = torch.randn(2, 3, 16, 16)
    features = {}
    classifier.flatten.register_forward_hook(lambda module, args, out: features.update(flat=out))
    assert torch.equal(model.eval()(x), classifier.fc(features["flat"]))


def test_options_reach_the_backbone_and_width_and_normalize_do_what_they_say():
    model = embedder(
        "kdtasks.classification.models.digits_cnn", dim=6, normalize=False, in_channels=1, width=3
    )
    rows = model(torch.randn(4, 1, 8, 8))
    assert rows.shape == (4, 6) and (rows.norm(dim=1) - 1).abs().min() > 1e-3
    assert model.backbone.layer1.conv1.out_channels == 3
    same = embedder(lambda: resnet8(4, in_channels=1), dim=3)
    assert same(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_rows_of_zeros_stay_and_pull_on_nothing():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    out = Embedder(nn.Identity())(rows)
    assert torch.equal(out, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    out[:, 0].sum().backward()
    assert torch.equal(rows.grad[0], torch.zeros(2)) and torch.allclose(
        rows.grad[1], torch.tensor([0.128, -0.096])
    )


@pytest.mark.parametrize(
    "given, got",
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_rows_are_normalised_in_float32_or_more(given, got):
    # its square overflows float16
    out = Embedder(nn.Identity())(torch.full((2, 4), 300, dtype=given))
    assert out.dtype == got and torch.allclose(out, torch.full((2, 4), 0.5, dtype=got))


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("torchvision has no 'resnet19'; did you mean 'resnet1", {"backbone": "resnet19"}),
        ("dim must be at least 1, got 0", {"backbone": "resnet18", "dim": 0}),
        (
            "kdtasks.classification.models has no 'resnet9'",
            {"backbone": "kdtasks.classification.models.resnet9"},
        ),
        (
            "Sequential has no linear layer and no 1x1 convolution",
            {"backbone": nn.Sequential(nn.Conv2d(3, 4, 3))},
        ),
        ("timm has no 'resnet18x'; did you mean 'resnet18'", {"backbone": "timm/resnet18x"}),
        (
            "timm's resnet18 has no weights 'a1_in1kk'; did you mean 'a1_in1k'",
            {"backbone": "timm/resnet18.a1_in1kk"},
        ),
        (
            "resnet18 has no weights='IMAGENET1K_V9'; did you mean 'IMAGENET1K_V1'",
            {"backbone": "torchvision:resnet18", "weights": "IMAGENET1K_V9"},
        ),
        (
            "belongs to the backbones that have a name",
            {"backbone": "kdtasks.classification.models.resnet8", "weights": True},
        ),
    ],
)
def test_what_cannot_be_is_named(message, arguments):
    with pytest.raises(ValueError, match=message):
        embedder(**arguments)


def test_a_backbone_with_several_outputs_is_refused():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="Two gives tuple"):
        Embedder(Two())(torch.zeros(1, 2))


class Gated(nn.Module):
    """A gate and a head, registered in this order or the other one."""

    def __init__(self, *order):
        super().__init__()
        for name in order:
            self.add_module(name, nn.Linear(8, 8) if name == "gate" else nn.Conv2d(8, 5, 1))

    def forward(self, x):
        return self.head(x) * self.gate(x.mean((2, 3))).mean(1).sigmoid()[:, None, None, None]


def test_the_last_layer_is_the_head_or_the_width_is_wrong():
    x = torch.randn(2, 8, 1, 1)
    assert embedder(Gated("gate", "head"), dim=3)(x).shape == (2, 3) and Embedder(
        Gated("head", "gate")
    )(x).shape == (2, 5)
    with pytest.raises(
        ValueError, match="Gated gives rows of width 5, not 3: its last layer is not its head"
    ):
        embedder(Gated("head", "gate"), dim=3)(x)
