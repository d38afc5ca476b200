"""A step of each method waits for nothing on the device, and BSS compiles."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from kdtasks.core import Distiller
from kdtasks.core.terms import total_loss
from kdtasks.general import (
    ABLoss,
    BSSDistiller,
    BSSLoss,
    CWTMLoss,
    DKPPLoss,
    KDLoss,
    SequentialDMLDistiller,
    boundary_samples,
    mutual_losses,
    peer_agreement,
)
from tests.syncs import Syncs

BOUNDARY = ("student.boundary", "teacher.boundary", "student.boundary_valid")
KD = (KDLoss(1.0), ("student", "teacher"))


def network(width=6):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 3),
    )


def batch():
    return {"input": torch.randn(12, 1, 6, 6), "target": torch.arange(12) % 3}


def of(kind, losses, teacher=True, peers=(), **options):
    teachers = {"teacher": network(9)} if teacher else {}
    return kind(network(), teachers, losses, peers=peers, **options)


MUTUAL = {
    "loss_dml": (mutual_losses, ("peers", "target")),
    "agreement": (peer_agreement, ("peers",)),
}
BSS = {"loss_bss": (BSSLoss(), BOUNDARY), "loss_kd": KD}
METHODS = {
    "dml": lambda: of(Distiller, MUTUAL, False, [network(), network(4)]),
    "dml_sequential": lambda: of(SequentialDMLDistiller, MUTUAL, False, [network(), network(4)]),
    "bss": lambda: of(BSSDistiller, BSS),
    "bss_reject": lambda: of(BSSDistiller, BSS, reject=True, mean=(0.5,), std=(0.2,)),
    "ban": lambda: of(Distiller, {"loss_ban": KD}),
    "cwtm": lambda: of(Distiller, {"loss": (CWTMLoss(), ("student", "teacher", "target"))}),
    "dkpp": lambda: of(Distiller, {"loss": (DKPPLoss(), ("student", "teacher"))}),
    "ab": lambda: of(Distiller, {"loss_ab": (ABLoss(), ("student.1", "teacher.1"))}),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_reads_no_value_back_to_the_host(name):
    distiller, data = METHODS[name](), batch()
    distiller.build(data)
    with Syncs() as syncs:
        for losses in distiller.steps(data):
            total_loss(losses).backward()
    assert not syncs.found


@pytest.fixture
def attack():
    torch.manual_seed(0)
    model = network().eval().requires_grad_(False)
    x = batch()["input"]
    base = model(x).argmax(1)
    return model, x, base, (base + 1) % 3


BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_attack_compiles_once_whatever_the_values(attack, backend):
    model, x, base, target = attack
    plain = boundary_samples(model, x, base, target)
    assert (plain != x).any()
    torch.compiler.reset()
    compiled = torch.compile(boundary_samples, dynamic=False, backend=backend)
    torch.testing.assert_close(compiled(model, x, base, target), plain, rtol=1e-4, atol=1e-5)
    before = counters["stats"]["unique_graphs"]
    # none of these moves: each is of another class than its base
    other = (model(x + 1).argmax(1) + 1) % 3
    assert torch.equal(compiled(model, x + 1, other, (other + 1) % 3), x + 1)
    assert counters["stats"]["unique_graphs"] == before > 0


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this torch has no such flag"
)
def test_an_attack_is_one_graph_where_torch_traces_gradients(attack):
    model, x, base, target = attack
    plain = boundary_samples(model, x, base, target)
    torch.compiler.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(boundary_samples, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(model, x, base, target), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_models_give_equal_losses_and_gradients(backend):
    torch.compiler.reset()
    first = METHODS["bss"]()
    first.teachers["teacher"].model.load_state_dict(network(9).state_dict())
    other = BSSDistiller(
        copy.deepcopy(first.student),
        {"teacher": first.teachers["teacher"]},
        BSS,
        compile={"backend": backend},
    )
    data = batch()
    with torch.no_grad():
        data["target"] = first.student(data["input"]).argmax(1)
    found = []
    for distiller in (first, other):
        distiller.build(data)
        torch.manual_seed(3)
        losses = distiller(data)
        total_loss(losses).backward()
        grads = [p.grad for p in distiller.student.parameters()]
        found.append((losses, grads))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
