r"""Divergences and cross-entropies of logits, entry by entry, for losses that add them up in their
own ways.

A logit may be :math:`-\infty` (a masked class): its probability is 0. As :math:`0 \log 0 = 0`, an
entry whose teacher has probability 0 costs 0, whatever the student has there, and the masked logit
receives no gradient. Where the student's probability is 0 and the teacher's is not, the divergence
is infinite: so is the value, and a run stops with the loss's name. A NaN stays one.
"""

import torch.nn.functional as F
from torch import Tensor


def times(probability: Tensor, log: Tensor) -> Tensor:
    """``probability * log``, and 0 where the probability is 0 and the logarithm (or logit) infinite
    or undefined.
    """
    return probability * log.masked_fill(probability == 0, 0)


def kl_terms(student: Tensor, teacher: Tensor) -> Tensor:
    """``(B, C, *)`` logits of equal shape -> p_t (log p_t - log p_s), softmax over axis 1; the sum
    over it is KL(teacher ‖ student).
    """
    log_student, log_teacher = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    return times(log_teacher.exp(), log_teacher - log_student)


def binary_cross_entropy_terms(student: Tensor, probability: Tensor) -> Tensor:
    """Logits, and target probabilities of the same shape -> -q log p - (1 - q) log(1 - p), with p
    the student's sigmoid.
    """
    # log p - log(1 - p) is the logit
    return -F.logsigmoid(-student) - times(probability, student)


def binary_kl_terms(student: Tensor, teacher: Tensor) -> Tensor:
    """Two logits of the same shape -> q log(q / p) + (1 - q) log((1 - q) / (1 - p)), with their
    sigmoids p and q.
    """
    return (
        F.logsigmoid(-teacher)
        - F.logsigmoid(-student)
        + times(teacher.sigmoid(), teacher - student)
    )
