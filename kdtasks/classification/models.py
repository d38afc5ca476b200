r"""The CIFAR networks of the distillation papers: ResNet, wide ResNet, VGG, ShuffleNet V2 (in
:mod:`~kdtasks.classification.shufflenet`), TAKD's plain CNNs; and a tiny one for 8x8 digits.

Every constructor takes ``num_classes`` and ``in_channels``; every ``forward(x)`` maps ``(B,
in_channels, H, W)`` to logits ``(B, num_classes)`` and returns nothing else. Features are read by
the dotted path of a submodule. The paths are stable, each module runs once in a forward, and no
ReLU works in place, so what a module returned stays as it was:

===========  ===========================  ===================================  ================
network      features (after ReLU)        before ReLU, n = index of a block    head
===========  ===========================  ===================================  ================
ResNet       ``layer1`` … ``layer3``      ``layer3.n.add``: the residual sum   ``flatten``, ``fc``
wide ResNet  ``layer1`` … ``layer3``:     ``layer2.0.bn1``, ``layer3.0.bn1``,  ``flatten``, ``fc``
             sums, normalised later       ``bn``: what stage 1, 2, 3 hands on
VGG, digits  ``layer1`` … ``layer5`` (3)  ``layer1.bn1``, ``layer4.bn2``, …    ``flatten``, ``fc``
plain CNN    ``layer1`` … ``layer4``      ``layer1.bn1``, ``layer1.bn2``, …    ``flatten``, ``fc``
===========  ===========================  ===================================  ================

``avgpool`` comes before ``flatten`` (not in the plain CNN, whose ``fc1`` and ``relu`` follow it).
Shapes of ResNet stages for a (B, 3, 32, 32) input: (B, 16, 32, 32), (B, 32, 16, 16), (B, 64, 8, 8),
``flatten`` (B, 64).

The structure of ResNet, WRN and VGG is the one of RepDistiller (github.com/HobbitLong/RepDistiller,
``models/``), which the published CIFAR-100 tables use; its ResNet checkpoints load here with
``strict=True``. Where RepDistiller pools a fixed 8x8 window, the average here is global: the same
for 32x32 inputs, and any other size works.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch.fx
from torch import Tensor, nn

from kdtasks.classification.shufflenet import shufflenet_v2

__all__ = [
    "PlainNet",
    "ResNet",
    "WideResNet",
    "digits_cnn",
    "plain_cnn2",
    "plain_cnn4",
    "plain_cnn6",
    "plain_cnn8",
    "plain_cnn10",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet20",
    "resnet26",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet56",
    "resnet110",
    "shufflenet_v2",
    "vgg8",
    "vgg13",
    "wrn",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_28_10",
    "wrn_40_1",
    "wrn_40_2",
]


def _conv3x3(inputs: int, outputs: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=bias)


def _init_convs(model: nn.Module) -> None:
    r"""Weights :math:`\sim N(0, 2 / (k^2 \cdot C_{out}))` (He et al., 1502.01852, section 2.2,
    backward form), biases 0.

    So do RepDistiller's ``resnet.py``, ``wrn.py`` and ``vgg.py``. Batch norm starts at weight 1,
    bias 0, as torch does.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _blocks_per_stage(network: str, depth: int, rest: int) -> int:
    """n of depth = 6n + rest: three stages of n blocks with two convolutions each."""
    blocks = max(1, round((depth - rest) / 6))
    nearest = 6 * blocks + rest
    if depth != nearest:
        raise ValueError(
            f"{network} depth must be 6n + {rest} with n >= 1, got {depth}; the nearest valid "
            f"depth is {nearest}"
        )
    return blocks


def _stage(
    block: type[nn.Module], inputs: int, outputs: int, stride: int, blocks: int, **options: object
) -> nn.Sequential:
    """A chain of blocks; the first one changes width and resolution."""
    first = block(inputs, outputs, stride, **options)
    return nn.Sequential(first, *(block(outputs, outputs, 1, **options) for _ in range(blocks - 1)))


# ------------------------------------------------------------------------------------------- ResNet
class BasicBlock(nn.Module):
    """``relu2(add)`` with ``add = bn2(conv2(relu1(bn1(conv1(x))))) + shortcut(x)`` (He et al.,
    1512.03385, figure 2).

    ``add`` is a module of its own so that its output, the response before the ReLU, can be read.
    The shortcut is x itself where the shape stays, else ``downsample``: 1x1 convolution + batch
    norm (option B).
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.add = nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.add(residual + shortcut))


class ResNet(nn.Sequential):
    """CIFAR ResNet of depth 6n + 2 (He et al., 1512.03385, section 4.2), three stages of n basic
    blocks.

    Args:
        depth: 6n + 2, n >= 1; it does not count the 1x1 convolutions.
        width: channels of stage 1; stages 2 and 3 have two and four times as many.
        stem: channels of the first convolution, ``width`` unless given.

    Raises:
        ValueError: ``depth`` is not 6n + 2.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 16,
        stem: int | None = None,
    ):
        blocks, stem = _blocks_per_stage("ResNet", depth, 2), stem or width
        super().__init__(
            OrderedDict(
                conv1=_conv3x3(in_channels, stem),
                bn1=nn.BatchNorm2d(stem),
                relu=nn.ReLU(),
                layer1=_stage(BasicBlock, stem, width, 1, blocks),
                layer2=_stage(BasicBlock, width, 2 * width, 2, blocks),
                layer3=_stage(BasicBlock, 2 * width, 4 * width, 2, blocks),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(4 * width, num_classes),
            )
        )
        _init_convs(self)


def resnet8(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """ResNet-8; 83 892 parameters for 100 classes."""
    return ResNet(8, num_classes, in_channels, width)


def resnet14(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """ResNet-14; 181 108 parameters for 100 classes."""
    return ResNet(14, num_classes, in_channels, width)


def resnet20(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """ResNet-20; 278 324 parameters for 100 classes."""
    return ResNet(20, num_classes, in_channels, width)


def resnet26(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """ResNet-26; 375 540 parameters for 100 classes."""
    return ResNet(26, num_classes, in_channels, width)


def resnet32(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """ResNet-32; 472 756 parameters for 100 classes."""
    return ResNet(32, num_classes, in_channels, width)


def resnet44(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """ResNet-44; 667 188 parameters for 100 classes."""
    return ResNet(44, num_classes, in_channels, width)


def resnet56(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """ResNet-56; 861 620 parameters for 100 classes."""
    return ResNet(56, num_classes, in_channels, width)


def resnet110(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """ResNet-110; 1 736 564 parameters for 100 classes."""
    return ResNet(110, num_classes, in_channels, width)


def resnet8x4(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> ResNet:
    """ResNet-8 with widths 32 | 64, 128, 256: the stages are four times as wide, the stem twice.

    1 233 540 parameters for 100 classes.
    """
    return ResNet(8, num_classes, in_channels, width, stem=width // 2)


def resnet32x4(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> ResNet:
    """ResNet-32 with widths 32 | 64, 128, 256; 7 433 860 parameters for 100 classes."""
    return ResNet(32, num_classes, in_channels, width, stem=width // 2)


# -------------------------------------------------------------------------------------- wide ResNet
class PreActBlock(nn.Module):
    """``conv2(dropout(relu2(bn2(conv1(h))))) + shortcut`` with ``h = relu1(bn1(x))`` (Zagoruyko,
    Komodakis, 1605.07146).

    The shortcut is x where the width stays, else a 1x1 convolution of h (not of x): ``shortcut``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float = 0.0):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv3x3(outputs, outputs)
        self.shortcut = (
            None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        h = self.relu1(self.bn1(x))
        residual = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(h)))))
        return residual + (x if self.shortcut is None else self.shortcut(h))


class WideResNet(nn.Sequential):
    """WRN-depth-width: 16 channels, three stages of n pre-activation blocks with 16, 32, 64 times
    ``width``, batch norm, ReLU.

    Raises:
        ValueError: ``depth`` is not 6n + 4, n >= 1.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 10,
        in_channels: int = 3,
        dropout: float = 0.0,
    ):
        blocks = _blocks_per_stage("wide ResNet", depth, 4)
        super().__init__(
            OrderedDict(
                conv1=_conv3x3(in_channels, 16),
                layer1=_stage(PreActBlock, 16, 16 * width, 1, blocks, dropout=dropout),
                layer2=_stage(PreActBlock, 16 * width, 32 * width, 2, blocks, dropout=dropout),
                layer3=_stage(PreActBlock, 32 * width, 64 * width, 2, blocks, dropout=dropout),
                bn=nn.BatchNorm2d(64 * width),
                relu=nn.ReLU(),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(64 * width, num_classes),
            )
        )
        _init_convs(self)
        nn.init.zeros_(self.fc.bias)


def wrn(
    depth: int, width: int, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0
) -> WideResNet:
    """WRN-depth-width; the paper drops 0.3 of the activations between the two convolutions of a
    block, or none.
    """
    return WideResNet(depth, width, num_classes, in_channels, dropout)


def wrn_16_1(num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> WideResNet:
    """WRN-16-1; 180 916 parameters for 100 classes."""
    return WideResNet(16, 1, num_classes, in_channels, dropout)


def wrn_16_2(num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> WideResNet:
    """WRN-16-2; 703 284 parameters for 100 classes."""
    return WideResNet(16, 2, num_classes, in_channels, dropout)


def wrn_40_1(num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> WideResNet:
    """WRN-40-1; 569 780 parameters for 100 classes."""
    return WideResNet(40, 1, num_classes, in_channels, dropout)


def wrn_40_2(num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> WideResNet:
    """WRN-40-2; 2 255 156 parameters for 100 classes."""
    return WideResNet(40, 2, num_classes, in_channels, dropout)


def wrn_28_10(num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> WideResNet:
    """WRN-28-10; 36 536 884 parameters for 100 classes."""
    return WideResNet(28, 10, num_classes, in_channels, dropout)


# ------------------------------------------------------------------- chains: VGG, plain CNN, digits
def _conv_stage(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    """``conv1 bn1 relu1 conv2 bn2 relu2 …``: 3x3 convolutions with a bias, one for each width."""
    modules = OrderedDict()
    for i, outputs in enumerate(widths, 1):
        modules[f"conv{i}"] = _conv3x3(inputs, outputs, bias=True)
        modules[f"bn{i}"] = nn.BatchNorm2d(outputs)
        modules[f"relu{i}"] = nn.ReLU()
        inputs = outputs
    return nn.Sequential(modules)


class PlainNet(nn.Sequential):
    """Stages ``layer1, layer2, …`` in a chain, a 2x2 max pooling ``pool<i>`` after those in
    ``pooled``, then a linear head.

    Args:
        stages: widths of the convolutions of each stage, ``[[64, 64], [128]]``.
        pooled: numbers (from 1) of the stages that are followed by a pooling.
        image_size: height and width of the only inputs taken, whose features are flattened as they
            are; None: global average pooling, any size from 2**len(pooled) on.
        hidden: width of a hidden linear layer ``fc1``; 0: none.

    Raises:
        ValueError: the images are too small for the poolings, or not of ``image_size`` where that
            is given.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        pooled: Sequence[int],
        num_classes: int,
        in_channels: int,
        image_size: int | None = None,
        hidden: int = 0,
    ):
        super().__init__()
        self.smallest, self.image_size = 2 ** len(pooled), image_size
        for i, widths in enumerate(stages, 1):
            self.add_module(f"layer{i}", _conv_stage(in_channels, widths))
            if i in pooled:
                self.add_module(f"pool{i}", nn.MaxPool2d(2))
            in_channels = widths[-1]
        if image_size is None:
            features = in_channels
            self.avgpool = nn.AdaptiveAvgPool2d(1)
        else:
            _check_sides(image_size, image_size, self.smallest, image_size)
            features = in_channels * (image_size // self.smallest) ** 2
        self.flatten = nn.Flatten()
        if hidden:
            self.fc1, self.relu = nn.Linear(features, hidden), nn.ReLU()
        self.fc = nn.Linear(hidden or features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, num_classes)."""
        _check_sides(x.shape[-2], x.shape[-1], self.smallest, self.image_size)
        return super().forward(x)


@torch.fx.wrap  # a proxy's shape is not known while a graph is traced
def _check_sides(height: int, width: int, smallest: int, image_size: int | None) -> None:
    if min(height, width) < smallest:
        raise ValueError(
            f"input of {height}x{width} pixels is too small: this network halves it "
            f"{smallest.bit_length() - 1} times and needs at least {smallest}x{smallest}"
        )
    if image_size is not None and not height == width == image_size:
        raise ValueError(
            f"input of {height}x{width} pixels, but this network was built with "
            f"image_size={image_size}"
        )


def _vgg(stages: Sequence[Sequence[int]], num_classes: int, in_channels: int) -> PlainNet:
    """Poolings after stages 1, 2, 3; weights as in RepDistiller's ``vgg.py``: He's, and ``fc`` from
    N(0, 0.01²) with bias 0.
    """
    model = PlainNet(stages, (1, 2, 3), num_classes, in_channels)
    _init_convs(model)
    nn.init.normal_(model.fc.weight, std=0.01)
    nn.init.zeros_(model.fc.bias)
    return model


def vgg8(num_classes: int = 10, in_channels: int = 3) -> PlainNet:
    """RepDistiller's ``vgg8_bn`` (configuration S), one convolution a stage; 3 965 028 parameters
    for 100 classes.

    Inputs from 8x8 on. RepDistiller pools once more, before stage 5, when the input is 64 high;
    this one never does.
    """
    return _vgg([[64], [128], [256], [512], [512]], num_classes, in_channels)


def vgg13(num_classes: int = 10, in_channels: int = 3) -> PlainNet:
    """RepDistiller's ``vgg13_bn`` (configuration B), two convolutions a stage; 9 462 180 parameters
    for 100 classes.
    """
    return _vgg(
        [[64, 64], [128, 128], [256, 256], [512, 512], [512, 512]], num_classes, in_channels
    )


def _plain_cnn(
    depth: int, widen: int, num_classes: int, in_channels: int, image_size: int
) -> PlainNet:
    """TAKD's plain CNN (Mirzadeh et al., 1902.03393) as its code has it (``plain_cnn_cifar.py``);
    weights: torch's default.

    Stages of 3x3 convolutions with bias, batch norm, ReLU; each stage ends with a pooling; the
    features are flattened, so ``image_size`` fixes the width of the first linear layer. ``widen=1``
    is the CIFAR-10 form written below. ``widen=2``, the CIFAR-100 form, has twice the widths at
    depths 2 to 8 (``fc1`` stays 64), no third pooling at depth 6, and at depth 10 the same widths
    with ``fc1`` of 512.
    """
    if widen not in (1, 2):
        raise ValueError(
            f"widen must be 1 (TAKD's CIFAR-10 nets) or 2 (its CIFAR-100 nets), got {widen}"
        )
    stages, hidden = {
        2: ([[16], [16]], 0),
        4: ([[16] * 2, [32] * 2], 0),
        6: ([[16] * 2, [32] * 2, [64] * 2], 0),
        8: ([[16] * 2, [32] * 2, [64] * 2, [128] * 2], 64),
        10: ([[32] * 2, [64] * 2, [128] * 2, [256] * 4], 128 if widen == 1 else 512),
    }[depth]
    pooled = (1, 2) if (depth, widen) == (6, 2) else range(1, len(stages) + 1)
    if depth < 10:
        stages = [[widen * width for width in widths] for widths in stages]
    return PlainNet(stages, pooled, num_classes, in_channels, image_size, hidden)


def plain_cnn2(
    num_classes: int = 10, in_channels: int = 3, widen: int = 1, image_size: int = 32
) -> PlainNet:
    """TAKD's plain CNN with 2 convolutions: ``widen=1`` the CIFAR-10 form, 2 the CIFAR-100 form;
    images from 4x4 on.
    """
    return _plain_cnn(2, widen, num_classes, in_channels, image_size)


def plain_cnn4(
    num_classes: int = 10, in_channels: int = 3, widen: int = 1, image_size: int = 32
) -> PlainNet:
    """TAKD's plain CNN with 4 convolutions: ``widen=1`` the CIFAR-10 form, 2 the CIFAR-100 form;
    images from 4x4 on.
    """
    return _plain_cnn(4, widen, num_classes, in_channels, image_size)


def plain_cnn6(
    num_classes: int = 10, in_channels: int = 3, widen: int = 1, image_size: int = 32
) -> PlainNet:
    """TAKD's plain CNN with 6 convolutions: ``widen=1`` the CIFAR-10 form (from 8x8 on), 2 the
    CIFAR-100 form (4x4).
    """
    return _plain_cnn(6, widen, num_classes, in_channels, image_size)


def plain_cnn8(
    num_classes: int = 10, in_channels: int = 3, widen: int = 1, image_size: int = 32
) -> PlainNet:
    """TAKD's plain CNN with 8 convolutions: ``widen=1`` the CIFAR-10 form, 2 the CIFAR-100 form;
    images from 16x16 on.
    """
    return _plain_cnn(8, widen, num_classes, in_channels, image_size)


def plain_cnn10(
    num_classes: int = 10, in_channels: int = 3, widen: int = 1, image_size: int = 32
) -> PlainNet:
    """TAKD's plain CNN with 10 convolutions: ``widen=1`` the CIFAR-10 form, 2 the CIFAR-100 form;
    images from 16x16 on.
    """
    return _plain_cnn(10, widen, num_classes, in_channels, image_size)


def digits_cnn(num_classes: int = 10, in_channels: int = 1, width: int = 16) -> PlainNet:
    """A small net for the 8x8 digits of scikit-learn. It is ours, from no paper: three convolutions
    with batch norm.

    ``layer1`` (B, width, H, W), ``layer2`` (B, 2·width, H, W), a pooling, ``layer3`` (B, 2·width,
    H/2, W/2); from 2x2 on.
    """
    model = PlainNet([[width], [2 * width], [2 * width]], (2,), num_classes, in_channels)
    _init_convs(model)
    return model
