"""An attack of BSS against its passes; a step of DML against those of as many students."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.distillation import pair
from benchmarks.measure import SGD, Line, Step, ratio, same_work, step_times, update
from kdtasks.core import Distiller
from kdtasks.engine.processes import keep_memory
from kdtasks.general import boundary_samples, mutual_losses

MOVES = 10


def bss_attack(o) -> Iterator[Line]:
    """Ten moves of 64 images, all of which stay in their class; against twenty passes: ten forwards
    and ten gradients of the input.
    """
    teacher, _, _, _ = pair(o)
    input = torch.randn(64, 3, 32, 32, device=o.device)
    with torch.no_grad():
        order = teacher(input).argsort(1, descending=True)
    base, target = order[:, 0], order[:, -1]

    def attack() -> Tensor:
        return boundary_samples(teacher, input, base, target, 1e-6, MOVES)

    def passes() -> Tensor:
        for _ in range(MOVES):
            x = input.detach().requires_grad_()
            logits = teacher(x)
            gap = logits.gather(1, base[:, None]) - logits.gather(1, target[:, None])
            (slope,) = torch.autograd.grad(gap.sum(), x)
        return slope

    variants = {"64 images moved 10 times": attack, "10 forwards and 10 input gradients": passes}
    yield ratio("BSS: ", step_times(o, variants), *variants, bar=1.1)


def peers(o) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Two students that differ, images and labels: the same values in every call."""
    _, student, input, target = pair(o)
    _, peer, _, _ = pair(o)
    with torch.no_grad():
        peer.fc.weight.mul_(2)
    return student, peer, input, target


def by_hand(o) -> Step:
    """A DML step of two peers in plain PyTorch."""
    student, peer, input, target = peers(o)
    optimizer = torch.optim.SGD([*student.parameters(), *peer.parameters()], **SGD)

    def step() -> Tensor:
        logits = [student(input), peer(input)]
        log_p = [F.log_softmax(z, 1) for z in logits]
        loss = sum(F.cross_entropy(z, target) for z in logits)
        for log_q, other in (log_p, log_p[::-1]):
            other = other.detach()
            loss = loss + F.kl_div(log_q, other, reduction="batchmean", log_target=True)
        return update(loss, optimizer)

    return step


def dml_step(o) -> Iterator[Line]:
    """Two peers through the Distiller, one optimizer; against two students, each by its labels.

    First in a process as it comes; then in one that keeps its memory, as a run of the engine does,
    and the rows after this one with it. The graphs of both peers are there at once, and where the
    memory of the second one is given back after each step, it costs an eighth of a small network's
    step to take it anew, by hand as well.
    """
    student, peer, input, target = peers(o)
    entry = {"loss_dml": (mutual_losses, ("peers", "target"))}
    distiller = Distiller(student, losses=entry, peers=[peer])
    together = torch.optim.SGD(distiller.parameters(), **SGD)

    def mutual() -> Tensor:
        return update(sum(distiller(input, target).values()), together)

    def alone() -> Step:
        _, student, input, target = pair(o)
        optimizer = torch.optim.SGD(student.parameters(), **SGD)
        return lambda: update(F.cross_entropy(student(input), target), optimizer)

    first, second = alone(), alone()
    variants = {
        "DML step of 2 peers": mutual,
        "2 students' steps": lambda: (first(), second())[1],
        "by hand": by_hand(o),
    }
    same_work({name: variants[name] for name in ("by hand", "DML step of 2 peers")})
    times = step_times(o, variants)
    yield ratio("", times, "DML step of 2 peers", "2 students' steps")
    yield ratio("DML: ", times, "DML step of 2 peers", "by hand")
    keep_memory()
    times = step_times(o, variants)
    yield ratio("memory kept: ", times, "DML step of 2 peers", "2 students' steps", bar=1.03)
    yield ratio("memory kept: DML: ", times, "DML step of 2 peers", "by hand")
