"""What a run shows on the screen: one progress bar with the losses, and a table at the end."""

import sys
from collections.abc import Collection, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kdtasks.core.arms import Arms
from kdtasks.core.stages import ALONE
from kdtasks.engine.task import Task


class Bar:
    """One bar for a stage: iterations, the time left, the newest losses and metrics. Plain lines
    where there is no terminal.

    Args:
        title: the stage's name.
        total: iterations.
        quiet: show nothing (other ranks, tests).
    """

    def __init__(self, title: str, total: int, quiet: bool = False):
        self.title, self.total, self.quiet, self.values = title, total, quiet, {}
        self.progress = None
        self._next, self._said = 0.0, ""
        if not quiet and sys.stderr.isatty():
            self.progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
                console=Console(stderr=True),
            )
            self.task = self.progress.add_task(title, total=total, values="")

    def __enter__(self) -> "Bar":
        if self.progress:
            self.progress.start()
        return self

    def __exit__(self, *error) -> None:
        if self.progress:
            self.progress.stop()

    def __call__(
        self, iteration: int, total: int, values: Mapping[str, float], note: str = ""
    ) -> None:
        """Move to an iteration; new values replace older ones of the same name. A ``note`` is shown
        on a terminal only.
        """
        self.values.update(values)
        text = "  ".join(
            f"{name} {v:.3g}" if abs(v) < 10 else f"{name} {v:.1f}"
            for name, v in self.values.items()
        )
        if self.progress:
            self.progress.update(
                self.task, completed=iteration, values=f"{note}  {text}" if note else text
            )
        elif (
            not self.quiet and not note and (iteration >= self._next * total or iteration == total)
        ):
            # a line every tenth of the stage
            self._next = iteration / max(total, 1) + 0.1
            line = f"{self.title} {iteration}/{total}  {text}"
            if line != self._said:
                print(line, file=sys.stderr, flush=True)
            self._said = line


UNLIMITED = 10_000  # columns of a screen that is a file
# that a line or a table shows; results.json and report.html have all
METRICS = 4


def print_table(table: Table, labels: int = 1, console: Console | None = None) -> None:
    """A table in which no name is broken: at its own width, or a line a number where the terminal
    has less.

    Args:
        table: of texts.
        labels: how many of its first columns say what a row is about.
        console: None: standard output, which is as wide as need be where it is a file or a pipe.
    """
    console = console or Console(width=None if sys.stdout.isatty() else UNLIMITED)
    whole = console.options.update(width=UNLIMITED)
    if console.measure(table, options=whole).maximum <= console.width:
        console.print(table)
        return
    print(table.title, file=console.file)
    for row in zip(*(column.cells for column in table.columns)):
        for column, value in list(zip(table.columns, row))[labels:]:
            if value:
                print(" ".join(row[:labels]), f"{column.header}: {value}", file=console.file)
    if table.caption:
        print(table.caption, file=console.file)


def table(
    results: Mapping,
    parts: Arms,
    task: Task,
    way: Collection[str] = (),
    console: Console | None = None,
) -> None:
    """One row a stage: the primary metric, its difference to the control, the first other metrics,
    seconds.

    Args:
        results: of results.json.
        parts: the arms of the run.
        task: says which metrics are listed, and how.
        way: stages on the way to others, which are counted and not shown, unless there is nothing
            else.
        console: see :func:`print_table`.
    """
    stages, primary = results["stages"], results["primary"]
    control = parts.control.name if parts.control else ALONE
    compared = {stage.name for stage in parts.compared}
    alone = stages.get(control, {}).get(primary)
    names = _columns(stages, primary, task)
    hidden = [name for name in stages if name in way]
    hidden = hidden if len(hidden) < len(stages) else []
    out = Table(
        title=f"{results['config']}, seed {results['seed']}, {results['device']}",
        caption=f"and {len(hidden)} stages on the way there" if hidden else None,
    )
    for name in ["stage", *names, f"against {control}", "seconds"]:
        out.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for stage, values in stages.items():
        if stage in hidden:
            continue
        cells = [f"{values[n]:.{task.decimals(n)}f}" if n in values else "" for n in names]
        gain = ""
        if alone is not None and stage in compared:
            gain = f"{values[primary] - alone:+.{task.decimals(primary)}f}"
        out.add_row(stage, *cells, gain, f"{values['seconds']:.0f}")
    print_table(out, 1, console)


def _columns(stages: Mapping[str, Mapping], primary: str, task: Task) -> list[str]:
    """The metrics that a table has room for, the primary one first."""
    names = {primary: None}
    for values in stages.values():
        for name, value in values.items():
            if isinstance(value, int | float) and name != "seconds" and task.metric(name).listed:
                names[name] = None
    return list(names)[:METRICS]
