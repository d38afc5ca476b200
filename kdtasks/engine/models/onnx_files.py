"""ONNX files by name, as frozen teachers: ``'onnx:<file>'``."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdtasks.core.names import did_you_mean
from kdtasks.core.weight_files import checksum
from kdtasks.engine.models.facts import Facts
from kdtasks.engine.onnx_model import OnnxModel


class OnnxTeacher(OnnxModel):
    """The model in an ONNX file: what it gives can be learned from, and it cannot learn.

    A loss can name each of its outputs: ``'teacher.<name>'``, with ``_`` for what cannot stand in a
    name (and before one that has a meaning already).

    Args:
        path: of the file.
        output: the name of the output that ``'teacher'`` is; None: the first.
        threads: of onnxruntime; None: as many as torch has.

    Raises:
        ValueError: the file has no such output, or takes more than one input.
        FileNotFoundError, ConfigError: as of :class:`OnnxModel`.
    """

    def __init__(self, path: str | Path, output: str | None = None, threads: int | None = None):
        super().__init__(path, threads)
        if len(self.inputs) != 1:
            raise ValueError(f"{str(path)!r} takes {self.inputs}: expected one input")
        if output is not None and output not in self.outputs:
            raise ValueError(
                f"{str(path)!r} has no output {output!r}; {did_you_mean(output, self.outputs)}"
            )
        self.output = output or self.outputs[0]
        self.paths = {name: self._tap(name) for name in self.outputs}
        # by which a cache knows it: its weights are in no state_dict
        self.register_buffer("digest", torch.tensor(list(bytes.fromhex(checksum(path)))))

    def _tap(self, name: str) -> str:
        """A submodule through which an output goes, so that losses can name it."""
        path = re.sub(r"\W", "_", name)
        path = f"_{path}" if hasattr(self, path) or path[:1].isdigit() else path
        self.add_module(path, nn.Identity())
        return path

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the output."""
        if image.requires_grad:
            raise ValueError(
                "an ONNX teacher gives no gradient of its input, which this method needs"
            )
        outputs = super().forward(image)
        outputs = outputs if isinstance(outputs, dict) else {self.outputs[0]: outputs}
        passed = {
            name: self.get_submodule(self.paths[name])(outputs[name]) for name in self.outputs
        }
        return passed[self.output]


def build(name: str, output: str | None = None, threads: int | None = None) -> nn.Module:
    """A teacher from a file; see :class:`OnnxTeacher`."""
    return OnnxTeacher(name, output, threads)


def check(name: str, **options: Any) -> None:
    """The file is there.

    Raises:
        FileNotFoundError: it is not.
    """
    if not Path(name).is_file():
        raise FileNotFoundError(f"there is no file {name!r}")


def facts(name: str, **options: Any) -> Facts:
    """The name only: an ONNX file says nothing of what it expects; ``mean``, ``std`` and
    ``input_size`` of the teacher do.
    """
    return Facts(f"onnx:{name}", name)
