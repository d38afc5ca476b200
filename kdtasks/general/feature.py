r"""Regression of features: the hint of FitNets (Romero et al., ICLR 2015, arXiv 1412.6550) and what
came of it.

The student's features f, behind a projector r that brings them to the teacher's channels, are drawn
to the teacher's g. Of vectors at B places (of an image, or of each of its H·W positions):

=================  =================================================================================
``'mse'``          mean over all entries of :math:`(r(f) - g)^2`; the hint, with a weight of 100 in
                   RepDistiller
``'cosine'``       mean over places of :math:`1 - \cos(r(f), g)`: blind to their lengths
``'smooth_l1'``    mean over all entries of the Huber loss with beta = 1
=================  =================================================================================

FitNets trains the hint first, without labels, then the network by KD (recalled, not verified): a
list of two stages. The projector of the code that followed ends in batch norm and ReLU; here it is
linear, since targets may be negative (before a ReLU, of a transformer), which a ReLU never reaches.

Targets that are all positive, as after a ReLU, point in much the same direction whatever the image
is: ``standardize`` takes their mean away (see :mod:`kdtasks.general.several_teachers`). With
several teachers, each with a loss and so a projector of its own, it also makes a weight of
1 / teachers mean the same for each. A detector's hint is
:class:`kdtasks.detection.HintLoss`.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kdtasks.core.layouts import pair_to_nchw
from kdtasks.core.precision import raised
from kdtasks.general.directions import directions
from kdtasks.general.projection import ProjectedLoss
from kdtasks.general.several_teachers import Standardization

KINDS = ("mse", "cosine", "smooth_l1")


def feature_loss(student: Tensor, teacher: Tensor, kind: str = "mse", dim: int = 1) -> Tensor:
    """Regression of one tensor of features to another.

    Args:
        student: features of any shape, already through the projector; carries the gradient. With
            ``'cosine'`` a vector of length below 1e-6 costs 1 and has none.
        teacher: features of the same shape; never receive a gradient.
        kind: ``'mse'``, ``'cosine'`` or ``'smooth_l1'``.
        dim: the axis of the channels, for ``'cosine'``.

    Returns:
        A scalar; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there is nothing.

    Raises:
        ValueError: the shapes differ, or another kind.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected two equal shapes, got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )
    _check_kind(kind)
    student, teacher = raised(student, teacher.detach())
    if not student.numel():
        return student.sum()
    if kind == "mse":
        return F.mse_loss(student, teacher)
    if kind == "smooth_l1":
        return F.smooth_l1_loss(student, teacher)
    return (1 - (directions(student, dim) * directions(teacher, dim)).sum(dim)).mean()


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")


class FeatureLoss(ProjectedLoss):
    """:func:`feature_loss` behind a linear projector of the student's channels to the teacher's: a
    1x1 convolution with bias.

    It is there where the channels agree too, since the two spaces have no common axes. Where the
    maps' sizes differ, the student's is resized to the teacher's (bilinear, no antialiasing).

    Args:
        kind: of :func:`feature_loss`.
        student_channels, teacher_channels: None: found by :meth:`build`.
        standardize: None; or ``'scale'`` or ``'phi'``, what the teacher's features become before
            they are compared (:class:`~kdtasks.general.several_teachers.Standardization`). While
            their statistics are collected, in the first steps, the loss is 0.
        rows: how many rows (of maps: places) these are of; None: as it says there.
        layout, prefix_tokens, grid: of features that are no rows or maps ``(B, C, H, W)``: of a
            Swin or ViT, one for both or (the student's, the teacher's), see
            :func:`~kdtasks.core.layouts.pair_to_nchw`.

    Raises:
        ValueError: another kind; in ``build`` and ``forward``, features that are not two maps or
            two tensors of rows of the same images, or of other channels.
    """

    def __init__(
        self,
        kind: str = "mse",
        student_channels: int | None = None,
        teacher_channels: int | None = None,
        standardize: str | None = None,
        rows: int | None = None,
        layout: str | Sequence[str | None] | None = None,
        prefix_tokens: int | Sequence[int] = 0,
        grid: Sequence | None = None,
    ):
        super().__init__(student_channels, teacher_channels)
        _check_kind(kind)
        self.kind, self.layout, self.prefix_tokens, self.grid = kind, layout, prefix_tokens, grid
        self.standardization = Standardization(standardize, rows) if standardize else None
        if self.standardization is not None and teacher_channels:
            self.standardization.build(teacher_channels)

    def features(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both as rows or maps, whatever their layout."""
        features = pair_to_nchw(student, teacher, self.layout, self.prefix_tokens, self.grid)
        return super().features(*features)

    def build(self, student: Tensor, teacher: Tensor) -> None:
        """Makes what needs the channels, if it is not there."""
        super().build(student, teacher)
        if self.standardization is not None:
            channels = self.features(student, teacher)[1].shape[1]
            self.standardization.build(channels, teacher.device)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of features (B, C) or (B, C, H, W), a scalar, after the student's projection."""
        student, teacher = self.projected(*raised(student, teacher.detach()))
        if self.standardization is not None:
            standardized = self.standardization(teacher)
            if standardized is None:
                return student.sum() * 0
            teacher = standardized
        if student.shape[2:] != teacher.shape[2:]:
            student = F.interpolate(
                student, teacher.shape[2:], mode="bilinear", align_corners=False
            )
        return feature_loss(student, teacher, self.kind)

    def extra_repr(self) -> str:
        """The kind."""
        return f"kind={self.kind!r}"
