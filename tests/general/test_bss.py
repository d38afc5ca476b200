"""The attack against a loop over samples with the gradient written by hand, what it leaves alone;
the choice of samples and classes; the Distiller's three terms.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.core import Linear, Teacher
from kdtasks.general import (
    BSSDistiller,
    BSSLoss,
    base_samples,
    boundary_samples,
    bss_loss,
    channel_bounds,
    kd_loss,
    perturbation_similarity,
    target_classes,
)
from kdtasks.general.bss import schedule

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


# ---------------------------------------------------------------------------------------- attack
def net(inputs=4, hidden=6, classes=3, dtype=F64):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)).to(dtype)


def slow_attack(model, x, b, k, step_size, max_steps, eps, low, high):
    """One sample as lists of numbers; returns where it ends and how often it has moved."""
    (w1, b1), (w2, b2) = ((l.weight.tolist(), l.bias.tolist()) for l in (model[0], model[2]))
    moves = 0
    for _ in range(max_steps):
        hidden = [sum(w * v for w, v in zip(row, x)) + c for row, c in zip(w1, b1)]
        scores = [sum(w * max(h, 0) for w, h in zip(row, hidden)) + c for row, c in zip(w2, b2)]
        if scores.index(max(scores)) != b:
            break
        slope = [
            sum((w2[b][j] - w2[k][j]) * w1[j][i] for j in range(len(hidden)) if hidden[j] > 0)
            for i in range(len(x))
        ]
        norm = math.sqrt(sum(g * g for g in slope))
        length = step_size * (scores[b] - scores[k] + eps)
        x = [
            min(max(v - length * g / norm, low[i]), high[i])
            for i, (v, g) in enumerate(zip(x, slope))
        ]
        moves += 1
    return x, moves


@pytest.mark.parametrize("clip", [(-2.5, 2.5), (-0.6, 0.9)])
def test_it_equals_the_loop_over_samples(clip):
    model, x = net(), torch.randn(40, 4, dtype=F64)
    base = model(x).argmax(1)
    base[::7] = (base[::7] + 1) % 3  # rows that start in another class
    target = (base + torch.randint(1, 3, (40,))) % 3
    kept = x.clone()
    found = boundary_samples(model, x, base, target, 0.3, 8, 1e-3, clip)
    moves = []
    for row, b, k, end in zip(x.tolist(), base.tolist(), target.tolist(), found.tolist()):
        low, high = ([bound] * 4 for bound in clip)
        expected, count = slow_attack(model, row, b, k, 0.3, 8, 1e-3, low, high)
        assert end == pytest.approx(expected, rel=1e-9, abs=1e-11)
        moves.append(count)
    # some do not start, some cross on the way, some run out of moves
    assert 0 in moves and 8 in moves and any(0 < count < 8 for count in moves)
    assert torch.equal(x, kept) and not found.requires_grad
    frozen = torch.tensor(moves) == 0
    # outside of the bounds too: they are not looked at
    assert torch.equal(found[frozen], x[frozen]) and (x[frozen].abs() > 0.9).any()


def test_on_linear_scores_the_gap_shrinks_by_a_factor_and_crosses_only_by_eps():
    """‖g‖ = √2 and η = 0.3: from a gap of 2 it takes 18 moves to be below eps, so 10 do not."""

    def score(x):
        return x

    x, base, target = torch.tensor([[2.0, 0.0]], dtype=F64), torch.tensor([0]), torch.tensor([1])

    def gap(steps, eps):
        moved = boundary_samples(score, x, base, target, 0.3, steps, eps, (-9, 9))
        return (moved[0, 0] - moved[0, 1]).item()

    factor = 1 - 0.3 * math.sqrt(2)
    assert gap(1, 0.0) == pytest.approx(2 * factor) and gap(7, 0.0) == pytest.approx(2 * factor**7)
    assert gap(10, 1e-4) > 0 > gap(18, 1e-4) > -1e-3 and gap(17, 1e-4) > 0
    assert gap(18, 1e-4) == gap(60, 1e-4)  # it stays where it has crossed
    assert gap(60, 0.0) > 0


def test_bounds_may_be_a_channels_own():
    model = nn.Sequential(nn.Flatten(), net(2 * 2 * 2)).double()
    x = torch.randn(30, 2, 2, 2, dtype=F64).clamp(-1, 1)
    low, high = torch.tensor([-1.0, -0.5]).view(2, 1, 1), torch.tensor([0.75, 1.0]).view(2, 1, 1)
    base = model(x).argmax(1)
    moved = boundary_samples(model, x, base, (base + 1) % 3, 0.5, 10, 1e-4, (low, high))
    changed = (moved != x).flatten(1).any(1)
    assert changed.any()
    for c, (a, b) in enumerate(((-1.0, 0.75), (-0.5, 1.0))):
        part = moved[changed][:, c]
        assert part.min() >= a and part.max() <= b
    assert (moved[changed][:, 0].max() > 0.74) and (moved[changed][:, 1].min() < -0.49)


def test_bounds_of_a_normalisation():
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
    low, high = channel_bounds(mean, std)
    black, white = (
        (torch.full((3, 1, 1), v) - torch.tensor(mean).view(3, 1, 1)) for v in (0.0, 1.0)
    )
    scale = torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(low, black / scale)
    torch.testing.assert_close(high, white / scale)
    with pytest.raises(ValueError, match="a std > 0 a channel"):
        channel_bounds((0.5, 0.5), (1.0, 0.0))


def test_a_flat_score_moves_nothing_and_a_constant_one_is_an_error():
    x, zeros, ones = torch.randn(3, 2), torch.zeros(3).long(), torch.ones(3).long()

    def flat(x):
        return torch.cat([0 * x[:, :1] + 2, 0 * x[:, :1]], 1)

    assert torch.equal(boundary_samples(flat, x, zeros, ones, clip=(-0.1, 0.1)), x)
    weight = torch.ones(3, 2, requires_grad=True)
    for score in (lambda x: torch.ones(3, 2), lambda x: weight, lambda x: (weight + x).detach()):
        with pytest.raises(ValueError, match="gives no gradient of its input"):
            boundary_samples(score, x, zeros, ones)


def test_it_touches_no_gradient_of_a_parameter_and_runs_under_no_grad():
    model, x = net(), torch.randn(8, 4, dtype=F64)
    base = model(x).argmax(1)
    with torch.no_grad():
        found = boundary_samples(model, x, base, (base + 1) % 3)
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(found, boundary_samples(model, x, base, (base + 1) % 3))
    frozen = copy.deepcopy(model).requires_grad_(False)
    torch.testing.assert_close(found, boundary_samples(frozen, x, base, (base + 1) % 3))


def test_half_precision_is_raised_and_autocast_is_off():
    model, x = net(dtype=torch.float32), torch.randn(8, 4).bfloat16()
    base = model(x.float()).argmax(1)
    expected = boundary_samples(model, x.float(), base, (base + 1) % 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = boundary_samples(model, x, base, (base + 1) % 3)
    assert found.dtype is torch.float32 and torch.equal(found, expected)


def test_nobody_to_attack_and_wrong_shapes():
    model, none = net(), torch.zeros(0).long()
    assert boundary_samples(model, torch.zeros(0, 4, dtype=F64), none, none).shape == (0, 4)
    x, three = torch.zeros(3, 4, dtype=F64), torch.zeros(3).long()
    with pytest.raises(ValueError, match=r"base \(2,\) and input \(3, 4\)"):
        boundary_samples(model, x, three[:2], three)
    with pytest.raises(ValueError, match=r"target \(3, 1\) and input \(3, 4\)"):
        boundary_samples(model, x, three, three[:, None])
    with pytest.raises(ValueError, match="step_size > 0, got 3 and 0"):
        boundary_samples(model, x, three, three, 0, 3)


# ---------------------------------------------------------------------------- classes and samples
def test_target_classes_are_drawn_by_the_teachers_other_probabilities():
    teacher = torch.tensor([[2.0, 0.0, 1.0, -1.0]], dtype=F64).expand(20000, 4)
    drawn = target_classes(teacher, torch.zeros(20000, dtype=torch.long))
    p = teacher[0].softmax(0)
    share = drawn.bincount(minlength=4) / 20000
    assert share[0] == 0
    torch.testing.assert_close(share[1:].double(), p[1:] / (1 - p[0]), rtol=0.1, atol=0.01)


def test_a_teacher_that_is_sure_still_has_other_classes():
    teacher = torch.full((50, 3), -1000.0)
    teacher[:, 1] = 1000.0
    base = torch.ones(50, dtype=torch.long)
    drawn = target_classes(teacher, base)
    assert set(drawn.tolist()) == {0, 2}
    assert target_classes(teacher.half() / 100, base).ne(base).all()
    assert len(target_classes(teacher[:0], base[:0])) == 0


def slow_base_samples(student, teacher, target, count):
    scored = []
    for n, y in enumerate(target):
        s, t = student[n].tolist(), teacher[n].tolist()
        if s.index(max(s)) == y == t.index(max(t)):
            p, q = (torch.tensor(z).softmax(0).tolist() for z in (t, s))
            scored.append((sum((p[c] - q[c]) ** 2 for c in range(len(s)) if c != y), n))
    return [n for _, n in sorted(scored, reverse=True)[:count]]


@pytest.mark.parametrize("count", [3, 8, 64])
def test_base_samples_are_right_and_differ_most(count):
    student, teacher = torch.randn(20, 3, dtype=F64), torch.randn(20, 3, dtype=F64)
    target = torch.where(torch.rand(20) < 0.7, student.argmax(1), teacher.argmax(1))
    target[5] = -100
    chosen, valid = base_samples(student, teacher, target, count)
    expected = slow_base_samples(student, teacher, target.tolist(), count)
    assert chosen.shape == valid.shape == (min(count, 20),)
    assert chosen[valid].tolist() == expected and 0 < len(expected) <= count
    assert valid.tolist() == [True] * len(expected) + [False] * (len(chosen) - len(expected))


def test_classes_and_samples_say_what_does_not_fit():
    rows, three = torch.zeros(3, 4), torch.zeros(3).long()
    with pytest.raises(ValueError, match=r"\(3, 1\) and \(3,\)"):
        target_classes(rows[:, :1], three)
    with pytest.raises(ValueError, match=r"student \(3, 4\) and teacher \(3, 5\)"):
        base_samples(rows, torch.zeros(3, 5), three)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2,\)"):
        base_samples(rows, rows, three[:2])


# ------------------------------------------------------------------------------------ loss, weights
def test_the_loss_is_kd_of_the_valid_rows():
    student, teacher = torch.randn(6, 4, dtype=F64), torch.randn(6, 4, dtype=F64)
    valid = torch.tensor([True, False, True, True, False, False])
    torch.testing.assert_close(
        bss_loss(student, teacher, valid, 2.0), kd_loss(student[valid], teacher[valid], 2.0)
    )
    torch.testing.assert_close(BSSLoss()(student, teacher), kd_loss(student, teacher, 3.0))
    assert torch.autograd.gradcheck(
        lambda s: bss_loss(s, teacher, valid), student.clone().requires_grad_()
    )
    # what stands in a row that does not count is not read
    other = student.clone()
    other[1] = math.nan
    torch.testing.assert_close(bss_loss(other, teacher, valid), bss_loss(student, teacher, valid))


def test_no_valid_row_is_a_connected_zero():
    student = torch.randn(3, 4, requires_grad=True)
    for rows, valid in ((student, torch.zeros(3, dtype=torch.bool)), (student[:0], None)):
        loss = bss_loss(rows, torch.randn(len(rows), 4), valid)
        loss.backward()
        assert loss == 0 and not student.grad.any()


def test_the_loss_says_what_does_not_fit():
    rows = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"student \(3, 4\) and teacher \(2, 4\)"):
        bss_loss(rows, rows[:2])
    with pytest.raises(ValueError, match=r"valid \(2,\) and student \(3, 4\)"):
        bss_loss(rows, rows, torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        BSSLoss(0)


def test_the_weights_fall_in_straight_lines():
    assert schedule(20, 80) == (3.25, pytest.approx(4 / 3))
    assert schedule(80, 80) == (1.0, 0.0) and schedule(60, 80)[1] == pytest.approx(0)
    # in our KD form, which has T² = 9
    a, b = Linear(4 / 9, 1 / 9), Linear(2 / 9, 0, until=0.75)
    for epoch in range(0, 81, 5):
        of_a, of_b = schedule(epoch, 80)
        assert 9 * a((epoch, 80)) == pytest.approx(of_a)
        assert 9 * b((epoch, 80)) == pytest.approx(of_b, abs=1e-12)


def test_similarities_of_perturbations():
    student = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    teacher = torch.tensor([[6.0, 8.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    magnitude, angle = perturbation_similarity(student, teacher)
    assert magnitude.item() == pytest.approx((0.5 + 0.5) / 2)
    assert angle.item() == pytest.approx((1.0 + 0.0) / 2, abs=1e-7)
    assert all(v.isnan() for v in perturbation_similarity(0 * student, teacher))
    images = torch.randn(5, 1, 2, 2)
    assert perturbation_similarity(images, -3 * images)[0].item() == pytest.approx(1 / 3)
    assert perturbation_similarity(images, -3 * images)[1].item() == pytest.approx(-1)
    with pytest.raises(ValueError, match=r"student \(4, 2\) and teacher \(3, 2\)"):
        perturbation_similarity(student, teacher[:3])


# --------------------------------------------------------------------------------------- Distiller
BOUNDARY = ("student.boundary", "teacher.boundary", "student.boundary_valid")


def classifier(width):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 3),
    )


def setting(weight=1.0, **options):
    """A teacher that finds each class among the images, and a student that is right on most."""
    images, teacher = torch.randn(12, 1, 6, 6), classifier(8).eval()
    with torch.no_grad():
        teacher[-1].weight *= 5
        teacher[-1].bias -= teacher(images).mean(0)
    student = copy.deepcopy(teacher).train()
    with torch.no_grad():
        student[-1].weight += 0.05 * torch.randn(student[-1].weight.shape)
    losses = {
        "loss_cls": (nn.CrossEntropyLoss(), ("student", "target")),
        "loss_bss": (BSSLoss(), BOUNDARY, weight),
    }
    target = teacher(images).argmax(1)
    target[8:] = -100
    return BSSDistiller(student, {"teacher": teacher}, losses, **options), images, target


def test_a_step_by_hand_gives_the_same_loss():
    distiller, x, y = setting(count=5)
    y[4:] = -100  # so that a row is filled up
    other = copy.deepcopy(distiller.student)
    teacher = distiller.teachers["teacher"]
    before = copy.deepcopy(teacher.model.state_dict())
    distiller.build(x, y)
    torch.manual_seed(7)
    losses = distiller(x, y)
    torch.manual_seed(7)
    clean, answers = other(x), teacher(x)
    rows = slow_base_samples(clean, answers, y.tolist(), 5)
    assert 0 < len(rows) < 5
    chosen, _ = base_samples(clean, answers, y, 5)
    drawn = target_classes(answers[chosen], answers.argmax(1)[chosen])[: len(rows)]
    moved = boundary_samples(teacher.model, x[rows], y[rows], drawn)
    assert (moved != x[rows]).flatten(1).any(1).all()
    shown = torch.cat([moved, x[chosen[len(rows) :]]])
    expected = kd_loss(other(shown)[: len(rows)], teacher(moved), 3.0)
    torch.testing.assert_close(losses["loss_bss"], expected)
    torch.testing.assert_close(losses["loss_cls"], F.cross_entropy(clean, y))
    sum(losses.values()).backward()
    assert distiller.student[0].weight.grad.any()
    state = teacher.model.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert all(p.grad is None for p in teacher.model.parameters())


def test_samples_that_have_not_crossed_may_be_rejected():
    """With no move at all none has crossed; with many, some end in a third class."""
    stay, x, y = setting(max_steps=0, reject=True)
    assert not stay.tensors(x, y)["student.boundary_valid"].any()
    distiller, x, y = setting(max_steps=100)
    torch.manual_seed(3)
    every = distiller.tensors(x, y)
    distiller.reject = True
    torch.manual_seed(3)
    found = distiller.tensors(x, y)
    teacher = distiller.teachers["teacher"]
    with torch.no_grad():
        chosen, valid = base_samples(distiller.student.eval()(x), teacher(x), y)
    torch.manual_seed(3)
    drawn = target_classes(teacher(x)[chosen], teacher(x).argmax(1)[chosen])
    assert torch.equal(every["student.boundary_valid"], valid)
    crossed = valid & (every["teacher.boundary"].argmax(1) == drawn)
    assert torch.equal(found["student.boundary_valid"], crossed) and crossed.any()


def test_attack_and_rejection_are_in_float32_whatever_the_teachers_precision():
    plain, x, y = setting(max_steps=100, reject=True)
    half = copy.deepcopy(plain)
    model = plain.teachers["teacher"].model
    half.teachers["teacher"] = Teacher(model, precision="bfloat16")
    assert not torch.equal(half.teachers["teacher"](x).float(), model(x))
    with torch.autocast("cpu", torch.bfloat16):
        inside = half.teachers["teacher"].in_float32(x)
    assert torch.equal(inside, model(x))
    batch = {"input": x, "target": y, "teacher": model(x).detach()}
    values = []
    for distiller in (plain, half):
        torch.manual_seed(3)
        values.append(distiller.tensors(batch))
    for name in ("student.boundary", "student.boundary_valid"):
        assert torch.equal(values[0][name], values[1][name]), name
    assert values[0]["student.boundary_valid"].any()


def test_rejection_is_in_float32_under_autocast():
    """The batch has the teacher's answers, and the student's in float32 choose the rows: only what
    the moved images are answered with could differ.
    """
    distiller, x, y = setting(max_steps=100, reject=True)
    student, teacher = distiller.student.eval(), distiller.teachers["teacher"].model
    known = {
        "input": x,
        "target": y,
        "teacher": teacher(x).detach(),
        "student": student(x).detach(),
    }
    valid = []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            valid.append(distiller.tensors(known)["student.boundary_valid"])
    assert torch.equal(*valid) and valid[0].any() and not valid[0].all()


def test_no_attack_is_run_while_the_weight_is_zero():
    distiller, x, y = setting(Linear(2 / 9, 0, until=0.75))
    distiller.build(x, y)
    calls = []
    distiller.teachers["teacher"].model.register_forward_hook(lambda *_: calls.append(1))
    distiller.progress = (0, 100)
    assert distiller(x, y)["loss_bss"] > 0 and len(calls) == 12  # clean, ten moves, moved
    calls.clear()
    distiller.progress = (75, 100)
    assert "loss_bss" not in distiller(x, y) and len(calls) == 1


def test_without_a_teacher_there_are_no_boundary_samples():
    student = classifier(4)
    distiller = BSSDistiller(
        student, losses={"loss_cls": (nn.CrossEntropyLoss(), ("student", "target"))}
    )
    assert not set(BOUNDARY) & set(distiller.names("student"))
    x, y = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(distiller(x, y)["loss_cls"], F.cross_entropy(student(x), y))


def test_bounds_that_exclude_the_images_are_said_before_the_first_step():
    distiller, x, y = setting(mean=(0.5,), std=(0.25,))
    distiller.build(x, y)
    assert distiller.low.shape == (1, 1, 1) and distiller.low.item() == -2
    for options, images in (
        ({"clip": (3.0, 4.0)}, x),
        ({"clip": (1.0, -1.0)}, x),
        ({}, 255 * x.abs()),
        ({"mean": (0.5,), "std": (0.25,)}, 128 + 100 * x),
    ):
        distiller, _, _ = setting(**options)
        with pytest.raises(ValueError, match=r"values lie in \[.*excludes them"):
            distiller.build(images, y)
    for wrong in ({"mean": (0.5,)}, {"clip": (0, 1), "mean": (0.5,), "std": (0.2,)}):
        with pytest.raises(ValueError, match=r"expected clip=\(low, high\), or mean and std"):
            setting(**wrong)


def test_a_teacher_without_gradient_of_its_input_is_said_before_the_first_step():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = classifier(8)

        def forward(self, x):
            return self.inside(x).detach()

    distiller, x, y = setting()
    distiller.teachers["teacher"] = Detached()
    with pytest.raises(ValueError, match="gives no gradient of its input"):
        distiller.build(x, y)
