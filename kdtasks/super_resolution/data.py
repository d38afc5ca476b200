"""Pairs of images for super-resolution: random patches to train on, whole images for the test.

:class:`~kdtasks.super_resolution.pairs.Pairs` decodes all images once and makes what is missing:
the low-resolution image, its luma, its enlargement. :class:`Patches` cuts batches out of them on
their device, :class:`Images` gives one after the other. The functions build either from files on
disk. A path is taken as it stands, or else below :func:`kdtasks.images.roots.data_root`. Test
images differ in size: a config says ``test_batch_size=1``.
"""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdtasks.core.views import view_hash
from kdtasks.images.listing import SUFFIXES, images_below
from kdtasks.images.photos import chosen_photos
from kdtasks.images.roots import under_root
from kdtasks.super_resolution.pairs import Pairs

_WINDOW = 0x4A  # salt of view_hash
# files that an error names
_NAMED = 3

TRAIN_PHOTOS = ("china", "rocket", "motorcycle_left", "camera", "brick", "coins", "grass", "gravel")
TEST_PHOTOS = ("astronaut", "chelsea", "coffee", "flower")


class Patches:
    """Random patches to train on, one gather for the input and one for the target, on the device
    where the images lie.

    Sample i is of image i modulo their number, so an epoch shows every image ``repeat`` times,
    whatever its size; an image at several scales or downsizes counts as several. Each view of it is
    a square at a place uniform over the image, in one of the 8 symmetries of a square (mirrored,
    turned by 90 degrees), both a function of (seed, index, view) alone. Where images come at
    several downsizes, those smaller than the patch are left out.

    Args:
        pairs: the images.
        patch: side of the input, in its own pixels: pixels of LR, or of HR if the input is
            enlarged.
        repeat: patches of an image in an epoch.
        augment: False: places only, no symmetries.

    Raises:
        ValueError: an image is smaller than the patch, with downsizes at all of them; or a number
            below 1.

    Warns:
        UserWarning: how many are left out, at which downsize.
    """

    def __init__(self, pairs: Pairs, patch: int, repeat: int = 16, augment: bool = True):
        for name, value in (("patch", patch), ("repeat", repeat)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.pairs, self.patch, self.repeat, self.augment = pairs, patch, repeat, augment
        self.kept, self.unreadable = torch.tensor(_large_enough(pairs, patch)), pairs.unreadable
        self.factor = 1 if pairs.enlarged else pairs.scale

    def __len__(self) -> int:
        return len(self.kept) * self.repeat

    def __repr__(self) -> str:
        return (
            f"Patches({self.pairs!r}, patch={self.patch}, repeat={self.repeat}, "
            f"augment={self.augment})"
        )

    def path(self, index: int) -> str:
        """The file that a sample is cut from."""
        return self.pairs.paths[int(self.kept[index % len(self.kept)])]

    def to(self, device: torch.device | str) -> "Patches":
        """Move the images to ``device``, where batches are then made; returns itself."""
        self.pairs.to(device)
        self.kept = self.kept.to(device)
        return self

    def batch(self, index: Tensor, view: Tensor, seed: int) -> dict[str, Tensor]:
        """Samples ``index`` (b,) in their views ``view`` (b,): ``input`` (b,C,p,p) and ``target``
        (b,C,P,P), float32.
        """
        device = self.pairs.input.pixels.device
        index, view = index.to(device, non_blocking=True), view.to(device, non_blocking=True)
        image, number = self.kept[index % len(self.kept)], view_hash(seed, index, view, _WINDOW)
        turn, number = number % 8 * self.augment, number // 8
        # (b,2)
        places = self.pairs.input.sizes[image] - self.patch + 1
        top, left = number % places[:, 0], number // places[:, 0] % places[:, 1]
        f = self.factor
        return {
            "input": self.pairs.input.windows(image, top, left, self.patch, turn),
            "target": self.pairs.target.windows(image, top * f, left * f, self.patch * f, turn),
        }


def _large_enough(pairs: Pairs, patch: int) -> list[int]:
    """Which images a patch can be cut from; without downsizes it must be all."""
    image_of = [image for image, _, _ in pairs.variants]
    sides = [min(size) for _, size in pairs.input.spans]
    kept = [at for at, side in enumerate(sides) if side >= patch]
    small = [at for at, side in enumerate(sides) if side < patch]
    downsized = any(downsize != 1 for _, downsize, _ in pairs.variants)
    usable = {image_of[at] for at in kept} if downsized else set()
    lost = [at for at in small if image_of[at] not in usable]
    if lost:
        same_image = [at for at in lost if image_of[at] == image_of[lost[0]]]
        choose = max if downsized else min
        at = choose(same_image, key=sides.__getitem__)
        height, width = pairs.input.spans[at][1]
        raise ValueError(
            f"patch={patch}, but the input made of {pairs.paths[at]} has {height}x{width} pixels: "
            f"leave this image out or take a patch of at most {sides[at]}"
        )
    if small:
        counts = Counter(pairs.variants[at][1] for at in small)
        which = ", ".join(f"{count} at downsize {downsize}" for downsize, count in counts.items())
        warnings.warn(
            f"left out {len(small)} of {len(pairs)} variants of images, smaller than "
            f"patch={patch}: {which}; the first is of {pairs.paths[small[0]]}",
            stacklevel=3,
        )
    return kept


class Images:
    """Whole images for the test, a map-style data set: ``input`` (C,h,w), ``target`` (C,H,W),
    float32 in [0,1], ``scale``.
    """

    def __init__(self, pairs: Pairs):
        self.pairs, self.unreadable = pairs, pairs.unreadable

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"Images({self.pairs!r})"

    def path(self, index: int) -> str:
        """The file that an image is from."""
        return self.pairs.paths[index]

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        scale = self.pairs.variants[index][2]
        return {
            "input": self.pairs.input.image(index),
            "target": self.pairs.target.image(index),
            "scale": scale,
        }


def photos(
    train: bool = True,
    scale: int | Sequence[int] = 2,
    patch: int = 48,
    color: str = "rgb",
    enlarged: bool = False,
    repeat: int = 100,
    augment: bool = True,
    downsizes: Sequence[float] = (1.0,),
) -> Patches | Images:
    """Photos that scikit-image and scikit-learn bring along: 8 to train on, 4 others for the test.
    Nothing is downloaded.

    Training: china, rocket and motorcycle_left in color; camera, brick, coins, grass and gravel,
    which are grey, as three equal channels. Test: astronaut, chelsea, coffee and flower, all in
    color. Sides are between 300 and 741 pixels.

    Args:
        train: the training photos in patches, or the test photos.
        scale, color, enlarged: see :class:`Pairs`.
        patch, repeat, augment: of the training photos, see :class:`Patches`.
        downsizes: of the training photos, see :class:`Pairs`.

    Raises:
        ImportError: scikit-image is not installed.
        FileNotFoundError: its release does not have them where they were.
    """
    names = TRAIN_PHOTOS if train else TEST_PHOTOS
    downsizes = downsizes if train else (1.0,)
    pairs = Pairs(chosen_photos(names), None, scale, color, enlarged, downsizes)
    return _of_pairs(pairs, train, patch, repeat, augment)


def bsds(
    train: bool = True,
    scale: int | Sequence[int] = 2,
    root: str | os.PathLike = "bsds",
    patch: int = 48,
    color: str = "rgb",
    enlarged: bool = False,
    repeat: int = 16,
    augment: bool = True,
    downsizes: Sequence[float] = (1.0,),
    limit: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    skip_bad: bool = False,
) -> Patches | Images:
    """Photos of 481x321 pixels from the Berkeley Segmentation Dataset: training photos, and B100,
    the 100 test photos.

    Args:
        train: the photos of ``<root>/train`` in patches, or those of ``<root>/b100``.
        root: the folder of the two.
        scale, patch, color, enlarged, repeat, augment, downsizes, limit, cache_dir, skip_bad: as
            for :func:`image_folder`.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    folder = _folder(root, "<root>/train/<any name>.jpg and <root>/b100/<any name>.jpg")
    return image_folder(
        folder / ("train" if train else "b100"),
        train,
        scale,
        patch,
        color,
        enlarged,
        repeat,
        augment,
        downsizes,
        limit,
        cache_dir,
        skip_bad,
    )


def image_folder(
    root: str | os.PathLike,
    train: bool = True,
    scale: int | Sequence[int] = 2,
    patch: int = 48,
    color: str = "rgb",
    enlarged: bool = False,
    repeat: int = 16,
    augment: bool = True,
    downsizes: Sequence[float] = (1.0,),
    limit: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    skip_bad: bool = False,
) -> Patches | Images:
    """All images at any depth below a folder as HR, in the order of their paths; LR is made from
    them.

    Args:
        root: as it stands or below :func:`~kdtasks.images.roots.data_root`.
        train: patches to train on, or whole images.
        scale, color, enlarged, cache_dir, skip_bad: see :class:`Pairs`.
        patch, repeat, augment: in training only, see :class:`Patches`.
        downsizes: in training only, see :class:`Pairs`.
        limit: the first so many images only; None: all.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError, RuntimeError: see :class:`Pairs` and :class:`Patches`.
    """
    if limit is not None and not limit >= 1:
        raise ValueError(f"limit must be at least 1 or None, got {limit!r}")
    hr = _images(root)[:limit]
    downsizes = downsizes if train else (1.0,)
    pairs = Pairs(hr, None, scale, color, enlarged, downsizes, cache_dir, skip_bad)
    return _of_pairs(pairs, train, patch, repeat, augment)


def paired_folders(
    hr: str | os.PathLike,
    lr: str | os.PathLike,
    train: bool = True,
    scale: int = 2,
    patch: int = 48,
    color: str = "rgb",
    enlarged: bool = False,
    repeat: int = 16,
    augment: bool = True,
    suffix: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    skip_bad: bool = False,
) -> Patches | Images:
    """HR images and the LR images that belong to them, ``<hr>/0001.png`` and ``<lr>/0001x2.png``,
    as DIV2K has them.

    Args:
        hr, lr: folders, as they stand or below :func:`~kdtasks.images.roots.data_root`; pairs lie
            at the same place below them.
        suffix: what the name of an LR image has more than that of its HR image; None:
            ``'x<scale>'`` or nothing.
        train, scale, patch, color, enlarged, repeat, augment, cache_dir, skip_bad: as for
            :func:`image_folder`.

    Raises:
        FileNotFoundError: no such folder, no image in it, or an image without its partner.
        ValueError: two images for one place, or sizes that do not fit exactly; and as
            :class:`Pairs`.
        RuntimeError: an image cannot be read.
    """
    suffixes = ("", f"x{scale}") if suffix is None else (suffix,)
    large, small = _partners(_by_name(hr), _by_name(lr), suffixes)
    pairs = Pairs(large, small, scale, color, enlarged, (1.0,), cache_dir, skip_bad)
    return _of_pairs(pairs, train, patch, repeat, augment)


def _partners(
    large: dict[str, str], small: dict[str, str], suffixes: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The HR files, and the LR file of each."""
    partner: dict[str, str] = {}
    for name in large:
        candidates = [name + suffix for suffix in suffixes if name + suffix in small]
        if len(candidates) > 1:
            raise ValueError(
                f"{large[name]} has two LR images, {small[candidates[0]]} and "
                f"{small[candidates[1]]}: say suffix="
            )
        if candidates:
            partner[name] = candidates[0]
    alone = [path for name, path in large.items() if name not in partner]
    taken = set(partner.values())
    alone += [path for name, path in small.items() if name not in taken]
    if alone:
        listing = ", ".join(alone[:_NAMED]) + (", …" if len(alone) > _NAMED else "")
        places = " or ".join(f"<lr>/<name>{suffix}.png" for suffix in suffixes)
        raise FileNotFoundError(
            f"{len(alone)} images have no partner: {listing}. The LR image of <hr>/<name>.png is "
            f"{places}"
        )
    return list(large.values()), [small[partner[name]] for name in large]


def patch_shapes(
    scale: int = 2,
    patch: int = 48,
    color: str = "rgb",
    enlarged: bool = False,
    dataset: dict | None = None,
    **others: object,
) -> tuple[tuple, tuple]:
    """Shapes (C,h,w) of the input and (C,H,W) of the target of a config's training data.

    Its settings are the keyword arguments, with the defaults of the functions above; nothing is
    read.
    """
    if dataset is not None:
        # what is made of another data set has its patches
        return patch_shapes(**{**dataset, "color": color})
    channels = 3 if color == "rgb" else 1
    side = patch if enlarged else patch * scale
    return (channels, patch, patch), (channels, side, side)


def _of_pairs(
    pairs: Pairs, train: bool, patch: int, repeat: int, augment: bool
) -> Patches | Images:
    return Patches(pairs, patch, repeat, augment) if train else Images(pairs)


def _folder(
    root: str | os.PathLike,
    layout: str = "<root>/<any name>.png (or .jpg, .bmp, .webp, …), in folders or not",
) -> Path:
    folder = under_root(root)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {root} nor {folder}. Set the environment variable KDTASKS_DATA to the "
            f"folder that holds it, or pass its path. Expected layout: {layout}"
        )
    return folder


def _images(root: str | os.PathLike) -> list[str]:
    folder = _folder(root)
    paths = images_below(folder)
    if not paths:
        raise FileNotFoundError(f"no image below {folder}; known are {', '.join(sorted(SUFFIXES))}")
    return paths


def _by_name(root: str | os.PathLike) -> dict[str, str]:
    """Path below ``root`` without the ending -> file."""
    folder, paths = _folder(root), {}
    for path in _images(folder):
        name = os.path.splitext(os.path.relpath(path, folder))[0]
        if name in paths:
            raise ValueError(f"{paths[name]} and {path} differ in their ending only: keep one")
        paths[name] = path
    return paths
