"""Our losses of two embeddings in pytorch-metric-learning. It is imported with this module."""

from collections.abc import Callable

from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.utils.common_functions import torch_arange_from_size
from torch import Tensor


class PMLDistillLoss(BaseMetricLossFunction):
    """One of our losses of two embeddings in pytorch-metric-learning: ``loss(embeddings,
    ref_emb=teacher_embeddings)``.

    The teacher's rows are of the same samples in the same order, of any width; they never receive a
    gradient. Labels are allowed and not used; ``indices_tuple`` must be None, for it selects by
    class, and these losses relate all samples.

    A ``reducer`` acts on a loss of (B,) numbers: ``DarkRankLoss(reduction='none')`` gives one a
    query. One number for the batch, as of ``RKDLoss``, whose terms are pairs and triplets, is left
    as it is.

    In a ``DistributedLossWrapper`` the rows of all processes are gathered, teacher's and student's
    alike (``efficient=True`` gathers only the teacher's, so it is refused); then give ``loss`` no
    ``gather`` of its own.

    Args:
        loss: ``loss(student, teacher)``, a function or module: ``kdtasks.general.RKDLoss()``.
        kwargs: of PML's base class: ``reducer``, ``embedding_regularizer``,
            ``embedding_reg_weight``.

    Raises:
        ValueError: (when called) no ``ref_emb``, not as many rows, an ``indices_tuple``, or a loss
            that gives something else; (when made) a ``distance``, for each of our losses has its
            own.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], **kwargs: object):
        if kwargs.get("distance") is not None:
            raise ValueError("PMLDistillLoss takes no distance: the loss inside has its own")
        super().__init__(**kwargs)
        self.loss = loss

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> dict[str, dict]:
        """The loss as PML's reducers take it."""
        _check_inputs(embeddings, ref_emb, indices_tuple)
        values = self.loss(embeddings, ref_emb.detach())
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if shape == ():
            indices, reduction = None, "already_reduced"
        elif shape == (len(embeddings),):
            indices, reduction = torch_arange_from_size(values), "element"
        else:
            raise ValueError(
                f"expected a loss of one number, or of one a sample, ({len(embeddings)},), got "
                f"{shape}"
            )
        return {"loss": {"losses": values, "indices": indices, "reduction_type": reduction}}


def _check_inputs(embeddings: Tensor, ref_emb: Tensor | None, indices_tuple: tuple | None) -> None:
    if ref_emb is embeddings or ref_emb is None:
        raise ValueError("PMLDistillLoss needs the teacher's embeddings as ref_emb=")
    if len(ref_emb) != len(embeddings):
        raise ValueError(
            "the rows of embeddings and ref_emb must be of the same samples, got "
            f"{tuple(embeddings.shape)} and {tuple(ref_emb.shape)} (DistributedLossWrapper: "
            "efficient=False)"
        )
    if indices_tuple is not None:
        raise ValueError(
            "indices_tuple must be None: relations of all samples are compared, whatever their "
            "classes"
        )
