"""Real-world degradations: low-resolution images made by blur, noise, JPEG and the downscale, in an
order of one's own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdtasks.core.views import view_hash
from kdtasks.images.corruption import intensity_only
from kdtasks.super_resolution.data import Images, Patches
from kdtasks.super_resolution.metrics import imresize, luma

# salt of view_hash; each step has the next one
_STEP = 0xDE600
# of test images, so that every run is tested on the same ones
_TEST_SEED = 0
DOWNSCALE = "downscale"


class Degradation:
    r"""LR images of HR ones: the steps one after the other, clipped to [0,1] after each, and at the
    end rounded to 8 bits, as a file would have them.

    .. math:: \text{LR} = \text{round}_8\big(d_n(\dots d_1(\text{HR}))\big)

    One of the steps is the downscale, bicubic as in
    :func:`~kdtasks.super_resolution.imresize`; in the order of Real-ESRGAN (arXiv 2107.10833, as
    recalled, not verified) blur comes before it, noise and JPEG after it.

    Args:
        steps: transforms of ``kornia.augmentation`` that change intensities only, and once
            ``'downscale'``.
        scale: of the downscale.
        shape: (C,H,W) of HR; others are taken, too.

    Raises:
        TypeError, ValueError: there is not one downscale, or a transform cannot be applied.
    """

    def __init__(self, steps: Sequence[nn.Module | str], scale: int, shape: Sequence[int]):
        count = sum(isinstance(step, str) and step == DOWNSCALE for step in steps)
        if count != 1:
            raise ValueError(
                f"steps: expected transforms and {DOWNSCALE!r} once, got it {count} times in "
                f"{list(steps)!r}"
            )
        self.scale, self.steps = scale, []
        channels, height, width = shape
        for k, step in enumerate(steps):
            if isinstance(step, str) and step == DOWNSCALE:
                height, width = -(-height // scale), -(-width // scale)
                self.steps.append(None)
            else:
                self.steps.append(intensity_only(step, (channels, height, width), f"steps[{k}]"))

    def __repr__(self) -> str:
        return repr([DOWNSCALE if step is None else step for step in self.steps])

    @torch.no_grad()
    def __call__(self, images: Tensor, index: Tensor, view: Tensor, seed: int) -> Tensor:
        """LR of samples ``index`` (b,) in their views ``view`` (b,), int64 on the CPU.

        Args:
            images: HR, float (b,C,H,W) in [0,1], on any device.
            index, view, seed: what each sample's random numbers come from, and nothing else does.

        Returns:
            float32 (b,C,H/scale,W/scale), multiples of 1/255 in [0,1].
        """
        images = images.float()
        for k, step in enumerate(self.steps):
            if step is None:
                images = imresize(images, 1 / self.scale)
            else:
                images = step(images, view_hash(seed, index, view, _STEP + k))
            images = images.clamp(0, 1)
        return images.mul(255).round().div(255)


def degraded(
    dataset: Patches | Images, steps: Sequence[nn.Module | str], color: str = "rgb"
) -> "DegradedPatches | DegradedImages":
    """The same HR images, with LR images made by ``steps``: in training from each HR patch, anew in
    every view; in the test once, the same in every run.

    A patch's border is reflected or black, as each transform says, though the photo goes on there.

    Args:
        dataset: of :mod:`kdtasks.super_resolution.data`, in ``'rgb'``, not enlarged, without LR
            images of its own.
        steps: see :class:`Degradation`.
        color: ``'rgb'``, or ``'y'``: luma of both, taken after all steps.

    Raises:
        ValueError: another data set, color or number of scales.
        TypeError, ValueError: see :class:`Degradation`.
    """
    pairs = dataset.pairs
    if pairs.color != "rgb" or pairs.enlarged or pairs.given or not isinstance(pairs.scale, int):
        raise ValueError(
            "degraded needs RGB images that are neither enlarged nor have LR images of their own, "
            f"got {pairs!r}{', with LR images' if pairs.given else ''}; color='y' is said of "
            "degraded itself"
        )
    if color not in ("rgb", "y"):
        raise ValueError(f"color must be 'rgb' or 'y', got {color!r}")
    if isinstance(dataset, Patches):
        side = dataset.patch * pairs.scale
        return DegradedPatches(dataset, Degradation(steps, pairs.scale, (3, side, side)), color)
    shape = tuple(pairs.target.image(0).shape)
    return DegradedImages(dataset, Degradation(steps, pairs.scale, shape), color)


class DegradedPatches:
    """:class:`~kdtasks.super_resolution.data.Patches` with another ``input``, made on their device
    of each ``target``; see :func:`degraded`.
    """

    def __init__(self, patches: Patches, degradation: Degradation, color: str):
        self.patches, self.degradation, self.color = patches, degradation, color
        self.pairs, self.unreadable = patches.pairs, patches.unreadable

    def __len__(self) -> int:
        return len(self.patches)

    def __repr__(self) -> str:
        return f"DegradedPatches({self.patches!r}, {self.degradation!r}, color={self.color!r})"

    def path(self, index: int) -> str:
        """The file that a sample is cut from."""
        return self.patches.path(index)

    def to(self, device: torch.device | str) -> "DegradedPatches":
        """Move the images to ``device``, where batches are then made; returns itself."""
        self.patches.to(device)
        return self

    def batch(self, index: Tensor, view: Tensor, seed: int) -> dict[str, Tensor]:
        """As :meth:`kdtasks.super_resolution.data.Patches.batch`."""
        target = self.patches.batch(index, view, seed)["target"]
        input = self.degradation(target, index.cpu(), view.cpu(), seed)
        return {"input": _colored(input, self.color), "target": _colored(target, self.color)}


class DegradedImages:
    """:class:`~kdtasks.super_resolution.data.Images` with another ``input``; see
    :func:`degraded`.
    """

    def __init__(self, images: Images, degradation: Degradation, color: str):
        self.images, self.degradation, self.color = images, degradation, color
        self.pairs, self.unreadable = images.pairs, images.unreadable

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"DegradedImages({self.images!r}, {self.degradation!r}, color={self.color!r})"

    def path(self, index: int) -> str:
        """The file that an image is from."""
        return self.images.path(index)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        sample = self.images[index]
        target = sample["target"][None]
        place, view = torch.tensor([index]), torch.tensor([0])
        input = self.degradation(target, place, view, _TEST_SEED)
        return {
            **sample,
            "input": _colored(input, self.color)[0],
            "target": _colored(target, self.color)[0],
        }


def _colored(images: Tensor, color: str) -> Tensor:
    return luma(images) if color == "y" else images
