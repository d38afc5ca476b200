r"""Born-Again Networks (Furlanello et al., arXiv 1805.04770).

A network teaches one of its own size: generation k starts from fresh weights of another seed and
learns from what generation k - 1 says, at temperature 1 and with the same schedule. With the
probabilities :math:`p` of the teacher and :math:`q` of the student, over a batch of B:

=========  =========================================================================================
**BAN**    :math:`\frac{1}{B} \sum_s \mathrm{CE}(p_s, q_s)`, no labels: ``KDLoss(temperature=1)``,
           which has the same gradient
**BAN+L**  the same, plus the cross-entropy of the labels (weights 1 and 1: our choice)
**CWTM**   :math:`\sum_s w_s\, \mathrm{CE}(y_s, q_s)` with :math:`w_s = \max_c p_{sc} / \sum_u
           \max_c p_{uc}`: the teacher only says how much an image counts, by its confidence in
           whatever class
**DKPP**   :math:`\frac{1}{B} \sum_s \mathrm{CE}(\tilde p_s, q_s)`: the teacher's greatest
           probability in its place, all others permuted, so that no similarity of classes is left
**BANE**   the mean of the generations' probabilities: :class:`Ensemble`
=========  =========================================================================================

CWTM and DKPP are controls of the paper's: what is left of the gain without the "dark
knowledge". The permutation is a fresh one for each row at each step; the paper does not say.
CWTM's sum :math:`\sum_u` is over one process's batch.

In the paper's table the same network and method differs by up to 0.7 points between two seeds (one
of four pairs; the other three by about 0.1), so a gain of one run means little; an ensemble of
generations is to be compared with one of equally many students of the labels alone. :func:`stages`
writes the list of generations.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.classes import UNLABELLED
from kdtasks.core.precision import raised
from kdtasks.core.weights import load_weights
from kdtasks.general.chains import chain
from kdtasks.general.divergences import times


def cwtm_loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the true labels, each row weighed by the teacher's greatest probability;
    weights add up to 1.

    Args:
        student: ``(B, C)`` logits; carries the gradient.
        teacher: logits of the same shape; never receives a gradient.
        target: ``(B,)`` class numbers; rows of -100 have weight 0.

    Returns:
        A scalar; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there are no labelled rows.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(student, teacher)
    if target.shape != student.shape[:1]:
        raise ValueError(
            f"expected a target (B,), got target {tuple(target.shape)} and student "
            f"{tuple(student.shape)}"
        )
    student, teacher = raised(student, teacher.detach())
    confidence = teacher.softmax(1).amax(1).masked_fill(target == UNLABELLED, 0)
    weight = confidence / confidence.sum().clamp(min=torch.finfo(confidence.dtype).tiny)
    return (weight * F.cross_entropy(student, target, reduction="none")).sum()


def dkpp_loss(student: Tensor, teacher: Tensor, permutation: Tensor | None = None) -> Tensor:
    """Cross-entropy with the teacher's probabilities, of which all but the greatest are permuted;
    mean over rows.

    Args:
        student: ``(B, C)`` logits; carries the gradient. -inf: a masked class, which must be one of
            the teacher's too.
        teacher: logits of the same shape; never receives a gradient.
        permutation: ``(B, C - 1)``, of the classes other than the teacher's greatest (the first on
            ties) in ascending order: the i-th of them gets the probability of the
            ``permutation[i]``-th. None: a fresh random one for each row, in which classes that the
            teacher masks stay where they are.

    Returns:
        A scalar, not 0 at equality; half precision is raised to float32, float64 stays. A zero that
        still backpropagates when there are no rows.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(student, teacher)
    student, teacher = raised(student, teacher.detach())
    top = teacher.argmax(1, keepdim=True)
    rest = torch.arange(student.shape[1] - 1, device=student.device).expand(len(student), -1)
    rest = rest + (rest >= top)
    if permutation is None:
        permutation = _fresh_permutation(teacher.gather(1, rest) == -math.inf)
    if permutation.shape != rest.shape:
        raise ValueError(
            f"expected a permutation (B, C - 1), got permutation {tuple(permutation.shape)} and "
            f"student {tuple(student.shape)}"
        )
    p = teacher.softmax(1)
    permuted = p.scatter(1, rest, p.gather(1, rest).gather(1, permutation))
    return -times(permuted, F.log_softmax(student, 1)).sum() / max(len(student), 1)


def _fresh_permutation(fixed: Tensor) -> Tensor:
    """Random permutations of each row's places that are not ``fixed``; (B, n) bool -> indices."""
    to = fixed.to(torch.uint8).argsort(dim=1, stable=True)
    order = (torch.rand(fixed.shape, device=fixed.device) + 2 * fixed).argsort(1)
    shuffled = torch.empty_like(to).scatter_(1, to, order)
    return torch.where(fixed, torch.arange(fixed.shape[1], device=fixed.device), shuffled)


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.dim() != 2 or student.shape[1] < 2:
        raise ValueError(
            f"expected two equal shapes (B, C) of two classes or more, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )


class CWTMLoss(nn.Module):
    """Module form of :func:`cwtm_loss`."""

    def __init__(self):
        super().__init__()

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Logits (B, C) twice and class numbers (B,) -> a scalar."""
        return cwtm_loss(student, teacher, target)


class DKPPLoss(nn.Module):
    """Module form of :func:`dkpp_loss`, with fresh permutations."""

    def __init__(self):
        super().__init__()

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits (B, C) twice -> a scalar; other permutations at each call."""
        return dkpp_loss(student, teacher)


class Ensemble(nn.Module):
    r"""BANE: the mean of the members' probabilities, as logits:
    :math:`\log \frac{1}{G} \sum_g \mathrm{softmax}(z_g)`.

    Their softmax is that mean, so it is tested, exported and used as a teacher as any classifier
    is. Not the mean of the logits, which is another model.

    Args:
        members: classifiers of the same classes; each returns ``(B, C)`` logits.
        checkpoints: None, or a file of weights for each. In a config a model with ``parts`` has
            them from the run's own stages:
            ``parts={'members.0': 'generation1', 'members.1': 'distilled'}``.

    Raises:
        ValueError: no members, or not a checkpoint for each. In ``forward``: members of different
            classes.
    """

    def __init__(self, members: Sequence[nn.Module], checkpoints: Sequence[str] | None = None):
        super().__init__()
        if not members or len(checkpoints or members) != len(members):
            raise ValueError(
                f"expected one member or more and a checkpoint for each (or None), got "
                f"{len(members)} members and {len(checkpoints or [])} checkpoints"
            )
        self.members = nn.ModuleList(members)
        for member, path in zip(members, checkpoints or []):
            load_weights(member, path)

    def forward(self, input: Tensor) -> Tensor:
        """The logarithm of the mean probabilities, (B, C), at least in float32."""
        logits = [member(input) for member in self.members]
        # not of the rows, whose number an export leaves open
        if len({z.shape[1:] for z in logits}) > 1:
            shapes = [tuple(z.shape) for z in logits]
            raise ValueError(f"expected members of the same classes, got logits {shapes}")
        log_p = torch.stack([F.log_softmax(z, dim=1) for z in raised(*logits)])
        return log_p.logsumexp(0) - math.log(len(logits))


def stages(
    config: Mapping, generations: Sequence[str] = (), seed_noise: str | None = None
) -> list[dict]:
    """The generations, for a config: ``stages=dict(type='kdtasks.general.ban.stages', …)``.

    ``teacher`` (generation 0), then each of ``generations`` taught by the one before, then the
    last one, the student: ``distilled``. Each has fresh weights that go by its name, so no two
    generations start alike; the student's are those of "alone", so that the two are paired.

    Args:
        config: given by the engine.
        generations: keys of ``models``, each described as the student is.
        seed_noise: None, or a further key of ``models``: a second student that learns from the
            labels alone, from other weights. What it differs from "alone" is the noise of the
            seed; and the two, with generation 0, make an ensemble of three that no teacher has
            taught: an :class:`Ensemble` of three generations is to be compared with it.

    Raises:
        ValueError: a name that is no model, or a model of other classes than the student.
    """
    stages_of_chain = chain(config, {name: {} for name in generations})
    if seed_noise is None:
        return stages_of_chain
    # known to be a model of these classes
    chain(config, {seed_noise: {}})
    second = {"name": seed_noise, "role": "joint", "model": seed_noise}
    return [*stages_of_chain[:-1], second, stages_of_chain[-1]]
