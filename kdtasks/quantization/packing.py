"""A quantized student in as many bytes as it needs: codes packed to their bits, in one safetensors
file.

:func:`pack` writes for each quantized tensor its codes, ``<name>.codes`` (uint8, b bits each, no
gap between them), and what decodes them (``.low`` and ``.step`` of each bucket, say); all other
tensors as they are. :func:`load_packed` reads it into the **plain** model, bit for bit what the
quantized one computed with.
"""

import copy
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdtasks.core.files import write_atomically
from kdtasks.core.finite import not_finite
from kdtasks.quantization.quantizer import compression
from kdtasks.quantization.tensors import MODULES, dequantized, quantized_tensors

FORMAT = "kdtasks.packed"
VERSION = 1


class Size(NamedTuple):
    """What a packed file saves.

    Attributes:
        bytes: of the file.
        float_bytes: of the plain model's tensors.
        quantized: how many values are quantized.
        others: and how many are not.
        formula: how many times smaller codes and two numbers a bucket are than float32, of the
            quantized values alone (:func:`~kdtasks.quantization.compression`).
    """

    bytes: int
    float_bytes: int
    quantized: int
    others: int
    formula: float

    @property
    def ratio(self) -> float:
        """How many times smaller the file is."""
        return self.float_bytes / self.bytes


def pack(model: nn.Module, path: str | Path, facts: Mapping[str, str] | None = None) -> Size:
    """Write a quantized model's packed file.

    Args:
        model: what :func:`~kdtasks.quantization.quantized` returned.
        path: of the file; what was there stays until the new one is whole.
        facts: further metadata, texts.

    Raises:
        ValueError: nothing of the model is quantized, or a quantized weight is NaN or infinite.
    """
    from safetensors.torch import save_file

    # Q and its codes may differ by a bit from one device to another
    model = copy.deepcopy(model).cpu()
    plain = dequantized(model).state_dict()
    bad = not_finite({name: plain[name] for name, *_ in quantized_tensors(model)})
    if bad:
        raise ValueError(f"cannot pack what is not finite: {bad}")
    tensors: dict[str, Tensor] = {}
    codings: dict[str, dict] = {}
    kinds = {module: kind for kind, module in MODULES.items()}
    for name, module, attribute, part in quantized_tensors(model):
        weight = getattr(module.parametrizations, attribute).original
        codes, table = part.packed(weight)
        size = min(part.bucket_size or weight.numel(), weight.numel())
        codings[name] = {
            "kind": kinds[type(part)],
            "bits": part.bits,
            "bucket": size,
            "shape": list(weight.shape),
            "dtype": str(weight.dtype).removeprefix("torch."),
        }
        tensors[f"{name}.codes"] = to_bits(codes, part.bits)
        tensors |= {f"{name}.{key}": value.flatten() for key, value in table.items()}
    rest = {name: value for name, value in plain.items() if name not in codings}
    tensors |= rest
    metadata = {"format": FORMAT, "version": str(VERSION), "tensors": json.dumps(codings)}
    metadata = {**(facts or {}), **metadata}
    tensors = {name: value.detach().contiguous() for name, value in tensors.items()}
    write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, metadata))
    return Size(
        Path(path).stat().st_size,
        sum(value.numel() * value.element_size() for value in plain.values()),
        sum(plain[name].numel() for name in codings),
        sum(value.numel() for value in rest.values()),
        _by_formula(codings.values()),
    )


def _by_formula(codings: Iterable[Mapping]) -> float:
    """That of all tensors, each in its bits and buckets."""
    counts = [
        (math.prod(coding["shape"]), compression(coding["bits"], coding["bucket"]))
        for coding in codings
    ]
    return sum(count for count, _ in counts) / sum(count / times for count, times in counts)


def read_packed(path: str | Path) -> dict[str, Tensor]:
    """The plain state_dict of a packed file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no packed file, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"no packed file {str(path)!r}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} is truncated, damaged or no safetensors file: {error}"
        ) from None
    if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{str(path)!r} is no packed file of version {VERSION}: its metadata says "
            f"{metadata.get('format')!r}, version {metadata.get('version')!r}"
        )
    try:
        return _plain(tensors, json.loads(metadata["tensors"]))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from None


def load_packed(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a packed file into the plain model, and return it.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_packed`; or it is of another model, which then
            stays as it was.
    """
    state, expected = read_packed(path), model.state_dict()
    faults = [
        f"{name} {tuple(state[name].shape) if name in state else 'missing'}"
        for name, tensor in expected.items()
        if name not in state or state[name].shape != tensor.shape
    ]
    faults += [f"{name} unexpected" for name in state if name not in expected]
    if faults:
        more = f" (+{len(faults) - 4} more)" if len(faults) > 4 else ""
        raise ValueError(
            f"{str(path)!r} is not of this {type(model).__name__}: {', '.join(faults[:4])}{more}"
        )
    model.load_state_dict(state)
    return model


class PackedFile:
    """What a quantized model has as ``packed_file``, for who writes files of any model."""

    write = staticmethod(pack)
    load = staticmethod(load_packed)
    plain = staticmethod(dequantized)


def to_bits(codes: Tensor, bits: int) -> Tensor:
    """``(n,)`` whole numbers below 2^bits -> uint8, their bits without gaps, the lowest first."""
    codes = codes.to(torch.int32)
    flat = codes.new_zeros(-(-len(codes) * bits // 8) * 8, dtype=torch.uint8)  # a byte a bit
    rows = flat[: len(codes) * bits].view(-1, bits)
    for place in range(bits):
        rows[:, place] = (codes >> place) & 1
    octets = flat.view(-1, 8)
    packed = octets[:, 0].clone()
    for place in range(1, 8):
        packed |= octets[:, place] << place
    return packed


def from_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The ``count`` numbers of :func:`to_bits`, as int32.

    Raises:
        ValueError: there are too few bits, or too many.
    """
    if len(packed) != -(-count * bits // 8):
        raise ValueError(f"expected {-(-count * bits // 8)} bytes of codes, got {len(packed)}")
    flat = packed.new_empty(len(packed), 8)
    for place in range(8):
        flat[:, place] = (packed >> place) & 1
    rows = flat.view(-1)[: count * bits].view(count, bits)
    codes = rows[:, 0].to(torch.int32)
    for place in range(1, bits):
        codes |= rows[:, place].to(torch.int32) << place
    return codes


def _plain(tensors: dict[str, Tensor], codings: dict[str, dict]) -> dict[str, Tensor]:
    state = dict(tensors)
    for name, fact in codings.items():
        entries = {key: state.pop(key) for key in list(state) if key.startswith(f"{name}.")}
        table = {key.removeprefix(f"{name}."): value for key, value in entries.items()}
        shape = torch.Size(fact["shape"])
        codes = from_bits(table.pop("codes"), fact["bits"], shape.numel())
        table = {
            key: value[:, None] if key != "levels" and len(value) > 1 else value
            for key, value in table.items()
        }
        values = MODULES[fact["kind"]].unpacked(codes, table, fact["bits"], fact["bucket"])
        state[name] = values.view(shape).to(getattr(torch, fact["dtype"]))
    return state
