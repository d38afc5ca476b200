"""Every config builds and takes two steps, without its data; its header says how to run it."""

from pathlib import Path

import pytest
import torch

from kdtasks.engine import config as configs
from kdtasks.engine.dry_run import dry_run
from kdtasks.engine.run import Run

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.py") if "_base_" not in p.parts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_builds_and_steps(path, tmp_path):
    threads = torch.get_num_threads()
    try:
        run = Run(configs.load(path), tmp_path, device="cpu")
        rows = dry_run(run)
    finally:
        torch.set_num_threads(threads)
    assert [row["stage"] for row in rows] == [stage.name for stage in run.stages]
    assert all(row["parameters"] > 0 for row in rows) and rows[-1]["teacher_parameters"] > rows[-1]["parameters"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_opens_with_its_purpose_and_its_command(path):
    lines = path.read_text().splitlines()
    assert "arXiv" in lines[0] and lines[1] == f"# Run:     python tools/train.py {path.relative_to(ROOT)}"
    assert lines[2].startswith("# Expect:  ")
