"""Crops that are enlarged again: against an interpolation pixel by pixel, and their laws."""

import math

import pytest
import torch

from kdtasks.core.views import random_numbers
from kdtasks.images.arrays import ImageArrays
from kdtasks.images.crops import resized_crops


def slow(image, number, scale, flip):
    """One (H, W) image, one pixel after the other."""
    area, ratio, x, y, mirror = (
        n * 2.0**-63 for n in random_numbers(number[None], 0, 5)[0].tolist()
    )
    area = scale[0] + (scale[1] - scale[0]) * area
    ratio = math.exp(math.log(3 / 4) + 2 * math.log(4 / 3) * ratio)
    h, w = image.shape
    wide, tall = min(1, math.sqrt(area * ratio)) * w, min(1, math.sqrt(area / ratio)) * h
    left, top = x * (w - wide), y * (h - tall)
    found = torch.empty(h, w)
    for i in range(h):
        for j in range(w):
            # the centre of the pixel, in pixels of the image
            across, down = left + (j + 0.5) / w * wide - 0.5, top + (i + 0.5) / h * tall - 0.5
            across, down = min(max(across, 0), w - 1), min(max(down, 0), h - 1)
            a, b = int(across), int(down)
            total = 0.0
            for p, u in ((b, 1 - (down - b)), (min(b + 1, h - 1), down - b)):
                for q, v in ((a, 1 - (across - a)), (min(a + 1, w - 1), across - a)):
                    total += u * v * float(image[p, q])
            found[i, w - 1 - j if flip and mirror < 0.5 else j] = total
    return found


@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_is_the_loop(flip):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 2, 5, 7), generator=generator, dtype=torch.uint8)
    number = torch.randint(0, 2**62, (6,), generator=generator)
    found = resized_crops(images, number, (0.2, 0.9), flip)
    for k in range(6):
        torch.testing.assert_close(
            found[k, 1], slow(images[k, 1], number[k], (0.2, 0.9), flip), rtol=1e-4, atol=2e-3
        )


def test_views_are_a_samples_own_and_whole_images_stay():
    images = torch.arange(3 * 3 * 8 * 8, dtype=torch.uint8).view(3, 3, 8, 8)
    data = ImageArrays(images, augment={"scale": (0.3, 1), "flip": True})
    index, view = torch.tensor([2, 0, 1]), torch.tensor([4, 0, 4])
    batch = data.batch(index, view, 7)["input"]
    alone = data.batch(index[1:2], view[1:2], 7)["input"]
    torch.testing.assert_close(batch[1:2], alone, rtol=0, atol=0)
    assert not torch.equal(batch[1:2], data.batch(index[1:2], view[:1], 7)["input"])
    assert batch.min() >= 0 and batch.max() <= 1


@pytest.mark.parametrize("scale", [0.5, (0, 1), (0.5, 0.2), (0.5, 1.5)])
def test_a_scale_that_cannot_be_is_said(scale):
    with pytest.raises((ValueError), match="scale must be"):
        ImageArrays(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), augment={"scale": scale})
    with pytest.raises(ValueError, match="in the place of crop"):
        ImageArrays(
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8), augment={"scale": (0.5, 1), "crop": 2}
        )
