"""The command line of tools/compare.py."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdtasks.core.files import write_atomically
from kdtasks.engine import checkpoint
from kdtasks.engine import config as configurations
from kdtasks.engine.check import check
from kdtasks.engine.cli import common_arguments, config_names, pipe_may_close, plain_errors
from kdtasks.engine.compare.jobs import run_jobs
from kdtasks.engine.compare.plan import plan_jobs
from kdtasks.engine.compare.result import collect
from kdtasks.engine.compare.show import plot, show


def compare(configs: Mapping[str, Mapping], seeds: Sequence[int], work_dir: str | Path = "work_dirs",
            device: str | None = None, teacher_per_seed: bool = False, quiet: bool = False,
            workers: int = 1, devices: Sequence[str] = ()) -> dict:
    """Train every config for every seed beside its control, and write ``compare.json`` and ``compare.png``.

    Args:
        configs: ``{name: config}``, each from :func:`kdtasks.engine.config.load`.
        seeds: of students, order and views; at least three for a verdict.
        work_dir: where the runs are; one comparison at a time may use it.
        device: ``'cpu'``, ``'cuda'``; None: CUDA where there is one.
        teacher_per_seed: train a teacher for each seed; else the teacher of seed 0 serves all.
        quiet: no progress.
        workers, devices: see :func:`kdtasks.engine.compare.jobs.run_jobs`.

    Returns:
        The content of ``compare.json``.

    Raises:
        ConfigError: what cannot be compared, or what is wrong in a config; before the first step of any.
    """
    work_dir = Path(work_dir)
    arms, jobs = plan_jobs(configs, seeds, work_dir, device, teacher_per_seed)
    todo = [job for job in jobs if job.results is None]
    for arm in arms:
        if any(job in todo for job in arm.jobs.values()):
            check(arm.run)
            arm.run._sets.clear()                                       # the data is read again by the runs that need it
    run_jobs(todo, device, workers, devices, quiet)
    result = collect(arms, jobs, list(seeds), work_dir, teacher_per_seed)
    checkpoint.save_json(result, work_dir / "compare.json")
    write_atomically(work_dir / "compare.png", lambda path: plot(result, path))
    return result


@pipe_may_close()
def main(arguments: Sequence[str] | None = None) -> None:
    """tools/compare.py."""
    parser = argparse.ArgumentParser(prog="compare.py", description="Train configs over seeds, each beside its control (the "
                                     "same student without the teacher), and say what the teacher brought.")
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N", help="default: 0 1 2 3 4")
    parser.add_argument("--teacher-per-seed", action="store_true", help="a teacher for each seed; default: seed 0's for all")
    parser.add_argument("--work-dir", default="work_dirs", help="where the runs, compare.json and compare.png go; runs "
                        "that are there already are used (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side, each in a process of its own, "
                        "which share the processors")
    parser.add_argument("--devices", nargs="+", default=[], metavar="cuda:K", help="of the jobs, in turn; without --jobs one "
                        "job a device")
    common_arguments(parser)
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    for name in args.devices:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
            parser.error(f"--devices: expected cuda:0, cuda:1 … or cpu, got {name!r}")
    with plain_errors():
        names = config_names(args.configs)
        configs = {name: configurations.load(path, dict(args.cfg_options)) for name, path in zip(names, args.configs)}
        workers = max(args.jobs, len(args.devices))
        show(compare(configs, args.seeds, args.work_dir, args.device, args.teacher_per_seed, workers=workers,
                     devices=args.devices))
        print(f"{args.work_dir}: compare.json compare.png")
