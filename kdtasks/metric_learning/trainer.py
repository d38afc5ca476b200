"""Metric learning as the engine sees it: metrics, example, figures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.core.precision import raised
from kdtasks.engine import builder
from kdtasks.engine.data_sets import image_shape
from kdtasks.engine.task import Metric
from kdtasks.metric_learning.data import load_embeddings
from kdtasks.metric_learning.retrieval import cross_recall, k_means, nmi, recall_and_map

if TYPE_CHECKING:
    from kdtasks.core import Stage
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.run import Run

PRIMARY = "recall_at_1"
HIGHER_IS_BETTER = True
HUB_TASK = "image-feature-extraction"
METRICS = {
    "cross_recall_at_1": Metric("%"),
    "cross_recall_at_*": Metric("%", listed=False),
    "recall_at_*": Metric("%"),
    "map_at_r": Metric("%"),
    "nmi": Metric("%"),
}
# test classes are disjoint from training classes, and have numbers of their own
UNSEEN_CLASSES = True
NMI_CLASSES = 1000


def evaluate(model: nn.Module, loader: "Loader") -> dict[str, float]:
    """``recall_at_1``, ``_2``, ``_4``, ``_8``, ``map_at_r`` and ``nmi`` of the labelled samples, in
    percent.

    Each sample in turn is the query, all others are the gallery, by the Euclidean distance of the
    embeddings as the model gives them; see :mod:`kdtasks.metric_learning.retrieval`. NMI is of one
    k-means clustering with as many clusters as classes; above 1000 classes (SOP) it is left out,
    for that takes minutes: ``nmi(target, k_means(rows, classes))`` in that module.

    Raises:
        ValueError: an embedding is not finite, or no class has two labelled samples.
    """
    rows, target, _ = embeddings_of(model, loader)
    metrics, classes = recall_and_map(rows, target), len(target.unique())
    if classes <= NMI_CLASSES:
        metrics["nmi"] = nmi(target, k_means(rows, classes))
    return metrics


def summary(run: "Run", stage: "Stage", metrics: Mapping[str, float]) -> dict[str, float]:
    """Where a loss of the run puts the student's space onto the teacher's (it has ``aligns``):
    ``cross_recall_at_1``, ``_2``, ``_4``, ``_8``, of the student's queries in the teacher's gallery
    of the test images; of the control too, which was told nothing of it.
    """
    final = run.experiment.final
    if stage.model != "student" or final is None or not _aligns(final):
        return {}
    loader = run.experiment.test_loader(stage)
    names = run.experiment.other_teachers(final)
    if not names:
        return {}
    teacher = run.experiment.teacher(final, names[0], run.files)
    gallery, target, _ = embeddings_of(teacher, loader)
    queries, _, _ = embeddings_of(run.trained(stage.name), loader)
    return cross_recall(queries, gallery, target) if queries.shape == gallery.shape else {}


def _aligns(stage: "Stage") -> bool:
    types = [entry["type"] for entry in stage.losses.values() if "type" in entry]
    return any(getattr(builder.resolve(kind, "losses"), "aligns", False) for kind in types)


def is_comparable(ours: Tensor, theirs: object, config: Mapping) -> bool:
    """Embeddings of any width: each model is queried in its own space."""
    return isinstance(theirs, Tensor) and theirs.flatten(1).ndim == 2


def doubts(metrics: Mapping[str, float], model: nn.Module, loader: "Loader") -> list[str]:
    """A Recall@1 that random embeddings would reach: the chance that another sample, drawn at
    random, has the query's class.
    """
    target = getattr(loader.dataset, "target", None)
    if target is None:
        return []
    counts = torch.bincount(torch.as_tensor(target)[torch.as_tensor(target) >= 0]).double()
    queries = float(counts[counts > 1].sum())
    chance = 100 * float((counts * (counts - 1)).sum()) / max(queries * float(counts.sum() - 1), 1)
    recall = metrics["recall_at_1"]
    if recall > chance:
        return []
    return [f"its Recall@1 of {recall:.2f} % is not above chance ({chance:.2f} %)"]


@torch.no_grad()
def embeddings_of(model: nn.Module, loader: "Loader") -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (N,D), classes (N,) and places in the data set (N,) of the labelled samples, on
    the device.
    """
    parts = []
    for batch in loader:
        rows = model(batch["input"]).flatten(1)
        parts.append((*raised(rows), batch["target"], batch["index"].to(rows.device)))
    rows, target, index = (torch.cat(column) for column in zip(*parts))
    labelled = target >= 0
    return rows[labelled], target[labelled], index[labelled]


def example(config: dict, batch_size: int) -> dict[str, Tensor]:
    """Random images of the shape that the data has, at least two of each class, without reading the
    data.
    """
    generator = torch.Generator().manual_seed(0)
    per_class = config["data"].get("per_class") or 2
    train = config["data"]["train"]
    batch = {
        "input": torch.randn(batch_size, *image_shape(train), generator=generator),
        "index": torch.arange(batch_size),
        "target": torch.arange(batch_size) // per_class,
    }
    if (width := _teacher_width(train)) is not None:
        batch["teacher"] = torch.randn(batch_size, width, generator=generator)
    return batch


def _teacher_width(spec: dict) -> int | None:
    """Width of the embeddings in the data; 128 if their file does not exist; None without any."""
    embeddings = spec.get("embeddings")
    if embeddings is None:
        inner = spec.get("dataset")
        return _teacher_width(inner) if isinstance(inner, dict) else None
    try:
        return load_embeddings(embeddings).shape[1]
    except FileNotFoundError:
        return 128


def pictures(run: "Run") -> list[tuple]:
    """``[(title, figure)]`` on the test data: what each model finds nearest, its map of the
    embeddings, and how far the student's rankings agree with the teacher's.

    Whatever of teacher, alone and distilled there is takes part; a teacher from a file as the last
    stage used it.
    """
    from kdtasks.engine.report import stage_colors  # what draws is imported only here
    from kdtasks.metric_learning import pictures as draw

    if not run.finished:
        return []
    loader = run.experiment.test_loader(run.finished[-1])
    embeddings = {name: embeddings_of(model, loader) for name, model in run.arm_models().items()}
    pair = [stage.name for stage in run.arms.pair]
    teachers = [name for name in embeddings if name not in pair]
    return draw.draw(embeddings, teachers, pair, loader, stage_colors(run))
