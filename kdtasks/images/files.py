"""A data set of image files that are read when their turn comes."""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.core.classes import class_numbers, count_classes, renumber
from kdtasks.images.augmentation import KorniaAugmentation, kornia_augmentation
from kdtasks.images.reading import read_image

if TYPE_CHECKING:
    import PIL.Image

# mean and standard deviation of ImageNet's channels
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageFiles:
    """A map-style data set of files, decoded when asked for: ``(input float32 (3,H,W), target)``.

    In training a random part of the image, 8 to 100 % of its area, resized to ``size``, and
    mirrored with probability 1/2; in evaluation the central ``size`` of the image resized so that
    its shorter side is ``size / 0.875``.

    With ``augment`` in training what these transforms of ``kornia.augmentation`` make of the whole
    image, float32 in [0,1]; unless they leave it ``size x size`` (``RandomResizedCrop`` does), its
    centre, resized so that its shorter side is ``size``.
    """

    def __init__(
        self,
        paths: Sequence[str],
        target: Tensor | Sequence[int],
        classes: Sequence[str],
        size: int,
        train: bool,
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
        augment: Sequence[nn.Module] | KorniaAugmentation | None = None,
    ):
        self.paths, self.classes = list(paths), list(classes)
        self.target = torch.as_tensor(target).long()
        self.augment = files_augmentation(augment, size) if train else None
        self.mean, self.std = tuple(mean), tuple(std)
        self.transform = transform(size, train, mean, std, self.augment)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """The file of a sample."""
        return str(self.paths[index])

    def with_classes(self, names: Sequence[str], drop: bool = False) -> "ImageFiles":
        """The same files, their classes numbered as in ``names``; see
        :func:`kdtasks.core.classes.class_numbers`.
        """
        numbers = class_numbers(
            self.classes, names, count_classes(self.target, len(self.classes)), drop
        )
        files = copy.copy(self)
        files.classes, files.target = list(names), renumber(self.target, numbers)
        return files

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(read_image(self.paths[index])), int(self.target[index])


def files_augmentation(
    augment: Sequence[nn.Module] | KorniaAugmentation | None, size: int
) -> KorniaAugmentation | None:
    """kornia's transforms for images that are a little larger than the ``size`` to come out."""
    return kornia_augmentation(augment, (3, size + 32, size + 32))


def transform(
    size: int,
    train: bool,
    mean: Sequence[float],
    std: Sequence[float],
    augment: KorniaAugmentation | None = None,
) -> "Callable[[PIL.Image.Image], Tensor]":
    """PIL image -> float32 tensor; random numbers from torch's CPU generator."""
    from torchvision.transforms import v2

    scaled, normalized = v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)
    if train and augment:
        centre = [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
        steps = [v2.ToPureTensor(), scaled, augment.one, *centre]
    elif train:
        steps = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), scaled]
    else:
        steps = [v2.Resize(round(size / 0.875), antialias=True), v2.CenterCrop(size), scaled]
    return v2.Compose([v2.ToImage(), *steps, normalized])
