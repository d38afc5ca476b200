"""The networks: sizes as published, structure against functional rewrites, shapes at all scales;
foreign ones by spandrel.
"""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.core import Distiller
from kdtasks.super_resolution.metrics import imresize
from kdtasks.super_resolution.models import EDSR, ESPCN, FSRCNN, VDSR, SRResNet, spandrel_model

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def size(make, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in make(**options).parameters())


def noisy(model):
    """In float64, with biases, slopes and batch norms that nothing wrong can hide behind."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and (tensor.dim() == 1 or name.endswith("bias")):
            tensor.copy_(0.2 + 0.6 * torch.rand_like(tensor))
    return model.double().eval()


# -------------------------------------------------------------------------------------------- sizes
def test_sizes_are_the_published_ones():
    # the weights in AIL's release
    assert size(VDSR) == 664_704 and size(VDSR, width=13) == 27_612
    # the paper's table 1, biases, slopes
    assert size(FSRCNN) == 12_464 + (56 + 12 + 4 * 12 + 56 + 1) + (56 + 12 + 4 * 12 + 56)
    assert size(FSRCNN, scale=4) == size(FSRCNN)
    assert [size(EDSR, scale=scale) for scale in (2, 3, 4)] == [1_369_859, 1_554_499, 1_517_571]
    assert size(EDSR, width=256, blocks=32) == 40_729_603
    assert size(ESPCN, scale=3) == (25 * 64 + 64) + (9 * 64 * 32 + 32) + (9 * 32 * 9 + 9) + 2
    assert size(ESPCN, widths=(24, 24, 24)) == 11_911


def test_srresnet_has_the_size_of_its_layers():
    ends, conv, blocks = (243 * 64 + 64 + 1) + (243 * 64 + 3), 9 * 64 * 64 + 64, 16
    for batch_norm, norm in ((False, 0), (True, 128)):
        body = blocks * (2 * (conv + norm) + 1) + conv + norm
        assert size(SRResNet, scale=4, batch_norm=batch_norm) == ends + body + 2 * (4 * conv + 1)
        assert size(SRResNet, scale=3, batch_norm=batch_norm) == ends + body + 9 * conv + 1


# ---------------------------------------------------------------------------------------- structure
def convolution(x, p, name, activation=None):
    weight = p[f"{name}.weight"]
    x = F.conv2d(x, weight, p.get(f"{name}.bias"), padding=weight.shape[-1] // 2)
    return x if activation is None else F.prelu(x, p[f"{activation}.weight"])


def normalized(x, p, name):
    return F.batch_norm(
        x,
        p[f"{name}.running_mean"],
        p[f"{name}.running_var"],
        p[f"{name}.weight"],
        p[f"{name}.bias"],
    )


def shuffled(x, s):
    """Output pixel (s·i + a, s·j + b) of channel c is pixel (i, j) of channel c·s² + a·s + b."""
    n, c, h, w = x.shape
    return (
        x.view(n, c // s**2, s, s, h, w)
        .permute(0, 1, 4, 2, 5, 3)
        .reshape(n, c // s**2, h * s, w * s)
    )


def test_vdsr_is_a_chain_on_top_of_its_input():
    model, x = noisy(VDSR(width=5, depth=4)), torch.rand(2, 1, 6, 5, dtype=F64)
    p, y = model.state_dict(), x
    for layer in (0, 2, 4):
        y = F.conv2d(y, p[f"body.{layer}.weight"], padding=1).relu()
    torch.testing.assert_close(model(x), x + F.conv2d(y, p["body.6.weight"], padding=1))
    assert len(p) == 4  # no biases
    with pytest.raises(ValueError, match="at least 2, got 1"):
        VDSR(depth=1)


def test_vdsr_starts_as_in_the_release():
    weights = [module.weight for module in VDSR().body if isinstance(module, nn.Conv2d)]
    assert len(weights) == 20
    for weight in weights:
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * len(weight))), rel=0.1)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_fsrcnn(scale):
    model, x = (
        noisy(FSRCNN(scale, channels=2, width=6, shrink=3, depth=2)),
        torch.rand(2, 2, 5, 4, dtype=F64),
    )
    p, y = model.state_dict(), x
    for conv, slope in (
        ("extract.0", "extract.1"),
        ("shrink.0", "shrink.1"),
        ("map.0", "map.1"),
        ("map.2", "map.3"),
        ("expand.0", "expand.1"),
    ):
        y = convolution(y, p, conv, slope)
    # a transposed convolution is one of spread pixels
    spread = torch.zeros(2, 6, scale * 5, scale * 4, dtype=F64)
    spread[..., ::scale, ::scale] = y
    expected = F.conv2d(
        spread, p["enlarge.weight"].flip(2, 3).transpose(0, 1), p["enlarge.bias"], padding=4
    )
    torch.testing.assert_close(model(x), expected)


def test_espcn_with_a_residual_starts_as_the_bicubic_image():
    x = torch.rand(2, 1, 12, 14)
    detail = ESPCN(2, widths=(16, 16))(x) - imresize(x, 2)
    assert (
        0 < detail.abs().max() < 0.05
        and (ESPCN(2, widths=(16, 16), residual=False)(x) - imresize(x, 2)).abs().max() > 0.1
    )


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_espcn(scale, residual):
    model, x = (
        noisy(ESPCN(scale, channels=2, widths=(5, 4, 3), residual=residual)),
        torch.rand(2, 2, 5, 4, dtype=F64),
    )
    p, y = model.state_dict(), 2 * x - 1
    for layer in (0, 2, 4):
        y = convolution(y, p, f"body.{layer}", f"body.{layer + 1}")
    expected = shuffled(convolution(y, p, "body.6"), scale)
    torch.testing.assert_close(model(x), expected + imresize(x, scale) if residual else expected)
    assert p["body.0.weight"].shape == (5, 2, 5, 5) and p["body.2.weight"].shape == (4, 5, 3, 3)


STEPS = {2: [("enlarge.0", 2)], 3: [("enlarge.0", 3)], 4: [("enlarge.0", 2), ("enlarge.3", 2)]}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr(scale, channels):
    model, x = (
        noisy(EDSR(scale, channels, width=4, blocks=2, residual_scale=0.3)),
        torch.rand(2, channels, 5, 4, dtype=F64),
    )
    p = model.state_dict()
    mean = (
        torch.tensor([0.4488, 0.4371, 0.4040]).double()
        if channels == 3
        else torch.tensor([1.2899 / 3]).double()
    )
    first = y = convolution(x - mean.view(1, -1, 1, 1), p, "head")
    for block in ("body.0", "body.1"):
        y = y + 0.3 * convolution(convolution(y, p, f"{block}.conv1").relu(), p, f"{block}.conv2")
    y = first + convolution(y, p, "body.2")
    for conv, factor in STEPS[scale]:
        y = shuffled(convolution(y, p, conv), factor)
    torch.testing.assert_close(
        model(x), convolution(y, p, "tail") + mean.view(1, -1, 1, 1), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_srresnet(scale, batch_norm):
    model, x = (
        noisy(SRResNet(scale, 2, width=4, blocks=2, batch_norm=batch_norm)),
        torch.rand(2, 2, 5, 4, dtype=F64),
    )
    p = model.state_dict()
    norm = normalized if batch_norm else lambda x, p, name: x
    first = y = convolution(x, p, "head.0", "head.1")
    for b in ("body.0", "body.1"):
        inner = F.prelu(
            norm(convolution(y, p, f"{b}.conv1"), p, f"{b}.norm1"), p[f"{b}.activation.weight"]
        )
        y = y + norm(convolution(inner, p, f"{b}.conv2"), p, f"{b}.norm2")
    y = first + norm(convolution(y, p, "body.2"), p, "body.3")
    for conv, factor in STEPS[scale]:
        index = int(conv[-1]) + 2
        y = F.prelu(shuffled(convolution(y, p, conv), factor), p[f"enlarge.{index}.weight"])
    torch.testing.assert_close(model(x), convolution(y, p, "tail"))
    assert p["head.0.weight"].shape[-1] == p["tail.weight"].shape[-1] == 9


SMALL = {
    FSRCNN: {"width": 4, "shrink": 3, "depth": 1},
    ESPCN: {"widths": (4, 3)},
    EDSR: {"width": 4, "blocks": 1},
    SRResNet: {"width": 4, "blocks": 1},
}


@pytest.mark.parametrize("make", SMALL)
def test_any_size_at_any_scale_and_every_parameter_learns(make):
    for scale in (2, 3, 4):
        for channels in (1, 3):
            model = make(scale, channels=channels, **SMALL[make])
            assert model.scale == scale
            for h, w in ((1, 1), (2, 7), (9, 4)):
                assert model(torch.rand(2, channels, h, w)).shape == (
                    2,
                    channels,
                    scale * h,
                    scale * w,
                )
        model(torch.rand(2, channels, 9, 7)).square().sum().backward()
        assert all(p.grad.any() for p in model.parameters())
        assert not any(getattr(module, "inplace", False) for module in model.modules())
    for scale in (1, 5, 2.5, "2"):
        with pytest.raises(ValueError, match=f"scale must be 2, 3 or 4, got {scale!r}"):
            make(scale)


# ----------------------------------------------------------------------------------------- spandrel
@pytest.fixture
def compact():
    pytest.importorskip("spandrel", reason="needs spandrel: pip install 'kdtasks[spandrel]'")
    from spandrel.architectures.Compact import Compact

    return Compact(num_in_ch=3, num_out_ch=3, num_feat=4, num_conv=2, upscale=2)


@pytest.mark.parametrize("key", ["params", "params_ema", "state_dict", None])
def test_a_foreign_network_comes_back_as_it_was(compact, tmp_path, key):
    state = compact.state_dict()
    torch.save({key: state} if key else state, tmp_path / "net.pth")
    model, x = spandrel_model(tmp_path / "net.pth", scale=2), torch.rand(2, 3, 5, 7)
    assert model.scale == 2 and "Compact" in model.architecture
    assert torch.equal(model(x), compact(x).clamp(0, 1)) and (compact(x) < 0).any()
    with pytest.raises(ValueError, match="Compact, enlarges by 2, not by 4"):
        spandrel_model(tmp_path / "net.pth", scale=4)


def test_a_foreign_network_that_needs_padding(tmp_path):
    pytest.importorskip("spandrel", reason="needs spandrel: pip install 'kdtasks[spandrel]'")
    from spandrel.architectures.SAFMN import SAFMN

    network = SAFMN(dim=8, n_blocks=1, upscaling_factor=3)  # sides in eights
    torch.save(network.state_dict(), tmp_path / "net.pth")
    model, x = spandrel_model(tmp_path / "net.pth"), torch.rand(1, 3, 13, 16)
    assert model.scale == 3
    torch.testing.assert_close(
        model(x), network(F.pad(x, (0, 0, 0, 3), mode="reflect")).clamp(0, 1)[..., :39, :]
    )


def test_a_foreign_teacher_in_a_distiller(compact, tmp_path):
    """Its output and its features: tensors that a loss can save for backward, which those of
    inference_mode are not.
    """
    torch.save(compact.state_dict(), tmp_path / "net.pth")
    student, teacher = ESPCN(2, 3, widths=(4,)), spandrel_model(tmp_path / "net.pth")
    losses = {
        "loss_output": (nn.MSELoss(), ("student", "teacher")),
        "loss_feature": (nn.MSELoss(), ("student.body.0", "teacher.network.body.2")),
    }
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distiller = Distiller(student, {"teacher": teacher}, losses).double()
    x = torch.rand(2, 3, 6, 6, dtype=F64)
    distiller.build(x)
    found = distiller(x)
    sum(found.values()).backward()
    compact.double()
    torch.testing.assert_close(
        found["loss_output"], (student(x) - compact(x).clamp(0, 1)).square().mean()
    )
    assert student.body[0].weight.grad.any() and not any(
        p.requires_grad for p in teacher.parameters()
    )
    assert all(
        torch.equal(value, before[name].to(value.dtype))
        for name, value in teacher.state_dict().items()
    )


class Code:
    def __reduce__(self):
        return print, ("this was run",)


def test_files_that_are_no_foreign_network(compact, tmp_path, capsys):
    torch.save({"some.weight": torch.rand(2)}, tmp_path / "unknown.pth")
    with pytest.raises(ValueError, match="knows no network with the weights of .*unknown.pth"):
        spandrel_model(tmp_path / "unknown.pth")
    with pytest.raises(FileNotFoundError):
        spandrel_model(tmp_path / "absent.pth")
    torch.save({"params": compact.state_dict(), "code": Code()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="code.pth' holds more than weights.*print"):
        spandrel_model(tmp_path / "code.pth")
    assert "this was run" not in capsys.readouterr().out


def test_without_spandrel_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ImportError, match=r"pip install 'kdtasks\[spandrel\]'"):
        spandrel_model("net.pth")
