r"""Accuracy and forgetting of a run of T tasks, from its matrix: A[i, j] is the accuracy on task j
after task i.

Three kinds of forgetting go by this one name, and their numbers are not comparable; a positive one
is a loss:

- :func:`forgetting`: from the best a task ever was to the end (Chaudhry et al., 1801.10112).
- :func:`forgetting_diag`: from when it was learned to the end, as avalanche counts.
- :func:`forgetting_gd`: from when it was learned to every later stage, in shares of the whole run
  (Global Distillation).

A is a (T, T) array or tensor, or T rows with at least i + 1 entries in row i. What stands above the
diagonal is never read and may be NaN. Results are floats in A's unit (percent or share). ``sizes``
are the tasks' sizes, such as test images or classes, and weigh tasks of unequal size; None: all the
same. With test images, the weighted mean of row i is the accuracy on all that was seen. Each
function raises ValueError for a matrix or sizes that are not so.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Matrix = Tensor | Sequence[Sequence[float]]


def average_accuracy(A: Matrix, sizes: Sequence[float] | None = None) -> float:
    r"""After the last task: :math:`\sum_j s_j A_{T-1,\,j} / \sum_j s_j`."""
    A, sizes = _checked(A, sizes)
    return _mean(A[-1], sizes)


def average_incremental_accuracy(
    A: Matrix, skip_first: bool = False, sizes: Sequence[float] | None = None
) -> float:
    r"""Mean over stages i of the accuracy on the tasks seen: :math:`\sum_{j \le i} s_j A_{ij} /
    \sum_{j \le i} s_j`.

    All stages count the same, whatever their size.

    Args:
        A, sizes: see above.
        skip_first: without stage 0, as Global Distillation's authors report it; iCaRL has it in.

    Raises:
        ValueError: also when ``skip_first`` leaves no stage.
    """
    A, sizes = _checked(A, sizes)
    if skip_first and len(A) == 1:
        raise ValueError("skip_first=True leaves no stage of a run of 1 task")
    stages = [_mean(row, sizes[: len(row)]) for row in A[int(skip_first) :]]
    return sum(stages) / len(stages)


def forgetting(A: Matrix, sizes: Sequence[float] | None = None) -> float:
    r"""Mean over tasks j < T - 1, weighed by s_j, of :math:`\max_{j \le i < T-1} A_{ij} -
    A_{T-1,\,j}`; 0 for one task.
    """
    A, sizes = _checked(A, sizes)
    best = [torch.stack([row[j] for row in A[j:-1]]).max() for j in range(len(A) - 1)]
    return _mean(torch.stack(best) - A[-1][:-1], sizes[:-1]) if best else 0.0


def forgetting_diag(A: Matrix, sizes: Sequence[float] | None = None) -> float:
    r"""Mean over tasks j < T - 1, weighed by s_j, of :math:`A_{jj} - A_{T-1,\,j}`; 0 for one task.

    Negative where the tasks before became better.
    """
    A, sizes = _checked(A, sizes)
    return _mean(_learned(A)[:-1] - A[-1][:-1], sizes[:-1]) if len(A) > 1 else 0.0


def forgetting_gd(A: Matrix, sizes: Sequence[float] | None = None) -> float:
    r"""As Global Distillation's authors count: :math:`\frac{1}{T} \sum_{t=0}^{T-1} \sum_{j<t}
    \frac{s_j}{S} (A_{jj} - A_{tj})`.

    S is the sum of all sizes, so a task's share is that of the whole run, not of what was seen at
    stage t; and stage 0 counts, as a 0. Both make it smaller than the other two.
    """
    A, sizes = _checked(A, sizes)
    diagonal, share = _learned(A), sizes / sizes.sum()
    return sum(float((share[:t] * (diagonal[:t] - A[t][:t])).sum()) for t in range(len(A))) / len(A)


def _checked(A: Matrix, sizes: Sequence[float] | None) -> tuple[list[Tensor], Tensor]:
    """Row i as its i + 1 entries in float64, and the sizes likewise."""
    if not len(A):
        raise ValueError("the matrix has no row; expected one a task")
    for i, row in enumerate(A):
        if not i < len(row) <= len(A):
            raise ValueError(
                f"row {i} has {len(row)} entries; of {len(A)} tasks it needs {i + 1} to {len(A)}"
            )
    rows = [
        torch.as_tensor(row[: i + 1], dtype=torch.float64, device="cpu") for i, row in enumerate(A)
    ]
    sizes = torch.ones(len(rows)) if sizes is None else torch.as_tensor(sizes, device="cpu")
    if sizes.shape != (len(rows),) or not (sizes > 0).all():
        raise ValueError(f"expected the sizes of {len(rows)} tasks, each > 0, got {sizes.tolist()}")
    return rows, sizes.double()


def _learned(A: list[Tensor]) -> Tensor:
    return torch.stack([row[-1] for row in A])


def _mean(values: Tensor, sizes: Tensor) -> float:
    return float((values * sizes).sum() / sizes.sum())
