"""An experiment: what a config and a seed describe, before anything is trained."""

import copy
import functools
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

import kdtasks
from kdtasks.core import Distiller, Stage, Teacher
from kdtasks.core.handover import BACKBONE, PART
from kdtasks.core.names import did_you_mean
from kdtasks.core.stages import OWN, Arms, anchors_of, arms, has_peers, stage_reference
from kdtasks.core.weights import load_weights
from kdtasks.engine import builder, data_sets
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.class_checks import check_source, check_teachers
from kdtasks.engine.config import jsonable
from kdtasks.engine.config_checks import iterations
from kdtasks.engine.config_keys import FURTHER_MODEL_KEYS, LOSS_KEYS, MODEL_KEYS, TEACHER_KEYS
from kdtasks.engine.data_store import DataStore
from kdtasks.engine.loader import Loader
from kdtasks.engine.models import facts_of
from kdtasks.engine.pretrained import described, frozen_teacher
from kdtasks.engine.processes import device_type, rank_and_world
from kdtasks.engine.stages import make_stages
from kdtasks.engine.task import Task, load_task
from kdtasks.engine.work_dir import WorkDir


class Experiment:
    """The stages, models, data and distillers that a config describes, for one seed.

    It writes nothing. What finished stages have left is read from a
    :class:`~kdtasks.engine.work_dir.WorkDir` that is given to the functions which need it:

        experiment = Experiment(config)
        for stage in experiment.stages:
            distiller = experiment.distiller(stage)

    Args:
        config: from :func:`kdtasks.engine.config.load` or :func:`~kdtasks.engine.config.complete`.
        seed: of the weights, the order and the views.
        device: ``'cpu'``, ``'cuda'``; None: CUDA where there is one.
        name: of the config, as it is written to results.json.

    Attributes:
        stages: all stages, in order.
        specs: ``{name: description}`` of the models: the student, teachers and further ones.
        task: the :class:`~kdtasks.engine.task.Task`.
        data: the :class:`~kdtasks.engine.data_store.DataStore`.
        pretrained: ``{role: what is known}`` of weights that come with a model's name, as far as a
            :meth:`distiller` has read them; see :func:`kdtasks.engine.pretrained.described`.

    Raises:
        ConfigError: something in the config that can be known before any data or weights are read.
    """

    def __init__(
        self, config: Mapping, seed: int = 0, device: str | None = None, name: str = "config"
    ):
        self.config, self.seed, self.name = copy.deepcopy(dict(config)), seed, name
        self.pretrained: dict[str, dict] = {}
        self.rank, self.world = rank_and_world()
        self.device = torch.device(device_type(device))
        self._check_process()
        self._check_hooks()
        self.task: Task = load_task(self.config["task"])
        self.specs = {
            "student": self.config["student"],
            **self.config["teachers"],
            **self.config["models"],
        }
        own = {*self._supplied_to_student(), *self.task.own_names}
        self.stages = make_stages(self.config, own)
        final = self.setting(self.final, "data") if self.final else None
        unseen = self.task.unseen_classes
        self.data = DataStore(self.device, lambda: self.seeded("data"), final, unseen)

    def _check_process(self) -> None:
        if self.world == 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ConfigError(
                f"this is one of {os.environ['WORLD_SIZE']} processes: add --launcher pytorch"
            )
        if self.config["amp"] == "float16" and self.device.type != "cuda":
            raise ConfigError(
                "amp='float16' needs a CUDA device (its gradients need a scaler); use "
                "amp='bfloat16' here"
            )
        if self.config["sync_bn"] and self.device.type != "cuda":
            raise ConfigError(
                "sync_bn=True needs CUDA devices: torch shares BatchNorm statistics on no other"
            )

    def _check_hooks(self) -> None:
        hooks, backends = self.config["custom_hooks"], self.config["vis_backends"]
        if hooks or backends:
            from kdtasks.engine.trackers import check_plugins  # slow to import

            check_plugins(hooks, backends)

    def set_threads(self) -> None:
        """Give torch as many threads in this process as the config says."""
        if self.config["threads"]:
            torch.set_num_threads(self.config["threads"])

    # Stages ---------------------------------------------------------------------------------------
    def _supplied_to_student(self) -> list[str]:
        """The tensor names of the student that a distiller of the config's own supplies."""
        if self.has_plain_distiller:
            return []
        teachers = {
            name: self._as_teacher(name, self.model(name)) for name in self.config["teachers"]
        }
        losses = self.config["losses"]
        distiller = self._assemble(
            "probe", self.model("student"), teachers, losses, self._peers(losses, None, load=False)
        )
        return list(distiller.names("student"))

    @property
    def has_plain_distiller(self) -> bool:
        """Whether losses read outputs of models and submodules, and nothing else."""
        return builder.resolve(self.config["distiller"]["type"], "distiller") is Distiller

    @property
    def arms(self) -> Arms:
        """What the stages are compared by: the control, the student that counts, teachers."""
        return arms(self.stages)

    @property
    def final(self) -> Stage | None:
        """The stage whose student counts: it is exported, compared and reported."""
        return self.arms.final

    @property
    def on_the_way(self) -> set[str]:
        """The steps whose student is not yet the network of the control: by its ``arguments`` it
        knows fewer classes, say, so that the two cannot be compared.
        """
        parts = self.arms
        if parts.control is None:
            return set()
        steps = [stage for stage in parts.steps if stage.model == "student"]
        return {stage.name for stage in steps if not self.same_network(stage, parts.control)}

    def same_network(self, one: Stage, other: Stage) -> bool:
        """Whether two stages train networks that are described alike."""
        return self._network(one) == self._network(other)

    def _network(self, stage: Stage) -> dict:
        """What a stage's model is, but for what the config changes of the control's."""
        spec = {**self.specs[stage.model], **stage.arguments}
        return jsonable({key: value for key, value in spec.items() if key not in TEACHER_KEYS})

    def stage(self, name: str) -> Stage:
        """The stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)

    def setting(self, stage: Stage, key: str) -> Any:
        """A stage's ``optimizer``, ``schedule``, ``length`` or ``data``."""
        own, common = getattr(stage, key), self.config[key]
        if own is None:
            return common
        merge = key in ("data", "optimizer") and "type" not in own
        return {**common, **own} if merge else own

    def schedule(self, stage: Stage) -> list[dict]:
        """The parameter schedulers of a stage."""
        schedule = self.setting(stage, "schedule") or []
        return schedule if isinstance(schedule, list) else [schedule]

    def source(self, stage: Stage) -> str | None:
        """The name of the stage whose student this one goes on with."""
        reference = self._reference(self._origin(stage))
        return reference and reference[0]

    def chain(self, stage: Stage) -> list[Stage]:
        """The stages that, one after the other, trained what this one ends with; itself last."""
        source = self.source(stage)
        return [*(self.chain(self.stage(source)) if source else []), stage]

    def leading_to(self, stage: Stage) -> list[Stage]:
        """The stages without which this one's student would not be what it is, in their order,
        itself last: those that it goes on with, and those that its teachers come from.
        """
        needed = {stage.name}
        before = self.stages[: self.stages.index(stage) + 1]
        for one in reversed(before):
            if one.name in needed:
                references = map(self._reference, anchors_of(one))
                needed |= {reference[0] for reference in references if reference}
                needed |= {source for source in [self.source(one)] if source}
        return [one for one in before if one.name in needed]

    def _reference(self, origin: str | None) -> tuple[str, str] | None:
        return stage_reference(origin or "", [stage.name for stage in self.stages])

    def _origin(self, stage: Stage) -> str | None:
        if stage.student == "fresh":
            is_teacher = stage.model in self.config["teachers"]
            return None if is_teacher else self.specs[stage.model].get("checkpoint")
        if stage.student != "keep":
            return stage.student
        earlier = self.stages[: self.stages.index(stage)]
        return next(s.name for s in reversed(earlier) if s.model == stage.model)

    # Models ---------------------------------------------------------------------------------------
    @contextmanager
    def seeded(self, what: str) -> Iterator[None]:
        """Random numbers that depend on the seed and ``what`` only; the stream around stays."""
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(zlib.crc32(f"{self.seed}:{what}".encode()))
            yield

    def precision(self) -> AbstractContextManager:
        """The autocast context of a step."""
        amp = self.config["amp"]
        dtype = getattr(torch, amp or "bfloat16")
        return torch.autocast(self.device.type, dtype, enabled=bool(amp))

    def model(self, name: str, like: str | None = None, **arguments) -> nn.Module:
        """A fresh model of the config on the device, built as ``like`` says but for ``arguments``.

        Its weights depend on the seed and its name.

        Raises:
            ConfigError: the config has no such model, or it cannot be built.
        """
        owner = like or name
        if owner not in self.specs:
            raise ConfigError(
                f"the config has no model {owner!r}; " + did_you_mean(owner, self.specs)
            )
        reserved = TEACHER_KEYS if owner in self.config["teachers"] else FURTHER_MODEL_KEYS
        spec = {**self.specs[owner], **arguments}
        return self._built(name, {k: v for k, v in spec.items() if k not in reserved})

    def learner(self, stage: Stage) -> nn.Module:
        """The model that a stage trains, with fresh weights; the control's with ``control``."""
        return self.model(stage.model, **self._arguments(stage))

    def trained(self, stage: Stage, files: WorkDir, which: str = "last") -> nn.Module:
        """The model that a finished stage trained, in eval.

        Args:
            stage: which.
            files: of finished stages.
            which: of its weights, as :meth:`WorkDir.weights` takes it.
        """
        model = self.learner(stage)
        load_weights(model, files.weights(stage.name, which))
        model.eval()
        model.requires_grad_(False)
        return model

    def student_of(self, meta: Mapping) -> nn.Module:
        """A fresh student for weights: as the stage trains it that their ``meta`` names, if it is
        one of this config; else as the config describes it.
        """
        for stage in self.stages:
            if stage.name == meta.get("stage") and stage.model == "student":
                return self.learner(stage)
        return self.model("student")

    def _arguments(self, stage: Stage) -> dict:
        """In what the model of a stage differs from the config's."""
        changed = self.config["control"] if stage.role == "control" else {}
        return {**changed, **stage.arguments}

    def _built(self, name: str, spec: Mapping) -> nn.Module:
        with self.seeded(name):
            model = builder.build(spec, name)
        layout = torch.channels_last if self.config["channels_last"] else torch.preserve_format
        return model.to(self.device, memory_format=layout)

    # Distillers -----------------------------------------------------------------------------------
    def distiller(
        self, stage: Stage, files: WorkDir | None = None, load: bool = True, anchor: int = 0
    ) -> Distiller:
        """The stage's student, teachers and losses, with the weights that they start from.

        Args:
            stage: which.
            files: of finished stages; None: what these leave is not loaded.
            load: whether the files are loaded that the config names.
            anchor: which one of a route a teacher is: 0, the first; -1, the last.
        """
        student = self.learner(stage)
        if load:
            meta = self.load(student, self._origin(stage), files, grown=True)
            if "kdtasks" not in meta and self.source(stage) is None and stage.model == "student":
                self._note_pretrained("student", stage, student)
            check_source(self, stage)
        teachers = {name: self.teacher(stage, name, files, load, anchor) for name in stage.teachers}
        if load and self.has_plain_distiller:
            check_teachers(self, stage, teachers)
        peers = self._peers(stage.losses, files, load)
        distiller = self._assemble(stage.name, student, teachers, stage.losses, peers)
        if load:
            distiller.classes = self.classes(stage)
        return distiller.to(self.device)

    def built_distiller(
        self, stage: Stage, files: WorkDir | None, batch: Mapping, anchor: int = 0
    ) -> Distiller:
        """:meth:`distiller`, with what its losses only know from real tensors: as before the
        stage's first step.

        Args:
            stage, files, anchor: as there.
            batch: the stage's first one.
        """
        distiller = self.distiller(stage, files, anchor=anchor)
        with self.seeded(f"{stage.name}:build"):
            distiller.build(batch)
        return distiller

    def _assemble(
        self,
        name: str,
        student: nn.Module,
        teachers: Mapping[str, Teacher],
        losses: Mapping[str, Mapping],
        peers: Sequence[nn.Module],
    ) -> Distiller:
        with self.seeded(f"{name}:losses"):
            entries = {key: _loss(f"losses.{key}", entry) for key, entry in losses.items()}
        return builder.build(
            self.config["distiller"],
            "distiller",
            student=student,
            teachers=teachers,
            losses=entries,
            peers=peers,
            compile=self.config["compile"],
        )

    def owner_of(self, stage: Stage, name: str) -> str:
        """The name of the model that a teacher of a stage is, the student's if it is one."""
        source = self.source_of(stage, name)
        return self.stage(source).model if source else name

    def source_of(self, stage: Stage, name: str) -> str | None:
        """The name of the stage that has trained a teacher of another one."""
        return (self._reference(_of_route(stage.teachers[name], -1)) or (None,))[0]

    def teacher(
        self, stage: Stage, name: str, files: WorkDir | None, load: bool = True, anchor: int = 0
    ) -> Teacher:
        """A teacher of a stage by itself; the arguments are those of :meth:`distiller`."""
        origin = _of_route(stage.teachers[name], anchor)
        reference = self._reference(origin)
        source = self.stage(reference[0]) if reference else None
        owner = source.model if source else name
        model = self.model(name, like=owner, **(self._arguments(source) if source else {}))
        origin = origin or self.specs[owner].get("checkpoint")
        meta = self.load(model, origin, files) if load else {}
        trained_here = source is not None or "kdtasks" in meta
        teacher = self._as_teacher(owner, model, name, stage if load else None, trained_here)
        of_source = self.classes(source) if source and load and not meta.get("classes") else None
        teacher.classes = meta.get("classes") or of_source
        if load and not trained_here:
            self._note_pretrained(name, stage, model, teacher)
        return teacher.to(self.device)

    def _note_pretrained(
        self, role: str, stage: Stage, model: nn.Module, teacher: Teacher | None = None
    ) -> None:
        """What is known of the weights that a role brings."""
        facts = facts_of(model)
        if facts is not None and (facts.weights is not None or teacher is not None):
            self.pretrained[role] = described(facts, teacher, self.normalization(stage))

    def normalization(self, stage: Stage) -> tuple | None:
        """The mean and std that a stage's data normalises with, where it says them."""
        return data_sets.normalization(self.data.train_set(self.setting(stage, "data")))

    def is_from_outside(self, origin: str | None) -> bool:
        """Whether a teacher has its weights from no stage of this experiment."""
        return self._reference(origin) is None

    def other_teachers(self, stage: Stage) -> list[str]:
        """The names of a stage's teachers that are other models than the student at an earlier
        stage.
        """
        names = []
        for name, origin in stage.teachers.items():
            reference = self._reference(_of_route(origin, 0))
            if reference is None or self.stage(reference[0]).model != "student":
                names.append(name)
        return names

    def _as_teacher(
        self,
        owner: str,
        model: nn.Module,
        name: str | None = None,
        stage: Stage | None = None,
        trained_here: bool = False,
    ) -> Teacher:
        spec = self.config["teachers"].get(owner, {})
        data = None if stage is None else functools.partial(self.normalization, stage)
        return frozen_teacher(model, spec, name or owner, data, trained_here)

    def _peers(
        self, losses: Mapping[str, Mapping], files: WorkDir | None, load: bool
    ) -> list[nn.Module]:
        if not has_peers(losses):
            return []
        peers = []
        for k, spec in enumerate(self.config["peers"]):
            own = {key: value for key, value in spec.items() if key not in MODEL_KEYS}
            peers.append(self._built(f"peer{k + 1}", own))
            if load:
                self.load(peers[-1], spec.get("checkpoint"), files)
        return peers

    def load(
        self, model: nn.Module, origin: str | None, files: WorkDir | None, grown: bool = False
    ) -> dict:
        """Load the weights of a stage or a file; returns what is known of them.

        Args:
            model: in place.
            origin: ``'<stage>'``, ``'<stage>.best'``, ``'<stage>.<epoch>'``, a path; None: nothing.
            files: of finished stages; None: what these leave is not loaded.
            grown: the model may have more classes than the weights.
        """
        if origin in (None, OWN):
            return {}
        reference = self._reference(origin)
        if reference is None:
            return load_weights(model, origin, grown)
        return load_weights(model, files.weights(*reference), grown) if files else {}

    def is_cached(self, stage: Stage) -> bool:
        """Whether teacher outputs are kept; not those of a route of anchors, which change."""
        origins = stage.teachers.values()
        return bool(self.config["cache"] and origins) and all(
            isinstance(origin, str | None) for origin in origins
        )

    # Data -----------------------------------------------------------------------------------------
    def data_set(self, data: Mapping, part: str) -> Any:
        """The ``'train'`` or ``'test'`` set of a data setting: see :class:`DataStore`."""
        return self.data.train_set(data) if part == "train" else self.data.test_set(data)

    def classes(self, stage: Stage) -> list[str] | None:
        """The classes of a stage's training data."""
        return data_sets.class_names(self.data.train_set(self.setting(stage, "data")))

    def training_set(self, stage: Stage, files: WorkDir | None = None) -> Any:
        """What a stage learns from: the config's data, and what the task makes of it.

        Args:
            stage: which.
            files: what earlier stages have left may decide on the samples; None: nothing yet.
        """
        made = self.data.train_set(self.setting(stage, "data"))
        return self.task.training_set(self, stage, made, files)

    def unlabelled(self, stage: Stage) -> int:
        """Unlabelled samples in a batch of a stage.

        Only teachers say something of them, or the stage asks for them itself.
        """
        own = "unlabelled_per_batch" in (stage.data or {})
        return self.setting(stage, "data")["unlabelled_per_batch"] if own or stage.taught else 0

    def train_loader(self, stage: Stage, files: WorkDir | None = None, **changes) -> Loader:
        """The training batches of a stage.

        Without teachers: the labelled samples only (see :meth:`unlabelled`).

        Args:
            stage: which.
            files: as in :meth:`training_set`.
            changes: of the stage's ``data``.
        """
        data = {**self.setting(stage, "data"), **changes}
        train, share = self.training_set(stage, files), self.unlabelled(stage)
        return Loader(
            train,
            data["batch_size"] + share,
            labelled="target" if _marks_unlabelled(train) else None,
            unlabelled_per_batch=share,
            views=self.config["cache"]["views"] if self.is_cached(stage) else 0,
            per_class=data["per_class"],
            length=data["iterations_per_epoch"],
            rank=self.rank,
            world=self.world,
            **self.loader_options(data),
        )

    def first_batch(self, stage: Stage, files: WorkDir | None = None) -> dict:
        """The first training batch of a stage, read in this process."""
        return next(iter(self.train_loader(stage, files, workers=0).epoch(0)))

    def first_epoch(self, stage: Stage, files: WorkDir | None = None) -> int:
        """The epoch whose order and views a stage begins with.

        A stage that goes on with an earlier one's student goes on with the next epoch.
        """
        source = self.source(stage)
        if source is None:
            return 0
        earlier = self.stage(source)
        per_epoch = len(self.train_loader(earlier, files, workers=0))
        where = f"{earlier.name}.length"
        length = iterations(self.setting(earlier, "length"), per_epoch, where, least=0)
        return self.first_epoch(earlier, files) + -(-length // per_epoch)

    def test_loader(
        self, stage: Stage, classes: Sequence[str] | str | None = "train", **changes
    ) -> Loader:
        """All test samples, in order.

        Args:
            stage: which.
            classes: whose numbers count: ``'train'``, the training data's; a list, as a model knows
                them, and the training data is not read; None: the test set's own.
            changes: of the stage's ``data``.
        """
        data = {**self.setting(stage, "data"), **changes}
        return Loader(
            self.data.test_set(data, classes),
            data["test_batch_size"],
            shuffle=False,
            **self.loader_options(data),
        )

    def loader_options(self, data: Mapping) -> dict:
        """What every :class:`Loader` of a data setting is given."""
        collate = builder.resolve(data["collate"], "data.collate") if data["collate"] else None
        return {
            "seed": self.seed,
            "workers": data["workers"],
            "timeout": data["timeout"],
            "device": self.device,
            "skip_bad": data["skip_bad"],
            "collate": collate,
            "channels_last": self.config["channels_last"],
        }

    def meta(self, stage: Stage) -> dict:
        """What is written beside the weights of a stage."""
        return {
            "kdtasks": kdtasks.__version__,
            "config": self.name,
            "stage": stage.name,
            "seed": self.seed,
            **({PART: BACKBONE} if self.task.backbone and stage.model == "student" else {}),
            **_described({**self.specs[stage.model], **self._arguments(stage)}),
            "classes": self.classes(stage),
        }

    def model_meta(self, name: str) -> dict:
        """What is written beside the weights of a model of the config."""
        return _described(self.specs[name])

    def peer_meta(self, number: int) -> dict:
        """In what the facts beside the weights of a peer, from 0 on, differ from the student's."""
        return _described(self.config["peers"][number])


def _of_route(origin: str | Sequence[str] | None, anchor: int) -> str | None:
    """Where a teacher comes from: as it is said, or one of the anchors of a route."""
    return origin if isinstance(origin, str | None) else origin[anchor]


def _described(spec: Mapping) -> dict:
    """A model's description, as it is written beside its weights."""
    given = {key: value for key, value in spec.items() if key not in FURTHER_MODEL_KEYS}
    return {"model": str(spec["type"]), "spec": jsonable(given)}


def _loss(where: str, entry: Mapping) -> tuple:
    arguments = {key: value for key, value in entry.items() if key not in LOSS_KEYS}
    loss = builder.bind(arguments, where) if "type" in entry else None
    weight = entry.get("weight", 1.0)
    if isinstance(weight, Mapping):
        weight = builder.build(weight, f"{where}.weight")
    return loss, entry["of"], weight


def _marks_unlabelled(dataset: Any) -> bool:
    """Whether ``target`` is one whole number a sample, of which -100 means unlabelled."""
    try:
        target = torch.as_tensor(dataset.target)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False
    return target.ndim == 1 and not target.is_floating_point()
