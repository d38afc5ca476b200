"""tools/train.py: train a config, list configs and stages, or try a config without training."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdtasks.engine.cli.arguments import common_arguments, minutes
from kdtasks.engine.cli.endings import pipe_may_close, plain_errors
from kdtasks.engine.config_files import config_titles, find_config
from kdtasks.engine.run_names import config_name, folder_name

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train.py", description="Train every stage of a config.")
    parser.add_argument(
        "config",
        nargs="?",
        help="a config file, or the name of one that comes with the package; with --list it may be "
        "left out",
    )
    parser.add_argument(
        "--work-dir",
        help="default: work_dirs/<config>/seed<N>, with --cfg-options "
        "work_dirs/<config>-<options>/seed<N>",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", action="store_true", help="go on where a run in the work_dir stopped"
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision in bfloat16")
    parser.add_argument("--launcher", choices=["none", "pytorch"], default="none")
    parser.add_argument(
        "--wait-limit",
        type=minutes,
        default=10,
        metavar="MINUTES",
        help="how long one of several processes waits for another in a step before the run ends "
        "with an error (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="two steps of each stage on random tensors; then the files that the run needs and one "
        "batch of each data set are read; then stop",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the configs; with a config, its stages and tensor names",
    )
    common_arguments(parser)
    return parser


@pipe_may_close()
def train(arguments: Sequence[str] | None = None) -> None:
    """tools/train.py."""
    parser = _train_parser()
    args = parser.parse_args(arguments)
    if args.list and not args.config:
        return _list_configs()
    if not args.config:
        parser.error("expected a config; --list shows those there are")
    with plain_errors("the same command with --resume"):
        from kdtasks.engine import config as configs
        from kdtasks.engine.processes import is_restart, start_processes
        from kdtasks.engine.run import Run
        from kdtasks.engine.show import table

        options = dict(args.cfg_options) | ({"amp": "bfloat16"} if args.amp else {})
        path = find_config(args.config)
        config, name = configs.load(path, options), config_name(path)
        start_processes(args.launcher, args.device, args.wait_limit)
        usual = Path("work_dirs") / folder_name(name, options) / f"seed{args.seed}"
        run = Run(config, args.work_dir or usual, args.seed, args.device, name)
        experiment = run.experiment
        if args.list:
            return _list_stages(experiment)
        if args.dry_run:
            return _print_dry_run(experiment)
        results = run.train(args.resume or (args.launcher == "pytorch" and is_restart()))
        if experiment.rank == 0:
            table(results, experiment.arms, experiment.task, experiment.on_the_way)
            print(f"{run.work_dir}: results.json student.pth student.json report.html")
    return None


def _list_configs() -> None:
    for name, title in config_titles().items():
        print(f"configs/{name}.py\n    {title}")


def _list_stages(experiment: "Experiment") -> None:
    for stage in experiment.stages:
        print(
            f"{stage.name}: trains {stage.model}"
            + (f", taught by {', '.join(stage.teachers)}" if stage.teachers else "")
            + f"; losses {', '.join(stage.losses)}"
        )
    distiller = experiment.distiller(experiment.stages[-1], load=False)
    for role in distiller.roles:
        print(f"\nnames of {role}:\n  " + "\n  ".join(distiller.names(role)))


def _print_dry_run(experiment: "Experiment") -> None:
    from kdtasks.engine.check import check
    from kdtasks.engine.class_checks import odd_classes
    from kdtasks.engine.dry_run import dry_run

    for row in dry_run(experiment):
        memory = f", {row['memory_mb']:.0f} MiB" if row["memory_mb"] is not None else ""
        print(
            f"{row['stage']}: {row['parameters']:,} parameters train, "
            f"{row['teacher_parameters']:,} teach; "
            f"{row['step_ms']:.1f} ms a step{memory}; loss {row['loss']:.4f}"
        )
        for name, shape in row["shapes"].items():
            print(f"    {name} {shape}")
    check(experiment)
    for text in odd_classes(experiment):
        print(f"warning: {text}", file=sys.stderr)
    print("what the run reads is there, and a batch of each data set goes through every stage")
