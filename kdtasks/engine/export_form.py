"""What an exported file holds of a student, and whether it gives the student's outputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdtasks.engine.errors import ConfigError

# of a student that computes in whole numbers: of the greatest output, the mean difference
ROUNDED = 0.02


@dataclass
class OnnxForm:
    """What an ONNX file holds of a student, and on what it is compared with it.

    A task whose students are more than one tensor of fixed height and width says so in its module,
    with a function ``onnx_form(student, images) -> OnnxForm``; ``images`` are the test images that
    a batch has as its ``input``.

    A student that ships as another module than it trains as, such as one with int8 weights, has a
    method ``deployed() -> module``; the file holds that, and is compared with the student.

    Args:
        model: is called with the tensors of an example, and gives a tensor, or a tuple, list or
            dict of some.
        examples: of the model's arguments, on the CPU; the first one is what torch sees, all of
            them are compared.
        inputs: what the file calls the arguments.
        outputs: what it calls the outputs; None: torch's choice.
        dynamic: the axes that are left open, ``{name of an input or output: {axis: name of the
            size}}``.
        traced: torch's older exporter, which records one run; the other one reads the code, and
            refuses models whose sizes depend on what is in the image.
        compare: ``(expected, outputs, tolerance) -> (difference, allowed)``, both of all examples,
            each a list of tensors; raises :class:`Differs` where they are not the same. None:
            :func:`compare`, number by number.
        rounded: the model rounds what it computes, as to int8: by a hair an output is then a step
            off, so their mean difference counts.
    """

    model: nn.Module
    examples: Sequence[tuple[Any, ...]]
    inputs: Sequence[str] = ("input",)
    outputs: Sequence[str] | None = None
    dynamic: Mapping[str, Mapping[int, str]] = field(
        default_factory=lambda: {"input": {0: "batch"}}
    )
    traced: bool = False
    compare: Callable | None = None
    rounded: bool = False


class Differs(ConfigError):
    """The outputs of a file are not the student's."""


def compare_outputs(
    form: OnnxForm,
    expected: Sequence[Sequence[Tensor]],
    outputs: Sequence[Sequence[Tensor]],
    tolerance: float,
) -> tuple[float, float]:
    """``(difference, allowed)`` by what the form says; else by :func:`compare`."""
    if form.compare:
        return form.compare(expected, outputs, tolerance)
    return compare(expected, outputs, ROUNDED if form.rounded else tolerance, form.rounded)


def compare(
    expected: Sequence[Sequence[Tensor]],
    outputs: Sequence[Sequence[Tensor]],
    tolerance: float,
    mean: bool = False,
) -> tuple[float, float]:
    """``(difference, allowed)`` of the output of any example that comes nearest to its limit.

    Args:
        expected, outputs: of each example.
        tolerance: times the greatest value of an output is allowed.
        mean: the mean difference counts, not the greatest.

    Raises:
        Differs: an output differs by more than is allowed, or in shape.
    """
    shapes = [
        [[tuple(t.shape) for t in tensors] for tensors in examples]
        for examples in (expected, outputs)
    ]
    for expected_shapes, output_shapes in zip(*shapes):
        if expected_shapes != output_shapes:
            raise Differs(
                f"its outputs have the shapes {output_shapes}, the student's {expected_shapes}"
            )
    pairs = []
    for want, got in (
        (want.cpu().double(), got.cpu().double())
        for pair in zip(expected, outputs)
        for want, got in zip(*pair)
    ):
        apart = (want - got).abs() if want.numel() else torch.zeros(1)
        difference = float(apart.mean() if mean else apart.max())
        allowed = tolerance * float(want.abs().max()) if want.numel() else 0.0
        if not difference <= allowed:
            raise Differs(
                f"on real test images its outputs differ from the student's by {difference:.3g}"
                f"{' on average' if mean else ''}, "
                f"more than {allowed:.3g}"
            )
        pairs.append((difference, allowed))
    return max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0)


def leaves(output: Any) -> list[Tensor]:
    """The tensors of an output in order, however deep in dicts, lists and tuples."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [leaf for part in output or [] for leaf in leaves(part)]
