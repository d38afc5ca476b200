"""Global Distillation against loops over rows and classes, its laws, and its edges."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.incremental.distiller import IncrementalDistiller
from kdtasks.incremental.gd import (
    BalancedCrossEntropyLoss,
    CurrentTeacherLoss,
    GlobalDistillationLoss,
    class_balance_weights,
    confidence_loss,
    ensemble_probabilities,
    global_distillation_losses,
)
from kdtasks.incremental.models import growing

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def logits(rows, columns, scale=2.0, dtype=F64):
    return (scale * torch.randn(rows, columns, dtype=F64)).to(dtype)


def batch(rows=7, l=3, m=2, dtype=F64):
    """Logits of M, P and C, targets, and who is labelled; where nobody is, the target is no class."""
    target = torch.arange(rows) % (l + m)
    labelled = torch.arange(rows) % 3 != 1
    target[~labelled] = torch.tensor([-1, -2, -100, 10**6] * rows)[:rows][~labelled]
    return (
        logits(rows, l + m, dtype=dtype),
        logits(rows, l, dtype=dtype),
        logits(rows, m, dtype=dtype),
        target,
        labelled,
    )


def softmax(z, temperature=1.0):
    e = [math.exp(v / temperature) for v in z]
    return [v / math.fsum(e) for v in e]


def kl(q, p):
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(q, p) if a > 0)


def slow_q(p, c):
    """From the words: the top keeps its probability; what is left, a mean of rest / (r - 1) for old
    and new classes alike.
    """
    top, others = p.index(max(p)), len(p) + len(c) - 1
    left = 1 - p[top]
    old = [left * (len(p) - 1) / others * v / (left or 1) for v in p]
    old[top] = p[top]
    return old + [left * len(c) / others * v for v in c]


def slow_losses(
    student, previous, current, target, labelled, temperature=2.0, weights=None, terms="PCQ"
):
    """``weights``: those of the classes of cls, of p and of c."""
    weights = weights or {}
    # untrained: Q shares out the new classes evenly
    if "C" not in terms:
        current = torch.zeros_like(current)
    l, m, rows = previous.shape[1], current.shape[1], len(student)
    r, cls, q, p, c = l + m, [], [], [], []
    for z, zp, zc, y, known in zip(
        *(x.tolist() for x in (student, previous, current, target, labelled))
    ):
        if known:
            cls.append(-math.log(softmax(z)[y]) * weights.get("cls", [1] * r)[y])
        else:
            q.append(kl(slow_q(softmax(zp), softmax(zc)), softmax(z)))
        w_p = weights.get("p", [1] * l)[y] if known and y < l else 1
        w_c = weights.get("c", [1] * m)[y - l] if known and y >= l else 1
        p.append(w_p * kl(softmax(zp, temperature), softmax(z[:l], temperature)))
        c.append(w_c * kl(softmax(zc, temperature), softmax(z[l:], temperature)))
    found = {
        "cls": sum(cls) / (rows if "Q" in terms else max(len(cls), 1)),
        "q": sum(q) / rows,
        "p": sum(p) / rows * temperature**2 * (l / r if "C" in terms else 1),
        "c": sum(c) / rows * temperature**2 * m / r,
    }
    return {name: value for name, value in found.items() if name == "cls" or name.upper() in terms}


def slow_weights(counts):
    return [sum(counts) / (n * len(counts)) if n else 1 for n in counts]


def same(found, expected, prefix="", rel=1e-11):
    assert {name: value.item() for name, value in found.items()} == {
        f"{prefix}{name}": pytest.approx(value, rel=rel, abs=1e-12)
        for name, value in expected.items()
    }


# ------------------------------------------------------------------------------------------------ Q
@pytest.mark.parametrize("l, m", [(3, 2), (2, 5), (1, 1), (1, 4), (6, 1)])
def test_q_is_the_loops_and_keeps_its_laws(l, m):
    previous, current = logits(9, l), logits(9, m)
    q = ensemble_probabilities(previous, current)
    expected = [slow_q(softmax(p), softmax(c)) for p, c in zip(previous.tolist(), current.tolist())]
    torch.testing.assert_close(q, torch.tensor(expected, dtype=F64), rtol=1e-12, atol=1e-15)
    p, c = previous.softmax(1), current.softmax(1)
    top, where = p.max(1)
    torch.testing.assert_close(q.sum(1), torch.ones(9, dtype=F64), rtol=1e-14, atol=0)
    assert torch.equal(q.gather(1, where[:, None])[:, 0], top)
    # the mean of the others, old and new
    each = (1 - top) / (l + m - 1)
    torch.testing.assert_close(q[:, l:].mean(1), each, rtol=1e-9, atol=1e-15)
    if l > 1:
        torch.testing.assert_close((q[:, :l].sum(1) - top) / (l - 1), each, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(
        q[:, l:] / q[:, l:].sum(1, keepdim=True).clamp(min=1e-300), c if l > 1 else 0 * c
    )


def test_q_in_numbers():
    p, c = (
        torch.tensor([[0.3, 0.5, 0.2], [0.4, 0.4, 0.2]]).log(),
        torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log(),
    )
    expected = torch.tensor([[0.15, 0.5, 0.1, 0.0625, 0.1875], [0.4, 0.2, 0.1, 0.15, 0.15]])
    torch.testing.assert_close(ensemble_probabilities(p, c), expected)


def test_q_of_a_sure_teacher_is_finite_exact_and_without_gradient():
    p, c = (
        torch.tensor([[200.0, 0, -200], [20, 0, 0]]).requires_grad_(),
        logits(2, 3, dtype=torch.float32).requires_grad_(),
    )
    q = ensemble_probabilities(p, c)
    assert not q.requires_grad and q.dtype == torch.float32
    assert q[0].tolist() == [1, 0, 0, 0, 0, 0]
    # 1 - p would be 0 here in float32
    small = 2 * math.exp(-20) / 5
    assert q[1, 1:3].tolist() == pytest.approx([small] * 2, rel=1e-5) and q[
        1, 3:
    ].sum().item() == pytest.approx(3 * small, rel=1e-5)
    assert ensemble_probabilities(p.half(), c.double()).dtype == F64
    loss = global_distillation_losses(
        torch.zeros(2, 6), p, c, torch.zeros(2).long(), torch.zeros(2, dtype=torch.bool)
    )["loss_q"]
    assert loss.item() == pytest.approx(math.log(6), rel=1e-5)  # 0 log 0 = 0


@pytest.mark.parametrize(
    "p, c",
    [((4, 3), (5, 2)), ((4,), (4, 2)), ((4, 0), (4, 2)), ((4, 3), (4, 0)), ((4, 3), (4, 2, 1))],
)
def test_q_of_other_shapes(p, c):
    with pytest.raises(ValueError) as error:
        ensemble_probabilities(torch.zeros(p), torch.zeros(c))
    assert str(p) in str(error.value) and str(c) in str(error.value)


# ----------------------------------------------------------------------------------------- the four
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
@pytest.mark.parametrize(
    "rows, l, m", [(7, 3, 2), (5, 2, 4), (6, 1, 3), (4, 4, 1), (1, 2, 2), (2, 2, 2)]
)
def test_the_losses_are_the_loops(rows, l, m, temperature):
    data = batch(rows, l, m)
    found = global_distillation_losses(*data, temperature=temperature)
    same(found, slow_losses(*data, temperature), "loss_")
    weight = torch.rand(l + m, dtype=F64) + 0.1
    found = global_distillation_losses(*data, temperature=temperature, class_weight=weight)
    same(found, slow_losses(*data, temperature, {"cls": weight.tolist()}), "loss_")


def test_gradcheck():
    student, *rest = batch(5)
    weight = torch.rand(5, dtype=F64)
    loss = GlobalDistillationLoss(balanced=True)
    counts = torch.tensor([9, 4, 0, 30, 7])
    assert torch.autograd.gradcheck(
        lambda z: tuple(global_distillation_losses(z, *rest, class_weight=weight).values()),
        student.requires_grad_(),
    )
    assert torch.autograd.gradcheck(
        lambda z: tuple(loss(z, *rest[:2], rest[2] % 5, counts).values()), student
    )
    assert torch.autograd.gradcheck(confidence_loss, student)
    assert torch.autograd.gradcheck(
        lambda z: tuple(CurrentTeacherLoss(0.7)(z, torch.tensor([0, -100, 2, -100, 1])).values()),
        student,
    )


def test_the_teachers_receive_no_gradient():
    student, previous, current, target, labelled = batch()
    inputs = [z.requires_grad_() for z in (student, previous, current)]
    sum(global_distillation_losses(*inputs, target, labelled).values()).backward()
    assert student.grad.abs().min() > 0 and previous.grad is None and current.grad is None


def test_each_part_pulls_on_its_own_rows_and_columns():
    student, previous, current, target, labelled = batch()
    pulls = {}
    for name, value in global_distillation_losses(
        student.requires_grad_(), previous, current, target, labelled
    ).items():
        (pulls[name],) = torch.autograd.grad(value, student, retain_graph=True)
    assert not pulls["loss_cls"][~labelled].any() and pulls["loss_cls"][labelled].all()
    assert not pulls["loss_q"][labelled].any() and pulls["loss_q"][~labelled].all()
    assert not pulls["loss_p"][:, 3:].any() and pulls["loss_p"][:, :3].all()
    assert not pulls["loss_c"][:, :3].any() and pulls["loss_c"][:, 3:].all()


@pytest.mark.parametrize("has", [True, False])
def test_an_absent_part_is_a_connected_zero(has):
    student, previous, current, _, _ = batch()
    target, labelled = torch.full((7,), 2 if has else -100), torch.full((7,), has)
    found = global_distillation_losses(
        student.requires_grad_(), previous, current, target, labelled
    )
    absent, there = ("loss_q", "loss_cls") if has else ("loss_cls", "loss_q")
    assert found[absent] == 0 and found[there] > 0.1
    assert not torch.autograd.grad(found[absent], student)[0].any()


def test_a_student_that_is_both_teachers():
    _, previous, current, target, labelled = batch()
    # a softmax over l, or m, does not see the shift
    student = torch.cat([previous + 3, current - 5], 1).requires_grad_()
    found = global_distillation_losses(student, previous, current, target, labelled)
    for name in ("loss_p", "loss_c"):
        assert (
            found[name].abs() < 1e-14
            and torch.autograd.grad(found[name], student, retain_graph=True)[0].abs().max() < 1e-14
        )
    assert found["loss_q"] > 0.1 and found["loss_cls"] > 0.1


def test_a_student_that_is_q():
    _, previous, current, target, labelled = batch()
    student = ensemble_probabilities(previous, current).log().requires_grad_()
    value = global_distillation_losses(student, previous, current, target, labelled)["loss_q"]
    assert value.abs() < 1e-14 and torch.autograd.grad(value, student)[0].abs().max() < 1e-14


# --------------------------------------------------------------------------- weights and the module
@pytest.mark.parametrize("counts", [[200] * 10 + [500] * 10, [1, 2, 3], [5, 0, 10, 0], [7]])
def test_weights_of_classes(counts):
    expected = pytest.approx(slow_weights(counts), rel=1e-6)
    for given in (
        counts,
        torch.tensor(counts),
        torch.tensor(counts).half(),
        torch.tensor(counts).numpy(),
        tuple(counts),
    ):
        found = class_balance_weights(given)
        assert found.tolist() == expected and found.dtype == torch.float32
    assert class_balance_weights(torch.tensor(counts, dtype=F64)).tolist() == pytest.approx(
        slow_weights(counts), rel=1e-15
    )
    assert sum(w * n for w, n in zip(found.tolist(), counts)) == pytest.approx(
        sum(counts) * sum(n > 0 for n in counts) / len(counts)
    )


def test_the_sheets_weights():
    weights = class_balance_weights([200] * 10 + [500] * 10)
    assert weights[0].item() == pytest.approx(1.75) and weights[-1].item() == pytest.approx(0.7)
    assert class_balance_weights([0, 0]).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        class_balance_weights([[1, 2]])


def test_the_module_is_the_function_where_negative_targets_have_no_label():
    student, previous, current, target, labelled = batch()
    target = torch.where(labelled, target, -2)
    expected = global_distillation_losses(
        student, previous, current, target, labelled, temperature=3.0
    )
    found = GlobalDistillationLoss(3.0)(student, previous, current, target)
    assert {f"loss_{name}": value for name, value in found.items()} == expected


@pytest.mark.parametrize("terms", ["PCQ", "QCP", "P", "PC", "Q", "C", "PQ", "CQ"])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_module_with_its_teachers_and_weights(terms, balanced):
    """The counts of old and new classes differ among themselves, so P's and C's own weights do."""
    l, m, counts = 3, 2, [20, 35, 5, 0, 90]
    student, previous, current, target, labelled = batch(11, l, m)
    target = torch.where(labelled, target, -100)
    assert set(target[labelled].tolist()) == set(range(l + m))
    weights = (
        {"cls": slow_weights(counts), "p": slow_weights(counts[:l]), "c": slow_weights(counts[l:])}
        if balanced
        else {}
    )
    loss = GlobalDistillationLoss(1.5, balanced, terms)
    same(
        loss(student, previous, current, target, torch.tensor(counts)),
        slow_losses(student, previous, current, target, labelled, 1.5, weights, terms),
    )


@pytest.mark.parametrize("terms", ["Q", "PQ"])
def test_without_c_the_new_classes_share_q_evenly_and_nobody_looks_at_current(terms):
    student, previous, current, target, labelled = batch()
    target = torch.where(labelled, target, -100)
    loss = GlobalDistillationLoss(terms=terms)
    found = loss(student, previous, None, target)
    assert (
        found
        == loss(student, previous, current, target)
        == loss(student, previous, 1e6 * current, target)
    )
    same(
        found,
        slow_losses(student, previous, torch.zeros_like(current), target, labelled, terms=terms),
    )
    new = ensemble_probabilities(previous, torch.zeros_like(current))[:, 3:]
    torch.testing.assert_close(new[:, 0], new[:, 1])
    with pytest.raises(ValueError, match=r"terms='PCQ' needs current \(B, r - l\), got None"):
        GlobalDistillationLoss()(student, previous, None, target)


def test_p_alone_looks_at_no_current_teacher_and_may_know_all_classes():
    student, previous, _, target, labelled = batch()
    target = torch.where(labelled, target, -100)
    loss = GlobalDistillationLoss(terms="P")
    assert set(loss(student, previous, None, target)) == {"cls", "p"}
    everything = logits(7, 5)
    expected = (
        F.kl_div((student / 2).log_softmax(1), (everything / 2).softmax(1), reduction="batchmean")
        * 4
    )
    torch.testing.assert_close(loss(student, everything, None, target)["p"], expected)
    with pytest.raises(ValueError, match="l and m at least 1"):
        GlobalDistillationLoss(terms="PC")(student, everything, logits(7, 0), target)


@pytest.mark.parametrize("balanced", [False, True])
def test_without_labels_there_is_no_class_to_take_a_weight_from(balanced):
    """All 100 classes seen, so -1 and -2 would index classes 99 and 98, whose weights are unlike
    any other.
    """
    student, previous, current = logits(6, 100), logits(6, 90), logits(6, 10)
    counts = torch.full((100,), 20)
    counts[98:] = torch.tensor([3, 500])
    target = torch.tensor([5, 95, -1, -1, -1, -1])
    loss = GlobalDistillationLoss(balanced=balanced)
    expected = loss(student, previous, current, target, counts)
    for no_class in (-2, -100, -(10**6)):
        other = torch.where(target < 0, no_class, target)
        assert loss(student, previous, current, other, counts) == expected
        assert BalancedCrossEntropyLoss(balanced)(
            student, other, counts
        ) == BalancedCrossEntropyLoss(balanced)(student[:2], target[:2], counts)
    weights = {
        "cls": slow_weights(counts.tolist()),
        "p": slow_weights(counts[:90].tolist()),
        "c": slow_weights(counts[90:].tolist()),
    }
    same(
        expected,
        slow_losses(
            student, previous, current, target, target >= 0, weights=weights if balanced else {}
        ),
    )


def test_equal_counts_weigh_nothing():
    student, previous, current, target, labelled = batch()
    target = torch.where(labelled, target, -1)
    found = GlobalDistillationLoss(balanced=True)(
        student, previous, current, target, torch.full((5,), 40)
    )
    for name, value in GlobalDistillationLoss()(student, previous, current, target).items():
        torch.testing.assert_close(found[name], value, rtol=1e-14, atol=0)


# ----------------------------------------------------------------- the current teacher, the control
def test_confidence_is_the_divergence_from_uniform():
    z = logits(6, 4)
    expected = sum(kl([1 / 4] * 4, softmax(row)) for row in z.tolist()) / 6
    assert confidence_loss(z).item() == pytest.approx(expected, rel=1e-12)
    assert confidence_loss(torch.full((2, 4), 7.0, dtype=F64)).abs() < 1e-15
    assert confidence_loss(z[:, :1]) == 0
    assert confidence_loss(torch.tensor([[300.0, 0, 0]])).item() == pytest.approx(
        200 - math.log(3), rel=1e-6
    )


@pytest.mark.parametrize(
    "target", [[2, -100, 0, -1, 1], [0, 1, 2, 1, 0], [-100] * 5], ids=["both", "new", "others"]
)
def test_the_current_teacher(target):
    z, weight = logits(5, 3), 0.6
    new = [-math.log(softmax(row)[y]) for row, y in zip(z.tolist(), target) if y >= 0]
    others = [kl([1 / 3] * 3, softmax(row)) for row, y in zip(z.tolist(), target) if y < 0]
    found = CurrentTeacherLoss(weight)(z.requires_grad_(), torch.tensor(target))
    same(
        found,
        {
            "cls": sum(new) / max(len(new), 1),
            "confidence": weight * sum(others) / max(len(others), 1),
        },
    )
    known = torch.tensor(target) >= 0
    for name, rows in (("cls", known), ("confidence", ~known)):
        (pull,) = torch.autograd.grad(found[name], z, retain_graph=True)
        assert pull[rows].all() and not pull[~rows].any()


def test_the_control_is_cross_entropy_and_its_weights():
    student, _, _, target, labelled = batch(9)
    target, counts = torch.where(labelled, target, -100), [4, 9, 1, 0, 30]
    torch.testing.assert_close(
        BalancedCrossEntropyLoss()(student, target), F.cross_entropy(student, target)
    )
    rows = [(z, y) for z, y in zip(student.tolist(), target.tolist()) if y >= 0]
    # not by the weights' sum
    expected = sum(-slow_weights(counts)[y] * math.log(softmax(z)[y]) for z, y in rows) / len(rows)
    loss = BalancedCrossEntropyLoss(balanced=True)
    assert loss(student, target, torch.tensor(counts)).item() == pytest.approx(expected, rel=1e-12)
    assert loss(student[labelled], target[labelled], torch.tensor(counts)).item() == pytest.approx(
        expected, rel=1e-12
    )
    none = loss(student.requires_grad_(), torch.full((9,), -100), torch.tensor(counts))
    assert none == 0 and not torch.autograd.grad(none, student)[0].any()


# -------------------------------------------------------------------------------------------- edges
def every_loss(student, previous, current, target, labelled):
    """All that trains, on one batch of 3 + 2 classes, the last one without samples."""
    negative, counts = (
        torch.where(labelled, target, -100),
        torch.arange(4, -1, -1, device=target.device),
    )
    return [
        *global_distillation_losses(
            student, previous, current, target, labelled, class_weight=class_balance_weights(counts)
        ).values(),
        *GlobalDistillationLoss(balanced=True)(
            student, previous, current, negative, counts
        ).values(),
        *GlobalDistillationLoss(terms="P")(student, previous, None, negative).values(),
        *CurrentTeacherLoss()(student, negative).values(),
        confidence_loss(student),
        BalancedCrossEntropyLoss(balanced=True)(student, negative, counts),
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_raised(dtype):
    student, previous, current, target, labelled = batch(dtype=dtype)
    found = every_loss(student.requires_grad_(), previous, current, target, labelled)
    expected = every_loss(student.double(), previous.double(), current.double(), target, labelled)
    for value, exact in zip(found, expected, strict=True):
        assert value.dtype == torch.float32 and exact.dtype == F64
        assert value.item() == pytest.approx(exact.item(), rel=2e-5)
    sum(found).backward()
    assert student.grad.dtype == dtype and student.grad.isfinite().all()


def test_weights_and_counts_of_another_precision_do_not_change_the_losses():
    student, previous, current, target, labelled = batch(dtype=torch.float32)
    weight = torch.rand(5, dtype=F64)
    for given in (weight, weight.half()):
        expected = slow_losses(
            student, previous, current, target, labelled, weights={"cls": given.tolist()}
        )
        found = global_distillation_losses(
            student, previous, current, target, labelled, class_weight=given
        )
        assert found["loss_cls"].dtype == torch.float32 and found[
            "loss_cls"
        ].item() == pytest.approx(expected["cls"], rel=1e-5)
    counts = torch.arange(1, 6, dtype=F64)
    found = BalancedCrossEntropyLoss(balanced=True)(
        student, torch.where(labelled, target, -1), counts
    )
    assert found.dtype == torch.float32


@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_saturated_logits_stay_finite(scale):
    student, previous, current, target, labelled = batch(dtype=torch.float32)
    student = (scale * student).requires_grad_()
    found = every_loss(student, scale * previous, -scale * current, target, labelled)
    sum(found).backward()
    assert all(value.isfinite() for value in found) and student.grad.isfinite().all()


def test_an_empty_batch_gives_zeros_that_backpropagate():
    student = logits(0, 5).requires_grad_()
    none = torch.zeros(0, dtype=torch.int64)
    found = every_loss(student, logits(0, 3), logits(0, 2), none, none.bool())
    assert all(value == 0 for value in found)
    sum(found).backward()
    assert student.grad.shape == (0, 5)


def test_nothing_waits_for_the_values_of_a_tensor():
    """On the meta device there are none: .item(), boolean indexing and nonzero fail there."""
    student, previous, current, target, labelled = (
        x.to("meta") for x in batch(dtype=torch.float32)
    )
    found = every_loss(student.requires_grad_(), previous, current, target, labelled)
    assert all(value.shape == () for value in found)
    assert torch.autograd.grad(sum(found), student)[0].shape == (7, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_the_same_and_never_waits():
    data = batch(64, dtype=torch.float32)
    expected = every_loss(*data)
    data = [x.cuda() for x in data]
    data[0].requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = every_loss(*data)
        sum(found).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [value.item() for value in found] == pytest.approx(
        [value.item() for value in expected], rel=1e-5
    )


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"student": torch.zeros(7, 6)}, r"\(7, 6\).*\(7, 3\).*\(7, 2\)"),
        ({"student": torch.zeros(7)}, r"\(7,\)"),
        ({"previous": torch.zeros(6, 3)}, r"\(7, 5\).*\(6, 3\)"),
        ({"previous": torch.zeros(7, 0)}, r"\(7, 0\)"),
        ({"current": torch.zeros(7, 3)}, r"\(7, 5\).*\(7, 3\).*\(7, 3\)"),
        ({"current": torch.zeros(7, 2, 1)}, r"\(7, 2, 1\)"),
        ({"target": torch.zeros(6).long()}, r"\(7, 5\).*\(6,\)"),
        ({"target": torch.zeros(7, 5)}, r"\(7, 5\)"),
        ({"target": torch.zeros(7)}, "float32"),
        ({"labelled": torch.zeros(1).bool()}, r"\(1,\)"),
        ({"labelled": torch.zeros(7)}, "float32"),
        ({"class_weight": torch.ones(3)}, r"\(7, 5\).*\(3,\)"),
        ({"temperature": 0}, "got 0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(change, expected):
    given = (
        dict(
            zip(
                ("student", "previous", "current", "target", "labelled"), batch(dtype=torch.float32)
            )
        )
        | change
    )
    with pytest.raises(ValueError, match=expected):
        global_distillation_losses(**given)


def test_what_the_modules_refuse():
    student, previous, current, target, _ = batch()
    for terms in ("", "PO", "PP", "pcq"):
        with pytest.raises(ValueError, match=f"got {terms!r}"):
            GlobalDistillationLoss(terms=terms)
    with pytest.raises(ValueError, match="got -1"):
        GlobalDistillationLoss(-1)
    for loss, tensors in (
        (GlobalDistillationLoss(balanced=True), (student, previous, current, target)),
        (BalancedCrossEntropyLoss(balanced=True), (student, target)),
    ):
        with pytest.raises(ValueError, match="needs counts"):
            loss(*tensors)
        with pytest.raises(ValueError, match=r"\(7, 5\).*\(7,\)"):
            loss(*tensors, torch.ones(7))
    with pytest.raises(ValueError, match=r"\(6,\)"):
        CurrentTeacherLoss()(current, target[:6])
    with pytest.raises(ValueError, match=r"\(4,\)"):
        confidence_loss(torch.zeros(4))


# ----------------------------------------------------------------------------------------- training
def test_a_student_learns_from_labels_and_teachers():
    """Two growing heads through the distiller: the losses fall, and only the student moves."""
    student, previous, current = (
        growing(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), sizes)
        for sizes in ((3, 2), (3,), (3, 2))
    )
    x, target = torch.randn(24, 6), torch.randint(5, (24,))
    labelled = torch.arange(24) < 12
    target[~labelled] = -100
    distiller = IncrementalDistiller(
        student,
        {"previous": previous, "current": current},
        {
            "loss_gd": (
                GlobalDistillationLoss(balanced=True),
                ("student", "previous", "current.new", "target.all", "counts"),
                1.0,
            )
        },
    )
    data = {
        "input": x,
        "target": target,
        "labelled": labelled,
        "counts": torch.tensor([2, 2, 2, 3, 3]),
    }
    distiller.build(data)
    before = [p.clone() for p in (*previous.parameters(), *current.parameters())]
    optimizer, totals = torch.optim.SGD(distiller.parameters(), lr=0.3), []
    for _ in range(60):
        losses = distiller(data)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        totals.append({name: value.item() for name, value in losses.items()})
    assert set(totals[0]) == {"loss_gd_cls", "loss_gd_q", "loss_gd_p", "loss_gd_c"}
    assert sum(totals[-1].values()) < 0.7 * sum(totals[0].values())
    assert all(
        torch.equal(a, b) for a, b in zip(before, (*previous.parameters(), *current.parameters()))
    )


def test_one_class_is_refused_by_the_losses_that_would_learn_nothing_of_it():
    for loss in (CurrentTeacherLoss(), BalancedCrossEntropyLoss()):
        with pytest.raises(
            ValueError,
            match=r"expected at least two classes, got \(4, 1\).* "
            r"lwf_mc_loss",
        ):
            loss(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))
