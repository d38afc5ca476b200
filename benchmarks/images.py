"""What a batch of augmented images costs: the crop and flip written by hand beside kornia's."""

import importlib.util
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.measure import Line, ratio, step_times
from kdtasks.images.arrays import ImageArrays

_IMAGES, _BATCH, _CROP = 5000, 128, 4


def augmentation(o) -> Iterator[Line]:
    """Batches of 128 images of CIFAR's size, moved by up to 4 pixels and perhaps mirrored."""
    what = f"crop and flip of {_BATCH} images of 32x32: "
    if importlib.util.find_spec("kornia") is None:
        note = "not installed: pip install 'kdtasks[augment]'"
        yield Line(f"{what}kornia / by hand", [], note=note)
        return
    from kornia.augmentation import RandomCrop, RandomHorizontalFlip

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_IMAGES, 3, 32, 32), generator=generator).byte().to(o.device)
    sets = {
        "kornia": [RandomCrop((32, 32), padding=_CROP), RandomHorizontalFlip()],
        "by hand": {"crop": _CROP, "flip": True},
    }
    sets = {name: ImageArrays(images, augment=augment) for name, augment in sets.items()}
    for name, made in sets.items():
        _check_views(name, made)
    index, view = torch.randperm(_IMAGES, generator=generator)[:_BATCH], torch.zeros(_BATCH).long()
    times = step_times(
        o, {name: lambda s=made: s.batch(index, view, 0)["input"] for name, made in sets.items()}
    )
    yield ratio(what, times, "kornia", "by hand")


def _check_views(name: str, data: ImageArrays) -> None:
    """RuntimeError unless views of an image are windows of it, mirrored or not, of many kinds."""
    views = _views(data, torch.zeros(200).long())
    padded = pad(data.images[0].float(), [_CROP] * 4)
    windows = padded.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    possible = {tuple(w.byte().flatten().tolist()) for w in (*windows, *windows.flip(3))}
    seen = {tuple(view.flatten().tolist()) for view in views}
    if not seen <= possible or len(seen) < 80:
        raise RuntimeError(f"{name}: {len(seen)} views of an image, not all of them its windows")


def _views(data: ImageArrays, index: Tensor) -> Tensor:
    batch = data.batch(index, torch.arange(len(index)), 0)
    return (batch["input"] * 255).round().byte()
