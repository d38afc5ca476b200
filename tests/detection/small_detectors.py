"""Tiny real detectors of torchvision and batches of drawn boxes, for the tests of this folder."""

import torch

from kdtasks.detection import models

SIZE = {"min_size": 64, "max_size": 96}


def retinanet(width=4, num_classes=4, **kwargs):
    settings = {"extra": None, "anchor_sizes": [12, 24, 48], "scales": 2, "groups": 2} | SIZE
    return models.retinanet(num_classes, models.small_resnet(width), 8, **settings | kwargs)


def fcos(width=4, num_classes=4, **kwargs):
    return models.fcos(num_classes, models.small_resnet(width), 32, extra=None, **SIZE | kwargs)


def faster_rcnn(width=4, num_classes=4, **kwargs):
    settings = SIZE | {
        "rpn_batch_size_per_image": 32,
        "box_batch_size_per_image": 16,
        "rpn_pre_nms_top_n_train": 100,
        "rpn_post_nms_top_n_train": 50,
        "rpn_pre_nms_top_n_test": 100,
        "rpn_post_nms_top_n_test": 50,
    }
    return models.faster_rcnn(
        num_classes,
        models.small_resnet(width),
        8,
        first=1,
        extra=None,
        anchor_sizes=[12, 24, 48],
        representation=32,
        **settings | kwargs,
    )


def mask_rcnn(width=4, num_classes=4, **kwargs):
    return models.mask_rcnn(
        num_classes,
        models.small_resnet(width),
        8,
        first=1,
        extra=None,
        anchor_sizes=[12, 24, 48],
        representation=32,
        **SIZE | {"rpn_post_nms_top_n_train": 50} | kwargs,
    )


def ssdlite(num_classes=4):
    return models.ssdlite(num_classes)


def batch(images=2, height=64, width=96, empty=False, seed=0):
    """Images with two boxes each; ``empty``: the last one has none."""
    generator = torch.Generator().manual_seed(seed)
    input = [torch.rand(3, height, width, generator=generator) for _ in range(images)]
    target = []
    for k in range(images):
        boxes = torch.tensor([[8.0, 8, 30, 34], [40, 20, 88, 60]]) + k
        target.append({"boxes": boxes, "labels": torch.tensor([1, 3])})
        for (x1, y1, x2, y2), color in zip(boxes.long().tolist(), (0.9, 0.1)):
            input[k][:, y1:y2, x1:x2] = color
    if empty:
        target[-1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return {"input": input, "target": target}
