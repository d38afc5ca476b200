"""The scale of a batch of images, and its input at the size of its target."""

import torch
from torch import Tensor

from kdtasks.super_resolution.metrics import imresize


def scale_of(batch: dict) -> int:
    """The factor by which a batch's images are enlarged: its ``scale``, or else the ratio of sizes.

    Raises:
        ValueError: the images have several scales, or a batch without ``scale`` has inputs that are
            enlarged already.
    """
    if "scale" in batch:
        scales = torch.as_tensor(batch["scale"]).unique().tolist()
    else:
        scales = [round(batch["target"].shape[-1] / batch["input"].shape[-1])]
    if len(scales) > 1 or scales == [1]:
        raise ValueError(
            f"expected one scale of at least 2 for a batch, got {scales} for inputs "
            f"{tuple(batch['input'].shape)} and targets "
            f"{tuple(batch['target'].shape)}; give the batch its 'scale', and take "
            "test_batch_size=1"
        )
    return int(scales[0])


def enlarged(input: Tensor, target: Tensor) -> Tensor:
    """The input at the target's size, by bicubic interpolation if it has another."""
    if input.shape == target.shape:
        return input.float()
    return imresize(input.float(), target.shape[-1] // input.shape[-1])
