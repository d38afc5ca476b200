"""DML's algorithm 1 in a step: peers step in turn, and the next one learns from what the one before
thinks then (:mod:`kdtasks.general.dml` has the formulas).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdtasks.core import Distiller
from kdtasks.core.names import PEERS, TensorName
from kdtasks.core.outputs import map_tensors
from kdtasks.core.terms import trains


class SequentialDMLDistiller(Distiller):
    """A :class:`~kdtasks.core.Distiller` in which a batch is a step of each peer in turn, the
    student first: :func:`~kdtasks.general.sequential_step`, for a config
    (``distiller=dict(type='kdtasks.general.SequentialDMLDistiller')``) or with
    :meth:`~kdtasks.core.Distiller.steps`.

    All peers see the batch once before the first step. A peer that has stepped sees it once more,
    without gradient, and its new answers are what the others read. In the step of a peer the
    tensors of all others are constants, so that a loss of all, as
    :func:`~kdtasks.general.mutual_losses`, pulls on that peer alone, and one optimizer of all
    parameters is one for each: those without a gradient stay as they are, momentum included.

    It costs 2K - 1 forwards of K peers, of which K record a graph; teachers run once. BatchNorm
    statistics of all peers but the last move twice. Called by itself, not in ``steps``, it is the
    plain one, in which all learn at once; so are stages without peers. Gradients cannot be
    accumulated over batches.

    Args:
        student, teachers, losses, peers, compile: see :class:`~kdtasks.core.Distiller`.

    Raises:
        ValueError: a peer that no loss pulls on, so that it would have no step.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        losses: Mapping[str, tuple] | None = None,
        *,
        peers: Sequence[nn.Module] = (),
        compile: bool | dict = False,
    ):
        super().__init__(student, teachers, losses, peers=peers, compile=compile)
        # what roles gave in an earlier step of the batch
        self._given: dict[str, dict[str, object]] = {}
        pulled = {
            TensorName.parse(of).role
            for name, term in self.terms.items()
            if trains(name)
            for of in term.of
        }
        idle = [role for role in self.learners if not pulled & {role, PEERS}]
        if idle:
            raise ValueError(
                f"each peer steps by itself, and no loss pulls on {idle[0]!r}: expected a loss of "
                f"{PEERS!r} or of {idle[0]!r} among {list(self.terms)}"
            )

    @property
    def steps_per_batch(self) -> int:
        """One for each peer."""
        return len(self.learners)

    def outputs(
        self, role: str, batch: Mapping[str, object], wanted: list[str]
    ) -> dict[str, object]:
        """The wanted names of one role: with a gradient in its own step, as constants in others."""
        if self.step is None:
            return super().outputs(role, batch, wanted)
        if self.step == 0:
            self._given[role] = super().outputs(role, batch, wanted)
        elif role == self.learners[self.step - 1]:
            with torch.no_grad():
                self._given[role] = super().outputs(role, batch, wanted)
        last = self.step == self.steps_per_batch - 1
        values = self._given.pop(role) if last else self._given[role]
        return values if role == self.learners[self.step] else map_tensors(Tensor.detach, values)
