"""One student, its teachers, and the named losses that pull on it in one step. Imports torch and nothing else."""

import copy
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdtasks.core.features import Taps, module_paths
from kdtasks.core.names import did_you_mean, split_call
from kdtasks.core.teacher import Teacher

Loss = Callable[..., Tensor | dict | list | tuple]
Weight = float | Callable[[tuple[int, int]], float]


class Distiller(nn.Module):
    """Returns ``{name: weight * loss}`` for a batch; the loop sums them and steps.

    A loss is called with the tensors that its ``of`` names: ``'student'`` (the output), ``'student.layer3'`` (a
    submodule's output), ``'student.fc@-1'`` (of its last run), the same for each teacher by its name and for
    ``'peer1'``, ``'peer2'``…; ``'peers'``, the list of the student's and all peers' outputs; or any key of the
    batch (``'input'``, ``'target'``). A model runs only if some loss wants a name of it that the batch does not
    carry: a batch with ``'teacher'`` in it (a cache, a precomputed file) costs no teacher.

    - An entry whose name contains ``loss`` trains; any other only informs: it is computed without gradient.
    - A loss that returns a dict or a list is weighted and named entry by entry: ``<name>_<key or index>``.
    - A weight of 0 skips its loss. A weight may be a function of ``progress = (iteration, total)``, which the loop
      sets on the Distiller.
    - Where the batch has a bool tensor ``labelled`` (B,), losses of ``'target'`` see the labelled rows only, and
      give a zero that still backpropagates when there are none. Keep it on the CPU: then selecting costs no sync.

    A subclass may override :meth:`names` and :meth:`outputs`, to supply names of its own; nothing else.

    Args:
        student: the model that learns.
        teachers: ``{name: model}``; each is frozen (:class:`Teacher`), and in no ``parameters()`` or ``state_dict()``.
        losses: ``{name: (loss, of, weight)}``; the weight may be left out (1). A loss None takes the one tensor of
            ``of`` as it is. Modules among them are ``losses`` submodules and train with the student.
        peers: further models that learn beside the student, on the same batch.
        compile: False, True, or keyword arguments for ``torch.compile``: each model's forward with its taps is
            compiled by itself.

    Raises:
        ValueError: a name that no model supplies, a name used twice, no loss that trains, a student that shares
            parameters with a teacher.
    """

    def __init__(self, student: nn.Module, teachers: Mapping[str, nn.Module] | None = None,
                 losses: Mapping[str, tuple] | None = None, *, peers: Sequence[nn.Module] = (),
                 compile: bool | dict = False):
        super().__init__()
        self.student = student
        self.peers = nn.ModuleList(peers)
        self.teachers = nn.ModuleDict({name: model if isinstance(model, Teacher) else Teacher(model)
                                       for name, model in (teachers or {}).items()})
        self.compile = compile
        self.progress: tuple[int, int] | None = None
        self.learners = ["student", *(f"peer{k + 1}" for k in range(len(self.peers)))]
        self.roles = [*self.learners, *self.teachers]
        self._check_roles()
        self._taps: dict[tuple[str, tuple[str, ...]], Taps] = {}
        self._terms: dict[str, tuple[Loss | None, tuple[str, ...], Weight]] = {}
        self.losses = nn.ModuleDict()
        supplied = {role: dict.fromkeys(self.names(role)) for role in self.roles}
        for name, entry in (losses or {}).items():
            self._add_term(name, *entry)
        used = {n for _, of, _ in self._terms.values() for n in of} | {n for e in (losses or {}).values() for n in _tuple(e[1])}
        for own in (n for role in self.learners for n in supplied[role] if n.startswith(f"{role}.loss_") and n not in used):
            self._add_term(own.split(".", 1)[1], None, (own,), 1.0)
        if not any("loss" in name for name in self._terms):
            raise ValueError(f"no loss trains the student: the losses are {list(losses or {})}; a name that contains "
                             "'loss', with a weight other than 0, does")
        self.wanted = self._resolve(supplied)

    def _check_roles(self) -> None:
        for name in self.teachers:
            if name in (*self.learners, "peers", "input", "target", "index", "labelled") or not name.isidentifier():
                raise ValueError(f"a teacher cannot be called {name!r}: want an identifier that names nothing else")
        frozen = {id(p): name for name, teacher in self.teachers.items() for p in teacher.model.parameters()}
        for role in self.learners:
            for path, parameter in self.model(role).named_parameters():
                if id(parameter) in frozen:
                    raise ValueError(f"{role} and {frozen[id(parameter)]} share the parameter {path!r}, and a teacher is "
                                     "frozen: give the teacher a copy (copy.deepcopy)")

    def _add_term(self, name: str, loss: Loss | None, of: str | Sequence[str], weight: Weight = 1.0) -> None:
        of = _tuple(of)
        if name in self._terms:
            raise ValueError(f"two losses are called {name!r}; the student's own 'student.{name}' is one: list it in "
                             "some 'of', or rename yours")
        if loss is None and len(of) != 1:
            raise ValueError(f"{name}: an entry without a loss takes one tensor as it is, got of={of}")
        if loss is not None and not callable(loss):
            raise ValueError(f"{name}: {loss!r} is no loss; want a function or a module")
        if not callable(weight) and weight == 0:
            return
        if isinstance(loss, nn.Module):
            self.losses[name] = loss
        self._terms[name] = (loss, of, weight)

    def _resolve(self, supplied: dict[str, dict]) -> dict[str, list[str]]:
        """Which names each role has to supply; names with no role in front are the batch's."""
        wanted: dict[str, list[str]] = {role: [] for role in self.roles}
        for loss_name, (_, of, _) in self._terms.items():
            for name in of:
                for single in self.learners if name == "peers" else (name,):
                    base, _ = split_call(single)
                    roles = [role for role in self.roles if base in supplied[role]]
                    if roles and single not in wanted[roles[0]]:
                        wanted[roles[0]].append(single)
                    if not roles and base.split(".", 1)[0] in self.roles:
                        known = [n for names in supplied.values() for n in names]
                        raise ValueError(f"{loss_name}: no model supplies {name!r}; {did_you_mean(base, known)}")
        return wanted

    def model(self, role: str) -> nn.Module:
        """The model that plays a role: the student, a peer, or the network inside a :class:`Teacher`."""
        if role == "student":
            return self.student
        if role in self.teachers:
            return self.teachers[role].model
        return self.peers[self.learners.index(role) - 1]

    def names(self, role: str) -> list[str]:
        """What a role can supply. May be overridden to add names, of any form, to the role that computes them."""
        return [role, *(f"{role}.{path}" for path in module_paths(self.model(role)))]

    def outputs(self, role: str, batch: Mapping[str, object], wanted: list[str]) -> dict[str, object]:
        """The wanted names of one role; may be overridden together with :meth:`names`.

        Roles run in the order student, peers, teachers, and ``batch`` holds all names found before: a teacher can
        be run on what the student chose. A teacher's turn is under ``no_grad``.
        """
        return self.run(role, batch["input"], wanted)

    def run(self, role: str, input, wanted: Sequence[str]) -> dict[str, object]:
        """One forward of a role: ``{role: output, role.<path>: value}`` for the ``role.<path>`` among ``wanted``."""
        paths = tuple(name.split(".", 1)[1] for name in wanted if name.startswith(f"{role}."))
        taps = self._taps.get((role, paths))
        if taps is None:
            call = self.teachers[role] if role in self.teachers else None
            taps = self._taps[role, paths] = Taps(self.model(role), paths, call, self.compile)
        output, values = taps(input)
        return {role: output, **{f"{role}.{path}": value for path, value in values.items()}}

    def forward(self, input, target=None) -> dict[str, Tensor]:
        """The weighted losses of a batch: a dict with ``'input'``, ``'target'`` and more, or the two as arguments."""
        batch = dict(input) if isinstance(input, Mapping) else {"input": input, "target": target}
        return self._weighted(self._known(batch), batch)

    def _known(self, batch: dict[str, object]) -> dict[str, object]:
        """The batch and every name that some loss wants, each model run at most once."""
        known = dict(batch)
        for role in self.roles:
            missing = [name for name in self.wanted[role] if name not in known]
            if not missing:
                continue
            with torch.set_grad_enabled(torch.is_grad_enabled() and role not in self.teachers):
                found = self.outputs(role, known, missing)
            absent = [name for name in missing if name not in found]
            if absent:
                raise ValueError(f"{type(self).__name__}.outputs({role!r}) did not give {absent}; it gave {list(found)}")
            known.update(found)
        if all(role in known for role in self.learners):
            known["peers"] = [known[role] for role in self.learners]
        return known

    def _weighted(self, known: dict[str, object], batch: Mapping[str, object]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        rows = _labelled_rows(batch.get("labelled"))
        for name, (loss, of, weight) in self._terms.items():
            if callable(weight):
                if self.progress is None:
                    raise RuntimeError(f"the weight of {name} is a schedule: set distiller.progress = (iteration, total) "
                                       "before each step")
                weight = weight(self.progress)
            tensors = [self._value(known, tensor_name, name) for tensor_name in of]
            if weight == 0:
                unused = [p.sum() * 0 for p in self.losses[name].parameters()] if name in self.losses else []
                if unused:                                            # its adapters stay connected: DDP counts on it
                    losses[name] = torch.stack(unused).sum()
                continue
            if rows is not None and "target" in of:
                tensors = [_select(tensor, rows, len(batch["labelled"])) for tensor in tensors]
                if rows[1] == 0:
                    losses[name] = _connected_zero(tensors)
                    continue
            with torch.set_grad_enabled(torch.is_grad_enabled() and "loss" in name):
                value = tensors[0] if loss is None else loss(*tensors)
            entries = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list | tuple) else {None: value}
            for key, entry in entries.items():
                losses[name if key is None else f"{name}_{key}"] = entry if weight == 1 else weight * entry
        return losses

    def build(self, input, target=None) -> dict[str, tuple[int, ...] | None]:
        """Run each model and each loss once on a batch; call it before the optimizer is made.

        Nothing moves: models run in eval, without gradient, and every random stream is put back. It fills in what a
        loss can only know from real tensors: a loss with a method ``build(*tensors)`` is given its tensors once,
        and torch's lazy modules find their sizes. It checks every name and shape.

        Returns:
            The shape of every tensor that some loss is called with (None for what is no tensor).

        Raises:
            ValueError: a name that neither a model nor the batch supplies; a loss that cannot be computed from its
                tensors, or gives no scalar. The message names the loss and the shapes.
        """
        batch = dict(input) if isinstance(input, Mapping) else {"input": input, "target": target}
        modes = {module: module.training for module in self.modules()}
        devices = sorted({t.device.index for t in [*self.parameters(), *self.buffers()] if t.is_cuda})
        try:
            self.eval()
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                known = self._known(batch)
                rows = _labelled_rows(batch.get("labelled"))
                for name, (loss, of, _) in self._terms.items():
                    tensors = [self._value(known, tensor_name, name) for tensor_name in of]
                    if rows is not None and rows[1] and "target" in of:
                        tensors = [_select(tensor, rows, len(batch["labelled"])) for tensor in tensors]
                    self._try(name, loss, of, tensors)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return {name: tuple(known[name].shape) if isinstance(known[name], Tensor) else None
                for _, of, _ in self._terms.values() for name in of}

    def _value(self, known: Mapping[str, object], name: str, loss_name: str):
        try:
            return known[name]
        except KeyError:
            raise ValueError(f"{loss_name}: neither a model nor the batch supplies {name!r}; "
                             f"{did_you_mean(name, [*known, *self.roles])}") from None

    @staticmethod
    def _try(name: str, loss: Loss | None, of: tuple[str, ...], tensors: list) -> None:
        shapes = ", ".join(f"{n} {tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__}" for n, t in zip(of, tensors))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Using a target size")      # torch would broadcast, and warn
                if hasattr(loss, "build"):
                    loss.build(*tensors)
                value = tensors[0] if loss is None else loss(*tensors)
        except Exception as error:
            raise ValueError(f"{name} cannot be computed from {shapes}: {error}") from error
        entries = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        for entry in entries:
            if not isinstance(entry, Tensor) or entry.numel() != 1:
                got = f"shape {tuple(entry.shape)}" if isinstance(entry, Tensor) else type(entry).__name__
                raise ValueError(f"{name} gave {got} from {shapes}; want one scalar tensor, or a dict or list of them")

    def __deepcopy__(self, memo):
        """A copy has its own student, peers and losses, and shares the teachers."""
        other = self.__class__.__new__(self.__class__)
        memo[id(self)] = other
        for key, value in self.__dict__.items():
            other.__dict__[key] = {} if key == "_taps" else copy.deepcopy(value, memo)
        return other


def _tuple(of: str | Sequence[str]) -> tuple[str, ...]:
    return (of,) if isinstance(of, str) else tuple(of)


def _labelled_rows(labelled: Tensor | None) -> tuple[slice | Tensor, int] | None:
    """What to index the rows with, and how many they are; a slice (no copy) where they come first, as ours do."""
    if labelled is None:
        return None
    index = labelled.nonzero().squeeze(1)
    count = len(index)
    return (slice(0, count) if bool(labelled[:count].all()) else index), count


def _select(value, rows: tuple[slice | Tensor, int], batch_size: int):
    """The labelled rows of a tensor, of each tensor of a list (peers), or of a list with one entry a sample."""
    index, _ = rows
    if isinstance(value, Tensor):
        if value.dim() == 0 or len(value) != batch_size:
            return value
        return value[index if isinstance(index, slice) else index.to(value.device)]
    if isinstance(value, list | tuple):
        if value and all(isinstance(v, Tensor) and v.dim() and len(v) == batch_size for v in value):
            return [_select(v, rows, batch_size) for v in value]
        if len(value) == batch_size:
            return value[index] if isinstance(index, slice) else [value[i] for i in index.tolist()]
    return value


def _connected_zero(tensors: list) -> Tensor:
    """A zero that backpropagates (zeros) into every tensor with a gradient."""
    flat = [t for value in tensors for t in (value if isinstance(value, list | tuple) else [value])]
    floats = [t.sum() * 0 for t in flat if isinstance(t, Tensor) and t.is_floating_point()]
    return functools.reduce(torch.add, floats)
