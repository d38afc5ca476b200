"""What a batch may hold at its worst: each loss is finite, with a gradient of a sane size, or says
what it cannot do.
"""

import pytest
import torch

from kdtasks.detection import cwd_loss, pkd_loss
from kdtasks.general import (
    attention_transfer_loss,
    dist_loss,
    dkd_loss,
    feature_loss,
    hierarchical_context_loss,
    kd_loss,
    similarity_preserving_loss,
    srd_loss,
    standardized_kd_loss,
)

LOGITS = {
    "kd": kd_loss,
    "dkd": lambda s, t: dkd_loss(s, t, torch.arange(len(s)) % s.shape[1]),
    "dist": dist_loss,
    "standardized": standardized_kd_loss,
}
ROWS = {
    "srd": srd_loss,
    "correlation": lambda s, t: srd_loss(s, t, kind="correlation"),
    "similarity": similarity_preserving_loss,
    "mse": feature_loss,
    "cosine": lambda s, t: feature_loss(s, t, "cosine"),
}
MAPS = {
    "attention": attention_transfer_loss,
    "similarity": similarity_preserving_loss,
    "context": hierarchical_context_loss,
    "pkd": pkd_loss,
    "cwd": cwd_loss,
    "mse": feature_loss,
}
OF_SEVERAL_ROWS = ("srd", "correlation")
OF_SEVERAL_PLACES = ("attention", "cwd")
OF_ANY_SIZES = ("attention", "similarity", "pkd", "cwd")


@pytest.fixture(autouse=True)
def one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def dead(rows):
    rows[1] = 0
    return rows


def loud(*shape):
    return (60000 * torch.randn(*shape).sign()).half()


def faint(*shape):
    return (1e-7 * torch.randn(*shape)).half()


def check(loss, student, teacher, largest=100.0):
    """Value and gradient are finite, and the gradient of no absurd size."""
    student.requires_grad_()
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.dtype is torch.float32 and value.isfinite()
    assert gradient.isfinite().all() and gradient.abs().max() <= largest


@pytest.mark.parametrize("name", LOGITS)
def test_logits(name):
    loss, draw = LOGITS[name], torch.randn
    with pytest.raises(ValueError, match="two classes"):
        loss(draw(6, 1), draw(6, 1))
    for student, teacher in (
        (draw(1, 5), draw(1, 5)),
        (torch.zeros(6, 5), draw(6, 5)),  # a head that begins with zeros
        (torch.full((6, 5), 3.1), draw(6, 5)),
        (draw(6, 5), torch.zeros(6, 5)),
        (torch.zeros(6, 5), torch.zeros(6, 5)),
        (dead(draw(6, 5)), draw(6, 5)),
        (draw(6, 2), draw(6, 2)),
        (500 * torch.eye(6, 5), 500 * torch.eye(6, 5).flip(1)),
        (loud(6, 5), loud(6, 5)),
        (faint(6, 5), draw(6, 5).half()),
    ):
        check(loss, student, teacher)


@pytest.mark.parametrize("name", ROWS)
def test_rows(name):
    loss, draw = ROWS[name], torch.randn
    if name in OF_SEVERAL_ROWS:
        with pytest.raises(ValueError, match="two rows or more"):
            loss(draw(1, 5), draw(1, 5))
    else:
        check(loss, draw(1, 5), draw(1, 5))
    for student, teacher in (
        (dead(draw(6, 5)), draw(6, 5)),
        (draw(6, 5), dead(draw(6, 5))),
        (torch.zeros(6, 5), draw(6, 5)),
        (torch.zeros(6, 5), torch.zeros(6, 5)),
        (draw(6, 1), draw(6, 1)),
        (faint(6, 5), draw(6, 5).half()),
        (loud(6, 5), loud(6, 5)),
    ):
        check(loss, student, teacher, largest=1e4)


@pytest.mark.parametrize("name", MAPS)
def test_maps(name):
    loss, draw = MAPS[name], torch.randn
    places = (draw(3, 4, 1, 1), draw(3, 4, 1, 1))
    if name in OF_SEVERAL_PLACES:
        with pytest.raises(ValueError, match="one place"):
            loss(*places)
    else:
        check(loss, *places)
    if name == "pkd":
        with pytest.raises(ValueError, match="one image of one place"):
            loss(draw(1, 4, 1, 1), draw(1, 4, 1, 1))
    sizes = (draw(3, 4, 7, 5), draw(3, 4, 3, 2))
    if name in OF_ANY_SIZES:
        check(loss, *sizes)
    else:
        with pytest.raises(ValueError, match="expected two equal shapes"):
            loss(*sizes)
    for student, teacher in (
        (draw(1, 4, 3, 3), draw(1, 4, 3, 3)),
        (draw(2, 1, 5, 3), draw(2, 1, 5, 3)),
        (torch.zeros(2, 4, 3, 3), draw(2, 4, 3, 3)),
        (torch.ones(2, 4, 3, 3), draw(2, 4, 3, 3)),
        (draw(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)),
        (dead(draw(3, 4, 3, 3)), draw(3, 4, 3, 3)),
        (faint(2, 4, 3, 3), draw(2, 4, 3, 3).half()),
        (loud(2, 4, 3, 3), loud(2, 4, 3, 3)),
    ):
        check(loss, student, teacher, largest=1e4)


def test_attention_of_channels_that_stand_last():
    """Swin's maps and ViT's tokens; what is not said is an error where it can be seen."""
    student, teacher = torch.randn(2, 6, 5, 5), torch.randn(2, 40, 5, 5)
    expected = attention_transfer_loss(student, teacher)
    last = teacher.permute(0, 2, 3, 1)
    found = attention_transfer_loss(student, last, layout=("nchw", "nhwc"))
    torch.testing.assert_close(found, expected)
    tokens = torch.cat([torch.randn(2, 1, 40), teacher.flatten(2).mT], 1)
    layout = {"layout": ("nchw", "tokens"), "prefix_tokens": (0, 1)}
    torch.testing.assert_close(attention_transfer_loss(student, tokens, **layout), expected)
    with pytest.raises(ValueError, match="look like"):
        attention_transfer_loss(student, last)


def test_a_flat_row_of_dist_has_its_value_and_no_gradient_and_others_are_exact():
    student, teacher = torch.randn(6, 5).double(), torch.randn(6, 5).double()
    student[2] = 0.7
    student.requires_grad_()
    rows = dist_loss(student, teacher, intra=0.0)
    p, q = student.softmax(1), teacher.softmax(1)
    exact = [
        torch.corrcoef(torch.stack([a, b]))[0, 1] if k != 2 else torch.zeros(()).double()
        for k, (a, b) in enumerate(zip(p, q))
    ]
    torch.testing.assert_close(rows, 1 - torch.stack(exact).mean(), rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(rows, student)
    assert (gradient[2] == 0).all() and (gradient[[0, 1, 3, 4, 5]] != 0).any(1).all()
