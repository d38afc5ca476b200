r"""Adaptive distillation loss for dense one-stage heads (Tang, Feng, Shi et al., arXiv 1901.00366).

A dense head gives one sigmoid logit for every anchor and class, almost all of them easy background.
The student matches the teacher's probability at each of them, and an entry weighs more where it is
hard to learn (the teacher is unsure: its entropy :math:`H` is high) or hard to mimic (the student
is far from the teacher). With :math:`q` the teacher's and :math:`p` the student's probability:

.. math::
    \mathrm{KL} = q \log\frac{q}{p} + (1-q) \log\frac{1-q}{1-p}, \qquad
    H = -q \log q - (1-q) \log(1-q)

    L = \frac{1}{Z} \sum_{\text{anchors, classes}} A^\gamma\,\mathrm{KL}, \qquad
    A = 1 - e^{-(\mathrm{KL} + \beta H)}, \qquad Z = \max\Bigl(1, \sum q^{\theta}\Bigr)

The gradient goes through the weight too: with :math:`M` what the weight multiplies (here KL), it is
:math:`\gamma A^{\gamma-1} (1 - A)(p - q) M + A^\gamma\, \partial M/\partial z`. The box branch is
not distilled. Paper and release differ; both are presets of :class:`ADLLoss`:

- ``paper``: the formula above, gamma 1, beta 1.5. KL, H and A are those of a port (aw_nas), which
  these two values come from; it has a temperature of 2, positive anchors alone, and another Z, as
  another port (an FCOS fork) has a temperature and a Z of its own. Here Z is the release's, so the
  preset as a whole is nobody's. We could not check any of it against the paper's own text.
- ``released``: read in the authors' Caffe2 kernel and config (gamma 2, alpha 0.5, theta 1.8). There
  the weight multiplies :math:`-\alpha q \log p - (1-\alpha)(1-q)\log(1-p)`, a cross-entropy that
  does **not** vanish at :math:`p = q`. Its own beta is subtracted, ``CE - beta * H``, so that ours
  is 1 less that one: 0 there is 1 here.

theta (``power``) is 1.8 in the release's config, and used for both. Z sums over all pyramid levels
at once, ignored anchors included: concatenate the levels. The release adds the loss with weight 1
to focal and box loss, and leaves out of the numerator (``valid``) the anchors that its labels
ignore.

The kernel of the release is NaN where a probability rounds to 0 or 1. Here no finite logits give a
NaN: q and 1 - q both keep their digits, and no logarithm of a rounded probability is taken. An
infinite logit (a masked class, -inf) is a probability of 0 or 1: where both have it, the entry
costs nothing and pulls nothing; where the student rules out what the teacher does not, the loss is
+inf. (To the kernel a teacher's logit beyond ±40, in float64 ±340, is such a probability already.)

:func:`adl_terms` is the formula. A training step has the same from
:mod:`kdtasks.detection.adl_kernel`: loss and gradient in one pass over chunks of the logits.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.fused import fused
from kdtasks.core.gather import mean_over_processes
from kdtasks.core.names import did_you_mean
from kdtasks.core.precision import raised_dtype
from kdtasks.detection import adl_kernel
from kdtasks.general.divergences import times

PRESETS = {
    "paper": {"base": "kl", "alpha": None, "gamma": 1.0, "beta": 1.5, "power": 1.8},
    "released": {"base": "ce", "alpha": 0.5, "gamma": 2.0, "beta": 1.0, "power": 1.8},
}


def adl_terms(
    student: Tensor,
    teacher: Tensor,
    gamma: float = 1.0,
    beta: float = 1.5,
    base: str = "kl",
    alpha: float | None = None,
) -> Tensor:
    """The formula, entry by entry: ``A^gamma`` times KL or cross-entropy, before the sum and Z.

    Args: as of :func:`adl_loss`, logits of any shape.
    """
    kl, entropy = kl_and_entropy(student, teacher)
    weight = adl_weight(kl, entropy, gamma, beta)
    if base == "kl":
        return weight * kl
    yes, no = (1, 1) if alpha is None else (alpha, 1 - alpha)
    q, rest = teacher.sigmoid(), (-teacher).sigmoid()
    cost = -times(yes * q, F.logsigmoid(student)) - times(no * rest, F.logsigmoid(-student))
    return weight * cost


def adl_weight(kl: Tensor, entropy: Tensor, gamma: float = 1.0, beta: float = 1.5) -> Tensor:
    """The adaptive weight of each entry, ``A^gamma`` with ``A = 1 - exp(-(KL + beta·H))``."""
    weight = -torch.expm1(-(kl + beta * entropy))
    if gamma == 1:
        return weight
    # no gradient at A = 0, where a power below 1 has an infinite slope
    zero = weight == 0
    return weight.masked_fill(zero, 1).pow(gamma).masked_fill(zero, 0.0**gamma)


def kl_and_entropy(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """``KL(q ‖ p)`` and ``H(q)`` of each entry, from the logits."""
    q, rest = teacher.sigmoid(), (-teacher).sigmoid()
    log_q, log_rest = F.logsigmoid(teacher), F.logsigmoid(-teacher)
    kl = times(q, log_q - F.logsigmoid(student)) + times(rest, log_rest - F.logsigmoid(-student))
    entropy = -times(q, log_q) - times(rest, log_rest)
    return kl - kl.detach().clamp(max=0), entropy  # rounding goes below 0


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
    """Sum over entries of ``(1 - exp(-(KL + beta·H)))^gamma`` times KL (or cross-entropy), over
    the normalizer.

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
        backpropagates when there are no anchors. Until backward it takes the memory of one float32
        tensor of the student's size, and holds the two logits. ``create_graph=True``,
        ``torch.func`` and ``torch.compile`` have the plain form, :func:`adl_terms` in float64.

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
    return (loss / normalizer).to(raised_dtype(student, teacher))


class ADLLoss(nn.Module):
    """:func:`adl_loss` with the settings of the paper or of its release; an argument that is not
    None replaces the preset's.

    ``'paper'``: KL, gamma 1, beta 1.5, power 1.8. ``'released'``: cross-entropy with alpha 0.5,
    gamma 2, beta 1, power 1.8. The module's docstring says where these come from, and that gamma
    and beta of ``'paper'`` are not verified against its text.

    In a run of W processes the normalizer is that of all together, their sum and at least 1, over
    W: with gradients averaged, as DDP does, the step is that of one process with all images. So
    each of them must call it in each step. (The release normalizes each GPU by its own.)
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
        overrides = {"gamma": gamma, "beta": beta, "power": power, "base": base, "alpha": alpha}
        self.settings = PRESETS[preset] | {
            name: value for name, value in overrides.items() if value is not None
        }
        if base == "kl" and alpha is None:
            # the preset's alpha belongs to its cross-entropy
            self.settings["alpha"] = None
        _check(**self.settings)

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss, a scalar, normalised over all processes; arguments as the function has them."""
        loss, mass = _sums(student, teacher, valid=valid, **self.settings)
        mass, share = mean_over_processes(mass)
        return (loss / mass.clamp(min=share)).to(raised_dtype(student, teacher))

    def extra_repr(self) -> str:
        """The settings that are not None."""
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
            f"alpha={alpha} weighs the halves of the cross-entropy: give base='ce' with it, or no "
            "alpha"
        )
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")


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
    """The loss before it is normalized, and the sum of ``sigmoid(teacher)^power`` (0 without a
    power), both in float64.
    """
    _check(gamma, beta, power, base, alpha)
    if student.shape != teacher.shape or student.dim() < 2:
        raise ValueError(
            f"expected two equal shapes (..., A, K), got student {tuple(student.shape)} and "
            f"teacher {tuple(teacher.shape)}"
        )
    if valid is not None and (valid.shape != student.shape[:-1] or valid.dtype != torch.bool):
        raise ValueError(
            f"expected valid as bool {tuple(student.shape[:-1])}, got {valid.dtype} "
            f"{tuple(valid.shape)} with student {tuple(student.shape)}"
        )
    settings = {"gamma": gamma, "beta": beta, "power": power, "base": base, "alpha": alpha}
    forms = (functools.partial(form, **settings) for form in (_plain_sums, adl_kernel.adl_sums))
    return fused(*forms, student, teacher.detach(), valid)


def _plain_sums(
    student: Tensor, teacher: Tensor, valid: Tensor | None, power: float | None, **settings
) -> tuple[Tensor, Tensor]:
    student, teacher = student.double(), teacher.double()
    ignored = torch.zeros_like(teacher, dtype=torch.bool)
    if valid is not None:
        ignored = ~valid[..., None].expand_as(teacher)
    mass = teacher.new_zeros(())
    if power is not None:
        mass = teacher.sigmoid().pow(power)
        mass = mass.masked_fill(ignored & mass.isnan(), 0).sum()
    # whatever the ignored ones hold
    student, teacher = student.masked_fill(ignored, 0), teacher.masked_fill(ignored, 0)
    return adl_terms(student, teacher, **settings).masked_fill(ignored, 0).sum(), mass
