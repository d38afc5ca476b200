"""Folders of images: one a class, or of unlabelled images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdtasks.core.classes import check_class
from kdtasks.images.arrays import ImageArrays
from kdtasks.images.decoding import decoded
from kdtasks.images.files import IMAGENET, ImageFiles
from kdtasks.images.listing import SUFFIXES, class_folders, images_below
from kdtasks.images.roots import found_folder
from kdtasks.images.subsets import first_of_each

_FOLDER_LAYOUT = "<root>/<class>/<any name>.png (or .jpg, .bmp, .webp, …), one folder a class"


def image_folder(
    root: str | Path,
    train: bool = True,
    size: int | None = None,
    small: bool = True,
    classes: Sequence[str] | None = None,
    subset: Sequence[str] | None = None,
    per_class: int | None = None,
    augment: dict | list | None = None,
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
    skip_bad: bool = False,
    cache_dir: str | Path | None = None,
) -> ImageArrays | ImageFiles:
    """Images in one folder a class, ``<root>/<class>/…``, at any depth below it; classes are
    numbered by name.

    Args:
        root: the folder of the class folders, as it stands or below :func:`data_root`.
        train: whether ``augment`` (small) or the random crop (not small) applies.
        size: images become size x size: small ones by a central square, resized; None: they must
            all be equal. 224 for ``small=False``.
        small: everything is decoded once into :class:`ImageArrays`; False: :class:`ImageFiles`,
            read by workers.
        classes: the names expected; their order numbers the classes.
        subset: only these classes, numbered in this order.
        per_class: only the first images of each class, by file name.
        augment: see :class:`ImageArrays`; with ``small=False`` None, or a list as
            :class:`ImageFiles` has it.
        mean, std: per channel, for values in [0,1]; by default ImageNet's.
        skip_bad: leave unreadable images out and warn once; of files (``small=False``) the Loader
            does that. A config says it by ``data.skip_bad``.
        cache_dir: keep the decoded images there in a file named for the list of files, their sizes
            and times; None: nowhere.

    Raises:
        FileNotFoundError: no such folder, or no image in it or in a class.
        ValueError: the class folders are not ``classes``; images differ in size; ``per_class`` is
            more than there are.
        RuntimeError: an image cannot be read; says its path.
    """
    paths, target, names = listed_images(
        found_folder([root], _FOLDER_LAYOUT), classes, subset, per_class
    )
    if not small:
        if isinstance(augment, Mapping) or cache_dir:
            raise ValueError(
                "augment=dict(…) and cache_dir belong to small=True; expected None, or a list of "
                "transforms of kornia.augmentation"
            )
        return ImageFiles(paths, target, names, size or 224, train, mean, std, augment)
    unreadable: dict[str, str] = {}
    images, index = decoded(
        paths, None if size is None else (size, size), 3, skip_bad, cache_dir, unreadable
    )
    paths = [paths[i] for i in index.tolist()]
    return ImageArrays(
        images, target[index], names, mean, std, augment if train else None, paths, unreadable
    )


def unlabelled_folder(
    root: str | Path,
    like: ImageArrays | None = None,
    size: int | None = None,
    limit: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: dict | list | None = None,
    skip_bad: bool = False,
    cache_dir: str | Path | None = None,
) -> ImageArrays:
    """All images at any depth below a folder, without labels (target -100), in the order of their
    paths.

    Args:
        root: as it stands or below :func:`data_root`.
        like: a data set whose image size, channels, mean, std and augmentation these images take;
            the next four then stay None.
        size: images become size x size, by a central square, resized; None: they must all be equal.
        limit: only the first so many.
        mean, std, augment: see :class:`ImageArrays`.
        skip_bad, cache_dir: as for :func:`image_folder`.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: ``like`` together with what it gives; images of different sizes.
        RuntimeError: an image cannot be read; says its path.
    """
    root = found_folder(
        [root], "<root>/<any name>.png (or .jpg, .bmp, .webp, …), in folders or not"
    )
    shape, channels = None if size is None else (size, size), 3
    if like is not None:
        if not size is mean is std is augment is None:
            raise ValueError(
                "unlabelled_folder: size, mean, std and augment come from `like`; pass either"
            )
        channels, *shape = like.images.shape[1:]
        mean, std, augment = like.mean, like.std, like.augment
    paths = images_below(root)[:limit]
    if not paths:
        raise FileNotFoundError(f"no image below {root}; known are {', '.join(sorted(SUFFIXES))}")
    unreadable: dict[str, str] = {}
    images, index = decoded(paths, shape, channels, skip_bad, cache_dir, unreadable)
    return ImageArrays(
        images,
        mean=mean,
        std=std,
        augment=augment,
        paths=[paths[i] for i in index.tolist()],
        unreadable=unreadable,
    )


def listed_images(
    root: Path, classes: Sequence[str] | None, subset: Sequence[str] | None, per_class: int | None
) -> tuple[list[str], Tensor, list[str]]:
    """Files, class numbers (N,) and class names of a folder of class folders."""
    folders = class_folders(root)
    if not folders:
        raise FileNotFoundError(
            f"no class folder in {root}. Expected layout: {_FOLDER_LAYOUT}; for images without "
            "labels there is unlabelled_folder"
        )
    missing, extra = (
        sorted(set(classes or folders) - set(folders)),
        sorted(set(folders) - set(classes or folders)),
    )
    if missing or extra:
        raise ValueError(
            f"the class folders in {root} are not the expected ones: missing "
            f"{missing}, not expected {extra}"
        )
    names = list(classes or folders)
    if subset is not None:
        names = [check_class(name, names) for name in subset]
    files = [images_below(folders[name]) for name in names]
    for name, of_class in zip(names, files):
        if not of_class:
            raise FileNotFoundError(
                f"no image in {folders[name]}; known are {', '.join(sorted(SUFFIXES))}"
            )
    target = torch.arange(len(names)).repeat_interleave(
        torch.tensor([len(of_class) for of_class in files])
    )
    index = first_of_each(target, per_class, names)
    paths = [path for of_class in files for path in of_class]
    return [paths[i] for i in index.tolist()], target[index], names
