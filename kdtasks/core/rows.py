"""The labelled rows of a batch, which are all that a supervised loss sees."""

from typing import Any

from torch import Tensor


class LabelledRows:
    """Which rows of a batch are labelled.

    Args:
        labelled: (B,) bool. On the CPU, selecting costs no sync; where the labelled rows come
            first, as in the library's own batches, it costs no copy either.
    """

    def __init__(self, labelled: Tensor):
        index = labelled.nonzero().squeeze(1)
        self.count, self.batch_size = len(index), len(labelled)
        first = bool(labelled[: self.count].all())
        self.index: slice | Tensor = slice(0, self.count) if first else index

    def select(self, value: Any) -> Any:
        """The labelled rows of a tensor, of each tensor of a dict or of a list (peers), or of a
        list with one entry a sample; what has no rows stays as it is.
        """
        if isinstance(value, Tensor):
            return self._select_rows(value) if self._has_rows(value) else value
        if isinstance(value, dict):
            return {key: self.select(item) for key, item in value.items()}
        if not isinstance(value, list | tuple):
            return value
        if value and all(isinstance(item, Tensor) and self._has_rows(item) for item in value):
            return [self._select_rows(item) for item in value]
        return self._select_entries(value) if len(value) == self.batch_size else value

    def _has_rows(self, tensor: Tensor) -> bool:
        return tensor.dim() > 0 and len(tensor) == self.batch_size

    def _select_rows(self, tensor: Tensor) -> Tensor:
        if isinstance(self.index, slice):
            return tensor[self.index]
        return tensor[self.index.to(tensor.device)]

    def _select_entries(self, samples: list | tuple) -> list | tuple:
        if isinstance(self.index, slice):
            return samples[self.index]
        return [samples[i] for i in self.index.tolist()]
