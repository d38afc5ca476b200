"""Images for retrieval: the classes of the test are none of those trained on.

All functions return a data set of one of the engine's two kinds, with ``target`` (N,) and the names
``classes`` of its own classes, numbered from 0. A path is taken as it stands, or else below
:func:`kdtasks.images.roots.data_root`. A batch has m samples of each of its classes where the
config says ``data.per_class=m``.
"""

import os
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtasks.core.names import did_you_mean
from kdtasks.images.arrays import ImageArrays
from kdtasks.images.cifar import CIFAR100_CLASSES
from kdtasks.images.cifar import cifar100 as cifar100_images
from kdtasks.images.digits import digits as digit_images
from kdtasks.images.files import IMAGENET, ImageFiles, class_folders
from kdtasks.images.folders import image_folder as class_folder_images
from kdtasks.images.roots import under_root
from kdtasks.images.subsets import concat

# pytorch-metric-learning's: our folder
PML_SETS = {"CUB": "cub200", "Cars196": "cars196", "StanfordOnlineProducts": "sop"}


def split_classes(
    classes: Sequence[str], test_classes: float | int | Sequence[str], train: bool
) -> list[str]:
    """The names on one side of a split by class.

    Args:
        classes: all names, in their order.
        test_classes: the names for the test, or one; or an integer, how many, the last ones; or
            their share, between 0 and 1, rounded.
        train: which side.

    Raises:
        ValueError: a name that does not exist, or a side without a class.
    """
    classes = list(classes)
    if isinstance(test_classes, Real):
        whole = isinstance(test_classes, Integral) and not isinstance(test_classes, bool)
        count = (
            int(test_classes)
            if whole
            else round(test_classes * len(classes))
            if 0 < test_classes < 1
            else 0
        )
        if not 0 < count < len(classes):
            raise ValueError(
                f"test_classes={test_classes} of {len(classes)} classes: expected their names, how "
                "many, or a share between 0 and 1, and some on both sides"
            )
        test = classes[-count:]
    else:
        test = (
            [test_classes]
            if isinstance(test_classes, str)
            else list(() if test_classes is None else test_classes)
        )
        for name in test:
            if name not in classes:
                raise ValueError(
                    f"test_classes: no class {name!r}: {did_you_mean(str(name), classes)}"
                )
    side = [name for name in classes if (name in test) != train]
    if not side:
        raise ValueError(
            f"test_classes={test_classes!r} leaves no class for the "
            f"{'training' if train else 'test'}"
        )
    return side


def digits(
    train: bool = True,
    test_classes: float | int | Sequence[int] = (6, 7, 8, 9),
    augment: dict | None = None,
) -> ImageArrays:
    """scikit-learn's 1797 handwritten digits, 1x8x8: all images of some digits for training, all of
    the others for the test.

    Args:
        train: the training classes, or else the test classes.
        test_classes: digits for the test, or how many, or a share, as in :func:`split_classes`. By
            default 1083 images of 0 to 5 train, 714 of 6 to 9 test.
        augment: of the training images, see :class:`~kdtasks.images.arrays.ImageArrays`.
    """
    every = concat(digit_images(train=True), digit_images(train=False))
    test_classes = (
        test_classes if isinstance(test_classes, Real) else [str(digit) for digit in test_classes]
    )
    return _only(
        every, split_classes(every.classes, test_classes, train), augment if train else None
    )


def _only(data: ImageArrays, names: Sequence[str], augment: dict | None) -> ImageArrays:
    """The images of the classes ``names``, numbered in this order."""
    number = torch.full((len(data.classes),), -1)
    number[[data.classes.index(name) for name in names]] = torch.arange(len(names))
    kept = number[data.target].ge(0)
    part = data.subset(kept)
    return ImageArrays(
        part.images, number[data.target[kept]], names, data.mean, data.std, augment, part.paths
    )


def cifar100(
    train: bool = True,
    root=None,
    test_classes: float | int | Sequence[str] = 20,
    per_class: int | None = None,
    augment: dict | str | None = "standard",
    cache_dir=None,
    skip_bad: bool = False,
) -> ImageArrays:
    """CIFAR-100 with unseen classes: the training images of some classes, or the test images of the
    others.

    Args:
        train: 40,000 images of the 80 training classes, or 2,000 of the 20 test classes.
        test_classes: see :func:`split_classes`; by default the last 20 in the order of the names.
        root, per_class, augment, cache_dir, skip_bad: as for
            :func:`kdtasks.classification.data.cifar100`.
    """
    names = split_classes(CIFAR100_CLASSES, test_classes, train)
    return cifar100_images(
        train,
        root,
        per_class,
        classes=names,
        augment=augment,
        skip_bad=skip_bad,
        cache_dir=cache_dir,
    )


def image_folder(
    root,
    train: bool = True,
    test_classes: float | int | Sequence[str] = 0.5,
    size: int | None = None,
    small: bool = True,
    per_class: int | None = None,
    augment: dict | None = None,
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
    resize: int | None = None,
    cache_dir=None,
    skip_bad: bool = False,
):
    """``<root>/<class>/…`` with some of the classes for training and the others for the test.

    Args:
        train: the training classes, or else the test classes.
        test_classes: see :func:`split_classes`; by default the second half of the names.
        small: all images in one array; False: files that are read when their turn comes, cropped as
            :func:`pml_set` does.
        resize: small=False only; see :func:`pml_set`. root, size, per_class, augment, mean, std,
        cache_dir, skip_bad: as for :func:`kdtasks.classification.data.image_folder`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: see :func:`split_classes`; ``resize`` with ``small=True``.
    """
    if small and resize is not None:
        raise ValueError(
            f"resize={resize} belongs to small=False; small images are resized to size={size}"
        )
    folder = under_root(root)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {root} nor {folder}; set KDTASKS_DATA to the folder that holds it, or pass "
            "its path"
        )
    every = list(class_folders(folder))
    names = split_classes(every, test_classes, train)
    if small:
        return class_folder_images(
            folder,
            train,
            size,
            True,
            every,
            names,
            per_class,
            augment if train else None,
            mean,
            std,
            skip_bad,
            cache_dir,
        )
    found = class_folder_images(
        folder, train, size, False, every, names, per_class, augment, mean, std, cache_dir=cache_dir
    )
    return _Files(found.paths, found.target, found.classes, size or 224, train, mean, std, resize)


def pml_set(
    name: str,
    root=None,
    train: bool = True,
    size: int = 224,
    resize: int | None = None,
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
    download: bool = False,
):
    """A data set of pytorch-metric-learning with its customary split by class: CUB-200-2011,
    Cars-196, SOP.

    Images, the grey ones too, become RGB, resized to a square whatever their aspect ratio; in
    training a random square of it, mirrored with probability 1/2; in the test its centre: what
    RKD's authors do.

    Args:
        name: ``'CUB'``, ``'Cars196'``, ``'StanfordOnlineProducts'`` or another class of
            ``pytorch_metric_learning.datasets``.
        root: its folder; None: ``cub200``, ``cars196`` or ``sop`` below
            :func:`kdtasks.images.roots.data_root`.
        train: the first half of the classes, or else the second.
        size: side of the input.
        resize: side before cropping; None: ``size`` · 8/7, 256 for 224.
        mean, std: per channel, for values in [0,1].
        download: whether it may fetch what is not there.

    Raises:
        ValueError: pytorch-metric-learning has no such set.
        FileNotFoundError: the data is not there.
    """
    from pytorch_metric_learning import datasets

    known = [
        key
        for key, value in vars(datasets).items()
        if isinstance(value, type) and key != "BaseDataset"
    ]
    if name not in known:
        raise ValueError(
            f"pytorch-metric-learning has no data set {name!r}: {did_you_mean(name, known)}"
        )
    root = PML_SETS.get(name, name) if root is None else root
    root = under_root(root)
    try:
        found = getattr(datasets, name)(
            str(root), split="train" if train else "test", download=download
        )
    except (ValueError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{name} is not at {root}: {error}. Set KDTASKS_DATA to the folder that holds "
            f"{PML_SETS.get(name, name)!r}, pass root=<folder>, or download=True"
        ) from error
    labels, target = np.unique(found.labels, return_inverse=True)
    folder = {label: Path(path).parent.name for label, path in zip(found.labels, found.paths)}
    # a folder a class, but not so in SOP
    named = len(set(folder.values())) == len(labels)
    classes = [folder[label] if named else str(label) for label in labels.tolist()]
    return _Files(found.paths, target, classes, size, train, mean, std, resize)


class _Files(ImageFiles):
    """Image files resized to a square, then cropped: at random and perhaps mirrored, or in the
    middle.
    """

    def __init__(
        self, paths, target, classes, size: int, train: bool, mean, std, resize: int | None = None
    ):
        from torchvision.transforms import v2

        super().__init__(paths, target, classes, size, train, mean, std)
        resize = resize or round(size * 8 / 7)
        if resize < size:
            raise ValueError(
                f"resize={resize} is smaller than size={size}: there is nothing to crop"
            )
        crop = [v2.RandomCrop(size), v2.RandomHorizontalFlip()] if train else [v2.CenterCrop(size)]
        self.transform = v2.Compose(
            [
                v2.Resize((resize, resize), antialias=True),
                v2.ToImage(),
                *crop,
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
            ]
        )


def with_teacher(dataset, embeddings):
    """The same data set, whose batches also have ``teacher``, embeddings computed beforehand: so no
    teacher runs.

    The config keeps a teacher for the stages and the report; give it the ``checkpoint`` that the
    embeddings are from.

    Args:
        dataset: of either of the engine's kinds.
        embeddings: (N, D), row i is of sample i; a tensor or array, or a file ``.npy``, ``.pt`` or
            ``.safetensors`` with one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not one row a sample.
    """
    rows = load_embeddings(embeddings)
    if len(rows) != len(dataset):
        raise ValueError(
            f"expected one row a sample, ({len(dataset)}, D), got embeddings of shape "
            f"{tuple(rows.shape)}"
        )
    kind = _BatchedWithTeacher if callable(getattr(dataset, "batch", None)) else _WithTeacher
    return kind(dataset, rows)


def load_embeddings(embeddings) -> Tensor:
    """(N, D) float32, from a tensor or array, or a file ``.npy``, ``.pt`` or ``.safetensors``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not one row a sample.
    """
    rows = embeddings
    if isinstance(embeddings, str | os.PathLike):
        path = under_root(embeddings)
        if not path.is_file():
            raise FileNotFoundError(
                f"no file {embeddings} nor {path}; set KDTASKS_DATA to the folder that holds it, "
                "or pass its path"
            )
        rows = _read(path)
        if not isinstance(rows, Tensor | np.ndarray):
            raise ValueError(f"{path} holds a {type(rows).__name__}, not one array of embeddings")
    rows = torch.as_tensor(rows).detach().float()
    if rows.ndim != 2:
        raise ValueError(
            f"expected one row a sample, (N, D), got embeddings of shape {tuple(rows.shape)}"
        )
    return rows


def _read(path: Path):
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".safetensors":
        from kdtasks.core.weights import read_weights

        tensors = read_weights(path)[0]
        return next(iter(tensors.values())) if len(tensors) == 1 else tensors
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # another kind of file raises whatever it happens to
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read: expected .npy, .safetensors, or .pt of one tensor"
        ) from error


class _WithTeacher:
    """A map-style data set, each of whose samples has a row more."""

    def __init__(self, dataset, rows: Tensor):
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str):
        if name.startswith("__") or name in ("dataset", "batch", "to"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> dict:
        sample = self.dataset[index]
        sample = (
            dict(sample)
            if isinstance(sample, dict)
            else dict(zip(("input", "target"), sample, strict=True))
        )
        return {**sample, "teacher": self.rows[index]}


class _BatchedWithTeacher(_WithTeacher):
    """The same for one that gives whole batches."""

    def to(self, device) -> "_BatchedWithTeacher":
        self.rows = self.rows.to(device)
        if hasattr(self.dataset, "to"):
            self.dataset = self.dataset.to(device)
        return self

    def batch(self, index: Tensor, view: Tensor, seed: int) -> dict[str, Tensor]:
        return {
            **self.dataset.batch(index, view, seed),
            "teacher": self.rows[index.to(self.rows.device)],
        }


# what --dry-run needs to know without reading
digits.image_shape, cifar100.image_shape = (1, 8, 8), (3, 32, 32)
