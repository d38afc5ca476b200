"""A model whose weights are quantized: what trains, what loads, what is left, and its packed file."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from kdtasks.classification.models import resnet8
from kdtasks.core.weights import load_weights
from kdtasks.engine.parameters import build_optimizer
from kdtasks.quantization import (
    LSQ,
    PACT,
    assign_levels,
    compression,
    dequantized,
    load_packed,
    pack,
    quantized,
    read_packed,
    uniform_quantize,
)
from kdtasks.quantization.packing import from_bits, to_bits
from kdtasks.quantization.tensors import quantized_tensors

KINDS = ("uniform", "levels", "lsq")


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(**settings):
    return quantized(resnet8(width=8), **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_with_q_of_w_and_moves_w(kind):
    model = small(bits=3, kind=kind)
    images = torch.randn(4, 3, 16, 16)
    weight = model.conv1.weight
    original = model.conv1.parametrizations.weight.original
    assert len(weight[0].unique()) <= 27 and not torch.equal(weight, original)
    if kind == "uniform":
        assert torch.equal(weight, uniform_quantize(original, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    model(images).square().mean().backward()
    optimizer.step()
    moved = [
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    ]
    learned = {"uniform": "original", "levels": "0.levels", "lsq": "0.step"}[kind]
    assert "conv1.parametrizations.weight.original" in moved
    assert any(name.endswith(learned) for name in moved)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_model_with_the_final_weights(kind, tmp_path):
    model = small(bits=4, kind=kind).eval()
    plain = dequantized(model)
    assert plain.state_dict().keys() == resnet8(width=8).state_dict().keys()
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(plain(images), model(images))
    assert parametrize.is_parametrized(model.conv1)  # as it was
    # torch's own way to end it, which changes the model itself
    for _, module, name, _ in list(quantized_tensors(model)):
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    expected = plain.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    other = resnet8(width=8)
    other.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_plain_weights_load_and_what_is_learned_starts_from_them(kind, tmp_path):
    plain = resnet8(width=8)
    with torch.no_grad():
        plain.conv1.weight.mul_(3)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    model = small(bits=4, kind=kind)
    load_weights(model, tmp_path / "plain.pth")
    expected = quantized(copy.deepcopy(plain), bits=4, kind=kind)
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
    # and its own state, as it is
    torch.save(expected.state_dict(), tmp_path / "own.pth")
    with torch.no_grad():
        for *_, part in quantized_tensors(model):
            for parameter in part.parameters():
                parameter.mul_(2)
    load_weights(model, tmp_path / "own.pth")
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_what_is_quantized():
    def names(**settings):
        return [path for path, *_ in quantized_tensors(small(**settings))]

    whole = names()
    assert whole[0] == "conv1.weight" and whole[-1] == "fc.weight"
    assert all(name.endswith("weight") and ".bn" not in name for name in whole)
    assert names(first_and_last=False) == whole[1:-1]
    assert set(names(biases=True)) == {*whole, "fc.bias"}
    assert {"bn1.weight", "bn1.bias"} <= set(names(norms=True))
    assert small(quantize=False).state_dict().keys() == resnet8(width=8).state_dict().keys()


def test_levels_are_shared_out_by_what_the_loss_depends_on(tmp_path):
    model = resnet8(width=8)
    batches = [torch.randn(4, 3, 16, 16) for _ in range(2)]
    norms = {}
    for images in batches:
        named = {n: p for n, p in model.named_parameters() if p.dim() > 1}
        slopes = torch.autograd.grad(model(images).square().mean(), list(named.values()))
        norms = {n: norms.get(n, 0.0) + slope.norm().item() for n, slope in zip(named, slopes)}
    counts = assign_levels(model, (model(images).square().mean() for images in batches), bits=3)
    assert counts.keys() == norms.keys() and sum(counts.values()) == 8 * len(counts)
    assert min(counts.values()) >= 4
    ordered = sorted(norms, key=norms.__getitem__)
    assert [counts[n] for n in ordered] == sorted(counts.values()) and len({*counts.values()}) > 1
    model = quantized(model, bits=3, kind="levels", counts=counts).eval()
    assert {p: len(part.levels) for p, *_, part in quantized_tensors(model)} == counts
    pack(model, tmp_path / "shared.safetensors")
    plain = load_packed(resnet8(width=8), tmp_path / "shared.safetensors").eval()
    assert torch.equal(plain(batches[0]), model(batches[0]))
    with pytest.raises(ValueError, match="no quantized tensor is called 'conv.weight'"):
        small(kind="levels", counts={"conv.weight": 4})
    with pytest.raises(ValueError, match="two levels or more, a whole number, got 1"):
        small(kind="levels", counts={"conv1.weight": 1})
    with pytest.raises(ValueError, match="counts are of kind='levels', got kind='lsq'"):
        small(kind="lsq", counts={"conv1.weight": 4})


@pytest.mark.parametrize("factors", [None, {"1": 0.5, "0.conv1": 2.0}])
@pytest.mark.parametrize("kind", KINDS)
def test_weight_decay_pulls_on_weights_alone(kind, factors):
    model = nn.Sequential(small(kind=kind), LSQ(4), PACT(4))
    before = {name: value.clone() for name, value in model.named_parameters()}
    spec = {"type": "torch.optim.SGD", "lr": 0.1, "weight_decay": 0.5, "factors": factors}
    optimizer = build_optimizer(spec, model, list(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    learned = {name for name in before if name.endswith((".levels", ".step"))}
    zero = {name for name, value in before.items() if not value.any()}  # biases
    assert kept == learned | zero and len(learned) == (1 if kind == "uniform" else 11)
    # an optimizer of one group as ever where nothing is apart
    plain = resnet8(width=8)
    assert (
        len(build_optimizer(spec | {"factors": None}, plain, [*plain.parameters()]).param_groups)
        == 1
    )


def test_every_second_forward_is_quantized_in_training():
    model = quantized(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), bits=2, every=2)
    first, plain = model[0], model[0].parametrizations.weight.original
    seen = [torch.equal(first.weight, plain) for _ in range(5)]
    assert seen == [False, True, False, True, False]
    model.eval()
    assert not torch.equal(first.weight, plain) and not torch.equal(first.weight, plain)
    resumed = quantized(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), bits=2, every=2)
    resumed.load_state_dict(model.state_dict())
    resumed.train()
    assert torch.equal(resumed[0].weight, plain)  # the turn after the fifth


def test_at_random_in_training_only():
    model = small(bits=2, stochastic=True)
    assert not torch.equal(model.conv1.weight, model.conv1.weight)
    model.eval()
    assert torch.equal(model.conv1.weight, model.conv1.weight)


def test_it_compiles_and_goes_through_autocast():
    model = small(bits=4, kind="lsq").eval()
    images = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(images).float().sum().backward()
    assert model.conv1.parametrizations.weight.original.grad.dtype is torch.float32


def test_what_cannot_be_quantized_is_named():
    with pytest.raises(ValueError, match="'conv1' is parametrized already"):
        quantized(small())
    with pytest.raises(ValueError, match="nothing to quantize in a ReLU"):
        quantized(nn.ReLU())
    with pytest.raises(ValueError, match="three at least with first_and_last=False"):
        quantized(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), first_and_last=False)
    broken = nn.Sequential(nn.Linear(2, 2))
    broken[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"not finite: \['0.weight'\]"):
        quantized(broken)
    tied = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="'0.weight' and '1.weight' are one parameter"):
        quantized(tied)
    with pytest.raises(ValueError, match="kind must be one of .* did you mean 'uniform'"):
        small(kind="unifrom")
    with pytest.raises(ValueError, match="every must be a whole number >= 1, got 0"):
        small(every=0)
    with pytest.raises(ValueError, match="bits must be a whole number from 1 to 16, got 33"):
        small(bits=33)
    with pytest.raises(ValueError, match="no weight of this ResNet is quantized"):
        dequantized(resnet8())


# ------------------------------------------------------------------------------------------- packing
@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8, 11, 16])
def test_bits_without_gaps(bits):
    codes = torch.randint(2**bits, (37,))
    packed = to_bits(codes, bits)
    assert packed.dtype is torch.uint8 and len(packed) == -(-37 * bits // 8)
    assert torch.equal(from_bits(packed, bits, 37).long(), codes)
    whole = sum(int(code) << (k * bits) for k, code in enumerate(codes))
    assert bytes(packed.tolist()) == whole.to_bytes(len(packed), "little")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_packed_file_is_the_model_bit_for_bit(kind, bits, tmp_path):
    model = small(bits=bits, kind=kind, biases=True).eval()
    size = pack(model, tmp_path / "student.safetensors")
    plain = load_packed(resnet8(width=8), tmp_path / "student.safetensors").eval()
    for name, value in dequantized(model).state_dict().items():
        # -0.0 is no 0.0 here
        found = plain.state_dict()[name].numpy().tobytes()
        assert found == value.contiguous().numpy().tobytes(), name
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(plain(images), model(images))
    assert size.bytes == (tmp_path / "student.safetensors").stat().st_size
    assert size.float_bytes == sum(
        v.numel() * v.element_size() for v in plain.state_dict().values()
    )


def test_weights_that_are_not_finite_are_not_packed(tmp_path):
    model = small(bits=4)
    path = tmp_path / "student.safetensors"
    pack(model, path)
    content = path.read_bytes()
    model.conv1.parametrizations.weight.original.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"cannot pack what is not finite: \['conv1.weight'\]"):
        pack(model, path)
    assert path.read_bytes() == content


def test_half_weights_come_back_as_half(tmp_path):
    model = quantized(nn.Sequential(nn.Linear(40, 30)).half(), bits=4)
    pack(model, tmp_path / "half.safetensors")
    plain = load_packed(nn.Sequential(nn.Linear(40, 30)).half(), tmp_path / "half.safetensors")
    assert torch.equal(plain[0].weight, model[0].weight)


def test_the_file_is_as_small_as_the_formula_says(tmp_path):
    model = quantized(nn.Sequential(nn.Linear(1024, 1024, bias=False)), bits=4, bucket_size=256)
    size = pack(model, tmp_path / "large.safetensors")
    assert size.ratio == pytest.approx(compression(4, 256), rel=1e-2)
    assert (size.quantized, size.others) == (1024 * 1024, 0)


def test_files_that_are_damaged_or_of_another_model(tmp_path):
    path = tmp_path / "student.safetensors"
    pack(small(bits=4), path)
    with pytest.raises(FileNotFoundError, match="no packed file"):
        read_packed(tmp_path / "other.safetensors")
    other = resnet8(width=16)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"is not of this ResNet: conv1.weight \(8, 3, 3, 3\)"):
        load_packed(other, path)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    content = path.read_bytes()
    for part in (content[: len(content) // 2], content[:20], b"", b"PK" + content):
        path.write_bytes(part)
        with pytest.raises(ValueError, match="truncated, damaged or no safetensors file"):
            read_packed(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is no packed file of version 1"):
        read_packed(path)
