"""CRD against a loop over images and negatives, its memories, and resuming."""

import copy
import math

import pytest
import torch
from torch import nn

from kdtasks.core import Distiller
from kdtasks.general import CRDLoss
from tests.ranks import two_ranks

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def made(samples=9, negatives=16384, **settings):
    loss = CRDLoss(samples, 4, 6, dim=5, negatives=negatives, **settings).double()
    loss.classes[:] = torch.arange(samples) % 3
    return loss


def batch(*index):
    index = torch.tensor(index)
    shape = len(index)
    return (torch.randn(shape, 4, dtype=F64), torch.randn(shape, 6, dtype=F64), index, index % 3)


def unit(row):
    length = math.sqrt(sum(v * v for v in row))
    return [v / length for v in row]


def dot(one, other):
    return sum(a * b for a, b in zip(one, other))


def slow(loss, student, teacher, index, target, negatives=None):
    """The formula, Z of this very batch; ``negatives``: None for all of other classes."""
    total, n, tau = 0.0, loss.samples, loss.temperature
    noise = loss.negatives / n
    for features, linear, memory in (
        (student, loss.student_map, loss.teacher_memory),
        (teacher, loss.teacher_map, loss.student_memory),
    ):
        powers = []
        for row, i, y in zip(linear(features).tolist(), index.tolist(), target.tolist()):
            chosen = negatives(i, y) if negatives else [k for k in range(n) if k % 3 != y]
            vector = unit(row)
            powers.append([math.exp(dot(vector, memory[k].tolist()) / tau) for k in (i, *chosen)])
        flat = [p for row in powers for p in row]
        scale = sum(flat) / len(flat) * n
        for own, *others in powers:
            total -= math.log(own / scale / (own / scale + noise + 1e-7))
            total -= sum(math.log(noise / (p / scale + noise + 1e-7)) for p in others)
    return total / len(student)


def test_it_equals_the_loop_with_all_images_of_other_classes():
    loss = made().eval()
    tensors = batch(4, 0, 7, 2)
    assert loss.negatives == 8
    assert loss(*tensors).item() == pytest.approx(slow(loss, *tensors), rel=1e-10)


def test_of_more_images_each_has_the_first_in_a_random_order():
    loss = made(samples=60, negatives=7).eval()
    tensors = batch(4, 0, 37, 2)
    state = torch.get_rng_state()
    found = loss(*tensors)
    torch.set_rng_state(state)
    order = torch.randperm(60)[:14].tolist()

    def negatives(i, y):
        return [k for k in order if k % 3 != y][:7]

    assert found.item() == pytest.approx(slow(loss, *tensors, negatives), rel=1e-10)


def test_an_image_of_no_class_and_images_not_seen_yet():
    """Unlabelled: all others are negatives. A class that is not known yet is another one."""
    loss = made().eval()
    student, teacher, index, target = batch(4, 0)
    unlabelled = torch.full_like(target, -100)
    expected = slow(loss, student, teacher, index, target, lambda i, y: set(range(9)) - {i})
    assert loss(student, teacher, index, unlabelled).item() == pytest.approx(expected, rel=1e-10)
    loss.classes[:] = -100
    assert loss(student, teacher, index, target).item() == pytest.approx(expected, rel=1e-10)


def test_only_vectors_get_gradients_and_memories_move_after_the_loss():
    loss = made(momentum=0.3)
    student, teacher, index, target = batch(4, 0, 7)
    student.requires_grad_(), teacher.requires_grad_()
    before = copy.deepcopy(loss.state_dict())
    value = loss(student, teacher, index, target)
    value.backward()
    assert teacher.grad is None and student.grad.any()
    assert loss.student_map.weight.grad.any() and loss.teacher_map.weight.grad.any()
    for side, linear, features in (
        ("student_memory", loss.student_map, student),
        ("teacher_memory", loss.teacher_map, teacher),
    ):
        now = getattr(loss, side)
        for k in range(9):
            row = before[side][k]
            if k in (4, 0, 7):
                vector = nn.functional.normalize(linear(features[[4, 0, 7].index(k)]), dim=0)
                row = nn.functional.normalize(0.3 * row + 0.7 * vector, dim=0)
            torch.testing.assert_close(now[k], row.detach())
    # Z is that of the first batch for good
    first = loss.normalizers.clone()
    assert (first > 0).all()
    loss(*batch(1, 2, 3))
    assert torch.equal(loss.normalizers, first)


def test_gradcheck():
    loss = made().eval()
    student, teacher, index, target = batch(4, 0, 7)
    # Z is a constant of the first batch
    loss.normalizers[:] = 20.0
    assert torch.autograd.gradcheck(
        lambda s: loss(s, teacher, index, target), student.requires_grad_()
    )


def test_of_an_image_that_a_batch_has_twice_the_last_one_counts():
    loss, once = made(), None
    once = copy.deepcopy(loss)
    student, teacher, index, target = batch(4, 1, 4)
    loss(student, teacher, index, target)
    once(student[1:], teacher[1:], index[1:], target[1:])
    torch.testing.assert_close(loss.student_memory, once.student_memory)
    torch.testing.assert_close(loss.teacher_memory, once.teacher_memory)


def test_dead_features_and_half_precision():
    loss = made().float()
    student, teacher, index, target = batch(4, 0, 7)
    loss.student_map.bias.data.zero_()
    dead = student.float()
    dead[1] = 0
    dead.requires_grad_()
    value = loss(dead, teacher.float(), index, target)
    (gradient,) = torch.autograd.grad(value, dead)
    assert value.isfinite() and not gradient[1].any() and gradient[0].any()
    assert loss.student_memory.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss.eval()(student.bfloat16(), teacher.bfloat16(), index, target)
    assert inside.dtype is torch.float32 and inside.isfinite()


def test_its_state_resumes():
    loss = made(samples=60, negatives=7)
    loss(*batch(4, 0, 7))
    other = CRDLoss(60, 4, 6, dim=5, negatives=7).double()
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    tensors = batch(1, 5, 8)
    found = []
    for each in (loss, other):
        torch.manual_seed(3)
        found.append(each(*tensors).item())
        torch.manual_seed(4)
        found.append(each(*tensors).item())
    assert found[:2] == found[2:]


def steps_of_two_batches(rank, loss, batches):
    """Two steps of SGD on this rank's rows, all rows where there is one process."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    loss = copy.deepcopy(loss)  # processes share the tensors that they are sent
    model = torch.nn.parallel.DistributedDataParallel(loss) if world > 1 else loss
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
    for tensors in batches:
        optimizer.zero_grad()
        model(*(rows[rank::world] for rows in tensors)).backward()
        optimizer.step()
    return loss.state_dict()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_and_keep_equal_memories():
    """An image is in both processes' halves of the second batch, and the last row counts."""
    batches = [batch(4, 0, 7, 2), batch(8, 1, 3, 8)]
    start = made()
    start.classes[:] = -100  # learned from the batches
    ranks = two_ranks(steps_of_two_batches, start, batches)
    # gathered rows stand rank by rank
    order = torch.tensor([0, 2, 1, 3])
    rows = [tuple(tensor[order] for tensor in tensors) for tensors in batches]
    expected = steps_of_two_batches(0, start, rows)
    for name, value in expected.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], value, msg=name)
    assert (expected["classes"] >= 0).sum() == 7


def test_the_distiller_builds_it_and_moves_nothing():
    student, teacher = nn.Linear(7, 4), nn.Linear(7, 6)
    loss = CRDLoss(20, dim=5, negatives=8)
    names = ("student", "teacher", "index", "target")
    distiller = Distiller(student, {"teacher": teacher}, {"loss_crd": (loss, names, 0.8)})
    rows = {
        "input": torch.randn(6, 7),
        "index": torch.arange(6),
        "target": torch.tensor([0, 1, 2, 0, 1, 2]),
    }
    before = copy.deepcopy({k: v for k, v in loss.state_dict().items() if "map" not in k})
    distiller.build(rows)
    assert all(torch.equal(loss.state_dict()[key], value) for key, value in before.items())
    distiller(rows)["loss_crd"].backward()
    assert loss.teacher_map.weight.grad.any() and student.weight.grad.any()
    assert loss.classes[:6].tolist() == [0, 1, 2, 0, 1, 2] and (loss.classes[6:] == -100).all()
    small = Distiller(student, {"teacher": teacher}, {"loss_crd": (CRDLoss(5), names)})
    with pytest.raises(ValueError, match="samples=5, and an image has the index 5"):
        small.build(rows)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="samples >= 2"):
        CRDLoss(1)
    with pytest.raises(ValueError, match="momentum < 1, got 0.07 and 1"):
        CRDLoss(9, momentum=1)
    student, teacher, index, target = batch(4, 0)
    with pytest.raises(RuntimeError, match="build"):
        CRDLoss(9)(student, teacher, index, target)
    with pytest.raises(ValueError, match=r"index \(1,\)"):
        made()(student, teacher, index[:1], target)


def test_its_cost_does_not_grow_with_batch_times_negatives():
    """No (B, K, dim) tensor: 64 rows with 16,384 negatives gathered would be 537 MB."""
    loss = CRDLoss(20_000, 8, 8).eval()
    rows = torch.randn(64, 8)
    index = torch.arange(64)
    with torch.profiler.profile(profile_memory=True) as profile, torch.no_grad():
        loss(rows, rows, index, index % 10)
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert largest < 100e6
