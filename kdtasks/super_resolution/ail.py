r"""Adaptive Importance Learning: easy pixels first, hard ones later (Zhang et al., IJCV 2020, arXiv
1806.01576).

A lightweight network learns in rounds. Each pixel has an importance w in [0, 1]. It starts high
where a teacher is right, and rises in each round, most where the student of the round before
already fits. The target is always the ground truth Y: the teacher T matters through its error
alone. With S the student and :math:`S_{t-1}` the student frozen at the end of the last round, all
with intensities in [0, 1]:

.. math::
    w_0 = \frac{\sigma\bigl(\alpha\,(b - |T - Y|)\bigr)}{\sigma(\alpha\,b)}, \qquad
    w_t = \min\bigl(1,\; w_0 + \lambda_t\, e^{-\kappa\,|S_{t-1} - Y|}\bigr), \qquad
    \lambda_t = \lambda_0 + \rho\,(t - 1)

    L = \sum w^2\, (S - Y)^2

=========  =============  ==========================================================================
symbol     argument       default, and what it means
=========  =============  ==========================================================================
α          ``slope``      100
b          ``threshold``  0.01, 2.55 of 255 grey levels: w₀ is 1 at no error, 0.684 at b, 1/e at 2b,
                          0.025 at 5b
κ          ``decay``      10
λ₀, ρ      ``pace``,      0.15, 0.15. A comment in the release gives 0.1, 0.1 "for each scale" and
           ``growth``     0.15, 0.15 "for all scales", yet its command, with 0.15, trains one scale
=========  =============  ==========================================================================

- **The weight is squared**: the release multiplies both images by w, then takes the squared error.
- The increment is added to w₀, not to the w of the round before. Nothing forces w to rise, and
  where the student got much worse it falls; ``monotone=True`` of :class:`AILLoss` forces it.
- Hard pixels never count fully: at an error of 0.2 the increment of round 9 is 0.18. To the end it
  is a robust loss.

Formula and defaults are those of the first author's release
(``nwpuzhanglei/Adaptive-Importance-Learning-for-Improving-Lightweight-Image-Super-resolution-Network``).
The paper's text beyond its abstract could not be read, so its own symbols, penalty and tables are
not verified. One convex problem of which :math:`w_t` is the solution, an interpretation of ours in
the abstract's sense, is, pixel by pixel,

.. math:: w_t = \arg\min_{0 \le v \le 1}\; \tfrac{1}{2} (v - w_0)^2
    - \lambda_t\, e^{-\kappa\,|S_{t-1} - Y|}\, v,

near the teacher's map, with a reward for what the student fits.

**Two consistent recipes**, not to be mixed. Released: SGD with learning rate 0.1, momentum 0.9 and
weight decay 1e-4 on the *sum* over a batch of 128, gradients clipped at norm 0.4 (which nearly
always binds), learning rate times 0.1 every 10 epochs; 10 rounds of 50 epochs, each of which sets
the learning rate back and keeps the momentum; the student starts from plain training. Modern: Adam,
``reduction='mean'``, no clipping.

**Precision.** Where the error is about 0.01 the importance is steep: outputs of the teacher or
student in bfloat16 (autocast) move it by up to 0.15 in a pixel, a cache of the teacher's outputs in
float16 by 0.016.

The release compares a student of 500 epochs on one scale with a plain one of 50 epochs on three: it
has no matched control. Give the plain loss (``variant='uniform'``) the same rounds, epochs and data
before you believe a gain.
"""

import math
import operator
import warnings
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdtasks.core.names import did_you_mean
from kdtasks.core.precision import raised
from kdtasks.core.stages import ALONE, DISTILLED

VARIANTS = {  # whose errors make the importance
    "ail": ("teacher", "previous"),
    "initial": ("teacher",),
    "no_teacher": ("previous",),
    "uniform": (),
}
# mean importance under which a teacher leaves next to nothing to learn from
POOR = 0.05


def teacher_importance(
    teacher: Tensor, target: Tensor, slope: float = 100.0, threshold: float = 0.01
) -> Tensor:
    """The importance of round 0, from the teacher's error: 1 at none, falling to 0.

    Args:
        teacher: the teacher's output, of any shape, intensities in [0, 1].
        target: the ground truth, of the same shape.
        slope: α > 0, per unit of intensity. 100, and threshold 0.01, as in the release.
        threshold: b >= 0, in units of intensity.

    Returns:
        Of the same shape, without gradient; half precision is raised to float32, float64 stays.

    Raises:
        ValueError: the shapes differ, or a number is out of its range.
    """
    _check_numbers(slope=slope, threshold=threshold)
    return _initial(_error(teacher, target, "teacher"), slope, threshold)


def importance(
    initial: Tensor,
    previous: Tensor,
    target: Tensor,
    round: int,
    decay: float = 10.0,
    pace: float = 0.15,
    growth: float = 0.15,
) -> Tensor:
    """The importance of a round: the initial one, and more of it where the last round's student
    fits.

    Args:
        initial: the importance of round 0, of the target's shape.
        previous: output of the student frozen at the end of the last round, of the same shape; not
            looked at in round 0.
        target: the ground truth, intensities in [0, 1].
        round: t >= 0; round 0 returns ``initial``.
        decay: κ >= 0, per unit of intensity.
        pace, growth: λ₀, ρ >= 0: an error of 0 adds ``pace`` in round 1, and ``growth`` more in
            each later one.

    Returns:
        Of the target's shape, in [0, 1], without gradient; half precision is raised to float32,
        float64 stays.

    Raises:
        ValueError: the shapes differ, or a number is out of its range.
    """
    round = _whole(round)
    _check_numbers(decay=decay, pace=pace, growth=growth)
    if initial.shape != target.shape:
        raise ValueError(
            f"expected an importance for each value, got initial {tuple(initial.shape)} and target "
            f"{tuple(target.shape)}"
        )
    if round == 0:
        return raised(initial.detach())[0]
    initial, previous, target = raised(initial.detach(), previous, target)
    error = _error(previous, target, "previous")
    return (initial + _increment(error, round, decay, pace, growth)).clamp(0, 1)


def importance_loss(
    student: Tensor, target: Tensor, weight: Tensor, power: float = 2, reduction: str = "sum"
) -> Tensor:
    """``weight^power · (student - target)²``, summed over all values, or their mean.

    Args:
        student: (N, C, H, W), the only one that receives a gradient.
        target: of the same shape.
        weight: the importance, of the same shape, or (N, 1, H, W): one for each pixel.
        power: >= 0. 2 as released, where both images are multiplied by the weight.
        reduction: ``'sum'`` as released, or ``'mean'``: the sum divided by the number of values,
            not of weights.

    Returns:
        A scalar; half precision is raised to float32, float64 stays. An empty batch gives a zero
        that still backpropagates.

    Raises:
        ValueError: the shapes do not fit, ``power`` is negative, or there is no such reduction.
    """
    _check_numbers(power=power)
    _check_one_of("reduction", reduction, ("sum", "mean"))
    return _weighted(student, target, weight, power, "l2", reduction, normalize=False)


def _tensor_names(round: int, variant: str, monotone: bool) -> tuple[str, ...]:
    """:attr:`AILLoss.of`."""
    names = ["student"]
    if "teacher" in VARIANTS[variant]:
        names.append("teacher")
    if "previous" in VARIANTS[variant] and round:
        names += [f"round{k}" for k in range(round)] if monotone else ["previous"]
    return (*names, "target")


class AILLoss(nn.Module):
    """The loss of one round. Its tensors are the student, then those whose errors make the
    importance, then the target:

    ================  ==============================  ==============================================
    ``variant``       round 0                         later
    ================  ==============================  ==============================================
    ``'ail'``         (student, teacher, target)      (student, teacher, previous, target)
    ``'initial'``     (student, teacher, target)      the same: the teacher's map in every round
    ``'no_teacher'``  (student, target), weight 1     (student, previous, target), w₀ = 0
    ``'uniform'``     (student, target), weight 1     the same: the plain loss, for the control
    ================  ==============================  ==============================================

    ``previous`` is the student frozen at the end of the last round, as a further teacher. ``'ail'``
    is the release. The paper's abstract implies a form without a teacher, but not which:
    ``'no_teacher'`` is ours. There the mean weight falls from 1 to about 0.15 as round 1 begins,
    the loss to a fortieth, and Adam, which scales its steps by the size of the last thousand
    gradients, takes small ones: use ``normalize=True`` with the two.

    Args:
        round: t >= 0.
        slope, threshold: see :func:`teacher_importance`.
        decay, pace, growth: see :func:`importance`.
        power: both images are multiplied by ``w^(power/2)``, then compared: ``w^power · (S - Y)²``,
            or with ``base='l1'`` ``w^(power/2) · |S - Y|``. So 2, as released, is the importance
            itself as their factor.
        base: ``'l2'`` as released, or ``'l1'``.
        channels: ``'each'``: an importance for each value (the release has luma alone); ``'mean'``,
            ``'max'``: one for each pixel, from the mean or the largest of its channels' errors.
        monotone: the weight never falls from one round to the next (``'no_teacher'``: from round 1
            on), since the largest increment of all rounds so far counts. Then the students of all
            former rounds are given, oldest first: (student, teacher, round0, round1, …, target).
            Each costs a forward in every step.
        reduction: as in :func:`importance_loss`. Under DDP, which averages gradients, the sum is
            over one process's batch.
        normalize: divide by the mean over the batch of what multiplies the error, so that the size
            of the loss does not follow the importance. The release does not.

    Attributes:
        of: names of the tensors that this round and variant take, in their order, as for a config's
            ``of``.

    Raises:
        ValueError: here, no such variant, base, channels or reduction, or a number out of its
            range; in ``forward``, another number of tensors, or shapes that differ.
    """

    def __init__(
        self,
        round: int,
        variant: str = "ail",
        slope: float = 100.0,
        threshold: float = 0.01,
        decay: float = 10.0,
        pace: float = 0.15,
        growth: float = 0.15,
        power: float = 2,
        base: str = "l2",
        channels: str = "each",
        monotone: bool = False,
        reduction: str = "sum",
        normalize: bool = False,
    ):
        super().__init__()
        _check_one_of("variant", variant, VARIANTS)
        _check_one_of("base", base, ("l2", "l1"))
        _check_one_of("channels", channels, ("each", "mean", "max"))
        _check_one_of("reduction", reduction, ("sum", "mean"))
        round = _whole(round)
        _check_numbers(
            slope=slope, threshold=threshold, decay=decay, pace=pace, growth=growth, power=power
        )
        self.round, self.variant, self.channels = round, variant, channels
        self.initial = {"slope": slope, "threshold": threshold}
        self.increment = {"decay": decay, "pace": pace, "growth": growth}
        self.loss = {"power": power, "base": base, "reduction": reduction, "normalize": normalize}
        self.of = _tensor_names(round, variant, monotone)

    def forward(self, student: Tensor, *others: Tensor) -> Tensor:
        """The loss of the tensors :attr:`of`, each (N, C, H, W)."""
        student, *others = raised(student, *others)
        # checks how many there are
        weight = self.weight(*others)
        return _weighted(student, others[-1], weight, **self.loss)

    def weight(self, *others: Tensor) -> Tensor:
        """The importance map, from all the tensors but the student: of the target's shape, or (N,
        1, H, W).
        """
        weight, errors = self._initial(others)
        if errors:
            rounds = range(self.round - len(errors) + 1, self.round + 1)
            increments = [
                _increment(error, t, **self.increment) for t, error in zip(rounds, errors)
            ]
            largest = increments[0] if len(increments) == 1 else torch.stack(increments).amax(0)
            weight = (weight + largest).clamp(0, 1)
        return weight

    def build(self, student: Tensor, *others: Tensor) -> None:
        """Check once, on real tensors before training, that they are in the range that the
        defaults are for.

        Raises:
            ValueError: the target's values do not lie in [0, 1], by far.

        Warns:
            RuntimeWarning: the teacher's map is nearly 0 everywhere.
        """
        weight, _ = self._initial(others)
        target = others[-1]
        if self.variant == "uniform" or not target.numel():
            return
        low, high = (value.item() for value in target.aminmax())
        if low < -0.5 or high > 1.5:
            raise ValueError(
                f"the target's values lie in [{low:g}, {high:g}], but the importance is of "
                f"intensities in [0, 1] (threshold={self.initial['threshold']:g}, "
                f"decay={self.increment['decay']:g}): divide 0..255 by 255, take a mean and std "
                "back"
            )
        if "teacher" in self.of and (mean := weight.mean().item()) < POOR:
            warnings.warn(
                f"the mean importance of the teacher's map is {mean:.2g}: its error is far above "
                f"threshold={self.initial['threshold']:g} nearly everywhere, so there is next to "
                "nothing to learn from. To be expected before the teacher is trained; else look at "
                "its output, or raise the threshold",
                RuntimeWarning,
                stacklevel=2,
            )

    def _initial(self, others: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """The map before any increment, and the errors of former students."""
        names = self.of[1:]
        if len(others) != len(names):
            raise ValueError(
                f"round {self.round} of variant {self.variant!r} takes {len(self.of)} tensors, "
                f"of={self.of}; got {len(others) + 1}"
            )
        target = others[-1]
        errors = [
            _error(output, target, name, self.channels) for name, output in zip(names[:-1], others)
        ]
        if "teacher" in names:
            return _initial(errors[0], **self.initial), errors[1:]
        (like,) = raised(target if self.channels == "each" else target[:, :1])
        return torch.full_like(like, 0.0 if errors else 1.0), errors

    def extra_repr(self) -> str:
        """The round, the arguments, and the names of the tensors."""
        settings = {
            "variant": self.variant,
            **self.initial,
            **self.increment,
            **self.loss,
            "channels": self.channels,
        }
        arguments = [f"{name}={value!r}" for name, value in settings.items()]
        return ", ".join([str(self.round), *arguments, f"of={self.of}"])


class Importance(AILLoss):
    """The mean importance over a batch, to be logged beside an :class:`AILLoss` with the same
    arguments and the same ``of``.

    As an entry whose name has no ``loss`` in it, it informs and does not train. Much below 0.5,
    little of the image counts. It computes the map a second time.
    """

    def forward(self, student: Tensor, *others: Tensor) -> Tensor:
        """The mean weight; the student is not looked at."""
        weight = self.weight(*others)
        return weight.sum() / max(weight.numel(), 1)


def released_stages(
    config: Mapping, rounds: int = 10, scales: Sequence[int] = (2, 3, 4), repeat: int | None = None
) -> list[dict]:
    """The stages of the release, for a config:
    ``stages=dict(type='kdtasks.super_resolution.ail.released_stages')``.

    The teacher, and a plain student with which both arms begin, see all scales in one epoch. Each
    round goes on with the last one's student and momentum, and sets the learning rate back; "alone"
    has the steps and learning rates of all of them.

    Args:
        config: given by the engine; its ``length``, in epochs, and ``schedule``, one MultiStepLR,
            are those of a round.
        rounds: 10 as released.
        scales: that teacher and plain student see.
        repeat: of ``data.train``, for these two; None: as there.

    Raises:
        ValueError: the length is not in epochs, or the schedule is another.
    """
    epochs, schedule = config["length"], config["schedule"]
    multi_step = isinstance(schedule, Mapping) and schedule.get("type") == "MultiStepLR"
    if not isinstance(epochs, int) or not multi_step:
        raise ValueError(
            f"expected a length in epochs and one MultiStepLR, got length={epochs!r}, "
            f"schedule={schedule!r}"
        )
    train = {**config["data"]["train"], "scale": tuple(scales)}
    if repeat is not None:
        train["repeat"] = repeat
    stages = [
        {"name": "teacher", "role": "teacher", "model": "teacher", "data": {"train": train}},
        {"name": "plain", "role": "step", "data": {"train": train}},
        {
            "name": ALONE,
            "role": "control",
            "student": "plain",
            "length": rounds * epochs,
            "schedule": _schedule_of_rounds(schedule, epochs, rounds),
        },
    ]
    sums = {"reduction": "sum"}
    return [*stages, *_rounds(rounds, sums, {}, before="plain")]


def round_stages(config: Mapping, rounds: int = 10, loss: Mapping | None = None) -> list[dict]:
    """Rounds from fresh weights, for a config:
    ``stages=dict(type='kdtasks.super_resolution.ail.round_stages', loss=dict(…))``.

    The teacher, "alone", then the rounds, each of which goes on with the last one's student and
    Adam's averages, and lets the learning rate fall anew by a cosine; the config's own schedule
    does the same, so "alone" has the steps and learning rates of all rounds. Ours, for optimizers
    and budgets that the release does not have.

    Args:
        config: given by the engine; its ``length``, in iterations, is that of all rounds.
        rounds: 10 as released.
        loss: arguments of :class:`AILLoss`, but for ``round``. With ``variant='no_teacher'`` there
            is none.

    Raises:
        ValueError: the length is not a multiple of ``rounds`` iterations, or the schedule is not a
            CosineRestartLR of as many equal periods that falls to 0.
    """
    length, schedule = config["length"], config["schedule"]
    total = length.get("iterations", 0) if isinstance(length, Mapping) else 0
    steps = total // rounds
    expected = {
        "type": "CosineRestartLR",
        "periods": [steps] * rounds,
        "restart_weights": [1] * rounds,
        "eta_min": 0,
        "by_epoch": False,
    }
    if not steps or total % rounds or schedule != expected:
        raise ValueError(
            f"expected length=dict(iterations=n), n a multiple of rounds={rounds}, and "
            f"schedule={expected}, got length={length!r}, schedule={schedule!r}"
        )
    loss = dict(loss or {})
    cosine = {"type": "CosineAnnealingLR", "by_epoch": False}
    each = {"length": {"iterations": steps}, "schedule": cosine}
    taught = loss.get("variant") != "no_teacher"
    teacher = [{"name": "teacher", "role": "teacher", "model": "teacher"}] if taught else []
    alone = {"name": ALONE, "role": "control"}
    return [*teacher, alone, *_rounds(rounds, loss, each)]


def _rounds(rounds: int, loss: Mapping, settings: Mapping, before: str | None = None) -> list[dict]:
    """The stages of all rounds; the first goes on from ``before``, or from fresh weights."""
    stages = []
    for t in range(rounds):
        stage = {**settings, **_round_stage(t, loss, before)}
        is_last = t == rounds - 1
        stage["name"] = before = DISTILLED if is_last else f"round{t}"
        stages.append({**stage, "role": "taught" if is_last else "step"})
    return stages


def _schedule_of_rounds(schedule: Mapping, epochs: int, rounds: int) -> list[dict]:
    """One stage with the learning rates of all rounds: they fall in each, and are set back."""
    milestones, gamma = schedule["milestones"], schedule["gamma"]
    falls, starts = [], [epochs * t for t in range(1, rounds)]
    for t in range(rounds):
        falls += [epochs * t + milestone for milestone in milestones]
    return [
        {**schedule, "milestones": falls},
        {**schedule, "milestones": starts, "gamma": (1 / gamma) ** len(milestones)},
    ]


def _round_stage(t: int, loss: Mapping, before: str | None) -> dict:
    """Round t, from the student of the stage ``before``, and from its momentum after round 0."""
    settings = {**loss, "round": t}
    _, *teachers, _ = AILLoss(**settings).of
    stage = {
        "teachers": {name: before if name == "previous" else name for name in teachers},
        "losses": {
            "loss_ail": {
                **settings,
                "type": "kdtasks.super_resolution.AILLoss",
                "of": ("student", *teachers, "target"),
            }
        },
    }
    if before is not None:
        stage["student"] = before
    return {**stage, "optimizer_state": "keep"} if t else stage


def _error(output: Tensor, target: Tensor, name: str, channels: str = "each") -> Tensor:
    """|output - target|, of the target's shape; or one for each pixel: (N, 1, H, W)."""
    if output.shape != target.shape or 0 in output.shape[1:]:
        raise ValueError(
            "expected two equal shapes, with no 0 but of images, got "
            f"{name} {tuple(output.shape)} and target {tuple(target.shape)}"
        )
    output, target = raised(output.detach(), target.detach())
    error = (output - target).abs_()
    if channels == "each":
        return error
    return error.mean(1, keepdim=True) if channels == "mean" else error.amax(1, keepdim=True)


def _initial(error: Tensor, slope: float, threshold: float) -> Tensor:
    at_zero = 1 / (1 + math.exp(-slope * threshold))
    return torch.sigmoid(slope * (threshold - error)).div_(at_zero).clamp_(max=1)


def _increment(error: Tensor, round: int, decay: float, pace: float, growth: float) -> Tensor:
    return torch.exp(-decay * error).mul_(pace + growth * (round - 1))


def _weighted(
    student: Tensor,
    target: Tensor,
    weight: Tensor,
    power: float,
    base: str,
    reduction: str,
    normalize: bool,
) -> Tensor:
    if student.shape != target.shape:
        raise ValueError(
            f"expected two equal shapes, got student {tuple(student.shape)} and target "
            f"{tuple(target.shape)}"
        )
    if weight.shape not in (target.shape, (*target.shape[:1], 1, *target.shape[2:])):
        raise ValueError(
            f"expected a weight for each value or each pixel, got weight "
            f"{tuple(weight.shape)} and target {tuple(target.shape)}"
        )
    student, target, weight = raised(student, target.detach(), weight.detach())
    error = student - target
    error = error.square() if base == "l2" else error.abs()
    factor = weight.pow(power if base == "l2" else power / 2)
    if normalize:
        factor = factor / factor.mean().clamp(min=torch.finfo(factor.dtype).tiny)
    total = (factor * error).sum()
    return total if reduction == "sum" else total / max(student.numel(), 1)


def _check_one_of(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"no {name} {value!r}; {did_you_mean(str(value), choices)}")


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        if name == "slope" and not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")
        if not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value}")


def _whole(round: object) -> int:
    """A round as an int, whatever integer type it has."""
    try:
        whole = -1 if isinstance(round, bool) else operator.index(round)
    except TypeError:
        whole = -1
    if whole < 0:
        raise ValueError(f"round must be a whole number >= 0, got {round!r}")
    return whole
