"""Detection: what the engine needs to know of the task."""

import functools
import itertools

import torch
from torch import nn

from kdtasks.core.stages import final_stage
from kdtasks.core.weights import load_weights
from kdtasks.detection.adl import ADLLoss
from kdtasks.detection.coco_metrics import coco_metrics, detections_of
from kdtasks.detection.distiller import DetectionDistiller
from kdtasks.detection.export import onnx_form
from kdtasks.detection.predictions import predict, predict_arguments
from kdtasks.engine.data_sets import image_shape
from kdtasks.engine.reader import readable

__all__ = [
    "HIGHER_IS_BETTER",
    "PRIMARY",
    "evaluate",
    "example",
    "onnx_form",
    "pictures",
    "predict",
    "predict_arguments",
]

PRIMARY = "map"
HIGHER_IS_BETTER = True


def evaluate(model: nn.Module, loader) -> dict[str, float]:
    """COCO's twelve figures and the average precision of each class, in percent; see
    :func:`coco_metrics`.
    """
    classes = getattr(getattr(loader, "dataset", None), "classes", None)
    return coco_metrics(*detections_of(model, loader), classes)


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


def pictures(run) -> list[tuple]:
    """``[(title, figure)]`` on the test data: boxes side by side, precision of each class, where
    the teacher bounded the student's boxes (Chen et al.), and the adaptive weights (ADL).

    Whatever of teacher, alone and distilled there is takes part; a teacher from a file as the last
    stage used it.
    """
    from kdtasks.detection import pictures as draw  # what draws is imported only here
    from kdtasks.engine.report import stage_colors

    experiment, finished = run.experiment, run.finished
    if not finished:
        return []
    loader = experiment.test_loader(finished[-1])
    final = final_stage(finished)
    students = [final.name] if final else []
    taught = next((stage for stage in reversed(finished) if stage.teachers), None)
    names = [s.name for s in finished if s.name in experiment.config["teachers"]]
    names += [name for name in ("alone", *students) if name in run.done]
    models, metrics = (
        {name: run.trained(name) for name in names},
        {name: run.done[name] for name in names},
    )
    distiller = _as_trained(run, taught) if taught else None
    for name in distiller.teachers if distiller else ():
        # from a file: nobody has measured it yet
        if name not in models:
            model = functools.partial(distiller.detections, name)  # in the student's classes
            models, metrics = {name: model, **models}, {name: evaluate(model, loader), **metrics}
    labelled = getattr(loader.dataset, "target", [0] * len(loader.dataset))
    known = [None if int(one) < 0 else 0 for one in labelled]
    # thresholds are chosen on these
    samples = list(readable(loader.dataset, draw.choose_labelled(known, 64)).values())
    images, targets = [[s[key] for s in samples] for key in ("input", "target")]
    found = {name: _found(model, images, experiment.device) for name, model in models.items()}
    least = {name: draw.best_threshold(answers, targets) for name, answers in found.items()}
    few = draw.choose_labelled(targets)
    images, targets = [images[i] for i in few], [targets[i] for i in few]
    shown = {name: [answers[i] for i in few] for name, answers in found.items()}
    bounded, weights = _inside(distiller, loader) if distiller else ({}, [])
    return draw.draw(
        images,
        targets,
        shown,
        metrics,
        getattr(loader.dataset, "classes", None),
        stage_colors(run),
        [name for name in ("alone", *students) if name in models],
        bounded,
        weights,
        least,
    )


def _as_trained(run, stage):
    """The stage's distiller with the student that it ended with."""
    distiller = run.experiment.distiller(stage, run.files)
    load_weights(distiller.student, run.folder(stage) / "last.pth")
    distiller.eval()
    return distiller


def _found(model: nn.Module, images: list, device: torch.device) -> list[dict]:
    batches = [[image.to(device) for image in images[i : i + 8]] for i in range(0, len(images), 8)]
    return detections_of(model, [{"input": batch, "target": None} for batch in batches])[0]


def _inside(distiller: DetectionDistiller, loader, batches: int = 4) -> tuple[dict, list]:
    """Squared errors of boxes by head, and maps of ADL's weights, of the first test batches; what
    the losses do not use is left out.
    """
    from kdtasks.detection.pictures import (
        adl_weight_map,
        over_levels,
        probability_map,
        squared_errors,
    )

    teacher = next(iter(distiller.teachers))
    errors: dict[str, list] = {}
    weights: list[tuple] = []
    for batch in itertools.islice(loader, batches):
        known = distiller.tensors(batch)
        for head in ("rpn", "rois", "anchors"):
            names = [f"{head}.student.deltas", f"{head}.{teacher}.deltas", f"{head}.target"]
            if all(name in known for name in names):
                errors.setdefault(head, []).append(squared_errors(*(known[name] for name in names)))
        pair = [known.get(f"{role}.cls_logits") for role in ("student", teacher)]
        if all(logits is not None for logits in pair) and not weights:
            seen = known["student.seen"]
            sizes = [tuple(level.shape[-2:]) for level in seen.features.values()]
            found = next(
                (loss.settings for loss in distiller.losses.values() if isinstance(loss, ADLLoss)),
                {},
            )
            settings = {name: found[name] for name in ("gamma", "beta") if name in found}
            padded = seen.batch.tensors.shape[-2:]
            for k, image in enumerate(batch["input"][:4]):
                maps = [
                    ("teacher's probability", over_levels(probability_map(pair[1][k], sizes))),
                    (
                        "adaptive weight",
                        over_levels(adl_weight_map(pair[0][k], pair[1][k], sizes, **settings)),
                    ),
                ]
                span = [
                    p * full / part
                    for p, full, part in zip(padded, image.shape[-2:], seen.batch.image_sizes[k])
                ]
                weights.append((image.cpu(), maps, tuple(span)))
    return {
        head: (*map(torch.cat, zip(*pairs)), _margin(distiller, head))
        for head, pairs in errors.items()
    }, weights


def _margin(distiller: DetectionDistiller, head: str) -> float:
    return next(
        (
            getattr(loss, "margin", 0.0)
            for loss, of, _ in distiller.terms.values()
            if f"{head}.target" in of
        ),
        0.0,
    )
