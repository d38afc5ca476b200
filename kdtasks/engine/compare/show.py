"""A comparison on the screen and as a picture."""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from kdtasks.core.stages import ALONE, DISTILLED
from kdtasks.engine.compare.short_names import with_short_names
from kdtasks.engine.report import CONTROL, STYLE, TAUGHT
from kdtasks.engine.show import print_table
from kdtasks.engine.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def show(result: Mapping, task: Task, console: Console | None = None) -> None:
    """One row a config, or of several one row an arm; then every number, further metrics, and what
    was shared.

    Args:
        result: the content of ``compare.json``.
        task: of the configs; says how its metrics are shown.
        console: see :func:`~kdtasks.engine.show.print_table`.
    """
    result = with_short_names(result)
    for number, table in enumerate(tables(result, task)):
        print_table(table, 2 if number else 1, console)
    file = console.file if console else sys.stdout
    for entry in result["shared"]:
        seeds, users = " ".join(map(str, entry["seeds"])), ", ".join(entry["configs"])
        print(
            f"{entry['stage']}, seed {seeds}: trained once, for {users} ({entry['folder']})",
            file=file,
        )
    for note in [*result["notes"], *disturbed(result)]:
        print(f"note: {note}", file=file)


def tables(result: Mapping, task: Task) -> list[Table]:
    """One row a config, or of several one row an arm; then every number, and further metrics if
    there are any.
    """
    several = len(result["configs"]) > 1
    first = (_arms_table if several else _summary_table)(result, task)
    further = [_stages_table(result, task), _metrics_table(result, task)]
    return [first, _numbers_table(result, task), *(table for table in further if table.row_count)]


def disturbed(result: Mapping) -> list[str]:
    """What makes seconds larger than they need be."""
    count = result.get("seconds", {}).get("side_by_side", 1)
    return (
        [f"up to {count} runs went side by side (--jobs), which disturbs their seconds"]
        if count > 1
        else []
    )


def _table(title: str, columns: Sequence[str], labels: int) -> Table:
    """A table whose first columns, ``labels`` of them, are texts."""
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < labels else "right")
    return table


def _summary_table(result: Mapping, task: Task) -> Table:
    better = "higher" if result["higher_is_better"] else "lower"
    table = _table(
        f"{result['primary']}, {better} is better; {', '.join(result['devices'])}",
        [
            "config",
            "seeds",
            "teacher",
            ALONE,
            DISTILLED,
            f"difference [{result['confidence']:.0%}]",
            "verdict",
            "s per run",
        ],
        1,
    )
    digits = task.decimals(result["primary"])
    for name, row in result["configs"].items():
        table.add_row(
            name,
            str(len(result["seeds"])),
            _teachers(row, digits),
            _spread(row[ALONE], digits),
            _spread(row[DISTILLED], digits),
            difference_text(row, digits),
            row["verdict"] or row["why"],
            f"{statistics.median(row['seconds']):.3g}",
        )
    return table


def _arms_table(result: Mapping, task: Task) -> Table:
    """The controls, then each config: beside alone, beside the reference, and what it costs."""
    better = "higher" if result["higher_is_better"] else "lower"
    reference, interval = result["reference"], f"[{result['confidence']:.0%}]"
    table = _table(
        f"{result['primary']}, {better} is better; seeds {' '.join(map(str, result['seeds']))}; "
        f"{', '.join(result['devices'])}",
        [
            "arm",
            "teacher",
            result["primary"],
            f"against {ALONE} {interval}",
            "verdict",
            f"against {reference} {interval}",
            "s a step",
            "training s",
        ],
        1,
    )
    digits = task.decimals(result["primary"])
    beside = result["configs"][reference]["cost"]["seconds"]
    for control in result["controls"]:
        name, values = _control_name(control, reference), _spread(control["values"], digits)
        table.add_row(name, "", values, "", "", "", *_costs(control["cost"]["seconds"], beside))
    for name, row in result["configs"].items():
        against = row["against_reference"]
        table.add_row(
            name,
            _teachers(row, digits),
            _spread(row[DISTILLED], digits),
            difference_text(row, digits),
            row["verdict"] or row["why"],
            "" if against is None else difference_text(against, digits),
            *_costs(row["cost"]["seconds"], beside),
        )
    return table


def _control_name(control: Mapping, reference: str) -> str:
    """Of the reference's control its stage; of another one also the configs that it belongs to."""
    users = control["configs"]
    if reference in users:
        return control["stage"]
    others = f" and {len(users) - 1} more" if len(users) > 1 else ""
    return f"{control['stage']} of {users[0]}{others}"


def _costs(seconds: Mapping, reference: Mapping) -> list[str]:
    """Medians over seeds, and how many times the reference's they are; a dash where a run did not
    record them.
    """
    cells = []
    for key in ("step", "training"):
        median, other = _median(seconds[key]), _median(reference[key])
        cell = "-" if median is None else f"{median:.3g}"
        if median and other and seconds is not reference:
            cell += f" (x{median / other:.3g})"
        cells.append(cell)
    return cells


def _median(values: Sequence[float | None]) -> float | None:
    """One run that had to wait for something else does not move it."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if len(present) == len(values) else None


def _numbers_table(result: Mapping, task: Task) -> Table:
    table = _table("every number", ["config", "seed", ALONE, DISTILLED, "difference"], 1)
    digits = task.decimals(result["primary"], 3)
    for name, row in result["configs"].items():
        columns = (result["seeds"], row[ALONE], row[DISTILLED], row["differences"])
        for seed, a, b, d in zip(*columns):
            table.add_row(name, str(seed), f"{a:.{digits}f}", f"{b:.{digits}f}", f"{d:+.{digits}f}")
    return table


def _stages_table(result: Mapping, task: Task) -> Table:
    """Of what a row does not compare, the primary metric of each seed."""
    primary = result["primary"]
    table = _table("further stages", ["config", "stage", primary, "seed by seed"], 2)
    digits = task.decimals(primary)
    for name, row in result["configs"].items():
        for stage, values in row.get("stages", {}).items():
            each = "  ".join(f"{value:.{digits}f}" for value in values)
            table.add_row(name, stage, _spread(values, digits), each)
    return table


def _metrics_table(result: Mapping, task: Task) -> Table:
    """Of what the task lists; the other metrics are in the JSON."""
    difference = f"difference [{result['confidence']:.0%}]"
    table = _table("further metrics", ["config", "metric", ALONE, DISTILLED, difference], 2)
    primary = result["primary"]
    for name, row in result["configs"].items():
        listed = [(m, m, row["metrics"][m]) for m in row["metrics"] if task.metric(m).listed]
        further = [entry for entry in listed if entry[0] != primary]
        if row.get("best"):
            further.append((f"best {primary} of several evaluations", primary, row["best"]))
        for title, metric, numbers in further:
            digits = task.decimals(metric)
            table.add_row(
                name,
                title,
                _spread(numbers[ALONE], digits),
                _spread(numbers[DISTILLED], digits),
                difference_text(numbers, digits),
            )
    return table


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


def difference_text(row: Mapping, digits: int) -> str:
    """The mean and, where there is one, its interval."""
    mean, *ends = (
        "" if row[key] is None else f"{row[key]:+.{digits}f}" for key in ("mean", "low", "high")
    )
    return mean + (f" [{', '.join(ends)}]" if all(ends) else "")


def plot(result: Mapping, task: Task, path: str | Path) -> None:
    """A PNG: for each config a line a seed from control to taught student; below them the mean
    difference and its interval.
    """
    import matplotlib.style  # slow to import; pyplot's global state is not touched
    from matplotlib.figure import Figure

    result = with_short_names(result)
    seeds, configs = result["seeds"], result["configs"]
    block = len(seeds) + 2
    better = "higher" if result["higher_is_better"] else "lower"
    with matplotlib.style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(9, 1.1 + 0.24 * block * len(configs)))
        axes = figure.add_subplot()
        labels = {}
        for k, (name, row) in enumerate(configs.items()):
            bottom = k * block + len(seeds) + 0.2
            _draw_seeds(axes, row, k * block, labelled=k == 0)
            _draw_mean(axes, result, row, k * block, bottom, labelled=k == 0)
            difference = difference_text(row, task.decimals(result["primary"]))
            axes.annotate(
                f"{difference}\n{row['verdict'] or row['why']}",
                (1.01, bottom),
                va="center",
                fontsize=9,
                xycoords=("axes fraction", "data"),
                annotation_clip=False,
            )
            labels |= {k * block + i: f"seed {seed}" for i, seed in enumerate(seeds)}
            labels[bottom] = name
        _label_rows(axes, labels)
        axes.set_ylim(block * len(configs) - 0.6, -1)
        axes.set_xlabel(f"{task.axis(result['primary'])} ({better} is better)")
        figure.legend(loc="outside upper center", ncols=4)
        figure.savefig(path, format="png", dpi=150)


def _draw_seeds(axes: "Axes", row: Mapping, top: int, labelled: bool) -> None:
    """A line a seed."""
    rows = [top + i for i in range(len(row[ALONE]))]
    axes.hlines(rows, row[ALONE], row[DISTILLED], color="#AEB7C4", linewidth=1.2, zorder=1)
    axes.plot(
        row[ALONE],
        rows,
        "o",
        color=CONTROL,
        markerfacecolor="white",
        markersize=5,
        label=ALONE if labelled else None,
    )
    axes.plot(
        row[DISTILLED], rows, "o", color=TAUGHT, markersize=5, label=DISTILLED if labelled else None
    )


def _draw_mean(
    axes: "Axes", result: Mapping, row: Mapping, top: int, bottom: float, labelled: bool
) -> None:
    """The mean of the control across all seeds, and the mean difference from there."""
    control = statistics.fmean(row[ALONE])
    axes.vlines(
        control,
        top - 0.4,
        bottom + 0.5,
        color=CONTROL,
        linestyle=(0, (3, 2)),
        linewidth=1.2,
        label=f"mean of {ALONE}" if labelled else "",
    )
    if row["low"] is not None:
        interval = f"mean difference, {result['confidence']:.0%} interval"
        axes.plot(
            [control + row["low"], control + row["high"]],
            [bottom] * 2,
            color=TAUGHT,
            linewidth=4,
            alpha=0.35,
            solid_capstyle="butt",
            label=interval if labelled else None,
        )
    axes.plot([control + row["mean"]], [bottom], "D", color=TAUGHT, markersize=7)


def _label_rows(axes: "Axes", labels: Mapping[float, str]) -> None:
    axes.set_yticks(list(labels), labels.values())
    for label in axes.get_yticklabels():
        if label.get_text().startswith("seed "):
            label.set_fontsize(8)
        else:
            label.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
