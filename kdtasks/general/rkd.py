r"""Relational knowledge distillation (Park, Kim, Lu and Cho, CVPR 2019, arXiv 1904.05068).

The student need not put a sample where the teacher puts it; it should keep the relations within the
batch. Two of them: how far two samples are apart, in units of the batch's mean distance
:math:`\mu`, and the angle at sample j between samples i and k. With the Huber loss :math:`h` (half
the square within 1, linear beyond):

.. math::
    L_D &= \sum_{i \ne j} h\Bigl(\frac{\lVert t_i - t_j \rVert}{\mu_t},
    \frac{\lVert s_i - s_j \rVert}{\mu_s}\Bigr),
    \qquad \mu = \operatorname*{mean}_{i \ne j} \lVert x_i - x_j \rVert

    L_A &= \sum_{i, j, k} h(\cos \angle t_i t_j t_k, \cos \angle s_i s_j s_k), \qquad
    \cos \angle x_i x_j x_k =
    \frac{\langle x_i - x_j, x_k - x_j \rangle}{\lVert x_i - x_j \rVert \lVert x_k - x_j \rVert}

    L &= L_{\mathrm{task}} + \lambda_D L_D + \lambda_A L_A

The gradient goes through the student's :math:`\mu` too. Both are 0 where the student's rows are the
teacher's moved, turned, mirrored or scaled, in a space of any width: student and teacher need not
have the same one, and nothing pulls the two spaces together.

**Weights.** The paper sums; the authors' code and those that followed divide by N² and N³, and
their weights belong to these divisors (``'all'``): 1 and 2 for embeddings, without any task loss,
the teacher's rows L2-normalised and the student's not (the authors' scripts); 25 and 50 beside
cross-entropy for classification. Neither loss normalises rows itself. The relations are those of
one process's rows unless they are gathered (``RKDLoss(gather=True)``).

**Angles.** All N³ of them follow from the N² squared distances, by the law of cosines
(:func:`angle_sum`); so do their gradients, in closed form. A training step works through them in
blocks that stay in a core's cache, in float64, without a tensor of N³ or of N² times the width
(:mod:`kdtasks.general.rkd_kernel`). Where two rows coincide, an arm has no length and no direction:
its cosines count as 0, its gradient is 0. (The usual form, a difference divided by its norm or by
1e-12, gives gradients of 1e9 there.) Rows coincide up to a millionth of the largest distance in
their batch, in every precision: below it, float32 has left little of an arm's direction, and one
image that went through a network twice would get a gradient thousands of times the others'.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.fused import fused
from kdtasks.core.gather import gather_rows
from kdtasks.core.names import did_you_mean
from kdtasks.core.precision import raised_dtype
from kdtasks.general import rkd_kernel
from kdtasks.general.distances import has_length, inverse_distances, squared_distances


def distance_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """L_D, from the ``(N, N)`` squared distances."""
    return F.smooth_l1_loss(
        relative_distances(student), relative_distances(teacher), reduction="sum"
    )


def relative_distances(squared: Tensor) -> Tensor:
    """``(N, N)`` squared distances -> distances over their mean, the diagonal left out; 0 for rows
    that coincide, without the root's infinite slope.
    """
    is_apart = squared != 0  # a NaN stays one
    distances = squared.where(is_apart, 1).sqrt().where(is_apart, 0)
    mean = distances.sum() / (len(squared) * (len(squared) - 1))
    return distances / mean.where(mean > 0, 1)


def angle_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """L_A over all triples of indices, from the ``(N, N)`` squared distances."""
    return F.smooth_l1_loss(cosines(student), cosines(teacher), reduction="sum")


def cosines(squared: Tensor) -> Tensor:
    """``(N, N)`` squared distances -> ``(N, N, N)`` cosines of the angles at j between i and k, as
    ``[j, i, k]``, by the law of cosines.
    """
    inverse = inverse_distances(squared)
    # |x_i - x_j|² + |x_k - x_j|² - |x_i - x_k|² is twice the inner product of the arms
    products = (squared[:, :, None] + squared[:, None, :] - squared) / 2
    return products * inverse[:, :, None] * inverse[:, None, :]


def rkd_distance_loss(student: Tensor, teacher: Tensor, divisor: str = "all") -> Tensor:
    """Huber loss of the distances between rows, each in units of its batch's mean distance
    (section 3.2.1).

    Args:
        student: ``(N, Ds)`` embeddings; carries the gradient, through the mean distance as well.
        teacher: ``(N, Dt)`` embeddings of the same samples; never receives a gradient.
        divisor: what the sum over ordered pairs of distinct rows is divided by. ``'all'``: N², as
            in the authors' code, for which the published weights are; ``'pairs'``: N(N-1), how many
            these pairs are; ``'sum'``: 1, as the paper has it.

    Returns:
        A scalar without unit. Half precision is raised to float32, float64 stays. A zero that still
        backpropagates when N < 2. Rows that coincide count in the mean, with distance 0 and
        gradient 0; if all do, all distances are 0.

    Raises:
        ValueError: the shapes do not fit, or there is no such divisor.
    """
    _check(student, teacher)
    count = _count(divisor, "pairs", len(student), 2)
    if len(student) < 2:
        return _nothing(student, teacher)
    loss = distance_sum(squared_distances(student), squared_distances(teacher.detach()))
    return (loss / count).to(raised_dtype(student, teacher))


def rkd_angle_loss(student: Tensor, teacher: Tensor, divisor: str = "all") -> Tensor:
    """Huber loss of the cosines of the angles that two rows make at a third (section 3.2.2).

    Args:
        student: ``(N, Ds)`` embeddings; carries the gradient.
        teacher: ``(N, Dt)`` embeddings of the same samples; never receives a gradient.
        divisor: ``'all'``: the mean over all N³ triples of indices, as in the authors' code, for
            which the published weights are; ``'triplets'``: the mean over the N(N-1)(N-2) ordered
            triples of distinct rows; ``'sum'``: the sum of these, as the paper writes it. (The
            other triples are 0, but for one thing: an arm and itself make a cosine of 1, and of 0
            where the arm has no length. So ``'all'`` has ½ more in its sum for each ordered pair
            that coincides in one of the two spaces only.)

    Returns:
        A scalar. Half precision is raised to float32, float64 stays. A zero that still
        backpropagates when N < 3. Time N³ + N² (Ds + Dt), memory N² and a few MB;
        ``create_graph=True``, ``torch.func`` and ``torch.compile`` have the plain form,
        :func:`angle_sum`, with tensors of N³.

    Raises:
        ValueError: the shapes do not fit, or there is no such divisor.
    """
    _check(student, teacher)
    count = _count(divisor, "triplets", len(student), 3)
    if len(student) < 3:
        return _nothing(student, teacher)
    distances = squared_distances(student), squared_distances(teacher.detach())
    loss = fused(angle_sum, rkd_kernel.angle_sum, *distances)
    if divisor != "all":
        # an arm and itself
        loss = loss - (has_length(distances[0]) != has_length(distances[1])).sum() / 2
    return (loss / count).to(raised_dtype(student, teacher))


class RKDLoss(nn.Module):
    """``distance_weight * rkd_distance_loss + angle_weight * rkd_angle_loss``, both with divisor
    ``'all'``, in one scalar.

    To see the two in the log, list :func:`rkd_distance_loss` and :func:`rkd_angle_loss` as two
    losses instead.

    Args:
        distance_weight: 1 in the authors' metric-learning scripts, 25 beside cross-entropy; 0: left
            out, and costs nothing.
        angle_weight: 2 and 50; 0: left out, and costs nothing.
        gather: relate the rows of all processes, which must have equally many; each computes the
            whole loss, and the step is that of one process with all rows. Without effect in a run
            of one process.
    """

    def __init__(
        self, distance_weight: float = 1.0, angle_weight: float = 2.0, gather: bool = False
    ):
        super().__init__()
        for name, weight in (("distance_weight", distance_weight), ("angle_weight", angle_weight)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {weight}")
        self.distance_weight, self.angle_weight, self.gather = distance_weight, angle_weight, gather

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Embeddings (N, D) and (N, D') of the same samples -> a scalar."""
        _check(student, teacher)
        if self.gather:
            student, teacher = gather_rows(student), gather_rows(teacher.detach())
        n, loss = len(student), _nothing(student, teacher)
        if n < 2 or not (self.distance_weight or self.angle_weight):
            return loss
        # of both losses
        distances = squared_distances(student), squared_distances(teacher.detach())
        if self.distance_weight:
            loss = loss + self.distance_weight * (distance_sum(*distances) / n**2)
        if self.angle_weight and n > 2:
            angles = fused(angle_sum, rkd_kernel.angle_sum, *distances)
            loss = loss + self.angle_weight * (angles / n**3)
        return loss.to(raised_dtype(student, teacher))

    def extra_repr(self) -> str:
        """Both weights, and whether rows of all processes are related."""
        weights = f"distance_weight={self.distance_weight}, angle_weight={self.angle_weight}"
        return f"{weights}, gather={self.gather}"


def _count(divisor: str, distinct: str, n: int, k: int) -> int:
    """Of n rows' k-tuples: how many there are, how many of distinct rows, or 1."""
    counts = {"all": n**k, distinct: n * (n - 1) * (n - 2 if k == 3 else 1), "sum": 1}
    if divisor not in counts:
        raise ValueError(f"no divisor {divisor!r}; {did_you_mean(str(divisor), counts)}")
    return counts[divisor]


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ValueError(
            f"expected (N, Ds) and (N, Dt) of the same N samples, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )


def _nothing(student: Tensor, teacher: Tensor) -> Tensor:
    """A zero that is connected to the student, whatever its rows hold."""
    return student[:0].sum().to(raised_dtype(student, teacher))
