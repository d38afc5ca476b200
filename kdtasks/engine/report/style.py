"""What the figures of a report, the task's among them, have in common: colours, width, settings."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import PlaceHolderLayoutEngine

# Okabe and Ito's palette, which colour-blind eyes can tell apart too; yellow is left out, it is too
# pale for lines.
TEACHER, CONTROL, TAUGHT = "#5A6472", "#E69F00", "#0072B2"
OTHERS = ("#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D1F", "#7B4FA3")
# texts and lines, from dark to light
INK, SLATE, PALE = "#1B2330", "#3C4758", "#AEB7C4"
# inches, of a page; and a hair less than a phone has room for, where narrow.py cuts what is wider
WIDTH, PHONE = 10.4, 3.57
# the task's pictures are drawn under it too
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.fontsize": 9.5,
    "text.color": INK,
    "axes.labelcolor": SLATE,
    "axes.titlecolor": INK,
    "xtick.color": SLATE,
    "ytick.color": SLATE,
    "axes.edgecolor": PALE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E7EBF0",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
}


def free_figure(width: float, height: float) -> "Figure":
    """A figure, its sides in inches, whose axes stay where they are put."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=_in_place())


def hold(figure: "Figure") -> None:
    """Leave the axes of a figure without a layout where they are, which ``layout='none'`` does in
    its first ``savefig`` only.
    """
    if figure.get_layout_engine() is None:
        figure.set_layout_engine(_in_place())


def _in_place() -> "PlaceHolderLayoutEngine":
    from matplotlib.layout_engine import PlaceHolderLayoutEngine

    return PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
