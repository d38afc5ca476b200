"""The door to pytorch-metric-learning (PML): its losses and miners in our configs, our losses and
teachers in its own loop.

- :class:`PMLLoss` makes any of PML's losses, with a miner or without, a loss of a config:
  ``dict(type='kdtasks.metric_learning.plugin.PMLLoss',
  loss=dict(type='pytorch_metric_learning.losses.TripletMarginLoss'), of=('student', 'target'))``.
- ``PMLDistillLoss`` makes any of our losses of two embeddings one of PML's: ``loss(embeddings,
  ref_emb=teacher_embeddings)``.
- ``DistillMetricTrainer`` is PML's trainer ``MetricLossOnly`` with a teacher, which is frozen and
  stays so.
- :func:`accuracy_calculator` is PML's ``AccuracyCalculator`` where faiss is not installed.

PML is slow to import, so the two classes that derive from its own are in modules that are imported
when they are first asked for.
"""

from typing import TYPE_CHECKING

from kdtasks.metric_learning.plugin.losses import PMLLoss
from kdtasks.metric_learning.retrieval import k_means

if TYPE_CHECKING:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    from kdtasks.metric_learning.plugin.distill_loss import PMLDistillLoss
    from kdtasks.metric_learning.plugin.trainer import DistillMetricTrainer

__all__ = ["DistillMetricTrainer", "PMLDistillLoss", "PMLLoss", "accuracy_calculator"]


def accuracy_calculator(**options: object) -> "AccuracyCalculator":
    """pytorch-metric-learning's ``AccuracyCalculator`` without faiss, for its testers and by
    itself.

    Neighbours are by the Euclidean distance of the embeddings as they are (PML's testers normalise
    them beforehand unless told otherwise), by PML's ``CustomKNN``, whose memory is N² numbers; NMI
    and AMI are of our k-means.

    Args:
        options: of ``AccuracyCalculator``: ``include=('precision_at_1', 'NMI')``,
            ``k='max_bin_count'``; a ``knn_func`` or ``kmeans_func`` takes the place of these.
    """
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    knn = CustomKNN(LpDistance(normalize_embeddings=False))
    return AccuracyCalculator(**{"knn_func": knn, "kmeans_func": k_means, **options})


def __getattr__(name: str) -> type:
    if name == "PMLDistillLoss":
        from kdtasks.metric_learning.plugin.distill_loss import PMLDistillLoss

        return PMLDistillLoss
    if name == "DistillMetricTrainer":
        from kdtasks.metric_learning.plugin.trainer import DistillMetricTrainer

        return DistillMetricTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
