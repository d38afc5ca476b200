"""Writes the parts of docs/ that are docstrings anew: ``python docs/site_code/from_docstrings.py``.

They stand between ``<!-- docstring of <dotted path> -->`` and ``<!-- end -->``.
"""

import ast
import inspect
import re
from pathlib import Path

from restructured import markdown

ROOT = Path(__file__).parents[2]
PART = re.compile(r"(<!-- docstring of ([\w.]+) -->\n).*?(\n<!-- end -->)", re.DOTALL)


def docstring(path: str) -> str:
    """Of a module, or of a class in a module; read, not imported.

    Raises:
        ValueError: there is none.
    """
    file = ROOT / f"{path.replace('.', '/')}.py"
    module, name = (path, "") if file.is_file() else path.rpartition(".")[::2]
    tree: ast.AST = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8"))
    if name:
        tree = next(node for node in ast.walk(tree) if getattr(node, "name", None) == name)
    text = ast.get_docstring(tree)
    if not text:
        raise ValueError(f"{path} has no docstring")
    return inspect.cleandoc(text)


def written(page: str) -> str:
    """A page with its docstrings as they are now; of a class without arguments and errors."""

    def part(found: re.Match) -> str:
        text = re.split(r"\n\n(?:Args|Raises|Attributes):\n", docstring(found[2]))[0]
        return f"{found[1]}\n{markdown(text, site=False)}\n{found[3]}"

    return PART.sub(part, page)


if __name__ == "__main__":
    for page in sorted((ROOT / "docs").rglob("*.md")):
        before = page.read_text("utf-8")
        page.write_text(written(before), "utf-8")
