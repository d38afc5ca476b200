"""Networks for super-resolution: the classic small ones, EDSR and SRResNet, and any that spandrel
can read.

All take and give intensities in [0, 1], not clamped, of any height and width: (B, C, h, w) -> (B,
C, scale * h, scale * w), but :class:`VDSR`, whose input is enlarged already. No activation works in
place, so what a module returned stays as it was.
"""

import os
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.fx
from torch import Tensor, nn

from kdtasks.super_resolution.metrics import imresize

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

# one step of a graph: it decides on the size of an image
torch.fx.wrap("imresize")

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # RGB, in EDSR's release


def _conv(inputs: int, outputs: int, kernel_size: int = 3, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=bias)


def _init_he(model: nn.Module, mode: str = "fan_in") -> None:
    """Weights of convolutions normal with variance 2 / fan (He et al., 1502.01852), biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _check_scale(scale: int) -> None:
    if scale not in (2, 3, 4):
        raise ValueError(f"scale must be 2, 3 or 4, got {scale!r}")


class VDSR(nn.Module):
    """A chain of 3x3 convolutions that adds detail to an enlarged luma (Kim et al., 1511.04587),
    without biases as AIL's.

    AIL's teacher has width 64 (664 704 parameters), its student width 13 (27 612). Start: He, by
    the outputs, as there.

    Args:
        width: channels of all layers but the ends.
        depth: layers, at least 2; 20 in the paper and in AIL's release.
    """

    def __init__(self, width: int = 64, depth: int = 20):
        super().__init__()
        if depth < 2:
            raise ValueError(
                f"depth counts the first and the last layer too: expected at least 2, got {depth}"
            )
        layers = [_conv(1, width, bias=False), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [_conv(width, width, bias=False), nn.ReLU()]
        self.body = nn.Sequential(*layers, _conv(width, 1, bias=False))
        _init_he(self, "fan_out")

    def forward(self, enlarged: Tensor) -> Tensor:
        """``enlarged``: (B, 1, H, W), the small luma after ``imresize(luma, scale)``; returns the
        same shape.
        """
        return enlarged + self.body(enlarged)


class FSRCNN(nn.Sequential):
    """Works on the small image, enlarges in a last transposed convolution (Dong et al.,
    1608.00367): FSRCNN(d, s, m) there.

    With the defaults 12 464 weights as in the paper, and 345 biases and slopes of the PReLUs.

    Args:
        scale: 2, 3 or 4.
        channels: 1 for luma as in the paper, 3 for RGB.
        width: d, channels of the first 5x5 convolution and of the 9x9 transposed one.
        shrink: s, channels between 1x1 convolutions.
        depth: m, 3x3 convolutions there.
    """

    def __init__(
        self, scale: int = 2, channels: int = 1, width: int = 56, shrink: int = 12, depth: int = 4
    ):
        _check_scale(scale)
        mapping: list[nn.Module] = []
        for _ in range(depth):
            mapping += [_conv(shrink, shrink), nn.PReLU(shrink)]
        super().__init__(
            OrderedDict(
                extract=nn.Sequential(_conv(channels, width, 5), nn.PReLU(width)),
                shrink=nn.Sequential(_conv(width, shrink, 1), nn.PReLU(shrink)),
                map=nn.Sequential(*mapping),
                expand=nn.Sequential(_conv(shrink, width, 1), nn.PReLU(width)),
                enlarge=nn.ConvTranspose2d(
                    width, channels, 9, scale, padding=4, output_padding=scale - 1
                ),
            )
        )
        self.scale = scale
        _init_he(self)
        nn.init.normal_(self.enlarge.weight, std=0.001)  # as in the paper
        nn.init.zeros_(self.enlarge.bias)


class ESPCN(nn.Module):
    """Works on the small image, enlarges by rearranging channels (Shi et al., 1609.05158), with a
    few later habits.

    The paper's layers: 5x5 to 64 channels, 3x3 to 32, 3x3 to scale² sub-pixels. Different here:
    PReLU for tanh, input centred to [-1, 1], He's start, and with ``residual`` the network adds to
    the bicubic image, as the paper's does not, and starts as next to nothing.

    Args:
        scale: 2, 3 or 4.
        channels: 1 for luma as in the paper, 3 for RGB.
        widths: channels of the first layer, a 5x5 convolution, and of further 3x3 ones.
        residual: add MATLAB's bicubic enlargement of the input.
    """

    def __init__(
        self,
        scale: int = 2,
        channels: int = 1,
        widths: Sequence[int] = (64, 32),
        residual: bool = True,
    ):
        super().__init__()
        _check_scale(scale)
        self.scale, self.residual = scale, residual
        layers, inputs = [], channels
        for width in widths:
            layers += [_conv(inputs, width, 3 if layers else 5), nn.PReLU()]
            inputs = width
        last = _conv(inputs, channels * scale**2)
        self.body = nn.Sequential(*layers, last, nn.PixelShuffle(scale))
        _init_he(self)
        if residual:
            nn.init.normal_(last.weight, std=0.001)  # starts as the bicubic image

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, scale * h, scale * w)."""
        detail = self.body(2 * image - 1)
        return imresize(image, self.scale) + detail if self.residual else detail


class ResidualBlock(nn.Module):
    """``x + residual_scale * conv2(activation(conv1(x)))``, batch norm after each convolution if
    asked.
    """

    def __init__(
        self,
        width: int,
        activation: nn.Module,
        batch_norm: bool = False,
        residual_scale: float = 1.0,
    ):
        super().__init__()
        norm = nn.BatchNorm2d if batch_norm else lambda width: nn.Identity()
        self.conv1, self.norm1, self.activation = _conv(width, width), norm(width), activation
        self.conv2, self.norm2 = _conv(width, width), norm(width)
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> the same shape."""
        residual = self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x)))))
        return x + self.residual_scale * residual


def _enlarge(width: int, scale: int, activation: type[nn.Module] = nn.Identity) -> nn.Sequential:
    """By 3 at once, by 4 in two steps of 2."""
    layers = []
    for factor in {2: (2,), 3: (3,), 4: (2, 2)}[scale]:
        layers += [_conv(width, width * factor**2), nn.PixelShuffle(factor), activation()]
    return nn.Sequential(*layers)


class EDSR(nn.Module):
    """Residual blocks without batch norm (Lim et al., 1707.02921). The defaults are EDSR-baseline:
    1 369 859 parameters at x2.

    The large one is ``width=256, blocks=32, residual_scale=0.1``. The release computes with
    intensities in 0..255, here they stay in [0, 1]. DIV2K's mean colour is taken off the input and
    added to the output (in grey unless there are 3 channels).

    Args:
        scale: 2, 3 or 4.
        channels: 3 for RGB as in the paper, 1 for luma.
        width: channels of all layers but the ends.
        blocks: residual blocks.
        residual_scale: factor of what each block adds.
    """

    def __init__(
        self,
        scale: int = 2,
        channels: int = 3,
        width: int = 64,
        blocks: int = 16,
        residual_scale: float = 1.0,
    ):
        super().__init__()
        _check_scale(scale)
        self.scale = scale
        self.head = _conv(channels, width)
        residual_blocks = [
            ResidualBlock(width, nn.ReLU(), residual_scale=residual_scale) for _ in range(blocks)
        ]
        self.body = nn.Sequential(*residual_blocks, _conv(width, width))
        self.enlarge = _enlarge(width, scale)
        self.tail = _conv(width, channels)
        mean = DIV2K_MEAN if channels == 3 else [sum(DIV2K_MEAN) / 3] * channels
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, scale * h, scale * w)."""
        x = self.head(image - self.mean)
        return self.tail(self.enlarge(x + self.body(x))) + self.mean


class SRResNet(nn.Module):
    """Residual blocks with PReLU and 9x9 ends (Ledig et al., 1609.04802), here without batch norm
    unless asked.

    The paper has batch norm, a scale of 4, and targets in [-1, 1].

    Args:
        scale: 2, 3 or 4.
        channels: 3 for RGB, 1 for luma.
        width: channels of all layers but the ends.
        blocks: residual blocks.
        batch_norm: after each convolution of the blocks, and after the one behind them.
    """

    def __init__(
        self,
        scale: int = 2,
        channels: int = 3,
        width: int = 64,
        blocks: int = 16,
        batch_norm: bool = False,
    ):
        super().__init__()
        _check_scale(scale)
        self.scale = scale
        self.head = nn.Sequential(_conv(channels, width, 9), nn.PReLU())
        residual_blocks = [ResidualBlock(width, nn.PReLU(), batch_norm) for _ in range(blocks)]
        last = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.body = nn.Sequential(*residual_blocks, _conv(width, width), last)
        self.enlarge = _enlarge(width, scale, nn.PReLU)
        self.tail = _conv(width, channels, 9)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, scale * h, scale * w)."""
        x = self.head(image)
        return self.tail(self.enlarge(x + self.body(x)))


def spandrel_model(path: str | os.PathLike, scale: int | None = None) -> nn.Module:
    """A pretrained network of any architecture that spandrel reads (ESRGAN, SwinIR, HAT, SPAN,
    Compact…), for a teacher.

    It pads images whose size its architecture cannot take, and clamps its output to [0, 1]. Look up
    what the weights were trained for: a network made for compressed or real-world photos is no
    teacher for bicubic ones.

    Args:
        path: file of weights, ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors``; no code in it is
            run.
        scale: what it must enlarge by; None: any.

    Returns:
        A module (B, C, h, w) -> (B, C, scale * h, scale * w), nearly always with C = 3, and with
        the attributes ``scale``, ``network`` (where submodules are found:
        ``'teacher.network.body.3'``) and ``architecture``, its name.

    Raises:
        ImportError: spandrel is not installed.
        FileNotFoundError: no such file.
        ValueError: the file holds code, spandrel does not know the network, it needs more than an
            image, or has another scale.
    """
    try:
        import spandrel
    except ImportError as error:
        raise ImportError(
            "foreign networks are read by the package spandrel: pip install 'kdtasks[spandrel]'"
        ) from error
    try:
        descriptor = spandrel.ModelLoader(device="cpu").load_from_file(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{str(path)!r} holds more than weights, and unpickling it could run code: {error}"
        ) from None
    except spandrel.UnsupportedModelError as error:
        raise ValueError(
            f"spandrel {spandrel.__version__} knows no network with the weights of {str(path)!r}"
        ) from error
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise ValueError(
            f"{str(path)!r} is a {descriptor.architecture.name}, which needs more than an image"
        )
    if scale is not None and descriptor.scale != scale:
        raise ValueError(
            f"{str(path)!r}, a {descriptor.architecture.name}, enlarges by "
            f"{descriptor.scale}, not by {scale}"
        )
    return _SpandrelModel(descriptor)


class _SpandrelModel(nn.Module):
    """Spandrel's network as a module, with gradient."""

    def __init__(self, descriptor: "ImageModelDescriptor"):
        super().__init__()
        self.network, self.descriptor = descriptor.model, descriptor
        self.scale, self.architecture = descriptor.scale, descriptor.architecture.name
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, scale * h, scale * w)."""
        # without inference_mode, whose tensors autograd refuses to save
        call = type(self.descriptor).__call__.__wrapped__
        return call(self.descriptor, image)
