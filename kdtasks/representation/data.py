"""Images to learn from, without labels, and labelled ones to test by.

To learn from: any data set of images; ``unlabelled_folder``, whatever lies below a folder;
``without_labels`` takes a set's labels away. To test by: ``bank_and_queries`` of two labelled sets,
or ``split`` of one.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdtasks.core.classes import UNLABELLED
from kdtasks.images import folders
from kdtasks.images.arrays import ImageArrays
from kdtasks.images.cifar import cifar100
from kdtasks.images.digits import digits
from kdtasks.images.files import IMAGENET
from kdtasks.images.folders import image_folder
from kdtasks.images.photos import photo_patches
from kdtasks.images.roots import under_root
from kdtasks.images.subsets import in_hash_order

__all__ = [
    "bank_and_queries",
    "cifar100",
    "cifar100_neighbours",
    "digits",
    "image_folder",
    "labelled_by",
    "photo_patches",
    "split",
    "unlabelled_folder",
    "without_labels",
]

# salt of view_hash
_SPLIT = 0x1D


class _WithoutLabels:
    """A data set whose samples have no target."""

    hidden = ("target", "targets", "classes", "with_classes", "class_to_idx")

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("dataset", "batch", "to", *self.hidden):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> dict:
        sample = self.dataset[index]
        if isinstance(sample, Mapping):
            return {name: value for name, value in sample.items() if name != "target"}
        return {"input": sample[0] if isinstance(sample, Sequence) else sample}


class _BatchesWithoutLabels(_WithoutLabels):
    """The same of a data set that gives whole batches."""

    def to(self, device: torch.device | str) -> "_BatchesWithoutLabels":
        """Move it to ``device``; returns itself."""
        if hasattr(self.dataset, "to"):
            self.dataset = self.dataset.to(device)
        return self

    def batch(self, index: Tensor, view: Tensor, seed: int) -> dict[str, Tensor]:
        """The data set's batch, without ``target``."""
        values = self.dataset.batch(index, view, seed)
        return {name: value for name, value in values.items() if name != "target"}


def without_labels(dataset: Any) -> Any:
    """The same images, their labels hidden; all of them are learned from."""
    batched = callable(getattr(dataset, "batch", None))
    return (_BatchesWithoutLabels if batched else _WithoutLabels)(dataset)


def unlabelled_folder(
    root: str | Path,
    size: int = 128,
    limit: int | None = None,
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
    augment: dict | list | None = None,
    skip_bad: bool = False,
    cache_dir: str | Path | None = None,
) -> Any:
    """All images at any depth below a folder, of any size and format: see
    :func:`kdtasks.images.folders.unlabelled_folder`.

    Args:
        root, limit, skip_bad, cache_dir: as there.
        size: images become size x size, by a central square, resized.
        mean, std: per channel; by default ImageNet's.
        augment: see :class:`~kdtasks.images.arrays.ImageArrays`; of what is learned from
            ``dict(scale=(0.25, 1), flip=True)`` is usual.
    """
    return without_labels(
        folders.unlabelled_folder(
            root,
            size=size,
            limit=limit,
            mean=mean,
            std=std,
            augment=augment,
            skip_bad=skip_bad,
            cache_dir=cache_dir,
        )
    )


def labelled_by(dataset: Any, labels: str | Path) -> ImageArrays:
    """The same images with labels of a file: the clusters of a teacher, say, in the place of
    classes.

    Args:
        dataset: images in memory, with labels or without.
        labels: a ``.npy`` file of whole numbers from 0 on, one an image, in their order; or what
            :func:`save_labels` has written.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has another number of labels than there are images, or other ones.

    Warns:
        UserWarning: an image has other pixels than the one that its label was made for.
    """
    images = dataset.dataset if isinstance(dataset, _WithoutLabels) else dataset
    path = under_root(labels)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(labels)!r} of labels")
    loaded, made_for = np.load(path, allow_pickle=False), None
    if not isinstance(loaded, np.ndarray):
        loaded, made_for = loaded["labels"], loaded["images"]
    target = torch.from_numpy(loaded)
    if target.shape != (len(images),) or target.is_floating_point() or int(target.min()) < 0:
        raise ValueError(
            f"{str(path)!r} has {target.dtype} {tuple(target.shape)}: expected whole numbers from "
            f"0 on, one for each of {len(images)} images; where images came or went, make it anew"
        )
    if made_for is not None:
        _warn_of_others(images, made_for, path)
    other = images.subset(torch.arange(len(images)))
    other.target = target.long().to(other.images.device)
    other.classes = [f"cluster {k}" for k in range(int(target.max()) + 1)]
    return other


def save_labels(path: str | Path, labels: Tensor, images: ImageArrays) -> None:
    """Write labels (n,) for :func:`labelled_by`, with a sum of each image that they are of; a
    ``.npz`` file.
    """
    np.savez(path, labels=labels.cpu().numpy(), images=_sums(images))


def _sums(images: ImageArrays) -> np.ndarray:
    """Of each image's pixels, uint64 (n,)."""
    digests = (
        hashlib.blake2b(image.tobytes(), digest_size=8).digest()
        for image in images.images.cpu().numpy()
    )
    return np.frombuffer(b"".join(digests), dtype="<u8")


def _warn_of_others(images: ImageArrays, made_for: np.ndarray, path: Path) -> None:
    other = (_sums(images) != made_for).nonzero()[0]
    if len(other):
        warnings.warn(
            f"{len(other)} of {len(images)} images, as {images.path(int(other[0]))}, have other "
            f"pixels than those that the labels in {str(path)!r} were made for; where this is not "
            "another version of what decodes them, make the labels anew",
            stacklevel=3,
        )


class BankAndQueries:
    """Labelled images, first those of a bank, then the queries that are to find their class in it.

    Attributes:
        bank: how many are the bank's.
        target: (N,) classes, numbered as in the bank.
        classes: their names.

    Raises:
        TypeError, ValueError: see :func:`bank_and_queries`.
    """

    def __init__(self, bank: ImageArrays, queries: ImageArrays):
        self.parts = (bank, queries)
        self.bank, self.classes = len(bank), list(bank.classes)
        self.target = torch.cat([part.target.cpu() for part in self.parts])

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def unreadable(self) -> dict[str, str]:
        """What both have left out, and why."""
        return {path: why for part in self.parts for path, why in part.unreadable.items()}

    def part_of(self, index: int) -> tuple[ImageArrays, int]:
        """The set that an image is of, and its place there."""
        return self.parts[index >= self.bank], index - self.bank * (index >= self.bank)

    def path(self, index: int) -> str:
        """The file of an image."""
        part, place = self.part_of(index)
        return part.path(place)

    def to(self, device: torch.device | str) -> "BankAndQueries":
        """Move both to ``device``; returns itself."""
        self.parts = tuple(part.to(device) for part in self.parts)
        return self

    def batch(self, index: Tensor, view: Tensor, seed: int) -> dict[str, Tensor]:
        """Images of both, in the order of ``index``."""
        is_query = index >= self.bank
        batches = [
            part.batch(index[is_in_part] - first, view[is_in_part], seed)
            for part, is_in_part, first in zip(self.parts, (~is_query, is_query), (0, self.bank))
        ]
        order = torch.cat([(~is_query).nonzero()[:, 0], is_query.nonzero()[:, 0]]).argsort()
        values = {name: torch.cat([part[name] for part in batches]) for name in batches[0]}
        return {name: value[order.to(value.device)] for name, value in values.items()}


def bank_and_queries(bank: ImageArrays, queries: ImageArrays) -> BankAndQueries:
    """Two labelled sets to test a representation by: the queries find their class in the bank.

    Images that are in both, pixel for pixel, are warned of: such a query finds itself.

    Raises:
        TypeError: not sets of images in memory.
        ValueError: an image without a label, a file that is in both, images of other sizes or
            normalised otherwise, or a class of the queries that the bank lacks.
    """
    for name, part in (("bank", bank), ("queries", queries)):
        if not isinstance(part, ImageArrays):
            raise TypeError(
                f"{name}: expected images in memory (image_folder, cifar100, arrays …), got "
                f"{type(part).__name__}"
            )
        if not len(part) or (part.target == UNLABELLED).any():
            raise ValueError(f"{name}: expected labelled images, got {part!r}")
    if bank.images.shape[1:] != queries.images.shape[1:]:
        raise ValueError(
            f"images of {tuple(bank.images.shape[1:])} in the bank and of "
            f"{tuple(queries.images.shape[1:])} among the queries"
        )
    if (bank.mean, bank.std) != (queries.mean, queries.std):
        raise ValueError(
            f"the bank is normalised with mean {bank.mean}, std {bank.std}, the queries with "
            f"{queries.mean}, {queries.std}: expected the same"
        )
    common = set(bank.paths or ()) & set(queries.paths or ())
    if common:
        raise ValueError(f"{len(common)} files are in the bank and queries too, as {min(common)}")
    _warn_of_copies(bank, queries)
    if bank.classes and queries.classes and queries.classes != bank.classes:
        queries = queries.with_classes(bank.classes)
    return BankAndQueries(bank, queries)


def _warn_of_copies(bank: ImageArrays, queries: ImageArrays) -> None:
    places = {hash(image.tobytes()): k for k, image in enumerate(bank.images.cpu().numpy())}
    copies = []
    for k, image in enumerate(queries.images.cpu().numpy()):
        place = places.get(hash(image.tobytes()))
        if place is not None and (bank.images[place].cpu().numpy() == image).all():
            copies.append((k, place))
    if copies:
        k, place = copies[0]
        warnings.warn(
            f"{len(copies)} of {len(queries)} queries are in the bank too, pixel for pixel "
            f"({queries.path(k)} as {bank.path(place)}): they find themselves, and the numbers are "
            "too high",
            stacklevel=3,
        )


def split(dataset: ImageArrays, queries: float = 0.3, seed: int = 0) -> BankAndQueries:
    """One labelled set as a bank and queries, in the same shares of each class.

    Args:
        dataset: images in memory.
        queries: their share; of each class at least one image, and one is left for the bank.
        seed: of the split.

    Raises:
        ValueError: a share outside (0, 1), a class of one image, or as :func:`bank_and_queries`.
    """
    if not 0 < queries < 1:
        raise ValueError(f"queries must be a share between 0 and 1, got {queries}")
    is_query = torch.zeros(len(dataset), dtype=torch.bool)
    for label, places in in_hash_order(dataset.target.cpu(), seed, _SPLIT).items():
        if len(places) < 2:
            name = dataset.classes[label] if dataset.classes else label
            raise ValueError(f"the class {name!r} has one image: expected two at least to split")
        is_query[places[: min(max(1, round(queries * len(places))), len(places) - 1)]] = True
    return bank_and_queries(dataset.subset(~is_query), dataset.subset(is_query))


def cifar100_neighbours(
    per_class: int | None = 100,
    queries_per_class: int | None = 25,
    root: str | Path | None = None,
    skip_bad: bool = False,
    cache_dir: str | Path | None = None,
) -> BankAndQueries:
    """CIFAR-100 to test by: a bank of training images, queries of the test images, the first of
    each class.

    Args:
        per_class, queries_per_class: how many of each class; None: all 500, and all 100.
        root, skip_bad, cache_dir: as for :func:`~kdtasks.images.cifar.cifar100`.
    """
    common = {"root": root, "augment": None, "skip_bad": skip_bad, "cache_dir": cache_dir}
    return bank_and_queries(
        cifar100(True, per_class=per_class, **common),
        cifar100(False, per_class=queries_per_class, **common),
    )


# what --dry-run needs to know without reading
unlabelled_folder.image_shape = (3, 128, 128)
