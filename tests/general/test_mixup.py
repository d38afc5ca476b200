"""Mixup that teacher and student see alike: the formula, the mixed labels, and the distiller."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdtasks.core import Distiller
from kdtasks.general import KDLoss, MixupDistiller, mixed_cross_entropy, mixup

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("alpha", [1.0, 0.2, 8.0, 1e-4])
def test_each_image_is_mixed_with_the_one_before_it(alpha):
    images = torch.randn(4, 3, 2, 2, dtype=F64)
    mixed, share = mixup(images, alpha)
    a = share.item()
    assert 0.5 <= a <= 1
    for k in range(4):
        torch.testing.assert_close(mixed[k], a * images[k] + (1 - a) * images[k - 1])


def test_shares_are_those_of_the_distribution_and_of_the_generator():
    generator = torch.Generator().manual_seed(3)
    images = torch.zeros(1, 1)
    shares = torch.stack([mixup(images, 1.0, generator)[1] for _ in range(2000)])
    # the larger of two uniform parts is uniform over [0.5, 1]
    assert shares.mean().item() == pytest.approx(0.75, abs=0.01)
    assert shares.var().item() == pytest.approx(1 / 48, rel=0.1)
    again = torch.Generator().manual_seed(3)
    assert mixup(images, 1.0, again)[1] == shares[0]
    wide = torch.stack([mixup(images, 0.1, generator)[1] for _ in range(500)])
    assert wide.mean() > shares.mean() + 0.1


def test_mixed_labels_are_soft_labels():
    logits = torch.randn(5, 4, dtype=F64, requires_grad=True)
    target, other = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([1, 1, 0, 2, 3])
    share = torch.tensor(0.7)
    soft = 0.7 * F.one_hot(target, 4) + 0.3 * F.one_hot(other, 4)
    loss = mixed_cross_entropy(logits, target, other, share)
    torch.testing.assert_close(loss, F.cross_entropy(logits, soft.double()), rtol=1e-6, atol=0)
    assert torch.autograd.gradcheck(
        lambda z: mixed_cross_entropy(z, target, other, share.double()), logits
    )


def test_unlabelled_rows_and_parts_are_left_out():
    logits = torch.randn(3, 4, dtype=F64)
    target, other = torch.tensor([0, -100, 2]), torch.tensor([-100, 1, 1])
    found = mixed_cross_entropy(logits, target, other, torch.tensor(0.75))
    log_p = logits.log_softmax(1)
    expected = -(0.75 * log_p[0, 0] + 0.75 * log_p[2, 2] + 0.25 * log_p[2, 1]) / 2
    torch.testing.assert_close(found, expected)
    none = torch.zeros(0, 4, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.long)
    zero = mixed_cross_entropy(none, empty, empty, torch.tensor(0.6))
    zero.backward()
    assert zero == 0 and none.grad.shape == (0, 4)
    with pytest.raises(ValueError, match=r"other \(2,\)"):
        mixed_cross_entropy(logits, target, other[:2], torch.tensor(0.6))


LOSSES = {
    "loss_kd": (KDLoss(1.0), ("student", "teacher")),
    "loss_cls": (mixed_cross_entropy, ("student", "target", "target.other", "input.share"), 0.5),
}


def models():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), nn.Sequential(
        nn.Flatten(), nn.Linear(12, 5)
    )


def test_teacher_and_student_see_the_same_mixed_images():
    student, teacher = models()
    distiller = MixupDistiller(student, {"teacher": teacher}, LOSSES)
    batch = {"input": torch.randn(6, 3, 2, 2), "target": torch.randint(5, (6,))}
    state = torch.get_rng_state()
    distiller.build(batch)
    assert torch.equal(torch.get_rng_state(), state)
    losses = distiller(batch)
    torch.set_rng_state(state)
    mixed, share = mixup(batch["input"])
    torch.testing.assert_close(losses["loss_kd"], KDLoss(1.0)(student(mixed), teacher(mixed)))
    expected = mixed_cross_entropy(student(mixed), batch["target"], batch["target"].roll(1), share)
    torch.testing.assert_close(losses["loss_cls"], 0.5 * expected)
    assert set(batch) == {"input", "target"}  # as it was


def test_without_labels_and_without_a_teacher():
    student, teacher = models()
    patient = MixupDistiller(student, {"teacher": teacher}, {"loss_kd": LOSSES["loss_kd"]})
    assert patient({"input": torch.randn(6, 3, 2, 2)})["loss_kd"] > 0
    alone = MixupDistiller(student, {}, {"loss_cls": LOSSES["loss_cls"]})
    assert alone(torch.randn(6, 3, 2, 2), torch.randint(5, (6,)))["loss_cls"] > 0


def test_what_a_teacher_said_beforehand_is_refused():
    student, teacher = models()
    distiller = MixupDistiller(student, {"teacher": teacher}, LOSSES)
    batch = {"input": torch.randn(6, 3, 2, 2), "target": torch.randint(5, (6,))}
    for key in ("teacher", "teacher.0"):
        with pytest.raises(ValueError, match="mixup needs a teacher that runs in the step"):
            distiller({**batch, key: torch.randn(6, 5)})
    with pytest.raises(ValueError, match="alpha must be > 0, got 0"):
        MixupDistiller(student, {"teacher": teacher}, LOSSES, alpha=0)
    with pytest.raises(ValueError, match="expected floating inputs"):
        mixup(torch.zeros(2, 3, dtype=torch.uint8))
    plain = Distiller(student, {"teacher": teacher}, {"loss_kd": LOSSES["loss_kd"]})
    assert plain({**batch, "teacher": torch.randn(6, 5)})["loss_kd"] > 0
