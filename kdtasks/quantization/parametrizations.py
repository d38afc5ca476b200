"""Quantized weights as torch parametrizations: a model computes with Q(W), the optimizer moves W.

``torch.nn.utils.parametrize`` keeps W as ``parametrizations.weight.original`` beside what quantizes
it, and gives Q(W) as ``weight``. DDP, compilation, averaged weights and autocast see an ordinary
module. :func:`dequantized` ends it: the plain model with the final Q(W).
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, MutableMapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdtasks.core.finite import not_finite
from kdtasks.core.names import did_you_mean
from kdtasks.quantization import levels as level
from kdtasks.quantization import lsq, quantizer

KINDS = ("uniform", "levels", "lsq")
# layers whose weights are quantized
LAYERS = (
    *(nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


class QuantizedTensor(nn.Module):
    """The base of what quantizes one tensor.

    Args:
        bits, bucket_size: of the codes.
        every: in training only every n-th call is quantized, from the first on.

    Attributes:
        calls: () int64, how often it was called in training; None where every call is quantized.
    """

    calls: Tensor | None

    def __init__(self, bits: int, bucket_size: int | None, every: int = 1):
        super().__init__()
        quantizer.check_settings(bits, bucket_size)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every must be a whole number >= 1, got {every!r}")
        self.bits, self.bucket_size, self.every = bits, bucket_size, every
        counter = torch.zeros((), dtype=torch.int64) if every > 1 else None
        self.register_buffer("calls", counter)

    def forward(self, tensor: Tensor) -> Tensor:
        """Q of the tensor, or where it is not its turn the tensor."""
        if self.calls is None or not self.training:
            return self.quantize(tensor)
        turn = self.calls % self.every == 0
        self.calls += 1
        return torch.where(turn, self.quantize(tensor), tensor)

    def quantize(self, tensor: Tensor) -> Tensor:
        """Q of the tensor, with gradients."""
        raise NotImplementedError

    def start(self, tensor: Tensor) -> None:
        """Set what is learned beside the tensor to what fits these values."""

    def packed(self, tensor: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The codes of the tensor, whole numbers from 0 on, flat; and what decodes them.

        ``unpacked`` of both is ``quantize(tensor)``, bit for bit.
        """
        raise NotImplementedError

    @staticmethod
    def unpacked(codes: Tensor, table: dict[str, Tensor], bits: int, size: int) -> Tensor:
        """The values of flat codes; ``size``: of a bucket."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The settings."""
        return f"bits={self.bits}, bucket_size={self.bucket_size}, every={self.every}"


class UniformTensor(QuantizedTensor):
    """:func:`~kdtasks.quantization.uniform_quantize`; at random in training only.

    Args:
        bits, bucket_size, stochastic, gradient: of it.
        every: see :class:`QuantizedTensor`.
    """

    def __init__(
        self,
        bits: int,
        bucket_size: int | None = 256,
        every: int = 1,
        stochastic: bool = False,
        gradient: str = "straight",
    ):
        super().__init__(bits, bucket_size, every)
        self.stochastic, self.gradient = stochastic, gradient

    def quantize(self, tensor: Tensor) -> Tensor:
        """Q of the tensor, with gradients."""
        at_random = self.stochastic and self.training
        return quantizer.uniform_quantize(
            tensor, self.bits, self.bucket_size, at_random, self.gradient
        )

    def packed(self, tensor: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`QuantizedTensor.packed`."""
        buckets = quantizer.to_buckets(tensor, self.bucket_size)
        codes, low, step = quantizer.encode(buckets, self.bits)
        return _flat(codes, tensor), {"low": low, "step": step}

    @staticmethod
    def unpacked(codes: Tensor, table: dict[str, Tensor], bits: int, size: int) -> Tensor:
        """See :meth:`QuantizedTensor.unpacked`."""
        buckets = _in_buckets(codes, size).to(table["low"].dtype)
        return quantizer.decode(buckets, table["low"], table["step"]).view(-1)[: len(codes)]


class LevelTensor(QuantizedTensor):
    """:func:`~kdtasks.quantization.level_quantize` with learned levels.

    Args:
        bits, bucket_size: as for uniform points.
        every: see :class:`QuantizedTensor`.
        count: of the levels, 2 at least, in codes of as many bits as they need; None: 2^bits.
    """

    def __init__(
        self, bits: int, bucket_size: int | None = 256, every: int = 1, count: int | None = None
    ):
        count = 2**bits if count is None else count
        if not isinstance(count, int) or isinstance(count, bool) or count < 2:
            raise ValueError(f"expected two levels or more, a whole number, got {count!r}")
        super().__init__((count - 1).bit_length(), bucket_size, every)
        self.levels = nn.Parameter(torch.linspace(0, 1, count))

    def quantize(self, tensor: Tensor) -> Tensor:
        """Q of the tensor, with gradients."""
        return level.level_quantize(tensor, self.levels, self.bucket_size)

    def start(self, tensor: Tensor) -> None:
        """Levels at the quantiles of these values."""
        found = level.initial_levels(tensor, len(self.levels), self.bucket_size)
        self.levels.data.copy_(found)

    def packed(self, tensor: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`QuantizedTensor.packed`."""
        buckets = quantizer.to_buckets(tensor, self.bucket_size)
        low, width = quantizer.ranges(buckets)
        levels = self.levels.detach().sort().values
        codes = level.nearest(buckets, levels, low, width)
        return _flat(codes, tensor), {"low": low, "width": width, "levels": levels}

    @staticmethod
    def unpacked(codes: Tensor, table: dict[str, Tensor], bits: int, size: int) -> Tensor:
        """See :meth:`QuantizedTensor.unpacked`."""
        buckets = _in_buckets(codes, size).long()
        found = level.at_levels(buckets, table["levels"], table["low"], table["width"])
        return found.view(-1)[: len(codes)]


class LSQTensor(QuantizedTensor):
    """:func:`~kdtasks.quantization.lsq_quantize` of signed values with a learned step.

    Args:
        bits: of the codes, 2 at least.
        bucket_size: is not used: there is one step for the tensor.
        every: see :class:`QuantizedTensor`.
    """

    def __init__(self, bits: int, bucket_size: int | None = None, every: int = 1):
        super().__init__(bits, None, every)
        lsq.lsq_bounds(bits)
        self.step = nn.Parameter(torch.ones(()))

    def quantize(self, tensor: Tensor) -> Tensor:
        """Q of the tensor, with gradients."""
        return lsq.lsq_quantize(tensor, self.step, self.bits)

    def start(self, tensor: Tensor) -> None:
        """The step that these values ask for."""
        self.step.data.copy_(lsq.lsq_init(tensor, self.bits))

    def packed(self, tensor: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`QuantizedTensor.packed`."""
        low, high = lsq.lsq_bounds(self.bits)
        step = self.step.detach().to(quantizer.raised_dtype(tensor)).clamp(min=lsq.MIN_STEP)
        codes = (tensor.detach().to(step.dtype) / step).clamp(low, high).round() - low
        return codes.view(-1), {"step": step}

    @staticmethod
    def unpacked(codes: Tensor, table: dict[str, Tensor], bits: int, size: int) -> Tensor:
        """See :meth:`QuantizedTensor.unpacked`."""
        low, _ = lsq.lsq_bounds(bits)
        return (codes.to(table["step"].dtype) + low) * table["step"]


MODULES: dict[str, type[QuantizedTensor]] = {
    "uniform": UniformTensor,
    "levels": LevelTensor,
    "lsq": LSQTensor,
}


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
    found = list(_tensors(model, first_and_last, biases, norms))
    _check(model, found)
    paths = _paths(model, found)
    for path in counts:
        if path not in paths:
            raise ValueError(f"no quantized tensor is called {path!r}; {did_you_mean(path, paths)}")
    for path, (module, name) in zip(paths, found):
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
    found = list(_tensors(model, first_and_last, biases, norms))
    _check(model, found)
    tensors = [getattr(module, name) for module, name in found]
    total = torch.zeros(len(tensors))
    for loss in losses:
        slopes = torch.autograd.grad(loss, tensors, allow_unused=True)
        total += torch.tensor([0.0 if slope is None else float(slope.norm()) for slope in slopes])
    return dict(zip(_paths(model, found), level.share_levels(total.tolist(), 2**bits)))


def dequantized(model: nn.Module) -> nn.Module:
    """A copy with plain weights, the final Q(W): its state_dict is that of the model before.

    Raises:
        ValueError: no weight of the model is quantized.
    """
    plain = copy.deepcopy(model)
    plain.eval()
    found = list(quantized_tensors(plain))
    if not found:
        raise ValueError(
            f"no weight of this {type(model).__name__} is quantized: expected what "
            "kdtasks.quantization.quantized returned"
        )
    weights = [(module, name, getattr(module, name).detach()) for _, module, name, _ in found]
    for module in {id(module): module for module, *_ in weights}.values():
        # not remove_parametrizations, which would change the class that the model itself has too
        del module.parametrizations
        module.__class__ = parametrize.type_before_parametrizations(module)
    for module, name, weight in weights:
        module.register_parameter(name, nn.Parameter(weight))
    return plain.train(model.training)


def quantized_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, QuantizedTensor]]:
    """``(path, module, name, what quantizes)`` of each quantized tensor; the path is its name in
    the plain state_dict.
    """
    for prefix, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for name, parts in module.parametrizations.items():
            if len(parts) == 1 and isinstance(parts[0], QuantizedTensor):
                yield (f"{prefix}.{name}" if prefix else name), module, name, parts[0]


def _tensors(
    model: nn.Module, first_and_last: bool, biases: bool, norms: bool
) -> Iterator[tuple[nn.Module, str]]:
    """What is quantized: ``(module, name of its parameter)``."""
    layers = [part for part in model.modules() if isinstance(part, LAYERS)]
    if not first_and_last:
        layers = layers[1:-1]
    others = [part for part in model.modules() if norms and isinstance(part, NORMS)]
    for part in layers:
        yield part, "weight"
        if biases and getattr(part, "bias", None) is not None:
            yield part, "bias"
    for part in others:
        for name in ("weight", "bias"):
            if getattr(part, name, None) is not None:
                yield part, name


def _check(model: nn.Module, found: list[tuple[nn.Module, str]]) -> None:
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(path)
    for path, part in model.named_modules():
        if parametrize.is_parametrized(part):
            raise ValueError(
                f"{path or type(model).__name__!r} is parametrized already "
                f"({', '.join(part.parametrizations)}): a weight is quantized once"
            )
    if not found:
        raise ValueError(
            f"there is nothing to quantize in a {type(model).__name__}: expected convolutions or "
            "linear layers, three at least with first_and_last=False"
        )
    for path, (part, name) in zip(_paths(model, found), found):
        shared = owners.get(id(getattr(part, name)), [])
        if len(shared) > 1:
            raise ValueError(
                f"{' and '.join(map(repr, shared))} are one parameter: expected weights that no "
                "other layer shares, since each is quantized by itself"
            )
        bad = not_finite({path: getattr(part, name).detach()})
        if bad:
            raise ValueError(f"cannot quantize what is not finite: {bad}")


def _paths(model: nn.Module, found: list[tuple[nn.Module, str]]) -> list[str]:
    """The names of tensors in the plain state_dict."""
    names = {id(part): path for path, part in model.named_modules()}
    return [f"{names[id(part)]}.{name}".lstrip(".") for part, name in found]


def _take_plain_weights(
    model: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *others: object
) -> None:
    """Weights of the plain model, renamed, and what is learned beside them started from them."""
    for path, module, name, part in quantized_tensors(model):
        own = prefix + _original(path)
        if prefix + path not in state or own in state:
            continue
        weight = state.pop(prefix + path)
        state[own] = weight
        if weight.shape == getattr(module.parametrizations, name).original.shape:
            part.start(weight)
        beside = own.removesuffix("original") + "0."
        for key, value in part.state_dict().items():
            state[beside + key] = value.clone()


def _original(path: str) -> str:
    """``layer.weight`` -> ``layer.parametrizations.weight.original``."""
    head, _, name = path.rpartition(".")
    return (
        f"{head}.parametrizations.{name}.original" if head else f"parametrizations.{name}.original"
    )


def _flat(codes: Tensor, tensor: Tensor) -> Tensor:
    return codes.reshape(-1)[: tensor.numel()]


def _in_buckets(codes: Tensor, size: int) -> Tensor:
    """As :func:`~kdtasks.quantization.quantizer.to_buckets`, of codes."""
    missing = -len(codes) % size
    return torch.cat([codes, codes[-1:].expand(missing)]).view(-1, size)
