"""Every key of a config in one table: ``python -m kdtasks.engine.key_table > docs/config.md``."""

import html
from collections.abc import Iterator, Mapping

from kdtasks.engine.config_keys import (
    CARD_KEYS,
    DATA_KEYS,
    FURTHER_MODEL_KEYS,
    KEYS,
    LOSS_KEYS,
    MODEL_KEYS,
    NEEDED,
    OPTIMIZER_KEYS,
    STAGE_KEYS,
    TEACHER_KEYS,
)

HEAD = """# Every key of a config

A config is a Python program: opening one, with any tool, runs it. Its names that begin with `_` are its own; every other one is
a key of this table, or an error that names the nearest. `type` is the dotted path of a class or a function, and the other keys
beside it are its arguments. `--cfg-options` changes a key by its dotted name, as in `data.batch_size=32`.

| key | default | meaning |
|---|---|---|
"""
# what stands in which key of KEYS, and its names from the top
INSIDE = {
    "student": ("student", MODEL_KEYS),
    "teacher": ("teacher", TEACHER_KEYS),
    "models": ("models.<name>", FURTHER_MODEL_KEYS),
    "peers": ("peers.<k>", MODEL_KEYS),
    "optimizer": ("optimizer", OPTIMIZER_KEYS),
    "losses": ("losses.<name>", LOSS_KEYS),
    "stages": ("stages.<k>", STAGE_KEYS),
    "data": ("data", DATA_KEYS),
    "card": ("card", CARD_KEYS),
}
NEEDED_INSIDE = ("losses.<name>.of", "stages.<k>.name", "data.train", "data.test")


def key_table() -> str:
    """The page as Markdown."""
    return HEAD + "".join(
        f"| `{key}` | {default} | {html.escape(text, quote=False)} |\n"
        for key, default, text in _rows()
    )


def _rows() -> Iterator[tuple[str, str, str]]:
    for key, (meaning, default) in KEYS.items():
        yield key, "needed" if key in NEEDED else _code(default), meaning
        prefix, keys = INSIDE.get(key, ("", {}))
        for name, entry in keys.items():
            text, value = entry if isinstance(entry, tuple) else (entry, None)
            full = f"{prefix}.{name}"
            yield full, "needed" if full in NEEDED_INSIDE else _code(value), text


def _code(default: object) -> str:
    if isinstance(default, Mapping) and "type" in default:
        return f"`dict(type='{default['type']}')`"
    return "" if default is None else f"`{default!r}`"


if __name__ == "__main__":
    print(key_table(), end="")
