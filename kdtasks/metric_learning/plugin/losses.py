"""Losses of pytorch-metric-learning in our configs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdtasks.core.precision import raised
from kdtasks.engine import builder


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
        ValueError: the loss needs no classes: it compares two views of each sample.
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
        """The loss of (B,D) embeddings and int64 (B,) classes."""
        with torch.autocast(student.device.type, enabled=False):
            (student,) = raised(student)
            mined = None if self.miner is None else self.miner(student, target)
            return self.loss(student, target, mined)
