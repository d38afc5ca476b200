"""A step with DIST, and one with CRD, through the library against the same step written by hand."""

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.distillation import pair
from benchmarks.measure import SGD, Line, Step, ratio, same_work, step_times, update
from kdtasks.core import Distiller
from kdtasks.general import CRDLoss, DISTLoss

T, DIST = 4.0, 2.0  # temperature and weight as released for CIFAR-100
SAMPLES, CRD = 50_000, 0.8


def dist_step(o: argparse.Namespace) -> Iterator[Line]:
    """Cross-entropy and DIST."""
    yield from compared(
        o, "DIST step: ", dist_by_hand, lambda: (DISTLoss(T), ("student", "teacher"), DIST)
    )


def crd_step(o: argparse.Namespace) -> Iterator[Line]:
    """Cross-entropy and CRD of 50,000 images, 16,384 negatives, 128 dimensions, as released."""
    of = ("student.flatten", "teacher.flatten", "index", "target")
    yield from compared(o, "CRD step: ", crd_by_hand, lambda: (crd_loss(), of, CRD))


def compared(
    o: argparse.Namespace, what: str, by_hand: Callable[..., Step], entry: Callable[[], tuple]
) -> Iterator[Line]:
    """The library against the step by hand; a second one of these shows what the noise does."""
    variants = {"by hand": by_hand(o), "by hand again": by_hand(o), "library": library(o, entry())}
    same_work(variants)
    times = step_times(o, variants)
    yield ratio(what, times, "by hand again", "by hand")
    yield ratio(what, times, "library", "by hand", bar=1.02)


def library(o: argparse.Namespace, entry: tuple) -> Step:
    """The Distiller in a plain loop."""
    teacher, student, input, target = pair(o)
    losses = {"loss_cls": (nn.CrossEntropyLoss(), ("student", "target")), "loss": entry}
    distiller = Distiller(student, {"teacher": teacher}, losses)
    batch = {"input": input, "target": target, "index": places(target)}
    distiller.build(batch)
    distiller.to(input.device)
    optimizer = torch.optim.SGD(distiller.parameters(), **SGD)

    def step() -> Tensor:
        torch.manual_seed(1)  # of the negatives
        return update(sum(distiller(batch).values()), optimizer)

    return step


def places(target: Tensor) -> Tensor:
    """The images' numbers in a training set."""
    return torch.arange(len(target), device=target.device) * 7 % SAMPLES


def dist_by_hand(o: argparse.Namespace) -> Step:
    teacher, student, input, target = pair(o)
    optimizer = torch.optim.SGD(student.parameters(), **SGD)

    def correlation(rows: Tensor, others: Tensor) -> Tensor:
        rows, others = rows - rows.mean(1, keepdim=True), others - others.mean(1, keepdim=True)
        return ((rows * others).sum(1) / (rows.norm(dim=1) * others.norm(dim=1) + 1e-8)).mean()

    def step() -> Tensor:
        torch.manual_seed(1)
        with torch.no_grad():
            taught = (teacher(input) / T).softmax(1)
        logits = student(input)
        probabilities = (logits / T).softmax(1)
        dist = T**2 * (
            2 - correlation(probabilities, taught) - correlation(probabilities.T, taught.T)
        )
        return update(F.cross_entropy(logits, target) + DIST * dist, optimizer)

    return step


def crd_loss() -> CRDLoss:
    torch.manual_seed(0)
    return CRDLoss(SAMPLES, 64, 64)


def crd_by_hand(o: argparse.Namespace) -> Step:
    """The same algorithm, one product for the negatives of a batch, without checks."""
    start = crd_loss().to(o.device)
    teacher, student, input, target = pair(o)
    index, k, tau = places(target), start.negatives, start.temperature
    maps = (start.student_map, start.teacher_map)
    memories = [start.student_memory, start.teacher_memory]
    classes, scales = start.classes, [None, None]
    optimizer = torch.optim.SGD(
        [*student.parameters(), *(p for linear in maps for p in linear.parameters())], **SGD
    )
    seen = {}
    for role, model in (("student", student), ("teacher", teacher)):
        model.flatten.register_forward_hook(
            lambda module, args, output, key=role: seen.__setitem__(key, output)
        )

    def side(number: int, vectors: Tensor, memory: Tensor, order: Tensor, usable: Tensor) -> Tensor:
        positives = (vectors * memory[index]).sum(1) / tau
        others = vectors @ memory[order].T / tau
        if scales[number] is None:
            total = positives.detach().exp().sum() + others.detach().exp()[usable].sum()
            scales[number] = total / (usable.sum() + len(positives)) * SAMPLES
        positives, others = positives - scales[number].log(), others - scales[number].log()
        noise = k / SAMPLES
        right = positives - (positives.exp() + noise + 1e-7).log()
        wrong = (noise / (others.exp() + noise + 1e-7)).log().masked_fill(~usable, 0)
        return -(right.sum() + wrong.sum()) / len(positives)

    def step() -> Tensor:
        torch.manual_seed(1)
        with torch.no_grad():
            teacher(input)
        logits = student(input)
        vectors = [
            F.normalize(linear(seen[role])) for linear, role in zip(maps, ("student", "teacher"))
        ]
        order = torch.randperm(SAMPLES, device=index.device)[: 2 * k]
        same = (classes[order] == target[:, None]) | (order == index[:, None])
        usable = ~same & ((~same).cumsum(1) <= k)
        loss = side(0, vectors[0], memories[1], order, usable)
        loss = loss + side(1, vectors[1], memories[0], order, usable)
        with torch.no_grad():
            classes[index] = target
            for memory, new in zip(memories, vectors):
                memory[index] = F.normalize(0.5 * memory[index] + 0.5 * new)
        return update(F.cross_entropy(logits, target) + CRD * loss, optimizer)

    return step
