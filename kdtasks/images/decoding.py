"""Many image files in one tensor, perhaps kept in a file of its own."""

import hashlib
import math
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtasks.images.cache import load_arrays, save_arrays
from kdtasks.images.reading import read_image


def decoded(
    paths: Sequence[str],
    size: Sequence[int] | None,
    channels: int,
    skip_bad: bool,
    cache_dir,
    unreadable: dict[str, str] | None = None,
) -> tuple[Tensor, Tensor]:
    """The images, uint8 (n,C,H,W), and which of ``paths`` they are, (n,); read by as many threads
    as there are processors.

    Those that ``skip_bad`` leaves out are noted in ``unreadable``, path and why.
    """
    cache = None
    if cache_dir is not None:
        listing = [(path, (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in paths]
        key = hashlib.sha256(
            repr((2, size and tuple(size), channels, listing)).encode()
        ).hexdigest()[:32]
        cache = Path(cache_dir) / f"{key}.npz"
        if (kept := load_arrays(cache)) is not None:
            return torch.from_numpy(kept["images"]), torch.arange(len(paths))
    bad: dict[int, str] = {}

    def read(i: int) -> np.ndarray | None:
        try:
            return _read(paths[i], size, channels)
        except Exception as error:
            if not skip_bad:
                raise RuntimeError(
                    f"cannot read image {paths[i]}: {error} (skip_bad=True leaves it out)"
                ) from error
            bad[i] = f"{paths[i]}: {error}"
            return None

    shape = next((image.shape for image in map(read, range(len(paths))) if image is not None), None)
    if shape is None:
        raise RuntimeError(f"none of {len(paths)} images can be read; the first: {bad[0]}")
    images = np.empty((len(paths), *shape), dtype=np.uint8)

    def fill(part: range) -> None:
        for i in part:
            if (image := read(i)) is not None:
                if image.shape != shape:
                    raise ValueError(
                        f"images differ in size: (C,H,W) = {shape} in {paths[0]}, "
                        f"{image.shape} in {paths[i]}; pass size="
                    )
                images[i] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        step = max(1, math.ceil(len(paths) / 64))
        list(
            pool.map(
                fill, (range(at, min(at + step, len(paths))) for at in range(0, len(paths), step))
            )
        )
    if bad:
        if unreadable is not None:
            unreadable.update((paths[i], bad[i].removeprefix(f"{paths[i]}: ")) for i in sorted(bad))
        some = "; ".join(bad[i] for i in sorted(bad)[:3])
        warnings.warn(
            f"left out {len(bad)} unreadable of {len(paths)} images: {some}", stacklevel=3
        )
        good = torch.tensor([i for i in range(len(paths)) if i not in bad])
        return torch.from_numpy(images)[good], good
    if cache is not None:
        save_arrays(cache, images=images)
    return torch.from_numpy(images), torch.arange(len(paths))


def _read(path: str, size: Sequence[int] | None, channels: int) -> np.ndarray:
    """One image, uint8 (C,H,W); with ``size`` its largest central part of that shape, resized."""
    from PIL import Image, ImageOps

    image = read_image(path, channels)
    if size is not None and image.size != (size[1], size[0]):
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)
