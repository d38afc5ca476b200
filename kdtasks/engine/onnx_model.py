"""An ONNX file as a model: it is evaluated as any other, by onnxruntime on the CPU, and timed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdtasks.core.weight_files import parsed_metadata
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.evaluation import evaluate
from kdtasks.engine.latency import median_ms
from kdtasks.engine.task import Task


class OnnxModel(nn.Module):
    """The model in an ONNX file, run on the CPU; it has no parameters and cannot be trained.

    A tensor gives the file's output, or ``{name: output}`` of several. A list of images, for a file
    that takes one, gives a list of these. Outputs are on the device of the input.

    Products of int8 are summed exactly on every processor. On x86 without VNNI instructions this is
    onnxruntime's option ``session.x64quantprecision=1``, without which sums may saturate there, and
    it takes longer. A file that cannot run with it runs without.

    Args:
        path: of the file.
        threads: of onnxruntime; None: as many as torch has.

    Attributes:
        meta: what tools/export.py wrote into it: ``config``, ``stage``, ``seed``, ``classes``.
        bytes: of the file.
        threads: how many it has.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: onnxruntime is not installed, or cannot read the file.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        super().__init__()
        runtime = _runtime()
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r}")
        self.threads = threads or torch.get_num_threads()
        content = path.read_bytes()
        self.bytes = len(content)
        try:
            self.session: Any = _session(runtime, content, self.threads)
        # its errors share no class of their own
        except Exception as error:
            raise ConfigError(f"onnxruntime cannot run {str(path)!r}: {error}") from error
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]
        self.outputs = [tensor.name for tensor in self.session.get_outputs()]
        self.meta = parsed_metadata(self.session.get_modelmeta().custom_metadata_map)

    def forward(self, *inputs: Tensor | list[Tensor]) -> Any:
        """The file's answer; see above."""
        if len(inputs) == 1 and isinstance(inputs[0], list | tuple):
            return [self(image) for image in inputs[0]]
        tensors = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
        feeds = {
            name: tensor.detach().cpu().float().numpy()
            for name, tensor in zip(self.inputs, tensors, strict=True)
        }
        outputs = [
            torch.from_numpy(value).to(tensors[0].device) for value in self.session.run(None, feeds)
        ]
        return outputs[0] if len(outputs) == 1 else dict(zip(self.outputs, outputs))

    def latency(self, image: Tensor, rounds: int = 100, seconds: float = 5.0) -> float:
        """Milliseconds of one call, as :func:`~kdtasks.engine.latency.median_ms` takes them.

        Args:
            image: what one call takes: a batch of one.
            rounds, seconds: at most.
        """
        feeds = {self.inputs[0]: image.detach().cpu().float().numpy()}
        return median_ms(lambda: self.session.run(None, feeds), rounds, seconds)[0]


def run_on(task: Task, path: str | Path, loader: Iterable[dict]) -> dict[str, float]:
    """What the file at ``path`` reaches on test data, and costs.

    Returns:
        Each of the task's metrics as ``onnx_<metric>``, and what :func:`cost` says.

    Raises:
        ConfigError: the task's evaluation needs more of a model than what it answers.
    """
    model = OnnxModel(path)
    try:
        reached = evaluate(task, model, loader)
    # whatever an evaluation asks of the model beside its outputs
    except Exception as error:
        raise ConfigError(
            f"{task.name} cannot evaluate an ONNX file, as onnx=True and the export of a student "
            f"that rounds do; it stands in {str(path)!r}: {type(error).__name__}: {error}"
        ) from error
    metrics = {f"onnx_{name}": value for name, value in reached.items()}
    first = f"onnx_{task.primary}"
    # a table shows the first ones
    return {first: metrics[first], **cost(model, loader), **metrics}


def cost(model: OnnxModel, loader: Iterable[dict]) -> dict[str, float]:
    """What running a file takes: ``onnx_bytes``, of the file, and ``onnx_ms``, the median
    milliseconds of one test image on the CPU with ``onnx_threads`` threads.
    """
    image = next(iter(loader))["input"][:1]
    image = image[0] if isinstance(image, list | tuple) else image
    latency = model.latency(image)
    return {"onnx_bytes": model.bytes, "onnx_ms": latency, "onnx_threads": model.threads}


def _session(runtime: Any, content: bytes, threads: int) -> Any:
    def start(**entries: str) -> Any:
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what is fatal; errors are raised
        options.intra_op_num_threads = threads
        for name, value in entries.items():
            options.add_session_config_entry(f"session.{name}", value)
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    try:
        return start(x64quantprecision="1")
    # zero points that several nodes share, as other exporters write them
    except Exception:
        return start()


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "an ONNX file is run by the package onnxruntime: pip install 'kdtasks[export]'"
        ) from None
    return onnxruntime
