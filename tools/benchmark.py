"""What the library costs: each step through kdtasks against the same step written by hand, in this file.

    python tools/benchmark.py [--rows kd_step …] [--rounds 30] [--device cpu|cuda] [--json FILE]

A row is a function below; it shows first that its variants do the same work (the loss of the first step to 6 digits, its
gradients), then measures them in rounds: in each round every variant runs once, in an order drawn anew, each with a model,
weights, optimizer and batch of its own that are equal at the start. A figure is the median over rounds of the ratio (or
difference) *within* a round. Its interval is that of the median by order statistics of the binomial distribution, at least
95 % from 6 rounds on, whatever the noise looks like. A bar fails only if the whole interval lies above it.

On a CPU the clock is the CPU time of this process (all its threads), on one thread unless ``--threads`` says otherwise: a busy
machine stretches the wall clock, much more. On CUDA it is the wall clock between two
``torch.cuda.synchronize()``. Where a step is shorter than 50 ms, a round runs as many as fill 50 ms.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import math
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core import Distiller
from kdtasks.core.cache import TeacherCache
from kdtasks.general import KDLoss, models

T, HARD, SOFT, HINT = 4.0, 0.1, 0.9, 0.5                   # temperature; weights of cross-entropy, soft targets, each feature
FEATURES = ("conv1", "layer1", "layer2", "layer3")
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
BLOCK = 0.05                                               # seconds that a variant's turn in a round takes at least
MISSING = "not installed: uv sync --group bench"


# ------------------------------------------------------------------------------------------------------------ measuring
@dataclass
class Line:
    """One line of the table. ``unit`` is '' for a ratio."""
    what: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    bar: float = math.inf
    unit: str = ""
    note: str = ""
    samples: list[float] = field(default_factory=list, repr=False)

    @property
    def ok(self) -> bool | None:
        return None if math.isinf(self.bar) or math.isnan(self.low) else self.low <= self.bar


@dataclass
class Variant:
    """``step()`` trains once and returns its loss; the optimizer's ``zero_grad`` comes last."""
    step: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer


def median_interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """The narrowest [k-th smallest, k-th largest] that covers the median with at least ``level``; k = 1 if none does."""
    ordered, n = sorted(values), len(values)
    k, tail = 1, 1.0                                       # 2^n times the chance that fewer than k values lie below the median
    while k < (n + 1) // 2 and 2 * (tail + math.comb(n, k)) <= (1 - level) * 2**n:
        tail += math.comb(n, k)
        k += 1
    return ordered[k - 1], ordered[n - k]


def summary(what: str, samples: list[float], **rest) -> Line:
    return Line(what, statistics.median(samples), *median_interval(samples), samples=samples, **rest)


def ratio(what: str, times: dict[str, list[float]], a: str, b: str, bar: float = math.inf) -> Line:
    """The line for the time of ``a`` over the time of ``b``, in pairs."""
    note = MISSING if a not in times or b not in times else f"{b}: {1000 * statistics.median(times[b]):.3g} ms a step"
    if note == MISSING:
        return Line(what, bar=bar, note=note)
    return summary(what, [x / y for x, y in zip(times[a], times[b])], bar=bar, note=note)


def clock(o) -> float:
    if o.device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def rounds(o, measures: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each measure returned in each round; in every round another order."""
    times, order, draw = {name: [] for name in measures}, list(measures), random.Random(0)
    for _ in range(o.rounds):
        draw.shuffle(order)
        for name in order:
            times[name].append(measures[name]())
    return times


def step_times(o, variants: dict[str, Variant]) -> dict[str, list[float]]:
    """Seconds a step of each variant, one number a round."""
    def turn(variant: Variant, steps: int) -> float:
        start = clock(o)
        for _ in range(steps):
            variant.step()
        return (clock(o) - start) / steps

    fastest = min(min(turn(v, 1) for _ in range(3)) for v in variants.values())         # and the warm-up
    steps = math.ceil(BLOCK / max(fastest, 1e-6))
    return rounds(o, {name: lambda v=v: turn(v, steps) for name, v in variants.items()})


def same_work(variants: dict[str, Variant]) -> None:
    """Run the first step of each.

    Raises:
        RuntimeError: losses differ in 6 digits, or gradients by more than 1e-4 of their norm.
    """
    found = {}
    for name, variant in variants.items():
        grads: list[Tensor] = []

        def keep(optimizer, args, kwargs, grads=grads):
            grads += [p.grad.detach().flatten().clone() for group in optimizer.param_groups for p in group["params"]]

        handle = variant.optimizer.register_step_pre_hook(keep)
        found[name] = (float(variant.step()), torch.cat(grads) if grads else None)
        handle.remove()
    (first, (loss, grad)), *others = found.items()
    for name, (other_loss, other) in others:
        apart = float((other - grad).norm() / grad.norm()) if grad.shape == other.shape else math.inf
        if not (math.isclose(loss, other_loss, rel_tol=1e-6) and apart <= 1e-4):
            raise RuntimeError(f"{first} and {name} do not do the same work: losses {loss:.8g} and {other_loss:.8g}, "
                               f"gradients {apart:.1e} of their norm apart")


# ------------------------------------------------------------------------------------------------- the steps of one pair
def pair(o) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Teacher, student, images and labels: new objects, the same values in every call."""
    torch.manual_seed(0)
    teacher, student = getattr(models, o.teacher)(100), getattr(models, o.student)(100)
    input, target = torch.randn(o.batch, 3, o.size, o.size), torch.randint(100, (o.batch,))
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0                          # statistics of one batch, so that its features have a sane size
    with torch.no_grad():
        teacher(input)
    teacher.eval().requires_grad_(False)
    return teacher.to(o.device), student.to(o.device), input.to(o.device), target.to(o.device)


def by_hand(o, features=()) -> Variant:
    """The floor: hooks are registered once."""
    teacher, student, input, target = pair(o)
    optimizer = torch.optim.SGD(student.parameters(), **SGD)
    seen: dict[tuple[str, str], Tensor] = {}
    for role, model in (("student", student), ("teacher", teacher)):
        for path in features:
            model.get_submodule(path).register_forward_hook(
                lambda module, args, output, key=(role, path): seen.__setitem__(key, output))

    def step() -> Tensor:
        with torch.no_grad():
            taught = teacher(input)
        logits = student(input)
        soft = F.kl_div(F.log_softmax(logits / T, 1), F.log_softmax(taught / T, 1), reduction="batchmean", log_target=True)
        loss = HARD * F.cross_entropy(logits, target) + SOFT * T**2 * soft
        for path in features:
            loss = loss + HINT * F.mse_loss(seen["student", path], seen["teacher", path])
        seen.clear()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Variant(step, optimizer)


def alone_by_hand(o) -> Variant:
    """The student without a teacher."""
    _, student, input, target = pair(o)
    optimizer = torch.optim.SGD(student.parameters(), **SGD)

    def step() -> Tensor:
        loss = F.cross_entropy(student(input), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Variant(step, optimizer)


def library(o, features=(), precomputed: Callable[[nn.Module, Tensor], Callable[[], dict]] | None = None) -> Variant:
    """The Distiller in a plain loop; ``precomputed(teacher, input)()`` is what a batch carries of the teacher, if anything."""
    teacher, student, input, target = pair(o)
    distiller = Distiller(student, {"teacher": teacher}, {
        "loss_cls": (nn.CrossEntropyLoss(), ("student", "target"), HARD),
        "loss_kd": (KDLoss(T), ("student", "teacher"), SOFT),
        **{f"loss_{path}": (nn.MSELoss(), (f"student.{path}", f"teacher.{path}"), HINT) for path in features}})
    distiller.build(input, target)
    optimizer = torch.optim.SGD(distiller.parameters(), **SGD)
    carried = precomputed(teacher, input) if precomputed else dict

    def step() -> Tensor:
        loss = sum(distiller({"input": input, "target": target, **carried()}).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Variant(step, optimizer)


def torchdistill(o, features=()) -> dict[str, Variant]:
    """torchdistill's box with its own losses and hooks, as its examples drive it; empty where it is not installed."""
    if importlib.util.find_spec("torchdistill") is None:
        return {}
    from torchdistill.core.distillation import get_distillation_box

    teacher, student, input, target = pair(o)
    logits = {"student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".", "teacher_module_io": "output"}
    terms = {"kd": {"criterion": {"key": "KDLoss", "kwargs": {**logits, "temperature": T, "alpha": HARD, "beta": SOFT}},
                    "weight": 1.0}}
    for path in features:
        place = {"module_path": path, "io": "output"}
        terms[path] = {"criterion": {"key": "MSELoss", "kwargs": {}}, "weight": HINT, "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {"input": {"is_from_teacher": False, **place}, "target": {"is_from_teacher": True, **place}}}}
    model = {"forward_proc": "forward_batch_only", "forward_hook": {"output": list(features)} if features else {}}
    box = get_distillation_box(teacher, student, {}, {
        "num_epochs": 1, "teacher": {**model, "requires_grad": False}, "student": model,
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
    }, torch.device(o.device), None, False, 1.0)

    def step() -> Tensor:
        loss = box.forward_process(input, target, {})
        box.post_forward_process(loss)                     # backward, step, zero_grad
        return loss.detach()

    return {"torchdistill": Variant(step, box.optimizer)}


# ------------------------------------------------------------------------------------------------------------- the rows
def kd_step(o) -> Iterator[Line]:
    """Soft targets; the second step by hand shows what the noise alone does."""
    variants = {"by hand": by_hand(o), "by hand again": by_hand(o), "library": library(o), **torchdistill(o)}
    same_work(variants)
    times = step_times(o, variants)
    yield ratio("KD step: by hand again / by hand (noise)", times, "by hand again", "by hand")
    yield ratio("KD step: library / by hand", times, "library", "by hand", bar=1.02)
    yield ratio("KD step: torchdistill / by hand", times, "torchdistill", "by hand")
    yield ratio("KD step: library / torchdistill", times, "library", "torchdistill", bar=1.0)


def feature_step(o) -> Iterator[Line]:
    """Soft targets and four feature losses."""
    variants = {"by hand": by_hand(o, FEATURES), "library": library(o, FEATURES), **torchdistill(o, FEATURES)}
    same_work(variants)
    times = step_times(o, variants)
    yield ratio("with 4 feature losses: library / by hand", times, "library", "by hand", bar=1.05)
    yield ratio("with 4 feature losses: torchdistill / by hand", times, "torchdistill", "by hand")
    yield ratio("with 4 feature losses: library / torchdistill", times, "library", "torchdistill")


def cached_step(o) -> Iterator[Line]:
    """Teacher logits out of a cache (float16, as it keeps them) against no teacher at all."""
    index, view = torch.arange(o.batch), torch.zeros(o.batch, dtype=torch.int64)

    def from_cache(teacher: nn.Module, input: Tensor) -> Callable[[], dict]:
        batches = [{"index": index, "view": view, "input": input}]
        with torch.no_grad():
            cache = TeacherCache.write(Path(folder) / "cache", {}, o.batch, 1, batches, lambda batch: {"teacher": teacher(batch["input"])})
        cache.to(o.device)
        return lambda: cache.fetch(index, view, o.device)

    def rounded(teacher: nn.Module, input: Tensor) -> Callable[[], dict]:
        with torch.no_grad():
            logits = teacher(input).half()
        return lambda: {"teacher": logits}

    with tempfile.TemporaryDirectory() as folder:
        cached = library(o, precomputed=from_cache)
        same_work({"teacher at float16": library(o, precomputed=rounded), "cached": cached})
        times = step_times(o, {"cached": cached, "alone": alone_by_hand(o)})
    yield ratio("cached KD step / step of the student alone", times, "cached", "alone", bar=1.05)


def runner(o) -> Iterator[Line]:
    """A stage by mmengine's Runner against the plain loop: same Loader, a network so small that the difference shows."""
    from mmengine.hooks import Hook

    from kdtasks.engine.loader import Loader
    from kdtasks.engine.runner import StageRunner

    warm, length, log_interval, students = 20, 20 + o.runner_steps, 50, {}

    class Images:
        input, target = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(256) % 10
        __len__ = lambda self: 256                                                                          # noqa: E731
        batch = lambda self, index, view, seed: {"input": self.input[index], "target": self.target[index]}  # noqa: E731

    class Clock(Hook):
        start = seconds = math.nan

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if batch_idx == warm - 1:
                self.start = clock(o)
            if batch_idx == length - 1:                    # before the last evaluation and checkpoint
                self.seconds = clock(o) - self.start

    def built() -> tuple[Distiller, Loader]:
        torch.manual_seed(0)
        student, teacher = models.digits_cnn().to(o.device), models.digits_cnn().to(o.device)
        losses = {"loss_cls": (nn.CrossEntropyLoss(), ("student", "target"), HARD), "loss_kd": (KDLoss(T), ("student", "teacher"), SOFT)}
        return Distiller(student, {"teacher": teacher}, losses), Loader(Images(), 8, seed=0, device=o.device)

    def plain() -> float:
        distiller, loader = built()
        optimizer = torch.optim.SGD(distiller.parameters(), **SGD)
        batches = itertools.chain.from_iterable(loader.epoch(e) for e in itertools.count())
        for i, batch in enumerate(itertools.islice(batches, length)):
            loss = sum(distiller(batch).values())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if i == warm - 1:
                start = clock(o)
        students["plain"] = distiller.student
        return (clock(o) - start) / (length - warm)

    def engine() -> float:
        distiller, loader = built()
        hook = Clock()
        with tempfile.TemporaryDirectory() as folder:
            task = SimpleNamespace(PRIMARY="accuracy", HIGHER_IS_BETTER=True, evaluate=lambda model, loader: {"accuracy": 0.0})
            StageRunner(
                name="benchmark", folder=Path(folder) / "stage", log_file=Path(folder) / "train.log", distiller=distiller, loader=loader,
                test_loader=None, task=task, optimizer=lambda parameters: torch.optim.SGD(parameters, **SGD), schedule=[],
                train=("student", "losses"), length=length, log_interval=log_interval, val_interval=length,
                checkpoint_interval=length, custom_hooks=[hook],
                options={"amp": None, "accumulate": 1, "clip_grad": None, "ema": None, "sync_bn": False}).train()
        students["engine"] = distiller.student
        return hook.seconds / (length - warm)

    plain(), engine()
    for a, b in zip(students["plain"].state_dict().values(), students["engine"].state_dict().values()):
        torch.testing.assert_close(a, b, msg=lambda text: f"the Runner does not do the plain loop's work: {text}")
    times = rounds(o, {"plain": plain, "engine": engine})
    yield summary("mmengine Runner beyond the plain loop, per step", [1000 * (e - p) for e, p in zip(times["engine"], times["plain"])],
                  bar=1.0, unit="ms", note=f"plain loop: {1000 * statistics.median(times['plain']):.3g} ms a step")


def imports(o) -> Iterator[Line]:
    """Seconds by the wall clock that a task's package takes to import when torch is there already."""
    for task in ("general",):
        code = f"import time, torch; t = time.perf_counter(); import kdtasks.{task}; print(time.perf_counter() - t)"
        seconds = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
                   for _ in range(o.import_runs)]
        yield summary(f"import kdtasks.{task} beyond import torch", seconds, bar=0.1, unit="s")


ROWS = {row.__name__: row for row in (kd_step, feature_step, cached_step, runner, imports)}


# ------------------------------------------------------------------------------------------------------------ the table
def machine(o) -> str:
    if o.device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("kdtasks", "torch", "mmengine", "torchdistill"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def show(lines: list[Line], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("what", "figure", "95 % interval", "bar", "ok", "note"):
        table.add_column(name, justify="right" if name in ("figure", "95 % interval", "bar") else "left")
    for line in lines:
        measured = not math.isnan(line.value)
        table.add_row(line.what, f"{line.value:.3f} {line.unit}".strip() if measured else "-",
                      f"{line.low:.3f} … {line.high:.3f}" if measured else "-", "" if math.isinf(line.bar) else f"≤ {line.bar:g}",
                      {True: "ok", False: "FAILS", None: ""}[line.ok], line.note)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--json", type=Path, help="write the figures, and every single number, here")
    parser.add_argument("--teacher", default="resnet56", help="a function of kdtasks.general.models")
    parser.add_argument("--student", default="resnet20", help="one with features of the same shapes")
    parser.add_argument("--batch", type=int, help="images in a step; 64 on a CPU, 1024 on CUDA")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--runner-steps", type=int, default=200, help="steps in a round of the row 'runner'")
    parser.add_argument("--import-runs", type=int, default=7, help="new processes of the row 'imports'")
    o = parser.parse_args(arguments)
    o.batch = o.batch or (1024 if o.device == "cuda" else 64)
    torch.set_num_threads(o.threads)
    lines: list[Line] = []
    for name in o.rows:
        print(f"{name} …", file=sys.stderr, flush=True)
        lines += ROWS[name](o)
    title = f"{machine(o)}; {', '.join(f'{k} {v}' for k, v in versions().items())}; {o.teacher} -> {o.student}, batch {o.batch}, " \
            f"{o.rounds} rounds; {'CPU time' if o.device == 'cpu' else 'wall clock'}"
    show(lines, title)
    if o.json:
        content = {"machine": machine(o), "versions": versions(), "options": {k: v for k, v in vars(o).items() if k != "json"},
                   "lines": [{k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in asdict(line).items()}
                             | {"ok": line.ok} for line in lines]}
        o.json.write_text(json.dumps(content, indent=2) + "\n")
    return int(any(line.ok is False for line in lines))


if __name__ == "__main__":
    sys.exit(main())
