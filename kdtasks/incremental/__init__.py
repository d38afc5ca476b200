"""Continual learning: classes come in experiences, and the model before teaches the model after."""

from kdtasks.incremental.distiller import IncrementalDistiller
from kdtasks.incremental.gd import (
    BalancedCrossEntropyLoss,
    CurrentTeacherLoss,
    GlobalDistillationLoss,
    class_balance_weights,
    confidence_loss,
    ensemble_probabilities,
    global_distillation_losses,
)
from kdtasks.incremental.lwf import LwFLoss, lwf_loss, lwf_losses, lwf_mc_loss, one_hot_bce
from kdtasks.incremental.lwm import (
    LwMDistiller,
    grad_cam,
    lwm_attention_loss,
    lwm_distill,
    lwm_distill_bce,
)
from kdtasks.incremental.metrics import (
    average_accuracy,
    average_incremental_accuracy,
    forgetting,
    forgetting_diag,
    forgetting_gd,
)
from kdtasks.incremental.sampling import confident_indices, coreset_indices, sample_external

__all__ = [
    "BalancedCrossEntropyLoss",
    "CurrentTeacherLoss",
    "GlobalDistillationLoss",
    "IncrementalDistiller",
    "LwFLoss",
    "LwMDistiller",
    "average_accuracy",
    "average_incremental_accuracy",
    "class_balance_weights",
    "confidence_loss",
    "confident_indices",
    "coreset_indices",
    "ensemble_probabilities",
    "forgetting",
    "forgetting_diag",
    "forgetting_gd",
    "global_distillation_losses",
    "grad_cam",
    "lwf_loss",
    "lwf_losses",
    "lwf_mc_loss",
    "lwm_attention_loss",
    "lwm_distill",
    "lwm_distill_bce",
    "one_hot_bce",
    "sample_external",
]
