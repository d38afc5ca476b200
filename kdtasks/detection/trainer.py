"""Detection: what the engine needs to know of the task."""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.core.weights import load_weights
from kdtasks.detection.adl import ADLLoss
from kdtasks.detection.chen2017 import box_errors
from kdtasks.detection.coco_metrics import coco_metrics, detections_of
from kdtasks.detection.export import onnx_form
from kdtasks.detection.predictions import predict, predict_arguments
from kdtasks.detection.torchvision_distiller import TorchvisionDistiller
from kdtasks.engine.data_sets import image_shape
from kdtasks.engine.reader import readable
from kdtasks.engine.task import Metric
from kdtasks.images.corruption import corrupted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdtasks.core.stages import Stage
    from kdtasks.engine.run import Run

__all__ = [
    "HIGHER_IS_BETTER",
    "METRICS",
    "PRIMARY",
    "corrupted",
    "doubts",
    "evaluate",
    "example",
    "is_comparable",
    "onnx_form",
    "pictures",
    "predict",
    "predict_arguments",
]

PRIMARY = "map"
HIGHER_IS_BETTER = True
HUB_TASK = "object-detection"
METRICS = {"map*": Metric("%"), "mar_*": Metric("%")}


def evaluate(model: nn.Module, loader: Iterable[Mapping]) -> dict[str, float]:
    """COCO's twelve figures and the average precision of each class, in percent; see
    :func:`coco_metrics`.
    """
    classes = getattr(getattr(loader, "dataset", None), "classes", None)
    return coco_metrics(*detections_of(model, loader), classes)


def is_comparable(ours: object, theirs: object, config: Mapping) -> bool:
    """Detections of any number, where the teacher's classes are the student's: a ``class_map`` says
    that they are not.
    """
    return type(ours) is type(theirs) and not config["distiller"].get("class_map")


def doubts(metrics: Mapping[str, float], model: nn.Module, loader: object) -> list[str]:
    """Nothing found that is right, to a hundredth of a percent of mAP."""
    if metrics["map"] > 0.01:
        return []
    return [f"its mAP of {metrics['map']:.2f} % says that it finds nothing of what is there"]


def deciding(model: nn.Module) -> list[nn.Module]:
    """The heads: a box whose score is NaN is left out of what a detector gives, so their outputs
    are watched.
    """
    heads = [
        module for name, module in model.named_modules() if name.endswith(("head", "predictor"))
    ]
    return heads or [model]


def example(config: dict, batch_size: int) -> dict:
    """Random images of the size that the data has, with two boxes each, without reading it."""
    generator = torch.Generator().manual_seed(0)
    _, height, width = image_shape(config["data"]["train"], (3, 480, 640))
    classes = config["student"].get("num_classes", 2)
    images = [torch.rand(3, height, width, generator=generator) for _ in range(batch_size)]
    return {
        "input": images,
        "target": [_boxes(height, width, classes, generator) for _ in images],
        "index": torch.arange(batch_size),
    }


def _boxes(height: int, width: int, classes: int, generator: torch.Generator) -> dict:
    corner = torch.rand(2, 2, generator=generator) * 0.5 * torch.tensor([width, height])
    size = (0.2 + 0.3 * torch.rand(2, 2, generator=generator)) * torch.tensor([width, height])
    labels = torch.randint(1, max(classes, 2), (2,), generator=generator)
    masks = torch.ones(2, height, width, dtype=torch.uint8)
    return {"boxes": torch.cat([corner, corner + size], 1), "labels": labels, "masks": masks}


def pictures(run: "Run") -> list[tuple[str, "Figure"]]:
    """``[(title, figure)]`` on the test data: boxes side by side, precision of each class, where
    the teacher bounded the student's boxes (Chen et al.), and the adaptive weights (ADL).

    Whatever of teacher, alone and distilled there is takes part; a teacher from a file as the last
    stage used it.
    """
    from kdtasks.detection import pictures as draw  # what draws is imported only here
    from kdtasks.detection.matching import best_threshold
    from kdtasks.engine.report import stage_colors

    if not run.finished:
        return []
    loader = run.experiment.test_loader(run.finished[-1])
    pair = [stage.name for stage in run.arms.pair]
    taught = next((stage for stage in reversed(run.finished) if stage.teachers), None)
    distiller = _as_trained(run, taught) if taught else None
    models, metrics = _measured_models(run, distiller, loader)
    labelled = getattr(loader.dataset, "target", [0] * len(loader.dataset))
    flags = [None if int(number) < 0 else 0 for number in labelled]
    # thresholds are chosen on these
    samples = readable(loader.dataset, draw.choose_labelled(flags, 64)).values()
    pairs = [(s["input"], s["target"]) if isinstance(s, Mapping) else s[:2] for s in samples]
    images, targets = [image for image, _ in pairs], [target for _, target in pairs]
    detections = {
        name: _detect(model, images, run.experiment.device) for name, model in models.items()
    }
    index = draw.choose_labelled(targets)
    return draw.draw(
        [images[i] for i in index],
        [targets[i] for i in index],
        {name: [answers[i] for i in index] for name, answers in detections.items()},
        metrics,
        getattr(loader.dataset, "classes", None),
        stage_colors(run),
        pair,
        *(_inside(distiller, loader) if distiller else ({}, [])),
        {name: best_threshold(answers, targets) for name, answers in detections.items()},
    )


def _measured_models(
    run: "Run", distiller: TorchvisionDistiller | None, loader: Iterable[Mapping]
) -> tuple[dict, dict]:
    """The models that are drawn, and their figures, by name: teachers first."""
    names = [stage.name for stage in (*run.arms.teachers, *run.arms.pair)]
    models = {name: run.trained(name) for name in names}
    metrics = {name: run.done[name] for name in names}
    for name in distiller.teachers if distiller else ():
        # from a file: nobody has measured it yet
        if name not in models:
            model = functools.partial(distiller.detections, name)  # in the student's classes
            models, metrics = {name: model, **models}, {name: evaluate(model, loader), **metrics}
    return models, metrics


def _as_trained(run: "Run", stage: "Stage") -> TorchvisionDistiller:
    """The stage's distiller with the student that it ended with."""
    distiller = run.experiment.distiller(stage, run.files)
    load_weights(distiller.student, run.folder(stage) / "last.pth")
    distiller.eval()
    return distiller


def _detect(model: nn.Module, images: Sequence[Tensor], device: torch.device) -> list[dict]:
    batches = [[image.to(device) for image in images[i : i + 8]] for i in range(0, len(images), 8)]
    return detections_of(model, [{"input": batch, "target": None} for batch in batches])[0]


def _inside(
    distiller: TorchvisionDistiller, loader: Iterable[Mapping], batches: int = 4
) -> tuple[dict[str, tuple], list[tuple]]:
    """Squared errors of boxes by head, and maps of ADL's weights, of the first test batches; what
    the losses do not use is left out.
    """
    teacher = next(iter(distiller.teachers))
    errors: dict[str, list] = {}
    weights: list[tuple] = []
    for batch in itertools.islice(loader, batches):
        tensors = distiller.tensors(batch)
        for head in ("rpn", "rois", "anchors"):
            names = [f"{head}.student.deltas", f"{head}.{teacher}.deltas", f"{head}.target"]
            if all(name in tensors for name in names):
                deltas = [tensors[name].detach().cpu().double() for name in names]
                errors.setdefault(head, []).append(box_errors(*deltas))
        weights = weights or _weight_rows(distiller, teacher, batch, tensors)
    return {
        head: (*map(torch.cat, zip(*pairs)), _margin(distiller, head))
        for head, pairs in errors.items()
    }, weights


def _weight_rows(
    distiller: TorchvisionDistiller, teacher: str, batch: Mapping, tensors: Mapping
) -> list[tuple]:
    """``(image, maps, (height, width) of what they span)`` of the first images of a batch; none
    without a dense head's logits.
    """
    from kdtasks.detection.anchor_maps import adl_weight_map, over_levels, probability_map

    pair = [tensors.get(f"{role}.cls_logits") for role in ("student", teacher)]
    if any(logits is None for logits in pair):
        return []
    seen = tensors["student.seen"]
    sizes = [tuple(level.shape[-2:]) for level in seen.features.values()]
    adl = next((loss for loss in distiller.losses.values() if isinstance(loss, ADLLoss)), None)
    settings = {name: adl.settings[name] for name in ("gamma", "beta")} if adl else {}
    padded, rows = seen.batch.tensors.shape[-2:], []
    for k, (image, student_logits, teacher_logits) in enumerate(zip(batch["input"][:4], *pair)):
        probability = over_levels(probability_map(teacher_logits, sizes))
        weight = over_levels(adl_weight_map(student_logits, teacher_logits, sizes, **settings))
        size = seen.batch.image_sizes[k]
        span = [p * full / part for p, full, part in zip(padded, image.shape[-2:], size)]
        maps = [("teacher's probability", probability), ("adaptive weight", weight)]
        rows.append((image.cpu(), maps, tuple(span)))
    return rows


def _margin(distiller: TorchvisionDistiller, head: str) -> float:
    """Of the bounded regression of a head; 0 without one."""
    losses = [loss for loss, names, _ in distiller.terms.values() if f"{head}.target" in names]
    return getattr(losses[0], "margin", 0.0) if losses else 0.0
