"""Digits as an avalanche benchmark, in an order of classes that is not theirs, small networks, and
strategies that note what their batches were.
"""

import copy

import torch
from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark
from avalanche.benchmarks.scenarios.task_aware import task_incremental_benchmark
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.utils.data import TensorDataset

from kdtasks.incremental.models import growing
from kdtasks.incremental.plugin import checked_benchmark

ORDER = [3, 7, 1, 0, 9, 2, 8, 6, 4, 5]


class Images(TensorDataset):
    """Ten digits of each class, with the ``targets`` that avalanche asks for."""

    def __init__(self):
        from sklearn.datasets import load_digits

        data = load_digits()
        target = torch.tensor(data.target)
        some = torch.cat([(target == number).nonzero().squeeze(1)[:10] for number in range(10)])
        super().__init__(torch.tensor(data.images[:, None] / 16).float()[some], target[some])
        self.targets = target[some].tolist()


def benchmark(experiences=5, order=ORDER, data=Images, **options):
    return class_incremental_benchmark(
        {"train": data(), "test": data()}, num_experiences=experiences, class_order=order, **options
    )


def task_benchmark(order=ORDER):
    return checked_benchmark(
        task_incremental_benchmark(benchmark(order=order), reset_task_labels=True)
    )


class Net(nn.Module):
    """Two convolutions, pooling, a head; BatchNorm and an in-place ReLU where asked for."""

    def __init__(self, head, norm=True):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
            nn.Tanh(),
        )
        self.layer3 = nn.Sequential(
            nn.Conv2d(6, 8, 3, padding=1),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(inplace=True),
        )
        self.head = head

    def features(self, x):
        return self.layer3(self.stem(x))

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class ManyHeads(MultiTaskModule):
    """The same with a head for each task; where ``scaled``, each task has a trunk of its own, if a
    simple one.
    """

    def __init__(self, norm=True, scaled=False):
        super().__init__()
        self.heads, self.net, self.scaled = MultiHeadClassifier(8), Net(nn.Identity(), norm), scaled

    def forward(self, x, task_labels):
        if self.scaled:
            return super().forward(x, task_labels)
        return self.heads(self.net(x), task_labels)

    def forward_single_task(self, x, task_label):
        return self.heads(self.net(x) * (1 + task_label), task_label)


def single_heads():
    return {
        "linear": lambda: Net(nn.Linear(8, 10)),
        "incremental": lambda: Net(IncrementalClassifier(8)),
        "growing": lambda: growing(Net(nn.Linear(8, 10)), (4, 6)),
    }


class Steps:
    """What every batch of a training experience was, seen after the plugin before it has changed
    the loss.
    """

    def __init__(self):
        self.seen = []

    def before_backward(self, strategy, **kwargs):
        self.seen.append(
            {
                "x": strategy.mb_x,
                "y": strategy.mb_y,
                "logits": strategy.mb_output.detach(),
                "loss": strategy.loss,
                "state": copy.deepcopy(strategy.model.state_dict()),
            }
        )


def strategy_of(model, plugins, lr=0.05, momentum=0.9, epochs=1, **options):
    return SupervisedTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum),
        evaluator=None,
        train_mb_size=8,
        train_epochs=epochs,
        plugins=plugins,
        **options,
    )


def trained(model, plugin, stream, count, **options):
    """Train on ``count`` experiences; return the strategy, the model as it was before the last, in
    eval, and the last's batches.
    """
    steps, strategy, before = Steps(), None, None
    strategy = strategy_of(model, [plugin, steps], **options)
    for experience in list(stream)[:count]:
        before, steps.seen = copy.deepcopy(strategy.model).eval(), []
        strategy.train(experience)
    return strategy, before, steps.seen
