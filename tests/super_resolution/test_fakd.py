"""FAKD's affinity loss against loops over pairs of places, its gradient, its bounds on memory, its
laws.
"""

import math

import pytest
import torch
from torch import nn

from kdtasks.super_resolution import fakd
from kdtasks.super_resolution.fakd import AffinityLoss, affinity_loss

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def features(n=2, channels=(3, 5), h=4, w=3, dtype=F64):
    return [torch.randn(n, c, h, w, dtype=F64).to(dtype) for c in channels]


def slow(student, teacher, pool=1):
    total = pairs = 0
    for images in zip(student.tolist(), teacher.tolist()):
        cosines = []
        for image in images:
            h, w, places = len(image[0]), len(image[0][0]), []
            for i in range(0, h, pool):
                for j in range(0, w, pool):
                    square = [
                        (a, b)
                        for a in range(i, min(i + pool, h))
                        for b in range(j, min(j + pool, w))
                    ]
                    mean = [
                        sum(channel[a][b] for a, b in square) / len(square) for channel in image
                    ]
                    length = math.hypot(*mean)
                    places.append([x / length for x in mean])
            cosines.append([sum(x * y for x, y in zip(p, q)) for p in places for q in places])
        total += sum(abs(a - b) for a, b in zip(*cosines))
        pairs += len(cosines[0])
    return total / pairs


@pytest.mark.parametrize("block", [2**22, 60, 1])
@pytest.mark.parametrize("pool", [None, 1, 2, 3])
def test_it_equals_the_loop_in_blocks_of_any_size(pool, block, monkeypatch):
    monkeypatch.setattr(fakd, "BLOCK", block)
    student, teacher = features(h=5, w=4)
    assert affinity_loss(student, teacher, pool=pool).item() == pytest.approx(
        slow(student, teacher, pool or 1), rel=1e-12
    )
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: AffinityLoss(pool)(s, teacher), student)


def test_known_numbers():
    """Two places, orthogonal to the student and alike to the teacher; lengths, signs of all
    channels and widths do not matter.
    """
    student = torch.tensor([[3.0, 0], [0, 2]], dtype=F64).view(1, 2, 1, 2)
    teacher = torch.tensor([[1.0, 5]], dtype=F64).view(1, 1, 1, 2)
    # 2 of 4 pairs differ, by 1
    assert affinity_loss(student, teacher) == 0.5
    assert affinity_loss(student, torch.cat([-7 * student, 0 * teacher], 1)) < 1e-15
    assert affinity_loss(teacher * teacher.new_tensor([1, -1]), teacher) == 1  # by 2


def test_places_of_zeros_have_no_affinity_and_no_gradient():
    student, teacher = features()
    student[:, :, 0, 0] = 0
    student.requires_grad_()
    value = affinity_loss(student, teacher)
    value.backward()
    assert value.isfinite() and not student.grad[:, :, 0, 0].any() and student.grad[:, :, 1].all()


def test_the_teacher_receives_no_gradient():
    student, teacher = (image.requires_grad_() for image in features())
    value = affinity_loss(student, teacher)
    value.backward()
    assert teacher.grad is None and student.grad.any()
    assert not affinity_loss(student.detach(), teacher).requires_grad
    with torch.no_grad():
        assert affinity_loss(student, teacher) == value


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype):
    student, teacher = features(dtype=dtype)
    expected = affinity_loss(student.float(), teacher.float())
    assert (
        affinity_loss(student, teacher).dtype == torch.float32
        and affinity_loss(student, teacher) == expected
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert affinity_loss(student.float(), teacher.float()) == expected
    assert affinity_loss(*features()).dtype == F64


def test_an_empty_batch_gives_a_zero_that_backpropagates():
    for pool in (None, 2):
        student = torch.zeros(0, 3, 4, 4, requires_grad=True)
        value = affinity_loss(student, torch.zeros(0, 5, 4, 4), pool)
        value.backward()
        assert value == 0 and student.grad.shape == student.shape


def test_affinities_are_never_in_memory_at_once(monkeypatch):
    monkeypatch.setattr(fakd, "BLOCK", 2**14)
    student, teacher = torch.randn(2, 4, 32, 32, requires_grad=True), torch.randn(2, 4, 32, 32)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        affinity_loss(student, teacher).backward()
    sizes = [
        event.nbytes()
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    # all of them would be 8 * 2**20
    assert max(sizes) == 4 * 2**14


def test_large_maps_are_an_error_that_names_pool():
    student, teacher = torch.zeros(1, 1, 256, 200), torch.zeros(1, 1, 256, 200)
    for pool, places in ((None, 51200), (1, 51200)):
        with pytest.raises(
            ValueError,
            match=f"{places} places of features .* 2.6e\\+09 affinities .* 16384 places .* use "
            "pool=2 or more",
        ):
            affinity_loss(student, teacher, pool)
    with pytest.raises(ValueError, match="use pool=5 or more"):
        affinity_loss(student.new_zeros(1, 1, 513, 640), student.new_zeros(1, 1, 513, 640), 2)


def test_wrong_arguments():
    a, b = torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 5)
    for student, teacher in ((a, b), (a, b[:1, ..., :4]), (a[0], b[0])):
        with pytest.raises(ValueError, match="same N, H and W, got student"):
            affinity_loss(student, teacher)
    for pool in (0, -1):
        with pytest.raises(ValueError, match=f"pool must be at least 1 or None, got {pool}"):
            affinity_loss(a, a, pool)
        with pytest.raises(ValueError, match="pool must be at least 1"):
            AffinityLoss(pool)


def test_a_student_learns_the_affinities():
    x = torch.rand(2, 1, 6, 6)

    def make(width):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.PReLU(), nn.Conv2d(8, width, 3, padding=1)
        )

    student, teacher = make(4), make(8).requires_grad_(False)
    optimizer, values = torch.optim.Adam(student.parameters(), 1e-2), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = affinity_loss(student(x), teacher(x))
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]
