"""A run's student as a file for elsewhere, kept only if it gives the student's outputs on real test
images.
"""

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdtasks.core import Stage
from kdtasks.core.files import write_atomically
from kdtasks.core.finite import not_finite
from kdtasks.core.trial import try_out
from kdtasks.core.weights import load_weights, read_weights
from kdtasks.engine import checkpoint
from kdtasks.engine import config as configurations
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.card import Card, check_replaceable, comparison_of, read_results, write_card
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.onnx_model import OnnxModel, run_on
from kdtasks.engine.packed import check_packable, packed_file, run_packed, write_packed
from kdtasks.engine.work_dir import WorkDir

# of the greatest output; all but the last compute the same
TOLERANCE = {"pth": 1e-6, "safetensors": 1e-6, "packed": 1e-6, "onnx": 1e-4}
# of a student that computes in whole numbers: of the greatest output, the mean difference
ROUNDED = 0.02
NEEDS = {
    "pth": (),
    "safetensors": ("safetensors",),
    "packed": ("safetensors",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}
# what stands behind <model> in the usual name of the file
ENDINGS = {"pth": "_plain.pth", "packed": "_packed.safetensors"}
# onnx.TensorProto.INT8
INT8 = 3
NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "onnxruntime")


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


def export(
    work_dir: str | Path,
    format: str,
    output: str | Path | None = None,
    weights: str | Path | None = None,
    opset: int | None = None,
    device: str = "cpu",
    options: Mapping | None = None,
    model: str = "student",
    card: bool = False,
    comparison: str | Path | None = None,
) -> dict:
    """Write the student of a finished run, run the file beside the student, and keep it only if
    both agree.

    Args:
        work_dir: of the run; its ``config.py`` says what the student is and which images test it.
        format: ``'pth'`` (a plain state_dict, with the run's facts in a ``.json`` beside it),
            ``'safetensors'`` (with them as metadata), ``'packed'`` (the same of a student in few
            bits, in so many: :mod:`kdtasks.engine.packed`), or ``'onnx'`` (the batch size left
            open, or as the task's ``onnx_form`` says: see :class:`OnnxForm`).
        output: the file; None: ``<model>.<format>`` in the work_dir, ``<model>_plain.pth`` for
            ``'pth'`` and ``<model>_packed.safetensors`` for ``'packed'``.
        weights: a file in the work_dir, or any, as a stage's ``last.pth`` or ``best.pth``; None:
            ``<model>.pth``. Where a student's say of which stage they are, it is that stage's.
        opset: of ONNX; None: torch's choice.
        device: that computes the student's outputs; ONNX is checked on the CPU.
        options: changes of the config, as where the test data lies here.
        model: which model of the config the weights are for.
        card: whether a model card goes beside it, see :mod:`kdtasks.engine.card`.
        comparison: a ``compare.json`` that says over seeds what the teacher brought; None: one in a
            folder above the work_dir, if this run is in it.

    Returns:
        ``output``, ``bytes``, ``difference`` (the greatest of any output, absolute; ``rounded``:
        the mean), ``allowed``, ``rounded``, ``images``; ``ratio``, ``formula`` of a packed file
        (:func:`packed`); ``metrics`` of an ONNX file that rounds (:func:`shipped`); ``card``, its
        path.

    Raises:
        ConfigError: no such run or format, a package that is missing, a model that the format
            cannot hold, or outputs that differ. What was at ``output`` before then still stands.
    """
    work_dir = Path(work_dir)
    _check_request(work_dir, format)
    weights = weights or f"{model}.pth"
    source = work_dir / weights if (work_dir / weights).is_file() else Path(weights)
    output = Path(output or work_dir / (model + ENDINGS.get(format, f".{format}")))
    if output.resolve() == source.resolve():
        raise ConfigError(
            f"the output {str(output)!r} is the file that is exported; expected another --output"
        )
    # outputs in full precision
    config = configurations.load(work_dir / "config.py", {**(options or {}), "amp": None})
    seed = read_weights(source)[1].get("seed", 0)
    experiment = Experiment(config, seed, device, work_dir.name)
    experiment.set_threads()
    if not card:
        done = _export(experiment, source, format, output, opset, model)
        return _with_metrics(done, experiment, source)
    # its errors come before the work
    check_replaceable(output.parent)
    results = read_results(work_dir)
    found = comparison_of(work_dir, results, comparison) or (None, "")
    done = _export(experiment, source, format, output, opset, model)
    facts = read_weights(source)[1]
    written = write_card(Card(experiment, results, facts, model, output, format, *found))
    return {**_with_metrics(done, experiment, source), "card": str(written)}


def _with_metrics(done: dict, experiment: Experiment, source: Path) -> dict:
    """With what an ONNX file that rounds, which may differ from the student, reaches."""
    if not done["rounded"]:
        return done
    stage = experiment.final or experiment.stages[-1]
    loader = experiment.test_loader(stage, read_weights(source)[1].get("classes") or "train")
    return {**done, "metrics": run_on(experiment.task, done["output"], loader)}


def shipped(experiment: Experiment, stage: Stage, files: WorkDir) -> dict[str, float]:
    """Write the student of a finished stage as ``student.onnx`` beside its weights, checked as
    :func:`export` does, and run this file on the whole test set.

    Args:
        experiment: whose stage it is.
        stage: trains the student.
        files: of the run.

    Returns:
        What :func:`kdtasks.engine.onnx_model.run_on` says.

    Raises:
        ConfigError: as :func:`export`; or the task's evaluation needs more of a model than what it
            answers.
    """
    output = files.folder(stage.name) / "student.onnx"
    try:
        _export(experiment, files.weights(stage.name), "onnx", output)
    except ValueError as error:
        raise ConfigError(f"onnx=True, stage {stage.name!r}: {error}") from error
    return run_on(experiment.task, output, experiment.test_loader(stage))


def packed(experiment: Experiment, stage: Stage, files: WorkDir) -> dict[str, float]:
    """Write the student of a finished stage as ``student_packed.safetensors`` beside its weights,
    if it is one in few bits, checked as :func:`export` does.

    Returns:
        ``packed_bytes``, of the file; ``packed_ratio``, how many times smaller it is than the float
        weights; ``packed_formula``, how many times codes and scales alone are, of the quantized
        values, by theory. Nothing of a student that is not quantized.
    """
    if packed_file(experiment.learner(stage)) is None:
        return {}
    output = files.folder(stage.name) / "student_packed.safetensors"
    done = _export(experiment, files.weights(stage.name), "packed", output)
    return {f"packed_{name}": done[name] for name in ("bytes", "ratio", "formula")}


def check_packages(format: str) -> None:
    """What a format needs is installed.

    Raises:
        ConfigError: it is not.
    """
    for package in NEEDS[format]:
        _need(package, format)


def _export(
    experiment: Experiment,
    source: Path,
    format: str,
    output: Path,
    opset: int | None = None,
    model: str = "student",
) -> dict:
    facts = read_weights(source)[1]

    def fresh() -> nn.Module:
        return experiment.student_of(facts) if model == "student" else experiment.model(model)

    student = fresh()
    meta = load_weights(student, source)
    student.eval()
    images = _images(experiment)
    form = OnnxForm(student, [(images,)])
    if format == "onnx":
        form = _onnx_form(experiment, student, images)
    if format == "packed":
        check_packable(student, f"{str(source)!r}, --format packed")
        form = OnnxForm(student.cpu(), [(_on_cpu(images),)])
    expected = _expected(form, student, source)
    deploy: Callable[[], nn.Module] | None = getattr(student, "deployed", None)
    if format == "onnx" and deploy is not None:
        form = replace(_onnx_form(experiment, deploy(), images), rounded=True)
    compared = _write_compared(fresh, form, expected, meta, output, format, opset)
    size = output.stat().st_size
    return {
        "output": str(output),
        "bytes": size,
        "images": len(images),
        "rounded": form.rounded,
        **compared,
    }


def _write_compared(
    fresh: Callable[[], nn.Module],
    form: OnnxForm,
    expected: Sequence[Sequence[Tensor]],
    meta: Mapping,
    output: Path,
    format: str,
    opset: int | None,
) -> dict[str, float]:
    """Write the file; it stays if what it gives is what is expected.

    Returns:
        ``difference`` and ``allowed``; and what the writer says of the file.
    """
    compared: dict[str, float] = {}

    def write_and_check(path: Path) -> None:
        compared.update(WRITERS[format](form, meta, path, opset) or {})
        outputs = RUNNERS[format](fresh, form, path)
        try:
            differs = _compared(form, expected, outputs, TOLERANCE[format])
        except Differs as error:
            raise ConfigError(f"{str(output)!r} was not kept: {error}") from error
        compared["difference"], compared["allowed"] = differs
        if format == "pth":  # the others hold their facts
            checkpoint.save_meta(meta, path, output)

    write_atomically(output, write_and_check)
    return compared


def _check_request(work_dir: Path, format: str) -> None:
    """There is such a format, what it needs is installed, and the folder holds a run."""
    if format not in TOLERANCE:
        raise ConfigError(f"format must be one of {list(TOLERANCE)}, got {format!r}")
    check_packages(format)
    if not (work_dir / "config.py").is_file():
        raise ConfigError(f"{str(work_dir)!r} holds no run: there is no config.py in it")


def _expected(form: OnnxForm, student: nn.Module, source: Path) -> list[list[Tensor]]:
    """The student's outputs of each example."""
    # observers move in eval too; the file has them as loaded
    with try_out(student):
        expected = [_leaves(form.model(*example)) for example in form.examples]
    if any(not_finite({str(k): leaf for k, leaf in enumerate(leaves)}) for leaves in expected):
        raise ConfigError(
            f"{str(source)!r} was not exported: on real test images its outputs are not finite"
        )
    return expected


def _images(experiment: Experiment) -> Any:
    """The first test batch, of at least three samples: 1 and 2 could be sizes that an export has
    made fixed.
    """
    loader = experiment.test_loader(experiment.final or experiment.stages[-1], classes=None)
    images = next(iter(loader))["input"]
    while len(images) < 3:
        images = torch.cat([images, images]) if isinstance(images, Tensor) else [*images, *images]
    return images


def _onnx_form(experiment: Experiment, student: nn.Module, images: Any) -> OnnxForm:
    """As the task says, or one tensor with the batch size left open; on the CPU."""
    student = student.cpu().to(memory_format=torch.contiguous_format)
    images = _on_cpu(images)
    own = experiment.task.onnx_form(student, images)
    if own is not None:
        return own
    if not isinstance(images, Tensor):
        raise ConfigError(
            f"ONNX needs a model of one tensor, and this task's test images are a "
            f"{type(images).__name__}; use --format safetensors"
        )
    return OnnxForm(student, [(images,)])


def _on_cpu(images: Any) -> Any:
    if isinstance(images, Tensor):
        return images.cpu().contiguous()
    return [_on_cpu(image) for image in images] if isinstance(images, list | tuple) else images


# Writing, and running what was written ------------------------------------------------------------
def _write_pth(form: OnnxForm, meta: Mapping, path: Path, opset: int | None) -> None:
    torch.save(_weights(form.model), path)


def _write_safetensors(form: OnnxForm, meta: Mapping, path: Path, opset: int | None) -> None:
    from safetensors.torch import save

    path.write_bytes(save(_weights(form.model), metadata=_texts(meta)))


def _write_packed(form: OnnxForm, meta: Mapping, path: Path, opset: int | None) -> dict[str, float]:
    return write_packed(form.model, path, _texts(meta))


def _write_onnx(form: OnnxForm, meta: Mapping, path: Path, opset: int | None) -> None:
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
        onnx.helper.set_model_props(program, _texts(meta))
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
    held = {one.name: one for one in program.graph.initializer if one.data_type == INT8}
    seen: set[str] = set()
    for node in program.graph.node:
        for place, name in enumerate(node.input):
            if name in held and name in seen:
                own = program.graph.initializer.add()
                own.CopyFrom(held[name])
                own.name = node.input[place] = f"{name}_{node.name}_{place}"
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
        return [_leaves(model(*example)) for example in form.examples]


def _run_packed(fresh: Callable[[], nn.Module], form: OnnxForm, path: Path) -> list[list[Tensor]]:
    return [_leaves(said) for said in run_packed(fresh, form.model, path, form.examples)]


def _run_onnx(fresh: Callable[[], nn.Module], form: OnnxForm, path: Path) -> list[list[Tensor]]:
    try:
        model = OnnxModel(path)
        return [_leaves(model(*example)) for example in form.examples]
    # its errors share no class of their own
    except Exception as error:
        raise ConfigError(
            f"onnxruntime cannot run what torch.onnx exported (another --opset may help): {error}"
        ) from error


WRITERS: dict[str, Callable] = {
    "pth": _write_pth,
    "safetensors": _write_safetensors,
    "packed": _write_packed,
    "onnx": _write_onnx,
}
RUNNERS: dict[str, Callable] = {
    "pth": _run_pth,
    "safetensors": _run_safetensors,
    "packed": _run_packed,
    "onnx": _run_onnx,
}


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


def _leaves(output: Any) -> list[Tensor]:
    """The tensors of an output in order, however deep in dicts, lists and tuples."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [leaf for part in output or [] for leaf in _leaves(part)]


class Differs(ConfigError):
    """The outputs of a file are not the student's."""


def _compared(
    form: OnnxForm,
    expected: Sequence[Sequence[Tensor]],
    outputs: Sequence[Sequence[Tensor]],
    tolerance: float,
) -> tuple[float, float]:
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
    for its, own in zip(*shapes):
        if its != own:
            raise Differs(f"its outputs have the shapes {own}, the student's {its}")
    pairs = []
    for its, own in (
        (its.cpu().double(), own.cpu().double())
        for pair in zip(expected, outputs)
        for its, own in zip(*pair)
    ):
        apart = (its - own).abs() if its.numel() else torch.zeros(1)
        difference = float(apart.mean() if mean else apart.max())
        allowed = tolerance * float(its.abs().max()) if its.numel() else 0.0
        if not difference <= allowed:
            raise Differs(
                f"on real test images its outputs differ from the student's by {difference:.3g}"
                f"{' on average' if mean else ''}, "
                f"more than {allowed:.3g}"
            )
        pairs.append((difference, allowed))
    return max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0)


def _need(package: str, format: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"--format {format} needs the package {package}: pip install 'kdtasks[export]' "
            f"({error})"
        ) from error


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
