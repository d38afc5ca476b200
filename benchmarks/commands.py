"""What the commands cost: how soon they answer, a whole run, a comparison with two jobs.

By the wall clock of processes of their own: meant for a quiet machine, and for few rounds.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Line

ROOT = Path(__file__).parents[1]
TRAIN = [sys.executable, "-m", "kdtasks.cli", "train", "classification/default"]
COMPARE = [sys.executable, "-m", "kdtasks.cli", "compare", "classification/default"]

# The stages of configs/classification/default.py in plain PyTorch: the same networks, images,
# batches, steps and tests, and nothing else. Its argument is the number of the teacher's steps.
BY_HAND = """
import sys
import numpy as np, torch, torch.nn.functional as F
from sklearn.datasets import load_digits
from kdtasks.classification.models import digits_cnn, resnet8

torch.set_num_threads(1)
torch.manual_seed(0)
data = load_digits()
images = torch.from_numpy(np.round(data.images * 255 / 16)).float()[:, None] / 255
images, target = (images - 0.3053) / 0.3760, torch.from_numpy(data.target).long()
order = torch.randperm(len(images))
test, rest = order[:539], order[539:]
labelled = torch.cat([rest[1::2][target[rest[1::2]] == c][:5] for c in range(10)])


def shifted(x):
    padded, moves = F.pad(x, (1, 1, 1, 1)), torch.randint(3, (len(x), 2)).tolist()
    return torch.stack([p[:, a:a + 8, b:b + 8] for p, (a, b) in zip(padded, moves)])


def train(model, steps, batch, losses):
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        loss = losses(model, batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % (steps // 10) == 0:
            model.eval()
            with torch.no_grad():
                right = (model(images[test]).argmax(1) == target[test]).float().mean()
            model.train()
    print(f"{100 * right:.2f}")
    return model


def draw(rows, count):
    return rows[torch.randint(len(rows), (count,))]


def hard(model, rows, augment=lambda x: x):
    return F.cross_entropy(model(augment(images[rows])), target[rows])


steps = int(sys.argv[1])
teacher = train(
    resnet8(10, 1), steps, lambda: draw(rest[::2], 64), lambda m, r: hard(m, r, shifted))
train(digits_cnn(10), 800, lambda: labelled, hard)
with torch.no_grad():
    logits = teacher.eval()(images)


def taught(model, rows):
    z = model(images[rows])
    soft = F.kl_div(F.log_softmax(z / 4, 1), F.log_softmax(logits[rows] / 4, 1),
                    reduction="batchmean", log_target=True)
    return 0.1 * F.cross_entropy(z[:50], target[rows[:50]]) + 0.9 * 16 * soft


torch.save(train(digits_cnn(10), 800, lambda: torch.cat([labelled, draw(rest[1::2], 100)]), taught)
           .state_dict(), sys.argv[2])
"""


def seconds(command: list[str], folder: str | Path) -> float:
    """The wall clock of one command in a folder."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def start(o) -> Iterator[Line]:
    """What only informs, against a Python that does nothing; seven times each. A dry run, against
    one that imports torch; three times.
    """
    nothing = [sys.executable, "-c", "pass"]
    for words in ("train --help", "train --list", "list"):
        command = [sys.executable, "-m", "kdtasks.cli", *words.split()]
        extra = [seconds(command, ROOT) - seconds(nothing, ROOT) for _ in range(min(7, o.rounds))]
        yield Line(f"kdtasks {words}, beyond python -c pass", extra, 0.5, "s")
    torch_alone = [sys.executable, "-c", "import torch"]
    dry_run = [*TRAIN, "--device", "cpu", "--dry-run"]
    extra = [seconds(dry_run, ROOT) - seconds(torch_alone, ROOT) for _ in range(min(3, o.rounds))]
    yield Line(
        "kdtasks train classification/default --dry-run, beyond import torch", extra, unit="s"
    )


def whole_run(o) -> Iterator[Line]:
    """The default run, from start to report, against the same stages by hand; three times each."""
    import torch

    shares, ratios, plain = [], [], []
    for _ in range(min(3, o.rounds)):
        with tempfile.TemporaryDirectory() as folder:
            run = seconds([*TRAIN, "--device", "cpu", "--work-dir", "run"], folder)
            ended = time.time()
            stages = Path(folder) / "run" / "stages"
            shares.append((ended - (stages / "2_distilled" / "last.pth").stat().st_mtime) / run)
            state = torch.load(stages / "0_teacher" / "last.pth", weights_only=True)
            steps = str(state["resume"]["iteration"])
            plain.append(seconds([sys.executable, "-c", BY_HAND, steps, "student.pth"], folder))
            ratios.append(run / plain[-1])
    note = f"by hand: {min(plain):.3g} s"
    yield Line("a default run / the same stages by hand", ratios, 1.3, note=note)
    yield Line("its share after the last checkpoint", shares, 0.1)


def compare_jobs(o) -> Iterator[Line]:
    """A comparison of five seeds with two jobs at a time, against one; once each."""
    times = {}
    for jobs in ("1", "2"):
        with tempfile.TemporaryDirectory() as folder:
            seeds = ["--seeds", "0", "1", "2", "3", "4"]
            times[jobs] = seconds([*COMPARE, *seeds, "--device", "cpu", "--jobs", jobs], folder)
    note = f"one job: {times['1']:.3g} s"
    yield Line("compare --jobs 2 / --jobs 1", [times["2"] / times["1"]], 0.6, note=note)
