"""The formats of exported students: how each is written, and run to be compared."""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdtasks.engine.errors import ConfigError
from kdtasks.engine.export_form import OnnxForm, leaves
from kdtasks.engine.onnx_model import OnnxModel
from kdtasks.engine.onnx_writer import write_onnx
from kdtasks.engine.packed import run_packed, write_packed


class Format(NamedTuple):
    """How a file is written, and what it gives.

    Attributes:
        write: ``(form, meta, path, opset) -> None or {what there is to say: number}``.
        run: ``(fresh student, form, path) -> tensors of each example``.
        tolerance: of the greatest output; all but ONNX compute the same.
        packages: that it needs.
        ending: what stands behind the model's name in the usual name of the file.
    """

    write: Callable
    run: Callable
    tolerance: float
    packages: tuple[str, ...]
    ending: str


def _write_pth(form: OnnxForm, meta: Mapping, path: Path, opset: int | None) -> None:
    torch.save(_weights(form.model), path)


def _write_safetensors(form: OnnxForm, meta: Mapping, path: Path, opset: int | None) -> None:
    from safetensors.torch import save

    path.write_bytes(save(_weights(form.model), metadata=_texts(meta)))


def _write_packed(form: OnnxForm, meta: Mapping, path: Path, opset: int | None) -> dict[str, float]:
    return write_packed(form.model, path, _texts(meta))


def _write_onnx(form: OnnxForm, meta: Mapping, path: Path, opset: int | None) -> None:
    write_onnx(form, _texts(meta), path, opset)


def _run_pth(fresh: Callable[[], nn.Module], form: OnnxForm, path: Path) -> list[list[Tensor]]:
    return _run_state(fresh, form, torch.load(path, map_location="cpu", weights_only=True))


def _run_safetensors(
    fresh: Callable[[], nn.Module], form: OnnxForm, path: Path
) -> list[list[Tensor]]:
    from safetensors.torch import load_file

    return _run_state(fresh, form, load_file(path))


def _run_state(
    fresh: Callable[[], nn.Module], form: OnnxForm, state: Mapping[str, Tensor]
) -> list[list[Tensor]]:
    model = fresh()
    model.load_state_dict(state, strict=True)
    model.eval()
    with torch.no_grad():
        return [leaves(model(*example)) for example in form.examples]


def _run_packed(fresh: Callable[[], nn.Module], form: OnnxForm, path: Path) -> list[list[Tensor]]:
    return [leaves(said) for said in run_packed(fresh, form.model, path, form.examples)]


def _run_onnx(fresh: Callable[[], nn.Module], form: OnnxForm, path: Path) -> list[list[Tensor]]:
    try:
        model = OnnxModel(path)
        return [leaves(model(*example)) for example in form.examples]
    # its errors share no class of their own
    except Exception as error:
        raise ConfigError(
            f"onnxruntime cannot run what torch.onnx exported (another --opset may help): {error}"
        ) from error


def _weights(student: nn.Module) -> dict[str, Tensor]:
    """The state_dict in memory of its own: safetensors refuses tensors that share theirs."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in student.state_dict().items()
    }


def _texts(meta: Mapping) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in meta.items()
    }


FORMATS = {
    "pth": Format(_write_pth, _run_pth, 1e-6, (), "_plain.pth"),
    "safetensors": Format(
        _write_safetensors, _run_safetensors, 1e-6, ("safetensors",), ".safetensors"
    ),
    "packed": Format(_write_packed, _run_packed, 1e-6, ("safetensors",), "_packed.safetensors"),
    "onnx": Format(_write_onnx, _run_onnx, 1e-4, ("onnx", "onnxscript", "onnxruntime"), ".onnx"),
}


def check_packages(format: str) -> None:
    """What a format needs is installed.

    Raises:
        ConfigError: it is not.
    """
    for package in FORMATS[format].packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"--format {format} needs the package {package}: pip install 'kdtasks[export]' "
                f"({error})"
            ) from error
