"""One student, its teachers, and the named losses that pull on it in one step. Imports torch and
nothing else.
"""

import copy
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import Tensor, nn

from kdtasks.core.features import Taps, entries_of, map_tensors, module_paths
from kdtasks.core.names import did_you_mean, split_call
from kdtasks.core.teacher import Teacher
from kdtasks.core.trial import learn, modes_kept, random_streams_kept, state_kept

Loss = Callable[..., Tensor | dict | list | tuple]
Weight = float | Callable[[tuple[int, int]], float]


class Distiller(nn.Module):
    """Returns ``{name: weight * loss}`` for a batch; the loop sums them and steps.

    A loss is called with the tensors that its ``of`` names: ``'student'`` (the output),
    ``'student.layer3'`` (a submodule's output), ``'student.fc@-1'`` (of its last run), the same for
    each teacher by its name and for ``'peer1'``, ``'peer2'``…; ``'peers'``, the list of the
    student's and all peers' outputs; or any key of the batch (``'input'``, ``'target'``). A model
    runs only if some loss wants a name of it that the batch does not carry: a batch with
    ``'teacher'`` in it (a cache, a precomputed file) costs no teacher.

    An output that is a tuple, list or dict (of some models in training only) has entries:
    ``'student.0'``, ``'student.-1'``, ``'student.logits'`` (a key, or a field of a named tuple).
    Where a submodule has that path, its output is meant: ``'0'`` of a Sequential is its first part.
    Whether there is such an entry is known once the model has run, as in :meth:`build`.

    - An entry whose name contains ``loss`` trains; any other only informs: it is computed without
      gradient.
    - A loss that returns a dict or a list is weighted and named entry by entry: ``<name>_<key or
      index>``.
    - A weight of 0 skips its loss, and a teacher that no other loss wants. A weight may be a
      function of ``progress = (iteration, total)``, which the loop sets on the Distiller.
    - Where the batch has a bool tensor ``labelled`` (B,), losses of ``'target'`` see the labelled
      rows only, and give a zero that still backpropagates when there are none. Keep it on the CPU:
      then selecting costs no sync.

    A model or a loss may be replaced: ``distiller.student = …``, ``distiller.teachers['teacher'] =
    …``, where a plain model becomes a frozen :class:`Teacher`, ``distiller.losses['loss_hint'] =
    …``. The optimizer is not the Distiller's: it goes on with the parameters that it was given.

    A subclass may override :meth:`names` and :meth:`outputs`, to supply names of its own, and
    :meth:`needs`, where a role reads names of another; nothing else.

    Args:
        student: the model that learns.
        teachers: ``{name: model}``; each is frozen (:class:`Teacher`), and in no ``parameters()``
            or ``state_dict()``.
        losses: ``{name: (loss, of, weight)}``; the weight may be left out (1). A loss None takes
            the one tensor of ``of`` as it is. Modules among them are ``losses`` submodules and
            train with the student.
        peers: further models that learn beside the student, on the same batch.
        compile: False, True, or keyword arguments for ``torch.compile``: each model's forward with
            its taps is compiled by itself.

    Raises:
        ValueError: a name that no model supplies, a name used twice, no loss that trains, a student
            that shares parameters with a teacher. (On the first run, or in :meth:`build`: an output
            without the entry that is named.)
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
        super().__init__()
        self.student = student
        self.peers = nn.ModuleList(peers)
        self.learners = ["student", *(f"peer{k + 1}" for k in range(len(self.peers)))]
        self._check_teachers(teachers or {})
        self.teachers = _Teachers(teachers)
        self.roles = [*self.learners, *self.teachers]
        self.progress: tuple[int, int] | None = None
        self._compile = compile
        self._facts: dict[tuple[str, ...], tuple[list, dict]] = {}
        self._terms: dict[str, tuple[Loss, tuple[str, ...], Weight]] = {}
        self._built: dict[str, Loss] = {}
        self.losses = nn.ModuleDict()
        for name, entry in (losses or {}).items():
            self._add_term(name, *entry)
        self._supplied = supplied = {role: dict.fromkeys(self.names(role)) for role in self.roles}
        listed = {name for entry in (losses or {}).values() for name in _tuple(entry[1])}
        for role in self.learners:
            submodules = set(Distiller.names(self, role))
            for own in supplied[role]:
                if own.startswith(f"{role}.loss_") and own not in listed and own not in submodules:
                    self._add_term(own.removeprefix("student.").replace(".", "_"), None, own)
        if not any("loss" in name for name in self._terms):
            raise ValueError(
                f"no loss trains the student: the losses are {list(losses or {})}; a "
                "name that contains "
                "'loss', with a weight other than 0, does"
            )
        self._find_turns()
        self._followed = self._parts()

    @property
    def terms(self) -> Mapping[str, tuple[Loss, tuple[str, ...], Weight]]:
        """``{name: (loss, tensor names, weight)}`` of the losses and of what only is reported."""
        return MappingProxyType(self._terms)

    def __setattr__(self, name: str, value) -> None:
        super().__setattr__(
            name,
            _Teachers(value) if name == "teachers" and not isinstance(value, _Teachers) else value,
        )

    def _parts(self) -> list[nn.Module]:
        models = [(teacher, teacher.model) for teacher in self.teachers.values()]
        return [self.student, *self.peers, *itertools.chain(*models), *self.losses.values()]

    def _follow(self) -> None:
        """Where a model or a loss was replaced since the last run, what was known of it is found
        out anew.

        Raises:
            ValueError: the names that the losses want are not the new model's; or it has losses of
                its own that the former had not, or a loss came that the Distiller was not made
                with: those would not train.
        """
        parts = self._parts()
        if len(parts) == len(self._followed) and all(a is b for a, b in zip(parts, self._followed)):
            return
        self._check_teachers(self.teachers)
        unknown = [name for name in self.losses if name not in self._terms]
        if unknown:
            raise ValueError(
                f"losses[{unknown[0]!r}] came after the Distiller was made, which "
                "does not know of what it is: "
                "give it to Distiller(losses={name: (loss, of, weight)})"
            )
        for name, loss in self.losses.items():
            self._terms[name] = (loss, *self._terms[name][1:])
        self.roles = [*self.learners, *self.teachers]
        supplied = {role: dict.fromkeys(self.names(role)) for role in self.roles}
        for role in self.learners:
            new = [
                name
                for name in supplied[role]
                if name.startswith(f"{role}.loss_")
                and name not in self._supplied[role]
                and name not in Distiller.names(self, role)
            ]
            if new:
                raise ValueError(
                    f"the new model of {role} has losses of its own, {new}, which the "
                    "former had not: make a new "
                    "Distiller of it"
                )
        self._supplied = supplied
        self._find_turns()
        self._followed = parts

    def facts(self, *roles: str) -> dict:
        """What has been found out about the models of some roles, to be kept; empty again when one
        of them was replaced.
        """
        owners = [self.model(role) for role in roles] + [
            self.teachers[role] for role in roles if role in self.teachers
        ]
        known = self._facts.get(roles)
        if known is None or any(a is not b for a, b in zip(known[0], owners)):
            known = self._facts[roles] = (owners, {})
        return known[1]

    def _check_teachers(self, teachers: Mapping[str, nn.Module]) -> None:
        frozen = {}
        for name, model in teachers.items():
            if (
                name in (*self.learners, "peers", "input", "target", "index", "labelled")
                or not name.isidentifier()
            ):
                raise ValueError(
                    f"a teacher cannot be called {name!r}: expected an identifier "
                    "that names nothing else"
                )
            frozen |= {
                id(p): name
                for p in (model.model if isinstance(model, Teacher) else model).parameters()
            }
        for role, model in zip(self.learners, (self.student, *self.peers)):
            for path, parameter in model.named_parameters():
                if id(parameter) in frozen:
                    raise ValueError(
                        f"{role} and {frozen[id(parameter)]} share the parameter "
                        f"{path!r}, and a teacher is "
                        "frozen: give the teacher a copy (copy.deepcopy)"
                    )

    def _add_term(
        self, name: str, loss: Loss | None, of: str | Sequence[str], weight: Weight = 1.0
    ) -> None:
        of = _tuple(of)
        if name in self._terms:
            raise ValueError(
                f"two losses are called {name!r}; the student's own 'student.{name}' "
                "is one: list it in "
                "some 'of', or rename yours"
            )
        if loss is None and len(of) != 1:
            raise ValueError(
                f"{name}: an entry without a loss takes one tensor as it is, got of={of}"
            )
        if loss is not None and not callable(loss):
            raise ValueError(f"{name}: {loss!r} is no loss; expected a function or a module")
        if not callable(weight) and weight == 0:
            return
        if isinstance(loss, nn.Module):
            self.losses[name] = loss
        self._terms[name] = (_itself if loss is None else loss, of, weight)

    def _find_turns(self) -> None:
        """What the losses read of each role, what roles need of each other, and so their order."""
        self.wanted = self._resolve(self._supplied)
        self._needed = {role: self._needed_by(role) for role in self.roles}
        # teachers first: what they need on the way is free again before the student's graph takes
        # its memory (the other way round costs a fifth of a step on a CPU, in page faults)
        self.order = turn_order([*self.teachers, *self.learners], self._needed)

    def _needed_by(self, role: str) -> dict[str, str]:
        """``{name: role that supplies it}`` of what a role needs."""
        needed = {name: self._role_of(name, self._supplied) for name in self.needs(role)}
        for name, owner in needed.items():
            if owner in (None, role):
                others = [n for r in self.roles if r != role for n in self._supplied[r]]
                raise ValueError(
                    f"{type(self).__name__}.needs({role!r}) names {name!r}, which no other role "
                    f"supplies; {did_you_mean(name, others)}"
                )
        return needed

    def _resolve(self, supplied: dict[str, dict]) -> dict[str, list[str]]:
        """Which names each role has to supply; names with no role in front are the batch's."""
        wanted: dict[str, list[str]] = {role: [] for role in self.roles}
        for loss_name, (_, of, _) in self._terms.items():
            for name in of:
                for single in self.learners if name == "peers" else (name,):
                    base, _ = split_call(single)
                    role = self._role_of(single, supplied)
                    if role and single not in wanted[role]:
                        wanted[role].append(single)
                    if not role and base.split(".", 1)[0] in self.roles:
                        known = [n for names in supplied.values() for n in names]
                        raise ValueError(
                            f"{loss_name}: no model supplies {name!r}; {did_you_mean(base, known)}"
                        )
        return wanted

    def _role_of(self, name: str, supplied: Mapping[str, Mapping]) -> str | None:
        """Which role supplies a name, as it says itself or as an entry of its output; None: the
        batch.
        """
        base, _ = split_call(name)
        owner, _, entry = name.partition(".")
        supplying = (role for role in self.roles if base in supplied[role])
        return next(
            supplying,
            owner
            if owner in self.roles and owner in supplied[owner] and _may_be_entry(entry)
            else None,
        )

    def model(self, role: str) -> nn.Module:
        """The model that plays a role: the student, a peer, or the network inside a
        :class:`Teacher`.
        """
        if role == "student":
            return self.student
        if role in self.teachers:
            return self.teachers[role].model
        return self.peers[self.learners.index(role) - 1]

    def names(self, role: str) -> list[str]:
        """What a role can supply. May be overridden to add names, of any form, to the role that
        computes them.
        """
        return [role, *(f"{role}.{path}" for path in module_paths(self.model(role)))]

    def needs(self, role: str) -> Sequence[str]:
        """The names of other roles that :meth:`outputs` reads from ``batch`` in this role's turn.

        They decide the order of turns: a role runs after those that it needs; else teachers run
        first, then the student, then the peers. May be overridden, as where a teacher follows what
        the student chose; ``self.wanted[role]``, what the losses read of a role, is known here.
        """
        return ()

    def outputs(
        self, role: str, batch: Mapping[str, object], wanted: list[str]
    ) -> dict[str, object]:
        """The wanted names of one role; may be overridden together with :meth:`names`.

        ``batch`` has what the loop gave, and of other roles the names that :meth:`needs` declares.
        A teacher's turn is under ``no_grad``.
        """
        return self.run(role, self._value(batch, "input", role), wanted)

    def run(self, role: str, input, wanted: Sequence[str]) -> dict[str, object]:
        """One forward of a role: ``{role: output, role.<path>: value}`` for the ``role.<path>``
        among ``wanted``.

        An entry that the output lacks is left out.
        """
        known, key = self.facts(role), ("taps", *wanted)
        taps = known.get(key)
        if taps is None:
            call = self.teachers[role] if role in self.teachers else self.model(role)
            modules = set(Distiller.names(self, role))
            paths = [
                name.split(".", 1)[1]
                for name in wanted
                if name != role and split_call(name)[0] in modules
            ]
            taps = known[key] = Taps(self.model(role), paths, call, self._compile)
        output, values = taps(input)
        found = {role: output, **{f"{role}.{path}": value for path, value in values.items()}}
        others = [name for name in wanted if name not in found]
        entries = entries_of(output) if others else {}
        return found | {
            name: entries[name.split(".", 1)[1]]
            for name in others
            if name.partition(".")[2] in entries
        }

    def forward(self, input, target=None) -> dict[str, Tensor]:
        """The weighted losses of a batch: a dict with ``'input'``, ``'target'`` and more, or the
        two as arguments.
        """
        batch = _batch(input, target)
        self._follow()
        weights = self._weights()
        known = self.supply(batch, self._resting(weights))
        rows = _labelled_rows(batch.get("labelled"))
        losses: dict[str, Tensor] = {}
        for name, (loss, of, _) in self._terms.items():
            weight = weights[name]
            if weight == 0:
                if name in self.losses and any(True for _ in self.losses[name].parameters()):
                    # its adapters stay connected: DDP counts on it
                    losses[name] = self._zero(name, [])
                continue
            tensors = [self._value(known, tensor_name, name) for tensor_name in of]
            if rows is not None and "target" in of:
                tensors = [_select(tensor, rows, len(batch["labelled"])) for tensor in tensors]
                if rows[1] == 0:
                    losses[name] = self._zero(name, tensors)
                    continue
            if "loss" in name:
                found = _entries(name, loss(*tensors))
                found = (
                    found if weight == 1 else {key: weight * value for key, value in found.items()}
                )
            else:
                with torch.no_grad():
                    found = {
                        key: weight * value for key, value in _entries(name, loss(*tensors)).items()
                    }
                _check_informs(name, found)
            if not losses.keys().isdisjoint(found):
                raise ValueError(
                    f"two losses come out under the name {min(losses.keys() & found)!r}; rename one"
                )
            losses.update(found)
        return losses

    def _weights(self) -> dict[str, float]:
        """The weight of each loss at this point of the run."""
        if self.progress is None:
            for name, (_, _, weight) in self._terms.items():
                if callable(weight):
                    raise RuntimeError(
                        f"the weight of {name} is a schedule: set "
                        "distiller.progress = (iteration, total) "
                        "before each step"
                    )
        return {
            name: weight(self.progress) if callable(weight) else weight
            for name, (_, _, weight) in self._terms.items()
        }

    def _resting(self, weights: Mapping[str, float]) -> list[str]:
        """The teachers that only losses of weight 0 want."""
        if all(weights.values()):
            return []
        pulling = {
            tensor_name
            for name, (_, of, _) in self._terms.items()
            if weights[name] != 0
            for tensor_name in of
        }
        return [role for role in self.teachers if pulling.isdisjoint(self.wanted[role])]

    def supply(
        self, batch: Mapping[str, object], resting: Sequence[str] = (), partly: bool = False
    ) -> dict[str, object]:
        """The batch and every name that some loss reads: roles run in turn, each at most once.

        Args:
            batch: what it carries stays as it is, and is not computed.
            resting: teachers that run only where another role needs them.
            partly: leave out the entries that an output lacks in this mode.
        """
        found = dict(batch)
        gradients = torch.is_grad_enabled()
        for role, asked in self._turns(batch, resting):
            with torch.set_grad_enabled(gradients and role in self.learners):
                given = self._take_turn(role, batch, found, asked)
            self._check_absent(role, [name for name in asked if name not in given], given, partly)
            for name, value in given.items():
                found.setdefault(name, value)
        if all(role in found for role in self.learners):
            found["peers"] = [found[role] for role in self.learners]
        return found

    def _turns(
        self, batch: Mapping[str, object], resting: Sequence[str]
    ) -> list[tuple[str, list[str]]]:
        """The roles that run for this batch, in order, and what each is asked for: names that some
        loss reads, or a role after it needs, and the batch does not carry.
        """
        asked = {role: [] if role in resting else [*self.wanted[role]] for role in self.order}
        for role in reversed(self.order):
            asked[role] = [name for name in dict.fromkeys(asked[role]) if name not in batch]
            if asked[role]:
                for name, owner in self._needed[role].items():
                    asked[owner].append(name)
        return [(role, names) for role, names in asked.items() if names]

    def _take_turn(
        self, role: str, batch: Mapping[str, object], found: Mapping[str, object], asked: list[str]
    ) -> dict[str, object]:
        """What a role gives, which sees the batch and the names that it needs of others."""
        needed = {name: found[name] for name in self._needed[role] if name in found}
        seen = {**batch, **needed}
        try:
            return self.outputs(role, seen, asked)
        except KeyError as error:
            name = error.args[0] if error.args else None
            owner = self._role_of(name, self._supplied) if isinstance(name, str) else None
            if owner in (None, role) or name in self._needed[role]:
                raise
            raise ValueError(
                f"{type(self).__name__}.outputs({role!r}) reads {name!r}, which {owner} supplies, "
                f"and does not say so: needs({role!r}) must name it"
            ) from error

    def _check_absent(
        self, role: str, absent: Sequence[str], found: Mapping[str, object], partly: bool
    ) -> None:
        """Names that a role did not give are entries that its output lacks, or a subclass forgot
        them.
        """
        if not absent:
            return
        entries = [name for name in absent if split_call(name)[0] not in self._supplied[role]]
        if entries != absent or role not in found:
            raise ValueError(
                f"{type(self).__name__}.outputs({role!r}) did not give {absent}; it "
                f"gave {list(found)}"
            )
        if not partly:
            loss = next(
                (name for name, (_, of, _) in self._terms.items() if entries[0] in of), role
            )
            raise ValueError(
                f"{loss}: {entries[0]!r} is no submodule, and the output of {role} "
                f"{self._mode_of(role)} has no "
                f"such entry: it is {_described(role, found[role])}; "
                + did_you_mean(entries[0], self._supplied[role])
            )

    def _mode_of(self, role: str) -> str:
        return "in training" if self.model(role).training else "in eval"

    def _value(self, known: Mapping[str, object], name: str, wanted_by: str):
        if name in known:
            return known[name]
        supplied = [n for role in self.roles for n in self.names(role)]
        raise ValueError(
            f"{wanted_by}: neither a model nor the batch supplies {name!r}; "
            f"{did_you_mean(name, [*known, *supplied])}"
        )

    def _zero(self, name: str, tensors: list) -> Tensor:
        """A zero that backpropagates zeros into a loss's parameters and into all of its tensors
        that have a gradient.
        """
        floats = list(self.losses[name].parameters()) if name in self.losses else []
        map_tensors(lambda t: floats.append(t) if t.is_floating_point() else None, tensors)
        connected = [t for t in floats if t.requires_grad] or floats[:1] or [torch.zeros(())]
        # of no element: 0 · inf would be nan
        return sum((t if t.dim() else t[None])[:0].sum() for t in connected)

    def build(self, input, target=None) -> dict[str, tuple[int, ...] | None]:
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
        batch = _batch(input, target)
        with self.at_rest(training=True):
            with torch.enable_grad():
                known = self.supply(batch)
            known = {
                name: value.detach() if isinstance(value, Tensor) else value
                for name, value in known.items()
            }
            rows = _labelled_rows(batch.get("labelled"))
            for name, (_, of, _) in self._terms.items():
                tensors = [self._value(known, tensor_name, name) for tensor_name in of]
                if rows is not None and "target" in of:
                    tensors = [_select(tensor, rows, len(batch["labelled"])) for tensor in tensors]
                self._try(name, tensors)
        return {
            name: tuple(known[name].shape) if isinstance(known[name], Tensor) else None
            for _, of, _ in self._terms.values()
            for name in of
        }

    def tensors(self, input, target=None) -> dict[str, object]:
        """The batch, and by its name everything that some loss is called with; in eval, without
        gradient, nothing moves.

        Entries of an output that the model gives in training only are left out.
        """
        with self.at_rest():
            return self.supply(_batch(input, target), partly=True)

    @contextmanager
    def at_rest(self, training: bool = False):
        """Without gradient, in eval, or learners in training mode; afterwards all is as it was, but
        for what losses built.
        """
        self._follow()
        models = [self.model(role) for role in self.roles]
        parts = [part for model in models for part in model.modules()]
        with (
            modes_kept(self),
            random_streams_kept([*self.modules(), *parts]),
            state_kept(parts),
            torch.no_grad(),
        ):
            if not training:
                self.eval()
            else:
                self.losses.eval()
                for role in self.learners:
                    learn(self.model(role))
            yield

    def _try(self, name: str, tensors: list) -> None:
        loss, of, _ = self._terms[name]
        if isinstance(loss, nn.CrossEntropyLoss) and getattr(tensors[0], "shape", ())[1:2] == (1,):
            raise ValueError(
                f"{name}: {of[0]} {tuple(tensors[0].shape)} has one class, whose "
                "softmax is 1 whatever the logit: "
                "cross-entropy would be 0 and train nothing. Expected two classes or "
                "more, or "
                "torch.nn.BCEWithLogitsLoss for one logit"
            )
        shapes = ", ".join(
            f"{n} {tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__}"
            for n, t in zip(of, tensors)
        )
        try:
            with warnings.catch_warnings():
                # torch would broadcast, and warn
                warnings.filterwarnings("error", message="Using a target size")
                if hasattr(loss, "build") and self._built.get(name) is not loss:
                    loss.build(*tensors)
                    self._built[name] = loss
                    # what it made is new
                    if isinstance(loss, nn.Module):
                        loss.eval()
                        loss.to(next((t.device for t in tensors if isinstance(t, Tensor)), None))
                with state_kept(loss.modules() if isinstance(loss, nn.Module) else [loss]):
                    found = _entries(name, loss(*tensors))
        except Exception as error:
            several = [
                f"; {n} {self._mode_of(n)} is {_described(n, t)}: name the entry that is meant"
                for n, t in zip(of, tensors)
                if n in self.roles and entries_of(t)
            ]
            raise ValueError(
                f"{name} cannot be computed from {shapes}: {error}{''.join(several)}"
            ) from error
        for entry in found.values():
            if not isinstance(entry, Tensor) or entry.numel() != 1:
                got = (
                    f"shape {tuple(entry.shape)}"
                    if isinstance(entry, Tensor)
                    else type(entry).__name__
                )
                raise ValueError(
                    f"{name} gave {got} from {shapes}; expected one scalar tensor, or "
                    "a dict or list of them"
                )
        _check_informs(name, found)

    def __deepcopy__(self, memo):
        """A copy has its own student, peers and losses, and shares the teachers."""
        other = self.__class__.__new__(self.__class__)
        memo[id(self)] = other
        for key, value in self.__dict__.items():
            other.__dict__[key] = (
                type(value)() if key in ("_facts", "_followed") else copy.deepcopy(value, memo)
            )
        return other


class _Teachers(nn.ModuleDict):
    """Each is a :class:`Teacher`; a plain model that is put here is frozen as one."""

    def add_module(self, name: str, module: nn.Module) -> None:
        super().add_module(name, module if isinstance(module, Teacher) else Teacher(module))

    def __setattr__(self, name: str, value) -> None:
        plain = isinstance(value, nn.Module) and not isinstance(value, Teacher)
        super().__setattr__(name, Teacher(value) if plain else value)


def turn_order(roles: Sequence[str], needs: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The roles, each after those that it needs; where nothing is needed, in the given order.

    Args:
        roles: in the order that is preferred.
        needs: ``{role: {name that it needs: role that supplies it}}``.

    Raises:
        ValueError: they need each other in a circle, which is named.
    """
    order: list[str] = []
    waiting = list(roles)
    while waiting:
        ready = [role for role in waiting if set(needs[role].values()) <= set(order)]
        if not ready:
            raise ValueError(f"no role can run first: {_circle(waiting, needs)}")
        order.append(ready[0])
        waiting.remove(ready[0])
    return order


def _circle(waiting: Sequence[str], needs: Mapping[str, Mapping[str, str]]) -> str:
    """A circle among roles that all wait for another one, in words."""
    path = [waiting[0]]
    while path[-1] not in path[:-1]:
        path.append(next(owner for owner in needs[path[-1]].values() if owner in waiting))
    circle = path[path.index(path[-1]) :]
    steps = []
    for role, owner in itertools.pairwise(circle):
        name = next(name for name, supplier in needs[role].items() if supplier == owner)
        steps.append(f"{role} needs {name!r} of {owner}")
    return ", ".join(steps)


def _may_be_entry(path: str) -> bool:
    return bool(path) and "." not in path and "@" not in path


def _described(role: str, output) -> str:
    """An output with the names of its entries, for a message."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    named = {key: value for key, value in entries_of(output).items() if not key.startswith("-")}
    shown = ", ".join(
        f"'{role}.{key}' "
        f"{tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
        for key, value in list(named.items())[:8]
    )
    return f"a {type(output).__name__}" + (
        f" of {shown}" + ", …" * (len(named) > 8) if named else ""
    )


def _tuple(of: str | Sequence[str]) -> tuple[str, ...]:
    return (of,) if isinstance(of, str) else tuple(of)


def _batch(input, target) -> dict[str, object]:
    if isinstance(input, Mapping):
        return dict(input)
    return {"input": input} if target is None else {"input": input, "target": target}


def _itself(tensor: Tensor) -> Tensor:
    """The loss of an entry without one."""
    return tensor


def _entries(name: str, value) -> dict[str, Tensor]:
    """What a loss returned: ``{name: value}``, or ``<name>_<key or index>`` for each entry of a
    dict or list.
    """
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    return (
        {f"{name}_{key}": entry for key, entry in value.items()}
        if isinstance(value, dict)
        else {name: value}
    )


def _check_informs(name: str, found: Mapping[str, Tensor]) -> None:
    if "loss" not in name and any("loss" in key for key in found):
        raise ValueError(
            f"{name} gave {[key.removeprefix(f'{name}_') for key in found]}, but only "
            "informs, as no 'loss' is in "
            f"its own name: call it loss_{name}"
        )


def _labelled_rows(labelled: Tensor | None) -> tuple[slice | Tensor, int] | None:
    """What to index the rows with, and how many they are; a slice (no copy) where they come first,
    as ours do.
    """
    if labelled is None:
        return None
    index = labelled.nonzero().squeeze(1)
    count = len(index)
    return (slice(0, count) if bool(labelled[:count].all()) else index), count


def _select(value, rows: tuple[slice | Tensor, int], batch_size: int):
    """The labelled rows of a tensor, of each tensor of a dict or list (peers), or of a list with
    one entry a sample.
    """
    index, _ = rows
    if isinstance(value, dict):
        return {key: _select(v, rows, batch_size) for key, v in value.items()}
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
