"""compare.json, read and written."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdtasks.core.files import write_atomically, write_text
from kdtasks.engine import checkpoint
from kdtasks.engine.compare.html_page import html_page
from kdtasks.engine.compare.merge import merge
from kdtasks.engine.compare.page import page
from kdtasks.engine.errors import ConfigError

_KEYS = {"task", "primary", "seeds", "configs", "controls"}


def read_comparisons(paths: Sequence[str | Path]) -> dict[str, dict]:
    """``{name: content}`` of files that ``compare.py`` has written: a file's name, of
    ``compare.json`` that of its folder.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is no comparison, or two have one name.
    """
    comparisons: dict[str, dict] = {}
    for path in map(Path, paths):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{str(path)!r} is no comparison: {error}") from error
        if not isinstance(content, dict) or not content.keys() >= _KEYS:
            missing = sorted(_KEYS - set(content if isinstance(content, dict) else ()))
            raise ConfigError(
                f"{str(path)!r} is no comparison of this version: it lacks {', '.join(missing)}; "
                "expected what compare.py writes as compare.json"
            )
        name = path.stem if path.stem != "compare" else path.resolve().parent.name
        if name in comparisons:
            raise ConfigError(f"two comparisons are called {name!r}: rename one of the files")
        comparisons[name] = content
    return comparisons


def write_merged(results: Sequence[Mapping], path: str | Path) -> None:
    """All of them as one, see :func:`~kdtasks.engine.compare.merge.merge`."""
    checkpoint.save_json(functools.reduce(merge, results), Path(path))


def write_page(results: Mapping[str, Mapping], path: str | Path) -> None:
    """A page for a browser where the file is called so (``.html``), else Markdown: see
    :func:`~kdtasks.engine.compare.html_page.html_page` and
    :func:`~kdtasks.engine.compare.page.page`.
    """
    is_html = Path(path).suffix in (".html", ".htm")
    text = html_page(results) if is_html else page(results)
    write_atomically(path, lambda temporary: write_text(temporary, text))
