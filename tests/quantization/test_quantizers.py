"""Uniform points, learned levels, learned steps and ceilings against loops over values written here,
their gradients, and settings that make no sense.
"""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdtasks.core.trial import try_out
from kdtasks.quantization import (
    LSQ,
    PACT,
    compression,
    initial_levels,
    level_quantize,
    lsq_init,
    lsq_quantize,
    pact,
    share_levels,
    uniform_quantize,
)
from kdtasks.quantization.lsq import lsq_bounds

F64 = torch.float64


class Operations(TorchDispatchMode):
    """Notes the names of what is computed."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def normal(*shape, dtype=F64):
    return torch.randn(*shape, dtype=F64).to(dtype)


def buckets_of(values, size):
    size = min(size or len(values), len(values))
    rows = [values[k : k + size] for k in range(0, len(values), size)]
    rows[-1] = rows[-1] + [values[-1]] * (size - len(rows[-1]))
    return rows


def slow_uniform(tensor, bits, size):
    """One value after the other, in scalars of the tensor's own dtype."""
    top, found = 2**bits - 1, []
    for row in buckets_of(list(tensor.flatten()), size):
        low, high = min(row), max(row)
        width = high - low
        for value in row:
            if width < 1e-10:
                found.append(low)
            else:
                code = torch.round((value - low) / width * top)
                found.append(torch.addcmul(low, code, width / top))
    return torch.stack(found[: tensor.numel()]).view(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("shape, size", [((7, 5), 8), ((3, 4), 256), ((2, 3, 2), None), ((1,), 4)])
def test_uniform_points_equal_the_loop_exactly(dtype, bits, shape, size):
    tensor = normal(*shape, dtype=dtype)
    assert torch.equal(uniform_quantize(tensor, bits, size), slow_uniform(tensor, bits, size))


@pytest.mark.parametrize("size", [4, 16, None])
def test_both_ends_stay_and_there_are_no_more_points_than_bits_give(size):
    tensor = normal(10, 7)
    found = uniform_quantize(tensor, 2, size)
    for row, given in zip(
        buckets_of(found.flatten().tolist(), size), buckets_of(tensor.flatten().tolist(), size)
    ):
        assert len({round(v, 9) for v in row}) <= 4
        assert min(row) == pytest.approx(min(given)) and max(row) == pytest.approx(max(given))
        step = (max(given) - min(given)) / 3
        assert all(abs(a - b) <= step / 2 + 1e-12 for a, b in zip(row, given))


def test_halves_go_to_even_and_constant_buckets_stay():
    # four points 0 1 2 3
    tensor = torch.tensor([0.0, 0.5, 1.5, 2.5, 3.0], dtype=F64)
    assert uniform_quantize(tensor, 2, None).tolist() == [0, 0, 2, 2, 3]
    same = torch.full((9,), 0.7)
    assert torch.equal(uniform_quantize(same, 4, 4), same)


def test_rounded_at_random_the_mean_is_the_value_and_no_point_is_left():
    tensor = normal(64)
    many = torch.stack([uniform_quantize(tensor, 2, None, stochastic=True) for _ in range(4000)])
    step = (tensor.max() - tensor.min()) / 3
    assert (many.mean(0) - tensor).abs().max() < 4 * step / 2 / math.sqrt(4000) + 1e-9
    codes = (many - tensor.min()) / step
    assert (codes - codes.round()).abs().max() < 1e-9
    assert codes.round().min() >= 0 and codes.round().max() <= 3
    torch.manual_seed(1)
    found = uniform_quantize(tensor, 2, None, stochastic=True)
    torch.manual_seed(1)
    draws = torch.rand(1, 64, dtype=F64)[0].tolist()
    for value, draw, code in zip(tensor, draws, (found - tensor.min()) / step):
        place = ((value - tensor.min()) / step).item()
        up = draw < place - math.floor(place)
        assert code.item() == pytest.approx(math.floor(place) + up)


def test_a_value_on_a_point_is_never_rounded_away_at_random():
    # 254.9999999 is no float32: a draw added to a code of 254 would make it 255
    points = torch.arange(256.0).repeat(2000, 1).view(-1)
    assert torch.equal(uniform_quantize(points, 8, 256, stochastic=True), points)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_halves_go_where_the_definition_has_them(bits):
    """Q(v) = alpha · round(s · u) / s + beta, with u = (v - beta) / alpha as written."""
    top = 2**bits - 1
    for width in range(1, 120):
        tensor = torch.arange(width + 1, dtype=F64)
        expected = torch.round(top * (tensor / width)) / top * width
        torch.testing.assert_close(uniform_quantize(tensor, bits, None), expected)


def test_the_gradient_goes_straight_through():
    tensor = normal(7, 5).requires_grad_()
    pull = normal(7, 5)
    (gradient,) = torch.autograd.grad((uniform_quantize(tensor, 3, 8) * pull).sum(), tensor)
    assert torch.equal(gradient, pull)


@pytest.mark.parametrize("shape, size", [((24,), 8), ((21,), 8), ((5,), 8), ((3, 4), None)])
def test_the_gradient_through_the_scale_is_that_of_moving_ends(shape, size):
    """Finite differences of the definition: codes stay, u has the gradient 1, the ends move."""
    tensor, pull = normal(*shape), normal(*shape)
    asked = tensor.clone().requires_grad_()
    found = uniform_quantize(asked, 2, size, gradient="scale")
    (gradient,) = torch.autograd.grad((found * pull).sum(), asked)
    base = [v.item() for v in tensor.flatten()]
    weights = pull.flatten().tolist()

    def surrogate(values):
        """alpha · (u + Qhat - u at rest) + beta: the rounding error is a constant."""
        total = 0.0
        for k, (row, rest) in enumerate(zip(buckets_of(values, size), buckets_of(base, size))):
            low, width = min(row), max(row) - min(row)
            low0, width0 = min(rest), max(rest) - min(rest)
            for i, (value, value0) in enumerate(zip(row, rest)):
                place = k * len(row) + i
                if place >= len(weights):
                    break
                u, u0 = (value - low) / width, (value0 - low0) / width0
                total += weights[place] * (width * (u + round(3 * u0) / 3 - u0) + low)
        return total

    for k in range(len(base)):
        moved = [list(base), list(base)]
        for side, sign in enumerate((1, -1)):
            moved[side][k] += sign * 1e-6
        slope = (surrogate(moved[0]) - surrogate(moved[1])) / 2e-6
        assert gradient.flatten()[k].item() == pytest.approx(slope, abs=1e-6)


def test_compression_is_that_of_the_sheet():
    assert compression(4, 256) == pytest.approx(7.53, abs=0.005)
    assert compression(2, 256) == pytest.approx(14.22, abs=0.005)
    assert compression(4, 512) == pytest.approx(7.76, abs=0.005)


# ------------------------------------------------------------------------------------ learned levels
def slow_levels(tensor, levels, size):
    points, found = sorted(levels.tolist()), []
    for row in buckets_of(tensor.flatten().tolist(), size):
        low, width = min(row), max(row) - min(row)
        for value in row:
            u = (value - low) / width if width >= 1e-10 else 0.0
            nearest = min(range(len(points)), key=lambda j: (abs(points[j] - u), j))
            found.append((points[nearest] * width + low if width >= 1e-10 else low, nearest, width))
    return found[: tensor.numel()]


@pytest.mark.parametrize("count", [1, 2, 5, 16])
@pytest.mark.parametrize("shape, size", [((7, 5), 8), ((3, 4), None)])
def test_learned_levels_equal_the_loop(count, shape, size):
    tensor, levels = normal(*shape), torch.rand(count, dtype=F64)
    expected = slow_levels(tensor, levels, size)
    levels.requires_grad_()
    asked = tensor.clone().requires_grad_()
    found = level_quantize(asked, levels, size)
    torch.testing.assert_close(
        found.flatten(), torch.tensor([value for value, *_ in expected], dtype=F64)
    )
    pull = normal(*shape)
    of_tensor, of_levels = torch.autograd.grad((found * pull).sum(), (asked, levels))
    assert torch.equal(of_tensor, pull)
    slopes = [0.0] * count
    order = levels.argsort().tolist()
    for (_, nearest, width), weight in zip(expected, pull.flatten().tolist()):
        slopes[order[nearest]] += weight * width
    torch.testing.assert_close(of_levels, torch.tensor(slopes, dtype=F64))
    assert torch.autograd.gradcheck(lambda p: level_quantize(tensor, p, size), levels, eps=1e-7)


def test_levels_begin_at_quantiles():
    tensor = normal(300)
    found = initial_levels(tensor, 5, None)
    scaled = (tensor - tensor.min()) / (tensor.max() - tensor.min())
    expected = torch.quantile(scaled, torch.linspace(0, 1, 5, dtype=F64))
    torch.testing.assert_close(found, expected)
    assert initial_levels(tensor, 3, 16, "uniform").tolist() == [0, 0.5, 1]
    # what fills the last bucket up is no weight
    torch.testing.assert_close(initial_levels(tensor, 4, 301), initial_levels(tensor, 4, None))


def test_levels_are_shared_by_gradients():
    assert share_levels([1, 1, 1, 1], 16) == [16, 16, 16, 16]
    shared = share_levels([3, 1, 0, 0], 16)
    assert shared == [32, 16, 8, 8] and sum(shared) == 64
    uneven = share_levels([1, 2, 4], 5)
    assert sum(uneven) == 15 and all(count >= 2 for count in uneven)
    for bad in ([], [0.0, 0.0], [1.0, -1.0], [math.nan]):
        with pytest.raises(ValueError, match="norms >= 0"):
            share_levels(bad, 4)


# ----------------------------------------------------------------------------------------- LSQ, PACT
@pytest.mark.parametrize("bits, signed", [(2, True), (4, True), (8, True), (1, False), (3, False)])
def test_lsq_and_its_three_cases(bits, signed):
    low, high = lsq_bounds(bits, signed)
    step = torch.tensor(0.3, dtype=F64, requires_grad=True)
    tensor = (normal(200) * high * 0.3).requires_grad_()
    pull = normal(200)
    found = lsq_quantize(tensor, step, bits, signed)
    of_tensor, of_step = torch.autograd.grad((found * pull).sum(), (tensor, step))
    slope, cases = 0.0, set()
    for v, g, q, d in zip(*(t.tolist() for t in (tensor, pull, found, of_tensor))):
        ratio = v / 0.3
        assert q == pytest.approx(round(min(max(ratio, low), high)) * 0.3)
        if ratio <= low:
            cases.add("below")
            slope, expected = slope + g * low, 0.0
        elif ratio >= high:
            cases.add("above")
            slope, expected = slope + g * high, 0.0
        else:
            cases.add("inside")
            slope, expected = slope + g * (round(ratio) - ratio), g
        assert d == pytest.approx(expected)
    assert cases == {"below", "above", "inside"}
    assert of_step.item() == pytest.approx(slope / math.sqrt(200 * high))


def test_lsq_begins_at_the_mean_and_activations_count_one_image():
    tensor = normal(6, 5)
    expected = 2 * tensor.abs().mean().item() / math.sqrt(7)
    assert lsq_init(tensor, 4).item() == pytest.approx(expected)
    assert lsq_init(torch.zeros(4), 4) == 1
    module = LSQ(4).double()
    first = tensor.relu()
    quantized = module(first)
    start = 2 * first.mean().item() / math.sqrt(15)
    assert module.step.item() == pytest.approx(start, rel=1e-6)
    assert torch.equal(quantized, lsq_quantize(first, module.step, 4, False, 5))
    module(10 * first)
    assert module.step.item() == pytest.approx(start, rel=1e-6)  # of the first batch alone
    other = LSQ(4).double()
    other.load_state_dict(module.state_dict())
    other(10 * first)
    assert other.step == module.step


def test_an_activations_step_costs_nothing_once_it_has_started():
    tensor = normal(4, 5).relu()
    module = LSQ(4).double()
    with try_out(module, training=True):
        module(3 * tensor)
    with Operations() as first:
        module(tensor)
    start = lsq_init(tensor, 4, False).item()
    assert module.step.item() == pytest.approx(start)  # a trial is no first batch
    with Operations() as later:
        module(tensor)
    assert "mean" in first.names and "mean" not in later.names
    # the host waits for nothing
    assert not (first.names | later.names) & {"_local_scalar_dense", "is_nonzero", "equal"}
    module.load_state_dict(LSQ(4).double().state_dict())
    module(2 * tensor)
    assert module.step.item() == pytest.approx(lsq_init(2 * tensor, 4, False).item())


def test_pact_cuts_and_rounds():
    tensor = torch.tensor([-1.0, 0.0, 0.4, 1.1, 2.0, 5.0], dtype=F64, requires_grad=True)
    alpha = torch.tensor(2.0, dtype=F64, requires_grad=True)
    found = pact(tensor, alpha, 2)
    torch.testing.assert_close(found, torch.tensor([0, 0, 2 / 3, 4 / 3, 2, 2], dtype=F64))
    of_tensor, of_alpha = torch.autograd.grad(found.sum(), (tensor, alpha))
    assert of_tensor.tolist() == [0, 1, 1, 1, 0, 0] and of_alpha == 2
    module = PACT(2, 2.0)
    assert torch.equal(module(tensor.detach().float()), found.detach().float())


# ------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize("bits", [0, 1.5, 33, True, -1])
def test_bits_that_make_no_sense(bits):
    for call in (
        lambda: uniform_quantize(normal(4), bits),
        lambda: pact(normal(4), torch.tensor(1.0), bits),
        lambda: lsq_quantize(normal(4), torch.tensor(1.0), bits),
    ):
        with pytest.raises(
            ValueError, match=f"bits must be a whole number from 1 to 16, got {bits}"
        ):
            call()


def test_tensors_and_settings_that_make_no_sense():
    for tensor in (torch.zeros(0), torch.zeros(3, dtype=torch.int64)):
        for call in (
            lambda t=tensor: uniform_quantize(t, 4),
            lambda t=tensor: level_quantize(t, torch.rand(3)),
            lambda t=tensor: lsq_quantize(t, torch.tensor(1.0), 4),
            lambda t=tensor: initial_levels(t, 4),
        ):
            with pytest.raises(
                ValueError, match="expected a floating tensor of one value at least"
            ):
                call()
    with pytest.raises(ValueError, match="bucket_size must be a whole number >= 1 or None, got 0"):
        uniform_quantize(normal(4), 4, 0)
    with pytest.raises(ValueError, match="gradient must be one of"):
        uniform_quantize(normal(4), 4, gradient="ste")
    with pytest.raises(ValueError, match="signed values need 2 bits or more, got 1"):
        lsq_quantize(normal(4), torch.tensor(1.0), 1)
    with pytest.raises(ValueError, match=r"expected levels \(m,\)"):
        level_quantize(normal(4), torch.zeros(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    tensor = normal(300, dtype=dtype) * 1e-3
    found = uniform_quantize(tensor, 4, 64)
    assert found.dtype is dtype
    assert torch.equal(found, uniform_quantize(tensor.float(), 4, 64).to(dtype))


def test_a_nan_makes_its_bucket_nan_and_no_other():
    tensor = normal(16)
    tensor[3] = math.nan
    found = uniform_quantize(tensor, 4, 8)
    assert found[:8].isnan().all() and found[8:].isfinite().all()
