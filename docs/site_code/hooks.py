"""What mkdocs does beside its plugins: formulas become MathML when the site is built, so that no
page loads a script; notebooks become pages; links that leave docs/ lead to pages of the site or to
copies of the files.
"""

import json
import os
import posixpath
import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# files outside of docs/ that are pages of the site
PAGES = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    **{
        f"configs/{path.parent.name}/README.md": f"results/{path.parent.name}.md"
        for path in ROOT.glob("configs/*/README.md")
    },
}
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[^)]*\))")
CODE = re.compile(r"(```.*?```)", re.DOTALL)
FENCE = re.compile(r"^( *)```math\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"\$`([^`]+)`\$")
MATH = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Adds PAGES, and a copy of every file outside of docs/ that a page links to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        uri = f"notebooks/{path.stem}.md"
        files.append(File.generated(config, uri, content=_notebook(path)))
    for page in list(files.documentation_pages()):
        for target in _outside(page):
            uri = f"files/{target}.txt"
            if target not in PAGES and files.get_file_from_path(uri) is None:
                files.append(_copy(ROOT / target, uri, config))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Formulas in forges' fences get dollars; links that leave docs/ lead to what the site has."""
    folder = posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match) -> str:
        target = _target(page.file, found[1])
        if target is None:
            return found[1]
        inside = target.removeprefix("docs/") if target.startswith("docs/") else None
        there = inside or PAGES.get(target) or f"files/{target}.txt"
        return posixpath.relpath(there, folder or ".")

    markdown = FENCE.sub(r"\1$$\n\2\1$$", INLINE.sub(r"$\1$", markdown))
    parts = CODE.split(markdown)
    return "".join(part if CODE.match(part) else LINK.sub(moved, part) for part in parts)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Formulas as MathML."""

    def mathml(found: re.Match) -> str:
        display = "block" if found[2] == "[" else "inline"
        formula = re.sub(r"\\arg *\\(min|max)", r"\\operatorname*{arg\\,\1}", unescape(found[3]))
        return convert(formula.strip(), display=display)

    return MATH.sub(mathml, html)


def _notebook(path: Path) -> str:
    """A notebook as a page: its texts and its code, and a link to the file."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    parts = [
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells, texts)
    ]
    title, _, rest = parts[0].partition("\n")
    return "\n\n".join([f"{title}\n\n[The notebook]({path.name}){rest}", *parts[1:]]) + "\n"


def _copy(path: Path, uri: str, config: Any) -> File:
    """A file as text; of a folder the names of what is in it."""
    if path.is_dir():
        return File.generated(
            config, uri, content="\n".join(sorted(p.name for p in path.iterdir()))
        )
    return File.generated(config, uri, abs_src_path=str(path))


def _outside(page: File) -> list[str]:
    text = "".join(part for part in CODE.split(page.content_string) if not CODE.match(part))
    targets = (_target(page, link) for link in LINK.findall(text))
    return [target for target in targets if target and not target.startswith("docs/")]


def _target(page: File, link: str) -> str | None:
    """A link's path from the root of the repository; None where it leads nowhere outside."""
    if re.match(r"[a-z]+:", link):
        return None
    source = next((key for key, value in PAGES.items() if value == page.src_uri), None)
    base = posixpath.dirname(source if source else f"docs/{page.src_uri}")
    target = posixpath.normpath(posixpath.join(base, link))
    inside = source is None and target.startswith("docs/")
    return None if inside or not os.path.exists(ROOT / target) else target
