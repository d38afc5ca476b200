"""Distillation methods for metric learning: what relates the samples of a batch."""

from kdtasks.general.rkd import RKDLoss, rkd_angle_loss, rkd_distance_loss
from kdtasks.metric_learning.darkrank import DarkRankLoss, darkrank_hard_loss, darkrank_soft_loss

__all__ = ["DarkRankLoss", "RKDLoss", "darkrank_hard_loss", "darkrank_soft_loss", "rkd_angle_loss", "rkd_distance_loss"]
