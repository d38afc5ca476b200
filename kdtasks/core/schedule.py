"""Loss weights that change with the step: functions of ``progress = (iteration, total)``.

A weight is a number or any callable ``progress -> float``. Those here are what the papers use.
Points of the run are given as fractions of it, so that a schedule keeps its meaning whatever the
length of a stage.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass


def _fraction(progress: tuple[int, int], begin: float, until: float) -> float:
    """How far the run is between ``begin`` and ``until``, clamped to [0, 1]."""
    iteration, total = progress
    done = iteration / max(total, 1)
    return min(max((done - begin) / (until - begin), 0.0), 1.0)


@dataclass(frozen=True)
class Linear:
    """From ``start`` to ``end`` in a straight line between the fractions ``begin`` and ``until``;
    constant outside.
    """

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self):
        _check_span(self.begin, self.until)

    def __call__(self, progress: tuple[int, int]) -> float:
        """The weight at ``progress = (iteration, total)``."""
        f = _fraction(progress, self.begin, self.until)
        return (1 - f) * self.start + f * self.end


@dataclass(frozen=True)
class Cosine(Linear):
    """From ``start`` to ``end`` along half a cosine between the fractions ``begin`` and ``until``;
    constant outside.
    """

    def __call__(self, progress: tuple[int, int]) -> float:
        """The weight at ``progress = (iteration, total)``."""
        f = (1 - math.cos(math.pi * _fraction(progress, self.begin, self.until))) / 2
        return (1 - f) * self.start + f * self.end


@dataclass(frozen=True)
class Steps:
    """``values[0]`` first, then ``values[i]`` from the fraction ``at[i-1]`` of the run on."""

    values: Sequence[float]
    at: Sequence[float]

    def __post_init__(self):
        if len(self.values) != len(self.at) + 1:
            raise ValueError(
                f"Steps needs one value more than fractions, got {len(self.values)} values and "
                f"{len(self.at)} fractions"
            )
        if list(self.at) != sorted(set(self.at)) or not all(0 < f < 1 for f in self.at):
            raise ValueError(f"Steps: 'at' must rise strictly between 0 and 1, got {list(self.at)}")

    def __call__(self, progress: tuple[int, int]) -> float:
        """The weight at ``progress = (iteration, total)``."""
        iteration, total = progress
        return self.values[bisect.bisect_right(self.at, iteration / max(total, 1))]


def _check_span(begin: float, until: float) -> None:
    if not 0 <= begin < until <= 1:
        raise ValueError(
            f"expected fractions 0 <= begin < until <= 1, got begin={begin}, until={until}"
        )
