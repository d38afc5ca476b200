"""The ``kdtasks`` command: what ``tools/*.py`` do, for whoever has installed the package.

kdtasks list                               # the configs that come with the package
kdtasks train classification/default              # or a config file of your own
kdtasks copy classification/default               # to change it
"""

import argparse
import sys
from collections.abc import Callable, Sequence


def train(arguments: Sequence[str]) -> None:
    """Train every stage of a config, beside its control."""
    from kdtasks.engine.cli import train

    train(arguments)


def test(arguments: Sequence[str]) -> None:
    """Evaluate weights on a config's test data, or use them on a folder of images."""
    from kdtasks.engine.cli import test

    test(arguments)


def compare(arguments: Sequence[str]) -> None:
    """Train configs over seeds, and say what the teacher brought."""
    from kdtasks.engine.cli import compare

    compare(arguments)


def results(arguments: Sequence[str]) -> None:
    """Show, merge or publish what comparisons have measured."""
    from kdtasks.engine.cli import results

    results(arguments)


def export(arguments: Sequence[str]) -> None:
    """Write a run's student as safetensors, ONNX or plain weights, checked on test images."""
    from kdtasks.engine.cli import export

    export(arguments)


def benchmark(arguments: Sequence[str]) -> None:
    """Measure what the library costs."""
    from kdtasks.engine.cli import benchmark

    benchmark(arguments)


def distill(arguments: Sequence[str]) -> None:
    """Teach a student on a folder of images without labels; writes the config that it runs."""
    from kdtasks.engine.cli.endings import pipe_may_close, plain_errors

    parser = argparse.ArgumentParser(prog="kdtasks distill", description=distill.__doc__)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="images, at any depth")
    parser.add_argument(
        "--student", required=True, metavar="MODEL", help="'timm:<name>' …, or a dotted path"
    )
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="as the student")
    parser.add_argument(
        "--teacher-weights", metavar="FILE", help="default: those that its name stands for"
    )
    parser.add_argument(
        "--labelled",
        metavar="FOLDER",
        help="one folder a class, to test by, perhaps in train/ and test/; default: the teacher's "
        "clusters of the images",
    )
    parser.add_argument("--name", help="of the config; default: made of the above")
    for flag, default, meaning in (
        ("--epochs", 20, "passes over the images"),
        ("--size", 128, "the side to which images are brought"),
        ("--seed", 0, "of weights, order and views"),
    ):
        parser.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images in a step (default: 64, of less than 512 images an eighth, at least 8)",
    )
    parser.add_argument(
        "--teacher-size", type=int, metavar="N", help="the side of what the teacher sees"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first so many images")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped")
    args = parser.parse_args(arguments)
    with pipe_may_close(), plain_errors("the same command with --resume"):
        from kdtasks.representation import command

        command.distill(**vars(args))


def list_configs(arguments: Sequence[str]) -> None:
    """List the configs that come with the package."""
    from kdtasks.engine.cli.endings import pipe_may_close
    from kdtasks.engine.config_files import config_titles

    argparse.ArgumentParser(prog="kdtasks list", description=list_configs.__doc__).parse_args(
        arguments
    )
    with pipe_may_close():
        for name, title in config_titles().items():
            print(f"{name}\n    {title}")


def copy(arguments: Sequence[str]) -> None:
    """Copy a config of the package, and what it builds on, to change it."""
    from kdtasks.engine.cli.endings import plain_errors
    from kdtasks.engine.config_files import copy_config, library_of

    parser = argparse.ArgumentParser(prog="kdtasks copy", description=copy.__doc__)
    parser.add_argument("config", help="as 'kdtasks list' shows it")
    parser.add_argument("folder", nargs="?", default="configs", help="default: %(default)s")
    args = parser.parse_args(arguments)
    with plain_errors():
        files = copy_config(args.config, args.folder)
        print("\n".join(map(str, files)))
        library = library_of(files[0])
        print(f"for {library}'s own tools" if library else f"kdtasks train {files[0]}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "distill": distill,
    "test": test,
    "compare": compare,
    "results": results,
    "export": export,
    "benchmark": benchmark,
    "list": list_configs,
    "copy": copy,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command's entry point."""
    lines = [f"  {name:<10} {function.__doc__}" for name, function in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="kdtasks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Knowledge distillation for vision, task by task.\n\n" + "\n".join(lines),
        epilog="kdtasks <command> --help says more of one.",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(given[:1])
    COMMANDS[args.command](given[1:])


if __name__ == "__main__":
    main()
