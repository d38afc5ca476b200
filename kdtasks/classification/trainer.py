"""Classification as the engine sees it: metrics, example, figures."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.classification.doubts import doubts
from kdtasks.engine.data_sets import image_shape
from kdtasks.engine.task import Metric
from kdtasks.images.corruption import corrupted

if TYPE_CHECKING:
    from kdtasks.core import Stage
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.run import Run

__all__ = [
    "HIGHER_IS_BETTER",
    "METRICS",
    "PRIMARY",
    "corrupted",
    "doubts",
    "evaluate",
    "example",
    "pictures",
    "summary",
]

PRIMARY = "accuracy"
HIGHER_IS_BETTER = True
HUB_TASK = "image-classification"
METRICS = {
    "accuracy*": Metric("%"),
    "peer*_accuracy*": Metric("%"),
    "magsim": Metric(decimals=3, label="MagSim"),
    "angsim": Metric(decimals=3, label="AngSim"),
    "boundary_images": Metric(listed=False),
}


def evaluate(model: nn.Module, loader: "Loader") -> dict[str, float]:
    """``accuracy`` (top-1) and, with more than 5 classes, ``accuracy_top5``, in percent of the
    labelled samples.

    Counts stay on the device until the end.

    Raises:
        ValueError: a target is a class for which the model has no output.
    """
    right = right5 = count = highest = 0
    outputs = None
    for batch in loader:
        logits, target = model(batch["input"]), batch["target"]
        if outputs is None:
            outputs = logits.shape[1]
            _check_highest(_highest_target(loader), outputs)
        highest = torch.clamp(target.max(), min=highest)
        # (B, 5)
        hits = logits.topk(min(5, outputs), dim=1).indices == target[:, None]
        right, right5 = right + hits[:, 0].sum(), right5 + hits.sum()
        count = count + (target >= 0).sum()
    hits = {"accuracy": right}
    if outputs is not None:
        _check_highest(int(highest), outputs)
        if outputs > 5:
            hits["accuracy_top5"] = right5
    return {name: 100 * float(number) / max(int(count), 1) for name, number in hits.items()}


def _highest_target(loader: "Loader") -> int:
    """The highest class number of the data set if it has ``target``, so that an error comes before
    the whole test; else -1.
    """
    target = getattr(getattr(loader, "dataset", None), "target", None)
    if not isinstance(target, Tensor) or target.ndim != 1 or not len(target):
        return -1
    return -1 if target.is_floating_point() else int(target.max())


def _check_highest(highest: int, outputs: int) -> None:
    if highest >= outputs:
        raise ValueError(
            f"the test data has the class number {highest}, but the model has {outputs} outputs, "
            "for classes from 0 on: the student's num_classes, or the data's classes, are wrong"
        )


def example(config: dict, batch_size: int) -> dict[str, Tensor]:
    """Random images and labels of the shape that the data has, without reading it."""
    generator = torch.Generator().manual_seed(0)
    classes = config["student"].get("num_classes", 10)
    shape = image_shape(config["data"]["train"])
    return {
        "input": torch.randn(batch_size, *shape, generator=generator),
        "index": torch.arange(batch_size),
        "target": torch.randint(classes, (batch_size,), generator=generator),
    }


def summary(run: "Run", stage: "Stage", metrics: Mapping[str, float]) -> dict[str, float]:
    """Where the run's distiller shows boundary samples (BSS), how alike the student's boundary and
    the teacher's are: ``magsim`` and ``angsim``
    (:func:`~kdtasks.general.perturbation_similarity`), and ``boundary_images``.

    Both models are attacked as the distiller attacks, on 256 labelled test images, spread evenly
    over the test data, each towards the class that is the teacher's second answer. Those that both
    get right count: ``boundary_images`` of them. If a student cannot be attacked, a warning says
    so.
    """
    from kdtasks.classification.pictures.attacks import similarity_of

    try:
        return similarity_of(run, stage)
    # a trained stage is worth more than a further number
    except (ValueError, RuntimeError) as error:
        warnings.warn(f"magsim and angsim of {stage.name} are not known: {error}", stacklevel=2)
        return {}


def pictures(run: "Run") -> list[tuple]:
    """``[(title, figure)]`` on the test data: accuracy of each class, images whose answer changed,
    and reliability; and what a method's people look at, see :mod:`kdtasks.classification.pictures`.

    Whatever of teacher, alone and distilled there is takes part; a teacher from a file as the last
    stage used it.
    """
    from kdtasks.classification import pictures as draw
    from kdtasks.engine.report import stage_colors  # what draws is imported only here

    if not run.finished:
        return []
    loader, colors = run.experiment.test_loader(run.finished[-1]), stage_colors(run)
    answers = {name: draw.answers(model, loader) for name, model in run.arm_models().items()}
    pair = [stage.name for stage in run.arms.pair]
    names = draw.class_names(answers, loader)
    return [
        *draw.draw(answers, pair, loader, colors),
        *draw.draw_method(run, names, loader, colors),
    ]
