"""Which detections are right, and from which score on a model's detections are drawn."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def crowds(target: Mapping[str, Tensor]) -> Tensor:
    """Which objects are crowds, bool (m,), on the CPU."""
    if "iscrowd" in target:
        return target["iscrowd"].cpu().bool()
    return torch.zeros(len(target["labels"]), dtype=torch.bool)


def match(
    detection: Mapping[str, Tensor], target: Mapping[str, Tensor], least: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Which detections are right, and which objects are found.

    From the highest score down, a detection takes the free object of its class that it overlaps
    most, if the overlap (IoU) is at least ``least``. One that takes none but lies in a crowd of its
    class is neither right nor wrong.

    Returns:
        (n,) 1 right, 0 wrong, -1 in a crowd; bool (m,), found.
    """
    boxes, labels, scores = (detection[key].cpu() for key in ("boxes", "labels", "scores"))
    objects, classes = target["boxes"].cpu(), target["labels"].cpu()
    crowd = crowds(target)
    state = torch.zeros(len(boxes), dtype=torch.int64)
    taken = torch.zeros(len(objects), dtype=torch.bool)
    if not len(boxes) or not len(objects):
        return state, taken
    # (n,m,2)
    low = torch.maximum(boxes[:, None, :2], objects[None, :, :2])
    common = (torch.minimum(boxes[:, None, 2:], objects[None, :, 2:]) - low).clamp(min=0).prod(2)
    areas, object_areas = ((b[:, 2:] - b[:, :2]).clamp(min=0).prod(1) for b in (boxes, objects))
    overlap = common / torch.where(
        crowd, areas[:, None], areas[:, None] + object_areas - common
    ).clamp(min=1e-9)
    overlap = overlap.masked_fill(labels[:, None] != classes, -1)
    for n in scores.argsort(descending=True, stable=True).tolist():
        free = overlap[n].masked_fill(taken | crowd, -1)
        best = int(free.argmax())
        if free[best] >= least:
            state[n], taken[best] = 1, True
        elif (overlap[n][crowd] >= least).any():
            state[n] = -1
    return state, taken


def best_threshold(
    detections: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
) -> float:
    """The score above which a model's boxes have the highest F1 (IoU 0.5, all images together); 0.5
    if none is right.

    Models differ in how sure they are, a dense head with a focal loss above all: one score for all
    would hide some.
    """
    states = [match(detection, target)[0] for detection, target in zip(detections, targets)]
    if not any((state == 1).any() for state in states):
        return 0.5
    scores, state = (
        torch.cat([detection["scores"].cpu() for detection in detections]),
        torch.cat(states),
    )
    # those in a crowd do not count
    scores, state = scores[state >= 0], state[state >= 0]
    scores, order = scores.sort(descending=True, stable=True)
    objects = sum(int((~crowds(target)).sum()) for target in targets)
    f1 = 2 * state[order].cumsum(0) / (torch.arange(1, len(scores) + 1) + objects)
    return float(scores[f1.argmax()])
