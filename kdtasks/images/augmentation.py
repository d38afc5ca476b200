r"""Augmentation by kornia, of a batch at once, in which each sample keeps its own random view.

kornia draws the parameters of a batch with torch's random generator, so what a sample gets depends
on the batch that it is in. Here the parameters of each sample are drawn from numbers of its own,
those of :func:`~kdtasks.core.views.view_hash` of (seed, index, view): the same alone, in any batch,
in any order, in any process.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdtasks.core.names import did_you_mean
from kdtasks.core.views import random_numbers
from kdtasks.images.batched_transform import BatchedTransform


class KorniaAugmentation:
    r"""Transforms of ``kornia.augmentation``, applied one after the other to images in [0,1].

    A call takes a batch and a number for each sample, from which its parameters come. How a
    transform takes a batch is found out once, on random images, before anything trains:

    - ``'batch'``: parameters of all samples in one draw, one application. Most transforms.
    - ``'groups'``: some parameter is one for the whole batch, as the order of ``ColorJitter``, or
      the choice of ``RandAugment`` and of ``ImageSequential(random_apply=…)``. Each sample is drawn
      by itself, and those with the same one go together.
    - ``'alone'``: each sample by itself, where it comes out otherwise in company, as with
      ``RandomMotionBlur(kernel_size=(3, 7))``.

    Parameters are equal bit for bit whatever the batch. So are the pixels, but where torch rounds
    by the size of the batch, as in the convolutions of ``RandomElasticTransform`` (about 1e-6).

    Args:
        transforms: 2D transforms of ``kornia.augmentation``, ``ImageSequential``, or policies of
            ``kornia.augmentation.auto``.
        shape: (channels, height, width) of the images; those of :meth:`one` may have others.

    Attributes:
        transforms: as given, where an ``ImageSequential`` without ``random_apply`` is what it
            holds.
        ways: of each transform, ``'batch'``, ``'groups'`` or ``'alone'``.

    Raises:
        TypeError: not such a transform.
        ValueError: one that mixes samples (``RandomMixUpV2``, …), with ``same_on_batch=True``, that
            cannot take these images, or that changes the size of some images only.
    """

    def __init__(self, transforms: Sequence[nn.Module], shape: Sequence[int]):
        self.shape = tuple(shape)
        self.transforms = _checked(transforms)
        self._steps, shape = [], self.shape
        for transform in self.transforms:
            step = BatchedTransform(transform, shape)
            self._steps.append(step)
            shape = step.result
        self.ways = [step.way for step in self._steps]

    def __repr__(self) -> str:
        return repr(self.transforms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KorniaAugmentation) and repr(self) == repr(other)

    __hash__ = None

    @torch.no_grad()
    def __call__(self, images: Tensor, number: Tensor) -> Tensor:
        """The views of a batch.

        Args:
            images: float (b,C,H,W) in [0,1], on any device.
            number: int64 (b,) on the CPU, where kornia draws; ``view_hash`` of each sample.

        Returns:
            float (b,C,H',W'), on the same device. Not rounded to whole grey levels.
        """
        for place, step in enumerate(self._steps):
            images = step(images, random_numbers(number, place, 1)[:, 0])
        return images

    @torch.no_grad()
    def one(self, image: Tensor, boxes: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """One image of any size, with random numbers of torch's own generator, which the Loader
        sets for each sample.

        Args:
            image: float (C,H,W) in [0,1].
            boxes: float (n,4), left, upper, right, lower edge in pixels; None: no boxes.

        Returns:
            The image, float (C,H',W'); with ``boxes`` also these, (n,4): of the moved corners the
            smallest and largest. They may reach beyond the image.
        """
        if boxes is None:
            for transform in self.transforms:
                image = transform(image[None])[0]
            return image
        # kornia's points are of pixel centres, edges half a pixel away from them
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].view(1, -1, 2) - 0.5
        image, corners = self._with_points(image[None], corners)
        corners = corners.view(-1, 4, 2) + 0.5
        return image[0], torch.cat([corners.amin(1), corners.amax(1)], 1)

    def check_boxes(self) -> None:
        """That boxes can follow every transform.

        Raises:
            ValueError: one bends the image, so that no matrix says where a box goes.
        """
        from kornia.augmentation import AugmentationBase2D, RigidAffineAugmentationBase2D

        for part in (part for transform in self.transforms for part in transform.modules()):
            if isinstance(part, AugmentationBase2D) and not isinstance(
                part, RigidAffineAugmentationBase2D
            ):
                raise ValueError(
                    f"augment: {type(part).__name__} bends the image, and boxes cannot follow: "
                    "leave it out"
                )

    @functools.cached_property
    def _with_points(self) -> nn.Module:
        from kornia.augmentation import AugmentationSequential

        return AugmentationSequential(*self.transforms, data_keys=["input", "keypoints"])


def kornia_augmentation(
    transforms: Sequence[nn.Module] | KorniaAugmentation | None, shape: Sequence[int]
) -> KorniaAugmentation | None:
    """The transforms for images of ``shape`` (channels, height, width); None where there are none.

    Raises:
        TypeError, ValueError: see :class:`KorniaAugmentation`.
    """
    if isinstance(transforms, KorniaAugmentation):
        if transforms.shape == tuple(shape):
            return transforms
        transforms = transforms.transforms
    return KorniaAugmentation(transforms, shape) if transforms else None


def is_kornia(transforms: object) -> bool:
    """Whether some of these are kornia's, or made from its classes; kornia is not imported."""
    return isinstance(transforms, Sequence) and any(
        kind.__module__.partition(".")[0] == "kornia"
        for transform in transforms
        for kind in type(transform).__mro__
    )


def _checked(transforms: Sequence) -> list[nn.Module]:
    """The transforms in a flat list, all of kinds that can be applied sample by sample."""
    import kornia.augmentation as kornia
    from kornia.augmentation.auto.base import PolicyAugmentBase

    flat = []
    for transform in transforms:
        name = type(transform).__name__
        mixing = [m for m in _parts(transform) if isinstance(m, kornia.MixAugmentationBaseV2)]
        if mixing:
            raise ValueError(
                f"augment: {type(mixing[0]).__name__} mixes the samples of a batch, but a sample's "
                "view must not depend on the others: leave it out"
            )
        if any(getattr(part, "same_on_batch", None) and _draws(part) for part in _parts(transform)):
            raise ValueError(
                f"augment: {name} has same_on_batch=True, but a sample's view must not depend on "
                "the others: expected False"
            )
        # its subclasses split a batch in patches or frames, or take other data beside the images
        container = type(transform) is kornia.ImageSequential
        if container and not transform.random_apply:
            flat += _checked(list(transform.children()))
        elif container or isinstance(transform, kornia.AugmentationBase2D | PolicyAugmentBase):
            flat.append(transform)
        else:
            raise TypeError(_expected(transform, dir(kornia)))
    return flat


def _parts(transform: object) -> list[nn.Module]:
    return list(transform.modules()) if isinstance(transform, nn.Module) else []


def _draws(transform: nn.Module) -> bool:
    """Whether anything is random: ``Resize`` and others say ``same_on_batch`` as nothing is."""
    if not hasattr(transform, "forward_parameters"):
        return False
    with torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        transform.forward_parameters(torch.Size((2, 3, 64, 64)))
        return not torch.equal(torch.get_rng_state(), state)


def _expected(transform: object, names: Sequence[str]) -> str:
    message = (
        "augment: expected a 2D transform of kornia.augmentation, an ImageSequential, or a policy "
        f"of kornia.augmentation.auto, got {transform!r}"
    )
    if isinstance(transform, str):
        message += f" ({did_you_mean(transform.rpartition('.')[2], names)})"
    if isinstance(transform, dict):
        message += "; dict(type=…) is for configs, Python code passes the transform itself"
    return message
