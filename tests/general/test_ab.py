"""The activation-boundary loss against a loop over elements, its laws, connectors, and where
networks are tapped before their ReLUs.
"""

import itertools

import pytest
import torch
import torchvision
from torch import nn

from kdtasks.classification import models
from kdtasks.core import Distiller, FeatureRecorder
from kdtasks.general import (
    ABLoss,
    ab_loss,
    ab_losses,
    activation_disagreement,
    expose_pre_relu,
    pre_relu_paths,
)

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def responses(*shape):
    return 1.5 * torch.randn(*shape, dtype=F64)


def slow(student, teacher, margin):
    total = 0.0
    for place in itertools.product(*map(range, student.shape)):
        s, t = student[place].item(), teacher[place].item()
        total += max(margin - s, 0) ** 2 if t > 0 else max(margin + s, 0) ** 2
    return total / len(student)


@pytest.mark.parametrize("shape", [(3, 4, 2, 3), (5, 6), (4,), (2, 3, 4)])
@pytest.mark.parametrize("margin", [1.0, 0.3, 4.0])
def test_it_equals_the_loop_over_elements(shape, margin):
    student, teacher = responses(*shape), responses(*shape)
    found = ab_loss(student, teacher, margin)
    assert found.item() == pytest.approx(slow(student, teacher, margin), rel=1e-12)


def test_a_response_of_zero_is_inactive():
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    assert ab_loss(one, zero) == 4 and ab_loss(-one, zero) == 0
    assert ab_loss(one, -zero) == 4 and ab_loss(one, one * 1e-300) == 0


def test_only_the_signs_of_the_teacher_count():
    student, teacher = responses(3, 4, 2, 2), responses(3, 4, 2, 2)
    for other in (7 * teacher, teacher.relu() - 0.0, teacher.sign(), teacher**3):
        torch.testing.assert_close(ab_loss(student, other), ab_loss(student, teacher))
    assert ab_loss(student, -teacher) != ab_loss(student, teacher)


def test_beyond_the_margin_on_the_right_side_nothing_pulls():
    teacher = responses(4, 6)
    student = (teacher.sign() * (1 + torch.rand(4, 6, dtype=F64))).requires_grad_()
    loss = ab_loss(student, teacher)
    loss.backward()
    assert loss == 0 and not student.grad.any()
    # with a wider margin all of them are pulled away from 0
    (grad,) = torch.autograd.grad(ab_loss(student, teacher, 3.0), student)
    assert (grad * teacher < 0).all()


def test_turning_both_round_changes_nothing():
    student, teacher = responses(5, 7), responses(5, 7)
    torch.testing.assert_close(ab_loss(-student, -teacher), ab_loss(student, teacher))


def test_gradcheck_and_no_gradient_of_the_teacher():
    student, teacher = responses(3, 5).requires_grad_(), responses(3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: ab_loss(s, teacher, 0.8), student)
    ab_loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()


def test_without_rows_it_is_a_connected_zero():
    none = torch.zeros(0, 4, 2, 2, requires_grad=True)
    for loss in (ab_loss(none, none), ABLoss(1.0, "mean", 4, 4)(none, none)):
        assert loss == 0
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    student, teacher = responses(2, 64, 8, 8).to(dtype) * 100, responses(2, 64, 8, 8).to(dtype)
    found = ab_loss(student, teacher)
    assert found.dtype is torch.float32 and found > 65504
    assert found == ab_loss(student.float(), teacher.float())


def test_the_disagreement_is_the_share_of_other_signs():
    student, teacher = torch.tensor([[1.0, -1, 0, 2], [0, 3, -1, -1]]), torch.ones(2, 4)
    teacher[1, 2:] = 0
    assert activation_disagreement(student, teacher).item() == pytest.approx(3 / 8)
    assert activation_disagreement(teacher, teacher) == 0


@pytest.mark.parametrize("shapes", [((3, 4), (3, 5)), ((3, 4), (2, 4)), ((), ())])
def test_wrong_shapes_are_named(shapes):
    student, teacher = (torch.zeros(shape) for shape in shapes)
    for function in (ab_loss, activation_disagreement):
        with pytest.raises(ValueError, match=r"got student \(.*\) and teacher \("):
            function(student, teacher)


# -------------------------------------------------------------------------------------- connectors
def test_a_connector_is_made_where_channels_differ_and_only_there():
    student, teacher = responses(4, 3, 5, 5), responses(4, 8, 5, 5)
    loss = ABLoss()
    with pytest.raises(RuntimeError, match="build"):
        loss(student, teacher)
    loss.build(student, teacher)
    convolution, norm = loss.projector
    assert convolution.weight.shape == (8, 3, 1, 1) and convolution.bias is None
    assert norm.num_features == 8 and convolution.weight.dtype is F64
    # behind the connector it is the function
    expected = slow(norm(convolution(student)).detach(), teacher, 1.0)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    same = ABLoss()
    same.build(teacher, teacher)
    assert not list(same.parameters()) and same(teacher, teacher) == ab_loss(teacher, teacher)


def test_the_connector_starts_as_released():
    loss = ABLoss(student_channels=400, teacher_channels=500)
    weight = loss.projector[0].weight
    assert weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.01)
    assert (loss.projector[1].weight == 1).all() and not loss.projector[1].bias.any()


def test_the_mean_is_the_sum_by_the_elements_of_a_row():
    student, teacher = responses(4, 3, 5, 5), responses(4, 3, 5, 5)
    total, mean = ABLoss(student_channels=3, teacher_channels=3), ABLoss(1.0, "mean", 3, 3)
    torch.testing.assert_close(total(student, teacher), 75 * mean(student, teacher))


def test_rows_have_a_connector_too():
    student, teacher = responses(6, 3), responses(6, 4)
    loss = ABLoss()
    loss.build(student, teacher)
    maps = loss(student[:, :, None, None], teacher[:, :, None, None])
    torch.testing.assert_close(loss(student, teacher), maps)


def test_a_layer_says_what_does_not_fit():
    with pytest.raises(ValueError, match="margin must be > 0, got 0"):
        ABLoss(margin=0)
    with pytest.raises(ValueError, match="'sum' or 'mean', got 'max'"):
        ABLoss(reduction="max")
    loss = ABLoss(student_channels=3, teacher_channels=8)
    maps = torch.zeros(2, 3, 4, 4)
    for other in (torch.zeros(2, 8, 2, 2), torch.zeros(3, 8, 4, 4), torch.zeros(2, 8)):
        with pytest.raises(ValueError, match=r"equal but for C, got student \(2, 3, 4, 4\)"):
            loss(maps, other)
    with pytest.raises(ValueError, match="expected 8 channels of the teacher"):
        loss(maps, torch.zeros(2, 5, 4, 4))


# --------------------------------------------------------------------------- before which ReLUs
SMALL = {
    "resnet": lambda: models.resnet14(),
    "wide resnet": lambda: models.wrn_16_1(),
    "vgg": lambda: models.vgg13(),
    "digits": lambda: models.digits_cnn(in_channels=3),
    "torchvision basic": lambda: expose_pre_relu(torchvision.models.resnet18()),
    "torchvision bottleneck": lambda: expose_pre_relu(torchvision.models.resnet50()),
    "mobilenet": lambda: torchvision.models.mobilenet_v2(),
}
AFTER = {
    "resnet": ["layer1", "layer2", "layer3"],
    "wide resnet": ["layer2.0.relu1", "layer3.0.relu1", "relu"],
    "vgg": [f"layer{k}" for k in range(1, 6)],
    "digits": ["layer1", "layer2", "layer3"],
    "torchvision basic": [f"layer{k}" for k in range(1, 5)],
    "torchvision bottleneck": [f"layer{k}" for k in range(1, 5)],
    "mobilenet": [f"features.{k}.conv.0" for k in (4, 7, 14)] + ["features.18"],
}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("training", [False, True])
def test_what_stands_there_is_what_the_relu_is_given(kind, training):
    model = SMALL[kind]().train(training)
    paths, ceiling = pre_relu_paths(model), 6 if kind == "mobilenet" else float("inf")
    assert len(paths) == len(AFTER[kind])
    _, values = FeatureRecorder(model, [*paths, *AFTER[kind]])(torch.randn(2, 3, 64, 64))
    for path, after in zip(paths, AFTER[kind]):
        assert (values[path] < 0).any()
        torch.testing.assert_close(values[path].clamp(0, ceiling), values[after])


def test_four_maps_of_a_mobilenet_have_the_size_of_a_resnets():
    image, sizes = torch.randn(1, 3, 64, 64), []
    for kind in ("torchvision basic", "mobilenet"):
        model = SMALL[kind]().eval()
        _, values = FeatureRecorder(model, pre_relu_paths(model))(image)
        sizes.append([value.shape[2:] for value in values.values()])
    assert sizes[0] == sizes[1]


def test_exposing_changes_neither_the_answers_nor_the_names_of_weights():
    plain = torchvision.models.resnet18().eval()
    exposed = expose_pre_relu(torchvision.models.resnet18()).eval()
    exposed.load_state_dict(plain.state_dict())
    assert list(exposed.state_dict()) == list(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(exposed(image), plain(image))
    assert expose_pre_relu(exposed) is exposed and torch.equal(exposed(image), plain(image))


def test_a_network_that_is_not_known_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match=r"'layer1.1.relu' is given.*expose_pre_relu"):
        pre_relu_paths(torchvision.models.resnet18())
    with pytest.raises(ValueError, match="Linear has no stages"):
        pre_relu_paths(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="features of VGG are no inverted residuals"):
        pre_relu_paths(torchvision.models.vgg11())
    with pytest.raises(ValueError, match="as torchvision builds it"):
        expose_pre_relu(models.resnet8())


# --------------------------------------------------------------------------------- in a Distiller
def test_entries_of_a_config_halve_from_the_deepest_on():
    found = ab_losses(["a", "b", "c"], ["x", "y", "z"], margin=0.5)
    assert [entry["of"] for entry in found.values()] == [
        ("student.a", "teacher.x"),
        ("student.b", "teacher.y"),
        ("student.c", "teacher.z"),
    ]
    assert list(found) == ["loss_ab1", "loss_ab2", "loss_ab3"]
    assert [entry["weight"] for entry in found.values()] == [0.00075, 0.0015, 0.003]
    assert all(entry["margin"] == 0.5 for entry in found.values())
    for wrong in (([], []), (["a"], ["x", "y"])):
        with pytest.raises(ValueError, match="as many layers"):
            ab_losses(*wrong)


def test_signs_are_learned_and_the_head_is_left_alone():
    student, teacher = models.resnet8(width=8), models.resnet8(width=12).eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    entries = ab_losses(pre_relu_paths(student), pre_relu_paths(teacher), weight=0.03)
    losses = {name: (ABLoss(), entry["of"], entry["weight"]) for name, entry in entries.items()}
    distiller = Distiller(student, {"teacher": teacher}, losses)
    images = torch.randn(32, 3, 16, 16)
    distiller.build(images)
    connectors = [p for loss in distiller.losses.values() for p in loss.parameters()]
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.02, momentum=0.9)
    assert len(connectors) == 9
    assert {id(p) for p in connectors} <= {
        id(p) for g in optimizer.param_groups for p in g["params"]
    }
    totals = []
    for _ in range(12):
        optimizer.zero_grad()
        total = sum(distiller(images).values())
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0]
    assert student.fc.weight.grad is None and student.conv1.weight.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
