"""A frozen model that teaches."""

from collections.abc import Callable, ItemsView, Mapping, Sequence, ValuesView
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.names import PEERS

# names of a step that a teacher cannot have
RESERVED = (PEERS, "input", "target", "index", "labelled")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INTERPOLATIONS = ("bilinear", "bicubic")


class Teacher(nn.Module):
    """A model with one promise: it is frozen, and nothing that happens to the student changes it.

    It stays in eval whatever ``train()`` says (BatchNorm and dropout too), its parameters need no
    gradient, and it is no submodule of anything: it does not appear in ``parameters()``,
    ``state_dict()``, an optimizer, DDP or a copy (``deepcopy`` shares it). It follows ``.to()``,
    ``.cuda()`` and the like. Calling it does not switch gradients off: the caller does, and a
    method that needs a gradient in the teacher's *input* can have one.

    Args:
        model: the network; frozen here, for good.
        precision: ``'float32'``, ``'bfloat16'`` or ``'float16'`` for its forward, by autocast
            (parameters and BatchNorm stay as they are); None follows the autocast around it.
        input_size: the side, or (height, width), to which inputs are resized (antialiased); None:
            as given.
        interpolation: of that, ``'bilinear'`` or ``'bicubic'``.
        mean, std: what its inputs are normalised with, where the student's differ; needs
            ``student_mean`` and ``student_std``. A student's input x becomes ((x * student_std +
            student_mean) - mean) / std.

    Attributes:
        classes: names of the classes that it knows, in the order of its output, where they are
            known; set from outside.

    Raises:
        ValueError: an unknown precision, an impossible size, or only some of the four normalisation
            arguments.
    """

    classes: Sequence[str] | None = None
    model: nn.Module
    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        precision: str | None = None,
        input_size: int | Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        student_mean: Sequence[float] | None = None,
        student_std: Sequence[float] | None = None,
        interpolation: str = "bilinear",
    ):
        super().__init__()
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(
                f"precision must be None or one of {list(PRECISIONS)}, got {precision!r}"
            )
        if precision is not None and next(model.parameters(), None) is None:
            raise ValueError(
                f"precision={precision!r}: a {type(model).__name__} has no parameters, so it "
                "computes as it was written; expected None"
            )
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {list(INTERPOLATIONS)}, got {interpolation!r}"
            )
        size = _height_and_width(input_size)
        scale, shift = _renormalization(mean, std, student_mean, student_std)
        # which freezes it: after all checks
        self.model = model
        self.precision = None if precision is None else PRECISIONS[precision]
        self.input_size, self.interpolation = size, interpolation
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.training = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "model":
            return super().__setattr__(name, value)
        # some models' eval() returns None
        value.eval()
        value.requires_grad_(False)
        # past nn.Module: not a submodule
        self.__dict__["model"] = value

    def forward(self, input: Any) -> Any:
        """The model's output for a student's input, in the teacher's size and precision.

        Raises:
            TypeError: an input that is no tensor, where it has to be resized or normalised.
        """
        if self.scale is not None or self.input_size is not None:
            input = self._prepared(input)
        with self.ready():
            return self.model(input)

    def in_float32(self, input: Tensor) -> Tensor:
        """As the call, but in float32 whatever ``precision`` and the autocast around it."""
        if self.scale is not None or self.input_size is not None:
            input = self._prepared(input)
        if self.model.training:
            self.model.eval()
        with torch.autocast(input.device.type, enabled=False):
            return self.model(input)

    def ready(self) -> AbstractContextManager:
        """In eval, in the teacher's precision: around calls of the model's parts by themselves."""
        # somebody called model.train() directly
        if self.model.training:
            self.model.eval()
        if self.precision is None:
            return nullcontext()
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, self.precision, enabled=self.precision is not torch.float32)

    def _prepared(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor):
            raise TypeError(
                "a teacher with an input_size or a normalisation of its own takes one tensor, got "
                f"{type(input).__name__}"
            )
        if self.scale is not None and self.shift is not None:
            input = input * self.scale + self.shift
        if self.input_size is not None and tuple(input.shape[-2:]) != self.input_size:
            input = F.interpolate(
                input, size=self.input_size, mode=self.interpolation, antialias=True
            )
        return input

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval."""
        self.model.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Teacher":
        super()._apply(fn, recurse)
        self.model._apply(fn)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        return self


def _height_and_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"input_size must be None, a side or (height, width), got {size!r}")
    return sides


def _renormalization(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    student_mean: Sequence[float] | None,
    student_std: Sequence[float] | None,
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The scale and shift, (C, 1, 1), that turn the student's inputs into the teacher's."""
    given = (mean, std, student_mean, student_std)
    if all(value is None for value in given):
        return None, None
    if any(value is None for value in given):
        raise ValueError(
            "mean, std, student_mean and student_std go together; got "
            f"mean={mean}, std={std}, student_mean={student_mean}, student_std={student_std}"
        )
    mine, spread, students, students_spread = (
        torch.as_tensor(value, dtype=torch.float32).view(-1, 1, 1) for value in given
    )
    return students_spread / spread, (students - mine) / spread


class Teachers(nn.ModuleDict):
    """Teachers by name; a plain model that is put here is frozen as a :class:`Teacher`."""

    if TYPE_CHECKING:

        def __getitem__(self, key: str) -> Teacher: ...

        def values(self) -> ValuesView[Teacher]:
            """Teachers only."""
            ...

        def items(self) -> ItemsView[str, Teacher]:
            """Names, and teachers only."""
            ...

    def add_module(self, name: str, module: nn.Module) -> None:
        """Add a teacher."""
        super().add_module(name, module if isinstance(module, Teacher) else Teacher(module))

    def __setattr__(self, name: str, value: Any) -> None:
        plain = isinstance(value, nn.Module) and not isinstance(value, Teacher)
        super().__setattr__(name, Teacher(value) if plain else value)


def check_teachers(
    teachers: Mapping[str, nn.Module] | Teachers, learners: Mapping[str, nn.Module]
) -> None:
    """Check the names of teachers, and that no learner shares a parameter with one.

    Args:
        teachers: by name, models or :class:`Teacher`.
        learners: the student and its peers, by role.

    Raises:
        ValueError: a name that something else has, or that is no identifier; a shared parameter.
    """
    frozen = {}
    for name, teacher in teachers.items():
        if name in (*learners, *RESERVED) or not name.isidentifier():
            raise ValueError(
                f"a teacher cannot be called {name!r}: expected an identifier that names nothing "
                "else"
            )
        model = teacher.model if isinstance(teacher, Teacher) else teacher
        frozen |= {id(parameter): name for parameter in model.parameters()}
    for role, model in learners.items():
        for path, parameter in model.named_parameters():
            if id(parameter) in frozen:
                raise ValueError(
                    f"{role} and {frozen[id(parameter)]} share the parameter {path!r}, and a "
                    "teacher is frozen: give the teacher a copy (copy.deepcopy)"
                )
