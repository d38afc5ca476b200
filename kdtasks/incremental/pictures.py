"""Figures of a run over a stream of experiences: accuracy matrices, accuracy and forgetting after
each experience, where the old and the new model look, and what was taken from the pool of
unlabelled images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.choices import evenly_spaced
from kdtasks.core.stages import Stage
from kdtasks.engine.reader import readable
from kdtasks.images.display import add_axes, draw_image, pictures_of, shortened, write
from kdtasks.incremental.data import IncrementalSet, unaugmented
from kdtasks.incremental.lwm import LwMDistiller, lwm_attention_loss
from kdtasks.incremental.metrics import forgetting
from kdtasks.incremental.sampling import scores_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

    from kdtasks.engine.run import Run

# old images whose attention is drawn; those over which its distance is averaged
SHOWN, MEASURED = 8, 256
# classes whose confident images are drawn, and how many of each
CLASSES, BEST = 5, 9
NUMBERED = 20  # experiences up to which the numbers fit into a matrix
CHUNK = 64  # images in a forward
# inches
WIDTH, GAP, LINE, HEAD = 10.4, 0.28, 0.155, 0.27
INK, SOFT = "#1B2330", "#526071"
CLASS_IL = "class-incremental: the answer is one of all classes seen so far"
TASK_IL = "task-incremental: the answer is one of the classes of the image's own experience"


def draw(run: "Run", colors: Mapping[str, str]) -> list[tuple]:
    """``[(title, figure)]``: all that there is to see so far.

    Args:
        run: stages may be missing.
        colors: by name of the stage.
    """
    arms, drawn = arms_of(run), []
    if arms:
        class_il, task_il = (
            {goal: run.done[stage.name][key] for goal, stage in arms.items()}
            for key in ("matrix", "matrix_task_il")
        )
        joint = next((stage.name for stage in run.experiment.arms.joint), "")
        found = run.done.get(joint, {})
        wholes = [found.get(key) for key in ("average_accuracy", "average_accuracy_task_il")]
        for matrices, meaning in ((class_il, CLASS_IL), (task_il, TASK_IL)):
            drawn.append(
                draw_matrices(
                    {arms[goal].name: matrix for goal, matrix in matrices.items()}, meaning
                )
            )
        drawn.append(draw_course(class_il, task_il, colors, wholes, joint))
        path = run.experiment.config["distiller"].get("attention")
        drawn += [draw_attention(*attention_of(run, arms, path))] if path else []
    picked = picked_of(run)
    return [*drawn, draw_picked(picked)] if picked else drawn


def arms_of(run: "Run") -> dict[str, Stage]:
    """For the control and for the final student: the last finished stage on the way to it, where
    this has a whole matrix of at least two experiences.
    """
    experiment, arms = run.experiment, {}
    control, final = experiment.arms.control, experiment.arms.final
    for goal in experiment.arms.pair:
        # a control on its own has its own beginning as the final student
        if control and goal is final and goal in experiment.chain(control):
            continue
        found = [
            stage
            for stage in experiment.chain(goal)
            if _is_whole(run.done.get(stage.name, {}).get("matrix", []))
        ]
        arms |= {goal.name: found[-1]} if found else {}
    return arms


def _is_whole(matrix: Sequence[Sequence[float]]) -> bool:
    return len(matrix) > 1 and all(len(row) == i + 1 for i, row in enumerate(matrix))


# Numbers ------------------------------------------------------------------------------------------
def draw_matrices(matrices: Mapping[str, Sequence[Sequence[float]]], meaning: str) -> tuple:
    """``(title, figure)``: accuracy matrices in percent side by side, each with rows of 1, 2, … T
    entries, by name of the stage; what the accuracy is of.
    """
    from matplotlib.figure import Figure

    count = max(map(len, matrices.values()))
    figure = Figure(figsize=(WIDTH * (1 + len(matrices)) / 3, 0.85 + min(0.42 * count, 4.6)))
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (name, matrix) in zip(panels, matrices.items()):
        mesh = _draw_matrix(axes, matrix, count)
        axes.set(title=name, ylim=(count, 0), xlabel="tested on experience")
    panels[0].set_ylabel("after experience")
    figure.colorbar(mesh, ax=list(panels), fraction=0.03, pad=0.02).outline.set_visible(False)
    return (
        f"Accuracy, %, on the test images of each experience (columns) after each experience "
        f"(rows); {meaning}",
        figure,
    )


def _draw_matrix(axes: "Axes", matrix: Sequence[Sequence[float]], count: int) -> object:
    """One matrix, of a figure whose largest has ``count`` rows; returns what a colorbar needs."""
    values = torch.full((count, count), torch.nan)
    for i, row in enumerate(matrix):
        values[i, : i + 1] = torch.tensor(row)
    mesh = axes.pcolormesh(
        values.numpy(),
        cmap="viridis",
        vmin=0,
        vmax=100,
        edgecolor="white",
        linewidth=1 if count <= NUMBERED else 0.3,
    )
    if count <= NUMBERED:
        _write_numbers(axes, matrix, count)
    numbers = _numbers(count)
    axes.set_xticks([k - 0.5 for k in numbers], numbers)
    axes.set_yticks([k - 0.5 for k in numbers], numbers)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return mesh


def _write_numbers(axes: "Axes", matrix: Sequence[Sequence[float]], count: int) -> None:
    digits, size = (1, 9.5) if count <= 10 else (0, 8)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            axes.text(
                j + 0.5,
                i + 0.5,
                f"{value:.{digits}f}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if value < 50 else INK,
            )


def draw_course(
    class_il: Mapping[str, Sequence],
    task_il: Mapping[str, Sequence],
    colors: Mapping[str, str],
    joint: Sequence[float | None] = (None, None),
    joint_name: str = "joint",
) -> tuple:
    """``(title, figure)``: the average accuracy on all that was seen, and forgetting, after each
    experience.

    Args:
        class_il, task_il: matrices by name of the model.
        colors: by name of the model, and of ``joint_name``.
        joint: average accuracies of the model that has learned all at once, class- and
            task-incremental.
        joint_name: its name.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 3.9))
    left, right = figure.subplots(1, 2)
    styles = {"class-IL": "-", "task-IL": (0, (4, 2))}
    for style, matrices, accuracy in zip(styles.values(), (class_il, task_il), joint):
        for name, matrix in matrices.items():
            _draw_line(left, right, matrix, colors[name], style)
        if accuracy is not None:
            left.axhline(accuracy, color=colors[joint_name], linestyle=style, linewidth=1.5)
    longest = max(map(len, class_il.values()))
    for axes in (left, right):
        axes.set(xticks=_numbers(longest), xlim=(0.8, longest + 0.2), xlabel="after experience")
    left.set(ylim=(0, 100), ylabel="accuracy, %", title="Mean accuracy over the experiences so far")
    right.set(ylabel="points", title="Forgetting: the best so far − now, mean over the old")
    right.axhline(0, color="#AEB7C4", linewidth=1, zorder=0)
    models = list(class_il) if joint[0] is None else [*class_il, joint_name]
    _draw_legend(figure, {name: colors[name] for name in models}, styles)
    both = min(map(len, class_il.values()))
    results = []
    for name, matrix in class_il.items():
        accuracy, lost = sum(matrix[both - 1]) / both, forgetting(matrix[:both])
        results.append(f"{name} {accuracy:.1f} % and {lost:.1f} points")
    return (
        f"Accuracy and forgetting after each experience; after experience {both}, "
        f"class-incremental: {'; '.join(results)}",
        figure,
    )


def _draw_line(
    left: "Axes", right: "Axes", matrix: Sequence[Sequence[float]], color: str, style: str | tuple
) -> None:
    """One model's mean accuracy, and its forgetting from the second experience on."""
    looks = {"color": color, "linestyle": style, "marker": "o", "markersize": 4.5, "clip_on": False}
    count = range(1, len(matrix) + 1)
    left.plot(count, [sum(row) / len(row) for row in matrix], **looks)
    right.plot(count[1:], [forgetting(matrix[:k]) for k in count[1:]], **looks)


def _draw_legend(
    figure: "Figure", colors: Mapping[str, str], styles: Mapping[str, str | tuple]
) -> None:
    """Colours are the models, styles the kinds of accuracy."""
    from matplotlib.lines import Line2D

    lines = {name: Line2D([], [], color=color) for name, color in colors.items()}
    for name, style in styles.items():
        lines[name] = Line2D([], [], color=SOFT, linestyle=style)
    place = {"loc": "outside upper right", "ncols": len(lines), "handlelength": 2.6}
    figure.legend(lines.values(), lines, **place)


def _numbers(count: int) -> range:
    """The experiences whose numbers stand on an axis."""
    return range(1, count + 1) if count <= NUMBERED else range(5, count + 1, 5)


# Attention ----------------------------------------------------------------------------------------
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
            for inputs in _chunks(dataset, index, experiment.seed)
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


# The pool -----------------------------------------------------------------------------------------
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
    taken = torch.load(folder / f"{stage.name}.pth", weights_only=True)
    confident, random = taken["confident"], taken["random"]
    if not len(confident) + len(random):
        return None
    pool, test = unaugmented(data.pool), experiment.test_loader(stage).dataset
    model, score = run.trained(stage.name), data.sampling.get("score", "logit")

    def scored(index: Tensor) -> Tensor:
        """(n, l) scores of pool images."""
        chunks = _chunks(pool, index, experiment.seed)
        return torch.cat([scores.cpu() for scores in scores_of(model, chunks, score=score)])

    source = _readable(pool, experiment.seed)
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


# Images -------------------------------------------------------------------------------------------
def inputs_of(dataset: object, index: Tensor, seed: int) -> Tensor:
    """``(b,C,H,W)``: a model's inputs of the samples ``index``."""
    if callable(getattr(dataset, "batch", None)):
        return dataset.batch(index, torch.zeros_like(index), seed)["input"]
    inputs = []
    for i in index.tolist():
        sample = dataset[i]
        if isinstance(sample, Mapping):
            sample = sample["input"]
        elif isinstance(sample, list | tuple):
            sample = sample[0]
        inputs.append(torch.as_tensor(sample))
    return torch.stack(inputs)


def _chunks(dataset: object, index: Tensor, seed: int) -> Iterator[Tensor]:
    """A model's inputs, at most ``CHUNK`` samples at a time."""
    for part in index.split(CHUNK):
        yield inputs_of(dataset, part, seed)


def images_of(dataset: IncrementalSet, index: Tensor) -> list:
    """Arrays (H,W) or (H,W,3) in [0,1] of the samples ``index``, as their own data set has them."""
    images = []
    for i in index.tolist():
        source = _readable(dataset.sources[int(dataset.source_index[i])], dataset.seed)
        images += pictures_of(source, dataset.places[i : i + 1])
    return images


def _readable(dataset: object, seed: int) -> SimpleNamespace:
    """What :func:`kdtasks.images.display.pictures_of` reads of a loader."""
    return SimpleNamespace(dataset=dataset, seed=seed)


@dataclass
class Cell:
    """A picture in a gallery, the lines of text below it, and the cells that these may run over."""

    image: object
    text: tuple[str, ...] = ()
    span: int = 1


def gallery(
    rows: Sequence[tuple[Mapping[int, str], Sequence[Cell | None]]], gaps: Sequence[int] = ()
) -> "Figure":
    """A figure of rows of cells, each row with headings by column; ``gaps`` are columns that stand
    off from the one before.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import PlaceHolderLayoutEngine

    columns = max(len(cells) for _, cells in rows)
    step = (WIDTH - 0.03 - GAP * len(gaps)) / columns
    side = step - 0.06
    lefts = [0.03 + k * step + GAP * sum(k >= gap for gap in gaps) for k in range(columns)]
    heights = [_row_height(headings, cells, side) for headings, cells in rows]
    figure = Figure(
        figsize=(WIDTH, sum(heights)),
        layout=PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True),
    )
    top = 0.0
    for (headings, cells), height in zip(rows, heights):
        for column, text in headings.items():
            font = {"fontsize": 9, "fontweight": "bold", "color": INK}
            write(figure, lefts[column], top + 0.04, text, **font)
        below_headings = top + (HEAD if headings else 0)
        for left, cell in zip(lefts, cells):
            if cell is not None and cell.image is not None:
                _draw_cell(figure, cell, left, below_headings, side)
        top += height
    return figure


def _row_height(headings: Mapping[int, str], cells: Sequence[Cell | None], side: float) -> float:
    """In inches."""
    lines = max(len(cell.text) for cell in cells if cell)
    return (HEAD if headings else 0) + side + LINE * lines + 0.12


def _draw_cell(figure: "Figure", cell: Cell, left: float, top: float, side: float) -> None:
    """The picture, ``side`` inches wide, and its text."""
    axes = add_axes(figure, left, top, side, side)
    draw_image(axes, cell.image, vmin=0, vmax=1)
    most = int(72 * side * cell.span / 4.7)
    for k, line in enumerate(cell.text):
        text = shortened(line, most)
        write(figure, left, top + side + 0.03 + LINE * k, text, fontsize=8, color=INK)
