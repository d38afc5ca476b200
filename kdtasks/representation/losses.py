"""What the students that nobody teaches learn from: labels, or nothing."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdtasks.core.precision import raised


class ClassifierLoss(nn.Module):
    """Cross-entropy of a linear classifier on the embedding, which it trains beside it: supervised
    training of a backbone.

    Args:
        num_classes: of the labels; -100 is left out.
        channels: of the embedding; None: found on the first batch.
    """

    def __init__(self, num_classes: int, channels: int | None = None):
        super().__init__()
        self.classifier = (
            nn.Linear(channels, num_classes) if channels else nn.LazyLinear(num_classes)
        )

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Embeddings (B, D) and classes (B,) -> a scalar in nats; 0 without labelled rows.

        Raises:
            ValueError: embeddings of another shape.
        """
        (rows,) = raised(student)
        width = 0 if is_lazy(self.classifier.weight) else self.classifier.in_features
        if rows.dim() != 2 or not rows.shape[1] or width not in (0, rows.shape[1]):
            raise ValueError(f"expected embeddings (B, {width or 'D'}), got {tuple(rows.shape)}")
        logits = self.classifier(rows.to(self.classifier.weight.dtype)).to(rows.dtype)
        total = F.cross_entropy(logits, target, reduction="sum")
        return total / (target >= 0).sum().clamp(min=1)


def no_loss(student: Tensor) -> Tensor:
    """0, of a student that is tested as it is."""
    return student.sum() * 0
