"""One process at a time works in a folder; a folder of a dead one is free; other options have
another folder.
"""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from small_runs import ROOT, SMALL, same, small, weights

from kdtasks.engine import lock
from kdtasks.engine.compare.comparison import compare
from kdtasks.engine.compare.plan import plan_jobs
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run import Run
from kdtasks.engine.run_names import folder_name


@contextmanager
def held(folder, child_of_it=False):
    """Another process that holds the lock of a folder, perhaps with a worker of its own; killed at
    the end.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock.acquire(folder)
        if child_of_it:
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            os.write(write, f"{worker}".encode())
        os.write(write, b"\n")
        time.sleep(60)
        os._exit(0)
    told = b""
    while not told.endswith(b"\n"):
        told += os.read(read, 100)
    try:
        yield pid, int(told.strip() or 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read), os.close(write)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_use_is_refused_and_free_once_its_owner_is_dead(tmp_path, resume):
    folder = tmp_path / "run"
    with held(folder) as (pid, _):
        with pytest.raises(
            ConfigError,
            match=rf"run' is in use: process {pid} on "
            rf"{socket.gethostname()} has worked in it since",
        ):
            Run(small(), folder, quiet=True).train(resume, only=["alone"])
        # nothing moved, nothing written
        assert [path.name for path in tmp_path.rglob("*")] == ["run", ".lock"]
    assert (folder / ".lock").exists()
    assert (
        "alone" in Run(small(length=1), folder, quiet=True).train(resume, only=["alone"])["stages"]
    )
    assert not (folder / ".lock").exists()


def test_a_living_run_is_left_alone_by_another_command(undisturbed, tmp_path):
    """With the commands that a user types: a second run, plain or resumed, ends with one line, and
    the first is right.
    """
    command = [
        sys.executable,
        str(ROOT / "tools" / "train.py"),
        str(SMALL),
        "--work-dir",
        str(tmp_path / "run"),
        "--cfg-options",
        "custom_hooks=[{'type': 'small_parts.Slow'}]",
    ]
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, env={**os.environ, "SLOW": "0.3"}, **quiet)
    try:
        deadline = time.time() + 120
        while (
            not (tmp_path / "run" / "stages" / "0_teacher" / "last.pth").exists()
            and time.time() < deadline
        ):
            time.sleep(0.02)
        mine = tmp_path / "run" / "stages" / f".last.pth.{first.pid}.tmp"
        mine.touch()
        for arguments in (["length=1"], ["--resume"]):
            with pytest.raises(ConfigError, match=f"is in use: process {first.pid} on"):
                config = (
                    small(length=1)
                    if arguments != ["--resume"]
                    else small(custom_hooks=[{"type": "small_parts.Slow"}])
                )
                Run(config, tmp_path / "run", quiet=True).train(resume=arguments == ["--resume"])
        assert mine.exists() and [path.name for path in tmp_path.iterdir()] == ["run"]
    finally:
        first.kill()
        first.wait()
    run = Run(small(custom_hooks=[{"type": "small_parts.Slow"}]), tmp_path / "run", quiet=True)
    run.train(resume=True)
    assert not mine.exists()
    assert same(
        weights(run, "distilled")["state_dict"], weights(undisturbed, "distilled")["state_dict"]
    )


def test_a_workers_life_does_not_hold_the_lock_of_its_dead_parent(tmp_path):
    with held(tmp_path, child_of_it=True) as (_, worker):
        pass
    try:
        # it lives
        os.kill(worker, 0)
        lock.acquire(tmp_path)
    finally:
        lock.release(tmp_path)
        os.kill(worker, signal.SIGKILL)


def test_a_former_run_is_moved_aside_with_the_lock_in_hand(tmp_path):
    """What takes the place in between keeps it; the new folder is as locked as the old one was."""
    lock.acquire(tmp_path / "run")
    try:
        lock.move(tmp_path / "run", tmp_path / "run.1")
        pid = os.fork()
        if pid == 0:
            try:
                lock.acquire(tmp_path / "run")
            except ConfigError:
                # the old one is free
                lock.acquire(tmp_path / "run.1")
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    finally:
        lock.release(tmp_path / "run")


def test_a_comparison_is_refused_before_its_first_step_where_one_of_its_folders_is_in_use(tmp_path):
    configs = {"kd": small()}
    _, jobs = plan_jobs(configs, [0], tmp_path)
    assert any(job.shared for job in jobs) and not all(job.shared for job in jobs)
    for job in jobs:
        with (
            held(job.folder) as (pid, _),
            pytest.raises(ConfigError, match=f"is in use: process {pid} on"),
        ):
            compare(configs, [0], tmp_path, quiet=True)
        assert not list(tmp_path.rglob("*.pth"))


def test_where_a_disk_has_no_locks_the_file_decides(tmp_path, monkeypatch):
    def none(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    with (
        held(tmp_path) as (pid, _),
        pytest.raises(
            ConfigError,
            match=rf"process {pid} on .*\(if "
            r"it is gone, remove '",
        ),
    ):
        lock.acquire(tmp_path)
    # of a dead one
    lock.acquire(tmp_path)
    (tmp_path / ".lock").write_text(
        (tmp_path / ".lock").read_text().replace(socket.gethostname(), "elsewhere")
    )
    monkeypatch.setattr(lock, "_held", {})
    with pytest.raises(ConfigError, match="on elsewhere"):
        lock.acquire(tmp_path)


def test_only_what_dead_processes_had_begun_is_removed(tmp_path):
    run = Run(small(), tmp_path / "run", quiet=True)
    run.open()
    run.close()
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    cache = tmp_path / "run" / "cache" / f".abc.{'0f' * 16}.tmp"
    cache.mkdir(parents=True)
    (cache / "0.bin").touch()
    for name in (f".student.onnx.{os.getppid()}.tmp", f".student.onnx.{gone}.tmp", ".notes.tmp"):
        (tmp_path / "run" / name).touch()
    run.open(resume=True)
    run.close()
    left = sorted(path.name for path in (tmp_path / "run").rglob("*.tmp"))
    assert left == sorted([f".student.onnx.{os.getppid()}.tmp", ".notes.tmp"])


def test_other_options_have_another_folder():
    assert folder_name("classification_default", {}) == "classification_default"
    assert folder_name("classification_default", {"length": 2}) == "classification_default-length=2"
    one, two = (
        {"losses.loss_kd.weight": 0.5, "amp": "bfloat16"},
        {"losses.loss_kd.weight": 0.25, "amp": "bfloat16"},
    )
    assert folder_name("a", one) == "a-amp=bfloat16,losses.loss_kd.weight=0.5"
    options = [
        {},
        one,
        two,
        {"data.train.root": "/a/b"},
        {"data.train.root": "/a_b"},
        {"data.train.root": "../a_b"},
        {"stages": [{"name": "alone"}] * 50},
        {"stages": [{"name": "alone"}] * 51},
        {"student.type": "Größe"},
    ]
    names = [folder_name("a", each) for each in options]
    assert len(set(names)) == len(names)
    assert all(
        len(name) < 100 and name.isascii() and "/" not in name and " " not in name for name in names
    )
