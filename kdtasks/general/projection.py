"""Losses of features that first bring the student's channels to the teacher's."""

from typing import ClassVar

from torch import Tensor, nn

from kdtasks.core.precision import raised_dtype


class ProjectedLoss(nn.Module):
    """The base of a loss with a projector: a module that maps the student's features to the
    teacher's channels.

    It is made when both channels are known: from the settings, or by :meth:`build` from the first
    tensors. It trains with the student and belongs to one stage; no checkpoint of a student has it.

    Args:
        student_channels, teacher_channels: None: found by :meth:`build`.
    """

    # whether features of equal channels are projected too
    always_projects: ClassVar[bool] = True

    def __init__(self, student_channels: int | None = None, teacher_channels: int | None = None):
        super().__init__()
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.projector: nn.Module | None = None
        if student_channels and teacher_channels:
            self.projector = self.make_projector(student_channels, teacher_channels)

    def make_projector(self, inputs: int, outputs: int) -> nn.Module:
        """A new projector of maps; a 1x1 convolution with bias."""
        if inputs == outputs and not self.always_projects:
            return nn.Identity()
        return nn.Conv2d(inputs, outputs, 1)

    def features(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both as rows ``(B, C)`` or maps ``(B, C, H, W)``.

        Raises:
            ValueError: they are something else, or not of equally many images.
        """
        fit = student.dim() == teacher.dim() and len(student) == len(teacher)
        if student.dim() not in (2, 4) or not fit:
            raise ValueError(
                "expected two maps (B, C, H, W) or two tensors of rows (B, C) of the same images, "
                f"got {_shapes(student, teacher)}"
            )
        return student, teacher

    def build(self, student: Tensor, teacher: Tensor) -> None:
        """Makes the projector that these two need, if it is not there; the Distiller calls it
        before the optimizer is made.
        """
        student, teacher = self._checked(student, teacher)
        if self.projector is None:
            self.student_channels, self.teacher_channels = student.shape[1], teacher.shape[1]
            projector = self.make_projector(self.student_channels, self.teacher_channels)
            self.projector = projector.to(student.device, raised_dtype(student))

    def projected(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The student's :meth:`features` behind the projector, in their own dtype; and the
        teacher's.

        Raises:
            RuntimeError: there is no projector yet.
            ValueError: as :meth:`features`; no channels or places, or other channels than the
                projector has.
        """
        if self.projector is None:
            raise RuntimeError(
                "the projector does not know its channels: give student_channels and "
                "teacher_channels, or call build(student, teacher) before the optimizer is made"
            )
        student, teacher = self._checked(student, teacher)
        weight = next(self.projector.parameters(), student)
        # rows are maps of one place
        maps = student[:, :, None, None] if student.dim() == 2 else student
        maps = self.projector(maps.to(weight.dtype)).to(maps.dtype)
        return maps.flatten(1) if student.dim() == 2 else maps, teacher

    def _checked(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        student, teacher = self.features(student, teacher)
        if 0 in (*student.shape[1:], *teacher.shape[1:]):
            raise ValueError(
                f"expected features of a channel and a place, got {_shapes(student, teacher)}"
            )
        sides = {"student": (student, self.student_channels)}
        sides["teacher"] = (teacher, self.teacher_channels)
        for name, (tensor, channels) in sides.items():
            if channels is not None and tensor.shape[1] != channels:
                raise ValueError(
                    f"expected {channels} channels of the {name}, got {_shapes(student, teacher)}"
                )
        return student, teacher


def _shapes(student: Tensor, teacher: Tensor) -> str:
    return f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
