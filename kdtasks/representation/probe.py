"""A linear probe: what a linear classifier makes of frozen features.

Logistic regression (scikit-learn's) on features with mean 0 and variance 1 over the bank, to
convergence: no seed and no learning rate. The strength of its penalty is the one of
:data:`STRENGTHS` that does best on a fifth of the bank. That is ours; the papers train it by SGD
for 100 epochs with augmentation.
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# scikit-learn's C, over the number of images
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
# of each class in turn, the one that the choice of the strength is tested on
_FOLDS = 5


def probe_answers(bank: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """The classes ``(M,)`` that a linear classifier of the bank gives the queries.

    Args:
        bank: ``(N, D)`` features of labelled images.
        labels: ``(N,)`` int64, of two classes at least.
        queries: ``(M, D)``.

    Raises:
        ValueError: the labels are of one class.
    """
    x, y = bank.double().cpu().numpy(), labels.cpu().numpy()
    if len(np.unique(y)) < 2:
        raise ValueError(f"a linear probe needs two classes at least, got {np.unique(y).tolist()}")
    mean, spread = x.mean(0), x.std(0)
    spread[spread < 1e-12] = 1
    x, other = (x - mean) / spread, (queries.double().cpu().numpy() - mean) / spread
    strength = _best_strength(x, y)
    return torch.from_numpy(_fitted(x, y, strength).predict(other)).to(labels)


def _best_strength(x: np.ndarray, y: np.ndarray) -> float:
    """The smallest of those that are best on every fifth image of each class."""
    is_held_out = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        is_held_out[np.flatnonzero(y == label)[_FOLDS - 1 :: _FOLDS]] = True
    if not is_held_out.any():
        return STRENGTHS[0]
    right = [
        (
            _fitted(x[~is_held_out], y[~is_held_out], strength).predict(x[is_held_out])
            == y[is_held_out]
        ).mean()
        for strength in STRENGTHS
    ]
    return STRENGTHS[int(np.argmax(right))]


def _fitted(x: np.ndarray, y: np.ndarray, strength: float) -> "LogisticRegression":
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # what is left to gain after 300 steps changes no answer that counts
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength / len(y), tol=1e-3, max_iter=300).fit(x, y)
