"""A teacher's dense head run on what the student's head had halfway: the predictions of CrossKD
(:mod:`kdtasks.detection.crosskd`).

A head has two stacks of convolution, norm and ReLU, for classes and for boxes, which all levels go
through. The student's value before the ReLU behind a convolution stands in for the teacher's there,
in the teacher's own forward: whatever that does behind the stacks, it does here.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from kdtasks.core.precision import raised
from kdtasks.detection.detectors import replaced
from kdtasks.detection.pkd import deviations, standardized


def path_before_relu(model: nn.Module, stack: str, convolution: int, role: str) -> str:
    """The path of the module whose output is given to the ReLU behind a convolution.

    Args:
        model: a detector.
        stack: the path of one of its head's stacks.
        convolution: which, counted from 1.
        role: of the detector, for the message.

    Raises:
        ValueError: there is no such stack, or it has fewer convolutions.
    """
    try:
        leaves = _leaves(model.get_submodule(stack))
    except AttributeError:
        raise ValueError(
            f"{role}: {type(model).__name__} has no {stack!r}, a stack of convolutions and ReLUs "
            "in its dense head; crossing takes RetinaNet, FCOS, GFL, ATSS and their kind"
        ) from None
    paths = [
        path for path, after in itertools.pairwise(leaves) if isinstance(leaves[after], nn.ReLU)
    ]
    if not 1 <= convolution <= len(paths):
        raise ValueError(
            f"cross_after must be from 1 to {len(paths)}, the convolutions with a ReLU in "
            f"{stack!r} of {role}, got {convolution}"
        )
    return f"{stack}.{paths[convolution - 1]}"


def _leaves(module: nn.Module) -> dict[str, nn.Module]:
    """The parts that have none themselves, in the order in which a stack runs them."""
    return {path: part for path, part in module.named_modules() if path and not [*part.children()]}


def aligned(student: Tensor, teacher: Tensor, where: str) -> Tensor:
    """The student's map with the mean and deviation that each of the teacher's channels has over
    images and places; ``(N, C, H, W)`` twice. One place of one image becomes the teacher's.

    Args:
        where: what they are, for the message.

    Raises:
        ValueError: they have other channels.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"{where}: the student has {tuple(student.shape)} and the teacher "
            f"{tuple(teacher.shape)}, expected equally many channels, since the teacher's head "
            "goes on with them"
        )
    wide, taught = raised(student, teacher.detach())
    mean, deviation = deviations(taught)
    return (standardized(wide) * deviation + mean).to(teacher.dtype)


@contextmanager
def crossed(
    head: nn.Module, student_head: nn.Module, values: Mapping[str, Sequence[Tensor]]
) -> Iterator[None]:
    """While it lasts, the head goes on from these values.

    What comes before them in their stacks does not run. A level's scale of the boxes, where both
    heads have one (GFL, FCOS, ATSS of MMDetection), is the student's, as released.

    Args:
        head: the teacher's.
        student_head: the student's.
        values: by the path of a module in ``head``, what it gives at each level.
    """
    with ExitStack() as stack:
        for path, levels in values.items():
            for module, forward in _stand_ins(head, path, levels):
                stack.enter_context(replaced(module, "forward", forward))
        for scale, student_scale in zip(
            getattr(head, "scales", ()), getattr(student_head, "scales", ())
        ):
            stack.enter_context(replaced(scale, "forward", student_scale.forward))
        yield


def _stand_ins(
    head: nn.Module, path: str, levels: Sequence[Tensor]
) -> Iterator[tuple[nn.Module, Callable]]:
    """The module at a path, which gives one level after the other; those before it give what they
    get, ReLUs too, which may work in place.
    """
    values = iter(levels)
    start = path.split(".")
    leaves = _leaves(head)
    # its stack is what stands before the first number
    stack = next(i for i, part in enumerate(start) if part.isdigit())
    for name, module in leaves.items():
        if name == path:
            yield module, lambda *_: next(values)
            return
        if name.split(".")[:stack] == start[:stack]:
            yield module, lambda value: value
