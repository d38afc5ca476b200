"""Names that timm and torchvision list, of models and of pretrained weights: an unknown one is an
error with the nearest.
"""

import inspect
import sys
import typing
from collections.abc import Callable, Mapping

from kdtasks.core.names import did_you_mean


def check_timm_name(name: str) -> None:
    """A name for ``timm.create_model``, with or without the tag of its weights; one with a source
    (``hf-hub:``) is let pass.

    Raises:
        ValueError: timm has no such model, or the model no such weights.
    """
    import timm

    if ":" in name:
        return
    if not timm.is_model(name):
        raise ValueError(f"timm has no {name!r}; {did_you_mean(name, timm.list_models())}")
    model, _, tag = name.partition(".")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = [listed.partition(".")[2] for listed in timm.list_pretrained(f"{model}.*")]
        raise ValueError(
            f"timm's {model} has no weights {tag!r}; {did_you_mean(tag, tags)}"
        ) from None


def check_listed(function: Callable, arguments: Mapping) -> None:
    """The names of models and weights among the arguments of one of timm's or torchvision's own
    functions.

    Raises:
        ValueError: as :func:`check_timm_name`; or torchvision has no such model, or the model no
            such weights.
    """
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    if package == "timm" and isinstance(arguments.get("model_name"), str):
        check_timm_name(arguments["model_name"])
    if package == "torchvision" and inspect.isfunction(function):
        # imported by whoever has its function
        models = sys.modules["torchvision"].models
        if function is models.get_model and isinstance(arguments.get("name"), str):
            names = models.list_models()
            if arguments["name"].lower() not in names:
                raise ValueError(
                    f"torchvision has no model {arguments['name']!r}; "
                    f"{did_you_mean(arguments['name'], names)}"
                )
            function = models.get_model_builder(arguments["name"])
        for argument, parameter in inspect.signature(function).parameters.items():
            _check_weights(
                function,
                argument,
                arguments.get(argument),
                parameter.annotation,
                models.WeightsEnum,
            )


def _check_weights(
    function: Callable, argument: str, name: object, annotation: object, base: type
) -> None:
    if not isinstance(name, str):
        return
    for kind in typing.get_args(annotation):
        if (
            isinstance(kind, type)
            and issubclass(kind, base)
            and name.removeprefix(f"{kind.__name__}.") not in kind.__members__
        ):
            raise ValueError(
                f"{function.__name__} has no {argument}={name!r}; "
                f"{did_you_mean(name, kind.__members__)}"
            )
