"""Continual learning as the engine sees it: metrics, summary, training set, example, figures."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.core import Distiller
from kdtasks.core.classes import UNLABELLED
from kdtasks.core.stages import Stage
from kdtasks.engine import checkpoint
from kdtasks.engine.data_sets import image_shape
from kdtasks.engine.processes import beating, led
from kdtasks.engine.task import Metric
from kdtasks.incremental import der_distiller
from kdtasks.incremental.data import IncrementalSet
from kdtasks.incremental.der_memory import give_memory
from kdtasks.incremental.exemplars import draw, features_of, is_herded, with_herded
from kdtasks.incremental.herding import mean_distances
from kdtasks.incremental.metrics import average_incremental_accuracy, forgetting
from kdtasks.incremental.models import head_of
from kdtasks.incremental.sampling import ExternalSample, sample_external, scores_of

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.run import Run
    from kdtasks.engine.work_dir import WorkDir

PRIMARY = "average_accuracy"
HIGHER_IS_BETTER = True
HUB_TASK = "image-classification"
METRICS = {
    # of one experience: the matrices have them
    "accuracy_on_*": Metric("%", listed=False),
    "nearest_mean_on_*": Metric("%", listed=False),
    "task_il_on_*": Metric("%", listed=False),
    "average_*": Metric("%"),
    "accuracy*": Metric("%"),
    "forgetting*": Metric("%"),
}
# names in a batch, beside the target, that are no teacher's
OWN_NAMES = ("class_counts", *der_distiller.OWN_NAMES)


def evaluate(model: nn.Module, loader: "Loader") -> dict[str, float]:
    """Accuracy in percent on the labelled test samples of each experience, from one forward.

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
    counts: Tensor | None = None
    for batch in loader:
        batch_counts = _counts(model(batch["input"]).float(), batch["target"], sizes)
        counts = batch_counts if counts is None else counts + batch_counts
    samples, right, right_in_task = counts.tolist()
    tested = [k for k, number in enumerate(samples) if number]
    _warn_of_single_classes([k + 1 for k in tested if sizes[k] == 1])
    class_il = {k: 100 * right[k] / samples[k] for k in tested}
    task_il = {k: 100 * right_in_task[k] / samples[k] for k in tested}
    return {
        "average_accuracy": sum(class_il.values()) / max(len(tested), 1),
        "average_accuracy_task_il": sum(task_il.values()) / max(len(tested), 1),
        "accuracy": 100 * sum(right) / max(sum(samples), 1),
        **{f"accuracy_on_{k + 1}": value for k, value in class_il.items()},
        **{f"task_il_on_{k + 1}": value for k, value in task_il.items()},
    }


def _counts(logits: Tensor, target: Tensor, sizes: Sequence[int]) -> Tensor:
    """(3, experiences) int64 of a batch: labelled samples, those whose argmax over all columns is
    right, and those whose argmax over the columns of their own experience is.
    """
    device, labelled = target.device, target >= 0
    task_sizes = torch.tensor(sizes, device=device)
    task = torch.bucketize(target, task_sizes.cumsum(0), right=True)
    task_of_column = torch.arange(len(sizes), device=device).repeat_interleave(task_sizes)
    in_task = logits.masked_fill(task_of_column != task[:, None], -math.inf)
    # (3, B)
    right = torch.stack([labelled, logits.argmax(1) == target, in_task.argmax(1) == target])
    counts = torch.zeros(3, len(sizes), dtype=torch.long, device=device)
    return counts.index_add_(1, task, right.long())


def _warn_of_single_classes(numbers: list[int]) -> None:
    if numbers:
        warnings.warn(
            f"experiences {numbers} have one class each: their task-incremental accuracy is 100 "
            "whatever the model says, and raises average_accuracy_task_il",
            stacklevel=3,
        )


def summary(run: "Run", stage: Stage, metrics: Mapping[str, float]) -> dict:
    """Results over all experiences up to a stage's, written beside its own metrics to results.json.

    ``matrix`` (and ``matrix_task_il``): row i has the accuracies on experiences 1…i+1 after
    experience i+1; ``class_counts``: classes of each experience; ``average_incremental_accuracy``
    and ``forgetting`` of the matrix (:mod:`kdtasks.incremental.metrics`), the same with
    ``_task_il``. A stage that has learned all at once has one row.

    With exemplars that the networks choose, this is where a stage's network does, and where it is
    tested by the nearest mean of exemplars: ``average_accuracy_nearest_mean``, ``accuracy_…``,
    ``nearest_mean_on_<k>``, and the matrix and its numbers, all class-incremental.
    """
    if stage.model != "student":
        return {}
    by_means = _nearest_mean_metrics(run.experiment, stage, run.files)
    metrics_of_stage = {**run.done, stage.name: {**metrics, **by_means}}
    rows = {
        experience: metrics_of_stage[name]
        for experience, name in _last_stages(run.experiment, stage).items()
    }
    sizes = list(head_sizes(run.experiment, stage))
    result: dict = {"class_counts": sizes, **by_means}
    kinds = {"": "accuracy_on_", "_task_il": "task_il_on_"}
    if by_means:
        kinds["_nearest_mean"] = "nearest_mean_on_"
    for name, key in kinds.items():
        matrix = [_row(rows[experience], key, len(sizes)) for experience in sorted(rows)]
        result[f"matrix{name}"] = matrix
        if len(matrix) == len(sizes) and all(len(row) == i + 1 for i, row in enumerate(matrix)):
            result[f"average_incremental_accuracy{name}"] = average_incremental_accuracy(matrix)
            result[f"forgetting{name}"] = forgetting(matrix)
    return result


def head_sizes(experiment: "Experiment", stage: Stage) -> tuple[int, ...]:
    """Numbers of classes of the experiences that a stage's student has seen."""
    return tuple(stage.arguments.get("sizes", experiment.specs["student"]["sizes"]))


def _last_stages(experiment: "Experiment", stage: Stage) -> dict[int, str]:
    """``{experience: name}`` of the stages that ended an experience on the way to this one, itself
    included.
    """
    return {
        len(head_sizes(experiment, earlier)) - 1: earlier.name
        for earlier in experiment.chain(stage)
    }


def _nearest_mean_metrics(
    experiment: "Experiment", stage: Stage, files: "WorkDir"
) -> dict[str, float]:
    """A finished stage tested by the nearest mean of its exemplars; nothing if it has none that
    networks choose.
    """
    if not is_herded(experiment.data.train_set(experiment.setting(stage, "data"))):
        return {}
    means = draw(experiment, _before(experiment, stage), stage, files).to(experiment.device)
    sizes = head_sizes(experiment, stage)
    counts = sum(
        _counts(-mean_distances(features, means), batch["target"], sizes)
        for batch, features in features_of(
            experiment.trained(stage, files), experiment.test_loader(stage)
        )
    )
    samples, right, _ = counts.tolist()
    accuracies = {k: 100 * right[k] / samples[k] for k, number in enumerate(samples) if number}
    return {
        "average_accuracy_nearest_mean": sum(accuracies.values()) / len(accuracies),
        "accuracy_nearest_mean": 100 * sum(right) / sum(samples),
        **{f"nearest_mean_on_{k + 1}": value for k, value in accuracies.items()},
    }


def _before(experiment: "Experiment", stage: Stage) -> list[str]:
    """The stages that ended the experiences before a stage's, in their order."""
    count = len(head_sizes(experiment, stage)) - 1
    last = _last_stages(experiment, stage)
    return [last[k] for k in range(count) if k in last]


def _row(values: Mapping[str, float], key: str, experiences: int) -> list[float]:
    keys = [f"{key}{k + 1}" for k in range(experiences)]
    return [values[name] for name in keys if name in values]


# Exemplars and unlabelled samples -----------------------------------------------------------------
def training_set(
    experiment: "Experiment", stage: Stage, dataset: object, files: "WorkDir | None" = None
) -> object:
    """A stage's samples, with the exemplars that networks choose
    (:mod:`kdtasks.incremental.exemplars`) and, if it needs unlabelled ones, those that the student
    of the experience before picks.

    These are chosen once an experience, before its first stage that needs some, and kept in
    ``<work_dir>/sampled/<stage before>.pth``: ``confident`` and ``random``, int64 places in the
    pool. Before that student is trained, and without ``files`` (checks), they are drawn at random
    and not kept.

    Raises:
        ValueError: the student's head has not as many columns as the stream has classes.
    """
    if not isinstance(dataset, IncrementalSet):
        return dataset
    sizes = head_sizes(experiment, stage)
    if stage.model == "student" and len(dataset.classes) != sum(sizes):
        raise ValueError(
            f"stage {stage.name!r}: the student's head has {sum(sizes)} columns {sizes}, the "
            f"stream has brought {len(dataset.classes)} classes: {dataset.classes}"
        )
    if is_herded(dataset):
        dataset = with_herded(experiment, _before(experiment, stage), dataset, files)
    if dataset.pool is None or not experiment.unlabelled(stage):
        return dataset
    before = _last_stages(experiment, stage).get(len(sizes) - 2)
    if files is None or before not in files.done:
        sample = sample_external(len(dataset.pool), len(dataset), seed=experiment.seed)
        return dataset.with_external(sample.random)
    path = files.path / "sampled" / f"{before}.pth"

    def choose(beat: Callable[[], None]) -> None:
        if not path.exists():
            sample = _sample(experiment, before, dataset, files, beat)
            checkpoint.save(sample._asdict(), path)

    def sampled() -> Tensor:
        led(choose)
        saved = checkpoint.read(path)
        return torch.cat([saved["confident"], saved["random"]]).sort().values

    return dataset.with_external(experiment.data.keep(("sampled", path), sampled))


def equip(experiment: "Experiment", stage: Stage, distiller: Distiller, files: "WorkDir") -> None:
    """Give a :class:`~kdtasks.incremental.DERDistiller` the memory of the experiences before."""
    if isinstance(distiller, der_distiller.DERDistiller):
        give_memory(experiment, stage, distiller, files)


def _sample(
    experiment: "Experiment",
    before: str,
    dataset: IncrementalSet,
    files: "WorkDir",
    beat: Callable[[], None],
) -> ExternalSample:
    """What the student of the stage ``before`` takes from the pool."""
    loader = _pool_loader(experiment, dataset)
    model = experiment.trained(experiment.stage(before), files)
    options = {**dataset.sampling}
    scores = scores_of(model, loader, score=options.pop("score", "logit"))
    sample = sample_external(
        beating(beat, scores),
        len(dataset),
        seed=experiment.seed,
        draw=len(head_of(model)[1].sizes),
        **options,
    )
    if not loader.bad:
        return sample
    # unreadable images have no score: from rows that were scored to places in the pool
    place = torch.tensor([i for i in range(len(dataset.pool)) if i not in loader.bad])
    return ExternalSample(confident=place[sample.confident], random=place[sample.random])


def _pool_loader(experiment: "Experiment", dataset: IncrementalSet) -> "Loader":
    from kdtasks.engine.loader import Loader

    data = experiment.config["data"]
    return Loader(
        dataset.whole_pool(),
        data["test_batch_size"],
        shuffle=False,
        workers=data["workers"],
        seed=experiment.seed,
        device=experiment.device,
        channels_last=experiment.config["channels_last"],
        skip_bad=data["skip_bad"],
    )


def example(config: dict, batch_size: int) -> dict[str, Tensor]:
    """Random images of the stream's shape, and classes of the newest experience."""
    sizes, data = config["student"]["sizes"], config["data"]
    stream = data["train"]["stream"]
    size = data["train"].get("size", 32)
    shape = image_shape(stream.get("dataset") or {"size": size, **stream})
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, *shape, generator=generator)
    target = torch.randint(sizes[-1], (batch_size,), generator=generator) + sum(sizes[:-1])
    if data["unlabelled_per_batch"] and batch_size > data["batch_size"]:
        target[data["batch_size"] :] = UNLABELLED
    return {
        "input": images,
        "index": torch.arange(batch_size),
        "target": target,
        "class_counts": torch.ones(sum(sizes), dtype=torch.long),
    }


def pictures(run: "Run") -> list[tuple]:
    """``[(title, figure)]``: the accuracy matrices, accuracy and forgetting over the experiences,
    the attention of old and new model, and what was sampled from the pool.
    """
    from kdtasks.engine.report import stage_colors  # what draws is imported only here
    from kdtasks.incremental import pictures as draw

    return draw.draw(run, stage_colors(run))
