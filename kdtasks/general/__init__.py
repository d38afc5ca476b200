"""Distillation methods for any task, studied on classification."""

from kdtasks.general.kd import KDLoss, kd_loss

__all__ = ["KDLoss", "kd_loss"]
