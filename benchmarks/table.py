"""What the library costs: each step through kdtasks against the same step written by hand.

A row is a function ``row(o) -> iterator of Line``; ``o`` holds the command's options (device,
rounds, threads, models, batch). It first shows that its variants do the same work (the first step's
loss to 6 digits, its gradients), then measures them in rounds: every variant once a round, in an
order drawn anew, each on objects of its own that were equal at the start. A figure is the median
over rounds of the ratio (or difference) *within* a round; its interval is the median's by binomial
order statistics: at least 95 % from 6 rounds on, whatever the distribution of the noise. A bar
fails only if the whole interval lies above it: by chance in one run of 40 if the truth is just on
the bar.

The clock is the CPU time of this process with all its threads (one, unless ``--threads`` says
otherwise), which a busy machine disturbs less than the wall clock; on CUDA the wall clock between
two ``torch.cuda.synchronize()``. The bars are meant for steps of at least 50 ms; if a step takes
less, a round runs as many as fill 50 ms: give a larger ``--batch``.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

ROWS = {
    "kd_step": "distillation",
    "feature_step": "distillation",
    "cached_step": "distillation",
    "dist_step": "losses",
    "crd_step": "losses",
    "bss_attack": "general",
    "cached_features": "representation",
    "quantize_weights": "quantization",
    "runner": "engine",
    "adl": "detection",
    "detector_step": "detection",
    "rkd_angle": "metric_learning",
    "darkrank": "metric_learning",
    "pml_loop": "metric_learning",
    "lwm": "incremental",
    "gd_sampling": "incremental",
    "avalanche_lwf": "incremental",
    "augmentation": "images",
    "dml_step": "general",
    "imports": "engine",
    "start": "commands",
    "whole_run": "commands",
    "compare_jobs": "commands",
}
LONG = ("whole_run", "compare_jobs")  # minutes: only where --rows names them


def machine(o) -> dict:
    """What the figures were taken on."""
    import torch

    text = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    )
    cpu = next(
        (row.split(": ", 1)[1] for row in text.splitlines() if row.startswith("model name")),
        platform.machine(),
    )
    return {
        "machine": torch.cuda.get_device_name() if o.device == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    } | {
        name: importlib.metadata.version(package)
        if importlib.util.find_spec(name)
        else "not installed"
        for name, package in (
            ("torch",) * 2,
            ("mmengine",) * 2,
            ("torchdistill",) * 2,
            ("avalanche", "avalanche-lib"),
        )
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table; 1 where a bar fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=[row for row in ROWS if row not in LONG],
        metavar="ROW",
        help=f"{', '.join(ROWS)}; all but {' and '.join(LONG)} by default",
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument(
        "--json", type=Path, help="write the figures, and every single number, here"
    )
    parser.add_argument(
        "--models",
        nargs=2,
        default=("resnet56", "resnet20"),
        help="of kdtasks.classification.models",
    )
    parser.add_argument(
        "--curves",
        type=Path,
        metavar="FILE.json",
        help="measure how the cost grows instead: with batch, lists, classes, pool, processes, "
        "images; numbers here, plot (.svg) and page (.md) beside",
    )
    parser.add_argument("--batch", type=int, help="images in a step; 64 on a CPU, 1024 on CUDA")
    o = parser.parse_args(arguments)
    o.batch = o.batch or (1024 if o.device == "cuda" else 64)
    import torch
    from rich.console import Console
    from rich.table import Column, Table

    torch.set_num_threads(o.threads)
    if o.curves:
        from benchmarks.curves import write

        write(o, {**machine(o), "rounds": o.rounds}, o.curves)
        return 0
    lines = []
    for name in o.rows:
        print(f"{name} …", file=sys.stderr, flush=True)
        lines += getattr(importlib.import_module(f"benchmarks.{ROWS[name]}"), name)(o)
    about = machine(o) | {"models": " -> ".join(o.models), "batch": o.batch, "rounds": o.rounds}
    table = Table(
        Column("what", no_wrap=True),
        "figure",
        "95 % interval",
        "bar",
        "ok",
        "note",
        title_justify="left",
        title=", ".join(f"{name} {value}" for name, value in about.items()),
    )
    for x in lines:
        figures = (
            (f"{x.value:.3f} {x.unit}", "{:.3f} … {:.3f}".format(*x.interval))
            if x.samples
            else ("", "")
        )
        table.add_row(
            x.what,
            *figures,
            f"≤ {x.bar:g}" if x.bar else "",
            {True: "ok", False: "FAILS", None: ""}[x.ok],
            x.note,
        )
    Console(width=None if sys.stdout.isatty() else 128).print(table)
    if o.json:
        o.json.write_text(
            json.dumps({**about, "lines": [vars(x) for x in lines]}, indent=2) + "\n",
            encoding="utf-8",
        )
    return int(any(x.ok is False for x in lines))
