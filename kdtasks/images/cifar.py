"""CIFAR-100 and its superclasses."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtasks.core.classes import UNLABELLED, check_class
from kdtasks.images.arrays import ImageArrays
from kdtasks.images.decoding import decoded, fit
from kdtasks.images.folders import listed_images
from kdtasks.images.roots import found_folder
from kdtasks.images.subsets import first_of_each

# of the training images
_CIFAR100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))

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
# target = place in this list
CIFAR100_CLASSES = tuple(sorted(" ".join(CIFAR100_SUPERCLASSES.values()).split()))


def cifar100(
    train: bool = True,
    root: str | Path | None = None,
    per_class: int | None = None,
    classes: Sequence[str] | None = None,
    fine: bool = True,
    size: int | None = None,
    augment: dict | list | str | None = "standard",
    skip_bad: bool = False,
    cache_dir: str | Path | None = None,
) -> ImageArrays:
    """CIFAR-100, 3x32x32: 50,000 training and 10,000 test images of 100 classes.

    Args:
        train: training or test images.
        root: a folder with ``train/<class>/*.png`` and ``test/<class>/*.png``, or with
            torchvision's ``cifar-100-python``; None: ``cifar100`` below :func:`data_root`.
        per_class: only the first images of each class (of the 100).
        classes: only these classes, numbered in this order; names of the 20 superclasses with
            ``fine=False``.
        fine: 100 classes, or the 20 superclasses of 5 each.
        size: images become 3 x size x size, shrunk bicubically; None: they stay 32 x 32.
        augment: of the training images; ``'standard'``: ``dict(crop=4, flip=True)`` with black
            around, the field's recipe; of a smaller ``size`` an eighth of it in place of 4.
        skip_bad, cache_dir: as for :func:`image_folder`.

    Raises:
        FileNotFoundError: neither layout lies there.
        ValueError: the folders are not CIFAR-100's classes, or ``classes`` names none of them.
    """
    split = "train" if train else "test"
    root = found_folder(
        ["cifar100", ""] if root is None else [root],
        f"<root>/{split}/<class>/<any name>.png with 100 classes, or torchvision's "
        "<root>/cifar-100-python",
        (split, "cifar-100-python"),
    )
    group = (
        {name: name for name in CIFAR100_CLASSES}
        if fine
        else {
            name: superclass
            for superclass, members in CIFAR100_SUPERCLASSES.items()
            for name in members.split()
        }
    )
    all_names = list(dict.fromkeys(group.values()))
    names = all_names if classes is None else [check_class(name, all_names) for name in classes]
    fine_names = [name for name in CIFAR100_CLASSES if group[name] in names]
    # place in `fine_names` -> target
    number = torch.tensor([names.index(group[name]) for name in fine_names])
    unreadable: dict[str, str] = {}
    if (root / split).is_dir():
        paths, target, _ = listed_images(root / split, CIFAR100_CLASSES, fine_names, per_class)
        shape = None if size is None else (size, size)
        images, index = decoded(paths, shape, 3, skip_bad, cache_dir, unreadable)
        target, paths = target[index], [paths[i] for i in index.tolist()]
    else:
        (images, target), paths = _pickled_cifar100(root, train, fine_names, per_class, size), None
    augment = {"crop": (size or 32) // 8, "flip": True} if augment == "standard" else augment
    return ImageArrays(
        images, number[target], names, *_CIFAR100, augment if train else None, paths, unreadable
    )


def _pickled_cifar100(
    root: Path, train: bool, fine_names: Sequence[str], per_class: int | None, size: int | None
) -> tuple[Tensor, Tensor]:
    from PIL import Image
    from torchvision.datasets import CIFAR100

    data = CIFAR100(str(root), train=train, download=False)
    place = torch.tensor(
        [fine_names.index(name) if name in fine_names else UNLABELLED for name in data.classes]
    )
    target = place[torch.tensor(data.targets)]
    index = (target != UNLABELLED).nonzero()[:, 0]
    index = index[first_of_each(target[index], per_class, fine_names)]
    images = data.data[index.numpy()]
    if size is not None:
        images = np.stack([fit(Image.fromarray(image), (size, size)) for image in images])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), target[index]


# what --dry-run needs to know without reading
cifar100.image_shape = (3, 32, 32)
