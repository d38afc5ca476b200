"""A stranger's method: one file and one config outside of the package, and nothing in it has to
know them.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A loss only, with a formula and weights of its own.
METHOD = '''
import torch
from torch import nn


def margin_loss(student, teacher, margin=0.5):
    """The student's best logit stands out as much as the teacher's, up to a margin."""
    def lead(logits):
        first, second = logits.topk(2, dim=1).values.unbind(1)
        return first - second
    return (lead(teacher).detach().clamp(max=margin) - lead(student)).clamp(min=0).mean()


class ScaledMarginLoss(nn.Module):
    """The same, with a scale that learns."""

    def __init__(self, margin: float = 0.5):
        super().__init__()
        self.margin, self.scale = margin, nn.Parameter(torch.ones(()))

    def forward(self, student, teacher):
        return margin_loss(self.scale * student, teacher, self.margin)
'''

# A tensor name of its own: the mean feature, each place weighed by its energy.
DISTILLER = '''
from kdtasks.core import Distiller


class AttendedDistiller(Distiller):
    """Supplies ``attended.student`` and ``attended.teacher``."""

    def names(self, role):
        return [*super().names(role), f"attended.{role}"]

    def outputs(self, role, batch, wanted):
        named = [name for name in wanted if name != f"attended.{role}"]
        found = self.run(role, batch["input"], [*named, f"{role}.features", role])
        if f"attended.{role}" in wanted:
            features = found[f"{role}.features"]
            energy = features.square().mean(1, keepdim=True)
            found[f"attended.{role}"] = (features * energy).mean((2, 3))
        return found
'''

MODELS = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))
"""

CONFIG = """
task = 'kdtasks.classification.trainer'
student = dict(type='outside_models.Net', width=8)
teacher = dict(type='outside_models.Net', width=8)
losses = dict(loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0.5), {loss})
{more}
data = dict(train=dict(type='kdtasks.classification.data.digits', part='student'),
            test=dict(type='kdtasks.classification.data.digits', train=False), batch_size=64)
optimizer = dict(type='torch.optim.SGD', lr=0.05, momentum=0.9)
length = dict(iterations=12)
threads = 1
"""


@pytest.fixture
def outside(tmp_path):
    """A folder of a stranger's, with the method in it."""
    for name, text in (
        ("outside_method", METHOD),
        ("outside_distiller", DISTILLER),
        ("outside_models", MODELS),
    ):
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def train(folder: Path, loss: str, more: str = "", *options: str) -> subprocess.CompletedProcess:
    (folder / "mine.py").write_text(CONFIG.format(loss=loss, more=more))
    command = [sys.executable, "-m", "kdtasks.cli", "train", "mine.py", "--device", "cpu", *options]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"},
    )


def test_a_loss_in_a_file_beside_the_config(outside):
    done = train(
        outside,
        "loss_margin=dict(type='outside_method.ScaledMarginLoss', margin=2.0, of=('student', "
        "'teacher')), loss_plain=dict(type='outside_method.margin_loss', margin=1.0, "
        "of=('student', 'teacher'))",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((outside / "work_dirs/mine/seed0/results.json").read_text())
    # its control ran beside it
    assert list(results["stages"]) == ["teacher", "alone", "distilled"]
    history = json.loads(
        (outside / "work_dirs/mine/seed0/stages/2_distilled/history.json").read_text()
    )
    assert {"loss_cls", "loss_margin", "loss_plain"} <= {name for row in history for name in row}


def test_a_tensor_name_of_its_own_in_a_second_file(outside):
    more = "distiller = dict(type='outside_distiller.AttendedDistiller')"
    loss = "loss_attended=dict(type='torch.nn.MSELoss', of=('attended.student', 'attended.{}'))"
    done = train(outside, loss.format("teacher"), more, "--dry-run")
    assert done.returncode == 0 and "attended.teacher (64, 8)" in done.stdout, done.stderr
    wrong = train(outside, loss.format("taecher"), more, "--dry-run")
    assert wrong.returncode == 1 and "did you mean 'attended.teacher'" in wrong.stderr


def test_a_wrong_argument_of_ones_own_loss_is_named(outside):
    done = train(
        outside,
        "loss_plain=dict(type='outside_method.margin_loss', margn=1.0, of=('student', 'teacher'))",
    )
    assert done.returncode == 1 and "has no argument 'margn'; did you mean 'margin'" in done.stderr
