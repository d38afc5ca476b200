"""What DarkRank's lists cost, together with the gradient: the same as the plain forms in
:mod:`kdtasks.metric_learning.darkrank`.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

# exp(-600) and its inverse are float64 numbers with all their digits
EXP_LIMIT = 600


def list_costs(
    student: Tensor,
    teacher: Tensor | None,
    with_gradient: bool,
    costs_of: Callable,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """(N, n) squared distances of the candidates from their query -> (N,) costs, and the gradient.

    Args:
        teacher: the teacher's squared distances; None where only their order counts.
        with_gradient: without effect: the gradient costs little beside the value.
        costs_of: (N, n) scores -> (N,) costs, and their derivatives by the student's scores.
    """
    taught = () if teacher is None else (scores_and_slope(teacher, alpha, beta)[0],)
    scores, slope = scores_and_slope(student, alpha, beta)
    costs, pull = costs_of(scores, *taught)
    return costs, slope.mul_(pull)


def scores_and_slope(squared: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """``-alpha * d^beta``, and its derivative by d²; 0 at 0, where that of a beta below 2 is
    infinite.
    """
    power = squared.pow(beta / 2 - 1).mul_(-alpha)
    if beta < 2:
        power.masked_fill_(squared == 0, 0)
    return power * squared, power.mul_(beta / 2)


def hard_costs(scores: Tensor, places: int, bounded: bool) -> tuple[Tensor, Tensor]:
    """(N, n) scores in the teacher's order -> (N,) what the first ``places`` cost, and the
    derivatives by the scores.

    By score m it is -1 (in the first places only) plus the sum over places i up to m of exp(score
    m) / what is left at i. ``bounded``: no score is more than ``EXP_LIMIT`` below the best.
    """
    scores = scores - scores.amax(1, keepdim=True)
    # several times faster
    if bounded:
        chance = scores.exp()
        left = chance.flip(1).cumsum_(1).flip(1)
        upto, left = left.reciprocal().cumsum_(1), left.log_()
    else:
        left = scores.flip(1).logcumsumexp(1).flip(1)
        upto = left.neg().logcumsumexp(1)
    upto[:, places:] = upto[:, places - 1, None]
    pull = upto.mul_(chance) if bounded else upto.add_(scores).exp_()
    pull[:, :places] -= 1
    return left.sub_(scores)[:, :places].sum(1), pull


def soft_costs(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(N, n) scores of the same candidates -> (N,) costs, and their derivatives by the student's
    scores.
    """
    student, teacher = (x.T - x.amax(1) for x in (student, teacher))  # (n, N)
    # (2ⁿ, N)
    student_sums, teacher_sums = _subset_logsumexp(student), _subset_logsumexp(teacher)
    reach, costs, pull = (
        torch.zeros_like(teacher_sums),
        torch.zeros_like(teacher[0]),
        torch.empty_like(student),
    )
    reach[-1] = 1
    for sets, larger_sets, candidates in _lattice(len(teacher), teacher.device):
        reach[sets] = (
            reach[larger_sets] * (teacher[candidates] - teacher_sums[larger_sets]).exp()
        ).sum(1)
    for j in range(len(teacher)):
        # sets with j
        sums_s, sums_t, r = (
            x.unflatten(0, (-1, 2, 2**j))[:, 1] for x in (student_sums, teacher_sums, reach)
        )
        log_s, log_t = student[j] - sums_s, teacher[j] - sums_t
        chance = log_t.exp()
        costs += (r * chance * (log_t - log_s)).sum((0, 1))
        pull[j] = (r * (log_s.exp() - chance)).sum((0, 1))
    return costs, pull.T


def _subset_logsumexp(scores: Tensor) -> Tensor:
    """(n, N) -> (2ⁿ, N): row R is the log-sum-exp of the candidates whose bits R has; that of none
    is -inf.
    """
    sums = scores.new_full((1, scores.shape[1]), -torch.inf)
    for score in scores:
        sums = torch.cat([sums, torch.logaddexp(sums, score)])
    return sums


@functools.lru_cache(maxsize=32)
def _lattice(n: int, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Sets of n - 1, …, 1 candidates left: the sets ``(M,)``, those one larger ``(M, n - size)``,
    the one placed between.
    """
    sets, bits = torch.arange(2**n), torch.arange(n)
    # (2ⁿ, n)
    is_placed = (sets[:, None] >> bits & 1) == 0
    # larger sets first, less the whole
    by_size = is_placed.sum(1).argsort(stable=True)[1:]
    layers = []
    for size in range(n - 1, 0, -1):
        of_size, by_size = by_size[: math.comb(n, size)], by_size[math.comb(n, size) :]
        candidates = (
            is_placed[of_size].int().argsort(dim=1, descending=True, stable=True)[:, : n - size]
        )
        layers.append((of_size, of_size[:, None] | 1 << candidates, candidates))
    return [tuple(x.to(device) for x in layer) for layer in layers]
