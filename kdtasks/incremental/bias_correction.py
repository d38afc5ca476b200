r"""BiC, bias correction (Wu et al., CVPR 2019, arXiv 1905.13260).

A network that has just learned new classes, of which it saw many images, beside old ones, of which
it saw a few, takes too much for new. What is wrong is nearly the same for all new classes, and two
numbers put it right:

.. math:: q_k = z_k \text{ (old)}, \qquad q_k = \alpha z_k + \beta \text{ (newest experience)}

**Stage 1** trains the network with :math:`(1 - \lambda)\, \mathrm{CE} + \lambda\, L_\mathrm{old}`,
λ = l / (l + m) for l old and m new classes, :math:`L_\mathrm{old}` the
:func:`kdtasks.incremental.lwf_loss` at T = 2 of the network before, **with its corrections**.
**Stage 2** holds the network still and fits α and β, which begin with 1 and 0, by the
cross-entropy of samples that stage 1 has not seen: equally many of each class, old and new. Earlier
experiences keep the α and β of their time.

As FACIL: SGD at 0.1 with momentum 0.9 for 200 epochs, and 0.1 β² / 2 added, which is from the
authors' code. Here the logits of the held-out samples are computed once, in eval and without
augmentation, and an epoch is one step over all of them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BiasCorrection(nn.Module):
    """α and β of each experience, for logits of all.

    Args:
        sizes: classes of each experience.

    Attributes:
        alpha, beta: float32 ``(experiences,)`` buffers; 1 and 0 at first.

    Raises:
        ValueError: no experience, or one without classes.
    """

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        if not sizes or min(sizes) < 1:
            raise ValueError(
                f"sizes are the classes of each experience, at least one, got {tuple(sizes)}"
            )
        self.sizes = tuple(sizes)
        self.register_buffer("alpha", torch.ones(len(sizes)))
        self.register_buffer("beta", torch.zeros(len(sizes)))

    def forward(self, logits: Tensor) -> Tensor:
        """``(B, C)`` -> ``(B, C)``, each experience's columns by its own α and β."""
        if logits.dim() != 2 or logits.shape[1] != sum(self.sizes):
            raise ValueError(
                f"expected logits (B, {sum(self.sizes)}) of experiences of {self.sizes} classes, "
                f"got {tuple(logits.shape)}"
            )
        sizes = torch.tensor(self.sizes, device=logits.device)
        alpha, beta = (
            values.to(logits.dtype).repeat_interleave(sizes, output_size=sum(self.sizes))
            for values in (self.alpha, self.beta)
        )
        return logits * alpha + beta

    def grow(self, classes: int) -> None:
        """Add an experience with so many classes, its α and β 1 and 0."""
        self.sizes = (*self.sizes, classes)
        self.alpha = torch.cat([self.alpha, self.alpha.new_ones(1)])
        self.beta = torch.cat([self.beta, self.beta.new_zeros(1)])

    def complete_state(self, state: dict[str, Tensor], prefix: str) -> None:
        """Add to a state_dict of fewer experiences the present α and β of the further ones."""
        for name, value in self.state_dict().items():
            saved = state.get(f"{prefix}{name}", value)
            state[f"{prefix}{name}"] = torch.cat([saved, value[len(saved) :].to(saved)])

    def fit(
        self,
        logits: Tensor,
        target: Tensor,
        epochs: int = 200,
        lr: float = 0.1,
        penalty: float = 0.1,
    ) -> None:
        """Fit α and β of the last experience to held-out samples; the others stay.

        Args:
            logits: ``(n, C)``, not corrected.
            target: ``(n,)`` int64 columns; equally many of each class.
            epochs, lr: of SGD with momentum 0.9, a step over all n an epoch; FACIL's.
            penalty: p of p β² / 2; FACIL's, from the authors' code.

        Raises:
            ValueError: shapes that do not fit, no sample, one experience, which has nothing to be
                compared with, or a fit that diverges.
        """
        if len(self.sizes) < 2:
            raise ValueError("one experience has no bias towards another: expected two or more")
        if target.shape != (len(logits),) or not len(logits):
            raise ValueError(
                f"expected logits (n, {sum(self.sizes)}) and target (n,), n at least 1, got "
                f"{tuple(logits.shape)} and {tuple(target.shape)}"
            )
        self.alpha[-1], self.beta[-1] = 1.0, 0.0
        logits = self(logits.detach().double())
        alpha, beta = _fitted(logits, target, sum(self.sizes[:-1]), epochs, lr, penalty)
        self.alpha[-1], self.beta[-1] = alpha, beta

    def extra_repr(self) -> str:
        """The arguments."""
        return f"sizes={self.sizes}"


def _fitted(
    logits: Tensor, target: Tensor, old: int, epochs: int, lr: float, penalty: float
) -> tuple[float, float]:
    """α and β of the columns from ``old`` on."""
    numbers = torch.tensor([1.0, 0.0], dtype=logits.dtype, device=logits.device)
    with torch.enable_grad():
        numbers.requires_grad_()
        optimizer = torch.optim.SGD([numbers], lr=lr, momentum=0.9)
        for _ in range(epochs):
            alpha, beta = numbers
            corrected = torch.cat([logits[:, :old], alpha * logits[:, old:] + beta], 1)
            loss = F.cross_entropy(corrected, target) + penalty * beta.square() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    alpha, beta = numbers.tolist()
    if not abs(alpha) + abs(beta) < float("inf"):
        raise ValueError(f"the fit of alpha and beta diverges at lr={lr}: expected a smaller one")
    return alpha, beta
