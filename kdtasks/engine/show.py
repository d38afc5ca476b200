"""What a run shows on the screen: one progress bar with the losses, and a table at the end."""

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Bar:
    """One bar for a stage: iterations, the time left, the newest losses and metrics. Plain lines where there is no terminal.

    Args:
        title: the stage's name.
        total: iterations.
        quiet: show nothing (other ranks, tests).
    """

    def __init__(self, title: str, total: int, quiet: bool = False):
        self.title, self.total, self.quiet, self.values = title, total, quiet, {}
        self.progress = None
        self._next = 0.0
        if not quiet and sys.stderr.isatty():
            self.progress = Progress(TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(),
                                     TimeRemainingColumn(), TextColumn("{task.fields[values]}"), console=Console(stderr=True))
            self.task = self.progress.add_task(title, total=total, values="")

    def __enter__(self) -> "Bar":
        if self.progress:
            self.progress.start()
        return self

    def __exit__(self, *error) -> None:
        if self.progress:
            self.progress.stop()

    def __call__(self, iteration: int, total: int, values: Mapping[str, float], note: str = "") -> None:
        """Move to an iteration; new values replace older ones of the same name. A ``note`` is shown on a terminal only."""
        self.values.update(values)
        text = "  ".join(f"{name} {v:.3g}" if abs(v) < 10 else f"{name} {v:.1f}" for name, v in self.values.items())
        if self.progress:
            self.progress.update(self.task, completed=iteration, values=f"{note}  {text}" if note else text)
        elif not self.quiet and not note and (iteration >= self._next * total or iteration == total):
            self._next = iteration / total + 0.1                         # a line every tenth of the stage
            print(f"{self.title} {iteration}/{total}  {text}", file=sys.stderr, flush=True)


METRICS = 4                                  # that a line or a table shows; results.json and report.html have all


def same_test(values: Mapping, control: Mapping) -> bool:
    """Whether two stages were tested on the same classes: not where one came before classes that the other knows."""
    return values.get("class_counts") == control.get("class_counts")


def table(results: Mapping, console: Console | None = None) -> None:
    """One row a stage: the primary metric, its difference to the control, the first other metrics, seconds."""
    stages, primary = results["stages"], results["primary"]
    numbers = [name for stage in stages.values() for name, value in stage.items() if isinstance(value, int | float)]
    names = list(dict.fromkeys([primary, *(name for name in numbers if name != "seconds")]))[:METRICS]
    out = Table(title=f"{results['config']}, seed {results['seed']}, {results['device']}")
    out.add_column("stage")
    for name in [*names, "against alone", "seconds"]:
        out.add_column(name, justify="right")
    control = stages.get("alone", {})
    for stage, values in stages.items():
        compared = primary in control and stage not in ("alone", "teacher") and same_test(values, control)
        against = f"{values[primary] - control[primary]:+.2f}" if compared else ""
        out.add_row(stage, *(f"{values[n]:.2f}" if n in values else "" for n in names), against, f"{values['seconds']:.0f}")
    (console or Console()).print(out)
