"""Super-resolution: what the engine needs to know of the task."""

import warnings

import torch
from torch import Tensor, nn

from kdtasks.super_resolution.metrics import imresize, psnr_rgb, psnr_y, ssim_rgb, ssim_y

PRIMARY = "psnr_y"
HIGHER_IS_BETTER = True


def evaluate(model: nn.Module, loader) -> dict[str, float]:
    """``psnr_y`` (dB) and ``ssim_y`` (at most 1), each the mean over the images; of RGB also ``psnr_rgb`` and ``ssim_rgb``.

    As papers give them: uint8-rounded, without a border as wide as the scale; see :mod:`kdtasks.super_resolution.metrics`. A
    batch is of images of one size, and has their ``scale``.

    Warns:
        RuntimeWarning: the model gives the bicubic picture, as a dead network with a residual does.
    """
    found: dict[str, list[Tensor]] = {}
    for number, batch in enumerate(loader):
        input, target, scale = batch["input"], batch["target"], scale_of(batch)
        output = model(input)
        measures = {"psnr_y": psnr_y, "ssim_y": ssim_y}
        if target.shape[1] == 3:
            measures |= {"psnr_rgb": psnr_rgb, "ssim_rgb": ssim_rgb}
        for name, measure in measures.items():
            found.setdefault(name, []).append(measure(output, target, crop=scale))
        if number == 0 and torch.allclose(output.float(), enlarged(input, target), atol=1e-5):
            warnings.warn("the network gives the bicubic picture: it is dead, or has not been trained", RuntimeWarning,
                          stacklevel=2)
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}


def scale_of(batch: dict) -> int:
    """By what the batch's images are to be enlarged."""
    return int(batch["scale"].flatten()[0])


def enlarged(input: Tensor, target: Tensor) -> Tensor:
    """The input at the target's size, by bicubic interpolation where it is not so already."""
    return input.float() if input.shape == target.shape else imresize(input.float(), target.shape[-1] // input.shape[-1])


def example(config: dict, batch_size: int) -> dict[str, Tensor]:
    """Random patches of the size that the data gives, without reading it."""
    train = config["data"]["train"]
    generator = torch.Generator().manual_seed(0)
    scale, patch = train.get("scale", 2), train.get("patch", 32)
    channels = 1 if train.get("color", "rgb") == "y" else 3
    target = torch.rand(batch_size, channels, patch * scale, patch * scale, generator=generator)
    small = imresize(target, 1 / scale)
    return {"input": imresize(small, scale) if train.get("enlarged") else small, "target": target,
            "index": torch.arange(batch_size)}
