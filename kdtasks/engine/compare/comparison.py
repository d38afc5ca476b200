"""A comparison: plan the jobs, run them, collect what they say."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdtasks.core.files import write_atomically
from kdtasks.core.names import did_you_mean
from kdtasks.engine import checkpoint, lock
from kdtasks.engine.check import check
from kdtasks.engine.compare.files import write_page
from kdtasks.engine.compare.jobs import run_jobs, start_workers
from kdtasks.engine.compare.plan import plan_jobs
from kdtasks.engine.compare.result import collect
from kdtasks.engine.compare.show import plot
from kdtasks.engine.compare.sources import check_unchanged
from kdtasks.engine.errors import ConfigError


def compare(
    configs: Mapping[str, Mapping],
    seeds: Sequence[int],
    work_dir: str | Path = "work_dirs",
    device: str | None = None,
    teacher_per_seed: bool = False,
    quiet: bool = False,
    workers: int = 1,
    devices: Sequence[str] = (),
    reference: str | None = None,
) -> dict:
    """Train every config for every seed beside its control, and write ``compare.json``,
    ``compare.png`` and ``compare.html``.

    Args:
        configs: ``{name: config}``, each from :func:`kdtasks.engine.config.load`.
        seeds: of students, order and views; at least three for a verdict.
        work_dir: where the runs are; one comparison at a time may use it.
        device: ``'cpu'``, ``'cuda'``; None: CUDA where there is one.
        teacher_per_seed: train a teacher for each seed; else the teacher of seed 0 serves all.
        quiet: no progress.
        workers, devices: see :func:`kdtasks.engine.compare.jobs.start_workers`.
        reference: the config, by its name, whose students those of the others are compared with,
            too, plain KD say; None: the first.

    Returns:
        The content of ``compare.json``.

    Raises:
        ConfigError: what cannot be compared, what is wrong in a config, a folder in which another
            process works, or one whose weights or data were others; before the first step of any.
    """
    work_dir = Path(work_dir)
    if reference is not None and reference not in configs:
        raise ConfigError(
            f"no config is called {reference!r}, which is to be the reference; "
            + did_you_mean(reference, configs)
        )
    arms, jobs = plan_jobs(configs, seeds, work_dir, device, teacher_per_seed)
    todo = [job for job in jobs if job.results is None]
    for job in todo:
        lock.check_free(job.folder)
    unfinished = [arm for arm in arms if any(job in todo for job in arm.jobs.values())]
    new = [arm.experiment for arm in unfinished]
    with start_workers(device, workers if todo else 1, devices if todo else ()) as pool:
        for experiment in new:
            experiment.data.share(new[0].data)  # equal data is read once
            check(experiment)
        for arm in unfinished:
            check_unchanged(arm, device)
        for experiment in new:
            experiment.data.clear()  # the data is read again by the runs that need it
        run_jobs(todo, pool, devices[0] if devices else device, workers, quiet)
    result = collect(arms, jobs, list(seeds), work_dir, teacher_per_seed, reference)
    checkpoint.save_json(result, work_dir / "compare.json")
    write_atomically(
        work_dir / "compare.png", lambda path: plot(result, arms[0].experiment.task, path)
    )
    title = ", ".join(configs) if len(configs) <= 3 else f"{len(configs)} configs"
    write_page({title: result}, work_dir / "compare.html")
    return result
