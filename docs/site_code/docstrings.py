"""Docstrings for mkdocstrings: an extension of griffe that turns each into Markdown when read."""

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from restructured import markdown


class Markdown(griffe.Extension):
    """Converts every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value, site=True)
