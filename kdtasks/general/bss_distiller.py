"""BSS in a step: the losses may also be of the batch's boundary samples (:mod:`kdtasks.general.bss`
has the formulas).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdtasks.core import Distiller
from kdtasks.general.bss import (
    RELEASED_CLIP,
    base_samples,
    boundary_samples,
    channel_bounds,
    target_classes,
)

_BOUNDARY = ("student.boundary", "teacher.boundary", "student.boundary_valid")


class BSSDistiller(Distiller):
    """A :class:`~kdtasks.core.Distiller` whose losses may also be of this batch's boundary samples.

    ==========================  ====================================================================
    ``student.boundary``        (n, C) logits of the student, n = min(B, count); carry the gradient
    ``teacher.boundary``        (n, C) logits of the teacher
    ``student.boundary_valid``  (n,) bool: which rows are boundary samples; the others, where there
                                are fewer than n, are plain images that only keep the shape. A
                                row that nothing moves (no gradient, or another answer of the
                                teacher in float32 than in the batch) stays and counts
    ==========================  ====================================================================

    ``teachers['teacher']`` is attacked, in eval and float32 whatever its ``precision``, and only
    while some loss of these names has a weight other than 0. The student sees the n rows in a
    second forward: its BatchNorm statistics move once with the batch and once with them, as
    released.

    Args:
        student, teachers, losses, peers, compile: see :class:`~kdtasks.core.Distiller`.
        count: boundary samples a batch, at most.
        step_size, max_steps, eps, clip: of :func:`~kdtasks.general.boundary_samples`; ``clip``
            a pair of numbers, or None: ±2.5 as released, or the range of images normalised by
            ``mean`` and ``std``.
        mean, std: of the data's normalisation, by channel.
        reject: False: every moved sample counts, as released. True: only those that have crossed
            into their target class, as in the paper by notes on it.

    Raises:
        ValueError: only one of ``mean`` and ``std``, or ``clip`` beside them. On the first batch
            (:meth:`build` has one): the bounds exclude the data, or the teacher gives no gradient
            of its input.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        losses: Mapping[str, tuple] | None = None,
        *,
        count: int = 64,
        step_size: float = 0.3,
        max_steps: int = 10,
        eps: float = 1e-4,
        clip: Sequence[float] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        reject: bool = False,
        peers: Sequence[nn.Module] = (),
        compile: bool | dict = False,
    ):
        super().__init__(student, teachers, losses, peers=peers, compile=compile)
        self.count, self.reject = count, reject
        self.attack = {"step_size": step_size, "max_steps": max_steps, "eps": eps}
        if (mean is None) != (std is None) or (clip is not None and mean is not None):
            raise ValueError(
                f"expected clip=(low, high), or mean and std, got clip={clip}, mean={mean}, "
                f"std={std}"
            )
        low, high = (clip or RELEASED_CLIP) if mean is None else channel_bounds(mean, std)
        self.register_buffer("low", torch.as_tensor(low, dtype=torch.float32), persistent=False)
        self.register_buffer("high", torch.as_tensor(high, dtype=torch.float32), persistent=False)

    def names(self, role: str) -> list[str]:
        """What :class:`~kdtasks.core.Distiller` supplies, and the names above."""
        boundary = _BOUNDARY if role == "student" and "teacher" in self.teachers else ()
        return [*super().names(role), *boundary]

    def needs(self, role: str) -> list[str]:
        """Boundary samples are of images on which the teacher is right."""
        follows = role == "student" and not set(_BOUNDARY).isdisjoint(self.wanted[role])
        return ["teacher"] if follows else []

    def outputs(
        self, role: str, batch: Mapping[str, object], wanted: list[str]
    ) -> dict[str, object]:
        """The wanted names of one role; those of boundary samples are the student's to give, as its
        answers decide on them.
        """
        if role != "student" or set(_BOUNDARY).isdisjoint(wanted):
            return super().outputs(role, batch, wanted)
        values = super().outputs(role, batch, [n for n in wanted if n not in _BOUNDARY])
        return values | self._boundary(batch, values["student"], batch["teacher"])

    def _boundary(
        self, batch: Mapping[str, object], student: Tensor, teacher: Tensor
    ) -> dict[str, Tensor]:
        if not self._pulls():
            none = student.detach()[:0]
            return dict(zip(_BOUNDARY, (none, none, none.new_zeros(0, dtype=torch.bool))))
        rows, valid = base_samples(student, teacher, batch["target"], self.count)
        clean, base = batch["input"][rows], teacher.argmax(1)[rows]
        self._check_bounds(clean)
        target = target_classes(teacher[rows], base)
        score = self.teachers["teacher"].in_float32
        moved = boundary_samples(
            score, clean, base, target, clip=(self.low, self.high), **self.attack
        )
        moved = torch.where(valid.view(-1, *[1] * (clean.dim() - 1)), moved, clean)
        with torch.no_grad():
            answers = self.run("teacher", moved, ["teacher"])["teacher"]
            if self.reject:
                valid = valid & (score(moved).argmax(1) == target)
        student_logits = self.run("student", moved, ["student"])["student"]
        return dict(zip(_BOUNDARY, (student_logits, answers, valid)))

    def _pulls(self) -> bool:
        """Whether some loss of boundary samples has a weight now."""
        for _, of, weight in self.terms.values():
            if not set(_BOUNDARY).isdisjoint(of):
                scheduled = callable(weight) and self.progress is not None
                if (weight(self.progress) if scheduled else weight) != 0:
                    return True
        return False

    def _check_bounds(self, input: Tensor) -> None:
        """Once: it waits for the device."""
        facts = self.facts("student", "teacher")
        if facts.get("bounds") or not input.numel():
            return
        width = (self.high - self.low).abs()
        outside = (input < self.low - width) | (input > self.high + width)
        if outside.float().mean() > 0.01 or (self.low >= self.high).any():
            raise ValueError(
                f"the images' values lie in [{input.min():g}, {input.max():g}], and clip="
                f"({self.low.flatten().tolist()}, {self.high.flatten().tolist()}) excludes them: "
                "expected bounds of the images as the models see them (mean and std of their "
                "normalisation)"
            )
        facts["bounds"] = True
