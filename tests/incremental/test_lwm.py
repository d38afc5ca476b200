"""LwM: its losses against loops over pixels, its maps against one sample at a time, the short cut
against the definition.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.classification.models import digits_cnn, resnet8, wrn
from kdtasks.core import Teacher
from kdtasks.core.names import split_call
from kdtasks.incremental.lwm import (
    LwMDistiller,
    dead_share,
    grad_cam,
    lwm_attention_loss,
    lwm_distill,
    lwm_distill_bce,
)
from kdtasks.incremental.models import growing, head_of


def shorts(distiller):
    """Of which roles it is known whether the short cut is exact, and whether it is."""
    found = {role: distiller.facts(role).get("short") for role in ("student", *distiller.teachers)}
    return {role: short for role, short in found.items() if short is not None}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def rows(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


# ------------------------------------------------------------------------------------------- losses
def slow_cam(activation, gradient):
    found = torch.zeros(len(activation), *activation.shape[2:], dtype=activation.dtype)
    for n in range(len(activation)):
        for k in range(activation.shape[1]):
            found[n] += gradient[n, k].mean() * activation[n, k]
    return found.clamp(min=0)


def slow_attention(student, teacher):
    total = 0.0
    for s, t in zip(student.flatten(1).tolist(), teacher.flatten(1).tolist()):
        a, b = (math.sqrt(sum(v * v for v in z)) for z in (s, t))
        total += sum(abs(x / a - y / b) for x, y in zip(s, t))
    return total / len(student)


def test_grad_cam_is_a_weighted_sum_of_channels():
    activation, gradient = rows(3, 4, 2, 5), rows(3, 4, 2, 5)
    found = grad_cam(activation, gradient)
    torch.testing.assert_close(found, slow_cam(activation, gradient))
    assert (found == 0).any() and (found > 0).any()
    assert torch.autograd.gradcheck(
        grad_cam, (activation.requires_grad_(), gradient.requires_grad_())
    )


def test_attention_loss_is_the_l1_distance_of_unit_maps_and_blind_to_scale():
    student, teacher = rows(4, 3, 5).abs(), rows(4, 3, 5).abs()
    value = lwm_attention_loss(student, teacher)
    assert value.item() == pytest.approx(slow_attention(student, teacher), rel=1e-12)
    scales = torch.tensor([1e-6, 0.1, 7.0, 1e6], dtype=torch.float64).view(4, 1, 1)
    for pair in ((student * scales, teacher), (student, teacher * scales)):
        assert lwm_attention_loss(*pair).item() == pytest.approx(value.item(), rel=1e-12)
    assert lwm_attention_loss(student, 3 * student).item() < 1e-12
    corner = torch.zeros(1, 3, 5)
    corner[0, 0, 0] = 2.0
    # no pixel in common with it
    flat = torch.ones(1, 3, 5).index_fill(1, torch.tensor([0]), 0)
    assert lwm_attention_loss(corner, flat).item() == pytest.approx(1 + math.sqrt(10))
    assert torch.autograd.gradcheck(
        lambda s: lwm_attention_loss(s, teacher), student.requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_dead_map_counts_as_zeros_and_pulls_at_nothing(dtype):
    student, teacher = rows(3, 4, 4, dtype=dtype).abs(), rows(3, 4, 4, dtype=dtype).abs()
    student[1], teacher[2] = 0, 0
    leaf = student.clone().requires_grad_()
    value = lwm_attention_loss(leaf, teacher)
    value.backward()
    units = [F.normalize(z.double().flatten(1)) for z in (student, teacher)]
    assert value.item() == pytest.approx((units[0] - units[1]).abs().sum().item() / 3, rel=1e-5)
    assert (
        not leaf.grad[1].any()
        and leaf.grad[0].any()
        and leaf.grad[2].any()
        and leaf.grad.isfinite().all()
    )
    assert dead_share(student).item() == dead_share(teacher).item() == pytest.approx(1 / 3)
    assert dead_share(student[:0]) == 0 and dead_share(-student[:1]) == 0


def test_a_map_that_is_not_a_number_is_not_hidden():
    for side in (0, 1):
        for bad in (math.nan, math.inf):
            maps = [rows(2, 3, 3).abs(), rows(2, 3, 3).abs()]
            maps[side][1, 0, 2] = bad
            assert not lwm_attention_loss(*maps).isfinite()


def slow_distill(student, teacher, both):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        for zs, zt in zip(s, t):
            p, q = 1 / (1 + math.exp(-zs)), 1 / (1 + math.exp(-zt))
            total -= q * math.log(p) + both * (1 - q) * math.log(1 - p)
    return total / len(student)


@pytest.mark.parametrize("loss, both", [(lwm_distill_bce, 1), (lwm_distill, 0)])
def test_distillation_is_summed_over_classes_or_l_times_smaller(loss, both):
    student, teacher = rows(5, 4), rows(5, 4)
    expected = slow_distill(student, teacher, both)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    assert loss(student, teacher, reduction="mean").item() == pytest.approx(expected / 4, rel=1e-10)
    for reduction in ("sum", "mean"):
        assert torch.autograd.gradcheck(
            lambda s, r=reduction: loss(s, teacher, r), student.clone().requires_grad_()
        )
    same = teacher.clone().requires_grad_()
    loss(same, teacher).backward()
    # the half form pushes up only
    assert (same.grad.abs().max() < 1e-15) if both else (same.grad < 0).all()


@pytest.mark.parametrize("loss", [lwm_distill_bce, lwm_distill])
def test_distillation_of_saturated_logits_and_of_half_precision(loss):
    student = torch.tensor([[1e4, -1e4, 3.0]], dtype=torch.float16, requires_grad=True)
    value = loss(student, torch.tensor([[-1e4, 1e4, 3.0]], dtype=torch.float16))
    value.backward()
    assert (
        value.dtype == torch.float32
        and value.isfinite()
        and value > 9e3
        and student.grad.isfinite().all()
    )


ALL = [lwm_attention_loss, lwm_distill_bce, lwm_distill]


@pytest.mark.parametrize(
    "loss, shape",
    [(lwm_attention_loss, (0, 3, 3)), *((f, s) for f in ALL[1:] for s in ((0, 3), (3, 0)))],
)
def test_an_empty_batch_is_a_zero_that_backpropagates(loss, shape):
    student = rows(*shape).requires_grad_()
    value = loss(student, rows(*shape))
    value.backward()
    assert value == 0 and student.grad.shape == shape


@pytest.mark.parametrize("loss", ALL)
def test_the_teacher_receives_no_gradient(loss):
    shape = (3, 4, 4) if loss is lwm_attention_loss else (3, 4)
    student, teacher = rows(*shape).requires_grad_(), rows(*shape).requires_grad_()
    loss(student, teacher).backward()
    assert student.grad.any() and teacher.grad is None


@pytest.mark.parametrize(
    "loss, student, teacher",
    [
        (grad_cam, (2, 3, 4, 4), (2, 3, 4, 5)),
        (grad_cam, (2, 3, 4), (2, 3, 4)),
        (lwm_attention_loss, (2, 4, 4), (3, 4, 4)),
        (lwm_attention_loss, (2, 1, 4, 4), (2, 1, 4, 4)),
        (lwm_distill_bce, (2, 3), (2, 4)),
        (lwm_distill, (2,), (2,)),
    ],
)
def test_shapes_that_do_not_fit_are_in_the_message(loss, student, teacher):
    with pytest.raises(ValueError) as caught:
        loss(torch.zeros(student), torch.zeros(teacher))
    assert str(student) in str(caught.value) and str(teacher) in str(caught.value)


def test_an_unknown_reduction_is_an_error():
    with pytest.raises(ValueError, match="no reduction 'means'; did you mean 'mean'"):
        lwm_distill_bce(rows(2, 2), rows(2, 2), "means")


# ---------------------------------------------------------------------------------------- distiller
class TwoLayers(nn.Sequential):
    """Pooling, then a hidden layer: alpha is no row of the head's weights."""

    def __init__(self, between=None):
        super().__init__(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            *(between or [nn.Linear(6, 7), nn.Tanh()]),
            nn.Linear(7 if between is None else 6, 1),
        )


def in_place():
    """The tapped convolution is overwritten by the ReLU after it."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 1),
    )


def twice():
    """One ReLU runs after both convolutions."""
    relu = nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        relu,
        nn.Conv2d(6, 6, 3),
        relu,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 1),
    )


# network, A, whether the short cut is exact
NETWORKS = {
    "resnet8": (lambda: resnet8(in_channels=1, width=4), "layer3", True),
    "digits_cnn": (lambda: digits_cnn(width=4), "layer3", True),
    "lower": (lambda: digits_cnn(width=4), "layer2", False),
    "two_layers": (TwoLayers, "2", False),
    "wrn": (lambda: wrn(10, 1, in_channels=1), "layer3", False),
    # its dropout lies before A
    "wrn_dropout": (lambda: wrn(10, 1, in_channels=1, dropout=0.3), "relu", True),
    "in_place": (in_place, "0", False),
    "first_run": (twice, "1@0", False),
    "last_run": (twice, "1@-1", True),
    "dropout": (lambda: TwoLayers([nn.Dropout(0.001)]), "2", False),
    "no_dropout": (lambda: TwoLayers([nn.Dropout(0.0)]), "2", True),
    # fresh, in eval, it changes nothing
    "norm": (lambda: TwoLayers([nn.BatchNorm1d(6, eps=1e-15)]), "2", False),
}
SIZES = (3, 2, 2)


def pair(name, sizes=SIZES):
    """A student, and a teacher of the experiences before, in float64, that have seen something and
    find different classes.
    """
    network = NETWORKS[name][0]
    models = [growing(network(), s).double() for s in (sizes, sizes[:-1])]
    for model in models:
        model(rows(16, 1, 8, 8))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight)
            if isinstance(module, nn.BatchNorm1d):
                module.reset_running_stats()
        with torch.no_grad():
            blocks, logits = head_of(model)[1].blocks, model.eval()(rows(64, 1, 8, 8))
            for block, mean in zip(
                blocks, logits.mean(0).split([block.out_features for block in blocks])
            ):
                block.bias -= mean
        model.train()
    return models


PULL = {"loss_ad": (lwm_attention_loss, ("student.attention", "teacher.attention"))}


def lwm(name, losses=PULL, models=None, **options):
    student, teacher = models or pair(name)
    return LwMDistiller(
        student, {"teacher": teacher}, losses, attention=NETWORKS[name][1], **options
    )


def slow_map(model, path, x, old, chosen=None):
    """One sample at a time, in the model's mode; a hook hands on a copy of A."""
    maps, classes, (path, call) = [], [], split_call(path)
    for n in range(len(x)):
        seen = []

        def hand_on(module, inputs, output, seen=seen):
            seen.append(output if output.requires_grad else output.detach().requires_grad_())
            return seen[-1].clone()

        handle = model.get_submodule(path).register_forward_hook(hand_on)
        logits = model(x[n : n + 1])
        handle.remove()
        classes.append(int(logits[0, :old].argmax()) if chosen is None else int(chosen[n]))
        (gradient,) = torch.autograd.grad(logits[0, classes[-1]], seen[call or 0])
        maps.append(slow_cam(seen[call or 0].detach(), gradient))
    return torch.cat(maps), classes


@pytest.mark.parametrize("fast", [None, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_those_of_each_sample_by_itself(name, fast):
    """In eval, where samples do not mix; b is the student's, an old class, and the same for the
    teacher.
    """
    losses = PULL | {"chosen": (lambda b: b.double().sum(), "student.attended")}
    distiller, x = lwm(name, losses, fast=fast), rows(12, 1, 8, 8)
    student, teacher = distiller.model("student"), distiller.model("teacher")
    # new classes are always likelier
    head_of(student)[1].blocks[-1].bias.data.fill_(100.0)
    distiller.build(x)
    short = NETWORKS[name][2] and fast is None
    assert shorts(distiller) == {
        "student": short,
        "teacher": short or (fast is None and name in ("dropout", "norm")),
    }
    found = distiller.tensors(x)
    path, old = NETWORKS[name][1], sum(SIZES[:-1])
    expected, classes = slow_map(student.eval(), path, x, old)
    assert found["student.attended"].tolist() == classes and len(set(classes)) > 1
    torch.testing.assert_close(found["student.attention"], expected)
    torch.testing.assert_close(
        found["teacher.attention"], slow_map(teacher, path, x, old, classes)[0]
    )
    own = slow_map(teacher, path, x, old)[1]
    # or the teacher's b would pass too
    assert own != classes


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("name", ["resnet8", "digits_cnn", "wrn_dropout"])
def test_the_short_cut_and_the_definition_are_the_same_step(name, second_order):
    models, x, found = pair(name), rows(6, 1, 8, 8), []
    for fast in (True, False):
        distiller = lwm(name, models=copy.deepcopy(models), fast=fast, second_order=second_order)
        distiller.build(x)
        torch.manual_seed(1)
        loss = distiller.train()(x)["loss_ad"]
        parameters = dict(distiller.student.named_parameters())
        found.append(
            (
                loss,
                torch.autograd.grad(
                    loss, parameters.values(), allow_unused=True, materialize_grads=True
                ),
            )
        )
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=0)
    for path, a, b in zip(parameters, found[0][1], found[1][1]):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)
        if path.endswith("weight") and "fc" not in path:
            assert a.any(), path
    heads = dict(zip(parameters, found[0][1]))
    assert (
        heads["fc.blocks.0.weight"].any() == second_order and not heads["fc.blocks.2.weight"].any()
    )


def test_orders_differ_in_the_heads_weights_only():
    models, x, found = pair("digits_cnn"), rows(6, 1, 8, 8), {}
    for second_order in (True, False):
        distiller = lwm(
            "digits_cnn", models=copy.deepcopy(models), fast=False, second_order=second_order
        )
        distiller(x)["loss_ad"].backward()
        found[second_order] = {name: p.grad for name, p in distiller.student.named_parameters()}
    for name, full in found[True].items():
        full, first = (torch.zeros(()) if g is None else g for g in (full, found[False][name]))
        if name in ("fc.blocks.0.weight", "fc.blocks.1.weight"):
            assert full.any() and not first.any()
        else:
            assert (full - first).abs().max() < 1e-12
            assert full.any() == (name.endswith("weight") and "fc" not in name) or "bias" in name


@pytest.mark.parametrize("name", ["two_layers", "wrn", "lower"])
def test_second_order_is_the_derivative_of_the_loss(name):
    """Central differences along random directions of the weights, below A and above; the first
    order is not that.
    """
    distiller, x = lwm(name), rows(5, 1, 8, 8)
    distiller.build(x)
    assert not any(shorts(distiller).values())
    parameters = [p for p in distiller.student.parameters() if p.dim() > 1]

    def pull(second_order):
        distiller.second_order = second_order
        return torch.autograd.grad(
            distiller(x)["loss_ad"], parameters, allow_unused=True, materialize_grads=True
        )

    full, first = pull(True), pull(False)
    misses = []
    for p, g, f in zip(parameters, full, first):
        with torch.no_grad():
            start, way, step = p.clone(), torch.randn_like(p), 1e-6
            ends = [
                p.copy_(start + sign * step * way) is p and distiller(x)["loss_ad"].item()
                for sign in (1, -1)
            ]
            p.copy_(start)
        slope = (ends[0] - ends[1]) / (2 * step)
        assert (g * way).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-7)
        misses.append(abs((f * way).sum().item() - slope) > 1e-3 * abs(slope) + 1e-6)
    assert any(misses)


def test_one_forward_of_each_model_and_everything_else_from_it():
    flags = []

    def of_the_teacher(*tensors):
        flags.extend(t.requires_grad for t in tensors)
        return tensors[0].sum()

    distiller, x = (
        lwm(
            "wrn",
            PULL
            | {
                "loss_hint": (F.mse_loss, ("student.layer2", "teacher.layer2")),
                "seen": (
                    of_the_teacher,
                    ("teacher", "teacher.layer3", "teacher.bn", "teacher.attention"),
                ),
                "loss_old": (lwm_distill_bce, ("student.old", "teacher")),
                "loss_cls": (F.cross_entropy, ("student", "target")),
            },
        ),
        rows(4, 1, 8, 8),
    )
    distiller.build(x, torch.tensor([0, 1, 2, 6]))
    calls = []
    for role in ("student", "teacher"):
        distiller.model(role).conv1.register_forward_hook(
            lambda m, i, o, role=role: calls.append(role)
        )
    losses = distiller(x, torch.tensor([0, 1, 2, 6]))
    assert sorted(calls) == ["student", "teacher"] and list(losses) == [
        "loss_ad",
        "loss_hint",
        "seen",
        "loss_old",
        "loss_cls",
    ]
    assert len(flags) == 8 and not any(flags)
    student, teacher = distiller.student.train(), distiller.model("teacher")
    torch.testing.assert_close(losses["loss_old"], lwm_distill_bce(student(x)[:, :5], teacher(x)))


@pytest.mark.parametrize("name", ["digits_cnn", "wrn"])
def test_steps_move_the_attention_and_nothing_of_the_teacher(name):
    distiller, x = lwm(name), rows(8, 1, 8, 8)
    teacher, student = distiller.model("teacher"), distiller.student
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    buffers = {k: v.clone() for k, v in student.named_buffers()}
    random = torch.get_rng_state()
    distiller.build(x)
    assert torch.equal(random, torch.get_rng_state()) and student.training
    assert all(torch.equal(v, buffers[k]) for k, v in student.named_buffers())
    assert not any(
        "forward" in module.__dict__ for model in (student, teacher) for module in model.modules()
    )
    optimizer, losses = torch.optim.Adam(distiller.parameters(), lr=0.01), []
    for _ in range(15):
        loss = distiller(x)["loss_ad"]
        optimizer.zero_grad()
        loss.backward()
        assert (
            student.conv1.weight.grad.any()
            if name == "wrn"
            else student.layer1.conv1.weight.grad.any()
        )
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert (
        all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
        and not teacher.training
    )
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_the_same_model_as_its_own_teacher_costs_nothing():
    """As at the start of an experience, in eval."""
    student, _ = pair("two_layers")
    teacher = copy.deepcopy(student)
    del head_of(teacher)[1].blocks[-1]
    distiller = lwm("two_layers", models=(student, teacher)).eval()
    loss = distiller(rows(4, 1, 8, 8))["loss_ad"]
    loss.backward()
    assert loss.item() < 1e-12 and student[0].weight.grad.abs().max() < 1e-10
    # b moves for both
    student[-1].blocks[0].bias.data[1] += 50
    assert distiller(rows(4, 1, 8, 8))["loss_ad"].item() < 1e-12


def test_no_map_costs_no_map():
    """Losses of the logits alone: cached ones take the teacher's place, as without LwM."""
    distiller, x = (
        lwm("wrn", {"loss_old": (lwm_distill_bce, ("student.old", "teacher"))}),
        rows(4, 1, 8, 8),
    )
    cached = rows(4, 5)
    distiller.model("teacher").forward = None
    loss = distiller({"input": x, "teacher": cached})["loss_old"]
    torch.testing.assert_close(loss, lwm_distill_bce(distiller.student(x)[:, :5], cached))
    assert not shorts(distiller)


@pytest.mark.parametrize("name", ["digits_cnn", "two_layers"])
def test_dead_maps_are_counted_and_pull_at_nothing(name):
    student, teacher = pair(name)
    with torch.no_grad():
        for block in head_of(student)[1].blocks:
            block.weight.copy_(-block.weight.abs())
        if name == "two_layers":
            student[5].weight.abs_()
    losses = PULL | {"dead": (dead_share, "student.attention")}
    distiller = lwm(name, losses, (student, teacher))
    found = distiller(rows(4, 1, 8, 8))
    found["loss_ad"].backward()
    assert found["dead"] == 1 and found["loss_ad"] > 0
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())


@pytest.mark.parametrize("name", ["digits_cnn", "two_layers", "wrn"])
@pytest.mark.parametrize("way", ["autocast", "teacher", "student"])
def test_half_precision_is_near_and_the_loss_is_float32(name, way):
    models, x = [model.float() for model in pair(name)], torch.randn(8, 1, 8, 8)
    exact = lwm(name, models=copy.deepcopy(models))
    exact.build(x)
    if way == "student":
        models, x = [model.bfloat16() for model in models], x.bfloat16()
    models[1] = Teacher(models[1], precision="bfloat16" if way == "teacher" else None)
    distiller = lwm(name, models=models)
    # else rounding chooses another b
    batch = {"input": x, "student.attended": torch.arange(8) % 5}
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        distiller.build(x)
        loss = distiller.train()(batch)["loss_ad"]
    assert shorts(distiller) == shorts(exact)
    loss.backward()
    expected = exact(batch | {"input": x.float()})["loss_ad"].item()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=0.05)
    weights = [p.grad for p in distiller.student.parameters() if p.grad is not None]
    assert weights and all(g.isfinite().all() for g in weights)


class Exact(nn.Module):
    """A network that runs in full precision under autocast too."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.network(x)


@pytest.mark.parametrize(
    "fast, name", [(True, "digits_cnn"), (False, "digits_cnn"), (False, "two_layers")]
)
def test_maps_are_made_in_full_precision_under_autocast(fast, name):
    models, x = [Exact(model).float() for model in pair(name)], torch.randn(8, 1, 8, 8)
    distiller, found = (
        LwMDistiller(
            models[0],
            {"teacher": models[1]},
            PULL,
            attention=f"network.{NETWORKS[name][1]}",
            fast=fast,
        ),
        [],
    )
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = distiller(x)["loss_ad"]
        found.append(
            [
                loss,
                *torch.autograd.grad(
                    loss, models[0].parameters(), allow_unused=True, materialize_grads=True
                ),
            ]
        )
    torch.testing.assert_close(*found)


def test_the_batch_may_say_which_class():
    for name in ("digits_cnn", "two_layers"):
        distiller, x, b = lwm(name), rows(5, 1, 8, 8), torch.arange(5)
        found = distiller.tensors({"input": x, "student.attended": b})
        for role in ("student", "teacher"):
            expected = slow_map(distiller.model(role).eval(), NETWORKS[name][1], x, 5, b)[0]
            torch.testing.assert_close(found[f"{role}.attention"], expected)


def test_finding_out_about_the_short_cut_draws_no_random_number():
    distiller, x, found = lwm("wrn_dropout"), rows(6, 1, 8, 8), []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(distiller(x)["loss_ad"])
    assert found[0] == found[1] != distiller(x)["loss_ad"]


@pytest.mark.parametrize("name", ["digits_cnn", "two_layers"])
def test_an_empty_batch(name):
    for fast in (None, False):
        distiller = lwm(name, fast=fast).eval()
        loss = distiller(rows(0, 1, 8, 8))["loss_ad"]
        loss.backward()
        assert loss == 0 and shorts(distiller)["student"] == (name == "digits_cnn" and fast is None)
    one = lwm(name)
    one.build(rows(1, 1, 8, 8))
    assert shorts(one)["student"] == (name == "digits_cnn")


def test_a_network_that_gave_nothing_at_first_is_not_taken_for_a_linear_one():
    models = [
        growing(TwoLayers([nn.Linear(6, 6, bias=False), nn.Tanh()]), s).double()
        for s in (SIZES, SIZES[:-1])
    ]
    for model in models:
        model[1].bias.data.fill_(-100.0)
    distiller = lwm("two_layers", models=models)
    distiller.build(rows(4, 1, 8, 8))
    assert shorts(distiller) == {"student": False, "teacher": False}


def test_a_copy_finds_its_own_maps():
    distiller, x = lwm("wrn"), rows(4, 1, 8, 8)
    distiller(x)
    other = copy.deepcopy(distiller)
    other(x)["loss_ad"].backward()
    assert other.student.conv1.weight.grad.any() and distiller.student.conv1.weight.grad is None


def test_a_teacher_without_a_growing_head():
    student, teacher = pair("digits_cnn")
    teacher.fc = nn.Linear(8, 5).double()
    distiller, x = lwm("digits_cnn", models=(student, teacher)), rows(4, 1, 8, 8)
    distiller.build(x)
    assert shorts(distiller) == {"student": True, "teacher": False}
    found = distiller.tensors(x)
    torch.testing.assert_close(
        found["teacher.attention"], slow_map(teacher, "layer3", x, 5, found["student.attended"])[0]
    )


def errors():
    models = pair("digits_cnn")
    yield (
        dict(attention="layer4"),
        models,
        "attention='layer4': student is a PlainNet without this submodule; did you mean 'layer",
    )
    yield dict(attention="layer3", fast=False, compile=True), models, "fast=False with compile=True"
    yield (
        dict(attention="layer2", compile=True),
        models,
        "compile=True: the logits of (student|teacher) are not its growing head .* 'layer2'",
    )
    yield (
        dict(attention="layer2", fast=True),
        models,
        "fast=True: the logits of .* expected fast=None",
    )
    yield (
        dict(attention="flatten"),
        models,
        r"attention='flatten' of (student|teacher) gives \(4, 8\); expected maps",
    )
    yield (
        dict(attention="avgpool"),
        models,
        r"attention='avgpool' of (student|teacher) gives \(4, 8, 1, 1\); expected maps",
    )
    yield (
        dict(attention="layer3"),
        pair("digits_cnn", (2, 2))[:1] + [models[1]],
        "teacher has 5 columns, the student 2 old ones",
    )
    yield (
        dict(attention="layer3"),
        [growing(digits_cnn(width=4), [5]).double(), models[1]],
        "the student has no old classes",
    )


@pytest.mark.parametrize("number", range(8))
def test_errors_say_what_to_do(number):
    options, models, message = list(errors())[number]
    with pytest.raises(ValueError, match=message):
        LwMDistiller(models[0], {"teacher": models[1]}, PULL, **options).build(rows(4, 1, 8, 8))


def test_the_short_cut_is_found_out_anew_of_a_replaced_student():
    student, teacher = pair("digits_cnn")
    distiller, x = lwm("digits_cnn", models=(student, teacher)), rows(4, 1, 8, 8)
    distiller.build(x)
    assert shorts(distiller)["student"]
    other = growing(TwoLayers([nn.Dropout(0.5)]), SIZES).double()
    distiller.student = other
    with pytest.raises(ValueError, match="no submodule .layer3."):
        distiller(x)  # has no such layer
    same = growing(digits_cnn(width=4), (3, 2, 5)).double()
    distiller.student = same
    distiller(x)
    assert distiller.head("student") is head_of(same)[1] and shorts(distiller)["student"]


class Moved(nn.Module):
    """Channels last, tokens behind a prefix, or back to maps."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        if self.kind == "nhwc":
            return x.permute(0, 2, 3, 1)
        if self.kind == "tokens":
            return F.pad(x.flatten(2).transpose(1, 2), (0, 0, 2, 0), value=5.0)
        return (
            x.permute(0, 3, 1, 2) if x.dim() == 4 else x[:, 2:].transpose(1, 2).unflatten(2, (4, 4))
        )


@pytest.mark.parametrize("layout, prefix", [("nhwc", 0), ("tokens", 2)])
@pytest.mark.parametrize("fast", [None, False])
def test_activations_in_other_layouts_give_the_same_maps(layout, prefix, fast):
    def network(sizes):
        body = nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.ReLU(),
            nn.Conv2d(6, 20, 3),
            nn.ReLU(),
            Moved(layout),
            Moved("back"),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(20, 1),
        )
        return growing(body, sizes).double()

    student, teacher, x = network(SIZES), network(SIZES[:-1]), rows(5, 1, 8, 8)
    maps, kept = [], {**PULL, "kept": (lambda a: a.sum(), "teacher.attention")}
    for path, options in (("3", {}), ("4", {"layout": layout, "prefix_tokens": prefix})):
        distiller = LwMDistiller(
            student, {"teacher": teacher}, kept, attention=path, fast=fast, **options
        )
        distiller.build(x)
        assert shorts(distiller) == {"student": fast is None, "teacher": fast is None}
        maps.append(distiller.tensors(x))
    for name in ("student.attention", "teacher.attention"):
        torch.testing.assert_close(maps[0][name], maps[1][name])
        assert maps[0][name].shape == (5, 4, 4) and maps[0][name].any()
    with pytest.raises(ValueError, match="look like|expected maps"):
        LwMDistiller(student, {"teacher": teacher}, PULL, attention="4").build(x)
