"""Detection through the engine: a whole small run on real digits, its report, its resume, and what
the engine asks of the task.
"""

import json

import pytest
import torch
from small_runs import same, weights

from kdtasks.core.weights import load_weights
from kdtasks.detection import trainer
from kdtasks.engine import config as configs
from kdtasks.engine.check import check
from kdtasks.engine.dry_run import dry_run
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.loader import Loader
from kdtasks.engine.run import Run

DATA = {
    "type": "kdtasks.detection.data.digits_on_photos",
    "images": 24,
    "size": 64,
    "classes": 2,
    "objects": [1, 2],
}
RETINANET = {
    "type": "kdtasks.detection.models.retinanet",
    "num_classes": 3,
    "extra": None,
    "anchor_sizes": [16, 32, 64],
    "scales": 1,
    "aspect_ratios": [1.0],
    "groups": 2,
    "min_size": 64,
    "max_size": 64,
}
FASTER_RCNN = {
    "type": "kdtasks.detection.models.faster_rcnn",
    "num_classes": 3,
    "first": 1,
    "extra": None,
    "anchor_sizes": [16, 32, 64],
    "representation": 16,
    "min_size": 64,
    "max_size": 64,
    "rpn_batch_size_per_image": 32,
    "box_batch_size_per_image": 16,
    "rpn_pre_nms_top_n_train": 50,
    "rpn_post_nms_top_n_train": 20,
    "rpn_pre_nms_top_n_test": 50,
    "rpn_post_nms_top_n_test": 20,
}
ADL = {
    "loss_adl": {
        "type": "kdtasks.detection.ADLLoss",
        "of": ("student.cls_logits", "teacher.cls_logits", "anchors.valid"),
    }
}
CHEN = {
    "loss_mu": {"of": "student.loss_classifier", "weight": 0.5},
    "loss_soft": {
        "type": "kdtasks.detection.WeightedSoftCrossEntropyLoss",
        "of": ("rois.student.logits", "rois.teacher.logits"),
        "weight": 0.5,
    },
    "loss_bounded": {
        "type": "kdtasks.detection.BoundedRegressionLoss",
        "of": ("rois.student.deltas", "rois.teacher.deltas", "rois.target", "rois.count"),
    },
    "loss_hint": {
        "type": "kdtasks.detection.HintLoss",
        "of": ("features.student.3", "features.teacher.3"),
    },
}


def backbone(width):
    return {"type": "kdtasks.detection.models.small_resnet", "width": width}


def config(detector=RETINANET, losses=ADL, **changes):
    full = {
        "task": "kdtasks.detection.trainer",
        "distiller": {"type": "kdtasks.detection.torchvision_distiller.TorchvisionDistiller"},
        "student": {**detector, "backbone": backbone(4), "channels": 8},
        "teacher": {**detector, "backbone": backbone(6), "channels": 8},
        "losses": losses,
        "optimizer": {"type": "torch.optim.SGD", "lr": 0.01, "momentum": 0.9},
        "length": {"iterations": 6},
        "data": {
            "train": DATA,
            "test": {**DATA, "train": False, "images": 8},
            "batch_size": 4,
            "test_batch_size": 4,
        },
        "clip_grad": 5.0,
        "checkpoint_interval": {"iterations": 2},
        "log_interval": 2,
    }
    return configs.complete({**full, **changes})


FEW = {
    "train": {"type": "kdtasks.detection.data.few_labels", "images": 8, "dataset": DATA},
    "test": {**DATA, "train": False, "images": 8},
    "batch_size": 4,
    "unlabelled_per_batch": 4,
    "test_batch_size": 4,
    "iterations_per_epoch": 3,
}


@pytest.mark.parametrize(
    "full", [config(), config(FASTER_RCNN, CHEN), config(data=FEW)], ids=["adl", "chen", "semi"]
)
def test_a_whole_run(full, tmp_path, drawn_report):
    run = Run(full, tmp_path / "run", device="cpu", quiet=True)
    results = run.train()
    assert (
        list(results["stages"]) == ["teacher", "alone", "distilled"] and results["primary"] == "map"
    )
    assert {"map", "map_50", "mar_100", "map_0", "map_1", "seconds"} <= set(
        results["stages"]["distilled"]
    )
    taught = {name.removeprefix("student.") for name in weights(run, "distilled")["state_dict"]}
    plain = run.experiment.model("student")
    assert taught == set(plain.state_dict()) and not any(
        "hint" in name or "teacher" in name for name in taught
    )
    load_weights(plain, tmp_path / "run" / "student.pth")
    report = (tmp_path / "run" / "report.html").read_text()
    assert "ground truth" in report or report.count("<img") >= 2
    titles = [title for title, _ in trainer.pictures(run)]
    assert any("gate is open" in title for title in titles) == ("loss_bounded" in full["losses"])
    assert any("Adaptive weight" in title for title in titles) == ("loss_adl" in full["losses"])
    history = json.loads((run.folder(run.experiment.stages[1]) / "history.json").read_text())
    # alone
    assert not any(
        "adl" in key or "soft" in key or "hint" in key for entry in history for key in entry
    )


def test_the_control_has_the_detectors_own_losses_at_weight_one_and_labelled_images_only():
    run = Run(config(FASTER_RCNN, CHEN), "unused", device="cpu")
    alone = next(stage for stage in run.experiment.stages if stage.name == "alone")
    assert (
        alone.losses == {"loss_mu": {"of": "student.loss_classifier", "weight": 1}}
        and not alone.teachers
    )
    run = Run(config(data=FEW), "unused", device="cpu")
    alone = next(stage for stage in run.experiment.stages if stage.name == "alone")
    assert alone.losses == {} and len(next(iter(run.experiment.train_loader(alone)))["input"]) == 4
    taught = next(iter(run.experiment.train_loader(run.experiment.stages[-1])))
    assert (
        taught["labelled"].tolist() == [True] * 4 + [False] * 4
        and taught["target"][4:] == [None] * 4
    )
    control = next(iter(run.experiment.train_loader(alone)))
    assert all(torch.equal(a, b) for a, b in zip(control["input"], taught["input"]))


@pytest.mark.parametrize(
    "full", [config(data=FEW), config(FASTER_RCNN, CHEN)], ids=["semi", "chen"]
)
def test_resume_equals_no_stop(full, tmp_path):
    whole = Run(full, tmp_path / "whole", device="cpu", quiet=True)
    whole.train()
    stopped = Run(full, tmp_path / "stopped", device="cpu", quiet=True)

    class Stop(Exception):
        pass

    from kdtasks.engine.runner import StageRunner

    save, count = StageRunner.save_now, []

    def save_and_stop(self):
        save(self)
        count.append(1)
        # in the middle of the last stage
        if len(count) == 7:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRunner, "save_now", save_and_stop)
        with pytest.raises(Stop):
            stopped.train()
    again = Run(full, tmp_path / "stopped", device="cpu", quiet=True)
    again.train(resume=True)
    assert same(
        weights(whole, "distilled")["state_dict"], weights(again, "distilled")["state_dict"]
    )
    assert same(
        weights(whole, "distilled")["resume"]["losses"],
        weights(again, "distilled")["resume"]["losses"],
    )


def test_dry_run_takes_random_images_of_the_size_that_the_data_has():
    rows = dry_run(Run(config(data=FEW), "unused", device="cpu").experiment)
    assert [row["stage"] for row in rows] == ["teacher", "alone", "distilled"]
    assert rows[-1]["shapes"]["student.cls_logits"] == (8, 64 + 16 + 4, 3)
    batch = trainer.example(config(), 3)
    assert [tuple(image.shape) for image in batch["input"]] == [(3, 64, 64)] * 3
    assert all(
        (t["boxes"][:, 2:] > t["boxes"][:, :2]).all() and t["labels"].max() < 3
        for t in batch["target"]
    )


def test_evaluate_gives_hundred_for_a_detector_that_knows():
    data = Loader(
        Run(config(), "unused", device="cpu").experiment.data_set(config()["data"], "test"),
        4,
        shuffle=False,
    )

    class Oracle(torch.nn.Module):
        def forward(self, images):
            found = []
            for image in images:
                for i in range(len(data.dataset)):
                    if torch.equal(data.dataset[i]["input"], image):
                        target = data.dataset[i]["target"]
                        found.append(
                            {
                                "boxes": target["boxes"],
                                "labels": target["labels"],
                                "scores": torch.ones(len(target["labels"])),
                            }
                        )
            return found

    found = trainer.evaluate(Oracle(), data)
    assert found["map"] == pytest.approx(100) and found["map_0"] == pytest.approx(100)


def test_label_zero_is_no_class_and_does_not_stop_an_evaluation():
    class Confused(torch.nn.Module):
        def forward(self, images):
            return [
                {
                    "boxes": torch.tensor([[1.0, 1, 9, 9]]),
                    "labels": torch.tensor([0]),
                    "scores": torch.tensor([0.9]),
                }
                for _ in images
            ]

    loader = Loader(
        Run(config(), "unused", device="cpu").experiment.data_set(config()["data"], "test"),
        4,
        shuffle=False,
    )
    assert trainer.evaluate(Confused(), loader)["map"] == 0


def test_a_cache_and_classes_in_another_order_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(
        ConfigError, match=r"needs 'student.seen', which changes in training: cache=None"
    ):
        Run(config(cache={"views": 1}), tmp_path / "cache", device="cpu", quiet=True).train()
    run = Run(config(), tmp_path / "first", device="cpu", quiet=True)
    run.train(only=["teacher"])
    path = run.folder(run.experiment.stages[0]) / "last.pth"
    state = torch.load(path, weights_only=True)
    state["meta"]["classes"] = ["1", "0"]
    torch.save(state, path)
    full = config()
    full["teachers"]["teacher"]["checkpoint"] = str(path)
    with pytest.raises(ConfigError, match="same in the same order|the same in"):
        Run(full, tmp_path / "second", device="cpu", quiet=True).train()


def test_the_student_of_a_run_exports_and_gives_the_same_boxes(tmp_path):
    pytest.importorskip("safetensors")
    from kdtasks.engine.export import export

    run = Run(
        config({**RETINANET, "score_thresh": 0.0}), tmp_path / "run", device="cpu", quiet=True
    )
    run.train(only=["alone"])
    weights = "stages/1_alone/last.pth"
    done = export(tmp_path / "run", "safetensors", weights=weights)
    assert done["difference"] <= done["allowed"]
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'kdtasks[export]'")
    done = export(tmp_path / "run", "onnx", weights=weights)
    assert 0 < done["difference"] <= done["allowed"] and done["images"] == 4
    with pytest.raises(
        ConfigError, match="student.onnx' was not kept: .*finds nothing .*student.score_thresh"
    ):
        export(tmp_path / "run", "onnx", weights=weights, options={"student.score_thresh": 0.9})


def test_a_step_in_bfloat16(tmp_path):
    run = Run(
        config(FASTER_RCNN, CHEN, amp="bfloat16", length={"iterations": 2}),
        tmp_path / "run",
        device="cpu",
        quiet=True,
    )
    assert set(run.train()["stages"]) == {"teacher", "alone", "distilled"}


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_annotation_file_that_is_missing_is_said_before_the_first_step(part, tmp_path):
    missing = {
        "type": "kdtasks.detection.data.coco",
        "images": str(tmp_path),
        "annotations": str(tmp_path / "instances.json"),
    }
    full = config()
    full["data"][part] = missing
    with pytest.raises(FileNotFoundError, match=r"instances\.json"):
        check(Run(full, tmp_path / "run", device="cpu", quiet=True).experiment)
    assert not (tmp_path / "run").exists()
