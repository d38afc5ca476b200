r"""iCaRL's exemplars and its classifier (Rebuffi et al., CVPR 2017, arXiv 1611.07725).

Of each class a few images are kept, whose mean feature stays near the mean of the class; an image
is then of the class whose mean is nearest. The network's features, scaled to length 1, are
:math:`f_1 \dots f_n` for the n images of a class. **Herding** takes them one after the other:

.. math::
    i_k = \operatorname*{arg\,min}_{i \text{ not taken}}
    \Bigl\lVert \mu - \frac1k \Bigl(f_i + \sum_{j<k} f_{i_j}\Bigr) \Bigr\rVert, \qquad
    \mu = \frac1n \sum_i f_i

so each beginning of the order is a good choice by itself: a class that has to give up exemplars
gives up its last ones, and nothing is drawn anew. :math:`\mu` is not scaled back to length 1.

**Nearest mean of exemplars**: with :math:`m_c` the mean of the scaled features of a class's
exemplars, scaled again, an image with the feature f is of the class

.. math:: \operatorname*{arg\,min}_c \Bigl\lVert \frac{f}{\lVert f \rVert} - m_c \Bigr\rVert

The loss that trains the network is :func:`kdtasks.incremental.lwf_mc_loss`.

The authors' code may take an image a second time in its inner loop, which moves the sum and adds no
exemplar; here, as in FACIL and PyCIL, only what is not taken counts. It also averages each mean
over the images and their mirror images, which FACIL and PyCIL do not.
"""

import torch
from torch import Tensor

from kdtasks.core.precision import raised

# a row that is shorter has no direction
EPS = 1e-6


def herding(features: Tensor, count: int) -> Tensor:
    """The order in which herding takes the samples of one class.

    Args:
        features: ``(n, D)``; any scale, since rows are scaled to length 1. One that is shorter than
            1e-6 counts as a row of zeros.
        count: how many; at least 0. Of fewer samples all are taken.

    Returns:
        int64 ``(min(count, n),)`` on the features' device, the first one taken first. Of equal ones
        the lowest index. Computed in float64.

    Raises:
        ValueError: another shape, a feature that is not finite, or a ``count`` that is no integer
            of at least 0.
    """
    if features.dim() != 2:
        raise ValueError(f"expected the features (n, D) of one class, got {tuple(features.shape)}")
    if not hasattr(count, "__index__") or count < 0:
        raise ValueError(f"count must be an integer of at least 0, got {count!r}")
    unit = unit_rows(features.detach().double())
    if not unit.isfinite().all():
        row = int((~unit.isfinite()).any(1).nonzero()[0, 0])
        raise ValueError(f"the features of sample {row} are not finite; expected finite ones")
    mean, is_taken = unit.mean(0), torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
    order: list[Tensor] = []
    remainder = torch.zeros_like(mean)  # k times the mean, less what is taken
    for _ in range(min(count.__index__(), len(unit))):
        remainder = remainder + mean
        # k times the distance, squared
        distance = (remainder - unit).square().sum(1).masked_fill(is_taken, torch.inf)
        best = distance.argmin()
        is_taken[best] = True
        remainder = remainder - unit[best]
        order.append(best)
    return torch.stack(order) if order else torch.empty(0, dtype=torch.int64, device=unit.device)


def class_means(features: Tensor, target: Tensor, classes: int) -> Tensor:
    """The mean of each class's exemplars, of length 1.

    Args:
        features: ``(n, D)`` of all exemplars.
        target: ``(n,)`` int64 classes, below ``classes``.
        classes: C, how many there are.

    Returns:
        ``(C, D)``, float64 if the features are, else float32. NaN for a class without exemplars,
        which :func:`nearest_mean` never chooses.

    Raises:
        ValueError: the shapes do not fit.
    """
    if features.dim() != 2 or target.shape != (len(features),):
        raise ValueError(
            f"expected features (n, D) and target (n,), got {tuple(features.shape)} and "
            f"{tuple(target.shape)}"
        )
    (features,) = raised(features)
    unit = unit_rows(features.double())
    sums = unit.new_zeros(classes, unit.shape[1]).index_add_(0, target, unit)
    counts = torch.bincount(target, minlength=classes)
    means = unit_rows(sums / counts.clamp(min=1)[:, None])
    return means.masked_fill(counts[:, None] == 0, torch.nan).to(features.dtype)


def nearest_mean(features: Tensor, means: Tensor) -> Tensor:
    """The class whose mean is nearest; of equal ones the first.

    Args:
        features: ``(B, D)``, any scale.
        means: ``(C, D)`` of :func:`class_means`.

    Returns:
        int64 ``(B,)``.

    Raises:
        ValueError: the shapes do not fit.
    """
    return mean_distances(features, means).argmin(1)


def mean_distances(features: Tensor, means: Tensor) -> Tensor:
    """``(B, C)`` distances of the features, scaled to length 1, to the means; infinite to a class
    without one. Arguments and errors as of :func:`nearest_mean`.
    """
    if features.dim() != 2 or means.dim() != 2 or features.shape[1] != means.shape[1]:
        raise ValueError(
            f"expected features (B, D) and means (C, D), got {tuple(features.shape)} and "
            f"{tuple(means.shape)}"
        )
    features, means = raised(features, means)
    # by differences: the form with products loses what tells near means apart
    distances = torch.cdist(unit_rows(features), means, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.nan_to_num(torch.inf, torch.inf)


def unit_rows(features: Tensor) -> Tensor:
    """Rows scaled to length 1; zeros in the place of one that is shorter than 1e-6."""
    length = features.norm(dim=1, keepdim=True)
    short = length < EPS
    return (features / length.masked_fill(short, 1)).masked_fill(short, 0)
