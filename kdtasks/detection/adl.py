r"""Adaptive distillation loss for dense one-stage heads (Tang, Feng, Shi et al., arXiv 1901.00366).

A dense head gives one sigmoid logit for every anchor and class, almost all of them easy background.
The student matches the teacher's probability at each of them, and an entry weighs more where it is
hard to learn (the teacher is unsure: its entropy :math:`H` is high) or hard to mimic (the student
is far from the teacher). With :math:`q` the teacher's and :math:`p` the student's probability:

.. math::
    \mathrm{KL} = q \log\frac{q}{p} + (1-q) \log\frac{1-q}{1-p}, \qquad H = -q \log q - (1-q) \log(1-q)

    L = \frac{1}{Z} \sum_{\text{anchors, classes}} A^\gamma\,\mathrm{KL}, \qquad
    A = 1 - e^{-(\mathrm{KL} + \beta H)}, \qquad Z = \max\Bigl(1, \sum q^{\theta}\Bigr)

The gradient goes through the weight too: with :math:`M` what the weight multiplies (here KL), it is
:math:`\gamma A^{\gamma-1} (1 - A)(p - q) M + A^\gamma\, \partial M/\partial z`. The box branch is
not distilled. Paper and release differ; both are presets of :class:`ADLLoss`:

- ``paper``: the formula above, gamma 1, beta 1.5. The formula and these two values come from two
  independent ports (aw_nas and an FCOS fork); we could not check them against the paper's own text.
- ``released``: read in the authors' Caffe2 kernel and config (gamma 2, alpha 0.5, theta 1.8). There
  the weight multiplies :math:`-\alpha q \log p - (1-\alpha)(1-q)\log(1-p)`, a cross-entropy that
  does **not** vanish at :math:`p = q`. Its own beta is another one: it subtracts ``beta * H`` from
  the cross-entropy, and 0 there is 1 here.

theta (``power``) is 1.8 in the release's config, and used for both. Z sums over all pyramid levels
at once, ignored anchors included: concatenate the levels. The release adds the loss with weight 1
to focal and box loss, and leaves out of the numerator (``valid``) the anchors that its labels
ignore.

The kernel of the release is NaN where a probability rounds to 0 or 1. Here no finite logits give a
NaN: every entry is seen from the answer that the teacher finds less likely, whose probability keeps
all its digits, and no logarithm of a rounded probability is taken. An infinite logit (a masked
class, -inf) is a probability of 0 or 1: where both have it, the entry costs nothing and pulls
nothing; where the student rules out what the teacher does not, the loss is +inf. Loss and gradient
come out of one pass over chunks that stay in a core's cache.
"""

import math
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.gather import mean_over_processes
from kdtasks.core.names import did_you_mean
from kdtasks.general.divergences import times

PRESETS = {
    "paper": {"base": "kl", "alpha": None, "gamma": 1.0, "beta": 1.5, "power": 1.8},
    "released": {"base": "ce", "alpha": 0.5, "gamma": 2.0, "beta": 1.0, "power": 1.8},
}
# entries at a time, so that the scratch (2 MB) stays in cache
CHUNK = {"cpu": 2**16}
# fewer launches, and the scratch still is below 10 M entries
CHUNK_ELSEWHERE = 2**20
# sigmoid(-bound) is 0 beside 1, and exp(2 · bound) is finite
BOUND = {torch.float32: 40.0, torch.float64: 340.0}
# a probability that counts as 0
ZERO = {dtype: 1.001 * math.exp(-bound) for dtype, bound in BOUND.items()}


def adl_loss(
    student: Tensor,
    teacher: Tensor,
    gamma: float = 1.0,
    beta: float = 1.5,
    power: float = 1.8,
    base: str = "kl",
    alpha: float | None = None,
    valid: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Sum over entries of ``(1 - exp(-(KL + beta·H)))^gamma`` times KL (or cross-entropy), over the
    normalizer.

    Args:
        student: ``(…, A, K)`` logits of A anchors and K sigmoid classes; carries the gradient. All
            levels in one tensor.
        teacher: logits of the same shape; never receives a gradient.
        gamma: >= 0, the weight's power; 0 is the plain divergence.
        beta: >= 0, how much the teacher's entropy adds to the weight, relative to the divergence.
        power: >= 0, theta of the normalizer; without effect if one is given.
        base: what the weight multiplies. ``'kl'``: the divergence; ``'ce'``: the cross-entropy with
            the teacher.
        alpha: in [0, 1], for ``'ce'`` only: multiplies its ``q log p`` half, ``1 - alpha`` the
            other half.
        valid: bool ``(…, A)``; the other anchors give neither loss nor gradient, whatever they
            hold.
        normalizer: a number or scalar tensor > 0, taken as it is. None: the sum of
            ``sigmoid(teacher)^power`` over the whole tensor, anchors that are not valid included,
            and at least 1.

    Returns:
        A scalar in nats. Half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there are no anchors. Differentiable once. Memory of one float32 tensor
        of the student's size until backward.

    Raises:
        ValueError: shapes, ``base``, or a number out of its range.
    """
    loss, mass = _sums(
        student, teacher, gamma, beta, power if normalizer is None else None, base, alpha, valid
    )
    if normalizer is None:
        normalizer = mass.clamp(min=1)
    elif isinstance(normalizer, Tensor):
        normalizer = normalizer.detach()
    elif not normalizer > 0:
        raise ValueError(f"normalizer must be > 0, got {normalizer}")
    return (loss / normalizer).to(_precision(student, teacher))


class ADLLoss(nn.Module):
    """:func:`adl_loss` with the settings of the paper or of its release; an argument that is not
    None replaces the preset's.

    ``'paper'``: KL, gamma 1, beta 1.5, power 1.8. ``'released'``: cross-entropy with alpha 0.5,
    gamma 2, beta 1, power 1.8. The module's docstring says where these come from, and that gamma
    and beta of ``'paper'`` are not verified against its text.

    In a run of several processes the sum of the teacher's probabilities is averaged over them, then
    clamped at 1: with gradients averaged, as DDP does, the step is that of one process with all
    images. So each of them must call it in each step. (The release normalizes each GPU by its own.)
    """

    def __init__(
        self,
        preset: str = "paper",
        gamma: float | None = None,
        beta: float | None = None,
        power: float | None = None,
        base: str | None = None,
        alpha: float | None = None,
    ):
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}; {did_you_mean(preset, PRESETS)}")
        given = {"gamma": gamma, "beta": beta, "power": power, "base": base, "alpha": alpha}
        self.settings = PRESETS[preset] | {
            name: value for name, value in given.items() if value is not None
        }
        if base == "kl" and alpha is None:
            # the preset's alpha belongs to its cross-entropy
            self.settings["alpha"] = None
        _check(**self.settings)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        loss, mass = _sums(student, teacher, valid=valid, **self.settings)
        mass, one = mean_over_processes(mass)
        return (loss / mass.clamp(min=one)).to(_precision(student, teacher))

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={value!r}" for name, value in self.settings.items() if value is not None
        )


def _check(gamma: float, beta: float, power: float | None, base: str, alpha: float | None) -> None:
    for name, value in (("gamma", gamma), ("beta", beta), ("power", power)):
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    if base not in ("kl", "ce"):
        raise ValueError(f"no base {base!r}; {did_you_mean(str(base), ('kl', 'ce'))}")
    if alpha is not None and base == "kl":
        raise ValueError(
            f"alpha={alpha} weighs the halves of the cross-entropy: give base='ce' "
            "with it, or no alpha"
        )
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")


def _precision(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.element_size() == 8 for t in tensors) else torch.float32


def _sums(
    student: Tensor,
    teacher: Tensor,
    gamma: float,
    beta: float,
    power: float | None,
    base: str,
    alpha: float | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The loss before it is normalized, and the sum of ``sigmoid(teacher)^power``: float64 scalars."""
    _check(gamma, beta, power, base, alpha)
    if student.shape != teacher.shape or student.dim() < 2:
        raise ValueError(
            f"expected two equal shapes (..., A, K), got student "
            f"{tuple(student.shape)} "
            f"and teacher {tuple(teacher.shape)}"
        )
    if valid is not None and (valid.shape != student.shape[:-1] or valid.dtype != torch.bool):
        raise ValueError(
            f"expected valid as bool {tuple(student.shape[:-1])}, got {valid.dtype} "
            f"{tuple(valid.shape)} "
            f"with student {tuple(student.shape)}"
        )
    wanted = student.requires_grad and torch.is_grad_enabled()
    return _ADL.apply(student, teacher.detach(), valid, (gamma, beta, power, base, alpha), wanted)


class _ADL(torch.autograd.Function):
    """Both sums; the gradient is written while the loss is computed, and only scaled in backward."""

    @staticmethod
    def forward(
        ctx, student: Tensor, teacher: Tensor, valid: Tensor | None, settings: tuple, wanted: bool
    ):
        dtype, classes = _precision(student, teacher), student.shape[-1]
        gradient = (
            torch.empty(student.shape, dtype=dtype, device=student.device) if wanted else None
        )
        sums = torch.zeros(2, dtype=torch.float64, device=student.device)
        if student.numel():
            rows = max(CHUNK.get(student.device.type, CHUNK_ELSEWHERE) // classes, 1)
            scratch = torch.empty(
                8,
                min(rows, student.numel() // classes),
                classes,
                dtype=dtype,
                device=student.device,
            )
            scratch[0] = 1
            split = [
                [None] if t is None else t.reshape(-1, t.shape[-1]).split(rows)
                for t in (
                    student,
                    teacher,
                    gradient,
                    None if valid is None else valid.logical_not()[..., None],
                )
            ]
            for x, y, out, dropped in zip_longest(*split):
                _chunk(
                    x.to(dtype), y.to(dtype), dropped, *settings, sums, out, *scratch[:, : len(x)]
                )
        if wanted:
            ctx.save_for_backward(gradient)
            ctx.dtype = student.dtype
        loss, mass = sums.unbind()
        ctx.mark_non_differentiable(mass)
        return loss, mass

    @staticmethod
    def backward(ctx, scale: Tensor, _):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "adl_loss can be differentiated once: its gradient has no "
                "derivative, so no create_graph=True"
            )
        (gradient,) = ctx.saved_tensors
        return (
            torch.mul(gradient, -scale, out=torch.empty_like(gradient, dtype=ctx.dtype)),
            None,
            None,
            None,
            None,
        )


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
    one: Tensor,
    sign: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    e: Tensor,
    f: Tensor,
) -> None:
    """Adds the sums of one chunk, and writes its gradient with the sign turned; ``a`` to ``f`` are
    scratch.

    ``q`` and ``p`` are teacher's and student's probability of the answer that the teacher finds
    less likely, so q <= 1/2. With delta the student's logit of it less the teacher's: ``KL =
    log1p(q·expm1(delta)) - q·delta``, and ``p - q = q(1-q)·expm1(delta) / (1 + q·expm1(delta))``,
    which keep their digits where the two agree.
    """
    bound, big = BOUND[x.dtype], torch.finfo(x.dtype).max
    # +1: the unlikely answer is "no"
    torch.copysign(one, y, out=sign)
    # the teacher's logit of the likely answer
    likely = torch.abs(y, out=a)
    delta = torch.mul(x, sign, out=b)  # the student's, for now
    growth = torch.clamp(delta, max=bound, out=c)
    torch.sub(likely, delta, out=delta).clamp_(max=big)
    likely.clamp_(max=bound)
    # delta again, within what exp can take
    torch.sub(likely, growth, out=growth)
    # softplus, for now: -log(1 - q)
    entropy = torch.neg(likely, out=d).exp_().log1p_()
    if power is not None:
        mass = torch.clamp(y, max=0, out=e).sub_(entropy).mul_(power).exp_()
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
    multiplicand = kl if base == "kl" else torch.add(kl, entropy, out=a)
    # its derivative by the student's logit
    of_multiplicand = slope
    if alpha is not None:
        yes, no = alpha * torch.sigmoid(y), (1 - alpha) * torch.sigmoid(-y)
        multiplicand = times(yes, F.logsigmoid(x)).add_(times(no, F.logsigmoid(-x))).neg_()
        p = slope + q
        of_multiplicand = torch.addcmul(slope / 2, p + q - 2 * p * q, sign, value=alpha - 0.5)
    weight = entropy.mul_(beta).add_(kl).neg_().expm1_().neg_()  # A
    pull = (
        None if gradient is None else torch.sub(one, weight, out=b).mul_(multiplicand).mul_(slope)
    )
    if gamma == 0:
        weight = one
        if pull is not None:
            pull.zero_()
    elif gamma != 1:
        power_of = torch.pow(weight, gamma, out=f)
        # at A = 0 the slope is infinite if gamma < 1
        if pull is not None:
            pull.div_(weight).masked_fill_(weight == 0, 0).mul_(power_of).mul_(gamma)
        weight = power_of
    if pull is not None:
        pull.addcmul_(weight, of_multiplicand)
        torch.mul(pull if dropped is None else pull.masked_fill_(dropped, 0), sign, out=gradient)
    loss = multiplicand.mul_(weight)
    sums[0] += (loss if dropped is None else loss.masked_fill_(dropped, 0)).sum()
