"""The pictures count what they say they count, for any number of classes and whatever models there
are.
"""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdtasks.classification import pictures, trainer
from kdtasks.classification.pictures import counting
from kdtasks.engine import config as configs
from kdtasks.engine.run import Run
from kdtasks.images.display import pictures_of

SMALL = Path(__file__).parents[1] / "engine" / "small" / "small.py"
COLORS = {"teacher": "#5A6472", "alone": "#E69F00", "distilled": "#0072B2"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    test = {"type": "small_parts.Digits", "first": 1000, "count": 300, "labelled": 290}
    options = {"length": 10, "schedule": [], "data.test": test}
    run = Run(configs.load(SMALL, options), tmp_path_factory.mktemp("runs") / "run", quiet=True)
    run.train()
    return run


def drawn(figure):
    """The figure can be drawn; its texts."""
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def made_up(n, classes, share, seed, target=None):
    """Answers of which about ``share`` are right."""
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (n,), generator=g) if target is None else target
    right = torch.rand(n, generator=g) < share
    answer = torch.where(right, target, torch.randint(classes, (n,), generator=g))
    return pictures.Answers(torch.arange(n), target, answer, torch.rand(n, generator=g))


def loader_of(images, classes, **more):
    return SimpleNamespace(dataset=SimpleNamespace(images=images, classes=classes, **more), seed=0)


def test_counts_of_a_run_equal_a_slow_recount(run):
    (_, classes), (title, gallery), (_, reliability) = trainer.pictures(run)
    fixed = broken = total = 0
    alone, distilled = run.trained("alone"), run.trained("distilled")
    test = run.experiment.data_set(run.experiment.config["data"], "test")
    for i in range(len(test)):
        x, y = test.images[i : i + 1], int(test.target[i])
        if y < 0:
            continue
        before, after = int(alone(x).argmax()) == y, int(distilled(x).argmax()) == y
        fixed, broken, total = (
            fixed + (after and not before),
            broken + (before and not after),
            total + 1,
        )
    assert total == 290 and fixed + broken > 0
    assert title == f"From alone to distilled: {fixed} fixed, {broken} broken of 290 test images"
    shown = [text for text in drawn(gallery) if text.startswith("true: ")]
    assert len(shown) == min(fixed, 16) + min(broken, 8)
    assert {"teacher", "alone", "distilled"} <= set(drawn(classes))
    assert [t.split(":")[0] for t in drawn(reliability) if "ECE" in t] == [
        "teacher",
        "alone",
        "distilled",
    ]


def test_answers_agree_with_the_evaluation(run):
    loader = run.experiment.test_loader(run.experiment.stages[0])
    model = run.trained("alone")
    found = pictures.answers(model, loader)
    assert 100 * found.right.double().mean().item() == pytest.approx(run.done["alone"]["accuracy"])
    assert len(found.target) == 290 and not found.confidence.requires_grad
    probability = model(loader.dataset.images[:1]).softmax(1)
    assert (
        found.confidence[0] == pytest.approx(probability.max().item())
        and found.answer[0] == probability.argmax()
    )


def test_what_is_absent_is_left_out(run, monkeypatch):
    done = run.done
    for names, say in (
        ([], None),
        (["alone"], "alone: "),
        (["teacher"], "teacher: "),
        (["distilled"], "distilled: "),
    ):
        monkeypatch.setattr(
            Run, "done", property(lambda self, names=names: {name: done[name] for name in names})
        )
        found = trainer.pictures(run)
        assert len(found) == (3 if names else 0)
        for title, figure in found:
            assert title and drawn(figure)
        if names:
            assert re.fullmatch(say + r"\d+ wrong of 290 test images", found[1][0])
    labels = [text.split(":")[0] for text in drawn(found[2][1]) if "ECE" in text]
    # what the stage was taught by, from its file
    assert labels == ["teacher", "distilled"]


@pytest.mark.parametrize("bins", [1, 10])
def test_calibration_equals_a_loop(bins):
    g = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=g)
    confidence[:4] = torch.tensor([0.0, 0.5, 1.0, 0.2])  # on the edges of bins
    right = torch.rand(500, generator=g) < confidence
    error, rows = counting.calibration(confidence, right, bins)
    slow, values = 0.0, confidence.tolist()
    for b in range(bins):
        inside = [
            i
            for i in range(500)
            if (b / bins < values[i] or b == 0) and values[i] <= (b + 1) / bins
        ]
        accuracy = sum(right[i].item() for i in inside) / len(inside)
        mean = sum(values[i] for i in inside) / len(inside)
        assert rows[b] == pytest.approx((len(inside), 100 * accuracy, 100 * mean))
        slow += len(inside) / 500 * abs(accuracy - mean)
    assert error == pytest.approx(100 * slow)
    assert counting.calibration(confidence[:0], right[:0]) == (0.0, [(0, 0.0, 0.0)] * 10)


def test_calibration_of_known_cases():
    sure = torch.ones(8)
    assert counting.calibration(sure, torch.ones(8, dtype=torch.bool))[0] == 0
    assert counting.calibration(sure, torch.zeros(8, dtype=torch.bool))[0] == 100
    assert counting.calibration(torch.full((8,), 0.75), torch.arange(8) < 4)[0] == pytest.approx(25)


def test_class_accuracy_equals_a_loop():
    found = made_up(60, 5, 0.5, 0)
    # a class without images
    found.target[found.target == 3] = 0
    want = []
    for c in range(5):
        rows = [i for i in range(60) if found.target[i] == c]
        want.append(
            100 * sum(int(found.answer[i] == c) for i in rows) / len(rows) if rows else None
        )
    assert counting.class_accuracy(found, 5) == pytest.approx(want) and want[3] is None


@pytest.mark.parametrize("classes, channels", [(2, 1), (20, 3), (21, 4), (100, 3)])
def test_any_number_of_classes_and_channels(classes, channels):
    before = made_up(400, classes, 0.5, 0)
    after = made_up(400, classes, 0.7, 1, before.target)
    images = torch.randint(256, (400, channels, 9, 7), dtype=torch.uint8)
    loader = loader_of(images, [f"a_class_of_number_{c}" for c in range(classes)])
    found = pictures.draw(
        {"teacher": after, "alone": before, "distilled": after},
        ["alone", "distilled"],
        loader,
        COLORS,
    )
    up = down = 0
    for c in set(before.target.tolist()):
        change = sum(
            (after.right[i].item() - before.right[i].item())
            for i in range(400)
            if before.target[i] == c
        )
        up, down = up + (change > 0), down + (change < 0)
    assert f"above alone in {up} of " in found[0][0] and found[0][0].endswith(f"below in {down}")
    fixed = sum(after.right[i].item() and not before.right[i].item() for i in range(400))
    assert f": {fixed} fixed, " in found[1][0]
    for _, figure in found:
        assert drawn(figure)


@pytest.mark.parametrize("classes", [3, 30])
def test_names_of_classes_are_no_formulas(classes):
    before = made_up(90, classes, 0.4, 0)
    after = made_up(90, classes, 0.8, 1, before.target)
    loader = loader_of(
        torch.zeros(90, 1, 8, 8, dtype=torch.uint8), [rf"$\frac{{$ {c}" for c in range(classes)]
    )
    models = {"alone": before, "distilled": after}
    for _, figure in pictures.draw(models, ["alone", "distilled"], loader, COLORS):
        assert drawn(figure)


def test_no_difference_and_no_name():
    same = made_up(30, 4, 1.0, 0)
    loader = loader_of(torch.zeros(30, 1, 8, 8, dtype=torch.uint8), [])
    found = pictures.draw(
        {"alone": same, "distilled": same}, ["alone", "distilled"], loader, COLORS
    )
    assert found[1][0] == "From alone to distilled: 0 fixed, 0 broken of 30 test images"
    assert "No such image." in drawn(found[1][1])
    assert found[0][0].endswith("above alone in 0 of 4 classes, below in 0")


def test_images_are_drawn_as_they_are():
    raw = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8)
    for array, index in zip(pictures_of(loader_of(raw, []), torch.tensor([3, 1])), (3, 1)):
        np.testing.assert_allclose(array, raw[index].permute(1, 2, 0).numpy() / 255, rtol=1e-6)
    x = torch.randn(5, 1, 4, 6)
    for dataset in (
        SimpleNamespace(batch=lambda index, view, seed: {"input": x[index]}),
        [(image, 0) for image in x],
        [{"input": image} for image in x],
    ):
        (array,) = pictures_of(SimpleNamespace(dataset=dataset, seed=0), torch.tensor([2]))
        want = (x[2, 0] - x[2].min()) / (x[2].max() - x[2].min())
        np.testing.assert_allclose(array, want.numpy(), rtol=1e-5, atol=1e-6)
    flat = SimpleNamespace(dataset=[(torch.ones(1, 2, 2), 0)], seed=0)
    assert not np.isnan(pictures_of(flat, torch.tensor([0]))[0]).any()
