"""Images for retrieval: test classes are disjoint from training classes.

All functions return a data set of one of the engine's two kinds, with ``target`` (N,) and the names
``classes`` of its own classes, numbered from 0. A path is taken as it stands, or else below
:func:`kdtasks.images.roots.data_root`. With ``data.per_class=m`` in the config, a batch has m
samples of each of its classes.
"""

import os
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdtasks.core.names import did_you_mean
from kdtasks.images.arrays import ImageArrays
from kdtasks.images.augmentation import KorniaAugmentation
from kdtasks.images.cifar import CIFAR100_CLASSES
from kdtasks.images.cifar import cifar100 as cifar100_images
from kdtasks.images.digits import digits as digit_images
from kdtasks.images.files import IMAGENET, ImageFiles
from kdtasks.images.folders import image_folder as class_folder_images
from kdtasks.images.listing import class_folders
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
        count = _test_count(test_classes, len(classes))
        if not 0 < count < len(classes):
            raise ValueError(
                f"test_classes={test_classes} of {len(classes)} classes: expected their names, how "
                "many, or a share between 0 and 1, and some on both sides"
            )
        test = classes[-count:]
    elif isinstance(test_classes, str):
        test = [test_classes]
    else:
        test = [] if test_classes is None else list(test_classes)
    for name in test:
        if name not in classes:
            raise ValueError(f"test_classes: no class {name!r}: {did_you_mean(str(name), classes)}")
    side = [name for name in classes if (name in test) != train]
    if not side:
        purpose = "training" if train else "test"
        raise ValueError(f"test_classes={test_classes!r} leaves no class for the {purpose}")
    return side


def _test_count(test_classes: float | int, classes: int) -> int:
    """How many classes a number or a share means; 0 for anything else."""
    if isinstance(test_classes, Integral) and not isinstance(test_classes, bool):
        return int(test_classes)
    return round(test_classes * classes) if 0 < test_classes < 1 else 0


def digits(
    train: bool = True,
    test_classes: float | int | Sequence[int] = (6, 7, 8, 9),
    augment: dict | list | None = None,
) -> ImageArrays:
    """scikit-learn's 1797 handwritten digits, 1x8x8: all images of some digits for training, all of
    the others for the test.

    Args:
        train: the training classes, or else the test classes.
        test_classes: digits for the test, or how many, or a share, as in :func:`split_classes`. By
            default 1083 images of 0 to 5 train, 714 of 6 to 9 test.
        augment: of the training images, see :class:`~kdtasks.images.arrays.ImageArrays`.
    """
    images = concat(digit_images(train=True), digit_images(train=False))
    if not isinstance(test_classes, Real):
        test_classes = [str(digit) for digit in test_classes]
    names = split_classes(images.classes, test_classes, train)
    return _only(images, names, augment if train else None)


def _only(data: ImageArrays, names: Sequence[str], augment: dict | list | None) -> ImageArrays:
    """The images of the classes ``names``, numbered in this order."""
    number = torch.full((len(data.classes),), -1)
    number[[data.classes.index(name) for name in names]] = torch.arange(len(names))
    mask = number[data.target].ge(0)
    part = data.subset(mask)
    return ImageArrays(
        part.images, number[data.target[mask]], names, data.mean, data.std, augment, part.paths
    )


def cifar100(
    train: bool = True,
    root: str | os.PathLike | None = None,
    test_classes: float | int | Sequence[str] = 20,
    per_class: int | None = None,
    augment: dict | list | str | None = "standard",
    cache_dir: str | os.PathLike | None = None,
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
    root: str | os.PathLike,
    train: bool = True,
    test_classes: float | int | Sequence[str] = 0.5,
    size: int | None = None,
    small: bool = True,
    per_class: int | None = None,
    augment: dict | list | None = None,
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
    resize: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    skip_bad: bool = False,
) -> ImageArrays | ImageFiles:
    """``<root>/<class>/…`` with some of the classes for training and the others for the test.

    Args:
        train: the training classes, or else the test classes.
        test_classes: see :func:`split_classes`; by default the second half of the names.
        small: all images in one array; False: files that are read when their turn comes, cropped as
            :func:`pml_set` does.
        resize: small=False only; see :func:`pml_set`.
        root, size, per_class, augment, mean, std, cache_dir, skip_bad: as for
            :func:`kdtasks.classification.data.image_folder`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: see :func:`split_classes`; ``resize`` with ``small=True``.
    """
    if small and resize is not None:
        raise ValueError(
            f"resize={resize} belongs to small=False; small images are resized to size={size}"
        )
    folder = _existing_folder(root)
    all_names = list(class_folders(folder))
    names = split_classes(all_names, test_classes, train)
    shared = {
        "classes": all_names,
        "subset": names,
        "per_class": per_class,
        "mean": mean,
        "std": std,
        "cache_dir": cache_dir,
    }
    if small:
        augment = augment if train else None
        return class_folder_images(
            folder, train, size, True, augment=augment, skip_bad=skip_bad, **shared
        )
    files = class_folder_images(folder, train, size, False, augment=augment, **shared)
    return _SquareFiles(
        files.paths, files.target, files.classes, size or 224, train, mean, std, resize, augment
    )


def _existing_folder(root: str | os.PathLike) -> Path:
    folder = under_root(root)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {root} nor {folder}; set KDTASKS_DATA to the folder that holds it, or pass "
            "its path"
        )
    return folder


def pml_set(
    name: str,
    root: str | os.PathLike | None = None,
    train: bool = True,
    size: int = 224,
    resize: int | None = None,
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
    download: bool = False,
) -> ImageFiles:
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

    names = [
        key
        for key, value in vars(datasets).items()
        if isinstance(value, type) and key != "BaseDataset"
    ]
    if name not in names:
        raise ValueError(
            f"pytorch-metric-learning has no data set {name!r}: {did_you_mean(name, names)}"
        )
    folder = PML_SETS.get(name, name)
    root = under_root(folder if root is None else root)
    split = "train" if train else "test"
    try:
        dataset = getattr(datasets, name)(str(root), split=split, download=download)
    except (ValueError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{name} is not at {root}: {error}. Set KDTASKS_DATA to the folder that holds "
            f"{folder!r}, pass root=<folder>, or download=True"
        ) from error
    target = np.unique(dataset.labels, return_inverse=True)[1]
    classes = _class_names(dataset.paths, dataset.labels)
    return _SquareFiles(dataset.paths, target, classes, size, train, mean, std, resize)


def _class_names(paths: Sequence[str], labels: Sequence[int]) -> list[str]:
    """The folders of the labels in rising order; the labels themselves if classes share folders, as
    in SOP.
    """
    folder = {label: Path(path).parent.name for label, path in zip(labels, paths)}
    numbers = np.unique(labels).tolist()
    if len(set(folder.values())) == len(numbers):
        return [folder[number] for number in numbers]
    return [str(number) for number in numbers]


class _SquareFiles(ImageFiles):
    """Image files resized to a square, then cropped: at random and perhaps mirrored, or in the
    middle; with ``augment`` in training by these transforms, then in the middle.
    """

    def __init__(
        self,
        paths: Sequence[str],
        target: Sequence[int] | Tensor,
        classes: Sequence[str],
        size: int,
        train: bool,
        mean: Sequence[float],
        std: Sequence[float],
        resize: int | None = None,
        augment: Sequence[nn.Module] | KorniaAugmentation | None = None,
    ):
        from torchvision.transforms import v2

        super().__init__(paths, target, classes, size, train, mean, std, augment)
        resize = resize or round(size * 8 / 7)
        if resize < size:
            raise ValueError(
                f"resize={resize} is smaller than size={size}: there is nothing to crop"
            )
        scaled, normalized = v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)
        if self.augment:
            steps = [v2.ToPureTensor(), scaled, self.augment.one, v2.CenterCrop(size)]
        elif train:
            steps = [v2.RandomCrop(size), v2.RandomHorizontalFlip(), scaled]
        else:
            steps = [v2.CenterCrop(size), scaled]
        square = v2.Resize((resize, resize), antialias=True)
        self.transform = v2.Compose([square, v2.ToImage(), *steps, normalized])


def with_teacher(
    dataset: object, embeddings: "Tensor | np.ndarray | str | os.PathLike"
) -> "_WithTeacher":
    """The same data set, whose batches also have ``teacher``, embeddings computed beforehand, so
    that no teacher runs.

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


def load_embeddings(embeddings: "Tensor | np.ndarray | str | os.PathLike") -> Tensor:
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


def _read(path: Path) -> object:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".safetensors":
        from kdtasks.core.weight_files import read_weights

        tensors = read_weights(path)[0]
        return next(iter(tensors.values())) if len(tensors) == 1 else tensors
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # files of other kinds raise all sorts of errors
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read: expected .npy, .safetensors, or .pt of one tensor"
        ) from error


class _WithTeacher:
    """A map-style data set whose samples also have ``teacher``, a row of embeddings."""

    def __init__(self, dataset: object, rows: Tensor):
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name in ("dataset", "batch", "to"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> dict:
        sample = self.dataset[index]
        if not isinstance(sample, dict):
            sample = dict(zip(("input", "target"), sample, strict=True))
        return {**sample, "teacher": self.rows[index]}


class _BatchedWithTeacher(_WithTeacher):
    """The same for a data set that gives whole batches."""

    def to(self, device: torch.device | str) -> "_BatchedWithTeacher":
        """Move both to ``device``; returns itself."""
        self.rows = self.rows.to(device)
        if hasattr(self.dataset, "to"):
            self.dataset = self.dataset.to(device)
        return self

    def batch(self, index: Tensor, view: Tensor, seed: int) -> dict[str, Tensor]:
        """The data set's batch, and ``teacher`` (b, D)."""
        batch = self.dataset.batch(index, view, seed)
        return {**batch, "teacher": self.rows[index.to(self.rows.device)]}


# read by --dry-run, which opens no file
digits.image_shape, cifar100.image_shape = (1, 8, 8), (3, 32, 32)
