"""Where the teacher bounds the student's boxes: the gate of Chen et al.'s regression loss."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtasks.detection.chen2017 import is_above_bound
from kdtasks.engine.report.style import SLATE, WIDTH
from kdtasks.images.display import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_bounded(heads: Mapping[str, tuple]) -> tuple[str, "Figure"]:
    """``(title, figure)``: the student's against the teacher's squared error of each positive box,
    and the gate between.

    Args:
        heads: by name (``rpn``, ``rois``) ``(e_s, e_t, margin)``; errors (P,) as
            :func:`~kdtasks.detection.chen2017.box_errors` gives them.
    """
    from matplotlib.figure import Figure

    data = {
        name: (torch.as_tensor(s).double(), torch.as_tensor(t).double(), float(m))
        for name, (s, t, m) in heads.items()
    }
    figure = Figure(figsize=(WIDTH, 5.0) if len(data) > 1 else (6.4, 5.4))
    shares = []
    for axes, (name, errors) in zip(figure.subplots(1, len(data), squeeze=False)[0], data.items()):
        is_open = is_above_bound(*errors)
        _draw_gate(axes, name, *errors, is_open)
        boxes = counted(len(is_open), "positive box", "es")
        shares.append(f"{_share(is_open):.1f} % of {boxes} ({name})")
    title = "Where the teacher bounds the student's boxes: the gate is open for "
    return title + ", ".join(shares), figure


def _draw_gate(
    axes: "Axes", name: str, student: Tensor, teacher: Tensor, margin: float, is_open: Tensor
) -> None:
    """One head: a point for each box, the line where the gate opens, and what lies below it."""
    low, high = _log_range(student, teacher)
    ends = torch.tensor([low, high]).log10().tolist()
    line = torch.logspace(*ends, 400, dtype=torch.float64)
    gate = line - margin
    axes.fill_between(line, gate.clamp(low, high), low, color="#EEF1F5", zorder=0)
    visible = gate > low
    style = {"color": SLATE, "linewidth": 1.2, "linestyle": (0, (4, 3))}
    axes.plot(line[visible], gate[visible], **style)
    opacity = 0.8 if len(student) <= 200 else 0.45
    faint = opacity if len(student) <= 2000 else 0.2
    style = {"markersize": 4, "markeredgewidth": 0, "alpha": faint}
    for mask, color, label in (
        (is_open, "#0072B2", r"open, $e_s + m > e_t$: pulled to the ground truth"),
        (~is_open, "#8A94A3", r"closed, $e_s + m \leq e_t$: left alone"),
    ):
        points = teacher[mask].clamp(low, high), student[mask].clamp(low, high)
        axes.plot(*points, "o", color=color, label=f"{label} ({_share(mask):.1f} %)", **style)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(low, high),
        aspect="equal",
        title=f"{name}: {counted(len(student), 'box', 'es')}, margin {margin:g}",
        xlabel="teacher's squared error $e_t$",
        ylabel="student's squared error $e_s$",
    )
    legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=9)
    for handle in legend.legend_handles:
        handle.set_alpha(1)


def _log_range(*errors: Tensor) -> tuple[float, float]:
    """What of the axis is shown: at most seven powers of ten."""
    positive = torch.cat([error[error > 0] for error in errors])
    if not len(positive):
        return 1e-3, 1.0
    high = float(positive.max()) * 1.6
    return max(float(positive.min()) / 1.6, high * 1e-7), high


def _share(mask: Tensor) -> float:
    return 100 * float(mask.double().mean()) if len(mask) else 0.0
