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
from kdtasks.detection.crosskd import (
    CrossBoxLoss,
    QualityFocalLoss,
    box_distances,
    quality_focal_loss,
)
from kdtasks.detection.cwd import CWDLoss, cwd_loss
from kdtasks.detection.ld import LDLoss, ld_loss
from kdtasks.detection.pkd import PKDLoss, pkd_loss

__all__ = [
    "ADLLoss",
    "BoundedRegressionLoss",
    "CWDLoss",
    "CrossBoxLoss",
    "HintLoss",
    "LDLoss",
    "PKDLoss",
    "QualityFocalLoss",
    "WeightedSoftCrossEntropyLoss",
    "adl_loss",
    "bounded_regression_loss",
    "box_distances",
    "cwd_loss",
    "hint_loss",
    "ld_loss",
    "pkd_loss",
    "quality_focal_loss",
    "weighted_soft_cross_entropy",
]
