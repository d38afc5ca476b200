"""What quantizes one tensor, as a torch parametrization: Q(W) with gradients, its codes, and what
of it is learned; and the plain model at the end.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdtasks.quantization import levels as level
from kdtasks.quantization import lsq, quantizer


class QuantizedTensor(nn.Module):
    """The base of what quantizes one tensor.

    Args:
        bits, bucket_size: of the codes.
        every: in training only every n-th call is quantized, from the first on.

    Attributes:
        undecayed: names of parameters that the optimizer's weight decay leaves alone: it would pull
            levels and steps, which belong to the weights' range, to 0. Our choice.
        calls: () int64, how often it was called in training; None where every call is quantized.
    """

    undecayed: tuple[str, ...] = ()
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
        stochastic = self.stochastic and self.training
        return quantizer.uniform_quantize(
            tensor, self.bits, self.bucket_size, stochastic, self.gradient
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

    undecayed = ("levels",)

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
        self.levels.data.copy_(level.initial_levels(tensor, len(self.levels), self.bucket_size))

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
        values = level.at_levels(buckets, table["levels"], table["low"], table["width"])
        return values.view(-1)[: len(codes)]


class LSQTensor(QuantizedTensor):
    """:func:`~kdtasks.quantization.lsq_quantize` of signed values with a learned step.

    Args:
        bits: of the codes, 2 at least.
        bucket_size: is not used: there is one step for the tensor.
        every: see :class:`QuantizedTensor`.
    """

    undecayed = ("step",)

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


def dequantized(model: nn.Module) -> nn.Module:
    """A copy with plain weights, the final Q(W): its state_dict is that of the model before.

    Raises:
        ValueError: no weight of the model is quantized.
    """
    plain = copy.deepcopy(model)
    plain.eval()
    for part in plain.modules():
        part.__dict__.pop("packed_file", None)
    entries = list(quantized_tensors(plain))
    if not entries:
        raise ValueError(
            f"no weight of this {type(model).__name__} is quantized: expected what "
            "kdtasks.quantization.quantized returned"
        )
    weights = [(module, name, getattr(module, name).detach()) for _, module, name, _ in entries]
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


def _flat(codes: Tensor, tensor: Tensor) -> Tensor:
    return codes.reshape(-1)[: tensor.numel()]


def _in_buckets(codes: Tensor, size: int) -> Tensor:
    """As :func:`~kdtasks.quantization.quantizer.to_buckets`, of codes."""
    missing = -len(codes) % size
    return torch.cat([codes, codes[-1:].expand(missing)]).view(-1, size)
