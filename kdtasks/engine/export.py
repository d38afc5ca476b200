"""A run's student as a file for elsewhere, kept only if it gives the student's outputs on real test
images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdtasks.core import Stage
from kdtasks.core.files import write_atomically
from kdtasks.core.finite import not_finite
from kdtasks.core.trial import try_out
from kdtasks.core.weight_files import read_weights
from kdtasks.core.weights import load_weights
from kdtasks.engine import checkpoint
from kdtasks.engine import config as configurations
from kdtasks.engine.card import Card, check_replaceable, comparison_of, read_results, write_card
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.export_form import Differs, OnnxForm, compare_outputs, leaves
from kdtasks.engine.export_formats import FORMATS, check_packages
from kdtasks.engine.onnx_model import run_on
from kdtasks.engine.packed import check_packable, packed_file
from kdtasks.engine.work_dir import WorkDir


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
    output = Path(output or work_dir / (model + FORMATS[format].ending))
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
    compared = comparison_of(work_dir, results, comparison) or (None, "")
    done = _export(experiment, source, format, output, opset, model)
    facts = read_weights(source)[1]
    written = write_card(Card(experiment, results, facts, model, output, format, *compared))
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
        compared.update(FORMATS[format].write(form, meta, path, opset) or {})
        outputs = FORMATS[format].run(fresh, form, path)
        try:
            differs = compare_outputs(form, expected, outputs, FORMATS[format].tolerance)
        except Differs as error:
            raise ConfigError(f"{str(output)!r} was not kept: {error}") from error
        compared["difference"], compared["allowed"] = differs
        if format == "pth":  # the others hold their facts
            checkpoint.save_meta(meta, path, output)

    write_atomically(output, write_and_check)
    return compared


def _check_request(work_dir: Path, format: str) -> None:
    """There is such a format, what it needs is installed, and the folder holds a run."""
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {list(FORMATS)}, got {format!r}")
    check_packages(format)
    if not (work_dir / "config.py").is_file():
        raise ConfigError(f"{str(work_dir)!r} holds no run: there is no config.py in it")


def _expected(form: OnnxForm, student: nn.Module, source: Path) -> list[list[Tensor]]:
    """The student's outputs of each example."""
    # observers move in eval too; the file has them as loaded
    with try_out(student):
        expected = [leaves(form.model(*example)) for example in form.examples]
    if any(not_finite({str(k): leaf for k, leaf in enumerate(outputs)}) for outputs in expected):
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
    form = experiment.task.onnx_form(student, images)
    if form is not None:
        return form
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
