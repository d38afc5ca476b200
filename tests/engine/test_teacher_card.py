"""What a teacher reaches itself is told before the first step, and what speaks for a mistake."""

import json

import pytest
import torch
from small_runs import same, small, weights
from torch import nn

from kdtasks.classification.doubts import another_order, doubts
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.evaluation import evaluate
from kdtasks.engine.loop import gradient_shares
from kdtasks.engine.report.facts import sentence
from kdtasks.engine.run import Run


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    """A teacher with one answer, so it is worse than any student."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    run = Run(small(), path.parent / "run", quiet=True)
    model = run.experiment.model("teacher")
    nn.init.zeros_(model[-1].weight)
    torch.save(model.state_dict(), path)
    return path


def test_a_teacher_from_a_file_is_scored_once_and_told(teacher_file, tmp_path, capsys):
    config = small(teacher__checkpoint=str(teacher_file))
    run = Run(config, tmp_path / "run", quiet=False)
    results = run.train()
    card = results["stages"]["distilled"]["teachers"]["teacher"]
    experiment = run.experiment
    teacher = experiment.teacher(experiment.final, "teacher", run.files)
    assert card == evaluate(experiment.task, teacher, experiment.test_loader(experiment.final))
    assert json.loads((run.work_dir / "results.json").read_text())["stages"]["distilled"][
        "teachers"
    ] == {"teacher": card}
    out, err = capsys.readouterr()
    told = f"teacher: {card['accuracy']:.2f} % accuracy on the student's test data"
    assert out.count(told) == 1
    doubt = "Look at its normalisation (mean, std), its input_size, the order of its classes"
    assert err.index(doubt) < err.index("alone ")
    # after the control
    alone = results["stages"]["alone"]["accuracy"]
    weak = f"teacher ({card['accuracy']:.2f} %) is worse than the student alone ({alone:.2f} %)"
    assert err.count(weak) == 1 and weak in sentence(run)
    assert weak in (run.work_dir / "report.html").read_text()


def test_a_teacher_of_another_output_is_not_scored(tmp_path):
    config = small(length=1, teacher__checkpoint="own", teacher__num_classes=7, teacher__width=4)
    config["losses"] = {
        "loss_cls": config["losses"]["loss_cls"],
        "loss_hint": {"type": "torch.nn.MSELoss", "of": ("student.0", "teacher.0")},
        "logits": {"type": "small_parts.mean", "of": ("teacher",)},
    }
    run = Run(config, tmp_path / "run", quiet=True)
    assert "teachers" not in run.train(only=["distilled"])["stages"]["distilled"]


# ------------------------------------------------------------------------------ classification
class Answers(nn.Module):
    """Gives each image, whose value is its class, the answer that a table says."""

    def __init__(self, table, outputs=None):
        super().__init__()
        self.table, self.outputs = torch.tensor(table), outputs or len(table)

    def forward(self, image):
        return nn.functional.one_hot(self.table[image.long()], self.outputs).float()


class Set:
    def __init__(self, target, classes):
        self.target, self.classes = torch.tensor(target), classes


class Batches:
    def __init__(self, target, classes):
        self.dataset = Set(target, classes)

    def __iter__(self):
        for part in self.dataset.target.split(5):
            yield {"input": part.clamp(min=0), "target": part}


TARGET = [0, 0, 1, 1, 2, 2, 3, 3, 3, -100]


@pytest.mark.parametrize(
    "table, said",
    [
        ([0, 1, 2, 3], None),
        ([0, 1, 3, 2], None),  # 4 of 9 right, above the largest class's 3 of 9
        (
            [1, 2, 3, 0],
            "below chance (25.00 %); but its classes stand in another order: ant is its",
        ),
        ([3, 3, 3, 3], "not above that of a constant answer (33.33 %)"),
        ([2, 2, 2, 2], "its accuracy of 22.22 % is below chance (25.00 %)"),
    ],
)
def test_an_accuracy_that_needs_no_eyes(table, said):
    model, loader = Answers(table), Batches(TARGET, ["ant", "bee", "cat", "dog"])
    right = sum(table[t] == t for t in TARGET if t >= 0)
    found = doubts({"accuracy": 100 * right / 9}, model, loader)
    assert (found == []) if said is None else (len(found) == 1 and said in found[0])
    if table == [1, 2, 3, 0]:
        assert "ant is its number 1, bee is its number 2, cat is its number 3 …" in found[0]
    elif found:
        assert "another order" not in found[0]


def test_an_order_is_one_only_where_most_classes_have_an_answer_of_their_own():
    assert another_order(torch.tensor([[9, 0, 1], [0, 8, 2], [0, 3, 7]])) == {}
    assert another_order(torch.tensor([[1, 9, 0], [0, 2, 8], [7, 0, 3]])) == {0: 1, 1: 2, 2: 0}
    assert another_order(torch.tensor([[4, 3, 3], [3, 3, 4], [3, 4, 3]])) == {}
    assert another_order(torch.zeros(3, 3, dtype=torch.int64)) == {}


# ------------------------------------------------------------------------------ shares of the gradient
def test_shares_are_those_of_a_slow_loop():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(),
        torch.randn(5, 3).double(),
    )
    frozen = model[0].bias.requires_grad_(False)
    out = model(x)
    losses = {
        "loss_a": out.square().mean(),
        "loss_b": 3 * out.abs().sum(),
        "closs": 0 * out.sum(),
        "note": out.sum(),
        "loss_still": torch.ones(()),
    }
    shares = gradient_shares(losses, model)
    norms = {}
    for name in ("loss_a", "loss_b", "closs"):
        total = 0.0
        for parameter in (model[0].weight, model[2].weight, model[2].bias):
            for value in torch.autograd.grad(losses[name], parameter, retain_graph=True)[
                0
            ].flatten():
                total += float(value) ** 2
        norms[name] = total**0.5
    want = {
        n: norms[k] / sum(norms.values()) for n, k in (("share_a", "loss_a"), ("share_b", "loss_b"))
    }
    assert shares.keys() == {"share_a", "share_b", "share_c"} and float(shares["share_c"]) == 0
    for name, value in want.items():
        assert float(shares[name]) == pytest.approx(value, rel=1e-5)
    assert frozen.grad is None and all(p.grad is None for p in model.parameters())
    assert gradient_shares({"loss_still": torch.ones(())}, model) == {}
    # what is not finite is not hidden
    for factor in (float("inf"), float("nan")):
        broken = gradient_shares({"loss_a": factor * out.sum(), "loss_b": out.sum()}, model)
        assert all(share.isnan() for share in broken.values())


def test_a_card_and_shares_are_told_and_change_nothing(teacher_file, tmp_path):
    runs = []
    for on in (True, False):
        options = {"teacher__checkpoint": str(teacher_file), "length": 1, "log_interval": 2}
        config = small(**options, diagnose=on, teacher_card=on)
        run = Run(config, tmp_path / str(on), quiet=True)
        results = run.train(only=["distilled"])
        assert ("teachers" in results["stages"]["distilled"]) == on
        history = json.loads((run.folder(run.experiment.final) / "history.json").read_text())
        found = [entry for entry in history if "share_kd" in entry]
        assert bool(found) == on
        for entry in found:
            total = sum(value for name, value in entry.items() if name.startswith("share_"))
            assert total == pytest.approx(1, abs=1e-5)
        runs.append(weights(run, "distilled")["state_dict"])
    assert same(*runs)
    with pytest.raises(ConfigError, match="diagnose and compile do not go together"):
        small(diagnose=True, compile=True)
