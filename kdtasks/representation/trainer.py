"""Representations as the engine sees them: metrics, example, figures."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.core.precision import raised
from kdtasks.engine.data_sets import image_shape
from kdtasks.engine.evaluation import evaluate as watched
from kdtasks.engine.task import Metric
from kdtasks.representation.knn import weighted_knn
from kdtasks.representation.models import embedding_of
from kdtasks.representation.probe import probe_answers

if TYPE_CHECKING:
    from kdtasks.core import Stage
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.run import Run

PRIMARY = "knn"
HIGHER_IS_BETTER = True
HUB_TASK = "image-feature-extraction"
METRICS = {
    "knn": Metric("%", label="weighted kNN"),
    "linear": Metric("%", label="linear probe"),
    "*_knn": Metric("%"),
    "*_linear": Metric("%"),
}
# the classes of the test data need not be those of what is learned from, which may have none
UNSEEN_CLASSES = True
# student.pth is a part of models of other tasks
BACKBONE = True


def evaluate(model: nn.Module, loader: "Loader") -> dict[str, float]:
    """``knn`` and ``linear``, in percent of the queries: what the 20 nearest of the bank say
    (:func:`~kdtasks.representation.weighted_knn`), and a linear classifier of the bank
    (:func:`~kdtasks.representation.probe.probe_answers`).

    The test data is a bank and queries; nothing of the model is trained.

    Raises:
        ValueError: the test data is no bank and queries.
    """
    rows, target = embeddings_of(model, loader)
    count = bank_size(loader)
    bank, queries = rows[:count], rows[count:]
    labels, query_labels = target[:count], target[count:]
    # a run first tries one batch
    if not len(queries):
        return dict.fromkeys(("knn", "linear"), float("nan"))
    classes = int(target.max()) + 1
    nearest = weighted_knn(bank, labels, queries, classes=classes).argmax(1)
    linear = probe_answers(bank, labels, queries)
    return {
        "knn": 100 * float((nearest == query_labels).double().mean()),
        "linear": 100 * float((linear == query_labels).double().mean()),
    }


def bank_size(loader: "Loader") -> int:
    """How many of the test images are the bank's.

    Raises:
        ValueError: the test data is of another kind.
    """
    size = getattr(loader.dataset, "bank", None)
    if not isinstance(size, int):
        raise ValueError(
            "data.test: expected dict(type='kdtasks.representation.data.bank_and_queries', "
            "bank=…, queries=…), or of one labelled set dict(type='kdtasks.representation.data."
            f"split', dataset=…), got {type(loader.dataset).__name__}"
        )
    return size


def doubts(metrics: Mapping[str, float], model: nn.Module, loader: "Loader") -> list[str]:
    """A kNN that one answer for all queries, the most frequent class, would reach too."""
    target = loader.dataset.target[bank_size(loader) :]
    constant = 100 * float(target.bincount().max() / len(target))
    if metrics["knn"] > constant + 1e-6:
        return []
    return [f"its kNN of {metrics['knn']:.2f} % is not above a constant answer ({constant:.2f} %)"]


def is_comparable(ours: object, theirs: object, config: Mapping) -> bool:
    """Whatever has a representation: each network is asked in its own space."""
    return True


@torch.no_grad()
def embeddings_of(model: nn.Module, loader: "Loader") -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) in float32 at least, and classes (N,), of the test images in order."""
    parts = []
    for batch in loader:
        rows = embedding_of(model(batch["input"]))
        parts.append((raised(rows)[0], batch["target"]))
    rows, target = (torch.cat(column) for column in zip(*parts))
    return rows, target


def example(config: dict, batch_size: int) -> dict[str, Tensor]:
    """Random images of the shape that the data has, without reading it."""
    generator = torch.Generator().manual_seed(0)
    shape = image_shape(config["data"]["train"])
    return {
        "input": torch.randn(batch_size, *shape, generator=generator),
        "index": torch.arange(batch_size),
        "target": torch.zeros(batch_size, dtype=torch.int64),
    }


def summary(run: "Run", stage: "Stage", metrics: Mapping[str, float]) -> dict[str, float]:
    """What the teachers of a stage reach themselves, as ``<teacher>_knn`` and ``<teacher>_linear``:
    on the same test images, in their own size and normalisation.
    """
    if not stage.teachers:
        return {}
    experiment, teacher_metrics = run.experiment, run.teacher_metrics(stage)
    results = {
        f"{name}_{k}": value
        for name, values in teacher_metrics.items()
        for k, value in values.items()
    }
    loader = experiment.test_loader(stage)
    missing = [name for name in stage.teachers if name not in teacher_metrics]
    for name in missing:
        teacher = experiment.teacher(stage, name, run.files)
        try:
            values = watched(experiment.task, teacher, loader)
        # a trained stage is worth more than a further number
        except (ValueError, RuntimeError) as error:
            warnings.warn(f"the kNN of {name} is not known: {error}", stacklevel=2)
            continue
        results |= {f"{name}_{metric}": value for metric, value in values.items()}
    return results


def pictures(run: "Run") -> list[tuple]:
    """``[(title, figure)]``: nearest neighbours, maps in colours of their components, and kNN
    against images seen; see :mod:`kdtasks.representation.pictures`.
    """
    from kdtasks.engine.report import stage_colors  # what draws is imported only here
    from kdtasks.representation import pictures as draw

    if not run.finished:
        return []
    loader = run.experiment.test_loader(run.finished[-1])
    bank_size(loader)
    return draw.draw(run, loader, stage_colors(run))
