"""tools/export.py: a student as a file for use elsewhere."""

import argparse
from collections.abc import Sequence

from kdtasks.engine.cli.arguments import common_arguments
from kdtasks.engine.cli.endings import pipe_may_close, plain_errors


def _parser() -> argparse.ArgumentParser:
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
    return parser


@pipe_may_close()
def export(arguments: Sequence[str] | None = None) -> None:
    """tools/export.py."""
    parser = _parser()
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
