"""Values of a dense head's anchors as maps over the image: ADL's weight, the teacher's scores."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtasks.detection.adl import adl_weight, kl_and_entropy


def level_maps(values: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(A,) values of one image's anchors -> the largest of each location, (h,w) for each level.

    Args:
        values: level by level, within it row by row, the anchors of a location next to each other.
        sizes: (h,w) of the levels.
    """
    places = sum(h * w for h, w in sizes)
    if values.ndim != 1 or not places or len(values) % places:
        raise ValueError(
            f"expected (A,) values, A a multiple of the {places} locations of {list(sizes)}, got "
            f"{tuple(values.shape)}"
        )
    largest = values.view(places, -1).amax(1)
    return [
        part.view(h, w) for part, (h, w) in zip(largest.split([h * w for h, w in sizes]), sizes)
    ]


def probability_map(teacher: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The largest sigmoid over classes and anchors at each location, (h,w) a level; logits (A,K) as
    :func:`level_maps`.
    """
    return level_maps(teacher.detach().float().amax(1).sigmoid().cpu(), sizes)


def adl_weight_map(
    student: Tensor,
    teacher: Tensor,
    sizes: Sequence[tuple[int, int]],
    gamma: float = 1.0,
    beta: float = 1.5,
) -> list[Tensor]:
    r"""ADL's adaptive weight at each location, (h,w) a level: the largest over classes and anchors.

    .. math:: (1 - e^{-(\mathrm{KL}(q \| p) + \beta T(q))})^\gamma

    The largest, not the mean: one class at one anchor is what is hard at a place, and the many
    classes of which both models are sure would drown it.

    Args:
        student, teacher: logits (A,K) of one image, in the order of :func:`level_maps`.
        sizes: (h,w) of the levels.
        gamma, beta: as in the loss.
    """
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(
            f"expected two tensors (A,K), got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    weights = []
    # a level of COCO takes much memory
    for s, t in zip(student.detach().split(65536), teacher.detach().split(65536)):
        entries = adl_weight(*kl_and_entropy(s.float(), t.float()), gamma, beta)
        weights.append(entries.amax(1).cpu())
    return level_maps(torch.cat(weights), sizes)


def over_levels(maps: Sequence[Tensor]) -> Tensor:
    """The largest of all levels at each place, as fine as the first; coarser levels are enlarged
    without smoothing.
    """
    size = maps[0].shape
    return torch.stack(
        [F.interpolate(m[None, None].float(), size, mode="nearest")[0, 0] for m in maps]
    ).amax(0)
