r"""PKD: distillation of detectors by the Pearson correlation of their features (Cao et al., NeurIPS
2022, arXiv 2207.02039).

Two detectors of different families agree on where something is, and not on how large a feature
there is. So each channel of a level of the pyramid is brought to mean 0 and deviation 1 over the
images and places of the batch, in the student and in the teacher, and the squared difference of the
two is minimised. With M = N·H·W values of a channel f,

.. math::
    n(f) = \frac{f - \bar f}{\sigma(f) + 10^{-6}}, \qquad
    \sigma^2(f) = \frac{1}{M - 1} \sum (f - \bar f)^2, \qquad
    L = \frac12 \operatorname*{mean} \bigl( n(f^s) - n(f^t) \bigr)^2

which is :math:`\frac{M-1}{M} (1 - \rho)` with Pearson's :math:`\rho`, up to the :math:`10^{-6}`.
One entry of ``losses`` for each level.

**Weights** in the released configs (mmrazor), beside the detector's own losses: 6 a level for
Faster R-CNN and RepPoints, 10 for RetinaNet, on the first four of the pyramid's five levels.

The statistics are of one process's batch, as released, and of all its places, those of padding
too. Its code compares the heights of the maps alone when it decides whether to resize; here both
sides are compared. No projector stands between equal channels (256 in all its pyramids); where they
differ there is none in the paper, and a 1x1 convolution here, which is our choice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdtasks.core.names import did_you_mean
from kdtasks.core.precision import raised
from kdtasks.general.projection import ProjectedLoss

EPS = 1e-6  # as released
RESIZED = ("student", "teacher")


def pkd_loss(student: Tensor, teacher: Tensor, resized: str = "student") -> Tensor:
    """Half the mean squared difference of two maps, each channel of each standardised over images
    and places.

    Args:
        student: ``(N, C, H, W)`` features of one level; carries the gradient. A channel that is
            constant (deviation below 1e-6) has none.
        teacher: ``(N, C, H', W')``; never receives a gradient.
        resized: which of the two is resized (bilinear, no antialiasing) to the other's size where
            they differ: ``'student'`` as released by default, or ``'teacher'``.

    Returns:
        A scalar between 0 and 2; half precision is raised to float32, float64 stays. A zero that
        still backpropagates when there are no images or channels.

    Raises:
        ValueError: no two batches of maps of equal length and channels; one value a channel, which
            has no deviation; ``resized`` is neither.
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            "expected two maps (N, C, H, W) of the same images and equally many channels, got "
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}; PKDLoss has a "
            "projector for other channels"
        )
    _check_resized(resized)
    student, teacher = raised(student, teacher.detach())
    if not student.numel():
        return student.sum()
    if student.shape != teacher.shape:
        if resized == "student":
            student = _resize(student, teacher)
        else:
            teacher = _resize(teacher, student)
    if student[:, 0].numel() == 1:
        raise ValueError(
            "one image of one place has no deviation to standardise a channel by, got a map "
            f"{tuple(student.shape)}: take a finer level, or more images"
        )
    return F.mse_loss(standardized(student), standardized(teacher)) / 2


def _check_resized(resized: str) -> None:
    if resized not in RESIZED:
        raise ValueError(f"no resized {resized!r}; {did_you_mean(str(resized), RESIZED)}")


def _resize(maps: Tensor, reference: Tensor) -> Tensor:
    return F.interpolate(maps, reference.shape[2:], mode="bilinear", align_corners=False)


def standardized(maps: Tensor) -> Tensor:
    """Each channel of ``(N, C, H, W)`` minus its mean, over its deviation + 1e-6; a constant one
    (deviation below 1e-6) has no gradient.
    """
    mean, deviation = deviations(maps)
    values = (maps - mean) / (deviation + EPS)
    return torch.where(deviation < EPS, values.detach(), values)


def deviations(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n - 1) of each channel of ``(N, C, H, W)`` over images and
    places, ``(1, C, 1, 1)``; that of a constant channel, or of one value, has no gradient.
    """
    several = maps[:, 0].numel() > 1
    # a constant channel has a mean of exactly its value, so a deviation of 0
    variance, mean = torch.var_mean(maps, (0, 2, 3), correction=int(several), keepdim=True)
    dead = variance < EPS**2
    # the root has an infinite slope at 0
    live = variance.masked_fill(dead, 1).sqrt()
    return mean, torch.where(dead, variance.detach().sqrt(), live)


class PKDLoss(ProjectedLoss):
    """:func:`pkd_loss`; where the channels differ, behind a 1x1 convolution with bias that brings
    the student's to the teacher's.

    Args:
        resized: of :func:`pkd_loss`.
        student_channels, teacher_channels: None: found by :meth:`build`.

    Raises:
        ValueError: ``resized`` is neither; in ``build`` and ``forward``, features that are no maps
            of the same images, or of other channels.
    """

    always_projects = False

    def __init__(
        self,
        resized: str = "student",
        student_channels: int | None = None,
        teacher_channels: int | None = None,
    ):
        super().__init__(student_channels, teacher_channels)
        _check_resized(resized)
        self.resized = resized

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of maps (N, C, H, W), a scalar, after the student's projection."""
        return pkd_loss(*self.projected(*raised(student, teacher.detach())), self.resized)

    def extra_repr(self) -> str:
        """Which map is resized."""
        return f"resized={self.resized!r}"
