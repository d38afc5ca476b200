"""Models, peers and distillers as a config describes them, with fresh weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from kdtasks.core import Distiller, Teacher
from kdtasks.core.control import has_peers
from kdtasks.core.names import did_you_mean
from kdtasks.engine import builder
from kdtasks.engine.config import jsonable
from kdtasks.engine.config_keys import FURTHER_MODEL_KEYS, LOSS_KEYS, MODEL_KEYS, TEACHER_KEYS
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.pretrained import frozen_teacher
from kdtasks.engine.seeds import seeded


class ModelFactory:
    """Builds what a config describes; knows of no stage, and loads no file.

    The weights of a model depend on the seed and its name, those of losses on the seed and the name
    of what they are for.

    Args:
        config: a complete one.
        seed: of the weights.
        device: where models go.

    Attributes:
        specs: ``{name: description}`` of the models: the student, teachers and further ones.
    """

    def __init__(self, config: Mapping, seed: int, device: torch.device):
        self.config, self.seed, self.device = config, seed, device
        self.specs = {"student": config["student"], **config["teachers"], **config["models"]}

    def model(self, name: str, like: str | None = None, **arguments) -> nn.Module:
        """A model on the device, built as ``like`` (None: ``name``) says but for ``arguments``.

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
        return self._build(name, {k: v for k, v in spec.items() if k not in reserved})

    def peers(self, losses: Mapping[str, Mapping]) -> list[nn.Module]:
        """The config's peers, if some loss is of one."""
        if not has_peers(losses):
            return []
        specs = [
            {key: value for key, value in spec.items() if key not in MODEL_KEYS}
            for spec in self.config["peers"]
        ]
        return [self._build(f"peer{number}", spec) for number, spec in enumerate(specs, start=1)]

    def _build(self, name: str, spec: Mapping) -> nn.Module:
        with seeded(self.seed, name):
            model = builder.build(spec, name)
        layout = torch.channels_last if self.config["channels_last"] else torch.preserve_format
        return model.to(self.device, memory_format=layout)

    def distiller(
        self,
        name: str,
        student: nn.Module,
        teachers: Mapping[str, Teacher],
        losses: Mapping[str, Mapping],
        peers: Sequence[nn.Module],
    ) -> Distiller:
        """The config's distiller of these models.

        Args:
            name: of what it is for, a stage: on it depend the weights of the losses.
            student, teachers, peers: the models.
            losses: the entries, as in a config.
        """
        with seeded(self.seed, f"{name}:losses"):
            entries = {key: _build_loss(f"losses.{key}", entry) for key, entry in losses.items()}
        return builder.build(
            self.config["distiller"],
            "distiller",
            student=student,
            teachers=teachers,
            losses=entries,
            peers=peers,
            compile=self.config["compile"],
        )

    @property
    def has_plain_distiller(self) -> bool:
        """Whether losses read outputs of models and submodules, and nothing else."""
        return builder.resolve(self.config["distiller"]["type"], "distiller") is Distiller

    def supplied_names(self) -> list[str]:
        """The tensor names of the student that a distiller of the config's own supplies.

        Only a distiller knows them, and the stages depend on them: so one is built of fresh models
        to be asked, and dropped, for a stage's own may have other losses, and its models other
        arguments.
        """
        if self.has_plain_distiller:
            return []
        teachers = {
            name: frozen_teacher(self.model(name), spec, name)
            for name, spec in self.config["teachers"].items()
        }
        losses = self.config["losses"]
        student, peers = self.model("student"), self.peers(losses)
        return list(self.distiller("probe", student, teachers, losses, peers).names("student"))


def model_facts(spec: Mapping) -> dict:
    """What is written beside the weights of a model that has this description."""
    given = {key: value for key, value in spec.items() if key not in FURTHER_MODEL_KEYS}
    return {"model": str(spec["type"]), "spec": jsonable(given)}


def _build_loss(where: str, entry: Mapping) -> tuple:
    arguments = {key: value for key, value in entry.items() if key not in LOSS_KEYS}
    loss = builder.bind(arguments, where) if "type" in entry else None
    weight = entry.get("weight", 1.0)
    if isinstance(weight, Mapping):
        weight = builder.build(weight, f"{where}.weight")
    return loss, entry["of"], weight
