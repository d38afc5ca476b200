"""Methods of several phases: kill -9 in the middle of each, and --resume goes on to the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# Every run is a fork of one process that has imported all and trained nothing.
SCRIPT = """
import json, os, sys
from pathlib import Path
sys.path[:0] = [{here!r}, {small!r}]
import torch
torch.set_num_threads(1)
from small_runs import small, walk
import kdtasks.engine.report, kdtasks.engine.runner
from kdtasks.engine.run import Run

kdtasks.engine.report.write_report = lambda run: None
root, method, kills = Path({root!r}), {method!r}, {kills!r}
net = {{"type": "small_parts.Net", "width": 6}}
held_out = {{"type": "small_parts.Digits", "first": 500, "count": 40}}
general = "kdtasks.general."
stages = {{
    "ab": {{"type": general + "ab.stages", "student": ["1", "5"], "teacher": ["1", "5"],
            "first": {{"length": {{"iterations": 6}}}}}},
    "rco": {{"type": general + "rco.stages", "interval": 1, "greedy": {{"threshold": 1.02, "held_out": held_out}}}},
    "rco_multi_stage": {{"type": general + "rco.stages", "interval": 1, "multi_stage": True}},
    "takd": {{"type": general + "takd.stages", "assistants": {{"assistant1": {{}}}}}},
    "ban": {{"type": general + "ban.stages", "generations": ["generation1"]}},
}}
config = small(data__train__count=64, data__test__count=40, length={{"iterations": 8}}, val_interval={{"iterations": 4}},
               checkpoint_interval={{"iterations": 2}}, log_interval=2, teacher_training__length=3, schedule=[])
config |= {{"stages": stages[method], "models": {{"assistant1": net, "generation1": net}},
            "custom_hooks": [{{"type": "small_parts.KillAt"}}]}}


def forked(folder, kill, resume):
    pid = os.fork()
    if pid == 0:
        try:
            os.environ["KILL_AT"] = kill
            Run(config, folder, quiet=True).train(resume=resume)
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def found(folder):
    tensors = {{}}
    for path in sorted(folder.glob("stages/*/last.pth")):
        state = torch.load(path, weights_only=True)
        resume = state["resume"]
        told = [t for part in ("learners", "losses", "optimizer") for t in walk(resume[part])]
        tensors[path.parent.name] = [t.tolist() for t in told], resume["history"]
    results = json.loads((folder / "results.json").read_text())["stages"]
    for values in results.values():
        del values["seconds"]
    return tensors, results


assert forked(root / "whole", "", False) == 0
codes = [forked(root / "killed", kill, k > 0) for k, kill in enumerate(kills)]
codes.append(forked(root / "killed", "", True))
whole, killed = found(root / "whole"), found(root / "killed")
print(json.dumps({{"codes": codes, "stages": list(whole[0]), "equal": whole == killed,
                  "routes": whole[1]["distilled"].get("routes")}}))
"""
# where they are killed: in the middle of a stage, and between two checkpoints
KILLS = {
    "ab": ["boundaries:4", "distilled:4"],
    # in the share of the first anchor, and behind the second choice
    "rco": ["teacher:4", "distilled:2", "distilled:6"],
    "rco_multi_stage": ["anchor1:4", "anchor2:4", "distilled:4"],
    "takd": ["assistant1:4", "distilled:4"],
    "ban": ["generation1:4", "distilled:4"],
}


@pytest.mark.parametrize("method", [pytest.param(name, marks=pytest.mark.slow) for name in KILLS])
def test_kill_9_in_each_phase_and_resume_gives_the_same_bits(method, tmp_path):
    script = SCRIPT.format(
        here=str(HERE),
        small=str(HERE / "small"),
        root=str(tmp_path),
        method=method,
        kills=KILLS[method],
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["codes"] == [-9] * len(KILLS[method]) + [0], done.stderr[-3000:]
    assert told["equal"] and len(told["stages"]) >= 3
    assert (told["routes"] is not None) == (method == "rco")
