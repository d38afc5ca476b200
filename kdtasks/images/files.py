"""Image files: read one by one when their turn comes, or all at once into one array."""

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

from kdtasks.core.files import write_atomically

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageFiles:
    """A map-style data set of files, decoded when asked for: ``(input float32 (3,H,W), target)``.

    In training a random part of the image, 8 to 100 % of its area, resized to ``size``, and mirrored with probability 1/2;
    in evaluation the central ``size`` of the image resized so that its shorter side is ``size / 0.875``.
    """

    def __init__(self, paths: Sequence[str], target: Sequence[int], classes: Sequence[str], size: int, train: bool,
                 mean: Sequence[float] = IMAGENET[0], std: Sequence[float] = IMAGENET[1]):
        self.paths, self.classes = list(paths), list(classes)
        self.target = torch.as_tensor(target).long()
        self.transform = transform(size, train, mean, std)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return str(self.paths[index])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            if image.mode[0] in "IF":                                       # PIL would cut it at 255
                raise ValueError(f"its pixels have the mode {image.mode!r}: expected 8 bits a channel")
            return self.transform(image.convert("RGB")), int(self.target[index])


def transform(size: int, train: bool, mean: Sequence[float], std: Sequence[float]):
    """PIL image -> float32 tensor, with torchvision; random numbers from torch's CPU generator."""
    from torchvision.transforms import v2

    way = ([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()] if train
           else [v2.Resize(round(size / 0.875), antialias=True), v2.CenterCrop(size)])
    return v2.Compose([v2.ToImage(), *way, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def images_below(folder: Path) -> list[str]:
    """All image files at any depth, sorted by path."""
    return sorted(os.path.join(where, name) for where, _, names in os.walk(folder) for name in names
                  if os.path.splitext(name)[1].lower() in SUFFIXES)


def decoded(paths: Sequence[str], size: Sequence[int] | None, channels: int, skip_bad: bool,
             cache_dir) -> tuple[Tensor, Tensor]:
    """The images, uint8 (n,C,H,W), and which of ``paths`` they are, (n,); read by as many threads as there are processors."""
    cache = None
    if cache_dir is not None:
        listing = [(path, (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in paths]
        key = hashlib.sha256(repr((1, size and tuple(size), channels, listing)).encode()).hexdigest()[:32]
        cache = Path(cache_dir) / f"{key}.npy"
        if cache.is_file():
            return torch.from_numpy(np.load(cache, allow_pickle=False)), torch.arange(len(paths))
    bad: dict[int, str] = {}

    def read(i: int) -> np.ndarray | None:
        try:
            return _read(paths[i], size, channels)
        except Exception as error:
            if not skip_bad:
                raise RuntimeError(f"cannot read image {paths[i]}: {error} (skip_bad=True leaves it out)") from error
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
                    raise ValueError(f"images differ in size: (C,H,W) = {shape} in {paths[0]}, "
                                     f"{image.shape} in {paths[i]}; pass size=")
                images[i] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        step = max(1, math.ceil(len(paths) / 64))
        list(pool.map(fill, (range(at, min(at + step, len(paths))) for at in range(0, len(paths), step))))
    if bad:
        some = "; ".join(bad[i] for i in sorted(bad)[:3])
        warnings.warn(f"left out {len(bad)} unreadable of {len(paths)} images: {some}", stacklevel=3)
        good = torch.tensor([i for i in range(len(paths)) if i not in bad])
        return torch.from_numpy(images)[good], good
    if cache is not None:
        write_atomically(cache, lambda path: _save(path, images))
    return torch.from_numpy(images), torch.arange(len(paths))


def _read(path: str, size: Sequence[int] | None, channels: int) -> np.ndarray:
    """One image, uint8 (C,H,W); with ``size`` its largest central part of that shape, resized."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image = image.convert("L" if channels == 1 else "RGB")
        if size is not None and image.size != (size[1], size[0]):
            image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
        return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def _save(path: Path, images: np.ndarray) -> None:
    with path.open("wb") as file:                                           # np.save would add .npy to the name
        np.save(file, images)
