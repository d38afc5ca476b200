"""Distillation methods for object detection: two-stage detectors and dense heads."""

from kdtasks.detection.adl import ADLLoss, adl_loss
from kdtasks.detection.chen2017 import (
    BoundedRegressionLoss,
    HintLoss,
    WeightedSoftCrossEntropyLoss,
    bounded_regression_loss,
    hint_loss,
    weighted_soft_cross_entropy,
)

__all__ = [
    "ADLLoss",
    "BoundedRegressionLoss",
    "HintLoss",
    "WeightedSoftCrossEntropyLoss",
    "adl_loss",
    "bounded_regression_loss",
    "hint_loss",
    "weighted_soft_cross_entropy",
]
