"""A process that is killed, or stands still, ends the others in minutes and with one line."""

import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from small_runs import ROOT, SMALL, small

from kdtasks.engine.experiment import Experiment
from kdtasks.engine.loader import Loader
from kdtasks.engine.run import Run
from tests.ranks import start_tool

FAULTS = """
import ctypes, resource, sys
libc = ctypes.CDLL(None)
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page is one fault for 512
for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: as they start; else glibc moves them
    libc.mallopt(parameter, 131072)
import torch
from kdtasks.engine.processes import keep_memory
def step():
    return [torch.empty(2**20).fill_(1.0) for _ in range(16)]  # 4 MiB each, freed at once
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10
step(), step()
before = faults()
keep_memory()
step(), step()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_memory_is_kept_from_step_to_step():
    """Pages are taken anew in each step, and no more; where the user says how, so it stays."""
    found = []
    for extra in ({}, {"MALLOC_TRIM_THRESHOLD_": "131072"}):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        done = subprocess.run(
            [sys.executable, "-c", FAULTS],
            env={**environment, **extra, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        found.append([int(number) for number in done.stdout.split()])
    (before, after), (_, as_said) = found
    assert before > 8000 and after < 100 and as_said > 8000  # of 16384 pages


@pytest.mark.parametrize(
    ("sign", "what"),
    [(signal.SIGKILL, "has ended"), (signal.SIGSTOP, "does not answer within --wait-limit")],
)
def test_a_peer_that_is_gone_or_stands_still(tmp_path, sign, what):
    """Without torchrun, which would end the one as soon as the other dies."""
    command = ["train.py", str(SMALL), "--launcher", "pytorch", "--device", "cpu"]
    command += ["--work-dir", str(tmp_path / "run"), "--wait-limit", "0.1", "--cfg-options"]
    command += ["custom_hooks=[{'type': 'small_parts.Slow'}]", "length=99"]
    first, second = start_tool(tmp_path / "said", command, {"SLOW": "0.05"}, number=2)
    try:
        deadline = time.time() + 120
        while (
            not (tmp_path / "run" / "stages" / "0_teacher" / "last.pth").exists()
            and time.time() < deadline
        ):
            time.sleep(0.05)
        os.kill(second.pid, sign)
        first.join(60)
    finally:
        for process in (first, second):
            process.kill()
            process.join()
    said = (tmp_path / "said" / "0.err").read_text()
    lines = [
        line
        for line in said.splitlines()
        if "rank" in line or "Traceback" in line or "Error" in line
    ]
    assert first.exitcode == 1 and "Traceback" not in said, said
    assert lines == [
        f"error: rank 0 stops: another process of this run {what}; see what that one says. The "
        "same command with --resume goes on from the last checkpoint"
    ], said


class Hangs:
    """A data set on a disk that does not answer."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            time.sleep(30)
        return torch.zeros(1), 0


def test_workers_that_hang_have_a_limit():
    loader = Loader(Hangs(), 1, shuffle=False, workers=1, timeout=1)
    began = time.time()
    with pytest.raises(
        RuntimeError,
        match=r"the 1 workers of the loader gave no batch within 1 s: "
        r".*data.timeout=<seconds>",
    ):
        list(loader)
    assert time.time() - began < 20


def test_a_config_sets_the_limit():
    experiment = Experiment(small(data__timeout=7))
    assert experiment.train_loader(experiment.stages[0]).reader is None
    assert experiment.loader_options(experiment.config["data"])["timeout"] == 7


def test_nothing_of_a_stage_stays_when_it_has_ended(tmp_path):
    """mmengine keeps loggers, hubs, visualizers and scopes by name; the memory of a long chain of
    stages is flat.
    """
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer

    kinds = (MMLogger, MessageHub, Visualizer, DefaultScope)
    # mmengine's own logger
    Run(small(length={"iterations": 1}), tmp_path / "first", quiet=True).train(only=["alone"])
    before = [dict(kind._instance_dict) for kind in kinds]
    threads = threading.active_count()
    Run(small(length={"iterations": 1}), tmp_path / "second", quiet=True).train(only=["alone"])
    assert [set(kind._instance_dict) - set(old) for kind, old in zip(kinds, before)] == [set()] * 4
    assert threading.active_count() == threads
