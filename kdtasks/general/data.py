"""Images for classification: whole data sets in one uint8 tensor, or files that are read when their turn comes.

:class:`ImageArrays` holds all images and makes a batch, augmentation included, in a few tensor operations on its device.
The functions build one from what lies on disk (``digits``, ``image_folder``, ``cifar100``, ``torchvision_set``, ``arrays``,
``unlabelled_folder``, ``concat``). A path is taken as it stands, or else below :func:`data_root`.
"""

import copy
import importlib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtasks.core.names import did_you_mean
from kdtasks.core.views import view_hash
from kdtasks.images.arrays import UNLABELLED, ImageArrays
from kdtasks.images.files import (
    IMAGENET,
    SUFFIXES,
    ImageFiles,
    class_folders,
    decoded,
    images_below,
    read_image,
    transform,
)

_SUBSET, _SPLIT = 0x1B, 0x1C                                                                   # salts of view_hash
_CIFAR100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))                                # of the training images
_DIGITS = ((0.3053,), (0.3760,))                                                               # of all 1797 images
_FOLDER_LAYOUT = "<root>/<class>/<any name>.png (or .jpg, .bmp, .webp, …), one folder a class"

# https://www.cs.toronto.edu/~kriz/cifar.html: the 20 superclasses and their 5 classes each.
CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
CIFAR100_CLASSES = tuple(sorted(" ".join(CIFAR100_SUPERCLASSES.values()).split()))             # target = place in this list


def data_root() -> Path:
    """The folder of all data sets: the environment variable KDTASKS_DATA, or else ``data`` in the current folder."""
    return Path(os.environ.get("KDTASKS_DATA") or "data")


def _found(roots: Sequence, layout: str, parts: Sequence[str] = ("",)) -> Path:
    """The first of ``roots``, each as it stands or below :func:`data_root`, that has one of the folders ``parts``."""
    looked = list(dict.fromkeys(folder for root in roots for folder in (Path(root), data_root() / root)))
    for folder in looked:
        if any((folder / part).is_dir() for part in parts):
            return folder
    raise FileNotFoundError(
        f"no data set at {' nor at '.join(str(folder / parts[0]) for folder in looked)}. Set the environment variable "
        f"KDTASKS_DATA to the folder that holds it, or pass its path: --cfg-options data.train.root=<folder>. "
        f"Expected layout: {layout}")


def _known(name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise ValueError(f"no class {name!r}: {did_you_mean(name, names)}")
    return name


def _in_hash_order(target: Tensor, seed: int, salt: int) -> dict[int, Tensor]:
    """For each class its places in ``target``, in an order made from (seed, place); unlabelled ones left out."""
    order = view_hash(seed, torch.arange(len(target)), 0, salt).argsort(stable=True)
    return {c: order[target[order] == c] for c in target.unique().tolist() if c != UNLABELLED}


def labelled_subset(target, per_class: int, seed: int = 0) -> Tensor:
    """A class-balanced choice of labelled samples.

    Args:
        target: (N,) class numbers; -100 is never chosen.
        per_class: how many of each class. With the same seed a smaller number gives a subset of a larger one.
        seed: of the choice.

    Returns:
        int64 (classes·per_class,), indices in rising order.

    Raises:
        ValueError: a class has fewer samples, or ``per_class < 1``.
    """
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    chosen = _in_hash_order(torch.as_tensor(target).cpu(), seed, _SUBSET)
    for c, places in chosen.items():
        if len(places) < per_class:
            raise ValueError(f"per_class={per_class}, but class {c} has {len(places)} labelled samples")
    return torch.cat([places[:per_class] for places in chosen.values()]).sort().values


def few_labels(dataset: ImageArrays, per_class: int, seed: int = 0) -> ImageArrays:
    """The same images, of which only ``per_class`` of each class keep their label (see :func:`labelled_subset`)."""
    hidden = torch.full_like(dataset.target, UNLABELLED)
    kept = labelled_subset(dataset.target, per_class, seed).to(hidden.device)
    hidden[kept] = dataset.target[kept]
    few = copy.copy(dataset)
    few.target = hidden
    return few


def _first(target: Tensor, per_class: int | None, classes: Sequence[str]) -> Tensor:
    """Indices of the first ``per_class`` samples of each class, in rising order; None: all."""
    if per_class is None:
        return torch.arange(len(target))
    index = torch.cat([(target == c).nonzero()[:per_class, 0] for c in range(len(classes))]).sort().values
    if per_class < 1 or len(index) < per_class * len(classes):
        few = {name: int((target == c).sum()) for c, name in enumerate(classes) if (target == c).sum() < per_class}
        raise ValueError(f"per_class={per_class}: " + (f"too few samples in {few}" if few else "expected at least 1"))
    return index


def digits(train: bool = True, test_fraction: float = 0.3, part: str | None = None, seed: int = 0,
           augment: dict | None = None) -> ImageArrays:
    """scikit-learn's 1797 real handwritten digits, 1x8x8; its values 0..16 become 0..255. Nothing is downloaded.

    Args:
        train: the training images, or else the test images.
        test_fraction: share of each class that is for the test.
        part: ``'teacher'`` or ``'student'``: one of two halves of the training images, none in both; None: all of them.
        seed: of the split. The same one gives the same test images whatever ``part`` is.
        augment: of the training images, see :class:`ImageArrays`; digits are not mirrored.

    Raises:
        ValueError: an unknown ``part``, a part of the test images, or ``test_fraction`` outside (0, 1).
    """
    from sklearn.datasets import load_digits

    if part not in (None, "teacher", "student"):
        raise ValueError(f"part must be 'teacher', 'student' or None, got {part!r}")
    if part and not train:
        raise ValueError(f"part={part!r} belongs to train=True: teacher and student share the test images")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    data = load_digits()
    target = torch.from_numpy(data.target).long()
    images = torch.from_numpy(np.round(data.images * 255 / 16).astype(np.uint8))[:, None]        # (1797,1,8,8)
    index = []
    for places in _in_hash_order(target, seed, _SPLIT).values():
        test = round(test_fraction * len(places))
        rest = places[test:]
        index.append(places[:test] if not train else {None: rest, "teacher": rest[::2], "student": rest[1::2]}[part])
    index = torch.cat(index).sort().values
    return ImageArrays(images[index], target[index], [str(d) for d in range(10)], *_DIGITS, augment if train else None)


def image_folder(root, train: bool = True, size: int | None = None, small: bool = True, classes: Sequence[str] | None = None,
                 subset: Sequence[str] | None = None, per_class: int | None = None, augment: dict | None = None,
                 mean: Sequence[float] = IMAGENET[0], std: Sequence[float] = IMAGENET[1], skip_bad: bool = False,
                 cache_dir=None):
    """Images in one folder a class, ``<root>/<class>/…``, at any depth below it; classes are numbered by name.

    Args:
        root: the folder of the class folders, as it stands or below :func:`data_root`.
        train: whether ``augment`` (small) or the random crop (not small) applies.
        size: images become size x size: small ones by a central square, resized; None: they must all be equal.
            224 for ``small=False``.
        small: everything is decoded once into :class:`ImageArrays`; False: :class:`ImageFiles`, read by workers.
        classes: the names expected; their order numbers the classes.
        subset: only these classes, numbered in this order.
        per_class: only the first images of each class, by file name.
        augment: see :class:`ImageArrays`; small only.
        mean, std: per channel, for values in [0,1]; by default ImageNet's.
        skip_bad: leave unreadable images out and warn once; of files (``small=False``) the Loader does that. A config says it
            by ``data.skip_bad``.
        cache_dir: keep the decoded images there in a file named for the list of files, their sizes and times; None: nowhere.

    Raises:
        FileNotFoundError: no such folder, or no image in it or in a class.
        ValueError: the class folders are not ``classes``; images differ in size; ``per_class`` is more than there are.
        RuntimeError: an image cannot be read; says its path.
    """
    paths, target, names = _listed(_found([root], _FOLDER_LAYOUT), classes, subset, per_class)
    if not small:
        if augment or cache_dir:
            raise ValueError("augment and cache_dir belong to small=True")
        return ImageFiles(paths, target, names, size or 224, train, mean, std)
    bad: dict[str, str] = {}
    images, good = decoded(paths, None if size is None else (size, size), 3, skip_bad, cache_dir, bad)
    paths = [paths[i] for i in good.tolist()]
    return ImageArrays(images, target[good], names, mean, std, augment if train else None, paths, bad)


def cifar100(train: bool = True, root=None, per_class: int | None = None, classes: Sequence[str] | None = None,
             fine: bool = True, augment: dict | str | None = "standard", skip_bad: bool = False, cache_dir=None) -> ImageArrays:
    """CIFAR-100, 3x32x32: 50,000 training and 10,000 test images of 100 classes.

    Args:
        train: training or test images.
        root: a folder with ``train/<class>/*.png`` and ``test/<class>/*.png``, or with torchvision's ``cifar-100-python``;
            None: ``cifar100`` below :func:`data_root`.
        per_class: only the first images of each class (of the 100).
        classes: only these classes, numbered in this order; names of the 20 superclasses with ``fine=False``.
        fine: 100 classes, or the 20 superclasses of 5 each.
        augment: of the training images; ``'standard'``: ``dict(crop=4, flip=True)`` with black around, the field's recipe.
        skip_bad, cache_dir: as for :func:`image_folder`.

    Raises:
        FileNotFoundError: neither layout lies there.
        ValueError: the folders are not CIFAR-100's classes, or ``classes`` names none of them.
    """
    split = "train" if train else "test"
    root = _found(["cifar100", ""] if root is None else [root],
                  f"<root>/{split}/<class>/<any name>.png with 100 classes, or torchvision's <root>/cifar-100-python",
                  (split, "cifar-100-python"))
    group = {name: name for name in CIFAR100_CLASSES} if fine else {
        name: superclass for superclass, members in CIFAR100_SUPERCLASSES.items() for name in members.split()}
    every = list(dict.fromkeys(group.values()))
    names = every if classes is None else [_known(name, every) for name in classes]
    kept = [name for name in CIFAR100_CLASSES if group[name] in names]
    number = torch.tensor([names.index(group[name]) for name in kept])                  # place in `kept` -> target
    bad: dict[str, str] = {}
    if (root / split).is_dir():
        paths, target, _ = _listed(root / split, CIFAR100_CLASSES, kept, per_class)
        images, good = decoded(paths, None, 3, skip_bad, cache_dir, bad)
        target, paths = target[good], [paths[i] for i in good.tolist()]
    else:
        (images, target), paths = _pickled_cifar100(root, train, kept, per_class), None
    augment = {"crop": 4, "flip": True} if augment == "standard" else augment
    return ImageArrays(images, number[target], names, *_CIFAR100, augment if train else None, paths, bad)


def _pickled_cifar100(root: Path, train: bool, kept: Sequence[str], per_class: int | None) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import CIFAR100

    data = CIFAR100(str(root), train=train, download=False)
    place = torch.tensor([kept.index(name) if name in kept else UNLABELLED for name in data.classes])
    target = place[torch.tensor(data.targets)]
    index = (target != UNLABELLED).nonzero()[:, 0]
    index = index[_first(target[index], per_class, kept)]
    return torch.from_numpy(data.data)[index].permute(0, 3, 1, 2).contiguous(), target[index]


def unlabelled_folder(root, like: ImageArrays | None = None, size: int | None = None, limit: int | None = None,
                      mean: Sequence[float] | None = None, std: Sequence[float] | None = None, augment: dict | None = None,
                      skip_bad: bool = False, cache_dir=None) -> ImageArrays:
    """All images at any depth below a folder, without labels (target -100), in the order of their paths.

    Args:
        root: as it stands or below :func:`data_root`.
        like: a data set whose image size, channels, mean, std and augmentation these images take; the next four then stay None.
        size: images become size x size, by a central square, resized; None: they must all be equal.
        limit: only the first so many.
        mean, std, augment: see :class:`ImageArrays`.
        skip_bad, cache_dir: as for :func:`image_folder`.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: ``like`` together with what it gives; images of different sizes.
        RuntimeError: an image cannot be read; says its path.
    """
    root = _found([root], "<root>/<any name>.png (or .jpg, .bmp, .webp, …), in folders or not")
    shape, channels = None if size is None else (size, size), 3
    if like is not None:
        if not size is mean is std is augment is None:
            raise ValueError("unlabelled_folder: size, mean, std and augment come from `like`; pass either")
        channels, *shape = like.images.shape[1:]
        mean, std, augment = like.mean, like.std, like.augment
    paths = images_below(root)[:limit]
    if not paths:
        raise FileNotFoundError(f"no image below {root}; known are {', '.join(sorted(SUFFIXES))}")
    bad: dict[str, str] = {}
    images, good = decoded(paths, shape, channels, skip_bad, cache_dir, bad)
    return ImageArrays(images, mean=mean, std=std, augment=augment, paths=[paths[i] for i in good.tolist()], unreadable=bad)


def concat(*parts: ImageArrays, sets: Sequence[ImageArrays] = ()) -> ImageArrays:
    """Several sets as one, for example a labelled one and unlabelled images; ``sets`` is the same for a config.

    Raises:
        ValueError: nothing given, or the sets differ in image shape, normalisation, augmentation or class names (a set that is
            wholly unlabelled needs no class names).
    """
    parts = (*parts, *sets)
    if not parts:
        raise ValueError("concat needs at least one data set")
    first = next((part for part in parts if part.classes), parts[0])
    for part in parts:
        for what in ("mean", "std", "augment", "classes"):
            mine, other = getattr(first, what), getattr(part, what)
            if mine != other and not (what == "classes" and (part.target == UNLABELLED).all()):
                raise ValueError(f"concat: the sets differ in {what}: {mine} and {other}")
        if part.images.shape[1:] != first.images.shape[1:]:
            raise ValueError(f"concat: images of {tuple(first.images.shape[1:])} and {tuple(part.images.shape[1:])}")
    device = first.images.device
    images = torch.cat([part.images.to(device) for part in parts])
    target = torch.cat([part.target.to(device) for part in parts])
    paths = [part.path(i) for part in parts for i in range(len(part))]
    bad = {path: why for part in parts for path, why in part.unreadable.items()}
    return ImageArrays(images, target, first.classes, first.mean, first.std, first.augment, paths, bad)


def torchvision_set(dataset, augment: dict | None = None, size: int | None = None, mean: Sequence[float] | None = None,
                    std: Sequence[float] | None = None, train: bool | None = None, **kwargs):
    """Any data set of torchvision: :class:`ImageArrays` if it holds its images in one array, itself if it reads files.

    Args:
        dataset: a class or its path, ``'torchvision.datasets.SVHN'``.
        augment: see :class:`ImageArrays`. For a set of files anything but None means the random crop of :class:`ImageFiles`.
        size: of the images of a set of files; None: 224.
        mean, std: per channel, for values in [0,1]; None: 0 and 1, for files ImageNet's.
        train: goes to the class, if it has that; False: ``augment`` does not apply. None: as the class has it.
        kwargs: go to the class: ``split='test'``, ``root`` (as it stands or below :func:`data_root`, which
            is its default), ``download=True``. With ``transform`` a set of files is left as it is.

    Raises:
        FileNotFoundError: the data is not there.
        ValueError: torchvision has no such data set, or an argument does not belong to its kind.
    """
    from torchvision.datasets.folder import default_loader

    if isinstance(dataset, str):
        module, _, name = dataset.rpartition(".")
        module = importlib.import_module(module or "torchvision.datasets")
        if not hasattr(module, name):
            raise ValueError(f"{module.__name__} has no {name!r}: {did_you_mean(name, dir(module))}")
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
        raise FileNotFoundError(f"{dataset.__name__} could not read {kwargs.get('root')}: {error}. Set KDTASKS_DATA to the "
                                f"folder that holds it, or pass root=<folder>, in torchvision's layout") from error
    images = getattr(data, "data", None)
    if images is None:
        if "transform" not in kwargs:
            if getattr(data, "loader", None) is default_loader:
                data.loader = read_image                                              # as every other file is read here
            data.transform = transform(size or 224, augment is not None, mean or IMAGENET[0], std or IMAGENET[1])
        return data
    if size is not None:
        raise ValueError(f"size={size}: {dataset.__name__} is an array, its images keep their size")
    target = torch.as_tensor(np.asarray(getattr(data, "targets", getattr(data, "labels", None)))).long()
    target[target < 0] = UNLABELLED                                                    # STL10 writes -1
    return ImageArrays(_channels_first(torch.as_tensor(images)), target, getattr(data, "classes", ()), mean, std, augment)


def arrays(images, target=None, classes: Sequence[str] = (), mean: Sequence[float] | None = None,
           std: Sequence[float] | None = None, augment: dict | None = None) -> ImageArrays:
    """Images from memory or from a NumPy file.

    Args:
        images: uint8 (N,C,H,W), (N,H,W,C) with 1 or 3 channels, or (N,H,W), as tensor, array, or file ``.npy``; or a file
            ``.npz`` with ``images`` and ``target``.
        target: (N,) integers, as tensor, list, array or file ``.npy``; None: what the ``.npz`` says, or else unlabelled.
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
    return ImageArrays(_channels_first(torch.as_tensor(images)), target, classes, mean, std, augment)


def _loaded(value):
    """A NumPy file's array, or the dict of its arrays; anything else as it is."""
    if not isinstance(value, str | os.PathLike):
        return value
    path = Path(value) if Path(value).exists() else data_root() / value
    if not path.is_file():
        raise FileNotFoundError(f"no file {value} nor {path}; set KDTASKS_DATA to the folder that holds it, or pass its path")
    loaded = np.load(path, allow_pickle=False)
    return loaded if isinstance(loaded, np.ndarray) else dict(loaded)


def _channels_first(images: Tensor) -> Tensor:
    """(N,H,W), (N,H,W,C) or (N,C,H,W) -> (N,C,H,W); if both ends could be channels, the front ones are."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        return images.permute(0, 3, 1, 2).contiguous()
    return images


def _listed(root: Path, classes: Sequence[str] | None, subset: Sequence[str] | None,
            per_class: int | None) -> tuple[list[str], Tensor, list[str]]:
    """Files, class numbers (N,) and class names of a folder of class folders."""
    found = class_folders(root)
    if not found:
        raise FileNotFoundError(f"no class folder in {root}. Expected layout: {_FOLDER_LAYOUT}; "
                                f"for images without labels there is unlabelled_folder")
    missing, extra = sorted(set(classes or found) - set(found)), sorted(set(found) - set(classes or found))
    if missing or extra:
        raise ValueError(f"the class folders in {root} are not the expected ones: missing {missing}, not expected {extra}")
    names = list(classes or found)
    if subset is not None:
        names = [_known(name, names) for name in subset]
    files = [images_below(found[name]) for name in names]
    for name, of_class in zip(names, files):
        if not of_class:
            raise FileNotFoundError(f"no image in {found[name]}; known are {', '.join(sorted(SUFFIXES))}")
    target = torch.arange(len(names)).repeat_interleave(torch.tensor([len(of_class) for of_class in files]))
    index = _first(target, per_class, names)
    paths = [path for of_class in files for path in of_class]
    return [paths[i] for i in index.tolist()], target[index], names


digits.image_shape, cifar100.image_shape = (1, 8, 8), (3, 32, 32)           # what --dry-run needs to know without reading
