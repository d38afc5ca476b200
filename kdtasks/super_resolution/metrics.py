r"""Bicubic resizing and image quality exactly as super-resolution papers use them: both are
MATLAB's.

**Resizing.** Output pixel x of a line (counted from 0) lies at :math:`u = (x + 0.5) / s - 0.5` of
the input, and is the mean of the pixels k around it with weights

.. math:: w_k \propto \kappa(\min(s, 1)\,(u - k)), \qquad \kappa(t) = \begin{cases}
    1.5|t|^3 - 2.5|t|^2 + 1 & |t| \le 1 \\
    -0.5|t|^3 + 2.5|t|^2 - 4|t| + 2 & 1 < |t| \le 2 \\
    0 & \text{else} \end{cases}

that add up to 1; beyond its edges the image is mirrored, the edge pixel repeated.
``torch.nn.functional.interpolate`` has another kernel (a = -0.75, sharper where it enlarges) and
does not widen it where it shrinks. With ``antialias=True`` the kernel is this one, but the borders
are not, nor the grid where the scale does not divide the size.

**Quality.** PSNR and SSIM are those of the luma (BT.601, 16 to 235) of uint8 images, without a
border as wide as the scale. For bicubic at x2 on B100 that gives 29.56 dB; RGB and full-range grey
give 28.24, luma rounded to 8 bits 29.55.
"""

import functools
import math

import torch
from torch import Tensor

from kdtasks.core.precision import raised

# of SSIM (Wang et al., IEEE TIP 2004), like the two constants
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def imresize(image: Tensor, scale: float) -> Tensor:
    """Resize as MATLAB's ``imresize(image, scale)`` does: bicubic, antialiased where it shrinks.

    Args:
        image: (B,C,H,W), floating point.
        scale: > 1 enlarges, < 1 shrinks; taken as it is, also where it does not divide the size.

    Returns:
        (B, C, ceil(H·scale), ceil(W·scale)); differentiable, not clipped, so values may lie a
        little outside of the range of the input. Half precision is raised to float32, float64
        stays.

    Raises:
        TypeError: an integer image, as MATLAB would round to integers.
        ValueError: another shape, an empty image, or a scale that is not positive and finite.
    """
    if not image.is_floating_point():
        raise TypeError(
            f"imresize needs floating point, got {image.dtype}. For uint8: imresize(image / 255, "
            "scale), and back with .mul(255).round().clamp(0, 255).byte()"
        )
    if image.ndim != 4 or 0 in image.shape[1:]:
        raise ValueError(
            f"image must be (B,C,H,W) with at least one pixel, got {tuple(image.shape)}"
        )
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    (image,) = raised(image)
    # no tensors of a trace in the cache
    taps = _taps.__wrapped__ if torch.compiler.is_compiling() else _taps
    # rows, then columns as rows: whole lines are copied
    for _ in range(2):
        # (taps, out)
        weight, index = taps(image.shape[2], float(scale), image.dtype, image.device)
        rows = sum(w * image.index_select(2, i) for w, i in zip(weight[..., None], index))
        image = rows.transpose(2, 3).contiguous()
    return image


@functools.lru_cache(maxsize=64)
def _taps(
    size: int, scale: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Weights of the pixels of a line that make each output pixel, and which pixels these are; both
    (taps, out).
    """
    # a cached tensor must also serve in training
    with torch.inference_mode(False):
        shrink = min(scale, 1.0)
        out = torch.arange(math.ceil(size * scale), dtype=torch.float64, device="cpu")
        centre = (out + 0.5) / scale - 0.5
        # the kernel is 0 at both of its ends
        first = (centre - 2 / shrink).floor().long() + 1
        # (taps, out)
        index = first + torch.arange(math.ceil(4 / shrink), device="cpu")[:, None]
        weight = _cubic(shrink * (centre - index))
        # a tensor: ONNX exports no size here
        index = index % (2 * size * torch.ones_like(index[:1, :1]))
        # mirrored, the edge repeated
        index = torch.minimum(index, 2 * size - 1 - index)
        return (weight / weight.sum(0)).to(device, dtype), index.to(device)


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, 0))


def luma(rgb: Tensor) -> Tensor:
    """Y of BT.601 in its range of 16 to 235 levels, MATLAB's ``rgb2ycbcr``: (65.481 R + 128.553 G +
    24.966 B + 16) / 255.

    Args:
        rgb: (B,3,H,W) in [0,1].

    Returns:
        (B,1,H,W) in [16/255, 235/255], not rounded.

    Raises:
        ValueError: not three channels.
    """
    if rgb.ndim != 4 or rgb.shape[1] != 3:
        raise ValueError(f"luma needs RGB (B,3,H,W), got {tuple(rgb.shape)}")
    red, green, blue = raised(rgb)[0].split(1, dim=1)
    return (65.481 * red + 128.553 * green + 24.966 * blue + 16) / 255


def psnr_y(output: Tensor, target: Tensor, crop: int) -> Tensor:
    """Peak signal-to-noise ratio of the luma, 10 log10(255² / mean squared error), of each image by
    itself.

    Args:
        output: RGB (B,3,H,W) in [0,1]; clipped and rounded to uint8 levels first, as a saved image
            would be.
        target: the same shape, in [0,1]; rounded too. With one channel, (B,1,H,W), both are taken
            as luma already, and are rounded likewise, as VDSR's authors do; that alone costs 0.05
            dB at 37 dB.
        crop: pixels left out along each border; papers leave out as many as the scale.

    Returns:
        (B,) float64 in dB; inf where both are equal.

    Raises:
        TypeError: integers.
        ValueError: shapes that differ or are of another kind, a target outside of [0,1], or nothing
            left after the crop.
    """
    return _psnr(*_luma_levels(output, target, crop, 1))


def ssim_y(output: Tensor, target: Tensor, crop: int) -> Tensor:
    """Structural similarity of the luma (Wang et al., IEEE TIP 2004), of each image by itself.

    The mean over all places where a whole 11x11 window (Gaussian, sigma 1.5) fits; K1 = 0.01, K2 =
    0.03, range 255.

    Args:
        output, target, crop: as for :func:`psnr_y`.

    Returns:
        (B,) float64, at most 1.

    Raises:
        TypeError, ValueError: as :func:`psnr_y`; less than 11x11 pixels left after the crop.
    """
    return _ssim(*_luma_levels(output, target, crop, WINDOW))


def psnr_rgb(output: Tensor, target: Tensor, crop: int) -> Tensor:
    """As :func:`psnr_y`, of the mean squared error over all channels."""
    return _psnr(*_levels(output, target, crop, 1))


def ssim_rgb(output: Tensor, target: Tensor, crop: int) -> Tensor:
    """As :func:`ssim_y`, the mean of the channels' values."""
    output, target = _levels(output, target, crop, WINDOW)
    # one by one: faster than all at once
    channels = zip(output.split(1, dim=1), target.split(1, dim=1))
    return torch.stack([_ssim(*both) for both in channels]).mean(0)


@torch.no_grad()
def _levels(output: Tensor, target: Tensor, crop: int, least: int) -> list[Tensor]:
    """Both as whole numbers 0..255 in float64, without their borders."""
    shape = tuple(output.shape)
    if output.shape != target.shape or output.ndim != 4 or output.shape[1] not in (1, 3):
        raise ValueError(
            f"expected two equal shapes (B,3,H,W) or (B,1,H,W), got {shape} and "
            f"{tuple(target.shape)}"
        )
    if not (output.is_floating_point() and target.is_floating_point()):
        raise TypeError(
            f"expected floating point in [0,1], got {output.dtype} and {target.dtype}; for uint8: "
            "image / 255"
        )
    if crop < 0 or min(shape[2:]) - 2 * crop < least:
        raise ValueError(
            f"crop={crop} of images {shape}: expected a crop of at least 0 and "
            f"{least}x{least} pixels left"
        )
    if target.numel():
        low, high = (value.item() for value in target.aminmax())
        # NaN is outside too
        if not -1e-3 <= low <= high <= 1 + 1e-3:
            raise ValueError(
                f"target must be in [0,1], got {low:g} to {high:g}; divide 0..255 by 255"
            )
    rows, columns = (slice(crop, size - crop) for size in shape[2:])
    return [x[..., rows, columns].double().mul(255).round().clamp(0, 255) for x in (output, target)]


def _luma_levels(output: Tensor, target: Tensor, crop: int, least: int) -> list[Tensor]:
    levels = _levels(output, target, crop, least)
    return levels if levels[0].shape[1] == 1 else [luma(x / 255) * 255 for x in levels]


def _psnr(output: Tensor, target: Tensor) -> Tensor:
    return 10 * torch.log10(255**2 / (output - target).square().mean((1, 2, 3)))


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    weight = [math.exp(-((at - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for at in range(WINDOW)]
    weight = [w / sum(weight) for w in weight]
    mean_x, mean_y, xx, yy, xy = (_windowed(z, weight) for z in (x, y, x * x, y * y, x * y))
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    var_x, var_y, cov = xx - mean_x * mean_x, yy - mean_y * mean_y, xy - mean_x * mean_y
    product = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    scale = (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
    return (product / scale).mean((1, 2, 3))


def _windowed(x: Tensor, weight: list[float]) -> Tensor:
    """Weighted mean over each window of (B,C,H,W) that lies wholly inside."""
    for dim in (2, 3):
        size = x.shape[dim] - len(weight) + 1
        total = x.narrow(dim, 0, size) * weight[0]
        for i, w in enumerate(weight[1:], 1):
            total.add_(x.narrow(dim, i, size), alpha=w)
        x = total
    return x
