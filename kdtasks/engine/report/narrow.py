"""Figures on a page as wide as a phone: stacked, not shrunk.

A figure that matplotlib lays out is drawn again, narrow, its panels one below the other. Of a
gallery, whose pictures lie at places of their own, the rows are cut between their pictures, or
between groups of some that a phone has room for; the pieces stand side by side where the page is
wide, and wrap where it is not.
"""

import io
import textwrap
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

# inches; the page leaves 358 of a phone's 390 pixels
NARROW = 3.58
# letters side by side
LETTERS = 40
# inches: narrower axes are a colour bar and stay with their picture
BAR = 0.3
# inches: a picture's frame reaches so far beyond it
FRAME = 0.04
# inches: and so far the uppermost number of its colour bar
REACH = 0.08
# inches: a heading's words are closer to each other than headings of columns
WORDS = 0.15
# times the least gap of a row: what is further from what is before it begins a group
APART = 1.5


def is_laid_out(figure: "Figure") -> bool:
    """Whether matplotlib places its axes, so that they can be placed anew."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine)


def make_narrow(figure: "Figure") -> bool:
    """Give a figure that :func:`is_laid_out` a phone's width, its panels below each other; False if
    it is not wider.
    """

    width, height = figure.get_size_inches()
    if width <= NARROW:
        return False
    columns = _stack([axes for axes in figure.axes if axes.get_subplotspec() is not None], figure)
    factor = min(1.0, max(0.75, NARROW * columns / width)) if columns > 1 else 1.0
    figure.set_size_inches(NARROW, height * columns * factor)
    for legend in [*figure.legends]:
        _fit_legend(legend, figure)
    for axes in figure.axes:
        _fit_texts(axes)
    return True


def _fit_legend(legend: "Legend", figure: "Figure") -> None:
    """In its place one above, of as many columns as there is room for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    handles = [handle for handle in legend.legend_handles if handle is not None]
    labels = [text.get_text() for text in legend.get_texts()]
    legend.remove()
    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in range(min(len(labels), 4), 0, -1):
        new = figure.legend(handles, labels, loc="outside upper left", ncols=columns)
        if columns == 1 or new.get_window_extent(renderer).width <= figure.bbox.width:
            break
        new.remove()


def _fit_texts(axes: "Axes") -> None:
    """Titles are wrapped; names below an axis are slanted where they would not fit side by side."""
    from matplotlib.text import Text

    titles = {axes.get_title(place) for place in ("left", "center", "right")}
    for text in axes.get_children():
        if isinstance(text, Text) and text.get_text() in titles:
            text.set_text(textwrap.fill(text.get_text(), LETTERS - 6))
    for axis, most in ((axes.xaxis, LETTERS), (axes.yaxis, LETTERS - 10)):
        axis.label.set_text(textwrap.fill(axis.get_label_text(), most))
    names = [label.get_text() for label in axes.get_xticklabels()]
    lengths = [max(map(len, name.split("\n"))) for name in names if name]
    if sum(lengths) > LETTERS - 4 and any(map(str.isalpha, "".join(names))):
        axes.tick_params(axis="x", labelrotation=40)


def _stack(panels: "list[Axes]", figure: "Figure") -> int:
    """Put panels of one grid below each other, column after column; how many columns there were."""
    specs = [panel.get_subplotspec() for panel in panels]
    grids = {id(spec.get_gridspec()): spec.get_gridspec() for spec in specs if spec is not None}
    if len(grids) != 1:
        return 1
    (grid,) = grids.values()
    rows, columns = grid.nrows, grid.ncols
    if columns == 1:
        return 1
    heights = [float(ratio) for ratio in np.atleast_1d(grid.get_height_ratios())]
    used = {spec.colspan.start for spec in specs if spec is not None}
    single = figure.add_gridspec(rows * columns, 1, height_ratios=heights * columns)
    for panel, spec in zip(panels, specs):
        if spec is not None:
            first = spec.colspan.start * rows + spec.rowspan.start
            panel.set_subplotspec(single[first : first + len(spec.rowspan), 0])
    return len(used)


@dataclass
class Row:
    """A row of a gallery, in pieces, uint8 (h,w,3)."""

    pieces: list[np.ndarray]
    # what stands above each, in the first row with these columns
    heads: list[np.ndarray] = field(default_factory=list)


def cut(figure: "Figure", png: bytes) -> list[Row]:
    """Of a drawn gallery, the pieces of each row, which together are the picture.

    Args:
        figure: as it was drawn last.
        png: the drawing.
    """
    from matplotlib.image import imread

    # from RGBA in [0,1], on white
    picture = (255 * imread(io.BytesIO(png))[..., :3]).round().astype(np.uint8)
    height, width = picture.shape[:2]
    blank = (picture == 255).all(axis=2)
    boxes = [_box(axes, width, height) for axes in figure.axes]
    boxes_of = _rows([box for box in boxes if box[2] > box[0] and box[3] > box[1]])
    if not boxes_of:
        return [Row([picture])]
    edges = [0]
    for above, below in pairwise(boxes_of):
        start, stop = max(box[3] for box in above), min(box[1] for box in below)
        gap = _widest(blank[start:stop].all(axis=1))
        edges.append(start + gap if gap is not None else stop)
    edges.append(height)
    inch = width / figure.get_size_inches()[0]
    cutter = _Cutter(picture, blank, inch)
    return [
        piece
        for (top, bottom), row in zip(pairwise(edges), boxes_of)
        for piece in cutter.cut(top, bottom, sorted(row))
    ]


def _box(axes: "Axes", width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels."""
    place = axes.get_position()
    return (
        round(place.x0 * width),
        round((1 - place.y1) * height),
        round(place.x1 * width),
        round((1 - place.y0) * height),
    )


def _rows(boxes: list[tuple]) -> list[list[tuple]]:
    """Boxes that lie side by side, from above."""
    rows: list[list[tuple]] = []
    for box in sorted(boxes, key=lambda box: box[1]):
        if rows and box[1] < max(other[3] for other in rows[-1]):
            rows[-1].append(box)
        else:
            rows.append([box])
    return rows


def _widest(blank: np.ndarray) -> int | None:
    """The middle of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], blank, [False]]).astype(int)))
    runs = edges.reshape(-1, 2)
    if not len(runs):
        return None
    start, stop = runs[(runs[:, 1] - runs[:, 0]).argmax()]
    return int(start + stop) // 2


class _Cutter:
    """Cuts rows between their boxes; those with the same columns in the same way."""

    def __init__(self, picture: np.ndarray, blank: np.ndarray, inch: float):
        self.picture, self.blank, self.inch = picture, blank, inch
        # by the left edges of the boxes: where it was cut, and what stands above
        self.known: dict[tuple, tuple[list[int], list[np.ndarray]]] = {}

    def cut(self, top: int, bottom: int, row: list[tuple]) -> list[Row]:
        """A row of pieces, and above it a heading that goes over several of them."""
        head = self._clear_above(min(box[1] for box in row), top)
        empty = np.atleast_1d(self.blank[head:bottom].all(axis=0))
        groups = _groups(row, round(BAR * self.inch))
        if len(groups) > 1 and self._fits(_cuts(empty, groups, 0), empty):
            row = groups
        finest = _cuts(empty, row, round(BAR * self.inch))
        rows = []
        # lines of a heading that are in the way go, from above
        for start in [top, *self._ends(top, head)]:
            written = np.atleast_1d(self.blank[start:head].all(axis=0))
            filled = _filled(written, round(WORDS * self.inch))
            cuts = _cuts(empty & filled, row, round(BAR * self.inch))
            if cuts == finest or (cuts and self._fits(cuts, empty & written)):
                break
        else:
            start, cuts = head, finest
        if start > top:
            rows = [Row(self._written(top, start))]
        columns = tuple(box[0] for box in row)
        above = self._split(start, head, cuts) if not self.blank[start:head].all() else []
        cuts_before, heads = self.known.get(columns, (cuts, []))
        if above or not all(empty[at] for at in cuts_before):
            heads = []
            self.known[columns] = (cuts, above)
        else:
            cuts = cuts_before
        pieces = self._split(start, bottom, cuts)
        if pieces[-1].shape[1] > NARROW * self.inch:
            pieces[-1] = _without_rest(pieces[-1])
        return [*rows, Row(pieces, heads)]

    def _clear_above(self, head: int, top: int) -> int:
        """The lowest empty line above pictures, whose frames and smoothed edges reach beyond them;
        ``head``, where they begin, if something is written right there.
        """
        lines = range(head - 1, max(top, head - round(REACH * self.inch)) - 1, -1)
        return next((line for line in lines if self.blank[line].all()), head)

    def _ends(self, top: int, head: int) -> list[int]:
        """Where there is nothing below a line of the heading."""
        lines = np.asarray(self.blank[top:head].all(axis=1))
        after = np.flatnonzero(lines[1:] & ~lines[:-1]) + 1
        return [top + int(at) for at in after]

    def _fits(self, cuts: list[int], empty: np.ndarray) -> bool:
        """Whether no piece, the last without its empty rest, is wider than a phone."""
        edges = [0, *cuts, int(np.flatnonzero(~empty).max(initial=0)) + 2]
        return max(b - a for a, b in pairwise(edges)) <= NARROW * self.inch

    def _written(self, top: int, bottom: int) -> list[np.ndarray]:
        """Lines of text, without their empty rest, cut between words where they are too wide."""
        empty = np.atleast_1d(self.blank[top:bottom].all(axis=0))
        last = np.flatnonzero(~empty)
        end = int(last[-1]) + 2 if len(last) else self.picture.shape[1]
        # wider than what is between letters
        filled = np.flatnonzero(_filled(empty, round(FRAME * 0.8 * self.inch))[:end])
        cuts, limit = [0], int(NARROW * self.inch)
        while end - cuts[-1] > limit:
            near = filled[(filled > cuts[-1]) & (filled <= cuts[-1] + limit)]
            if not len(near):
                break
            cuts.append(int(near[-1]))
        return [self.picture[top:bottom, a:b] for a, b in pairwise([*cuts, end])]

    def _split(self, top: int, bottom: int, cuts: list[int]) -> list[np.ndarray]:
        edges = [0, *cuts, self.picture.shape[1]]
        return [self.picture[top:bottom, a:b] for a, b in pairwise(edges)]


def _without_rest(image: np.ndarray) -> np.ndarray:
    """A picture without its empty right side."""
    last = np.flatnonzero((image != 255).any(axis=(0, 2)))
    return image[:, : int(last[-1]) + 2] if len(last) else image


def _filled(blank: np.ndarray, least: int) -> np.ndarray:
    """Without its runs of True that are shorter than ``least``, but for those at the ends."""
    filled = blank.copy()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], blank, [False]]).astype(int)))
    for start, stop in edges.reshape(-1, 2):
        if stop - start < least and start > 0 and stop < len(blank):
            filled[start:stop] = False
    return filled


def _groups(row: list[tuple], bar: int) -> list[tuple]:
    """A row's boxes, where those that are closer to each other than to others are one."""
    gaps = [box[0] - before[2] for before, box in pairwise(row) if box[2] - box[0] > bar]
    groups = row[:1]
    for before, box in pairwise(row):
        left, top, _, bottom = groups[-1]
        if box[2] - box[0] > bar and box[0] - before[2] > APART * min(gaps):
            groups.append(box)
        else:
            groups[-1] = left, min(top, box[1]), box[2], max(bottom, box[3])
    return groups


def _cuts(empty: np.ndarray, row: list[tuple], bar: int) -> list[int]:
    """The empty columns closest to the left edges of the boxes but the first."""
    cuts = []
    for before, box in pairwise(row):
        gaps = np.flatnonzero(empty[before[2] : box[0]])
        if box[2] - box[0] > bar and len(gaps):
            cuts.append(before[2] + int(gaps[-1]))
    return cuts
