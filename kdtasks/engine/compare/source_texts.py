"""What is said of files, code, versions and data that differ within a comparison."""

from collections.abc import Mapping, Sequence

from kdtasks.engine.errors import ConfigError

# what is another experiment where it differs; of the rest a note says that it may be
_WEIGHTY = ("file ", "data ")
_CONTENT = ".content"


def merged_sources(name: str, first: Mapping, other: Mapping) -> tuple[dict, list[str]]:
    """The sources of two rows of one config together, and what is to be said of them.

    Raises:
        ConfigError: other files of weights, or other data.
    """
    common = [what for what in first if what in other and first[what] != other[what]]
    weighty = [what for what in common if what.startswith(_WEIGHTY) and _CONTENT not in what]
    if weighty:
        raise ConfigError(
            f"comparisons of other weights or data: of {name}, {', '.join(map(_said, weighty))} "
            "differ"
        )
    together = {
        what: sorted({*first.get(what, ()), *other.get(what, ())}) for what in {**first, **other}
    }
    return together, note(name, common, "not the same for all of its numbers")


def note(name: str, sources: Sequence[str], how: str) -> list[str]:
    """One sentence about a row's sources; none without any."""
    said = list(dict.fromkeys(map(_said, sources)))
    return [f"{name}: {', '.join(said)}: {how}"] if said else []


def _said(what: str) -> str:
    """What a sentence calls a source."""
    kind, _, name = what.partition(" ")
    if kind == "data":
        part, _, fact = name.partition(" ")[2].partition(".")
        return f"the {'pixels' if fact == 'content' else fact} of the {part} data"
    return {"file": f"the file {name!r}", "code": f"the code of {name}"}.get(
        kind, f"{name}'s version"
    )
