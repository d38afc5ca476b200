"""A step of representation whose teacher is kept, against a step of the student alone."""

import tempfile
from collections.abc import Iterator

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

    def taught(loss: nn.Module) -> Step:
        of = ("student.embedding", "teacher.embedding")
        distiller = RepresentationDistiller(
            student(), {"teacher": nn.Identity()}, {"loss": (loss, of)}
        )
        distiller.build({"input": input, **cache.fetch(**at)})
        optimizer = torch.optim.SGD(distiller.parameters(), **SGD)

        def step() -> torch.Tensor:
            losses = distiller({"input": input, **cache.fetch(**at)})
            return update(losses["loss"], optimizer)

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
        names = "teacher.embedding"
        cache = TeacherCache.write(
            folder, {}, o.batch, 1, [at], lambda batch: {names: features}, half=True
        )
        cache.to(o.device)
        same_work({"once": taught(standardized()), "again": taught(standardized())})
        variants = {
            "cached features": taught(standardized()),
            "queue of 4096": taught(QueueKLLoss(QUEUE)),
            "student alone": alone(),
        }
        times = step_times(o, variants)
        yield ratio("", times, "cached features", "student alone", bar=1.05)
        yield ratio("", times, "queue of 4096", "student alone")
