"""Figures of a distilled embedder: nearest neighbours, a map of the embeddings, and how far the
student's rankings agree with the teacher's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtasks.core.choices import evenly_spaced
from kdtasks.engine.report.style import INK, PHONE, SLATE, WIDTH, free_figure
from kdtasks.images.display import PALETTE, draw_found, pictures_of, shortened, write
from kdtasks.metric_learning.retrieval import kendall_tau, nearest

if TYPE_CHECKING:
    from kdtasks.engine.loader import Loader

# embeddings (N,D), classes (N,), places in the data set (N,)
Embedded = tuple[Tensor, Tensor, Tensor]
# inches
GAP, HEAD = 0.16, 0.5
CLASS_COLORS = (*PALETTE, "#8C5A2B", "#5C8A00", INK)
SHOWN, POINTS = 5, 1500
QUERIES, CANDIDATES, NEIGHBOURS = 500, 100, 50  # of the agreement


# From tensors to what is drawn --------------------------------------------------------------------
def first_right(embedded: Embedded) -> Tensor:
    """Whether the nearest other sample has the query's class, bool (N,)."""
    rows, target, _ = embedded
    return torch.cat(
        [target[neighbours[:, 0]] == target[block] for block, neighbours in nearest(rows, 1)]
    )


def plane(rows: Tensor, like: Tensor | None = None) -> tuple[Tensor, float]:
    """The two principal components (N,2) and their share of the variance in percent.

    Their signs are free, and where two are about as long, so is a turn: they are turned and
    mirrored to lie as ``like`` (N,2) does, as well as possible.
    """
    x = rows.double()
    x = x - x.mean(0)
    values, axes = torch.linalg.eigh(x.T @ x)
    flat = x @ axes.flip(1)[:, :2]
    if flat.shape[1] < 2:
        flat = torch.nn.functional.pad(flat, (0, 2 - flat.shape[1]))
    if like is not None:
        left, _, right = torch.linalg.svd(flat.T @ (like - like.mean(0)).double())
        flat = flat @ left @ right
    return flat, 100 * float(values[-2:].sum() / values.sum().clamp(min=1e-300))


def agreement(
    teacher: Tensor,
    student: Tensor,
    candidates: int = CANDIDATES,
    neighbours: int = NEIGHBOURS,
    queries: int = QUERIES,
) -> tuple[Tensor, Tensor]:
    """How alike two models rank, for at most ``queries`` samples spread evenly over the N.

    Args:
        teacher, student: (N,Dt), (N,Ds) embeddings of the same samples.
        candidates: how many samples, spread evenly, each query ranks; itself, where it is one of
            them, is left out.
        neighbours: the largest k of the second figure; at most N - 1.

    Returns:
        (M,) Kendall's tau of the two orders of the candidates; (neighbours,) percent of the
        teacher's k nearest that are among the student's k nearest, for k = 1, 2, ….
    """
    indices = torch.arange(len(teacher), device=teacher.device)
    rows = indices[evenly_spaced(len(indices), queries)]
    pool = indices[evenly_spaced(len(indices), candidates + 1)]
    tau = _rank_correlation(teacher, student, rows, pool)
    neighbours = min(neighbours, len(teacher) - 1)
    of_teacher = torch.cat([near for _, near in nearest(teacher, neighbours, rows)])
    of_student = torch.cat([near for _, near in nearest(student, neighbours, rows)])
    # (M, k, k)
    matches = of_teacher[:, :, None] == of_student[:, None, :]
    shared = matches.cumsum(1).cumsum(2).diagonal(dim1=1, dim2=2).double().mean(0)  # (k,)
    return tau, 100 * shared / torch.arange(1, len(shared) + 1, device=shared.device)


def _rank_correlation(teacher: Tensor, student: Tensor, rows: Tensor, pool: Tensor) -> Tensor:
    """(M,) Kendall's tau of both models' distances from each of ``rows`` to ``pool``, itself left
    out.
    """
    candidates = pool.expand(len(rows), -1)
    key = torch.where(candidates == rows[:, None], len(teacher), candidates)
    # (M, n), a query's own number last
    candidates = candidates.gather(1, key.argsort(dim=1, stable=True)[:, :-1])
    taus = []
    for query, block in zip(rows.split(50), candidates.split(50)):
        distances = [
            (x[block].double() - x[query, None].double()).square().sum(2)
            for x in (teacher, student)
        ]
        taus.append(kendall_tau(*distances))
    return torch.cat(taus)


# Figures ------------------------------------------------------------------------------------------
def draw(
    models: Mapping[str, Embedded],
    teachers: Sequence[str],
    pair: Sequence[str],
    loader: "Loader",
    colors: Mapping[str, str],
) -> list[tuple]:
    """``[(title, figure)]``: all figures; none of fewer than two samples.

    Args:
        models: by name, in the order of drawing, the embeddings of the same samples.
        teachers: those of them that teach.
        pair: those of them that are students, the one without a teacher first.
        loader: of the test data; ``loader.dataset.classes`` are the names of the classes.
        colors: by name of the model.
    """
    if not models or len(next(iter(models.values()))[1]) < 2:
        return []
    names = [str(name) for name in getattr(loader.dataset, "classes", None) or ()]
    highest = max(int(target.max()) for _, target, _ in models.values())
    names += [str(c) for c in range(len(names), highest + 1)]
    figures = [draw_gallery(models, pair, names, loader), draw_map(models, names)]
    if teachers and pair:
        teacher = teachers[0]
        agreements = {name: agreement(models[teacher][0], models[name][0]) for name in pair}
        figures.append(draw_agreement(agreements, teacher, colors))
    return figures


def draw_gallery(
    models: Mapping[str, Embedded], pair: Sequence[str], names: Sequence[str], loader: "Loader"
) -> tuple:
    """``(title, figure)``: queries, and each model's nearest neighbours; those of the query's class
    are framed.

    Those shown are spread evenly over the test set, not chosen.
    """

    right = {name: first_right(embedded) for name, embedded in models.items()}
    target = next(iter(models.values()))[1]
    groups = _query_groups(pair, right, target)
    count = min(SHOWN, len(target) - 1)
    # what one model finds fits a phone
    widest = min((PHONE - GAP) / count, 0.95)
    cell = min((WIDTH - GAP * len(models)) / (1 + count * len(models)), widest)
    starts = [cell + GAP + k * (count * cell + GAP) for k in range(len(models))]
    lefts = [0.0, *(start + n * cell for start in starts for n in range(count))]
    height = cell + 0.24
    total = HEAD + sum(0.36 + len(queries) * height for _, queries in groups)
    # titles of groups may be wider than a few columns
    width = max(starts[-1] + count * cell + GAP, 0.6 * WIDTH)
    figure = free_figure(width, total)
    for start, name in zip(starts, models):
        text = f"{name}: first one right {100 * float(right[name].double().mean()):.1f} %"
        write(figure, start, 0.1, text, fontsize=10, fontweight="bold")
    top = HEAD
    for text, queries in groups:
        write(figure, 0, top - 0.02, text, fontsize=10, color=SLATE)
        top += 0.3
        for places, images in _neighbours(models, queries, count, loader):
            label = int(target[places[0]])
            hits = [None, *(int(target[place]) == label for place in places[1:])]
            for left, image, hit in zip(lefts, images, hits):
                draw_found(figure, image, left, top, cell * 0.86, hit)
            write(figure, 0, top + cell + 0.01, shortened(names[label], 22), fontsize=8)
            top += height
        top += 0.06
    title = f"The {count} nearest to each query; framed: of its class"
    if len(pair) == 2:
        before, after = (right[name] for name in pair)
        fixed, broken = int((~before & after).sum()), int((before & ~after).sum())
        title += f". From {pair[0]} to {pair[1]}: {fixed} fixed, {broken} broken of {len(target)}"
    return title, figure


def _query_groups(
    pair: Sequence[str], right: Mapping[str, Tensor], target: Tensor
) -> list[tuple[str, Tensor]]:
    """Headings and the queries below them: some of the whole test set and, of a pair of students,
    those whose first neighbour is of the right class for one of the two.
    """
    indices = torch.arange(len(target), device=target.device)
    heading = "Queries spread over the test set"
    if len(pair) < 2:
        return [(heading, indices[evenly_spaced(len(indices), 10)])]
    groups = [(heading, indices[evenly_spaced(len(indices), 4)])]
    before, after = (right[name] for name in pair)
    for change, mask, first, second in (
        ("fixed", ~before & after, "wrong", "right"),
        ("broken", before & ~after, "right", "wrong"),
    ):
        text = (
            f"{int(mask.sum())} {change}: the first that {pair[0]} finds is {first}, "
            f"{pair[1]}'s is {second}"
        )
        queries = indices[mask]
        if len(queries):
            groups.append((text, queries[evenly_spaced(len(queries), 3)]))
    return groups


def _neighbours(
    models: Mapping[str, Embedded], queries: Tensor, count: int, loader: "Loader"
) -> Iterator[tuple[list[int], list]]:
    """For each query the row numbers and images of itself and of its neighbours, model by model."""
    index = next(iter(models.values()))[2]
    rows = [queries[:, None]]
    for embeddings, _, _ in models.values():
        rows.append(
            torch.cat([neighbours for _, neighbours in nearest(embeddings, count, queries)])
        )
    for places in torch.cat(rows, 1).tolist():
        yield places, pictures_of(loader, index[places].cpu())


def draw_map(models: Mapping[str, Embedded], names: Sequence[str]) -> tuple:
    """``(title, figure)``: the two principal components of each model's embeddings, in colours of
    ten classes at most.
    """
    from matplotlib.figure import Figure

    target = next(iter(models.values()))[1]
    present = target.unique()
    classes = present[evenly_spaced(len(present), len(CLASS_COLORS))]
    points = torch.isin(target, classes).nonzero()[:, 0]
    points = points[evenly_spaced(len(points), POINTS)]
    labels = target[points].cpu()
    figure = Figure(figsize=(WIDTH, WIDTH / max(len(models), 2) + 0.55))
    panels = figure.subplots(1, max(len(models), 2), squeeze=False)[0]
    first = None
    for axes, (name, (rows, _, _)) in zip(panels, models.items()):
        flat, share = plane(rows[points], first)
        first = flat if first is None else first.to(flat.device)
        flat = flat.cpu()
        for color, number in zip(CLASS_COLORS, classes.tolist()):
            x, y = flat[labels == number].T
            label = shortened(names[number], 16)
            axes.plot(x, y, ".", color=color, markersize=4, alpha=0.7, label=label)
        axes.set(xticks=[], yticks=[], title=f"{name}: {share:.0f} % of the variance")
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(visible=False)
    for empty in panels[len(models) :]:
        empty.remove()
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, markerscale=2.5)
    title = "Map of the test embeddings: two principal components, turned to lie as in the first"
    if len(classes) < len(present):
        title += f", {len(classes)} of {len(present)} unseen classes"
    return title, figure


def draw_agreement(
    agreements: Mapping[str, tuple[Tensor, Tensor]], teacher: str, colors: Mapping[str, str]
) -> tuple:
    """``(title, figure)``: Kendall's tau with the teacher over the queries, and how many neighbours
    are shared; ``agreements`` by name of the student, of :func:`agreement`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 3.5))
    left, right = figure.subplots(1, 2)
    edges = torch.linspace(-1, 1, 41).tolist()
    for name, (tau, shared) in agreements.items():
        label = f"{name}: mean {float(tau.mean()):.2f}"
        style = {"histtype": "step", "linewidth": 2, "color": colors[name]}
        left.hist(tau.cpu().numpy(), bins=edges, label=label, **style)
        right.plot(range(1, len(shared) + 1), shared.cpu(), color=colors[name], label=name)
    count = len(next(iter(agreements.values()))[1])
    left.set(
        xlim=(-1, 1),
        xlabel=f"Kendall's tau with the {teacher}'s order of the same samples",
        ylabel="queries",
    )
    left.legend(loc="upper left")
    right.set(xlim=(1, count), xlabel="k", ylabel=f"% of the {teacher}'s k nearest found")
    right.set_ylim(0, 1.25 * max(float(shared.max()) for _, shared in agreements.values()) + 1)
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(loc="upper left")
    means = ", ".join(f"{name} {float(tau.mean()):.2f}" for name, (tau, _) in agreements.items())
    return f"Agreement with the ranking of the {teacher}: mean tau {means}", figure
