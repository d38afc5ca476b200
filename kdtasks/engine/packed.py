"""Students whose weights are codes of few bits, as files of so many: ``--format packed``.

Such a student has an attribute ``packed_file``, its own or that of a module in it, with

- ``write(student, path, facts)``, whose facts are texts; gives what has a ``ratio``, how many
  times smaller than the plain weights the file is, and a ``formula``, how many times by theory,
- ``plain(student)``, a copy with plain weights, those it computes with,
- ``load(plain, path)``, which gives a plain model the weights of a file.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdtasks.engine.errors import ConfigError


def packed_file(student: nn.Module) -> Any:
    """What writes and reads the student's packed file; None: it has none."""
    files = (getattr(part, "packed_file", None) for part in student.modules())
    return next((file for file in files if file is not None), None)


def check_packable(student: nn.Module, where: str) -> None:
    """Raise ConfigError if the student has no packed file."""
    if packed_file(student) is not None:
        return
    if any(hasattr(part, "deployed") for part in student.modules()):
        hint = "what ships of this one is another module: expected --format onnx"
    else:
        hint = "expected a student whose weights are codes of few bits, or --format safetensors"
    raise ConfigError(
        f"{where}: a {type(student).__name__} whose weights are not quantized cannot be packed; "
        f"{hint}"
    )


def write_packed(student: nn.Module, path: Path, facts: Mapping[str, str]) -> dict[str, float]:
    """Write the file.

    Returns:
        Its ``ratio`` and ``formula``.

    Raises:
        ConfigError: the student cannot be packed, or a weight is not finite.
    """
    check_packable(student, "--format packed")
    try:
        size = packed_file(student).write(student, path, facts)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return {"ratio": size.ratio, "formula": size.formula}


def run_packed(
    fresh: Callable[[], nn.Module],
    student: nn.Module,
    path: Path,
    examples: Sequence[tuple[Any, ...]],
) -> list[Any]:
    """What a plain model with the file's weights says of each example.

    Raises:
        ConfigError: the weights are not those that the student computes with, to the last bit.
    """
    form = packed_file(student)
    expected, plain = form.plain(student).state_dict(), form.plain(fresh().cpu())
    form.load(plain, path)
    state = plain.state_dict()
    differ = [name for name in expected if not torch.equal(expected[name], state[name])]
    if differ:
        raise ConfigError(
            f"packed weights are not what the student computes with: {', '.join(differ[:4])}"
        )
    plain.eval()
    with torch.no_grad():
        return [plain(*example) for example in examples]
