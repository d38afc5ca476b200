"""A comparison with its configs' names without the words that all of them begin and end with."""

from collections.abc import Mapping, Sequence


def short_names(names: Sequence[str]) -> dict[str, str]:
    """``{name: what is not common to all of it, a word at least}``; words stand between ``_``.

    ``classification_kd_digits`` and ``classification_rkd_kd_digits`` are ``kd`` and ``rkd_kd``.
    """
    first, last = _common_ends(names)
    return {name: name[len(first) : len(name) - len(last)] for name in names}


def with_short_names(result: Mapping) -> dict:
    """The content of ``compare.json`` with short names, and a note that says how the configs are
    called.
    """
    names = short_names(list(result["configs"]))
    first, last = _common_ends(list(names))
    if not first + last:
        return dict(result)

    def listed(row: Mapping) -> dict:
        return {**row, "configs": [names[name] for name in row["configs"]]}

    return {
        **result,
        "reference": names.get(result["reference"]),
        "configs": {names[name]: row for name, row in result["configs"].items()},
        "controls": [listed(row) for row in result["controls"]],
        "shared": [listed(row) for row in result["shared"]],
        "notes": [
            f"a config's whole name is {first}…{last}",
            *(_shortened(note, names) for note in result["notes"]),
        ],
    }


def _common_ends(names: Sequence[str]) -> tuple[str, str]:
    """What all names begin with, and what they end with, in whole words."""
    words = [name.split("_") for name in names]
    spare = min(map(len, words)) - 1 if len(words) > 1 else 0
    first = _common(words, spare)
    last = _common([part[::-1] for part in words], spare - first)
    start, end = words[0][:first], words[0][len(words[0]) - last :]
    return "".join(f"{word}_" for word in start), "".join(f"_{word}" for word in end)


def _common(words: Sequence[Sequence[str]], most: int) -> int:
    """How many of their first words are the same, ``most`` at most."""
    count = 0
    while count < most and len({part[count] for part in words}) == 1:
        count += 1
    return count


def _shortened(note: str, names: Mapping[str, str]) -> str:
    for name in sorted(names, key=len, reverse=True):
        note = note.replace(name, names[name])
    return note
