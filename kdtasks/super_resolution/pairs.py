"""Pairs of high- and low-resolution images in memory, decoded once."""

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtasks.images.cache import load_arrays, save_arrays
from kdtasks.images.reading import image_size, read_image
from kdtasks.super_resolution.metrics import imresize, luma

# images decoded before they are needed
_AHEAD = 16
# a file, or uint8 (H,W,3) or (H,W)
Image = str | os.PathLike | np.ndarray


class Pairs:
    """High-resolution (HR) images and what a network sees of them, in memory.

    **Low resolution (LR).** If it is not given: HR, cut at its lower and right edge to multiples of
    the scale, is shrunk by :func:`~kdtasks.super_resolution.imresize`, clipped and rounded to
    uint8: the images that the field saves and trains on.

    **Color.** ``'rgb'``, or ``'y'``: one channel, the luma of BT.601, of HR and of the LR image,
    computed from their uint8 RGB once, and not rounded.

    **Enlarged.** The input is already as large as HR, for networks such as VDSR: HR, or its luma,
    is shrunk and enlarged again by ``imresize``, the whole image at once, neither rounded nor
    clipped in between (a given LR image is only enlarged). Values may therefore lie a little
    outside of [0,1]. (The script that AIL's release points to also rounds the luma of HR.)

    **Files** are read as :func:`~kdtasks.images.reading.read_image` says: upright, three channels
    of 8 bits, on white. In memory RGB takes 3 bytes a pixel, luma and what is enlarged 4 bytes a
    channel (float32).

    Args:
        hr: files, or uint8 arrays (H,W,3) or (H,W).
        lr: the LR image of each, in the same order and exactly ``scale`` times smaller; None: made
            from ``hr``.
        scale: whole number of at least 2. With ``enlarged`` and without ``lr`` also several: every
            image then comes once at each, as VDSR is trained.
        color: ``'rgb'`` or ``'y'``.
        enlarged: whether the input has the size of HR.
        downsizes: HR comes once at each of these sizes, shrunk by ``imresize`` and rounded; the
            291-image recipe has (1.0, 0.7, 0.5). Without ``lr`` only.
        cache_dir: keep the decoded pixels there, in a file named for the files, their sizes and
            times, and the settings; for files only. None: nowhere.
        skip_bad: leave out a file that cannot be read, and its partner, with a warning; all are
            then decoded once more.

    Attributes:
        unreadable: ``{path: why}`` of what is left out.
        input, target: the images, see :class:`FlatImages`.
        paths: (n,) the file that each is from; of an array its number.
        scale, color, enlarged: as given.
        given: whether LR images are.

    Raises:
        ValueError: a setting out of its range, an image smaller than the scale, an LR image of
            another size.
        RuntimeError: an image cannot be read; says its path.
    """

    def __init__(
        self,
        hr: Sequence[Image],
        lr: Sequence[Image] | None = None,
        scale: int | Sequence[int] = 2,
        color: str = "rgb",
        enlarged: bool = False,
        downsizes: Sequence[float] = (1.0,),
        cache_dir: str | os.PathLike | None = None,
        skip_bad: bool = False,
    ):
        self.unreadable: dict[str, str] = {}
        if skip_bad:
            hr, lr, self.unreadable = _readable(hr, lr)
        self.scale, self.color, self.enlarged = scale, color, enlarged
        self.given = lr is not None
        scales, downsizes = _checked(hr, lr, scale, color, enlarged, downsizes)
        names = [str(image) if _is_file(image) else f"image {i}" for i, image in enumerate(hr)]
        self.variants: list[tuple[int, float, int]] = []
        for i in range(len(hr)):
            self.variants += [(i, downsize, s) for downsize in downsizes for s in scales]
        self.paths = [names[i] for i, _, _ in self.variants]
        sizes = [_size(image) for image in hr]
        if lr is not None:
            _check_sizes(sizes, [_size(image) for image in lr], scales[0], names)
        self._reserve(sizes, names)
        files = [*hr, *(lr or ())]
        cache = _cache_file(cache_dir, files, (len(hr), scales, color, enlarged, downsizes))
        arrays = None if cache is None else load_arrays(cache)
        if arrays is not None:
            self.input.pixels = torch.from_numpy(arrays["input"])
            self.target.pixels = torch.from_numpy(arrays["target"])
            return
        self._fill(hr, lr)
        if cache is not None:
            pixels = {"input": self.input.pixels.numpy(), "target": self.target.pixels.numpy()}
            save_arrays(cache, **pixels)

    def _reserve(self, sizes: Sequence[tuple[int, int]], names: Sequence[str]) -> None:
        """Room for the images, whose HR files have these sizes."""
        large, small = [], []
        for i, downsize, scale in self.variants:
            height, width = _cut(sizes[i], downsize, scale, names[i])
            large.append((height, width))
            small.append((height // scale, width // scale))
        channels, dtype = (3, torch.uint8) if self.color == "rgb" else (1, torch.float32)
        self.target = FlatImages(large, channels, dtype)
        if self.enlarged:
            self.input = FlatImages(large, channels, torch.float32)
        else:
            self.input = FlatImages(small, channels, dtype)

    def _fill(self, hr: Sequence[Image], lr: Sequence[Image] | None) -> None:
        """Decode the images, and make of them what is kept."""
        partners = [None] * len(hr) if lr is None else _decoded(lr)
        variants_of_each = len(self) // len(hr)
        place = 0
        for high, low in zip(_decoded(hr), partners):
            for _ in range(variants_of_each):
                _, downsize, scale = self.variants[place]
                input, target = self._pair(high, low, downsize, scale)
                self.input.put(place, input)
                self.target.put(place, target)
                place += 1

    def _pair(
        self, high: Tensor, low: Tensor | None, downsize: float, scale: int
    ) -> tuple[Tensor, Tensor]:
        """Levels 0..255, float64 (1,3,H,W), of HR and perhaps LR -> input and target, (1,C,h,w) and
        (1,C,H,W) in [0,1].
        """
        high = high if downsize == 1 else _rounded(imresize(high, downsize))
        height, width = high.shape[2:]
        high = high[..., : height - height % scale, : width - width % scale]
        target = self._colored(high)
        if low is not None:
            input = self._colored(low)
        elif self.enlarged:
            input = imresize(target, 1 / scale)
        else:
            input = self._colored(_rounded(imresize(high, 1 / scale)))
        if self.enlarged:
            input = imresize(input, scale)
        return input, target

    def _colored(self, levels: Tensor) -> Tensor:
        return luma(levels / 255) if self.color == "y" else levels / 255

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        color = f"{self.color}, enlarged" if self.enlarged else self.color
        return f"{len(self)} images, scale {self.scale}, {color}, {self.target.pixels.device}"

    def to(self, device: torch.device | str) -> "Pairs":
        """Move the images to ``device``; returns itself."""
        self.input.to(device)
        self.target.to(device)
        return self


class FlatImages:
    """Images of different sizes, pixel after pixel in one tensor; they come out as float32 in
    [0,1].

    Args:
        sizes: (n,) height and width of each.
        channels: C.
        dtype: uint8 (levels 0..255) or float32 of ``pixels``.

    Attributes:
        pixels: (N,C), rows of the first image, then those of the second, ….
        sizes: (n,2) int64, height and width.
        start: (n,) int64, the first pixel of each.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], channels: int, dtype: torch.dtype):
        self.sizes = torch.tensor(sizes).view(-1, 2)
        areas = self.sizes.prod(1)
        self.start = areas.cumsum(0) - areas
        self.spans = list(zip(self.start.tolist(), sizes))
        self.pixels = torch.empty(int(areas.sum()), channels, dtype=dtype)

    def to(self, device: torch.device | str) -> "FlatImages":
        """Move the pixels to ``device``; returns itself."""
        self.pixels = self.pixels.to(device)
        self.sizes, self.start = self.sizes.to(device), self.start.to(device)
        return self

    def put(self, i: int, image: Tensor) -> None:
        """Set image ``i``, (1,C,H,W) in [0,1]."""
        start, (height, width) = self.spans[i]
        rows = image[0].permute(1, 2, 0).reshape(height * width, -1)
        if not self.pixels.is_floating_point():
            rows = (rows * 255).round()
        self.pixels[start : start + height * width] = rows

    def image(self, i: int) -> Tensor:
        """Image ``i``, (C,H,W)."""
        start, (height, width) = self.spans[i]
        return self._shaped(self.pixels[start : start + height * width], 1, height, width)[0]

    def windows(self, image: Tensor, top: Tensor, left: Tensor, side: int, turn: Tensor) -> Tensor:
        """Square windows of the images ``image`` (b,), in one of their 8 symmetries:
        (b,C,side,side).

        Args:
            image, top, left: (b,) int64.
            side: in pixels; the windows must lie inside.
            turn: (b,) 0..7: its bits mirror up and down, mirror left and right, and then exchange
                rows and columns.
        """
        width = self.sizes[image, 1]
        up, back, across = turn % 2, turn // 2 % 2, turn // 4 % 2 == 1
        first = self.start[image] + (top + up * (side - 1)) * width + left + back * (side - 1)
        # pixels from row to row, column to column
        down, right = width * (1 - 2 * up), 1 - 2 * back
        down, right = torch.where(across, right, down), torch.where(across, down, right)
        step = torch.arange(side, device=self.pixels.device)
        first, down, right = (x[:, None, None] for x in (first, down, right))
        # (b,side,side)
        at = first + down * step[:, None] + right * step
        return self._shaped(self.pixels.index_select(0, at.flatten()), len(image), side, side)

    def _shaped(self, rows: Tensor, b: int, height: int, width: int) -> Tensor:
        images = rows.view(b, height, width, rows.shape[1]).permute(0, 3, 1, 2)
        if not rows.is_floating_point():
            images = images.float().div_(255)
        return images.contiguous()


def _is_file(image: Image) -> bool:
    return isinstance(image, str | os.PathLike)


def _size(image: Image) -> tuple[int, int]:
    """Height and width, of a file from its header."""
    if _is_file(image):
        return _named(image_size, image)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"expected files, or uint8 arrays (H,W,3) or (H,W), got {image.dtype} {image.shape}"
        )
    return image.shape[:2]


def _decoded(images: Sequence[Image]) -> Iterator[Tensor]:
    """Levels 0..255, float64 (1,3,H,W); a few images are read ahead, by as many threads as there
    are processors.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for at in range(0, len(images), _AHEAD):
            for pixels in pool.map(read_levels, images[at : at + _AHEAD]):
                yield torch.from_numpy(pixels).permute(2, 0, 1)[None].double()


def read_levels(image: Image) -> np.ndarray:
    """uint8 (H,W,3) of a file or an array; an error names the file."""
    if _is_file(image):
        return np.array(_named(read_image, image))
    image = np.asarray(image)
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()


def _named(read: Callable, path: str | os.PathLike) -> object:
    """``read(path)``; whatever goes wrong names the file."""
    try:
        return read(path)
    except Exception as error:
        raise RuntimeError(f"cannot read image {path}: {error}") from error


def _readable(
    hr: Sequence[Image], lr: Sequence[Image] | None
) -> tuple[Sequence[Image], Sequence[Image] | None, dict[str, str]]:
    """The images whose files can be read, with their LR images, and why the others cannot."""

    def why(image: Image) -> str | None:
        try:
            read_levels(image)
        except RuntimeError as error:
            return str(error.__cause__)
        return None

    bad: dict[str, str] = {}
    kept = set(range(len(hr)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for images in (hr, lr or ()):
            for i, reason in enumerate(pool.map(why, images)):
                if reason is not None:
                    kept.discard(i)
                    bad[str(images[i])] = reason
    path, reason = next(iter(bad.items()), ("", ""))
    if not kept:
        raise RuntimeError(f"none of {len(hr)} images can be read; the first: {path}: {reason}")
    if bad:
        warnings.warn(
            f"left out {len(hr) - len(kept)} unreadable of {len(hr)} images: {path}: {reason}",
            stacklevel=4,
        )
    order = sorted(kept)
    return [hr[i] for i in order], lr and [lr[i] for i in order], bad


def _rounded(levels: Tensor) -> Tensor:
    """As MATLAB's uint8: half a level goes up."""
    return (levels + 0.5).floor().clamp(0, 255)


def _checked(
    hr: Sequence[Image],
    lr: Sequence[Image] | None,
    scale: int | Sequence[int],
    color: str,
    enlarged: bool,
    downsizes: Sequence[float],
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Scales and downsizes as tuples."""
    scales = tuple(scale) if isinstance(scale, list | tuple) else (scale,)
    if not scales or any(not isinstance(s, int) or s < 2 for s in scales):
        raise ValueError(f"scale must be a whole number of at least 2, got {scale!r}")
    if scales != (scale,) and (lr is not None or not enlarged):
        raise ValueError(
            f"scale={scale!r}: several scales expected enlarged=True and LR images that are made "
            "here"
        )
    if color not in ("rgb", "y"):
        raise ValueError(f"color must be 'rgb' or 'y', got {color!r}")
    downsizes = tuple(downsizes)
    if not downsizes or not all(0 < downsize <= 1 for downsize in downsizes):
        raise ValueError(f"downsizes must be numbers above 0 and at most 1, got {downsizes}")
    if not len(hr) or (lr is not None and len(hr) != len(lr)):
        raise ValueError(
            f"expected at least one HR image, and as many LR images if any, got "
            f"{len(hr)} and {len(lr or ())}"
        )
    if lr is not None and downsizes != (1,):
        raise ValueError(f"downsizes={downsizes} needs LR images that are made here")
    return scales, downsizes


def _cut(size: tuple[int, int], downsize: float, scale: int, name: str) -> tuple[int, int]:
    """Height and width of HR: downsized, then multiples of the scale."""
    height, width = (math.ceil(side * downsize) // scale * scale for side in size)
    if not height or not width:
        raise ValueError(
            f"{name} has {size[0]}x{size[1]} pixels: with downsize {downsize} nothing is left at "
            f"scale {scale}"
        )
    return height, width


def _check_sizes(high: Sequence, low: Sequence, scale: int, names: Sequence[str]) -> None:
    for name, large, small in zip(names, high, low):
        if large != (small[0] * scale, small[1] * scale):
            raise ValueError(
                f"{name} has {large[0]}x{large[1]} pixels, its LR image "
                f"{small[0]}x{small[1]}: at scale {scale} HR must have "
                f"{small[0] * scale}x{small[1] * scale} (height x width)"
            )


def _cache_file(
    folder: str | os.PathLike | None, files: Sequence[Image], settings: tuple
) -> Path | None:
    """Named for the files, their sizes and times, and the settings."""
    if folder is None:
        return None
    if not all(map(_is_file, files)):
        raise ValueError("cache_dir needs files, not arrays")
    listing = []
    for path in files:
        stat = os.stat(path)
        listing.append((str(path), stat.st_size, stat.st_mtime_ns))
    key = hashlib.sha256(repr((2, settings, listing)).encode()).hexdigest()
    return Path(folder) / f"{key[:32]}.npz"
