r"""Cosines within the batch, row against row: S2SD's divergence (Roth et al., ICML 2021, arXiv
2009.08348) and probabilistic knowledge transfer (PKT; Passalis and Tefas, ECCV 2018, arXiv
1803.10837).

Each sample's cosines with the whole batch make a probability of every sample, and the student's
should be the teacher's:

.. math::
    c_{ij} = \frac{\langle x_i, x_j \rangle}{\lVert x_i \rVert \lVert x_j \rVert}, \qquad
    L_{\mathrm{S2SD}} = \frac{1}{N} \sum_{i,j} p^t_{ij} \log \frac{p^t_{ij}}{p^s_{ij}}, \qquad
    p_{ij} = \frac{\exp(c_{ij} / T)}{\sum_k \exp(c_{ik} / T)}

    L_{\mathrm{PKT}} = \frac{1}{N^2} \sum_{i,j} q^t_{ij}
    \log \frac{q^t_{ij} + \epsilon}{q^s_{ij} + \epsilon}, \qquad
    q_{ij} = \frac{(c_{ij} + 1) / 2}{\sum_k (c_{ik} + 1) / 2}, \qquad \epsilon = 10^{-7}

Both are 0 where the student's rows are the teacher's turned, mirrored, or each scaled by a number
of its own, in a space of any width; not where they are moved. Nothing pulls the two spaces
together. (The :math:`\epsilon` leaves PKT a gradient of its own size there, and lets it fall below
0 by as little.) A row of zeros has cosine 0 with all, itself included, and receives no gradient.
All is worked out in float64.

**Weights.** S2SD's release has T = 1 and weight 50. It multiplies by T², which is 1 there and left
out here: at another T, put T² into the weight. Its teachers are wider heads on the student's own
backbone, which train along. PKT is a mean over N² entries of size 1/N, so it is small:
RepDistiller's weight for it is 30000.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.gather import gather_rows
from kdtasks.core.precision import raised_dtype

# of PKT, as in RepDistiller's port of the authors' code
EPS = 1e-7


def similarity_kl_loss(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, include_self: bool = True
) -> Tensor:
    """KL(teacher ‖ student) of the softmax of each row of cosines; mean over rows.

    Args:
        student: ``(N, Ds)`` embeddings; carries the gradient.
        teacher: ``(N, Dt)`` embeddings of the same samples; never receives a gradient.
        temperature: T > 0; 1 as in S2SD's release, which is soft: no probability of a row is above
            e² times another.
        include_self: a row has its own sample in it (cosine 1), as in the release; False: the N - 1
            others only.

    Returns:
        A scalar in nats, not multiplied by T². Half precision is raised to float32, float64 stays.
        A zero that still backpropagates when N < 2.

    Raises:
        ValueError: the shapes do not fit, or the temperature is not positive.
    """
    _check(student, teacher)
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    # (N, N)
    scores = [_cosines(rows) / temperature for rows in (student, teacher.detach())]
    if not include_self:
        itself = torch.eye(len(student), dtype=torch.bool, device=student.device)
        # probability 0
        scores = [score.masked_fill(itself, torch.finfo(score.dtype).min) for score in scores]
    log_student, log_teacher = (F.log_softmax(score, dim=1) for score in scores)
    divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return (divergence / max(len(student), 1)).to(raised_dtype(student, teacher))


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the rows of (cosine + 1) / 2, each divided by its sum; mean over all
    N² entries.

    Shapes, gradient, precision, few rows and errors as in :func:`similarity_kl_loss`; a scalar in
    nats.
    """
    _check(student, teacher)
    # (N, N)
    kernels = (_cosines(rows) + 1 for rows in (student, teacher.detach()))
    q_student, q_teacher = (kernel / kernel.sum(1, keepdim=True) for kernel in kernels)
    divergence = (q_teacher * ((q_teacher + EPS) / (q_student + EPS)).log()).sum()
    return (divergence / max(len(student), 1) ** 2).to(raised_dtype(student, teacher))


class SimilarityKLLoss(nn.Module):
    """Module form of :func:`similarity_kl_loss`; the weight in S2SD's release is 50.

    ``gather=True`` relates the rows of all processes, which must have equally many; each computes
    the whole loss, and the step is that of one process with all rows. Without effect in a run of
    one process.
    """

    def __init__(self, temperature: float = 1.0, include_self: bool = True, gather: bool = False):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.temperature, self.include_self, self.gather = temperature, include_self, gather

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of ``(N, Ds)`` and ``(N, Dt)`` embeddings of the same samples."""
        student, teacher = _gathered(student, teacher, self.gather)
        return similarity_kl_loss(student, teacher, self.temperature, self.include_self)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"temperature={self.temperature}, include_self={self.include_self}, "
            f"gather={self.gather}"
        )


class PKTLoss(nn.Module):
    """Module form of :func:`pkt_loss`; RepDistiller's weight is 30000. ``gather`` as in
    :class:`SimilarityKLLoss`.
    """

    def __init__(self, gather: bool = False):
        super().__init__()
        self.gather = gather

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of ``(N, Ds)`` and ``(N, Dt)`` embeddings of the same samples."""
        return pkt_loss(*_gathered(student, teacher, self.gather))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"gather={self.gather}"


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ValueError(
            f"expected (N, Ds) and (N, Dt) of the same N samples, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )


def _gathered(student: Tensor, teacher: Tensor, gather: bool) -> tuple[Tensor, Tensor]:
    _check(student, teacher)
    return (gather_rows(student), gather_rows(teacher.detach())) if gather else (student, teacher)


def _cosines(rows: Tensor) -> Tensor:
    """(N, N) float64; 0 in the row and column of a row of zeros, which receives no gradient."""
    rows = rows.double()
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows = rows / length.where(length > 0, torch.inf)
    return rows @ rows.T
