"""The command lines of tools/*.py and of ``kdtasks``. ``--help`` needs no torch."""

import argparse
import importlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kdtasks.engine.cli_arguments import common_arguments, minutes
from kdtasks.engine.cli_endings import pipe_may_close, plain_errors
from kdtasks.engine.config_files import config_titles, find_config, shared_folder
from kdtasks.engine.run_names import config_name, config_names, folder_name

if TYPE_CHECKING:
    from torch import nn

    from kdtasks.engine.experiment import Experiment
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.onnx_model import OnnxModel


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


def _test_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="test.py",
        add_help=False,
        description="Evaluate a student's weights on the config's test data, or use them as the "
        "flags of its task say.",
    )
    parser.add_argument(
        "-h",
        "--help",
        action="store_true",
        help="this text; after a config, with what its task adds",
    )
    parser.add_argument("config", nargs="?")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="student.pth (with student.json beside it), a stage's last.pth or best.pth, any file "
        "of plain weights, or an ONNX file, which onnxruntime runs",
    )
    parser.add_argument(
        "--model",
        default="student",
        help="which model of the config the weights are for: student, teacher …",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="of what the config draws, such as the order of classes; default: that of the run "
        "which wrote the checkpoint, where it says so, else 0",
    )
    common_arguments(parser)
    return parser


@pipe_may_close()
def test(arguments: Sequence[str] | None = None) -> None:
    """tools/test.py."""
    parser = _test_parser()
    given, _ = parser.parse_known_args(arguments)
    if given.help and not given.config:
        return parser.print_help()
    if not given.config or not (given.checkpoint or given.help):
        parser.error("expected a config and a checkpoint")
    with plain_errors():
        from kdtasks.engine import config as configs
        from kdtasks.engine.task import load_task

        path = find_config(given.config)
        config = configs.load(path, dict(given.cfg_options))
        task_flags = load_task(config["task"]).predict_arguments(parser)
        if given.help:
            return parser.print_help()
        args = parser.parse_args(arguments)
        _use_weights(config, config_name(path), args, _flags_given(parser, args, task_flags))
    return None


def _flags_given(
    parser: argparse.ArgumentParser, args: argparse.Namespace, task_flags: Sequence[str]
) -> dict[str, object]:
    """All of a task's flags, if any of them is given."""
    flags = {name: getattr(args, name) for name in task_flags}
    given = any(value != parser.get_default(name) for name, value in flags.items())
    return flags if given else {}


def _use_weights(
    config: Mapping, name: str, args: argparse.Namespace, flags: Mapping[str, object]
) -> None:
    """Evaluate weights on the test data; with flags of its own the task predicts."""
    from kdtasks.engine.experiment import Experiment

    meta = _facts_of(args.checkpoint)
    seed = meta.get("seed", 0) if args.seed is None else args.seed
    experiment = Experiment(config, seed, args.device, name)
    experiment.set_threads()
    model = _model_of(experiment, args.model, args.checkpoint, meta)
    model.eval()
    if flags:
        classes = meta.get("classes")
        failed = experiment.task.predict(model, experiment.config, classes=classes, **flags)
        if failed:
            print(f"error: left out {', '.join(failed)}", file=sys.stderr)
            raise SystemExit(1)
        return
    loader = _test_loader(experiment, meta.get("classes"))
    if experiment.data.is_drawn and args.seed is None and "seed" not in meta:
        print(
            f"warning: {args.checkpoint!r} does not say of which seed it is (no .json of a run is "
            "beside it), and the test data depends on that: 0 is taken; --seed says another",
            file=sys.stderr,
        )
    _print_metrics(experiment, model, loader)


def _facts_of(checkpoint: str) -> dict:
    """What a file of weights, or an ONNX file, says of itself."""
    if _is_onnx(checkpoint):
        from kdtasks.engine.onnx_model import OnnxModel

        return OnnxModel(checkpoint).meta
    from kdtasks.core.weight_files import read_weights

    return read_weights(checkpoint)[1]


def _model_of(experiment: "Experiment", name: str, checkpoint: str, facts: Mapping) -> "nn.Module":
    """The model of the config with these weights; an ONNX file is one by itself."""
    if _is_onnx(checkpoint):
        from kdtasks.engine.onnx_model import OnnxModel

        return OnnxModel(checkpoint)  # now with the threads of the config
    from kdtasks.core.weights import load_weights

    model = experiment.student_of(facts) if name == "student" else experiment.model(name)
    load_weights(model, checkpoint)
    return model


def _is_onnx(checkpoint: str) -> bool:
    return checkpoint.endswith(".onnx")


def _print_metrics(experiment: "Experiment", model: "nn.Module", loader: "Loader") -> None:
    from kdtasks.engine.evaluation import evaluate

    for metric, value in evaluate(experiment.task, model, loader).items():
        print(f"{metric} {value:.{experiment.task.decimals(metric, 3)}f}")
    if hasattr(model, "session"):
        from kdtasks.engine.onnx_model import cost

        for name, value in cost(cast("OnnxModel", model), loader).items():
            print(f"{name} {value:,.6g}")
    for path, why in loader.unreadable.items():
        print(f"warning: left out: {path}: {why}", file=sys.stderr)


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


def _named(given: str | None, names: Iterable[str], paths: Iterable[Path]) -> str | None:
    """The name of the config that is given by its name, its path, or the name of its file."""
    named = dict(zip(names, paths))
    if given is None or given in named:
        return given
    matches = [name for name, path in named.items() if path.stem == Path(given).stem]
    return matches[0] if len(matches) == 1 else given


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


@pipe_may_close()
def results(arguments: Sequence[str] | None = None) -> None:
    """tools/results.py."""
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
    args = parser.parse_args(arguments)
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


@pipe_may_close()
def export(arguments: Sequence[str] | None = None) -> None:
    """tools/export.py."""
    parser = argparse.ArgumentParser(
        prog="export.py",
        description="Write the student of a finished run for use elsewhere, and check the file by "
        "running it beside the student on test images. packed: a student in few bits, its codes "
        "and scales. onnx of a student in 8 bits: the file is also run on the whole test set, and "
        "its metrics are printed.",
    )
    parser.add_argument("work_dir")
    parser.add_argument("--format", required=True, choices=["pth", "safetensors", "packed", "onnx"])
    parser.add_argument(
        "--output",
        help="default: <model>.<format> in the work_dir, <model>_plain.pth for pth, "
        "<model>_packed.safetensors for packed",
    )
    parser.add_argument(
        "--model",
        default="student",
        help="which model of the config, as an ensemble (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint", help="its weights, in the work_dir or elsewhere; default: <model>.pth"
    )
    parser.add_argument("--opset", type=int, help="of ONNX; default: torch's choice")
    parser.add_argument(
        "--card",
        action="store_true",
        help="also write a model card, README.md, beside it; its licence is the config's "
        "card.licence, or unknown",
    )
    parser.add_argument(
        "--compare",
        metavar="FILE",
        help="a compare.json for the card; default: one in a folder above that names this run",
    )
    common_arguments(parser)
    args = parser.parse_args(arguments)
    if args.compare and not args.card:
        parser.error("--compare is for --card")
    with plain_errors():
        from kdtasks.engine.export import export

        done = export(
            args.work_dir,
            args.format,
            args.output,
            args.checkpoint,
            args.opset,
            args.device or "cpu",
            dict(args.cfg_options),
            args.model,
            args.card,
            args.compare,
        )
        print(
            f"{done['output']}: {done['bytes'] / 2**20:.2f} MiB; on {done['images']} test images "
            f"its outputs differ from the {args.model}'s by "
            f"{'on average' if done['rounded'] else 'at most'} {done['difference']:.2g} "
            f"(allowed: {done['allowed']:.2g})"
        )
        if "ratio" in done:
            print(
                f"{done['ratio']:.2f} times smaller than the float weights; of the quantized "
                f"values, codes and scales alone: {done['formula']:.2f}"
            )
        for name, value in done.get("metrics", {}).items():
            print(f"{name} {value:,.6g}")
        if args.card:
            print(done["card"])


@pipe_may_close()
def benchmark(arguments: Sequence[str] | None = None) -> None:
    """tools/benchmark.py."""
    sys.path.insert(0, str(shared_folder("benchmarks").parent))
    raise SystemExit(importlib.import_module("benchmarks.table").main(arguments))


def _test_loader(experiment: "Experiment", classes: Sequence[str] | None) -> "Loader":
    """The test data in the classes that the checkpoint knows; where it does not say them, in those
    of the training data.
    """
    stage = experiment.final or experiment.stages[-1]
    if classes:
        return experiment.test_loader(stage, classes=classes)
    try:
        return experiment.test_loader(stage)
    except FileNotFoundError as error:
        loader = experiment.test_loader(stage, classes=None)
        print(
            f"warning: neither the checkpoint nor the training data says which classes there are "
            f"({error}): the numbers of the test data's own are taken",
            file=sys.stderr,
        )
        return loader


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
