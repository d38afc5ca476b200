"""The command line of tools/benchmark.py: the rows, the table, the figures as JSON."""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table

from benchmarks import detection, distillation, engine, incremental, measure, metric_learning
from benchmarks.measure import Line

ROWS = {row.__name__: row for row in (
    distillation.kd_step, distillation.feature_step, distillation.cached_step, engine.runner, detection.adl,
    detection.detector_step, metric_learning.rkd_angle, metric_learning.darkrank, incremental.lwm, incremental.gd_sampling,
    incremental.avalanche_lwf, engine.imports)}


def machine(o) -> dict:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((row.split(": ", 1)[1] for row in text.splitlines() if row.startswith("model name")), platform.machine())
    return {"machine": torch.cuda.get_device_name() if o.device == "cuda" else cpu, "threads": torch.get_num_threads(),
            "python": platform.python_version()} | {
        name: importlib.metadata.version(package) if importlib.util.find_spec(name) else "not installed"
        for name, package in (("torch",) * 2, ("mmengine",) * 2, ("torchdistill",) * 2, ("avalanche", "avalanche-lib"))}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=measure.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
