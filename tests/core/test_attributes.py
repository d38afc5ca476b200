"""Plain attributes go into a checkpoint that runs no code, and come back as they were."""

import io
from collections import OrderedDict, deque

import numpy as np
import torch
from torch import nn

from kdtasks.core.attributes import attributes_of, changed_attributes, set_attributes


class Memory:
    def __init__(self):
        self.rows, self.draw = torch.zeros(2, 3), torch.Generator().manual_seed(0)


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.temperature, self.step, self.last = nn.Linear(2, 2), 4.0, 0, None
        self.queue, self.seen, self.named = deque(maxlen=3), {1}, OrderedDict(a=torch.zeros(2))
        self.history, self.array, self.memory, self.rule = (
            [torch.zeros(1), max],
            np.zeros(3),
            Memory(),
            lambda x: x,
        )
        self.shared = self.named["a"]

    def move(self, k: float) -> None:
        self.step, self.last = self.step + 1, torch.full((2,), k).bfloat16()
        (
            self.queue.extend([k, k + 1]),
            self.seen.add(7),
            self.named["a"].fill_(k),
            self.history[0].add_(k),
        )
        self.array[1], self.memory.rows[0] = k, k
        self.extra = (np.float64(k), [True, None])
        self.memory.value = torch.rand(1, generator=self.memory.draw)


def test_whatever_a_module_keeps_beside_its_state_dict_comes_back():
    loss = Loss()
    fresh = attributes_of(loss, inside=True)
    loss.move(2.0)
    found = changed_attributes(attributes_of(loss, inside=True), fresh)
    assert "temperature" not in found and "fc" not in found and "rule" not in found
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    other = Loss()
    rule = other.rule
    set_attributes(other, torch.load(file, weights_only=True))
    assert (
        other.step == 1
        and other.last.dtype is torch.bfloat16
        and other.rule is rule
        and other.history[1] is max
    )
    # whoever holds it sees it
    assert other.shared is other.named["a"] and other.shared.tolist() == [2, 2]
    assert (
        other.queue == loss.queue
        and other.queue.maxlen == 3
        and other.seen == {1, 7}
        and other.extra == (2.0, [True, None])
    )
    loss.move(3.0), other.move(3.0)
    a, b = attributes_of(loss, inside=True), attributes_of(other, inside=True)
    assert a.keys() == b.keys() and not changed_attributes(a, b)


def test_what_holds_itself_or_has_a_gradient_is_left():
    memory = Memory()
    memory.list, memory.me, memory.graph = [1], memory, torch.ones(1, requires_grad=True) * 2
    memory.list.append(memory.list)
    found = attributes_of(memory, inside=True)
    assert "graph" not in found and found["list"] == ("list", [("plain", 1), ("left",)])
    assert "me" not in attributes_of(memory)
