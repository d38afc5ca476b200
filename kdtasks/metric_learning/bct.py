r"""Backward-compatible embeddings (Shen et al., BCT, arXiv 2003.11942): a new model whose queries
search the gallery that an old model has filled, without embedding it anew.

The new embeddings f have to be told apart by the old model's classifier as well as by their own:

.. math:: L = L_\text{new}(f(x), y) + \lambda \, \text{CE}(W_\text{old} f(x), y)

with W_old (C, D) frozen; lambda is 1 in openBCT, the author's re-implementation (recalled: the
paper's too). The paper's classifier is the one that the old model was trained with; where there is
none, or it does not know a class, a row is the mean of the old embeddings of the class (recalled of
the paper, not verified). Embedders trained by triplets have none, so :class:`InfluenceLoss` makes
all rows so, from the old embeddings of the batches that it has seen.

Compatible means that new queries find more in the old gallery than old queries do; a small new
model of a large old one need not reach that. ``cross_recall_at_k`` of the results says what it
finds (:func:`kdtasks.metric_learning.retrieval.cross_recall`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.classes import UNLABELLED
from kdtasks.core.gather import gather_rows
from kdtasks.core.precision import raised, raised_dtype
from kdtasks.core.terms import connected_zero


def influence_loss(
    features: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None
) -> Tensor:
    r"""Cross-entropy of the new embeddings under the old classifier, mean over the rows whose class
    it knows.

    .. math:: \frac{1}{|K|} \sum_{i \in K} -\log \text{softmax}(W f_i + b)_{y_i}

    Args:
        features: (B, D), of the new model. Of more columns than ``weight`` the first ones are used;
            fewer are filled up with zeros.
        weight: (C, D_old), of the old model; it receives no gradient.
        target: int64 (B,), rows of ``weight``; -100: the old classifier does not know the class.
        bias: (C,), or None.

    Returns:
        A scalar, at least float32; without known rows a zero that backpropagates.

    Raises:
        ValueError: shapes do not fit, or a target is no row of ``weight``.
    """
    if features.ndim != 2 or weight.ndim != 2 or target.shape != features.shape[:1]:
        raise ValueError(
            "expected features (B,D), weight (C,D_old) and target (B,), got "
            f"{tuple(features.shape)}, {tuple(weight.shape)} and {tuple(target.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"expected bias ({len(weight)},), got {tuple(bias.shape)}")
    outside = (target != UNLABELLED) & ((target < 0) | (target >= len(weight)))
    if not target.is_cuda and bool(outside.any()):
        raise ValueError(
            f"the old classifier has {len(weight)} classes, got the target "
            f"{int(target[outside][0])}; {UNLABELLED} stands for a class that it does not know"
        )
    features, weight = raised(features, weight.detach())
    if not len(features):
        return connected_zero(features)
    wide, width = features.shape[1], weight.shape[1]
    features = features[:, :width] if wide > width else F.pad(features, (0, width - wide))
    logits = features @ weight.T
    if bias is not None:
        logits = logits + bias.detach().to(logits.dtype)
    total = F.cross_entropy(logits, target, ignore_index=UNLABELLED, reduction="sum")
    return total / (target != UNLABELLED).sum().clamp(min=1)


class InfluenceLoss(nn.Module):
    r"""BCT's influence loss where the old model has no classifier: its rows are the class means of
    its embeddings.

    .. math:: W_c = s \cdot \frac{m_c}{\lVert m_c \rVert}, \qquad
        m_c = \text{the mean of the old embeddings of class } c \text{ so far}

    A class counts from its first sample on, so the first steps know the classes of their own batch.
    The old embeddings are those of the batches, augmented as the student sees them. Sums are kept
    in float64, over the batches of all processes; they are part of the stage's checkpoint.

    Args:
        classes: of the training data.
        dim: width of the old embeddings.
        scale: s; the embeddings have length 1, so that logits lie in [-s, s]. 16 is ours (nobody
            published it for this form); chosen beforehand, not tuned.

    Raises:
        ValueError: no classes or width; as :func:`influence_loss`.
    """

    # whether the student's space becomes the teacher's, so that either can search the other's
    aligns = True
    sums: Tensor
    counts: Tensor

    def __init__(self, classes: int, dim: int, scale: float = 16.0):
        super().__init__()
        if classes < 1 or dim < 1 or scale <= 0:
            raise ValueError(
                f"expected classes, dim and scale > 0, got {classes}, {dim} and {scale}"
            )
        self.scale = scale
        self.register_buffer("sums", torch.zeros(classes, dim, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Embeddings (B, D), (B, dim), and classes (B,), -100 of unlabelled rows -> a scalar."""
        classes, dim = self.sums.shape
        if teacher.shape != (len(target), dim):
            raise ValueError(f"expected teacher ({len(target)},{dim}), got {tuple(teacher.shape)}")
        labelled = target != UNLABELLED
        outside = labelled & ((target < 0) | (target >= classes))
        if not target.is_cuda and bool(outside.any()):
            raise ValueError(
                f"expected targets in 0..{classes - 1}, got {int(target[outside][0])}; "
                f"{UNLABELLED} stands for no label"
            )
        if self.training:
            self._add(teacher.detach(), target)
        rows = F.normalize(self.sums, dim=1)
        unseen = torch.zeros_like(rows[:, 0]).masked_fill(self.counts == 0, float("-inf"))
        # in eval a class may not have come yet
        seen_target = torch.where(
            labelled & (self.counts[target.clamp(min=0)] > 0), target, UNLABELLED
        )
        precision = raised_dtype(student)
        weight = (self.scale * rows).to(precision)
        return influence_loss(student, weight, seen_target, unseen.to(precision))

    @torch.no_grad()
    def _add(self, teacher: Tensor, target: Tensor) -> None:
        """The labelled rows of all processes."""
        teacher, target = gather_rows(teacher.to(self.sums.dtype)), gather_rows(target)
        # no row is picked by a mask: its length would be a read from the device
        labelled = target != UNLABELLED
        place = target.clamp(min=0)
        self.sums.index_add_(0, place, torch.where(labelled[:, None], teacher, 0.0))
        self.counts.index_add_(0, place, labelled.to(self.counts.dtype))

    def extra_repr(self) -> str:
        """The arguments."""
        classes, dim = self.sums.shape
        return f"classes={classes}, dim={dim}, scale={self.scale}"
