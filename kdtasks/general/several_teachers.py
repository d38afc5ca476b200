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

:class:`Standardization` finds mean and matrix in the course of training, from the first images; its
``'scale'`` leaves the rotation out, and needs no more than two numbers a dimension.
"""

from typing import Any

import torch
from torch import Tensor, nn

from kdtasks.core.gather import gather_rows

KINDS = ("scale", "phi")


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
    return mean, _phi_matrix(torch.atleast_2d(torch.cov(rows.T, correction=0)))


def _phi_matrix(covariance: Tensor) -> Tensor:
    variances, axes = torch.linalg.eigh(covariance)
    scale = _scale(variances.clamp(min=0).mean())
    hadamard = hadamard_matrix(len(axes))
    if hadamard is None:
        return torch.eye(len(axes), dtype=axes.dtype, device=axes.device) / scale
    return hadamard.to(axes) / len(axes) ** 0.5 @ axes.T / scale


def _scale(variance: Tensor) -> Tensor:
    """phi of the mean variance."""
    if not variance > 0:
        raise ValueError("expected features that vary, got equal rows")
    return variance.sqrt()


class Standardization(nn.Module):
    """A teacher's features with mean 0 and mean variance 1, by what its first rows were.

    Rows are collected in training; from when there are enough of them, mean and matrix are fixed.
    Both are in ``state_dict``, for the signs of the axes are arbitrary, and so are the sums on the
    way there. In several processes all rows are gathered, so the numbers are the same.

    Args:
        kind: ``'scale'``, one scale for all dimensions; ``'phi'``, PHI-S: the same scale, and a
            rotation after which each dimension has variance 1.
        rows: how many are collected; None: 4096, with ``'phi'`` at least four times the dimensions
            (ours: the covariance of fewer is poor).

    Raises:
        ValueError: another kind; later, features of another width or that do not vary.
    """

    def __init__(self, kind: str = "scale", rows: int | None = None):
        super().__init__()
        if kind not in KINDS or (rows is not None and rows < 2):
            raise ValueError(
                f"expected kind in {KINDS} and None or at least 2 rows, got {kind!r} and {rows}"
            )
        self.kind, self.rows, self.collected, self.ready = kind, rows, 0, False
        for name in ("total", "products", "mean", "matrix"):
            self.register_buffer(name, None)

    def build(self, channels: int, device: torch.device | str = "cpu") -> None:
        """Make room for features of so many dimensions, if that is not done."""
        if self.total is not None:
            return
        wide = (channels, channels) if self.kind == "phi" else (channels,)
        self.total, self.mean = (
            torch.zeros(channels, dtype=torch.double, device=device) for _ in range(2)
        )
        self.products, self.matrix = (
            torch.zeros(wide, dtype=torch.double, device=device) for _ in range(2)
        )

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor | None:
        """Rows (B, C) or maps (B, C, H, W) standardised; None while rows are still collected."""
        self.build(features.shape[1], features.device)
        rows = features.movedim(1, -1).flatten(0, -2)
        if not self.ready and self.training:
            self._collect(rows)
        if not self.ready:
            return None
        mean, matrix = self.mean.to(rows), self.matrix.to(rows)
        centred = rows - mean
        standardized = centred @ matrix.T if self.kind == "phi" else centred * matrix
        return standardized.unflatten(0, (len(features), *features.shape[2:])).movedim(-1, 1)

    def _collect(self, rows: Tensor) -> None:
        rows = gather_rows(rows).double()
        channels = rows.shape[1]
        self.collected += len(rows)
        self.total += rows.sum(0)
        self.products += rows.T @ rows if self.kind == "phi" else rows.square().sum(0)
        enough = self.rows or max(4096, 4 * channels if self.kind == "phi" else 0)
        if self.collected > enough:
            mean = self.total / self.collected
            self.mean = mean
            if self.kind == "phi":
                covariance = self.products / self.collected - mean[:, None] * mean
                self.matrix = _phi_matrix(covariance)
            else:
                variance = (self.products / self.collected - mean.square()).mean()
                self.matrix = torch.full_like(mean, 1) / _scale(variance)
            self.ready = True

    def get_extra_state(self) -> dict[str, int | bool]:
        """How far the collection is."""
        width = 0 if self.total is None else len(self.total)
        return {"collected": self.collected, "ready": self.ready, "channels": width}

    def set_extra_state(self, state: Any) -> None:
        """Put it back."""
        self.collected, self.ready = int(state["collected"]), bool(state["ready"])

    def extra_repr(self) -> str:
        """The kind."""
        return f"kind={self.kind!r}, rows={self.rows}"


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
        identity = torch.eye(size, dtype=torch.double)
        return identity + _bordered(size - 1, antisymmetric=True)
    half = size // 2
    if size % 4 == 0 and half % 4 == 2 and _is_prime(half - 1):
        conference, identity = _bordered(half - 1), torch.eye(half, dtype=torch.double)
        plus, minus = conference + identity, conference - identity
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
    matrix = torch.zeros(q + 1, q + 1, dtype=torch.double)
    matrix[1:, 1:] = character[(place[:, None] - place) % q]
    matrix[0, 1:], matrix[1:, 0] = 1, -1 if antisymmetric else 1
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % k for k in range(2, int(number**0.5) + 1))
