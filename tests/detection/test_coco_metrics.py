"""COCO's figures against a slow loop that knows nothing of the library, and small cases by hand."""

import sys

import pytest
import torch

from kdtasks.detection.coco_metrics import FIGURES, class_figures, coco_metrics, detections_of

OVERLAPS = [0.5 + 0.05 * k for k in range(10)]
SIZES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


def found(boxes, labels, scores):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def truth(boxes, labels, **more):
    target = {key: value for key, value in found(boxes, labels, []).items() if key != "scores"}
    return target | {key: torch.as_tensor(value) for key, value in more.items()}


BOX, OTHER = [10, 10, 50, 60], [200, 100, 320, 280]


# A slow reference ---------------------------------------------------------------------------------
def iou(a, b, crowd):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    own, other = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (own if crowd else own + other - w * h)


def one_class(detections, targets, k, least, size, most):
    """(average precision, recall) of class k at one overlap, for one range of sizes; None without
    objects.
    """
    low, high = SIZES[size]
    rows, objects = [], 0
    for d, t in zip(detections, targets):
        if t is None:
            continue
        sx, sy = t.get("scale", torch.ones(2)).tolist()
        shrink = lambda b, sx=sx, sy=sy: [b[0] / sx, b[1] / sy, b[2] / sx, b[3] / sy]  # noqa: E731
        area = lambda b: max(b[2] - b[0], 0) * max(b[3] - b[1], 0)  # noqa: E731
        gts = []
        for i, (b, l) in enumerate(zip(t["boxes"].double().tolist(), t["labels"].tolist())):
            if l == k:
                crowd = bool(t["iscrowd"][i]) if "iscrowd" in t else False
                a = t["area"][i].double().item() / (sx * sy) if "area" in t else area(shrink(b))
                gts.append([shrink(b), crowd, crowd or not low <= a <= high, False])
        # those that count come first
        gts.sort(key=lambda g: g[2])
        objects += sum(not g[2] for g in gts)
        dts = [
            (s, shrink(b))
            for s, b, l in zip(
                d["scores"].tolist(), d["boxes"].double().tolist(), d["labels"].tolist()
            )
            if l == k
        ]
        for score, box in sorted(dts, key=lambda r: -r[0])[:most]:
            best, chosen = min(least, 1 - 1e-10), None
            for g in gts:
                if g[3] and not g[1]:
                    continue
                if chosen is not None and not chosen[2] and g[2]:
                    break
                value = iou(box, g[0], g[1])
                if value >= best:
                    best, chosen = value, g
            if chosen is None:
                if low <= area(box) <= high:
                    rows.append((score, False))
                continue
            chosen[3] = True
            if not chosen[2]:
                rows.append((score, True))
    if not objects:
        return None
    rows.sort(key=lambda r: -r[0])
    points, right = [], 0
    for n, (_, hit) in enumerate(rows, 1):
        right += hit
        points.append((right / objects, right / n))
    heights = [max((p for r, p in points if r >= 0.01 * step), default=0.0) for step in range(101)]
    return sum(heights) / 101, right / objects


def slow(detections, targets, classes):
    def mean(which, size, most, overlaps=OVERLAPS, labels=range(1, classes + 1)):
        values = [
            one_class(detections, targets, k, o, size, most) for k in labels for o in overlaps
        ]
        values = [v[which] for v in values if v is not None]
        return 100 * sum(values) / len(values) if values else None

    made = {
        "map": mean(0, "all", 100),
        "map_50": mean(0, "all", 100, [0.5]),
        "map_75": mean(0, "all", 100, [0.75]),
        **{f"map_{s}": mean(0, s, 100) for s in ("small", "medium", "large")},
        **{f"mar_{n}": mean(1, "all", n) for n in (1, 10, 100)},
        **{f"mar_{s}": mean(1, s, 100) for s in ("small", "medium", "large")},
        **{f"map_class_{k}": mean(0, "all", 100, labels=[k]) for k in range(1, classes + 1)},
    }
    return {key: value for key, value in made.items() if value is not None}


def made_up(seed, images=12, classes=3, scale=False, area=False):
    """Jittered, missing, doubled and invented boxes; crowds, unlabelled images, images without
    boxes.
    """
    g = torch.Generator().manual_seed(seed)

    def boxes(n):
        corner = torch.rand(n, 2, generator=g) * 300
        return torch.cat([corner, corner + 8 + 150 * torch.rand(n, 2, generator=g) ** 2], 1)

    detections, targets = [], []
    for i in range(images):
        n = 0 if i % 5 == 3 else int(torch.randint(1, 14, (), generator=g))
        target = {
            "boxes": boxes(n),
            "labels": torch.randint(1, classes + 1, (n,), generator=g),
            "iscrowd": (torch.rand(n, generator=g) < 0.15).to(torch.uint8),
        }
        if scale:
            target["scale"] = 0.4 + torch.rand(2, generator=g)
        if area:
            target["area"] = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1) * (
                0.4 + 0.6 * torch.rand(n, generator=g)
            )
        pick = torch.randint(max(n, 1), (2 * n,), generator=g)
        close, free = target["boxes"][pick] if n else boxes(0), boxes(6)
        labels = torch.cat(
            [
                target["labels"][pick] if n else target["labels"],
                torch.randint(1, classes + 1, (6,), generator=g),
            ]
        )
        close = close + 6 * torch.randn(len(close), 4, generator=g)
        detections.append(
            {
                "boxes": torch.cat([close, free]),
                "labels": labels,
                "scores": torch.rand(len(labels), generator=g),
            }
        )
        targets.append(None if i == 7 else target)
    return detections, targets


@pytest.mark.parametrize(
    "seed, scale, area", [(0, False, False), (1, False, True), (2, True, False), (3, True, True)]
)
def test_equals_a_slow_loop(seed, scale, area):
    detections, targets = made_up(seed, scale=scale, area=area)
    got, want = coco_metrics(detections, targets), slow(detections, targets, 3)
    assert list(got) == list(want)
    assert got == pytest.approx(want, abs=1e-9)
    assert 0 < got["map"] < got["map_50"] < 100 and got["mar_1"] < got["mar_10"] <= got["mar_100"]


def test_no_more_than_100_detections_of_a_class_in_an_image():
    many = found([BOX] * 150, [1] * 150, [0.9 - 0.001 * k for k in range(150)])
    # the first 110 are wrong
    many["boxes"][:110] += 500
    assert coco_metrics([many], [truth([BOX], [1])])["map_50"] == 0
    # the right ones are from the 91st on
    few = {key: value[20:] for key, value in many.items()}
    assert coco_metrics([few], [truth([BOX], [1])])["map_50"] == pytest.approx(100 / 91)


# By hand ------------------------------------------------------------------------------------------
def test_perfect():
    target = truth([BOX, OTHER, [5, 5, 20, 20]], [1, 2, 2])
    got = coco_metrics(
        [found(target["boxes"].tolist(), [1, 2, 2], [0.9, 0.8, 0.7])], [target], ["Cell", "Cat"]
    )
    assert got == pytest.approx(
        {**dict.fromkeys(FIGURES, 100), "mar_1": 75, "map_cell": 100, "map_cat": 100}
    )


def test_shifted():
    """40 x 50 moved right by 10: IoU 30/50 = 0.6, so right at 0.50 and 0.55, and at 0.60 if it is
    not rounded below.
    """
    # 29/51 = 0.569
    got = coco_metrics([found([[21, 10, 61, 60]], [1], [0.9])], [truth([BOX], [1])])
    assert (
        got["map_50"] == 100
        and got["map_75"] == 0
        and got["map"] == pytest.approx(20) == got["mar_1"]
    )


def test_duplicate_and_wrong_class():
    target = truth([BOX, OTHER], [1, 1])
    # right, wrong, right
    twice = found([BOX, BOX, OTHER], [1, 1, 1], [0.9, 0.8, 0.7])
    # recalls 0..0.50 at 1, the rest at 2/3
    want = (51 * 1 + 50 * 2 / 3) / 101 * 100
    assert coco_metrics([twice], [target])["map"] == pytest.approx(want)
    # no object of class 2: its AP is not counted
    named = found([BOX, OTHER], [1, 2], [0.9, 0.8])
    got = coco_metrics([named], [target], ["a", "b"])
    assert got["map"] == pytest.approx(100 * 51 / 101) and "map_b" not in got
    got = coco_metrics([found([BOX], [2], [0.9])], [truth([BOX, OTHER], [1, 2])])
    assert got["map_class_1"] == got["map_class_2"] == 0


def test_crowd_is_neither_right_nor_wrong():
    target = truth(
        [BOX, [100, 100, 400, 400]], [1, 1], iscrowd=torch.tensor([0, 1], dtype=torch.uint8)
    )
    inside = found([[150, 150, 180, 180], [200, 200, 260, 250], BOX], [1, 1, 1], [0.9, 0.8, 0.7])
    assert coco_metrics([inside], [target])["map"] == 100
    del target["iscrowd"]
    assert coco_metrics([inside], [target])["map"] < 50


def test_images_without_boxes_count_and_unlabelled_ones_do_not():
    good, wrong = found([BOX], [1], [0.5]), found([OTHER], [1], [0.9])
    got = {
        what: coco_metrics([good, wrong], [truth([BOX], [1]), t])["map"]
        for what, t in (("empty", truth([], [])), ("none", None))
    }
    assert got == {"empty": pytest.approx(50), "none": 100}


def test_scale_gives_original_sizes():
    """40 x 50 given pixels are medium; with two given pixels an original one they are 20 x 25,
    small.
    """
    target = truth([[10, 10, 50, 60]], [1], scale=[2.0, 2.0])
    got = coco_metrics([found([BOX], [1], [0.9])], [target])
    assert got["map_small"] == 100 and "map_medium" not in got and got["map"] == 100
    assert "map_medium" in coco_metrics([found([BOX], [1], [0.9])], [truth([BOX], [1])])
    got = coco_metrics(
        [found([BOX], [1], [0.9])], [truth([BOX], [1], scale=[0.1, 1.0], area=[90.0])]
    )
    # 90 given pixels are 900 original ones
    assert "map_small" in got
    across = coco_metrics(
        [found([[0, 0, 40, 50]], [1], [0.9])], [truth([[0, 0, 40, 50]], [1], scale=[0.25, 2.0])]
    )
    assert "map_medium" in across  # 160 x 25 = 4,000


def test_nothing_found_and_nothing_there():
    nothing = found([], [], [])
    got = coco_metrics(
        [nothing, nothing], [truth([BOX, OTHER], [1, 3]), truth([], [])], ["a", "b", "c"]
    )
    assert set(got.values()) == {0.0} and {
        "map",
        "mar_100",
        "map_a",
        "map_c",
        "map_large",
        "map_medium",
    } <= set(got)
    assert "map_b" not in got and "map_small" not in got
    for detections, targets in (
        ([], []),
        ([nothing], [None]),
        ([nothing], [truth([], [])]),
        ([found([BOX], [1], [1])], [truth([], [])]),
    ):
        assert coco_metrics(detections, targets) == coco_metrics(detections, targets, ["a"]) == {}


def test_names():
    names = class_figures(
        ["RBC", "Traffic Light", "tvMonitor", "small", "50", "rbc", "—", "hot-dog", "mâche"]
    )
    assert names == [
        "map_rbc",
        "map_traffic_light",
        "map_tv_monitor",
        "map_class_4",
        "map_class_5",
        "map_class_6",
        "map_class_7",
        "map_hot_dog",
        "map_mâche",
    ]


def test_nothing_is_printed(capfd, caplog):
    caplog.set_level("DEBUG", "faster_coco_eval")
    coco_metrics(*made_up(0))
    assert not any(capfd.readouterr()) and not caplog.records


@pytest.mark.parametrize(
    "change, says",
    [
        (
            {"scores": torch.tensor([float("nan")])},
            "the detection of image 1 has scores that are not finite: nan",
        ),
        (
            {"boxes": torch.tensor([[0, 0, float("inf"), 1]])},
            "the detection of image 1 has boxes that are not finite",
        ),
        ({"labels": torch.tensor([0])}, "image 1 has label 0; labels count from 1"),
        (
            {"labels": torch.tensor([3])},
            "image 1 has label 3; labels count from 1, and there are 2 classes",
        ),
        (
            {"scores": torch.rand(2)},
            r"image 1 has 1 boxes, but scores of shape \(2,\); expected "
            r"\(1,\)",
        ),
    ],
)
def test_what_cannot_be_measured(change, says):
    good, target = found([BOX], [1], [0.9]), truth([BOX], [1])
    with pytest.raises(ValueError, match=says):
        coco_metrics([good, good | change], [None, target], ["a", "b"])
    with pytest.raises(ValueError, match="2 detections and 1 targets"):
        coco_metrics([good, good], [target])
    with pytest.raises(ValueError, match="the target of image 0 has boxes that are not finite"):
        coco_metrics([good], [target | {"boxes": torch.full((1, 4), float("nan"))}])


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'kdtasks\[detection\]'"):
        coco_metrics([found([BOX], [1], [0.9])], [truth([BOX], [1])])


def test_detections_of_a_loader():
    class Detector(torch.nn.Module):
        def forward(self, images):
            assert not torch.is_grad_enabled()
            n = [int(image.sum()) for image in images]
            return [
                {
                    "boxes": torch.full((k, 4), float(k)),
                    "labels": torch.arange(1, k + 1),
                    "scores": torch.rand(k).half(),
                }
                for k in n
            ]

    images = [torch.zeros(3, 2, 2 + k) for k in range(5)]
    for k, image in enumerate(images):
        image[0, 0, 0] = k
    targets = [truth([BOX], [1]), None, truth([], []), None, truth([BOX], [1])]
    loader = [
        {"input": images[a:b], "target": targets[a:b], "index": torch.arange(a, b) * 10}
        for a, b in ((0, 2), (2, 5))
    ]
    got, kept = detections_of(Detector(), loader)
    assert [len(d["boxes"]) for d in got] == [0, 1, 2, 3, 4] and [d["index"] for d in got] == [
        0,
        10,
        20,
        30,
        40,
    ]
    assert [t is None for t in kept] == [False, True, False, True, False]
    assert (
        got[3]["labels"].tolist() == [1, 2, 3]
        and got[3]["labels"].dtype == torch.int64
        and (got[3]["boxes"] == 3).all()
    )
    assert got[2]["scores"].dtype == torch.float32
    got, kept = detections_of(Detector(), [{"input": images[:2]}, {"input": images[2:4]}])
    assert kept == [None] * 4 and [d["index"] for d in got] == [0, 1, 2, 3]
    assert detections_of(Detector(), []) == ([], [])
