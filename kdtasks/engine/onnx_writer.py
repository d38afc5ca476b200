"""A student as an ONNX file."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from kdtasks.engine.errors import ConfigError
from kdtasks.engine.export_form import OnnxForm

# onnx.TensorProto.INT8
INT8 = 3
NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "onnxruntime")


def write_onnx(form: OnnxForm, meta: Mapping[str, str], path: Path, opset: int | None) -> None:
    """Write it; ``meta`` are the facts that it holds.

    Raises:
        ConfigError: torch cannot export the model.
    """
    with _quiet():
        try:
            (_trace if form.traced else _read)(form, path, opset)
        except Exception as error:
            # the error around it is general advice
            cause = error.__cause__ or error
            raise ConfigError(
                f"torch.onnx cannot export this student: {type(cause).__name__}: "
                f"{str(cause).strip().splitlines()[0]}"
            ) from error
        import onnx

        program = onnx.load(path)
        _strip(program)
        _unshare_zero_points(program)
        onnx.helper.set_model_props(program, dict(meta))
        onnx.save(program, path)


def _strip(program: Any) -> None:
    """Leave out what torch notes of the source at each node, with the paths of this machine."""
    for node in program.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*program.graph.value_info, *program.graph.input, *program.graph.output]:
        del value.metadata_props[:]


def _unshare_zero_points(program: Any) -> None:
    """Each node has zero points of int8 of its own: where onnxruntime turns int8 weights into uint8
    (see :class:`OnnxModel`) it writes them anew, and fails on what two nodes share.
    """
    held = {tensor.name: tensor for tensor in program.graph.initializer if tensor.data_type == INT8}
    seen: set[str] = set()
    for node in program.graph.node:
        for place, name in enumerate(node.input):
            if name in held and name in seen:
                copied = program.graph.initializer.add()
                copied.CopyFrom(held[name])
                copied.name = node.input[place] = f"{name}_{node.name}_{place}"
            seen.add(name)


def _read(form: OnnxForm, path: Path, opset: int | None) -> None:
    """By torch.export; a size of 1 would be taken as fixed, and a batch need not be larger than
    two.
    """
    shapes = tuple(
        {axis: torch.export.Dim(size) for axis, size in form.dynamic.get(name, {}).items()}
        for name in form.inputs
    )
    batched = [form.dynamic.get(name, {}).get(0) is not None for name in form.inputs]
    example = tuple(
        value[:2] if first else value for value, first in zip(form.examples[0], batched)
    )
    program = torch.onnx.export(
        form.model,
        example,
        dynamo=True,
        opset_version=opset,
        input_names=list(form.inputs),
        output_names=form.outputs and list(form.outputs),
        dynamic_shapes=shapes,
        external_data=False,
        verbose=False,
    )
    assert program is not None  # dynamo gives one
    program.save(path, external_data=False)


def _trace(form: OnnxForm, path: Path, opset: int | None) -> None:
    torch.onnx.export(
        form.model,
        tuple(form.examples[0]),
        path,
        dynamo=False,
        opset_version=opset,
        input_names=list(form.inputs),
        output_names=form.outputs and list(form.outputs),
        dynamic_axes={name: dict(axes) for name, axes in form.dynamic.items()},
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress, hints and graphs unsaid; what fails is in the error."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
