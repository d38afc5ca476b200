r"""Contrastive Representation Distillation (Tian, Krishnan and Isola, ICLR 2020, arXiv 1910.10699).

The student's embedding of an image shall be told apart from other images' by the **teacher's**
embedding of the same one, and the other way round. Both go through a linear map of their own to
vectors of length 1, :math:`v^s` and :math:`v^t`, of which a memory keeps a running mean for each of
the n training images, :math:`M^s` and :math:`M^t`. With the image's own place i and K places k of
images of other classes ("negatives"),

.. math::
    o_{bk} &= \tfrac{1}{Z} \exp \bigl( \langle M^t_k, v^s_b \rangle / \tau \bigr), \qquad
    c = K / n

    L^s &= -\frac{1}{B} \sum_b \Bigl( \log \frac{o_{bi}}{o_{bi} + c} + \sum_k \log
    \frac{c}{o_{bk} + c} \Bigr), \qquad L = L^s + L^t

and :math:`L^t` with the two exchanged, which trains the teacher's map. As released, Z is the mean
of :math:`\exp(\cdot)` over the first batch times n, and then constant; 1e-7 is added in the
denominators; and a memory is updated after the loss by a mean with momentum, brought to length 1.

**Negatives.** The released loader draws them for each image by itself; here a random order of all
images is drawn for a batch, and each image has the first K in it of other classes than its own. For
one image that is the same distribution, and the batch's similarities are one matrix product instead
of B·K gathered vectors. The classes of images are learned from the batches: in the first epoch an
image that has not been seen yet counts as of another class.

The released weight is 0.8 beside cross-entropy at 1. The loss is of ``('student.<features>',
'teacher.<features>', 'index', 'target')``. Its state, memories and all, is 2·n·dim numbers, and
resumes with the run. In several processes all vectors are gathered for the memories, which stay
equal: their batches must have equal lengths.
"""

import torch
from torch import Tensor, nn

from kdtasks.core.classes import UNLABELLED
from kdtasks.core.gather import gather_rows, mean_over_processes
from kdtasks.general.directions import directions

EPS = 1e-7


def contrastive_loss(scores: Tensor, other_scores: Tensor, usable: Tensor, noise: float) -> Tensor:
    """The formula of one side, mean over the batch; a scalar.

    Args:
        scores: ``(B,)`` logarithms of :math:`o_{bi}`.
        other_scores: ``(B, M)`` logarithms of :math:`o_{bk}`.
        usable: ``(B, M)`` bool: which are negatives.
        noise: c.
    """
    right = scores - (scores.exp() + noise + EPS).log()
    wrong = noise / (other_scores.exp() + noise + EPS)
    return -(right.sum() + wrong.log().masked_fill(~usable, 0).sum()) / max(len(scores), 1)


class CRDLoss(nn.Module):
    """Contrast of the student's features with the teacher's memory, and the other way round.

    Args:
        samples: n, the number of training images: ``index`` is below it.
        student_channels, teacher_channels: None: found by :meth:`build`.
        dim: of the vectors.
        negatives: K; where the images of other classes are fewer, all of them.
        temperature: tau.
        momentum: of the memories: what an update keeps of the old.

    All defaults are those of the released CIFAR-100 script.

    Raises:
        ValueError: a setting out of its range; in ``forward``, shapes that do not fit.
        RuntimeError: in ``forward``, the channels are not known yet.
    """

    def __init__(
        self,
        samples: int,
        student_channels: int | None = None,
        teacher_channels: int | None = None,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ):
        super().__init__()
        if samples < 2 or negatives < 1 or dim < 1:
            raise ValueError(
                f"expected samples >= 2, negatives >= 1 and dim >= 1, got {samples}, {negatives} "
                f"and {dim}"
            )
        if not temperature > 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"expected temperature > 0 and 0 <= momentum < 1, got {temperature} and {momentum}"
            )
        self.samples, self.negatives = samples, min(negatives, samples - 1)
        self.dim, self.temperature, self.momentum = dim, temperature, momentum
        bound = (3 / dim) ** 0.5  # as released: rows of length 1, about
        for side in ("student", "teacher"):
            memory = torch.empty(samples, dim).uniform_(-bound, bound)
            self.register_buffer(f"{side}_memory", memory)
        self.register_buffer("classes", torch.full((samples,), UNLABELLED))
        self.register_buffer("normalizers", torch.zeros(2))  # Z of both sides; 0: not known yet
        self.scaled = False  # whether they are known, without a look at the device
        self.register_load_state_dict_post_hook(_note_scaled)
        self.student_map: nn.Linear | None = None
        self.teacher_map: nn.Linear | None = None
        if student_channels and teacher_channels:
            self._make_maps(student_channels, teacher_channels)

    def _make_maps(self, student_channels: int, teacher_channels: int) -> None:
        self.student_map = nn.Linear(student_channels, self.dim)
        self.teacher_map = nn.Linear(teacher_channels, self.dim)

    def build(self, student: Tensor, teacher: Tensor, index: Tensor, target: Tensor) -> None:
        """Makes the two maps if they are not there; the Distiller calls it before the optimizer is
        made.
        """
        _check(student, teacher, index, target)
        if len(index) and int(index.max()) >= self.samples:
            raise ValueError(
                f"samples={self.samples}, and an image has the index {int(index.max())}: expected "
                "the number of training images"
            )
        if self.student_map is None:
            self._make_maps(student.shape[1], teacher.shape[1])
            self.to(student.device)

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, target: Tensor) -> Tensor:
        """The loss; in training, the memories are updated after it.

        Args:
            student: ``(B, C)`` features, or maps that are averaged over their places; carries the
                gradient.
            teacher: the same of the teacher; never receives a gradient.
            index: ``(B,)`` int64, the images' numbers in the training set.
            target: ``(B,)`` class numbers; -100: unlabelled, of no other image's class.

        Returns:
            A scalar in nats, in float32.
        """
        if self.student_map is None or self.teacher_map is None:
            raise RuntimeError(
                "the maps do not know their channels: give student_channels and teacher_channels, "
                "or call build(student, teacher, index, target) before the optimizer is made"
            )
        _check(student, teacher, index, target)
        with torch.autocast(student.device.type, enabled=False):
            student_vectors = self._vectors(self.student_map, student)
            teacher_vectors = self._vectors(self.teacher_map, teacher.detach())
            order = torch.randperm(self.samples, device=index.device)[: 2 * self.negatives]
            usable = self._usable(order, index, target)
            loss = self._side(0, student_vectors, self.teacher_memory, index, order, usable)
            loss = loss + self._side(1, teacher_vectors, self.student_memory, index, order, usable)
        if self.training:
            self._remember(student_vectors.detach(), teacher_vectors.detach(), index, target)
            self.scaled = True
        return loss

    def _vectors(self, linear: nn.Linear, features: Tensor) -> Tensor:
        pooled = features.mean((2, 3)) if features.dim() == 4 else features
        return directions(linear(pooled.to(linear.weight.dtype)))

    def _usable(self, order: Tensor, index: Tensor, target: Tensor) -> Tensor:
        """``(B, M)`` bool: the first K places of the order that hold images of other classes."""
        is_labelled = (target != UNLABELLED)[:, None]
        same = is_labelled & (self.classes[order] == target[:, None]) | (order == index[:, None])
        return ~same & ((~same).cumsum(1) <= self.negatives)

    def _side(
        self,
        side: int,
        vectors: Tensor,
        memory: Tensor,
        index: Tensor,
        order: Tensor,
        usable: Tensor,
    ) -> Tensor:
        scores = (vectors * memory[index]).sum(1) / self.temperature
        other_scores = vectors @ memory[order].T / self.temperature
        scale = self._normalizer(side, scores.detach(), other_scores.detach(), usable).log()
        return contrastive_loss(
            scores - scale, other_scores - scale, usable, self.negatives / self.samples
        )

    def _normalizer(
        self, side: int, scores: Tensor, other_scores: Tensor, usable: Tensor
    ) -> Tensor:
        """Z: that of the first batch in training."""
        if self.scaled:
            return self.normalizers[side]
        total = scores.exp().sum() + other_scores.exp().masked_fill(~usable, 0).sum()
        mean = total / (usable.sum() + len(scores)).clamp(min=1)
        mean, _ = mean_over_processes(mean)
        normalizer = self.normalizers[side]
        normalizer = torch.where(normalizer > 0, normalizer, mean * self.samples)
        if self.training:
            self.normalizers[side] = normalizer
        return normalizer

    def _remember(
        self, student_vectors: Tensor, teacher_vectors: Tensor, index: Tensor, target: Tensor
    ) -> None:
        student_vectors, teacher_vectors, index, target = (
            gather_rows(t) for t in (student_vectors, teacher_vectors, index, target)
        )
        # of an image that a batch has twice, the last one counts
        last = torch.zeros_like(self.classes).scatter_reduce_(
            0, index, torch.arange(len(index), device=index.device), "amax", include_self=False
        )[index]
        self.classes[index] = target[last]
        for memory, vectors in (
            (self.student_memory, student_vectors),
            (self.teacher_memory, teacher_vectors),
        ):
            mixed = self.momentum * memory[index] + (1 - self.momentum) * vectors[last]
            memory[index] = directions(mixed).to(memory.dtype)

    def extra_repr(self) -> str:
        """The settings that the paper's formula has."""
        return (
            f"samples={self.samples}, dim={self.dim}, negatives={self.negatives}, "
            f"temperature={self.temperature}, momentum={self.momentum}"
        )


def _note_scaled(loss: CRDLoss, keys: object) -> None:
    """Of a state that was loaded."""
    loss.scaled = bool((loss.normalizers > 0).all())


def _check(student: Tensor, teacher: Tensor, index: Tensor, target: Tensor) -> None:
    shapes = {tuple(index.shape), tuple(target.shape), *((len(f),) for f in (student, teacher))}
    if len(shapes) > 1 or {student.dim(), teacher.dim()} - {2, 4}:
        raise ValueError(
            "expected features (B, C) or maps (B, C, H, W), and index and target (B,), got student "
            f"{tuple(student.shape)}, teacher {tuple(teacher.shape)}, index {tuple(index.shape)} "
            f"and target {tuple(target.shape)}"
        )
