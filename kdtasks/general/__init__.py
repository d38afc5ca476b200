"""Distillation methods for any task, studied on classification."""

from kdtasks.general.kd import KDLoss, kd_loss
from kdtasks.general.rkd import RKDLoss, rkd_angle_loss, rkd_distance_loss

__all__ = ["KDLoss", "RKDLoss", "kd_loss", "rkd_angle_loss", "rkd_distance_loss"]
