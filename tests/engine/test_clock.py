"""Seconds that are compared are those of the work, also where other work shares the processor."""

import multiprocessing
import os
import signal
import time

import pytest

from kdtasks.engine import clock


def spin(processor, ready):
    os.sched_setaffinity(0, {processor})
    ready.set()
    while True:
        pass


def work(seconds):
    """(seconds on the wall, on the clock, of processor time) of a busy loop."""
    starts = time.perf_counter(), clock.working_seconds(), time.thread_time()
    while time.perf_counter() < starts[0] + seconds:
        pass
    ends = time.perf_counter(), clock.working_seconds(), time.thread_time()
    return tuple(end - start for start, end in zip(starts, ends))


@pytest.mark.skipif(not clock._SCHEDULED.exists(), reason="the system does not say who waited")
def test_the_clock_stands_while_others_have_the_processor():
    allowed = os.sched_getaffinity(0)
    processor = min(allowed)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=spin, args=(processor, ready), daemon=True)
    other.start()
    try:
        ready.wait(30)
        os.sched_setaffinity(0, {processor})
        wall, working, busy = work(0.6)
    finally:
        os.sched_setaffinity(0, allowed)
        other.kill()
    assert busy < 0.8 * wall  # it was shared
    assert working == pytest.approx(busy, abs=0.05)


def test_sleep_counts():
    """Waiting for a disk or a device is part of the work."""
    before = clock.working_seconds()
    time.sleep(0.1)
    assert clock.working_seconds() - before >= 0.09


def test_the_wall_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(clock, "_SCHEDULED", tmp_path / "none")
    before = time.perf_counter()
    assert before <= clock.working_seconds() <= time.perf_counter()


def steps(pipe):
    with clock.stops_noted():
        starts = time.perf_counter(), clock.working_seconds()
        pipe.send("begun")
        for _ in range(40):
            clock.beat()
            time.sleep(0.02)
        ends = time.perf_counter(), clock.working_seconds()
    pipe.send([end - start for start, end in zip(starts, ends)])


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no such signals here")
def test_the_clock_stands_while_the_process_is_stopped():
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=steps, args=(there,), daemon=True)
    process.start()
    try:
        assert here.poll(30) and here.recv() == "begun"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(process.pid, signal.SIGCONT)
        assert here.poll(30)
        wall, working = here.recv()
    finally:
        process.kill()
    assert wall >= 2.2
    assert 0.7 <= working <= wall - 1.4
    assert signal.getsignal(signal.SIGCONT) == signal.SIG_DFL
