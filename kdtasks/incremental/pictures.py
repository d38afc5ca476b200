"""What to look at after a stream of experiences: accuracy matrices, accuracy and forgetting on the
way, where the old and the new model look, and what was taken from the pool of unlabelled images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdtasks.core.choices import evenly_spaced
from kdtasks.core.stages import Stage
from kdtasks.engine.reader import readable
from kdtasks.images.display import pictures_of
from kdtasks.incremental.data import IncrementalSet, unaugmented
from kdtasks.incremental.lwm import LwMDistiller, lwm_attention_loss
from kdtasks.incremental.metrics import forgetting
from kdtasks.incremental.sampling import scores_of

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


def draw(run, colors: Mapping[str, str]) -> list[tuple]:
    """``[(title, figure)]``: all that there is to see so far.

    Args:
        run: a :class:`kdtasks.engine.run.Run`; stages may be missing.
        colors: by name of the stage.
    """
    arms, drawn = arms_of(run), []
    if arms:
        class_il, task_il = (
            {goal: run.done[stage.name][key] for goal, stage in arms.items()}
            for key in ("matrix", "matrix_task_il")
        )
        joint = [
            run.done.get("joint", {}).get(key)
            for key in ("average_accuracy", "average_accuracy_task_il")
        ]
        for matrices, meaning in ((class_il, CLASS_IL), (task_il, TASK_IL)):
            drawn.append(
                draw_matrices(
                    {arms[goal].name: matrix for goal, matrix in matrices.items()}, meaning
                )
            )
        drawn.append(draw_course(class_il, task_il, colors, joint))
        path = run.experiment.config["distiller"].get("attention")
        drawn += [draw_attention(*attention_of(run, arms, path))] if path else []
    picked = picked_of(run)
    return [*drawn, draw_picked(picked)] if picked else drawn


def arms_of(run) -> dict[str, Stage]:
    """For "alone" and for the distilled student: the last finished stage on the way to it, where
    this has a whole matrix of at least two experiences.
    """
    experiment, arms = run.experiment, {}
    goals, final = [s for s in experiment.stages if s.name == "alone"], experiment.final
    if final and not any(final in experiment.chain(goal) for goal in goals):
        goals.append(final)
    for goal in goals:
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
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    count, shades = max(map(len, matrices.values())), colormaps["viridis"]
    digits, size = (1, 9.5) if count <= 10 else (0, 8)
    figure = Figure(figsize=(WIDTH * (1 + len(matrices)) / 3, 0.85 + min(0.42 * count, 4.6)))
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (name, matrix) in zip(panels, matrices.items()):
        values = torch.full((count, count), torch.nan)
        for i, row in enumerate(matrix):
            values[i, : i + 1] = torch.tensor(row)
        drawn = axes.pcolormesh(
            values.numpy(),
            cmap=shades,
            vmin=0,
            vmax=100,
            edgecolor="white",
            linewidth=1 if count <= NUMBERED else 0.3,
        )
        if count <= NUMBERED:
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
        axes.set_xticks([k - 0.5 for k in _numbers(count)], _numbers(count))
        axes.set_yticks([k - 0.5 for k in _numbers(count)], _numbers(count))
        axes.set(title=name, ylim=(count, 0), xlabel="tested on experience")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    panels[0].set_ylabel("after experience")
    figure.colorbar(drawn, ax=list(panels), fraction=0.03, pad=0.02).outline.set_visible(False)
    return (
        f"Accuracy, %, on the test images of each experience (columns) after each experience "
        f"(rows); {meaning}",
        figure,
    )


def draw_course(
    class_il: Mapping[str, Sequence],
    task_il: Mapping[str, Sequence],
    colors: Mapping[str, str],
    joint: Sequence[float | None] = (None, None),
) -> tuple:
    """``(title, figure)``: the average accuracy on all that was seen, and forgetting, after each
    experience.

    Args:
        class_il, task_il: matrices by name of the model.
        colors: by name of the model, and of "joint".
        joint: average accuracies of the model that has learned all at once, class- and
            task-incremental.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure, kinds = Figure(figsize=(WIDTH, 3.9)), {"-": class_il, (0, (4, 2)): task_il}
    left, right = figure.subplots(1, 2)
    for (style, matrices), whole in zip(kinds.items(), joint):
        for name, matrix in matrices.items():
            looks = {
                "color": colors[name],
                "linestyle": style,
                "marker": "o",
                "markersize": 4.5,
                "clip_on": False,
            }
            count = range(1, len(matrix) + 1)
            left.plot(count, [sum(row) / len(row) for row in matrix], **looks)
            right.plot(count[1:], [forgetting(matrix[:k]) for k in count[1:]], **looks)
        if whole is not None:
            left.axhline(whole, color=colors["joint"], linestyle=style, linewidth=1.5)
    longest = max(map(len, class_il.values()))
    for axes in (left, right):
        axes.set(xticks=_numbers(longest), xlim=(0.8, longest + 0.2), xlabel="after experience")
    left.set(ylim=(0, 100), ylabel="accuracy, %", title="Mean accuracy over the experiences so far")
    right.set(ylabel="points", title="Forgetting: the best so far − now, mean over the old")
    right.axhline(0, color="#AEB7C4", linewidth=1, zorder=0)
    shown = {
        name: Line2D([], [], color=colors[name])
        for name in [*class_il, *["joint"] * (joint[0] is not None)]
    }
    shown |= {
        text: Line2D([], [], color=SOFT, linestyle=style)
        for text, style in zip(("class-IL", "task-IL"), kinds)
    }
    figure.legend(
        shown.values(), shown, loc="outside upper right", ncols=len(shown), handlelength=2.6
    )
    both = min(map(len, class_il.values()))
    said = "; ".join(
        f"{name} {sum(matrix[both - 1]) / both:.1f} % and {forgetting(matrix[:both]):.1f} points"
        for name, matrix in class_il.items()
    )
    return (
        f"Accuracy and forgetting after each experience; after experience {both}, "
        f"class-incremental: {said}",
        figure,
    )


def _numbers(count: int) -> range:
    """Of the experiences that an axis names."""
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
    """LwM's b, (B,), and the maps of the student after and before the experience, (B,h,w), as in
    its training but in eval.
    """
    loss = (lwm_attention_loss, ("student.attention", "before.attention"))
    distiller = LwMDistiller(after, {"before": before}, {"loss": loss}, attention=attention)
    distiller.eval()
    found = distiller.outputs(
        "student", {"input": inputs}, ["student.attention", "student.attended"]
    )
    known = {"input": inputs, "student.attended": found["student.attended"]}
    old = distiller.outputs("before", known, ["before.attention"])["before.attention"]
    return found["student.attended"], old, found["student.attention"]


def attention_of(run, arms: Mapping[str, Stage], path: str) -> tuple:
    """What :func:`draw_attention` wants, of test images of the old classes that are spread evenly
    over the test set.
    """
    experiment = run.experiment
    stage = list(arms.values())[-1]
    dataset, found = experiment.test_loader(stage).dataset, []
    for own in arms.values():
        counts = run.done[own.name]["class_counts"]
        before = next(
            one.name
            for one in reversed(experiment.chain(own))
            if run.done[one.name]["class_counts"] == counts[:-1]
        )
        models = run.trained(before), run.trained(own.name)
        old = (dataset.target < sum(counts[:-1])).nonzero()[:, 0]
        index = old[evenly_spaced(len(old), MEASURED)]
        if not callable(getattr(dataset, "batch", None)):
            index = torch.tensor(list(readable(dataset, index.tolist())), dtype=torch.int64)
        inputs = (inputs_of(dataset, part, experiment.seed) for part in index.split(CHUNK))
        parts = [looks(*models, path, part.to(experiment.device)) for part in inputs]
        attended, *maps = (torch.cat(column).cpu() for column in zip(*parts))
        maps = tuple(F.normalize(one.flatten(1)).view_as(one) for one in maps)
        found.append(Looks(before, own.name, attended, maps, (maps[0] - maps[1]).abs().sum((1, 2))))
    return (
        found,
        images_of(dataset, index[evenly_spaced(len(index), SHOWN)]),
        dataset.target[index],
        dataset.classes,
    )


def draw_attention(
    found: Sequence[Looks], images: Sequence, target: Tensor, classes: Sequence[str]
) -> tuple:
    """``(title, figure)``: images and, over them, the maps of each pair of models.

    Args:
        found: a pair each, of the same n images.
        images: arrays of those to be drawn, evenly spaced among the n.
        target: (n,) their classes.
        classes: names of the columns.
    """
    rows = []
    for image, place in zip(images, evenly_spaced(len(target), SHOWN)):
        top = max(float(one[place].max()) for pair in found for one in pair.maps)
        cells = [Cell(image, (classes[target[place]],))]
        for pair in found:
            old, new = (overlay(image, one[place] / max(top, 1e-12)) for one in pair.maps)
            said = f"for {classes[pair.attended[place]]}: {pair.distance[place]:.2f}"
            cells += [Cell(old, (said,), span=2), Cell(new)]
        rows.append(cells)
    heads = ["image", *(name for pair in found for name in (pair.before, pair.after))]
    half, wide = -(-len(rows) // 2), len(heads)
    pairs = [
        [*rows[k], *(rows[k + half] if k + half < len(rows) else [None] * wide)]
        for k in range(half)
    ]
    means = ", ".join(f"{pair.after} {pair.distance.mean():.2f}" for pair in found)
    gaps = [wide, wide, *(1 + 2 * k + start for start in (0, wide) for k in range(len(found)))]
    most = (2 * found[0].maps[0][0].numel()) ** 0.5
    title = (
        "Where the student looks (Grad-CAM) before its last experience and after, for the old "
        "class that it then finds likeliest; below: this class and LwM's distance of the two "
        f"maps, at most {most:.1f}. Mean of {len(target)} test images of old classes: {means}"
    )
    return title, gallery(
        [(dict(enumerate(heads * 2)) if k == 0 else {}, row) for k, row in enumerate(pairs)], gaps
    )


def overlay(image, attention: Tensor):
    """A map (h,w) in [0,1] over an array (H,W) or (H,W,3) in [0,1] that has lost its colours:
    (H,W,3).
    """
    from matplotlib import colormaps

    attention = F.interpolate(attention[None, None], image.shape[:2], mode="bilinear")[0, 0].clamp(
        0, 1
    )
    grey = torch.from_numpy(image).float()
    grey = grey @ grey.new_tensor([0.299, 0.587, 0.114]) if grey.dim() == 3 else grey
    warm = torch.from_numpy(colormaps["inferno"](attention.numpy())[..., :3])
    return (0.4 * grey[..., None] + 0.6 * warm).numpy()


# The pool -----------------------------------------------------------------------------------------
@dataclass
class Picked:
    """What the student of an experience took from the pool: counts, and to draw: for some classes
    an image of the test set and the confident ones of largest score, and random ones; each image
    with its text.
    """

    stage: str
    pool: int
    confident: int
    random: int
    score: str
    classes: dict[str, tuple]
    others: list


def picked_of(run) -> Picked | None:
    """The last choice that ``<work_dir>/sampled`` has; None where there is none, or nothing was
    taken.
    """
    experiment = run.experiment
    files = {stage.name: run.work_dir / "sampled" / f"{stage.name}.pth" for stage in run.finished}
    saved = [stage for stage in run.finished if files[stage.name].exists()]
    if not saved:
        return None
    stage = saved[-1]
    made = experiment.data_set(experiment.setting(stage, "data"), "train")
    if not isinstance(made, IncrementalSet) or made.pool is None:
        return None
    chosen = torch.load(files[stage.name], weights_only=True)
    if not sum(map(len, chosen.values())):
        return None
    pool, model, score = (
        unaugmented(made.pool),
        run.trained(stage.name),
        made.sampling.get("score", "logit"),
    )

    def scored(index: Tensor) -> Tensor:
        return torch.cat(
            [
                part.cpu()
                for part in scores_of(
                    model,
                    (inputs_of(pool, part, experiment.seed) for part in index.split(CHUNK)),
                    score=score,
                )
            ]
        )

    test, classes = experiment.test_loader(stage).dataset, {}
    if len(chosen["confident"]):
        # (n, l)
        scores = scored(chosen["confident"])
        for column in evenly_spaced(scores.shape[1], CLASSES):
            best = scores[:, column].argsort(descending=True, stable=True)[:BEST]
            example = (test.target == column).nonzero()[:1, 0]
            pictures = pictures_of(_readable(pool, experiment.seed), chosen["confident"][best])
            classes[test.classes[column]] = (
                (images_of(test, example) or [None])[0],
                list(zip(pictures, scores[best, column].tolist())),
            )
    index = chosen["random"][evenly_spaced(len(chosen["random"]), BEST)]
    others = []
    if len(index):
        value, column = scored(index).max(1)
        others = [
            (picture, test.classes[c], v)
            for picture, c, v in zip(
                pictures_of(_readable(pool, experiment.seed), index),
                column.tolist(),
                value.tolist(),
            )
        ]
    return Picked(
        stage.name,
        len(pool),
        len(chosen["confident"]),
        len(chosen["random"]),
        score,
        classes,
        others,
    )


def draw_picked(picked: Picked) -> tuple:
    """``(title, figure)``: a row for each class, and one of those drawn at random."""
    what = {"logit": "logit", "prob": "log-probability"}[picked.score]
    rows = [
        (
            {0: "test image", 1: f"of the pool, those of the largest {what} of this class"}
            if k == 0
            else {},
            [
                Cell(example, (name,)),
                *(Cell(picture, (f"{value:.1f}",)) for picture, value in best),
            ],
        )
        for k, (name, (example, best)) in enumerate(picked.classes.items())
    ]
    if picked.others:
        rows.append(
            (
                {1: f"drawn at random, with the class of the largest {what}"},
                [
                    None,
                    *(
                        Cell(picture, (name, f"{value:.1f}"))
                        for picture, name, value in picked.others
                    ),
                ],
            )
        )
    title = (
        f"What {picked.stage} took from the pool of {picked.pool:,} unlabelled images for the "
        "experience after it: "
        f"{picked.confident:,} on which it is confident, {picked.random:,} at random"
    )
    return title, gallery(rows, [1])


# Images -------------------------------------------------------------------------------------------
def inputs_of(dataset, index: Tensor, seed: int) -> Tensor:
    """``(b,C,H,W)``: what a model is given of the samples ``index``."""
    if callable(getattr(dataset, "batch", None)):
        return dataset.batch(index, torch.zeros_like(index), seed)["input"]
    samples = [dataset[i] for i in index.tolist()]
    return torch.stack(
        [
            torch.as_tensor(
                s["input"] if isinstance(s, Mapping) else s[0] if isinstance(s, list | tuple) else s
            )
            for s in samples
        ]
    )


def images_of(dataset: IncrementalSet, index: Tensor) -> list:
    """Arrays (H,W) or (H,W,3) in [0,1] of the samples ``index``, as their own data set has them."""
    return [
        pictures_of(
            _readable(dataset.sources[int(dataset.source_index[i])], dataset.seed),
            dataset.places[i : i + 1],
        )[0]
        for i in index.tolist()
    ]


def _readable(dataset, seed: int) -> SimpleNamespace:
    return SimpleNamespace(dataset=dataset, seed=seed)


@dataclass
class Cell:
    """A picture in a gallery, the lines of text below it, and the cells that these may run over."""

    image: object
    text: tuple[str, ...] = ()
    span: int = 1


def gallery(
    rows: Sequence[tuple[Mapping[int, str], Sequence[Cell | None]]], gaps: Sequence[int] = ()
):
    """A figure of rows of cells, each row with headings by column; ``gaps`` are columns that stand
    off from the one before.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import PlaceHolderLayoutEngine

    columns = max(len(cells) for _, cells in rows)
    step = (WIDTH - 0.03 - GAP * len(gaps)) / columns
    side, lefts = (
        step - 0.06,
        [0.03 + k * step + GAP * sum(k >= gap for gap in gaps) for k in range(columns)],
    )
    lines = [max(len(cell.text) for cell in cells if cell) for _, cells in rows]
    heights = [
        HEAD * bool(heads) + side + LINE * count + 0.12 for (heads, _), count in zip(rows, lines)
    ]
    tall, y = sum(heights), 0.0
    figure = Figure(
        figsize=(WIDTH, tall),
        layout=PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True),
    )
    for (heads, cells), height in zip(rows, heights):
        for column, text in heads.items():
            figure.text(
                lefts[column] / WIDTH,
                1 - (y + 0.04) / tall,
                text,
                va="top",
                fontsize=9,
                fontweight="bold",
                color=INK,
            )
        top = y + HEAD * bool(heads)
        for left, cell in zip(lefts, cells):
            if cell is None or cell.image is None:
                continue
            axes = figure.add_axes(
                (left / WIDTH, 1 - (top + side) / tall, side / WIDTH, side / tall),
                xticks=[],
                yticks=[],
            )
            axes.imshow(
                cell.image,
                cmap="gray",
                vmin=0,
                vmax=1,
                interpolation="nearest" if max(cell.image.shape[:2]) <= 64 else "antialiased",
            )
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            most = int(72 * side * cell.span / 4.7)
            for k, line in enumerate(cell.text):
                figure.text(
                    left / WIDTH,
                    1 - (top + side + 0.03 + LINE * k) / tall,
                    _short(line, most),
                    va="top",
                    fontsize=8,
                    color=INK,
                )
        y += height
    return figure


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
