"""Many image files in one tensor, perhaps kept in a file of its own."""

import hashlib
import math
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdtasks.images.cache import load_arrays, save_arrays
from kdtasks.images.reading import read_image

if TYPE_CHECKING:
    from PIL import Image


def decoded(
    paths: Sequence[str],
    size: Sequence[int] | None,
    channels: int,
    skip_bad: bool,
    cache_dir: str | Path | None,
    unreadable: dict[str, str] | None = None,
) -> tuple[Tensor, Tensor]:
    """The images, uint8 (n,C,H,W), and which of ``paths`` they are, (n,); read by as many threads
    as there are processors.

    Those that ``skip_bad`` leaves out are noted in ``unreadable``, path and why.
    """
    if size is not None and min(size) < 1:
        raise ValueError(f"size={size[0]}: expected at least 1 pixel a side")
    cache = None if cache_dir is None else _cache_file(cache_dir, paths, size, channels)
    if cache is not None and (arrays := load_arrays(cache)) is not None:
        return torch.from_numpy(arrays["images"]), torch.arange(len(paths))
    reading = _Reading(paths, size, channels, skip_bad)
    images = reading.read_all()
    if not reading.bad:
        if cache is not None:
            save_arrays(cache, images=images)
        return torch.from_numpy(images), torch.arange(len(paths))
    if unreadable is not None:
        unreadable.update((paths[i], reason) for i, reason in sorted(reading.bad.items()))
    examples = "; ".join(f"{paths[i]}: {reason}" for i, reason in sorted(reading.bad.items())[:3])
    warnings.warn(
        f"left out {len(reading.bad)} unreadable of {len(paths)} images: {examples}", stacklevel=3
    )
    index = torch.tensor([i for i in range(len(paths)) if i not in reading.bad])
    return torch.from_numpy(images)[index], index


def _cache_file(
    folder: str | Path, paths: Sequence[str], size: Sequence[int] | None, channels: int
) -> Path:
    """Named for the files, their sizes and times, and for what is made of them."""
    listing = []
    for path in paths:
        stat = os.stat(path)
        listing.append((path, stat.st_size, stat.st_mtime_ns))
    key = hashlib.sha256(repr((2, size and tuple(size), channels, listing)).encode()).hexdigest()
    return Path(folder) / f"{key[:32]}.npz"


class _Reading:
    """Many files, read into one array.

    Attributes:
        bad: ``{place: why}`` of the files that cannot be read, where ``skip_bad`` leaves them out.
    """

    def __init__(
        self, paths: Sequence[str], size: Sequence[int] | None, channels: int, skip_bad: bool
    ):
        self.paths, self.size, self.channels, self.skip_bad = paths, size, channels, skip_bad
        self.bad: dict[int, str] = {}

    def read_all(self) -> np.ndarray:
        """uint8 (N,C,H,W); rows of bad files hold anything."""
        count = len(self.paths)
        first = next((image for image in map(self.read, range(count)) if image is not None), None)
        if first is None:
            raise RuntimeError(
                f"none of {count} images can be read; the first: {self.paths[0]}: {self.bad[0]}"
            )
        images = np.empty((count, *first.shape), dtype=np.uint8)
        step = max(1, math.ceil(count / 64))
        parts = [range(start, min(start + step, count)) for start in range(0, count, step)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(lambda part: self.fill(images, part), parts):
                pass
        return images

    def fill(self, images: np.ndarray, part: range) -> None:
        """Read the files of these places."""
        for i in part:
            image = self.read(i)
            if image is None:
                continue
            if image.shape != images.shape[1:]:
                raise ValueError(
                    f"images differ in size: (C,H,W) = {images.shape[1:]} in {self.paths[0]}, "
                    f"{image.shape} in {self.paths[i]}; pass size="
                )
            images[i] = image

    def read(self, i: int) -> np.ndarray | None:
        """One file; None and a note for a bad one that may be left out."""
        try:
            return _read(self.paths[i], self.size, self.channels)
        except Exception as error:
            if not self.skip_bad:
                raise RuntimeError(
                    f"cannot read image {self.paths[i]}: {error} (skip_bad=True leaves it out)"
                ) from error
            self.bad[i] = str(error)
            return None


def _read(path: str, size: Sequence[int] | None, channels: int) -> np.ndarray:
    """One image, uint8 (C,H,W), fitted to ``size``."""
    image = fit(read_image(path, channels), size)
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def fit(image: "Image.Image", size: Sequence[int] | None) -> "Image.Image":
    """The largest central part of an image of the shape of ``size`` = (height, width), resized
    bicubically; None: the image as it is."""
    from PIL import Image, ImageOps

    if size is None or image.size == (size[1], size[0]):
        return image
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
