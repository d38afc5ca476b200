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

PML is slow to import, so the two classes that derive from its own are made when they are first
asked for.
"""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from kdtasks.core import Teacher
from kdtasks.core.precision import raised
from kdtasks.engine import builder
from kdtasks.metric_learning.retrieval import k_means


class PMLLoss(nn.Module):
    """A loss of pytorch-metric-learning on a batch's embeddings and classes, in float32 at least.

    Args:
        loss: a PML loss, or a ``dict(type=…)`` of one; its ``distance`` and ``reducer`` may be such
            dicts as well. Proxies and the like are trained with the student. PML normalises
            embeddings unless told otherwise:
            ``distance=dict(type='pytorch_metric_learning.distances.LpDistance',
            normalize_embeddings=False)``.
        miner: a PML miner of pairs or triplets, or a ``dict(type=…)`` of one; None: all of the
            batch.

    Raises:
        ValueError: the loss knows no classes: it compares two views of each sample.
    """

    def __init__(self, loss: nn.Module | Mapping, miner: nn.Module | Mapping | None = None):
        super().__init__()
        self.loss = builder.build(loss, "loss") if isinstance(loss, Mapping) else loss
        self.miner = builder.build(miner, "miner") if isinstance(miner, Mapping) else miner
        if type(self.loss).__name__ in ("SelfSupervisedLoss", "VICRegLoss"):
            raise ValueError(
                f"{type(self.loss).__name__} compares two views of each sample, and PMLLoss has "
                "one and its class"
            )

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """
        Args:
            student: (B,D) embeddings.
            target: int64 (B,) classes.
        """
        with torch.autocast(student.device.type, enabled=False):
            (student,) = raised(student)
            return self.loss(
                student, target, None if self.miner is None else self.miner(student, target)
            )


@functools.cache
def _distill_loss() -> type:
    from pytorch_metric_learning.losses import BaseMetricLossFunction
    from pytorch_metric_learning.utils import common_functions

    class PMLDistillLoss(BaseMetricLossFunction):
        """One of our losses of two embeddings in pytorch-metric-learning: ``loss(embeddings,
        ref_emb=teacher_embeddings)``.

        The teacher's rows are of the same samples in the same order, of any width; they never
        receive a gradient. Labels are allowed and not used; ``indices_tuple`` must be None, for it
        speaks of classes, and these losses of all samples.

        A ``reducer`` acts on a loss of (B,) numbers: ``DarkRankLoss(reduction='none')`` gives one a
        query. One number for the batch, as of ``RKDLoss``, whose terms are pairs and triplets, is
        left as it is.

        In a ``DistributedLossWrapper`` the rows of all processes are gathered, teacher's and
        student's alike (``efficient=True`` gathers only the teacher's, so it is refused); then give
        ``loss`` no ``gather`` of its own.

        Args:
            loss: ``loss(student, teacher)``, a function or module: ``kdtasks.general.RKDLoss()``.
            kwargs: of PML's base class: ``reducer``, ``embedding_regularizer``,
                ``embedding_reg_weight``.

        Raises:
            ValueError: (when called) no ``ref_emb``, not as many rows, an ``indices_tuple``, or a
                loss that gives something else; (when made) a ``distance``, for each of our losses
                has its own.
        """

        def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], **kwargs):
            if kwargs.get("distance") is not None:
                raise ValueError("PMLDistillLoss takes no distance: the loss inside has its own")
            super().__init__(**kwargs)
            self.loss = loss

        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
            if ref_emb is embeddings or ref_emb is None:
                raise ValueError("PMLDistillLoss needs the teacher's embeddings as ref_emb=")
            if len(ref_emb) != len(embeddings):
                raise ValueError(
                    "the rows of embeddings and ref_emb must be of the same samples, got "
                    f"{tuple(embeddings.shape)} and {tuple(ref_emb.shape)} "
                    "(DistributedLossWrapper: efficient=False)"
                )
            if indices_tuple is not None:
                raise ValueError(
                    "indices_tuple must be None: relations of all samples are compared, whatever "
                    "their classes"
                )
            values = self.loss(embeddings, ref_emb.detach())
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            if shape not in ((), (len(embeddings),)):
                raise ValueError(
                    f"expected a loss of one number, or of one a sample, "
                    f"({len(embeddings)},), got {shape}"
                )
            if shape == ():
                return {
                    "loss": {"losses": values, "indices": None, "reduction_type": "already_reduced"}
                }
            return {
                "loss": {
                    "losses": values,
                    "indices": common_functions.torch_arange_from_size(values),
                    "reduction_type": "element",
                }
            }

    return _named(PMLDistillLoss)


@functools.cache
def _trainer() -> type:
    from pytorch_metric_learning.losses import BaseMetricLossFunction
    from pytorch_metric_learning.trainers import MetricLossOnly
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    class DistillMetricTrainer(MetricLossOnly):
        """pytorch-metric-learning's trainer ``MetricLossOnly`` with a teacher.

        As without distillation, but for three more arguments: ``teacher=``, a ``distill_loss``
        beside (or instead of) the ``metric_loss`` in ``loss_funcs``, and where they should not be
        1, ``loss_weights`` of both.

        The teacher is no entry of ``models``, whose members PML switches to training mode each
        epoch: it is frozen, in eval, in no ``parameters()``, and runs without gradient on the batch
        that the student sees. Miners mine for the metric loss.

        Args:
            teacher: images -> embeddings, a module or a :class:`kdtasks.core.Teacher`; moved to
                ``data_device``.
            args, kwargs: of ``MetricLossOnly``. ``loss_funcs['distill_loss']`` is one of our losses
                ``loss(student, teacher)``, which becomes a ``PMLDistillLoss``, or such a one (or
                PML's ``DistributedLossWrapper`` round it).

        Raises:
            ValueError: no ``distill_loss``, no loss with a weight, or a teacher with parameters of
                the student.
        """

        def __init__(self, *args, teacher: nn.Module, **kwargs):
            super().__init__(*args, **kwargs)
            if "distill_loss" not in self.loss_funcs:
                raise ValueError(f"loss_funcs needs a 'distill_loss', got {list(self.loss_funcs)}")
            if not any(self.loss_weights.values()):
                raise ValueError(f"nothing would train: loss_weights={self.loss_weights}")
            model = teacher.model if isinstance(teacher, Teacher) else teacher
            if {id(p) for p in model.parameters()} & {
                id(p) for own in self.models.values() for p in own.parameters()
            }:
                raise ValueError(
                    "the teacher has parameters of the student, which would be frozen: give it a "
                    "copy.deepcopy"
                )
            loss = self.loss_funcs["distill_loss"]
            if not isinstance(loss, BaseMetricLossFunction | DistributedLossWrapper):
                self.loss_funcs = {**self.loss_funcs, "distill_loss": _distill_loss()(loss)}
            self.teacher = (teacher if teacher is not model else Teacher(model)).to(
                self.data_device
            )

        def modify_schema(self):
            self.schema["loss_funcs"].keys = ["metric_loss", "distill_loss"]
            self.schema["loss_funcs"].important = ["distill_loss"]

        def calculate_loss(self, curr_batch):
            data, labels = curr_batch
            embeddings = self.compute_embeddings(data)
            if "metric_loss" in self.loss_funcs:
                mined = self.maybe_mine_embeddings(embeddings, labels)
                self.losses["metric_loss"] = self.maybe_get_metric_loss(embeddings, labels, mined)
            if self.loss_weights["distill_loss"] > 0:
                loss = self.loss_funcs["distill_loss"](
                    embeddings, ref_emb=self.teacher_embeddings(data)
                )
                # PML multiplies by the weight in place
                self.losses["distill_loss"] = loss.clone()

        @torch.no_grad()
        def teacher_embeddings(self, data) -> Tensor:
            """The teacher's embeddings of a batch. Override it to look them up instead."""
            return self.teacher(data.to(device=self.data_device, dtype=self.dtype or data.dtype))

    return _named(DistillMetricTrainer)


def accuracy_calculator(**options):
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


def _named(made: type) -> type:
    """The class as if it stood at the top of this file, so that it can be pickled."""
    made.__module__, made.__qualname__ = __name__, made.__name__
    return made


_LATE = {"PMLDistillLoss": _distill_loss, "DistillMetricTrainer": _trainer}


def __getattr__(name: str):
    if name in _LATE:
        return _LATE[name]()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LATE]
