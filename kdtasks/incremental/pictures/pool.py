"""What the student of an experience took from the pool of unlabelled images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtasks.core.choices import evenly_spaced
from kdtasks.engine import checkpoint
from kdtasks.images.display import pictures_of
from kdtasks.incremental.data import IncrementalSet, unaugmented
from kdtasks.incremental.pictures.gallery import Cell, chunks_of, gallery, images_of, source_of
from kdtasks.incremental.sampling import scores_of

if TYPE_CHECKING:
    from kdtasks.engine.run import Run

# classes whose confident images are drawn, and how many of each
CLASSES, BEST = 5, 9


@dataclass
class Picked:
    """What the student of an experience took from the pool.

    Attributes:
        stage: its name.
        pool, confident, random: numbers of images: in the pool, and taken in either way.
        score: ``'logit'`` or ``'prob'``, by which the confident ones were ranked.
        classes: ``{class: (test image or None, [(image, score)])}``, for some classes the confident
            images of largest score.
        others: ``[(image, likeliest class, score)]``, some that were drawn at random.
    """

    stage: str
    pool: int
    confident: int
    random: int
    score: str
    classes: dict[str, tuple]
    others: list


def picked_of(run: "Run") -> Picked | None:
    """The last choice in ``<work_dir>/sampled``; None if there is none, or nothing was taken."""
    experiment, folder = run.experiment, run.work_dir / "sampled"
    stages = [stage for stage in run.finished if (folder / f"{stage.name}.pth").exists()]
    if not stages:
        return None
    stage = stages[-1]
    data = experiment.data_set(experiment.setting(stage, "data"), "train")
    if not isinstance(data, IncrementalSet) or data.pool is None:
        return None
    taken = checkpoint.read(folder / f"{stage.name}.pth")
    confident, random = taken["confident"], taken["random"]
    if not len(confident) + len(random):
        return None
    pool, test = unaugmented(data.pool), experiment.test_loader(stage).dataset
    model, score = run.trained(stage.name), data.sampling.get("score", "logit")

    def scored(index: Tensor) -> Tensor:
        """(n, l) scores of pool images."""
        chunks = chunks_of(pool, index, experiment.seed)
        return torch.cat([scores.cpu() for scores in scores_of(model, chunks, score=score)])

    source = source_of(pool, experiment.seed)
    return Picked(
        stage.name,
        len(pool),
        len(confident),
        len(random),
        score,
        _best_of_classes(confident, scored, source, test),
        _some_of_random(random, scored, source, test.classes),
    )


def _best_of_classes(
    confident: Tensor,
    scored: Callable[[Tensor], Tensor],
    source: SimpleNamespace,
    test: IncrementalSet,
) -> dict[str, tuple]:
    """``Picked.classes``."""
    if not len(confident):
        return {}
    classes, scores = {}, scored(confident)
    for column in evenly_spaced(scores.shape[1], CLASSES):
        best = scores[:, column].argsort(descending=True, stable=True)[:BEST]
        images = pictures_of(source, confident[best])
        example = images_of(test, (test.target == column).nonzero()[:1, 0])
        classes[test.classes[column]] = (
            example[0] if example else None,
            list(zip(images, scores[best, column].tolist())),
        )
    return classes


def _some_of_random(
    random: Tensor,
    scored: Callable[[Tensor], Tensor],
    source: SimpleNamespace,
    classes: Sequence[str],
) -> list[tuple]:
    """``Picked.others``."""
    index = random[evenly_spaced(len(random), BEST)]
    if not len(index):
        return []
    scores, columns = scored(index).max(1)
    names = [classes[column] for column in columns.tolist()]
    return list(zip(pictures_of(source, index), names, scores.tolist()))


def draw_picked(picked: Picked) -> tuple:
    """``(title, figure)``: a row for each class, and one of those drawn at random."""
    score = {"logit": "logit", "prob": "log-probability"}[picked.score]
    rows: list[tuple] = []
    for name, (example, best) in picked.classes.items():
        cells = [Cell(image, (f"{value:.1f}",)) for image, value in best]
        rows.append(({}, [Cell(example, (name,)), *cells]))
    if rows:
        of_pool = f"of the pool, those of the largest {score} of this class"
        rows[0] = ({0: "test image", 1: of_pool}, rows[0][1])
    if picked.others:
        cells = [Cell(image, (name, f"{value:.1f}")) for image, name, value in picked.others]
        rows.append(
            ({1: f"drawn at random, with the class of the largest {score}"}, [None, *cells])
        )
    title = (
        f"What {picked.stage} took from the pool of {picked.pool:,} unlabelled images for the "
        f"experience after it: {picked.confident:,} on which it is confident, {picked.random:,} at "
        "random"
    )
    return title, gallery(rows, [1])
