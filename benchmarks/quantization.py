"""Quantizing a ResNet-50's weights against copies of them."""

from collections.abc import Iterator

import torch
import torchvision

from benchmarks.measure import Line, ratio, step_times
from kdtasks.quantization import uniform_quantize


def quantize_weights(o) -> Iterator[Line]:
    """All weights of a ResNet-50, 4 bits in buckets of 256; against three clones of them."""
    model = torchvision.models.resnet50()
    weights = [p.detach().to(o.device) for p in model.parameters() if p.dim() > 1]

    def quantized() -> torch.Tensor:
        for weight in weights:
            quantized = uniform_quantize(weight, 4)
        return quantized

    def clones() -> torch.Tensor:
        for weight in weights:
            for _ in range(3):
                quantized = weight.clone()
        return quantized

    variants = {"ResNet-50's weights quantized": quantized, "three clones": clones}
    yield ratio("", step_times(o, variants), *variants, bar=2.0)
