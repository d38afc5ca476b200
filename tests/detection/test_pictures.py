"""The pictures of detection count what they say they count, whatever there is and is not."""

import io
import math
import warnings

import pytest
import torch

from kdtasks.detection import anchor_maps, chen2017, matching, pictures
from kdtasks.detection.coco_metrics import class_figures

COLORS = {"teacher": "#5A6472", "alone": "#E69F00", "distilled": "#0072B2"}
NOTHING = {
    "boxes": torch.zeros(0, 4),
    "labels": torch.zeros(0, dtype=torch.int64),
    "scores": torch.zeros(0),
}


def drawn(figure):
    """The figure can be drawn, twice and without a warning; its texts."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dpi in (40, 30):
            figure.savefig(io.BytesIO(), format="png", dpi=dpi)
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def boxes(n, seed=0, classes=3):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g) * 60
    return {
        "boxes": torch.cat([corner, corner + 5 + 30 * torch.rand(n, 2, generator=g)], 1),
        "labels": torch.randint(1, classes + 1, (n,), generator=g),
        "scores": 0.6 + 0.4 * torch.rand(n, generator=g),
    }


def test_match_by_hand():
    objects = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [40, 40, 60, 60], [70, 0, 99, 99]])
    target = {
        "boxes": objects,
        "labels": torch.tensor([1, 1, 2, 1]),
        "iscrowd": torch.tensor([0, 0, 0, 1]),
    }
    rows = [
        ([1, 0, 11, 10], 1, 0.9, 1),  # nearest to the first
        # the first is taken, the second overlaps 60 / 140 only
        ([0, 0, 10, 10], 1, 0.8, 0),
        ([4, 0, 14, 9], 1, 0.7, 1),
        ([40, 40, 60, 60], 1, 0.99, 0),  # another class
        ([72, 5, 80, 20], 1, 0.5, -1),  # in the crowd
        ([72, 5, 80, 20], 2, 0.5, 0),
    ]  # a crowd of another class
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    b, l, s, want = (torch.tensor(column)[order] for column in zip(*rows))
    state, seen = matching.match({"boxes": b.float(), "labels": l, "scores": s}, target)
    assert state.tolist() == want.tolist() and seen.tolist() == [True, True, False, False]
    state, seen = matching.match(NOTHING, target)
    assert state.shape == (0,) and not seen.any()
    state, seen = matching.match({"boxes": b.float(), "labels": l, "scores": s}, NOTHING)
    assert state.tolist() == [0] * 6 and seen.shape == (0,)


def test_detections_count_right():
    target = {key: value for key, value in boxes(6).items() if key != "scores"} | {
        "labels": torch.ones(6, dtype=torch.int64)
    }
    target["boxes"] = torch.tensor([[12.0 * k, 5, 12 * k + 10, 30] for k in range(6)])
    full = {**target, "scores": torch.tensor([0.9, 0.8, 0.7, 0.6, 0.45, 0.2])}
    part = {
        "boxes": torch.cat([target["boxes"][:2], torch.tensor([[5.0, 50, 40, 60]])]),
        "labels": torch.tensor([1, 1, 2]),
        "scores": torch.tensor([0.9, 0.9, 0.9]),
    }
    image = torch.rand(3, 80, 90)
    title, figure = pictures.draw_detections(
        [image],
        [target],
        {"teacher": [full], "alone": [part], "none": [NOTHING]},
        ["a", "b"],
        COLORS,
    )
    texts = drawn(figure)
    assert "at least 0.5" in title
    for said in (
        "6 objects",
        "4 right, 0 wrong, 2 missed",
        "2 right, 1 wrong, 4 missed",
        "0 right, 0 wrong, 6 missed",
        "ground truth",
        "teacher",
        "alone",
        "none",
        "a",
        "b",
    ):
        assert said in texts
    _, figure = pictures.draw_detections(
        [image], [target], {"teacher": [full]}, None, COLORS, threshold=0.3
    )
    assert "5 right, 0 wrong, 1 missed" in drawn(figure) and "class 1" in drawn(figure)
    crowd = target | {"iscrowd": torch.tensor([0, 0, 0, 0, 0, 1])}
    _, figure = pictures.draw_detections([image], [crowd], {"teacher": [full]}, None, COLORS)
    assert "5 objects" in drawn(figure) and "4 right, 0 wrong, 1 missed" in drawn(figure)


def test_lines_tell_right_from_wrong():
    target = {
        "boxes": torch.tensor([[0.0, 0, 30, 30], [50, 50, 80, 80]]),
        "labels": torch.tensor([1, 1]),
    }
    answer = {
        "boxes": torch.tensor([[0.0, 0, 30, 30], [0, 50, 30, 80]]),
        "labels": torch.tensor([1, 1]),
        "scores": torch.tensor([0.9, 0.8]),
    }
    _, figure = pictures.draw_detections(
        [torch.rand(3, 90, 90)], [target], {"alone": [answer]}, None, COLORS
    )
    lines = {}
    # each second one: the first is its pale edge
    for patch in figure.axes[1].patches[1::2]:
        lines[patch.get_xy()] = patch.get_linestyle()
    assert lines[(0.0, 0.0)] in ("-", "solid") and lines[(0.0, 50.0)] != lines[(50.0, 50.0)]
    assert "solid" not in (lines[(0.0, 50.0)], lines[(50.0, 50.0)]) and len(lines) == 3


@pytest.mark.parametrize(
    "classes, count, shape",
    [(1, 0, (3, 40, 60)), (1, 3, (1, 40, 60)), (40, 60, (3, 300, 50)), (90, 100, (3, 50, 600))],
)
def test_any_number_of_classes_boxes_and_sizes(classes, count, shape):
    # no formula
    names = [rf"$\frac{{$ {k}, a rather long name" for k in range(classes)]
    images = [torch.rand(shape), torch.rand(shape[0], 64, 64)]
    targets = [boxes(count, 1, classes), {**NOTHING}]
    answers = {
        name: [boxes(count, k, classes), boxes(2, k, classes)] for k, name in enumerate(COLORS)
    }
    metrics = {
        name: {"map": 30.0 + k}
        | {figure: float(k + c) for c, figure in enumerate(class_figures(names))}
        for k, name in enumerate(COLORS)
    }
    found = pictures.draw(images, targets, answers, metrics, names, COLORS, ("alone", "distilled"))
    assert len(found) == 2
    assert found[1][0].endswith(
        f"distilled above alone in {classes} of {classes} classes, below in 0"
    )
    for title, figure in found:
        assert title and drawn(figure)


def test_classes_say_what_changed():
    metrics = {
        "alone": {
            "map": 20.0,
            "map_small": 3.0,
            "map_red": 10.0,
            "map_blue": 30.0,
            "map_green": 5.0,
        },
        "distilled": {"map": 25.0, "map_red": 20.0, "map_blue": 29.0, "map_green": 5.0},
    }
    title, figure = pictures.draw_classes(
        metrics, ["Red", "Blue", "Green", "Absent"], COLORS, ("alone", "distilled")
    )
    texts = drawn(figure)
    assert title.endswith("above alone in 1 of 3 classes, below in 1")
    assert {"Red", "Blue", "Green", "all classes", "alone", "distilled", "29.0", "25.0"} <= set(
        texts
    ) and "Absent" not in texts
    title, figure = pictures.draw_classes(
        {"alone": {"map": 1.0, "map_class_2": 3.0, "map_class_10": 4.0}}, None, COLORS
    )
    assert title.endswith("percent") and {"class 2", "class 10"} <= set(drawn(figure))


def test_nothing_to_draw():
    assert pictures.draw([], [], {}, {}, None, COLORS) == []
    assert pictures.draw([], [], {}, {"alone": {}}, None, COLORS) == []


def test_squared_errors_equal_a_loop():
    s, t, y = torch.randn(3, 7, 4).half().unbind()
    e_s, e_t = chen2017.box_errors(s, t, y)
    for i in range(7):
        assert e_s[i].item() == pytest.approx(
            sum((s[i, k].double() - y[i, k].double()).item() ** 2 for k in range(4))
        )
        assert e_t[i].item() == pytest.approx(
            sum((t[i, k].double() - y[i, k].double()).item() ** 2 for k in range(4))
        )
    with pytest.raises(ValueError, match=r"expected three equal shapes \(N, 4\), got .*\(6, 4\)"):
        chen2017.box_errors(s, t, y[:6])


def test_the_gate_is_counted_strictly():
    e_s, e_t = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, 3.5, 0.0])
    title, figure = pictures.draw_bounded({"rpn": (e_s, e_t, 0.0), "rois": (e_s, e_t, 0.75)})
    # equal: closed at margin 0
    assert title.endswith("25.0 % of 4 positive boxes (rpn), 100.0 % of 4 positive boxes (rois)")
    texts = drawn(figure)
    assert (
        any(t.startswith("open") and t.endswith("(25.0 %)") for t in texts)
        and "rois: 4 boxes, margin 0.75" in texts
    )
    title, figure = pictures.draw_bounded({"rois": (torch.tensor([2.0]), torch.tensor([2.5]), 0.5)})
    assert title.endswith("0.0 % of 1 positive box (rois)") and drawn(figure)
    for e in (torch.zeros(0), torch.zeros(3)):
        title, figure = pictures.draw_bounded({"rpn": (e, e, 0.1)})
        assert f"of {len(e)} positive boxes" in title and drawn(figure)


SIZES = [(4, 6), (2, 3), (1, 2)]


@pytest.mark.parametrize("gamma, beta", [(1.0, 1.5), (2.0, 1.0), (1.0, 0.0)])
def test_adl_weights_equal_a_loop(gamma, beta):
    anchors, classes = 2, 3
    total = anchors * sum(h * w for h, w in SIZES)
    student, teacher = (
        2 * torch.randn(2, total, classes, dtype=torch.float64).unbind()[0],
        torch.randn(total, classes, dtype=torch.float64),
    )
    maps, probabilities = (
        anchor_maps.adl_weight_map(student, teacher, SIZES, gamma, beta),
        anchor_maps.probability_map(teacher, SIZES),
    )
    row = 0
    for (h, w), weights, largest in zip(SIZES, maps, probabilities):
        assert weights.shape == largest.shape == (h, w)
        for y in range(h):
            for x in range(w):
                weight = probability = 0.0
                for _ in range(anchors):
                    for k in range(classes):
                        q, p = teacher[row, k].sigmoid().item(), student[row, k].sigmoid().item()
                        kl = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
                        entropy = -q * math.log(q) - (1 - q) * math.log(1 - q)
                        weight = max(weight, (1 - math.exp(-(kl + beta * entropy))) ** gamma)
                        probability = max(probability, q)
                    row += 1
                assert weights[y, x].item() == pytest.approx(weight, rel=1e-4) and largest[
                    y, x
                ].item() == pytest.approx(probability, rel=1e-5)


def test_the_order_is_that_of_torchvision():
    from torchvision.models.detection.retinanet import RetinaNetClassificationHead

    head = RetinaNetClassificationHead(4, 3, 2).eval()
    features = [torch.randn(1, 4, h, w) for h, w in SIZES]
    maps = anchor_maps.probability_map(head(features)[0], SIZES)
    for level, feature in zip(maps, features):
        want = head.cls_logits(head.conv(feature))[0].amax(0).sigmoid()
        torch.testing.assert_close(level, want.detach())


def test_adl_weights_of_extreme_logits_and_wrong_shapes():
    far = torch.tensor([[400.0], [-400.0], [0.0], [400.0]])
    (level,) = anchor_maps.adl_weight_map(far, far, [(2, 2)])
    assert level.flatten().tolist() == pytest.approx([0, 0, 1 - math.exp(-1.5 * math.log(2)), 0])
    assert anchor_maps.adl_weight_map(-far, far, [(2, 2)])[0][0].tolist() == [1, 1]
    with pytest.raises(
        ValueError,
        match=r"a multiple of the 4 locations of \[\(2, 2\)\], got "
        r"\(6,\)",
    ):
        anchor_maps.adl_weight_map(torch.zeros(6, 2), torch.zeros(6, 2), [(2, 2)])
    with pytest.raises(ValueError, match=r"two tensors \(A,K\), got \(4, 1\) and \(4, 2\)"):
        anchor_maps.adl_weight_map(far, torch.zeros(4, 2), [(2, 2)])
    coarse = anchor_maps.over_levels(
        [torch.tensor([[0.1, 0.2], [0.3, 0.9]]), torch.tensor([[0.25]])]
    )
    assert coarse.flatten().tolist() == pytest.approx([0.25, 0.25, 0.3, 0.9])


def test_weights_lie_over_their_images():
    image = torch.rand(3, 48, 64)
    rows = [
        (image, [("probability", torch.rand(6, 8)), ("weight", torch.rand(3, 4))]),
        # padded to the size of the batch
        (torch.rand(3, 60, 40), [("weight", torch.zeros(2, 2))], (80, 64)),
    ]
    title, figure = pictures.draw_weights(rows)
    assert "largest over classes and anchors" in title and {
        "image",
        "probability",
        "weight",
    } <= set(drawn(figure))
    shown = [axes for axes in figure.axes if axes.images]
    padded = next(axes for axes in shown if len(axes.images) == 2 and axes.get_xlim() == (0, 40))
    assert padded.images[1].get_extent() == [0, 64, 80, 0] and padded.get_ylim() == (60, 0)
    scales = {tuple(axes.images[1].get_clim()) for axes in shown if len(axes.images) == 2}
    # one a column
    assert scales == {(0, rows[0][1][0][1].max().item()), (0, rows[0][1][1][1].max().item())}
    assert drawn(pictures.draw_weights([(image, [("weight", torch.zeros(2, 2))])])[1])


def test_labelled_places_are_evenly_spaced():
    targets = [None if i % 2 else {} for i in range(40)]
    assert pictures.choose_labelled(targets, 4) == [4, 14, 24, 34] and pictures.choose_labelled(
        targets[:3], 4
    ) == [0, 2]
    assert pictures.choose_labelled([None], 4) == [] == pictures.choose_labelled([], 4)


def test_the_best_threshold_is_that_of_the_highest_f1_and_crowds_do_not_count():
    box = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    found = [
        {"boxes": box, "labels": torch.tensor([1, 1, 1]), "scores": torch.tensor([0.4, 0.3, 0.2])},
        {"boxes": box[:1], "labels": torch.tensor([1]), "scores": torch.tensor([0.9])},
    ]
    targets = [
        {"boxes": box[:2], "labels": torch.tensor([1, 1])},
        {"boxes": box[:1], "labels": torch.tensor([1]), "iscrowd": torch.tensor([1])},
    ]
    # 2 right of 2; the third box is wrong
    assert matching.best_threshold(found, targets) == pytest.approx(0.3)
    assert matching.best_threshold(
        found[:1], [{"boxes": box[2:], "labels": torch.tensor([1])}]
    ) == pytest.approx(0.2)
    assert matching.best_threshold(found[:1], [{"boxes": box[:0], "labels": torch.zeros(0)}]) == 0.5
    image = torch.rand(3, 60, 60)
    title, figure = pictures.draw_detections(
        [image], targets[:1], {"alone": found[:1]}, None, COLORS, {"alone": 0.3}
    )
    texts = [text.get_text() for text in figure.texts]
    assert (
        "best F1" in title
        and "alone, score ≥ 0.30" in texts
        and "2 right, 0 wrong, 0 missed" in texts
    )
