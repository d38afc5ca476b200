"""Models by name: ``'timm:resnet18'``, ``'torchvision:resnet18'``, ``'hf:<folder or id>'`` and
``'onnx:<file>'``, as the ``type`` of a student, a teacher, a detector's backbone or an embedder.

This is the one place that knows such names; :func:`named_model` builds one in a program of yours:

    teacher = named_model("timm:resnet18", weights=True)
    teacher.facts.mean, teacher.facts.licence
"""

import inspect
from types import ModuleType
from typing import Any

from torch import nn

from kdtasks.core.names import did_you_mean
from kdtasks.engine.models import hugging_face, onnx_files, timm_models, torchvision_models
from kdtasks.engine.models.facts import Facts, facts_of

__all__ = ["Facts", "NamedModel", "facts_of", "is_name", "named_model"]

# each has build(name, …), check(name, …) and facts(name, …)
SOURCES: dict[str, ModuleType] = {
    "timm": timm_models,
    "torchvision": torchvision_models,
    "hf": hugging_face,
    "onnx": onnx_files,
}


def is_name(text: object) -> bool:
    """Whether this is a model's name, with one of the sources before it."""
    return isinstance(text, str) and text.partition(":")[0] in SOURCES and ":" in text


class NamedModel:
    """What a name stands for: called, it builds the model, with an attribute ``facts``.

    Args:
        name: ``'<source>:<name>'``.

    Raises:
        ValueError: no such source, or nothing behind it.
    """

    def __init__(self, name: str):
        source, _, self.inner = name.partition(":")
        if source not in SOURCES or not self.inner:
            example = did_you_mean(source, SOURCES) if source not in SOURCES else "a name behind it"
            raise ValueError(
                f"{name!r} is no model's name: expected 'timm:<name>', 'torchvision:<name>', "
                f"'hf:<folder or id>' or 'onnx:<file>'; {example}"
            )
        self.name, self.source = name, SOURCES[source]
        self.__qualname__ = name
        arguments = inspect.signature(self.source.build)
        self.__signature__ = arguments.replace(parameters=[*arguments.parameters.values()][1:])

    def __call__(self, **arguments: Any) -> nn.Module:
        """The model."""
        model = self.source.build(self.inner, **arguments)
        # a plain attribute: it is in no state_dict
        model.facts = self.facts(**arguments)
        return model

    def check(self, **arguments: Any) -> None:
        """The model and its weights are there, as far as that is known without reading them.

        Raises:
            ValueError, FileNotFoundError: what is not, with the nearest that is.
        """
        self.source.check(self.inner, **arguments)

    def facts(self, **arguments: Any) -> Facts:
        """What is known of the model and its weights, without building it."""
        return self.source.facts(self.inner, **arguments)

    def is_trained(self, **arguments: Any) -> bool:
        """Whether the model comes with trained weights, those of its head too."""
        weights = inspect.signature(self.source.build).parameters.get("weights")
        if weights is not None and not arguments.get("weights", weights.default):
            return False
        width = arguments.get("num_classes")
        return width in (None, 0) or width == self.facts(**arguments).outputs


def named_model(name: str, **arguments: Any) -> nn.Module:
    """The model of a name, ``'timm:resnet18'``; see the sources' ``build`` for its arguments.

    Raises:
        ValueError, FileNotFoundError: no such model or weights; the nearest is named.
    """
    return NamedModel(name)(**arguments)
