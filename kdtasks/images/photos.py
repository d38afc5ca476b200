"""Photos that scikit-image and scikit-learn bring along: where they lie, and patches of them."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtasks.images.arrays import ImageArrays
from kdtasks.images.files import IMAGENET
from kdtasks.images.listing import SUFFIXES
from kdtasks.images.reading import read_image

# of scikit-image 0.25; no charts, pages and halves of pairs
PATCHED = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "china", "coffee", "coins", "flower"),
    *("grass", "gravel", "horse", "hubble_deep_field", "ihc", "microaneurysms", "moon"),
    *("motorcycle_left", "retina", "rocket"),
)


def packaged_photos() -> dict[str, str]:
    """``{name: path}`` of the images in scikit-image's and scikit-learn's folders.

    Raises:
        ImportError: scikit-image is not installed.
    """
    folders = [Path(_package("skimage"), "data"), Path(_package("sklearn"), "datasets", "images")]
    paths: dict[str, str] = {}
    for folder in folders:
        files = [path for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES]
        paths |= {path.stem: str(path) for path in files}
    return paths


def chosen_photos(names: tuple[str, ...]) -> list[str]:
    """The paths of photos by name.

    Raises:
        ImportError: scikit-image is not installed.
        FileNotFoundError: its release does not have them where they were.
    """
    paths = packaged_photos()
    missing = [name for name in names if name not in paths]
    if missing:
        folders = " or ".join(sorted({str(Path(path).parent) for path in paths.values()}))
        raise FileNotFoundError(f"no photo {missing[0]!r} in {folders}")
    return [paths[name] for name in names]


def _package(name: str) -> str:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(
            f"the photos are {name}'s, which is not installed: pip install 'kdtasks[sr]'"
        )
    return spec.submodule_search_locations[0]


def photo_patches(
    half: str = "left",
    rows: int = 6,
    side: int = 64,
    size: int = 32,
    augment: dict | list | None = None,
) -> ImageArrays:
    """Patches of 19 photos, labelled by the photo that they are of. Nothing is downloaded.

    Args:
        half: ``'left'`` or ``'right'`` of each photo; no patch is of both.
        rows: of a half, rows x rows patches are taken at equal distances; they overlap.
        side: of a patch in the photo, whose shorter side is first made 256.
        size: to which patches are then reduced (bicubic).
        augment: see :class:`ImageArrays`.

    Raises:
        ValueError: another half, or a side that a half cannot hold.
        ImportError, FileNotFoundError: as :func:`chosen_photos`.
    """
    if half not in ("left", "right"):
        raise ValueError(f"half must be 'left' or 'right', got {half!r}")
    if not 1 <= side <= 128 or rows < 1 or size < 1:
        raise ValueError(f"expected side in 1..128, rows and size >= 1, got {side}, {rows}, {size}")
    parts = [_patches(path, half, rows, side, size) for path in chosen_photos(PATCHED)]
    target = torch.arange(len(parts)).repeat_interleave(rows * rows)
    return ImageArrays(torch.cat(parts), target, PATCHED, *IMAGENET, augment)


def _patches(path: str, half: str, rows: int, side: int, size: int) -> Tensor:
    """(rows * rows, 3, size, size) uint8."""
    from PIL import Image

    photo = read_image(path)
    scale = 256 / min(photo.size)
    wide, high = (max(256, round(length * scale)) for length in photo.size)
    photo = photo.resize((wide, high), Image.Resampling.BICUBIC)
    first, last = (0, wide // 2 - side) if half == "left" else (wide - wide // 2, wide - side)
    patches = []
    for top in np.linspace(0, high - side, rows).round().astype(int):
        for left in np.linspace(first, last, rows).round().astype(int):
            patch = photo.crop((left, top, left + side, top + side))
            patch = patch.resize((size, size), Image.Resampling.BICUBIC)
            patches.append(torch.from_numpy(np.array(patch)).permute(2, 0, 1))
    return torch.stack(patches)


# what --dry-run needs to know without reading
photo_patches.image_shape = (3, 32, 32)
