"""Pairs of images for super-resolution: random patches to train on, whole images for the test.

:class:`Pairs` decodes all images once and makes what is missing: the low-resolution image, its luma, its enlargement.
:class:`Patches` cuts batches out of them on their device, :class:`Images` gives one after the other. The functions build either
from what lies on disk (``photos``, ``bsds``, ``image_folder``, ``paired_folders``). A path is taken as it stands, or else below
:func:`kdtasks.general.data.data_root`. Test images differ in size: a config says ``test_batch_size=1``.
"""

import hashlib
import importlib.util
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtasks.core.views import view_hash
from kdtasks.general.data import data_root
from kdtasks.general.image_files import SUFFIXES, images_below
from kdtasks.super_resolution.metrics import imresize, luma

_WINDOW = 0x4A                                                                  # salt of view_hash
_AHEAD = 16                                                                     # images decoded before they are needed
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")                             # what PIL turns into RGB without loss
_NAMED = 3                                                                      # files that an error names

TRAIN_PHOTOS = ("china", "rocket", "motorcycle_left", "camera", "brick", "coins", "grass", "gravel")
TEST_PHOTOS = ("astronaut", "chelsea", "coffee", "flower")


class Pairs:
    """High-resolution (HR) images and what a network sees of them, in memory.

    **Low resolution (LR).** If it is not given: HR, cut at its lower and right edge to multiples of the scale, is shrunk by
    :func:`~kdtasks.super_resolution.imresize`, clipped and rounded to uint8: the images that the field saves and trains on.

    **Color.** ``'rgb'``, or ``'y'``: one channel, the luma of BT.601, of HR and of the LR image, computed from their uint8 RGB
    once, and not rounded.

    **Enlarged.** The input is already as large as HR, for networks such as VDSR: HR, or its luma, is shrunk and enlarged again
    by ``imresize``, the whole image at once, neither rounded nor clipped in between (a given LR image is only enlarged). Values
    may therefore lie a little outside of [0,1]. (The script that AIL's release points to also rounds the luma of HR.)

    **Files** are read as their pixels are stored: EXIF orientation and color profiles are not applied. Grey becomes three equal
    channels. An alpha channel must be opaque. More than 8 bits a channel is an error: PIL would cut the rest off, and how to
    round it is not ours to choose. In memory RGB takes 3 bytes a pixel, luma and what is enlarged 4 bytes a channel (float32).

    Args:
        hr: files, or uint8 arrays (H,W,3) or (H,W).
        lr: the LR image of each, in the same order and exactly ``scale`` times smaller; None: made from ``hr``.
        scale: whole number of at least 2. With ``enlarged`` and without ``lr`` also several: every image then comes once at
            each, as VDSR is trained.
        color: ``'rgb'`` or ``'y'``.
        enlarged: whether the input has the size of HR.
        downsizes: HR comes once at each of these sizes, shrunk by ``imresize`` and rounded; the 291-image recipe has
            (1.0, 0.7, 0.5). Without ``lr`` only.
        cache_dir: keep the decoded pixels there, in a file named for the files, their sizes and times, and the settings; for
            files only. None: nowhere.

    Attributes:
        input, target: the images, see :class:`FlatImages`.
        paths: (n,) the file that each is from; of an array its number.
        scale, color, enlarged: as given.

    Raises:
        ValueError: a setting out of its range, an image smaller than the scale, an LR image of another size.
        RuntimeError: an image cannot be read; says its path.
    """

    def __init__(self, hr: Sequence, lr: Sequence | None = None, scale: int | Sequence[int] = 2, color: str = "rgb",
                 enlarged: bool = False, downsizes: Sequence[float] = (1.0,), cache_dir=None):
        self.scale, self.color, self.enlarged = scale, color, enlarged
        scales, downsizes = _checked(hr, lr, scale, color, enlarged, downsizes)
        names = [str(image) if _is_file(image) else f"image {i}" for i, image in enumerate(hr)]
        self.variants = [(i, downsize, s) for i in range(len(hr)) for downsize in downsizes for s in scales]
        self.paths = [names[i] for i, _, _ in self.variants]
        full = [_size(image) for image in hr]
        large = [_cut(full[i], downsize, s, names[i]) for i, downsize, s in self.variants]
        small = large if enlarged else [(height // s, width // s) for (height, width), (_, _, s) in zip(large, self.variants)]
        if lr is not None:
            _check_sizes(full, [_size(image) for image in lr], scales[0], names)
        channels = 3 if color == "rgb" else 1
        target_dtype = torch.uint8 if color == "rgb" else torch.float32
        self.target = FlatImages(large, channels, target_dtype)
        self.input = FlatImages(small, channels, torch.float32 if enlarged else target_dtype)
        cache = _cache_file(cache_dir, [*hr, *(lr or ())], (len(hr), scales, color, enlarged, downsizes))
        if cache is not None and cache.is_file():
            with np.load(cache, allow_pickle=False) as kept:
                self.input.pixels, self.target.pixels = (torch.from_numpy(kept[name]) for name in ("input", "target"))
        else:
            self._fill(hr, lr)
            if cache is not None:
                _write(cache, input=self.input.pixels.numpy(), target=self.target.pixels.numpy())

    def _fill(self, hr: Sequence, lr: Sequence | None) -> None:
        read = zip(_decoded(hr), _decoded(lr) if lr is not None else [None] * len(hr))
        of_each = len(self) // len(hr)
        for i, (high, low) in enumerate(read):
            for at in range(i * of_each, (i + 1) * of_each):
                for images, image in zip((self.input, self.target), self._pair(high, low, *self.variants[at][1:])):
                    images.put(at, image)

    def _pair(self, high: Tensor, low: Tensor | None, downsize: float, scale: int) -> tuple[Tensor, Tensor]:
        """Levels 0..255, float64 (1,3,H,W), of HR and perhaps LR -> input and target, (1,C,h,w) and (1,C,H,W) in [0,1]."""
        high = high if downsize == 1 else _rounded(imresize(high, downsize))
        height, width = high.shape[2:]
        high = high[..., :height - height % scale, :width - width % scale]
        target = self._colored(high)
        if low is not None:
            input = self._colored(low)
        elif self.enlarged:
            input = imresize(target, 1 / scale)
        else:
            input = self._colored(_rounded(imresize(high, 1 / scale)))
        return imresize(input, scale) if self.enlarged else input, target

    def _colored(self, levels: Tensor) -> Tensor:
        return luma(levels / 255) if self.color == "y" else levels / 255

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return (f"{len(self)} images, scale {self.scale}, {self.color}{', enlarged' if self.enlarged else ''}, "
                f"{self.target.pixels.device}")

    def to(self, device) -> "Pairs":
        self.input.to(device)
        self.target.to(device)
        return self


class FlatImages:
    """Images of different sizes, pixel after pixel in one tensor; they come out as float32 in [0,1].

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

    def to(self, device) -> "FlatImages":
        self.pixels, self.sizes, self.start = (x.to(device) for x in (self.pixels, self.sizes, self.start))
        return self

    def put(self, i: int, image: Tensor) -> None:
        """Sets image ``i``, (1,C,H,W) in [0,1]."""
        start, (height, width) = self.spans[i]
        rows = image[0].permute(1, 2, 0).reshape(height * width, -1)
        self.pixels[start:start + height * width] = rows if self.pixels.is_floating_point() else (rows * 255).round()

    def image(self, i: int) -> Tensor:
        """Image ``i``, (C,H,W)."""
        start, (height, width) = self.spans[i]
        return self._shaped(self.pixels[start:start + height * width], 1, height, width)[0]

    def windows(self, image: Tensor, top: Tensor, left: Tensor, side: int, turn: Tensor) -> Tensor:
        """Square windows of the images ``image`` (b,), in one of their 8 symmetries: (b,C,side,side).

        Args:
            image, top, left: (b,) int64.
            side: in pixels; the windows must lie inside.
            turn: (b,) 0..7: its bits mirror up and down, mirror left and right, and then exchange rows and columns.
        """
        width = self.sizes[image, 1]
        up, back, across = turn % 2, turn // 2 % 2, turn // 4 % 2 == 1
        first = self.start[image] + (top + up * (side - 1)) * width + left + back * (side - 1)
        down, right = width * (1 - 2 * up), 1 - 2 * back                        # pixels from row to row, column to column
        down, right = torch.where(across, right, down), torch.where(across, down, right)
        step = torch.arange(side, device=self.pixels.device)
        at = first[:, None, None] + down[:, None, None] * step[:, None] + right[:, None, None] * step       # (b,side,side)
        return self._shaped(self.pixels.index_select(0, at.flatten()), len(image), side, side)

    def _shaped(self, rows: Tensor, b: int, height: int, width: int) -> Tensor:
        images = rows.view(b, height, width, rows.shape[1]).permute(0, 3, 1, 2)
        return (images if rows.is_floating_point() else images.float().div_(255)).contiguous()


class Patches:
    """Random patches to train on, one gather for the input and one for the target, on the device where the images lie.

    Sample i is of image i modulo their number, so an epoch shows every image ``repeat`` times, whatever its size. Each view of
    it is a square at a place uniform over the image, in one of the 8 symmetries of a square (mirrored, turned by 90 degrees),
    both a function of (seed, index, view) alone.

    Args:
        pairs: the images.
        patch: side of the input, in its own pixels: pixels of LR, or of HR if the input is enlarged.
        repeat: patches of an image in an epoch.
        augment: False: places only, no symmetries.

    Raises:
        ValueError: an image is smaller than the patch, or a number below 1.
    """

    def __init__(self, pairs: Pairs, patch: int, repeat: int = 16, augment: bool = True):
        for name, value in (("patch", patch), ("repeat", repeat)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for path, (height, width) in zip(pairs.paths, (size for _, size in pairs.input.spans)):
            if min(height, width) < patch:
                raise ValueError(f"patch={patch}, but the input made of {path} has {height}x{width} pixels: leave this image "
                                 f"out or take a patch of at most {min(height, width)}")
        self.pairs, self.patch, self.repeat, self.augment = pairs, patch, repeat, augment
        self.factor = 1 if pairs.enlarged else pairs.scale

    def __len__(self) -> int:
        return len(self.pairs) * self.repeat

    def __repr__(self) -> str:
        return f"Patches({self.pairs!r}, patch={self.patch}, repeat={self.repeat}, augment={self.augment})"

    def path(self, index: int) -> str:
        """The file that a sample is cut from."""
        return self.pairs.paths[index % len(self.pairs)]

    def to(self, device) -> "Patches":
        """Moves the images to ``device``, where batches are then made; returns itself."""
        self.pairs.to(device)
        return self

    def batch(self, index: Tensor, view: Tensor, seed: int) -> dict[str, Tensor]:
        """Samples ``index`` (b,) in their views ``view`` (b,): ``input`` (b,C,p,p) and ``target`` (b,C,P,P), float32."""
        device = self.pairs.input.pixels.device
        index, view = index.to(device, non_blocking=True), view.to(device, non_blocking=True)
        image, number = index % len(self.pairs), view_hash(seed, index, view, _WINDOW)
        turn, number = number % 8 * self.augment, number // 8
        places = self.pairs.input.sizes[image] - self.patch + 1                                             # (b,2)
        top, left = number % places[:, 0], number // places[:, 0] % places[:, 1]
        f = self.factor
        return {"input": self.pairs.input.windows(image, top, left, self.patch, turn),
                "target": self.pairs.target.windows(image, top * f, left * f, self.patch * f, turn)}


class Images:
    """Whole images for the test, a map-style data set: ``(input (C,h,w), target (C,H,W))``, float32 in [0,1]."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"Images({self.pairs!r})"

    def path(self, index: int) -> str:
        """The file that an image is from."""
        return self.pairs.paths[index]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pairs.input.image(index), self.pairs.target.image(index)


def photos(train: bool = True, scale: int | Sequence[int] = 2, patch: int = 48, color: str = "rgb", enlarged: bool = False,
           repeat: int = 100, augment: bool = True, downsizes: Sequence[float] = (1.0,)) -> Patches | Images:
    """Photos that scikit-image and scikit-learn bring along: 8 to train on, 4 others for the test. Nothing is downloaded.

    Training: china, rocket and motorcycle_left in color; camera, brick, coins, grass and gravel, which are grey, as
    three equal channels. Test: astronaut, chelsea, coffee and flower, all in color. Sides are between 300 and 741 pixels.

    Args:
        train: the training photos in patches, or the test photos.
        scale, color, enlarged: see :class:`Pairs`.
        patch, repeat, augment: of the training photos, see :class:`Patches`.
        downsizes: of the training photos, see :class:`Pairs`.

    Raises:
        ImportError: scikit-image is not installed.
        FileNotFoundError: its release does not have them where they were.
    """
    folders = [Path(_package("skimage"), "data"), Path(_package("sklearn"), "datasets", "images")]
    found = {path.stem: str(path) for folder in folders for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES}
    names = TRAIN_PHOTOS if train else TEST_PHOTOS
    if missing := [name for name in names if name not in found]:
        raise FileNotFoundError(f"no photo {missing[0]!r} in {folders[0]} or {folders[1]}")
    hr = [found[name] for name in names]
    return _data_set(hr, None, train, scale, patch, color, enlarged, repeat, augment, downsizes)


def _package(name: str) -> str:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(f"the photos are {name}'s, which is not installed: pip install 'kdtasks[sr]'")
    return spec.submodule_search_locations[0]


def bsds(train: bool = True, scale: int | Sequence[int] = 2, root="bsds", patch: int = 48, color: str = "rgb",
         enlarged: bool = False, repeat: int = 16, augment: bool = True, downsizes: Sequence[float] = (1.0,),
         cache_dir=None) -> Patches | Images:
    """Photos of 481x321 pixels from the Berkeley Segmentation Dataset: training photos, and B100, the 100 test photos.

    Args:
        train: the photos of ``<root>/train`` in patches, or those of ``<root>/b100``.
        root: the folder of the two.
        scale, patch, color, enlarged, repeat, augment, downsizes, cache_dir: as for :func:`image_folder`.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    folder = _folder(root, "<root>/train/<any name>.jpg and <root>/b100/<any name>.jpg") / ("train" if train else "b100")
    return image_folder(folder, train, scale, patch, color, enlarged, repeat, augment, downsizes, cache_dir)


def image_folder(root, train: bool = True, scale: int | Sequence[int] = 2, patch: int = 48, color: str = "rgb",
                 enlarged: bool = False, repeat: int = 16, augment: bool = True, downsizes: Sequence[float] = (1.0,),
                 cache_dir=None) -> Patches | Images:
    """All images at any depth below a folder as HR, in the order of their paths; LR is made from them.

    Args:
        root: as it stands or below :func:`~kdtasks.general.data.data_root`.
        train: patches to train on, or whole images.
        scale, color, enlarged, cache_dir: see :class:`Pairs`.
        patch, repeat, augment: in training only, see :class:`Patches`.
        downsizes: in training only, see :class:`Pairs`.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError, RuntimeError: see :class:`Pairs` and :class:`Patches`.
    """
    hr = _images(root)
    return _data_set(hr, None, train, scale, patch, color, enlarged, repeat, augment, downsizes, cache_dir)


def paired_folders(hr, lr, train: bool = True, scale: int = 2, patch: int = 48, color: str = "rgb", enlarged: bool = False,
                   repeat: int = 16, augment: bool = True, suffix: str | None = None, cache_dir=None) -> Patches | Images:
    """HR images and the LR images that belong to them, ``<hr>/0001.png`` and ``<lr>/0001x2.png``, as DIV2K has them.

    Args:
        hr, lr: folders, as they stand or below :func:`~kdtasks.general.data.data_root`; pairs lie at the same place below them.
        suffix: what the name of an LR image has more than that of its HR image; None: ``'x<scale>'`` or nothing.
        train, scale, patch, color, enlarged, repeat, augment, cache_dir: as for :func:`image_folder`.

    Raises:
        FileNotFoundError: no such folder, no image in it, or an image without its partner.
        ValueError: two images for one place, or sizes that do not fit exactly; and as :class:`Pairs`.
        RuntimeError: an image cannot be read.
    """
    large, small = _by_name(hr), _by_name(lr)
    suffixes = ("", f"x{scale}") if suffix is None else (suffix,)
    partner = {}
    for name in large:
        found = [name + ending for ending in suffixes if name + ending in small]
        if len(found) > 1:
            raise ValueError(f"{large[name]} has two LR images, {small[found[0]]} and {small[found[1]]}: say suffix=")
        partner[name] = found[0] if found else None
    taken = set(partner.values())
    alone = [large[name] for name in large if partner[name] is None] + [small[name] for name in small if name not in taken]
    if alone:
        some = ", ".join(alone[:_NAMED]) + ", …" * (len(alone) > _NAMED)
        raise FileNotFoundError(f"{len(alone)} images have no partner: {some}. The LR image of <hr>/<name>.png is "
                                f"<lr>/{' or <lr>/'.join(f'<name>{ending}.png' for ending in suffixes)}")
    return _data_set(list(large.values()), [small[partner[name]] for name in large], train, scale, patch, color, enlarged,
                     repeat, augment, (1.0,), cache_dir)


def patch_shapes(scale: int = 2, patch: int = 48, color: str = "rgb", enlarged: bool = False, **others) -> tuple[tuple, tuple]:
    """Shapes (C,h,w) of the input and (C,H,W) of the target that a config's description of training data stands for.

    It takes that description as keyword arguments, with the defaults of the functions above, and reads nothing.
    """
    channels, side = 3 if color == "rgb" else 1, patch if enlarged else patch * scale
    return (channels, patch, patch), (channels, side, side)


# -------------------------------------------------------------------------------------------------------------- from disk
def _data_set(hr: Sequence, lr: Sequence | None, train: bool, scale, patch: int, color: str, enlarged: bool, repeat: int,
              augment: bool, downsizes: Sequence[float], cache_dir=None) -> Patches | Images:
    pairs = Pairs(hr, lr, scale, color, enlarged, downsizes if train else (1.0,), cache_dir)
    return Patches(pairs, patch, repeat, augment) if train else Images(pairs)


def _folder(root, layout: str = "<root>/<any name>.png (or .jpg, .bmp, .webp, …), in folders or not") -> Path:
    folder = Path(root) if Path(root).is_dir() else data_root() / root
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {root} nor {folder}. Set the environment variable KDTASKS_DATA to the folder that "
                                f"holds it, or pass its path. Expected layout: {layout}")
    return folder


def _images(root) -> list[str]:
    folder = _folder(root)
    paths = images_below(folder)
    if not paths:
        raise FileNotFoundError(f"no image below {folder}; known are {', '.join(sorted(SUFFIXES))}")
    return paths


def _by_name(root) -> dict[str, str]:
    """Path below ``root`` without the ending -> file."""
    folder, found = _folder(root), {}
    for path in _images(folder):
        name = os.path.splitext(os.path.relpath(path, folder))[0]
        if name in found:
            raise ValueError(f"{found[name]} and {path} differ in their ending only: keep one")
        found[name] = path
    return found


def _is_file(image) -> bool:
    return isinstance(image, str | os.PathLike)


def _size(image) -> tuple[int, int]:
    """Height and width, of a file from its header."""
    if _is_file(image):
        with _opened(image) as picture:
            return picture.height, picture.width
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise ValueError(f"want files, or uint8 arrays (H,W,3) or (H,W), got {image.dtype} {image.shape}")
    return image.shape[:2]


def _decoded(images: Sequence) -> Iterator[Tensor]:
    """Levels 0..255, float64 (1,3,H,W); a few images are read ahead, by as many threads as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for at in range(0, len(images), _AHEAD):
            for pixels in pool.map(_read, images[at:at + _AHEAD]):
                yield torch.from_numpy(pixels).permute(2, 0, 1)[None].double()


def _read(image) -> np.ndarray:
    """uint8 (H,W,3)"""
    if _is_file(image):
        with _opened(image) as picture:
            if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
                raise ValueError("parts of it are transparent; flatten it onto a background")
            return np.array(picture.convert("RGB"))
    image = np.asarray(image)
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()


@contextmanager
def _opened(path):
    """An image file that PIL can turn into RGB without loss; whatever goes wrong names the file."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            stored = str([tile[3] for tile in picture.tile])                    # 'RGB;16B', ('RGB', 65535), …: PIL cuts these
            if picture.mode not in _MODES or ";16" in stored or "65535" in stored:
                raise ValueError(f"want grey or RGB with 8 bits a channel, got mode {picture.mode!r}, stored as {stored}")
            yield picture
    except Exception as error:
        raise RuntimeError(f"cannot read image {path}: {error}") from error


# -------------------------------------------------------------------------------------------------------------- sizes, cache
def _rounded(levels: Tensor) -> Tensor:
    """As MATLAB's uint8: half a level goes up."""
    return (levels + 0.5).floor().clamp(0, 255)


def _checked(hr: Sequence, lr: Sequence | None, scale, color: str, enlarged: bool,
             downsizes: Sequence[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Scales and downsizes as tuples."""
    scales = tuple(scale) if isinstance(scale, list | tuple) else (scale,)
    if not scales or any(not isinstance(s, int) or s < 2 for s in scales):
        raise ValueError(f"scale must be a whole number of at least 2, got {scale!r}")
    if scales != (scale,) and (lr is not None or not enlarged):
        raise ValueError(f"scale={scale!r}: several scales want enlarged=True and LR images that are made here")
    if color not in ("rgb", "y"):
        raise ValueError(f"color must be 'rgb' or 'y', got {color!r}")
    downsizes = tuple(downsizes)
    if not downsizes or not all(0 < downsize <= 1 for downsize in downsizes):
        raise ValueError(f"downsizes must be numbers above 0 and at most 1, got {downsizes}")
    if not len(hr) or len(hr) != len(hr if lr is None else lr):
        raise ValueError(f"want at least one HR image, and as many LR images if any, got {len(hr)} and {len(lr or ())}")
    if lr is not None and downsizes != (1,):
        raise ValueError(f"downsizes={downsizes} wants LR images that are made here")
    return scales, downsizes


def _cut(size: tuple[int, int], downsize: float, scale: int, name: str) -> tuple[int, int]:
    """Height and width of HR: downsized, then multiples of the scale."""
    height, width = (math.ceil(side * downsize) // scale * scale for side in size)
    if not height or not width:
        raise ValueError(f"{name} has {size[0]}x{size[1]} pixels: with downsize {downsize} nothing is left at scale {scale}")
    return height, width


def _check_sizes(high: Sequence, low: Sequence, scale: int, names: Sequence[str]) -> None:
    for name, large, small in zip(names, high, low):
        if large != (small[0] * scale, small[1] * scale):
            raise ValueError(f"{name} has {large[0]}x{large[1]} pixels, its LR image {small[0]}x{small[1]}: at scale {scale} "
                             f"HR must have {small[0] * scale}x{small[1] * scale} (height x width)")


def _cache_file(folder, files: Sequence, settings: tuple) -> Path | None:
    if folder is None:
        return None
    if not all(map(_is_file, files)):
        raise ValueError("cache_dir wants files, not arrays")
    listing = [(str(path), (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in files]
    return Path(folder) / f"{hashlib.sha256(repr((1, settings, listing)).encode()).hexdigest()[:32]}.npz"


def _write(path: Path, **arrays: np.ndarray) -> None:
    """Writes ``path`` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
