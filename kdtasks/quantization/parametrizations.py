"""Quantized weights as torch parametrizations: a model computes with Q(W), the optimizer moves W.

``torch.nn.utils.parametrize`` keeps W as ``parametrizations.weight.original`` beside what quantizes
it, and gives Q(W) as ``weight``. DDP, compilation, averaged weights and autocast see an ordinary
module. :func:`~kdtasks.quantization.dequantized` ends it: the plain model with the final Q(W).
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdtasks.core.finite import not_finite
from kdtasks.core.names import did_you_mean
from kdtasks.quantization import levels as level
from kdtasks.quantization import quantizer
from kdtasks.quantization.inputs import layers_of, quantize_inputs
from kdtasks.quantization.packing import PackedFile
from kdtasks.quantization.tensors import (
    MODULES,
    LevelTensor,
    QuantizedTensor,
    UniformTensor,
    quantized_tensors,
)

KINDS = tuple(MODULES)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


def quantized(
    model: nn.Module,
    bits: int = 4,
    kind: str = "uniform",
    bucket_size: int | None = 256,
    gradient: str = "straight",
    stochastic: bool = False,
    first_and_last: bool = True,
    biases: bool = False,
    norms: bool = False,
    every: int = 1,
    quantize: bool = True,
    counts: Mapping[str, int] | None = None,
    activations: int | None = None,
) -> nn.Module:
    """A model whose weights are quantized wherever it computes; for a config
    ``dict(type='kdtasks.quantization.quantized', model=dict(…), bits=4)``.

    Weights of the plain model load into it, and what is learned beside them (levels, steps) then
    starts from these weights.

    Args:
        model: is changed in place, and returned.
        bits: of the codes.
        kind: ``'uniform'`` points, learned ``'levels'``, or a learned step, ``'lsq'``.
        bucket_size: values that share two numbers; None: the whole tensor. Not of ``'lsq'``.
        gradient, stochastic: of ``'uniform'``.
        first_and_last: quantize the first and the last layer too; the released code can leave out
            the first and last tensors.
        biases: quantize the biases of these layers. The paper's code does, and norms, too: for
            small tensors of little gain, so both are left out here.
        norms: quantize what normalisation layers learn.
        every: in training only every n-th forward computes with Q(W), from the first on (the
            released ``estimate_quant_grad_every``).
        quantize: False gives ``model`` as it is: for a stage that trains it before, with
            ``arguments=dict(quantize=False)``.
        counts: of ``'levels'``: ``{name of a tensor: how many levels}``, as
            :func:`assign_levels` shares them out; any other tensor has 2^bits.
        activations: bits of the inputs of these layers, with learned steps:
            :func:`~kdtasks.quantization.quantized_inputs`. None: in full precision.

    Raises:
        ValueError: a setting out of its range; a model that is quantized already, or has nothing to
            quantize; a weight that two layers share, or that is NaN or infinite.
    """
    quantizer.check_settings(bits, bucket_size)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}; {did_you_mean(kind, KINDS)}")
    if gradient not in quantizer.GRADIENTS:
        raise ValueError(f"gradient must be one of {quantizer.GRADIENTS}, got {gradient!r}")
    counts = dict(counts or {})
    if counts and kind != "levels":
        raise ValueError(f"counts are of kind='levels', got kind={kind!r}")
    if not quantize:
        return model
    weights = list(_tensors(model, first_and_last, biases, norms))
    _check(model, weights)
    paths = _paths(model, weights)
    for path in counts:
        if path not in paths:
            raise ValueError(f"no quantized tensor is called {path!r}; {did_you_mean(path, paths)}")
    if activations is not None:
        quantize_inputs(model, layers_of(model, first_and_last), activations)
    for path, (module, name) in zip(paths, weights):
        tensor = getattr(module, name)
        if kind == "uniform":
            part: QuantizedTensor = UniformTensor(bits, bucket_size, every, stochastic, gradient)
        elif kind == "levels":
            part = LevelTensor(bits, bucket_size, every, counts.get(path))
        else:
            part = MODULES[kind](bits, bucket_size, every)
        part.to(tensor.device)
        part.start(tensor)
        parametrize.register_parametrization(module, name, part, unsafe=True)
    model.register_load_state_dict_pre_hook(_take_plain_weights)
    model.packed_file = PackedFile
    return model


def assign_levels(
    model: nn.Module,
    losses: Iterable[Tensor],
    bits: int = 4,
    first_and_last: bool = True,
    biases: bool = False,
    norms: bool = False,
) -> dict[str, int]:
    """How many levels each tensor of a plain model gets, by how much the loss depends on it
    (:func:`~kdtasks.quantization.share_levels`), for ``counts`` of :func:`quantized`::

        counts = assign_levels(model, (loss(model(x), y) for x, y in five_batches), bits=4)

    Args:
        model: before it is quantized.
        losses: of a few batches (the released code: five), each a scalar with the model's graph;
            the gradients' norms are added up.
        bits: every tensor has 2^bits levels on average, and half as many at least.
        first_and_last, biases, norms: as for :func:`quantized`.

    Raises:
        ValueError: as :func:`quantized`; there are no losses, or none depends on any tensor.
    """
    quantizer.check_settings(bits, None)
    weights = list(_tensors(model, first_and_last, biases, norms))
    _check(model, weights)
    tensors = [getattr(module, name) for module, name in weights]
    total = torch.zeros(len(tensors))
    for loss in losses:
        slopes = torch.autograd.grad(loss, tensors, allow_unused=True)
        total += torch.tensor([0.0 if slope is None else float(slope.norm()) for slope in slopes])
    return dict(zip(_paths(model, weights), level.share_levels(total.tolist(), 2**bits)))


def _tensors(
    model: nn.Module, first_and_last: bool, biases: bool, norms: bool
) -> Iterator[tuple[nn.Module, str]]:
    """What is quantized: ``(module, name of its parameter)``."""
    layers = layers_of(model, first_and_last)
    others = [part for part in model.modules() if norms and isinstance(part, NORMS)]
    for part in layers:
        yield part, "weight"
        if biases and getattr(part, "bias", None) is not None:
            yield part, "bias"
    for part in others:
        for name in ("weight", "bias"):
            if getattr(part, name, None) is not None:
                yield part, name


def _check(model: nn.Module, weights: list[tuple[nn.Module, str]]) -> None:
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(path)
    for path, part in model.named_modules():
        if parametrize.is_parametrized(part):
            raise ValueError(
                f"{path or type(model).__name__!r} is parametrized already "
                f"({', '.join(part.parametrizations)}): a weight is quantized once"
            )
    if not weights:
        raise ValueError(
            f"there is nothing to quantize in a {type(model).__name__}: expected convolutions or "
            "linear layers, three at least with first_and_last=False"
        )
    for path, (part, name) in zip(_paths(model, weights), weights):
        shared = owners.get(id(getattr(part, name)), [])
        if len(shared) > 1:
            raise ValueError(
                f"{' and '.join(map(repr, shared))} are one parameter: expected weights that no "
                "other layer shares, since each is quantized by itself"
            )
        bad = not_finite({path: getattr(part, name).detach()})
        if bad:
            raise ValueError(f"cannot quantize what is not finite: {bad}")


def _paths(model: nn.Module, weights: list[tuple[nn.Module, str]]) -> list[str]:
    """The names of tensors in the plain state_dict."""
    names = {id(part): path for path, part in model.named_modules()}
    return [f"{names[id(part)]}.{name}".lstrip(".") for part, name in weights]


def _take_plain_weights(
    model: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *others: object
) -> None:
    """Weights of the plain model, renamed, and what is learned beside them started from them."""
    for path, module, name, part in quantized_tensors(model):
        original = prefix + _original(path)
        if prefix + path not in state or original in state:
            continue
        weight = state.pop(prefix + path)
        state[original] = weight
        if weight.shape == getattr(module.parametrizations, name).original.shape:
            part.start(weight)
        path_beside = original.removesuffix("original") + "0."
        for key, value in part.state_dict().items():
            state[path_beside + key] = value.clone()


def _original(path: str) -> str:
    """``layer.weight`` -> ``layer.parametrizations.weight.original``."""
    head, _, name = path.rpartition(".")
    return (
        f"{head}.parametrizations.{name}.original" if head else f"parametrizations.{name}.original"
    )
