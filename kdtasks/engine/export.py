"""A run's student as a file for elsewhere, kept only if it gives the student's outputs on real test images."""

import argparse
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from kdtasks.core.weights import load_weights
from kdtasks.engine import checkpoint
from kdtasks.engine import config as configurations
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.cli import common_arguments, plain_errors
from kdtasks.engine.run import Run

TOLERANCE = {"pth": 1e-6, "safetensors": 1e-6, "onnx": 1e-4}       # of the greatest output; the first two compute the same
NEEDS = {"pth": (), "safetensors": ("safetensors",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "onnxruntime")


def export(work_dir: str | Path, format: str, output: str | Path | None = None, weights: str | Path = "student.pth",
           opset: int | None = None, device: str = "cpu", options: Mapping | None = None) -> dict:
    """Write the student of a finished run, run the file beside the student, and keep it only if both agree.

    Args:
        work_dir: of the run; its ``config.py`` says what the student is and which images test it.
        format: ``'pth'`` (a plain state_dict, with the run's facts in a ``.json`` beside it), ``'safetensors'`` (with them as
            metadata), or ``'onnx'`` (with the batch size left open).
        output: the file; None: ``student.<format>`` in the work_dir, ``student_plain.pth`` for ``'pth'``.
        weights: a file in the work_dir, or any: ``student.pth``, or a student's ``last.pth`` or ``best.pth``.
        opset: of ONNX; None: torch's choice.
        device: that computes the student's outputs; ONNX is checked on the CPU.
        options: changes of the config, as where the test data lies here.

    Returns:
        ``output``, ``bytes``, ``difference`` (the greatest of any output, absolute), ``allowed``, ``images``.

    Raises:
        ConfigError: no such run or format, a package that is missing, a model that the format cannot hold, or outputs
            that differ. What was at ``output`` before then still stands.
    """
    if format not in TOLERANCE:
        raise ConfigError(f"format must be one of {list(TOLERANCE)}, got {format!r}")
    for package in NEEDS[format]:
        _need(package, format)
    work_dir = Path(work_dir)
    if not (work_dir / "config.py").is_file():
        raise ConfigError(f"{str(work_dir)!r} holds no run: there is no config.py in it")
    source = work_dir / weights if (work_dir / weights).is_file() else Path(weights)
    output = Path(output or work_dir / {"pth": "student_plain.pth"}.get(format, f"student.{format}"))
    if output.resolve() == source.resolve():
        raise ConfigError(f"the output {str(output)!r} is the file that is exported; expected another --output")

    config = configurations.load(work_dir / "config.py", {**(options or {}), "amp": None})       # outputs in full precision
    run = Run(config, work_dir, 0, device, work_dir.name, quiet=True)
    student = run.model("student")
    meta = load_weights(student, source)
    student.eval()
    images = _images(run)
    if format == "onnx":
        if not isinstance(images, Tensor):
            raise ConfigError(f"ONNX needs a model of one tensor, and this task's test images are a {type(images).__name__}; "
                              "use --format safetensors")
        student, images = student.cpu().to(memory_format=torch.contiguous_format), images.cpu().contiguous()
    with torch.no_grad():
        expected = _leaves(student(images))
    found: dict = {}

    def write_and_check(path: Path) -> None:
        WRITERS[format](student, images, meta, path, opset)
        outputs = RUNNERS[format](run, path, images)
        found["difference"], found["allowed"] = _compare(expected, outputs, TOLERANCE[format], output)
        if format == "pth":                                            # the others hold their facts
            checkpoint.save_meta(meta, path, output)

    checkpoint.write_atomically(output, write_and_check)
    return {"output": str(output), "bytes": output.stat().st_size, "images": len(images), **found}


def _images(run: Run):
    """The first test batch, of at least three samples: 1 and 2 could be sizes that an export has made fixed."""
    loader = run.test_loader(run.stages[-1])
    images = next(iter(loader))["input"]
    while len(images) < 3:
        images = torch.cat([images, images]) if isinstance(images, Tensor) else [*images, *images]
    return images


# Writing, and running what was written ---------------------------------------------------------------------------------
def _write_pth(student: nn.Module, images, meta: Mapping, path: Path, opset: int | None) -> None:
    torch.save(_weights(student), path)


def _write_safetensors(student: nn.Module, images, meta: Mapping, path: Path, opset: int | None) -> None:
    from safetensors.torch import save

    path.write_bytes(save(_weights(student), metadata=_texts(meta)))


def _write_onnx(student: nn.Module, images: Tensor, meta: Mapping, path: Path, opset: int | None) -> None:
    with _quiet():
        try:
            program = torch.onnx.export(student, (images[:2],), dynamo=True, opset_version=opset, input_names=["input"],
                                        dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False)
        except Exception as error:
            cause = error.__cause__ or error                           # the error around it is general advice
            raise ConfigError(f"torch.onnx cannot export this student: {type(cause).__name__}: "
                              f"{str(cause).strip().splitlines()[0]}") from error
        program.model.metadata_props.update(_texts(meta))
        program.save(path, external_data=False)


def _run_pth(run: Run, path: Path, images) -> list[Tensor]:
    return _run_state(run, torch.load(path, map_location="cpu", weights_only=True), images)


def _run_safetensors(run: Run, path: Path, images) -> list[Tensor]:
    from safetensors.torch import load_file

    return _run_state(run, load_file(path), images)


def _run_state(run: Run, state: Mapping[str, Tensor], images) -> list[Tensor]:
    model = run.model("student")
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        return _leaves(model.eval()(images))


def _run_onnx(run: Run, path: Path, images: Tensor) -> list[Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3                                     # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    except Exception as error:                                         # its errors share no class of their own
        raise ConfigError(f"onnxruntime cannot run what torch.onnx exported (another --opset may help): {error}") from error
    return [torch.from_numpy(value) for value in outputs]


WRITERS: dict[str, Callable] = {"pth": _write_pth, "safetensors": _write_safetensors, "onnx": _write_onnx}
RUNNERS: dict[str, Callable] = {"pth": _run_pth, "safetensors": _run_safetensors, "onnx": _run_onnx}


def _weights(student: nn.Module) -> dict[str, Tensor]:
    """The state_dict in memory of its own: safetensors refuses tensors that share theirs."""
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in student.state_dict().items()}


def _texts(meta: Mapping) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in meta.items()}


def _leaves(output) -> list[Tensor]:
    """The tensors of an output in order, however deep in dicts, lists and tuples."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [leaf for part in output or [] for leaf in _leaves(part)]


def _compare(expected: Sequence[Tensor], outputs: Sequence[Tensor], tolerance: float, output: Path) -> tuple[float, float]:
    """``(difference, allowed)`` of the output that comes nearest to its limit.

    Raises:
        ConfigError: an output differs by more than ``tolerance`` times its greatest value, or in shape.
    """
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (expected, outputs)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"{str(output)!r} was not kept: its outputs have the shapes {shapes[1]}, the student's {shapes[0]}")
    pairs = []
    for want, got in zip(expected, outputs):
        want, got = want.cpu().double(), got.cpu().double()
        difference = float((want - got).abs().max()) if want.numel() else 0.0
        allowed = tolerance * float(want.abs().max()) if want.numel() else 0.0
        if not difference <= allowed:
            raise ConfigError(f"{str(output)!r} was not kept: on real test images its outputs differ from the student's by "
                              f"{difference:.3g}, more than {allowed:.3g}")
        pairs.append((difference, allowed))
    return max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0)


def _need(package: str, format: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"--format {format} needs the package {package}: pip install 'kdtasks[export]' ({error})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress, hints and graphs unsaid; what fails is in the error."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def main(arguments: Sequence[str] | None = None) -> None:
    """tools/export.py."""
    parser = argparse.ArgumentParser(prog="export.py", description="Write the student of a finished run for use elsewhere, and "
                                     "check the file by running it beside the student on test images.")
    parser.add_argument("work_dir")
    parser.add_argument("--format", required=True, choices=list(TOLERANCE))
    parser.add_argument("--output", help="default: student.<format> in the work_dir, student_plain.pth for pth")
    parser.add_argument("--checkpoint", default="student.pth", help="a student's weights, in the work_dir or elsewhere "
                        "(default: %(default)s)")
    parser.add_argument("--opset", type=int, help="of ONNX; default: torch's choice")
    common_arguments(parser)
    args = parser.parse_args(arguments)
    with plain_errors():
        done = export(args.work_dir, args.format, args.output, args.checkpoint, args.opset, args.device or "cpu",
                      dict(args.cfg_options))
        print(f"{done['output']}: {done['bytes'] / 2**20:.2f} MiB; on {done['images']} test images its outputs differ from the "
              f"student's by at most {done['difference']:.2g} (allowed: {done['allowed']:.2g})")
