"""Old and new columns of growing heads, by name."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kdtasks.core import Distiller
from kdtasks.core.classes import UNLABELLED
from kdtasks.incremental.models import GrowingHead, head_of


class IncrementalDistiller(Distiller):
    """A :class:`~kdtasks.core.Distiller` of models with a
    :class:`~kdtasks.incremental.models.GrowingHead`.

    Losses may also be of these names, where l are the columns of the student's experiences but the
    last, m those of the last:

    ====================  ==========================================================================
    ``student.old``       (B, l) logits
    ``student.new``       (B, m) logits
    ``student.old_heads`` a list of (B, c), one an old experience
    ``<teacher>.old``     as of the student, by the teacher's own head; so ``.new``
    ``<teacher>.heads``   a list of (B, c), one an experience that the teacher knows
    ``target.new``        (B,) int64: target - l; -100 (ignored) where it is no new class
    ``target.all``        (B,) int64: the target of every row, unlabelled ones (-100) included
    ====================  ==========================================================================

    A teacher of the experiences before has learned all of its columns, so what the student is
    compared with is ``('student.old', 'teacher')``. Losses of ``target`` itself see labelled rows
    only, as ever.
    """

    def names(self, role: str) -> list[str]:
        """What :class:`~kdtasks.core.Distiller` supplies, and the names above."""
        return [*super().names(role), *self.own_names(role)]

    def own_names(self, role: str) -> list[str]:
        """The names above that a role supplies."""
        if role == "student":
            return ["student.old", "student.new", "student.old_heads", "target.new", "target.all"]
        return [f"{role}.old", f"{role}.new", f"{role}.heads"]

    def outputs(
        self, role: str, batch: Mapping[str, object], wanted: list[str]
    ) -> dict[str, object]:
        """The wanted names of one role; columns of outputs that the batch carries (a cache) need no
        forward.
        """
        supplied = self.own_names(role)
        of_model = [name for name in wanted if name not in supplied]
        of_logits = [name for name in wanted if name in supplied and not _of_target(name)]
        of_target = [name for name in wanted if name in supplied and _of_target(name)]
        values = {role: batch[role]} if role in batch else {}
        if any(name not in values for name in of_model) or (of_logits and role not in values):
            values = self.run(role, self.read(batch, "input", role), of_model)
        for name in of_logits:
            values[name] = self._columns(role, name, values[role])
        for name in of_target:
            values[name] = self._target(name, batch)
        return values

    def _columns(self, role: str, name: str, logits: Tensor) -> Tensor | list[Tensor]:
        head = self.head(role)
        if logits.shape[1] != sum(head.sizes):
            raise ValueError(
                f"{role} gives {logits.shape[1]} columns, its head has "
                f"{sum(head.sizes)} {head.sizes}"
            )
        match name.removeprefix(f"{role}."):
            case "old":
                return logits[:, : head.old]
            case "new":
                return logits[:, head.old :]
            case "old_heads":
                return head.split(logits)[:-1]
            case _:
                return head.split(logits)

    def _target(self, name: str, batch: Mapping[str, object]) -> Tensor:
        target = self.read(batch, "target", name)
        if name == "target.all":
            return target
        old = self.head("student").old
        return torch.where(target >= old, target - old, UNLABELLED)

    def head(self, role: str) -> GrowingHead:
        """The growing head of a role's model; looked for once."""
        facts = self.facts(role)
        if "head" not in facts:
            facts["head"] = head_of(self.model(role))[0]
        return self.model(role).get_submodule(facts["head"])


def _of_target(name: str) -> bool:
    return name.startswith("target.")
