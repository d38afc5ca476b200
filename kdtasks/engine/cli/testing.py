"""tools/test.py: evaluate weights on a config's test data, or use them as its task says."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from kdtasks.engine.cli.arguments import common_arguments
from kdtasks.engine.cli.endings import pipe_may_close, plain_errors
from kdtasks.engine.config_files import find_config
from kdtasks.engine.run_names import config_name

if TYPE_CHECKING:
    from torch import nn

    from kdtasks.engine.experiment import Experiment
    from kdtasks.engine.loader import Loader
    from kdtasks.engine.onnx_model import OnnxModel


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
    model = _with_its_input(experiment, model, args.model, meta, loader)
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


def _with_its_input(
    experiment: "Experiment", model: "nn.Module", name: str, facts: Mapping, loader: "Loader"
) -> "nn.Module":
    """A teacher with the inputs that it has in a run; of other weights a warning where they were
    trained on images that were normalised otherwise.
    """
    from kdtasks.engine.data_sets import normalization
    from kdtasks.engine.pretrained import frozen_teacher, other_test_normalization, trained_with
    from kdtasks.engine.teacher_card import plain_network

    given, seen = normalization(loader.dataset), trained_with(facts)
    spec = experiment.config["teachers"].get(name)
    if spec is not None and not hasattr(model, "session"):
        teacher = frozen_teacher(model, spec, name, lambda: given, "kdtasks" in facts, seen)
        return plain_network(teacher.to(experiment.device))
    for text in other_test_normalization(seen, given):
        print(f"warning: {text}", file=sys.stderr)
    return model


def _is_onnx(checkpoint: str) -> bool:
    return checkpoint.endswith(".onnx")


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
