"""Figures of a distilled classifier.

Of every run: accuracy of each class (``classes``), images whose answer changed (``changes``), and
reliability of the confidence (``reliability``). Of a method, where the run's stages, losses or
distiller are its own: boundary samples (``boundaries``), agreement of peers (``peers``), signs of
the responses before a ReLU (``signs``), and accuracy along a chain of students (``chain``) or a
route of anchors (``route``).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from kdtasks.classification.pictures import boundaries, chain, peers, route, signs
from kdtasks.classification.pictures.changes import draw_changes, draw_mistakes
from kdtasks.classification.pictures.classes import draw_classes
from kdtasks.classification.pictures.counting import Answers, answers
from kdtasks.classification.pictures.reliability import draw_reliability
from kdtasks.images.display import pictures_of

__all__ = ["Answers", "answers", "class_names", "draw", "draw_method"]

if TYPE_CHECKING:
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.run import Run


def draw(
    models: Mapping[str, Answers], pair: Sequence[str], loader: "Loader", colors: Mapping[str, str]
) -> list[tuple]:
    """``[(title, figure)]``: the figures of every run.

    Args:
        models: answers by name, in the order of drawing; none: no pictures.
        pair: those of them that are students, the one without a teacher first: two, one or none.
        loader: of the test data; ``loader.dataset.classes`` are the names of the classes.
        colors: by name of the model.
    """
    if not models:
        return []
    names = class_names(models, loader)

    def images(index: Tensor) -> list:
        return pictures_of(loader, index)

    if len(pair) == 2:
        first = draw_classes(models, names, colors, pair)
        second = draw_changes(models[pair[0]], models[pair[1]], names, images, pair, colors)
    else:
        model = [*pair, *models][0]
        first = draw_classes(models, names, colors)
        second = draw_mistakes(models[model], names, images, model, colors)
    return [first, second, draw_reliability(models, colors)]


def draw_method(
    run: "Run", names: Sequence[str], loader: "Loader", colors: Mapping[str, str]
) -> list[tuple]:
    """``[(title, figure)]``: the figures of the methods that a run has, found from its stages,
    losses and distiller.

    Args:
        run: of which a stage or more has finished.
        names: of the classes.
        loader: of the test data.
        colors: by name of the stage.
    """
    return [
        *boundaries.pictures(run, loader, names, colors),
        *peers.pictures(run, loader, names, colors),
        *signs.pictures(run, loader, colors),
        *chain.pictures(run, loader, colors),
        *route.pictures(run, loader, colors),
    ]


def class_names(models: Mapping[str, Answers], loader: "Loader") -> list[str]:
    """The classes' names of the data set, and numbers of further classes."""
    names = [str(name) for name in getattr(loader.dataset, "classes", None) or ()]
    numbers = []
    for answered in models.values():
        numbers += [answered.target, answered.answer]
    highest = max((int(column.max()) for column in numbers if len(column)), default=-1)
    return names + [str(number) for number in range(len(names), highest + 1)]
