r"""DarkRank: the teacher's ranking of a batch (Chen, Wang and Zhang, AAAI 2018, arXiv 1707.01220).

Each sample in turn is the query q, the others are its candidates. A candidate's score falls with
its distance from the query, and scores make a probability of every ordering :math:`\pi` of the
candidates (Plackett and Luce): place by place, one of those still left is drawn by the softmax of
their scores.

.. math::
    S(x) = -\alpha \lVert q - x \rVert_2^{\beta}, \qquad
    P(\pi) = \prod_{i=1}^{n} \frac{\exp S(x_{\pi(i)})}{\sum_{k=i}^{n} \exp S(x_{\pi(k)})}

    L_{\mathrm{soft}} = \sum_{\pi} P^t(\pi) \log \frac{P^t(\pi)}{P^s(\pi)}, \qquad
    L_{\mathrm{hard}} = -\log P^s(\pi^t)

:math:`\pi^t` is the teacher's likeliest ordering, its candidates by rising distance. Soft is 0
where all scores agree. **Hard is not 0 at student = teacher**, and it is log n! where the student
is indifferent (3.178 for 4 candidates).

**Exact and cheap.** Hard (:func:`hard_costs`): a sort, then one cumulative log-sum-exp from the end
of the list, so a list may be the whole batch. Soft: the n! orderings pass through only 2ⁿ sets
of candidates still left. From a set R, candidate j is placed next with the probability
:math:`p_R(j) = e^{S_j} / \sum_{k \in R} e^{S_k}`. Let r(R) be the teacher's probability that R is
ever exactly what is left: 1 for all candidates, and R gives :math:`r(R)\, p^t_R(j)` of it to R
without j. Then

.. math::
    L_{\mathrm{soft}} = \sum_R r(R) \sum_{j \in R} p^t_R(j) \log \frac{p^t_R(j)}{p^s_R(j)}, \qquad
    \frac{\partial L_{\mathrm{soft}}}{\partial s_j}
    = \sum_{R \ni j} r(R) \bigl( p^s_R(j) - p^t_R(j) \bigr),

exact in n·2ⁿ steps; the limit is n = 12 (:func:`soft_costs`). Both work in float64; a training step
has their gradient together with the loss (:mod:`kdtasks.metric_learning.darkrank_kernel`).

**Settings.** Usually quoted are alpha = beta = 3 and lists of the 4 nearest in the teacher's space;
we could not check them against the paper's own text. RKD's authors compare with the hard form, for
which their ``run_distill.py`` has alpha = 2 and beta = 3 by default. The authors' release is
another point: its score is :math:`-(\mathrm{scale}\, d^2)^{\mathrm{power}}`, so alpha = scale^power
and beta = 2 power, with scale 3.5 and power 2: alpha = 12.25, beta = 4. There the soft form has
lists of 4, the hard form the whole rest of the batch; only the candidates receive a gradient, the
query none; the weight is 16, a batch has 8 rows, and queries are its first half only, which holds
pairs of one identity (here every row is a query). Embeddings are L2-normalised there, and here by
default: the scores of long rows explode.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdtasks.core.fused import fused, needs_plain
from kdtasks.core.gather import gather_rows
from kdtasks.core.names import did_you_mean
from kdtasks.core.precision import raised_dtype
from kdtasks.general.distances import squared_distances
from kdtasks.metric_learning import darkrank_kernel

PRESETS = {
    "quoted": {"alpha": 3.0, "beta": 3.0, "detach_query": False},
    "released": {"alpha": 12.25, "beta": 4.0, "detach_query": True},
}
SOFT_LIMIT = 12  # 4096 sets for each query
SORT_ABOVE = 16  # shorter lists are found one by one


def scores(squared: Tensor, alpha: float, beta: float) -> Tensor:
    """Squared distances -> S, ``-alpha · d^beta``; 0 and without gradient where the rows coincide.

    (There a beta below 2 has an infinite slope.)
    """
    coincide = squared == 0
    return -alpha * squared.masked_fill(coincide, 1).pow(beta / 2).masked_fill(coincide, 0)


def hard_costs(student: Tensor, places: int) -> Tensor:
    """``-log P^s(pi^t)`` of each list, (N,), up to its first ``places`` places, from (N, n) scores
    in the teacher's order.
    """
    costs = torch.zeros_like(student[:, 0])
    for i in range(places):
        costs = costs + student[:, i:].logsumexp(1) - student[:, i]
    return costs


def soft_costs(student: Tensor, teacher: Tensor) -> Tensor:
    """``sum over pi of P^t(pi) log(P^t(pi) / P^s(pi))`` of each list, (N,), from (N, n) scores."""
    n, floor = student.shape[1], torch.finfo(student.dtype).min / 2
    sets = torch.arange(2**n, device=student.device)[:, None]  # R, as the sum of 2^j over its j
    j = torch.arange(n, device=student.device)
    out = (sets >> j & 1) == 0  # (2ⁿ, n) j is not in R
    log_s, log_t = (x[:, None].masked_fill(out, floor).log_softmax(2) for x in (student, teacher))
    p_t = log_t.exp()  # (N, 2ⁿ, n) p_R(j)
    layer = (sets[:, 0] == 2**n - 1).to(p_t).expand(p_t.shape[:2])
    reach = layer  # r(R)
    for _ in range(n - 1):
        # what R gets from R with j
        layer = (layer[..., None] * p_t)[:, sets | 1 << j, j].masked_fill(~out, 0).sum(2)
        reach = reach + layer
    return (reach[..., None] * p_t * (log_t - log_s)).sum((1, 2))


def darkrank_hard_loss(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 3.0,
    beta: float = 3.0,
    list_length: int | None = 4,
    normalize: bool = True,
) -> Tensor:
    """Minus the log-probability that the student ranks as the teacher does; mean over queries.

    Args:
        student: ``(N, Ds)`` embeddings; carries the gradient, of query and candidates.
        teacher: ``(N, Dt)`` embeddings of the same samples; never receives a gradient.
        alpha: >= 0, scale of the scores; beta: > 0, at most 1000, power of the (not squared)
            distance. 3 and 3 are the values usually quoted for this method.
        list_length: how many candidates, the nearest in the teacher's space (of equally near ones
            the smaller index); at least 1, at most the N - 1 other rows are taken; None: all of
            these.
        normalize: divide every row by its length first; a row of zeros stays, and receives no
            gradient. (As query of the teacher's it has all others at distance 1 but for rounding,
            which then orders them.)

    Returns:
        A scalar in nats. Half precision is raised to float32, float64 stays. A zero that still
        backpropagates when N < 2. Time N² (Ds + Dt + log N), memory N². ``create_graph=True``,
        ``torch.func`` and ``torch.compile`` have the plain form, :func:`hard_costs`, a sum for
        every place.

    Raises:
        ValueError: the shapes do not fit, or a number is out of its range.
    """
    return _loss(student, teacher, "hard", alpha, beta, list_length, normalize)


def darkrank_soft_loss(
    student: Tensor,
    teacher: Tensor,
    alpha: float = 3.0,
    beta: float = 3.0,
    list_length: int | None = 4,
    normalize: bool = True,
) -> Tensor:
    """KL(teacher ‖ student) over all orderings of the candidates; mean over queries.

    Args:
        student, teacher, alpha, beta, list_length, normalize: as in :func:`darkrank_hard_loss`.

    Returns:
        As there, and 0 at equal scores. Beside the distances, time N · n · 2ⁿ for lists of n, and
        memory of about ten float64 numbers for each of the N · 2ⁿ sets (100 MiB for 256 lists of
        12), free again before backward; n times as much of both in the plain form,
        :func:`soft_costs`.

    Raises:
        ValueError: the shapes do not fit, a number is out of its range, or the lists are longer
            than 12.
    """
    return _loss(student, teacher, "soft", alpha, beta, list_length, normalize)


class DarkRankLoss(nn.Module):
    """:func:`darkrank_hard_loss` or :func:`darkrank_soft_loss`, with a preset, which alpha, beta
    and detach_query change.

    ``'quoted'``: alpha 3, beta 3, full gradient. ``'released'``: alpha 12.25, beta 4, query
    detached, as the authors' code scores with power 2 and scale 3.5. Another power and scale of
    that code are ``alpha=scale**power, beta=2 * power``.

    Args:
        kind: ``'hard'`` or ``'soft'``.
        preset: of the scores.
        alpha, beta: None: the preset's.
        list_length: as in the functions. The release: 4 for soft, None for hard.
        normalize: as in the functions.
        detach_query: None: the preset's. True: a query pulls its candidates, but its own list does
            not move it (and as that is not the gradient of the value, ``create_graph=True`` is an
            error).
        places: hard only: how many places of the list count, from the first. With
            ``list_length=None``: who comes first among all of the batch, without a say in how the
            far ones are ordered. None: all.
        reduction: ``'mean'`` over queries, or ``'none'``: one number for each, ``(N,)``.
        gather: rank the rows of all processes, which must have equally many; each computes the
            whole loss, and the step is that of one process with all rows. Without effect in a run
            of one process.
    """

    def __init__(
        self,
        kind: str = "hard",
        preset: str = "quoted",
        alpha: float | None = None,
        beta: float | None = None,
        list_length: int | None = 4,
        normalize: bool = True,
        detach_query: bool | None = None,
        places: int | None = None,
        reduction: str = "mean",
        gather: bool = False,
    ):
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}; {did_you_mean(str(preset), PRESETS)}")
        overrides = {"alpha": alpha, "beta": beta, "detach_query": detach_query}
        self.kind, self.gather = kind, gather
        self.settings = (
            PRESETS[preset]
            | {name: value for name, value in overrides.items() if value is not None}
            | {
                "list_length": list_length,
                "normalize": normalize,
                "places": places,
                "reduction": reduction,
            }
        )
        _check(kind, **self.settings)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of embeddings (N, D), a scalar; of all processes' rows with ``gather``."""
        if self.gather:
            _check_shapes(student, teacher)
            student, teacher = gather_rows(student), gather_rows(teacher.detach())
        return _loss(student, teacher, self.kind, **self.settings)

    def extra_repr(self) -> str:
        """All settings, those of the preset too."""
        settings = {"kind": self.kind, **self.settings, "gather": self.gather}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _check(
    kind: str,
    alpha: float,
    beta: float,
    list_length: int | None,
    normalize: bool,
    detach_query: bool,
    places: int | None,
    reduction: str,
) -> None:
    if kind not in ("hard", "soft"):
        raise ValueError(f"no kind {kind!r}; {did_you_mean(str(kind), ('hard', 'soft'))}")
    if reduction not in ("mean", "none"):
        raise ValueError(
            f"no reduction {reduction!r}; {did_you_mean(str(reduction), ('mean', 'none'))}"
        )
    if not 0 <= alpha < torch.inf:
        raise ValueError(f"alpha must be >= 0 and finite, got {alpha}")
    if not 0 < beta <= 1000:
        raise ValueError(f"beta must be > 0 and at most 1000, got {beta}")
    for name, value in (("list_length", list_length), ("places", places)):
        if value is not None and not (hasattr(value, "__index__") and value >= 1):
            raise ValueError(f"{name} must be an integer of at least 1 or None, got {value!r}")
    if places is not None and kind == "soft":
        raise ValueError(
            f"places={places} cuts the hard form's ordering; the soft one has all orderings of its "
            "lists"
        )


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ValueError(
            f"expected (N, Ds) and (N, Dt) of the same N samples, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )


def _loss(
    student: Tensor,
    teacher: Tensor,
    kind: str,
    alpha: float,
    beta: float,
    list_length: int | None,
    normalize: bool,
    detach_query: bool = False,
    places: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    _check(kind, alpha, beta, list_length, normalize, detach_query, places, reduction)
    _check_shapes(student, teacher)
    dtype = raised_dtype(student, teacher)
    length = min(len(student) - 1, len(student) if list_length is None else list_length)
    if kind == "soft" and length > SOFT_LIMIT:
        raise ValueError(
            f"the soft form takes lists of at most {SOFT_LIMIT}, got {length} "
            f"(list_length={list_length}, {len(student)} rows); use the hard form for longer ones"
        )
    if length < 1:
        # (N,) zeros
        costs = student[:, :0].sum(1).to(dtype)
        return costs.sum() if reduction == "mean" else costs
    rows = student, teacher.detach()
    student, teacher = (
        squared_distances(_normalized(x) if normalize else x, detach_query) for x in rows
    )
    distances, order = _nearest(teacher.fill_diagonal_(torch.inf), length)
    score_settings = {"alpha": alpha, "beta": beta}
    if kind == "soft":
        plain, kernel, reference = soft_costs, darkrank_kernel.soft_costs, distances
    else:
        place_settings = {"places": min(places or length, length)}
        # normalized rows are at most 2 apart
        bounded = normalize and alpha <= darkrank_kernel.EXP_LIMIT * 0.5**beta
        plain = functools.partial(hard_costs, **place_settings)
        kernel = functools.partial(darkrank_kernel.hard_costs, **place_settings, bounded=bounded)
        reference = None
    plain = functools.partial(_list_costs, costs_of=plain, **score_settings)
    kernel = functools.partial(darkrank_kernel.list_costs, costs_of=kernel, **score_settings)
    costs = fused(plain, kernel, student.gather(1, order), reference)
    # a NaN of the teacher's stays one
    costs = costs + 0 * distances.sum(1)
    return (costs.mean() if reduction == "mean" else costs).to(dtype)


def _normalized(rows: Tensor) -> Tensor:
    rows = rows.double()
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * length.where(length > 0, torch.inf).reciprocal()


def _nearest(distances: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(N, N), overwritten -> the smallest of each row and where they are, (N, length), of equal
    ones the first one first.
    """
    if length > SORT_ABOVE or needs_plain(distances):
        return tuple(x[:, :length] for x in distances.sort(dim=1, stable=True))
    minima = []
    for _ in range(length):
        minima.append(distances.min(1, keepdim=True))
        distances.scatter_(1, minima[-1].indices, torch.inf)
    return tuple(torch.cat(x, 1) for x in zip(*minima))


def _list_costs(
    student: Tensor, teacher: Tensor | None, costs_of: Callable, alpha: float, beta: float
) -> Tensor:
    """``costs_of`` the scores, from the (N, n) squared distances; without the teacher's if None."""
    taught = () if teacher is None else (scores(teacher, alpha, beta),)
    return costs_of(scores(student, alpha, beta), *taught)
