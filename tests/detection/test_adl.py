"""The ADL loss against a loop over indices and against the release's kernel, its gradient, its
laws, and what it costs.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.core import Distiller
from kdtasks.detection import ADLLoss, adl, adl_kernel, adl_loss
from tests.live_bytes import LiveBytes
from tests.ranks import two_ranks

F64 = torch.float64
RELEASED = {"gamma": 2.0, "beta": 1.0, "power": 1.8, "base": "ce", "alpha": 0.5}
SETTINGS = [
    {},
    {"gamma": 0.0},
    {"gamma": 0.5},
    {"gamma": 2.0, "beta": 0.3},
    {"gamma": 1.7, "beta": 0.0},
    {"power": 1.0},
    {"base": "ce"},
    {"base": "ce", "gamma": 3.0, "beta": 0.5},
    {"base": "ce", "alpha": 0.25},
    RELEASED,
    {"base": "ce", "alpha": 0.9, "gamma": 0.5, "beta": 2.5},
    {"base": "ce", "alpha": 0.0},
    {"base": "ce", "alpha": 1.0},
]


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def logits(*shape, dtype=F64):
    return (2.5 * torch.randn(*shape, dtype=F64) - 1.5).to(dtype)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def slow(
    student,
    teacher,
    gamma=1.0,
    beta=1.5,
    power=1.8,
    base="kl",
    alpha=None,
    valid=None,
    normalizer=None,
):
    """Entry by entry, as the paper writes it."""
    total = mass = 0.0
    for place in torch.cartesian_prod(*map(torch.arange, student.shape)).tolist():
        p, q = sigmoid(student[tuple(place)].item()), sigmoid(teacher[tuple(place)].item())
        mass += q**power
        if valid is not None and not valid[tuple(place[:-1])]:
            continue
        kl = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        entropy = -q * math.log(q) - (1 - q) * math.log(1 - q)
        if base == "ce":
            yes, no = (1, 1) if alpha is None else (alpha, 1 - alpha)
            what = -(yes * q * math.log(p) + no * (1 - q) * math.log(1 - p))
        else:
            what = kl
        total += (1 - math.exp(-(kl + beta * entropy))) ** gamma * what
    return total / (max(mass, 1) if normalizer is None else normalizer)


def slow_release(student, teacher, labels, gamma=2.0, alpha=0.5, beta_code=0.0, theta=1.8):
    """The loss and gradient of sigmoid_adaptive_distillation_loss_op.cu, by hand: D = CE -
    beta_code · entropy.
    """
    total, mass, gradient = 0.0, 0.0, torch.zeros_like(student)
    for a in range(student.shape[0]):
        for k in range(student.shape[1]):
            p, q = sigmoid(student[a, k].item()), sigmoid(teacher[a, k].item())
            mass += q**theta
            if labels[a] == -1:
                continue
            cross = -(q * math.log(p) + (1 - q) * math.log(1 - p))
            entropy = -(q * math.log(q) + (1 - q) * math.log(1 - q))
            far = 1 - math.exp(-(cross - beta_code * entropy))
            what = -(alpha * q * math.log(p) + (1 - alpha) * (1 - q) * math.log(1 - p))
            total += far**gamma * what
            of_what = -alpha * q * (1 - p) + (1 - alpha) * (1 - q) * p
            gradient[a, k] = (
                gamma * far ** (gamma - 1) * (1 - far) * (p - q) * what + far**gamma * of_what
            )
    return total / max(1, mass), gradient / max(1, mass)


def by_autograd(
    student, teacher, gamma=1.0, beta=1.5, power=1.8, base="kl", alpha=None, valid=None
):
    """The same in torch, its gradient taken by autograd."""
    p, q = torch.sigmoid(student), torch.sigmoid(teacher)
    log_p, log_no = F.logsigmoid(student), F.logsigmoid(-student)
    entropy = -q * F.logsigmoid(teacher) - (1 - q) * F.logsigmoid(-teacher)
    cross = -q * log_p - (1 - q) * log_no
    yes, no = (1, 1) if alpha is None else (alpha, 1 - alpha)
    what = cross - entropy if base == "kl" else -(yes * q * log_p + no * (1 - q) * log_no)
    entries = (1 - torch.exp(-(cross - entropy + beta * entropy))) ** gamma * what
    assert p.shape == entries.shape
    return (entries if valid is None else entries[valid]).sum() / (q**power).sum().clamp(min=1)


def gradient(loss, student, *rest, **options):
    student = student.detach().clone().requires_grad_()
    value = loss(student, *rest, **options)
    return value.detach(), *torch.autograd.grad(value, student)


# -------------------------------------------------------------------------------------- the formula
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(6, 4), (1, 3), (2, 3, 5), (5, 1)])
def test_it_equals_the_loop_over_indices(settings, shape):
    student, teacher, valid = logits(*shape), logits(*shape), torch.rand(shape[:-1]) > 0.3
    for more in ({}, {"valid": valid}, {"normalizer": 7.0}, {"valid": valid, "normalizer": 0.25}):
        expected = slow(student, teacher, **settings, **more)
        assert adl_loss(student, teacher, **settings, **more).item() == pytest.approx(
            expected, rel=1e-11
        )


def test_the_defaults_are_the_papers():
    student, teacher = logits(3, 5), logits(3, 5)
    assert (
        adl_loss(student, teacher).item()
        == adl_loss(
            student,
            teacher,
            gamma=1.0,
            beta=1.5,
            power=1.8,
            base="kl",
            alpha=None,
            valid=None,
            normalizer=None,
        ).item()
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_gradient_is_autograds_through_the_weight_too(settings):
    student, teacher, valid = logits(7, 5), logits(7, 5), torch.rand(7) > 0.3
    for more in ({}, {"valid": valid}):
        _, expected = gradient(by_autograd, student, teacher, **settings, **more)
        torch.testing.assert_close(
            gradient(adl_loss, student, teacher, **settings, **more)[1],
            expected,
            rtol=1e-9,
            atol=1e-15,
        )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradcheck(settings):
    teacher, valid = logits(3, 4), torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(
        lambda s: adl_loss(s, teacher, **settings), logits(3, 4).requires_grad_()
    )
    assert torch.autograd.gradcheck(
        lambda s: adl_loss(s, teacher, **settings, valid=valid, normalizer=0.1),
        logits(3, 4).requires_grad_(),
    )


def by_terms(student, teacher, power=1.8, valid=None, normalizer=None, **settings):
    """The loss from the lines that the paper's file shows."""
    terms = adl.adl_terms(student, teacher, **settings)
    if normalizer is None:
        normalizer = teacher.sigmoid().pow(power).sum().clamp(min=1)
    return (terms if valid is None else terms[valid]).sum() / normalizer


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("apart", [3.0, 1e-2])
def test_the_kernel_equals_the_formula(settings, apart):
    teacher, valid = 2 * logits(40, 20), torch.rand(40) > 0.3
    student = teacher + apart * torch.randn(40, 20, dtype=F64)
    # the formula's own digits, where it takes a difference of nearly equal numbers
    tight = 1e-12 if apart > 1 or settings.get("beta") != 0.0 else 1e-11
    for more in ({}, {"valid": valid}, {"normalizer": 3.0}):
        value, pull = gradient(adl_loss, student, teacher, **settings, **more)
        expected, expected_pull = gradient(by_terms, student, teacher, **settings, **more)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        assert (pull - expected_pull).norm() < tight * expected_pull.norm()


@pytest.mark.parametrize("settings", [*SETTINGS, {"power": 0.0}], ids=str)
def test_the_kernel_equals_the_formula_where_logits_are_infinite(settings):
    """Also which values are infinite or NaN; the gradient where the loss is finite."""
    edges = torch.tensor([-math.inf, -300.0, -3.0, 0.0, 2.0, 300.0, math.inf], dtype=F64)
    for student, teacher in torch.cartesian_prod(edges, edges)[:, :, None, None]:
        value, pull = gradient(adl_loss, student, teacher, **settings)
        expected, expected_pull = gradient(by_terms, student, teacher, **settings)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-290, equal_nan=True)
        if value.isfinite():
            torch.testing.assert_close(pull, expected_pull, rtol=1e-12, atol=1e-15)


def test_terms_and_weight_are_the_entries_of_the_sum():
    student, teacher = logits(3, 4), logits(3, 4)
    kl, entropy = adl.kl_and_entropy(student, teacher)
    for i in range(3):
        for k in range(4):
            one = student[i, k].view(1, 1), teacher[i, k].view(1, 1)
            q, p = one[1].sigmoid().item(), one[0].sigmoid().item()
            here = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
            assert kl[i, k].item() == pytest.approx(here, rel=1e-10)
            here = -q * math.log(q) - (1 - q) * math.log(1 - q)
            assert entropy[i, k].item() == pytest.approx(here, rel=1e-12)
            term = adl_loss(*one, gamma=2.0, beta=0.7, normalizer=1.0)
            weight = adl.adl_weight(kl, entropy, 2.0, 0.7)[i, k]
            assert (weight * kl[i, k]).item() == pytest.approx(term.item(), rel=1e-10)


def test_gamma_nought_is_the_plain_divergence():
    student, teacher = logits(5, 3), logits(5, 3)
    q, p = teacher.sigmoid(), student.sigmoid()
    value, pull = gradient(adl_loss, student, teacher, gamma=0.0, normalizer=1.0)
    cross = F.binary_cross_entropy(p, q, reduction="sum") - F.binary_cross_entropy(
        q, q, reduction="sum"
    )
    torch.testing.assert_close(value, cross, rtol=1e-12, atol=0)
    torch.testing.assert_close(pull, p - q, rtol=1e-11, atol=0)


def test_kl_is_zero_at_equality_and_the_releases_cross_entropy_is_not():
    teacher = logits(6, 4)
    value, pull = gradient(adl_loss, teacher, teacher)
    assert value == 0 and not pull.any()
    value, pull = gradient(adl_loss, teacher, teacher, **RELEASED)
    # alpha ½: still no pull at equality
    assert value > 0.01 and pull.abs().max() == 0
    value, pull = gradient(adl_loss, teacher, teacher, base="ce", alpha=0.25)
    # another alpha pulls away from the teacher
    assert pull.abs().max() > 1e-3
    for _ in range(10):
        assert adl_loss(logits(2, 3), teacher[:2, :3]) > 0


def test_an_entry_weighs_more_where_the_teacher_is_unsure_and_where_the_student_is_far():
    def weight(student, teacher, beta):
        args = torch.tensor([[student]], dtype=F64), torch.tensor([[teacher]], dtype=F64)
        return (
            adl_loss(*args, beta=beta, normalizer=1.0) / adl_loss(*args, gamma=0.0, normalizer=1.0)
        ).item()

    assert weight(3.0, 0.0, 1.5) > weight(3.0, 0.0, 0.0) and weight(4.0, 0.0, 0.0) > weight(
        1.0, 0.0, 0.0
    )
    # there only entropy weighs
    assert weight(1e-3, 0.0, 1.5) == pytest.approx(1 - math.exp(-1.5 * math.log(2)), rel=1e-5)


def test_turning_both_logits_round_changes_the_sign_of_the_gradient_only():
    student, teacher = logits(6, 5), logits(6, 5)
    for settings in ({}, {"gamma": 2.0, "base": "ce"}):
        (a, up), (b, down) = (
            gradient(adl_loss, *pair, normalizer=1.0, **settings)
            for pair in ((student, teacher), (-student, -teacher))
        )
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
        torch.testing.assert_close(up, -down, rtol=1e-14, atol=0)
    (a, up), (b, down) = (
        gradient(adl_loss, s * student, s * teacher, base="ce", alpha=alpha, normalizer=1.0)
        for s, alpha in ((1, 0.3), (-1, 0.7))
    )
    torch.testing.assert_close(a, b, rtol=1e-13, atol=0)
    torch.testing.assert_close(up, -down, rtol=1e-12, atol=1e-15)


def test_anchors_and_classes_permute_together():
    student, teacher, valid = logits(6, 5), logits(6, 5), torch.rand(6) > 0.3
    rows, columns = torch.randperm(6), torch.randperm(5)
    (a, before), (b, after) = (
        gradient(adl_loss, student, teacher, valid=valid),
        gradient(adl_loss, student[rows][:, columns], teacher[rows][:, columns], valid=valid[rows]),
    )
    torch.testing.assert_close(a, b, rtol=1e-13, atol=0)
    torch.testing.assert_close(before[rows][:, columns], after, rtol=1e-13, atol=0)
    # but they belong together
    assert (adl_loss(student[rows], teacher) - a).abs() > 1e-3


def test_leading_axes_are_anchors_and_layout_does_not_matter():
    student, teacher, valid = logits(2, 3, 4, 5), logits(2, 3, 4, 5), torch.rand(2, 3, 4) > 0.3
    value, pull = gradient(adl_loss, student, teacher, valid=valid)
    flat = gradient(adl_loss, student.view(24, 5), teacher.view(24, 5), valid=valid.view(24))
    assert value == flat[0] and torch.equal(pull.view(24, 5), flat[1])
    strided = student.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0).requires_grad_()
    loss = adl_loss(strided, teacher.transpose(0, 1).contiguous().transpose(0, 1), valid=valid)
    assert (
        not strided.is_contiguous()
        and loss == value
        and torch.equal(torch.autograd.grad(loss, strided)[0], pull)
    )


# -------------------------------------------------------------------------------- normalizer, valid
def test_the_normalizer_counts_ignored_anchors_and_is_at_least_one():
    student, teacher, valid = logits(8, 4), logits(8, 4), torch.tensor([True] * 3 + [False] * 5)
    mass = (teacher.sigmoid() ** 1.8).sum()
    assert mass > 1
    torch.testing.assert_close(
        adl_loss(student, teacher, valid=valid),
        adl_loss(student[:3], teacher[:3], normalizer=1.0) / mass,
        rtol=1e-12,
        atol=0,
    )
    background = teacher - 20
    torch.testing.assert_close(
        adl_loss(student, background), adl_loss(student, background, normalizer=1.0), rtol=0, atol=0
    )


def test_levels_are_concatenated_or_share_a_normalizer():
    student, teacher = logits(9, 4), logits(9, 4)
    mass = (teacher.sigmoid() ** 1.8).sum().requires_grad_()
    levels = sum(
        adl_loss(s, t, normalizer=mass) for s, t in zip(student.split(4), teacher.split(4))
    )
    torch.testing.assert_close(adl_loss(student, teacher), levels.detach(), rtol=1e-13, atol=0)
    # a normalizer is a number
    assert not levels.requires_grad


@pytest.mark.parametrize("settings", [{}, RELEASED, {"gamma": 0.5}, {"gamma": 0.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_what_is_not_valid_may_hold_anything(settings, dtype):
    student, teacher, valid = (
        logits(7, 4, dtype=dtype),
        logits(7, 4, dtype=dtype),
        torch.tensor([True, False] * 3 + [True]),
    )
    _, expected = gradient(adl_loss, student, teacher, **settings, valid=valid, normalizer=2.0)
    clean = adl_loss(student, teacher, **settings, valid=valid, normalizer=2.0)
    for s, t in (
        (math.nan, math.nan),
        (math.inf, math.inf),
        (-math.inf, math.inf),
        (math.inf, math.nan),
        (1e38, -math.inf),
    ):
        dirty = [z.masked_fill(~valid[:, None], fill) for z, fill in ((student, s), (teacher, t))]
        value, pull = gradient(adl_loss, *dirty, **settings, valid=valid, normalizer=2.0)
        assert value == clean and torch.equal(pull, expected) and not pull[~valid].any()
        # a NaN of the teacher's is not counted either
        assert adl_loss(*dirty, **settings, valid=valid).isfinite()
    poisoned = teacher.clone()
    # but a valid NaN is not hidden
    poisoned[0, 0] = math.nan
    assert (
        adl_loss(student, poisoned, valid=valid).isnan()
        and adl_loss(student, poisoned, normalizer=1.0).isnan()
    )


def test_all_or_none_valid():
    student, teacher = logits(5, 3), logits(5, 3)
    assert adl_loss(student, teacher, valid=torch.ones(5, dtype=torch.bool)) == adl_loss(
        student, teacher
    )
    value, pull = gradient(adl_loss, student, teacher, valid=torch.zeros(5, dtype=torch.bool))
    assert value == 0 and not pull.any()


# ------------------------------------------------------------------------------------------- module
def test_the_released_preset_is_the_kernel_of_the_release():
    student, teacher, labels = logits(12, 5), logits(12, 5), torch.randint(-1, 3, (12,))
    assert (labels == -1).any()
    expected, pull = slow_release(student, teacher, labels)
    value, found = gradient(ADLLoss("released"), student, teacher, labels != -1)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(found, pull, rtol=1e-9, atol=1e-15)
    for beta_code in (0.0, 0.4, 1.0):  # its beta is 1 less ours
        expected, _ = slow_release(student, teacher, labels, beta_code=beta_code, alpha=0.3)
        value = ADLLoss("released", beta=1 - beta_code, alpha=0.3)(student, teacher, labels != -1)
        assert value.item() == pytest.approx(expected, rel=1e-11)


def test_the_papers_preset_is_the_default_and_an_argument_replaces_it():
    student, teacher, valid = logits(6, 4), logits(6, 4), torch.rand(6) > 0.3
    assert ADLLoss().settings == {
        "base": "kl",
        "alpha": None,
        "gamma": 1.0,
        "beta": 1.5,
        "power": 1.8,
    }
    assert ADLLoss()(student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-12)
    assert ADLLoss()(student, teacher, valid) == adl_loss(student, teacher, valid=valid)
    for given in (
        {"gamma": 0.0},
        {"beta": 0.0},
        {"power": 0.0},
        {"base": "ce"},
        {"base": "ce", "alpha": 0.0},
    ):
        assert (
            ADLLoss(**given)(student, teacher)
            == adl_loss(student, teacher, **given)
            != adl_loss(student, teacher)
        )
    assert ADLLoss("released", gamma=1.0).settings == RELEASED | {"gamma": 1.0}
    assert ADLLoss("released", base="kl").settings == RELEASED | {"base": "kl", "alpha": None}
    assert repr(ADLLoss()) == "ADLLoss(base='kl', gamma=1.0, beta=1.5, power=1.8)"
    # and no object changed them
    assert adl.PRESETS["released"] == RELEASED


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="no preset 'release'; did you mean 'released'?"):
        ADLLoss("release")


def on_a_rank(rank: int, heads: list[tuple]) -> list:
    # not the same number of anchors
    mine = slice(0, 5) if rank == 0 else slice(5, None)
    return [gradient(ADLLoss(), *(tensor[mine] for tensor in head)) for head in heads]


def test_two_processes_equal_one():
    """Losses and gradients averaged over the ranks, as DDP does, are those of one process with all
    anchors: with a normalizer above 1, and one that is clamped to 1.
    """
    heads = []
    for shift in (0, -9):
        student, teacher, valid = logits(12, 4), logits(12, 4) + shift, torch.rand(12) > 0.3
        student[0], teacher[5:] = 3.0, teacher[5:] + 3  # ranks of unlike sums
        assert ((teacher.sigmoid() ** 1.8).sum() < 1) == (shift < 0)
        heads.append((student, teacher, valid))
    found = two_ranks(on_a_rank, heads)
    for head, *ranks in zip(heads, *found):
        value, pull = gradient(ADLLoss(), *head)
        torch.testing.assert_close((ranks[0][0] + ranks[1][0]) / 2, value, rtol=1e-12, atol=0)
        together = torch.cat([pull for _, pull in ranks]) / 2
        torch.testing.assert_close(together, pull, rtol=1e-12, atol=0)
    # a rank by itself would say something else
    alone = ADLLoss()(*(tensor[:5] for tensor in heads[0]))
    assert (alone - found[0][0][0]).abs() > 1e-3 * alone


def test_through_the_distiller_a_student_learns_the_teachers_answers():
    x, teacher, student = torch.randn(200, 6), nn.Linear(6, 8), nn.Linear(6, 8)
    distiller = Distiller(
        student, {"teacher": teacher}, {"loss_adl": (ADLLoss(), ("student", "teacher"), 1.0)}
    )
    distiller.build(x)
    before, optimizer, losses = (
        teacher.weight.clone(),
        torch.optim.SGD(distiller.parameters(), lr=10.0),
        [],
    )
    for _ in range(100):
        loss = distiller(x)["loss_adl"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0] and torch.equal(teacher.weight, before)
    assert ((student(x) > 0) == (teacher(x) > 0)).float().mean() > 0.97


# ----------------------------------------------------------------------------------------- autograd
def test_the_teacher_receives_no_gradient():
    student, teacher = logits(3, 4).requires_grad_(), logits(3, 4).requires_grad_()
    adl_loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()
    assert not adl_loss(student.detach(), teacher).requires_grad


def test_backward_twice_adds_the_same_gradient_again():
    student, teacher = logits(5, 4).requires_grad_(), logits(5, 4)
    loss = adl_loss(student, teacher)
    loss.backward(retain_graph=True)
    once = student.grad.clone()
    (3 * loss).backward()
    torch.testing.assert_close(student.grad, 4 * once, rtol=1e-13, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_the_gradient_returned_is_the_callers_to_change():
    student, teacher = logits(5, 4).requires_grad_(), logits(5, 4)
    loss = adl_loss(student, teacher)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    kept = first.clone()
    first.zero_()
    assert torch.equal(torch.autograd.grad(loss, student)[0], kept)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_gradient_has_derivatives(settings):
    student, teacher, valid = logits(3, 4), logits(3, 4), torch.tensor([True, False, True])
    for more in ({}, {"valid": valid, "normalizer": 0.1}):
        assert torch.autograd.gradgradcheck(
            lambda s, more=more: adl_loss(s, teacher, **settings, **more), student.requires_grad_()
        )
    # through what the logits come from, and the gradient itself is the same
    weight = logits(4, 4).requires_grad_()
    loss = adl_loss((student.detach() @ weight).half(), teacher, **settings)
    (once,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (again,) = torch.autograd.grad(loss, weight, create_graph=True)
    torch.testing.assert_close(again.detach(), once, rtol=1e-5, atol=1e-7)
    assert torch.autograd.grad(again.square().sum(), weight)[0].any()


def test_without_gradient_the_value_is_the_same_and_none_is_kept():
    student, teacher = logits(5, 4).requires_grad_(), logits(5, 4)
    with torch.no_grad():
        value = adl_loss(student, teacher)
    assert not value.requires_grad and value == adl_loss(student, teacher).detach() == adl_loss(
        student.detach(), teacher
    )


def test_student_and_teacher_are_left_as_they_were():
    for settings in SETTINGS:
        student, teacher, valid = logits(5, 4), logits(5, 4), torch.rand(5) > 0.3
        copies = [z.clone() for z in (student, teacher, valid)]
        gradient(adl_loss, student.requires_grad_(), teacher, valid=valid, **settings)
        assert all(map(torch.equal, copies, (student, teacher, valid)))


# ---------------------------------------------------------------------------------- precision, size
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("apart", [3.0, 0.1, 0.01])
def test_float32_is_within_1e_5_of_float64(settings, apart):
    if apart < 1 and settings.get("beta") == 0.0:
        # A is a difference of the two alone: 1e-5 · digits
        apart = 0.1
    teacher = logits(200, 20, dtype=torch.float32)
    student = teacher + apart * torch.randn(200, 20)
    (exact, exact_pull), (value, pull) = (
        gradient(adl_loss, student.to(dtype), teacher.to(dtype), **settings)
        for dtype in (F64, torch.float32)
    )
    assert value.dtype is torch.float32 and abs(value.item() / exact.item() - 1) < 1e-5
    assert (pull - exact_pull).norm() < 1e-5 * exact_pull.norm()


def test_each_entrys_gradient_keeps_its_digits_near_the_teacher():
    """p - q of two rounded sigmoids has 3 digits left here, fewer where both are near 1."""
    teacher = torch.linspace(-12, 12, 97)[:, None]
    student = teacher + 1e-3
    _, exact = gradient(adl_loss, student.double(), teacher.double())
    _, pull = gradient(adl_loss, student, teacher)
    assert ((pull - exact) / exact).abs().max() < 1e-5


@pytest.mark.parametrize(
    "dtype, result",
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (F64, F64),
    ],
)
@pytest.mark.parametrize("settings", [{}, RELEASED], ids=["paper", "released"])
def test_half_precision_is_raised_and_float64_stays(dtype, result, settings):
    student, teacher = logits(50, 6, dtype=dtype), logits(50, 6, dtype=dtype)
    value, pull = gradient(adl_loss, student, teacher, **settings)
    exact, exact_pull = gradient(adl_loss, student.double(), teacher.double(), **settings)
    assert value.dtype is result and pull.dtype is dtype
    # the arithmetic is not half
    assert value.item() == pytest.approx(exact.item(), rel=1e-14 if dtype is F64 else 1e-6)
    if dtype is not F64:
        torch.testing.assert_close(
            pull, exact_pull.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-7
        )
    assert ADLLoss(**settings)(student, teacher).dtype is result


def test_a_cached_half_teacher_beside_a_float_student():
    student, teacher = logits(4, 5, dtype=torch.float32), logits(4, 5, dtype=torch.float16)
    assert torch.equal(adl_loss(student, teacher), adl_loss(student, teacher.float()))
    assert (
        adl_loss(student.double(), teacher).dtype
        is adl_loss(student, teacher.double()).dtype
        is F64
    )


def test_the_gradient_of_half_logits_does_not_pass_through_half_before_it_is_scaled():
    # raw gradient: 1e-11
    student, teacher = torch.full((1, 1), -14.0).half(), torch.full((1, 1), -13.0).half()
    student.requires_grad_()
    (adl_loss(student, teacher) * 2.0**24).backward()
    exact = torch.autograd.grad(
        adl_loss(s := student.detach().double().requires_grad_(), teacher.double()) * 2.0**24, s
    )[0]
    assert student.grad.item() == pytest.approx(exact.item(), rel=1e-2) and exact.abs() > 1e-5


def test_under_autocast_it_is_computed_in_float32():
    student, teacher = logits(4, 5, dtype=torch.float32), logits(4, 5, dtype=torch.float32)
    for settings in ({}, {"base": "ce", "alpha": 0.3}):
        with torch.autocast("cpu", torch.bfloat16):
            inside = gradient(adl_loss, student, teacher, **settings)
        assert all(map(torch.equal, inside, gradient(adl_loss, student, teacher, **settings)))


EDGES = [0.0, -0.0, 1e-30, 5.0, 20.0, 39.9, 40.1, 80.0, 90.0, 110.0, 1e4, 1e20]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_finite_logits_give_a_nan(settings, dtype):
    edges = torch.tensor(
        [s * z for z in [*EDGES, float(torch.finfo(dtype).max)] for s in (1, -1)], dtype=dtype
    )
    student, teacher = (z.reshape(-1, 1) for z in torch.meshgrid(edges, edges, indexing="ij"))
    for i in range(len(student)):
        value, pull = gradient(adl_loss, student[i : i + 1], teacher[i : i + 1], **settings)
        assert value.isfinite() and value >= 0 and pull.isfinite().all(), (student[i], teacher[i])
    assert gradient(adl_loss, student, teacher, **settings)[1].isfinite().all()


@pytest.mark.parametrize("base", ["kl", "ce"])
def test_saturated_logits_have_the_value_of_the_limit(base):
    for dtype in (torch.float16, torch.float32, F64):
        student = torch.tensor([[1e4, -1e4, 1e4, -1e4, 0.0]], dtype=dtype)
        teacher = torch.tensor([[1e4, -1e4, -1e4, 1e4, 1e4]], dtype=dtype)
        value, pull = gradient(adl_loss, student, teacher, base=base, normalizer=1.0)
        # 1 - exp(-log 2) of the last
        weight = 0.5
        assert value.item() == pytest.approx(
            2 * float(student[0, 0]) + weight * math.log(2), rel=1e-5
        )
        expected = [0, 0, 1, -1, -0.5 * (0.5 * math.log(2) + weight)]
        torch.testing.assert_close(
            pull, torch.tensor([expected], dtype=dtype), rtol=1e-3, atol=1e-12
        )
        for gamma in (0.0, 1.0):
            value, pull = gradient(adl_loss, teacher, teacher, gamma=gamma)
            # also where both are past the bound
            assert value == 0 and not pull.any()


def test_the_naive_form_and_the_kernels_form_are_nan_there():
    student, teacher = (
        torch.tensor([[20.0, -110.0, 3.0]]).requires_grad_(),
        torch.tensor([[20.0, 20.0, -110.0]]),
    )
    p, q = student.sigmoid(), teacher.sigmoid()
    entropy = q * q.log() + (1 - q) * (1 - q).log()
    naive = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    assert entropy.isnan().any() and naive.isnan().any()
    value, pull = gradient(adl_loss, student, teacher)
    assert value.isfinite() and pull.isfinite().all()
    near = logits(1000, 10, dtype=torch.float32)
    kl = F.binary_cross_entropy_with_logits(
        near + 1e-4, near.sigmoid(), reduction="none"
    ) - F.binary_cross_entropy_with_logits(near, near.sigmoid(), reduction="none")
    # a KL below 0, to a power
    assert (1 - torch.exp(-kl)).pow(1.5).isnan().any()
    value, pull = gradient(adl_loss, near + 1e-4, near, gamma=1.5, beta=0.0)
    assert value.isfinite() and pull.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (5, 0), (0, 0)])
def test_an_empty_batch_is_a_zero_that_backpropagates(shape):
    for loss in (adl_loss, ADLLoss("released")):
        student = torch.zeros(shape, requires_grad=True)
        value = loss(student, torch.zeros(shape), valid=torch.zeros(shape[:-1], dtype=torch.bool))
        value.backward()
        assert value.item() == 0 and value.shape == () and student.grad.shape == shape


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize(
    "settings", [{}, RELEASED, {"gamma": 0.5}], ids=["paper", "released", "half"]
)
def test_chunks_do_not_show(monkeypatch, rows, settings):
    student, teacher, valid = logits(rows, 5), logits(rows, 5), torch.rand(rows) > 0.3
    whole = gradient(adl_loss, student, teacher, valid=valid, **settings)
    # 8, 8 and 1 rows at a time
    for chunk in (40, 44, 5, 3, 1):
        monkeypatch.setitem(adl_kernel.CHUNK, "cpu", chunk)
        value, pull = gradient(adl_loss, student, teacher, valid=valid, **settings)
        torch.testing.assert_close(value, whole[0], rtol=1e-13, atol=0)
        # vector and scalar kernels round apart
        torch.testing.assert_close(pull, whole[1], rtol=1e-11, atol=1e-18)


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_the_real_chunk_length_and_its_neighbours(more):
    rows = adl_kernel.CHUNK["cpu"] // 80 + more
    student, teacher = logits(2 * rows, 80), logits(2 * rows, 80)
    value, pull = gradient(adl_loss, student, teacher)
    expected, expected_pull = gradient(by_autograd, student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(pull, expected_pull, rtol=1e-8, atol=1e-18)


@pytest.mark.parametrize("settings", [{}, RELEASED], ids=["paper", "released"])
def test_memory_is_one_tensor_of_its_size_beside_the_gradient(settings):
    student, teacher = torch.randn(100_000, 80).requires_grad_(), torch.randn(100_000, 80)
    size = student.numel() * student.element_size()
    with LiveBytes() as plain:
        torch.autograd.grad(by_autograd(student, teacher, **settings), student)
    # what is measured is really there
    assert plain.peak > 6 * size
    with LiveBytes() as live:
        (kept,) = torch.autograd.grad(adl_loss(student, teacher, **settings), student)
    assert 2 * size <= live.peak < 2.2 * size and live.now == kept.untyped_storage().nbytes()
    with torch.no_grad(), LiveBytes() as value_only:
        adl_loss(student, teacher, **settings)
    assert value_only.peak < 0.2 * size
    # until backward: a tensor, and the logits as they are
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        adl_loss(student, teacher, **settings)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    own = [x.untyped_storage().data_ptr() for x in (student, teacher)]
    assert set(own) < storages.keys()
    assert size <= sum(storages.values()) - 2 * size < 1.01 * size


# ------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "student, teacher",
    [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((3,), (3,)), ((), ()), ((2, 3, 4), (6, 4))],
)
def test_shapes_that_do_not_fit_are_in_the_message(student, teacher):
    for loss in (adl_loss, ADLLoss()):
        with pytest.raises(ValueError) as caught:
            loss(torch.zeros(student), torch.zeros(teacher))
        assert f"got student {student} and teacher {teacher}" in str(caught.value)


def test_a_valid_of_another_shape_or_type_is_in_the_message():
    student = torch.zeros(2, 3, 4)
    for valid, got in (
        (torch.ones(2, 3, 4) > 0, r"torch.bool \(2, 3, 4\)"),
        (torch.ones(3) > 0, r"torch.bool \(3,\)"),
        (torch.ones(2, 3), r"torch.float32 \(2, 3\)"),
    ):
        with pytest.raises(
            ValueError,
            match=rf"expected valid as bool \(2, 3\), got {got} with "
            r"student \(2, 3, 4\)",
        ):
            adl_loss(student, student, valid=valid)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"gamma": -0.5}, "gamma must be >= 0, got -0.5"),
        ({"gamma": math.nan}, "gamma must be >= 0, got nan"),
        ({"beta": -1.0}, "beta must be >= 0, got -1.0"),
        ({"power": -1}, "power must be >= 0, got -1"),
        ({"base": "kld"}, "no base 'kld'; did you mean 'kl'?"),
        ({"base": "mse"}, "no base 'mse'; there are 'kl', 'ce'"),
        (
            {"alpha": 0.5},
            "alpha=0.5 weighs the halves of the cross-entropy: give base='ce' with it, or no alpha",
        ),
        ({"base": "ce", "alpha": 1.5}, "alpha must lie in [0, 1], got 1.5"),
    ],
)
def test_settings_out_of_range_are_errors(given, message):
    for make in (
        lambda: adl_loss(torch.zeros(1, 2), torch.zeros(1, 2), **given),
        lambda: ADLLoss(**given),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        assert str(caught.value) == message


@pytest.mark.parametrize("normalizer", [0, -1.0, math.nan])
def test_a_normalizer_that_is_not_positive_is_an_error(normalizer):
    with pytest.raises(ValueError, match=f"normalizer must be > 0, got {normalizer}"):
        adl_loss(torch.zeros(1, 2), torch.zeros(1, 2), normalizer=normalizer)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_on_a_gpu_it_is_the_same_and_never_waits(settings):
    student, teacher, valid = (
        logits(30_000, 80, dtype=torch.float32),
        logits(30_000, 80, dtype=torch.float32),
        torch.rand(30_000) > 0.3,
    )
    expected, expected_pull = gradient(
        adl_loss, student.double(), teacher.double(), valid=valid, **settings
    )
    student, teacher, valid = (z.cuda() for z in (student, teacher, valid))
    torch.cuda.set_sync_debug_mode("error")
    try:
        value, pull = gradient(adl_loss, student, teacher, valid=valid, **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (pull.cpu() - expected_pull).norm() < 1e-5 * expected_pull.norm()
