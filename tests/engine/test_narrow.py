"""On a page as wide as a phone figures are stacked: what is drawn again is narrow and has all its
panels, and the pieces of a gallery are the whole gallery.
"""

import base64
import io
import itertools
import re

import jinja2
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from kdtasks.engine.report import figures, narrow, style

pytestmark = pytest.mark.usefixtures("drawn_reports")


def pixels(uri):
    data = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def gallery(heading, captions=("a cat", "no dog")):
    """Two rows of three pictures at places of their own; a heading above the second row."""
    figure = Figure(figsize=(6, 5), layout="none")
    image = np.random.default_rng(0).random((8, 8, 3))
    for top in (0.9, 0.4):
        for column in range(3):
            axes = figure.add_axes((0.02 + column / 3, top - 0.3, 0.28, 0.3), xticks=[], yticks=[])
            axes.imshow(image)
            for k, text in enumerate(captions):
                figure.text(0.02 + column / 3, top - 0.34 - 0.04 * k, text)
    figure.text(0.02, 0.43, heading)
    return figure


@pytest.mark.parametrize(
    "heading, pieces",
    [("short", [3, 3]), ("a heading that goes over all of the three pictures below", [3, 2, 3])],
)
def test_a_gallery_is_cut_between_its_pictures_and_nothing_is_lost(heading, pieces):
    (stored,) = figures.embed([("two rows", gallery(heading))])
    assert [len(row) for row in stored.rows] == pieces
    assert stored.images and not stored.narrow
    figure = gallery(heading)
    style.hold(figure)
    whole = np.asarray(Image.open(io.BytesIO(figures._stored(figure, 160))).convert("RGB"))
    rows = []
    for row in stored.rows:
        band = np.concatenate([pixels(piece.uri) for piece in row], axis=1)
        rest = np.full((len(band), whole.shape[1] - band.shape[1], 3), 255, band.dtype)
        rows.append(np.concatenate([band, rest], axis=1))
        assert sum(piece.width for piece in row) <= stored.width + 0.01
    assert np.array_equal(np.concatenate(rows), whole)


def test_the_pieces_of_a_row_leave_room_for_each_other():
    """As the page writes them, in percent and pixels: a hair too much, and the last one wraps."""
    pieces = [figures.Piece("", 1040 / 17 + k / 700) for k in range(-8, 9)]
    picture = figures.Picture("a row", 1040, [pieces], images=True)
    parts = jinja2.Environment(loader=jinja2.PackageLoader("kdtasks.engine", "report"))
    page = parts.get_template("parts.html").module.figures([picture])
    for unit, most in (("%;", 100), (r"px\)", 1040)):
        widths = [float(w) for w in re.findall(rf"([0-9.]+){unit}", page)]
        assert len(widths) == 17 and most * 0.999 < sum(widths) < most


def placed(boxes, texts):
    """Pictures at (left, top) and lines of text, all in inches from the upper left corner."""
    figure = Figure(figsize=(10, 3), layout="none")
    image = np.random.default_rng(0).random((8, 8, 3))
    for left, top in boxes:
        axes = figure.add_axes((left / 10, 1 - (top + 0.6) / 3, 0.06, 0.2), xticks=[], yticks=[])
        # smoothed, it reaches a hair beyond its axes
        axes.imshow(image, aspect="auto", interpolation="antialiased")
    for left, top, text in texts:
        figure.text(left / 10, 1 - top / 3, text, va="top")
    return figure


def test_pictures_that_belong_together_stay_together():
    one = [0.02, *(0.85 + 0.66 * k for k in range(5)), *(4.4 + 0.66 * k for k in range(5))]
    boxes = [(left, top) for top in (0.4, 1.4) for left in one]
    (stored,) = figures.embed([("", placed(boxes, [(0.85, 0.05, "first"), (4.4, 0.05, "other")]))])
    assert [len(row) for row in stored.rows] == [3, 3]
    assert all(piece.width <= 358 for row in stored.rows for piece in row[:2])
    # the names of groups are above them on a phone, too; a query has none
    assert [bool(piece.head) for piece in stored.rows[1]] == [False, True, True]
    # those that are all as far from each other are cut between all of them
    boxes = [(0.02 + 0.9 * k, 0.4) for k in range(11)]
    (stored,) = figures.embed([("", placed(boxes, []))])
    assert [len(row) for row in stored.rows] == [11]


def test_edges_of_pictures_that_are_close_do_not_separate_them_from_their_names():
    boxes = [(0.017 + 0.66 * k, 0.4033) for k in range(5)]
    names = [(left, 0.05, f"n{k}") for k, (left, _) in enumerate(boxes)]
    (stored,) = figures.embed([("", placed(boxes, names))])
    assert [len(row) for row in stored.rows] == [5]


def test_names_of_columns_go_with_the_pictures_of_each_row():
    figure = gallery("")
    for column, name in enumerate(("one", "two", "three")):
        figure.text(0.02 + column / 3, 0.912, name)
    figure.text(
        0.02, 0.99, "a line that goes over all of the columns, as a legend does, to its end"
    )
    (stored,) = figures.embed([("named", figure)])
    line, first, second = stored.rows
    assert len(line) == 2 and len(first) == len(second) == 3
    # those of the first row are in its pieces; in the second they are shown where it is stacked
    assert not any(piece.head for piece in (*line, *first))
    for above, below in zip(first, second):
        head = pixels(below.head)
        assert (head < 128).any()
        assert np.array_equal(pixels(above.uri)[: len(head), : head.shape[1]], head)


def test_panels_side_by_side_come_below_each_other_for_a_phone():
    figure = Figure(figsize=(10.4, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for k, axes in enumerate(panels.flat):
        axes.plot([0, 1], [k, k + 1], label=f"a long name {k}")
        axes.set_title(f"panel {k}")
    figure.legend(loc="outside lower center", ncols=3)
    (stored,) = figures.embed([("three", figure)])
    assert stored.width == 1040 and not stored.images
    height, width, _ = pixels(stored.narrow).shape
    assert width == int(narrow.NARROW * figures.NARROW_DPI) and height > 1.5 * width
    places = [axes.get_position() for axes in panels.T.flat]
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(places))
    assert max(place.x1 for place in places) <= 1
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == 3 and box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_what_is_as_narrow_as_a_phone_is_not_drawn_again():
    figure = Figure(figsize=(3, 2), layout="constrained")
    figure.subplots().plot([1, 2])
    (stored,) = figures.embed([("small", figure)])
    assert stored.narrow == "" and len(stored.rows) == 1
