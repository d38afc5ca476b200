r"""Dark experience replay, DER and DER++ (Buzzega et al., NeurIPS 2020, arXiv 2004.07211).

Not to be taken for "dynamically expandable representation", which others call DER. A buffer keeps
images of the stream **with the logits that the network gave them when they passed**, and the
network of now is held to these:

.. math::
    L = \mathrm{CE}(z(x), y)
    + \alpha \operatorname*{mean}_{b, c} \bigl(z(x')_{bc} - h'_{bc}\bigr)^2
    \;[\, + \beta\, \mathrm{CE}(z(x''), y'') \,]

with :math:`(x', h')` and, for DER++, :math:`(x'', y'')` two independent draws from the buffer.
Released for CIFAR-10 and 500 images: α = 0.3, β = 0.5. The mean is over columns too, so an α that
was found for 10 classes is another one for 100.

The buffer is a **reservoir** (:class:`ReservoirBuffer`): after n samples each of them is in it with
the same probability. As released, what a step has seen goes in after the optimizer's step: the
image without augmentation, its label, and the logits of that step's forward. What is drawn is
augmented anew.

A head that grows (the released ones have all columns from the start): a stored row has the columns
of its time, and only these are compared.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from kdtasks.core.precision import raised
from kdtasks.core.terms import connected_zero


def der_loss(student: Tensor, stored: Tensor, columns: Tensor | None = None) -> Tensor:
    """Mean squared difference of the logits now and then, over rows and columns.

    Args:
        student: ``(B, r)`` logits of now; carries the gradient.
        stored: ``(B, l)`` logits of then, l <= r: compared with the first l columns; never receives
            a gradient.
        columns: int64 ``(B,)``, how many columns of each stored row were there at its time; what
            stands behind them is not read. None: all l.

    Returns:
        A scalar; half precision is raised to float32, float64 stays. A zero that still
        backpropagates when nothing is compared.

    Raises:
        ValueError: the shapes do not fit.
    """
    shapes_fit = student.dim() == 2 == stored.dim() and len(student) == len(stored)
    if not shapes_fit or stored.shape[1] > student.shape[1]:
        raise ValueError(
            "expected student (B, r) and stored (B, l) with l <= r, got "
            f"{tuple(student.shape)} and {tuple(stored.shape)}"
        )
    if columns is not None and columns.shape != (len(stored),):
        raise ValueError(
            f"expected one number a row, columns ({len(stored)},), got {tuple(columns.shape)}"
        )
    student, stored = raised(student[:, : stored.shape[1]], stored.detach())
    if columns is None:
        return (student - stored).square().sum() / max(stored.numel(), 1)
    is_stored = torch.arange(stored.shape[1], device=stored.device) < columns[:, None]  # (B, l)
    difference = (student - stored).where(is_stored, 0)
    return difference.square().sum() / is_stored.sum().clamp(min=1)


def replay_cross_entropy(student: Tensor, target: Tensor) -> Tensor:
    """The second term of DER++: cross-entropy of what is drawn from the memory.

    Args:
        student: ``(R, C)`` logits of now; carries the gradient.
        target: int64 ``(R,)``, their classes.

    Returns:
        A scalar in nats, mean over rows; half precision is raised to float32, float64 stays. A zero
        that still backpropagates when nothing is drawn, as from a memory that is empty.

    Raises:
        ValueError: the shapes do not fit.
    """
    if student.dim() != 2 or not student.shape[1] or target.shape != (len(student),):
        raise ValueError(
            "expected student (R, C), C at least 1, and target (R,), got "
            f"{tuple(student.shape)} and {tuple(target.shape)}"
        )
    (student,) = raised(student)
    return F.cross_entropy(student, target) if len(student) else connected_zero([student])


class ReservoirBuffer:
    """A fixed number of a stream's samples, each with the same probability (Vitter's algorithm R).

    Its random numbers are its own: torch's stream does not move. :meth:`state_dict` has plain
    tensors and numbers, which ``torch.load(weights_only=True)`` reads.

    Args:
        size: how many are kept.
        seed: of its random numbers.

    Attributes:
        seen: how many samples have passed.
        kept: ``{name: (n, …)}``, n <= size.

    Raises:
        ValueError: the size is no integer of at least 1.
    """

    def __init__(self, size: int, seed: int = 0):
        if not hasattr(size, "__index__") or size < 1:
            raise ValueError(f"size must be an integer of at least 1, got {size!r}")
        self.size, self.seen = size.__index__(), 0
        self.kept: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return min(self.seen, self.size)

    def add(self, **samples: Tensor) -> None:
        """Let samples pass, in their order; each takes a free place, or that of another one, or
        none.

        Args:
            samples: ``(b, …)`` of each name, the same names as before. Rows ``(b, l)`` may become
                wider, as logits do whose head grows: the narrower ones are filled up with zeros,
                and how many of their columns count is for the caller to keep beside them.

        Raises:
            ValueError: other names than before, lengths or shapes that do not fit, or bfloat16,
                whose steps are too coarse for logits to be compared with.
        """
        samples = {name: value.detach() for name, value in samples.items()}
        self._check(samples)
        row_of_place = self._take_places(len(next(iter(samples.values()))))
        places = torch.tensor(list(row_of_place), dtype=torch.int64)
        rows = torch.tensor(list(row_of_place.values()), dtype=torch.int64)
        for name, value in samples.items():
            memory = self.kept.get(name, value[:0])
            memory = _as_wide_as(memory, value, len(self))
            memory[places.to(memory.device)] = value[rows.to(value.device)]
            self.kept[name] = memory

    def draw(self, count: int) -> dict[str, Tensor]:
        """Different samples, ``min(count, len(self))`` of them, chosen at random."""
        rows = torch.randperm(len(self), generator=self._generator)[:count]
        return {name: value[rows.to(value.device)] for name, value in self.kept.items()}

    def state_dict(self) -> dict:
        """What is kept, how many have passed, and the state of the random numbers."""
        return {
            "seen": self.seen,
            "kept": {name: value.clone() for name, value in self.kept.items()},
            "random": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Go on where :meth:`state_dict` left another buffer of the same size.

        Raises:
            ValueError: it holds more than this one can.
        """
        lengths = {len(value) for value in state["kept"].values()} or {0}
        if lengths != {min(state["seen"], self.size)}:
            raise ValueError(
                f"expected the state of a buffer of size {self.size}, got {sorted(lengths)} samples"
                f" of {state['seen']}"
            )
        self.seen = state["seen"]
        self.kept = {name: value.clone() for name, value in state["kept"].items()}
        self._generator.set_state(state["random"].cpu())

    def _check(self, samples: Mapping[str, Tensor]) -> None:
        if not samples or (self.kept and samples.keys() != self.kept.keys()):
            raise ValueError(f"expected samples of {sorted(self.kept)}, got {sorted(samples)}")
        shapes = {name: tuple(value.shape) for name, value in samples.items()}
        if len({shape[:1] for shape in shapes.values()}) > 1:
            raise ValueError(f"expected equally many of each name, got {shapes}")
        for name, value in samples.items():
            if value.dtype == torch.bfloat16:
                raise ValueError(f"{name} is bfloat16; expected float32, or float16")
            memory = self.kept.get(name, value)
            wider = value.dim() == memory.dim() == 2 and value.shape[1] >= memory.shape[1]
            if value.shape[1:] != memory.shape[1:] and not wider:
                raise ValueError(
                    f"expected {name} of shape (b, …) = {('b', *memory.shape[1:])}, or wider rows, "
                    f"got {shapes[name]}"
                )

    def _take_places(self, count: int) -> dict[int, int]:
        """``{place: row}`` of the next ``count`` samples, the last row where two take one place."""
        number = torch.arange(self.seen, self.seen + count)
        chance = torch.rand(count, generator=self._generator, dtype=torch.float64)
        place = torch.where(number < self.size, number, (chance * (number + 1)).long())
        self.seen += count
        return {p: row for row, p in enumerate(place.tolist()) if p < self.size}


def _as_wide_as(memory: Tensor, value: Tensor, length: int) -> Tensor:
    """A tensor of ``length`` rows of the shape of ``value``'s that begins with ``memory``."""
    if len(memory) == length and memory.shape[1:] == value.shape[1:]:
        return memory
    wide = memory.new_zeros(length, *value.shape[1:])
    wide[tuple(slice(size) for size in memory.shape)] = memory
    return wide
