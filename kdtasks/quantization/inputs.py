"""The inputs of convolutions and linear layers in few bits, each with a learned step (LSQ)."""

import warnings
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

from torch import Tensor, nn

from kdtasks.quantization.lsq import LSQ

# layers whose weights are quantized
LAYERS = (
    *(nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
NAME = "input_quantizer"


def quantized_inputs(model: nn.Module, bits: int = 4, first_and_last: bool = True) -> nn.Module:
    """A model each of whose convolutions and linear layers computes with its input in few bits:
    :class:`~kdtasks.quantization.LSQ`, signed where the first batch in training has values below 0.

    Weights of the plain model load into it; steps then start anew. A layer that is not called in
    the first batch (its weights are used by a function, as in torchvision's Swin) is warned of: its
    input stays in full precision.

    Args:
        model: is changed in place, and returned; its weights keep their names.
        bits: of the codes, 2 or more.
        first_and_last: of the first and the last layer too, in the order in which the model has
            them. (In 8 bits in the paper, as recalled, not verified.)

    Raises:
        ValueError: bits out of range; there is nothing to quantize; the inputs are quantized
            already; a layer computes where its input is not seen, as in
            ``torch.nn.MultiheadAttention``.
    """
    layers = layers_of(model, first_and_last)
    quantize_inputs(model, layers, bits)
    return model


def layers_of(model: nn.Module, first_and_last: bool) -> list[nn.Module]:
    """The layers whose weights and inputs are quantized."""
    layers = [part for part in model.modules() if isinstance(part, LAYERS)]
    return layers if first_and_last else layers[1:-1]


def quantize_inputs(model: nn.Module, layers: Iterable[nn.Module], bits: int) -> None:
    """:func:`quantized_inputs` of these layers of a model."""
    layers = [part for part in layers if not isinstance(part, nn.Embedding)]
    if not layers:
        raise ValueError(
            f"no layer of a {type(model).__name__} has an input to quantize: expected convolutions "
            "or linear layers, three at least with first_and_last=False"
        )
    for path, part in model.named_modules():
        if isinstance(part, nn.MultiheadAttention):
            raise ValueError(
                f"{path!r} is a torch.nn.MultiheadAttention, which computes without calling its "
                "projections, so that their inputs are not seen: expected an attention of linear "
                "layers, or activations=None"
            )
        if hasattr(part, NAME):
            raise ValueError(f"the input of {path!r} is quantized already")
    for part in layers:
        quantizer = LSQ(bits, signed=None).to(part.weight.device)
        part.register_module(NAME, quantizer.train(part.training))
        part.register_forward_pre_hook(_quantize_input, with_kwargs=True)
    model.register_load_state_dict_pre_hook(_add_fresh_steps)
    model.register_forward_hook(_warn_of_layers_that_were_not_called)


def input_quantizers(model: nn.Module) -> Iterator[tuple[str, LSQ]]:
    """``(path, quantizer)`` of each input that is quantized."""
    for path, part in model.named_modules():
        if path.rpartition(".")[2] == NAME and isinstance(part, LSQ):
            yield path, part


def _quantize_input(
    module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any]
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    if not inputs:
        return inputs, {**keywords, "input": module.input_quantizer(keywords["input"])}
    first, *others = inputs
    return (module.input_quantizer(first), *others), keywords


def _add_fresh_steps(
    model: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *others: object
) -> None:
    """Where weights of the plain model are loaded, steps that have not started."""
    for path, part in input_quantizers(model):
        if not any(name.startswith(f"{prefix}{path}.") for name in state):
            fresh = LSQ(part.bits, part.signed).state_dict()
            state.update({f"{prefix}{path}.{name}": value for name, value in fresh.items()})


def _warn_of_layers_that_were_not_called(model: nn.Module, inputs: object, output: object) -> None:
    """Once, after the first forward in training that has started steps."""
    if not model.training or getattr(model, "inputs_are_checked", False):
        return
    has_started = {path: part.has_started for path, part in input_quantizers(model)}
    model.inputs_are_checked = any(has_started.values())
    paths = [path for path, started in has_started.items() if not started]
    if paths and model.inputs_are_checked:
        layers = ", ".join(repr(path.removesuffix(f".{NAME}")) for path in paths[:4])
        more = f" (+{len(paths) - 4} more)" if len(paths) > 4 else ""
        warnings.warn(
            f"the inputs of {layers}{more} stay in full precision so far: the layers were not "
            "called in the first batch in training, or with zeros alone. Where a model takes their "
            "weights to a function of its own, their inputs are not seen",
            stacklevel=2,
        )
