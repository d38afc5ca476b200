"""Told to stop, a run saves after the step in hand and says so; going on leads to the same bits."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_runs import ROOT, SMALL, same, small, walk, weights

from kdtasks.engine import cli
from kdtasks.engine.loader import Loader
from kdtasks.engine.processes import ReaderError
from kdtasks.engine.run import Run
from tests.ranks import finish_tool, start_tool

OPTIONS = ["custom_hooks=[{'type': 'small_parts.SignalAt'}]", "checkpoint_interval=9"]


def config(**more):
    hooks = [{"type": "small_parts.SignalAt"}]
    return small(**{"custom_hooks": hooks, "checkpoint_interval": 9, **more})


@pytest.fixture(autouse=True)
def _listens_to_ctrl_c():
    """Also where the tests run in the background of a shell, which has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stops, whose checkpoints are those of its stages' ends."""
    run = Run(config(), tmp_path_factory.mktemp("signals") / "whole", quiet=True)
    run.train()
    return run


def assert_equal(run, whole):
    for name in ("teacher", "alone", "distilled"):
        ours, theirs = weights(run, name), weights(whole, name)
        assert same(ours["state_dict"], theirs["state_dict"])
        assert ours["resume"]["history"] == theirs["resume"]["history"]
        pairs = zip(walk(ours["resume"]["optimizer"]), walk(theirs["resume"]["optimizer"]))
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "number, status, name", [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_command_saves_after_the_step_and_resumes(
    whole, tmp_path, monkeypatch, capfd, number, status, name
):
    """In the middle of an interval of the log; and in the last step of a stage."""
    command = [str(SMALL), "--device", "cpu", "--work-dir", str(tmp_path / "run")]
    command += ["--cfg-options", *OPTIONS]
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    for stage, iteration in (("teacher", 17), ("distilled", 6)):
        monkeypatch.setenv("SIGNAL_AT", f"{stage}:{iteration}:{int(number)}")
        with pytest.raises(SystemExit) as ended:
            cli.train([*command, "--resume"])
        assert ended.value.code == status
        said = capfd.readouterr().err
        assert said.splitlines()[-1] == (
            f"stopped by {name}: stage {stage!r} is saved after {iteration + 1} of 18 steps; "
            "the same command with --resume goes on from there"
        )
        assert ("Ctrl-C once more stops at once" in said) == (number == signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    monkeypatch.delenv("SIGNAL_AT")
    cli.train([*command, "--resume"])
    assert_equal(Run(config(), tmp_path / "run", quiet=True), whole)


def test_twice_stops_at_once_and_breaks_nothing(whole, tmp_path, monkeypatch, capfd):
    command = [str(SMALL), "--device", "cpu", "--work-dir", str(tmp_path / "run")]
    command += ["--cfg-options", *OPTIONS]
    monkeypatch.setenv("SIGNAL_AT", "alone:5:2:2")
    with pytest.raises(SystemExit) as ended:
        cli.train(command)
    assert ended.value.code == 130
    assert capfd.readouterr().err.splitlines()[-1] == (
        "stopped; the same command with --resume goes on from the last checkpoint"
    )
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert not (tmp_path / "run" / "stages" / "1_alone" / "last.pth").exists()
    monkeypatch.delenv("SIGNAL_AT")
    run = Run(config(), tmp_path / "run", quiet=True)
    run.train(resume=True)
    assert_equal(run, whole)


def test_one_of_two_processes_is_told_and_both_save_after_the_same_step(tmp_path):
    """Test data of 201 images in batches of 33: the ranks have uneven last ones."""
    data = ["student.norm=False", "teacher.norm=False", "student.width=4", "data.test.count=201"]
    data += ["data.test_batch_size=33", "accumulate=2"]
    command = ["train.py", str(SMALL), "--launcher", "pytorch", "--device", "cpu"]
    command += ["--cfg-options", *OPTIONS, *data]

    def started(name, *further, **environment):
        folder = ["--work-dir", str(tmp_path / name.split("_")[0])]
        return start_tool(
            tmp_path / f"said_{name}", [*command, *folder, *further], environment, number=2
        )

    both = started("cut", SIGNAL_AT="distilled:6:15", SIGNAL_RANK="1"), started("whole")
    finish_tool(tmp_path / "said_whole", both[1])
    for process in both[0]:
        process.join(60)
        assert process.exitcode == 143
    said = [(tmp_path / "said_cut" / f"{rank}.err").read_text() for rank in range(2)]
    assert "stage 'distilled' is saved after 8 of 18 steps; the same command with" in said[0]
    assert "stopped" not in said[1] and "Traceback" not in said[0] + said[1]
    finish_tool(tmp_path / "said_cut_on", started("cut_on", "--resume"))
    cut, whole = (
        torch.load(tmp_path / name / "stages" / "2_distilled" / "last.pth", weights_only=True)
        for name in ("cut", "whole")
    )
    assert same(cut["state_dict"], whole["state_dict"])
    assert cut["resume"]["history"] == whole["resume"]["history"]


def test_a_process_that_reads_the_data_dies(tmp_path, monkeypatch):
    data = {"type": "small_parts.Fragile", "first": 0, "count": 96}
    options = {"data.train": data, "data.workers": 1, "length": {"iterations": 12}}
    made = small(**options, checkpoint_interval={"iterations": 2})
    whole, cut = (Run(made, tmp_path / name, quiet=True) for name in ("whole", "cut"))
    whole.train(only=["alone"])
    monkeypatch.setenv("DIES_WHEN", str(tmp_path / "cut" / "stages" / "1_alone" / "last.pth"))
    with pytest.raises(
        ReaderError,
        match=r"a process that reads the data \(pid \d+\) (is killed by signal: Killed|exited "
        r"unexpectedly)\. Often .* fewer data.workers .* --resume goes on from it",
    ):
        cut.train(only=["alone"])
    monkeypatch.delenv("DIES_WHEN")
    cut.train(resume=True, only=["alone"])
    assert same(weights(cut, "alone")["state_dict"], weights(whole, "alone")["state_dict"])


def test_a_process_that_reads_the_data_ends_with_its_parent_only():
    """A scheduler's SIGTERM and a terminal's Ctrl-C reach it, too."""
    loader = Loader(Digits(), 1, shuffle=False, workers=1)
    batches = loader.epoch(0)
    found = [next(batches)]
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGINT):
        subprocess.run(["kill", f"-{int(number)}", f"{worker.pid}"], check=True)
    time.sleep(0.2)
    found += list(batches)
    assert len(found) == 8 and worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


class Digits:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.zeros(1), index


COMMAND = [sys.executable, "-m", "kdtasks.cli"]


def checkpoints(folder):
    """``{file: (iterations, hash of the weights)}`` of all stages of all runs below."""
    found = {}
    for path in sorted(folder.rglob("last.pth")):
        state = torch.load(path, weights_only=True)
        weights = b"".join(t.numpy().tobytes() for t in state["state_dict"].values())
        digest = hashlib.sha256(weights).hexdigest()
        found[str(path.relative_to(folder))] = state["resume"]["iteration"], digest
    return found


@pytest.mark.slow
def test_a_comparison_of_two_jobs_hands_it_on(tmp_path):
    """Two seeds side by side; their slow steps are in the middle of stages when the signal comes."""
    slow = ["custom_hooks=[{'type': 'small_parts.Slow'}]", "checkpoint_interval=9"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{SMALL.parent}", "SLOW": "0"}

    def command(name):
        options = ["--jobs", "2", "--seeds", "0", "1", "--teacher-per-seed", "--device", "cpu"]
        folder = ["--work-dir", str(tmp_path / name)]
        return [*COMMAND, "compare", str(SMALL), *options, *folder, "--cfg-options", *slow]

    cut = subprocess.Popen(
        command("cut"), env={**environment, "SLOW": "0.5"}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.time() + 200
    while time.time() < deadline:
        logs = [path.read_text() for path in (tmp_path / "cut").rglob("train.log")]
        if sum("4/18" in log for log in logs) == 2:
            break
        time.sleep(0.1)
    cut.send_signal(signal.SIGTERM)
    said = cut.communicate(timeout=60)[1]
    assert cut.returncode == 143 and "Traceback" not in said, said
    assert said.splitlines()[-1] == "stopped; the same command goes on from the last checkpoint"
    reached = [iteration for iteration, _ in checkpoints(tmp_path / "cut").values()]
    assert len(reached) == 2 and all(4 <= iteration < 18 for iteration in reached)
    for name in ("cut", "whole"):
        subprocess.run(command(name), env=environment, check=True, capture_output=True)
    assert checkpoints(tmp_path / "cut") == checkpoints(tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_starts_again_what_was_killed(tmp_path):
    """Without --resume; a process that is gone is not looked for."""
    options = ["custom_hooks=[{'type': 'small_parts.SignalAt'}]", "length={'iterations': 4}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--max-restarts", "1"]
    command += [str(ROOT / "tools" / "train.py"), str(SMALL), "--launcher", "pytorch"]
    command += ["--device", "cpu", "--work-dir", str(tmp_path / "run"), "--cfg-options", *options]
    done = subprocess.run(
        command,
        env={**os.environ, "SIGNAL_AT": "distilled:2:9", "SIGNAL_RANK": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "distilled" in json.loads((tmp_path / "run" / "results.json").read_text())["stages"]
    assert (tmp_path / "run" / "train.log").read_text().count("2 process(es)") == 4
    assert not (tmp_path / "run.1").exists()


@pytest.mark.slow
def test_torchruns_agent_is_told_to_stop_and_both_ranks_save(tmp_path):
    """As a scheduler does it: SIGTERM reaches torchrun alone, which hands it on."""
    options = ["student.norm=False", "teacher.norm=False", "student.width=4"]
    options += ["custom_hooks=[{'type': 'small_parts.Slow'}]", "checkpoint_interval=9"]

    def started(name, slow, *further):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        command += [str(ROOT / "tools" / "train.py"), str(SMALL), "--launcher", "pytorch"]
        command += ["--device", "cpu", "--work-dir", str(tmp_path / name), *further]
        environment = {**os.environ, "SLOW": slow}
        return subprocess.Popen(
            [*command, "--cfg-options", *options],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    agent, log = started("cut", "0.5"), tmp_path / "cut" / "train.log"
    deadline = time.time() + 120
    while time.time() < deadline and not (log.exists() and "4/18" in log.read_text()):
        time.sleep(0.1)
    agent.send_signal(signal.SIGTERM)
    said = agent.communicate(timeout=60)[1]
    assert agent.returncode != 0
    assert said.count("is saved after") == 1 and "the same command with --resume goes on" in said
    (reached,) = checkpoints(tmp_path / "cut").values()
    assert 4 <= reached[0] < 18 and f"is saved after {reached[0]} of 18 steps" in said
    for name, further in (("cut", ["--resume"]), ("whole", [])):
        done = started(name, "0", *further)
        said = done.communicate(timeout=200)[1]
        assert done.returncode == 0, said
    assert checkpoints(tmp_path / "cut") == checkpoints(tmp_path / "whole")


@pytest.mark.slow
def test_four_ranks_of_which_one_is_killed_go_on_when_they_are_started_again(tmp_path):
    """As torchrun starts them. 203 test images in batches of 33: ranks have uneven last ones."""
    options = ["student.norm=False", "teacher.norm=False", "student.width=4", "schedule=[]"]
    options += ["custom_hooks=[{'type': 'small_parts.SignalAt'}]", "data.test_batch_size=33"]
    options += ["checkpoint_interval={'iterations': 2}", "data.test.count=203"]
    command = ["train.py", str(SMALL), "--launcher", "pytorch", "--device", "cpu"]

    def started(name, said, **environment):
        folder = ["--work-dir", str(tmp_path / name)]
        return start_tool(
            tmp_path / said, [*command, *folder, "--cfg-options", *options], environment, number=4
        )

    killed = {"SIGNAL_AT": "distilled:7:9", "SIGNAL_RANK": "2"}
    first = started("cut", "first", **killed)
    for process in first:
        process.join(100)
    assert [process.exitcode for process in first] == [1, 1, -9, 1]
    said = [(tmp_path / "first" / f"{rank}.err").read_text() for rank in (0, 1, 3)]
    assert all("another process of this run has ended" in text for text in said)
    assert not any("Traceback" in text for text in said)
    again = started("cut", "second", TORCHELASTIC_RESTART_COUNT="1", **killed)
    finish_tool(tmp_path / "second", again)
    finish_tool(tmp_path / "only", started("whole", "only"))
    assert checkpoints(tmp_path / "cut") == checkpoints(tmp_path / "whole")
    found = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("cut", "whole")]
    for results in found:
        for values in results["stages"].values():
            del values["seconds"]
    assert found[0]["stages"] == found[1]["stages"]
