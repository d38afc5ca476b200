"""Boundary samples (BSS): test images before and after the teacher's attack, and the similarity of
its moves and the students' own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtasks.classification.pictures.attacks import Attacked, attacks
from kdtasks.core.choices import evenly_spaced
from kdtasks.engine.report.style import INK, WIDTH, free_figure
from kdtasks.general import perturbation_similarity
from kdtasks.images.display import add_axes, draw_image, pictures_of, shortened, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy import ndarray

    from kdtasks.engine.loader import Loader
    from kdtasks.engine.run import Run


def pictures(
    run: "Run", loader: "Loader", names: Sequence[str], colors: Mapping[str, str]
) -> list[tuple]:
    """``[(title, figure)]``: the teacher's boundary samples, and the similarity of moves of the
    control and the student that counts.

    Args:
        run: of stages that have finished.
        loader: of the test data.
        names: of the classes.
        colors: by name of the model.
    """
    final = run.arms.final
    attacked = attacks(run, final) if final else None
    if attacked is None:
        return []
    teacher = attacked.of()
    students = {stage.name: attacked.of(run.trained(stage.name)) for stage in run.arms.pair}
    drawn = [draw_samples(teacher, names, loader), draw_similarity(teacher, students, colors)]
    return [picture for picture in drawn if picture]


def draw_samples(teacher: Attacked, names: Sequence[str], loader: "Loader") -> tuple | None:
    """``(title, figure)``: test images, their boundary samples and the difference, with the
    teacher's probabilities of both classes; None where the teacher gets none right.

    Those shown are spread evenly, not chosen.
    """

    right = teacher.right.nonzero()[:, 0]
    if not len(right):
        return None
    answer = teacher.after.argmax(1)
    crossed = int((answer == teacher.target)[right].sum())
    stayed = int((answer == teacher.base)[right].sum())
    title = (
        f"Boundary samples: of {len(right)} test images that the teacher gets right, its attack "
        f"brings {crossed} into the target class (its second answer), "
        f"{len(right) - crossed - stayed} into another, and leaves {stayed}; below, its "
        "probabilities before and after"
    )
    columns = 8 if max(map(len, names)) <= 3 else 6
    places = right[evenly_spaced(len(right), columns)]
    raw = pictures_of(loader, teacher.index[places])
    shown = [_shown(*sample) for sample in zip(raw, teacher.input[places], teacher.moved[places])]
    greatest = max(abs(after - before).max() for before, after in shown)
    scale = 0.5 / max(float(greatest), 1e-6)
    left, cell = 1.05, (WIDTH - 1.05) / columns
    side, gap = cell * 0.86, 0.08
    figure = free_figure(WIDTH, 3 * (side + gap) + 0.62)
    labels = ["test image", "boundary\nsample", f"difference\n× {scale:.2g} (grey:\nno change)"]
    for row, label in enumerate(labels):
        write(figure, 0, row * (side + gap) + 0.1, label, fontsize=9.5)
    for column, (place, (before, after)) in enumerate(zip(places.tolist(), shown)):
        corner = left + column * cell
        difference = 0.5 + scale * (after - before)
        for row, image in enumerate((before, after, difference)):
            axes = add_axes(figure, corner, row * (side + gap), side, side)
            draw_image(axes, image.clip(0, 1), vmin=0, vmax=1)
        for line, text in enumerate(_probabilities(teacher, place, names)):
            write(figure, corner, 3 * (side + gap) + 0.18 * line, text, fontsize=9, color=INK)
    return title, figure


def _shown(picture: "ndarray", clean: Tensor, moved: Tensor) -> tuple["ndarray", "ndarray"]:
    """An image before and after the attack, as ``picture`` shows the first: each channel by the
    straight line that leads from ``clean`` to it.
    """
    clean, moved = ((x[:3].movedim(0, -1) if len(x) >= 3 else x[0]).numpy() for x in (clean, moved))
    if picture.shape != clean.shape:
        picture = (clean - clean.min()) / max(clean.max() - clean.min(), 1e-12)
    x, y = clean - clean.mean((0, 1)), picture - picture.mean((0, 1))
    slope = (x * y).sum((0, 1)) / (x * x).sum((0, 1)).clip(1e-12)
    return picture, picture + slope * (moved - clean)


def _probabilities(teacher: Attacked, place: int, names: Sequence[str]) -> list[str]:
    """``'8: 97→48 %'`` of both classes, and of another one that is the answer now."""
    base, target = int(teacher.base[place]), int(teacher.target[place])
    answer = int(teacher.after[place].argmax())
    return [
        f"{shortened(names[c], 9)}: {100 * teacher.before[place, c]:.0f}→"
        f"{100 * teacher.after[place, c]:.0f} %"
        for c in dict.fromkeys((base, target, answer))
    ]


def draw_similarity(
    teacher: Attacked, students: Mapping[str, Attacked], colors: Mapping[str, str]
) -> tuple | None:
    """``(title, figure)``: MagSim and AngSim of each image, of the students' moves and the
    teacher's; None where no image is right for all.
    """
    from matplotlib.figure import Figure

    right = torch.stack([model.right for model in (teacher, *students.values())]).all(0)
    sizes = {name: _each(student, teacher, right) for name, student in students.items()}
    if not any(len(values) for both in sizes.values() for values in both):
        return None
    means = [
        f"{name} {magnitude.mean():.2f} and {angle.mean():.2f}"
        for name, (magnitude, angle) in sizes.items()
    ]
    title = (
        "MagSim and AngSim of the teacher's moves and each student's own (1: the same move), on "
        f"the {int(right.sum())} of {len(right)} test images that all of them get right; means: "
        f"{'; '.join(means)}"
    )
    figure = Figure(figsize=(WIDTH, 3.2))
    panels = figure.subplots(1, 2)
    labels = "MagSim, shorter move / longer move", "AngSim, cosine of the two moves"
    for axes, label, k in zip(panels, labels, (0, 1)):
        _draw_histogram(axes, {name: both[k] for name, both in sizes.items()}, colors)
        axes.set_xlabel(label)
    panels[0].set_ylabel("images, %")
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=2, loc="outside upper right")
    return title, figure


def _each(student: Attacked, teacher: Attacked, rows: Tensor) -> tuple[Tensor, Tensor]:
    """MagSim and AngSim of each of these rows in which both have moved."""
    moves = zip(student.move[rows].split(1), teacher.move[rows].split(1))
    similarities = [
        torch.stack(perturbation_similarity(student_move, teacher_move))
        for student_move, teacher_move in moves
    ]
    both = torch.stack(similarities).T if similarities else torch.zeros(2, 0)
    magnitude, angle = both[:, ~both.isnan().any(0)]
    return magnitude, angle


def _draw_histogram(axes: "Axes", values: Mapping[str, Tensor], colors: Mapping[str, str]) -> None:
    lowest = min(
        0.0, *(float(similarities.min()) for similarities in values.values() if len(similarities))
    )
    bins = [k / 20 for k in range(math.floor(20 * lowest), 21)]
    for name, similarities in values.items():
        share = [100 / max(len(similarities), 1)] * len(similarities)
        style = {"color": colors[name], "alpha": 0.35, "histtype": "stepfilled"}
        axes.hist(similarities.tolist(), bins, weights=share, label=name, **style)
        axes.hist(similarities.tolist(), bins, weights=share, color=colors[name], histtype="step")
        axes.axvline(float(similarities.mean()), color=colors[name], linewidth=1.6)
    axes.set_xlim(bins[0], 1)
