"""One student of three teachers of three tasks: a classifier, a detector's feature, an embedder;
each with a projector of its own, their weights balanced; and a mean of teachers.
"""

import copy

import pytest
import torch
from torch import nn

from kdtasks.classification.models import resnet8
from kdtasks.core import Distiller
from kdtasks.detection import models as detectors
from kdtasks.general import FeatureLoss, KDLoss, feature_loss, kd_loss, phi_standardize


class Embedder(nn.Module):
    """Rows of length 1, of a width that is no other's."""

    def __init__(self):
        super().__init__()
        self.trunk = resnet8(6, width=4)

    def forward(self, x):
        return nn.functional.normalize(self.trunk(x))


class Louder(nn.Module):
    """The same teacher in another unit: a thousand times as large, and elsewhere."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        found = self.model(x)
        if isinstance(found, dict):
            return {name: 1000 * value + 7 for name, value in found.items()}
        return 1000 * found + 7


@pytest.fixture(scope="module")
def parts():
    """Student, teachers and images, in float64."""
    torch.manual_seed(0)
    detector = detectors.retinanet(
        3, detectors.small_resnet(4), 12, min_size=32, max_size=32, extra=None
    )
    teachers = {
        "classifier": resnet8(5, width=8),
        "detector": detector.backbone,
        "embedder": Embedder(),
    }
    for teacher in teachers.values():
        teacher.double().eval()
    return resnet8(5, width=4).double(), teachers, torch.randn(16, 3, 32, 32, dtype=torch.float64)


def distiller_of(parts, louder=False, standardize="phi"):
    student, teachers, images = parts
    if louder:
        teachers = {
            name: Louder(teacher) if name != "classifier" else teacher
            for name, teacher in teachers.items()
        }
    torch.manual_seed(1)
    options = {"standardize": standardize, "rows": 30} if standardize else {}
    distiller = Distiller(
        copy.deepcopy(student),
        {name: copy.deepcopy(teacher) for name, teacher in teachers.items()},
        {
            "loss_kd": (KDLoss(4.0), ("student", "classifier"), 1 / 3),
            "loss_map": (FeatureLoss(**options), ("student.layer3", "detector.1"), 1 / 3),
            "loss_row": (FeatureLoss(**options), ("student.flatten", "embedder"), 1 / 3),
        },
    )
    distiller.double().build(images)
    return distiller


def test_each_teacher_has_a_projector_of_its_own_that_trains_and_is_not_the_student_s(parts):
    student, teachers, images = parts
    distiller = distiller_of(parts)
    for _ in range(3):  # the statistics are collected first
        losses = distiller(images)
    assert [*losses] == ["loss_kd", "loss_map", "loss_row"] and all(v > 0 for v in losses.values())
    maps, rows = (distiller.losses[name].projector for name in ("loss_map", "loss_row"))
    assert maps.weight.shape == (12, 16, 1, 1) and rows.weight.shape == (6, 16, 1, 1)
    sum(losses.values()).backward()
    for name, parameter in distiller.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert distiller.student.state_dict().keys() == student.state_dict().keys()
    # each is the loss of its own formula
    found, feature = distiller.student(images), {}
    distiller.student.layer3.register_forward_hook(lambda m, a, out: feature.update(map=out))
    distiller.student.train()(images)
    with torch.no_grad():
        taught = {name: copy.deepcopy(teacher)(images) for name, teacher in teachers.items()}
    torch.testing.assert_close(
        distiller(images)["loss_kd"], kd_loss(found, taught["classifier"], temperature=4.0) / 3
    )
    places = taught["detector"]["1"].movedim(1, -1)
    mean, matrix = phi_standardize(places.flatten(0, -2))
    scale = (matrix @ matrix.T)[0, 0].sqrt()
    own = distiller.losses["loss_map"].standardization
    torch.testing.assert_close(own.mean, mean)
    torch.testing.assert_close((own.matrix @ own.matrix.T)[0, 0].sqrt(), scale)
    aim = ((places - mean) @ own.matrix.T).movedim(-1, 1)
    student_map = maps(feature["map"])
    if student_map.shape != aim.shape:
        student_map = nn.functional.interpolate(student_map, aim.shape[2:], mode="bilinear")
    torch.testing.assert_close(
        distiller(images)["loss_map"], feature_loss(student_map, aim) / 3, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("standardize", ["scale", "phi", None])
def test_the_balance_is_not_of_the_teachers_units(parts, standardize):
    """A teacher that speaks a thousand times as loud pulls as much as before; without the
    standardization, more than a thousand times.
    """
    images, shares = parts[2], {}
    for louder in (False, True):
        distiller = distiller_of(parts, louder, standardize)
        for _ in range(3):
            losses = distiller(images)
        shares[louder] = torch.stack([losses[name].detach() for name in ("loss_map", "loss_row")])
    if standardize == "scale":
        torch.testing.assert_close(shares[True], shares[False], rtol=1e-6, atol=1e-9)
    elif standardize:
        # the axes' signs are arbitrary, and so is which way a projector that starts at random lies
        assert (shares[True] / shares[False] - 1).abs().max() < 0.3
        assert (shares[False] < 3).all()
    else:
        assert (shares[True] / shares[False]).min() > 1e3


def test_a_mean_of_teachers_probabilities_is_one_line_of_equal_weights():
    """Σ KL(p_k ‖ q) / n has the gradient of KL(mean p ‖ q)."""
    torch.manual_seed(0)
    student, teachers = torch.randn(6, 5).double().requires_grad_(), torch.randn(3, 6, 5).double()
    each = sum(kd_loss(student, teacher, temperature=2.0) for teacher in teachers) / 3
    mean = (teachers / 2).softmax(-1).mean(0).log() * 2
    together = kd_loss(student, mean, temperature=2.0)
    first, second = (torch.autograd.grad(loss, student)[0] for loss in (each, together))
    torch.testing.assert_close(first, second)
    assert each > together  # by how much the teachers differ, which trains nothing
