"""What a detector's parts give in one forward, and the rows that its own losses use, whatever
library it is of.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor


class Forward(ABC):
    """What the parts of a detector gave in one forward.

    Attributes:
        features: ``{key: (B, C, H, W)}``.
    """

    features: Mapping[str, Tensor]

    @abstractmethod
    def logits(self, part: str) -> Tensor:
        """(B, A, K) of anchors; (B·A, 1) of an RPN; (N, C) of RoIs."""

    @abstractmethod
    def deltas(self, part: str) -> Tensor:
        """(B, A, n) of anchors; (B·A, 4) of an RPN; (N, C, 4) of RoIs, C the classes without the
        background, or 1 where one box is for all of them.
        """

    @abstractmethod
    def background(self, part: str) -> str | None:
        """``'first'`` or ``'last'``: which column of the logits is the background's; None: none."""


class Samples:
    """The rows of a head that the student's own losses use; each is found when a loss reads it.

    Attributes:
        sampled: (M,) of an RPN, rows of (B·A).
        positive: (P,) rows with a box: of (B·A), or of the N RoIs.
        target: (P, 4) encoded boxes of the positive rows.
        classes: (P,) of RoIs: the classes of the positive rows, from 0 on.
        count: what the hard box loss divides by.
        boxes: (N, 5) of RoIs: image, x1, y1, x2, y2.
        label: (N,) of RoIs, as the library counts.
    """

    sampled: Tensor
    positive: Tensor
    target: Tensor
    classes: Tensor
    count: int | Tensor
    boxes: Tensor
    label: Tensor


class Seen(Forward):
    """What the student saw, said and sampled in one forward."""

    batch_size: int

    def samples(self, part: str) -> Samples:
        """Those of one head; found once."""
        cache = self.__dict__.setdefault("_samples", {})
        if part not in cache:
            cache[part] = self.find_samples(part)
        return cache[part]

    @abstractmethod
    def find_samples(self, part: str) -> Samples:
        """They must not hold this object: its graph would wait for the garbage collector."""

    @abstractmethod
    def valid(self) -> Tensor:
        """bool (B, A): the anchors that the hard class loss does not ignore."""
