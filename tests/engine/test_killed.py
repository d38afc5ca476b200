"""A kill at any write of a run, before, inside or after it: --resume goes on to the same bits, and
so does a plain start of a run that had not begun.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# Every run is a fork of one process that has imported all and trained nothing: a run costs what its
# steps cost.
SCRIPT = """
import hashlib, json, os, sys
from pathlib import Path
sys.path[:0] = [{here!r}, {here!r} + "/small"]
import torch
torch.set_num_threads(1)
from small_runs import small
import kdtasks.core.cache, kdtasks.core.files, kdtasks.engine.report, kdtasks.engine.runner
import small_parts  # reports are written, and not drawn
import jinja2, matplotlib.pyplot, kdtasks.classification.pictures, kdtasks.classification.trainer, kdtasks.general
from kdtasks.engine.run import Run

root, every = Path({root!r}), {every!r}
losses = {{"loss_cls": {{"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}},
           "loss_kd": {{"type": "kdtasks.general.KDLoss", "of": ("student", "teacher")}}}}
config = small(length={{"iterations": 1}}, checkpoint_interval={{"iterations": 1}}, losses=losses, schedule=[], cache={{"views": 1}},
               stages=[{{"name": "teacher", "model": "teacher", "losses": {{"loss_cls": losses["loss_cls"]}}}},
                       {{"name": "distilled", "teachers": {{"teacher": "teacher"}}, "keep": []}}])
replace, rename, made = os.replace, os.rename, 0


def killing(real, at, moment):
    def call(source, target, **options):
        global made
        made += 1
        if made == at and moment == "inside":
            if Path(source).is_file():                       # half of it is on the disk
                os.truncate(source, os.path.getsize(source) // 2)
            os._exit(9)
        real(source, target, **options)
        if made == at and moment == "after":
            os._exit(9)
    return call


def forked(folder, resume, at=0, moment=""):
    pid = os.fork()
    if pid == 0:
        try:
            os.replace, os.rename = killing(replace, at, moment), killing(rename, at, moment)
            Run(config, folder, quiet=True).train(resume=resume)
            os._exit(100 + made if not at else 1)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def found(folder):
    if not (folder / "results.json").exists():
        return "nothing"
    weights = torch.load(folder / "student.pth", weights_only=True)
    text = (folder / "results.json").read_text().split('"stages"')[1]
    metrics = [line for line in text.splitlines() if "accuracy" in line]
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.parent.parent.name != "cache")
    history = [p.read_text() for p in sorted(folder.glob("stages/*/history.json"))]
    return [hashlib.sha256(b"".join(t.numpy().tobytes() for t in weights.values())).hexdigest(), metrics, names, history]


writes = forked(root / "whole", False) - 100
told = {{"writes": writes, "whole": found(root / "whole"), "runs": []}}
for at in [at for at in range(1, writes + 1) if every or at < 4 or at > writes - 3 or at % 3 == 0]:
    for moment in ("inside", "after") if at < 4 or at > writes - 3 or every else ("inside",):
        folder = root / f"{{at}}_{{moment}}"
        killed = forked(folder, False, at, moment)
        resumed = forked(folder, at % 2 == 1 or at > 2)        # a plain start, too, of what has not begun
        told["runs"].append([at, moment, killed, resumed, found(folder)])
        if found(folder) == told["whole"]:
            __import__("shutil").rmtree(folder)
print(json.dumps(told))
"""


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_kill_at_any_write(every, tmp_path):
    """By default the first and last writes and every third between; all of them are slow."""
    script = SCRIPT.format(here=str(HERE), root=str(tmp_path), every=every)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    # config.json … report.html, and the cache's folder
    assert told["writes"] >= 15, told
    for at, moment, killed, resumed, found in told["runs"]:
        assert killed == 9, (at, moment, killed)
        assert resumed >= 100, (at, moment, done.stderr[-2000:])
        assert found == told["whole"], (at, moment)
