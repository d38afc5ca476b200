"""What in a teacher's accuracy speaks for a mistake."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

NAMED = 3  # classes of a wrong order that are named


def doubts(metrics: Mapping[str, float], model: nn.Module, loader: Any) -> list[str]:
    """What is wrong with an accuracy that a model without eyes would reach: chance, one class in n
    of those in the test data, or the share of the largest class, which is a constant answer's. In
    such a case the test is run again, to see whether its classes stand in another order.

    Args:
        metrics: with ``accuracy``, in percent.
        model: in eval.
        loader: of the test data; where it does not tell its targets, nothing is said.
    """
    target = getattr(getattr(loader, "dataset", None), "target", None)
    if not isinstance(target, Tensor) or target.ndim != 1 or not bool((target >= 0).any()):
        return []
    counts = torch.bincount(target[target >= 0]).double()
    chance = 100 / int((counts > 0).sum())
    constant = 100 * float(counts.max() / counts.sum())
    accuracy = metrics["accuracy"]
    # both are rounded
    if accuracy > constant + 1e-6:
        return []
    if accuracy < chance:
        reason = f"its accuracy of {accuracy:.2f} % is below chance ({chance:.2f} %)"
    else:
        reason = (
            f"its accuracy of {accuracy:.2f} % is not above that of a constant answer "
            f"({constant:.2f} %)"
        )
    order = another_order(answered(model, loader, len(counts)))
    if not order:
        return [reason]
    names = getattr(loader.dataset, "classes", None) or range(len(counts))
    pairs = [f"{names[i]!s} is its number {j}" for i, j in list(order.items())[:NAMED]]
    return [f"{reason}; but its classes stand in another order: {', '.join(pairs)} …"]


@torch.no_grad()
def answered(model: nn.Module, loader: Any, classes: int) -> Tensor:
    """How often each answer comes to each class, (classes, outputs), int64 on the CPU."""
    matrix: Tensor | None = None
    for batch in loader:
        logits, target = model(batch["input"]), batch["target"]
        labelled = target >= 0
        place = target[labelled] * logits.shape[1] + logits.argmax(1)[labelled]
        counts = torch.bincount(place, minlength=classes * logits.shape[1])
        matrix = counts if matrix is None else matrix + counts
    return torch.zeros(classes, 0) if matrix is None else matrix.view(classes, -1).cpu()


def another_order(matrix: Tensor) -> dict[int, int]:
    """``{class: answer}``, where most samples of most classes get one answer of their own, which is
    another number than the class's; empty: it is not so.

    Args:
        matrix: of :func:`answered`.
    """
    present = matrix.sum(1) > 0
    rows = matrix[present].double()
    if not rows.numel():
        return {}
    share, answer = (rows / rows.sum(1, keepdim=True)).max(1)
    # two thirds of the classes have an answer of their own, and half of the samples get it
    if len(answer.unique()) * 3 < 2 * len(answer) or float(share.mean()) < 0.5:
        return {}
    numbers = present.nonzero().flatten().tolist()
    pairs = dict(zip(numbers, answer.tolist(), strict=True))
    return {number: other for number, other in pairs.items() if number != other}
