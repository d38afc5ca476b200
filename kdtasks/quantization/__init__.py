"""Students in few bits: quantizers, distillation into quantized weights, and packed files."""

from kdtasks.quantization.levels import initial_levels, level_quantize, share_levels
from kdtasks.quantization.lsq import LSQ, PACT, lsq_init, lsq_quantize, pact
from kdtasks.quantization.packing import load_packed, pack, read_packed
from kdtasks.quantization.parametrizations import assign_levels, dequantized, quantized
from kdtasks.quantization.quantizer import compression, uniform_quantize

__all__ = [
    "LSQ",
    "PACT",
    "assign_levels",
    "compression",
    "dequantized",
    "initial_levels",
    "level_quantize",
    "load_packed",
    "lsq_init",
    "lsq_quantize",
    "pack",
    "pact",
    "quantized",
    "read_packed",
    "share_levels",
    "uniform_quantize",
]
