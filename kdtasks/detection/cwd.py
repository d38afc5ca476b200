r"""CWD: channel-wise distillation for dense prediction (Shu et al., ICCV 2021, arXiv 2011.13256).

What a channel responds to, it responds to in few places. A softmax over the places of a map turns
each channel into a distribution of where it looks, whatever its scale; the student's is drawn to
the teacher's. Of N images and C channels,

.. math::
    p_{nc} = \operatorname*{softmax}_{h, w}(f_{nc} / T), \qquad
    L = \frac{T^2}{N C} \sum_{n, c} \mathrm{KL}(p^t_{nc} \,\|\, p^s_{nc})

The maps are those of the pyramid (one entry of ``losses`` for each level), or class logits before
their levels are put together: ``'student.bbox_head.gfl_cls@0'`` is the first level's of
MMDetection's GFL.

**Weights** in the released configs (mmrazor), beside the detector's own losses, T = 1: 10 for each
of the pyramid's five levels.

Maps of different sizes are averaged down to the smaller side each, as in attention transfer: our
choice, as is the projector where the channels differ.
"""

import torch.nn.functional as F
from torch import Tensor

from kdtasks.core.precision import raised
from kdtasks.general.divergences import kl_terms
from kdtasks.general.projection import ProjectedLoss


def cwd_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² times the mean over images and channels of KL(teacher ‖ student), softmax over places.

    Args:
        student: ``(N, C, H, W)`` features or logits; carries the gradient.
        teacher: ``(N, C, H', W')``; never receives a gradient.
        temperature: T > 0; 1 as released for detectors.

    Returns:
        A scalar in nats; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there are no images or channels.

    Raises:
        ValueError: no two batches of maps of equal length and channels; maps of one place, whose
            softmax is 1 whatever they hold; the temperature is not positive.
    """
    shapes = f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            "expected two maps (N, C, H, W) of the same images and equally many channels, got "
            f"{shapes}; CWDLoss has a projector for other channels"
        )
    _check_temperature(temperature)
    size = [min(sides) for sides in zip(student.shape[2:], teacher.shape[2:])]
    if size == [1, 1]:
        raise ValueError(
            f"the softmax over one place is 1 whatever the map holds, got {shapes}: expected "
            "larger maps"
        )
    rows = (_rows(maps, size) / temperature for maps in raised(student, teacher.detach()))
    terms = kl_terms(*rows)
    return temperature**2 * terms.sum() / max(len(terms), 1)


def _rows(maps: Tensor, size: list[int]) -> Tensor:
    """``(N, C, H, W)`` -> ``(N·C, places)``."""
    if list(maps.shape[2:]) != size:
        maps = F.adaptive_avg_pool2d(maps, size)
    return maps.flatten(2).flatten(0, 1)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


class CWDLoss(ProjectedLoss):
    """:func:`cwd_loss`; where the channels differ, behind a 1x1 convolution with bias that brings
    the student's to the teacher's.

    Args:
        temperature: of :func:`cwd_loss`.
        student_channels, teacher_channels: None: found by :meth:`build`.

    Raises:
        ValueError: the temperature is not positive; in ``build`` and ``forward``, features that are
            no maps of the same images, or of other channels.
    """

    always_projects = False

    def __init__(
        self,
        temperature: float = 1.0,
        student_channels: int | None = None,
        teacher_channels: int | None = None,
    ):
        super().__init__(student_channels, teacher_channels)
        _check_temperature(temperature)
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of maps (N, C, H, W), a scalar, after the student's projection."""
        return cwd_loss(*self.projected(*raised(student, teacher.detach())), self.temperature)

    def extra_repr(self) -> str:
        """The temperature."""
        return f"temperature={self.temperature}"
