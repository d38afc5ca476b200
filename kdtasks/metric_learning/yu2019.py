r"""The absolute and the relative teacher (Yu et al., "Learning Metrics from Teachers: Compact
Networks for Image Embedding", CVPR 2019, arXiv 1904.03624): the student puts a sample where the
teacher does, or two samples as far apart as the teacher does.

.. math::
    L_{\mathrm{abs}} = \frac{1}{N} \sum_i \lVert s_i - t_i \rVert, \qquad
    L_{\mathrm{rel}} = \sqrt{\sum_{i,j} (d^s_{ij} - d^t_{ij})^2} \quad\text{or}\quad
    \operatorname*{mean}_{i \ne j} \lvert d^s_{ij} - d^t_{ij} \rvert, \qquad
    d_{ij} = \lVert x_i - x_j \rVert

Both are in the embeddings' unit, and no mean distance takes it out as in RKD: scale matters.
Neither normalises rows; the authors' embeddings are L2-normalised. Where the batch lies and how it
is turned is nothing to the relative teacher: only the absolute one pulls the two spaces together,
so that a student's query finds its like in a teacher's gallery.

**Weights** in the authors' script, beside a triplet loss in batches of 32: absolute 1.0 (CUB-200),
1.5 (Cars-196), 2.0 (SOP); relative 0.30, 0.10, 1.0, with the root of the sum.
"""

import torch
from torch import Tensor, nn

from kdtasks.core.gather import gather_rows
from kdtasks.core.names import did_you_mean
from kdtasks.core.precision import raised, raised_dtype
from kdtasks.general.distances import squared_distances

FORMS = ("frobenius", "pairs")


def absolute_teacher_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of the student's row from the teacher's; mean over rows.

    Args:
        student: ``(N, D)`` embeddings; carries the gradient.
        teacher: ``(N, D)`` embeddings of the same samples, as wide; never receives a gradient.

    Returns:
        A scalar in the embeddings' unit. Half precision is raised to float32, float64 stays. A row
        that has arrived receives no gradient. A zero that still backpropagates when N = 0.

    Raises:
        ValueError: the shapes do not fit; for a teacher of another width there is
            :class:`AbsoluteTeacherLoss`.
    """
    _check(student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected equal widths, got {_shapes(student, teacher)}; AbsoluteTeacherLoss has a "
            "projection between them, which build(student, teacher) makes before the optimizer is "
            "made"
        )
    student, teacher = raised(student, teacher.detach())
    return torch.linalg.vector_norm(student - teacher, dim=1).sum() / max(len(student), 1)


def relative_teacher_loss(student: Tensor, teacher: Tensor, form: str = "frobenius") -> Tensor:
    """How far the student's distances between rows are from the teacher's.

    Args:
        student: ``(N, Ds)`` embeddings; carries the gradient.
        teacher: ``(N, Dt)`` embeddings of the same samples; never receives a gradient.
        form: ``'frobenius'``: the norm of the difference of the two N x N matrices, as in the
            authors' code, to which their weights belong; it grows with N. ``'pairs'``: the mean
            absolute difference over pairs of distinct rows, as the paper is said to have it (we
            could not check its own text); it does not grow with N, and needs a weight of its own.

    Returns:
        A scalar in the embeddings' unit. Half precision is raised to float32, float64 stays. Rows
        that coincide have distance 0, and no gradient from each other. A zero that still
        backpropagates when N < 2.

    Raises:
        ValueError: the shapes do not fit, or there is no such form.
    """
    _check(student, teacher)
    _check_form(form)
    # (N, N)
    n, error = len(student), _distances(student) - _distances(teacher.detach())
    if form == "frobenius":
        loss = torch.linalg.vector_norm(error)
    else:
        loss = error.abs().sum() / max(n * (n - 1), 1)
    return loss.to(raised_dtype(student, teacher))


class AbsoluteTeacherLoss(nn.Module):
    """:func:`absolute_teacher_loss`, where the widths differ behind a linear layer from the
    student's to the teacher's.

    The layer trains with the student and belongs to the loss: it is not exported, and without it a
    student's rows do not lie where the teacher's do.

    Args:
        projection: have the layer where the widths agree too.
    """

    # whether the student's space becomes the teacher's
    aligns = True

    def __init__(self, projection: bool = False):
        super().__init__()
        self.always, self.projection = projection, None

    def build(self, student: Tensor, teacher: Tensor) -> None:
        """Make the projection that these two need, if there is none yet; the Distiller calls this
        before the optimizer is made.
        """
        _check(student, teacher)
        if self.projection is None and (self.always or student.shape != teacher.shape):
            widths = student.shape[1], teacher.shape[1]
            self.projection = nn.Linear(*widths, device=student.device, dtype=raised_dtype(student))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of ``(N, Ds)`` and ``(N, Dt)`` embeddings of the same samples."""
        _check(student, teacher)
        if self.projection is not None:
            widths = self.projection.in_features, self.projection.out_features
            if (student.shape[1], teacher.shape[1]) != widths:
                raise ValueError(
                    f"the projection goes from width {widths[0]} to {widths[1]}, got "
                    f"{_shapes(student, teacher)}"
                )
            student = self.projection(student.to(self.projection.weight.dtype))
        elif self.always:
            raise RuntimeError(
                "the projection is not there: call build(student, teacher) before the optimizer is "
                "made"
            )
        return absolute_teacher_loss(student, teacher)


class RelativeTeacherLoss(nn.Module):
    """Module form of :func:`relative_teacher_loss`. ``gather=True`` relates the rows of all
    processes, which must have equally many; each computes the whole loss, and the step is that of
    one process with all rows.
    """

    def __init__(self, form: str = "frobenius", gather: bool = False):
        super().__init__()
        _check_form(form)
        self.form, self.gather = form, gather

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of ``(N, Ds)`` and ``(N, Dt)`` embeddings of the same samples."""
        _check(student, teacher)
        if self.gather:
            student, teacher = gather_rows(student), gather_rows(teacher.detach())
        return relative_teacher_loss(student, teacher, self.form)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"form={self.form!r}, gather={self.gather}"


def _shapes(student: Tensor, teacher: Tensor) -> str:
    return f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ValueError(
            f"expected (N, Ds) and (N, Dt) of the same N samples, got {_shapes(student, teacher)}"
        )


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"no form {form!r}; {did_you_mean(str(form), FORMS)}")


def _distances(rows: Tensor) -> Tensor:
    """(N, N) float64; 0 for rows that coincide, without the root's infinite slope."""
    squared = squared_distances(rows)
    nonzero = squared != 0  # a NaN stays one
    return squared.where(nonzero, 1).sqrt().where(nonzero, 0)
