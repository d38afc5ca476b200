r"""Boundary Supporting Samples (Heo, Lee, Yun and Choi, arXiv 1805.05532).

A classifier is its decision boundary, and ordinary images lie far from it. So the student is also
shown images that the teacher itself moved to its boundary: with the logits :math:`f(x)`, the base
class b and a target class k,

.. math:: L_k(x) = f_b(x) - f_k(x), \qquad
    x \leftarrow \mathrm{clip}\Big(x - \eta\, (L_k(x) + \epsilon)\, \frac{g}{\|g\|_2}\Big),
    \qquad g = \nabla_x L_k(x)

until x has left the base class, or after ten moves (:func:`boundary_samples`, a whole batch at
once). Base samples are the images on which teacher and student are both right; of more than 64,
those where their probabilities of the wrong classes differ most (:func:`base_samples`). The target
class is drawn by :math:`P(k) = p_t[k] / (1 - p_t[b])` (:func:`target_classes`). The loss:

.. math:: L = \mathrm{CE}(z_s, y) + a(e)\, S(x) + b(e)\, S(x_\mathrm{bss}), \qquad
    S = -\textstyle\sum_c p^t_c \log p^s_c \ \text{ at } T = 3

    a(e) = 1 + \max(3 (1 - e/E), 0), \qquad b(e) = \max(2 (1 - \tfrac43 e/E), 0)

with e of E epochs, :func:`schedule`; the code's are constant in an epoch, e = 1 … E, and in a
config here they fall with each step. The code has no :math:`T^2`, our KD loss has: divide a and b
by 9. In a config (:class:`~kdtasks.general.BSSDistiller` says more of the names):

    distiller = dict(type='kdtasks.general.BSSDistiller')
    losses = dict(
        loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
        loss_kd=dict(type='kdtasks.general.KDLoss', temperature=3.0, of=('student', 'teacher'),
                     weight=dict(type='kdtasks.core.Linear', start=4 / 9, end=1 / 9)),
        loss_bss=dict(type='kdtasks.general.BSSLoss', temperature=3.0,
                      of=('student.boundary', 'teacher.boundary', 'student.boundary_valid'),
                      weight=dict(type='kdtasks.core.Linear', start=2 / 9, end=0, until=0.75)),
    )

The constants are those of the released code for images that are standardised by channel, and they
depend on the scale of images and logits. Its clip at ±2.5 is tighter than CIFAR's own range (white
is 2.51, 2.60, 2.75): :func:`channel_bounds` gives the exact one. The step has the length
:math:`\eta (L + \epsilon)`, not DeepFool's, which divides by the norm once more; without
:math:`\epsilon` the boundary would be approached and never crossed. Many samples need more than ten
moves; the code rejects none, the paper (as notes on it have it) those that have not crossed into
the target class: ``reject``.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.precision import raised
from kdtasks.general.divergences import kl_terms

Bounds = tuple[float | Tensor, float | Tensor]
RELEASED_CLIP = (-2.5, 2.5)


def _check_classes(logits: Tensor, classes: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[1] < 2 or classes.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits (B, C) of two classes or more and classes (B,), got "
            f"{tuple(logits.shape)} and {tuple(classes.shape)}"
        )


def boundary_samples(
    score: Callable[[Tensor], Tensor],
    input: Tensor,
    base: Tensor,
    target: Tensor,
    step_size: float = 0.3,
    max_steps: int = 10,
    eps: float = 1e-4,
    clip: Bounds = (-2.5, 2.5),
) -> Tensor:
    """Move each row of a batch towards the boundary between its base class and its target class.

    Before each move, rows whose greatest logit is not the base class's stay as they are; so do
    those without a gradient. All rows take part in all forwards, so shapes are static and nothing
    waits for the device. Gradients are of the input alone: those of parameters are not touched.
    Autocast is off inside. ``torch.compile`` compiles it once, in parts around the gradient; as one
    graph (``fullgraph=True``) where ``torch._dynamo.config.trace_autograd_ops`` is set.

    Args:
        score: ``(B, …) -> (B, C)`` logits; a model in eval, whose rows do not depend on each other.
        input: ``(B, …)``, in the scale that ``score`` takes.
        base: ``(B,)`` int64, classes that the rows start in.
        target: ``(B,)`` int64, other classes.
        step_size: eta.
        max_steps: moves at most.
        eps: added to the gap of the logits, so that the last move crosses.
        clip: lower and upper bound after each move: numbers, or tensors that broadcast over a row
            (``channel_bounds``).

    Returns:
        The moved input, detached; half precision is raised to float32, float64 stays.

    Raises:
        ValueError: shapes that do not fit; or ``score`` gives no gradient of its input.
    """
    for name, classes in (("base", base), ("target", target)):
        if classes.shape != input.shape[:1]:
            raise ValueError(
                f"expected {name} (B,), got {name} {tuple(classes.shape)} and input "
                f"{tuple(input.shape)}"
            )
    if max_steps < 0 or not step_size > 0:
        raise ValueError(
            f"expected max_steps >= 0 and step_size > 0, got {max_steps} and {step_size}"
        )
    (moved,) = raised(input.detach())
    if not len(input):
        return moved
    # a number is written on the device: a copy would wait
    low, high = (
        bound.to(moved) if isinstance(bound, Tensor) else moved.new_full((), bound)
        for bound in clip
    )
    per_row = (-1,) + (1,) * (input.dim() - 1)
    with torch.enable_grad(), torch.autocast(input.device.type, enabled=False):
        for _ in range(max_steps):
            moved.requires_grad_()
            logits = score(moved)
            gap = (logits.gather(1, base[:, None]) - logits.gather(1, target[:, None])).squeeze(1)
            slope = None
            if gap.requires_grad:
                (slope,) = torch.autograd.grad(gap.sum(), moved, allow_unused=True)
            if slope is None:
                raise ValueError("score gives no gradient of its input, so no sample can be moved")
            norm = slope.flatten(1).norm(dim=1)
            length = step_size * (gap.detach() + eps) / norm.where(norm > 0, 1)
            moves = (logits.argmax(1) == base) & (norm > 0)
            moved = moved.detach()
            further = moved - length.view(per_row) * slope
            further = torch.minimum(torch.maximum(further, low), high)
            moved = torch.where(moves.view(per_row), further, moved)
    return moved.detach()


def target_classes(teacher: Tensor, base: Tensor) -> Tensor:
    """A class for each row, drawn by the teacher's probabilities of all classes but the base.

    The greatest of the others' logits with Gumbel noise added, which is a draw by their softmax: a
    teacher sure to the last digit still has others, and nothing waits for the device.

    Args:
        teacher: ``(B, C)`` logits, C >= 2.
        base: ``(B,)`` int64.

    Raises:
        ValueError: the shapes do not fit, or there is no other class.
    """
    _check_classes(teacher, base)
    (logits,) = raised(teacher.detach())
    others = logits.scatter(1, base[:, None], -math.inf)
    return (others - torch.empty_like(others).exponential_().log()).argmax(1)


def base_samples(
    student: Tensor, teacher: Tensor, target: Tensor, count: int = 64
) -> tuple[Tensor, Tensor]:
    """The rows to move: both are right, and their probabilities of the wrong classes differ most.

    Args:
        student, teacher: ``(B, C)`` logits.
        target: ``(B,)`` classes; -100, unlabelled, is never right.
        count: rows at most.

    Returns:
        ``(n,)`` row numbers with n = min(B, count), and ``(n,)`` bool: which of them are such rows.
        The others, where there are too few, only fill up: shapes do not depend on values.

    Raises:
        ValueError: the shapes do not fit.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected two equal shapes (B, C), got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )
    _check_classes(teacher, target)
    student, teacher = raised(student.detach(), teacher.detach())
    right = (student.argmax(1) == target) & (teacher.argmax(1) == target)
    differences = (teacher.softmax(1) - student.softmax(1)).square()
    is_target = torch.arange(differences.shape[1], device=differences.device) == target[:, None]
    discrepancy = differences.masked_fill(is_target, 0).sum(1).masked_fill(~right, -1)
    rows = discrepancy.topk(min(count, len(student))).indices
    return rows, right[rows]


def channel_bounds(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """What 0 and 1 of each channel are after ``(x - mean) / std``: two tensors (C, 1, 1) for
    ``clip``.
    """
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise ValueError(f"expected a mean and a std > 0 a channel, got {mean} and {std}")
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (0 - mean) / std, (1 - mean) / std


def schedule(epoch: int, epochs: int) -> tuple[float, float]:
    """a(e) and b(e) of the released code, for epoch ``e = 1 … E``, without T²."""
    progress = epoch / epochs
    return 1 + max(3 * (1 - progress), 0.0), max(2 * (1 - 4 * progress / 3), 0.0)


def bss_loss(
    student: Tensor, teacher: Tensor, valid: Tensor | None = None, temperature: float = 3.0
) -> Tensor:
    """T² · KL(teacher ‖ student) on boundary samples, mean over the valid rows.

    Args:
        student, teacher: ``(n, C)`` logits of the moved images; the student's carry the gradient.
        valid: ``(n,)`` bool; None: all.
        temperature: T > 0.

    Returns:
        A scalar; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when no row is valid.

    Raises:
        ValueError: the shapes do not fit, or the temperature is not positive.
    """
    if student.shape != teacher.shape or student.dim() != 2:
        raise ValueError(
            f"expected two equal shapes (n, C), got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )
    if valid is None:
        valid = torch.ones(len(student), dtype=torch.bool, device=student.device)
    if valid.shape != student.shape[:1]:
        raise ValueError(
            f"expected valid (n,), got valid {tuple(valid.shape)} and student "
            f"{tuple(student.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    student, teacher = raised(student, teacher.detach())
    rows = kl_terms(student / temperature, teacher / temperature).sum(1)
    return rows.masked_fill(~valid, 0).sum() * temperature**2 / valid.sum().clamp(min=1)


class BSSLoss(nn.Module):
    """Module form of :func:`bss_loss`."""

    def __init__(self, temperature: float = 3.0):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits (n, C) twice and which rows count, bool (n,) or None: all -> a scalar."""
        return bss_loss(student, teacher, valid, self.temperature)

    def extra_repr(self) -> str:
        """The temperature."""
        return f"temperature={self.temperature}"


def perturbation_similarity(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    r"""MagSim and AngSim of the perturbations :math:`v = x_\mathrm{bss} - x` that bring the same
    images over each model's own boundary; the paper's words, our formulas.

    .. math:: \mathrm{MagSim} = \frac{\min(\|v_s\|, \|v_t\|)}{\max(\|v_s\|, \|v_t\|)}, \qquad
        \mathrm{AngSim} = \frac{v_s \cdot v_t}{\|v_s\|\, \|v_t\|}

    Args:
        student, teacher: ``(N, …)`` perturbations.

    Returns:
        Their means over the rows in which both have moved; NaN where there are none.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape or student.dim() < 2:
        raise ValueError(
            f"expected two equal shapes (N, …), got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )
    student, teacher = (v.flatten(1) for v in raised(student.detach(), teacher.detach()))
    norms = torch.stack([student.norm(dim=1), teacher.norm(dim=1)])
    moved = (norms > 0).all(0)
    magnitude = norms.amin(0) / norms.amax(0)
    angle = F.cosine_similarity(student, teacher, dim=1, eps=0)
    return magnitude[moved].mean(), angle[moved].mean()
