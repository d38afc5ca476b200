"""Metric learning through the engine: a whole small run on real digits, its report, its resume, and
what the engine asks.
"""

import pytest
import torch
from torch import nn

from kdtasks.core.weights import load_weights
from kdtasks.engine import config as configs
from kdtasks.engine.dry_run import dry_run
from kdtasks.engine.loader import Loader
from kdtasks.engine.preparation import preparation
from kdtasks.engine.run import Run
from kdtasks.metric_learning import data, trainer
from kdtasks.metric_learning.retrieval import recall_and_map

FIGURES = {"recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "map_at_r", "nmi"}
DIGITS = {"type": "kdtasks.metric_learning.data.digits"}
EMBEDDER = {
    "type": "kdtasks.metric_learning.models.embedder",
    "backbone": "kdtasks.classification.models.digits_cnn",
    "in_channels": 1,
}


def config(**changes):
    full = {
        "task": "kdtasks.metric_learning.trainer",
        "student": {**EMBEDDER, "width": 4, "dim": 6, "normalize": False},
        "teacher": {**EMBEDDER, "width": 8, "dim": 6},
        "losses": {
            "loss_triplet": {
                "type": "kdtasks.metric_learning.plugin.PMLLoss",
                "of": ("student", "target"),
                "weight": 0.5,
                "loss": {"type": "pytorch_metric_learning.losses.TripletMarginLoss", "margin": 0.2},
                "miner": {"type": "pytorch_metric_learning.miners.DistanceWeightedMiner"},
            },
            "loss_match": {"type": "torch.nn.MSELoss", "of": ("student", "teacher"), "weight": 5.0},
        },
        "optimizer": {"type": "torch.optim.Adam", "lr": 0.003},
        "length": {"iterations": 12},
        "checkpoint_interval": {"iterations": 5},
        "data": {
            "train": {**DIGITS, "augment": {"crop": 1}},
            "test": {**DIGITS, "train": False},
            "batch_size": 30,
            "per_class": 6,
        },
        "log_interval": 4,
    }
    return configs.complete({**full, **changes})


def state(run, stage):
    return torch.load(
        run.folder(next(s for s in run.experiment.stages if s.name == stage)) / "last.pth",
        weights_only=True,
    )


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer, "pictures", lambda run: [])


def test_a_whole_run(tmp_path, drawn_report):
    run = Run(config(length={"iterations": 40}), tmp_path / "run", device="cpu", quiet=True)
    batch = next(iter(run.experiment.train_loader(run.experiment.stages[0])))
    assert batch["target"].view(5, 6).unique(dim=1).shape == (5, 1)
    results = run.train()
    assert (
        list(results["stages"]) == ["teacher", "alone", "distilled"]
        and results["primary"] == "recall_at_1"
    )
    assert {name for name in results["stages"]["distilled"] if name != "seconds"} == FIGURES
    untrained = trainer.evaluate(
        run.experiment.model("teacher").eval(),
        run.experiment.test_loader(run.experiment.stages[-1]),
    )
    assert results["stages"]["teacher"]["map_at_r"] > untrained["map_at_r"]
    plain = run.experiment.model("student")
    load_weights(plain, tmp_path / "run" / "student.pth")
    again = trainer.evaluate(plain.eval(), run.experiment.test_loader(run.experiment.stages[-1]))
    assert {name: results["stages"]["distilled"][name] for name in FIGURES} == pytest.approx(again)
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/") >= 5
    titles = [title for title, _ in trainer.pictures(run)]
    assert (
        "fixed" in titles[0]
        and "Map" in titles[1]
        and "Agreement with the ranking of the teacher" in titles[2]
    )


def test_resume_equals_no_stop_in_the_middle_of_an_epoch(tmp_path, no_pictures):
    whole, stopped = (
        Run(config(), tmp_path / name, device="cpu", quiet=True) for name in ("whole", "stopped")
    )
    whole.train()

    class Stop(Exception):
        pass

    from kdtasks.engine.runner import StageRunner

    save, count = StageRunner.save_now, []

    def save_and_stop(self):
        save(self)
        count.append(1)
        # after 5 or 10 of the 12 steps of the last stage
        if len(count) == 7:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRunner, "save_now", save_and_stop)
        with pytest.raises(Stop):
            stopped.train()
    assert "alone" in stopped.done and "distilled" not in stopped.done
    again = Run(config(), tmp_path / "stopped", device="cpu", quiet=True)
    again.train(resume=True)
    one, two = (state(run, "distilled")["state_dict"] for run in (whole, again))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_embeddings_in_the_data_need_no_teacher_and_the_control_does_not_see_them(tmp_path):
    first = Run(config(), tmp_path / "first", device="cpu", quiet=True)
    first.train(only=["teacher"])
    teacher = first.trained("teacher")
    train = data.digits()
    kept = tmp_path / "teacher.pt"
    torch.save(trainer.embeddings_of(teacher, Loader(train, 100, shuffle=False))[0], kept)
    full = config(
        data={
            "train": {
                "type": "kdtasks.metric_learning.data.with_teacher",
                "embeddings": str(kept),
                "dataset": DIGITS,
            },
            "test": {**DIGITS, "train": False},
            "batch_size": 30,
            "per_class": 6,
        }
    )
    full["teachers"]["teacher"]["checkpoint"] = str(
        first.folder(first.experiment.stages[0]) / "last.pth"
    )
    run = Run(full, tmp_path / "second", device="cpu", quiet=True)
    assert [stage.name for stage in run.experiment.stages] == ["alone", "distilled"]
    distiller = run.experiment.distiller(run.experiment.stages[-1], run.files)
    calls = []
    distiller.teachers["teacher"].model.register_forward_hook(lambda *args: calls.append(1))
    batch = next(iter(run.experiment.train_loader(run.experiment.stages[-1])))
    distiller.build(batch)
    calls.clear()
    losses = distiller(batch)
    assert not calls
    without = distiller({name: value for name, value in batch.items() if name != "teacher"})
    assert calls and torch.allclose(losses["loss_match"], without["loss_match"], rtol=1e-4)
    assert set(run.train()["stages"]) == {"alone", "distilled"}
    assert len(trainer.pictures(run)) == 3
    assert trainer.example(full, 6)["teacher"].shape == (6, 6)


def test_the_cache_keeps_the_teachers_embeddings(tmp_path, no_pictures):
    run = Run(config(cache={"views": 2}), tmp_path, device="cpu", quiet=True)
    run.train(only=["teacher"])
    stage = run.experiment.stages[-1]
    distiller, loader = (
        run.experiment.distiller(stage, run.files),
        run.experiment.train_loader(stage),
    )
    distiller.build(next(iter(loader)))
    prepare, teacher = (
        preparation(run.experiment, stage, distiller, run.files, next(iter(loader)), {}),
        run.trained("teacher"),
    )
    for epoch in range(3):
        batch = next(iter(loader.epoch(epoch)))
        kept, live = prepare(batch)["teacher"].float(), teacher(batch["input"])
        assert torch.allclose(kept, live, atol=2e-3) and (kept.roll(1, 0) - live).abs().max() > 0.02


def test_evaluate_is_of_all_labelled_samples_in_any_batches(monkeypatch):
    class Pixels(nn.Module):
        def forward(self, x):
            return x.flatten(1)

    digits = data.digits(train=False)
    rows = digits.batch(torch.arange(714), torch.zeros(714, dtype=torch.int64), 0)["input"].flatten(
        1
    )
    for size in (50, 714):
        found = trainer.evaluate(Pixels(), Loader(digits, size, shuffle=False))
        assert (
            set(found) == FIGURES
            and found["recall_at_1"] == recall_and_map(rows, digits.target)["recall_at_1"]
        )
        assert (
            95 < found["recall_at_1"] <= found["recall_at_2"] <= found["recall_at_8"] <= 100
            and 0 < found["nmi"] < 100
        )
    # k-means of SOP's 11,316 would take minutes
    monkeypatch.setattr(trainer, "NMI_CLASSES", 3)
    assert (
        trainer.evaluate(Pixels(), Loader(digits, 714, shuffle=False)).items()
        == {k: found[k] for k in FIGURES - {"nmi"}}.items()
    )
    digits.target[300:] = -100
    fewer = trainer.evaluate(Pixels(), Loader(digits, 50, shuffle=False))
    assert fewer["map_at_r"] == pytest.approx(
        recall_and_map(rows[:300], digits.target[:300])["map_at_r"]
    )
    digits.target[:] = -100
    with pytest.raises(ValueError, match="no class of the 0 samples has two"):
        trainer.evaluate(Pixels(), Loader(digits, 50, shuffle=False))


def test_an_embedder_that_knows_the_class_has_hundred_of_everything():
    class Oracle(nn.Module):
        def forward(self, x):
            return (
                nn.functional.one_hot(x[:, 0, 0, 0].long(), 4).float()
                + torch.linspace(0, 1e-3, len(x))[:, None]
            )

    class Labels:
        target = torch.arange(40) % 4

        def __len__(self):
            return 40

        def batch(self, index, view, seed):
            return {
                "input": self.target[index].float().view(-1, 1, 1, 1),
                "target": self.target[index],
            }

    assert trainer.evaluate(Oracle(), Loader(Labels(), 16, shuffle=False)) == pytest.approx(
        dict.fromkeys(FIGURES, 100)
    )


def test_dry_run_and_example():
    rows = dry_run(Run(config(), "unused", device="cpu").experiment)
    assert [row["stage"] for row in rows] == ["teacher", "alone", "distilled"]
    assert rows[-1]["shapes"]["student"] == (30, 6) and rows[-1]["shapes"]["teacher"] == (30, 6)
    batch = trainer.example(config(), 30)
    assert (
        batch["input"].shape == (30, 1, 8, 8)
        and (batch["target"].bincount() == 6).all()
        and "teacher" not in batch
    )
    with_rows = {"data": {"train": {**DIGITS, "embeddings": [1.0, 2.0]}}}
    with pytest.raises(ValueError, match=r"got embeddings of shape \(2,\)"):
        trainer.example(with_rows, 4)
    files = {
        "data": {
            "train": {"type": "kdtasks.metric_learning.data.pml_set", "name": "CUB", "size": 96}
        }
    }
    assert trainer.example(files, 4)["input"].shape == (4, 3, 96, 96)


PML = "kdtasks.metric_learning.plugin.PMLLoss"


def test_a_memory_and_centres_of_a_third_party_loss_resume_to_the_same_bits(tmp_path):
    """The memory is in buffers, how far it is filled in attributes; the centres are parameters that
    train with the student.
    """
    memory = {
        "type": "pytorch_metric_learning.losses.CrossBatchMemory",
        "embedding_size": 6,
        "memory_size": 70,
        "loss": {"type": "pytorch_metric_learning.losses.ContrastiveLoss"},
    }
    centres = {
        "type": "pytorch_metric_learning.losses.SoftTripleLoss",
        "num_classes": 10,
        "embedding_size": 6,
    }
    losses = {
        "loss_memory": {"type": PML, "loss": memory, "of": ("student", "target")},
        "loss_centres": {"type": PML, "loss": centres, "of": ("student", "target")},
    }
    options = {
        "losses": losses,
        "length": {"iterations": 6},
        "checkpoint_interval": {"iterations": 2},
    }
    whole, stopped, again = (
        Run(config(**options), tmp_path / name, device="cpu", quiet=True)
        for name in ("whole", "cut", "cut")
    )
    whole.train(only=["alone"])

    from kdtasks.engine.runner import StageRunner

    save = StageRunner.save_now

    def save_and_stop(self):
        save(self)
        # after 2 steps: the memory is not full yet
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRunner, "save_now", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            stopped.train(only=["alone"])
    assert state(stopped, "alone")["resume"]["iteration"] == 2
    again.train(resume=True, only=["alone"])
    for part in ("student", "losses"):
        one, two = (
            {"student": found["state_dict"], "losses": found["resume"]["losses"]}[part]
            for found in (state(run, "alone") for run in (whole, again))
        )
        assert (
            one
            and one.keys() == two.keys()
            and all(torch.equal(one[name], two[name]) for name in one)
        )
    kept = state(again, "alone")["resume"]
    # full by now
    assert kept["losses"]["loss_memory.loss.embedding_memory"].any(1).all()
    assert any("queue_idx" in found for found in kept["attributes"][0].values())


def test_a_recall_that_random_embeddings_reach_is_doubted():
    from types import SimpleNamespace

    target = [0, 0, 0, 1, 1, 2, -100]
    loader = SimpleNamespace(dataset=SimpleNamespace(target=torch.tensor(target)))
    known = [t for t in target if t >= 0]
    # over queries that have another sample of their class, a random other sample
    hits = [
        sum(known[j] == known[i] for j in range(6) if j != i) / 5
        for i in range(6)
        if known.count(known[i]) > 1
    ]
    chance = 100 * sum(hits) / len(hits)
    assert trainer.doubts({"recall_at_1": chance + 0.01}, None, loader) == []
    (said,) = trainer.doubts({"recall_at_1": chance - 0.01}, None, loader)
    assert f"not above chance ({chance:.2f} %)" in said
    assert trainer.is_comparable(torch.zeros(2, 3), torch.zeros(2, 7), {})
