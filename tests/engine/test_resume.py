"""A run that stopped, however, goes on to the same bits; two processes are one."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import ROOT, SMALL, same, small, walk, weights

from kdtasks.engine import checkpoint
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run import Run
from tests.ranks import finish_tool, start_tool


@pytest.mark.parametrize(("stage", "iteration"), [("teacher", 10), ("alone", 1), ("distilled", 7)])
def test_resume_in_the_middle_equals_no_stop(undisturbed, tmp_path, stage, iteration):
    hook = [{"type": "small_parts.StopAt", "stage": stage, "iteration": iteration}]
    with pytest.raises(KeyboardInterrupt):
        Run({**small(), "custom_hooks": hook}, tmp_path / "run", quiet=True).train()
    forget_hooks(tmp_path / "run")
    random.seed(99), np.random.seed(98), torch.manual_seed(97)
    run = Run(small(), tmp_path / "run", quiet=True)
    run.train(resume=True)
    for name in ("teacher", "alone", "distilled"):
        ours, theirs = weights(run, name), weights(undisturbed, name)
        assert same(ours["state_dict"], theirs["state_dict"])
        assert ours["resume"]["history"] == theirs["resume"]["history"]
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                walk(ours["resume"]["optimizer"]), walk(theirs["resume"]["optimizer"]), strict=True
            )
        )


def forget_hooks(work_dir):
    stamp = work_dir / "stages" / "config.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "custom_hooks": []}))


def test_resume_keeps_average_accumulation_and_scheduled_weights(tmp_path):
    options = {
        "ema": 0.9,
        "accumulate": 2,
        "clip_grad": 0.5,
        "amp": "bfloat16",
        "checkpoint_interval": {"iterations": 4},
        "losses.loss_kd.weight": {"type": "kdtasks.core.Linear", "start": 0.9, "end": 0.1},
    }
    whole = Run(small(**options), tmp_path / "whole", quiet=True)
    whole.train()
    hook = [{"type": "small_parts.StopAt", "stage": "distilled", "iteration": 10}]
    with pytest.raises(KeyboardInterrupt):
        Run({**small(**options), "custom_hooks": hook}, tmp_path / "cut", quiet=True).train()
    forget_hooks(tmp_path / "cut")
    cut = Run(small(**options), tmp_path / "cut", quiet=True)
    cut.train(resume=True)
    a, b = weights(whole, "distilled"), weights(cut, "distilled")
    assert same(a["state_dict"], b["state_dict"])
    assert same(a["resume"]["learners"][0], b["resume"]["learners"][0])
    # the average is another thing than the weights
    assert not same(a["state_dict"], a["resume"]["learners"][0])


def kill_and_resume(tmp_path, moment):
    """Kill a run of its own process -9 after ``moment`` seconds of training, then resume it; its
    final weights.
    """
    command = ["train.py", str(SMALL), "--work-dir", str(tmp_path / "run")]
    slow = ["checkpoint_interval={'iterations': 1}", "custom_hooks=[{'type': 'small_parts.Slow'}]"]
    (process,) = start_tool(
        tmp_path / "first", [*command, "--cfg-options", *slow], {"SLOW": "0.02"}
    )
    deadline = time.time() + 120
    while not list((tmp_path / "run").glob("stages/0_teacher/last.pth")) and time.time() < deadline:
        time.sleep(0.005)
    time.sleep(moment)
    process.kill()
    process.join()
    assert process.exitcode == -9
    again = start_tool(
        tmp_path / "again", [*command, "--resume", "--cfg-options", *slow], {"SLOW": "0"}
    )
    finish_tool(tmp_path / "again", again)
    return tmp_path / "run"


def assert_killed_run_equals(undisturbed, work_dir):
    run = Run(small(checkpoint_interval={"iterations": 1}), work_dir, quiet=True)
    for name in ("teacher", "alone", "distilled"):
        assert same(weights(run, name)["state_dict"], weights(undisturbed, name)["state_dict"])
    assert same(
        torch.load(work_dir / "student.pth", weights_only=True),
        weights(undisturbed, "distilled")["state_dict"],
    )


def test_kill_9_and_resume_gives_the_same_bits(undisturbed, tmp_path):
    """A checkpoint is written at every step, so that the kill falls into the writing of one as
    likely as not.
    """
    assert_killed_run_equals(
        undisturbed, kill_and_resume(tmp_path, random.Random().uniform(0, 1.5))
    )


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
def test_kill_9_at_random_moments(undisturbed, tmp_path, attempt):
    assert_killed_run_equals(
        undisturbed, kill_and_resume(tmp_path, random.Random().uniform(0, 1.8))
    )


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gloo_processes_equal_one(number, tmp_path):
    """Losses, gradients (through the weights they lead to), metrics: one process against several on
    the same global batch.
    """
    options = [
        "student.norm=False",
        "teacher.norm=False",
        "student.width=4",
        "schedule=[]",
        "length={'iterations': 8}",
        "data.test_batch_size=33",
    ]
    script = [str(ROOT / "tools" / "train.py"), str(SMALL), "--cfg-options", *options]
    subprocess.run(
        [sys.executable, *script, "--work-dir", str(tmp_path / "one")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            f"{number}",
            "--master-port",
            "0",
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            "localhost:0",
            *script,
            "--work-dir",
            str(tmp_path / "two"),
            "--launcher",
            "pytorch",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("0_teacher", "1_alone", "2_distilled"):
        one, two = (
            torch.load(tmp_path / n / "stages" / stage / "last.pth", weights_only=True)
            for n in ("one", "two")
        )
        for name, value in one["state_dict"].items():
            assert torch.allclose(value, two["state_dict"][name], rtol=1e-4, atol=1e-6), (
                stage,
                name,
            )
    one, two = (
        json.loads((tmp_path / n / "results.json").read_text())["stages"] for n in ("one", "two")
    )
    # 200 images in batches of 33: the last has two, of which two of four processes get none
    for stage, found in one.items():
        assert {k: v for k, v in found.items() if k != "seconds"} == {
            k: v for k, v in two[stage].items() if k != "seconds"
        }
    assert "BatchNorm" not in done.stdout + (tmp_path / "two" / "train.log").read_text()


def test_resume_refuses_another_config_and_says_in_what(undisturbed):
    run = Run(small(losses__loss_kd__weight=0.5), undisturbed.work_dir, quiet=True)
    with pytest.raises(
        ConfigError,
        match=r"another configuration:\s+losses.loss_kd.weight: 0.9 -> "
        r"0.5",
    ):
        run.train(resume=True)
    with pytest.raises(ConfigError, match=r"seed: 0 -> 3"):
        Run(small(), undisturbed.work_dir, seed=3, quiet=True).train(resume=True)


def test_resume_in_an_empty_folder_starts(tmp_path):
    assert (
        "alone"
        in Run(small(), tmp_path / "run", quiet=True).train(resume=True, only=["alone"])["stages"]
    )


def test_full_disk_leaves_the_former_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    checkpoint.save({"resume": {"x": torch.ones(3)}}, path)

    def full(state, file):
        Path(file).write_bytes(b"PK half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left.*the former one there still loads"):
        checkpoint.save({"resume": {"x": torch.zeros(3)}}, path)
    monkeypatch.undo()
    assert torch.equal(checkpoint.load(path)["resume"]["x"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_a_really_full_disk(tmp_path):
    """A small file system of its own, filled up: the checkpoint that was there still loads."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], capture_output=True
    ).returncode:
        pytest.skip("may not mount a file system here")
    try:
        checkpoint.save({"resume": {"x": torch.ones(1000)}}, mount / "last.pth")
        with pytest.raises(OSError, match="still loads"):
            checkpoint.save({"resume": {"x": torch.ones(10**6)}}, mount / "last.pth")
        assert len(checkpoint.load(mount / "last.pth")["resume"]["x"]) == 1000
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_resume_with_an_adapter_in_a_loss(tmp_path):
    """The adapter is drawn by the seed alone, whatever the streams of the process are, and its
    weights come back.
    """
    loss = {"type": "small_parts.BuiltHint", "of": ("student.2", "teacher.2"), "weight": 0.1}
    runs = {}
    for name, stop in (("whole", None), ("between", ("alone", 3)), ("inside", ("distilled", 8))):
        torch.manual_seed(len(name))
        hooks = (
            [{"type": "small_parts.StopAt", "stage": stop[0], "iteration": stop[1]}] if stop else []
        )
        run = Run(small(losses__loss_hint=loss, custom_hooks=hooks), tmp_path / name, quiet=True)
        if stop:
            with pytest.raises(KeyboardInterrupt):
                run.train()
            forget_hooks(tmp_path / name)
            torch.manual_seed(77)
            run = Run(small(losses__loss_hint=loss), tmp_path / name, quiet=True)
        run.train(resume=bool(stop))
        runs[name] = weights(run, "distilled")
    for name in ("between", "inside"):
        assert same(runs[name]["state_dict"], runs["whole"]["state_dict"])
        assert same(runs[name]["resume"]["losses"], runs["whole"]["resume"]["losses"])
    other = Run(small(losses__loss_hint=loss), tmp_path / "seed1", seed=1, quiet=True)
    other.train()
    assert not same(
        weights(other, "distilled")["resume"]["losses"], runs["whole"]["resume"]["losses"]
    )


def test_a_cycle_schedule_resumes(tmp_path):
    """OneCycleLR keeps functions in its state; they are made anew, not saved."""
    schedule = [{"type": "OneCycleLR", "eta_max": 0.2, "total_steps": 18, "by_epoch": False}]
    whole = Run(small(schedule=schedule), tmp_path / "whole", quiet=True)
    whole.train(only=["alone"])
    with pytest.raises(KeyboardInterrupt):
        hooks = [{"type": "small_parts.StopAt", "stage": "alone", "iteration": 8}]
        Run(small(schedule=schedule, custom_hooks=hooks), tmp_path / "cut", quiet=True).train(
            only=["alone"]
        )
    forget_hooks(tmp_path / "cut")
    cut = Run(small(schedule=schedule), tmp_path / "cut", quiet=True)
    cut.train(resume=True, only=["alone"])
    assert same(weights(whole, "alone")["state_dict"], weights(cut, "alone")["state_dict"])


def test_two_processes_with_parameters_that_get_no_gradient(tmp_path):
    """A loss on an inner layer only leaves the head without gradient in the second of two stages;
    DDP is told so.
    """
    hint = {"loss_hint": {"type": "torch.nn.MSELoss", "of": ("student.2", "teacher.2")}}
    plain = {"loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}}
    stages = [
        {"name": "teacher", "model": "teacher", "losses": plain},
        {"name": "alone", "role": "control", "losses": plain},
        {"name": "distilled", "teachers": {"teacher": "teacher"}, "losses": hint},
    ]
    options = [f"stages={stages!r}", "student.width=8", "length={'iterations': 4}"]
    command = ["train.py", str(SMALL), "--launcher", "pytorch", "--work-dir", str(tmp_path / "run")]
    both = start_tool(tmp_path / "said", [*command, "--cfg-options", *options], number=2)
    printed = finish_tool(tmp_path / "said", both)
    assert "distilled" in json.loads((tmp_path / "run" / "results.json").read_text())["stages"]
    said = "note: BatchNorm sees the rows of its own process only: 2 processes do not train as one would"
    # these networks have it
    assert printed.count(said) == 1 and said not in (tmp_path / "said" / "1.out").read_text()
    assert (tmp_path / "run" / "train.log").read_text().count(said.removeprefix("note: ")) == 3
