"""LwF against loops over rows and classes, its laws, and its presets as losses of a config."""

import math

import pytest
import torch

from kdtasks.classification.models import digits_cnn
from kdtasks.core.control import control_losses
from kdtasks.engine import builder
from kdtasks.general.kd import kd_loss
from kdtasks.incremental.distiller import IncrementalDistiller
from kdtasks.incremental.lwf import PRESETS, LwFLoss, lwf_loss, lwf_losses, lwf_mc_loss, one_hot_bce
from kdtasks.incremental.models import growing


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def rows(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype) * 3


def gradient(loss, student, *others):
    student = student.clone().requires_grad_()
    value = loss(student, *others)
    return value.detach(), torch.autograd.grad(value, student)[0]


def softmax(scores):
    exps = [math.exp(s) for s in scores]
    return [e / sum(exps) for e in exps]


def slow_lwf(student, teacher, temperature):
    """Of probabilities raised to 1/T and normalised, as the paper writes it, less the teacher's
    entropy.
    """
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        p, q = ([x ** (1 / temperature) for x in softmax(z)] for z in (s, t))
        for pc, qc in zip(p, q):
            total += qc / sum(q) * (math.log(qc / sum(q)) - math.log(pc / sum(p)))
    return total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
def test_loss_and_gradient_are_those_of_the_paper(temperature):
    student, teacher = rows(5, 4), rows(5, 4)
    value, pull = gradient(lwf_loss, student, teacher, temperature)
    assert value.item() == pytest.approx(slow_lwf(student, teacher, temperature), rel=1e-10)
    p, q = ((z / temperature).softmax(1) for z in (student, teacher))
    torch.testing.assert_close(pull, (p - q) / temperature / 5)
    assert lwf_loss(student, student) == 0
    assert torch.autograd.gradcheck(
        lambda s: lwf_loss(s, teacher, temperature), student.requires_grad_()
    )


def test_the_default_temperature_is_2_and_its_square_is_a_choice():
    student, teacher = rows(5, 4), rows(5, 4)
    expected = slow_lwf(student, teacher, 2.0)
    for loss in (lwf_loss, LwFLoss()):
        assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    assert LwFLoss(scale_t2=True)(student, teacher).item() == pytest.approx(4 * expected, rel=1e-10)
    torch.testing.assert_close(
        LwFLoss(3.0, scale_t2=True)(student, teacher), kd_loss(student, teacher, 3.0)
    )


def test_heads_are_summed_and_have_a_softmax_each():
    sizes, loss = [2, 3, 4], LwFLoss(1.5)
    student, teacher = rows(6, 9), rows(6, 9)
    value = loss(list(student.split(sizes, 1)), list(teacher.split(sizes, 1)))
    assert value.item() == pytest.approx(
        sum(slow_lwf(s, t, 1.5) for s, t in zip(student.split(sizes, 1), teacher.split(sizes, 1)))
    )
    # a shift a head
    moved = student + torch.tensor([20.0] * 2 + [-1.0] * 3 + [0.0] * 4, dtype=student.dtype)
    torch.testing.assert_close(
        loss(list(moved.split(sizes, 1)), list(teacher.split(sizes, 1))), value
    )
    assert abs(loss(moved, teacher) - loss(student, teacher)) > 0.1
    assert loss([student], [teacher]) == loss(student, teacher)


@pytest.mark.parametrize(
    "dtype, raised",
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision_of_the_result_and_saturated_logits(dtype, raised):
    student, teacher = rows(4, 3, dtype=dtype), rows(4, 3, dtype=dtype)
    target = torch.tensor([0, 3, 4, 1])
    wide = torch.cat([student, student[:, :2]], 1)
    for value, exact in (
        (lwf_loss(student, teacher), lwf_loss(student.double(), teacher.double())),
        (lwf_mc_loss(wide, teacher, target), lwf_mc_loss(wide.double(), teacher.double(), target)),
    ):
        assert value.dtype == raised and value.item() == pytest.approx(exact.item(), rel=1e-5)
    for loss, of in (
        (lwf_loss, (teacher * 1000,)),
        (lwf_mc_loss, (teacher * 1000, target.clamp(max=2))),
    ):
        value, pull = gradient(loss, student * 1000, *of)
        assert value.isfinite() and pull.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_no_row_or_no_old_class_is_a_zero_that_backpropagates(shape):
    for loss in (lwf_loss, LwFLoss(), lambda s, t: LwFLoss()([s], [t])):
        value, pull = gradient(loss, rows(*shape), rows(*shape))
        assert value == 0 and pull.shape == shape
    value, pull = gradient(lwf_mc_loss, rows(0, 4), rows(0, 2), torch.zeros(0, dtype=torch.int64))
    assert value == 0 and pull.shape == (0, 4)
    nothing = LwFLoss()([], [])
    nothing.backward()
    assert nothing == 0


def test_the_teacher_receives_no_gradient_and_nothing_is_changed():
    student, teacher, target = (
        rows(4, 5).requires_grad_(),
        rows(4, 5).requires_grad_(),
        torch.tensor([0, 1, 2, 3]),
    )
    before = student.detach().clone(), teacher.detach().clone()
    for loss in (
        lwf_loss(student, teacher),
        LwFLoss()([student], [teacher]),
        lwf_mc_loss(student, teacher[:, :3], target),
    ):
        student.grad = None
        loss.backward()
        assert student.grad.any() and teacher.grad is None
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1])


# ------------------------------------------------------------------------------------------- LwF.MC
def slow_mc(student, teacher, target):
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist()):
        wanted = [1 / (1 + math.exp(-z)) for z in t]
        wanted += [float(c == y) for c in range(len(wanted), len(s))]
        for z, w in zip(s, wanted):
            p = 1 / (1 + math.exp(-z))
            total -= w * math.log(p) + (1 - w) * math.log(1 - p)
    return total / student.numel()


@pytest.mark.parametrize("old", [0, 1, 3, 5])
def test_lwf_mc_takes_the_old_columns_from_the_teacher_and_the_new_ones_from_the_label(old):
    # some rows are of old classes
    student, teacher, target = rows(6, 5), rows(6, old), torch.tensor([0, 1, 2, 3, 4, 4])
    value, pull = gradient(lwf_mc_loss, student, teacher, target)
    assert value.item() == pytest.approx(slow_mc(student, teacher, target), rel=1e-10)
    wanted = torch.cat([teacher.sigmoid(), torch.eye(5, dtype=student.dtype)[target][:, old:]], 1)
    torch.testing.assert_close(pull, (student.sigmoid() - wanted) / 30)
    if old == 0:
        assert one_hot_bce(student, target) == lwf_mc_loss(student, None, target) == value


# ------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "student, teacher", [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((3,), (3,)), ((2, 3, 4), (2, 3, 4))]
)
def test_shapes_that_do_not_fit_are_in_the_message(student, teacher):
    for loss in (lwf_loss, LwFLoss()):
        with pytest.raises(ValueError) as caught:
            loss(torch.zeros(student), torch.zeros(teacher))
        assert f"got student {student} and teacher {teacher}" in str(caught.value)
        assert "('student.old', 'teacher')" in str(caught.value)


@pytest.mark.parametrize(
    "student, teacher, target",
    [
        ((2, 3), (2, 4), (2,)),
        ((2, 3), (3, 3), (2,)),
        ((2, 3), None, (3,)),
        ((2, 3), (2, 2), (2, 1)),
        ((2, 3, 1), (2, 2), (2,)),
        ((2, 3), (2, 3, 1), (2,)),
    ],
)
def test_shapes_that_lwf_mc_does_not_take(student, teacher, target):
    with pytest.raises(ValueError) as caught:
        lwf_mc_loss(
            torch.zeros(student),
            teacher and torch.zeros(teacher),
            torch.zeros(target, dtype=torch.int64),
        )
    assert f"got student {student}, teacher {teacher}, target {target}" in str(caught.value)


def test_other_errors():
    for temperature in (0.0, -1.0, math.nan):
        for call, of in ((LwFLoss, ()), (lwf_loss, (rows(2, 2), rows(2, 2)))):
            with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
                call(*of, temperature=temperature)
    with pytest.raises(
        ValueError,
        match=r"got 2 of the student, \[\(2, 3\), \(2, 1\)\], and 1 of "
        r"the teacher, \[\(2, 3\)\]",
    ):
        LwFLoss()([rows(2, 3), rows(2, 1)], [rows(2, 3)])
    with pytest.raises(ValueError, match="no preset 'pycyl'; did you mean 'pycil'"):
        lwf_losses("pycyl")
    for given in ({"weight": 2.0}, {"temperature": 2.0}, {"scale_t2": True}):
        with pytest.raises(ValueError, match="lwf_mc is one loss without weight or temperature"):
            lwf_losses("lwf_mc", **given)


# ------------------------------------------------------------------------------------------ presets
def pair(sizes=(2, 3, 4)):
    torch.manual_seed(0)
    student, teacher = (growing(digits_cnn(width=4), s).double() for s in (sizes, sizes[:-1]))
    return student, teacher


def taught(losses, student, teacher):
    entries = {
        name: (
            builder.bind({k: v for k, v in entry.items() if k not in ("of", "weight")}, name),
            entry["of"],
            entry["weight"],
        )
        for name, entry in losses.items()
    }
    return IncrementalDistiller(student, {"teacher": teacher}, entries)


@pytest.mark.parametrize(
    "preset, over, heads, weight",
    [
        ("paper", "new", True, 1.0),
        ("facil", "new", False, 1.0),
        ("pycil", "new", False, 3.0),
        ("mammoth", "seen", False, 0.5),
        ("avalanche", "seen", False, 1.0),
    ],
)
def test_each_preset_is_what_its_system_computes(preset, over, heads, weight):
    student, teacher = pair()
    # all of them new
    x, target = torch.rand(6, 1, 8, 8, dtype=torch.float64), torch.tensor([5, 6, 7, 8, 5, 5])
    distiller = taught(lwf_losses(preset), student, teacher).eval()
    found = distiller(x, target)
    z, t = student(x), teacher(x)
    parts = [slice(0, 2), slice(2, 5)] if heads else [slice(0, 5)]
    hard = [zi[5:] if over == "new" else zi for zi in z]
    hard = sum(zi.logsumexp(0) - z[i, target[i]] for i, zi in enumerate(hard)) / 6
    torch.testing.assert_close(found["loss_cls"], hard)
    torch.testing.assert_close(
        found["loss_lwf"].item(), weight * sum(slow_lwf(z[:, p], t[:, p], 2.0) for p in parts)
    )
    other = taught(
        lwf_losses(preset, weight=10.0, temperature=3.0, scale_t2=True), student, teacher
    ).eval()(x, target)
    torch.testing.assert_close(
        other["loss_lwf"].item(), 90 * sum(slow_lwf(z[:, p], t[:, p], 3.0) for p in parts)
    )
    assert other["loss_cls"] == found["loss_cls"]


def test_lwf_mc_is_one_loss_when_taught_and_leaves_its_control_another():
    student, teacher = pair()
    x, target = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 5, 6, 8])
    losses = lwf_losses("lwf_mc")
    found = taught(losses, student, teacher).eval()(x, target)
    assert list(found) == ["loss_lwf"]
    torch.testing.assert_close(found["loss_lwf"].item(), slow_mc(student(x), teacher(x), target))
    alone = control_losses(losses, {"teacher": None})
    assert list(alone) == ["loss_cls"] and alone["loss_cls"]["weight"] == 1
    torch.testing.assert_close(
        taught(alone, student, teacher).eval()(x, target)["loss_cls"],
        one_hot_bce(student(x), target),
    )


def test_presets_are_fresh_each_time_and_the_docstring_has_them_all():
    lwf_losses("pycil")["loss_lwf"]["weight"] = 100.0
    assert lwf_losses("pycil")["loss_lwf"]["weight"] == 3.0 and lwf_losses() == lwf_losses("paper")
    assert all(f"``{name}``" in lwf_losses.__doc__ for name in PRESETS)


def test_some_steps_with_it_keep_the_old_outputs_better_than_without():
    target = torch.randint(5, 9, (32,))
    x, drift = torch.randn(9, 1, 8, 8)[target] + 0.3 * torch.randn(32, 1, 8, 8), {}
    for weight in (0.0, 5.0):
        student, teacher = (model.float() for model in pair())
        # it knows something
        torch.nn.init.normal_(teacher.fc.blocks[0].weight)
        student.load_state_dict(teacher.state_dict(), strict=False)
        before = {k: v.clone() for k, v in teacher.state_dict().items()}
        distiller = taught(lwf_losses("facil", weight=weight), student, teacher)
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9)
        first = None
        for _ in range(20):
            losses = distiller(x, target)
            first = first or losses["loss_cls"].item()
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        assert losses["loss_cls"] < 0.8 * first
        assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
        drift[weight] = lwf_loss(student.train()(x)[:, :5], teacher(x)).item()
    assert drift[5.0] < 0.5 * drift[0.0]
