"""Distillation methods for any task, studied on classification."""

from kdtasks.general.ab import ABLoss, ab_loss, ab_losses, activation_disagreement
from kdtasks.general.attention_transfer import attention_transfer_loss
from kdtasks.general.ban import CWTMLoss, DKPPLoss, Ensemble, cwtm_loss, dkpp_loss
from kdtasks.general.bss import (
    BSSLoss,
    base_samples,
    boundary_samples,
    bss_loss,
    channel_bounds,
    perturbation_similarity,
    target_classes,
)
from kdtasks.general.bss_distiller import BSSDistiller
from kdtasks.general.crd import CRDLoss
from kdtasks.general.dist import DISTLoss, dist_loss
from kdtasks.general.dkd import DKDLoss, dkd_loss
from kdtasks.general.dml import (
    mean_posterior_losses,
    mutual_divergences,
    mutual_losses,
    peer_agreement,
    peer_cross_entropies,
    sequential_step,
)
from kdtasks.general.dml_distiller import SequentialDMLDistiller
from kdtasks.general.feature import FeatureLoss, feature_loss
from kdtasks.general.kd import BinaryKDLoss, KDLoss, binary_kd_loss, kd_loss
from kdtasks.general.logit_standardization import StandardizedKDLoss, standardized_kd_loss
from kdtasks.general.mixup import MixupDistiller, mixed_cross_entropy, mixup
from kdtasks.general.queue_kl import FeatureQueue, QueueKLLoss, queue_kl_loss
from kdtasks.general.rco import (
    GreedyRoute,
    anchor_hardness,
    equal_interval_anchors,
    greedy_route,
    next_anchor,
)
from kdtasks.general.relu_paths import expose_pre_relu, pre_relu_paths
from kdtasks.general.review_kd import ReviewKDLoss, hierarchical_context_loss
from kdtasks.general.rkd import RKDLoss, rkd_angle_loss, rkd_distance_loss
from kdtasks.general.several_teachers import Standardization, phi_standardize
from kdtasks.general.similarity_preserving import similarity_preserving_loss
from kdtasks.general.srd import SRDLoss, srd_loss
from kdtasks.general.takd import all_paths, nearest_mean

__all__ = [
    "ABLoss",
    "BSSDistiller",
    "BSSLoss",
    "BinaryKDLoss",
    "CRDLoss",
    "CWTMLoss",
    "DISTLoss",
    "DKDLoss",
    "DKPPLoss",
    "Ensemble",
    "FeatureLoss",
    "FeatureQueue",
    "GreedyRoute",
    "KDLoss",
    "MixupDistiller",
    "QueueKLLoss",
    "RKDLoss",
    "ReviewKDLoss",
    "SRDLoss",
    "SequentialDMLDistiller",
    "Standardization",
    "StandardizedKDLoss",
    "ab_loss",
    "ab_losses",
    "activation_disagreement",
    "all_paths",
    "anchor_hardness",
    "attention_transfer_loss",
    "base_samples",
    "binary_kd_loss",
    "boundary_samples",
    "bss_loss",
    "channel_bounds",
    "cwtm_loss",
    "dist_loss",
    "dkd_loss",
    "dkpp_loss",
    "equal_interval_anchors",
    "expose_pre_relu",
    "feature_loss",
    "greedy_route",
    "hierarchical_context_loss",
    "kd_loss",
    "mean_posterior_losses",
    "mixed_cross_entropy",
    "mixup",
    "mutual_divergences",
    "mutual_losses",
    "nearest_mean",
    "next_anchor",
    "peer_agreement",
    "peer_cross_entropies",
    "perturbation_similarity",
    "phi_standardize",
    "pre_relu_paths",
    "queue_kl_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "sequential_step",
    "similarity_preserving_loss",
    "srd_loss",
    "standardized_kd_loss",
    "target_classes",
]
