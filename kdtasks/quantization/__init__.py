"""Students in few bits: quantizers, distillation into quantized weights, packed files, and 8 bits
as they ship.
"""

from kdtasks.quantization.inputs import quantized_inputs
from kdtasks.quantization.int8 import FakeQuantized, fake_quantized
from kdtasks.quantization.levels import initial_levels, level_quantize, share_levels
from kdtasks.quantization.lsq import LSQ, PACT, lsq_init, lsq_quantize, pact
from kdtasks.quantization.packing import load_packed, pack, read_packed
from kdtasks.quantization.parametrizations import assign_levels, quantized
from kdtasks.quantization.quantizer import compression, uniform_quantize
from kdtasks.quantization.tensors import dequantized

__all__ = [  # noqa: RUF022 - as sorted() has it, as in all packages
    "FakeQuantized",
    "LSQ",
    "PACT",
    "assign_levels",
    "compression",
    "dequantized",
    "fake_quantized",
    "initial_levels",
    "level_quantize",
    "load_packed",
    "lsq_init",
    "lsq_quantize",
    "pack",
    "pact",
    "quantized",
    "quantized_inputs",
    "read_packed",
    "share_levels",
    "uniform_quantize",
]
