"""Distillation methods for metric learning: what relates the samples of a batch."""

from kdtasks.general.rkd import RKDLoss, rkd_angle_loss, rkd_distance_loss
from kdtasks.metric_learning.bct import InfluenceLoss, influence_loss
from kdtasks.metric_learning.darkrank import DarkRankLoss, darkrank_hard_loss, darkrank_soft_loss
from kdtasks.metric_learning.similarity import (
    PKTLoss,
    SimilarityKLLoss,
    pkt_loss,
    similarity_kl_loss,
)
from kdtasks.metric_learning.yu2019 import (
    AbsoluteTeacherLoss,
    RelativeTeacherLoss,
    absolute_teacher_loss,
    relative_teacher_loss,
)

__all__ = [
    "AbsoluteTeacherLoss",
    "DarkRankLoss",
    "InfluenceLoss",
    "PKTLoss",
    "RKDLoss",
    "RelativeTeacherLoss",
    "SimilarityKLLoss",
    "absolute_teacher_loss",
    "darkrank_hard_loss",
    "darkrank_soft_loss",
    "influence_loss",
    "pkt_loss",
    "relative_teacher_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "similarity_kl_loss",
]
