"""What build and every other trial of a model leaves behind: nothing, whatever kind of state the
model or the loss has.
"""

import copy
import random
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao import quantization

from kdtasks.core import Distiller
from kdtasks.core.trial import keep_state, try_out

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated", "ignore:Please use quant_min"
)

CLS = (F.cross_entropy, ("student", "target"))


def batch(rows=6, scale=1.0):
    generator = torch.Generator().manual_seed(7)
    return {
        "input": scale * torch.randn(rows, 3, 8, 8, generator=generator),
        "target": torch.arange(rows) % 3,
    }


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3)
    )


class Counting(nn.Module):
    """Keeps state of every sort: a buffer that grows, one that is replaced, a frozen parameter,
    plain attributes.
    """

    def __init__(self):
        super().__init__()
        self.body = convolutions()
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("grown", torch.zeros(0))
        self.momentum = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.calls, self.sizes, self.last, self.queue = (
            0,
            [1],
            {"mean": torch.zeros(1)},
            deque([1], maxlen=2),
        )

    def forward(self, x):
        self.replaced = self.replaced + 1
        self.grown.resize_(4).fill_(1)
        self.momentum.data.mul_(0.9).add_(1)
        self.calls += 1
        self.sizes.append(len(x))
        self.queue.append(self.calls)
        self.last["mean"].add_(x.mean())
        self.last["new"] = self.found = x.detach()
        x = x + 0 * (random.random() + np.random.rand())
        return self.body(F.dropout(x, 0.5, self.training))


def quantized():
    model = nn.Sequential(quantization.QuantStub(), *convolutions())
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(model.train())


def everything(module):
    """All state that a run could move, in plain values."""
    found = {name: value.tolist() for name, value in module.state_dict().items()}
    internals = nn.Module().__dict__
    for name, part in module.named_modules():
        found |= {
            f"{name}.{key}": copy.deepcopy(value)
            for key, value in part.__dict__.items()
            if key not in internals and not callable(value)
        }
    return str(found), [part.training for part in module.modules()]


def streams():
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        np.random.get_state()[2],
    )


@pytest.mark.parametrize("make", [convolutions, Counting, quantized])
@pytest.mark.parametrize("role", ["student", "teacher", "peer"])
def test_build_and_tensors_move_nothing_of_any_model(make, role):
    models = {
        name: make() if name == role else convolutions() for name in ("student", "teacher", "peer")
    }
    losses = {
        "loss_cls": CLS,
        "loss_same": (F.mse_loss, ("student", "teacher")),
        "loss_peer": (F.mse_loss, ("peer1", "student")),
    }
    distiller = Distiller(
        models["student"], {"teacher": models["teacher"]}, losses, peers=[models["peer"]]
    )
    # observers and queues hold something already
    distiller(batch())
    before, drawn = [everything(model) for model in models.values()], streams()
    kept = [
        id(value) for model in models.values() for value in (*model.parameters(), *model.buffers())
    ]
    for trial in (distiller.build, distiller.tensors):
        trial(batch(scale=3.0))
        assert [everything(model) for model in models.values()] == before and streams() == drawn
        assert [
            id(value)
            for model in models.values()
            for value in (*model.parameters(), *model.buffers())
        ] == kept
    distiller(batch(scale=3.0))
    if make is not convolutions:
        assert everything(models[role]) != before[list(models).index(role)], (
            "a step moves it, so a trial could have"
        )


class Queue(nn.Module):
    """A loss with a memory, sized by build, that each call fills."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.register_buffer("rows", None)

    def build(self, student):
        self.rows, self.width = torch.zeros(4, student.shape[1]), student.shape[1]

    def forward(self, student):
        self.rows[self.count % 4] = student[0].detach()
        self.count += 1
        return (student - self.rows.mean(0)).square().mean()


class _Mean(nn.Module):
    def forward(self, x):
        return x.mean()


class Remembers:
    """The same without being a module."""

    def __init__(self):
        self.seen = []

    def __call__(self, student):
        self.seen.append(student.detach())
        return student.square().mean()


def test_build_fills_no_queue_and_keeps_what_a_loss_has_built():
    queue, plain, lazy = Queue(), Remembers(), nn.LazyLinear(1)
    distiller = Distiller(
        convolutions(),
        losses={
            "loss_q": (queue, "student"),
            "loss_p": (plain, "student"),
            "loss_lazy": (nn.Sequential(lazy, _Mean()), "student"),
        },
    )
    distiller.build(batch())
    assert (
        queue.count == 0
        and not queue.rows.any()
        and queue.rows.shape == (4, 3)
        and queue.width == 3
    )
    assert plain.seen == [] and lazy.in_features == 3
    distiller(batch())
    assert queue.count == 1 and queue.rows.any() and len(plain.seen) == 1
    filled = queue.rows.clone()
    distiller.build(batch())
    assert queue.count == 1 and torch.equal(queue.rows, filled) and len(plain.seen) == 1


def test_a_batch_of_one_row_is_tried_as_ever():
    distiller = Distiller(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
        losses={"loss_cls": CLS},
    )
    assert distiller.build(batch(1))["student"] == (1, 3)


def test_tried_runs_in_the_mode_and_puts_back_what_fails_too():
    model = Counting()
    before = everything(model)
    for training in (True, False):
        with pytest.raises(ZeroDivisionError), try_out(model, training):
            assert model.training == training and not torch.is_grad_enabled()
            model(batch()["input"])
            assert model.calls == 1
            raise ZeroDivisionError
        assert everything(model) == before


def test_containers_and_tensors_are_the_same_objects_afterwards():
    model = Counting()
    own = model.sizes, model.queue, model.last, model.last["mean"], model.grown
    with keep_state(model.modules()):
        model(batch()["input"])
        model.sizes = None
    assert all(
        a is b
        for a, b in zip(
            own, (model.sizes, model.queue, model.last, model.last["mean"], model.grown)
        )
    )
