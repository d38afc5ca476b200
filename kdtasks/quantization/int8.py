"""A student in 8 bits: fake quantization while it trains, int8 weights where it is shipped.

The fake quantization is torch's own (``torch.ao.quantization``, FX graph mode): weights per output
channel, symmetric, in [-128, 127]; activations per tensor in [0, 255] with a zero point; a
BatchNorm behind a convolution is folded into its weights before these are rounded, and a ReLU
behind it is one with it. Ranges are moving averages of the extremes (constant 0.01, torch's).

torch's default for x86 leaves activations seven bits (``reduce_range``), so that sums of two
products stay within 16 bits on processors without VNNI instructions. Here they have all eight, as
in torch's ``onednn`` configuration, which is what onnxruntime computes exactly on processors with
VNNI and on ARM. On other x86 processors sums may saturate in a program that does not set its
session option ``session.x64quantprecision=1``; the tools here set it.

torch says that ``torch.ao.quantization`` will move to torchao (``torchao.quantization.pt2e``); it
was to go in 2.10 and is in every release so far (2.15 at the time of writing). It is used here
because the successor's graphs come from ``torch.export``, which refuse ``train()`` and ``eval()``
and need a package of their own. Only its public functions are used, in this file.
"""

import copy
import warnings
from collections.abc import MutableMapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from kdtasks.core.finite import not_finite

# torch's quantize and dequantize in single steps, which ONNX has as operators too
_ops: Any = torch.ops.quantized_decomposed
# those whose weights torch rounds while they train
QUANTIZED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# PReLU stays in full precision: torch has no fake quantization of its slopes
IN_FULL = (nn.PReLU,)


def fake_quantized(model: nn.Module, quantize: bool = True, calibrate: int = 32) -> nn.Module:
    """A student for a config: ``dict(type='kdtasks.quantization.fake_quantized', model=dict(…))``.

    Args:
        model: the student in full precision.
        quantize: False gives ``model`` as it is: a stage that trains it before it is quantized has
            ``arguments=dict(quantize=False)``.
        calibrate: see :class:`FakeQuantized`.

    Raises:
        ValueError: as :class:`FakeQuantized`.
    """
    return FakeQuantized(model, calibrate) if quantize else model


class FakeQuantized(nn.Module):
    """A model whose weights and activations are rounded to 8 bits, with gradients straight through
    the rounding; see above.

    BatchNorm statistics are frozen. The ranges follow the first ``calibrate`` batches of training
    and are frozen from then on; ``eval()`` moves nothing. All is in float32, under autocast too.
    Weights of the model in full precision load (:meth:`complete_state`); features are read at
    ``'student.network.<path>'``, of the modules that are left in the graph.

    Args:
        model: is taken over; its parameters are the same tensors. One tensor goes in.
        calibrate: training batches.

    Attributes:
        network: torch's graph, with fake quantization.
        seen: () int64, training batches so far.
        names: ``{name in the model: name here}`` of parameters and buffers.

    Raises:
        ValueError: the model is quantized already, has a weight that is not finite, has no
            convolution or linear layer, or torch cannot trace it (the module is named);
            ``calibrate`` is no positive whole number.
    """

    seen: Tensor

    def __init__(self, model: nn.Module, calibrate: int = 32):
        super().__init__()
        if not isinstance(calibrate, int) or isinstance(calibrate, bool) or calibrate < 1:
            raise ValueError(f"calibrate must be a number of batches >= 1, got {calibrate!r}")
        _check(model)
        before, training = _tensors(model), model.training
        self.calibrate = calibrate
        self.network = _prepared(model)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.names = {before[key]: name for key, name in _tensors(self).items() if key in before}
        self.train(training)

    def forward(self, input: Tensor) -> Tensor:
        """As the model's."""
        if self.training:
            self._count()
        with torch.autocast(input.device.type, enabled=False):
            return self.network(input.float())

    def _count(self) -> None:
        """One batch more; nothing is read from the device."""
        self.seen += 1
        observing = self.seen <= self.calibrate
        for quantizer in self._quantizers():
            quantizer.observer_enabled.copy_(observing)

    def _quantizers(self) -> list[Any]:
        return [part for part in self.network.modules() if _is_fake_quantizer(part)]

    def train(self, mode: bool = True) -> "FakeQuantized":
        """Ranges move in training only, BatchNorm statistics never."""
        super().train(mode)
        for part in self.network.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.training = False
        if not mode:
            for quantizer in self._quantizers():
                quantizer.disable_observer()
        return self

    def complete_state(self, state: MutableMapping[str, Tensor], prefix: str = "") -> None:
        """Weights of the model in full precision become this one's, in place: renamed, with ranges
        that are not calibrated. Any other state stays as it is.
        """
        plain = {prefix + name: prefix + new_name for name, new_name in self.names.items()}
        if not plain.keys() <= state.keys():
            return
        for name, new_name in plain.items():
            state[new_name] = state.pop(name)
        for name, value in self.state_dict().items():
            state.setdefault(prefix + name, value)

    @property
    def is_calibrated(self) -> bool:
        """Whether the ranges have seen a batch; waits for the device."""
        return bool(self.seen > 0)

    def deployed(self) -> nn.Module:
        """What is shipped, on the CPU, in eval: weights held as int8 with a float32 scale for each
        output channel, biases in float32, and a pair of quantize and dequantize wherever an
        activation is rounded.

        It computes what :meth:`forward` does in eval, to float rounding, which can move an
        activation at the middle of two steps by one step. Transposed convolutions, and BatchNorms
        that follow no convolution, are in float32 between rounded activations.

        Raises:
            ValueError: the ranges were never calibrated, or hold nothing.
        """
        if not self.is_calibrated:
            raise ValueError(
                "the activations of this quantized student were never calibrated: expected at "
                "least one batch in training mode before it is exported (the stage 'ptq' of "
                "kdtasks.quantization.qad.stages)"
            )
        network = copy.deepcopy(self.network).cpu()
        network.eval()
        shared: dict[int, nn.Module] = {}
        for node in network.graph.nodes:
            if node.op != "call_module":
                continue
            part = network.get_submodule(node.target)
            if id(part) not in shared:
                shared[id(part)] = _deployed(part)
            _set(network, node.target, shared[id(part)])
        network.recompile()
        return network.requires_grad_(False)


# Making the graph ---------------------------------------------------------------------------------
def _check(model: nn.Module) -> None:
    """It can be quantized, and is not yet.

    Raises:
        ValueError: see :class:`FakeQuantized`.
    """
    for path, part in model.named_modules():
        where = f"its module {path!r}" if path else "it"
        if isinstance(part, FakeQuantized) or _is_fake_quantizer(part):
            raise ValueError(f"the model is quantized already: {where} is a {type(part).__name__}")
        if parametrize.is_parametrized(part):
            raise ValueError(
                f"{where} is parametrized ({', '.join(part.parametrizations)}), quantized already "
                "perhaps: expected plain weights; "
                "torch.nn.utils.parametrize.remove_parametrizations(…) leaves such"
            )
    bad = not_finite({path: parameter.detach() for path, parameter in model.named_parameters()})
    if bad:
        raise ValueError(f"cannot quantize what is not finite: {bad}")
    if not any(isinstance(part, QUANTIZED) for part in model.modules()):
        raise ValueError(
            f"a {type(model).__name__} has no convolution and no linear layer: there is nothing to "
            "quantize"
        )


def _is_fake_quantizer(part: nn.Module) -> bool:
    # torch imports it only where it is asked for
    from torch.ao.quantization import FakeQuantizeBase

    return isinstance(part, FakeQuantizeBase)


def _prepared(model: nn.Module) -> fx.GraphModule:
    from torch.ao import quantization as ao
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    mapping = ao.get_default_qat_qconfig_mapping("onednn")
    for kind in IN_FULL:
        mapping.set_object_type(kind, None)
    model.train()
    with warnings.catch_warnings():
        # its move to torchao, and reduce_range of its own defaults
        warnings.simplefilter("ignore")
        try:
            # the example serves operators that are not in these graphs
            network = prepare_qat_fx(model, mapping, (torch.zeros(1),))
        except Exception as error:
            raise ValueError(_untraceable(model, error)) from error
    for part in network.modules():
        if hasattr(part, "weight_fake_quant"):
            _size(part)
    return network


def _untraceable(model: nn.Module, error: Exception) -> str:
    """What torch could not trace: the first module that it cannot trace, though all in it."""
    paths = sorted(dict(model.named_modules()), key=lambda path: -path.count(".") - bool(path))
    path = next((path for path in paths if not _traces(model.get_submodule(path))), "")
    where = f"its module {path!r} ({type(model.get_submodule(path)).__name__})" if path else "it"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"torch.fx cannot trace a {type(model).__name__}, so torch cannot quantize it: {where} "
        f"decides in Python on what is in a tensor, or takes other inputs than tensors ({reason}). "
        "Expected a plain network of one tensor: quantize its backbone alone, or mark the function "
        "at fault with torch.fx.wrap"
    )


def _traces(part: nn.Module) -> bool:
    try:
        fx.symbolic_trace(part)
    # whatever a model's code raises on a proxy
    except Exception:
        return False
    return True


def _size(part: nn.Module) -> None:
    """Ranges of one entry a channel, as they are after the first batch: a state has one size."""
    module = cast(Any, part)
    quantizer, channels = module.weight_fake_quant, len(module.weight)
    observer = quantizer.activation_post_process
    observer.min_val.resize_(channels).fill_(torch.inf)
    observer.max_val.resize_(channels).fill_(-torch.inf)
    quantizer.scale.resize_(channels).fill_(1)
    quantizer.zero_point.resize_(channels).fill_(0)


def _tensors(module: nn.Module) -> dict[int, str]:
    """``{identity: name}`` of what its state_dict holds."""
    entries = [*module.named_parameters(), *module.named_buffers()]
    return {id(tensor): name for name, tensor in entries if name in module.state_dict()}


# What is shipped ----------------------------------------------------------------------------------
class QuantizeDequantize(nn.Module):
    """Rounds an activation to 8 bits, by torch's decomposed operators.

    Args:
        quantizer: torch's fake quantization of it.
    """

    def __init__(self, quantizer: Any):
        super().__init__()
        self.scale, self.zero_point = float(quantizer.scale), int(quantizer.zero_point)
        low, high = quantizer.quant_min, quantizer.quant_max
        self.range = (low, high, torch.int8 if low < 0 else torch.uint8)

    def forward(self, input: Tensor) -> Tensor:
        """The nearest of 256 values, of any shape."""
        codes = _ops.quantize_per_tensor(input, self.scale, self.zero_point, *self.range)
        return _ops.dequantize_per_tensor(codes, self.scale, self.zero_point, *self.range)


class Int8Weights(nn.Module):
    """A convolution or linear layer whose weights are held as int8.

    Args:
        layer: in float32, BatchNorm folded into it.
        quantizer: torch's fake quantization of its weights.

    Attributes:
        weight: int8, the shape of the layer's.
        scale: (outputs,) float32; ``zero_point`` of the same shape, zeros.
    """

    weight: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, layer: nn.Module, quantizer: Any):
        super().__init__()
        self.range = (quantizer.ch_axis, quantizer.quant_min, quantizer.quant_max, torch.int8)
        scale, zero_point = quantizer.scale.clone(), quantizer.zero_point.long()
        source = cast(Any, layer)
        weight = _ops.quantize_per_channel(source.weight.detach(), scale, zero_point, *self.range)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.bias = source.bias
        # its own forward, but for the weights
        self.compute = F.linear if isinstance(layer, nn.Linear) else source._conv_forward

    def forward(self, input: Tensor) -> Tensor:
        """As the layer's."""
        weight = _ops.dequantize_per_channel(self.weight, self.scale, self.zero_point, *self.range)
        return self.compute(input, weight, self.bias)


def _deployed(part: nn.Module) -> nn.Module:
    """What stands in the place of a module of the graph."""
    if _is_fake_quantizer(part):
        if not bool(cast(Any, part).scale.isfinite().all()):
            raise ValueError("the range of an activation is not finite")
        return QuantizeDequantize(part)
    if not hasattr(part, "weight_fake_quant"):
        return part
    layer = cast(Any, part).to_float()
    parts = list(layer) if isinstance(layer, nn.Sequential) else [layer]
    return nn.Sequential(Int8Weights(parts[0], cast(Any, part).weight_fake_quant), *parts[1:])


def _set(model: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, part)
