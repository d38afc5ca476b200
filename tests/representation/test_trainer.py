"""Representation through the engine: a whole small run on real digits, its resume in the middle of
a queue, and its student in another task.
"""

import json

import pytest
import torch

from kdtasks.classification.models import resnet8
from kdtasks.engine import config as configs
from kdtasks.engine.loader import Loader
from kdtasks.engine.run import Run
from kdtasks.representation import trainer
from kdtasks.representation.data import digits

DIGITS = {"type": "kdtasks.representation.data.digits"}
NETWORK = {"type": "kdtasks.classification.models.digits_cnn", "in_channels": 1}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(resnet8(in_channels=1, width=8).state_dict(), path)
    return path


def config(teacher, **changes):
    backbone = {"type": "kdtasks.representation.models.backbone"}
    network = {"type": "kdtasks.classification.models.resnet8", "in_channels": 1, "width": 8}
    of = ("student.embedding", "teacher.embedding")
    full = {
        "task": "kdtasks.representation.trainer",
        "distiller": {"type": "kdtasks.representation.distiller.RepresentationDistiller"},
        "student": {**backbone, "network": {**NETWORK, "width": 4}},
        "teacher": {**backbone, "network": network, "checkpoint": str(teacher), "input_size": 16},
        "losses": {
            "loss_queue": {"type": "kdtasks.general.QueueKLLoss", "size": 100, "of": of},
            "loss_feature": {
                "type": "kdtasks.general.FeatureLoss",
                "standardize": "phi",
                "rows": 300,
                "of": of,
            },
        },
        "stages": {
            "type": "kdtasks.representation.stages.with_controls",
            "supervised": {"num_classes": 10, "length": {"iterations": 6}},
        },
        "cache": {"views": 2},
        "data": {
            "train": {**DIGITS, "augment": {"crop": 1}},
            "test": {"type": "kdtasks.representation.data.split", "dataset": DIGITS},
            "batch_size": 48,
        },
        "optimizer": {"type": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9},
        "length": {"iterations": 12},
        "checkpoint_interval": {"iterations": 4},
        "log_interval": 4,
    }
    return configs.complete({**full, **changes})


@pytest.fixture(scope="module")
def run(teacher, tmp_path_factory):
    run = Run(config(teacher), tmp_path_factory.mktemp("run"), quiet=True)
    run.train()
    return run


def test_a_run_has_its_controls_and_the_teachers_own_numbers(run):
    stages = run.results["stages"]
    assert list(stages) == ["random", "supervised", "distilled"]
    assert all({"knn", "linear"} <= stage.keys() for stage in stages.values())
    loader = run.experiment.test_loader(run.experiment.final)
    own = run.experiment.distiller(run.experiment.final, run.files).teachers["teacher"]
    own.eval()
    assert stages["distilled"]["teacher_knn"] == trainer.evaluate(own, loader)["knn"]
    assert run.arms.control.name == "random" and run.arms.final.name == "distilled"
    # chance is 10
    assert all(stage["knn"] > 30 for stage in stages.values()), stages
    assert json.loads((run.work_dir / "student.json").read_text())["part"] == "backbone"


def test_a_stop_in_the_middle_of_queue_and_collection_changes_no_bit(
    run, teacher, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend("tests/engine/small")
    # 192 of 300 rows are collected, and a queue of 100 has turned round
    hook = [{"type": "small_parts.StopAt", "stage": "distilled", "iteration": 4}]
    with pytest.raises(KeyboardInterrupt):
        Run(config(teacher, custom_hooks=hook), tmp_path, quiet=True).train()
    stamp = tmp_path / "stages" / "config.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "custom_hooks": []}))
    resumed = Run(config(teacher), tmp_path, quiet=True)
    resumed.train(resume=True)
    ours, theirs = (
        torch.load(r.folder(r.experiment.final) / "last.pth", weights_only=True)
        for r in (resumed, run)
    )
    torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    losses = (part["resume"]["losses"] for part in (ours, theirs))
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    assert ours["resume"]["losses"]["loss_queue.queue._extra_state"] == {"written": 576}


def test_its_student_is_a_checkpoint_of_a_classifier(run, tmp_path):
    classification = {
        "task": "kdtasks.classification.trainer",
        "student": {
            **NETWORK,
            "width": 4,
            "num_classes": 10,
            "checkpoint": str(run.work_dir / "student.pth"),
        },
        "losses": {"loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}},
        "stages": [{"name": "tuned", "train": ["student.fc"], "length": {"iterations": 3}}],
        "data": {"train": DIGITS, "test": DIGITS},
        "optimizer": {"type": "torch.optim.SGD", "lr": 0.1},
        "length": 1,
    }
    with pytest.warns(UserWarning, match=r"stay as made: fc \(2\)"):
        tuned = Run(configs.complete(classification), tmp_path, quiet=True)
        tuned.train()
    given = torch.load(run.work_dir / "student.pth", weights_only=True)
    found = torch.load(tmp_path / "student.pth", weights_only=True)
    weights = [name for name in given if name.endswith(("conv1.weight", "conv2.weight"))]
    assert weights and all(torch.equal(given[name], found[name]) for name in weights)


def test_other_test_data_is_an_error_that_says_what_is_expected():
    loader = Loader(digits(train=False), 64, shuffle=False, drop_last=False)
    with pytest.raises(ValueError, match="bank_and_queries.*got ImageArrays"):
        trainer.evaluate(torch.nn.Flatten(), loader)


def test_the_report_has_its_pictures(run):
    titles = [title for title, _ in trainer.pictures(run)]
    assert [title.split(" ")[0] for title in titles] == ["The", "Where", "kNN"]
