"""CWTM and DKPP against loops over indices, their laws, and the ensemble of generations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.general import CWTMLoss, DKPPLoss, Ensemble, cwtm_loss, dkpp_loss, kd_loss

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def logits(*shape):
    return 2 * torch.randn(*shape, dtype=F64)


def softmax(row):
    e = [math.exp(z - max(row)) for z in row]
    return [x / sum(e) for x in e]


# -------------------------------------------------------------------------------------------- CWTM
def slow_cwtm(student, teacher, target):
    rows = [b for b in range(len(target)) if target[b] != -100]
    sure = {b: max(softmax(teacher[b].tolist())) for b in rows}
    return sum(
        sure[b] / sum(sure.values()) * -math.log(softmax(student[b].tolist())[target[b]])
        for b in rows
    )


@pytest.mark.parametrize("target", [[0, 1, 2, 3, 3], [0, -100, 2, -100, 1]])
def test_cwtm_equals_the_loop_over_indices(target):
    student, teacher = logits(5, 4), logits(5, 4)
    expected = slow_cwtm(student, teacher, target)
    target = torch.tensor(target)
    assert cwtm_loss(student, teacher, target).item() == pytest.approx(expected, rel=1e-12)
    assert CWTMLoss()(student, teacher, target) == cwtm_loss(student, teacher, target)


def test_an_undecided_teacher_leaves_the_plain_cross_entropy():
    student, target = logits(5, 4), torch.tensor([0, 1, 2, 3, -100])
    for teacher in (torch.zeros(5, 4, dtype=F64), logits(1, 4).expand(5, 4)):
        torch.testing.assert_close(
            cwtm_loss(student, teacher, target), F.cross_entropy(student, target)
        )


def test_cwtm_does_not_ask_in_which_class_the_teacher_trusts():
    student, teacher, target = logits(5, 4), logits(5, 4), torch.tensor([0, 1, 2, 3, 3])
    moved = teacher.gather(1, torch.rand(5, 4).argsort(1))
    torch.testing.assert_close(
        cwtm_loss(student, teacher, target), cwtm_loss(student, moved, target)
    )


def test_gradcheck_and_no_gradient_of_the_teacher():
    teacher, target = logits(4, 3).requires_grad_(), torch.tensor([0, 1, -100, 2])
    permutation = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1]])
    for loss in (
        lambda s: cwtm_loss(s, teacher, target),
        lambda s: dkpp_loss(s, teacher, permutation),
    ):
        student = logits(4, 3).requires_grad_()
        assert torch.autograd.gradcheck(loss, student)
        loss(student).backward()
        assert teacher.grad is None and student.grad.any()


# -------------------------------------------------------------------------------------------- DKPP
def slow_dkpp(student, teacher, permutation):
    total = 0.0
    for s, t, order in zip(student.tolist(), teacher.tolist(), permutation.tolist()):
        p, q, top = softmax(t), softmax(s), t.index(max(t))
        rest = [c for c in range(len(t)) if c != top]
        target = list(p)
        for i, place in enumerate(order):
            target[rest[i]] = p[rest[place]]
        total -= sum(a * math.log(b) for a, b in zip(target, q))
    return total / len(student)


def test_dkpp_equals_the_loop_over_indices():
    student, teacher = logits(6, 5), logits(6, 5)
    teacher[0, [1, 3]] = 9.0  # the first on ties stays
    permutation = torch.rand(6, 4).argsort(1)
    assert dkpp_loss(student, teacher, permutation).item() == pytest.approx(
        slow_dkpp(student, teacher, permutation), rel=1e-12
    )


def test_the_identity_is_the_soft_cross_entropy():
    student, teacher = logits(6, 5), logits(6, 5)
    same = torch.arange(4).expand(6, 4)
    entropy = -(teacher.softmax(1) * teacher.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(
        dkpp_loss(student, teacher, same), kd_loss(student, teacher, 1.0) + entropy
    )


def test_fresh_permutations_keep_the_greatest_and_take_every_order():
    teacher = torch.tensor([[0.0, 3.0, 1.0, 2.0]], dtype=F64).expand(4000, 4)
    student = torch.zeros(4000, 4, dtype=F64, requires_grad=True)
    dkpp_loss(student, teacher).backward()
    # the gradient is (softmax - target) / B
    target = 0.25 - 4000 * student.grad
    torch.testing.assert_close(target[:, 1], teacher.softmax(1)[:, 1])
    p = teacher[0].softmax(0)[[0, 2, 3]]
    orders = {tuple(round(x, 6) for x in row) for row in target[:, [0, 2, 3]].tolist()}
    assert len(orders) == 6 and all(
        sorted(o) == pytest.approx(p.tolist(), abs=1e-5) for o in orders
    )
    torch.testing.assert_close(target[:, [0, 2, 3]].mean(0), p.mean().expand(3), rtol=0.1, atol=0)


def test_the_module_draws_fresh_permutations_at_each_call():
    student, teacher, module = logits(50, 4), logits(50, 4), DKPPLoss()
    assert module(student, teacher) != module(student, teacher)
    torch.manual_seed(1)
    found = module(student, teacher)
    torch.manual_seed(1)
    assert found == dkpp_loss(student, teacher)


def test_a_class_that_the_teacher_masks_takes_no_part_in_a_fresh_permutation():
    student, teacher = logits(200, 5), logits(200, 5)
    for z in (student, teacher):
        z[:, [1, 3]] = -math.inf
    student.requires_grad_()
    loss = dkpp_loss(student, teacher)
    loss.backward()
    assert loss.isfinite() and (student.grad[:, [1, 3]] == 0).all()
    target = student.detach().softmax(1) - 200 * student.grad
    assert (target[:, [1, 3]] == 0).all()
    torch.testing.assert_close(target.sort(1).values, teacher.softmax(1).sort(1).values)
    assert not torch.allclose(target, teacher.softmax(1))


# ------------------------------------------------------------------------------------------- edges
def test_without_rows_it_is_a_connected_zero():
    none = torch.zeros(0, 4, requires_grad=True)
    for loss in (
        cwtm_loss(none, none, torch.zeros(0, dtype=torch.long)),
        dkpp_loss(none, none),
        cwtm_loss(none[:0], none, torch.zeros(0, dtype=torch.long)),
    ):
        assert loss == 0
        loss.backward()
    student = logits(3, 4).requires_grad_()
    loss = cwtm_loss(student, logits(3, 4), torch.full((3,), -100))
    loss.backward()
    assert loss == 0 and not student.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    student, teacher, target = logits(4, 5).to(dtype), logits(4, 5).to(dtype), torch.arange(4)
    permutation = torch.rand(4, 4).argsort(1)
    for loss, rest in ((cwtm_loss, target), (dkpp_loss, permutation)):
        found = loss(student, teacher, rest)
        assert found.dtype is torch.float32 and found == loss(
            student.float(), teacher.float(), rest
        )


def test_wrong_shapes_are_named():
    rows, target = torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"student \(3, 4\) and teacher \(3, 5\)"):
        cwtm_loss(rows, torch.zeros(3, 5), target)
    with pytest.raises(ValueError, match=r"target \(2,\) and student \(3, 4\)"):
        cwtm_loss(rows, rows, target[:2])
    with pytest.raises(ValueError, match=r"two classes or more, got student \(3, 1\)"):
        dkpp_loss(rows[:, :1], rows[:, :1])
    with pytest.raises(ValueError, match=r"permutation \(3, 4\) and student \(3, 4\)"):
        dkpp_loss(rows, rows, torch.zeros(3, 4, dtype=torch.long))


# ---------------------------------------------------------------------------------------- ensemble
class Given(nn.Module):
    def __init__(self, row):
        super().__init__()
        self.row = nn.Parameter(torch.tensor(row))

    def forward(self, x):
        return self.row.expand(len(x), -1)


def test_an_ensemble_is_the_mean_of_probabilities_not_of_logits(tmp_path):
    rows = [[4.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.5, 0.0]]
    ensemble = Ensemble([Given(row) for row in rows])
    expected = [sum(p) / 3 for p in zip(*map(softmax, rows))]
    torch.testing.assert_close(
        ensemble(torch.zeros(2, 1)).softmax(1), torch.tensor([expected, expected])
    )
    # the mean of the logits says class 0, that of the probabilities too here, but with another p
    assert abs(softmax([sum(z) / 3 for z in zip(*rows)])[0] - expected[0]) > 0.05


def test_an_ensemble_takes_its_members_from_files_and_is_saved_as_one_model(tmp_path):
    members = [nn.Linear(3, 4) for _ in range(2)]
    paths = [str(tmp_path / f"generation{k}.pth") for k in range(2)]
    for member, path in zip(members, paths):
        torch.save(member.state_dict(), path)
    x = torch.randn(5, 3)
    found = Ensemble([nn.Linear(3, 4), nn.Linear(3, 4)], checkpoints=paths)
    torch.testing.assert_close(found(x), Ensemble(members)(x))
    other = Ensemble([nn.Linear(3, 4), nn.Linear(3, 4)])
    other.load_state_dict(found.state_dict())
    torch.testing.assert_close(other(x), found(x))


def test_an_ensemble_says_what_does_not_fit():
    with pytest.raises(ValueError, match="one member or more"):
        Ensemble([])
    with pytest.raises(ValueError, match="2 members and 1 checkpoints"):
        Ensemble([nn.Linear(1, 2), nn.Linear(1, 2)], checkpoints=["a.pth"])
    with pytest.raises(ValueError, match=r"\[\(4, 2\), \(4, 3\)\]"):
        Ensemble([nn.Linear(1, 2), nn.Linear(1, 3)])(torch.zeros(4, 1))
