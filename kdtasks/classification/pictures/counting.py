"""A model's answers to the test images, and what is counted of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from kdtasks.engine.loader import Loader


@dataclass
class Answers:
    """A model's answers to the labelled test images; all (N,), on the CPU.

    Args:
        index: places of the images in the data set.
        target: their classes.
        answer: the class with the largest probability.
        confidence: that probability, in [0,1].
    """

    index: Tensor
    target: Tensor
    answer: Tensor
    confidence: Tensor

    @property
    def right(self) -> Tensor:
        """bool (N,)."""
        return self.answer == self.target


@torch.no_grad()
def answers(model: nn.Module, loader: "Loader") -> Answers:
    """The answers of ``model``, in eval, to the labelled samples of ``loader``, whose batches have
    ``input``, ``target`` and ``index``.
    """
    parts = []
    for batch in loader:
        # (B,) each
        confidence, answer = model(batch["input"]).float().softmax(1).max(1)
        columns = batch["index"], batch["target"], answer, confidence
        parts.append([column.cpu() for column in columns])
    index, target, answer, confidence = (torch.cat(column) for column in zip(*parts))
    labelled = target >= 0
    return Answers(index[labelled], target[labelled], answer[labelled], confidence[labelled])


def calibration(
    confidence: Tensor, right: Tensor, bins: int = 10
) -> tuple[float, list[tuple[int, float, float]]]:
    r"""Expected calibration error in percent, and for each bin its count, accuracy and mean
    confidence in percent.

    .. math:: \text{ECE} = \sum_b \frac{n_b}{N} \, |\text{accuracy}_b - \text{confidence}_b|

    Bins are of equal width, open below and closed above: ((b-1)/bins, b/bins]. An empty bin counts
    (0, 0, 0).

    Args:
        confidence: (N,) in [0,1].
        right: bool (N,).
        bins: their number.
    """
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    # (N,) in 0..bins-1
    place = torch.bucketize(confidence.double(), edges)
    rows, error = [], 0.0
    for b in range(bins):
        inside, count = place == b, int((place == b).sum())
        accuracy = 100 * right[inside].double().mean().item() if count else 0.0
        mean = 100 * confidence[inside].double().mean().item() if count else 0.0
        rows.append((count, accuracy, mean))
        error += count / max(len(right), 1) * abs(accuracy - mean)
    return error, rows


def class_accuracy(answers: Answers, classes: int) -> list[float | None]:
    """Percent right of each class; None for one without test images."""
    count = torch.bincount(answers.target, minlength=classes)
    right = torch.bincount(answers.target[answers.right], minlength=classes)
    return [100 * r / n if n else None for r, n in zip(right.tolist(), count.tolist())]
