"""Crops of any size, brought back to the size of the image: a batch in one go."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdtasks.core.views import random_numbers

# of width to height, as torchvision's RandomResizedCrop has it
RATIO = (3 / 4, 4 / 3)


def resized_crops(images: Tensor, number: Tensor, scale: tuple[float, float], flip: bool) -> Tensor:
    """A window of each image, enlarged to its size (bilinear), as the Inception crop does.

    The window's area is a share of the image's, uniform in ``scale``; its proportions, relative to
    the image's, are log-uniform in 3/4 to 4/3, but no side is longer than the image's; its place is
    uniform; with ``flip`` half of them are mirrored left to right.

    Args:
        images: (b, C, H, W) of any dtype.
        number: int64 (b,), what all of that is drawn from.
        scale: (smallest, largest) share, 0 < smallest <= largest <= 1.
        flip: whether to mirror.

    Returns:
        float32 (b, C, H, W), within the values of the image.
    """
    draws = random_numbers(number, 0, 5).to(images.device).double() * 2.0**-63
    area = scale[0] + (scale[1] - scale[0]) * draws[:, 0]
    low, high = map(math.log, RATIO)
    ratio = (low + (high - low) * draws[:, 1]).exp()
    wide, tall = ((area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1))
    across, down = ((2 * draws[:, 2] - 1) * (1 - wide), (2 * draws[:, 3] - 1) * (1 - tall))
    sign = torch.where((draws[:, 4] < 0.5) & flip, -1.0, 1.0)
    zero = torch.zeros_like(wide)
    theta = torch.stack([wide * sign, zero, across, zero, tall, down], 1).view(-1, 2, 3).float()
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
