"""Docstrings of this library, which are reStructuredText, as Markdown."""

import re

ROLE = re.compile(r":(?:func|class|mod|meth|attr|data):`(~)?\.?([^`<]+)`")
MATH = re.compile(r"^( *)\.\. math::(.*(?:\n(?: *\n)*\1 +\S.*)*)", re.MULTILINE)
TABLE = re.compile(r"^( *)=+(?: +=+)+\n((?:.*\n)+?)\1=+(?: +=+)+ *$", re.MULTILINE)
DEFINITIONS = re.compile(r"(?:^``.*``$\n(?: {4}.*\n)+(?:\n(?=``.*``$))?)+", re.MULTILINE)


def markdown(text: str, site: bool) -> str:
    """A docstring as Markdown.

    Args:
        text: the docstring, without its indentation.
        site: as the site has it, with names of the library as links and formulas between dollars.
            False: as a page in the repository has it, with formulas in forges' own fences, in
            which no backslash is lost.
    """
    text = DEFINITIONS.sub(_list, text)
    text = TABLE.sub(lambda found: _table(found, site), text)
    text = MATH.sub(lambda found: _display(found, site), text)
    text = re.sub(r":math:`([^`]+)`", lambda found: _inline(found[1], site), text)
    text = ROLE.sub(lambda found: _name(found, site), text)
    text = re.sub(r"(?<!`)``([^`]+)``(?!`)", r"`\1`", text)
    text = re.sub(r" ?::\n(?=\n+ +\S)", ":\n", text)
    if re.search(r"^\d\. ", text, re.MULTILINE):  # Markdown's lists go on at four columns
        text = re.sub(r"^   (?= *\S)", "    ", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def formulas(block: str) -> list[str]:
    """The formulas of a ``math`` directive, one a line of the page, without what aligns them."""
    if r"\begin{cases}" not in block:
        block = block.replace("\\\\\n", "\n\n")
    found = []
    for part in re.split(r"\n *\n", block):
        formula = " ".join(part.split())
        if r"\begin{cases}" not in formula:
            formula = formula.replace("&&", r"\qquad").replace("&", "")
        if formula:
            found.append(" ".join(formula.split()))
    return found


def _list(found: re.Match) -> str:
    """Terms with their explanations below as a list."""
    lines = re.sub(r"\n+(?=``)", "\n", found[0])
    joined = re.sub(r"^(``.*``)\n {4}", r"- \1: ", lines, flags=re.MULTILINE)
    return joined.replace("\n    ", "\n  ")


def _display(found: re.Match, site: bool) -> str:
    indent, (start, end) = found[1], ("$$", "$$") if site else ("```math", "```")
    blocks = [
        f"{indent}{start}\n{indent}{formula}\n{indent}{end}" for formula in formulas(found[2])
    ]
    return "\n" + "\n\n".join(blocks) + "\n"


def _inline(formula: str, site: bool) -> str:
    formula = " ".join(formula.split())
    return f"${formula}$" if site else f"$`{formula}`$"


def _name(found: re.Match, site: bool) -> str:
    path = found[2].strip()
    shown = path.rpartition(".")[2] if found[1] else path
    if not (site and path.startswith("kdtasks.")):
        return f"`{shown}`"
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'


def _table(found: re.Match, site: bool) -> str:
    """A simple table as one with bars; a row whose first cell is empty goes on with that above."""
    indent, bars = found[1], found[0].splitlines()[0]
    starts = [bar.start() for bar in re.finditer("=+", bars)]
    rows: list[list[str]] = []
    for line in found[2].splitlines():
        if not line.strip("= "):
            continue
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None])]
        if rows and not cells[0]:
            rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells)]
        else:
            rows.append(cells)
    body = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    has_head = re.search(r"^[ =]+$", found[2], re.MULTILINE) is not None
    head = body.pop(0) if has_head else "| " * len(starts) + "|"
    table = [head, "|---" * len(starts) + "|", *body]
    return "\n".join(["", *(indent + line for line in table), ""])
