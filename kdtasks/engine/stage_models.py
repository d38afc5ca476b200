"""The models, teachers and distiller of each stage, with the weights that they start from."""

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

import kdtasks
from kdtasks.core import Distiller, Stage, Teacher
from kdtasks.core.handover import BACKBONE, PART
from kdtasks.core.stages import OWN, as_route
from kdtasks.core.weights import load_weights
from kdtasks.engine import data_sets
from kdtasks.engine.class_checks import check_source, check_teachers
from kdtasks.engine.data_store import DataStore
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.model_factory import ModelFactory, model_facts
from kdtasks.engine.models import facts_of
from kdtasks.engine.pretrained import (
    described,
    frozen_teacher,
    trained_with,
    warn_of_other_normalization,
)
from kdtasks.engine.seeds import seeded
from kdtasks.engine.stage_plan import StagePlan
from kdtasks.engine.task import Task
from kdtasks.engine.work_dir import WorkDir


class StageModels(StagePlan):
    """The stages of a config with their models, and the data sets that say what classes these know.

    Each model and distiller is built anew when it is asked for: whoever has one may step it.

    Args:
        config, stages: as of :class:`StagePlan`.
        factory: what builds models.
        task: of the config.
        name: of the config, as it is written beside weights.

    Attributes:
        factory: the :class:`~kdtasks.engine.model_factory.ModelFactory`.
        data: the :class:`~kdtasks.engine.data_store.DataStore`.
        seed, device: of the models.
        pretrained: ``{role: what is known}`` of weights that come with a model's name, as far as a
            :meth:`distiller` has read them; see :func:`kdtasks.engine.pretrained.described`.
    """

    def __init__(
        self, config: dict, stages: list[Stage], factory: ModelFactory, task: Task, name: str
    ):
        super().__init__(config, stages, factory.specs)
        self.factory, self.task, self.name = factory, task, name
        self.seed, self.device = factory.seed, factory.device
        self.pretrained: dict[str, dict] = {}
        final = self.setting(self.final, "data") if self.final else None
        self.data = DataStore(
            self.device, lambda: seeded(self.seed, "data"), final, task.unseen_classes
        )

    # Data sets ------------------------------------------------------------------------------------
    def data_set(self, data: Mapping, part: str) -> Any:
        """The ``'train'`` or ``'test'`` set of a data setting: see :class:`DataStore`."""
        return self.data.train_set(data) if part == "train" else self.data.test_set(data)

    def classes(self, stage: Stage) -> list[str] | None:
        """The classes of a stage's training data."""
        return data_sets.class_names(self.data.train_set(self.setting(stage, "data")))

    def normalization(self, stage: Stage) -> tuple | None:
        """The mean and std that a stage's data normalises with, where it says them."""
        return data_sets.normalization(self.data.train_set(self.setting(stage, "data")))

    # Models ---------------------------------------------------------------------------------------
    def model(self, name: str, like: str | None = None, **arguments) -> nn.Module:
        """A fresh model of the config; see :meth:`ModelFactory.model`."""
        return self.factory.model(name, like, **arguments)

    def learner(self, stage: Stage) -> nn.Module:
        """The model that a stage trains, with fresh weights; the control's with ``control``."""
        return self.model(stage.model, **self.arguments(stage))

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

    def load(
        self,
        model: nn.Module,
        origin: str | None,
        files: WorkDir | None,
        grown: bool = False,
        where: str = "",
    ) -> dict:
        """Load the weights of a stage or a file; returns what is known of them.

        Args:
            model: in place.
            origin: ``'<stage>'``, ``'<stage>.best'``, ``'<stage>.<epoch>'``, a path; None: nothing.
            files: of finished stages; None: what these leave is not loaded.
            grown: the model may have more classes than the weights.
            where: the key of the config that says so, for errors.

        Raises:
            FileNotFoundError, ValueError: as :func:`~kdtasks.core.weights.load_weights`.
        """
        if origin in (None, OWN):
            return {}
        reference = self.reference(origin)
        if reference is None:
            try:
                return load_weights(model, origin, grown)
            except (FileNotFoundError, ValueError) as error:
                if not where:
                    raise
                kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ConfigError
                raise kind(f"{where}: {error}") from error
        return load_weights(model, files.weights(*reference), grown) if files else {}

    def meta(self, stage: Stage) -> dict:
        """What is written beside the weights of a stage."""
        seen = self.normalization(stage)
        return {
            "kdtasks": kdtasks.__version__,
            "config": self.name,
            "stage": stage.name,
            "seed": self.seed,
            **({PART: BACKBONE} if self.task.backbone and stage.model == "student" else {}),
            **model_facts({**self.specs[stage.model], **self.arguments(stage)}),
            "classes": self.classes(stage),
            **({"normalization": dict(zip(("mean", "std"), map(list, seen)))} if seen else {}),
        }

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
            origin = self.origin(stage)
            where = self._key_of(origin, stage.model, f"{stage.name}.student")
            meta = self.load(student, origin, files, True, where)
            if "kdtasks" not in meta and self.source(stage) is None and stage.model == "student":
                self._note_pretrained("student", stage, student)
            data = functools.partial(self.normalization, stage)
            warn_of_other_normalization(stage.model, trained_with(meta), data)
            check_source(self, stage)
        teachers = {name: self.teacher(stage, name, files, load, anchor) for name in stage.teachers}
        if load and self.factory.has_plain_distiller:
            check_teachers(self, stage, teachers)
        peers = self.factory.peers(stage.losses)
        if load:
            for k, (peer, spec) in enumerate(zip(peers, self.config["peers"])):
                self.load(peer, spec.get("checkpoint"), files, where=f"peers[{k}].checkpoint")
        distiller = self.factory.distiller(stage.name, student, teachers, stage.losses, peers)
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
        with seeded(self.seed, f"{stage.name}:build"):
            distiller.build(batch)
        return distiller

    def teacher(
        self, stage: Stage, name: str, files: WorkDir | None, load: bool = True, anchor: int = 0
    ) -> Teacher:
        """A teacher of a stage by itself; the arguments are those of :meth:`distiller`."""
        origin = as_route(stage.teachers[name])[anchor]
        reference = self.reference(origin)
        source = self.stage(reference[0]) if reference else None
        owner = source.model if source else name
        model = self.model(name, like=owner, **(self.arguments(source) if source else {}))
        origin = origin or self.specs[owner].get("checkpoint")
        where = self._key_of(origin, owner, f"{stage.name}.teachers.{name}")
        meta = self.load(model, origin, files, where=where) if load else {}
        trained_here = source is not None or "kdtasks" in meta
        spec = self.config["teachers"].get(owner, {})
        data = functools.partial(self.normalization, stage) if load else None
        seen = trained_with(meta) if trained_here else None
        teacher = frozen_teacher(model, spec, name, data, trained_here, seen)
        of_source = self.classes(source) if source and load and not meta.get("classes") else None
        teacher.classes = meta.get("classes") or of_source
        if load and not trained_here:
            self._note_pretrained(name, stage, model, teacher)
        return teacher.to(self.device)

    def _key_of(self, origin: str | None, name: str, of_stage: str) -> str:
        """The key of the config that says where weights come from: the model's, or the stage's."""
        if origin != self.specs[name].get("checkpoint"):
            return of_stage
        if name in ("student", "teacher"):
            return f"{name}.checkpoint"
        return f"{'teachers' if name in self.config['teachers'] else 'models'}.{name}.checkpoint"

    def _note_pretrained(
        self, role: str, stage: Stage, model: nn.Module, teacher: Teacher | None = None
    ) -> None:
        """What is known of the weights that a role brings."""
        facts = facts_of(model)
        if facts is not None and (facts.weights is not None or teacher is not None):
            self.pretrained[role] = described(facts, teacher, self.normalization(stage))
