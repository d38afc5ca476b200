"""Sets of images made of detection data, for what learns from images alone: whole photos, and what
the boxes show.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdtasks.detection.data.data_set import DetectionData
from kdtasks.images.arrays import ImageArrays


def photos(
    dataset: DetectionData,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: dict | list | None = None,
) -> ImageArrays:
    """The whole images, without labels.

    Args:
        dataset: with images of one size (its ``size``) and without views of its own
            (``augment=None``).
        mean, std, augment: see :class:`~kdtasks.images.arrays.ImageArrays`; the mean and std of a
            detector that the network is for are ``image_mean`` and ``image_std`` there.

    Raises:
        ValueError: a data set with ``augment``, or images of different sizes.
    """
    images = [_sample(dataset, index)[0] for index in range(len(dataset))]
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ValueError(
            f"expected images of one size, got {shapes[0]} and {shapes[-1]}; give the detection "
            "data a size=(height, width)"
        )
    return ImageArrays(
        torch.stack(images),
        mean=mean,
        std=std,
        augment=augment,
        paths=dataset.paths,
        unreadable=dataset.unreadable,
    )


def box_crops(
    dataset: DetectionData,
    size: int = 64,
    context: float = 1.25,
    per_class: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageArrays:
    r"""What each box shows, labelled with its class: a square around the box's centre.

    Its side is :math:`\text{context} \cdot \max(w, h)`, at most the image's shorter side; where it
    reaches beyond the image it is moved inside. Crowd boxes are left out.

    Args:
        dataset: labelled detection data without views of its own (``augment=None``).
        size: squares become size x size (bilinear, antialiased).
        context: share of the longer side. 1.25 is ours.
        per_class: only the first so many boxes of each class; None: all.
        mean, std: as for :func:`photos`.

    Raises:
        ValueError: a data set with ``augment``, no box, a size or context that is not positive.
    """
    if size < 1 or context <= 0:
        raise ValueError(f"expected a size and a context above 0, got {size} and {context}")
    crops: list[Tensor] = []
    labels: list[int] = []
    paths: list[str] = []
    left = [len(dataset.boxes) if per_class is None else per_class] * len(dataset.classes)
    for index in range(len(dataset)):
        image, target = _sample(dataset, index)
        for box, label, crowd in _boxes(target):
            if crowd or not left[label]:
                continue
            left[label] -= 1
            crops.append(_square(image, box, size, context))
            labels.append(label)
            paths.append(dataset.paths[index])
    if not crops:
        raise ValueError(f"none of {len(dataset)} images has a box")
    return ImageArrays(
        torch.stack(crops),
        torch.tensor(labels),
        dataset.classes,
        mean,
        std,
        paths=paths,
        unreadable=dataset.unreadable,
    )


def _sample(dataset: DetectionData, index: int) -> tuple[Tensor, dict | None]:
    """uint8 (3,H,W), read once, and its target."""
    if dataset.augment is not None:
        raise ValueError(
            "expected detection data with augment=None: images made of it have their own views"
        )
    sample = dataset[index]
    return sample["input"].mul(255).round().to(torch.uint8), sample["target"]


def _boxes(target: dict | None) -> list[tuple[list[float], int, int]]:
    """The box, the class from 0 on, and whether it is a crowd."""
    if target is None:
        return []
    columns = (target["boxes"].tolist(), target["labels"].tolist(), target["iscrowd"].tolist())
    return [(box, label - 1, crowd) for box, label, crowd in zip(*columns)]


def _square(image: Tensor, box: list[float], size: int, context: float) -> Tensor:
    left, upper, right, lower = box
    height, width = image.shape[-2:]
    side = round(min(context * max(right - left, lower - upper), height, width))
    side = max(side, 1)
    x = round(min(max((left + right - side) / 2, 0), width - side))
    y = round(min(max((upper + lower - side) / 2, 0), height - side))
    crop = image[None, :, y : y + side, x : x + side].float()
    scaled = F.interpolate(crop, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return scaled[0].round().clamp(0, 255).to(torch.uint8)
