"""ShuffleNet V2 (Ma et al., 1807.11164) for small images, as the CIFAR-100 tables of distillation
have it.

The structure is that of RepDistiller (``models/ShuffleNetv2.py``, size 1): a 1x1 stem and no first
pooling, so that a 32x32 image is 16x16, 8x8 and 4x4 behind the stages, and units 1 + 3, 1 + 7 and
1 + 3 of 116, 232 and 464 channels. The average is global, so that other sizes work too.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

WIDTHS, UNITS, LAST = (116, 232, 464), (3, 7, 3), 1024


def _convolved(inputs: int, outputs: int, stride: int = 1, relu: bool = True) -> list[nn.Module]:
    """1x1 convolution, batch norm, ReLU."""
    return [
        nn.Conv2d(inputs, outputs, 1, stride, bias=False),
        nn.BatchNorm2d(outputs),
        *([nn.ReLU()] if relu else []),
    ]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    """3x3 convolution of each channel by itself, batch norm."""
    return [
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
    ]


def _shuffled(left: Tensor, right: Tensor) -> Tensor:
    """The channels of both, in turns: (B, C, H, W) twice -> (B, 2C, H, W)."""
    return torch.stack([left, right], 2).flatten(1, 2)


class Unit(nn.Module):
    """Half of the channels passes, the other half is convolved; then they take turns."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            *_convolved(half, half), *_depthwise(half, 1), *_convolved(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same."""
        left, right = x.chunk(2, 1)
        return _shuffled(left, self.branch(right))


class DownUnit(nn.Module):
    """All channels go both ways, at half the resolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        half = outputs // 2
        self.left = nn.Sequential(*_depthwise(inputs, 2), *_convolved(inputs, half))
        self.right = nn.Sequential(
            *_convolved(inputs, half), *_depthwise(half, 2), *_convolved(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / 2, W / 2)."""
        return _shuffled(self.left(x), self.right(x))


def shufflenet_v2(num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """RepDistiller's ``ShuffleV2``; 1 355 528 parameters for 100 classes.

    Features after ReLU: ``layer1`` … ``layer3``, ``relu2`` (1024 channels), ``flatten``. Weights as
    torch's layers begin, which is how RepDistiller leaves them.
    """
    stages, inputs = {}, 24
    for number, (width, units) in enumerate(zip(WIDTHS, UNITS), 1):
        stages[f"layer{number}"] = nn.Sequential(
            DownUnit(inputs, width), *(Unit(width) for _ in range(units))
        )
        inputs = width
    conv1, bn1, relu = _convolved(in_channels, 24)
    conv2, bn2, relu2 = _convolved(inputs, LAST)
    return nn.Sequential(
        OrderedDict(
            conv1=conv1,
            bn1=bn1,
            relu=relu,
            **stages,
            conv2=conv2,
            bn2=bn2,
            relu2=relu2,
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(LAST, num_classes),
        )
    )
