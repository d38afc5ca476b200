"""Comparisons of the same configs over different seeds, run apart, as one."""

from collections.abc import Callable, Mapping, Sequence

from kdtasks.core.stages import ALONE, DISTILLED
from kdtasks.engine.compare.reference import beside
from kdtasks.engine.compare.source_texts import merged_sources
from kdtasks.engine.compare.statistics import summary, verdict
from kdtasks.engine.errors import ConfigError

_ARMS = (ALONE, DISTILLED)
# of a comparison, what two parts of one have in common
_SAME = ("primary", "higher_is_better", "confidence", "reference", "task")


def merge(first: Mapping, second: Mapping) -> dict:
    """The content of ``compare.json`` of two comparisons together.

    Each seed's students stay paired with the control that was trained beside them; means,
    intervals and verdicts are those of all seeds. Where each part has trained a teacher of its own,
    both stand in the row, and a note says which seeds were trained apart.

    Args:
        first, second: contents of ``compare.json``.

    Raises:
        ConfigError: other configs, another reference or metric, other weights or data, or a seed
            that both have.
    """
    for key in _SAME:
        if first.get(key) != second.get(key):
            raise ConfigError(
                f"comparisons of another {key}: {first.get(key)!r} and {second.get(key)!r}"
            )
    common = sorted(set(first["seeds"]) & set(second["seeds"]))
    if common:
        raise ConfigError(f"both comparisons have seed {common[0]}: expected different seeds")
    expected, other = _identities(first), _identities(second)
    if expected != other:
        different = sorted(
            name for name in expected | other if expected.get(name) != other.get(name)
        )
        raise ConfigError(
            f"comparisons of other configs, or of one that has changed: {', '.join(different)}"
        )
    seeds = [*first["seeds"], *second["seeds"]]
    order = sorted(range(len(seeds)), key=seeds.__getitem__)

    def join(values: Sequence, others: Sequence) -> list:
        """Values of each seed, in the order of all seeds."""
        together = [*values, *others]
        return [together[i] for i in order]

    better = first["higher_is_better"]
    rows = {
        name: _row(row, second["configs"][name], join, better)
        for name, row in first["configs"].items()
    }
    sources = {
        name: merged_sources(
            name, row.get("sources", {}), second["configs"][name].get("sources", {})
        )
        for name, row in first["configs"].items()
    }
    rows = {
        name: {**row, **({"sources": sources[name][0]} if sources[name][0] else {})}
        for name, row in rows.items()
    }
    said = [note for _, notes in sources.values() for note in notes]
    against = beside(rows, first["reference"], better)
    return {
        **first,
        "seeds": sorted(seeds),
        "devices": sorted({*first["devices"], *second["devices"]}),
        "seconds": {"side_by_side": max(c["seconds"]["side_by_side"] for c in (first, second))},
        "controls": _controls(first, second, join),
        "configs": {
            name: {**row, "against_reference": against[name]} for name, row in rows.items()
        },
        "shared": [*first["shared"], *second["shared"]],
        "parts": [*_parts(first), *_parts(second)],
        "notes": list(dict.fromkeys([*first["notes"], *second["notes"], *said])),
    }


def _identities(result: Mapping) -> dict[str, str]:
    """``{config: its folder's name}``, which has the hash of all that matters to it."""
    return {
        name: row["folders"][0].replace("\\", "/").rpartition("/")[0]
        for name, row in result["configs"].items()
    }


def _parts(result: Mapping) -> list[dict]:
    part = {"seeds": result["seeds"], "devices": result["devices"]}
    return result.get("parts", [part])


def _row(first: Mapping, other: Mapping, join: Callable, higher_is_better: bool) -> dict:
    """A config's row, of all seeds."""
    alone, taught = join(first[ALONE], other[ALONE]), join(first[DISTILLED], other[DISTILLED])
    differences = join(first["differences"], other["differences"])
    word, why = verdict(differences, higher_is_better)
    both = (metric for metric in first["metrics"] if metric in other["metrics"])
    return {
        "stage": first["stage"],
        "teachers": _teachers(first["teachers"], other["teachers"]),
        **summary(alone, taught),
        "differences": differences,
        "verdict": word,
        "why": why,
        "metrics": {
            metric: summary(
                *(join(*(row["metrics"][metric][arm] for row in (first, other))) for arm in _ARMS)
            )
            for metric in both
        },
        "stages": {
            name: join(values, other["stages"][name])
            for name, values in first.get("stages", {}).items()
            if name in other.get("stages", {})
        },
        "best": _best(first.get("best"), other.get("best"), join),
        **{key: join(first[key], other[key]) for key in ("seconds", "folders", "controls")},
        "cost": _cost(first["cost"], other["cost"], join),
    }


def _best(first: Mapping | None, other: Mapping | None, join: Callable) -> dict | None:
    if first is None or other is None:
        return None
    return summary(*(join(first[arm], other[arm]) for arm in _ARMS))


def _cost(first: Mapping, other: Mapping, join: Callable) -> dict:
    seconds = {key: join(first["seconds"][key], other["seconds"][key]) for key in first["seconds"]}
    return {"stages": first["stages"], "seconds": seconds}


def _teachers(first: Mapping, second: Mapping) -> dict:
    """``{teacher: what it reaches}``, of each training of it; a file's name where it was given."""
    return {
        name: values if values == second[name] else [*values, *second[name]]
        for name, values in first.items()
    }


def _controls(first: Mapping, second: Mapping, join: Callable) -> list[dict]:
    """Those that have the same stage and configs in both."""
    by_name = {(row["stage"], *row["configs"]): row for row in second["controls"]}
    rows = []
    for row in first["controls"]:
        other = by_name.get((row["stage"], *row["configs"]))
        if other is None:
            raise ConfigError(
                f"the control {row['stage']!r} serves {', '.join(row['configs'])} in one of the "
                "comparisons, and others in the other"
            )
        rows.append(
            {
                "stage": row["stage"],
                "configs": row["configs"],
                "values": join(row["values"], other["values"]),
                "cost": _cost(row["cost"], other["cost"], join),
            }
        )
    return rows
