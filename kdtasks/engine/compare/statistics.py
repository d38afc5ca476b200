"""What the differences of some seeds say: their mean, its interval, and whether that is a gain."""

import math
import statistics
from collections.abc import Sequence

from kdtasks.core.stages import ALONE, DISTILLED

CONFIDENCE = 0.95
# for a verdict: two differences say too little of their spread
MIN_SEEDS = 3


def interval(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float | None, float | None]:
    r"""Mean and Student's interval: :math:`\bar d \pm t_{n-1}\, s / \sqrt n`.

    Args:
        values: n independent numbers, here the paired differences.
        confidence: of the interval, in (0, 1).

    Returns:
        ``(mean, low, high)``; low and high are None for fewer than two values.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    from scipy.stats import t  # slow to import

    half = (
        float(t.ppf((1 + confidence) / 2, len(values) - 1))
        * statistics.stdev(values)
        / math.sqrt(len(values))
    )
    return mean, mean - half, mean + half


def verdict(differences: Sequence[float], higher_is_better: bool) -> tuple[str | None, str]:
    """``('better' | 'worse' | 'no difference shown' | None, why)``: whether the interval of the
    differences excludes 0.
    """
    if len(differences) < MIN_SEEDS:
        return None, f"no verdict: {len(differences)} of at least {MIN_SEEDS} seeds"
    if not all(map(math.isfinite, differences)):
        return None, "no verdict: a difference is not finite"
    _, low, high = interval(differences)
    assert low is not None and high is not None  # there are MIN_SEEDS
    where = f"the {CONFIDENCE:.0%} interval [{low:+.3g}, {high:+.3g}]"
    if low <= 0 <= high:
        return "no difference shown", f"{where} contains 0"
    return ("better" if (low > 0) == higher_is_better else "worse"), f"{where} excludes 0"


def summary(alone: Sequence[float], taught: Sequence[float]) -> dict:
    """``{alone, distilled, mean, low, high}`` of paired values of the control and of the student
    that counts: the mean difference and its interval.
    """
    mean, low, high = interval([b - a for a, b in zip(alone, taught)])
    return {ALONE: list(alone), DISTILLED: list(taught), "mean": mean, "low": low, "high": high}


def paired(values: Sequence[float], others: Sequence[float], higher_is_better: bool) -> dict:
    """``{differences, mean, low, high, verdict, why}`` of values less others, seed by seed."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    mean, low, high = interval(differences)
    word, why = verdict(differences, higher_is_better)
    return {
        "differences": differences,
        "mean": mean,
        "low": low,
        "high": high,
        "verdict": word,
        "why": why,
    }
