r"""Several teachers at once, whose features have units of their own.

Teachers' losses are weighted sums of one entry each; that these weigh equally is a matter of the
teachers' scales. PHI-S (Ranzinger et al., arXiv 2410.01680) brings each teacher's features to
unit variance in every dimension, by one rotation and **one** scale: with mean :math:`\mu` and
covariance :math:`\Sigma = U \Lambda U^\top` of D features over many images,

.. math:: y = \phi^{-1} H\, U^\top (x - \mu), \qquad
    \phi = \sqrt{\tfrac{1}{D} \mathrm{tr}\, \Sigma}

with a Hadamard matrix H, all of whose entries are :math:`\pm 1 / \sqrt D`: each entry of y is then
a mean of all principal directions, so that all have variance 1, and an error of y is the same error
of x in whatever direction, which a scale for each dimension would not give.

A Hadamard matrix of D rows is known here for D = 2^k (Sylvester), for D = q + 1 with a prime q that
leaves 3 on division by 4, for D = 2 (q + 1) with one that leaves 1 (Paley), and for these times a
power of 2: 192, 384, 512, 640, 768, 1024, 1280, 1408, 1536, 2048. For other D the rotation is left
out, and y has the mean variance 1.
"""

import torch
from torch import Tensor


def phi_standardize(features: Tensor) -> tuple[Tensor, Tensor]:
    """What brings a teacher's features to unit variance: PHI-S.

    Args:
        features: ``(N, D)`` of more images (or places) than D.

    Returns:
        ``(mean, matrix)``, ``(D,)`` and ``(D, D)`` float64: the target is ``(x - mean) @
        matrix.T``. The signs of the principal directions are arbitrary: keep the matrix with the
        student.

    Raises:
        ValueError: not ``(N, D)`` with N > D; or all features are constant.
    """
    if features.dim() != 2 or len(features) <= features.shape[1]:
        raise ValueError(
            f"expected features (N, D) of more rows than columns, got {tuple(features.shape)}"
        )
    rows = features.detach().double()
    mean = rows.mean(0)
    variances, axes = torch.linalg.eigh(torch.atleast_2d(torch.cov(rows.T, correction=0)))
    scale = variances.clamp(min=0).mean().sqrt()
    if not scale > 0:
        raise ValueError(f"expected features that vary, got {len(rows)} equal rows")
    hadamard = hadamard_matrix(len(mean))
    if hadamard is None:
        return mean, torch.eye(len(mean), dtype=rows.dtype, device=rows.device) / scale
    rotation = hadamard.to(rows) / len(mean) ** 0.5
    return mean, rotation @ axes.T / scale


def hadamard_matrix(size: int) -> Tensor | None:
    """A ``(size, size)`` matrix of ±1 with orthogonal rows; None where none is known here."""
    doublings = 0
    while size > 0:
        core = _paley(size)
        if core is not None:
            for _ in range(doublings):
                core = torch.cat([torch.cat([core, core], 1), torch.cat([core, -core], 1)])
            return core
        if size % 2:
            return None
        size, doublings = size // 2, doublings + 1
    return None


def _paley(size: int) -> Tensor | None:
    """Of 1 and 2 rows; and of a prime q + 1, or 2 (q + 1), by the quadratic residues of q."""
    if size <= 2:
        return torch.tensor([[1, 1], [1, -1]])[:size, :size].double()
    if size % 4 == 0 and _is_prime(size - 1):
        one = torch.eye(size, dtype=torch.double)
        return one + _bordered(size - 1, antisymmetric=True)
    half = size // 2
    if size % 4 == 0 and half % 4 == 2 and _is_prime(half - 1):
        conference, one = _bordered(half - 1), torch.eye(half, dtype=torch.double)
        plus, minus = conference + one, conference - one
        return torch.cat([torch.cat([plus, minus], 1), torch.cat([minus, -plus], 1)])
    return None


def _bordered(q: int, antisymmetric: bool = False) -> Tensor:
    """The conference matrix of q + 1 rows: 1 where i - j is a square modulo q, -1 where it is none,
    with a border of ones.
    """
    residues = torch.arange(1, q).square() % q
    character = torch.full((q,), -1.0, dtype=torch.double)
    character[residues] = 1
    character[0] = 0
    place = torch.arange(q)
    found = torch.zeros(q + 1, q + 1, dtype=torch.double)
    found[1:, 1:] = character[(place[:, None] - place) % q]
    found[0, 1:], found[1:, 0] = 1, -1 if antisymmetric else 1
    return found


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % k for k in range(2, int(number**0.5) + 1))
