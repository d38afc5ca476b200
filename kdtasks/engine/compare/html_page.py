"""Comparisons as a page for a browser, in one file that needs nothing else."""

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from kdtasks.engine.compare.short_names import with_short_names
from kdtasks.engine.compare.show import difference_text, disturbed, tables
from kdtasks.engine.report.page import fill
from kdtasks.engine.task import load_task

# per cent of the width that is left at either side of what is drawn
_MARGIN = 3


def html_page(results: Mapping[str, Mapping]) -> str:
    """Tables, notes and drawn intervals of some comparisons, one section each.

    Args:
        results: ``{title: content of compare.json}``.
    """
    sections = [_section(title, with_short_names(result)) for title, result in results.items()]
    return fill(Path(__file__).parent / "compare.html", sections=sections)


def _section(title: str, result: Mapping) -> dict:
    task = load_task(result["task"])
    first, *further = tables(result, task)
    bars = _bars(result, task.decimals(result["primary"]))
    rows = [(cells, bars.get(cells[0])) for cells in _cells(first)]
    return {
        "title": title,
        "about": str(first.title),
        "confidence": f"{result['confidence']:.0%}",
        "heads": _heads(first),
        "rows": rows,
        "notes": [*result["notes"], *disturbed(result)],
        "further": [
            {"title": str(table.title), "heads": _heads(table), "rows": _cells(table)}
            for table in further
        ],
    }


def _heads(table: Table) -> list[tuple[str, bool]]:
    """Of each column the name, and whether there are numbers in it."""
    return [
        (str(column.header), column.justify == "right" and column.header != "verdict")
        for column in table.columns
    ]


def _cells(table: Table) -> list[list[str]]:
    return [list(map(str, row)) for row in zip(*(column.cells for column in table.columns))]


def _bars(result: Mapping, digits: int) -> dict[str, dict]:
    """``{config: what is drawn of its difference}``, in per cent of one scale for all."""
    rows = result["configs"]
    values = [0.0]
    for row in rows.values():
        values += [
            *row["differences"],
            *(row[end] for end in ("low", "high") if row[end] is not None),
        ]
    least, span = min(values), max(values) - min(values) or 1.0

    def place(value: float | None) -> float | None:
        if value is None:
            return None
        return round(_MARGIN + (100 - 2 * _MARGIN) * (value - least) / span, 2)

    return {
        name: {
            "text": difference_text(row, digits),
            "zero": place(0.0),
            "seeds": [place(value) for value in row["differences"]],
            **{key: place(row[key]) for key in ("mean", "low", "high")},
        }
        for name, row in rows.items()
    }
