"""How a cost grows: with a batch, lists, classes, a pool, processes and the images of a test.

Each curve is a function ``curve(o) -> iterator of (size, {what: seconds of each round})``; clock
and rounds are those of the table, seven rounds at most.
"""

import argparse
import functools
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks import distillation
from benchmarks.incremental import sampling
from benchmarks.measure import fewer, gradient, same_gradients, same_work, step_times
from benchmarks.metric_learning import darkrank_by_suffix, embeddings
from kdtasks.general import RKDLoss, dist_loss, dkd_loss, kd_loss

Point = tuple[int, dict[str, list[float]]]
_ROUNDS = 7
_LISTS = 256  # queries
_LOGITS = 64  # rows
_APART = ("load", "processors", "curves")  # of what was found, with sentences of their own


def batch(o: argparse.Namespace) -> Iterator[Point]:
    """A KD step, ResNet-20 to ResNet-8, images of 32x32 in 100 classes."""
    for size in (8, 16, 32, 64, 128, 256)[: 2 if o.rounds < 5 else None]:
        options = _of_batch(o, size)
        variants = {
            "library": distillation.library(options),
            "by hand": distillation.by_hand(options),
        }
        variants |= distillation.torchdistill(options)
        same_work(variants)
        yield size, step_times(options, variants)


def lists(o: argparse.Namespace) -> Iterator[Point]:
    """DarkRank of 256 queries, 128 columns taught by 512, forward and backward; by suffix is the
    hard form with a log-sum-exp for each place of whole lists. Soft lists are of 12 at most.
    """
    from kdtasks.metric_learning import darkrank_hard_loss, darkrank_soft_loss

    student, teacher = embeddings(o, _LISTS, 128, 512)
    for length in (2, 4, 8, 12, 32, 64, 128, _LISTS - 1)[: 2 if o.rounds < 5 else None]:
        forms: dict[str, Callable] = {
            "hard": functools.partial(darkrank_hard_loss, list_length=length)
        }
        if length <= 12:
            forms["soft"] = functools.partial(darkrank_soft_loss, list_length=length)
        if length == _LISTS - 1:
            forms["by suffix"] = lambda s, t: darkrank_by_suffix(s.double(), t.double())
        yield length, step_times(o, _with_gradients(forms, student, teacher))


def classes(o: argparse.Namespace) -> Iterator[Point]:
    """Losses of 64 rows of logits, forward and backward."""
    for count in (10, 100, 1000, 10_000, 100_000)[: 2 if o.rounds < 5 else None]:
        student, teacher = embeddings(o, _LOGITS, count, count)
        target = torch.arange(_LOGITS, device=o.device) % count
        forms: dict[str, Callable] = {"KD": kd_loss, "KD by hand": _kl_by_hand}
        same_gradients(_with_gradients(forms, student, teacher))
        forms |= {"DKD": lambda s, t, y=target: dkd_loss(s, t, y), "DIST": dist_loss}
        yield count, step_times(o, _with_gradients(forms, student, teacher))


def pool(o: argparse.Namespace) -> Iterator[Point]:
    """Global Distillation's choice of external images by their scores in 90 classes, beside what it
    takes to make the scores; by the CPU time of a process of its own.
    """
    for rows in (1000, 10_000, 100_000, 1_000_000)[: 2 if o.rounds < 5 else None]:
        costs = [sampling(rows, o.threads) for _ in range(min(3, o.rounds))]
        # what is made twice differs by more than the choice from a small pool takes
        yield (
            rows,
            {
                name: [max(cost[name], 1e-5) for cost in costs]
                for name in ("confident_indices", "sample_external")
            },
        )


def processes(o: argparse.Namespace) -> Iterator[Point]:
    """A KD step of gloo processes with 32 images each, ResNet-20 to ResNet-8, under DDP; CPU time
    of one process. RKD over all relates the rows of all processes.
    """
    for count in (1, 2, 4)[: 2 if o.rounds < 5 else None]:
        with tempfile.TemporaryDirectory() as folder:
            options = argparse.Namespace(**{**vars(_of_batch(fewer(o, 3), 32)), "device": "cpu"})
            # a fork has imported everything, but may not train where the parent has used CUDA
            start = "spawn" if o.device == "cuda" else "fork"
            torch.multiprocessing.start_processes(
                _rank, (folder, count, options), nprocs=count, start_method=start
            )
            ranks = [json.loads(path.read_text("utf-8")) for path in Path(folder).glob("*.json")]
        yield count, {what: [t for times in ranks for t in times[what]] for what in ranks[0]}


def images(o: argparse.Namespace) -> Iterator[Point]:
    """Measuring a test set: COCO's figures of 20 boxes in each image, Recall@k and MAP@R of 128
    numbers and 10 images a class, weighted kNN of 500 queries in a bank.
    """
    from kdtasks.detection.coco_metrics import coco_metrics
    from kdtasks.metric_learning.retrieval import recall_and_map
    from kdtasks.representation.knn import weighted_knn

    torch.manual_seed(0)
    for count in (100, 300, 1000, 3000)[: 2 if o.rounds < 5 else None]:
        target = torch.arange(count) // 10
        rows, detections = torch.randn(count, 128), [_boxes(20) for _ in range(count)]
        truth = [{key: each[key][:5] for key in ("boxes", "labels")} for each in detections]
        variants = {
            "COCO's figures": lambda a=detections, b=truth: coco_metrics(a, b),
            "Recall@k, MAP@R": lambda x=rows, y=target: recall_and_map(x, y),
            "weighted kNN": lambda x=rows, y=target: weighted_knn(x, y, x[:500], k=20),
        }
        cpu = argparse.Namespace(**{**vars(fewer(o, 3)), "device": "cpu"})
        yield count, step_times(cpu, variants)


# What the page and the plot say of each: title, what is along x.
CURVES: dict[Callable, tuple[str, str]] = {
    batch: ("a KD step", "images in a batch"),
    lists: ("DarkRank, 256 queries", "length of a list"),
    classes: ("losses of 64 rows of logits", "classes"),
    pool: ("Global Distillation's choice", "images in the pool"),
    processes: ("a KD step under DDP", "processes"),
    images: ("measuring a test set", "images"),
}


def measured(o: argparse.Namespace) -> dict[str, dict]:
    """Of each curve what it is, and its seconds, ``{what: {size: [of each round]}}``."""
    few, curves = fewer(o, _ROUNDS), {}
    for curve, (title, along) in CURVES.items():
        print(f"{curve.__name__} …", flush=True)
        seconds: dict[str, dict[str, list[float]]] = {}
        for size, times in curve(few):
            for what, samples in times.items():
                seconds.setdefault(what, {})[str(size)] = samples
        about = " ".join((curve.__doc__ or "").split())
        curves[curve.__name__] = {
            "title": title,
            "along": along,
            "about": about,
            "seconds": seconds,
        }
    return curves


# Parts --------------------------------------------------------------------------------------------
def _of_batch(o: argparse.Namespace, size: int) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(o), "batch": size, "models": ("resnet20", "resnet8")})


def _with_gradients(forms: Mapping[str, Callable], *tensors: torch.Tensor) -> dict[str, Callable]:
    return {name: functools.partial(gradient, form, *tensors) for name, form in forms.items()}


def _kl_by_hand(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    soft, taught = F.log_softmax(student / 4, 1), F.log_softmax(teacher / 4, 1)
    return 16 * F.kl_div(soft, taught, reduction="batchmean", log_target=True)


def _boxes(count: int) -> dict[str, torch.Tensor]:
    corner = torch.rand(count, 2) * 300
    boxes = torch.cat([corner, corner + 10 + torch.rand(count, 2) * 90], 1)
    return {"boxes": boxes, "labels": torch.randint(1, 11, (count,)), "scores": torch.rand(count)}


def _rank(rank: int, folder: str, count: int, o: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    related = {"loss_rkd": (RKDLoss(gather=True), ("student", "teacher"), 1.0)}
    variants = {
        "library": distillation.library(o, wrap=DistributedDataParallel),
        "by hand": distillation.by_hand(o, wrap=DistributedDataParallel),
        "library, RKD over all": distillation.library(
            o, wrap=DistributedDataParallel, further=related
        ),
    }
    # all processes have to take as many steps: the number is not left to each one's clock
    times = step_times(o, variants, steps=1)
    Path(folder, f"{rank}.json").write_text(json.dumps(times), encoding="utf-8")
    torch.distributed.destroy_process_group()


# The page -----------------------------------------------------------------------------------------
def page(measurement: Mapping) -> str:
    """What was measured as a page of Markdown, no number of which is typed by hand."""
    about = ", ".join(f"{key} {value}" for key, value in measurement.items() if key not in _APART)
    load, processors = measurement["load"], measurement["processors"]
    parts = [
        "# What it costs, and how that grows",
        "Written by `python tools/benchmark.py --curves docs/cost.json`, which also draws the plot "
        f"and keeps every single number ([cost.json](cost.json)). {about}.",
        f"CPU time of one thread, which other work on the machine disturbs less than the wall "
        f"clock, but still does. The load was {load:.1f} on {processors} processors when it began"
        + (
            ": the machine was shared, and differences of a tenth are noise." if load > 0.5 else "."
        ),
        "A figure is the median of the rounds; *grows* is the exponent between the two largest "
        "sizes, 1 where the time grows as the size does.",
        "![Six plots of CPU time against size](cost.svg)",
    ]
    for curve in measurement["curves"].values():
        rows = [
            f"| what | {curve['along']} | CPU time | {curve['along']} | CPU time | grows |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for what, seconds in curve["seconds"].items():
            sizes, times = _points(seconds)
            cells = [f"{sizes[0]:,}", _time(times[0]), f"{sizes[-1]:,}", _time(times[-1])]
            if len(sizes) == 1:
                cells = ["", "", *cells[2:]]
            rows.append(f"| {what} | {' | '.join(cells)} | {_exponent(sizes, times)} |")
        parts += [f"## {curve['title'][0].upper()}{curve['title'][1:]}", curve["about"]]
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _points(seconds: Mapping[str, list[float]]) -> tuple[list[int], list[float]]:
    return [int(size) for size in seconds], [statistics.median(t) for t in seconds.values()]


def _exponent(sizes: list[int], times: list[float]) -> str:
    if len(sizes) < 2:
        return ""
    logs = torch.tensor([sizes[-2:], times[-2:]], dtype=torch.float64).log()
    return f"{float((logs[1, 1] - logs[1, 0]) / (logs[0, 1] - logs[0, 0])):.2f}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def draw(measurement: Mapping, path: Path) -> None:
    """Time against size, a panel a curve, both logarithmic."""
    import matplotlib.style
    from matplotlib.figure import Figure

    from kdtasks.engine.report.style import STYLE

    with matplotlib.style.context({**STYLE, "svg.hashsalt": "kdtasks"}, after_reset=True):
        figure = Figure(figsize=(10.4, 6.2))
        for axes, curve in zip(figure.subplots(2, 3).flat, measurement["curves"].values()):
            for (what, seconds), marker in zip(curve["seconds"].items(), "osD^"):
                sizes, times = _points(seconds)
                axes.plot(sizes, [1000 * t for t in times], marker=marker, ms=4, label=what)
            axes.set(xscale="log", yscale="log", title=curve["title"], xlabel=curve["along"])
            _label(axes, curve["seconds"].values())
        figure.supylabel("CPU time, ms")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _label(axes: Any, curves: Collection[Mapping[str, list[float]]]) -> None:
    """Ticks at the sizes and at whole steps of ten; room for the names above what is drawn."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    sizes = sorted({size for seconds in curves for size in _points(seconds)[0]})
    times = [1000 * time for seconds in curves for time in _points(seconds)[1]]
    axes.xaxis.set_major_locator(FixedLocator(sizes[:: 1 + len(sizes) // 6]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x:,.0f}" if x < 1e4 else f"{x / 1000:,.0f}k")
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    decades = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)) + 0.5)
    axes.set_ylim(10.0 ** decades[0], 10.0 ** decades[1])
    axes.legend(loc="upper left")


def write(o: argparse.Namespace, about: Mapping, path: Path) -> None:
    """Measure; the numbers in ``path``, the plot and the page beside it."""
    busy = {"load": os.getloadavg()[0], "processors": os.cpu_count()}
    measurement = {**about, **busy, "curves": measured(o)}
    path.write_text(json.dumps(measurement, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(measurement), encoding="utf-8")
    draw(measurement, path.with_suffix(".svg"))
