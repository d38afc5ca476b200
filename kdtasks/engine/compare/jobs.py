"""The jobs of a comparison, one after the other or side by side, each in a process of its own."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue

from kdtasks.engine import signals
from kdtasks.engine.compare.plan import TrainingJob
from kdtasks.engine.errors import ConfigError


@contextmanager
def start_workers(
    device: str | None = None, workers: int = 1, devices: Sequence[str] = ()
) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for jobs side by side, which import what they need while the caller goes on; None
    for one job at a time, which needs no other process.

    Args:
        device: ``'cpu'``, ``'cuda'``; None: CUDA where there is one.
        workers: jobs at a time. With several, each has a process of its own and an equal share of
            the processors as torch's threads, unless its config says ``threads``: then the numbers
            are those of one job after the other, bit for bit.
        devices: of the workers, in turn: ``'cuda:0'``, ``'cuda:1'`` …
    """
    if workers == 1 and len(devices) <= 1:
        yield None
        return
    places = list(devices) or [device] * workers
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")  # a fork of torch's threads may hang
    free = context.SimpleQueue()
    for number in range(workers):
        free.put(places[number % len(places)])
    pool = ProcessPoolExecutor(workers, context, _prepare_worker, (free, threads, list(sys.path)))
    try:
        for _ in range(workers):
            pool.submit(int)  # starts a process
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            # each saves a checkpoint after the step in hand
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def run_jobs(
    jobs: Sequence[TrainingJob],
    pool: ProcessPoolExecutor | None = None,
    device: str | None = None,
    workers: int = 1,
    quiet: bool = False,
) -> None:
    """Train what is not trained yet.

    Args:
        jobs: those that others need come before them.
        pool: of :func:`start_workers`, which runs ``workers`` jobs at a time; None: one after the
            other, in this process, on ``device``.
        quiet: no progress.

    Raises:
        ConfigError: no such device.
        RuntimeError: a job has failed or its process has died; says which, and its folder.
    """
    if pool is not None:
        _run_side_by_side(pool, jobs, workers, quiet)
        return
    for number, job in enumerate(jobs, 1):
        _say(f"[{number}/{len(jobs)}] {job.title}: {job.folder}", quiet)
        job.finish(device, quiet)


def _run_side_by_side(
    pool: ProcessPoolExecutor, jobs: Sequence[TrainingJob], workers: int, quiet: bool
) -> None:
    waiting, running, started = list(jobs), {}, {}
    while waiting or running:
        blocked = {id(job) for job in [*waiting, *running.values()]}
        ready = [
            job for job in waiting if blocked.isdisjoint(id(other) for other in job.given.values())
        ]
        for job in ready[: workers - len(running)]:
            waiting.remove(job)
            started[id(job)] = time.perf_counter()
            running[pool.submit(_finish, job, workers)] = job
            _say(f"started  {job.title}: {job.folder}", quiet)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            _check_result(future, job)
            seconds = time.perf_counter() - started[id(job)]
            left = len(waiting) + len(running)
            _say(f"finished {job.title}: {seconds:.0f} s; {left} of {len(jobs)} are left", quiet)


def _check_result(future: Future, job: TrainingJob) -> None:
    try:
        future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a process died while jobs ran, {job.title} among them "
            f"({job.folder}); the same command goes on from there"
        ) from error
    except Exception as error:
        kind = ConfigError if isinstance(error, ConfigError) else RuntimeError
        raise kind(f"{job.title} ({job.folder}): {error}") from error


_place: str | None = None  # the device of this worker


def _prepare_worker(free: SimpleQueue[str | None], threads: int, path: list[str]) -> None:
    """Take a device and a share of the processors; import, from where the first process does, what
    a run imports."""
    global _place
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _place = free.get()
    sys.path[:] = path
    if _place and _place.startswith("cuda:"):
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(int(_place.removeprefix("cuda:")))
        _place = "cuda"
    # as in a run of its own: what is spawned would have its data's workers spawned too
    multiprocessing.set_start_method("fork", force=True)
    import torch

    import kdtasks.engine.hooks  # noqa: F401  mmengine's Runner, the slowest of them

    torch.set_num_threads(min(threads, torch.get_num_threads()))


def _end_with_parent() -> None:
    """A worker whose first process was killed would train on, unseen."""
    first = multiprocessing.parent_process()
    if first is not None:
        first.join()
        # the first is heard after a step, when its checkpoint is saved
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)


def _visible(number: int) -> str:
    """The name of a device for CUDA_VISIBLE_DEVICES, which may name some of them already."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[number] if names else str(number)


def _finish(job: TrainingJob, workers: int) -> None:
    try:
        job.finish(_place, quiet=True, side_by_side=workers)
    except (signals.Terminated, KeyboardInterrupt) as told:
        # saved; a worker that ended while it waited may hold the lock of the queue for ever
        terminated = isinstance(told, signals.Terminated)
        os._exit(signals.TERMINATED if terminated else signals.INTERRUPTED)


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
