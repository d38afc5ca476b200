"""Arguments that the command lines share, and how their texts are read."""

import argparse
import ast


def option(text: str) -> tuple[str, object]:
    """``'losses.loss_kd.weight=0.5'`` -> ``('losses.loss_kd.weight', 0.5)``; a value that is no
    Python literal is text.

    A dict may be written as in a config: ``dict(type='…')``. What begins as a list or dict must be
    one.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"expected key=value, got {text!r}")
    if value in ("true", "false"):
        return key, value == "true"
    try:
        return key, ast.literal_eval(_DictCalls().visit(ast.parse(value.strip(), mode="eval")))
    except (ValueError, SyntaxError) as error:
        if value.lstrip().startswith(("[", "{", "dict(")):
            raise argparse.ArgumentTypeError(
                f"{key}: {value!r} is no list or dict of plain values ({error}); texts in it need "
                "quotes, and the whole argument quotes for the shell"
            ) from None
        return key, value


class _DictCalls(ast.NodeTransformer):
    """``dict(a=1)`` -> ``{'a': 1}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        called = getattr(node.func, "id", None)
        if called != "dict" or node.args or any(keyword.arg is None for keyword in node.keywords):
            return node
        return ast.Dict(
            [ast.Constant(k.arg) for k in node.keywords], [k.value for k in node.keywords]
        )


def minutes(text: str) -> float:
    """A limit of time, > 0 and finite."""
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected minutes > 0, got {text!r}")
    return value


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every tool shares."""
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: cuda where there is one"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        type=option,
        default=[],
        action="extend",
        metavar="KEY=VALUE",
        help="change keys of the config, as in losses.loss_kd.weight=0.5",
    )
