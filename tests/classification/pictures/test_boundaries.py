"""What is measured and shown of boundary samples equals a loop over images, and costs no random
number.
"""

import json
import random

import numpy as np
import pytest
import torch
from picture_runs import drawn, images_of, loader

from kdtasks.classification import models, trainer
from kdtasks.classification.pictures import attacks, boundaries
from kdtasks.core.choices import evenly_spaced
from kdtasks.engine.run import Run
from kdtasks.general import BSSDistiller
from kdtasks.images.arrays import ImageArrays


def attacked(model, x, base, target, low, high, steps=4, eta=0.3, eps=1e-4):
    """The attack on one image, written out."""
    x = x.clone()
    for _ in range(steps):
        x.requires_grad_()
        logits = model(x[None])[0]
        if int(logits.argmax()) != base:
            return x.detach()
        gap = logits[base] - logits[target]
        (slope,) = torch.autograd.grad(gap, x)
        x = (x - eta * (gap + eps) * slope / slope.norm()).clamp(low, high).detach()
    return x.detach()


def slow_similarity(run, name):
    """MagSim, AngSim and the number of images, by a loop over the labelled test images."""
    teacher, student = run.trained("teacher"), run.trained(name)
    images, target = images_of(run)
    magnitudes, angles = [], []
    for i in range(len(images)):
        base = int(target[i])
        logits = teacher(images[i : i + 1])[0]
        if base < 0 or int(logits.argmax()) != base:
            continue
        if int(student(images[i : i + 1]).argmax()) != base:
            continue
        second = int(logits.argsort(descending=True)[1])
        own, other = (
            attacked(model, images[i], base, second, -2.5, 2.5) - images[i]
            for model in (student, teacher)
        )
        sizes = sorted((own.norm().item(), other.norm().item()))
        magnitudes.append(sizes[0] / sizes[1])
        angles.append((own * other).sum().item() / (sizes[0] * sizes[1]))
    return np.mean(magnitudes), np.mean(angles), len(angles)


@pytest.mark.parametrize("name", ["alone", "distilled"])
def test_similarities_of_boundaries_equal_a_loop_over_images(bss, name):
    found = json.loads((bss.work_dir / "results.json").read_text())["stages"]
    magnitude, angle, count = slow_similarity(bss, name)
    assert count == found[name]["boundary_images"] > 5
    assert found[name]["magsim"] == pytest.approx(magnitude, rel=1e-3)
    assert found[name]["angsim"] == pytest.approx(angle, rel=1e-3, abs=1e-4)
    assert "magsim" not in found["teacher"]


def test_similarities_are_measured_without_a_random_number(bss):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    stage = bss.experiment.stage("distilled")
    found = trainer.summary(bss, stage, {})
    assert {name: bss.done["distilled"][name] for name in found} == found
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


def test_the_report_lists_them_and_not_the_number_of_images(bss):
    page = (bss.work_dir / "report.html").read_text()
    table = page[page.index("<thead>") : page.index("</table>")]
    assert f"{bss.done['distilled']['magsim']:.3f}" in table and "angsim" in table
    assert "boundary_images" not in table and "could not be made" not in page


def test_a_student_that_cannot_be_attacked_costs_a_number_and_no_run(bss, monkeypatch):
    class Stem(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            with torch.no_grad():
                return self.model(x)

    trained_model = Run.trained
    monkeypatch.setattr(Run, "trained", lambda self, name: Stem(trained_model(self, name)))
    with pytest.warns(UserWarning, match="of alone are not known: score gives no gradient"):
        assert trainer.summary(bss, bss.experiment.stage("alone"), {}) == {}


def test_the_teacher_must_have_been_trained(bss, monkeypatch):
    monkeypatch.setattr(Run, "done", property(lambda self: {}))
    assert trainer.summary(bss, bss.experiment.stage("alone"), {}) == {}


def test_boundary_samples_are_counted_and_shown_with_probabilities(bss):
    found = attacks.attacks(bss, bss.experiment.final).of()
    teacher, crossed, other = bss.trained("teacher"), 0, 0
    images, target = images_of(bss)
    known = [i for i in range(50) if int(teacher(images[i : i + 1]).argmax()) == int(target[i])]
    after = {}
    for i in known:
        second = int(teacher(images[i : i + 1])[0].argsort(descending=True)[1])
        moved = attacked(teacher, images[i], int(target[i]), second, -2.5, 2.5)
        after[i] = teacher(moved[None]).softmax(1)[0]
        answer = int(after[i].argmax())
        crossed, other = crossed + (answer == second), other + (answer not in (second, target[i]))
    names = [str(k) for k in range(10)]
    title, texts = drawn(boundaries.draw_samples(found, names, loader(bss)))
    assert f"of {len(known)} test images" in title
    assert f"brings {crossed} into the target" in title and f"{other} into another" in title
    first = known[evenly_spaced(len(known), 8)[0]]
    base = int(target[first])
    before = teacher(images[first : first + 1]).softmax(1)[0, base]
    assert f"{base}: {100 * before:.0f}→{100 * after[first][base]:.0f} %" in texts
    assert any(text.startswith("difference\n× ") for text in texts)


def test_moved_images_are_drawn_on_the_scale_of_the_clean_ones():
    raw = torch.randint(256, (4, 3, 6, 5), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    data = ImageArrays(raw, mean=mean, std=std)
    index = torch.arange(4)
    clean = data.batch(index, torch.zeros_like(index), 0)["input"]
    moved = clean + 0.1 * torch.randn(clean.shape)
    for k in range(4):
        picture = raw[k].permute(1, 2, 0).numpy() / 255
        before, after = boundaries._shown(picture, clean[k], moved[k])
        want = moved[k].permute(1, 2, 0).numpy() * np.array(std) + np.array(mean)
        np.testing.assert_allclose(before, picture)
        np.testing.assert_allclose(after, want, atol=1e-5)
    # an image of another size than the model's input, and one that is the same all over
    before, after = boundaries._shown(np.zeros((9, 9, 3)), clean[0], moved[0])
    assert before.shape == after.shape == (6, 5, 3) and 0 <= before.min() < before.max() <= 1
    flat = torch.ones(1, 3, 3)
    assert np.isfinite(boundaries._shown(np.ones((3, 3)), flat, flat + 1)[1]).all()


@pytest.mark.parametrize("classes", [3, 40])
def test_boundary_samples_of_any_names_and_nobody_who_is_right(classes):
    torch.manual_seed(0)
    net = models.resnet8(width=8, num_classes=classes).eval()
    images = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8)
    data = ImageArrays(images, classes=[f"a_long_$name_{c}" for c in range(classes)])
    index = torch.arange(12)
    batch = {"index": index, **data.batch(index, torch.zeros_like(index), 0)}
    losses = {"loss_cls": (torch.nn.CrossEntropyLoss(), ("student", "target"))}
    distiller = BSSDistiller(torch.nn.Conv2d(3, 3, 1), {"teacher": net}, losses, clip=(0, 1))
    batch["target"] = net(batch["input"]).argmax(1)
    found = attacks.Attacks(distiller, [batch]).of()
    shown = type("Loader", (), {"dataset": data, "seed": 0})
    title, texts = drawn(boundaries.draw_samples(found, data.classes, shown))
    assert "of 12 test images" in title and any("…" in text for text in texts)
    picture = boundaries.draw_similarity(found, {"alone": found}, {"alone": "#E69F00"})
    assert "alone 1.00 and 1.00" in drawn(picture)[0] and "the 12 of 12" in picture[0]
    batch["target"] = (batch["target"] + 1) % classes
    nobody = attacks.Attacks(distiller, [batch]).of()
    assert attacks.similarity(nobody, nobody) == {}
    assert boundaries.draw_samples(nobody, data.classes, shown) is None
    assert boundaries.draw_similarity(nobody, {"alone": nobody}, {}) is None
