"""The inputs of layers in few bits: what is computed, what a file holds, what is refused."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from kdtasks.classification.models import digits_cnn
from kdtasks.core.trial import try_out
from kdtasks.engine.optim import MovingAverage
from kdtasks.quantization import (
    LSQ,
    dequantized,
    load_packed,
    lsq_init,
    lsq_quantize,
    pack,
    quantized,
    quantized_inputs,
)
from kdtasks.quantization.inputs import input_quantizers
from kdtasks.quantization.quantized_distillation import stages


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def test_each_layer_computes_with_its_input_at_multiples_of_its_step():
    conv, relu, flat, linear = plain()
    model = quantized_inputs(plain(), bits=3)
    found = model(images())
    first = 2 * images().abs().mean() / math.sqrt(3)  # signed, as there are values below 0
    codes = (images() / first).clamp(-4, 3).round()
    hidden = flat(relu(conv(codes * first)))
    second = 2 * hidden.mean() / math.sqrt(7)  # behind a ReLU
    expected = linear((hidden / second).clamp(0, 7).round() * second)
    torch.testing.assert_close(found, expected)
    # the same steps for another batch, and a gradient for each
    other = model(3 * images())
    hidden = flat(relu(conv((3 * images() / first).clamp(-4, 3).round() * first)))
    torch.testing.assert_close(other, linear((hidden / second).clamp(0, 7).round() * second))
    other.sum().backward()
    assert all(part.step.grad.abs() > 0 for _, part in input_quantizers(model))


def test_plain_weights_load_and_the_steps_start_anew():
    alone = quantized_inputs(plain())
    alone(images())
    alone.load_state_dict(plain().state_dict())
    assert not any(part.started for _, part in input_quantizers(alone))
    model = quantized(plain(), bits=4, kind="lsq", activations=4)
    model(images())
    assert all(part.started for _, part in input_quantizers(model))
    model.load_state_dict(plain().state_dict())
    assert not any(part.started for _, part in input_quantizers(model))
    model(5 * images())
    steps = dict(input_quantizers(model))
    assert steps["0.input_quantizer"].step.item() == pytest.approx(lsq_init(5 * images(), 4).item())
    # all that it has learned, signs included
    other = quantized(plain(), bits=4, kind="lsq", activations=4)
    other.load_state_dict(model.state_dict())
    for copied in (other, copy.deepcopy(model)):
        assert torch.equal(copied.eval()(images()), model.eval()(images()))
    other.train()(9 * images())
    assert torch.equal(
        dict(input_quantizers(other))["0.input_quantizer"].step, model[0].input_quantizer.step
    )


def test_before_the_first_batch_in_training_a_batch_has_its_own_step():
    model = quantized_inputs(nn.Sequential(nn.Linear(4, 3)), bits=2).eval()
    layer, rows = copy.deepcopy(model[0]), images().view(-1, 4)
    layer._forward_pre_hooks.clear()
    for batch in (rows, rows.abs(), 7 * rows):
        signed = bool((batch < 0).any())
        step = lsq_init(batch, 2, signed)
        assert torch.equal(model(batch), layer(lsq_quantize(batch, step, 2, signed)))
    with try_out(model, training=True):
        model(100 * rows)
    quantizer = model[0].input_quantizer
    assert not quantizer.started and not quantizer.negative  # a trial is no first batch


def test_a_packed_file_computes_as_the_student_does(tmp_path):
    model = quantized(digits_cnn(width=4, in_channels=1), bits=3, kind="lsq", activations=3)
    batch = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    model(batch).sum().backward()
    model.eval()
    file = tmp_path / "few.safetensors"
    pack(model, file)
    network = digits_cnn(width=4, in_channels=1)
    loaded = load_packed(quantized_inputs(network, bits=3), file).eval()
    assert torch.equal(loaded(batch), model(batch))
    assert torch.equal(dequantized(model)(batch), model(batch))
    with pytest.raises(ValueError, match=r"input_quantizer.step unexpected"):
        load_packed(digits_cnn(width=4, in_channels=1), file)


@pytest.mark.parametrize("signed", [None, False])
def test_an_average_of_weights_is_what_it_saves(signed):
    """Its copy of the model was made before any step had started."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), LSQ(2, signed), nn.Linear(6, 3)).train()
    average = MovingAverage(model, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = None
    for rows in torch.randn(5, 8, 4, generator=torch.Generator().manual_seed(3)):
        optimizer.zero_grad()
        model(rows).square().mean().backward()
        optimizer.step()
        average.update()
        step = model[1].step.detach().clone()
        expected = step if expected is None else 0.9 * expected + 0.1 * step
    torch.testing.assert_close(average.model[1].step.detach(), expected)
    saved = nn.Sequential(nn.Linear(4, 6), LSQ(2, signed), nn.Linear(6, 3)).eval()
    saved.load_state_dict(average.model.state_dict())
    for count in (1, 8):
        rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(4))
        assert torch.equal(average.model(rows), saved(rows))


def test_batches_that_say_nothing():
    model = quantized_inputs(nn.Sequential(nn.Linear(4, 3)), bits=2).train()
    assert model(torch.zeros(0, 4)).shape == (0, 3)
    model(torch.zeros(5, 4))  # nor one of zeros
    assert not model[0].input_quantizer.started
    model(input=-torch.rand(5, 4))  # by name
    assert model[0].input_quantizer.started and model[0].input_quantizer.negative


def test_layers_that_are_not_called_are_warned_of():
    class ByFunction(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, rows):
            return nn.functional.linear(self.first(rows), self.second.weight, self.second.bias)

    model = quantized_inputs(ByFunction(), bits=4).train()
    with pytest.warns(UserWarning, match="the inputs of 'second' stay in full precision"):
        model(torch.randn(3, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(3, 4))  # once
        quantized_inputs(plain(), bits=4).train()(images())


@pytest.mark.parametrize(
    "model, bits, message",
    [
        (plain, 1, "signed values need 2 bits or more, got 1"),
        (plain, 33, "bits must be"),
        (lambda: nn.Embedding(5, 3), 4, "no layer of a Embedding has an input to quantize"),
        (lambda: nn.Sequential(nn.ReLU()), 4, "no layer of a Sequential has an input"),
        (lambda: quantized_inputs(plain()), 4, "the input of '0' is quantized already"),
        (
            lambda: nn.ModuleList([nn.Linear(4, 4), nn.MultiheadAttention(4, 2)]),
            4,
            "'1' is a torch.nn.MultiheadAttention, which computes without calling",
        ),
    ],
)
def test_bad_input(model, bits, message):
    with pytest.raises(ValueError, match=message):
        quantized_inputs(model(), bits)


def test_stages_of_a_student_with_activations_in_few_bits():
    student = {"type": "kdtasks.quantization.quantized", "model": {}, "bits": 4, "activations": 4}
    config = {"student": student, "teachers": {"teacher": {"type": "x"}}, "teacher_training": {}}
    names = [stage["name"] for stage in stages(config)]
    assert names == ["teacher", "full", "alone", "distilled"]
    with pytest.raises(ValueError, match="expected no activations, got both"):
        stages(config, levels={})
