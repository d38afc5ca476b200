"""Data sets of torchvision, and images from memory or a NumPy file."""

import importlib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdtasks.core.classes import UNLABELLED
from kdtasks.core.names import did_you_mean
from kdtasks.images.arrays import ImageArrays
from kdtasks.images.files import IMAGENET, files_augmentation, transform
from kdtasks.images.reading import read_image
from kdtasks.images.roots import data_root

if TYPE_CHECKING:
    from torchvision.datasets import VisionDataset


def torchvision_set(
    dataset: "str | type[VisionDataset]",
    augment: dict | list | None = None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    train: bool | None = None,
    **kwargs: Any,
) -> "ImageArrays | VisionDataset":
    """Any data set of torchvision: :class:`ImageArrays` if it holds its images in one array, itself
    if it reads files.

    Args:
        dataset: a class or its path, ``'torchvision.datasets.SVHN'``.
        augment: see :class:`ImageArrays`. For a set of files a list is as :class:`ImageFiles` has
            it, and anything else but None means its random crop.
        size: of the images of a set of files; None: 224.
        mean, std: per channel, for values in [0,1]; None: 0 and 1, for files ImageNet's.
        train: goes to the class, if it has that; False: ``augment`` does not apply. None: as the
            class has it.
        kwargs: go to the class: ``split='test'``, ``root`` (as it stands or below
            :func:`data_root`, which is its default), ``download=True``. With ``transform`` a set of
            files is left as it is.

    Raises:
        FileNotFoundError: the data is not there.
        ValueError: torchvision has no such data set, or an argument does not belong to its kind.
    """
    from torchvision.datasets.folder import default_loader

    if isinstance(dataset, str):
        module, _, name = dataset.rpartition(".")
        module = importlib.import_module(module or "torchvision.datasets")
        if not hasattr(module, name):
            raise ValueError(
                f"{module.__name__} has no {name!r}: {did_you_mean(name, dir(module))}"
            )
        dataset = getattr(module, name)
    accepts = inspect.signature(dataset).parameters
    augment = None if train is False else augment
    if train is not None and "train" in accepts:
        kwargs["train"] = train
    if "root" in accepts:
        root = kwargs.get("root", "")
        kwargs["root"] = str(root if root and Path(root).exists() else data_root() / root)
    try:
        data = dataset(**kwargs)
    except (RuntimeError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{dataset.__name__} could not read {kwargs.get('root')}: {error}. Set KDTASKS_DATA to "
            f"the folder that holds it, or pass root=<folder>, in torchvision's layout"
        ) from error
    images = getattr(data, "data", None)
    if images is None:
        if "transform" not in kwargs:
            if getattr(data, "loader", None) is default_loader:
                # as every other file is read here
                data.loader = read_image
            size, is_list = size or 224, isinstance(augment, list | tuple)
            data.mean, data.std = mean or IMAGENET[0], std or IMAGENET[1]
            data.transform = transform(
                size,
                augment is not None,
                data.mean,
                data.std,
                files_augmentation(augment, size) if is_list else None,
            )
        return data
    if size is not None:
        raise ValueError(f"size={size}: {dataset.__name__} is an array, its images keep their size")
    target = torch.as_tensor(
        np.asarray(getattr(data, "targets", getattr(data, "labels", None)))
    ).long()
    # STL10 writes -1
    target[target < 0] = UNLABELLED
    return ImageArrays(
        _channels_first(torch.as_tensor(images)),
        target,
        getattr(data, "classes", ()),
        mean,
        std,
        augment,
    )


def arrays(
    images: Tensor | np.ndarray | str | Path,
    target: Tensor | np.ndarray | Sequence[int] | str | Path | None = None,
    classes: Sequence[str] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: dict | list | None = None,
) -> ImageArrays:
    """Images from memory or from a NumPy file.

    Args:
        images: uint8 (N,C,H,W), (N,H,W,C) with 1 or 3 channels, or (N,H,W), as tensor, array, or
            file ``.npy``; or a file ``.npz`` with ``images`` and ``target``.
        target: (N,) integers, as tensor, list, array or file ``.npy``; None: what the ``.npz``
            says, or else unlabelled.
        classes, mean, std, augment: see :class:`ImageArrays`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the ``.npz`` has no ``images``; shapes that do not fit.
    """
    images, target = _loaded(images), _loaded(target)
    if isinstance(images, dict):
        if "images" not in images:
            raise ValueError(f"the .npz file has no 'images': {did_you_mean('images', images)}")
        target = images.get("target") if target is None else target
        images = images["images"]
    return ImageArrays(
        _channels_first(torch.as_tensor(images)), target, classes, mean, std, augment
    )


def _loaded(value: Any) -> Any:
    """A NumPy file's array, or the dict of its arrays; anything else as it is."""
    if not isinstance(value, str | os.PathLike):
        return value
    path = Path(value) if Path(value).exists() else data_root() / value
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {value} nor {path}; set KDTASKS_DATA to the folder that holds it, or pass "
            "its path"
        )
    loaded = np.load(path, allow_pickle=False)
    return loaded if isinstance(loaded, np.ndarray) else dict(loaded)


def _channels_first(images: Tensor) -> Tensor:
    """(N,H,W), (N,H,W,C) or (N,C,H,W) -> (N,C,H,W); if both ends could be channels, the front ones
    are.
    """
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        return images.permute(0, 3, 1, 2).contiguous()
    return images
