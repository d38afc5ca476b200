"""Features of Swin and ViT as maps: real models of torchvision and timm, and what cannot be a map
(B, C, H, W).
"""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from kdtasks.core import Distiller, FeatureRecorder
from kdtasks.core.layouts import check_channels_first, pair_to_nchw, to_nchw
from kdtasks.detection import HintLoss
from kdtasks.super_resolution.fakd import AffinityLoss


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    swin = torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [2, 2], [2, 2], num_classes=3)
    wide = torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [2, 2], num_classes=3)
    timms = timm.models.swin_transformer.SwinTransformer(
        img_size=64, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=2, num_classes=3
    )
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=64, embed_dim=16, depth=1, num_heads=2, num_classes=3
    )
    registers = timm.models.vision_transformer.VisionTransformer(
        img_size=64, embed_dim=24, depth=1, num_heads=2, num_classes=3, reg_tokens=4
    )
    cnn = nn.Sequential(nn.Conv2d(3, 10, 3, stride=8, padding=1), nn.ReLU())
    return {
        "swin": (swin, "features.3"),
        "wide": (wide, "features.3"),
        "timm": (timms, "layers.1"),
        "vit": (vit, "blocks.0"),
        "registers": (registers, "blocks.0"),
        "cnn": (cnn, "1"),
    }


def features(models, name, rows=2, side=64):
    model, path = models[name]
    return FeatureRecorder(model, [path])(
        torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(1))
    )[1][path]


def test_maps_of_real_models_have_channels_and_places_where_they_belong(models):
    assert features(models, "swin").shape == (2, 8, 8, 24) and features(models, "timm").shape == (
        2,
        8,
        8,
        24,
    )
    assert (
        features(models, "registers").shape == (2, 5 + 16, 24)
        and models["registers"][0].num_prefix_tokens == 5
    )
    for name, layout, prefix, shape in (
        ("swin", "nhwc", 0, (2, 24, 8, 8)),
        ("timm", "nhwc", 0, (2, 24, 8, 8)),
        ("vit", "tokens", 1, (2, 16, 4, 4)),
        ("registers", "tokens", 5, (2, 24, 4, 4)),
        ("cnn", None, 0, (2, 10, 8, 8)),
    ):
        given = features(models, name)
        found = to_nchw(given, layout, prefix)
        assert found.shape == shape
        for y, x in ((0, 0), (1, 3), (3, 2)):
            place = {"nhwc": (slice(None), y, x), "tokens": (slice(None), prefix + 4 * y + x)}.get(
                layout, (slice(None), slice(None), y, x)
            )
            assert torch.equal(found[:, :, y, x], given[place])


@pytest.mark.parametrize(
    "student, teacher, options",
    [
        ("swin", "wide", {"layout": "nhwc"}),
        ("timm", "wide", {"layout": "nhwc"}),
        ("cnn", "wide", {"layout": ("nchw", "nhwc")}),
        ("vit", "registers", {"layout": "tokens", "prefix_tokens": (1, 5)}),
        ("cnn", "vit", {"layout": ("nchw", "tokens"), "prefix_tokens": 1}),
        (
            "swin",
            "registers",
            {"layout": ["nhwc", "tokens"], "prefix_tokens": [0, 5], "grid": (None, (4, 4))},
        ),
    ],
)
def test_the_hint_adapts_channels_and_resizes_places_only(models, student, teacher, options):
    loss = HintLoss(**options)
    distiller = Distiller(
        models[student][0],
        {"teacher": models[teacher][0]},
        {"loss_hint": (loss, (f"student.{models[student][1]}", f"teacher.{models[teacher][1]}"))},
    )
    x = torch.randn(2, 3, 64, 64)
    distiller.build(x)
    mine, theirs = pair_to_nchw(features(models, student), features(models, teacher), **options)
    assert loss.projector.weight.shape == (theirs.shape[1], mine.shape[1], 1, 1)
    expected = loss.projector(mine) - F.interpolate(
        theirs, mine.shape[2:], mode="bilinear", antialias=True
    )
    torch.testing.assert_close(
        loss(features(models, student), features(models, teacher)), expected.square().mean()
    )
    for parameter in distiller.student.parameters():
        parameter.requires_grad_(True)
    distiller(x)["loss_hint"].backward()
    assert loss.projector.weight.grad.any() and any(
        p.grad is not None and p.grad.any() for p in distiller.student.parameters()
    )


def test_affinities_are_of_places_whatever_the_layout(models):
    a, b = torch.randn(2, 5, 4, 4), torch.randn(2, 7, 4, 4)
    expected = AffinityLoss()(a, b)
    last, tokens = (
        b.permute(0, 2, 3, 1),
        F.pad(b.flatten(2).transpose(1, 2), (0, 0, 3, 0), value=9.0),
    )
    assert torch.equal(AffinityLoss(layout=("nchw", "nhwc"))(a, last), expected)
    assert torch.equal(
        AffinityLoss(layout=("nchw", "tokens"), prefix_tokens=(0, 3))(a, tokens), expected
    )
    wide = torch.randn(1, 3, 2, 6)
    assert torch.equal(
        AffinityLoss(layout="tokens", grid=(2, 6))(wide.flatten(2).mT, wide.flatten(2).mT * 2),
        AffinityLoss()(wide, wide * 2),
    )


SWIN_LIKE = [
    ((2, 7, 7, 384), (2, 7, 7, 768)),
    ((2, 7, 7, 768), (2, 7, 7, 768)),
    ((2, 56, 56, 96), (2, 56, 56, 128)),
    ((2, 512, 7, 7), (2, 7, 7, 768)),
    ((2, 25, 34, 384), (2, 25, 34, 768)),
    ((2, 256, 25, 34), (2, 25, 34, 768)),
    ((2, 25, 34, 768), (2, 256, 25, 34)),
]
MAPS = [
    ((2, 64, 8, 8), (2, 128, 8, 8)),
    ((2, 256, 25, 34), (2, 256, 50, 68)),
    ((2, 256, 25, 34), (2, 256, 25, 42)),
    ((2, 256, 256, 512), (2, 256, 256, 512)),
    ((2, 256, 3, 3), (2, 256, 3, 4)),
    ((2, 512, 1, 32), (2, 256, 1, 32)),
    ((2, 3, 32, 256), (2, 3, 32, 256)),
    ((2, 64, 64, 64), (2, 64, 64, 64)),
    ((0, 4, 4, 4), (0, 4, 4, 4)),
    ((2, 1, 1, 4), (2, 8, 1, 4)),
    ((2, 32, 32, 64), (2, 32, 64, 128)),
]


@pytest.mark.parametrize("shapes", SWIN_LIKE)
def test_maps_whose_channels_can_only_be_last_are_an_error(shapes):
    student, teacher = map(torch.randn, shapes)
    for loss in (HintLoss().build, HintLoss(shapes[0][1], shapes[1][1]), AffinityLoss()):
        with pytest.raises(
            ValueError,
            match=r"look like \(B, H, W, C\), as Swin gives "
            r"them.*expected layout='nhwc'",
        ):
            loss(student, teacher)
    HintLoss(layout="nchw").build(student, teacher)


@pytest.mark.parametrize("shapes", MAPS)
def test_other_maps_are_taken_as_they_are(shapes):
    check_channels_first(*(torch.empty(shape, device="meta") for shape in shapes))


@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((2, 10, 4), {"layout": "tokens"}, "10 tokens .*prefix_tokens=0.* fill no 3 x 3"),
        ((2, 9, 4), {"layout": "tokens", "prefix_tokens": 1}, "8 tokens"),
        ((2, 9, 4), {"layout": "tokens", "grid": (2, 4)}, "fill no 2 x 4"),
        ((2, 3, 4, 4), {"layout": "tokens"}, r"expected \(B, N, C\)"),
        ((2, 3), {"layout": "nhwc"}, r"expected \(B, H, W, C\), got \(2, 3\)"),
        ((2, 3), {"layout": "NHWC"}, r"one of \['nchw', 'nhwc', 'tokens'\], got 'NHWC'"),
        ((2, 3, 4), {"layout": "tokens", "prefix_tokens": 3}, "N > prefix_tokens=3"),
    ],
)
def test_what_is_no_such_layout_is_an_error(shape, options, message):
    with pytest.raises(ValueError, match=message):
        to_nchw(torch.randn(shape), **options)


def test_tokens_without_a_layout_are_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"layout='tokens' is for \(B, N, C\)"):
        HintLoss().build(torch.randn(2, 17, 4), torch.randn(2, 17, 8))
