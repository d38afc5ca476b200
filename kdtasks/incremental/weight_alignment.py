r"""WA, weight aligning (Zhao et al., CVPR 2020, arXiv 1911.07053).

A head that has just learned new classes, of which it saw many images, beside old ones, of which it
saw a few, has longer weight vectors for the new ones, and so prefers them. After each experience
the new ones are scaled to the old ones' mean length; biases stay:

.. math:: W_\mathrm{new} \leftarrow \gamma\, W_\mathrm{new}, \qquad
    \gamma = \frac{\operatorname{mean}_{c \text{ old}} \lVert w_c \rVert}
    {\operatorname{mean}_{c \text{ new}} \lVert w_c \rVert}

Within the new classes the order of the logits without bias stays. The aligned network is the next
teacher. In training, with l old and m new classes and λ = l / (l + m),

.. math:: L = (1 - \lambda)\, \mathrm{CE} + \lambda\, L_\mathrm{old}

where the second is :func:`kdtasks.incremental.lwf_loss` at T = 2. As in PyCIL; the paper's clipping
of weights to be positive is neither there nor here.
"""

import torch
from torch import Tensor, nn

from kdtasks.incremental.models import head_of


def weight_alignment(weights: Tensor, old: int) -> Tensor:
    """The weights of a linear head, those of its new classes scaled to the old ones' mean length.

    Args:
        weights: ``(C, D)``, a row a class, the old classes first.
        old: how many are old: more than 0, fewer than C.

    Returns:
        A new tensor ``(C, D)`` of the same type. Aligned weights come back as they are.

    Raises:
        ValueError: another shape, no old or no new class, or new weights that are all zero.
    """
    if weights.dim() != 2 or not 0 < old < len(weights):
        raise ValueError(
            "expected weights (C, D) of some old and some new classes, got "
            f"{tuple(weights.shape)} and old={old}"
        )
    length = weights.double().norm(dim=1)
    of_old, of_new = length[:old].mean(), length[old:].mean()
    if not of_new > 0:
        raise ValueError(f"the weights of all {len(weights) - old} new classes are zero")
    new = (weights[old:].double() * (of_old / of_new)).to(weights.dtype)
    return torch.cat([weights[:old], new])


@torch.no_grad()
def align_head(student: nn.Module) -> None:
    """:func:`weight_alignment` of a model's :class:`~kdtasks.incremental.models.GrowingHead`, in
    place: the last experience's classes are new.
    """
    head = head_of(student)[1]
    weights = torch.cat([block.weight for block in head.blocks])
    head.blocks[-1].weight.copy_(weight_alignment(weights, head.old)[head.old :])
