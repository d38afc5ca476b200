"""Detectors on any backbone: what they compute, and what they refuse."""

from functools import partial

import pytest
import torch
from torch import nn

from kdtasks.detection import models


def test_small_resnet_has_maps_at_strides_4_to_32_of_growing_width():
    net = models.small_resnet(6, blocks=2)
    maps = net(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps.values()] == [
        (1, 6, 16, 24),
        (1, 12, 8, 12),
        (1, 24, 4, 6),
        (1, 48, 2, 3),
    ]
    assert net.channels == [6, 12, 24, 48]


@pytest.mark.parametrize("backbone", ["small", "resnet18", "timm:mobilenetv3_small_050"])
def test_any_backbone_under_a_pyramid(backbone):
    fpn = models.FPN(backbone, channels=16, first=1, extra="p6p7")
    maps = fpn.eval()(torch.zeros(1, 3, 128, 128))
    assert list(maps) == ["1", "2", "3", "p6", "p7"] and fpn.levels == 5
    assert [m.shape[-1] for m in maps.values()] == [16, 8, 4, 2, 1] and all(
        m.shape[1] == 16 for m in maps.values()
    )


def test_a_backbone_of_ones_own_needs_its_channels():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.channels = [4, 4]
            self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 4, 3, 2, 1)])

        def forward(self, x):
            x = self.convs[0](x)
            return {"0": x, "1": self.convs[1](x)}

    assert list(models.FPN(Own(), channels=8, first=0)(torch.zeros(1, 3, 32, 32))) == ["0", "1"]
    with pytest.raises(ValueError, match="'channels'"):
        models.FPN(nn.Conv2d(3, 4, 1))


def test_a_detector_normalises_as_the_weights_of_its_backbone_expect(tmp_path):
    from kdtasks.engine.models import facts_of, named_model

    torch.save(named_model("timm:test_vit", num_classes=3).state_dict(), tmp_path / "other.pth")
    net = named_model("timm:mobilenetv3_small_050", num_classes=3)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    file = str(tmp_path / "w.pth")
    detector = models.retinanet(3, "timm:mobilenetv3_small_050", 16, weights=file)
    expected = facts_of(net)
    assert detector.transform.image_mean == list(expected.mean)
    assert detector.transform.image_std == list(expected.std)
    assert torch.equal(detector.backbone.body.net.conv_stem.weight, net.conv_stem.weight)
    # a teacher's wrapper must not do it again
    assert facts_of(detector).normalizes and facts_of(detector).weights == file
    own = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    detector = models.faster_rcnn(3, "timm:mobilenetv3_small_050", 16, weights=file, **own)
    assert detector.transform.image_mean == [0.1] * 3
    with pytest.raises(ValueError, match="is not a checkpoint of this"):
        models.FPN("timm:mobilenetv3_small_050", weights=str(tmp_path / "other.pth"))


def test_a_backbone_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs kdtasks[hf]")
    config = transformers.ResNetConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 24], embedding_size=8, layer_type="basic"
    )
    transformers.ResNetModel(config).save_pretrained(tmp_path)
    fpn = models.FPN(f"hf:{tmp_path}", channels=16, first=1, weights=True).eval()
    assert fpn.body.channels == [8, 8, 16, 24]
    maps = fpn(torch.zeros(1, 3, 128, 128))
    assert [m.shape[-1] for m in maps.values()] == [16, 8, 4]


def test_what_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="resnet18"):
        models.FPN("resnet_18")
    with pytest.raises(ValueError, match="timm has no 'resnet18x'; did you mean 'resnet18'"):
        models.FPN("timm/resnet18x")
    with pytest.raises(
        ValueError, match="resnet18 has no weights='IMAGENET1K_V9'; did you mean 'IMAGENET1K_V1'"
    ):
        models.FPN("resnet18", weights="IMAGENET1K_V9")
    with pytest.raises(ValueError, match="'p6p7'"):
        models.FPN("small", extra="p6")
    with pytest.raises(ValueError, match=r"3 entries.*5 levels.*\[8, 16, 32, 64, 128\]"):
        models.retinanet(3, "small", 16, anchor_sizes=[8, 16, 32])
    # torchvision would swallow it
    with pytest.raises(ValueError, match="min_size"):
        models.retinanet(3, "small", 16, min_siz=64)
    with pytest.raises(ValueError, match="score_thresh"):
        models.ssdlite(3, score_tresh=0.1)
    with pytest.raises(ValueError, match="rpn_batch_size_per_image"):
        models.faster_rcnn(3, "small", 16, rpn_batch_size=64)


def test_anchors_are_the_papers_where_nothing_is_said():
    net = models.retinanet(3, "small", 16)
    sizes = [
        [(box[2] - box[0]).item() * (box[3] - box[1]).item() for box in cell]
        for cell in net.anchor_generator.cell_anchors
    ]
    assert [round(min(level) ** 0.5) for level in sizes] == [32, 64, 128, 256, 512] and len(
        sizes[0]
    ) == 9
    net = models.faster_rcnn(3, "small", 16)
    assert [s[0] for s in net.rpn.anchor_generator.sizes] == [32, 64, 128, 256, 512]


def test_the_head_starts_at_the_prior_of_the_focal_loss_with_group_norm_too():
    torch.manual_seed(0)
    net = models.retinanet(4, "small", 16, extra=None, groups=4, min_size=64, max_size=64)
    norms = [m for m in net.head.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 8 and not any(isinstance(m, nn.BatchNorm2d) for m in net.head.modules())
    logits = net.eval().head(list(net.backbone(torch.rand(1, 3, 64, 64)).values()))["cls_logits"]
    assert 0.005 < logits.sigmoid().mean() < 0.02


def test_feature_maps_stay_float32_under_autocast_so_anchors_are_exact():
    net = models.retinanet(
        3, "small", 16, extra=None, anchor_sizes=[16, 32, 64], min_size=64, max_size=640
    ).eval()
    seen = []
    forward = net.anchor_generator.forward
    net.anchor_generator.forward = lambda *args: seen.append(forward(*args)) or seen[-1]
    with torch.no_grad():
        net([torch.rand(3, 64, 600)])
        with torch.autocast("cpu", torch.bfloat16):
            net([torch.rand(3, 64, 600)])
    assert torch.equal(seen[0][0], seen[1][0])


def test_weights_load_into_a_second_model_and_give_the_same_boxes():
    make = partial(
        models.mask_rcnn,
        3,
        "small",
        16,
        first=1,
        extra=None,
        anchor_sizes=[16, 32, 64],
        representation=16,
        min_size=64,
        max_size=64,
        box_score_thresh=0.0,
    )
    torch.manual_seed(0)
    one, other = make().eval(), make().eval()
    other.load_state_dict(one.state_dict())
    image = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        a, b = one(image)[0], other(image)[0]
    assert (
        a["masks"].shape[1:] == (1, 64, 64)
        and all(torch.equal(a[k], b[k]) for k in a)
        and len(a["boxes"])
    )


def test_fcos_and_ssd_are_torchvisions():
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.ssd import SSD

    assert isinstance(models.fcos(3, "small", 32, min_size=64), FCOS)
    assert isinstance(models.ssdlite(3), SSD)
