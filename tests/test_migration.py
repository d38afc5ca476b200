"""docs/migration.md: torchdistill's own losses beside ours, on the same tensors, at the converted
weight.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kdtasks.general import (
    KDLoss,
    RKDLoss,
    StandardizedKDLoss,
    attention_transfer_loss,
    dist_loss,
    similarity_preserving_loss,
    srd_loss,
)
from kdtasks.metric_learning import pkt_loss

theirs = pytest.importorskip("torchdistill.losses.mid_level")
F64 = torch.float64
LOGITS = {
    f"{who}_module_{what}": value
    for who in ("student", "teacher")
    for what, value in (("path", "."), ("io", "output"))
}
OUTPUTS = {"student_output_path": ".", "teacher_output_path": "."}


class Pair(NamedTuple):
    """A loss there; ours at the weight that docs/migration.md gives; what both are of."""

    there: Callable
    ours: Callable[[Tensor, Tensor], Tensor]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


def kd(**settings):
    return lambda: theirs.KDLoss(**LOGITS, temperature=4.0, **settings)


PAIRS = {
    # without a label's part it leaves T² out, which here is the weight
    "KDLoss(alpha=None)": Pair(kd(beta=1.0), lambda s, t: KDLoss(4.0)(s, t) / 16, ((8, 5), (8, 5))),
    "LogitStdKDLoss": Pair(
        lambda: theirs.LogitStdKDLoss(**LOGITS, temperature=2.0, beta=1.0),
        lambda s, t: StandardizedKDLoss(2.0)(s, t) / 4,
        ((8, 5), (8, 5)),
    ),
    "DISTLoss": Pair(
        lambda: theirs.DISTLoss(**LOGITS, tau=4.0),
        lambda s, t: dist_loss(s, t, 4.0),
        ((8, 5), (8, 5)),
    ),
    "ATLoss(mode='code')": Pair(
        lambda: theirs.ATLoss(
            {"1": {who: {"path": ".", "io": "output"} for who in ("student", "teacher")}}
        ),
        attention_transfer_loss,
        ((4, 3, 6, 5), (4, 7, 6, 5)),
    ),
    "PKTLoss": Pair(lambda: theirs.PKTLoss(**LOGITS), pkt_loss, ((8, 4), (8, 6))),
    "RKDLoss": Pair(
        lambda: theirs.RKDLoss(**OUTPUTS, dist_factor=25.0, angle_factor=50.0, reduction="mean"),
        RKDLoss(25.0, 50.0),
        ((8, 4), (8, 6)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_converted_weight_gives_the_same_loss_and_gradient(name):
    torch.manual_seed(0)
    pair = PAIRS[name]
    student, teacher = (2 * torch.randn(*shape, dtype=F64) for shape in pair.shapes)
    found = []
    for loss in (as_a_function(pair.there()), pair.ours):
        student = student.detach().requires_grad_()
        value = loss(student, teacher)
        found.append((value.detach(), *torch.autograd.grad(value, student)))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_kd_beside_labels(alpha):
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 5, dtype=F64), torch.randn(8, 5, dtype=F64)
    target = torch.randint(5, (8,))
    there = as_a_function(kd(alpha=alpha)())(student, teacher, target)
    ours = alpha * torch.nn.functional.cross_entropy(student, target)
    torch.testing.assert_close(there, ours + (1 - alpha) * KDLoss(4.0)(student, teacher))


def test_srd_is_two_losses():
    """Of normalised features: 2·SRD, and KD without T²."""
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 6, dtype=F64), torch.randn(8, 6, dtype=F64)
    norm = torch.nn.BatchNorm1d(6, eps=1e-4, affine=False).double()
    roles = {
        f"{who}_{what}_module_{part}": value
        for who in ("student", "teacher")
        for what in ("feature", "linear")
        for part, value in (("path", what), ("io", "output"))
    }
    there = theirs.SRDLoss(**roles, exponent=4.0, temperature=2.0)
    logits = {who: torch.randn(8, 5, dtype=F64) for who in ("student", "teacher")}
    entries = [
        {"feature": {"output": norm(features)}, "linear": {"output": logits[who]}}
        for who, features in (("student", student), ("teacher", teacher))
    ]
    ours = 2 * srd_loss(student, teacher, eps=1e-30) + KDLoss(2.0)(*logits.values()) / 4
    torch.testing.assert_close(there(*entries), ours)


def test_similarity_preserving_is_another_loss_there():
    """Its rows are divided by the sum of their absolute values, not by their length."""
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 4, dtype=F64), torch.randn(8, 6, dtype=F64)
    there = as_a_function(theirs.SPKDLoss(**OUTPUTS, reduction="batchmean"))(student, teacher)
    grams = [f @ f.T for f in (student, teacher)]
    by_sum, by_length = (
        (one - other).square().sum() / 64
        for one, other in (
            [gram / gram.norm(p, dim=1, keepdim=True) for gram in grams] for p in (1, 2)
        )
    )
    torch.testing.assert_close(there, by_sum)
    torch.testing.assert_close(similarity_preserving_loss(student, teacher), by_length)


def as_a_function(loss):
    """Of tensors, where it is of dicts of modules' outputs."""
    return lambda *tensors: loss(*({".": {"output": t}} for t in tensors[:2]), *tensors[2:])
