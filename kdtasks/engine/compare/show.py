"""A comparison on the screen and as a picture."""

import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kdtasks.engine.show import decimals, print_table


def show(result: Mapping, console: Console | None = None) -> None:
    """One row a config; then what was shared, and every number."""
    out = Table(
        title=f"{result['primary']}, {'higher' if result['higher_is_better'] else 'lower'} "
        "is better; "
        f"{', '.join(result['devices'])}"
    )
    out.add_column("config")
    for title in (
        "seeds",
        "teacher",
        "alone",
        "distilled",
        f"difference [{result['confidence']:.0%}]",
        "verdict",
        "s per run",
    ):
        out.add_column(title, justify="right")
    digits = decimals(result["primary"])
    for name, row in result["configs"].items():
        out.add_row(
            name,
            str(len(result["seeds"])),
            _teachers(row, digits),
            _spread(row["alone"], digits),
            _spread(row["distilled"], digits),
            _difference(row, digits),
            row["verdict"] or row["why"],
            f"{statistics.fmean(row['seconds']):.3g}",
        )
    print_table(out, 1, console)
    every = Table(title="every number")
    for title in ("config", "seed", "alone", "distilled", "difference"):
        every.add_column(title, justify="left" if title == "config" else "right")
    for name, row in result["configs"].items():
        for seed, a, b, d in zip(
            result["seeds"], row["alone"], row["distilled"], row["differences"]
        ):
            every.add_row(
                name,
                str(seed),
                *(f"{x:.{max(3, digits)}f}" for x in (a, b)),
                f"{d:+.{max(3, digits)}f}",
            )
    print_table(every, 2, console)
    further = Table(title="further metrics")
    for title in (
        "config",
        "metric",
        "alone",
        "distilled",
        f"difference [{result['confidence']:.0%}]",
    ):
        further.add_column(title, justify="left" if title in ("config", "metric") else "right")
    for name, row in result["configs"].items():
        for metric, found in row["metrics"].items():
            # those are in the JSON
            if metric != result["primary"] and not re.search(r"_on_\d+$", metric):
                digits = decimals(metric)
                further.add_row(
                    name,
                    metric,
                    _spread(found["alone"], digits),
                    _spread(found["distilled"], digits),
                    _difference(found, digits),
                )
    if further.row_count:
        print_table(further, 2, console)
    file = console.file if console else sys.stdout
    for entry in result["shared"]:
        seeds, users = " ".join(map(str, entry["seeds"])), ", ".join(entry["configs"])
        print(
            f"{entry['stage']}, seed {seeds}: trained once, for {users} ({entry['folder']})",
            file=file,
        )
    for note in result["notes"]:
        print(f"note: {note}", file=file)


def _teachers(row: Mapping, digits: int) -> str:
    return (
        ", ".join(
            Path(t).name if isinstance(t, str) else _spread(t, digits)
            for t in row["teachers"].values()
        )
        or "none"
    )


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.fmean(values):.{digits}f}" + (
        f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    )


def _difference(row: Mapping, digits: int) -> str:
    mean, *ends = (
        "" if row[key] is None else f"{row[key]:+.{digits}f}" for key in ("mean", "low", "high")
    )
    return mean + (f" [{', '.join(ends)}]" if all(ends) else "")


def plot(result: Mapping, path: str | Path) -> None:
    """A PNG: for each config a line a seed from alone to distilled; below them the mean difference
    and its interval.
    """
    import matplotlib.style  # slow to import; pyplot's global state is not touched
    from matplotlib.figure import Figure

    from kdtasks.engine.report import ALONE, DISTILLED, STYLE

    seeds, configs = result["seeds"], result["configs"]
    block = len(seeds) + 2
    with matplotlib.style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(9, 1.1 + 0.24 * block * len(configs)))
        axes = figure.add_subplot()
        labels = {}
        for k, (name, row) in enumerate(configs.items()):
            rows = [k * block + i for i in range(len(seeds))]
            bottom, control = k * block + len(seeds) + 0.2, statistics.fmean(row["alone"])
            axes.hlines(
                rows, row["alone"], row["distilled"], color="#AEB7C4", linewidth=1.2, zorder=1
            )
            axes.plot(
                row["alone"],
                rows,
                "o",
                color=ALONE,
                markerfacecolor="white",
                markersize=5,
                label=None if k else "alone",
            )
            axes.plot(
                row["distilled"],
                rows,
                "o",
                color=DISTILLED,
                markersize=5,
                label=None if k else "distilled",
            )
            axes.vlines(
                control,
                k * block - 0.4,
                bottom + 0.5,
                color=ALONE,
                linestyle=(0, (3, 2)),
                linewidth=1.2,
                label=None if k else "mean of alone",
            )
            if row["low"] is not None:
                axes.plot(
                    [control + row["low"], control + row["high"]],
                    [bottom] * 2,
                    color=DISTILLED,
                    linewidth=4,
                    alpha=0.35,
                    solid_capstyle="butt",
                    label=None if k else f"mean difference, {result['confidence']:.0%} interval",
                )
            axes.plot([control + row["mean"]], [bottom], "D", color=DISTILLED, markersize=7)
            difference = _difference(row, decimals(result["primary"]))
            axes.annotate(
                f"{difference}\n{row['verdict'] or row['why']}",
                (1.01, bottom),
                va="center",
                fontsize=9,
                xycoords=("axes fraction", "data"),
                annotation_clip=False,
            )
            labels |= {y: f"seed {seed}" for y, seed in zip(rows, seeds)} | {bottom: name}
        axes.set_yticks(list(labels), labels.values())
        for label in axes.get_yticklabels():
            label.set(
                **{"fontsize": 8}
                if label.get_text().startswith("seed ")
                else {"fontweight": "bold"}
            )
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(block * len(configs) - 0.6, -1)
        axes.set_xlabel(
            f"{result['primary']} ({'higher' if result['higher_is_better'] else 'lower'} is better)"
        )
        figure.legend(loc="outside upper center", ncols=4)
        figure.savefig(path, format="png", dpi=150)
