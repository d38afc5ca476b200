"""Continual learning: LwM's maps, Global Distillation's pool, our LwF in avalanche."""

import argparse
import functools
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.distillation import pair
from benchmarks.engine import Images
from benchmarks.measure import (
    SGD,
    Line,
    Mean,
    Step,
    clock,
    ratio,
    rounds,
    same_work,
    step_times,
    update,
)
from kdtasks.classification import models
from kdtasks.classification.data import digits
from kdtasks.incremental import (
    IncrementalDistiller,
    LwMDistiller,
    confident_indices,
    lwf_loss,
    lwm_attention_loss,
)
from kdtasks.incremental.models import growing


def lwm_step(o, attention: bool, fast: bool | None = None) -> Step:
    """The third experience of ten classes: cross-entropy of the new ones, LwF of the old, and LwM's
    attention where wanted.
    """
    teacher, student, input, target = pair(
        argparse.Namespace(**{**vars(o), "models": o.models[1:] * 2})
    )
    teacher, student = (
        growing(model, (10,) * t).to(o.device) for model, t in ((teacher, 2), (student, 3))
    )
    make, losses = (
        IncrementalDistiller,
        {
            "loss_cls": (nn.CrossEntropyLoss(), ("student.new", "target.new")),
            "loss_lwf": (lwf_loss, ("student.old", "teacher")),
        },
    )
    if attention:
        make = functools.partial(LwMDistiller, attention="layer3", fast=fast)
        losses["loss_attention"] = (lwm_attention_loss, ("student.attention", "teacher.attention"))
    distiller, batch = (
        make(student, {"teacher": teacher}, losses),
        {"input": input, "target": 20 + target % 10},
    )
    distiller.build(batch)
    optimizer = torch.optim.SGD(distiller.parameters(), **SGD)
    return lambda: update(sum(distiller(batch).values()), optimizer)


def lwm(o) -> Iterator[Line]:
    """LwM's attention maps by the short cut, and by the definition, which differentiates twice,
    against LwF without them. Teacher and student are the second of ``--models``.
    """
    variants = {
        "LwF": lwm_step(o, False),
        "LwF again": lwm_step(o, False),
        "LwM": lwm_step(o, True),
        "LwM by derivatives": lwm_step(o, True, fast=False),
    }
    same_work({name: variants[name] for name in ("LwF", "LwF again")})
    same_work({name: variants[name] for name in ("LwM", "LwM by derivatives")})
    times = step_times(o, variants)
    yield ratio("", times, "LwF again", "LwF")
    yield ratio("", times, "LwM", "LwF", bar=1.25)
    yield ratio("", times, "LwM by derivatives", "LwF")


# The kernel's own peak (VmHWM), set back before: ru_maxrss of a new process begins with its
# parent's.
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
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

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
    """Three times, on the CPU: scores of 90 classes in chunks of 500 rows, for the last of ten
    experiences of CIFAR-100 with 2 000 exemplars (7 000 labelled images, 23 confident ones a
    class). What it costs to make the scores is taken off.
    """
    if not Path("/proc/self/clear_refs").exists():
        yield Line("GD sampling", [], note="not measured: wants Linux's /proc")
        return
    scores = torch.randn(10_000, 90, generator=torch.Generator().manual_seed(0))
    if not confident_indices(scores.split(500), 23).equal(scores.topk(23, 0).indices.unique()):
        raise RuntimeError("confident_indices of chunks are not the largest scores of each class")
    small, large = (10_000, 100_000) if o.rounds < 5 else (100_000, 1_000_000)
    costs_of_rows = {
        rows: [sampling(rows, o.threads) for _ in range(min(3, o.rounds))]
        for rows in (small, large)
    }
    for rows, costs in costs_of_rows.items():
        making = statistics.median(cost["making"] for cost in costs)
        for name in ("confident_indices", "sample_external"):
            yield Line(
                f"{rows} x 90 scores: {name}",
                [cost[name] for cost in costs],
                unit="s",
                note=f"beside {making:.2g} s to make them",
            )
    beyond = [b["MiB"] - a["MiB"] for a, b in zip(costs_of_rows[small], costs_of_rows[large])]
    least, most = (
        statistics.median(cost["MiB"] for cost in costs_of_rows[rows]) for rows in (small, large)
    )
    yield Line(
        f"memory: {large} rows beyond {small}",
        beyond,
        4.0,
        "MiB",
        f"{least:.1f} and {most:.1f} MiB; the scores have {small * 360 / 2**20:.0f} and "
        f"{large * 360 / 2**20:.0f}",
    )


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
    return checked_benchmark(
        class_incremental_benchmark(
            {"train": digit_images(True), "test": digit_images(False)},
            num_experiences=5,
            class_order=order,
        )
    )


class Stopwatch:
    """A plugin: seconds of the epochs."""

    def __init__(self, o):
        self.o, self.seconds = o, 0.0

    def before_training_epoch(self, strategy, **kwargs):
        self.start = clock(self.o)

    def after_training_epoch(self, strategy, **kwargs):
        self.seconds += clock(self.o) - self.start


def avalanche_run(
    o,
    plugins: Callable[[], list],
    seed: int,
    experiences: int = 5,
    epochs: int = 10,
    fixed_norm: bool = False,
) -> tuple[nn.Module, float]:
    """The model after some experiences in avalanche's Naive strategy with plugins, and the last
    one's seconds a step.
    """
    from avalanche.training import Naive

    torch.manual_seed(seed)
    model, watch = models.digits_cnn(), Stopwatch(o)
    if fixed_norm:
        growing(model, (10,), fixed_norm=True)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), **SGD),
        train_mb_size=32,
        train_epochs=epochs,
        evaluator=None,
        device=o.device,
        plugins=[watch, *plugins()],
    )
    for experience in list(digit_stream(seed).train_stream)[:experiences]:
        watch.seconds = 0.0
        strategy.train(experience)
    return model, watch.seconds / strategy.clock.train_exp_iterations


@torch.no_grad()
def accuracies(o, model: nn.Module, seed: int) -> tuple[float, float]:
    """Percent, mean over the experiences: of all columns, and of those of the image's own
    experience.
    """
    input, target = digit_images(False).tensors
    model.eval()
    logits, right = model(input.to(o.device)).cpu(), []
    for experience in digit_stream(seed).test_stream:
        classes = torch.tensor(experience.classes_in_this_experience)
        rows = torch.isin(target, classes)
        answers = torch.stack([logits[rows].argmax(1), classes[logits[rows][:, classes].argmax(1)]])
        right.append((answers == target[rows]).double().mean(1))
    return tuple((100 * torch.stack(right).mean(0)).tolist())


def avalanche_lwf(o) -> Iterator[Line]:
    """avalanche's LwF and ours in its own strategy: digits, five times two classes, 10 epochs of
    batches of 32, 5 seeds. In brackets is ``ce_over``. Accuracies are of the end: means over seeds.
    Steps are of the second experience, the loading of batches included.
    """
    if importlib.util.find_spec("avalanche") is None:
        yield Line(
            "LwF in avalanche: ours / its own",
            [],
            note="not installed: uv sync --extra incremental",
        )
        return
    from avalanche.training.plugins import LwFPlugin as TheirLwF

    from kdtasks.incremental.plugin import LwFPlugin

    its, seen, new = "avalanche's LwF", "our LwF (seen)", "our LwF (new)"
    arms = {
        "Naive": list,
        its: lambda: [TheirLwF(alpha=1, temperature=2)],
        seen: lambda: [LwFPlugin(ce_over="seen")],
        new: lambda: [LwFPlugin(ce_over="new")],
    }
    avalanches, ours = (
        avalanche_run(o, arms[name], 0, 2, 3, fixed_norm=True)[0].state_dict()
        for name in (its, seen)
    )
    # one loss if no BatchNorm moves; T = 2.1 is 5e-3 apart
    torch.testing.assert_close(ours, avalanches, rtol=0, atol=1e-3)
    seeds, epochs = (range(2), 1) if o.rounds < 5 else (range(5), 10)
    ends = {
        name: [
            accuracies(o, avalanche_run(o, plugins, seed, epochs=epochs)[0], seed) for seed in seeds
        ]
        for name, plugins in arms.items()
    }
    for k, what in enumerate(("class-IL", "task-IL")):
        for name in arms:
            values = [pair[k] for pair in ends[name]]
            yield Mean(
                f"{what}: {name}",
                values,
                unit="%",
                note=f"sd {statistics.stdev(values):.2f}, {len(values)} seeds",
            )
        for name in (seen, new):
            yield Mean(
                f"{what}: {name} - {its}",
                [a[k] - b[k] for a, b in zip(ends[name], ends[its])],
                unit="points",
            )
    times = rounds(
        o,
        {
            name: lambda plugins=plugins: avalanche_run(o, plugins, 0, 2, 3)[1]
            for name, plugins in arms.items()
        },
    )
    yield from (Line(f"step: {name}", [1000 * t for t in times[name]], unit="ms") for name in arms)
    yield from (ratio("step: ", times, name, its) for name in arms if name != its)
