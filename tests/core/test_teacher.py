"""The promise of a teacher: frozen, in eval, out of the way, and given its own kind of input."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.core import Distiller, Teacher

MEAN, STD, STUDENT_MEAN, STUDENT_STD = (
    [0.5, 0.4, 0.3],
    [0.2, 0.3, 0.4],
    [0.1, 0.2, 0.3],
    [1.0, 0.5, 0.25],
)


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Echo(nn.Module):
    """Gives back its input, and says how it was called."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        self.conv(x if isinstance(x, torch.Tensor) else x[0])
        self.dtype = self.conv(x).dtype if isinstance(x, torch.Tensor) else None
        return x


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5)
    )


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_it_is_frozen_and_in_eval_whatever_is_said():
    model, x = network(), torch.randn(2, 3, 6, 6)
    teacher = Teacher(model)
    before, expected = state(model), teacher(x)
    for say in (
        teacher.train,
        lambda: teacher.train(True),
        model.train,
        lambda: nn.ModuleList([teacher]).train(),
    ):
        # that one it cannot hear
        assert say() is not None and model.training == (say == model.train)
        assert torch.equal(teacher(x), expected)
        assert (
            not model.training
            and not any(m.training for m in model.modules())
            and not teacher.training
        )
    model.train()
    # puts it right even before the next forward
    nn.ModuleList([teacher]).train()
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def test_it_is_no_part_of_what_it_stands_in():
    holder = nn.Module()
    holder.teacher = Teacher(
        network(), mean=MEAN, std=STD, student_mean=STUDENT_MEAN, student_std=STUDENT_STD
    )
    assert (
        not list(holder.parameters())
        and not holder.state_dict()
        and holder.teacher.model not in set(holder.modules())
    )
    touched = []
    # an initialiser walks over all modules
    holder.apply(touched.append)
    assert holder.teacher.model not in touched and not any(
        isinstance(m, nn.Conv2d) for m in touched
    )
    holder.requires_grad_(True)
    assert not any(p.requires_grad for p in holder.teacher.model.parameters())


def test_a_copy_shares_it_and_to_moves_it():
    teacher = Teacher(
        Echo(), mean=MEAN, std=STD, student_mean=STUDENT_MEAN, student_std=STUDENT_STD
    )
    holder = nn.ModuleList([teacher])
    assert copy.deepcopy(holder)[0] is teacher
    holder.to(torch.float64)
    assert (
        teacher.model.conv.weight.dtype is torch.float64
        and teacher(torch.ones(1, 3, 2, 2).double()).dtype is torch.float64
    )
    assert teacher.scale.dtype is torch.float64 and holder.to("meta")[0].model.conv.weight.is_meta


def test_its_input_can_have_a_gradient_where_the_caller_wants_one():
    teacher, x = Teacher(nn.Linear(3, 2)), torch.randn(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(teacher(x).sum(), x)
    assert (
        torch.equal(gradient, teacher.model.weight.sum(0).expand(4, 3))
        and teacher.model.weight.grad is None
    )


def test_the_normalisation_is_the_teachers_own():
    image = torch.rand(2, 3, 5, 5, dtype=torch.float64)

    def normalised(mean, std):
        return torch.stack([(image[:, c] - mean[c]) / std[c] for c in range(3)], 1)

    teacher = Teacher(
        Echo(), mean=MEAN, std=STD, student_mean=STUDENT_MEAN, student_std=STUDENT_STD
    )
    x = normalised(STUDENT_MEAN, STUDENT_STD)
    torch.testing.assert_close(
        teacher(x.float()), normalised(MEAN, STD).float(), rtol=1e-5, atol=1e-5
    )
    same = Teacher(Echo(), mean=MEAN, std=STD, student_mean=MEAN, student_std=STD)
    assert torch.equal(same(x.float()), x.float())
    # one channel broadcasts
    grey = Teacher(Echo(), mean=[0.5], std=[0.25], student_mean=[0], student_std=[1])
    torch.testing.assert_close(grey(x.float()), ((x - 0.5) * 4).float())


@pytest.mark.parametrize("size, expected", [(8, (8, 8)), ((8, 4), (8, 4)), ([3, 9], (3, 9))])
def test_the_input_is_resized_after_the_normalisation(size, expected):
    x = torch.rand(2, 3, 6, 6)
    teacher = Teacher(
        Echo(),
        input_size=size,
        mean=MEAN,
        std=STD,
        student_mean=STUDENT_MEAN,
        student_std=STUDENT_STD,
    )
    plain = Teacher(Echo(), mean=MEAN, std=STD, student_mean=STUDENT_MEAN, student_std=STUDENT_STD)
    assert torch.equal(
        teacher(x), F.interpolate(plain(x), size=expected, mode="bilinear", antialias=True)
    )
    assert teacher(x).shape[-2:] == expected


def test_an_input_of_the_right_size_is_passed_on_as_it_is():
    x = torch.rand(1, 3, 6, 6)
    assert Teacher(Echo(), input_size=6)(x) is x and Teacher(Echo())(x) is x


@pytest.mark.parametrize(
    "precision, around, expected",
    [
        (None, None, torch.float32),
        (None, torch.bfloat16, torch.bfloat16),
        ("bfloat16", None, torch.bfloat16),
        ("float32", torch.bfloat16, torch.float32),
        ("bfloat16", torch.float16, torch.bfloat16),
        ("float16", None, torch.float16),
    ],
)
def test_its_precision_is_its_own_or_that_around_it(precision, around, expected):
    teacher = Teacher(Echo(), precision=precision)
    with torch.autocast("cpu", around or torch.bfloat16, enabled=around is not None):
        teacher(torch.randn(1, 3, 2, 2))
    assert teacher.model.dtype is expected and teacher.model.conv.weight.dtype is torch.float32


def test_inputs_that_are_no_tensor_reach_the_model_unless_they_would_have_to_be_prepared():
    images = [torch.rand(3, 4, 4), torch.rand(3, 5, 5)]
    assert (
        Teacher(Echo())(images) is images
        and Teacher(Echo(), precision="bfloat16")(images) is images
    )
    for options in (
        {"input_size": 4},
        {"mean": MEAN, "std": STD, "student_mean": STUDENT_MEAN, "student_std": STUDENT_STD},
    ):
        with pytest.raises(TypeError, match=r"input_size.*got list"):
            Teacher(Echo(), **options)(images)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"precision": "half"},
            r"precision must be None or one of \['float32', 'bfloat16', "
            r"'float16'\], got 'half'",
        ),
        ({"mean": MEAN, "std": STD}, r"go together.*student_mean=None"),
        ({"student_mean": MEAN, "student_std": STD}, r"go together.*mean=None"),
        ({"input_size": (1, 2, 3)}, r"input_size must be .*\(1, 2, 3\)"),
        ({"input_size": "224"}, r"input_size must be .*'224'"),
        ({"input_size": 0}, r"input_size must be .*0"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_made_and_freezes_nothing(options, message):
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=message):
        Teacher(model, **options)
    assert model.training and model.weight.requires_grad


class Silent(nn.Sequential):
    """As mmdet's LD detector: its train() and eval() give None."""

    def train(self, mode=True):
        super().train(mode)


def test_a_model_whose_train_returns_none_teaches_and_learns():
    model, student = (
        Silent(nn.Linear(3, 2), nn.BatchNorm1d(2)),
        Silent(nn.Linear(3, 2), nn.BatchNorm1d(2)),
    )
    teacher = Teacher(model)
    assert not any(m.training for m in model.modules()) and not any(
        p.requires_grad for p in model.parameters()
    )
    model.train()
    teacher(torch.ones(2, 3))
    assert not any(m.training for m in model.modules())
    loss = Silent(nn.LazyLinear(2))
    distiller = Distiller(
        student,
        {"teacher": model},
        {
            "loss_a": (F.mse_loss, ("student", "teacher")),
            "loss_b": (lambda s, t: (loss(s) - t).square().mean(), ("student", "teacher")),
        },
    )
    distiller.build(torch.ones(4, 3))
    distiller.tensors(torch.ones(4, 3))
    assert all(m.training for m in student.modules())
    assert len(distiller(torch.ones(4, 3))) == 2
