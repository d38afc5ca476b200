"""The CIFAR networks: exact sizes, the published ones, structure against a functional rewrite,
taps, errors.
"""

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdtasks.classification import models


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def build(name: str, num_classes: int = 10, **options) -> nn.Module:
    return getattr(models, name)(num_classes=num_classes, **options)


def size(name: str, num_classes: int, **options) -> int:
    """Number of parameters; on the meta device, so that WRN-28-10 costs nothing."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(name, num_classes, **options).parameters())


def randomise_batch_norms(model: nn.Module) -> nn.Module:
    """Statistics and weights that a forgotten or swapped batch norm cannot hide behind."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for positive in (module.weight, module.running_var):
                nn.init.uniform_(positive, 0.5, 1.5)
            for any_sign in (module.bias, module.running_mean):
                nn.init.uniform_(any_sign, -0.5, 0.5)
    return model


def run_with_hooks(model: nn.Module, x: torch.Tensor):
    """Logits, the number of calls of each submodule, {path: (its output, a copy made at once)}."""
    calls, outputs = Counter(), {}

    def hook(path):
        def record(module, args, output):
            calls[path] += 1
            outputs[path] = (output, output.clone())

        return record

    handles = [
        module.register_forward_hook(hook(path)) for path, module in model.named_modules() if path
    ]
    logits = model(x)
    for handle in handles:
        handle.remove()
    return logits, calls, outputs


# --------------------------------------------------------------------------------- parameter counts
def conv3(i, o):
    return 9 * i * o


def resnet_count(depth, stem, w1, w2, w3, classes):
    n = (depth - 2) // 6
    convs = conv3(3, stem) + conv3(stem, w1) + conv3(w1, w2) + conv3(w2, w3)
    convs += (2 * n - 1) * (conv3(w1, w1) + conv3(w2, w2) + conv3(w3, w3))
    norms = 2 * stem + 2 * n * (2 * w1 + 2 * w2 + 2 * w3)
    projections = (
        (w1 * w2 + 2 * w2) + (w2 * w3 + 2 * w3) + (stem * w1 + 2 * w1 if stem != w1 else 0)
    )
    return convs + norms + projections + w3 * classes + classes


def wrn_count(depth, k, classes):
    n = (depth - 4) // 6
    a, b, c = 16 * k, 32 * k, 64 * k
    convs = (
        conv3(3, 16)
        + conv3(16, a)
        + conv3(a, b)
        + conv3(b, c)
        + (2 * n - 1) * (conv3(a, a) + conv3(b, b) + conv3(c, c))
    )
    # bn1 of each stage has the width before it
    norms = 2 * 16 + 2 * a + 2 * b + (2 * n - 1) * (2 * a + 2 * b + 2 * c) + 2 * c
    # without batch norm
    projections = (16 * a if k > 1 else 0) + a * b + b * c
    return convs + norms + projections + c * classes + classes


def chain_count(widths, linears, inputs=3):
    """3x3 convolutions with bias and batch norm in a chain, then linear layers [(in, out), …]."""
    total = 0
    for outputs in widths:
        total += conv3(inputs, outputs) + outputs + 2 * outputs
        inputs = outputs
    return total + sum(i * o + o for i, o in linears)


RESNETS = [8, 14, 20, 26, 32, 44, 56, 110]
WRNS = [(16, 1), (16, 2), (40, 1), (40, 2), (28, 10)]


@pytest.mark.parametrize("classes", [10, 100])
def test_residual_networks_have_the_sizes_of_their_layers(classes):
    for depth in RESNETS:
        assert size(f"resnet{depth}", classes) == resnet_count(depth, 16, 16, 32, 64, classes), (
            depth
        )
    for depth in (8, 32):
        assert size(f"resnet{depth}x4", classes) == resnet_count(
            depth, 32, 64, 128, 256, classes
        ), depth
    for depth, k in WRNS:
        assert size(f"wrn_{depth}_{k}", classes) == wrn_count(depth, k, classes), (depth, k)


def test_chains_have_the_sizes_of_their_layers():
    assert size("vgg8", 100) == chain_count([64, 128, 256, 512, 512], [(512, 100)])
    assert size("vgg13", 100) == chain_count(
        [64, 64, 128, 128, 256, 256, 512, 512, 512, 512], [(512, 100)]
    )
    assert size("digits_cnn", 10, width=8) == chain_count([8, 16, 16], [(16, 10)], inputs=1)


def shufflenet_count(classes):
    def convolved(i, o):
        return i * o + 2 * o

    def depthwise(c):
        return 9 * c + 2 * c

    total, inputs = convolved(3, 24), 24
    for width, units in ((116, 3), (232, 7), (464, 3)):
        half = width // 2
        total += depthwise(inputs) + convolved(inputs, half)
        total += convolved(inputs, half) + depthwise(half) + convolved(half, half)
        total += units * (2 * convolved(half, half) + depthwise(half))
        inputs = width
    return total + convolved(464, 1024) + 1024 * classes + classes


def test_shufflenet_has_the_size_and_the_shapes_of_its_stages():
    assert size("shufflenet_v2", 100) == shufflenet_count(100) == 1_355_528
    model = build("shufflenet_v2", 7).eval()
    logits, calls, outputs = run_with_hooks(model, torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7) and {*calls.values()} == {1}
    shapes = {path: tuple(outputs[path][0].shape[1:]) for path in ("layer1", "layer2", "layer3")}
    assert shapes == {"layer1": (116, 16, 16), "layer2": (232, 8, 8), "layer3": (464, 4, 4)}
    assert all(torch.equal(now, before) for now, before in outputs.values())
    # channels of the half that passes and of the other take turns
    unit, x = model.layer2[1], torch.randn(1, 232, 8, 8)
    found = unit(x)
    assert torch.equal(found[:, ::2], x[:, :116])
    assert torch.equal(found[:, 1::2], unit.branch(x[:, 116:]))


# TAKD, plain_cnn_cifar.py (github.com/imirzadeh/Teacher-Assistant-Knowledge-Distillation), its two
# lists of layers.
@pytest.mark.parametrize(
    "depth, cifar10, cifar100",
    [
        (2, ([16] * 2, [(16 * 8 * 8, 10)]), ([32] * 2, [(32 * 8 * 8, 100)])),
        (4, ([16, 16, 32, 32], [(32 * 8 * 8, 10)]), ([32, 32, 64, 64], [(64 * 8 * 8, 100)])),
        (
            6,
            ([16, 16, 32, 32, 64, 64], [(64 * 4 * 4, 10)]),
            ([32, 32, 64, 64, 128, 128], [(128 * 8 * 8, 100)]),
        ),
        (
            8,
            ([16, 16, 32, 32, 64, 64, 128, 128], [(128 * 2 * 2, 64), (64, 10)]),
            ([32, 32, 64, 64, 128, 128, 256, 256], [(256 * 2 * 2, 64), (64, 100)]),
        ),
        (
            10,
            ([32, 32, 64, 64, 128, 128] + [256] * 4, [(256 * 2 * 2, 128), (128, 10)]),
            ([32, 32, 64, 64, 128, 128] + [256] * 4, [(256 * 2 * 2, 512), (512, 100)]),
        ),
    ],
)
def test_plain_cnns_have_the_layers_of_takd(depth, cifar10, cifar100):
    assert size(f"plain_cnn{depth}", 10) == chain_count(*cifar10)
    assert size(f"plain_cnn{depth}", 100, widen=2) == chain_count(*cifar100)


# Published figures, each read at its source: chenyaofo/pytorch-cifar-models, README: millions,
# CIFAR-10 and CIFAR-100 (same structure: projection shortcuts).
@pytest.mark.parametrize(
    "name, cifar10, cifar100",
    [
        ("resnet20", 0.27, 0.28),
        ("resnet32", 0.47, 0.47),
        ("resnet44", 0.66, 0.67),
        ("resnet56", 0.86, 0.86),
    ],
)
def test_resnet_sizes_are_the_published_ones(name, cifar10, cifar100):
    assert round(size(name, 10) / 1e6, 2) == cifar10
    assert round(size(name, 100) / 1e6, 2) == cifar100


def test_exact_published_sizes():
    # facebookresearch/open_lth, issue 7 (its cifar_resnet_18 has 20 layers)
    assert size("resnet20", 10) == 272474
    # Comments beside the WRN entries of model tables in public repositories, CIFAR-10.
    assert [size(f"wrn_{d}_{k}", 10) for d, k in WRNS] == [
        175066,
        691674,
        563930,
        2243546,
        36479194,
    ]


# The figures below are quoted all over the distillation literature; we found no primary table of
# them. They are what RepDistiller's own classes have, instantiated for 100 classes
# (models/resnet.py, wrn.py, vgg.py).
@pytest.mark.parametrize(
    "name, expected",
    [
        ("resnet8", 83892),
        ("resnet14", 181108),
        ("resnet20", 278324),
        ("resnet32", 472756),
        ("resnet44", 667188),
        ("resnet56", 861620),
        ("resnet110", 1736564),
        ("resnet8x4", 1233540),
        ("resnet32x4", 7433860),
        ("wrn_16_1", 180916),
        ("wrn_16_2", 703284),
        ("wrn_40_1", 569780),
        ("wrn_40_2", 2255156),
        ("vgg8", 3965028),
        ("vgg13", 9462180),
    ],
)
def test_sizes_are_those_of_repdistiller(name, expected):
    assert size(name, 100) == expected
    written = f"{expected:,}".replace(",", " ")
    assert written in getattr(models, name).__doc__


# ---------------------------------------------------------------------------------------- structure
def norm(x, p, name):
    return F.batch_norm(
        x,
        p[f"{name}.running_mean"],
        p[f"{name}.running_var"],
        p[f"{name}.weight"],
        p[f"{name}.bias"],
    )


def resnet_by_hand(x, p, n):
    x = norm(F.conv2d(x, p["conv1.weight"], padding=1), p, "bn1").relu()
    for stage in (1, 2, 3):
        for i in range(n):
            b, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = norm(
                F.conv2d(x, p[f"{b}.conv1.weight"], stride=stride, padding=1), p, f"{b}.bn1"
            ).relu()
            y = norm(F.conv2d(y, p[f"{b}.conv2.weight"], padding=1), p, f"{b}.bn2")
            if f"{b}.downsample.0.weight" in p:
                x = norm(
                    F.conv2d(x, p[f"{b}.downsample.0.weight"], stride=stride),
                    p,
                    f"{b}.downsample.1",
                )
            x = (x + y).relu()
    return x.mean((2, 3)) @ p["fc.weight"].T + p["fc.bias"]


def wrn_by_hand(x, p, n):
    x = F.conv2d(x, p["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for i in range(n):
            b, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            h = norm(x, p, f"{b}.bn1").relu()
            y = norm(
                F.conv2d(h, p[f"{b}.conv1.weight"], stride=stride, padding=1), p, f"{b}.bn2"
            ).relu()
            y = F.conv2d(y, p[f"{b}.conv2.weight"], padding=1)
            x = y + (
                F.conv2d(h, p[f"{b}.shortcut.weight"], stride=stride)
                if f"{b}.shortcut.weight" in p
                else x
            )
    return norm(x, p, "bn").relu().mean((2, 3)) @ p["fc.weight"].T + p["fc.bias"]


@pytest.mark.parametrize(
    "name, n, options", [("resnet14", 2, {"width": 4}), ("resnet8x4", 1, {"width": 8})]
)
def test_resnet_equals_its_formula(name, n, options):
    model = randomise_batch_norms(build(name, 7, **options)).eval().double()
    x = torch.randn(3, 3, 12, 10, dtype=torch.float64)
    torch.testing.assert_close(model(x), resnet_by_hand(x, model.state_dict(), n))


@pytest.mark.parametrize("depth, width, n", [(10, 1, 1), (16, 2, 2)])
def test_wrn_equals_its_formula(depth, width, n):
    model = randomise_batch_norms(models.wrn(depth, width, num_classes=7)).eval().double()
    x = torch.randn(3, 3, 12, 10, dtype=torch.float64)
    torch.testing.assert_close(model(x), wrn_by_hand(x, model.state_dict(), n))


def chain(model):
    """The order of the leaves of a chain, as letters: conv width, P(ooling), A(verage), F(c) width."""
    words = []
    for module in model.modules():
        match module:
            case nn.Conv2d():
                words.append(f"{module.out_channels}")
            case nn.BatchNorm2d():
                words.append("b")
            case nn.ReLU():
                words.append("r")
            case nn.MaxPool2d():
                words.append("P")
            case nn.AdaptiveAvgPool2d():
                words.append("A")
            case nn.Linear():
                words.append(f"F{module.out_features}")
    return " ".join(words).replace(" b r", "")


@pytest.mark.parametrize(
    "name, options, layers",
    [
        ("vgg8", {}, "64 P 128 P 256 P 512 512 A F10"),
        ("vgg13", {}, "64 64 P 128 128 P 256 256 P 512 512 512 512 A F10"),
        ("plain_cnn2", {}, "16 P 16 P F10"),
        ("plain_cnn6", {}, "16 16 P 32 32 P 64 64 P F10"),
        ("plain_cnn6", {"widen": 2}, "32 32 P 64 64 P 128 128 F10"),
        ("plain_cnn8", {}, "16 16 P 32 32 P 64 64 P 128 128 P F64 r F10"),
        ("plain_cnn10", {"widen": 2}, "32 32 P 64 64 P 128 128 P 256 256 256 256 P F512 r F10"),
        ("digits_cnn", {"width": 4}, "4 8 P 8 A F10"),
    ],
)
def test_chains_have_their_layers_in_order(name, options, layers):
    with torch.device("meta"):
        assert chain(build(name, 10, **options)) == layers


# ----------------------------------------------------------------------------------- taps and hooks
SMALL = [  # name, options, input shape: one of each family
    ("resnet20", {"width": 4}, (3, 16, 16)),
    ("resnet8x4", {"width": 8, "in_channels": 1}, (1, 8, 8)),
    ("wrn_16_1", {"dropout": 0.3}, (3, 16, 16)),
    ("vgg8", {"in_channels": 1}, (1, 8, 8)),
    ("vgg13", {}, (3, 8, 8)),
    ("plain_cnn2", {"in_channels": 1, "image_size": 8}, (1, 8, 8)),
    ("plain_cnn4", {"widen": 2}, (3, 32, 32)),
    ("plain_cnn6", {}, (3, 32, 32)),
    ("plain_cnn8", {}, (3, 32, 32)),
    ("plain_cnn10", {"image_size": 16}, (3, 16, 16)),
    ("digits_cnn", {}, (1, 8, 8)),
]
small = pytest.mark.parametrize("name, options, shape", SMALL, ids=[name for name, _, _ in SMALL])


@small
def test_every_module_runs_once_and_its_output_stays(name, options, shape):
    model = build(name, 5, **options)
    logits, calls, outputs = run_with_hooks(model, torch.randn(2, *shape))
    assert logits.shape == (2, 5)
    assert calls == {path: 1 for path, _ in model.named_modules() if path}
    for path, (output, copy) in outputs.items():
        assert torch.equal(output, copy), f"{path} was changed in place"
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@small
def test_state_loads_strictly_and_eval_is_deterministic(name, options, shape):
    model, other = build(name, 5, **options), build(name, 5, **options)
    randomise_batch_norms(model).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    other.eval()
    x = torch.randn(2, *shape)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        assert torch.equal(model(x), other(x))


def test_every_resnet_and_wrn_stage_has_its_shape_and_taps():
    x = torch.randn(2, 3, 32, 32)
    shapes = [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    _, _, outputs = run_with_hooks(models.resnet20(), x)
    assert [outputs[f"layer{i}"][0].shape for i in (1, 2, 3)] == shapes and outputs["flatten"][
        0
    ].shape == (2, 64)
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            add = outputs[f"layer{stage}.{block}.add"][0]
            assert add.min() < 0
            assert torch.equal(add.relu(), outputs[f"layer{stage}.{block}"][0])
    _, _, outputs = run_with_hooks(models.wrn_16_1(), x)
    assert [outputs[f"layer{i}"][0].shape for i in (1, 2, 3)] == shapes and outputs["flatten"][
        0
    ].shape == (2, 64)
    for stage, prefix in enumerate(("layer2.0.{}1", "layer3.0.{}1", "{}")):
        before, after = outputs[prefix.format("bn")][0], outputs[prefix.format("relu")][0]
        assert (
            before.shape == shapes[stage] and before.min() < 0 and torch.equal(before.relu(), after)
        )


@pytest.mark.parametrize(
    "name, stages, shape",
    [("vgg13", 5, (3, 8, 8)), ("plain_cnn4", 2, (3, 32, 32)), ("digits_cnn", 3, (1, 8, 8))],
)
def test_chain_taps_before_and_after_the_relu(name, stages, shape):
    _, _, outputs = run_with_hooks(build(name), torch.randn(2, *shape))
    last = "bn1" if name == "digits_cnn" else "bn2"
    for i in range(1, stages + 1):
        before, after = outputs[f"layer{i}.{last}"][0], outputs[f"layer{i}"][0]
        assert before.min() < 0 and torch.equal(before.relu(), after)


def test_resnet_parameter_names_are_those_of_repdistiller():
    names = {path for path in build("resnet8x4", width=8).state_dict() if "num_batches" not in path}
    norms = ("weight", "bias", "running_mean", "running_var")
    expected = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{x}" for x in norms}
    for stage in ("layer1.0", "layer2.0", "layer3.0"):
        expected |= {f"{stage}.{x}.weight" for x in ("conv1", "conv2", "downsample.0")}
        expected |= {f"{stage}.{bn}.{x}" for bn in ("bn1", "bn2", "downsample.1") for x in norms}
    assert names == expected


# --------------------------------------------------------------------------- weights, sizes, errors
@pytest.mark.parametrize(
    "model, path",
    [
        ("resnet20", "layer2.0.conv1"),
        ("resnet20", "layer3.0.downsample.0"),
        ("wrn_16_2", "layer3.0.conv1"),
        ("vgg8", "layer3.conv1"),
    ],
)
def test_convolutions_start_from_he_normal_over_outputs(model, path):
    conv = build(model).get_submodule(path)
    # with inputs instead: 1.41 times as much
    expected = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.06)
    # a normal, not a uniform
    assert conv.weight.abs().max() > 2.5 * expected
    assert conv.bias is None or not conv.bias.any()


def test_dropout_drops_in_training_only():
    model, x = models.wrn(10, 1, dropout=0.5), torch.randn(4, 3, 8, 8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    plain = models.wrn(10, 1)
    state = torch.get_rng_state()
    plain(x)
    # none asked for: no random number is drawn
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 7, 13), (1, 64, 40)])
@pytest.mark.parametrize(
    "name, options", [("resnet8", {"width": 4}), ("wrn_16_1", {}), ("digits_cnn", {"width": 4})]
)
def test_any_size_is_taken(name, options, shape):
    assert build(name, 6, in_channels=1, **options)(torch.randn(2, *shape)).shape == (2, 6)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: models.vgg8()(torch.zeros(1, 3, 16, 7)),
            "input of 16x7 pixels is too small.*3 times.*at least 8x8",
        ),
        (
            lambda: models.digits_cnn()(torch.zeros(1, 1, 1, 8)),
            "input of 1x8 pixels is too small.*1 times.*at least 2x2",
        ),
        (
            lambda: models.plain_cnn8(image_size=8),
            "input of 8x8 pixels is too small.*4 times.*at least 16x16",
        ),
        (
            lambda: models.plain_cnn8()(torch.zeros(1, 3, 8, 8)),
            "input of 8x8 pixels is too small.*at least 16x16",
        ),
        (
            lambda: models.plain_cnn2()(torch.zeros(1, 3, 32, 28)),
            "input of 32x28 pixels.*image_size=32",
        ),
        (lambda: models.plain_cnn2(widen=3), "widen must be 1 .* or 2 .*got 3"),
        (
            lambda: models.ResNet(18),
            "ResNet depth must be 6n \\+ 2.*got 18; the nearest valid depth is 20",
        ),
        (lambda: models.ResNet(2), "got 2; the nearest valid depth is 8"),
        (
            lambda: models.wrn(20, 2),
            "wide ResNet depth must be 6n \\+ 4.*got 20; the nearest valid depth is 22",
        ),
        (lambda: models.wrn(4, 2), "got 4; the nearest valid depth is 10"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
