"""Continual learning: classes come in experiences, and the model before teaches the model after."""

from kdtasks.incremental.bias_correction import BiasCorrection
from kdtasks.incremental.der import ReservoirBuffer, der_loss, replay_cross_entropy
from kdtasks.incremental.der_distiller import DERDistiller
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
from kdtasks.incremental.herding import class_means, herding, nearest_mean
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
from kdtasks.incremental.weight_alignment import weight_alignment

__all__ = [
    "BalancedCrossEntropyLoss",
    "BiasCorrection",
    "CurrentTeacherLoss",
    "DERDistiller",
    "GlobalDistillationLoss",
    "IncrementalDistiller",
    "LwFLoss",
    "LwMDistiller",
    "ReservoirBuffer",
    "average_accuracy",
    "average_incremental_accuracy",
    "class_balance_weights",
    "class_means",
    "confidence_loss",
    "confident_indices",
    "coreset_indices",
    "der_loss",
    "ensemble_probabilities",
    "forgetting",
    "forgetting_diag",
    "forgetting_gd",
    "global_distillation_losses",
    "grad_cam",
    "herding",
    "lwf_loss",
    "lwf_losses",
    "lwf_mc_loss",
    "lwm_attention_loss",
    "lwm_distill",
    "lwm_distill_bce",
    "nearest_mean",
    "one_hot_bce",
    "replay_cross_entropy",
    "sample_external",
    "weight_alignment",
]
