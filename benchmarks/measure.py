"""How a figure is measured; benchmarks/table.py says what it is."""

import argparse
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
Step = Callable[[], Tensor]  # trains once and returns its loss


@dataclass
class Line:
    """One line of the table: a ratio, or a figure with a unit; no samples where nothing could be
    measured.
    """

    what: str
    samples: list[float]
    bar: float | None = None
    unit: str = ""
    note: str = ""

    def __post_init__(self):
        self.value = statistics.median(self.samples) if self.samples else None
        self.interval = median_interval(self.samples) if self.samples else None
        self.ok = self.interval[0] <= self.bar if self.samples and self.bar is not None else None


class Mean(Line):
    """The mean of some seeds, and Student's interval."""

    def __post_init__(self):
        from kdtasks.engine.compare.statistics import interval

        self.value, *self.interval = interval(self.samples)
        self.ok = None


def median_interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """The narrowest [k-th smallest, k-th largest] that covers the median with at least ``level``; k
    = 1 if none does.
    """
    ordered, n = sorted(values), len(values)
    # 2^n times the chance that fewer than k values lie below the median
    k, tail = 1, 1
    while k < (n + 1) // 2 and 2 * (tail + math.comb(n, k)) / 2**n <= 1 - level:
        tail += math.comb(n, k)
        k += 1
    return ordered[k - 1], ordered[n - k]


def ratio(
    what: str, times: dict[str, list[float]], a: str, b: str, bar: float | None = None
) -> Line:
    """The time of ``a`` over that of ``b``, round by round; ``what`` stands before their names."""
    what = f"{what}{a} / {b}"
    if "torchdistill" in (a, b) and "torchdistill" not in times:
        return Line(what, [], bar, note="not installed: uv sync --extra bench")
    note = f"{b}: {1000 * statistics.median(times[b]):.3g} ms a step"
    return Line(what, [x / y for x, y in zip(times[a], times[b])], bar, note=note)


def clock(o) -> float:
    if o.device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def rounds(o, measures: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each measure returned in each round; every round has another order."""
    figures, order, draw = {name: [] for name in measures}, list(measures), random.Random(0)
    for _ in range(o.rounds):
        draw.shuffle(order)
        for name in order:
            figures[name].append(measures[name]())
    return figures


def fewer(o, rounds: int) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(o), "rounds": min(rounds, o.rounds)})


def step_times(o, variants: dict[str, Step], steps: int | None = None) -> dict[str, list[float]]:
    """Seconds a step of each variant, one number a round, of ``steps`` steps; None: of as many as
    fill 50 ms.
    """

    def turn(step: Step, steps: int) -> float:
        start = clock(o)
        for _ in range(steps):
            step()
        return (clock(o) - start) / steps

    # this is the warm-up too
    fastest = min(turn(step, 1) for _ in range(3) for step in variants.values())
    count = steps or math.ceil(0.05 / max(fastest, 1e-6))
    return rounds(o, {name: lambda step=step: turn(step, count) for name, step in variants.items()})


def update(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def same_work(variants: dict[str, Step]) -> None:
    """Run the first step of each; RuntimeError where losses differ in 6 digits, or gradients by
    1e-4 of their norm.
    """
    first_steps = {}
    for name, step in variants.items():
        grads: list[Tensor] = []
        handle = register_optimizer_step_pre_hook(
            lambda optimizer, *_, grads=grads: grads.extend(
                p.grad.flatten().clone()
                for group in optimizer.param_groups
                for p in group["params"]
            )
        )
        first_steps[name] = (float(step()), torch.cat(grads))
        handle.remove()
    (first, (loss, grad)), *others = first_steps.items()
    for name, (other_loss, other) in others:
        apart = (
            float((other - grad).norm() / grad.norm()) if other.shape == grad.shape else math.inf
        )
        if not math.isclose(loss, other_loss, rel_tol=5e-6) or not apart <= 1e-4:
            raise RuntimeError(
                f"{first} and {name} do different work: losses {loss:.8g} and {other_loss:.8g}, "
                f"gradients {apart:.1e} of their norm apart"
            )


def gradient(loss: Callable, student: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(student, *rest)
    return value.detach(), *torch.autograd.grad(value, student)


def apart(gradients: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    """The larger of the two relative errors, of the loss and of its gradient."""
    return max(float((x - y).norm() / y.norm()) for x, y in zip(gradients, exact))


def same_gradients(steps: dict[str, Callable[[], tuple[Tensor, Tensor]]]) -> None:
    """RuntimeError where losses or gradients differ by 1e-4 of their size."""
    first, *others = steps
    for name in others:
        if not (error := apart(steps[name](), steps[first]())) <= 1e-4:
            raise RuntimeError(f"{first} and {name} do different work: {error:.1e} apart")


def peak_bytes(o, work: Callable[[], object]) -> int:
    """The most that ``work`` had allocated at once beyond what was there before, by torch's
    allocator.
    """
    if o.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    events = sorted(
        (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    )
    return max(itertools.accumulate(e.nbytes() for e in events))
