"""What to look at after a detector was distilled: boxes side by side, classes, where the teacher's
bound and weights act.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtasks.core.choices import evenly_spaced
from kdtasks.detection.coco_metrics import class_figures

# Okabe and Ito's colours first, then others that stand out on a photograph.
CLASS_COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7B4FA3",
    "#C2185B",
    "#5C8A00",
    "#00838F",
    "#8C5A2B",
    "#3949AB",
)
TRUTH = "ground truth"


# From tensors to what is drawn --------------------------------------------------------------------
def choose_labelled(targets: Sequence, count: int = 4) -> list[int]:
    """Places of at most ``count`` images that have a target, evenly spaced."""
    labelled = [i for i, target in enumerate(targets) if target is not None]
    return [labelled[k] for k in evenly_spaced(len(labelled), count)]


def images_of(loader, index: Sequence[int]) -> list[Tensor]:
    """Images (3,H,W) on the CPU by the ``index`` that their detections have; a loader without a
    data set is read through.
    """
    index, dataset = [int(i) for i in index], getattr(loader, "dataset", None)
    if dataset is not None:
        samples = [dataset[i] for i in index]
        images = [
            sample["input"] if isinstance(sample, Mapping) else sample[0] for sample in samples
        ]
    else:
        found, start = {}, 0
        for batch in loader:
            places = (
                batch["index"].tolist()
                if "index" in batch
                else range(start, start + len(batch["input"]))
            )
            found |= {
                place: image for place, image in zip(places, batch["input"]) if place in index
            }
            start += len(batch["input"])
        images = [found[i] for i in index]
    return [image.detach().float().cpu() for image in images]


def match(
    detection: Mapping[str, Tensor], target: Mapping[str, Tensor], least: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Which detections are right, and which objects are found.

    From the highest score down, a detection takes the free object of its class that it overlaps
    most, if the overlap (IoU) is at least ``least``. One that takes none but lies in a crowd of its
    class is neither right nor wrong.

    Returns:
        (n,) 1 right, 0 wrong, -1 in a crowd; bool (m,), found.
    """
    boxes, labels, scores = (detection[key].cpu() for key in ("boxes", "labels", "scores"))
    objects, classes = target["boxes"].cpu(), target["labels"].cpu()
    crowd = (
        target["iscrowd"].cpu().bool()
        if "iscrowd" in target
        else torch.zeros(len(objects), dtype=torch.bool)
    )
    state, taken = (
        torch.zeros(len(boxes), dtype=torch.int64),
        torch.zeros(len(objects), dtype=torch.bool),
    )
    if not len(boxes) or not len(objects):
        return state, taken
    # (n,m,2)
    low = torch.maximum(boxes[:, None, :2], objects[None, :, :2])
    common = (torch.minimum(boxes[:, None, 2:], objects[None, :, 2:]) - low).clamp(min=0).prod(2)
    own, other = ((b[:, 2:] - b[:, :2]).clamp(min=0).prod(1) for b in (boxes, objects))
    overlap = common / torch.where(crowd, own[:, None], own[:, None] + other - common).clamp(
        min=1e-9
    )
    overlap = overlap.masked_fill(labels[:, None] != classes, -1)
    for n in scores.argsort(descending=True, stable=True).tolist():
        free = overlap[n].masked_fill(taken | crowd, -1)
        best = int(free.argmax())
        if free[best] >= least:
            state[n], taken[best] = 1, True
        elif (overlap[n][crowd] >= least).any():
            state[n] = -1
    return state, taken


def best_threshold(
    detections: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
) -> float:
    """The score above which a model's boxes have the highest F1 (IoU 0.5, all images together); 0.5
    if none is right.

    Models differ in how sure they are, a dense head with a focal loss above all: one score for all
    would hide some.
    """
    states = [match(found, target)[0] for found, target in zip(detections, targets)]
    if not any((state == 1).any() for state in states):
        return 0.5
    scores, state = torch.cat([found["scores"].cpu() for found in detections]), torch.cat(states)
    # those in a crowd do not count
    scores, state = scores[state >= 0], state[state >= 0]
    scores, order = scores.sort(descending=True, stable=True)
    objects = sum(
        int((~t["iscrowd"].bool()).sum()) if "iscrowd" in t else len(t["labels"]) for t in targets
    )
    f1 = 2 * state[order].cumsum(0) / (torch.arange(1, len(scores) + 1) + objects)
    return float(scores[f1.argmax()])


def squared_errors(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """``e_s`` and ``e_t`` (P,) of the bounded regression: summed squared errors of encoded deltas
    (P,4), in float64.
    """
    if not student.shape == teacher.shape == target.shape or student.shape[1:] != (4,):
        raise ValueError(
            f"expected three tensors (P,4), got {tuple(student.shape)}, "
            f"{tuple(teacher.shape)}, "
            f"{tuple(target.shape)}"
        )
    student, teacher, target = (t.detach().cpu().double() for t in (student, teacher, target))
    return (student - target).square().sum(1), (teacher - target).square().sum(1)


def level_maps(values: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(A,) values of one image's anchors -> the largest of each location, (h,w) for each level.

    Args:
        values: level by level, within it row by row, the anchors of a location next to each other.
        sizes: (h,w) of the levels.
    """
    places = sum(h * w for h, w in sizes)
    if values.ndim != 1 or not places or len(values) % places:
        raise ValueError(
            f"expected (A,) values, A a multiple of the {places} locations of "
            f"{list(sizes)}, "
            f"got {tuple(values.shape)}"
        )
    largest = values.view(places, -1).amax(1)
    return [
        part.view(h, w) for part, (h, w) in zip(largest.split([h * w for h, w in sizes]), sizes)
    ]


def probability_map(teacher: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The largest sigmoid over classes and anchors at each location, (h,w) a level; logits (A,K) as
    :func:`level_maps`.
    """
    return level_maps(teacher.detach().float().amax(1).sigmoid().cpu(), sizes)


def adl_weight_map(
    student: Tensor,
    teacher: Tensor,
    sizes: Sequence[tuple[int, int]],
    gamma: float = 1.0,
    beta: float = 1.5,
) -> list[Tensor]:
    r"""ADL's adaptive weight at each location, (h,w) a level: the largest over classes and anchors.

    .. math:: (1 - e^{-(\mathrm{KL}(q \| p) + \beta T(q))})^\gamma

    The largest, not the mean: one class at one anchor is what is hard at a place, and the many
    classes of which both models are sure would drown it.

    Args:
        student, teacher: logits (A,K) of one image, in the order of :func:`level_maps`.
        sizes: (h,w) of the levels.
        gamma, beta: as in the loss.
    """
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(
            f"expected two tensors (A,K), got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    hard = []
    # a level of COCO takes much memory
    for s, t in zip(student.detach().split(65536), teacher.detach().split(65536)):
        s, t = s.float(), t.float()
        q, on, off = t.sigmoid(), F.logsigmoid(t), F.logsigmoid(-t)
        kl = (q * (on - F.logsigmoid(s)) + (1 - q) * (off - F.logsigmoid(-s))).clamp(min=0)
        # the weight grows with it
        hard.append((kl - beta * (q * on + (1 - q) * off)).amax(1).cpu())
    return level_maps((-torch.expm1(-torch.cat(hard))) ** gamma, sizes)


def over_levels(maps: Sequence[Tensor]) -> Tensor:
    """The largest of all levels at each place, as fine as the first; coarser levels are enlarged
    without smoothing.
    """
    size = maps[0].shape
    return torch.stack(
        [F.interpolate(m[None, None].float(), size, mode="nearest")[0, 0] for m in maps]
    ).amax(0)


# Figures ------------------------------------------------------------------------------------------
def draw(
    images: Sequence[Tensor],
    targets: Sequence[Mapping],
    models: Mapping[str, Sequence[Mapping]],
    metrics: Mapping[str, Mapping[str, float]],
    classes: Sequence[str] | None,
    colors: Mapping[str, str],
    pair: Sequence[str] = (),
    bounded: Mapping[str, tuple] | None = None,
    weights: Sequence[tuple] = (),
    threshold: float | Mapping[str, float] = 0.5,
) -> list[tuple]:
    """``[(title, figure)]``: all that there is to see; what is empty is left out.

    Args:
        images: (3,H,W) in [0,1], a few test images.
        targets: what is in them.
        models: detections in them, by name of the model, in the order of drawing.
        metrics: what :func:`kdtasks.detection.coco_metrics.coco_metrics` gives, by name of the
            model.
        classes: names; label k is ``classes[k-1]``.
        colors: by name of the model.
        pair: the two models (before, after) whose classes are compared.
        bounded: see :func:`draw_bounded`.
        weights: see :func:`draw_weights`.
        threshold: the least score of drawn boxes; one for all, or by name of the model.
    """
    drawn = []
    if images:
        drawn.append(draw_detections(images, targets, models, classes, colors, threshold))
    if any(name.startswith("map") for values in metrics.values() for name in values):
        drawn.append(draw_classes(metrics, classes, colors, pair))
    if bounded:
        drawn.append(draw_bounded(bounded))
    if weights:
        drawn.append(draw_weights(weights))
    return drawn


def draw_detections(
    images: Sequence[Tensor],
    targets: Sequence[Mapping],
    models: Mapping[str, Sequence[Mapping]],
    classes: Sequence[str] | None,
    colors: Mapping[str, str],
    threshold: float | Mapping[str, float] = 0.5,
) -> tuple:
    """``(title, figure)``: a row for each image, the ground truth and what each model finds;
    arguments as for :func:`draw`.

    Right boxes are solid, wrong ones dashed, objects that are not found dotted.
    """
    own = isinstance(threshold, Mapping)
    which = (
        "above the score that gives each model its best F1"
        if own
        else f"with a score of at least {threshold:g}"
    )
    title = f"The same test images: boxes {which}; right is the same class and IoU ≥ 0.5"
    least = dict(threshold) if own else dict.fromkeys(models, threshold)
    models = {
        name: [_above(found, least[name]) for found in answers] for name, answers in models.items()
    }
    columns = 1 + len(models)
    side, gap = 10.4 / columns, 0.08
    heights = [(side - gap) * min(image.shape[1] / image.shape[2], 1.5) for image in images]
    names = _names(classes, *targets, *(found for answers in models.values() for found in answers))
    shown = sorted(
        {int(k) for t in targets for k in t["labels"]}
        | {int(k) for answers in models.values() for d in answers for k in d["labels"]}
    )
    legend = [(names[k - 1], _class_color(k)) for k in shown]
    # more colours than eyes tell apart
    rows = -(-len(legend) // 6) if len(legend) <= 24 else 0
    top = 0.22 * max(rows, 1) + 0.36
    total = top + sum(h + 0.3 for h in heights)
    figure = _free_figure(10.4, total)
    for k, (name, color) in enumerate(legend if rows else ()):
        x, middle = k % 6 * 0.118, (total - 0.1 - 0.22 * (k // 6)) / total
        figure.text(x, middle, "■", color=color, fontsize=11, va="center")
        figure.text(x + 0.017, middle, _short(name, 13), fontsize=9, va="center")
    figure.text(
        1 - gap / 10.4,
        (total - 0.1) / total,
        "solid: right   dashed: wrong   dotted: missed",
        fontsize=9,
        va="center",
        ha="right",
        color="#3C4758",
    )
    y = total - top
    for row, (image, target, height) in enumerate(zip(images, targets, heights)):
        panels = [(TRUTH, {**target, "scores": None}, None)]
        panels += [(name, answers[row], target) for name, answers in models.items()]
        for column, (name, found, wanted) in enumerate(panels):
            axes = figure.add_axes(
                (column * side / 10.4, (y - height) / total, (side - gap) / 10.4, height / total)
            )
            _picture(axes, image, side - gap)
            crowd = (
                target["iscrowd"].cpu().bool()
                if "iscrowd" in target
                else torch.zeros(len(target["labels"])).bool()
            )
            if wanted is None:
                state, missed, said = (
                    torch.ones(len(found["labels"])),
                    [],
                    _counted(int((~crowd).sum()), "object"),
                )
            else:
                state, seen = match(found, wanted)
                missed = wanted["boxes"][~(seen | crowd)].tolist()
                counts = int((state == 1).sum()), int((state == 0).sum()), len(missed)
                said = "{} right, {} wrong, {} missed".format(*counts)
            _draw_boxes(axes, found, state, missed, names, (side - gap) * 72 / image.shape[2])
            figure.text(
                column * side / 10.4, (y - height - 0.05) / total, said, va="top", fontsize=8.5
            )
            if not row:
                color = _dark(colors[name]) if name in colors else "#1B2330"
                said = f"{name}, score ≥ {least[name]:.2f}" if own and name in least else name
                figure.text(
                    column * side / 10.4,
                    (y + 0.07) / total,
                    said,
                    fontsize=11,
                    fontweight="bold",
                    color=color,
                )
        y -= height + 0.3
    return title, figure


def _draw_boxes(
    axes, found: Mapping, state: Tensor, missed: Sequence, names: Sequence[str], scale: float
) -> None:
    """Boxes and what they say, the surest first; a text that would cover another one is shortened
    or left out.

    Args:
        scale: points on the page for a pixel.
    """
    from matplotlib.patches import Rectangle

    def frame(box, **style):
        # a pale edge, then the line
        for width, color in ((style.pop("width") + 1.0, "#FFFFFFB0"), (None, None)):
            more = (
                {"linewidth": width, "edgecolor": color} if width else {"linewidth": 1.3, **style}
            )
            axes.add_patch(Rectangle(box[:2], box[2] - box[0], box[3] - box[1], fill=False, **more))

    for box in missed:
        frame(box, width=1.1, edgecolor="#1B2330", linestyle=(0, (1, 1.6)))
    scores = found["scores"]
    order = (
        range(len(found["labels"]))
        if scores is None
        else scores.argsort(descending=True, stable=True).tolist()
    )
    size, taken = 5.5, []
    for n in order:
        box, label = found["boxes"][n].tolist(), int(found["labels"][n])
        frame(
            box,
            width=1.3,
            edgecolor=_class_color(label),
            linestyle=(0, (3, 1.8)) if state[n] == 0 else "-",
        )
        percent = "" if scores is None else f"{float(scores[n]):.2f}"
        texts = [f"{names[label - 1]} {percent}".strip(), *([percent] if percent else [])]
        place = _free_place(box, texts, size, scale, taken, axes)
        if place:
            x, y, text, area = place
            taken.append(area)
            axes.text(
                x,
                y,
                text,
                fontsize=size,
                color="white",
                va="top",
                ha="left",
                clip_on=True,
                bbox={
                    "facecolor": _class_color(label),
                    "edgecolor": "none",
                    "pad": 0.6,
                    "alpha": 0.85,
                },
            )


def _free_place(box, texts, size, scale, taken, axes):
    """``(x, y, text, area)`` for the first of the texts that fits inside the box, at its top or its
    bottom, and free of the others; None where none does.
    """
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    left, above = max(box[0], 0), max(box[1], 0)
    for text in texts:
        width, height = (0.62 * size * len(text) + 2) / scale, (size + 2.6) / scale
        if left + width > min(max(box[2], left + 14 / scale), right) or height > box[3] - box[1]:
            continue
        for y in (above, min(box[3], bottom) - height):
            area = (left, y, left + width, y + height)
            if not any(
                area[0] < b[2] and b[0] < area[2] and area[1] < b[3] and b[1] < area[3]
                for b in taken
            ):
                return left + 0.8 / scale, y + 0.8 / scale, text, area
    return None


def draw_classes(
    metrics: Mapping[str, Mapping[str, float]],
    classes: Sequence[str] | None,
    colors: Mapping[str, str],
    pair: Sequence[str] = (),
) -> tuple:
    """``(title, figure)``: average precision of all classes together and of each one; bars, points
    from 21 classes on.
    """
    from matplotlib.figure import Figure

    names = {figure: str(name) for figure, name in zip(class_figures(classes or ()), classes or ())}
    if classes is None:
        labels = sorted(
            {
                int(k[10:])
                for values in metrics.values()
                for k in values
                if k.startswith("map_class_")
            }
        )
        names = {f"map_class_{k}": f"class {k}" for k in labels}
    shown = [k for k in names if any(k in values for values in metrics.values())]
    title = "Average precision (COCO, IoU 0.50 to 0.95) of each class, percent"
    if len(pair) == 2:
        gains = [
            metrics[pair[1]][k] - metrics[pair[0]][k]
            for k in shown
            if all(k in metrics[name] for name in pair)
        ]
        up, down = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
        title += f": {pair[1]} above {pair[0]} in {up} of {len(gains)} classes, below in {down}"
    many = len(shown) > 20
    if many:
        first = metrics[pair[0] if pair else next(iter(metrics))]
        shown.sort(key=lambda k: first.get(k, 0))
    groups = ["map", *shown]
    texts = ["all classes", *(_short(names[k], 22) for k in shown)]
    figure = Figure(figsize=(10.4, 4.4 if many else 3.6))
    axes = figure.subplots()
    width = 0.8 / len(metrics)
    for k, (name, values) in enumerate(metrics.items()):
        places = [
            i + 0.25 * (i > 0) + (0 if many else (k - (len(metrics) - 1) / 2) * width)
            for i in range(len(groups))
        ]
        heights = [values.get(group, 0) for group in groups]
        if many:
            axes.plot(places, heights, "o", markersize=4, color=colors[name], label=name, alpha=0.8)
        else:
            bars = axes.bar(places, heights, width * 0.92, color=colors[name], label=name)
            if len(groups) * len(metrics) <= 24:
                axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    long = many or sum(map(len, texts)) > 100
    axes.set_xticks(
        [i + 0.25 * (i > 0) for i in range(len(groups))],
        texts,
        rotation=90 if many else 40 if long else 0,
        ha="center" if many or not long else "right",
        fontsize=7 if many else 10,
    )
    axes.grid(visible=many, axis="x")
    axes.set_ylim(
        0,
        min(
            100,
            1.15
            * max(
                [v for values in metrics.values() for k, v in values.items() if k in groups] + [1]
            ),
        ),
    )
    axes.margins(x=0.01)
    axes.set_ylabel("average precision, %")
    figure.legend(loc="outside upper right", ncols=len(metrics))
    return title, figure


def draw_bounded(heads: Mapping[str, tuple]) -> tuple:
    """``(title, figure)``: the student's against the teacher's squared error of each positive box,
    and the gate between.

    Args:
        heads: by name (``rpn``, ``rois``) ``(e_s, e_t, margin)``; errors (P,) as
            :func:`squared_errors` gives them.
    """
    from matplotlib.figure import Figure

    data = {
        name: (torch.as_tensor(s).double(), torch.as_tensor(t).double(), float(m))
        for name, (s, t, m) in heads.items()
    }
    opened = {name: s + m > t for name, (s, t, m) in data.items()}
    shares = [
        f"{_share(o):.1f} % of {_counted(len(o), 'positive box', 'es')} ({name})"
        for name, o in opened.items()
    ]
    title = "Where the teacher bounds the student's boxes: the gate is open for " + ", ".join(
        shares
    )
    figure = Figure(figsize=(10.4 if len(data) > 1 else 6.4, 5.0 if len(data) > 1 else 5.4))
    for axes, (name, (s, t, m)) in zip(
        figure.subplots(1, len(data), squeeze=False)[0], data.items()
    ):
        positive = torch.cat([s[s > 0], t[t > 0]])
        low, high = (
            (float(positive.min()) / 1.6, float(positive.max()) * 1.6)
            if len(positive)
            else (1e-3, 1.0)
        )
        low = max(low, high * 1e-7)
        line = torch.logspace(*torch.tensor([low, high]).log10().tolist(), 400, dtype=torch.float64)
        gate = (line - m).clamp(low, high)
        axes.fill_between(line, gate, low, color="#EEF1F5", zorder=0)
        axes.plot(
            line[line - m > low],
            (line - m)[line - m > low],
            color="#3C4758",
            linewidth=1.2,
            linestyle=(0, (4, 3)),
        )
        faint = 0.8 if len(s) <= 200 else 0.45 if len(s) <= 2000 else 0.2
        for wanted, color, what in (
            (
                True,
                "#0072B2",
                r"open, $e_s + m > e_t$: pulled to the "
                r"ground truth",
            ),
            (False, "#8A94A3", r"closed, $e_s + m \leq e_t$: left alone"),
        ):
            chosen = opened[name] == wanted
            axes.plot(
                t[chosen].clamp(low, high),
                s[chosen].clamp(low, high),
                "o",
                markersize=4,
                markeredgewidth=0,
                color=color,
                alpha=faint,
                label=f"{what} ({_share(chosen):.1f} %)",
            )
        axes.set(
            xscale="log",
            yscale="log",
            xlim=(low, high),
            ylim=(low, high),
            aspect="equal",
            title=f"{name}: {_counted(len(s), 'box', 'es')}, margin {m:g}",
            xlabel="teacher's squared error $e_t$",
            ylabel="student's squared error $e_s$",
        )
        legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=9)
        for handle in legend.legend_handles:
            handle.set_alpha(1)
    return title, figure


def draw_weights(rows: Sequence[tuple]) -> tuple:
    """``(title, figure)``: maps drawn over their images, one image a row, one scale of colours a
    column.

    Args:
        rows: ``(image (3,H,W), [(name, map (h,w))])`` or ``(image, maps, (height, width))``, pixels
            of the image that its maps span: a batch's padding lies beyond its edges.
    """
    title = "Adaptive weight of ADL, the largest over classes and anchors at each place: bright is hard to learn or to mimic"
    rows = [
        (image, list(maps), tuple(span[0]) if span else tuple(image.shape[1:]))
        for image, maps, *span in rows
    ]
    names = list(dict.fromkeys(name for _, maps, _ in rows for name, _ in maps))
    columns, gap, bottom, top = 1 + len(names), 0.08, 0.55, 0.3
    side = min(10.4 / columns, 4.2)
    heights = [(side - gap) * min(image.shape[1] / image.shape[2], 1.5) for image, _, _ in rows]
    total, wide = top + bottom + sum(h + gap for h in heights), side * columns
    figure = _free_figure(wide, total)
    highest = {
        name: max(
            [float(m.max()) for _, maps, _ in rows for n, m in maps if n == name and m.numel()]
            + [1e-9]
        )
        for name in names
    }
    drawn, y = {}, total - top
    for column, name in enumerate(["image", *names]):
        size = min(11, (side - gap) * 72 / (0.63 * len(name)))
        figure.text(
            column * side / wide, (y + 0.08) / total, name, fontsize=size, fontweight="bold"
        )
    for (image, maps, (tall, broad)), height in zip(rows, heights):
        given = dict(maps)
        for column, name in enumerate(["image", *names]):
            axes = figure.add_axes(
                (column * side / wide, (y - height) / total, (side - gap) / wide, height / total)
            )
            _picture(axes, image, side - gap, gray=column > 0)
            if name in given:
                drawn[name] = axes.imshow(
                    torch.as_tensor(given[name]).float().numpy(),
                    cmap="inferno",
                    vmin=0,
                    vmax=highest[name],
                    alpha=0.72,
                    extent=(0, broad, tall, 0),
                    interpolation="nearest",
                )
                axes.set(xlim=(0, image.shape[2]), ylim=(image.shape[1], 0))
        y -= height + gap
    for column, name in enumerate(names, 1):
        axes = figure.add_axes(
            (column * side / wide, 0.3 / total, (side - gap) / wide, 0.1 / total)
        )
        bar = figure.colorbar(drawn[name], cax=axes, orientation="horizontal")
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=2)
    return title, figure


def _free_figure(width: float, height: float):
    """A figure whose axes stay where they are put; with ``layout='none'`` only its first
    ``savefig`` would leave them.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import PlaceHolderLayoutEngine

    return Figure(
        figsize=(width, height),
        layout=PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True),
    )


def _picture(axes, image: Tensor, inches: float, gray: bool = False) -> None:
    """An image without axes, 80 pixels an inch and 64 tones: boxes and texts stay sharp, and the
    report stays small.
    """
    height, width = image.shape[1:]
    image = image.detach().float().cpu().clamp(0, 1).expand(3, -1, -1)
    shrink = min(1.0, 80 * inches / width)
    if shrink < 1:
        size = max(round(height * shrink), 1), max(round(width * shrink), 1)
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    tones = 15 if gray else 63
    image = (tones * (image.mean(0) if gray else image.movedim(0, -1))).round() / tones
    axes.imshow(
        image.numpy(),
        cmap="gray",
        vmin=0,
        vmax=1,
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
    axes.set(xticks=[], yticks=[])
    axes.set_anchor("W")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _above(detection: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    kept = detection["scores"] >= threshold
    return {key: detection[key][kept].cpu() for key in ("boxes", "labels", "scores")}


def _names(classes: Sequence[str] | None, *entries: Mapping[str, Tensor]) -> list[str]:
    names = [str(name) for name in classes or ()]
    highest = max([int(e["labels"].max()) for e in entries if len(e["labels"])], default=0)
    return names + [f"class {k}" for k in range(len(names) + 1, highest + 1)]


def _class_color(label: int) -> str:
    return CLASS_COLORS[(label - 1) % len(CLASS_COLORS)]


def _share(chosen: Tensor) -> float:
    return 100 * float(chosen.double().mean()) if len(chosen) else 0.0


def _counted(count: int, what: str, ending: str = "s") -> str:
    return f"{count} {what}" + ("" if count == 1 else ending)


def _dark(color: str) -> str:
    """A colour of bars, dark enough for small text on white."""
    return "#" + "".join(f"{round(0.72 * int(color[i : i + 2], 16)):02X}" for i in (1, 3, 5))


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
