"""What it takes to use a run's student and its teachers: parameters, FLOPs, bytes, milliseconds."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdtasks.core import Stage, Teacher
from kdtasks.core.trial import keep_state
from kdtasks.engine.dry_run import example
from kdtasks.engine.latency import median_ms
from kdtasks.engine.packed import packed_file
from kdtasks.engine.seeds import seeded

if TYPE_CHECKING:
    from kdtasks.engine.run import Run

# ours: of all models and devices together, about
SECONDS = 1.0
# ours: a median of so many at most
ROUNDS = 50
# operators of torch's own that its counter passes over, though they multiply matrices
_FUSED = ("aten::mkldnn_rnn_layer", "aten::_cudnn_rnn", "aten::_thnn_fused_lstm_cell")


def measure(run: "Run") -> dict[str, Any]:
    """What one sample takes, of the student that counts and of each other model that teaches on the
    way to it.

    One random sample of the data's shape goes through each model as it was trained, in eval and
    without gradients: a teacher in its own input size and precision, a quantized student with its
    rounding simulated.

    Args:
        run: whose last student is finished.

    Returns:
        ``input``, the shape of the sample; ``threads`` of the CPU; and of each of ``models``

        - ``parameters``, and ``bytes`` of the weights in a plain ``.pth`` file (an ONNX teacher: of
          its file);
        - ``flops``, floating-point operations of products (two of a multiplication and addition),
          by ``torch.utils.flop_counter``: elementwise ones are not counted;
        - ``cpu_ms``, the median of ``cpu_rounds`` calls; ``cuda_ms`` likewise of a run on CUDA;
        - ``packed_bytes``, of a student in few bits;
        - ``note``, where a figure is missing, or is not what it seems.

        What is not known is None.
    """
    experiment = run.experiment
    stage = experiment.final or experiment.stages[-1]
    makers = _makers(run, stage)
    devices = 2 if experiment.device.type == "cuda" else 1
    with seeded(experiment.seed, "deployment"):
        sample = example(experiment, stage, 1)["input"]
        models = {
            name: _measured(make, sample, SECONDS / (devices * len(makers)))
            for name, make in makers.items()
        }
    student = run.work_dir / "student.pth"
    if stage.model == "student" and student.exists():
        models["student"]["bytes"] = student.stat().st_size
    return {"input": _shape(sample), "threads": torch.get_num_threads(), "models": models}


def _makers(run: "Run", stage: Stage) -> dict[str, Callable[[], nn.Module]]:
    """``{model of the config: makes it with its weights}``, the student first."""
    experiment, files = run.experiment, run.files
    makers: dict[str, Callable[[], nn.Module]] = {
        stage.model: lambda: experiment.trained(stage, files)
    }
    for earlier in reversed(experiment.leading_to(stage)):
        for name in experiment.other_teachers(earlier):
            owner = experiment.owner_of(earlier, name)
            if owner not in makers:
                makers[owner] = lambda earlier=earlier, name=name: experiment.teacher(
                    earlier, name, files, anchor=-1
                )
    return makers


def _measured(make: Callable[[], nn.Module], sample: Any, seconds: float) -> dict[str, Any]:
    try:
        model = make()
        figures = measure_model(model, sample, seconds)
    # a finished run is worth more than a further figure
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        figures = {"note": f"could not be measured: {type(error).__name__}: {reason}"}
    missing = dict.fromkeys(("parameters", "flops", "bytes", "cpu_ms"))
    return {**missing, **figures}


def measure_model(model: nn.Module, sample: Any, seconds: float = SECONDS) -> dict[str, Any]:
    """What one model takes; see :func:`measure`.

    Args:
        model: a network or a :class:`~kdtasks.core.Teacher`; it is moved to the CPU.
        sample: what the model is called with, a batch of one; where it is on CUDA, the model is
            timed there, too.
        seconds: of timing on a device, about.
    """
    inner = model.model if isinstance(model, Teacher) else model
    inner.eval()
    file = next((part for part in inner.modules() if hasattr(part, "session")), None)
    figures: dict[str, Any] = {"parameters": None, "flops": None, "bytes": None, "cpu_ms": None}
    notes = []
    if file is None:
        figures["parameters"] = sum(p.numel() for p in inner.parameters())
        figures["bytes"] = _plain_bytes(inner)
    else:
        figures["bytes"] = file.bytes
        notes.append("an ONNX file: torch counts neither its parameters nor its FLOPs")
    with torch.no_grad(), keep_state(inner.modules()):
        if file is None:
            figures["flops"], passed = count_flops(lambda: model(sample))
            if passed:
                notes.append(f"FLOPs without those of {', '.join(passed)}")
        if _device(sample).type == "cuda":
            timed = median_ms(lambda: _synchronized(model, sample), ROUNDS, seconds)
            figures["cuda_ms"], figures["cuda_rounds"] = timed
        model, sample = model.cpu(), _moved(sample, "cpu")
        figures["cpu_ms"], figures["cpu_rounds"] = median_ms(lambda: model(sample), ROUNDS, seconds)
        packed = packed_file(inner)
        if packed is not None:
            figures["packed_bytes"] = _packed_bytes(packed, inner)
    if packed is not None or hasattr(inner, "deployed"):
        notes.append("computed as it trains, with its rounding simulated")
    return {**figures, **({"note": "; ".join(notes)} if notes else {})}


def count_flops(call: Callable[[], object]) -> tuple[int | None, list[str]]:
    """FLOPs of a call by torch's counter, None if it saw nothing that it counts, and the operators
    of other libraries that it passed over.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with _without_fast_path(), FlopCounterMode(display=False) as counter, _Foreign() as foreign:
        call()
    return counter.get_total_flops() or None, sorted(foreign.seen)


class _Foreign(TorchDispatchMode):
    """Notes the operators whose FLOPs nobody knows."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None
    ) -> Any:
        # without the overload
        name = func.name().partition(".")[0]
        if not name.startswith(("aten::", "prim::", "prims::")) or name in _FUSED:
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """torch's fused transformer layers are one operator, which its counter passes over."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Counted:
    """A file that keeps nothing but its length."""

    length = 0

    def write(self, content: Any) -> int:
        self.length += len(content)
        return len(content)

    def flush(self) -> None:
        pass


def _plain_bytes(model: nn.Module) -> int:
    """Of the file that torch.save writes of the state_dict."""
    file = _Counted()
    torch.save(model.state_dict(), file)  # pyright: ignore[reportArgumentType]
    return file.length


def _packed_bytes(packed: Any, student: nn.Module) -> int | None:
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "packed"
            packed.write(student, path, {})
            return path.stat().st_size
    # safetensors is an extra of the package
    except ImportError:
        return None


def _synchronized(model: nn.Module, sample: Any) -> None:
    model(sample)
    torch.cuda.synchronize()


def _device(sample: Any) -> torch.device:
    return sample.device if isinstance(sample, Tensor) else _device(sample[0])


def _moved(sample: Any, device: str) -> Any:
    if isinstance(sample, Tensor):
        return sample.to(device)
    return [_moved(part, device) for part in sample]


def _shape(sample: Any) -> list[int]:
    """(1, C, H, W); of a list of images, that of a batch of the first."""
    return list(sample.shape) if isinstance(sample, Tensor) else [1, *sample[0].shape]


# As a table ---------------------------------------------------------------------------------------
def table(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`measure` gave as text: ``about``, a sentence; ``heads``, (title, whether numbers
    stand below it); ``rows``; ``notes``."""
    models: Mapping[str, Mapping] = measured["models"]
    on_cuda = any("cuda_ms" in values for values in models.values())
    head = ["model", "parameters", "FLOPs", "weights", "CPU"] + (["CUDA"] if on_cuda else [])
    few = [v["packed_bytes"] for v in models.values() if v.get("packed_bytes")]
    head += ["packed"] if few else []
    rows = []
    for name, values in models.items():
        row = [name, _count(values["parameters"]), _scaled(values["flops"]), _size(values["bytes"])]
        row.append(_milliseconds(values["cpu_ms"]))
        row += [_milliseconds(values.get("cuda_ms"))] if on_cuda else []
        row += [_size(values.get("packed_bytes"))] if few else []
        rows.append(row)
    shape = " × ".join(map(str, measured["input"]))
    threads = measured["threads"]
    about = (
        f"Of one random sample ({shape}); median time on {threads} CPU "
        f"thread{'' if threads == 1 else 's'}{' and on CUDA' if on_cuda else ''}; FLOPs of "
        "products, a multiplication and an addition being two."
    )
    notes = [f"{name}: {values['note']}" for name, values in models.items() if values.get("note")]
    return {
        "about": about,
        "heads": [(title, k > 0) for k, title in enumerate(head)],
        "rows": rows,
        "notes": notes,
    }


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _scaled(value: float | None, units: Sequence[str] = ("", " k", " M", " G", " T")) -> str:
    """Three digits and a factor of 1000."""
    if value is None:
        return "–"
    power = 0
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{units[power]}"


def _size(value: int | None) -> str:
    return _scaled(value, (" bytes", " kB", " MB", " GB"))


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} ms"
