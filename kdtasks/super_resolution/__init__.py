"""Super-resolution: a small network learns which pixels to fit first; images resized and measured
as the field does.
"""

from kdtasks.super_resolution.ail import (
    AILLoss,
    Importance,
    importance,
    importance_loss,
    teacher_importance,
)
from kdtasks.super_resolution.fakd import AffinityLoss, affinity_loss
from kdtasks.super_resolution.metrics import imresize, psnr_y, ssim_y

__all__ = [
    "AILLoss",
    "AffinityLoss",
    "Importance",
    "affinity_loss",
    "importance",
    "importance_loss",
    "imresize",
    "psnr_y",
    "ssim_y",
    "teacher_importance",
]
