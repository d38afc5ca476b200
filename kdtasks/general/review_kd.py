r"""Knowledge review (Chen, Liu, Zhao and Jia, CVPR 2021, arXiv 2104.09044).

Each stage of the teacher is learned by the student's same stage **and all deeper ones**. From the
deepest stage on, a student's map is brought to a middle width and fused with what came from the
stage below it, by two maps of attention that the two together decide; then it is brought to the
teacher's width and compared. With the student's map x of a stage, the residual y from the deeper
one, enlarged to the size of x,

.. math:: (a, b) = \sigma\bigl(\mathrm{conv}_{1 \times 1}[x', y]\bigr), \qquad
    y \leftarrow a\, x' + b\, y, \qquad \mathrm{compare}\ \mathrm{conv}_{3 \times 3}(y)

with x' the map behind a 1x1 convolution and batch norm. Two maps are compared at several scales
(:func:`hierarchical_context_loss`).

As released, the student's maps are those after the ReLU and its pooled features, the teacher's
those **before** it and its pooled features, and the middle width is that of the deepest, at most
512. The released weights beside cross-entropy on CIFAR-100: 5 (wide ResNets, ResNet-32x4 and its
students), 8 (ShuffleNetV2), 0.6 (ResNet-56 to -20), 1 (ResNet-110 to -32), growing linearly over
the first 20 epochs; on ImageNet 1 (ResNet-34 to -18) and 8 (ResNet-50 to MobileNet).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.precision import raised, raised_dtype

MAX_WIDTH = 512


def hierarchical_context_loss(
    student: Tensor, teacher: Tensor, levels: Sequence[int] = (4, 2, 1)
) -> Tensor:
    r"""Mean squared difference of two maps, of themselves and averaged to l by l places:

    .. math:: \frac{\mathrm{mse}(s, t) + \sum_l w_l\, \mathrm{mse}(\mathrm{pool}_l s,
        \mathrm{pool}_l t)}{1 + \sum_l w_l}

    Levels that are not below the map's smaller side are left out (the released code looks at the
    height alone); the others have :math:`w = 1/2, 1/4, 1/8, \dots` in their order.

    Args:
        student: ``(B, C, H, W)``; carries the gradient.
        teacher: of the same shape; never receives a gradient.
        levels: sides of the averaged maps; as released.

    Returns:
        A scalar; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when there is nothing.

    Raises:
        ValueError: the shapes differ or are not ``(B, C, H, W)``, or a level below 1.
    """
    if student.shape != teacher.shape or student.dim() != 4:
        raise ValueError(
            f"expected two equal shapes (B, C, H, W), got student {tuple(student.shape)} and "
            f"teacher {tuple(teacher.shape)}"
        )
    if not all(level >= 1 for level in levels):
        raise ValueError(f"expected levels >= 1, got {tuple(levels)}")
    student, teacher = raised(student, teacher.detach())
    if not student.numel():
        return student.sum()
    smaller = [level for level in levels if level < min(student.shape[2:])]
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for level in smaller:
        weight /= 2
        pooled = (F.adaptive_avg_pool2d(maps, level) for maps in (student, teacher))
        total, weights = total + weight * F.mse_loss(*pooled), weights + weight
    return total / weights


class Fusion(nn.Module):
    """A stage of the review: the student's map, fused with what came from the deeper stages.

    Args:
        inputs: channels of the student's map.
        middle: of what is handed on.
        outputs: channels of the teacher's map.
        deepest: there is nothing to fuse with.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, deepest: bool):
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle)
        )
        self.expand = nn.Sequential(
            nn.Conv2d(middle, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.attention = None if deepest else nn.Conv2d(2 * middle, 2, 1)
        for convolution in (self.reduce[0], self.expand[0]):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(
        self, student: Tensor, residual: Tensor | None, size: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """What is compared with the teacher's map of this size, and what is handed on."""
        fused = self.reduce(student)
        if self.attention is not None:
            residual = _resized(residual, fused.shape[2:])
            shares = self.attention(torch.cat([fused, residual], 1)).sigmoid()
            fused = fused * shares[:, :1] + residual * shares[:, 1:]
        fused = _resized(fused, size)
        return self.expand(fused), fused


class ReviewKDLoss(nn.Module):
    """The sum over stages of :func:`hierarchical_context_loss` of the reviewed maps.

    In a config its ``of`` names the student's maps, the shallowest first, then as many of the
    teacher's; pooled features ``(B, C)`` count as a map of one place:

        of=('student.layer1', 'student.layer2', 'student.layer3', 'student.flatten',
            'teacher.layer1.0.add', 'teacher.layer2.0.add', 'teacher.layer3.0.add',
            'teacher.flatten')

    The fusions train with the student and belong to one stage of training.

    Args:
        levels: of :func:`hierarchical_context_loss`.
        student_channels, teacher_channels: of each stage; None: found by :meth:`build`.

    Raises:
        ValueError: here, not as many channels of the one as of the other; in ``build`` and
            ``forward``, not as many maps of the student as of the teacher, or what is no map.
        RuntimeError: in ``forward``, the channels are not known yet.
    """

    def __init__(
        self,
        levels: Sequence[int] = (4, 2, 1),
        student_channels: Sequence[int] | None = None,
        teacher_channels: Sequence[int] | None = None,
    ):
        super().__init__()
        self.levels = tuple(levels)
        self.fusions = nn.ModuleList()
        if student_channels and teacher_channels:
            self._make(student_channels, teacher_channels)

    def _make(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        if len(student) != len(teacher):
            raise ValueError(
                "expected as many stages of the student as of the teacher, got channels "
                f"{tuple(student)} and {tuple(teacher)}"
            )
        middle, last = min(MAX_WIDTH, student[-1]), len(student) - 1
        self.fusions.extend(
            Fusion(student_width, middle, teacher_width, k == last)
            for k, (student_width, teacher_width) in enumerate(zip(student, teacher))
        )

    def build(self, *features: Tensor) -> None:
        """Makes the fusions that these need, if they are not there; the Distiller calls it before
        the optimizer is made.
        """
        student, teacher = _halves(features)
        if not self.fusions:
            self._make([f.shape[1] for f in student], [f.shape[1] for f in teacher])
            self.to(student[0].device, raised_dtype(*student))

    def forward(self, *features: Tensor) -> Tensor:
        """The loss of the student's maps, then the teacher's, the shallowest first; a scalar, in
        float32 at least.
        """
        student, teacher = _halves(features)
        if len(self.fusions) != len(student):
            raise RuntimeError(
                f"there are fusions of {len(self.fusions)} stages, got {len(student)}: give "
                "student_channels and teacher_channels, or call build(*features) before the "
                "optimizer is made"
            )
        self._check_channels(student)
        dtype = next(self.fusions.parameters()).dtype
        residual, losses = None, []
        for fusion, student_map, teacher_map in reversed(list(zip(self.fusions, student, teacher))):
            reviewed, residual = fusion(student_map.to(dtype), residual, teacher_map.shape[2:])
            losses.append(hierarchical_context_loss(reviewed, teacher_map, self.levels))
        return torch.stack(losses).sum()

    def _check_channels(self, student: Sequence[Tensor]) -> None:
        channels = [fusion.reduce[0].in_channels for fusion in self.fusions]
        if channels != [f.shape[1] for f in student]:
            raise ValueError(
                f"expected maps of the student with {channels} channels, got "
                f"{[tuple(f.shape) for f in student]}"
            )

    def extra_repr(self) -> str:
        """How many stages are compared."""
        return f"levels={self.levels}"


def _halves(features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The student's and the teacher's, all as maps."""
    shapes = [tuple(f.shape) for f in features]
    if not features or len(features) % 2 or any(f.dim() not in (2, 4) for f in features):
        raise ValueError(
            "expected maps (B, C, H, W) or pooled features (B, C), the student's and then as many "
            f"of the teacher's, got {shapes}"
        )
    if len({len(f) for f in features}) > 1 or any(0 in f.shape[1:] for f in features):
        raise ValueError(
            f"expected features of the same images, each of a channel and a place, got {shapes}"
        )
    maps = [f[:, :, None, None] if f.dim() == 2 else f for f in features]
    half = len(maps) // 2
    return maps[:half], maps[half:]


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    has_size = maps.shape[2:] == torch.Size(size)
    return maps if has_size else F.interpolate(maps, tuple(size), mode="nearest")
