"""Continual learning: what the engine needs to know of the task."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.core.classes import UNLABELLED
from kdtasks.core.stages import Stage
from kdtasks.engine import checkpoint
from kdtasks.engine.data_sets import image_shape
from kdtasks.engine.processes import beating, led
from kdtasks.incremental.data import IncrementalSet
from kdtasks.incremental.metrics import average_incremental_accuracy, forgetting
from kdtasks.incremental.models import head_of
from kdtasks.incremental.sampling import ExternalSample, sample_external, scores_of

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment
    from kdtasks.engine.work_dir import WorkDir

PRIMARY = "average_accuracy"
HIGHER_IS_BETTER = True
# of a batch, beside the target: no teacher's
OWN_NAMES = ("class_counts",)


def evaluate(model: nn.Module, loader) -> dict[str, float]:
    """Accuracy in percent on the test samples of each experience, from one forward.

    - ``average_accuracy``: mean over experiences, class-incremental: the argmax over all columns.
    - ``average_accuracy_task_il``: the same, task-incremental: the argmax over the columns of the
      sample's own experience.
    - ``accuracy``: of all samples, class-incremental; the two agree where experiences have equally
      many samples.
    - ``accuracy_on_<k>`` and ``task_il_on_<k>``: of experience k, from 1. Experiences without a
      sample are left out.

    Warns:
        UserWarning: an experience has one class, whose task-incremental accuracy is 100 whatever
            the model says.

    Counts stay on the device until the end.
    """
    sizes = head_of(model)[1].sizes
    counts = None
    for batch in loader:
        logits, target = model(batch["input"]).float(), batch["target"]
        ends = torch.tensor(sizes, device=target.device).cumsum(0)
        of_column = torch.arange(len(sizes), device=target.device).repeat_interleave(
            torch.tensor(sizes, device=target.device)
        )
        task = torch.bucketize(target, ends, right=True)
        masked = logits.masked_fill(of_column != task[:, None], -math.inf)
        # (3, B)
        right = torch.stack(
            [torch.ones_like(target), logits.argmax(1) == target, masked.argmax(1) == target]
        )
        found = torch.zeros(3, len(sizes), dtype=torch.long, device=target.device).index_add_(
            1, task, right.long()
        )
        counts = found if counts is None else counts + found
    count, seen, masked = counts.tolist()
    known = [k for k, n in enumerate(count) if n]
    single = [k + 1 for k in known if sizes[k] == 1]
    if single:
        warnings.warn(
            f"experiences {single} have one class each: their task-incremental accuracy is 100 "
            "whatever the model says, and raises average_accuracy_task_il",
            stacklevel=2,
        )
    class_il = {k: 100 * seen[k] / count[k] for k in known}
    task_il = {k: 100 * masked[k] / count[k] for k in known}
    return {
        "average_accuracy": sum(class_il.values()) / len(known),
        "average_accuracy_task_il": sum(task_il.values()) / len(known),
        "accuracy": 100 * sum(seen) / sum(count),
        **{f"accuracy_on_{k + 1}": value for k, value in class_il.items()},
        **{f"task_il_on_{k + 1}": value for k, value in task_il.items()},
    }


def summary(run, stage: Stage, found: Mapping[str, float]) -> dict:
    """What the experiences up to a stage's say together: beside its own metrics in results.json.

    ``matrix`` (and ``matrix_task_il``): row i has the accuracies on experiences 1…i+1 after
    experience i+1; ``class_counts``: classes of each experience; ``average_incremental_accuracy``
    and ``forgetting`` of the matrix (:mod:`kdtasks.incremental.metrics`), the same with
    ``_task_il``. "joint", which has learned all at once, has one row.
    """
    if stage.model != "student":
        return {}
    rows = {
        experience: found if name == stage.name else run.done[name]
        for name, experience in _ends(run.experiment, stage)
    }
    sizes = list(head_sizes(run.experiment, stage))
    result: dict = {"class_counts": sizes}
    for name, key in (("", "accuracy_on_"), ("_task_il", "task_il_on_")):
        matrix = [_row(rows[experience], key, len(sizes)) for experience in sorted(rows)]
        result[f"matrix{name}"] = matrix
        if len(matrix) == len(sizes) and all(len(row) == i + 1 for i, row in enumerate(matrix)):
            result[f"average_incremental_accuracy{name}"] = average_incremental_accuracy(matrix)
            result[f"forgetting{name}"] = forgetting(matrix)
    return result


def head_sizes(experiment: "Experiment", stage: Stage) -> tuple[int, ...]:
    """Classes of each experience that a stage's student knows."""
    return tuple(stage.arguments.get("sizes", experiment.specs["student"]["sizes"]))


def _ends(experiment: "Experiment", stage: Stage) -> list[tuple[str, int]]:
    """The stages that ended an experience on the way to this one, itself included, and the number
    of each experience.
    """
    found = {len(head_sizes(experiment, one)) - 1: one.name for one in experiment.chain(stage)}
    return [(name, experience) for experience, name in found.items()]


def _row(values: Mapping[str, float], key: str, experiences: int) -> list[float]:
    return [values[f"{key}{k + 1}"] for k in range(experiences) if f"{key}{k + 1}" in values]


# Unlabelled samples -------------------------------------------------------------------------------
def training_set(experiment: "Experiment", stage: Stage, made, files: "WorkDir | None" = None):
    """A stage's samples and, where it wants unlabelled ones, those that the student of the
    experience before picks.

    They are chosen once an experience, before its first stage that wants some, and kept in
    ``<work_dir>/sampled/<stage before>.pth``: ``confident`` and ``random``, int64 places in the
    pool. Before that student is trained, and without ``files`` (checks), they are drawn at random
    and not kept.

    Raises:
        ValueError: the student's head is not what the stream brings.
    """
    if not isinstance(made, IncrementalSet):
        return made
    if stage.model == "student" and len(made.classes) != sum(head_sizes(experiment, stage)):
        raise ValueError(
            f"stage {stage.name!r}: the student's head has "
            f"{sum(head_sizes(experiment, stage))} columns "
            f"{head_sizes(experiment, stage)}, the stream has brought "
            f"{len(made.classes)} classes: {made.classes}"
        )
    if made.pool is None or not experiment.unlabelled(stage):
        return made
    before = _before(experiment, stage)
    if files is None or before not in files.done:
        return made.with_external(
            sample_external(len(made.pool), len(made), seed=experiment.seed).random
        )
    path = files.path / "sampled" / f"{before}.pth"

    def sampled() -> Tensor:
        led(
            lambda beat: (
                path.exists()
                or checkpoint.save(_sampled(experiment, before, made, files, beat)._asdict(), path)
            )
        )
        saved = torch.load(path, weights_only=True)
        return torch.cat([saved["confident"], saved["random"]]).sort().values

    return made.with_external(experiment.data.keep(("sampled", path), sampled))


def _sampled(
    experiment: "Experiment",
    before: str,
    made: IncrementalSet,
    files: "WorkDir",
    beat: Callable[[], None],
) -> ExternalSample:
    from kdtasks.engine.loader import Loader

    data = experiment.config["data"]
    loader = Loader(
        made.whole_pool(),
        data["test_batch_size"],
        shuffle=False,
        workers=data["workers"],
        seed=experiment.seed,
        device=experiment.device,
        channels_last=experiment.config["channels_last"],
        skip_bad=data["skip_bad"],
    )
    options = {**made.sampling}
    model = experiment.trained(experiment.stage(before), files)
    scores = beating(beat, scores_of(model, loader, score=options.pop("score", "logit")))
    found = sample_external(
        scores, len(made), seed=experiment.seed, draw=len(head_of(model)[1].sizes), **options
    )
    if not loader.bad:
        return found
    # of the rows that were scored
    place = torch.tensor([i for i in range(len(made.pool)) if i not in loader.bad])
    return found._replace(confident=place[found.confident], random=place[found.random])


def _before(experiment: "Experiment", stage: Stage) -> str | None:
    """The stage that ended the experience before a stage's."""
    earlier = len(head_sizes(experiment, stage)) - 2
    return next(
        (name for name, experience in _ends(experiment, stage) if experience == earlier), None
    )


def example(config: dict, batch_size: int) -> dict[str, Tensor]:
    """Random images of the stream's shape, and classes of the newest experience."""
    sizes = config["student"]["sizes"]
    stream = config["data"]["train"]["stream"]
    shape = image_shape(
        stream.get("dataset") or {"size": config["data"]["train"].get("size", 32), **stream}
    )
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input": torch.randn(batch_size, *shape, generator=generator),
        "index": torch.arange(batch_size),
        "target": torch.randint(sizes[-1], (batch_size,), generator=generator),
    }
    unlabelled = config["data"]["unlabelled_per_batch"]
    batch["target"] = batch["target"] + sum(sizes[:-1])
    batch["class_counts"] = torch.ones(sum(sizes), dtype=torch.long)
    if unlabelled and batch_size > config["data"]["batch_size"]:
        batch["target"][config["data"]["batch_size"] :] = UNLABELLED
    return batch


def pictures(run) -> list[tuple]:
    """``[(title, figure)]``: the accuracy matrices, accuracy and forgetting over the experiences,
    the attention of old and new model, and what was sampled from the pool.
    """
    from kdtasks.engine.report import stage_colors  # what draws is imported only here
    from kdtasks.incremental import pictures as draw

    return draw.draw(run, stage_colors(run))
