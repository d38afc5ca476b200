"""pytorch-metric-learning's trainer with a teacher. It is imported with this module."""

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import Tensor, nn

from kdtasks.core import Teacher
from kdtasks.metric_learning.plugin.distill_loss import PMLDistillLoss


class DistillMetricTrainer(MetricLossOnly):
    """pytorch-metric-learning's trainer ``MetricLossOnly`` with a teacher.

    As without distillation, but for three more arguments: ``teacher=``, a ``distill_loss`` beside
    (or instead of) the ``metric_loss`` in ``loss_funcs``, and, if they should not be 1,
    ``loss_weights`` of both.

    The teacher is no entry of ``models``, whose members PML switches to training mode each epoch:
    it is frozen, in eval, in no ``parameters()``, and runs without gradient on the batch that the
    student sees. Miners mine for the metric loss.

    Args:
        teacher: images -> embeddings, a module or a :class:`kdtasks.core.Teacher`; moved to
            ``data_device``.
        args, kwargs: of ``MetricLossOnly``. ``loss_funcs['distill_loss']`` is one of our losses
            ``loss(student, teacher)``, which becomes a ``PMLDistillLoss``, or such a one (or PML's
            ``DistributedLossWrapper`` round it).

    Raises:
        ValueError: no ``distill_loss``, no loss with a weight, or a teacher with parameters of the
            student.
    """

    def __init__(self, *args: object, teacher: nn.Module, **kwargs: object):
        super().__init__(*args, **kwargs)
        if "distill_loss" not in self.loss_funcs:
            raise ValueError(f"loss_funcs needs a 'distill_loss', got {list(self.loss_funcs)}")
        if not any(self.loss_weights.values()):
            raise ValueError(f"nothing would train: loss_weights={self.loss_weights}")
        self._check_separate(teacher.model if isinstance(teacher, Teacher) else teacher)
        loss = self.loss_funcs["distill_loss"]
        if not isinstance(loss, BaseMetricLossFunction | DistributedLossWrapper):
            self.loss_funcs = {**self.loss_funcs, "distill_loss": PMLDistillLoss(loss)}
        teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
        self.teacher = teacher.to(self.data_device)

    def _check_separate(self, teacher: nn.Module) -> None:
        trained = set()
        for model in self.models.values():
            trained |= {id(parameter) for parameter in model.parameters()}
        if any(id(parameter) in trained for parameter in teacher.parameters()):
            raise ValueError(
                "the teacher has parameters of the student, which would be frozen: give it a "
                "copy.deepcopy"
            )

    def modify_schema(self) -> None:
        """Name the losses that PML checks."""
        self.schema["loss_funcs"].keys = ["metric_loss", "distill_loss"]
        self.schema["loss_funcs"].important = ["distill_loss"]

    def calculate_loss(self, curr_batch: tuple[Tensor, Tensor]) -> None:
        """Both losses of a batch, from one forward of the student."""
        images, labels = curr_batch
        embeddings = self.compute_embeddings(images)
        if "metric_loss" in self.loss_funcs:
            mined = self.maybe_mine_embeddings(embeddings, labels)
            self.losses["metric_loss"] = self.maybe_get_metric_loss(embeddings, labels, mined)
        if self.loss_weights["distill_loss"] > 0:
            reference = self.teacher_embeddings(images)
            loss = self.loss_funcs["distill_loss"](embeddings, ref_emb=reference)
            # PML multiplies by the weight in place
            self.losses["distill_loss"] = loss.clone()

    @torch.no_grad()
    def teacher_embeddings(self, data: Tensor) -> Tensor:
        """The teacher's embeddings of a batch. Override it to look them up instead."""
        return self.teacher(data.to(device=self.data_device, dtype=self.dtype or data.dtype))
