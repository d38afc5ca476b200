"""A whole data set of images in one uint8 tensor: a batch, augmentation included, is a few tensor
operations on its device.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdtasks.core.classes import UNLABELLED, class_numbers, count_classes, renumber
from kdtasks.core.names import did_you_mean
from kdtasks.core.views import view_hash
from kdtasks.images.augmentation import KorniaAugmentation, kornia_augmentation
from kdtasks.images.crops import resized_crops

AUGMENT = 0x1A  # salt of view_hash


class ImageArrays:
    r"""All images of a data set in one uint8 tensor; a batch is cut, mirrored and normalised in one
    go on its device.

    .. math:: \text{input} = \frac{x / 255 - \text{mean}}{\text{std}}

    ``augment=dict(crop=p, flip=True, pad_mode='zeros')``: a window of the image's own size, moved
    by whole pixels, uniform in [-p, p] down and across; what lies outside is black (``'zeros'``:
    value 0 before normalisation) or mirrored without repeating the edge (``'reflect'``); then with
    probability 1/2 mirrored left to right.

    ``augment=dict(scale=(0.25, 1), flip=True)``, in the place of ``crop``: a window of that share
    of the area, anywhere, enlarged to the image's size and not rounded to whole grey levels; see
    :func:`~kdtasks.images.crops.resized_crops`.

    ``augment=[…]``: transforms of ``kornia.augmentation``, applied one after the other to float32
    images in [0,1], before they are normalised and without rounding to whole grey levels; see
    :class:`~kdtasks.images.augmentation.KorniaAugmentation`. Needs ``kdtasks[augment]``. kornia's
    ``RandomCrop`` and ``RandomHorizontalFlip`` take 3.5 times as long as the crop and flip above
    (128 images of 32x32 on one CPU core; ``tools/benchmark.py --rows augmentation``).

    Either is a function of (seed, index, view) alone. Evaluation has ``augment=None``.

    Args:
        images: uint8 (N,C,H,W).
        target: int64 (N,), class numbers, -100 = unlabelled; None: all unlabelled.
        classes: their names; may be empty.
        mean, std: per channel, for values in [0,1]; None: 0 and 1. See :meth:`statistics`.
        augment: see above; None: none.
        paths: (N,) files that the images come from, for messages and reports; None: unknown.
        unreadable: ``{path: why}`` of the files that were to be among them and cannot be read, for
            reports.

    Raises:
        TypeError: images are not uint8, or ``augment`` holds something else than transforms.
        ValueError: shapes do not fit, a target lies outside the classes, ``augment`` has an
            unknown key or value, or a transform that cannot be applied.
    """

    def __init__(
        self,
        images: Tensor,
        target: Tensor | None = None,
        classes: Sequence[str] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: dict | Sequence | KorniaAugmentation | None = None,
        paths: Sequence[str] | None = None,
        unreadable: Mapping[str, str] | None = None,
    ):
        if images.dtype != torch.uint8:
            raise TypeError(
                f"images must be uint8, got {images.dtype}; from floats in [0,1]: (x * "
                "255).round().byte()"
            )
        if images.ndim != 4:
            raise ValueError(f"images must be (N,C,H,W), got {tuple(images.shape)}")
        n, channels = images.shape[:2]
        target = torch.full((n,), UNLABELLED) if target is None else torch.as_tensor(target).long()
        if target.shape != (n,):
            raise ValueError(
                f"expected one target for each of {n} images, got shape {tuple(target.shape)}"
            )
        top = len(classes) if classes else 2**31
        wrong = target[((target < 0) & (target != UNLABELLED)) | (target >= top)]
        if len(wrong):
            raise ValueError(
                f"a target is a class in 0..{top - 1} or {UNLABELLED} (unlabelled), got "
                f"{int(wrong[0])}"
            )
        self.mean = (0.0,) * channels if mean is None else tuple(map(float, mean))
        self.std = (1.0,) * channels if std is None else tuple(map(float, std))
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"images have {channels} channels, but mean={self.mean}, std={self.std}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        self.classes, self.paths, self.augment = (
            list(classes),
            paths,
            checked_augment(augment, images.shape[1:]),
        )
        self.images, self.target, self.unreadable = images, target, dict(unreadable or {})
        self.to(images.device)

    def to(self, device: torch.device | str) -> "ImageArrays":
        """Moves everything to ``device``, where batches are then made; returns itself."""
        self.images, self.target = self.images.to(device), self.target.to(device)
        # (C,1,1)
        std = torch.tensor(self.std, dtype=torch.float64)[:, None, None]
        mean = torch.tensor(self.mean, dtype=torch.float64)[:, None, None]
        self._scale, self._shift = (
            (1 / (255 * std)).float().to(device),
            (-mean / std).float().to(device),
        )
        return self

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        unlabelled = int((self.target == UNLABELLED).sum())
        return (
            f"ImageArrays({len(self)} images {tuple(self.images.shape[1:])}, "
            f"{len(self.classes)} classes, "
            f"{unlabelled} unlabelled, augment={self.augment}, {self.images.device})"
        )

    def path(self, index: int) -> str:
        """The file of an image; without files, its number."""
        return str(self.paths[index]) if self.paths is not None else f"image {index}"

    def subset(self, index: Tensor) -> "ImageArrays":
        """The images at ``index`` (int64 or bool), as a data set; class numbers stay."""
        index = torch.arange(len(self))[torch.as_tensor(index).cpu()]
        paths = None if self.paths is None else [self.paths[i] for i in index.tolist()]
        places = index.to(self.images.device)
        return ImageArrays(
            self.images[places],
            self.target[places],
            self.classes,
            self.mean,
            self.std,
            self.augment,
            paths,
            self.unreadable,
        )

    def with_classes(self, names: Sequence[str], drop: bool = False) -> "ImageArrays":
        """The same images, their classes numbered as in ``names``; see
        :func:`kdtasks.core.classes.class_numbers`.
        """
        numbers = class_numbers(
            self.classes, names, count_classes(self.target, len(self.classes)), drop
        )
        images = copy.copy(self)
        images.classes, images.target = list(names), renumber(self.target, numbers)
        return images

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel over all pixels, for values in [0,1]: what
        ``mean`` and ``std`` can be.
        """
        # (C,256)
        count = torch.stack(
            [torch.bincount(c.flatten(), minlength=256) for c in self.images.transpose(0, 1)]
        )
        share = count.double() / count.sum(1, keepdim=True)
        value = torch.arange(256, dtype=torch.float64, device=count.device) / 255
        # (C,)
        mean = share @ value
        var = (share * (value - mean[:, None]).square()).sum(1)
        return mean.tolist(), var.sqrt().tolist()

    def batch(self, index: Tensor, view: Tensor, seed: int) -> dict[str, Tensor]:
        """Images ``index`` (b,) in their views ``view`` (b,): ``input`` float32 (b,C,H,W) and
        ``target`` int64 (b,).
        """
        device = self.images.device
        place = index.to(device, non_blocking=True)
        images = self.images[place]
        if isinstance(self.augment, KorniaAugmentation):
            # kornia draws on the CPU
            number = view_hash(seed, index.cpu(), view.cpu(), AUGMENT)
            images = self.augment(images.float().div_(255), number).mul(255)
        elif self.augment:
            view = view.to(device, non_blocking=True)
            number = view_hash(seed, place, view, AUGMENT)
            if "scale" in self.augment:
                images = resized_crops(images, number, self.augment["scale"], self.augment["flip"])
            else:
                images = self._moved(images, number)
        return {
            "input": images.float().mul_(self._scale).add_(self._shift),
            "target": self.target[place],
        }

    def _moved(self, images: Tensor, number: Tensor) -> Tensor:
        """Digits of ``number`` (b,) in base 2p+1 are the two moves, the next bit the mirroring."""
        b, c, h, w = images.shape
        p, base = self.augment["crop"], 2 * self.augment["crop"] + 1
        down, across, flip = (
            number % base - p,
            number // base % base - p,
            number // base**2 % 2 == 1,
        )
        # (b,h)
        row = torch.arange(h, device=images.device) + down[:, None]
        col = torch.arange(w, device=images.device).expand(b, w)
        if self.augment["flip"]:
            col = torch.where(flip[:, None], w - 1 - col, col)
        # (b,w)
        col = col + across[:, None]
        row, row_out = _inside(row, h, self.augment["pad_mode"])
        col, col_out = _inside(col, w, self.augment["pad_mode"])
        pixel = (row[:, :, None] * w + col[:, None, :]).view(b, 1, h * w).expand(b, c, h * w)
        images = images.flatten(2).gather(2, pixel).view(b, c, h, w)
        if self.augment["pad_mode"] == "zeros" and p:
            images.masked_fill_((row_out[:, :, None] | col_out[:, None, :])[:, None], 0)
        return images


def _inside(place: Tensor, size: int, pad_mode: str) -> tuple[Tensor, Tensor]:
    """Places that exist, and which ones did not."""
    outside = (place < 0) | (place >= size)
    if pad_mode == "reflect":
        # -1 -> 1, size -> size - 2
        return (size - 1) - ((size - 1) - place.abs()).abs(), outside
    return place.clamp(0, size - 1), outside


def checked_augment(
    augment: dict | Sequence | KorniaAugmentation | None, shape: Sequence[int]
) -> dict | KorniaAugmentation | None:
    """``augment`` with its defaults, or as kornia's for images of ``shape``, (…,H,W); a ValueError
    for what :class:`ImageArrays` does not know.
    """
    if augment is None or isinstance(augment, list | tuple | KorniaAugmentation):
        return kornia_augmentation(augment, shape)
    if not isinstance(augment, Mapping):
        raise ValueError(
            "augment must be a dict(crop=…, flip=…), a list of transforms of kornia.augmentation, "
            f"or None, got {augment!r}"
        )
    size = tuple(shape)[-2:]
    defaults = {"crop": 0, "flip": False, "pad_mode": "zeros"}
    for key in augment:
        if key not in (*defaults, "scale"):
            raise ValueError(f"augment has no {key!r}: {did_you_mean(key, (*defaults, 'scale'))}")
    augment = {**defaults, **augment}
    if not (isinstance(augment["crop"], int) and 0 <= augment["crop"] < min(size)):
        raise ValueError(
            f"augment: crop must be in 0..{min(size) - 1} (image {tuple(size)}), got "
            f"{augment['crop']!r}"
        )
    if "scale" in augment:
        augment["scale"] = _checked_scale(augment)
    if augment["pad_mode"] not in ("zeros", "reflect"):
        raise ValueError(
            f"augment: pad_mode must be 'zeros' or 'reflect', got {augment['pad_mode']!r}"
        )
    return augment


def _checked_scale(augment: Mapping) -> tuple[float, float]:
    scale = augment["scale"]
    is_pair = isinstance(scale, Sequence) and len(scale) == 2
    if not is_pair or not 0 < scale[0] <= scale[1] <= 1 or augment["crop"]:
        raise ValueError(
            "augment: scale must be (smallest, largest) share of the area, 0 < smallest <= largest "
            f"<= 1, in the place of crop, got scale={scale!r} and crop={augment['crop']}"
        )
    return float(scale[0]), float(scale[1])
