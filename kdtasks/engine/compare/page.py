"""Comparisons as a page of Markdown, no number of which is typed by hand."""

import itertools
from collections.abc import Mapping

from rich.table import Table

from kdtasks.engine.compare.short_names import with_short_names
from kdtasks.engine.compare.show import tables
from kdtasks.engine.task import load_task


def page(results: Mapping[str, Mapping]) -> str:
    """The tables of some comparisons, one section each.

    Args:
        results: ``{title: content of compare.json}``.
    """
    parts = [
        "# Results",
        "Each student beside its control: the same student without the teacher, of the same seed, "
        "first weights, data, order and number of steps. ± is the standard deviation over seeds; "
        "metrics are those after the last step.",
    ]
    for title, result in zip(results, map(with_short_names, results.values())):
        first, *further = tables(result, load_task(result["task"]))
        parts += [f"## {title}", f"{first.title}", markdown(first)]
        parts += [f"- {note}" for note in result["notes"]]
        for part in result.get("parts", []):
            seeds = " ".join(map(str, part["seeds"]))
            parts.append(f"- seeds {seeds} were trained together, on {', '.join(part['devices'])}")
        for table in further:
            summary = f'<details markdown="1"><summary>{table.title}</summary>'
            parts.append(f"{summary}\n\n{markdown(table)}\n\n</details>")
    text = parts[0]
    for before, part in itertools.pairwise(parts):
        is_list = part.startswith("- ") and before.startswith("- ")
        text += ("\n" if is_list else "\n\n") + part
    return text + "\n"


def markdown(table: Table) -> str:
    """A table in GitHub's form; texts left, numbers right as on the screen."""
    rows = zip(*(column.cells for column in table.columns))
    lines = [
        [str(column.header) for column in table.columns],
        ["---:" if column.justify == "right" else "---" for column in table.columns],
        *([str(cell).replace("|", "\\|") for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
