"""RKD's angles and their gradient, :func:`kdtasks.general.rkd.angle_sum`, in blocks that stay in a
core's cache.
"""

import torch
from torch import Tensor

from kdtasks.general.distances import inverse_distances

ROWS = 32  # of a block
# entries of a block: a handful of them (1 MB each) stay in the cache
BLOCK = {"cpu": 2**17}
BLOCK_ELSEWHERE = 2**22  # fewer launches


def angle_sum(
    student: Tensor, teacher: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum over all triples of indices, and its gradient by the student's squared distances.

    The gradient is that of symmetric distances: what an end pulls stands in one of its two places.
    """
    n, entries = len(student), BLOCK.get(student.device.type, BLOCK_ELSEWHERE)
    loss = student.new_zeros(())
    gradient = torch.zeros_like(student) if with_gradient else None
    pair = [(squared, inverse_distances(squared)) for squared in (student, teacher)]
    for v in _slices(n, max(entries // (ROWS * n), 1)):
        for b in _slices(n, ROWS):
            _block(*pair, v, b, b, 1, loss, gradient)
            # the angle at v is from c to b too
            _block(*pair, v, b, slice(b.stop, n), 2, loss, gradient)
    return loss, gradient


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]


def _block(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    v: slice,
    b: slice,
    c: slice,
    times: int,
    loss: Tensor,
    gradient: Tensor | None,
) -> None:
    """Adds the angles at v between b and c to the loss, and what they pull to the gradient by the
    squared distances.

    With ``a`` the squared length of an arm, ``r = a^(-1/2)`` and ``d`` the squared distance of the
    two ends, the cosine is ``(a_b + a_c - d) r_b r_c / 2``. Its derivative by d is ``-r_b r_c /
    2``, by a_b it is ``(r_b r_c - cos r_b²) / 2``.
    """

    def cosine(apart: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        scale = inverse[v, b, None] * (inverse[v, None, c] / 2)
        # (v, b, c)
        return torch.add(apart[v, b, None], apart[v, None, c]).sub_(apart[b, c]).mul_(scale), scale

    (cos, scale), (target, _) = cosine(*student), cosine(*teacher)
    error = torch.sub(cos, target, out=target)
    # of Huber, whose value is slope · (error - slope / 2)
    slope = error.clamp(-1, 1)
    loss += times * (
        torch.dot(slope.view(-1), error.view(-1)) - torch.dot(slope.view(-1), slope.view(-1)) / 2
    )
    if gradient is not None:
        _, inverse = student
        of_ends, of_arms = scale.mul_(slope), cos.mul_(slope).div_(2)
        gradient[b, c] -= times * of_ends.sum(0)
        gradient[v, b] += times * (of_ends.sum(2) - inverse[v, b].square() * of_arms.sum(2))
        gradient[v, c] += times * (of_ends.sum(1) - inverse[v, c].square() * of_arms.sum(1))
