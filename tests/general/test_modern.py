"""DKD, DIST, standardised logits, attention transfer, similarity preserving, SRD, features and PHI-S
against loops over indices written here, their laws, and where released code fails.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from kdtasks.general import (
    DISTLoss,
    DKDLoss,
    FeatureLoss,
    SRDLoss,
    Standardization,
    StandardizedKDLoss,
    attention_transfer_loss,
    dist_loss,
    dkd_loss,
    feature_loss,
    kd_loss,
    phi_standardize,
    similarity_preserving_loss,
    srd_loss,
    standardized_kd_loss,
)
from kdtasks.general.several_teachers import hadamard_matrix
from tests.loops import divergence, softmax

F64 = torch.float64
TARGET = torch.tensor([0, 4, 2, 2, -100, 1])


@pytest.fixture(autouse=True)
def one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def normal(*shape):
    return 2 * torch.randn(*shape, dtype=F64)


# --------------------------------------------------------------------------------------------- DKD
def slow_dkd(student, teacher, target, temperature, alpha, beta):
    found, labelled = 0.0, 0
    for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist()):
        if y == -100:
            continue
        labelled += 1
        p_s, p_t = (softmax([z / temperature for z in row]) for row in (s, t))
        b_s, b_t = p_s[y], p_t[y]
        tckd = divergence([b_t, 1 - b_t], [b_s, 1 - b_s])
        q_s, q_t = (
            [p / (1 - b) for k, p in enumerate(row) if k != y]
            for row, b in ((p_s, b_s), (p_t, b_t))
        )
        found += temperature**2 * (alpha * tckd + beta * divergence(q_t, q_s))
    return found / max(labelled, 1)


@pytest.mark.parametrize("temperature, alpha, beta", [(4.0, 1.0, 8.0), (1.0, 0.5, 2.0), (2, 0, 1)])
def test_dkd_equals_the_loop(temperature, alpha, beta):
    student, teacher = normal(6, 5), normal(6, 5)
    found = dkd_loss(student, teacher, TARGET, temperature, alpha, beta)
    expected = slow_dkd(student, teacher, TARGET, temperature, alpha, beta)
    assert found.item() == pytest.approx(expected, rel=1e-11)
    module = DKDLoss(temperature, alpha, beta)
    assert module(student, teacher, TARGET) == found


def test_dkd_is_kd_with_the_weights_that_kd_has():
    """KD = TCKD + (1 - b_t) NCKD, row by row; and with two classes there are no others."""
    student, teacher = normal(1, 5), normal(1, 5)
    target = torch.tensor([3])
    rest = 1 - (teacher / 4).softmax(1)[0, 3].item()
    torch.testing.assert_close(
        dkd_loss(student, teacher, target, 4.0, 1.0, rest), kd_loss(student, teacher, 4.0)
    )
    two = dkd_loss(student[:, :2], teacher[:, :2], torch.tensor([1]), beta=8.0)
    torch.testing.assert_close(two, kd_loss(student[:, :2], teacher[:, :2], 4.0))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("margin", [120.0, 2000.0, 1e6])
def test_dkd_stays_finite_where_the_released_code_does_not(margin, dtype):
    """Logits far apart, of the label's class or of another one, of the student or the teacher."""
    for k in (0, 1):
        far = torch.zeros(2, 5, dtype=dtype)
        far[:, k] = margin
        near = torch.randn(2, 5, dtype=dtype)
        for student, teacher in ((far, near), (near, far), (far, -far)):
            student = student.clone().requires_grad_()
            loss = dkd_loss(student, teacher, torch.zeros(2, dtype=torch.long), 1.0)
            (gradient,) = torch.autograd.grad(loss, student)
            assert loss.isfinite() and gradient.isfinite().all()


def test_dkd_reads_nothing_of_unlabelled_rows():
    student, teacher = normal(6, 5), normal(6, 5)
    expected = dkd_loss(student[TARGET >= 0], teacher[TARGET >= 0], TARGET[TARGET >= 0])
    student[4] = math.nan
    torch.testing.assert_close(dkd_loss(student, teacher, TARGET), expected)
    none = normal(6, 5).requires_grad_()
    loss = dkd_loss(none, teacher, torch.full((6,), -100))
    loss.backward()
    assert loss == 0 and not none.grad.any()


def test_dkd_says_what_does_not_fit():
    logits, target = normal(6, 5), TARGET
    with pytest.raises(ValueError, match=r"two classes or more, got student \(6, 1\)"):
        dkd_loss(logits[:, :1], logits[:, :1], target)
    with pytest.raises(ValueError, match=r"soft or mixed labels"):
        dkd_loss(logits, logits, logits.softmax(1))
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        dkd_loss(logits, logits, target, 0)
    with pytest.raises(ValueError, match="beta must be >= 0 and finite, got -1"):
        DKDLoss(beta=-1)


# -------------------------------------------------------------------------------------------- DIST
def pearson(one, other):
    one = [value - sum(one) / len(one) for value in one]
    other = [value - sum(other) / len(other) for value in other]
    lengths = math.sqrt(sum(v * v for v in one)) * math.sqrt(sum(v * v for v in other))
    return sum(a * b for a, b in zip(one, other)) / (lengths + 1e-8)


@pytest.mark.parametrize("temperature, inter, intra", [(1.0, 1.0, 1.0), (4.0, 2.0, 0.5)])
@pytest.mark.parametrize("places", [(), (2, 3)])
def test_dist_equals_the_loop(temperature, inter, intra, places):
    student, teacher = normal(4, 5, *places), normal(4, 5, *places)
    rows = [
        [softmax(row) for row in (z / temperature).movedim(1, -1).reshape(-1, 5).tolist()]
        for z in (student, teacher)
    ]
    within = [pearson(*pair) for pair in zip(*rows)]
    across = [pearson(*pair) for pair in zip(zip(*rows[0]), zip(*rows[1]))]
    expected = temperature**2 * (
        inter * (1 - sum(within) / len(within)) + intra * (1 - sum(across) / 5)
    )
    found = dist_loss(student, teacher, temperature, inter, intra)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    assert DISTLoss(temperature, inter, intra)(student, teacher) == found


def test_dist_is_blind_to_what_does_not_change_probabilities_and_not_quite_0_at_equality():
    student, teacher = normal(6, 5), normal(6, 5)
    torch.testing.assert_close(dist_loss(student + 3, teacher - 7), dist_loss(student, teacher))
    assert 0 < dist_loss(teacher, teacher) < 1e-6
    # classes that no image of the batch looks like have no correlation
    sure = F.one_hot(torch.zeros(6, dtype=torch.long), 5).double() * 60
    assert dist_loss(sure, sure, inter=0) > 0.99


def test_dist_of_one_row_or_one_class():
    student, teacher = normal(1, 5).requires_grad_(), normal(1, 5)
    (gradient,) = torch.autograd.grad(dist_loss(student, teacher, inter=0), student)
    assert not gradient.any() and dist_loss(student, teacher, inter=0) == 1
    with pytest.raises(ValueError, match=r"two classes or more, got student \(6, 1\)"):
        dist_loss(normal(6, 1), normal(6, 1))
    for bad in ({"inter": -1}, {"temperature": 0}):
        with pytest.raises(ValueError, match=r"must be >"):
            DISTLoss(**bad)


# ------------------------------------------------------------------------------ standardised logits
def test_standardized_kd_equals_the_loop():
    student, teacher = normal(6, 5), normal(6, 5)

    def scores(row):
        mean = sum(row) / 5
        spread = math.sqrt(sum((z - mean) ** 2 for z in row) / 4)
        return [(z - mean) / (spread + 1e-7) / 2.0 for z in row]

    expected = sum(
        4.0 * divergence(softmax(scores(t)), softmax(scores(s)))
        for s, t in zip(student.tolist(), teacher.tolist())
    )
    found = standardized_kd_loss(student, teacher)
    assert found.item() == pytest.approx(expected / 6, rel=1e-10)
    assert StandardizedKDLoss()(student, teacher) == found
    torch.testing.assert_close(
        standardized_kd_loss(7 * student + 2, teacher / 3 - 1), found, rtol=1e-5, atol=0
    )


def test_equal_logits_have_no_gradient_and_harm_no_other_row():
    student, teacher = normal(3, 5), normal(3, 5)
    student[1] = 0.7
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(standardized_kd_loss(student, teacher), student)
    assert not gradient[1].any() and gradient[[0, 2]].any(1).all() and gradient.abs().max() < 10
    with pytest.raises(ValueError, match="two classes"):
        standardized_kd_loss(normal(6, 1), normal(6, 1))


# ------------------------------------------------------------------------------ attention transfer
def slow_attention(student, teacher, p):
    def attention(maps):
        rows = []
        for image in maps:
            row = [
                sum(abs(v) ** p for v in image[:, h, w].tolist()) / len(image)
                for h in range(image.shape[1])
                for w in range(image.shape[2])
            ]
            length = math.sqrt(sum(v * v for v in row))
            rows.append([v / length for v in row])
        return rows

    pairs = list(zip(attention(student), attention(teacher)))
    squares = [(a - b) ** 2 for one, other in pairs for a, b in zip(one, other)]
    return sum(squares) / len(squares)


@pytest.mark.parametrize("p", [2, 1, 3])
def test_attention_transfer_equals_the_loop(p):
    student, teacher = normal(3, 4, 2, 5), normal(3, 7, 2, 5)
    found = attention_transfer_loss(student, teacher, p)
    assert found.item() == pytest.approx(slow_attention(student, teacher, p), rel=1e-11)
    assert attention_transfer_loss(3 * teacher, -teacher, p).abs() < 1e-30


def test_the_larger_map_is_averaged_down_in_both_directions():
    student, teacher = normal(2, 3, 4, 6), normal(2, 3, 2, 3)
    pooled = F.avg_pool2d(student, 2)
    torch.testing.assert_close(
        attention_transfer_loss(student, teacher), attention_transfer_loss(pooled, teacher)
    )
    torch.testing.assert_close(
        attention_transfer_loss(teacher, student), attention_transfer_loss(teacher, pooled)
    )
    # each side of its own: (4, 3) and (2, 6) meet at (2, 3)
    wide, high = normal(2, 3, 2, 6), normal(2, 3, 4, 3)
    expected = slow_attention(F.avg_pool2d(high, (2, 1)), F.avg_pool2d(wide, (1, 2)), 2)
    assert attention_transfer_loss(high, wide).item() == pytest.approx(expected, rel=1e-10)


def test_dead_maps_and_maps_of_one_place():
    student, teacher = normal(2, 3, 4, 4), normal(2, 3, 4, 4)
    student[0] = 0
    student.requires_grad_()
    for p in (1, 2):
        loss = attention_transfer_loss(student, teacher, p)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite() and not gradient[0].any() and gradient[1].any()
    with pytest.raises(ValueError, match="before the pooling"):
        attention_transfer_loss(normal(2, 3, 1, 1), normal(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"got student \(2, 3, 4\)"):
        attention_transfer_loss(normal(2, 3, 4), normal(2, 3, 4))


# --------------------------------------------------------------------------- similarity preserving
def slow_similarity(student, teacher):
    def similarity(rows):
        gram = [[sum(a * b for a, b in zip(one, other)) for other in rows] for one in rows]
        return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in gram]

    mine, other = (similarity(f.flatten(1).tolist()) for f in (student, teacher))
    pairs = [(a - b) ** 2 for one, two in zip(mine, other) for a, b in zip(one, two)]
    return sum(pairs) / len(mine) ** 2


def test_similarity_preserving_equals_the_loop():
    student, teacher = normal(5, 3, 2, 2), normal(5, 7)
    found = similarity_preserving_loss(student, teacher)
    assert found.item() == pytest.approx(slow_similarity(student, teacher), rel=1e-11)
    turned = teacher @ torch.linalg.qr(normal(7, 7)).Q * 5
    assert similarity_preserving_loss(turned, teacher) < 1e-28
    assert similarity_preserving_loss(student[:1], teacher[:1]) == 0


def test_a_dead_row_pulls_on_nobody():
    student, teacher = normal(5, 8), normal(5, 7)
    student[2] = 0
    student.requires_grad_()
    loss = similarity_preserving_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite() and gradient.abs().max() < 1


def test_long_features_do_not_overflow_in_half_precision():
    student, teacher = (100 * torch.randn(4, 4096, dtype=torch.float16) for _ in range(2))
    found = similarity_preserving_loss(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        inside = similarity_preserving_loss(student.float(), teacher.float())
    torch.testing.assert_close(
        found, similarity_preserving_loss(student.double(), teacher.double()).float()
    )
    assert inside == found
    with pytest.raises(ValueError, match=r"got student \(4, 4096\) and teacher \(3, 4096\)"):
        similarity_preserving_loss(student, teacher[:3])


# --------------------------------------------------------------------------------------------- SRD
@pytest.mark.parametrize("kind", ["logsum", "correlation"])
@pytest.mark.parametrize("alpha", [4.0, 2.0])
def test_srd_equals_the_loop(kind, alpha):
    student, teacher = normal(6, 4), normal(6, 4)

    def normalized(rows):
        columns = []
        for column in zip(*rows.tolist()):
            mean = sum(column) / 6
            variance = sum((v - mean) ** 2 for v in column) / 6
            columns.append([(v - mean) / math.sqrt(variance + 1e-4) for v in column])
        return columns

    pairs = list(zip(normalized(student), normalized(teacher)))
    if kind == "logsum":
        total = sum(abs(a - b) ** alpha for one, other in pairs for a, b in zip(one, other))
    else:
        total = sum(abs(sum(a * b for a, b in zip(*pair)) / 6 - 1) ** alpha for pair in pairs)
    found = srd_loss(student, teacher, alpha, kind)
    assert found.item() == pytest.approx(math.log(total + 1e-5), rel=1e-10)


def test_srd_at_equality_is_finite_and_its_gradient_keeps_its_size():
    teacher = normal(6, 4)
    same = teacher.clone().requires_grad_()
    loss = srd_loss(same, teacher)
    (gradient,) = torch.autograd.grad(loss, same)
    assert loss.item() == pytest.approx(math.log(1e-5)) and not gradient.any()
    sizes = []
    for distance in (1e-1, 1.0):
        student = (teacher + distance * normal(6, 4)).requires_grad_()
        (gradient,) = torch.autograd.grad(srd_loss(student, teacher, eps=1e-30), student)
        sizes.append(distance * gradient.norm().item())
    assert 0.1 < sizes[0] / sizes[1] < 10  # not as the 3rd power of the distance
    with pytest.raises(ValueError, match="two rows or more"):
        srd_loss(teacher[:1], teacher[:1])
    with pytest.raises(ValueError, match="kind must be one of"):
        SRDLoss(kind="mse")


def test_a_projector_brings_the_channels_together_and_learns():
    student, teacher = normal(8, 3, 2, 2), normal(8, 5, 4, 4)
    loss = SRDLoss()
    loss.build(student, teacher)
    assert loss.projector.weight.shape == (5, 3, 1, 1)
    projected = F.linear(
        student.mean((2, 3)), loss.projector.weight.flatten(1), loss.projector.bias
    )
    torch.testing.assert_close(loss(student, teacher), srd_loss(projected, teacher.mean((2, 3))))
    loss(student, teacher).backward()
    assert loss.projector.weight.grad.any()


# ---------------------------------------------------------------------------------------- features
@pytest.mark.parametrize("dim", [1, -1])
def test_feature_losses_equal_loops(dim):
    student, teacher = normal(3, 4, 5), normal(3, 4, 5)
    errors = [(a - b) for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist())]
    assert feature_loss(student, teacher).item() == pytest.approx(sum(e * e for e in errors) / 60)
    huber = sum(e * e / 2 if abs(e) < 1 else abs(e) - 0.5 for e in errors) / 60
    assert feature_loss(student, teacher, "smooth_l1").item() == pytest.approx(huber)
    cosines = [
        sum(a * b for a, b in zip(one, other)) / math.hypot(*one) / math.hypot(*other)
        for one, other in zip(
            student.movedim(dim, -1).reshape(-1, student.shape[dim]).tolist(),
            teacher.movedim(dim, -1).reshape(-1, student.shape[dim]).tolist(),
        )
    ]
    expected = 1 - sum(cosines) / len(cosines)
    assert feature_loss(student, teacher, "cosine", dim).item() == pytest.approx(expected)


def test_a_dead_vector_has_cosine_0_and_no_gradient():
    student, teacher = normal(3, 4), normal(3, 4)
    student[1] = 0
    student.requires_grad_()
    loss = feature_loss(student, teacher, "cosine")
    (gradient,) = torch.autograd.grad(loss, student)
    assert not gradient[1].any() and gradient[0].any()
    with_others = feature_loss(student[[0, 2]], teacher[[0, 2]], "cosine")
    torch.testing.assert_close(loss * 3, with_others * 2 + 1)
    with pytest.raises(ValueError, match="kind must be one of"):
        feature_loss(student, teacher, "l1")


def test_maps_of_other_sizes_take_the_teachers():
    student, teacher = normal(2, 3, 4, 4), normal(2, 6, 7, 5)
    loss = FeatureLoss("cosine")
    loss.build(student, teacher)
    resized = F.interpolate(
        F.conv2d(student, loss.projector.weight, loss.projector.bias),
        (7, 5),
        mode="bilinear",
        align_corners=False,
    )
    torch.testing.assert_close(loss(student, teacher), feature_loss(resized, teacher, "cosine"))
    with pytest.raises(ValueError, match="of the same images"):
        loss(student, teacher[:1])


# ------------------------------------------------------------------------------------------- PHI-S
@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 192, 384, 640, 768])
def test_hadamard_matrices_have_orthogonal_rows_of_ones(size):
    found = hadamard_matrix(size)
    assert (found.abs() == 1).all()
    assert (found @ found.T == size * torch.eye(size, dtype=F64)).all()


@pytest.mark.parametrize("size", [12, 8, 6])
def test_phi_standardized_features_have_unit_variance_by_one_scale(size):
    features = normal(400, size) @ normal(size, size) + 5
    mean, matrix = phi_standardize(features)
    found = (features - mean) @ matrix.T
    variances = found.var(0, correction=0)
    assert found.mean(0).abs().max() < 1e-12
    assert variances.mean().item() == pytest.approx(1)
    if hadamard_matrix(size) is not None:
        torch.testing.assert_close(variances, torch.ones(size, dtype=F64))
    # a rotation and one scale: all errors weigh the same
    product = matrix @ matrix.T
    torch.testing.assert_close(product, product[0, 0] * torch.eye(size, dtype=F64))


@pytest.mark.parametrize("kind", ["scale", "phi"])
@pytest.mark.parametrize("places", [(), (3, 2)])
def test_a_standardization_is_that_of_the_rows_it_has_collected(kind, places):
    mixed = normal(12, 12)
    batches = [torch.einsum("bc...,cd->bd...", normal(64, 12, *places), mixed) for _ in range(4)]
    module = Standardization(kind, rows=100)
    assert module(batches[0]) is None if not places else module(batches[0]) is not None
    collected = batches[:1] if places else batches[:2]
    found = module(batches[1])
    rows = torch.cat([b.movedim(1, -1).flatten(0, -2) for b in collected])
    mean, matrix = phi_standardize(rows)
    if kind == "scale":
        matrix = torch.eye(12, dtype=F64) / rows.var(0, correction=0).mean().sqrt()
    expected = torch.einsum(
        "bc...,dc->bd...", (batches[1].movedim(1, -1) - mean).movedim(-1, 1), matrix
    )
    # the signs of the axes are arbitrary: compared are products
    flat = [t.movedim(1, -1).flatten(0, -2) for t in (found, expected)]
    torch.testing.assert_close(flat[0] @ flat[0].T, flat[1] @ flat[1].T)
    torch.testing.assert_close(module(batches[1]), found, rtol=0, atol=0)  # fixed from here on


def test_a_feature_loss_collects_first_and_then_is_that_of_the_standardized_teacher():
    loss = FeatureLoss("mse", 3, 4, standardize="scale", rows=10).double()
    student, teacher = normal(8, 3).requires_grad_(), 5 + normal(8, 4)
    first = loss(student, teacher)
    first.backward()
    assert first == 0 and loss.projector.weight.grad.eq(0).all()
    found = loss(student, teacher)
    scale = teacher.var(0, correction=0).mean().sqrt()
    aim = (teacher - teacher.mean(0)) / scale
    torch.testing.assert_close(found, feature_loss(loss.projected(student, teacher)[0], aim))
    other = FeatureLoss("mse", 3, 4, standardize="scale", rows=10).double()
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(student, teacher), found)
    with pytest.raises(ValueError, match="kind in"):
        FeatureLoss(standardize="whiten")
    with pytest.raises(ValueError, match="that vary"):
        FeatureLoss("mse", 3, 4, standardize="phi", rows=7).double()(
            student, torch.ones_like(teacher)
        )


def test_tokens_are_compared_place_by_place():
    maps, student = normal(2, 4, 3, 3), normal(2, 3, 5, 5)
    tokens = torch.cat([normal(2, 5, 4), maps.flatten(2).mT], 1)
    loss = FeatureLoss("cosine", layout=("nchw", "tokens"), prefix_tokens=(0, 5)).double()
    loss.build(student, tokens)
    plain = FeatureLoss("cosine", 3, 4).double()
    plain.load_state_dict(loss.state_dict())
    torch.testing.assert_close(loss(student, tokens), plain(student, maps))


def test_phi_standardize_asks_for_enough_rows():
    with pytest.raises(ValueError, match="more rows than columns"):
        phi_standardize(normal(4, 4))
    with pytest.raises(ValueError, match="that vary"):
        phi_standardize(torch.ones(9, 4))


# ------------------------------------------------------------------------------------ all of them
LOSSES = {
    "dkd": (lambda s, t: dkd_loss(s, t, TARGET), (6, 5)),
    "dist": (dist_loss, (6, 5)),
    "standardized": (standardized_kd_loss, (6, 5)),
    "attention": (attention_transfer_loss, (3, 4, 2, 3)),
    "similarity": (similarity_preserving_loss, (5, 4)),
    "srd": (srd_loss, (6, 4)),
    "correlation": (lambda s, t: srd_loss(s, t, kind="correlation"), (6, 4)),
    "cosine": (lambda s, t: feature_loss(s, t, "cosine"), (3, 5)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_and_no_gradient_of_the_teacher(name):
    loss, shape = LOSSES[name]
    student, teacher = normal(*shape).requires_grad_(), normal(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_no_rows_are_a_zero_that_backpropagates_and_half_precision_is_raised(name):
    loss, shape = LOSSES[name]
    none = torch.zeros(0, *shape[1:], requires_grad=True)
    if name != "dkd":
        zero = loss(none, torch.zeros(0, *shape[1:]))
        zero.backward()
        assert zero == 0 and none.grad.shape == none.shape
    student, teacher = normal(*shape).half(), normal(*shape).half()
    found = loss(student, teacher)
    assert found.dtype is torch.float32 and found == loss(student.float(), teacher.float())


def test_dkd_of_no_rows():
    none = torch.zeros(0, 5, requires_grad=True)
    zero = dkd_loss(none, torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    zero.backward()
    assert zero == 0 and none.grad.shape == none.shape
