"""Distillation methods for any task, studied on classification."""

from kdtasks.general.kd import BinaryKDLoss, KDLoss, binary_kd_loss, kd_loss
from kdtasks.general.rkd import RKDLoss, rkd_angle_loss, rkd_distance_loss

__all__ = [
    "BinaryKDLoss",
    "KDLoss",
    "RKDLoss",
    "binary_kd_loss",
    "kd_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
]
