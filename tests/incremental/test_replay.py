"""Herding, nearest mean of exemplars, DER and its reservoir, weight alignment and bias correction
against loops written here, their laws, and what they refuse.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from kdtasks.incremental import (
    BiasCorrection,
    ReservoirBuffer,
    class_means,
    der_loss,
    herding,
    nearest_mean,
    weight_alignment,
)
from kdtasks.incremental.models import growing
from kdtasks.incremental.weight_alignment import align_head

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def normal(*shape):
    return 2 * torch.randn(*shape, dtype=F64)


# ---------------------------------------------------------------------------------- herding and NME
def unit(row):
    length = math.sqrt(sum(x * x for x in row))
    return [x / length if length >= 1e-6 else 0.0 for x in row]


def mean_of(rows):
    return [sum(column) / len(rows) for column in zip(*rows)]


def distance(one, other):
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other)))


def slow_herding(features, count):
    rows = [unit(row) for row in features.tolist()]
    mean, order = mean_of(rows), []
    while len(order) < min(count, len(rows)):
        left = [i for i in range(len(rows)) if i not in order]
        costs = [distance(mean, mean_of([rows[j] for j in [*order, i]])) for i in left]
        order.append(left[costs.index(min(costs))])
    return order


@pytest.mark.parametrize("count", [0, 1, 7, 30, 50])
def test_herding_equals_the_loop(count):
    features = normal(30, 6)
    features[[4, 20]] = 0
    found = herding(features, count)
    assert found.tolist() == slow_herding(features, count) and found.dtype == torch.int64
    assert len(found) == min(count, 30) == len(set(found.tolist()))


def test_a_shorter_choice_is_the_beginning_of_a_longer_one():
    features = normal(40, 5)
    whole = herding(features, 40)
    assert all(torch.equal(herding(features, k), whole[:k]) for k in range(41))


def test_of_equal_features_the_lowest_index_is_taken():
    row = normal(1, 7)
    assert herding(row.expand(5, 7), 3).tolist() == [0, 1, 2]
    twice = torch.cat([normal(6, 7)] * 2)
    order = herding(twice, 12).tolist()
    assert all(order.index(i) < order.index(i + 6) for i in range(6))
    assert herding(torch.zeros(3, 4), 9).tolist() == [0, 1, 2]


def test_herding_sees_directions_in_float64_and_leaves_no_gradient():
    features = torch.randn(50, 8)
    scale = torch.rand(50, 1) * 10 + 0.1
    expected = herding(features.double(), 50)
    assert torch.equal(herding(features, 50), expected)
    assert torch.equal(herding((features.double() * scale).requires_grad_(), 50), expected)
    assert herding(torch.empty(0, 8), 3).tolist() == []


def test_herding_says_what_does_not_fit():
    for features in (normal(3), normal(3, 2, 2)):
        with pytest.raises(ValueError, match=r"expected the features \(n, D\) of one class"):
            herding(features, 2)
    for count in (-1, 2.0):
        with pytest.raises(
            ValueError, match=f"count must be an integer of at least 0, got {count}"
        ):
            herding(normal(3, 2), count)
    features = normal(3, 2)
    features[1, 0] = math.nan
    with pytest.raises(ValueError, match="the features of sample 1 are not finite"):
        herding(features, 2)


def test_nearest_mean_equals_the_loop():
    features, target = normal(20, 5), torch.arange(20) % 4
    target[target == 2] = 1
    means = class_means(features, target, 5)
    asked = normal(30, 5)
    expected = {
        c: unit(mean_of([unit(row) for row, y in zip(features.tolist(), target) if y == c]))
        for c in (0, 1, 3)
    }
    for c, mean in expected.items():
        torch.testing.assert_close(means[c], torch.tensor(mean, dtype=F64))
    assert means[[2, 4]].isnan().all()
    found = [
        min(expected, key=lambda c, row=row: distance(unit(row), expected[c]))
        for row in asked.tolist()
    ]
    assert nearest_mean(asked, means).tolist() == found
    # an image and its scale; a feature of zeros is as far from all
    assert nearest_mean(asked.float() * 100, means.float()).tolist() == found
    assert nearest_mean(torch.zeros(1, 5), means.float()).tolist() == [0]


def test_means_say_what_does_not_fit():
    with pytest.raises(ValueError, match=r"features \(n, D\) and target \(n,\)"):
        class_means(normal(3, 2), torch.zeros(2, dtype=torch.long), 1)
    with pytest.raises(ValueError, match=r"means \(C, D\), got \(3, 2\) and \(4, 5\)"):
        nearest_mean(normal(3, 2), normal(4, 5))


# --------------------------------------------------------------------------------------------- DER
def test_der_equals_the_loop():
    student, stored = normal(6, 5), normal(6, 4)
    pairs = [(s, h) for a, b in zip(student.tolist(), stored.tolist()) for s, h in zip(a, b)]
    expected = sum((s - h) ** 2 for s, h in pairs) / 24
    assert der_loss(student, stored).item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(der_loss(student[:, :4], stored), F.mse_loss(student[:, :4], stored))
    columns = torch.tensor([4, 2, 0, 1, 4, 3])
    stored[torch.arange(4) >= columns[:, None]] = math.nan
    loops = [
        (student[b, c] - stored[b, c]).item() ** 2 for b in range(6) for c in range(columns[b])
    ]
    student.requires_grad_()
    loss = der_loss(student, stored, columns)
    assert loss.item() == pytest.approx(sum(loops) / 14, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all() and not gradient[2].any() and not gradient[:, 4].any()


def test_der_of_nothing_is_a_connected_zero():
    for rows, columns in ((0, None), (3, torch.zeros(3, dtype=torch.long))):
        student = normal(rows, 5).requires_grad_()
        loss = der_loss(student, normal(rows, 4), columns)
        loss.backward()
        assert loss == 0 and not student.grad.any()


def test_der_says_what_does_not_fit():
    for student, stored in ((normal(3, 4), normal(3, 5)), (normal(3, 4), normal(2, 4))):
        with pytest.raises(ValueError, match=r"stored \(B, l\) with l <= r"):
            der_loss(student, stored)
    with pytest.raises(ValueError, match=r"columns \(3,\), got \(2,\)"):
        der_loss(normal(3, 4), normal(3, 4), torch.tensor([1, 2]))


def test_each_sample_of_a_stream_stays_with_the_same_probability():
    """300 streams of 40 samples, in batches of 1 to 7, a buffer of 10: each stays in a quarter."""
    counts = torch.zeros(40)
    for seed in range(300):
        buffer = ReservoirBuffer(10, seed)
        for batch in torch.arange(40).split(1 + seed % 7):
            buffer.add(number=batch)
        kept = buffer.kept["number"]
        assert len(buffer) == len(kept) == len(set(kept.tolist())) == 10 and buffer.seen == 40
        counts[kept] += 1
    deviation = math.sqrt(300 * 0.25 * 0.75)
    assert (counts - 75).abs().max() < 4.5 * deviation
    # no trend from the beginning of a stream to its end
    assert abs(counts[:20].sum() - counts[20:].sum()) < 4.5 * deviation * math.sqrt(40)


def test_a_buffer_goes_on_exactly_from_its_state(tmp_path):
    def pass_by(buffer, start, stop, columns=3):
        for k in range(start, stop):
            rows = torch.full((4,), float(k))
            buffer.add(logits=rows[:, None].expand(4, columns), target=rows.long())

    whole, part = ReservoirBuffer(6, 1), ReservoirBuffer(6, 1)
    before = torch.get_rng_state()
    pass_by(whole, 0, 5)
    drawn = whole.draw(4)
    pass_by(whole, 5, 9, columns=5)
    pass_by(part, 0, 5)
    part.draw(4)
    torch.save(part.state_dict(), tmp_path / "buffer.pth")
    later = ReservoirBuffer(6, 99)
    later.load_state_dict(torch.load(tmp_path / "buffer.pth", weights_only=True))
    pass_by(later, 5, 9, columns=5)
    assert torch.equal(before, torch.get_rng_state())
    for name, value in whole.draw(6).items():
        assert torch.equal(value, later.draw(6)[name] if name == "logits" else value)
    assert all(torch.equal(value, later.kept[name]) for name, value in whole.kept.items())
    # rows stay together, and what was narrow has zeros behind
    logits, target = whole.kept["logits"], whole.kept["target"]
    assert torch.equal(logits[:, 0].long(), target) and logits.shape == (6, 5)
    assert torch.equal(logits[:, 4] == 0, target < 5)
    assert len(drawn["target"]) == 4 and torch.equal(drawn["logits"][:, 0].long(), drawn["target"])


def test_a_buffer_says_what_does_not_fit():
    with pytest.raises(ValueError, match="size must be an integer of at least 1, got 0"):
        ReservoirBuffer(0)
    buffer = ReservoirBuffer(3)
    assert len(buffer) == 0 and buffer.draw(2) == {}
    buffer.add(input=torch.zeros(2, 1, 4), target=torch.zeros(2))
    for samples, message in (
        ({"input": torch.zeros(1, 1, 4)}, r"expected samples of \['input', 'target'\]"),
        ({"input": torch.zeros(2, 1, 4), "target": torch.zeros(1)}, "equally many of each name"),
        ({"input": torch.zeros(1, 1, 5), "target": torch.zeros(1)}, r"got \(1, 1, 5\)"),
        ({"input": torch.zeros(1, 1, 4).bfloat16(), "target": torch.zeros(1)}, "is bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            buffer.add(**samples)
    with pytest.raises(
        ValueError, match="expected the state of a buffer of size 1, got .2. sample"
    ):
        ReservoirBuffer(1).load_state_dict(buffer.state_dict())


# ---------------------------------------------------------------------------------------- WA and BiC
def test_weight_alignment_equals_the_loop():
    weights = normal(7, 4)
    lengths = [math.sqrt(sum(x * x for x in row)) for row in weights.tolist()]
    gamma = (sum(lengths[:4]) / 4) / (sum(lengths[4:]) / 3)
    expected = [
        [x * (gamma if k >= 4 else 1) for x in row] for k, row in enumerate(weights.tolist())
    ]
    found = weight_alignment(weights, 4)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))
    torch.testing.assert_close(weight_alignment(found, 4), found)
    assert weight_alignment(weights.half(), 4).dtype == torch.half


def test_align_head_is_of_the_newest_classes_in_place():
    model = growing(torch.nn.Sequential(torch.nn.Linear(3, 5)), (2, 2, 3))
    before = torch.cat([block.weight for block in model[0].blocks]).detach().clone()
    biases = [block.bias.clone() for block in model[0].blocks]
    align_head(model)
    after = torch.cat([block.weight for block in model[0].blocks])
    assert torch.equal(after, weight_alignment(before, 4)) and not torch.equal(after, before)
    assert all(torch.equal(block.bias, bias) for block, bias in zip(model[0].blocks, biases))
    assert all(block.weight.requires_grad for block in model[0].blocks)


def test_weight_alignment_says_what_does_not_fit():
    for old in (0, 5):
        with pytest.raises(ValueError, match=f"some old and some new classes, .* old={old}"):
            weight_alignment(normal(5, 2), old)
    with pytest.raises(ValueError, match="the weights of all 3 new classes are zero"):
        weight_alignment(torch.cat([normal(2, 4), torch.zeros(3, 4)]), 2)


def slow_fit(logits, target, old, epochs, lr, penalty):
    """SGD with momentum, the gradient of α and β written out."""
    alpha, beta, momentum = 1.0, 0.0, [0.0, 0.0]
    for _ in range(epochs):
        gradient = [0.0, penalty * beta]
        for row, y in zip(logits.tolist(), target.tolist()):
            z = [v if c < old else alpha * v + beta for c, v in enumerate(row)]
            top = max(z)
            powers = [math.exp(v - top) for v in z]
            for c in range(old, len(row)):
                pull = (powers[c] / sum(powers) - (c == y)) / len(logits)
                gradient = [gradient[0] + pull * row[c], gradient[1] + pull]
        momentum = [0.9 * m + g for m, g in zip(momentum, gradient)]
        alpha, beta = alpha - lr * momentum[0], beta - lr * momentum[1]
    return alpha, beta


def test_bias_correction_equals_the_loop_and_leaves_earlier_experiences():
    logits, target = normal(12, 6), torch.arange(12) % 6
    logits[:, 4:] += 3
    correction = BiasCorrection((2, 2, 2))
    correction.alpha[1], correction.beta[1] = 0.5, 1.0
    correction.fit(logits, target, epochs=7)
    before = torch.cat([logits[:, :2], 0.5 * logits[:, 2:4] + 1, logits[:, 4:]], 1)
    alpha, beta = slow_fit(before, target, 4, 7, 0.1, 0.1)
    assert correction.alpha.tolist() == pytest.approx([1, 0.5, alpha], rel=1e-6)
    assert correction.beta.tolist() == pytest.approx([0, 1, beta], rel=1e-6)
    expected = torch.cat([before[:, :4], alpha * logits[:, 4:] + beta], 1)
    torch.testing.assert_close(correction(logits), expected, rtol=1e-6, atol=1e-6)


def test_bias_correction_undoes_a_bias():
    """Calibrated logits whose new columns become 1.5 z + 3: α = 1 / 1.5 and β = -2 undo it."""
    target = torch.arange(2000) % 4
    logits = math.sqrt(3) * torch.randn(2000, 4) + 3 * F.one_hot(target, 4)
    biased = torch.cat([logits[:, :2], 1.5 * logits[:, 2:] + 3], 1)
    correction = BiasCorrection((2, 2))
    correction.fit(biased, target, penalty=0.0)
    right = [(z.argmax(1) == target).double().mean() for z in (logits, biased, correction(biased))]
    assert correction.alpha[1].item() == pytest.approx(1 / 1.5, abs=0.15)
    assert correction.beta[1].item() == pytest.approx(-2, abs=0.4)
    assert right[1] < right[2] - 0.05 and abs(right[2] - right[0]) < 0.02


def test_bias_correction_says_what_does_not_fit():
    with pytest.raises(ValueError, match="sizes are the classes of each experience"):
        BiasCorrection((2, 0))
    with pytest.raises(ValueError, match="one experience has no bias"):
        BiasCorrection((3,)).fit(normal(4, 3), torch.zeros(4, dtype=torch.long))
    correction = BiasCorrection((2, 1))
    with pytest.raises(ValueError, match=r"expected logits \(B, 3\)"):
        correction(normal(4, 2))
    with pytest.raises(ValueError, match="n at least 1"):
        correction.fit(normal(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="the fit of alpha and beta diverges at lr=1e"):
        correction.fit(1e9 * normal(4, 3), torch.zeros(4, dtype=torch.long), lr=1e300)
