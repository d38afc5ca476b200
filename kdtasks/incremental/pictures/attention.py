"""Where the student looks before its last experience and after, for old classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.choices import evenly_spaced
from kdtasks.core.stages import Stage
from kdtasks.engine.reader import readable
from kdtasks.incremental.data import IncrementalSet
from kdtasks.incremental.lwm import LwMDistiller, lwm_attention_loss
from kdtasks.incremental.pictures.gallery import Cell, chunks_of, gallery, images_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy import ndarray

    from kdtasks.engine.run import Run

# old images whose attention is drawn; those over which its distance is averaged
SHOWN, MEASURED = 8, 256


@dataclass
class Looks:
    """Where a student looks after the last experience, and where it looked before it, for the old
    class that it now finds likeliest: names of the two stages, the class (n,), both maps (n,h,w) of
    L2 norm 1 (or dead: 0), and their L1 distance (n,).
    """

    before: str
    after: str
    attended: Tensor
    maps: tuple[Tensor, Tensor]
    distance: Tensor


@torch.no_grad()
def looks(
    before: nn.Module, after: nn.Module, attention: str, inputs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """LwM's b, (B,), and the maps of the student before and after the experience, (B,h,w), as in
    its training but in eval.
    """
    loss = (lwm_attention_loss, ("student.attention", "before.attention"))
    distiller = LwMDistiller(after, {"before": before}, {"loss": loss}, attention=attention)
    distiller.eval()
    student = distiller.outputs(
        "student", {"input": inputs}, ["student.attention", "student.attended"]
    )
    attended = student["student.attended"]
    batch = {"input": inputs, "student.attended": attended}
    teacher = distiller.outputs("before", batch, ["before.attention"])
    return attended, teacher["before.attention"], student["student.attention"]


def attention_of(run: "Run", arms: Mapping[str, Stage], path: str) -> tuple:
    """The arguments of :func:`draw_attention`, for test images of the old classes that are spread
    evenly over the test set.
    """
    experiment = run.experiment
    dataset = experiment.test_loader(list(arms.values())[-1]).dataset
    pairs = []
    for stage in arms.values():
        counts = run.done[stage.name]["class_counts"]
        index = _old_images(dataset, sum(counts[:-1]))
        before = next(
            earlier.name
            for earlier in reversed(experiment.chain(stage))
            if run.done[earlier.name]["class_counts"] == counts[:-1]
        )
        models = run.trained(before), run.trained(stage.name)
        parts = [
            looks(*models, path, inputs.to(experiment.device))
            for inputs in chunks_of(dataset, index, experiment.seed)
        ]
        attended, *maps = (torch.cat(column).cpu() for column in zip(*parts))
        old, new = (F.normalize(m.flatten(1)).view_as(m) for m in maps)
        distance = (old - new).abs().sum((1, 2))
        pairs.append(Looks(before, stage.name, attended, (old, new), distance))
    images = images_of(dataset, index[evenly_spaced(len(index), SHOWN)])
    return pairs, images, dataset.target[index], dataset.classes


def _old_images(dataset: IncrementalSet, old_classes: int) -> Tensor:
    """Up to ``MEASURED`` samples of the first classes, less those that cannot be read."""
    old = (dataset.target < old_classes).nonzero()[:, 0]
    index = old[evenly_spaced(len(old), MEASURED)]
    if callable(getattr(dataset, "batch", None)):
        return index
    return torch.tensor(list(readable(dataset, index.tolist())), dtype=torch.int64)


def draw_attention(
    pairs: Sequence[Looks], images: Sequence, target: Tensor, classes: Sequence[str]
) -> tuple:
    """``(title, figure)``: images and, over them, the maps of each pair of models.

    Args:
        pairs: of the same n images.
        images: arrays of those to be drawn, evenly spaced among the n.
        target: (n,) their classes.
        classes: names of the columns.
    """
    rows = []
    for image, place in zip(images, evenly_spaced(len(target), SHOWN)):
        label = classes[target[place]]
        rows.append([Cell(image, (label,)), *_attention_cells(image, place, pairs, classes)])
    headings = ["image"]
    for pair in pairs:
        headings += [pair.before, pair.after]
    means = ", ".join(f"{pair.after} {pair.distance.mean():.2f}" for pair in pairs)
    most = (2 * pairs[0].maps[0][0].numel()) ** 0.5
    title = (
        "Where the student looks (Grad-CAM) before its last experience and after, for the old "
        "class that it then finds likeliest; below: this class and LwM's distance of the two "
        f"maps, at most {most:.1f}. Mean of {len(target)} test images of old classes: {means}"
    )
    return title, _two_columns(headings, rows)


def _attention_cells(
    image: "ndarray", place: int, pairs: Sequence[Looks], classes: Sequence[str]
) -> list["Cell"]:
    """Two cells a pair, all maps of the image on one scale."""
    top = max(float(m[place].max()) for pair in pairs for m in pair.maps)
    cells = []
    for pair in pairs:
        old, new = (overlay(image, m[place] / max(top, 1e-12)) for m in pair.maps)
        text = f"for {classes[pair.attended[place]]}: {pair.distance[place]:.2f}"
        cells += [Cell(old, (text,), span=2), Cell(new)]
    return cells


def _two_columns(headings: Sequence[str], rows: Sequence[list]) -> "Figure":
    """A gallery with the second half of the rows to the right of the first half. Each row is an
    image and pairs of maps.
    """
    half, width = -(-len(rows) // 2), len(headings)
    left, right = rows[:half], list(rows[half:])
    right += [[None] * width] * (half - len(right))
    lines: list[tuple] = [({}, [*a, *b]) for a, b in zip(left, right)]
    lines[0] = (dict(enumerate([*headings, *headings])), lines[0][1])
    gaps = [width, width]
    for start in (0, width):
        gaps += range(start + 1, start + width, 2)
    return gallery(lines, gaps)


def overlay(image: "ndarray", attention: Tensor) -> "ndarray":
    """A map (h,w) in [0,1] over an array (H,W) or (H,W,3) in [0,1] that has lost its colours:
    (H,W,3).
    """
    from matplotlib import colormaps

    enlarged = F.interpolate(attention[None, None], image.shape[:2], mode="bilinear")[0, 0]
    grey = torch.from_numpy(image).float()
    if grey.dim() == 3:
        grey = grey @ grey.new_tensor([0.299, 0.587, 0.114])
    warm = torch.from_numpy(colormaps["inferno"](enlarged.clamp(0, 1).numpy())[..., :3])
    return (0.4 * grey[..., None] + 0.6 * warm).numpy()
