"""Hinton's loss, :func:`kdtasks.general.kd.softened_kl`, with its gradient (T / B)(p_s - p_t)."""

import torch.nn.functional as F
from torch import Tensor


def softened_kl(
    student: Tensor, teacher: Tensor, with_gradient: bool, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """``(B, C, *)`` logits of one dtype -> the loss, and its gradient."""
    positions = max(student.numel() // max(student.shape[1], 1), 1)
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    probability = log_teacher.exp()
    terms = log_teacher.sub_(log_student).masked_fill_(probability == 0, 0).mul_(probability)
    loss = terms.sum() * (temperature**2 / positions)
    if not with_gradient:
        return loss, None
    return loss, log_student.exp_().sub_(probability).mul_(temperature / positions)
