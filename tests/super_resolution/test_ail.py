"""AIL's importance and loss against loops over pixels, its numbers, its variants, and rounds of a
real student.
"""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from kdtasks.core import Distiller
from kdtasks.super_resolution.ail import (
    AILLoss,
    Importance,
    importance,
    importance_loss,
    teacher_importance,
)

F64 = torch.float64
SHAPE = (2, 1, 3, 4)


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def images(count, shape=SHAPE, dtype=F64, noise=0.05):
    """A target in [0, 1] and ``count`` images near it: errors of the size that the formulas are
    about.
    """
    target = torch.rand(shape, dtype=F64)
    scale = torch.tensor([0.1, 0.5, 1, 4], dtype=F64)[torch.arange(math.prod(shape)) % 4].view(
        shape
    )
    return [
        (target + noise * scale * torch.randn(shape, dtype=F64)).to(dtype) for _ in range(count)
    ] + [target.to(dtype)]


def by_pixel(function, *tensors):
    return torch.tensor(
        [function(*values) for values in zip(*(t.flatten().tolist() for t in tensors))], dtype=F64
    ).view(tensors[0].shape)


def slow_initial(teacher, target, slope=100.0, threshold=0.01):
    def falling(z):
        return 1 / (1 + math.exp(z))

    return by_pixel(
        lambda t, y: falling(slope * (abs(t - y) - threshold)) / falling(-slope * threshold),
        teacher,
        target,
    )


def slow_importance(initial, previous, target, round, decay=10.0, pace=0.15, growth=0.15):
    def raised(w, s, y):
        reward = pace
        for _ in range(round - 1):
            reward += growth
        return min(max(w + reward * math.exp(-decay * abs(s - y)), 0.0), 1.0)

    return by_pixel(raised, initial, previous, target) if round else initial


def slow_loss(student, target, weight, power=2):
    return by_pixel(lambda s, y, w: w**power * (s - y) ** 2, student, target, weight).sum().item()


# ------------------------------------------------------------------------------------- the formulas
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"slope": 200.0, "threshold": 0.005},
        {"slope": 3.0, "threshold": 0.2},
        {"threshold": 0.0},
    ],
    ids=str,
)
def test_the_teachers_importance_equals_the_loop(settings):
    teacher, target = images(1)
    torch.testing.assert_close(
        teacher_importance(teacher, target, **settings),
        slow_initial(teacher, target, **settings),
        rtol=1e-12,
        atol=1e-15,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"decay": 3.0},
        {"pace": 0.4},
        {"growth": 0.01},
        {"pace": 0.0, "growth": 0.5, "decay": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("round", [0, 1, 2, 9])
def test_the_importance_equals_the_loop(round, settings):
    teacher, previous, target = images(2)
    initial = slow_initial(teacher, target)
    expected = slow_importance(initial, previous, target, round, **settings)
    torch.testing.assert_close(
        importance(initial, previous, target, round, **settings), expected, rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("power", [2, 1, 0, 0.5])
def test_the_loss_equals_the_loop(power):
    student, target = images(1)
    weight = torch.rand(SHAPE, dtype=F64)
    expected = slow_loss(student, target, weight, power)
    assert importance_loss(student, target, weight, power=power).item() == pytest.approx(
        expected, rel=1e-12
    )
    assert importance_loss(
        student, target, weight, power=power, reduction="mean"
    ).item() == pytest.approx(expected / 24, rel=1e-12)


def test_numbers_of_the_sheet():
    error = torch.tensor([0, 0.01, 0.02, 0.05], dtype=F64)
    start = teacher_importance(0.5 - error, torch.full_like(error, 0.5))
    torch.testing.assert_close(
        start, torch.tensor([1, 0.6839, math.exp(-1), 0.0246], dtype=F64), rtol=0, atol=5e-5
    )
    assert start[2].item() == pytest.approx(math.exp(-1), rel=1e-12)
    zero, target = torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)
    previous = torch.tensor([0.030, 0.0301, 0.2], dtype=F64)
    # the reward is 0.15 + 8 · 0.15 = 1.35
    weight = importance(zero, previous, target, 9)
    assert (
        weight[0] == 1
        and 0.998 < weight[1] < 1
        and weight[2].item() == pytest.approx(1.35 * math.exp(-2), rel=1e-12)
    )


@pytest.mark.parametrize("round", [1, 3, 9])
def test_the_importance_solves_the_convex_problem_of_the_docstring(round):
    teacher, previous, target = images(2)
    initial, steps = teacher_importance(teacher, target), torch.linspace(0, 1, 20001, dtype=F64)
    reward = (0.15 + 0.15 * (round - 1)) * (-10 * (previous - target).abs()).exp()
    cost = 0.5 * (steps - initial[..., None]) ** 2 - reward[..., None] * steps
    torch.testing.assert_close(
        importance(initial, previous, target, round), steps[cost.argmin(-1)], rtol=0, atol=5e-5
    )


def test_the_increment_is_added_to_the_initial_map_not_to_the_last_one():
    initial, near, far, target = (
        torch.full((1,), value, dtype=F64) for value in (0.2, 0.5, 0.9, 0.5)
    )
    first = importance(initial, near, target, 1)
    assert first.item() == pytest.approx(0.35)
    # not 0.35 + 0.3
    assert importance(initial, near, target, 2).item() == pytest.approx(0.5)
    # and it may fall
    assert importance(initial, far, target, 2).item() == pytest.approx(0.2 + 0.3 * math.exp(-4))


def test_round_0_is_the_initial_map_whatever_the_student():
    initial, target = torch.rand(2, 3), torch.rand(2, 3)
    assert torch.equal(importance(initial, None, target, 0), initial)


# ----------------------------------------------------------------------------------------- autograd
def test_gradient():
    student, target = images(1)
    weight = torch.rand(SHAPE, dtype=F64)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: importance_loss(s, target, weight), student)
    assert torch.autograd.gradcheck(
        lambda s: importance_loss(s, target, weight, power=1, reduction="mean"), student
    )
    (pull,) = torch.autograd.grad(importance_loss(student, target, weight), student)
    torch.testing.assert_close(pull, 2 * weight**2 * (student.detach() - target))
    importance_loss(student, target.requires_grad_(), weight.requires_grad_()).backward()
    assert target.grad is None and weight.grad is None


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "ail"},
        {"variant": "ail", "base": "l1", "normalize": True},
        {"variant": "no_teacher", "reduction": "mean"},
        {"variant": "ail", "monotone": True, "channels": "max"},
    ],
    ids=str,
)
def test_gradcheck_of_a_round_and_nobody_else_receives_a_gradient(options):
    loss = AILLoss(2, **options)
    tensors = [image.requires_grad_() for image in images(len(loss.of) - 1, (2, 2, 3, 2))]
    others = [image.detach() for image in tensors[1:]]
    assert torch.autograd.gradcheck(lambda s: loss(s, *others), tensors[0])
    copies = [image.detach().clone() for image in tensors]
    loss(*tensors).backward()
    assert tensors[0].grad.any() and all(image.grad is None for image in tensors[1:])
    assert not loss.weight(*tensors[1:]).requires_grad
    assert all(torch.equal(image, copied) for image, copied in zip(tensors, copies))


# ---------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_before_differences_are_taken(dtype):
    tensors = images(3, (2, 1, 8, 8), dtype, noise=0.01)
    for loss in (AILLoss(2), AILLoss(2, normalize=True, reduction="mean"), AILLoss(0)):
        given = tensors if loss.round else [tensors[0], *tensors[2:]]
        expected = loss(*(image.float() for image in given))
        found = loss(*given)
        assert found.dtype == torch.float32 and found == expected
        assert loss.weight(*given[1:]).dtype == torch.float32
    for round in (0, 2):
        assert importance(*tensors[:3], round).dtype == torch.float32
        assert torch.equal(
            importance(*tensors[:3], round),
            importance(*(image.float() for image in tensors[:3]), round),
        )
    student = tensors[0].requires_grad_()
    AILLoss(2)(student, *tensors[1:]).backward()
    assert student.grad.dtype == dtype and student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64])
def test_errors_of_grey_levels_overflow_nowhere(dtype):
    target = torch.full((1, 1, 1, 3), 255.0, dtype=dtype)
    teacher = torch.tensor([0.0, 254, 255], dtype=dtype).view(1, 1, 1, 3)
    found = teacher_importance(teacher, target)
    assert found.dtype == (F64 if dtype == F64 else torch.float32)
    assert found[..., 0] == 0 and found[..., 1] < 1e-40 and found[..., 2] == 1
    assert AILLoss(3)(teacher, teacher, teacher, target).isfinite()


def test_no_weight_is_above_1_in_float32():
    target = torch.rand(1, 1, 100, 100)
    # which round to more, if left alone
    for threshold in (0.002, 0.045, 0.064):
        assert teacher_importance(target, target, slope=10.0, threshold=threshold).max() == 1


def test_what_is_not_a_number_is_not_hidden():
    for bad in range(4):
        tensors = images(3)
        tensors[bad][0, 0, 0, 0] = math.nan
        assert not AILLoss(1)(*tensors).isfinite()


# ------------------------------------------------------------------------------------- empty, wrong
@pytest.mark.parametrize(
    "options", [{}, {"normalize": True}, {"reduction": "mean"}, {"channels": "mean"}], ids=str
)
def test_an_empty_batch_gives_a_zero_that_backpropagates(options):
    empty = torch.zeros(0, 3, 4, 4)
    student = empty.clone().requires_grad_()
    loss = AILLoss(1, **options)
    loss.build(student, empty, empty, empty)
    value = loss(student, empty, empty, empty)
    value.backward()
    assert value == 0 and student.grad.shape == student.shape
    assert Importance(1, **options)(student, empty, empty, empty) == 0


def test_wrong_shapes_are_named():
    a, b = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 5)
    with pytest.raises(ValueError, match=r"student \(2, 1, 4, 4\) and target \(2, 1, 4, 5\)"):
        importance_loss(a, b, b)
    with pytest.raises(ValueError, match=r"weight \(2, 1, 4, 5\) and target \(2, 1, 4, 4\)"):
        importance_loss(a, a, b)
    with pytest.raises(ValueError, match=r"weight \(1, 1, 4, 4\) and target"):
        # broadcasting would hide it
        importance_loss(a, a, a[:1])
    with pytest.raises(ValueError, match=r"teacher \(2, 1, 4, 4\) and target \(2, 1, 4, 5\)"):
        teacher_importance(a, b)
    with pytest.raises(ValueError, match=r"previous \(2, 1, 4, 5\) and target \(2, 1, 4, 4\)"):
        importance(a, b, a, 1)
    with pytest.raises(ValueError, match=r"initial \(2, 1, 4, 5\) and target \(2, 1, 4, 4\)"):
        importance(b, a, a, 1)
    with pytest.raises(ValueError, match=r"previous \(2, 1, 4, 5\)"):
        AILLoss(1)(a, a, b, a)
    with pytest.raises(ValueError, match=r"student \(2, 1, 4, 5\)"):
        AILLoss(1)(b, a, a, a)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"variant": "ali"}, "no variant 'ali'; did you mean 'ail'"),
        ({"base": "l3"}, "no base 'l3'"),
        ({"channels": "all"}, "no channels 'all'"),
        ({"reduction": "none"}, "no reduction 'none'"),
        ({"round": -1}, "round must be a whole number >= 0, got -1"),
        ({"round": 1.5}, "got 1.5"),
        ({"round": True}, "round must be a whole number >= 0, got True"),
        ({"round": "1"}, "got '1'"),
        ({"slope": 0}, "slope must be > 0, got 0"),
        ({"threshold": -0.1}, "threshold"),
        ({"decay": -1}, "decay"),
        ({"pace": -1}, "pace"),
        ({"growth": -1}, "growth"),
        ({"power": -2}, "power must be >= 0, got -2"),
    ],
    ids=str,
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        AILLoss(**{"round": 0, **options})
    name, value = next(iter(options.items()))
    a = torch.rand(1, 1, 2, 2)
    for function, tensors, takes in (
        (teacher_importance, (a, a), ("slope", "threshold")),
        (importance_loss, (a, a, a), ("power", "reduction")),
        (importance, (a, a, a), ("round", "decay", "pace", "growth")),
    ):
        if name in takes:
            with pytest.raises(ValueError, match=message):
                function(
                    *tensors, **({"round": 1} if function is importance else {}) | {name: value}
                )


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_a_round_of_any_integer_type_is_that_round(kind):
    """A small type does not wrap around either: the loss keeps an int."""
    loss, (teacher, previous, target) = AILLoss(kind(3)), images(2)
    assert type(loss.round) is int and loss.of == AILLoss(3).of
    assert torch.equal(
        loss.weight(teacher, previous, target), AILLoss(3).weight(teacher, previous, target)
    )
    assert torch.equal(
        importance(teacher, previous, target, kind(3)), importance(teacher, previous, target, 3)
    )


# ------------------------------------------------------------------------------ variants of a round
EXPECTED = {
    ("ail", 0): ("student", "teacher", "target"),
    ("ail", 4): ("student", "teacher", "previous", "target"),
    ("initial", 0): ("student", "teacher", "target"),
    ("initial", 4): ("student", "teacher", "target"),
    ("no_teacher", 0): ("student", "target"),
    ("no_teacher", 4): ("student", "previous", "target"),
    ("uniform", 0): ("student", "target"),
    ("uniform", 4): ("student", "target"),
}


@pytest.mark.parametrize("variant, round", EXPECTED, ids=str)
def test_each_variant_takes_its_tensors_and_says_so(variant, round):
    loss = AILLoss(round, variant)
    assert loss.of == EXPECTED[variant, round]
    tensors = images(4)
    for count in range(1, 6):
        if count != len(loss.of):
            with pytest.raises(ValueError) as error:
                loss(*tensors[:1] * count)
            assert (
                f"round {round} of variant '{variant}' takes {len(loss.of)} tensors, of={loss.of}; "
                f"got {count}" in str(error.value)
            )


@pytest.mark.parametrize("round", [0, 1, 4])
def test_the_variants_are_the_functions(round):
    student, teacher, previous, target = images(3)
    initial, none = slow_initial(teacher, target), torch.zeros(SHAPE, dtype=F64)
    weights = {
        "ail": (
            slow_importance(initial, previous, target, round),
            (teacher, previous)[: 1 + (round > 0)],
        ),
        "initial": (initial, (teacher,)),
        "no_teacher": (
            slow_importance(none, previous, target, round) if round else none + 1,
            (previous,) if round else (),
        ),
        "uniform": (none + 1, ()),
    }
    for variant, (weight, others) in weights.items():
        loss = AILLoss(round, variant)
        torch.testing.assert_close(loss.weight(*others, target), weight, rtol=1e-12, atol=1e-15)
        assert loss(student, *others, target).item() == pytest.approx(
            slow_loss(student, target, weight), rel=1e-12
        ), variant
        mean = Importance(round, variant)(student, *others, target)
        assert mean.item() == pytest.approx(weight.mean().item(), rel=1e-12)
    plain = nn.functional.mse_loss(student, target, reduction="sum")
    torch.testing.assert_close(AILLoss(round, "uniform")(student, target), plain)


def test_the_settings_reach_the_formulas():
    student, teacher, previous, target = images(3)
    first, later = {"slope": 50.0, "threshold": 0.03}, {"decay": 4.0, "pace": 0.2, "growth": 0.05}
    weight = slow_importance(slow_initial(teacher, target, **first), previous, target, 3, **later)
    loss = AILLoss(3, **first, **later, power=1, reduction="mean")
    assert loss(student, teacher, previous, target).item() == pytest.approx(
        slow_loss(student, target, weight, 1) / 24, rel=1e-12
    )
    assert all(f"{name}={value}" in repr(loss) for name, value in (first | later).items())


def test_l1_is_the_absolute_difference_of_the_weighted_images():
    student, teacher, previous, target = images(3)
    weight = AILLoss(2).weight(teacher, previous, target)
    for power in (2, 1):
        expected = by_pixel(
            lambda s, y, w, power=power: abs(w ** (power / 2) * s - w ** (power / 2) * y),
            student,
            target,
            weight,
        ).sum()
        found = AILLoss(2, base="l1", power=power)(student, teacher, previous, target)
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    "channels, reduce", [("mean", lambda errors: sum(errors) / 3), ("max", max)]
)
def test_one_weight_for_each_pixel(channels, reduce):
    student, teacher, previous, target = images(3, (2, 3, 2, 2))

    def error(image):
        pixels = [(n, 0, i, j) for n in range(2) for i in range(2) for j in range(2)]
        found = [
            reduce([abs(image[n, c, i, j] - target[n, c, i, j]).item() for c in range(3)])
            for n, _, i, j in pixels
        ]
        return torch.tensor(found, dtype=F64).view(2, 1, 2, 2)

    nothing = torch.zeros(2, 1, 2, 2, dtype=F64)
    expected = slow_importance(slow_initial(error(teacher), nothing), error(previous), nothing, 2)
    loss = AILLoss(2, channels=channels)
    torch.testing.assert_close(
        loss.weight(teacher, previous, target), expected, rtol=1e-12, atol=1e-15
    )
    value = slow_loss(student, target, expected.expand(2, 3, 2, 2))
    assert loss(student, teacher, previous, target).item() == pytest.approx(value, rel=1e-12)
    mean = AILLoss(2, channels=channels, reduction="mean")(student, teacher, previous, target)
    # of values, not of pixels
    assert mean.item() == pytest.approx(value / 24, rel=1e-12)
    assert AILLoss(0, "uniform", channels=channels).weight(target).shape == (2, 1, 2, 2)


@pytest.mark.parametrize(
    "options, exponent",
    [({}, 2), ({"power": 1}, 1), ({"base": "l1"}, 1), ({"channels": "mean"}, 2)],
    ids=str,
)
def test_normalize_divides_by_the_mean_of_what_multiplies_the_error(options, exponent):
    tensors = images(3, (2, 3, 2, 2))
    plain, normalized = AILLoss(1, **options), AILLoss(1, normalize=True, **options)
    mean = (plain.weight(*tensors[1:]) ** exponent).mean()
    assert normalized(*tensors).item() == pytest.approx((plain(*tensors) / mean).item(), rel=1e-12)


def test_normalize_of_a_map_of_zeros_is_zero():
    student, target = torch.rand(2, 1, 1, 4, 4)
    assert AILLoss(0, normalize=True)(student, target + 100, target) == 0


@pytest.mark.parametrize("variant", ["ail", "no_teacher"])
def test_monotone_is_the_largest_increment_of_all_rounds(variant):
    """Students that get better and worse again: the plain weight falls somewhere, the monotone one
    nowhere.
    """
    teacher, *former, target = images(5, (2, 1, 8, 8), noise=0.2)
    teachers = (teacher,) if variant == "ail" else ()
    initial = slow_initial(teacher, target) if teachers else torch.zeros_like(target)
    last, fell = initial, False
    for round in range(1, 5):
        loss = AILLoss(round, variant, monotone=True)
        assert loss.of == (
            "student",
            *["teacher"][: len(teachers)],
            *(f"round{k}" for k in range(round)),
            "target",
        )
        expected = initial
        for k in range(1, round + 1):  # S_0 teaches round 1, …
            expected = torch.maximum(expected, slow_importance(initial, former[k - 1], target, k))
        found = loss.weight(*teachers, *former[:round], target)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
        assert (found >= last).all()
        last = found
        fell |= (
            (AILLoss(round, variant).weight(*teachers, former[round - 1], target) < found - 1e-3)
            .any()
            .item()
        )
    assert fell
    assert AILLoss(0, variant, monotone=True).of == AILLoss(0, variant).of


# ---------------------------------------------------------------------------- before the first step
def test_intensities_of_another_range_are_an_error_before_training():
    good = images(3, dtype=torch.float32, noise=0.005)
    for loss in (AILLoss(1), Importance(1)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # and a good teacher is no warning
            loss.build(*good)
            AILLoss(1, "no_teacher").build(*good[1:])  # nor is none at all
        for bad, message in (
            (lambda x: 255 * x, r"\[\d.*, 2\d\d.*\].*\[0, 1\].*divide"),
            (lambda x: x - 0.9, r"\[-0\.[5-9].*mean and std"),
        ):
            with pytest.raises(ValueError, match=message):
                loss.build(*(bad(image) for image in good))
    with pytest.raises(ValueError, match="takes 4 tensors"):
        AILLoss(1).build(*good[1:])
    # the plain loss has no range
    AILLoss(1, "uniform").build(255 * good[0], 255 * good[-1])


def test_a_teacher_that_leaves_nothing_to_learn_from_is_a_warning():
    student, target = images(1, (2, 1, 8, 8))
    for round in (0, 9):
        # round 9's own weight is 1 everywhere
        others = [target + 0.1, *([target] if round else []), target]
        with pytest.warns(RuntimeWarning, match="mean importance of the teacher's map is 0.0001"):
            AILLoss(round).build(student, *others)


def test_a_distiller_looks_at_the_range_too():
    x = torch.rand(2, 1, 4, 4)
    student, teacher = nn.Conv2d(1, 1, 3, padding=1), nn.Identity()
    distiller = Distiller(
        student, {"teacher": teacher}, {"loss_ail": (AILLoss(0), ("student", "teacher", "target"))}
    )
    with pytest.raises(ValueError, match=r"loss_ail .*lie in \[.*divide 0..255 by 255"):
        distiller.build(255 * x, 255 * x)
    assert distiller.build(x, x)["teacher"] == (2, 1, 4, 4)


# ------------------------------------------------------------------------------- rounds of training
def test_three_rounds_of_a_student():
    """The loss falls in each round, the mean importance rises from round to round, teacher and
    frozen student do not move.
    """
    target = nn.functional.interpolate(
        torch.rand(4, 1, 5, 5), size=(12, 12), mode="bilinear"
    ).clamp(0, 1)
    batch = {"input": nn.functional.avg_pool2d(target, 3, 1, 1), "target": target}

    def make(width):
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.PReLU(), nn.Conv2d(width, 1, 3, padding=1)
        )

    teacher, student = make(16), make(4)
    optimizer = torch.optim.Adam(teacher.parameters(), 2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.mse_loss(teacher(batch["input"]), target).backward()
        optimizer.step()
    teachers, means = {"teacher": teacher}, []
    for round in range(3):
        loss = AILLoss(round, reduction="mean")
        losses = {"loss_ail": (loss, loss.of), "importance": (Importance(round), loss.of)}
        distiller = Distiller(student, teachers, losses)
        distiller.build(batch)
        frozen = {name: copy.deepcopy(model.state_dict()) for name, model in teachers.items()}
        optimizer, values = torch.optim.Adam(student.parameters(), 1e-2), []
        for _ in range(20):
            optimizer.zero_grad()
            found = distiller(batch)
            found["loss_ail"].backward()
            optimizer.step()
            values.append(found["loss_ail"].item())
        assert values[-1] < values[0] and not found["importance"].requires_grad
        means.append(found["importance"].item())
        for name, state in frozen.items():
            assert all(
                torch.equal(state[key], value)
                for key, value in distiller.model(name).state_dict().items()
            )
        teachers = {"teacher": teacher, "previous": copy.deepcopy(student)}
    assert 0.05 < means[0] < means[1] < means[2] <= 1
