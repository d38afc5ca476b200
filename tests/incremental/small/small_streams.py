"""What a user would have in files of his own: small images of a few kinds, streams of them, a
network, a hook.
"""

from types import SimpleNamespace

import torch
from mmengine.hooks import Hook
from torch import nn
from torch.utils.data import TensorDataset

from kdtasks.classification.data import ImageArrays

CLASSES = list("abcdefg")
ORDER = [4, 1, 5, 0, 3, 2, 6]  # of the small configs


def images(
    train: bool = True,
    per_class: int = 12,
    labelled: bool = True,
    augment: dict | None = None,
    seed: int = 0,
    classes: int = 6,
) -> ImageArrays:
    """6x6, grey: a few brightnesses, plain or striped, and noise. The classes take turns."""
    generator = torch.Generator().manual_seed(
        seed + (0 if train else 10**6) + (0 if labelled else 10**7)
    )
    target = torch.arange(classes * per_class) % classes
    stripes = (torch.arange(6) % 2 * 2 - 1) * (target % 2 * 25)[:, None, None, None]
    values = (
        35
        + 55 * (target // 2)[:, None, None, None]
        + stripes
        + 20 * torch.rand(len(target), 1, 6, 6, generator=generator)
    )
    return ImageArrays(
        values.byte(),
        target if labelled else None,
        CLASSES[:classes] if labelled else (),
        mean=[0.5],
        std=[0.25],
        augment=augment,
    )


# for --dry-run, which reads no data
images.image_shape = (1, 6, 6)


def tensors(**options) -> TensorDataset:
    """Map-style, and its labels are in the samples only."""
    made = images(**options)
    return TensorDataset(made.images.float() / 255, made.target)


def only_inputs(**options) -> TensorDataset:
    """Samples of one tensor."""
    return TensorDataset(tensors(labelled=False, **options).tensors[0])


class Listed:
    """As torchvision has it: ``targets`` is a list, a transform draws from torch's stream."""

    def __init__(self, train: bool = True, noisy: bool = True, **options):
        made = images(train, **options)
        self.data, self.targets, self.classes, self.noisy = (
            made.images.float() / 255,
            made.target.tolist(),
            made.classes,
            noisy and train,
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i):
        return self.data[i] + (0.1 * torch.rand(1, 6, 6) if self.noisy else 0), self.targets[i]


class Dicts(Listed):
    """Samples are dicts, and labels in these only."""

    def __init__(self, **options):
        super().__init__(**options)
        self.hidden = self.__dict__.pop("targets")

    def __getitem__(self, i):
        return {
            "input": self.data[i] + (0.1 * torch.rand(()) if self.noisy else 0),
            "target": torch.tensor(self.hidden[i]),
        }


def stream_of_sets(train: bool = True, sizes=(2, 1, 3)) -> list:
    """As avalanche has it: a data set for each experience, and its classes as a set, filled in
    another order for the test.
    """
    found, start, whole = [], 0, Listed(train=train, classes=sum(sizes))
    for size in sizes:
        # multiples of 8 come out of a set as they went in
        classes = [8 * c for c in ORDER[start : start + size]]
        rows = [i for i, c in enumerate(whole.targets) if 8 * c in classes]
        data = TensorDataset(whole.data[rows], torch.tensor([8 * whole.targets[i] for i in rows]))
        found.append(
            SimpleNamespace(
                dataset=data, classes_in_this_experience=set(classes if train else classes[::-1])
            )
        )
        start += size
    return found


class Net(nn.Module):
    """Two convolutions, with BatchNorm or (for DDP, whose ranks have their own statistics) without,
    and a linear head.
    """

    def __init__(self, width: int = 4, norm: bool = True):
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(1, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.norm1, self.norm2 = (
            nn.BatchNorm2d(width) if norm else nn.Identity() for _ in range(2)
        )
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))

    def features(self, x):
        return self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())).relu()


class StopAt(Hook):
    """Raise in one stage at one iteration, as a crash would."""

    def __init__(self, stage: str, iteration: int):
        self.stage, self.iteration = stage, iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.meta["stage"] == self.stage and batch_idx == self.iteration:
            raise KeyboardInterrupt


def avalanche_benchmark():
    """The same images as avalanche divides them."""
    from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark

    sets = {"train": Listed(classes=7), "test": Listed(train=False, classes=7)}
    return class_incremental_benchmark(sets, num_classes_per_exp=[2, 2, 3], class_order=ORDER)
