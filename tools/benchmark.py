"""What the library costs: each step through kdtasks against the same step written by hand, in this file.

    python tools/benchmark.py [--rows kd_step …] [--rounds 30] [--device cpu|cuda] [--json FILE]

A row is a function below. It first shows that its variants do the same work (the first step's loss to 6 digits, its gradients),
then measures them in rounds: every variant once a round, in an order drawn anew, each on objects of its own that were equal at
the start. A figure is the median over rounds of the ratio (or difference) *within* a round; its interval is the median's by
binomial order statistics: at least 95 % from 6 rounds on, whatever the distribution of the noise. A bar fails, and the exit
status is 1, only if the whole interval lies above it: by chance in one run of 40 if the truth is just on the bar.

The clock is the CPU time of this process with all its threads (one, unless ``--threads`` says otherwise), which a busy machine
disturbs less than the wall clock; on CUDA the wall clock between two ``torch.cuda.synchronize()``. The bars are meant for steps
of at least 50 ms; if a step takes less, a round runs as many as fill 50 ms: give a larger ``--batch``.
"""

import argparse
import functools
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
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kdtasks.core import Distiller
from kdtasks.core.cache import TeacherCache
from kdtasks.detection import ADLLoss, BoundedRegressionLoss, WeightedSoftCrossEntropy, adl_loss
from kdtasks.detection import models as detection_models
from kdtasks.detection.distiller import DetectionDistiller
from kdtasks.general import KDLoss, models, rkd_angle_loss
from kdtasks.general.data import digits
from kdtasks.incremental import IncrementalDistiller, LwMDistiller, confident_indices, lwf_loss, lwm_attention_loss
from kdtasks.incremental.models import growing
from kdtasks.metric_learning import darkrank_hard_loss

T, HARD, SOFT, HINT = 4.0, 0.1, 0.9, 0.5                   # temperature; weights of cross-entropy, soft targets, each feature
FEATURES = ("conv1", "layer1", "layer2", "layer3")
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
Step = Callable[[], Tensor]                                # trains once and returns its loss


# ------------------------------------------------------------------------------------------------------------ measuring
@dataclass
class Line:
    """One line of the table: a ratio, or a figure with a unit; no samples where nothing could be measured."""
    what: str
    samples: list[float]
    bar: float | None = None
    unit: str = ""
    note: str = ""

    def __post_init__(self):
        self.value = statistics.median(self.samples) if self.samples else None
        self.interval = median_interval(self.samples) if self.samples else None
        self.ok = self.interval[0] <= self.bar if self.samples and self.bar is not None else None


class Mean(Line):
    """The mean of some seeds, and Student's interval."""

    def __post_init__(self):
        from kdtasks.engine.compare import interval
        self.value, *self.interval = interval(self.samples)
        self.ok = None


def median_interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """The narrowest [k-th smallest, k-th largest] that covers the median with at least ``level``; k = 1 if none does."""
    ordered, n = sorted(values), len(values)
    k, tail = 1, 1                                         # 2^n times the chance that fewer than k values lie below the median
    while k < (n + 1) // 2 and 2 * (tail + math.comb(n, k)) / 2**n <= 1 - level:
        tail += math.comb(n, k)
        k += 1
    return ordered[k - 1], ordered[n - k]


def ratio(what: str, times: dict[str, list[float]], a: str, b: str, bar: float | None = None) -> Line:
    """The time of ``a`` over the time of ``b``, round by round; ``what`` is put before their names."""
    what = f"{what}{a} / {b}"
    if "torchdistill" in (a, b) and "torchdistill" not in times:
        return Line(what, [], bar, note="not installed: uv sync --extra bench")
    note = f"{b}: {1000 * statistics.median(times[b]):.3g} ms a step"
    return Line(what, [x / y for x, y in zip(times[a], times[b])], bar, note=note)


def clock(o) -> float:
    if o.device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def rounds(o, measures: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each measure returned in each round; every round has another order."""
    found, order, draw = {name: [] for name in measures}, list(measures), random.Random(0)
    for _ in range(o.rounds):
        draw.shuffle(order)
        for name in order:
            found[name].append(measures[name]())
    return found


def step_times(o, variants: dict[str, Step]) -> dict[str, list[float]]:
    """Seconds a step of each variant, one number a round."""
    def turn(step: Step, steps: int) -> float:
        start = clock(o)
        for _ in range(steps):
            step()
        return (clock(o) - start) / steps
    fastest = min(turn(step, 1) for _ in range(3) for step in variants.values())            # this is the warm-up too
    steps = math.ceil(0.05 / max(fastest, 1e-6))
    return rounds(o, {name: lambda step=step: turn(step, steps) for name, step in variants.items()})


def same_work(variants: dict[str, Step]) -> None:
    """Run the first step of each; RuntimeError where losses differ in 6 digits, or gradients by 1e-4 of their norm."""
    found = {}
    for name, step in variants.items():
        grads: list[Tensor] = []
        handle = register_optimizer_step_pre_hook(lambda optimizer, *_, grads=grads: grads.extend(
            p.grad.flatten().clone() for group in optimizer.param_groups for p in group["params"]))
        found[name] = (float(step()), torch.cat(grads))
        handle.remove()
    (first, (loss, grad)), *others = found.items()
    for name, (other_loss, other) in others:
        apart = float((other - grad).norm() / grad.norm()) if other.shape == grad.shape else math.inf
        if not math.isclose(loss, other_loss, rel_tol=5e-6) or not apart <= 1e-4:
            raise RuntimeError(f"{first} and {name} do different work: losses {loss:.8g} and {other_loss:.8g}, "
                               f"gradients {apart:.1e} of their norm apart")


# ------------------------------------------------------------------------------------------------- the steps of one pair
def pair(o) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Teacher, student, images and labels: new objects, the same values in every call."""
    torch.manual_seed(0)
    teacher, student = (getattr(models, name)(100) for name in o.models)
    input, target = torch.randn(o.batch, 3, 32, 32), torch.randint(100, (o.batch,))
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0                          # the statistics of one batch: features keep a sane size
    with torch.no_grad():
        teacher(input)
    teacher.eval().requires_grad_(False)
    return teacher.to(o.device), student.to(o.device), input.to(o.device), target.to(o.device)


def update(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def by_hand(o, features=()) -> Step:
    """The floor; its hooks are registered once."""
    teacher, student, input, target = pair(o)
    optimizer, seen = torch.optim.SGD(student.parameters(), **SGD), {}
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
        return update(loss, optimizer)
    return step


def terms(features=()) -> dict[str, tuple]:
    return {"loss_cls": (nn.CrossEntropyLoss(), ("student", "target"), HARD),
            "loss_kd": (KDLoss(T), ("student", "teacher"), SOFT),
            **{f"loss_{path}": (nn.MSELoss(), (f"student.{path}", f"teacher.{path}"), HINT) for path in features}}


def library(o, features=(), carry: Callable[[nn.Module, Tensor], Callable[[], dict]] = lambda *_: dict) -> Step:
    """The Distiller in a plain loop; ``carry(teacher, input)()`` is what a batch brings along of the teacher's output."""
    teacher, student, input, target = pair(o)
    distiller = Distiller(student, {"teacher": teacher}, terms(features))
    distiller.build(input, target)
    optimizer, carried = torch.optim.SGD(distiller.parameters(), **SGD), carry(teacher, input)
    def step() -> Tensor:
        losses = distiller({"input": input, "target": target, **carried()})
        return update(sum(losses.values()), optimizer)
    return step


def torchdistill(o, features=()) -> dict[str, Step]:
    """torchdistill's box with its own losses and hooks, driven as its examples do; empty where it is not installed."""
    if importlib.util.find_spec("torchdistill") is None:
        return {}
    from torchdistill.core.distillation import get_distillation_box
    teacher, student, input, target = pair(o)
    weighted = {"kd": {"weight": 1.0, "criterion": {"key": "KDLoss", "kwargs": {
        "student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".", "teacher_module_io": "output",
        "temperature": T, "alpha": HARD, "beta": SOFT}}}}
    for path in features:
        of = {name: {"is_from_teacher": name == "target", "module_path": path, "io": "output"} for name in ("input", "target")}
        weighted[path] = {"weight": HINT, "criterion": {"key": "MSELoss", "kwargs": {}},
                       "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": of}}
    model = {"forward_proc": "forward_batch_only", "forward_hook": {"output": list(features)} if features else {}}
    box = get_distillation_box(teacher, student, {}, {
        "num_epochs": 1, "teacher": {**model, "requires_grad": False}, "student": model,
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": weighted}},
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
    }, torch.device(o.device), None, False, 1.0)
    def step() -> Tensor:
        loss = box.forward_process(input, target, {})
        box.post_forward_process(loss)                     # backward, step, zero_grad
        return loss.detach()
    return {"torchdistill": step}


# ------------------------------------------------------------------------------------------------------------- the rows
def kd_step(o, what: str = "KD step: ", features=(), bar: float = 1.02, rival: float | None = 1.0) -> Iterator[Line]:
    """Soft targets; a second step by hand shows what the noise alone does."""
    variants = {"by hand": by_hand(o, features), "by hand again": by_hand(o, features), "library": library(o, features),
                **torchdistill(o, features)}
    same_work(variants)
    times = step_times(o, variants)
    yield ratio(what, times, "by hand again", "by hand")
    yield ratio(what, times, "library", "by hand", bar=bar)
    yield ratio(what, times, "torchdistill", "by hand")
    yield ratio(what, times, "library", "torchdistill", bar=rival)


def feature_step(o) -> Iterator[Line]:
    """Soft targets and four feature losses."""
    yield from kd_step(o, "with 4 features: ", FEATURES, bar=1.05, rival=None)


def cached_step(o) -> Iterator[Line]:
    """Teacher logits out of a cache of this batch, in float32 so that the loss is the live one, against no teacher at all."""
    at = {"index": torch.arange(o.batch), "view": torch.zeros(o.batch, dtype=torch.int64)}
    def cached(teacher: nn.Module, input: Tensor) -> Callable[[], dict]:
        with torch.no_grad():
            cache = TeacherCache.write(folder, {}, o.batch, 1, [at], lambda batch: {"teacher": teacher(input)}, half=False)
        cache.to(o.device)
        return lambda: cache.fetch(**at)
    _, student, input, target = pair(o)
    optimizer = torch.optim.SGD(student.parameters(), **SGD)
    with tempfile.TemporaryDirectory() as folder:
        variants = {"cached KD step": library(o, carry=cached),
                    "student alone": lambda: update(F.cross_entropy(student(input), target), optimizer)}
        same_work({"live": library(o), "cached": variants["cached KD step"]})
        yield ratio("", step_times(o, variants), *variants, bar=1.05)


class Images(torch.utils.data.TensorDataset):
    def batch(self, index: Tensor, view: Tensor, seed: int) -> dict[str, Tensor]:
        return dict(zip(("input", "target"), self[index]))


def runner(o) -> Iterator[Line]:
    """200 steps of a tiny network by mmengine's Runner, with 4 reads and a checkpoint at the end, against the plain loop."""
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.runner import StageRunner

    steps, students, images = 200, {}, Images(torch.randn(256, 1, 8, 8), torch.arange(256) % 10)
    task = SimpleNamespace(PRIMARY="accuracy", HIGHER_IS_BETTER=True, evaluate=lambda model, loader: {"accuracy": 0})
    options = {"amp": None, "accumulate": 1, "clip_grad": None, "ema": None, "sync_bn": False}

    def parts(name: str) -> tuple[Distiller, Loader]:
        torch.manual_seed(0)
        students[name], teacher = models.digits_cnn().to(o.device), models.digits_cnn().to(o.device)
        return Distiller(students[name], {"teacher": teacher}, terms()), Loader(images, 8, length=steps, device=o.device)

    def plain() -> float:
        distiller, loader = parts("plain")
        optimizer, start = torch.optim.SGD(distiller.parameters(), **SGD), clock(o)
        for batch in loader:
            update(sum(distiller(batch).values()), optimizer)
        return (clock(o) - start) / steps

    def engine() -> float:
        distiller, loader = parts("engine")
        with tempfile.TemporaryDirectory() as folder:
            stage = StageRunner(
                name="benchmark", folder=Path(folder), log_file=Path(folder) / "log", distiller=distiller, loader=loader,
                task=task, test_loader=None, optimizer=functools.partial(torch.optim.SGD, **SGD), schedule=[], length=steps,
                train=("student", "losses"), log_interval=50, val_interval=steps, checkpoint_interval=steps, options=options)
            start = clock(o)
            stage.train()
            return (clock(o) - start) / steps

    plain(), engine()
    torch.testing.assert_close(*(student.state_dict() for student in students.values()))  # the same work
    times = rounds(o, {"plain": plain, "engine": engine})
    extra = [1000 * (e - p) for e, p in zip(times["engine"], times["plain"])]
    yield Line("mmengine Runner beyond the plain loop", extra, 1.0, "ms", f"plain: {times['plain'][0] * 1000:.3g} ms a step")


def peak_bytes(o, work: Callable[[], object]) -> int:
    """The most that ``work`` had allocated at once beyond what was there before, by torch's allocator."""
    if o.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = sorted((e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(itertools.accumulate(e.nbytes() for e in events))


def gradient(loss: Callable, student: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(student, *rest)
    return value.detach(), *torch.autograd.grad(value, student)


def apart(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    """The larger of the two relative errors, of the loss and of its gradient."""
    return max(float((x - y).norm() / y.norm()) for x, y in zip(found, exact))


def adl(o) -> Iterator[Line]:
    """A dense head of 200 000 anchors and 80 classes, with the paper's settings; the soft targets of BCE are there before."""
    def head(anchors: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        student, teacher = (torch.randn(anchors, 80, device=o.device) * 2 - 4 for _ in range(2))
        return student.to(dtype).requires_grad_(), teacher.to(dtype)

    def formula(student: Tensor, teacher: Tensor) -> Tensor:
        q, p, rest_q, rest_p = (F.logsigmoid(z) for z in (teacher, student, -teacher, -student))         # logarithms
        kl = q.exp() * (q - p) + rest_q.exp() * (rest_q - rest_p)
        weight = -torch.expm1(-kl + 1.5 * (q.exp() * q + rest_q.exp() * rest_q))
        return (weight * kl).sum() / (1.8 * q).exp().sum().clamp(min=1)

    error = apart(gradient(adl_loss, *head(1000)), gradient(formula, *head(1000, torch.float64)))
    student, teacher = head(200_000)
    target = teacher.sigmoid()
    variants = {"ADL": lambda: gradient(adl_loss, student, teacher),
                "BCE with logits": lambda: gradient(F.binary_cross_entropy_with_logits, student, target)}
    yield ratio("16 M entries: ", step_times(o, variants), *variants, bar=2.5)
    size = student.numel() * student.element_size()
    yield Line("ADL: memory beside the gradient", [peak_bytes(o, variants["ADL"]) / size - 1], 1.05, "tensors", "of its size")
    yield Line("ADL: loss and gradient off float64", [1e5 * error], 1.0, "e-5", "relative, 80 000 entries")


def detector_step(o) -> Iterator[Line]:
    """RetinaNet with ADL, and Faster R-CNN with soft targets and bounded boxes, against the same with torchvision's parts by
    hand."""
    for what, make, steps in (("RetinaNet + ADL: ", "retinanet", (dense_by_hand, DENSE)),
                              ("Faster R-CNN + Chen: ", "faster_rcnn", (two_stage_by_hand, TWO_STAGE))):
        by_hand, losses = steps
        variants = {"by hand": by_hand(o, make), "by hand again": by_hand(o, make),
                    "library": detector_library(o, make, losses)}
        same_work(variants)
        times = step_times(o, variants)
        yield ratio(what, times, "by hand again", "by hand")
        yield ratio(what, times, "library", "by hand", bar=1.05)


SOFT_TARGETS, BOUNDED = WeightedSoftCrossEntropy(), BoundedRegressionLoss()
DENSE = {"loss_adl": (ADLLoss(), ("student.cls_logits", "teacher.cls_logits", "anchors.valid"))}
TWO_STAGE = {"loss_soft": (SOFT_TARGETS, ("rois.student.logits", "rois.teacher.logits")),
             "loss_bounded": (BOUNDED, ("rois.student.deltas", "rois.teacher.deltas", "rois.target", "rois.count"))}


def detectors(o, make: str) -> tuple[nn.Module, nn.Module, list[Tensor], list[dict]]:
    """Teacher, student, 4 images of 128 x 160 and their boxes; sampling takes all, so that no variant draws otherwise."""
    torch.manual_seed(0)
    settings = {"min_size": 128, "max_size": 160, "extra": None, "anchor_sizes": [16, 32, 64], "first": 1}
    if make == "faster_rcnn":
        settings |= {"rpn_post_nms_top_n_train": 100, "rpn_pre_nms_top_n_train": 200, "rpn_batch_size_per_image": 10**6,
                     "box_batch_size_per_image": 10**6, "rpn_positive_fraction": 0.5, "representation": 64}
    teacher, student = (getattr(detection_models, make)(4, detection_models.small_resnet(width), 16, **settings)
                        for width in (16, 8))
    images = [torch.rand(3, 128, 160, device=o.device) for _ in range(4)]
    boxes = torch.tensor([[10.0, 10, 50, 60], [60, 40, 120, 100]], device=o.device)
    targets = [{"boxes": boxes + k, "labels": torch.tensor([1, 3], device=o.device)} for k in range(4)]
    return teacher.eval().requires_grad_(False).to(o.device), student.to(o.device), images, targets


def dense_by_hand(o, make: str) -> Step:
    teacher, student, images, targets = detectors(o, make)
    optimizer, seen, adl, original = torch.optim.SGD(student.parameters(), **SGD), {}, ADLLoss(), student.head.compute_loss
    student.transform.register_forward_hook(lambda module, args, output: seen.update(images=output[0]))
    def compute_loss(targets, head_outputs, anchors, matched_idxs):
        seen.update(logits=head_outputs["cls_logits"], matched=matched_idxs)
        return original(targets, head_outputs, anchors, matched_idxs)
    student.head.compute_loss = compute_loss
    def step() -> Tensor:
        losses = student(images, targets)
        with torch.no_grad():
            taught = teacher.head(list(teacher.backbone(seen["images"].tensors).values()))["cls_logits"]
        valid = torch.stack([matched != -2 for matched in seen["matched"]])
        return update(sum(losses.values()) + adl(seen["logits"], taught, valid), optimizer)
    return step


def two_stage_by_hand(o, make: str) -> Step:
    teacher, student, images, targets = detectors(o, make)
    optimizer, seen, heads, theirs = torch.optim.SGD(student.parameters(), **SGD), {}, student.roi_heads, teacher.roi_heads
    student.transform.register_forward_hook(lambda module, args, output: seen.update(images=output[0]))
    heads.box_predictor.register_forward_hook(lambda module, args, output: seen.update(outputs=output))
    select = heads.select_training_samples
    def select_training_samples(proposals, targets):
        seen["rois"] = chosen = select(proposals, targets)
        return chosen
    heads.select_training_samples = select_training_samples
    def step() -> Tensor:
        losses = student(images, targets)
        rois, _, labels, regression = seen["rois"]
        with torch.no_grad():
            features = teacher.backbone(seen["images"].tensors)
            pooled = theirs.box_roi_pool(features, rois, seen["images"].image_sizes)
            taught, taught_deltas = theirs.box_predictor(theirs.box_head(pooled))
        logits, deltas = seen["outputs"]
        labels, regression = torch.cat(labels), torch.cat(regression)
        rows = torch.where(labels > 0)[0]
        ours, other = (d.unflatten(1, (-1, 4))[rows, labels[rows]] for d in (deltas, taught_deltas))
        more = SOFT_TARGETS(logits, taught) + BOUNDED(ours, other, regression[rows], len(labels))
        return update(sum(losses.values()) + more, optimizer)
    return step


def detector_library(o, make: str, losses: dict) -> Step:
    teacher, student, images, targets = detectors(o, make)
    distiller = DetectionDistiller(student, {"teacher": teacher}, losses)
    batch = {"input": images, "target": targets}
    distiller.build(batch)
    optimizer = torch.optim.SGD(distiller.parameters(), **SGD)
    return lambda: update(sum(distiller(batch).values()), optimizer)


def same_gradients(steps: dict[str, Callable[[], tuple[Tensor, Tensor]]]) -> None:
    """RuntimeError where losses or gradients differ by 1e-4 of their size."""
    first, *others = steps
    for name in others:
        if not (error := apart(steps[name](), steps[first]())) <= 1e-4:
            raise RuntimeError(f"{first} and {name} do different work: {error:.1e} apart")


def fewer(o, rounds: int) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(o), "rounds": min(rounds, o.rounds)})


def embeddings(o, n: int, *widths: int) -> list[Tensor]:
    """The first is the student's."""
    torch.manual_seed(0)
    student, *others = (torch.randn(n, width).to(o.device) for width in widths)
    return [student.requires_grad_(), *others]


def angles_one_by_one(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the angles by normalised differences, in float64, a few vertices at a time."""
    student, teacher, loss = student.detach().double().requires_grad_(), teacher.double(), 0.0
    for v in torch.arange(len(student), device=student.device).split(8):
        arms, taught = (F.normalize(x[None] - x[v, None], dim=2) for x in (student, teacher))              # (v, N, D)
        part = F.smooth_l1_loss(arms @ arms.mT, taught @ taught.mT, reduction="sum") / len(student) ** 3
        part.backward()
        loss += part.detach()
    return loss, student.grad


def rkd_angle(o) -> Iterator[Line]:
    """512 columns. torchdistill's form has tensors of N² · 512, too many for a CPU at 1024 rows. The bars are for 256."""
    largest, variants = 1024 if o.device == "cuda" else 256, {"RKD angle": rkd_angle_loss}
    if importlib.util.find_spec("torchdistill"):
        from torchdistill.losses.mid_level import RKDLoss
        usual = RKDLoss("", "", dist_factor=0, angle_factor=1, reduction="mean")
        variants["torchdistill"] = lambda student, teacher: usual.compute_rkd_angle_loss(teacher, student)
    for n in (64, 128, 256, 1024, 4096)[:3 if o.rounds < 5 else 5 if o.device == "cuda" else 4]:  # seconds a step beyond
        student, teacher = embeddings(o, n, 512, 512)
        steps = {name: functools.partial(gradient, loss, student, teacher) for name, loss in variants.items()
                 if name == "RKD angle" or n <= largest}
        same_gradients(steps)
        times = step_times(o if n == 256 else fewer(o, 7 if n < 256 else 3), steps)
        peaks = {name: peak_bytes(o, step) for name, step in steps.items()}
        if n > largest:
            yield Line(f"{n} rows: RKD angle", times["RKD angle"], unit="s", note=f"{peaks['RKD angle'] / 2**20:.0f} MiB")
            continue
        yield ratio(f"{n} rows: ", times, "RKD angle", "torchdistill", bar=1 / 4 if n == 256 else None)
        if "torchdistill" in peaks:
            yield Line(f"{n} rows: memory / torchdistill's", [peaks["RKD angle"] / peaks["torchdistill"]],
                       1 / 20 if n == 256 else None, note=f"torchdistill: {peaks['torchdistill'] / 2**20:.0f} MiB")
        if n == 256:
            error = apart(steps["RKD angle"](), angles_one_by_one(student, teacher))
            yield Line("256 rows: RKD angle off float64", [1e6 * error], 1.0, "e-6", "relative, loss and gradient")


def darkrank_by_suffix(student: Tensor, teacher: Tensor) -> Tensor:
    """Hard DarkRank of whole lists as one would write it down: a log-sum-exp for every place."""
    student, teacher, places = F.normalize(student), F.normalize(teacher), range(len(student) - 1)
    order = torch.cdist(teacher, teacher).fill_diagonal_(math.inf).argsort(1)[:, :-1]
    scores = (-3 * torch.cdist(student, student) ** 3).gather(1, order)
    return (torch.stack([torch.logsumexp(scores[:, i:], 1) for i in places], 1) - scores).sum(1).mean()


def darkrank(o) -> Iterator[Line]:
    """Whole lists, 128 columns taught by 512; by suffix in float64, as the library computes, and in float32. The bar is for
    256 rows in float64."""
    variants = {"DarkRank hard": functools.partial(darkrank_hard_loss, list_length=None),
                "by suffix": lambda student, teacher: darkrank_by_suffix(student.double(), teacher.double()),
                "in float32": darkrank_by_suffix}
    for n in (64, 128, 256, 1024)[:3 if o.rounds < 5 else 4]:  # seconds a step beyond
        student, teacher = embeddings(o, n, 128, 512)
        steps = {name: functools.partial(gradient, loss, student, teacher) for name, loss in variants.items()}
        same_gradients(steps)
        times = step_times(o if n == 256 else fewer(o, 7 if n < 256 else 3), steps)
        yield ratio(f"{n} rows: ", times, "DarkRank hard", "by suffix", bar=1 / 5 if n == 256 else None)
        yield ratio(f"{n} rows: ", times, "DarkRank hard", "in float32")


# -------------------------------------------------------------------------------------------------- continual learning
def lwm_step(o, attention: bool, fast: bool | None = None) -> Step:
    """The third experience of ten classes: cross-entropy of the new ones, LwF of the old, and LwM's attention where wanted."""
    teacher, student, input, target = pair(argparse.Namespace(**{**vars(o), "models": o.models[1:] * 2}))
    teacher, student = (growing(model, (10,) * t).to(o.device) for model, t in ((teacher, 2), (student, 3)))
    make, losses = IncrementalDistiller, {"loss_cls": (nn.CrossEntropyLoss(), ("student.new", "target.new")),
                                          "loss_lwf": (lwf_loss, ("student.old", "teacher"))}
    if attention:
        make = functools.partial(LwMDistiller, attention="layer3", fast=fast)
        losses["loss_attention"] = (lwm_attention_loss, ("student.attention", "teacher.attention"))
    distiller, batch = make(student, {"teacher": teacher}, losses), {"input": input, "target": 20 + target % 10}
    distiller.build(batch)
    optimizer = torch.optim.SGD(distiller.parameters(), **SGD)
    return lambda: update(sum(distiller(batch).values()), optimizer)


def lwm(o) -> Iterator[Line]:
    """LwM's attention maps by the short cut, and by the definition, which differentiates twice, against LwF without them.
    Teacher and student are the second of ``--models``."""
    variants = {"LwF": lwm_step(o, False), "LwF again": lwm_step(o, False),
                "LwM": lwm_step(o, True), "LwM by derivatives": lwm_step(o, True, fast=False)}
    same_work({name: variants[name] for name in ("LwF", "LwF again")})
    same_work({name: variants[name] for name in ("LwM", "LwM by derivatives")})
    times = step_times(o, variants)
    yield ratio("", times, "LwF again", "LwF")
    yield ratio("", times, "LwM", "LwF", bar=1.25)
    yield ratio("", times, "LwM by derivatives", "LwF")


# The kernel's own peak (VmHWM), set back before: ru_maxrss of a new process begins with its parent's.
SAMPLING = """
import json, sys, time, torch
from kdtasks.incremental import confident_indices, sample_external

rows, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)

def chunks():
    draw = torch.Generator().manual_seed(0)
    for first in range(0, rows, 500):
        yield torch.randn(min(500, rows - first), 90, generator=draw)

def seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

making = seconds(lambda: [None for _ in chunks()])
open("/proc/self/clear_refs", "w").write("5")
before = peak()
found = {"confident_indices": seconds(lambda: confident_indices(chunks(), 23)) - making,
         "sample_external": seconds(lambda: sample_external(chunks(), 7000)) - making}
print(json.dumps({**found, "making": making, "MiB": peak() - before}))
"""


def sampling(rows: int, threads: int = 1, code: str = SAMPLING) -> dict[str, float]:
    """CPU seconds, and the growth of the peak memory, of a new process."""
    command = [sys.executable, "-c", code, str(rows), str(threads)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def gd_sampling(o) -> Iterator[Line]:
    """Three times, on the CPU: scores of 90 classes in chunks of 500 rows, for the last of ten experiences of CIFAR-100 with
    2 000 exemplars (7 000 labelled images, 23 confident ones a class). What it costs to make the scores is taken off."""
    if not Path("/proc/self/clear_refs").exists():
        yield Line("GD sampling", [], note="not measured: wants Linux's /proc")
        return
    scores = torch.randn(10_000, 90, generator=torch.Generator().manual_seed(0))
    if not confident_indices(scores.split(500), 23).equal(scores.topk(23, 0).indices.unique()):
        raise RuntimeError("confident_indices of chunks are not the largest scores of each class")
    small, large = (10_000, 100_000) if o.rounds < 5 else (100_000, 1_000_000)
    found = {rows: [sampling(rows, o.threads) for _ in range(min(3, o.rounds))] for rows in (small, large)}
    for rows, costs in found.items():
        making = statistics.median(cost["making"] for cost in costs)
        for name in ("confident_indices", "sample_external"):
            yield Line(f"{rows} x 90 scores: {name}", [cost[name] for cost in costs], unit="s",
                       note=f"beside {making:.2g} s to make them")
    beyond = [b["MiB"] - a["MiB"] for a, b in zip(found[small], found[large])]
    least, most = (statistics.median(cost["MiB"] for cost in found[rows]) for rows in (small, large))
    yield Line(f"memory: {large} rows beyond {small}", beyond, 4.0, "MiB",
               f"{least:.1f} and {most:.1f} MiB; the scores have {small * 360 / 2**20:.0f} and {large * 360 / 2**20:.0f}")


@functools.cache
def digit_images(train: bool) -> Images:
    """As avalanche wants them, with ``targets``."""
    data = digits(train)
    index = torch.arange(len(data.target))
    batch = data.batch(index, torch.zeros_like(index), 0)
    images = Images(batch["input"], batch["target"])
    images.targets = batch["target"].tolist()
    return images


@functools.cache
def digit_stream(seed: int):
    """Five experiences of two classes, in an order of the seed's."""
    from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark

    from kdtasks.incremental.plugin import checked_benchmark
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()
    return checked_benchmark(class_incremental_benchmark(
        {"train": digit_images(True), "test": digit_images(False)}, num_experiences=5, class_order=order))


class Stopwatch:
    """A plugin: seconds of the epochs."""

    def __init__(self, o):
        self.o, self.seconds = o, 0.0

    def before_training_epoch(self, strategy, **kwargs):
        self.start = clock(self.o)

    def after_training_epoch(self, strategy, **kwargs):
        self.seconds += clock(self.o) - self.start


def avalanche_run(o, plugins: Callable[[], list], seed: int, experiences: int = 5, epochs: int = 10,
                  fixed_norm: bool = False) -> tuple[nn.Module, float]:
    """The model after some experiences in avalanche's Naive strategy with plugins, and the last one's seconds a step."""
    from avalanche.training import Naive

    torch.manual_seed(seed)
    model, watch = models.digits_cnn(), Stopwatch(o)
    if fixed_norm:
        growing(model, (10,), fixed_norm=True)
    strategy = Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), **SGD), train_mb_size=32, train_epochs=epochs,
                     evaluator=None, device=o.device, plugins=[watch, *plugins()])
    for experience in list(digit_stream(seed).train_stream)[:experiences]:
        watch.seconds = 0.0
        strategy.train(experience)
    return model, watch.seconds / strategy.clock.train_exp_iterations


@torch.no_grad()
def accuracies(o, model: nn.Module, seed: int) -> tuple[float, float]:
    """Percent, mean over the experiences: of all columns, and of those of the image's own experience."""
    input, target = digit_images(False).tensors
    logits, found = model.eval()(input.to(o.device)).cpu(), []
    for experience in digit_stream(seed).test_stream:
        own = torch.tensor(experience.classes_in_this_experience)
        rows = torch.isin(target, own)
        answers = torch.stack([logits[rows].argmax(1), own[logits[rows][:, own].argmax(1)]])
        found.append((answers == target[rows]).double().mean(1))
    return tuple((100 * torch.stack(found).mean(0)).tolist())


def avalanche_lwf(o) -> Iterator[Line]:
    """avalanche's LwF and ours in its own strategy: digits, five times two classes, 10 epochs of batches of 32, 5 seeds.
    In brackets is ``ce_over``. Accuracies are of the end: means over seeds. Steps are of the second experience, the loading of
    batches included."""
    if importlib.util.find_spec("avalanche") is None:
        yield Line("LwF in avalanche: ours / its own", [], note="not installed: uv sync --extra incremental")
        return
    from avalanche.training.plugins import LwFPlugin as TheirLwF

    from kdtasks.incremental.plugin import LwFPlugin
    its, seen, new = "avalanche's LwF", "our LwF (seen)", "our LwF (new)"
    arms = {"Naive": list, its: lambda: [TheirLwF(alpha=1, temperature=2)], seen: lambda: [LwFPlugin(ce_over="seen")],
            new: lambda: [LwFPlugin(ce_over="new")]}
    theirs, ours = (avalanche_run(o, arms[name], 0, 2, 3, fixed_norm=True)[0].state_dict() for name in (its, seen))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)    # one loss if no BatchNorm moves; T = 2.1 is 5e-3 apart
    seeds, epochs = (range(2), 1) if o.rounds < 5 else (range(5), 10)
    ends = {name: [accuracies(o, avalanche_run(o, plugins, seed, epochs=epochs)[0], seed) for seed in seeds]
            for name, plugins in arms.items()}
    for k, what in enumerate(("class-IL", "task-IL")):
        for name in arms:
            values = [pair[k] for pair in ends[name]]
            yield Mean(f"{what}: {name}", values, unit="%", note=f"sd {statistics.stdev(values):.2f}, {len(values)} seeds")
        for name in (seen, new):
            yield Mean(f"{what}: {name} - {its}", [a[k] - b[k] for a, b in zip(ends[name], ends[its])], unit="points")
    times = rounds(o, {name: lambda plugins=plugins: avalanche_run(o, plugins, 0, 2, 3)[1] for name, plugins in arms.items()})
    yield from (Line(f"step: {name}", [1000 * t for t in times[name]], unit="ms") for name in arms)
    yield from (ratio("step: ", times, name, its) for name in arms if name != its)


# ------------------------------------------------------------------------------------------------------------- imports
def imports(o) -> Iterator[Line]:
    """Seven times (fewer if there are fewer rounds), by the wall clock of a new process that has torch already."""
    for task in ("general", "detection", "metric_learning", "incremental"):
        code = f"import time, torch; t = time.perf_counter(); import kdtasks.{task}; print(time.perf_counter() - t)"
        seconds = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
                   for _ in range(min(7, o.rounds))]
        yield Line(f"import kdtasks.{task} beyond torch", seconds, 0.1, "s")


ROWS = {row.__name__: row for row in (kd_step, feature_step, cached_step, runner, adl, detector_step, rkd_angle, darkrank, lwm,
                                      gd_sampling, avalanche_lwf, imports)}


# ------------------------------------------------------------------------------------------------------------ the table
def machine(o) -> dict:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((row.split(": ", 1)[1] for row in text.splitlines() if row.startswith("model name")), platform.machine())
    return {"machine": torch.cuda.get_device_name() if o.device == "cuda" else cpu, "threads": torch.get_num_threads(),
            "python": platform.python_version()} | {
        name: importlib.metadata.version(package) if importlib.util.find_spec(name) else "not installed"
        for name, package in (("torch",) * 2, ("mmengine",) * 2, ("torchdistill",) * 2, ("avalanche", "avalanche-lib"))}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--json", type=Path, help="write the figures, and every single number, here")
    parser.add_argument("--models", nargs=2, default=("resnet56", "resnet20"), help="of kdtasks.general.models")
    parser.add_argument("--batch", type=int, help="images in a step; 64 on a CPU, 1024 on CUDA")
    o = parser.parse_args(arguments)
    o.batch = o.batch or (1024 if o.device == "cuda" else 64)
    torch.set_num_threads(o.threads)
    lines: list[Line] = []
    for name in o.rows:
        print(f"{name} …", file=sys.stderr, flush=True)
        lines += ROWS[name](o)
    about = machine(o) | {"models": " -> ".join(o.models), "batch": o.batch, "rounds": o.rounds}
    table = Table(Column("what", no_wrap=True), "figure", "95 % interval", "bar", "ok", "note", title_justify="left",
                  title=", ".join(f"{name} {value}" for name, value in about.items()))
    for x in lines:
        figures = (f"{x.value:.3f} {x.unit}", "{:.3f} … {:.3f}".format(*x.interval)) if x.samples else ("", "")
        table.add_row(x.what, *figures, f"≤ {x.bar:g}" if x.bar else "", {True: "ok", False: "FAILS", None: ""}[x.ok], x.note)
    Console(width=None if sys.stdout.isatty() else 128).print(table)
    if o.json:
        o.json.write_text(json.dumps({**about, "lines": [vars(x) for x in lines]}, indent=2) + "\n")
    return int(any(x.ok is False for x in lines))


if __name__ == "__main__":
    sys.exit(main())
