"""Samples of a data set as pictures."""

from collections.abc import Mapping

import torch
from torch import Tensor


def pictures_of(loader, index: Tensor) -> list:
    """Arrays (H,W) or (H,W,3) of samples of the loader's data set: its uint8 images, or its inputs
    stretched to [0,1].
    """
    dataset, raw = loader.dataset, getattr(loader.dataset, "images", None)
    if isinstance(raw, Tensor) and raw.dtype == torch.uint8:
        images = raw[index.to(raw.device)].cpu() / 255
    else:
        if callable(getattr(dataset, "batch", None)):
            images = dataset.batch(index, torch.zeros_like(index), loader.seed)["input"]
        else:
            samples = [dataset[i] for i in index.tolist()]
            images = [
                sample["input"] if isinstance(sample, Mapping) else sample[0] for sample in samples
            ]
        images = [image.detach().float().cpu() for image in images]
        images = [
            (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12) for image in images
        ]
    return [(image[:3].movedim(0, -1) if len(image) >= 3 else image[0]).numpy() for image in images]
