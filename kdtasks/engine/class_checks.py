"""Whether the classes of what teaches, and of what a stage goes on with, are those of the data."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdtasks.core import Stage, Teacher
from kdtasks.core.names import as_names
from kdtasks.engine import data_sets
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.models import facts_of

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment
    from kdtasks.engine.stage_models import StageModels


def check_source(experiment: "StageModels", stage: Stage) -> None:
    """A stage that goes on with another one's student has its classes, new ones behind.

    Raises:
        ConfigError: they differ, or stand in another order.
    """
    source = experiment.source(stage)
    if source is None or experiment.data.unseen:
        return
    former = experiment.classes(experiment.stage(source)) or []
    classes = experiment.classes(stage) or []
    for number, (before, now) in enumerate(zip(former, classes)):
        if before != now:
            raise ConfigError(
                f"stage {stage.name!r} goes on with the student of stage {source!r}, where "
                "class "
                f"{number} is {before!r}, and here {now!r}: expected the same classes in the "
                f"same order, new ones behind. There are {len(former)}: {former[:12]}; here "
                f"{len(classes)}: {classes[:12]}"
            )


def check_teachers(
    experiment: "StageModels", stage: Stage, teachers: Mapping[str, Teacher]
) -> None:
    """A teacher whose output is compared knows the classes of the data, in their order.

    Raises:
        ConfigError: it knows others, or these in another order.
    """
    compared = {name for entry in stage.losses.values() for name in as_names(entry["of"])}
    for name, teacher in teachers.items():
        if name not in compared:
            continue
        teacher_classes = teacher.classes or _of_facts(teacher)
        classes = experiment.classes(stage) if teacher_classes else None
        # a model's own config may call the same classes otherwise: only their order tells
        if not teacher.classes and sorted(teacher_classes or ()) != sorted(classes or ()):
            continue
        if teacher_classes and classes and list(teacher_classes) != classes:
            lacks = [c for c in teacher_classes if c not in classes]
            adds = [c for c in classes if c not in teacher_classes]
            what = (
                f"it lacks {lacks[:5]} and adds {adds[:5]}"
                if lacks or adds
                else "they stand in another order"
            )
            raise ConfigError(
                f"the teacher {name!r} knows {len(teacher_classes)} classes, the data has "
                f"{len(classes)} others: {what}"
            )


def odd_classes(experiment: "Experiment") -> list[str]:
    """What is not wrong, but seldom meant: test data without samples of a class, and a student with
    more outputs than there are classes.
    """
    final = experiment.final
    classes = experiment.classes(final) if final and not experiment.data.unseen else None
    if final is None or not classes:
        return []
    data = experiment.test_loader(final, workers=0).dataset
    targets = data_sets.targets(data)
    if targets is None:
        return []
    labels, oddities = set(targets.tolist()), []
    lacking = [repr(name) for number, name in enumerate(classes) if number not in labels]
    if lacking:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        oddities.append(
            f"the test data has no sample of {', '.join(lacking[:5])}{more}, of the training "
            f"data's {len(classes)} classes"
        )
    outputs = experiment.specs[final.model].get("num_classes")
    if isinstance(outputs, int) and outputs > len(classes):
        oddities.append(
            f"{final.model}.num_classes={outputs}, but the data has {len(classes)} classes: no "
            "sample is of the others"
        )
    # the numbers of a detection set tell which images are labelled
    return [] if oddities and data_sets.has_boxes(data) else oddities


def _of_facts(teacher: Teacher) -> list[str]:
    facts = facts_of(teacher.model)
    return list(map(str, facts.classes or ())) if facts else []
