"""What to look at after a detector was distilled: ``boxes`` side by side, precision of the
``classes``, the ``bounds`` that the teacher sets (Chen et al.) and the ``weights`` of ADL.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from kdtasks.core.choices import evenly_spaced
from kdtasks.detection.pictures.bounds import draw_bounded
from kdtasks.detection.pictures.boxes import draw_detections
from kdtasks.detection.pictures.classes import draw_classes
from kdtasks.detection.pictures.weights import draw_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "choose_labelled",
    "draw",
    "draw_bounded",
    "draw_classes",
    "draw_detections",
    "draw_weights",
]


def choose_labelled(targets: Sequence, count: int = 4) -> list[int]:
    """Places of at most ``count`` images that have a target, evenly spaced."""
    labelled = [i for i, target in enumerate(targets) if target is not None]
    return [labelled[k] for k in evenly_spaced(len(labelled), count)]


def draw(
    images: Sequence[Tensor],
    targets: Sequence[Mapping],
    models: Mapping[str, Sequence[Mapping]],
    metrics: Mapping[str, Mapping[str, float]],
    classes: Sequence[str] | None,
    colors: Mapping[str, str],
    pair: Sequence[str] = (),
    bounded: Mapping[str, tuple] | None = None,
    weights: Sequence[tuple] = (),
    threshold: float | Mapping[str, float] = 0.5,
) -> list[tuple[str, "Figure"]]:
    """``[(title, figure)]``: all that there is to see; what is empty is left out.

    Args:
        images: (3,H,W) in [0,1], a few test images.
        targets: what is in them.
        models: detections in them, by name of the model, in the order of drawing.
        metrics: what :func:`kdtasks.detection.coco_metrics.coco_metrics` gives, by name of the
            model.
        classes: names; label k is ``classes[k-1]``.
        colors: by name of the model.
        pair: the two models (before, after) whose classes are compared.
        bounded: see :func:`draw_bounded`.
        weights: see :func:`draw_weights`.
        threshold: the least score of drawn boxes; one for all, or by name of the model.
    """
    figures = []
    if images:
        figures.append(draw_detections(images, targets, models, classes, colors, threshold))
    if any(name.startswith("map") for values in metrics.values() for name in values):
        figures.append(draw_classes(metrics, classes, colors, pair))
    if bounded:
        figures.append(draw_bounded(bounded))
    if weights:
        figures.append(draw_weights(weights))
    return figures
