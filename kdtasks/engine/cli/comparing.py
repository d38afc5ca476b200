"""tools/compare.py and tools/results.py: configs over seeds, and what such comparisons measured."""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdtasks.engine.cli.arguments import common_arguments
from kdtasks.engine.cli.endings import pipe_may_close, plain_errors
from kdtasks.engine.config_files import find_config
from kdtasks.engine.run_names import config_names


def _compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compare.py",
        description="Train configs over seeds, each beside its control (the same student without "
        "the teacher), and say what the teacher brought.",
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2, 3, 4],
        metavar="N",
        help="default: 0 1 2 3 4",
    )
    parser.add_argument(
        "--teacher-per-seed",
        action="store_true",
        help="a teacher for each seed; default: seed 0's for all",
    )
    parser.add_argument(
        "--work-dir",
        default="work_dirs",
        help="where the runs and compare.json, .png and .html go; runs that are there already are "
        "used (default: %(default)s)",
    )
    parser.add_argument(
        "--reference",
        metavar="CONFIG",
        help="of several configs the one that the others are compared with, too, plain KD say; "
        "default: the first",
    )
    _add_job_flags(parser)
    common_arguments(parser)
    return parser


def _add_job_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="runs side by side, each in a process of its own, which share the processors",
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        default=[],
        metavar="cuda:K",
        help="of the jobs, in turn; without --jobs one job a device",
    )


@pipe_may_close()
def compare(arguments: Sequence[str] | None = None) -> None:
    """tools/compare.py."""
    parser = _compare_parser()
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    for name in args.devices:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
            parser.error(f"--devices: expected cuda:0, cuda:1 … or cpu, got {name!r}")
    with plain_errors("the same command"):
        from kdtasks.engine import config as configs
        from kdtasks.engine.compare.comparison import compare
        from kdtasks.engine.compare.show import show
        from kdtasks.engine.task import load_task

        paths = [find_config(path) for path in args.configs]
        options = dict(args.cfg_options)
        loaded = {
            name: configs.load(path, options) for name, path in zip(config_names(paths), paths)
        }
        result = compare(
            loaded,
            args.seeds,
            args.work_dir,
            args.device,
            args.teacher_per_seed,
            workers=max(args.jobs, len(args.devices)),
            devices=args.devices,
            reference=_named(args.reference, loaded, paths),
        )
        show(result, load_task(next(iter(loaded.values()))["task"]))
        print(f"{args.work_dir}: compare.json compare.png compare.html")


def _named(given: str | None, names: Iterable[str], paths: Iterable[Path]) -> str | None:
    """The name of the config that is given by its name, its path, or the name of its file."""
    named = dict(zip(names, paths))
    if given is None or given in named:
        return given
    matches = [name for name, path in named.items() if path.stem == Path(given).stem]
    return matches[0] if len(matches) == 1 else given


def _results_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="results.py",
        description="Show what comparisons have measured, put those of different seeds together, "
        "or write a page of several.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a compare.json")
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--merge", metavar="FILE", help="write there the seeds of all, of the same configs, as one"
    )
    target.add_argument(
        "--page",
        metavar="FILE",
        help="write there their tables: for a browser if FILE ends in .html, else as Markdown",
    )
    parser.add_argument(
        "--reference",
        metavar="CONFIG",
        help="the config, by its name in the file, that the others are compared with, too; "
        "default: that of compare.py",
    )
    return parser


@pipe_may_close()
def results(arguments: Sequence[str] | None = None) -> None:
    """tools/results.py."""
    args = _results_parser().parse_args(arguments)
    with plain_errors():
        from kdtasks.engine.compare.files import read_comparisons, write_merged, write_page
        from kdtasks.engine.compare.reference import with_reference
        from kdtasks.engine.compare.show import show
        from kdtasks.engine.task import load_task

        comparisons = read_comparisons(args.files)
        if args.reference:
            comparisons = {
                name: with_reference(comparison, args.reference)
                for name, comparison in comparisons.items()
            }
        if args.merge:
            write_merged(list(comparisons.values()), args.merge)
        elif args.page:
            write_page(comparisons, args.page)
        else:
            for result in comparisons.values():
                show(result, load_task(result["task"]))
