"""The stages of a run: a backbone before anybody teaches it, others to compare with, and the taught
one.
"""

from collections.abc import Mapping

CLASSIFIER = "kdtasks.representation.ClassifierLoss"


def with_controls(
    config: Mapping, supervised: Mapping | None = None, pretrained: str | None = None
) -> list[dict]:
    """``random``, ``supervised``, ``pretrained``, ``distilled``, as far as they are asked for.

    - ``random``: the student's first weights, tested as they are. It is the control: what a
      difference is taken from.
    - ``supervised``: the same student, images and steps, and labels in the place of the teacher.
    - ``pretrained``: weights of a file, ImageNet's say, tested as they are.
    - ``distilled``: taught by all teachers of the config.

    Args:
        config: the run's; it comes from the engine.
        supervised: None; or what the labels need: ``num_classes``, and of a stage ``data``,
            ``optimizer``, ``schedule`` and ``length``, where they differ.
        pretrained: a file of the student's weights, with a head or without.
    """
    untouched = {"length": {"iterations": 0}, "schedule": []}
    nothing = {"loss_none": {"type": "kdtasks.representation.losses.no_loss", **_of("embedding")}}
    stages: list[dict] = [{"name": "random", "role": "control", "losses": nothing, **untouched}]
    if supervised is not None:
        own = dict(supervised)
        labels = {"type": CLASSIFIER, "num_classes": own.pop("num_classes")}
        losses = {"loss_supervised": {**labels, "of": ("student.embedding", "target")}}
        stages.append({"name": "supervised", "role": "joint", "losses": losses, **own})
    if pretrained is not None:
        given = {"name": "pretrained", "role": "joint", "losses": nothing, "student": pretrained}
        stages.append({**given, **untouched})
    teachers = dict.fromkeys(config["teachers"])
    return [*stages, {"name": "distilled", "role": "taught", "teachers": teachers}]


def _of(name: str) -> dict:
    return {"of": (f"student.{name}",)}
