r"""Hints, weighted soft targets and bounded boxes for two-stage detectors (Chen, Choi, Yu, Han and
Chandraker, "Learning Efficient Object Detection Models with Knowledge Distillation", NIPS 2017).

A small Faster R-CNN learns from a large one in three places at once: a feature map imitates the
teacher's (the hint); in both heads, RPN and RoI, the class probabilities imitate the teacher's,
where background weighs more, as it is what a detector confuses most; and the teacher's boxes are
not a target but a bound: a box costs nothing once it is closer to the ground truth than the
teacher's, by a margin. One stage of training, all losses together:

.. math::
    L &= L^{\mathrm{RPN}} + L^{\mathrm{RoI}} + \gamma L_{\mathrm{hint}}, \qquad
    L^{\mathrm{head}} = \frac{1}{N} \sum_i L_{\mathrm{cls}}(i)
    + \lambda \frac{1}{N} \sum_j L_{\mathrm{reg}}(j) && (1)

    L_{\mathrm{cls}} &= \mu L_{\mathrm{hard}}(p^s, y) + (1 - \mu) L_{\mathrm{soft}}(p^s, p^t) && (2)

    L_{\mathrm{soft}} &= -\sum_c w_c\, p^t_c \log p^s_c, \qquad p = \mathrm{softmax}(z / T) && (3)

    L_b &= \lVert s - y \rVert_2^2 \,\bigl[\lVert s - y \rVert_2^2 + m > \lVert t - y
    \rVert_2^2\bigr] && (4)

    L_{\mathrm{reg}} &= L_{\mathrm{smooth\,L1}}(s, y) + \nu L_b(s, t, y) && (5)

    L_{\mathrm{hint}} &= \lVert V - Z \rVert_2^2 \;\text{ (6)} \quad\text{or}\quad
    \lVert V - Z \rVert_1 && (7)

N: boxes in the head's mini-batch; s, t, y: the four encoded deltas of student, teacher and ground
truth; Z: the teacher's map; V: the student's after a 1x1 convolution, which is kept where the
channels agree, trains with the student and is thrown away.

This file holds the three terms; the hard ones are the detector's own, and all weights belong to the
config. Defaults, from reading notes and ports that agree (the authors released no code): background
weighs 1.5, other classes 1, T = 1, nu = 0.5, lambda = 1, gamma = 0.5. Numbers of equations and of
the table below are those of the notes, too: nobody here could check them against the paper. For mu
and m we found no published value; ports use 0.5, 0.8 or a ramp for mu, and 0 to 0.5 for m.

What to know before using them:

- Eq. 3 is **not** smallest at student = teacher. Its minimum is at :math:`p^s_c \propto w_c\,
  p^t_c` (a teacher's 0.5 for background becomes 0.6), and it is above 0 there.
- m has the unit of the squared deltas, which depends on the box coder: weights (10, 10, 5, 5) in
  torchvision's RoI head make the same error 100 times (x, y) or 25 times (w, h) what it is under
  (1, 1, 1, 1) in the RPN. One m is not one bound in both.
- L_b is for positive boxes (their class's box, picked by the label). Its normalizer should be the
  one of the head's hard box loss (in torchvision: all sampled boxes), so that nu means the same in
  both.
- The hint is a mean over elements here, not a sum: gamma = 0.5 would explode with the size of the
  map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.layouts import pair_to_nchw
from kdtasks.core.precision import raised
from kdtasks.general.divergences import times
from kdtasks.general.projection import ProjectedLoss


def weighted_soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    class_weight: Tensor | Sequence[float],
    temperature: float = 1.0,
) -> Tensor:
    """Cross-entropy with the teacher's probabilities, each class with its weight; mean over the
    boxes (eq. 3).

    Args:
        student: ``(N, C)`` logits of softmax classes, or ``(N, 1)`` of a sigmoid (the RPN); carries
            the gradient.
        teacher: logits of the same boxes and shape; never receives a gradient.
        class_weight: C weights; for one logit two: background, foreground.
        temperature: T > 0; the paper found no use in T > 1. The gradient is not multiplied by T².

    Returns:
        A scalar in nats, not 0 at student = teacher. Half precision is raised to float32, float64
        stays. A zero that still backpropagates when N = 0.

    Raises:
        ValueError: the shapes do not fit, or the temperature is not positive.
    """
    if student.shape != teacher.shape or student.dim() != 2 or student.shape[1] == 0:
        raise ValueError(
            f"expected two equal shapes (N, C), got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    student, teacher = (z / temperature for z in raised(student, teacher.detach()))
    weight = torch.as_tensor(class_weight, dtype=student.dtype, device=student.device)
    if student.shape[1] == 1:
        # (N, 2) background, foreground
        log_p = torch.cat([F.logsigmoid(-student), F.logsigmoid(student)], 1)
        p_teacher = torch.cat([torch.sigmoid(-teacher), torch.sigmoid(teacher)], 1)
    else:
        log_p, p_teacher = F.log_softmax(student, 1), F.softmax(teacher, 1)  # (N, C)
    if weight.shape != log_p.shape[1:]:
        raise ValueError(
            f"expected class_weight {tuple(log_p.shape[1:])} for student {tuple(student.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    return -times(weight * p_teacher, log_p).sum() / max(len(student), 1)


def bounded_regression_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    margin: float = 0.0,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Squared error of the boxes that are not better than the teacher's by more than the margin
    (eq. 4).

    Args:
        student: ``(N, 4)`` box deltas in units of the box coder, of positive boxes only; carries
            the gradient.
        teacher: ``(N, 4)`` deltas of the same boxes; never receives a gradient, and never pulls: it
            opens the gate or not.
        target: ``(N, 4)`` ground-truth deltas.
        margin: m >= 0 in squared delta units, as the loss. A box as good as the teacher's costs
            nothing at 0.
        normalizer: what the sum is divided by: the hard box loss's. None (or 0): N.

    Returns:
        A scalar in squared delta units. Half precision is raised to float32, float64 stays. A zero
        that still backpropagates when N = 0. It jumps where a box passes the bound.

    Raises:
        ValueError: the shapes do not fit, or the margin is negative.
    """
    if not margin >= 0:
        raise ValueError(f"margin must be >= 0, got {margin}")
    student_error, teacher_error = box_errors(student, teacher, target)
    is_counted = is_above_bound(student_error, teacher_error, margin)
    student, _, target = raised(student, teacher.detach(), target.detach())
    # a box that costs nothing may hold inf
    error = torch.where(is_counted[:, None], student - target, 0).square().sum()
    error = error + teacher_error.where(teacher_error.isnan(), 0).sum()
    if isinstance(normalizer, Tensor):
        return error / normalizer.detach()
    return error / (normalizer or max(len(student), 1))


def box_errors(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """``e_s`` and ``e_t`` of eq. 4: what each box of student and teacher is off, ``(N,)``, summed
    squares of ``(N, 4)`` deltas. They have no gradient.

    Raises:
        ValueError: the shapes do not fit.
    """
    if not student.shape == teacher.shape == target.shape or student.shape[1:] != (4,):
        raise ValueError(
            f"expected three equal shapes (N, 4), got student {tuple(student.shape)}, teacher "
            f"{tuple(teacher.shape)} and target {tuple(target.shape)}"
        )
    student, teacher, target = raised(student.detach(), teacher.detach(), target.detach())
    return (student - target).square().sum(1), (teacher - target).square().sum(1)


def is_above_bound(student_error: Tensor, teacher_error: Tensor, margin: float) -> Tensor:
    """Which boxes count in eq. 4: ``e_s + m > e_t``, bool ``(N,)``; those with a NaN, too."""
    return ~(student_error + margin <= teacher_error)


def hint_loss(student: Tensor, teacher: Tensor, p: float = 2) -> Tensor:
    """Mean over elements of ``|student - teacher|^p`` (eq. 6 with p = 2, eq. 7 with p = 1).

    Args:
        student: features of any shape, already through the adapter; carries the gradient.
        teacher: features of the same shape; never receive a gradient.
        p: >= 1.

    Returns:
        A scalar. Half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there is nothing.

    Raises:
        ValueError: the shapes differ, or p is below 1.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected two equal shapes, got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )
    if not p >= 1:
        raise ValueError(f"p must be >= 1, got {p}")
    student, teacher = raised(student, teacher.detach())
    error = (student - teacher).abs()
    return (error if p == 1 else error.pow(p)).sum() / max(error.numel(), 1)


class WeightedSoftCrossEntropyLoss(nn.Module):
    """:func:`weighted_soft_cross_entropy` with one weight for background and 1 for every other
    class, however many there are.

    Args:
        background_weight: 1.5 as in the paper.
        background_index: 0 in torchvision's RoI head, -1 in MMDetection's. A single sigmoid logit
            is foreground's.
        temperature: T > 0.
    """

    def __init__(
        self, background_weight: float = 1.5, background_index: int = 0, temperature: float = 1.0
    ):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.background_weight, self.background_index, self.temperature = (
            background_weight,
            background_index,
            temperature,
        )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of class logits (…, C) of both, a scalar."""
        classes, index = student.shape[-1] if student.dim() else 0, self.background_index
        if classes == 1:
            classes, index = 2, 0
        if classes and not -classes <= index < classes:
            raise ValueError(
                f"background_index {index} is not one of the {classes} classes of student "
                f"{tuple(student.shape)}"
            )
        weight = torch.ones(classes, dtype=torch.float64, device=student.device)
        weight[index:][:1] = self.background_weight
        return weighted_soft_cross_entropy(student, teacher, weight, self.temperature)

    def extra_repr(self) -> str:
        """Weight, background and temperature."""
        return (
            f"background_weight={self.background_weight}, "
            f"background_index={self.background_index}, temperature={self.temperature}"
        )


class BoundedRegressionLoss(nn.Module):
    """Module form of :func:`bounded_regression_loss`; the paper adds it to smooth L1 with weight
    0.5.
    """

    def __init__(self, margin: float = 0.0):
        super().__init__()
        if not margin >= 0:
            raise ValueError(f"margin must be >= 0, got {margin}")
        self.margin = margin

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """The loss of box deltas, a scalar; arguments as the function has them."""
        return bounded_regression_loss(student, teacher, target, self.margin, normalizer)

    def extra_repr(self) -> str:
        """The margin."""
        return f"margin={self.margin}"


class HintLoss(ProjectedLoss):
    """:func:`hint_loss` behind an adapter that brings the student's channels to the teacher's;
    weight 0.5 in the paper.

    The adapter is a 1x1 convolution of maps ``(B, C, H, W)``, and the same matrix as a linear layer
    of rows ``(N, C)``. It is there where the channels agree too (the paper's table 4: it helps).
    Where height and width differ, because the teacher sees a larger image, the teacher's map is
    resized to the student's (bilinear, antialiased): our choice; the paper pads.

    Args:
        student_channels: None: found by :meth:`build`.
        teacher_channels: None: found by :meth:`build`.
        p: 2 or 1.
        layout: ``'nchw'``, ``'nhwc'`` (Swin) or ``'tokens'`` (ViT), of both, or a pair: the
            student's, the teacher's. None: ``'nchw'``, and an error where only the last axes can be
            channels.
        prefix_tokens: of ``'tokens'``: how many come before those of the places (the class's,
            registers) and are dropped; or a pair.
        grid: (H, W) of ``'tokens'``, or a pair of such; None: a square.
    """

    def __init__(
        self,
        student_channels: int | None = None,
        teacher_channels: int | None = None,
        p: float = 2,
        layout: str | Sequence[str] | None = None,
        prefix_tokens: int | Sequence[int] = 0,
        grid: Sequence | None = None,
    ):
        super().__init__(student_channels, teacher_channels)
        self.layout = {"layout": layout, "prefix_tokens": prefix_tokens, "grid": grid}
        if not p >= 1:
            raise ValueError(f"p must be >= 1, got {p}")
        self.p = p

    def features(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Rows, or maps of whatever layout as ``(B, C, H, W)``."""
        student, teacher = pair_to_nchw(student, teacher, **self.layout)
        try:
            return super().features(student, teacher)
        except ValueError as error:
            if 3 not in (student.dim(), teacher.dim()):
                raise
            raise ValueError(f"{error}; layout='tokens' is for (B, N, C)") from None

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of features, a scalar; the teacher's map gets the student's height and width."""
        student, teacher = self.projected(*raised(student, teacher.detach()))
        if student.shape[2:] != teacher.shape[2:]:
            teacher = F.interpolate(
                teacher, student.shape[2:], mode="bilinear", align_corners=False, antialias=True
            )
        return hint_loss(student, teacher, self.p)

    def extra_repr(self) -> str:
        """Channels, norm, and a layout other than (B, C, H, W)."""
        return (
            f"student_channels={self.student_channels}, teacher_channels={self.teacher_channels}, "
            f"p={self.p}" + (f", layout={self.layout}" if self.layout["layout"] else "")
        )
