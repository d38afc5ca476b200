r"""Feature affinity (He et al., FAKD, ICIP 2020): which places of an image look alike to the
teacher.

With :math:`f_i` the features at place i, divided by their length, the affinity of two places is the
cosine of their features. The student matches the teacher's affinities of all :math:`M = H W` places
with each other, so the two may differ in width:

.. math:: L = \frac{1}{N M^2} \sum_{n=1}^{N} \sum_{i,j=1}^{M}
    \bigl| f^s_{ni} \cdot f^s_{nj} - f^t_{ni} \cdot f^t_{nj} \bigr|

Read in the authors' release, ``Vincent-Hoo/Knowledge-Distillation-for-Super-resolution``, which
adds 1e-8 to the lengths (another state of its history: 1e-7). There the student learns from 0.5 ·
L1 to the ground truth + 0.5 · L1 to the teacher's image + 10 · this loss, summed over the features
after three stages, on 48x48 inputs. Without this loss that is plain output distillation; both
images' terms are ``torch.nn.L1Loss`` of a config: ::

    losses = dict(
        loss_target=dict(type='torch.nn.L1Loss', of=('student', 'target'), weight=0.5),
        loss_teacher=dict(type='torch.nn.L1Loss', of=('student', 'teacher'), weight=0.5),
        loss_affinity=dict(type='kdtasks.super_resolution.fakd.AffinityLoss',
                           of=('student.body', 'teacher.body'), weight=10.0),
    )

The affinities are never in memory at once: loss and gradient come out of one pass over blocks of
them.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from kdtasks.core.layouts import pair_to_nchw
from kdtasks.core.precision import raised

# affinities at a time, 16 MiB in float32; or one row of each image's
BLOCK = 2**22
LIMIT = 128 * 128  # places: 268 M affinities an image


def affinity_loss(
    student: Tensor,
    teacher: Tensor,
    pool: int | None = None,
    layout: str | Sequence[str] | None = None,
    prefix_tokens: int | Sequence[int] = 0,
    grid: Sequence | None = None,
) -> Tensor:
    """Mean absolute difference of the affinities of all pairs of places.

    Args:
        student: (N, Cs, H, W) features; carries the gradient.
        teacher: (N, Ct, H, W) features of the same places; never receives a gradient.
        pool: mean features over squares of this side first; time falls with its fourth power. None:
            every place.
        layout: ``'nchw'``, ``'nhwc'`` (Swin) or ``'tokens'`` (ViT) of both, or a pair; None:
            ``'nchw'``, and an error where only the last axes can be channels.
        prefix_tokens, grid: of ``'tokens'``, see :func:`kdtasks.core.layouts.to_nchw`.

    Returns:
        A scalar in [0, 2]. Half precision is raised to float32, float64 stays. An empty batch gives
        a zero that still backpropagates; where features are all 0, affinity and gradient are 0.
        Differentiable once. Memory of a few tensors of the features' size beside the block.

    Raises:
        ValueError: the shapes do not fit, ``pool < 1``, or more than 128 · 128 places are left.
    """
    student, teacher = pair_to_nchw(student, teacher, layout, prefix_tokens, grid)
    fit = student.dim() == teacher.dim() == 4 and student[:, :0].shape == teacher[:, :0].shape
    if not fit or 0 in (*student.shape[1:], *teacher.shape[1:]):
        raise ValueError(
            f"expected (N, Cs, H, W) and (N, Ct, H, W) of the same N, H and W, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    if pool is not None and pool < 1:
        raise ValueError(f"pool must be at least 1 or None, got {pool}")
    places = _places(student, pool or 1)
    if places > LIMIT:
        fits = next(p for p in range(1, places) if _places(student, p) <= LIMIT)
        raise ValueError(
            f"{places} places of features {tuple(student.shape)} (pool={pool}) have "
            f"{float(places) ** 2:.1e} affinities an image, and {LIMIT} places are the limit: use "
            f"pool={fits} or more, or smaller patches"
        )
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = raised(student, teacher.detach())
        student, teacher = _directions(student, pool), _directions(teacher, pool)
        needs_gradient = student.requires_grad and torch.is_grad_enabled()
        return _Distance.apply(student, teacher, needs_gradient)


class AffinityLoss(nn.Module):
    """Module form of :func:`affinity_loss`."""

    def __init__(
        self,
        pool: int | None = None,
        layout: str | Sequence[str] | None = None,
        prefix_tokens: int | Sequence[int] = 0,
        grid: Sequence | None = None,
    ):
        super().__init__()
        self.layout = {"layout": layout, "prefix_tokens": prefix_tokens, "grid": grid}
        if pool is not None and pool < 1:
            raise ValueError(f"pool must be at least 1 or None, got {pool}")
        self.pool = pool

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of ``(N, Cs, H, W)`` and ``(N, Ct, H, W)`` features of the same places."""
        return affinity_loss(student, teacher, self.pool, **self.layout)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"pool={self.pool}"


def _places(features: Tensor, pool: int) -> int:
    return math.ceil(features.shape[2] / pool) * math.ceil(features.shape[3] / pool)


def _directions(features: Tensor, pool: int | None) -> Tensor:
    """(N, C, H, W) -> (N, C, M), each place's features divided by their length."""
    if pool:
        # squares at the border may be cut
        features = F.avg_pool2d(features, pool, ceil_mode=True)
    features = features.flatten(2)
    squared = features.square().sum(1, keepdim=True)
    return features * squared.where(squared > 0, torch.inf).rsqrt()


class _Distance(torch.autograd.Function):
    """D is symmetric, so the gradient of ``sum |D|``, D = fᵀf - const, is ``2 f sign(D)``."""

    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor, needs_gradient: bool) -> Tensor:
        n, _, places = student.shape
        total = student.new_zeros(())
        gradient = torch.zeros_like(student) if needs_gradient else None
        rows = max(BLOCK // max(n * places, 1), 1)
        for start in range(0, places if n else 0, rows):
            part = slice(start, start + rows)
            # (N, rows, M)
            gap = torch.bmm(student[..., part].mT, student)
            gap.baddbmm_(teacher[..., part].mT, teacher, alpha=-1)
            total += gap.abs().sum()
            if needs_gradient:
                gradient[..., part] = torch.bmm(student, gap.sign_().mT)
        pairs = max(n * places**2, 1)
        if needs_gradient:
            ctx.save_for_backward(gradient.mul_(2 / pairs))
        return total / pairs

    @staticmethod
    def backward(ctx: FunctionCtx, scale: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "affinity_loss can be differentiated once: its gradient has no derivative, so no "
                "create_graph=True"
            )
        (gradient,) = ctx.saved_tensors
        return scale * gradient, None, None
