"""PKD, CWD and LD against loops over indices written here, their laws, and their bad input."""

import math

import pytest
import torch
from small_detectors import batch, faster_rcnn, fcos, retinanet

from kdtasks.detection import CWDLoss, LDLoss, PKDLoss, cwd_loss, ld_loss, pkd_loss
from kdtasks.detection.torchvision_distiller import TorchvisionDistiller
from tests.loops import divergence, softmax

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def normal(*shape):
    return 2 * torch.randn(*shape, dtype=F64)


# --------------------------------------------------------------------------------------------- PKD
def slow_pkd(student, teacher):
    squares = []
    for c in range(student.shape[1]):
        rows = []
        for maps in (student, teacher):
            values = maps[:, c].flatten().tolist()
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
            rows.append([(v - mean) / (spread + 1e-6) for v in values])
        squares += [(a - b) ** 2 for a, b in zip(*rows)]
    return sum(squares) / len(squares) / 2


def test_pkd_equals_the_loop_and_is_one_minus_the_correlation():
    student, teacher = normal(2, 3, 4, 5), 3 * normal(2, 3, 4, 5) + 1
    found = pkd_loss(student, teacher)
    assert found.item() == pytest.approx(slow_pkd(student, teacher), rel=1e-11)
    pairs = zip(student.transpose(0, 1).flatten(1), teacher.transpose(0, 1).flatten(1))
    rho = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).mean()
    torch.testing.assert_close(found, 39 / 40 * (1 - rho), rtol=1e-5, atol=0)


def test_pkd_is_blind_to_a_channels_scale_and_offset_and_2_where_a_channel_is_turned():
    student, teacher = normal(2, 3, 4, 5), normal(2, 3, 4, 5)
    scale, offset = 1 + torch.rand(1, 3, 1, 1, dtype=F64), normal(1, 3, 1, 1)
    found = pkd_loss(student, teacher)
    torch.testing.assert_close(
        pkd_loss(scale * student + offset, teacher), found, rtol=1e-5, atol=0
    )
    assert pkd_loss(2 * teacher + 1, teacher) < 1e-12
    assert pkd_loss(-teacher, teacher).item() == pytest.approx(2 * 39 / 40, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_constant_channel_has_no_gradient_and_harms_no_other(dtype):
    """Of any height: the mean of equal float32 values must be that value."""
    student, teacher = normal(2, 4, 7, 9).to(dtype), normal(2, 4, 7, 9).to(dtype)
    student[:, 1], student[:, 2] = 1234.567, 1e-9 * student[:, 2]
    teacher[:, 3] = -7.7
    student.requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        found = pkd_loss(student, teacher)
        (gradient,) = torch.autograd.grad(found, student)
    assert found.item() == pytest.approx(slow_pkd(student.detach(), teacher), rel=1e-5)
    assert not gradient[:, [1, 2]].any() and gradient[:, [0, 3]].any() and gradient.isfinite().all()
    assert gradient.abs().max() < 1


def test_pkd_of_half_precision_at_its_largest_is_that_of_float32():
    student = torch.tensor([60000.0, -65504.0, 3.0, 0.0]).half().view(1, 1, 2, 2)
    found = pkd_loss(student, student.flip(3))
    assert found.dtype is torch.float32 and 0 < found < 2
    assert found == pkd_loss(student.float(), student.flip(3).float())


@pytest.mark.parametrize("sizes", [((4, 6), (8, 12)), ((8, 12), (4, 6)), ((4, 6), (4, 5))])
def test_pkd_resizes_one_of_the_two(sizes):
    """Where the widths alone differ, too."""
    student, teacher = (normal(2, 3, *size) for size in sizes)
    student.requires_grad_()

    def resize(maps, size):
        return torch.nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)

    torch.testing.assert_close(
        pkd_loss(student, teacher), pkd_loss(resize(student, sizes[1]), teacher)
    )
    found = pkd_loss(student, teacher, resized="teacher")
    torch.testing.assert_close(found, pkd_loss(student, resize(teacher, sizes[0])))
    found.backward()
    assert student.grad.any()


def test_pkd_says_what_does_not_fit():
    with pytest.raises(ValueError, match="one image of one place has no deviation"):
        pkd_loss(normal(1, 3, 1, 1), normal(1, 3, 1, 1))
    assert pkd_loss(normal(2, 3, 1, 1), normal(2, 3, 1, 1)).isfinite()
    for other in (normal(2, 4, 4, 5), normal(3, 3, 4, 5), normal(2, 3, 4)):
        with pytest.raises(ValueError, match=r"equally many channels, got student \(2, 3, 4, 5\)"):
            pkd_loss(normal(2, 3, 4, 5), other)
    with pytest.raises(ValueError, match="'teacher'"):
        PKDLoss(resized="teachers")


# --------------------------------------------------------------------------------------------- CWD
def slow_cwd(student, teacher, temperature):
    found = 0.0
    for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1)):
        p_s, p_t = (softmax([z / temperature for z in maps.flatten().tolist()]) for maps in (s, t))
        found += temperature**2 * divergence(p_t, p_s)
    return found / (student.shape[0] * student.shape[1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_equals_the_loop(temperature):
    student, teacher = normal(2, 3, 4, 5), normal(2, 3, 4, 5)
    found = cwd_loss(student, teacher, temperature)
    assert found.item() == pytest.approx(slow_cwd(student, teacher, temperature), rel=1e-11)
    assert CWDLoss(temperature, 3, 3)(student, teacher) == found
    # blind to what a channel adds at all of its places
    moved = student + normal(2, 3, 1, 1)
    torch.testing.assert_close(cwd_loss(moved, teacher, temperature), found)
    assert cwd_loss(teacher, teacher) == 0


def test_cwd_of_a_dead_map_is_even_and_of_extreme_ones_finite():
    even, teacher = torch.zeros(1, 2, 3, 4, dtype=F64).requires_grad_(), normal(1, 2, 3, 4)
    found = cwd_loss(even, teacher)
    assert found.item() == pytest.approx(slow_cwd(even.detach(), teacher, 1.0), rel=1e-11)
    (gradient,) = torch.autograd.grad(found, even)
    assert gradient.any()
    far = torch.tensor([60000.0, -65504.0, 0.0, 1.0]).half().view(1, 1, 2, 2)
    assert cwd_loss(far, far.flip(3)).item() == pytest.approx(60000 + 65504, rel=1e-6)


def test_cwd_averages_the_larger_map_down():
    student, teacher = normal(2, 3, 4, 6), normal(2, 3, 8, 3)
    found = cwd_loss(student, teacher)
    halves = student.unflatten(3, (3, 2)).mean(4), teacher.unflatten(2, (4, 2)).mean(3)
    torch.testing.assert_close(found, cwd_loss(*halves))


def test_cwd_says_what_does_not_fit():
    with pytest.raises(ValueError, match="softmax over one place is 1"):
        cwd_loss(normal(2, 3, 1, 1), normal(2, 3, 4, 4))
    with pytest.raises(ValueError, match="CWDLoss has a projector for other channels"):
        cwd_loss(normal(2, 3, 4, 4), normal(2, 4, 4, 4))
    with pytest.raises(ValueError, match="temperature must be > 0"):
        CWDLoss(0)


@pytest.mark.parametrize("kind", [PKDLoss, CWDLoss])
def test_a_projector_stands_between_other_channels_only(kind):
    student, teacher = normal(2, 3, 4, 5), normal(2, 3, 4, 5)
    same, other = kind().double(), kind()
    same.build(student, teacher)
    assert not list(same.parameters())
    assert same(student, teacher) == (pkd_loss if kind is PKDLoss else cwd_loss)(student, teacher)
    wide = normal(2, 5, 4, 5)
    other.build(student, wide)
    assert [tuple(p.shape) for p in other.parameters()] == [(5, 3, 1, 1), (5,)]
    other(student, wide).backward()
    assert other.projector.weight.grad.any()
    with pytest.raises(ValueError, match="expected 5 channels of the teacher"):
        other(student, teacher)
    with pytest.raises(ValueError, match="expected two maps"):
        kind().build(normal(2, 3, 4), normal(2, 3, 4))


# ---------------------------------------------------------------------------------------------- LD
def slow_ld(student, teacher, temperature, weights, normalizer):
    found = 0.0
    for s_box, t_box, weight in zip(student.tolist(), teacher.tolist(), weights):
        for s, t in zip(s_box, t_box):
            p_s, p_t = (softmax([z / temperature for z in row]) for row in (s, t))
            found += weight * temperature**2 * divergence(p_t, p_s) / len(s)
    return found / normalizer


@pytest.mark.parametrize("temperature", [10.0, 1.0])
def test_ld_equals_the_loop(temperature):
    student, teacher, logits = normal(6, 4, 9), normal(6, 4, 9), normal(6, 3)
    plain = slow_ld(student, teacher, temperature, [1.0] * 6, 24)
    assert ld_loss(student, teacher, temperature).item() == pytest.approx(plain, rel=1e-10)
    rows = student.flatten(0, 1), teacher.flatten(0, 1)
    assert ld_loss(*rows, temperature).item() == pytest.approx(plain, rel=1e-10)
    weights = [max(1 / (1 + math.exp(-z)) for z in row) for row in logits.tolist()]
    assert sum(weights) > 1
    for normalize, normalizer in ((True, 4 * sum(weights)), (False, 4)):
        found = LDLoss(temperature, normalize)(student, teacher, logits)
        expected = slow_ld(student, teacher, temperature, weights, normalizer)
        assert found.item() == pytest.approx(expected, rel=1e-10)


def test_ld_of_hardly_any_box_is_divided_by_1_and_the_weights_have_no_gradient():
    student, teacher = normal(1, 4, 9), normal(1, 4, 9)
    logits = torch.full((1, 3), -3.0, dtype=F64, requires_grad=True)
    student.requires_grad_()
    found = LDLoss(normalize=True)(student, teacher, logits)
    weight = 1 / (1 + math.exp(3))
    expected = slow_ld(student.detach(), teacher, 10.0, [weight], 4)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    found.backward()
    assert logits.grad is None and student.grad.any()
    none = torch.zeros(0, 4, 9, requires_grad=True)
    zero = LDLoss()(none, none.detach(), torch.zeros(0, 3))
    zero.backward()
    assert zero == 0 and none.grad.shape == (0, 4, 9)


def test_ld_says_what_does_not_fit():
    with pytest.raises(ValueError, match=r"two bins or more for each edge, got student \(6, 1\)"):
        ld_loss(normal(6, 1), normal(6, 1))
    with pytest.raises(ValueError, match=r"got student \(6, 9\) and teacher \(6, 17\)"):
        ld_loss(normal(6, 9), normal(6, 17))
    with pytest.raises(ValueError, match=r"of the same boxes, got student \(6, 4, 9\)"):
        LDLoss()(normal(6, 4, 9), normal(6, 4, 9), normal(5, 3))
    with pytest.raises(ValueError, match="temperature must be > 0"):
        LDLoss(-1)


# --------------------------------------------------------------------------------- what all of them
LOSSES = {
    "pkd": (pkd_loss, (2, 3, 2, 3)),
    "pkd, resized": (lambda s, t: pkd_loss(s[..., :2], t, "teacher"), (2, 3, 2, 3)),
    "cwd": (lambda s, t: cwd_loss(s, t, 2.0), (2, 3, 2, 3)),
    "ld": (ld_loss, (3, 4, 5)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_rows_and_precision(name):
    loss, shape = LOSSES[name]
    student, teacher = normal(*shape).requires_grad_(), normal(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()
    none = torch.zeros(0, *shape[1:], requires_grad=True)
    zero = loss(none, torch.zeros(0, *shape[1:]))
    zero.backward()
    assert zero == 0 and none.grad.shape == none.shape
    found = loss(student.detach().half(), teacher.detach().half())
    raised = loss(student.detach().half().float(), teacher.detach().half().float())
    assert found.dtype is torch.float32 and found == raised


# ------------------------------------------------------------------- in torchvision's own detectors
PAIRS = {
    "RetinaNet by RetinaNet": (retinanet, retinanet, {}),
    "RetinaNet by FCOS": (retinanet, fcos, {}),
    "FCOS by Faster R-CNN": (fcos, faster_rcnn, {}),
    "Faster R-CNN by RetinaNet": (faster_rcnn, retinanet, {}),
    "RetinaNet by one that sees larger images": (
        retinanet,
        lambda width: retinanet(width, min_size=128, max_size=192),
        {"resolution": "own"},
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_pkd_and_cwd_of_any_two_detectors(pair):
    make, taught_by, options = PAIRS[pair]
    student, teacher = make(4), taught_by(8)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    levels = ("features.student.2", "features.teacher.2")
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {"loss_pkd": (PKDLoss(), levels, 6.0), "loss_cwd": (CWDLoss(), levels, 10.0)},
        **options,
    )
    data = batch()
    distiller.build(data)
    distiller.train()
    trained = [*student.parameters(), *distiller.losses.parameters()]
    optimizer = torch.optim.AdamW(trained, 2e-3)
    taught = []
    for _ in range(12):
        losses = distiller(data)
        taught.append((losses["loss_pkd"] + losses["loss_cwd"]).item())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert taught[-1] < 0.8 * taught[0]
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("make, head", [(retinanet, "RetinaNetHead"), (fcos, "FCOSHead")])
def test_torchvisions_heads_have_no_bins_for_ld(make, head):
    names = ("anchors.student.edges", "anchors.teacher.edges", "anchors.student.logits")
    distiller = TorchvisionDistiller(
        make(4), {"teacher": make(8)}, {"loss_ld": (LDLoss(), names, 0.25)}
    )
    with pytest.raises(ValueError, match=f"the {head} of .* gives 4 numbers for a box"):
        distiller.build(batch())
