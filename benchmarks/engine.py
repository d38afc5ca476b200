"""What a run costs beside its steps: mmengine's Runner, and importing a task."""

import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.distillation import terms
from benchmarks.measure import SGD, Line, clock, rounds, update
from kdtasks.classification import models
from kdtasks.core import Distiller


class Images(torch.utils.data.TensorDataset):
    def batch(self, index: Tensor, view: Tensor, seed: int) -> dict[str, Tensor]:
        return dict(zip(("input", "target"), self[index]))


def runner(o) -> Iterator[Line]:
    """200 steps of a tiny network by mmengine's Runner, with 4 reads and a checkpoint at the end,
    against the plain loop.
    """
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.loop import Lengths
    from kdtasks.engine.runner import StageRunner, StageSetup
    from kdtasks.engine.task import Task

    steps, students, images = 200, {}, Images(torch.randn(256, 1, 8, 8), torch.arange(256) % 10)
    task = Task(
        SimpleNamespace(
            __name__="benchmark",
            PRIMARY="accuracy",
            HIGHER_IS_BETTER=True,
            evaluate=lambda model, loader: {"accuracy": 0},
            example=None,
            pictures=None,
        )
    )
    options = {"amp": None, "accumulate": 1, "clip_grad": None, "ema": None}
    options |= {"sync_bn": False, "diagnose": False}

    def parts(name: str) -> tuple[Distiller, Loader]:
        torch.manual_seed(0)
        students[name], teacher = models.digits_cnn().to(o.device), models.digits_cnn().to(o.device)
        return Distiller(students[name], {"teacher": teacher}, terms()), Loader(
            images, 8, length=steps, device=o.device
        )

    def plain() -> float:
        distiller, loader = parts("plain")
        optimizer, start = torch.optim.SGD(distiller.parameters(), **SGD), clock(o)
        for batch in loader:
            update(sum(distiller(batch).values()), optimizer)
        return (clock(o) - start) / steps

    def engine() -> float:
        distiller, loader = parts("engine")
        with tempfile.TemporaryDirectory() as folder:
            setup = StageSetup(
                name="benchmark",
                folder=Path(folder),
                log_file=Path(folder) / "log",
                distiller=distiller,
                loader=loader,
                task=task,
                test_loader=None,
                optimizer=functools.partial(torch.optim.SGD, **SGD),
                schedule=[],
                train=("student", "losses"),
                lengths=Lengths(total=steps, log=50, validate=steps, checkpoint=steps),
                options=options,
            )
            stage = StageRunner(setup)
            start = clock(o)
            stage.train()
            return (clock(o) - start) / steps

    plain(), engine()
    # the same work
    torch.testing.assert_close(*(student.state_dict() for student in students.values()))
    times = rounds(o, {"plain": plain, "engine": engine})
    extra = [1000 * (e - p) for e, p in zip(times["engine"], times["plain"])]
    yield Line(
        "mmengine Runner beyond the plain loop",
        extra,
        1.0,
        "ms",
        f"plain: {times['plain'][0] * 1000:.3g} ms a step",
    )


def imports(o) -> Iterator[Line]:
    """Seven times (fewer if there are fewer rounds), by the wall clock of a new process that has
    torch already.
    """
    for task in ("general", "detection", "metric_learning", "incremental"):
        code = (
            "import time, torch; t = time.perf_counter(); import "
            f"kdtasks.{task}; print(time.perf_counter() - t)"
        )
        seconds = [
            float(
                subprocess.run(
                    [sys.executable, "-c", code], capture_output=True, text=True, check=True
                ).stdout
            )
            for _ in range(min(7, o.rounds))
        ]
        yield Line(f"import kdtasks.{task} beyond torch", seconds, 0.1, "s")
