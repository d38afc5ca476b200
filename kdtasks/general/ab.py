r"""Activation Boundaries (Heo, Lee, Yun and Choi, arXiv 1811.03233).

What a ReLU network computes is decided by which of its neurons are active. Before anything is
classified, the student learns the teacher's *signs*: with the responses **before** the ReLU,
:math:`t` of the teacher and :math:`r(s)` of the student behind a connector r (1x1 convolution and
batch norm), a squared hinge of margin :math:`\mu` with the teacher's sign as its label,

.. math:: L = \frac{1}{B} \sum_i [t_i > 0]\, \max(0, \mu - r(s)_i)^2
    + [t_i \le 0]\, \max(0, \mu + r(s)_i)^2

How strongly a neuron of the teacher responds does not matter; a response of 0 is inactive. It
stands for :func:`activation_disagreement`, the share of neurons whose sign differs, which has no
gradient. Then the connectors are dropped, and the student learns to classify from there: by KD, or
by labels. :func:`stages` writes these two phases.

**Layers.** The sum is over channels and places, so the weights belong to the shapes. The authors'
code has 0.003 for the deepest of three layers and half of it for each layer before (CIFAR: 0.003,
0.0015, 0.00075), 0.001 and halves for four layers (MIT scenes); :func:`ab_losses` makes these
entries. :func:`~kdtasks.general.pre_relu_paths` says where the responses are in the networks that
it knows.

**Teacher.** It is in eval here. In the released CIFAR script it is in training mode in the first
phase, so that batch statistics decide its signs, and its running statistics drift.
"""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.precision import raised
from kdtasks.core.stages import ALONE, DISTILLED
from kdtasks.general.chains import teacher_source, teacher_stages
from kdtasks.general.projection import ProjectedLoss


def ab_loss(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """The squared hinge with the teacher's signs as labels: sum over elements, divided by the rows.

    Args:
        student: ``(B, *)`` responses before the ReLU, of the connector where there is one; carries
            the gradient.
        teacher: responses of the same shape, > 0 is active; before or after the ReLU, whose sign
            is the same. Never receives a gradient.
        margin: mu > 0.

    Returns:
        A scalar; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there are no rows.

    Raises:
        ValueError: the shapes differ or have no rows' axis, or the margin is not positive.
    """
    _check(student, teacher)
    _check_margin(margin)
    student, teacher = raised(student, teacher.detach())
    sign = (2.0 * (teacher > 0) - 1).to(teacher.dtype).where(~teacher.isnan(), teacher)
    return F.relu(margin - sign * student).square().sum() / max(len(student), 1)


def activation_disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Share of the responses of which one is active (> 0) and the other is not: the paper's
    transfer loss, which has no gradient, and for which :func:`ab_loss` stands.
    """
    _check(student, teacher)
    differences = (student > 0) != (teacher > 0)
    return differences.sum() / max(differences.numel(), 1)


class ABLoss(ProjectedLoss):
    """:func:`ab_loss` of one layer, with the connector that brings the student's channels to the
    teacher's.

    The connector is a 1x1 convolution without bias (weights :math:`N(0, 2 / C_{teacher})`) and
    batch norm, and is there only where the channels differ, both as released. It trains with the
    student and belongs to one stage.

    Args:
        margin: mu.
        reduction: ``'sum'`` over elements, divided by the batch, as released; ``'mean'`` over all
            elements, whose weight does not depend on the shapes.
        student_channels, teacher_channels: None: found by :meth:`build`.

    Raises:
        ValueError: here, a margin that is not positive, or another reduction; in ``build`` and
            ``forward``, shapes that do not fit: equal but for the channels, axis 1.
    """

    def __init__(
        self,
        margin: float = 1.0,
        reduction: str = "sum",
        student_channels: int | None = None,
        teacher_channels: int | None = None,
    ):
        super().__init__(student_channels, teacher_channels)
        _check_margin(margin)
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
        self.margin, self.reduction = margin, reduction

    def make_projector(self, inputs: int, outputs: int) -> nn.Module:
        """The connector."""
        if inputs == outputs:
            return nn.Identity()
        convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def features(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Responses as they come, equal in shape but for the channels."""
        if student.dim() not in (2, 4) or _but_channels(student) != _but_channels(teacher):
            raise ValueError(
                "expected two maps (B, C, H, W) or two tensors of rows (B, C), equal but for C, "
                f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
            )
        return student, teacher

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of responses (B, C) or (B, C, H, W) before their ReLU, a scalar."""
        student, teacher = self.projected(*raised(student, teacher.detach()))
        loss = ab_loss(student, teacher, self.margin)
        per_row = teacher.shape[1:].numel()
        return loss / max(per_row, 1) if self.reduction == "mean" else loss

    def extra_repr(self) -> str:
        """Margin and reduction."""
        return f"margin={self.margin}, reduction={self.reduction!r}"


def _but_channels(tensor: Tensor) -> tuple[int, ...]:
    return (*tensor.shape[:1], *tensor.shape[2:])


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or not student.dim():
        raise ValueError(
            f"expected two equal shapes (B, *), got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )


def _check_margin(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"margin must be > 0, got {margin}")


def ab_losses(
    student: Sequence[str],
    teacher: Sequence[str],
    weight: float = 0.003,
    margin: float = 1.0,
    reduction: str = "sum",
) -> dict[str, dict]:
    """Entries of a config's ``losses``, one for each pair of layers: ``loss_ab1``, ``loss_ab2`` …

    Args:
        student, teacher: paths of the layers, the shallowest first: what
            :func:`~kdtasks.general.pre_relu_paths` gives.
        weight: of the deepest; each one before has half of the next one's. 0.003 is that of the
            authors' CIFAR script, for ``reduction='sum'``.
        margin, reduction: of :class:`ABLoss`.

    Raises:
        ValueError: not equally many layers, or none.
    """
    if not student or len(student) != len(teacher):
        raise ValueError(
            f"expected as many layers of the student as of the teacher, got {list(student)} and "
            f"{list(teacher)}"
        )
    return {
        f"loss_ab{k + 1}": {
            "type": "kdtasks.general.ABLoss",
            "margin": margin,
            "reduction": reduction,
            "of": (f"student.{student_layer}", f"teacher.{teacher_layer}"),
            "weight": weight / 2 ** (len(student) - 1 - k),
        }
        for k, (student_layer, teacher_layer) in enumerate(zip(student, teacher))
    }


def stages(
    config: Mapping,
    student: Sequence[str],
    teacher: Sequence[str],
    first: Mapping | None = None,
    weight: float = 0.003,
    margin: float = 1.0,
    reduction: str = "sum",
) -> list[dict]:
    """The two phases, for a config: ``stages=dict(type='kdtasks.general.ab.stages', …)``.

    ``teacher``; ``boundaries``, in which the student learns signs alone and its head nothing; then
    ``distilled`` from there, by the config's ``losses``: cross-entropy, KD or both. The control has
    the steps and learning rates of both phases, by labels: ``alone_first``, ``alone``.

    Args:
        config: given by the engine.
        student, teacher: paths of the layers, the shallowest first: what
            :func:`~kdtasks.general.pre_relu_paths` gives.
        first: ``length``, ``optimizer``, ``schedule``, ``data`` of the first phase, where they
            differ.
        weight, margin, reduction: of :func:`ab_losses`.

    Raises:
        ValueError: not equally many layers, or there is no teacher.
    """
    first, teachers = dict(first or {}), {"teacher": teacher_source(config)}
    losses = ab_losses(student, teacher, weight, margin, reduction)
    return [
        *teacher_stages(config),
        {**first, "name": "alone_first", "role": "step"},
        {"name": ALONE, "role": "control", "student": "alone_first"},
        {**first, "name": "boundaries", "role": "step", "teachers": teachers, "losses": losses},
        {"name": DISTILLED, "role": "taught", "student": "boundaries", "teachers": teachers},
    ]
