"""Several configs' students beside those of one of them, the reference: plain KD, say."""

from collections.abc import Mapping, Sequence

from kdtasks.core.names import did_you_mean
from kdtasks.core.stages import DISTILLED
from kdtasks.engine.compare.short_names import short_names
from kdtasks.engine.compare.statistics import CONFIDENCE, paired
from kdtasks.engine.errors import ConfigError


def reference_notes(reference: str, others: Sequence[str]) -> list[str]:
    """How to read the differences to it; ``others``: the configs that have another control."""
    notes = [
        f"against {reference}: the difference to its student of the same seed, with Student's "
        f"{CONFIDENCE:.0%} interval on the paired differences, not corrected for the "
        "number of configs"
    ]
    if others:
        notes.append(
            f"{', '.join(others)}: another control than {reference} has, so data, network, "
            "budget or schedule differ, too, and the difference between the two students is not "
            "the method's alone"
        )
    return notes


def beside(
    rows: Mapping[str, Mapping], reference: str | None, higher_is_better: bool
) -> dict[str, dict | None]:
    """``{config: the differences to the reference's student of the same seed}``; None for the
    reference itself, and for all where there is none.
    """
    return {
        name: None
        if reference in (None, name)
        else paired(row[DISTILLED], rows[reference][DISTILLED], higher_is_better)
        for name, row in rows.items()
    }


def with_reference(result: Mapping, reference: str) -> dict:
    """The content of ``compare.json`` with another of its configs as the reference; its short name,
    as the tables have it, will do.

    Raises:
        ConfigError: no config of it is called so, or there is only one.
    """
    rows = result["configs"]
    whole = {short: name for name, short in short_names(list(rows)).items()}
    reference = whole.get(reference, reference)
    if reference not in rows or len(rows) == 1:
        raise ConfigError(
            f"expected one of several configs as the reference, got {reference!r}; "
            + did_you_mean(reference, [*whole, *rows])
        )
    notes = reference_notes(result["reference"], _of_another_control(result, result["reference"]))
    kept = [note for note in result["notes"] if note not in notes]
    against = beside(rows, reference, result["higher_is_better"])
    return {
        **result,
        "reference": reference,
        "configs": {
            name: {**row, "against_reference": against[name]} for name, row in rows.items()
        },
        "notes": [*kept, *reference_notes(reference, _of_another_control(result, reference))],
    }


def _of_another_control(result: Mapping, reference: str) -> list[str]:
    """The configs that do not share the reference's control."""
    shared = {
        name
        for control in result["controls"]
        if reference in control["configs"]
        for name in control["configs"]
    }
    return [name for name in result["configs"] if name not in shared]
