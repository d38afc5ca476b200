"""The queue's KL against loops over rows and columns, the queue itself, and what a resume needs."""

import copy
import math

import pytest
import torch

from kdtasks.core import Distiller
from kdtasks.general import FeatureQueue, QueueKLLoss, queue_kl_loss

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=F64)


def unit(row):
    length = math.sqrt(sum(v * v for v in row))
    return [v / length for v in row]


def softmax(row):
    powers = [math.exp(v) for v in row]
    return [p / sum(powers) for p in powers]


def slow(student, teacher, queue, student_queue, warm, cool, own):
    """KL(teacher ‖ student), one row and one column after the other."""
    total = 0.0
    theirs = [unit(row) for row in queue.tolist()]
    mine = theirs if student_queue is None else [unit(row) for row in student_queue.tolist()]
    for s, t in zip(student.tolist(), teacher.tolist()):
        s, t = unit(s), unit(t)
        dot = lambda a, b: sum(x * y for x, y in zip(a, b))  # noqa: E731
        first = [t] if own else []
        p = softmax([dot(t, q) / warm for q in first + theirs])
        q = softmax([dot(s, q) / cool for q in first + mine])
        total += sum(a * math.log(a / b) for a, b in zip(p, q))
    return total / len(student)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("student_temperature", [None, 0.7])
def test_it_is_the_loop(own, student_temperature):
    student, teacher, queue = normal(3, 5), normal(3, 5), normal(4, 5)
    found = queue_kl_loss(student, teacher, queue, None, 0.3, student_temperature, own)
    expected = slow(student, teacher, queue, None, 0.3, student_temperature or 0.3, own)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_two_queues_have_widths_of_their_own():
    student, teacher, queue, mine = normal(3, 2), normal(3, 5), normal(4, 5), normal(4, 2)
    found = queue_kl_loss(student, teacher, queue, mine, 0.3)
    assert found.item() == pytest.approx(slow(student, teacher, queue, mine, 0.3, 0.3, False))


def test_it_is_blind_to_lengths_and_zero_where_both_look_alike():
    student, teacher, queue = normal(3, 5), normal(3, 5), normal(4, 5)
    long = queue_kl_loss(9 * student, 0.1 * teacher, 3 * queue, None, 0.2)
    torch.testing.assert_close(long, queue_kl_loss(student, teacher, queue, None, 0.2))
    assert queue_kl_loss(2 * teacher, teacher, queue).item() == pytest.approx(0, abs=1e-12)


def test_what_has_no_direction_no_rows_or_no_queue():
    student = torch.stack([torch.zeros(5), torch.randn(5)]).requires_grad_()
    loss = queue_kl_loss(student, normal(2, 5).float(), normal(4, 5).float())
    loss.backward()
    assert loss.isfinite() and student.grad[0].eq(0).all() and student.grad[1].abs().sum() > 0
    for rows, queue in ((0, 4), (2, 0)):
        student = torch.randn(rows, 5, requires_grad=True)
        loss = queue_kl_loss(student, torch.randn(rows, 5), torch.randn(queue, 5))
        loss.backward()
        assert loss == 0 and student.grad is not None


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        ((normal(3, 4), normal(3, 5), normal(4, 5)), {}, "student \\(3, 4\\), teacher \\(3, 5\\)"),
        ((normal(3, 5), normal(2, 5), normal(4, 5)), {}, "teacher \\(2, 5\\)"),
        ((normal(3, 2), normal(3, 5), normal(4, 5), normal(3, 2)), {}, "student_queue \\(3, 2\\)"),
        ((normal(3, 5), normal(3, 5), normal(4, 5)), {"temperature": 0}, "positive, got 0"),
        (
            (normal(3, 5), normal(3, 5), normal(4, 5), normal(4, 5)),
            {"own": True},
            "student_queue=None",
        ),
    ],
)
def test_what_does_not_fit_is_said(tensors, settings, message):
    with pytest.raises(ValueError, match=message):
        queue_kl_loss(*tensors, **settings)


def test_a_queue_keeps_the_latest_and_forgets_the_oldest():
    queue, stream = FeatureQueue(5, 3).double(), normal(17, 3)
    first = 0
    # one batch is larger than the queue, and none divides it
    for size in (2, 2, 3, 7, 3):
        queue.push(stream[first : first + size])
        first += size
        kept = {tuple(unit(row)) for row in stream[max(0, first - 5) : first].tolist()}
        found = {tuple(row) for row in queue.filled.tolist()}
        assert {tuple(round(v, 12) for v in row) for row in found} == {
            tuple(round(v, 12) for v in row) for row in kept
        }
    with pytest.raises(ValueError, match="rows \\(B, 3\\), got \\(2, 4\\)"):
        queue.push(normal(2, 4))


def test_a_stop_between_two_steps_changes_nothing():
    def made():
        torch.manual_seed(3)
        student = torch.nn.Linear(4, 3)
        losses = {"loss": (QueueKLLoss(6, hidden=4), ("student", "teacher"))}
        distiller = Distiller(student, {"teacher": torch.nn.Linear(4, 5)}, losses)
        distiller.build(torch.ones(2, 4))
        return distiller, torch.optim.SGD(distiller.parameters(), 0.1, momentum=0.9)

    batches = [torch.randn(4, 4) for _ in range(6)]

    def go(distiller, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            loss = distiller(batch)["loss"]
            loss.backward()
            optimizer.step()
        return loss.item()

    whole, stopped, resumed = made(), made(), made()
    assert go(*stopped, batches[:1]) == 0  # there was nothing in the queue
    assert go(*stopped, batches[1:3]) > 0
    for part, saved in zip(resumed, stopped):
        part.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert go(*resumed, batches[3:]) == go(*whole, batches)
    states = [part[0].losses.state_dict() for part in (resumed, whole)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_building_and_testing_put_nothing_in():
    loss = QueueKLLoss(6)
    loss.build(torch.randn(2, 3), torch.randn(2, 5, 2, 2))
    loss.eval()(torch.randn(2, 3), torch.randn(2, 5, 2, 2))
    assert loss.queue.written == 0
    loss.train()(torch.randn(2, 3), torch.randn(2, 5, 2, 2))
    assert loss.queue.written == 2 and loss.queue.filled.shape == (2, 5)
