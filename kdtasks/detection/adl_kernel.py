"""ADL's loss and gradient in one pass over chunks: what :func:`kdtasks.detection.adl.adl_terms`
sums to, without a tensor of the logits' size but the gradient.
"""

import math
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

from kdtasks.core.precision import raised_dtype
from kdtasks.general.divergences import times

# entries at a time, so that the scratch (2 MB) stays in cache
CHUNK = {"cpu": 2**16}
# fewer launches, and the scratch still is below 10 M entries
CHUNK_ELSEWHERE = 2**20
# sigmoid(-bound) is 0 beside 1, and exp(2 · bound) is finite
BOUND = {torch.float32: 40.0, torch.float64: 340.0}
# a probability that counts as 0
ZERO = {dtype: 1.001 * math.exp(-bound) for dtype, bound in BOUND.items()}


def adl_sums(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    with_gradient: bool,
    gamma: float,
    beta: float,
    power: float | None,
    base: str,
    alpha: float | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The loss before it is normalized, its gradient, and the sum of ``sigmoid(teacher)^power``.

    The sums are in float64; the gradient is float32 or float64, as the wider of the logits.
    """
    dtype, classes = raised_dtype(student, teacher), student.shape[-1]
    gradient = (
        torch.empty(student.shape, dtype=dtype, device=student.device) if with_gradient else None
    )
    sums = torch.zeros(2, dtype=torch.float64, device=student.device)
    if student.numel():
        rows = max(CHUNK.get(student.device.type, CHUNK_ELSEWHERE) // classes, 1)
        shape = 8, min(rows, student.numel() // classes), classes
        scratch = torch.empty(shape, dtype=dtype, device=student.device)
        scratch[0] = 1
        ignored = None if valid is None else valid.logical_not()[..., None]
        split = [
            [None] if t is None else t.reshape(-1, t.shape[-1]).split(rows)
            for t in (student, teacher, ignored, gradient)
        ]
        settings = gamma, beta, power, base, alpha
        for x, y, dropped, out in zip_longest(*split):
            _chunk(x.to(dtype), y.to(dtype), dropped, *settings, sums, out, scratch[:, : len(x)])
    loss, mass = sums.unbind()
    return loss, gradient, mass


def _chunk(
    x: Tensor,
    y: Tensor,
    dropped: Tensor | None,
    gamma: float,
    beta: float,
    power: float | None,
    base: str,
    alpha: float | None,
    sums: Tensor,
    gradient: Tensor | None,
    scratch: Tensor,
) -> None:
    """Adds the sums of one chunk of logits, and writes its gradient.

    ``q`` and ``p`` are teacher's and student's probability of the answer that the teacher finds
    less likely, so q <= 1/2. With delta the student's logit of it less the teacher's,
    ``KL = log1p(q·expm1(delta)) - q·delta`` and
    ``p - q = q(1-q)·expm1(delta) / (1 + q·expm1(delta))`` keep their digits where the two agree.

    Args:
        scratch: eight tensors of the chunk's shape, of which the first holds ones.
    """
    ones, sign, a, b, c, d, e, f = scratch
    bound, big = BOUND[x.dtype], torch.finfo(x.dtype).max
    # +1: the unlikely answer is "no"
    torch.copysign(ones, y, out=sign)
    # the teacher's logit of the likely answer
    likely = torch.abs(y, out=a)
    delta = torch.mul(x, sign, out=b)  # the student's, for now
    growth = torch.clamp(delta, max=bound, out=c)
    torch.sub(likely, delta, out=delta).clamp_(max=big)
    likely.clamp_(max=bound)
    # delta again, of a student's logit that is bounded
    torch.sub(likely, growth, out=growth)
    # softplus, for now: -log(1 - q)
    entropy = torch.neg(likely, out=d).exp_().log1p_()
    if power is not None:
        mass = torch.clamp(y, min=-big, max=0, out=e).sub_(entropy).mul_(power).exp_()
        sums[1] += (mass if dropped is None else mass.masked_fill_(mass.isnan() & dropped, 0)).sum()
    q = torch.neg(likely, out=f).sigmoid_()
    q_delta = delta.mul_(torch.threshold(q, ZERO[x.dtype], 0, out=e))
    # 0 · log 0 = 0; a logit's own NaN is in w too
    q_delta.nan_to_num_(nan=0, posinf=torch.inf, neginf=-torch.inf)
    entropy.addcmul_(q, likely)
    # log1p(q·exp) is linear there
    excess = torch.clamp(growth, min=2 * bound, out=a).sub_(2 * bound)
    w = growth.clamp_(max=2 * bound).expm1_().mul_(q)
    slope = torch.add(w, 1, out=e)
    slope = torch.div(w, slope, out=e)
    slope.addcmul_(slope, q, value=-1)  # p - q
    kl = w.log1p_().add_(excess).sub_(q_delta).relu_()
    # what the weight multiplies, and its derivative by the student's logit of the unlikely answer
    cost, cost_slope = kl, slope
    if alpha is not None:
        cost, cost_slope = _weighed_halves(x, y, sign, q, slope, alpha)
    elif base == "ce":
        cost = torch.add(kl, entropy, out=a)
    weight = entropy.mul_(beta).add_(kl).neg_().expm1_().neg_()  # A
    powered = {0: ones, 1: weight}.get(gamma)
    if powered is None:
        powered = torch.pow(weight, gamma, out=f)
    if gradient is not None:
        # minus the derivative by the logit of the unlikely answer
        pull = torch.sub(weight, ones, out=b).mul_(cost).mul_(slope)
        if gamma == 0:
            pull.zero_()
        elif gamma != 1:
            # at A = 0 the slope is infinite if gamma < 1
            pull.div_(weight).masked_fill_(weight == 0, 0).mul_(powered).mul_(gamma)
        pull.addcmul_(powered, cost_slope, value=-1)
        torch.mul(_without(dropped, pull), sign, out=gradient)
    sums[0] += _without(dropped, cost.mul_(powered)).sum()


def _weighed_halves(
    x: Tensor, y: Tensor, sign: Tensor, q: Tensor, slope: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """``-alpha·q log p - (1 - alpha)(1 - q) log(1 - p)``, and its derivative."""
    yes, no = alpha * torch.sigmoid(y), (1 - alpha) * torch.sigmoid(-y)
    cost = times(yes, F.logsigmoid(x)).add_(times(no, F.logsigmoid(-x))).neg_()
    p = slope + q
    return cost, torch.addcmul(slope / 2, p + q - 2 * p * q, sign, value=alpha - 0.5)


def _without(dropped: Tensor | None, values: Tensor) -> Tensor:
    return values if dropped is None else values.masked_fill_(dropped, 0)
