"""What the students that nobody teaches learn from: labels, or nothing."""

import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.precision import raised


class ClassifierLoss(nn.Module):
    """Cross-entropy of a linear classifier on the embedding, which it trains beside it: supervised
    training of a backbone.

    Args:
        num_classes: of the labels; -100 is left out.
        channels: of the embedding; None: found by :meth:`build`.

    Raises:
        RuntimeError: (in ``forward``) the channels are not known yet.
    """

    def __init__(self, num_classes: int, channels: int | None = None):
        super().__init__()
        self.num_classes = num_classes
        self.classifier = nn.Linear(channels, num_classes) if channels else None

    def build(self, student: Tensor, target: Tensor) -> None:
        """Makes the classifier if it is not there."""
        if self.classifier is None:
            self.classifier = nn.Linear(student.shape[1], self.num_classes).to(student.device)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        """Embeddings (B, D) and classes (B,) -> a scalar in nats; 0 without labelled rows."""
        if self.classifier is None:
            raise RuntimeError(
                "the classifier does not know its channels: give channels, or call build(student, "
                "target) before the optimizer is made"
            )
        logits = raised(self.classifier(student.to(self.classifier.weight.dtype)))[0]
        total = F.cross_entropy(logits, target, reduction="sum")
        return total / (target >= 0).sum().clamp(min=1)


def no_loss(student: Tensor) -> Tensor:
    """0, of a student that is tested as it is."""
    return student.sum() * 0
