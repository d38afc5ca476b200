"""Figures of a taught backbone: nearest neighbours beside the teacher's, maps in the colours of
their principal components, and kNN against images seen.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdtasks.core.choices import evenly_spaced
from kdtasks.engine.report.style import PHONE, WIDTH, free_figure
from kdtasks.images.display import add_axes, draw_found, draw_image, pictures_of, shortened, write
from kdtasks.representation.knn import nearest_in_bank
from kdtasks.representation.models import embedding_of, network_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdtasks.engine.loader import Loader
    from kdtasks.engine.run import Run

# inches
GAP, HEAD, NAMED = 0.16, 0.42, 0.32
QUERIES, SHOWN, MAPPED = 8, 5, 8
# of the bank: a figure need not wait for more
BANK = 1000


# From images to what is drawn ---------------------------------------------------------------------
@torch.no_grad()
def embedded(model: nn.Module, loader: "Loader", index: Tensor) -> Tensor:
    """Embeddings of test images, (n, D), by their places."""
    parts = []
    for places in index.split(250):
        images = loader.dataset.batch(places, torch.zeros_like(places), loader.seed)["input"]
        parts.append(embedding_of(model(images)))
    return torch.cat(parts).float()


def component_colors(maps: Tensor) -> Tensor:
    """Maps (n, D, H, W) as pictures (n, H, W, 3) in [0, 1]: their first three principal components
    over all places of all of them, each stretched from its 2nd to its 98th percentile.

    A component has the sign with which its largest weight is positive.
    """
    rows = maps.movedim(1, -1).flatten(0, -2).double()
    rows = rows - rows.mean(0)
    _, _, axes = torch.linalg.svd(rows, full_matrices=False)
    axes = axes[:3]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    flat = rows @ (axes * largest.sign()).T
    flat = torch.nn.functional.pad(flat, (0, 3 - flat.shape[1]))
    low, high = (flat.quantile(q, 0) for q in (0.02, 0.98))
    shade = ((flat - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    n, _, h, w = maps.shape
    return shade.view(n, h, w, 3).float()


# Figures ------------------------------------------------------------------------------------------
def draw(run: "Run", loader: "Loader", colors: Mapping[str, str]) -> list[tuple]:
    """``[(title, figure)]``: all figures.

    Args:
        run: of which a stage or more has finished.
        loader: of the test data.
        colors: by name of stage and teacher.
    """
    models = run.arm_models()
    curves = draw_curves(run, colors)
    return [
        draw_neighbours(models, loader),
        *([maps] if (maps := draw_maps(models, loader)) else []),
        *([curves] if curves else []),
    ]


def draw_neighbours(models: Mapping[str, nn.Module], loader: "Loader") -> tuple:
    """``(title, figure)``: queries and what each model finds nearest in the bank; framed: of the
    query's class. The queries are spread evenly over the test data, not chosen.
    """

    count, total = loader.dataset.bank, len(loader.dataset)
    bank = torch.tensor(evenly_spaced(count, BANK))
    queries = count + torch.tensor(evenly_spaced(total - count, QUERIES))
    target, names = loader.dataset.target, loader.dataset.classes
    shown = min(SHOWN, len(bank))
    # what one model finds fits a phone
    widest = min((PHONE - GAP) / shown, 0.95)
    cell = min((WIDTH - GAP * len(models)) / (1 + shown * len(models)), widest)
    width = cell + len(models) * (shown * cell + GAP)
    figure = free_figure(width, HEAD + len(queries) * (cell + 0.22))
    neighbours = {}
    for name, model in models.items():
        rows = embedded(model, loader, torch.cat([bank, queries]))
        neighbours[name] = bank[
            nearest_in_bank(rows[: len(bank)], rows[len(bank) :], shown)[1].cpu()
        ]
    for k, name in enumerate(models):
        left = cell + GAP + k * (shown * cell + GAP)
        write(figure, left, 0.08, shortened(name, 40), fontsize=10, fontweight="bold")
    top = HEAD
    for row, query in enumerate(queries.tolist()):
        label = int(target[query])
        _draw(figure, loader, [query], 0, top, cell, None)
        for k, near in enumerate(neighbours.values()):
            left = cell + GAP + k * (shown * cell + GAP)
            _draw(figure, loader, near[row].tolist(), left, top, cell, label)
        text = names[label] if label < len(names) else f"class {label}"
        write(figure, 0, top + cell * 0.9 + 0.01, shortened(str(text), 26), fontsize=8)
        top += cell + 0.22
    title = f"The {shown} nearest of {len(bank)} images of the bank; framed: of the query's class"
    return title, figure


def _draw(
    figure: "Figure",
    loader: "Loader",
    places: Sequence[int],
    left: float,
    top: float,
    cell: float,
    label: int | None,
) -> None:
    """A row of test images; those that are not of the class are pale."""
    for n, (place, image) in enumerate(zip(places, _images(loader, places))):
        hit = None if label is None else int(loader.dataset.target[place]) == label
        draw_found(figure, image, left + n * cell, top, cell * 0.88, hit)


def _images(loader: "Loader", places: Sequence[int]) -> list:
    """As they are in their file, not as the network gets them."""
    images = []
    for place in places:
        part, index = loader.dataset.part_of(place)
        images += pictures_of(
            SimpleNamespace(dataset=part, seed=loader.seed), torch.tensor([index])
        )
    return images


def draw_maps(models: Mapping[str, nn.Module], loader: "Loader") -> tuple | None:
    """``(title, figure)``: each model's last map of some queries, by :func:`component_colors`; None
    where no model has one.
    """

    first = loader.dataset.bank
    places = first + torch.tensor(evenly_spaced(len(loader.dataset) - first, MAPPED))
    images = loader.dataset.batch(places, torch.zeros_like(places), loader.seed)["input"]
    maps = {}
    for name, model in models.items():
        last_map = network_map(model, images)
        if last_map is not None:
            maps[name] = component_colors(last_map.float()).cpu()
    if not maps:
        return None
    cell = min(WIDTH / len(places), PHONE / 3)
    rows = [("", _images(loader, places.tolist()))]
    for name, pictures in maps.items():
        size = "x".join(map(str, pictures.shape[1:3]))
        named = f"{shortened(name, 28)}: {size} places"
        rows.append((named, [picture.numpy() for picture in pictures]))
    high = cell + NAMED
    figure = free_figure(cell * len(places), len(rows) * high - NAMED)
    for k, (name, pictures) in enumerate(rows):
        top = k * high
        # closer to what is below
        write(figure, 0, top - NAMED + 0.1, name, fontsize=10, fontweight="bold")
        for n, picture in enumerate(pictures):
            axes = add_axes(figure, n * cell, top, cell * 0.95, cell * 0.95)
            draw_image(axes, picture, aspect="auto")
    title = (
        "Where the last maps differ: their first three principal components as red, green and blue "
        "(each model's own)"
    )
    return title, figure


def draw_curves(run: "Run", colors: Mapping[str, str]) -> tuple | None:
    """``(title, figure)``: kNN against images seen, and as lines what is not trained; None where
    nothing was.
    """
    from matplotlib.figure import Figure

    from kdtasks.engine.report import facts

    experiment, history = run.experiment, facts.histories(run)
    trained, levels = {}, {}
    for stage in run.finished:
        steps, values = facts.curve(history.get(stage.name, ()), "knn")
        metrics = run.done[stage.name]
        if steps and steps[-1] > 0:
            rows = experiment.setting(stage, "data")["batch_size"] + experiment.unlabelled(stage)
            trained[stage.name] = [step * rows for step in steps], values
        elif facts.is_number(metrics.get("knn")):
            levels[stage.name] = metrics["knn"]
        pairs = ((name, metrics.get(f"{name}_knn")) for name in stage.teachers)
        levels |= {name: value for name, value in pairs if facts.is_number(value)}
    if not trained:
        return None
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.subplots()
    for name, (counts, values) in trained.items():
        axes.plot(counts, values, "o-", color=colors[name], label=name, markersize=4)
    for name, value in levels.items():
        label = f"{name}: {value:.1f}"
        axes.axhline(value, color=colors[name], linestyle=(0, (4, 3)), linewidth=1.3, label=label)
    axes.set(xlabel="images seen", ylabel="weighted kNN, % of the queries")
    axes.set_xlim(left=0)
    figure.legend(loc="outside upper right", ncols=5)
    return "kNN against images seen; dashed: without training", figure
