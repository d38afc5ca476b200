"""Test images under blur, noise and the like, each sample its own whatever the batch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdtasks.core.views import view_hash
from kdtasks.images.augmentation import KorniaAugmentation

CORRUPT = 0xC0  # salt of view_hash
# pixels of a side at most on which it is found out how a transform takes a batch: 16 images of them
_TRIED = 256
# the same for all seeds of a run, so that all students see the same images
_SEED = 0


def usual_corruptions(channels: int) -> dict[str, tuple[str, nn.Module]]:
    """``{name: (what is done, transform)}``: blur, noise, brightness, and of images with three
    channels JPEG.

    The strengths are ours: each is seen at once, and leaves an image of 32x32 recognizable.
    """
    import kornia.augmentation as kornia

    corruptions: dict[str, tuple[str, nn.Module]] = {
        "blur": ("Gaussian, sigma 1 pixel", kornia.RandomGaussianBlur((5, 5), (1.0, 1.0), p=1.0)),
        "noise": (
            "Gaussian, standard deviation 0.1 of the range",
            kornia.RandomGaussianNoise(std=0.1, p=1.0),
        ),
        "darker": ("0.3 of the range less", kornia.RandomBrightness((0.7, 0.7), p=1.0)),
        "brighter": ("0.3 of the range more", kornia.RandomBrightness((1.3, 1.3), p=1.0)),
    }
    if channels == 3:
        corruptions["jpeg"] = ("quality 20", kornia.RandomJPEG((20.0, 20.0), p=1.0))
    return corruptions


def corrupted(
    loader: Any,
    chosen: Mapping[str, nn.Module] | None,
    normalization: tuple[Sequence[float], Sequence[float]] | None,
) -> dict[str, tuple[str, Iterable[dict]]]:
    """``{name: (what is done, the loader with images that it was done to)}``.

    Targets stay as they are, so a transform may change intensities only. A sample's numbers come
    from its index alone.

    Args:
        loader: batches of test data, with ``index``; their ``input`` is (B,C,H,W), or a list of
            (C,H,W).
        chosen: transforms of ``kornia.augmentation``; None: :func:`usual_corruptions`.
        normalization: mean and std of the channels of ``input``; None: it is in [0,1].

    Raises:
        ValueError: one moves pixels, or cannot be applied to these images; when they are read: they
            are not in [0,1], and ``normalization`` is None.
        ImportError: kornia is not installed.
    """
    channels, *sides = next(iter(loader))["input"][0].shape
    shape = (channels, *(min(side, _TRIED) for side in sides))
    corruptions = usual_corruptions(channels) if chosen is None else {}
    corruptions |= {
        name: (repr(transform), transform) for name, transform in (chosen or {}).items()
    }
    return {
        name: (text, _Corrupted(loader, intensity_only(transform, shape, name), normalization))
        for name, (text, transform) in corruptions.items()
    }


def intensity_only(transform: nn.Module, shape: Sequence[int], where: str) -> KorniaAugmentation:
    """A transform that leaves every pixel where it is, for images of ``shape`` (C,H,W).

    Raises:
        TypeError, ValueError: it does not, or is not kornia's.
    """
    import kornia.augmentation as kornia

    augmentation = KorniaAugmentation([transform], shape)
    for part in augmentation.transforms:
        for inner in part.modules():
            if isinstance(inner, kornia.AugmentationBase2D) and not isinstance(
                inner, kornia.IntensityAugmentationBase2D
            ):
                raise ValueError(
                    f"{where}: {type(inner).__name__} moves pixels, and targets would no longer "
                    "fit: expected transforms of intensities, such as RandomGaussianBlur"
                )
    return augmentation


class _Corrupted:
    """A loader whose images are changed, and the loader otherwise."""

    def __init__(
        self,
        loader: Any,
        transform: KorniaAugmentation,
        normalization: tuple[Sequence[float], Sequence[float]] | None,
    ):
        self.loader, self.transform, self.normalization = loader, transform, normalization

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[dict]:
        for batch in self.loader:
            number = view_hash(_SEED, batch["index"].cpu(), 0, CORRUPT)
            yield {**batch, "input": self._changed(batch["input"], number)}

    def _changed(self, images: Any, number: Tensor) -> Any:
        if not isinstance(images, Tensor):
            pairs = zip(images, number.split(1))
            return [self._changed(image[None], sample_number)[0] for image, sample_number in pairs]
        if self.normalization is None and (images.min() < 0 or images.max() > 1):
            raise ValueError(
                f"the test images lie between {float(images.min()):.3g} and "
                f"{float(images.max()):.3g}, and their data set says no mean and std: expected "
                "images in [0,1], or a data set with mean and std, to corrupt them"
            )
        mean, std = self._statistics(images)
        changed = self.transform((images.float() * std + mean).clamp(0, 1), number)
        normalized = ((changed.clamp(0, 1) - mean) / std).to(images.dtype)
        is_last = images.is_contiguous(memory_format=torch.channels_last)
        return normalized.contiguous(
            memory_format=torch.channels_last if is_last else torch.contiguous_format
        )

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.normalization or ((0.0,), (1.0,))
        return images.new_tensor(mean).view(-1, 1, 1), images.new_tensor(std).view(-1, 1, 1)
