"""One student, its teachers, and the named losses that pull on it in one step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from kdtasks.core.build import try_terms
from kdtasks.core.names import as_names
from kdtasks.core.roles import NameTable
from kdtasks.core.rows import LabelledRows
from kdtasks.core.supply import TensorSupply
from kdtasks.core.teacher import check_teachers
from kdtasks.core.terms import Term, Terms, connected_zero, weighted_values


class Distiller(TensorSupply):
    """Returns ``{name: weight * loss}`` for a batch; the loop sums them and steps.

    A loss is called with the tensors that its ``of`` names: ``'student'`` (the output),
    ``'student.layer3'`` (a submodule's output), ``'student.fc@-1'`` (of its last run), the same for
    each teacher by its name and for ``'peer1'``, ``'peer2'``…; ``'peers'``, the list of the
    student's and all peers' outputs; or any key of the batch (``'input'``, ``'target'``). A model
    runs only if some loss reads a name of it that the batch does not carry: a batch with
    ``'teacher'`` in it (a cache, a precomputed file) costs no teacher.

    An output that is a tuple, list or dict (of some models in training only) has entries:
    ``'student.0'``, ``'student.-1'``, ``'student.logits'`` (a key, or a field of a named tuple).
    Where a submodule has that path, its output is meant: ``'0'`` of a Sequential is its first part.
    Whether there is such an entry is known once the model has run, as in :meth:`build`.

    - An entry whose name contains ``loss`` trains; any other only informs: it is computed without
      gradient.
    - A loss that returns a dict or a list is weighted and named entry by entry: ``<name>_<key or
      index>``.
    - A weight of 0 skips its loss, and a teacher that no other loss reads. A weight may be a
      function of ``progress = (iteration, total)``, which the loop sets on the Distiller.
    - Where the batch has a bool tensor ``labelled`` (B,), losses of ``'target'`` see the labelled
      rows only, and give a zero that still backpropagates when there are none. Keep it on the CPU:
      then selecting costs no sync.

    A model or a loss may be replaced: ``distiller.student = …``, ``distiller.teachers['teacher'] =
    …``, where a plain model becomes a frozen :class:`Teacher`, ``distiller.losses['loss_hint'] =
    …``. The optimizer is not the Distiller's: it goes on with the parameters that it was given.

    A subclass may override :meth:`names` and :meth:`outputs`, to supply names of its own, and
    :meth:`needs`, where a role reads names of another; :meth:`prepare`, to change the batch; and
    :attr:`steps_per_batch`, where a batch is worth several optimizer steps (:meth:`steps`); nothing
    else. :attr:`classes`, the names of the data's classes where they are known, is set from outside
    for those that compare them with what a teacher knows. :attr:`kept` is what a subclass keeps
    from step to step beside models and losses; a checkpoint holds its attributes.

    Args:
        student: the model that learns.
        teachers: ``{name: model}``; each is frozen (:class:`Teacher`), and in no ``parameters()``
            or ``state_dict()``.
        losses: ``{name: (loss, of, weight)}``; the weight may be left out (1). A loss None takes
            the one tensor of ``of`` as it is. Modules among them are ``losses`` submodules and
            train with the student.
        peers: further models that learn beside the student, on the same batch.
        compile: False, True, or keyword arguments for ``torch.compile``: each model's forward is
            compiled by itself, together with the recording of what the losses read.

    Raises:
        ValueError: a name that no model supplies, a name used twice, no loss that trains, a student
            that shares parameters with a teacher. (On the first run, or in :meth:`build`: an output
            without the entry that is named.)
    """

    classes: Sequence[str] | None = None
    kept: object = None
    # which step of a batch is taken, from 0 on; None: outside of :meth:`steps`
    step: int | None = None

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        losses: Mapping[str, tuple] | None = None,
        *,
        peers: Sequence[nn.Module] = (),
        compile: bool | dict = False,
    ):
        super().__init__(student, teachers or {}, peers)
        self.progress: tuple[int, int] | None = None
        self._compile = compile
        self._built: dict[str, object] = {}
        self._terms = Terms()
        for name, entry in (losses or {}).items():
            self._add_term(name, *entry)
        names = self.list_names()
        listed = {of for entry in (losses or {}).values() for of in as_names(entry[1])}
        self._add_own_losses(names, listed)
        self._terms.check_some_train(losses or {})
        self.plan(names, self._terms.names_of())
        self.note_parts()

    # One step -------------------------------------------------------------------------------------
    def forward(self, input: Any, target: Any = None) -> dict[str, Tensor]:
        """The weighted losses of a batch: a dict with ``'input'``, ``'target'`` and more, or the
        two as arguments.
        """
        batch = self.prepare(_as_batch(input, target))
        self._follow()
        weights = self._terms.weights(self.progress)
        tensors = self.supply(batch, self._resting(weights))
        rows = _labelled_rows(batch)
        losses: dict[str, Tensor] = {}
        for name, weight in weights.items():
            values = self._compute(name, weight, tensors, rows)
            if not losses.keys().isdisjoint(values):
                twice = min(losses.keys() & values)
                raise ValueError(f"two losses come out under the name {twice!r}; rename one")
            losses.update(values)
        return losses

    def prepare(self, batch: dict[str, object]) -> dict[str, object]:
        """The batch as all models and losses of the step get it. May be overridden, to change or
        add entries.
        """
        return batch

    @property
    def steps_per_batch(self) -> int:
        """How many optimizer steps a batch is worth. May be overridden."""
        return 1

    def steps(
        self, batch: Mapping[str, object], call: Callable[[Mapping], dict] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """The losses of each optimizer step that a batch is worth (:attr:`steps_per_batch`), the
        next ones computed when the step of those before is done::

            for losses in distiller.steps(batch):
                total_loss(losses).backward()
                optimizer.step()
                optimizer.zero_grad()

        Args:
            batch: as for the call.
            call: what is called with it instead: the wrapper of DDP, or a function around it.
        """
        try:
            for step in range(self.steps_per_batch):
                self.step = step
                yield (call or self)(batch)
        finally:
            self.step = None

    def _compute(
        self, name: str, weight: float, tensors: Mapping[str, object], rows: LabelledRows | None
    ) -> dict[str, Tensor]:
        """What one loss gives, weighted and by name."""
        term = self._terms[name]
        if weight == 0:
            # its adapters stay connected: DDP counts on it
            adapters = self._adapters(name)
            return {name: connected_zero(adapters)} if adapters else {}
        inputs = self._inputs_of(name, tensors, rows)
        if rows is not None and rows.count == 0 and "target" in term.of:
            return {name: connected_zero([*self._adapters(name), *inputs])}
        return weighted_values(name, term.loss, inputs, weight)

    def _adapters(self, name: str) -> list[nn.Parameter]:
        """The parameters of a loss."""
        return list(self.losses[name].parameters()) if name in self.losses else []

    def _inputs_of(
        self, name: str, tensors: Mapping[str, object], rows: LabelledRows | None
    ) -> list:
        """What a loss is called with: labelled rows only where it is of the target."""
        of = self._terms[name].of
        inputs = [self.read(tensors, tensor_name, name) for tensor_name in of]
        if rows is None or "target" not in of:
            return inputs
        return [rows.select(value) for value in inputs]

    def _resting(self, weights: Mapping[str, float]) -> list[str]:
        """The teachers that only losses of weight 0 read."""
        if all(weights.values()):
            return []
        pulling = {of for name, weight in weights.items() if weight for of in self._terms[name].of}
        return [role for role in self.teachers if pulling.isdisjoint(self.wanted[role])]

    # Terms and replaced models --------------------------------------------------------------------
    @property
    def terms(self) -> Mapping[str, Term]:
        """``{name: (loss, tensor names, weight)}`` of the losses and of what only is reported."""
        return MappingProxyType(self._terms)

    def _add_term(self, name: str, *entry) -> None:
        loss = self._terms.add(name, *entry)
        if isinstance(loss, nn.Module):
            self.losses[name] = loss

    def _own_losses(self, role: str, names: NameTable) -> list[str]:
        """The losses that a learner computes itself; a submodule called so is none."""
        submodules = set(self.submodules(role))
        losses = [name for name in names.of(role) if name.startswith(f"{role}.loss_")]
        return [name for name in losses if name not in submodules]

    def _add_own_losses(self, names: NameTable, listed: set[str]) -> None:
        """Own losses that no entry lists enter with weight 1."""
        for role in self.learners:
            for loss in self._own_losses(role, names):
                if loss not in listed:
                    self._add_term(loss.removeprefix("student.").replace(".", "_"), None, loss)

    def _follow(self) -> None:
        """Update names, turns and terms if a model or a loss was replaced since the last run.

        Raises:
            ValueError: the names that the losses read are not the new model's; or it has losses of
                its own that the former had not, or a loss came that the Distiller was not made
                with: those would not train.
        """
        if not self.is_changed():
            return
        check_teachers(self.teachers, self.learning_models())
        self._follow_losses()
        names = self.list_names()
        for role in self.learners:
            former = set(self._names.of(role))
            new = [name for name in self._own_losses(role, names) if name not in former]
            if new:
                raise ValueError(
                    f"the new model of {role} has losses of its own, {new}, which the former had "
                    "not: make a new Distiller of it"
                )
        self.plan(names, self._terms.names_of())
        self.note_parts()

    def _follow_losses(self) -> None:
        for name, loss in self.losses.items():
            if name not in self._terms:
                raise ValueError(
                    f"losses[{name!r}] came after the Distiller was made, which does not know of "
                    "what it is: give it to Distiller(losses={name: (loss, of, weight)})"
                )
            self._terms[name] = self._terms[name]._replace(loss=loss)

    # Before the first step ------------------------------------------------------------------------
    def build(self, input: Any, target: Any = None) -> dict[str, tuple[int, ...] | None]:
        """Run each model and each loss once on a batch; call it before the optimizer is made.

        Learners run in training mode (but for their BatchNorms) and record a graph, as in a step;
        teachers and losses are in eval, without gradient. Nothing moves: modes, random streams,
        buffers and other state of models and losses are put back. It fills in what a loss can only
        know from real tensors: a loss with a method ``build(*tensors)`` is given its tensors once,
        and torch's lazy modules find their sizes. It checks every name and shape.

        Returns:
            The shape of every tensor that some loss is called with (None for what is no tensor).

        Raises:
            ValueError: a name that neither a model nor the batch supplies; a loss that cannot be
                computed from its tensors, or gives no scalar. The message names the loss and the
                shapes.
        """
        self._follow()
        with self.at_rest(training=True):
            batch = self.prepare(_as_batch(input, target))
            with torch.enable_grad():
                tensors = self.supply(batch)
            tensors = {
                name: value.detach() if isinstance(value, Tensor) else value
                for name, value in tensors.items()
            }
            rows = _labelled_rows(batch)
            inputs = {name: self._inputs_of(name, tensors, rows) for name in self._terms}
            models = {role: self.model(role) for role in self.roles}
            try_terms(self._terms, inputs, models, self._built)
        used = {of: tensors[of] for names in self._terms.names_of().values() for of in names}
        return {
            name: tuple(value.shape) if isinstance(value, Tensor) else None
            for name, value in used.items()
        }

    def tensors(self, input: Any, target: Any = None) -> dict[str, object]:
        """The batch, and by its name everything that some loss is called with; in eval, without
        gradient, nothing moves.

        Entries of an output that the model gives in training only are left out.
        """
        self._follow()
        with self.at_rest():
            return self.supply(self.prepare(_as_batch(input, target)), partly=True)


def _as_batch(input: Any, target: Any) -> dict[str, object]:
    if isinstance(input, Mapping):
        return dict(input)
    return {"input": input} if target is None else {"input": input, "target": target}


def _labelled_rows(batch: Mapping[str, Any]) -> LabelledRows | None:
    labelled = batch.get("labelled")
    return None if labelled is None else LabelledRows(labelled)
