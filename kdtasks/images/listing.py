"""Which files of a folder are images, and which folders classes."""

import os
from collections import Counter
from pathlib import Path

from kdtasks.core.classes import class_name

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}


def is_hidden(name: str) -> bool:
    """What other programs leave behind: ``._a.jpg``, ``.ipynb_checkpoints``, ``__MACOSX``."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Whether a file of this name is an image; hidden ones are none."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not is_hidden(name)


def images_below(folder: Path) -> list[str]:
    """All image files at any depth, sorted by path."""
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        paths += [os.path.join(parent, name) for name in names if is_image(name)]
    return sorted(paths)


def results_of(
    folder: str | Path | None, out: str | Path | None, suffix: str = ".png"
) -> dict[Path, Path]:
    """For each image below ``folder`` the file below ``out`` that what is made of it goes to.

    It has the image's place and name, with ``suffix`` in the place of the ending; two images that
    differ in their ending only keep it: ``a.jpg.png`` and ``a.png.png``. Nothing is written here.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: one of the two is not given; ``out`` holds files or lies inside ``folder``.
    """
    if folder is None or out is None:
        raise ValueError(
            f"a folder of images and --out go together, got the folder {folder!r} and --out {out!r}"
        )
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}")
    paths = [Path(path) for path in images_below(folder)]
    if not paths:
        raise FileNotFoundError(
            f"no image in {str(folder)!r}: expected {', '.join(sorted(SUFFIXES))}"
        )
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"out={str(out)!r} lies in the folder of the images, {str(folder)!r}: expected another "
            "place"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"out={str(out)!r} holds files, which could be overwritten: expected a new or an empty "
            "folder"
        )
    full_names = {path: out / f"{path.relative_to(folder)}{suffix}" for path in paths}
    names = {path: out / path.relative_to(folder).with_suffix(suffix) for path in paths}
    while len(set(names.values())) < len(names):
        count = Counter(names.values())
        names = {
            path: full_names[path] if count[name] > 1 else name for path, name in names.items()
        }
    return names


def class_folders(root: Path) -> dict[str, Path]:
    """``{name of the class: folder}`` of the folders in ``root``, sorted by name."""
    folders = {
        class_name(entry.name): root / entry.name
        for entry in os.scandir(root)
        if entry.is_dir() and not is_hidden(entry.name)
    }
    return dict(sorted(folders.items()))
