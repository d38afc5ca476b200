"""Where configs lie: a file of one's own, or one that comes with the package, by its name."""

import difflib
import itertools
import re
import shutil
from pathlib import Path

from kdtasks.engine.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]


def shared_folder(name: str) -> Path:
    """``configs`` or ``benchmarks``: inside the installed package, or beside it in a checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def config_titles() -> dict[str, str]:
    """``{'classification/default': what its header says it is}`` of every config that comes
    with the package.
    """
    folder, titles = shared_folder("configs"), {}
    for path in sorted(p for p in folder.rglob("*.py") if "_base_" not in p.parts):
        with path.open(encoding="utf-8") as file:
            header = itertools.takewhile(lambda line: line.startswith("#"), file)
            title = itertools.takewhile(lambda line: not line.startswith("# Run:"), header)
            text = " ".join(line.lstrip("# ").rstrip() for line in title)
        titles[path.relative_to(folder).with_suffix("").as_posix()] = text
    return titles


def find_config(name: str | Path) -> Path:
    """A file as it stands, or a config of the package: ``'classification/default'``, with or
    without ``.py``.

    Raises:
        FileNotFoundError: neither; the nearest names are listed.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = shared_folder("configs") / path.with_suffix(".py")
    if not path.is_absolute() and packaged.is_file():
        return packaged
    local = [p.as_posix() for p in Path("configs").rglob("*.py")]
    titles = [*local, *config_titles()]
    near = difflib.get_close_matches(path.as_posix(), titles, n=3)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?"
        if near
        else "'kdtasks list' shows those there are"
    )
    raise FileNotFoundError(f"no config {str(name)!r}; {hint}")


def library_of(path: str | Path) -> str | None:
    """The library whose runner a config is for: ``'lib'`` where a base of it is ``'lib::…'``, as
    mmengine names configs that come with other libraries; None: it is ours.
    """
    scopes = [base.partition("::")[0] for base in _bases(Path(path)) if "::" in base]
    return scopes[0] if scopes else None


def copy_config(name: str | Path, folder: str | Path = "configs") -> list[Path]:
    """Copy a config of the package, and every base that it builds on, into ``folder``, in the same
    tree.

    Args:
        name: as :func:`config_titles` has it.
        folder: made where it is missing; files that are there and equal stay.

    Returns:
        The files, the config first.

    Raises:
        FileNotFoundError: the package has no such config.
        ConfigError: a file that would be written is there already and differs; nothing is written.
    """
    root = shared_folder("configs").resolve()
    first = find_config(name).resolve()
    if not first.is_relative_to(root):
        raise ConfigError(
            f"{str(name)!r} is a file of your own: expected a config of the package, as 'kdtasks "
            "list' shows it"
        )
    sources = _with_bases(first)
    copies = {source: Path(folder) / source.relative_to(root) for source in sources}
    for source, copy in copies.items():
        if copy.exists() and copy.read_bytes() != source.read_bytes():
            raise ConfigError(
                f"{str(copy)!r} is there already and differs: expected another folder"
            )
    for source, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return list(copies.values())


def _with_bases(path: Path) -> list[Path]:
    """A config, its bases, and theirs; each once."""
    files, waiting = [], [path]
    while waiting:
        path = waiting.pop(0)
        if path not in files:
            files.append(path)
            ours = [base for base in _bases(path) if "::" not in base]
            waiting += [(path.parent / base).resolve() for base in ours]
    return files


def _bases(path: Path) -> list[str]:
    """What ``_base_`` names, read without running the file."""
    match = re.search(r"^_base_\s*=\s*(\[.*?\]|\S+)", path.read_text(encoding="utf-8"), re.M | re.S)
    return re.findall(r"""['"]([^'"]+)['"]""", match[1]) if match else []
