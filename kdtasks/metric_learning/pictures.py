"""What to look at after an embedder was distilled: what is found, how the classes lie, whose
ranking the student's is like.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdtasks.core.choices import evenly_spaced
from kdtasks.images.display import pictures_of
from kdtasks.metric_learning.retrieval import kendall_tau, nearest

# embeddings (N,D), classes (N,), places in the data set (N,)
Found = tuple[Tensor, Tensor, Tensor]
HIT = "#009E73"
CLASS_COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7B4FA3",
    "#8C5A2B",
    "#5C8A00",
    "#1B2330",
)
SHOWN, POINTS = 5, 1500
QUERIES, CANDIDATES, NEIGHBOURS = 500, 100, 50  # of the agreement


# From tensors to what is drawn --------------------------------------------------------------------
def first_right(found: Found) -> Tensor:
    """Whether the nearest other sample has the query's class, bool (N,)."""
    rows, target, _ = found
    return torch.cat([target[near[:, 0]] == target[block] for block, near in nearest(rows, 1)])


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
    every = torch.arange(len(teacher), device=teacher.device)
    rows, others = (every[evenly_spaced(len(every), n)] for n in (queries, candidates + 1))
    ranked = others.expand(len(rows), -1)
    place = torch.where(ranked == rows[:, None], len(every), ranked).argsort(dim=1, stable=True)
    # (M, n), a query's own number last
    ranked = ranked.gather(1, place[:, :-1])
    taus = []
    for query, block in zip(rows.split(50), ranked.split(50)):
        taus.append(
            kendall_tau(
                *(
                    (x[block].double() - x[query, None].double()).square().sum(2)
                    for x in (teacher, student)
                )
            )
        )
    near = [
        torch.cat([found for _, found in nearest(x, min(neighbours, len(x) - 1), rows)])
        for x in (teacher, student)
    ]
    # (M, k, k)
    same = near[0][:, :, None] == near[1][:, None, :]
    both = same.cumsum(1).cumsum(2).diagonal(dim1=1, dim2=2).double().mean(0)  # (k,)
    return torch.cat(taus), 100 * both / torch.arange(1, len(both) + 1, device=both.device)


# Figures ------------------------------------------------------------------------------------------
def draw(
    models: Mapping[str, Found],
    teachers: Sequence[str],
    pair: Sequence[str],
    loader,
    colors: Mapping[str, str],
) -> list[tuple]:
    """``[(title, figure)]``: all that there is to see; nothing of fewer than two samples.

    Args:
        models: by name, in the order of drawing, what they say about the same samples.
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
    drawn = [draw_gallery(models, pair, names, loader), draw_map(models, names)]
    if teachers and pair:
        drawn.append(
            draw_agreement(
                {name: agreement(models[teachers[0]][0], models[name][0]) for name in pair},
                teachers[0],
                colors,
            )
        )
    return drawn


def draw_gallery(
    models: Mapping[str, Found], pair: Sequence[str], names: Sequence[str], loader
) -> tuple:
    """``(title, figure)``: queries, and what each model finds nearest to them; what has the query's
    class is framed.

    Those shown are spread evenly over the test set, not chosen.
    """
    from matplotlib.figure import Figure

    right = {name: first_right(found) for name, found in models.items()}
    _, target, index = next(iter(models.values()))
    every = torch.arange(len(target), device=target.device)
    groups = [("Queries spread over the test set", every, 4 if len(pair) == 2 else 10)]
    if len(pair) == 2:
        before, after = (right[name] for name in pair)
        for what, chosen in (("fixed", ~before & after), ("broken", before & ~after)):
            said = ("wrong", "right") if what == "fixed" else ("right", "wrong")
            groups.append(
                (
                    f"{int(chosen.sum())} {what}: the first that {pair[0]} finds is "
                    f"{said[0]}, {pair[1]}'s is {said[1]}",
                    every[chosen],
                    3,
                )
            )
    groups = [
        (text, chosen[evenly_spaced(len(chosen), most)])
        for text, chosen, most in groups
        if len(chosen)
    ]
    shown = min(SHOWN, len(target) - 1)
    width, gap, head = 10.4, 0.16, 0.5
    cell = (width - gap * len(models)) / (1 + shown * len(models))
    cell = min(cell, 0.95)
    height = cell + 0.24
    total = head + sum(0.36 + len(chosen) * height for _, chosen in groups)
    figure = Figure(figsize=(width, total), layout="none")
    starts = [cell + gap + k * (shown * cell + gap) for k in range(len(models))]
    for start, name in zip(starts, models):
        share = 100 * float(right[name].double().mean())
        figure.text(
            start / width,
            (total - 0.1) / total,
            f"{name}: first one right {share:.1f} %",
            va="top",
            fontsize=10,
            fontweight="bold",
        )
    y = total - head
    for text, chosen in groups:
        figure.text(0, (y + 0.02) / total, text, va="top", fontsize=10, color="#3C4758")
        y -= 0.30
        lists = [
            torch.cat([near for _, near in nearest(rows, shown, chosen)])
            for rows, _, _ in models.values()
        ]
        for k, query in enumerate(chosen.tolist()):
            top = y - k * height
            places = [query, *(i for near in lists for i in near[k].tolist())]
            lefts = [0.0, *(start + n * cell for start in starts for n in range(shown))]
            hits = [None, *(bool(target[i] == target[query]) for i in places[1:])]
            for left, image, hit in zip(lefts, pictures_of(loader, index[places].cpu()), hits):
                _image(figure, image, left, top, cell, total, width, hit)
            figure.text(
                0,
                (top - cell - 0.01) / total,
                _short(names[int(target[query])], 22),
                va="top",
                fontsize=8,
            )
        y -= len(chosen) * height + 0.06
    title = f"The {shown} nearest to each query; framed: of its class"
    if len(pair) == 2:
        fixed, broken = int((~before & after).sum()), int((before & ~after).sum())
        title += f". From {pair[0]} to {pair[1]}: {fixed} fixed, {broken} broken of {len(target)}"
    return title, figure


def _image(
    figure,
    image,
    left: float,
    top: float,
    cell: float,
    total: float,
    width: float,
    hit: bool | None,
) -> None:
    side = cell * 0.86
    axes = figure.add_axes((left / width, (top - side) / total, side / width, side / total))
    axes.imshow(
        image,
        cmap="gray",
        interpolation="nearest" if max(image.shape[:2]) <= 64 else "antialiased",
        aspect="auto",
    )
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=bool(hit), color=HIT, linewidth=3)
    if hit is False:
        axes.images[0].set_alpha(0.55)


def _short(name: str, most: int) -> str:
    """Cut to ``most`` letters; a $ begins no formula."""
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")


def draw_map(models: Mapping[str, Found], names: Sequence[str]) -> tuple:
    """``(title, figure)``: the two principal components of each model's embeddings, in colours of
    ten classes at most.
    """
    from matplotlib.figure import Figure

    target = next(iter(models.values()))[1]
    classes = target.unique()
    classes = classes[evenly_spaced(len(classes), len(CLASS_COLORS))]
    points = torch.isin(target, classes).nonzero()[:, 0]
    points = points[evenly_spaced(len(points), POINTS)]
    figure = Figure(figsize=(10.4, 10.4 / max(len(models), 2) + 0.55))
    grid = figure.subplots(1, max(len(models), 2), squeeze=False)[0]
    first = None
    for axes, (name, (rows, _, _)) in zip(grid, models.items()):
        flat, share = plane(rows[points], first)
        first = flat if first is None else first.to(flat.device)
        for color, c in zip(CLASS_COLORS, classes.tolist()):
            own = flat[target[points] == c].cpu()
            axes.plot(
                own[:, 0],
                own[:, 1],
                ".",
                color=color,
                markersize=4,
                alpha=0.7,
                label=_short(names[c], 16),
            )
        axes.set(xticks=[], yticks=[], title=f"{name}: {share:.0f} % of the variance")
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(visible=False)
    for empty in grid[len(models) :]:
        empty.remove()
    figure.legend(
        *grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, markerscale=2.5
    )
    more = (
        f", {len(classes)} of {len(target.unique())} unseen classes"
        if len(classes) < len(target.unique())
        else ""
    )
    return (
        f"Map of the test embeddings: two principal components, turned to lie as in the "
        f"first{more}",
        figure,
    )


def draw_agreement(
    found: Mapping[str, tuple[Tensor, Tensor]], teacher: str, colors: Mapping[str, str]
) -> tuple:
    """``(title, figure)``: Kendall's tau with the teacher over the queries, and how many neighbours
    are shared.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 3.5))
    left, right = figure.subplots(1, 2)
    edges = torch.linspace(-1, 1, 41).tolist()
    for name, (tau, shared) in found.items():
        label = f"{name}: mean {float(tau.mean()):.2f}"
        left.hist(
            tau.cpu().numpy(),
            bins=edges,
            histtype="step",
            linewidth=2,
            color=colors[name],
            label=label,
        )
        right.plot(range(1, len(shared) + 1), shared.cpu(), color=colors[name], label=name)
    count = len(next(iter(found.values()))[1])
    left.set(
        xlim=(-1, 1),
        xlabel=f"Kendall's tau with the {teacher}'s order of the same samples",
        ylabel="queries",
    )
    left.legend(loc="upper left")
    right.set(xlim=(1, count), xlabel="k", ylabel=f"% of the {teacher}'s k nearest found")
    right.set_ylim(0, 1.25 * max(float(shared.max()) for _, shared in found.values()) + 1)
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(loc="upper left")
    means = ", ".join(f"{name} {float(tau.mean()):.2f}" for name, (tau, _) in found.items())
    return f"Agreement with the ranking of the {teacher}: mean tau {means}", figure
