"""A step of representation whose teacher is kept, against a step of the student alone."""

import tempfile
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure import SGD, Line, Step, ratio, same_work, step_times, update
from kdtasks.classification import models
from kdtasks.core.cache import TeacherCache
from kdtasks.general import FeatureLoss, QueueKLLoss
from kdtasks.representation.distiller import RepresentationDistiller
from kdtasks.representation.models import backbone

# what EfficientNet-Lite0 gives; the queue of the configs
WIDTH, QUEUE = 1280, 4096


class Constant(nn.Module):
    """A teacher that gives the same features whatever it sees."""

    def __init__(self, features: torch.Tensor):
        super().__init__()
        self.features = features

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.features


def cached_features(o) -> Iterator[Line]:
    """Teacher features out of a cache of this batch, regressed standardised, against the student
    with a linear classifier; without a bar the queue's KL, whose products are K x D numbers an
    image.
    """
    at = {"index": torch.arange(o.batch), "view": torch.zeros(o.batch, dtype=torch.int64)}
    torch.manual_seed(0)
    features = torch.randn(o.batch, WIDTH)
    input, target = torch.randn(o.batch, 3, 32, 32), torch.randint(100, (o.batch,))
    input, target = input.to(o.device), target.to(o.device)

    def student() -> nn.Module:
        torch.manual_seed(1)
        return backbone(getattr(models, o.models[1])()).to(o.device)

    def taught(loss: nn.Module, carried: Callable[[], dict]) -> Step:
        of = ("student.embedding", "teacher.embedding")
        teachers, losses = {"teacher": Constant(features.to(o.device))}, {"loss": (loss, of)}
        distiller = RepresentationDistiller(student(), teachers, losses)
        distiller.build({"input": input, **carried()})
        optimizer = torch.optim.SGD(distiller.parameters(), **SGD)
        # the teacher's statistics, and what a queue holds
        for _ in range(2):
            distiller({"input": input, **carried()})

        def step() -> torch.Tensor:
            return update(distiller({"input": input, **carried()})["loss"], optimizer)

        return step

    def alone() -> Step:
        model = student()
        torch.manual_seed(2)
        width = model(input[:2]).shape[1]
        classifier = nn.Linear(width, 100).to(o.device)
        parameters = [*model.parameters(), *classifier.parameters()]
        optimizer = torch.optim.SGD(parameters, **SGD)
        return lambda: update(F.cross_entropy(classifier(model(input)), target), optimizer)

    def standardized() -> FeatureLoss:
        torch.manual_seed(3)
        return FeatureLoss(standardize="scale", rows=2)

    with tempfile.TemporaryDirectory() as folder:
        name = "teacher.embedding"
        cache = TeacherCache.write(
            folder, {}, o.batch, 1, [at], lambda batch: {name: features}, half=False
        )
        cache.to(o.device)

        def kept() -> dict:
            return cache.fetch(**at)

        same_work({"live": taught(standardized(), dict), "kept": taught(standardized(), kept)})
        variants = {
            "kept features": taught(standardized(), kept),
            "kept, queue of 4096": taught(QueueKLLoss(QUEUE), kept),
            "student alone": alone(),
        }
        times = step_times(o, variants)
        yield ratio("", times, "kept features", "student alone", bar=1.05)
        yield ratio("", times, "kept, queue of 4096", "student alone")
