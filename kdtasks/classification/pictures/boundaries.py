"""Boundary samples (BSS): test images before and after the teacher's attack, and how alike the
moves are that bring the same images over the teacher's boundary and over a student's own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.classification.pictures.style import INK, WIDTH
from kdtasks.core.choices import evenly_spaced
from kdtasks.core.stages import anchors_of, stage_reference
from kdtasks.engine.builder import resolve
from kdtasks.engine.loader import Loader
from kdtasks.general import BSSDistiller, boundary_samples, perturbation_similarity
from kdtasks.images.display import add_axes, draw_image, pictures_of, shortened, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy import ndarray

    from kdtasks.core import Stage
    from kdtasks.engine.run import Run

# test images that are attacked; ten moves of 256 images cost a model about as much as a test on
# 8,000
IMAGES = 256
# of them at once, which training attacks too
BATCH = 64
TEACHER = "teacher"


@dataclass
class Attacked:
    """What a model's own attack made of test images; all (N, …), on the CPU.

    Args:
        index: places of the images in the data set.
        base: their classes.
        target: the classes that they are moved to.
        input: the images as models see them.
        moved: the same behind the attack.
        before, after: (N, C) probabilities that the model gives to ``input`` and ``moved``.
    """

    index: Tensor
    base: Tensor
    target: Tensor
    input: Tensor
    moved: Tensor
    before: Tensor
    after: Tensor

    @property
    def right(self) -> Tensor:
        """bool (N,): the model's answer is the image's class, in which the attack begins."""
        return self.before.argmax(1) == self.base

    @property
    def move(self) -> Tensor:
        """The perturbation."""
        return self.moved - self.input


@dataclass
class Attacks:
    """The attacks of a run on the same test images, towards the same classes: each image's most
    likely class but its own, for the teacher.

    Nothing is drawn at random.

    Args:
        distiller: whose ``attack`` and bounds all models are attacked with; its teacher chooses.
        batches: of the test images.
    """

    distiller: BSSDistiller
    batches: Sequence[Mapping[str, Tensor]]

    def of(self, model: nn.Module | None = None) -> Attacked:
        """What a model in eval makes of the images; None: the teacher."""
        parts = [self._of_batch(model, batch) for batch in self.batches]
        return Attacked(*(torch.cat(column).cpu() for column in zip(*parts)))

    def _of_batch(self, model: nn.Module | None, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        teacher = self.distiller.teachers[TEACHER].in_float32
        score, input, base = model or teacher, batch["input"], batch["target"]
        with torch.no_grad():
            target = teacher(input).scatter(1, base[:, None], -torch.inf).argmax(1)
        bounds = self.distiller.low, self.distiller.high
        moved = boundary_samples(score, input, base, target, clip=bounds, **self.distiller.attack)
        with torch.no_grad():
            before, after = score(input).float().softmax(1), score(moved).float().softmax(1)
        return batch["index"], base, target, input, moved, before, after


def attacks(run: "Run", stage: "Stage", count: int = IMAGES) -> Attacks | None:
    """The attacks on ``count`` labelled test images, spread evenly, by the teacher of a stage, or
    for an untaught one by that of the student that counts.

    None where the run's distiller shows no boundary samples, or the teacher is not trained yet.
    """
    experiment = run.experiment
    kind = resolve(experiment.config["distiller"]["type"], "distiller")
    taught = stage if stage.teachers else experiment.final
    if not (isinstance(kind, type) and issubclass(kind, BSSDistiller)) or taught is None:
        return None
    names = [one.name for one in experiment.stages]
    references = [stage_reference(source, names) for source in anchors_of(taught)]
    if TEACHER not in taught.teachers or any(r and r[0] not in run.done for r in references):
        return None
    distiller = experiment.distiller(taught, run.files, anchor=-1)
    distiller.eval()
    batches = _test_batches(run, stage, count)
    return Attacks(distiller, batches) if batches else None


def _test_batches(run: "Run", stage: "Stage", count: int) -> list[dict]:
    """Labelled test images, spread evenly."""
    data, experiment = run.experiment.test_loader(stage).dataset, run.experiment
    target = torch.as_tensor(getattr(data, "target", torch.zeros(len(data)))).cpu()
    known = (target >= 0).nonzero()[:, 0]
    chosen = known[evenly_spaced(len(known), count)]
    if not len(chosen):
        return []
    options = {**experiment.loader_options(experiment.setting(stage, "data")), "workers": 0}
    loader = Loader(data, BATCH, shuffle=False, labelled=chosen, **options)
    return [batch for batch in loader if len(batch["input"])]


def similarity(student: Attacked, teacher: Attacked) -> dict[str, float]:
    """``magsim`` and ``angsim`` of the two models' moves
    (:func:`~kdtasks.general.perturbation_similarity`), and ``boundary_images``, of how many: those
    that both get right. Where both have moved none there is nothing.
    """
    both = student.right & teacher.right
    magnitude, angle = perturbation_similarity(student.move[both], teacher.move[both])
    if not magnitude.isfinite():
        return {}
    found = {"magsim": magnitude.item(), "angsim": angle.item()}
    return found | {"boundary_images": int(both.sum())}


def similarity_of(run: "Run", stage: "Stage") -> dict[str, float]:
    """:func:`similarity` of the student of a stage that has just ended and its teacher; nothing
    where the stage is not compared, or has no boundary samples.
    """
    arms = run.experiment.arms
    if stage not in (*arms.pair, *arms.compared):
        return {}
    found = attacks(run, stage)
    return similarity(found.of(run.trained(stage.name)), found.of()) if found else {}


# Figures ------------------------------------------------------------------------------------------
def pictures(
    run: "Run", loader: Loader, names: Sequence[str], colors: Mapping[str, str]
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
    found = attacks(run, final) if final else None
    if found is None:
        return []
    teacher = found.of()
    students = {stage.name: found.of(run.trained(stage.name)) for stage in run.arms.pair}
    drawn = [draw_samples(teacher, names, loader), draw_similarity(teacher, students, colors)]
    return [picture for picture in drawn if picture]


def draw_samples(teacher: Attacked, names: Sequence[str], loader: Loader) -> tuple | None:
    """``(title, figure)``: test images, their boundary samples and the difference, with the
    teacher's probabilities of both classes; None where the teacher gets none right.

    Those shown are spread evenly, not chosen.
    """
    from matplotlib.figure import Figure

    known = teacher.right.nonzero()[:, 0]
    if not len(known):
        return None
    answer = teacher.after.argmax(1)
    crossed = int((answer == teacher.target)[known].sum())
    stayed = int((answer == teacher.base)[known].sum())
    title = (
        f"Boundary samples: of {len(known)} test images that the teacher gets right, its attack "
        f"brings {crossed} into the target class (its second answer), "
        f"{len(known) - crossed - stayed} into another, and leaves {stayed}; below, its "
        "probabilities before and after"
    )
    columns = 8 if max(map(len, names)) <= 3 else 6
    places = known[evenly_spaced(len(known), columns)]
    raw = pictures_of(loader, teacher.index[places])
    shown = [_shown(*one) for one in zip(raw, teacher.input[places], teacher.moved[places])]
    greatest = max(abs(after - before).max() for before, after in shown)
    scale = 0.5 / max(float(greatest), 1e-6)
    left, cell = 1.05, (WIDTH - 1.05) / columns
    side, gap = cell * 0.86, 0.08
    figure = Figure(figsize=(WIDTH, 3 * (side + gap) + 0.62), layout="none")
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

    known = torch.stack([model.right for model in (teacher, *students.values())]).all(0)
    sizes = {name: _each(student, teacher, known) for name, student in students.items()}
    if not any(len(values) for both in sizes.values() for values in both):
        return None
    means = [
        f"{name} {magnitude.mean():.2f} and {angle.mean():.2f}"
        for name, (magnitude, angle) in sizes.items()
    ]
    title = (
        "MagSim and AngSim of the teacher's moves and each student's own (1: the same move), on "
        f"the {int(known.sum())} of {len(known)} test images that all of them get right; means: "
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
    found = [torch.stack(perturbation_similarity(own, other)) for own, other in moves]
    both = torch.stack(found).T if found else torch.zeros(2, 0)
    magnitude, angle = both[:, ~both.isnan().any(0)]
    return magnitude, angle


def _draw_histogram(axes: "Axes", values: Mapping[str, Tensor], colors: Mapping[str, str]) -> None:
    lowest = min(0.0, *(float(found.min()) for found in values.values() if len(found)))
    bins = [k / 20 for k in range(math.floor(20 * lowest), 21)]
    for name, found in values.items():
        share = [100 / max(len(found), 1)] * len(found)
        style = {"color": colors[name], "alpha": 0.35, "histtype": "stepfilled"}
        axes.hist(found.tolist(), bins, weights=share, label=name, **style)
        axes.hist(found.tolist(), bins, weights=share, color=colors[name], histtype="step")
        axes.axvline(float(found.mean()), color=colors[name], linewidth=1.6)
    axes.set_xlim(bins[0], 1)
