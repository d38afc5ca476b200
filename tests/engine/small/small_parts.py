"""What a user would have in files of his own: networks, a data set, a loss, a hook."""

import os
import signal
import time
from typing import ClassVar

import torch
from mmengine.hooks import Hook
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import get_worker_info
from torchvision import transforms

# in processes that tests start; in their own: tests/conftest.py
if os.environ.get("UNDRAWN_REPORTS", str(os.getpid())) != str(os.getpid()):
    from kdtasks.engine.report import figures

    figures.embed = lambda pictures: [figures.Picture(title, 1) for title, _ in pictures]


class Net(nn.Sequential):
    """A little network; with BatchNorm and dropout, or (for DDP, whose ranks have their own
    statistics) without.
    """

    def __init__(self, width: int = 8, norm: bool = True, num_classes: int = 10, channels: int = 1):
        def layer(a, b):
            return [
                nn.Conv2d(a, b, 3, padding=1, bias=not norm),
                *([nn.BatchNorm2d(b)] if norm else []),
                nn.ReLU(),
            ]

        super().__init__(
            *layer(channels, width),
            nn.MaxPool2d(2),
            *layer(width, width),
            *([nn.Dropout(0.2)] if norm else []),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, num_classes),
        )


class Detached(Net):
    """A model that gives no gradient of its input."""

    def forward(self, x):
        return super().forward(x).detach()


class Digits:
    """Some of scikit-learn's digits, with noise that depends on the view."""

    image_shape = (1, 8, 8)

    def __init__(
        self, first: int, count: int, labelled: int | None = None, noise: float = 0.0, classes=None
    ):
        images, target = load_digits(return_X_y=True)
        images, target = images[first : first + count], target[first : first + count]
        self.images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16 - 0.3
        self.target = torch.tensor(target, dtype=torch.int64)
        self.classes = classes or [str(k) for k in range(10)]
        self.noise = noise
        if labelled is not None:
            self.target[labelled:] = -100

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index, view, seed):
        images = self.images[index]
        if self.noise:
            images = images + self.noise * torch.sin(index * 12.9 + view * 78.2 + seed).view(
                -1, 1, 1, 1
            )
        return {"input": images, "target": self.target[index]}


class Normalised(Digits):
    """Digits that say what they are normalised with."""

    def __init__(self, mean: float, std: float, **settings):
        super().__init__(**settings)
        self.mean, self.std = [mean], [std]


class Reversed(Digits):
    """Digits up to ``most``, whose classes stand in the opposite order."""

    def __init__(self, first, count, most=9):
        super().__init__(first, count)
        kept = self.target <= most
        self.images, self.target = self.images[kept], most - self.target[kept]
        self.classes = [str(k) for k in range(most, -1, -1)]


class Unreadable:
    """Digits one by one, as from files, some of which cannot be read."""

    image_shape = (1, 8, 8)

    def __init__(self, first, count, bad=(), left_out=()):
        self.digits, self.classes = Digits(first, count), [str(k) for k in range(10)]
        self.places = [i for i in range(count) if i not in left_out]
        self.bad = bad

    def __len__(self):
        return len(self.places)

    def path(self, i):
        return f"digits/{self.places[i]}.png"

    def __getitem__(self, i):
        if self.places[i] in self.bad:
            raise OSError(f"image file {self.places[i]} is truncated")
        return self.digits.images[self.places[i]], int(self.digits.target[self.places[i]])


class AgreeLoss(nn.Module):
    """A loss of a user's own: mean squared difference of probabilities."""

    def forward(self, student, teacher):
        return (student.softmax(1) - teacher.softmax(1)).square().sum(1).mean()


class StopAt(Hook):
    """Raise in one stage at one iteration, as a crash would."""

    def __init__(self, stage: str, iteration: int):
        self.stage, self.iteration = stage, iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.meta["stage"] == self.stage and batch_idx == self.iteration:
            raise KeyboardInterrupt


class EndAt(Hook):
    """End one stage after some iterations, as early stopping would."""

    def __init__(self, stage: str, iterations: int):
        self.stage, self.iterations = stage, iterations

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.meta["stage"] == self.stage and batch_idx + 1 == self.iterations:
            runner.train_loop.stop_training = True


class StandStill:
    """Chooses the anchor that has just taught, for ever."""

    def __call__(self, student, anchors):
        return 0


class KillAt(Hook):
    """Kill the process -9 in one stage at one iteration: ``KILL_AT=distilled:3``."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if os.environ.get("KILL_AT") == f"{runner.meta['stage']}:{batch_idx}":
            os.kill(os.getpid(), signal.SIGKILL)


class SignalAt(Hook):
    """Signal the process in the course of a step: ``SIGNAL_AT=<stage>:<iteration>:<number>``, and
    XX"""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        stage, iteration, number, times = (os.environ.get("SIGNAL_AT", "::") + ":1").split(":")[:4]
        here = (stage, iteration) == (runner.meta["stage"], f"{batch_idx}")
        here = here and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if here and os.environ.get("SIGNAL_RANK", f"{runner.rank}") == f"{runner.rank}":
            for _ in range(int(times)):
                os.kill(os.getpid(), int(number))


class Fragile:
    """Digits one by one; a process that reads them is killed once there is a file ``DIES_WHEN``."""

    image_shape = (1, 8, 8)

    def __init__(self, first, count):
        self.digits, self.classes = Digits(first, count), [str(k) for k in range(10)]

    def __len__(self):
        return len(self.digits)

    def __getitem__(self, i):
        if get_worker_info() and os.path.exists(os.environ.get("DIES_WHEN", "")):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.digits.images[i], int(self.digits.target[i])


class Slow(Hook):
    """Give whoever wants to kill the run time to do so."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        time.sleep(float(os.environ.get("SLOW", 0)))


class BreakWeights(Hook):
    """Make the student's output infinite from one iteration on."""

    def __init__(self, stage: str, iteration: int):
        self.stage, self.iteration = stage, iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.meta["stage"] == self.stage and batch_idx == self.iteration:
            with torch.no_grad():
                runner.distiller.student[-1].bias.fill_(float("inf"))


class BreakStatistics(Hook):
    """What one bad batch does to a BatchNorm whose loss stays finite."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.meta["stage"] == "distilled" and batch_idx == 15:
            runner.distiller.student[1].running_mean[0] = float("nan")


def views():
    """Random views of small grey images."""
    return transforms.Compose(
        [
            transforms.Grayscale(),
            transforms.RandomCrop(8, padding=1),
            transforms.ToTensor(),
            transforms.RandomErasing(p=0.5),
            transforms.Lambda(half),
        ]
    )


def half(image):
    """Values around 0."""
    return image - 0.5


def agreement(outputs, target):
    """A loss a network: its cross-entropy and its distance to the mean of all."""
    mean = torch.stack(outputs).mean(0).detach()
    return [
        nn.functional.cross_entropy(output, target) + (output - mean).square().mean()
        for output in outputs
    ]


class Samples:
    """A map-style data set of a few digits."""

    classes = tuple(str(k) for k in range(10))

    def __init__(self):
        self.digits = Digits(0, 64)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index):
        return self.digits.images[index], int(self.digits.target[index])


def mixed(samples):
    """Each image half of itself and half of its neighbour in the batch."""
    images = torch.stack([image for image, _ in samples])
    return (images + images.roll(1, 0)) / 2, torch.tensor([target for _, target in samples])


class BuiltHint(nn.Module):
    """A hint loss whose 1x1 convolution is made, and drawn, when its sizes are known."""

    def build(self, student, teacher):
        self.adapter = nn.Conv2d(student.shape[1], teacher.shape[1], 1).to(student.device)

    def forward(self, student, teacher):
        return (self.adapter(student) - teacher).square().mean()


class Random:
    """Images and labels drawn from torch's stream; counts how many sets have been made."""

    made = 0

    def __init__(self, count: int):
        if count < 1:
            raise ValueError(f"count must be positive, got {count}")
        type(self).made += 1
        self.images, self.target = torch.rand(count, 1, 8, 8), torch.randint(10, (count,))


class Shuffled:
    """Another set in an order drawn from torch's stream."""

    def __init__(self, dataset, first: int = 0):
        self.dataset, self.order = dataset, torch.randperm(len(dataset.images))


def quantized(width: int = 4) -> nn.Module:
    """Ready for quantization-aware training: its observers' buffers grow in the first step."""
    from torch.ao import quantization

    net = nn.Sequential(quantization.QuantStub(), *Net(width))
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(net.train())


class Silent(Net):
    """Its train() gives None, as that of mmdet's LD detector."""

    def train(self, mode: bool = True) -> None:
        super().train(mode)


class Embedded(Digits):
    """Digits whose batches also have what a teacher said of them, under any name."""

    def __init__(self, logits: str, **options):
        super().__init__(**options)
        self.name = logits

    def batch(self, index, view, seed):
        batch = super().batch(index, view, seed)
        return {
            **batch,
            self.name: 3 * torch.nn.functional.one_hot(batch["target"], 10).float().roll(1, 1),
        }


class Noting(Hook):
    """Notes every call that it gets."""

    calls: ClassVar[list] = []


def _noting(name):
    def note(self, runner, **given):
        Noting.calls.append((name, given))

    return note


for _name in Hook.stages:
    setattr(Noting, _name, _noting(_name))


class Memory(nn.Module):
    """Remembers embeddings in plain attributes, as third-party losses do, and pulls on them;
    centres in a buffer.
    """

    def __init__(self):
        super().__init__()
        self.rows, self.count = [], 0
        self.register_buffer("centre", torch.zeros(10))

    def forward(self, student, target):
        self.count += 1
        self.rows = [*self.rows[-2:], student.detach()]
        self.centre.lerp_(student.detach().mean(0), 0.1)
        far = (student.mean(0) - torch.cat(self.rows).mean(0) * self.count).square().mean()
        return 0.1 * far + 0.1 * (student - self.centre).square().mean()


class Halve:
    """A scheduler of one's own: the rate falls to a half every `every` steps."""

    def __init__(self, optimizer, every: int = 2):
        self.optimizer, self.every, self.seen = optimizer, every, 0

    def step(self):
        self.seen += 1
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.5 if self.seen % self.every == 0 else 1.0


def rate_of(step):
    """A factor for LambdaLR."""
    return 0.9**step


class Enlarged(nn.Module):
    """Digits in three channels, at the size that a torchvision or timm model is made for."""

    def __init__(self, model, side: int):
        super().__init__()
        self.model, self.side = model, side

    def forward(self, images):
        return self.model(
            nn.functional.interpolate(images, (self.side, self.side)).expand(-1, 3, -1, -1)
        )


def googlenet() -> nn.Module:
    """Three heads in training, one in eval."""
    from torchvision.models import googlenet

    return Enlarged(googlenet(aux_logits=True, init_weights=False, num_classes=10), 64)


def deit() -> nn.Module:
    """Two heads in training, their mean in eval."""
    import timm

    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", num_classes=10, img_size=32, depth=1
    )
    model.set_distilled_training(True)
    return Enlarged(model, 32)


class Unspoken(torch.utils.data.Dataset):
    """Coloured images that do not say what they are normalised with."""

    target = torch.arange(40) % 10

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.full((3, 16, 16), index / 40), int(self.target[index])


def mean(tensor):
    """Informs only."""
    return tensor.mean()
