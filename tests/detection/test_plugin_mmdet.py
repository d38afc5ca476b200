"""Real MMDetection 3.3 detectors taught by others, through mmengine's Runner on a small COCO data
set on disk.
"""

import copy
import importlib.util
import json
import os
import random
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from kdtasks.core.weights import load_weights

pytestmark = [
    pytest.mark.mmdet,
    pytest.mark.skipif(
        importlib.util.find_spec("mmdet") is None,
        reason="MMDetection is not installed; ../shared/README.md has the one line that makes its "
        "environment",
    ),
]
ROOT = Path(__file__).parents[2]
PLUGIN = "kdtasks.detection.plugin.DistillDetector"
CLASSES = ("disc", "box", "bar")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # mmengine 0.10 cannot resume its own files without it
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven drawn images of two sizes with boxes of three classes in COCO's format; the last has
    none.
    """
    folder, rng = tmp_path_factory.mktemp("coco"), random.Random(0)
    images, annotations = [], []
    for i in range(7):
        width, height = (112, 96) if i % 2 else (96, 112)
        picture = Image.new("RGB", (width, height), (40 + 20 * i, 90, 120))
        for _ in range(0 if i == 6 else 3):
            kind, w, h = rng.randrange(3), rng.randrange(20, 50), rng.randrange(20, 50)
            x, y = rng.randrange(width - w), rng.randrange(height - h)
            draw = getattr(ImageDraw.Draw(picture), "ellipse" if kind == 0 else "rectangle")
            draw(
                (x, y, x + w - 1, y + h - 1),
                fill=((250, 30, 30), (30, 250, 30), (30, 30, 250))[kind],
            )
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": kind + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        picture.save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    (folder / "all.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return folder


# Detectors ----------------------------------------------------------------------------------------
def base(kind, width, levels, **more):
    """Backbone and FPN of an mmdet config, a few channels wide."""
    first = 4 - levels
    return {
        "type": kind,
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        },
        "backbone": {
            "type": "ResNet",
            "depth": 18,
            "base_channels": width,
            "out_indices": tuple(range(first, 4)),
            "norm_cfg": {"type": "BN", "requires_grad": True},
            "norm_eval": False,
            "init_cfg": None,
        },
        "neck": {
            "type": "FPN",
            "in_channels": [width * 2**k for k in range(first, 4)],
            "out_channels": 2 * width,
            "num_outs": 5,
            **({"start_level": 0, "add_extra_convs": "on_output"} if levels == 3 else {}),
        },
        "test_cfg": {
            "nms_pre": 50,
            "min_bbox_size": 0,
            "score_thr": 0.01,
            "nms": {"type": "nms", "iou_threshold": 0.5},
            "max_per_img": 10,
        },
        **more,
    }


CODER = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [1.0] * 4}
FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}


def retinanet(width=8, classes=3, scales=3):
    return base(
        "RetinaNet",
        width,
        3,
        bbox_head={
            "type": "RetinaHead",
            "num_classes": classes,
            "in_channels": 2 * width,
            "stacked_convs": 1,
            "feat_channels": 2 * width,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "octave_base_scale": 4,
                "scales_per_octave": scales,
                "ratios": [0.5, 1.0, 2.0],
                "strides": [8, 16, 32, 64, 128],
            },
            "bbox_coder": CODER,
            "loss_cls": FOCAL,
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        train_cfg={
            "assigner": {
                "type": "MaxIoUAssigner",
                "pos_iou_thr": 0.5,
                "neg_iou_thr": 0.4,
                "min_pos_iou": 0,
                "ignore_iof_thr": -1,
            },
            "sampler": {"type": "PseudoSampler"},
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
    )


def gfl(width=8):
    return base(
        "GFL",
        width,
        3,
        bbox_head={
            "type": "GFLHead",
            "num_classes": 3,
            "in_channels": 2 * width,
            "stacked_convs": 1,
            "feat_channels": 2 * width,
            "norm_cfg": {"type": "GN", "num_groups": 4, "requires_grad": True},
            "reg_max": 8,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "ratios": [1.0],
                "octave_base_scale": 8,
                "scales_per_octave": 1,
                "strides": [8, 16, 32, 64, 128],
            },
            "loss_cls": {
                "type": "QualityFocalLoss",
                "use_sigmoid": True,
                "beta": 2.0,
                "loss_weight": 1.0,
            },
            "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        },
        train_cfg={
            "assigner": {"type": "ATSSAssigner", "topk": 9},
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
    )


def fcos(width=8):
    return base(
        "FCOS",
        width,
        3,
        bbox_head={
            "type": "FCOSHead",
            "num_classes": 3,
            "in_channels": 2 * width,
            "stacked_convs": 1,
            "feat_channels": 2 * width,
            "norm_cfg": {"type": "GN", "num_groups": 4, "requires_grad": True},
            "strides": [8, 16, 32, 64, 128],
            "norm_on_bbox": True,
            "loss_cls": FOCAL,
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0},
            "loss_centerness": {
                "type": "CrossEntropyLoss",
                "use_sigmoid": True,
                "loss_weight": 1.0,
            },
        },
        train_cfg=None,
    )


def vfnet(width=8):
    return base(
        "VFNet",
        width,
        3,
        bbox_head={
            "type": "VFNetHead",
            "num_classes": 3,
            "in_channels": 2 * width,
            "stacked_convs": 1,
            "feat_channels": 2 * width,
            "norm_cfg": {"type": "GN", "num_groups": 4},
            "strides": [8, 16, 32, 64, 128],
            "center_sampling": False,
            "dcn_on_last_conv": False,
            "use_atss": True,
            "use_vfl": True,
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.5},
            "loss_cls": {
                "type": "VarifocalLoss",
                "use_sigmoid": True,
                "alpha": 0.75,
                "gamma": 2.0,
                "iou_weighted": True,
                "loss_weight": 1.0,
            },
            "loss_bbox_refine": {"type": "GIoULoss", "loss_weight": 2.0},
        },
        train_cfg={
            "assigner": {"type": "ATSSAssigner", "topk": 9},
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
    )


def tood(width=8):
    return base(
        "TOOD",
        width,
        3,
        bbox_head={
            "type": "TOODHead",
            "num_classes": 3,
            "in_channels": 2 * width,
            "stacked_convs": 2,
            "feat_channels": 2 * width,
            "anchor_type": "anchor_free",
            "norm_cfg": {"type": "GN", "num_groups": 4},
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
            "anchor_generator": {
                "type": "AnchorGenerator",
                "ratios": [1.0],
                "octave_base_scale": 8,
                "scales_per_octave": 1,
                "strides": [8, 16, 32, 64, 128],
            },
            "bbox_coder": {**CODER, "target_stds": [0.1, 0.1, 0.2, 0.2]},
            "initial_loss_cls": {**FOCAL, "activated": True},
            "loss_cls": {
                "type": "QualityFocalLoss",
                "use_sigmoid": True,
                "activated": True,
                "beta": 2.0,
                "loss_weight": 1.0,
            },
        },
        train_cfg={
            "initial_epoch": 4,
            "initial_assigner": {"type": "ATSSAssigner", "topk": 9},
            "alpha": 1,
            "beta": 6,
            "assigner": {"type": "TaskAlignedAssigner", "topk": 13},
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
    )


def yolox():
    return {
        "type": "YOLOX",
        "data_preprocessor": {"type": "DetDataPreprocessor", "pad_size_divisor": 32},
        "backbone": {
            "type": "CSPDarknet",
            "deepen_factor": 0.33,
            "widen_factor": 0.125,
            "out_indices": (2, 3, 4),
        },
        "neck": {
            "type": "YOLOXPAFPN",
            "in_channels": [32, 64, 128],
            "out_channels": 16,
            "num_csp_blocks": 1,
        },
        "bbox_head": {
            "type": "YOLOXHead",
            "num_classes": 3,
            "in_channels": 16,
            "feat_channels": 16,
            "stacked_convs": 1,
        },
        "train_cfg": {"assigner": {"type": "SimOTAAssigner", "center_radius": 2.5}},
        "test_cfg": {"score_thr": 0.01, "nms": {"type": "nms", "iou_threshold": 0.65}},
    }


def centernet():
    return {
        **base("CenterNet", 8, 3),
        "neck": {
            "type": "CTResNetNeck",
            "in_channels": 64,
            "num_deconv_filters": (32, 16, 16),
            "num_deconv_kernels": (4, 4, 4),
            "use_dcn": False,
        },
        "bbox_head": {
            "type": "CenterNetHead",
            "num_classes": 3,
            "in_channels": 16,
            "feat_channels": 16,
        },
    }


def faster_rcnn(width=8, classes=3, agnostic=False):
    config = base("FasterRCNN", width, 4)
    proposals = {
        "nms_pre": 100,
        "max_per_img": 50,
        "nms": {"type": "nms", "iou_threshold": 0.7},
        "min_bbox_size": 0,
    }

    def assigner(pos, neg, low, match):
        return {
            "type": "MaxIoUAssigner",
            "pos_iou_thr": pos,
            "neg_iou_thr": neg,
            "min_pos_iou": low,
            "match_low_quality": match,
            "ignore_iof_thr": -1,
        }

    def sampler(number, share, gt):
        return {
            "type": "RandomSampler",
            "num": number,
            "pos_fraction": share,
            "neg_pos_ub": -1,
            "add_gt_as_proposals": gt,
        }

    config.update(
        rpn_head={
            "type": "RPNHead",
            "in_channels": 2 * width,
            "feat_channels": 2 * width,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [8],
                "ratios": [0.5, 1.0, 2.0],
                "strides": [4, 8, 16, 32, 64],
            },
            "bbox_coder": CODER,
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        roi_head={
            "type": "StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor",
                "out_channels": 2 * width,
                "featmap_strides": [4, 8, 16, 32],
                "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 2},
            },
            "bbox_head": {
                "type": "Shared2FCBBoxHead",
                "in_channels": 2 * width,
                "fc_out_channels": 32,
                "roi_feat_size": 7,
                "num_classes": classes,
                "bbox_coder": {**CODER, "target_stds": [0.1, 0.1, 0.2, 0.2]},
                "reg_class_agnostic": agnostic,
                "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
                "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
            },
        },
        train_cfg={
            "rpn": {
                "assigner": assigner(0.7, 0.3, 0.3, True),
                "sampler": sampler(64, 0.5, False),
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "rpn_proposal": proposals,
            "rcnn": {
                "assigner": assigner(0.5, 0.5, 0.5, False),
                "sampler": sampler(32, 0.25, True),
                "pos_weight": -1,
                "debug": False,
            },
        },
        test_cfg={
            "rpn": proposals,
            "rcnn": {
                "score_thr": 0.01,
                "nms": {"type": "nms", "iou_threshold": 0.5},
                "max_per_img": 10,
            },
        },
    )
    return config


ADL = {
    "loss_adl": {
        "type": "kdtasks.detection.ADLLoss",
        "preset": "paper",
        "of": ("student.cls_logits", "teacher.cls_logits", "anchors.valid"),
    }
}
HINT = {
    "loss_hint": {
        "type": "kdtasks.detection.HintLoss",
        "of": ("features.student.1", "features.teacher.1"),
        "weight": 0.5,
    }
}
LD = {
    "loss_ld": {
        "type": "kdtasks.detection.LDLoss",
        "weight": 0.25,
        "of": ("anchors.student.edges", "anchors.teacher.edges", "anchors.student.logits"),
    }
}


def by_level(loss, name, levels):
    """An entry of ``kdtasks.detection``'s loss for each level of ``name``, a pattern."""
    return {
        f"loss_{level}": {
            "type": f"kdtasks.detection.{loss}",
            "weight": 10.0,
            "of": tuple(name.format(role=role, level=level) for role in ("student", "teacher")),
        }
        for level in range(levels)
    }


FEATURES = "features.{role}.{level}"
SOFT, BOUNDED = (
    "kdtasks.detection.WeightedSoftCrossEntropyLoss",
    "kdtasks.detection.BoundedRegressionLoss",
)
CHEN = {
    "loss_rpn_cls": {"of": "student.loss_rpn_cls", "weight": 0.6},
    "loss_rpn_soft": {
        "type": SOFT,
        "of": ("rpn.student.logits", "rpn.teacher.logits"),
        "weight": 0.4,
    },
    "loss_rpn_bounded": {
        "type": BOUNDED,
        "of": ("rpn.student.deltas", "rpn.teacher.deltas", "rpn.target", "rpn.count"),
        "weight": 0.5,
    },
    "loss_cls": {"of": "student.loss_cls", "weight": 0.6},
    "loss_roi_soft": {
        "type": SOFT,
        "background_index": -1,
        "of": ("rois.student.logits", "rois.teacher.logits"),
        "weight": 0.4,
    },
    "loss_roi_bounded": {
        "type": BOUNDED,
        "weight": 0.5,
        "of": ("rois.student.deltas", "rois.teacher.deltas", "rois.target", "rois.count"),
    },
    **HINT,
}


def taught(student, teacher, losses=ADL, checkpoint=None, **more):
    return {
        "type": PLUGIN,
        "student": student,
        "teacher": teacher,
        "teacher_checkpoint": None if checkpoint is None else str(checkpoint),
        "losses": losses,
        **more,
    }


def build(config):
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    return MODELS.build(ConfigDict(copy.deepcopy({**config, "_scope_": "mmdet"})))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """``weights(config)``: a file of weights for it, always the same."""
    folder = tmp_path_factory.mktemp("weights")

    def make(config):
        path = folder / f"{abs(hash(json.dumps(config, sort_keys=True)))}.pth"
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(7)
                model = build(config)
                model.init_weights()
                torch.save({"state_dict": model.state_dict(), "meta": {}}, path)
        return path

    return make


def run(data, folder, model, epochs=1, resume=False, hooks=(), train=True, **more):
    """An ordinary mmdet config in an ordinary Runner: three steps of two images an epoch (the last
    of one).
    """
    from mmengine.config import Config
    from mmengine.runner import Runner

    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "Resize", "scale": (128, 128), "keep_ratio": True},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PackDetInputs"},
    ]
    dataset = {
        "type": "CocoDataset",
        "data_root": str(data),
        "ann_file": "all.json",
        "data_prefix": {"img": ""},
        "metainfo": {"classes": CLASSES},
        "filter_cfg": {"filter_empty_gt": False},
        "pipeline": pipeline,
    }
    config = Config(
        {
            "default_scope": "mmdet",
            "model": model,
            "work_dir": str(folder),
            "randomness": {"seed": 3},
            "log_level": "ERROR",
            "train_dataloader": {
                "batch_size": 2,
                "num_workers": 0,
                "sampler": {"type": "DefaultSampler", "shuffle": True},
                "dataset": dataset,
            },
            "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": epochs},
            "optim_wrapper": {
                "type": "OptimWrapper",
                "optimizer": {"type": "SGD", "lr": 0.005, "momentum": 0.9},
            },
            "default_hooks": {
                "logger": {"type": "LoggerHook", "interval": 1},
                "checkpoint": {"type": "CheckpointHook", "interval": 1},
            },
            "custom_hooks": list(hooks),
            "resume": resume,
            "experiment_name": f"{folder.name}{random.random()}",
            **more,
        }
    )
    runner = Runner.from_cfg(config)
    if train:
        runner.train()
    return runner


def log(folder):
    """``{name: [value of each step]}`` of the newest log."""
    lines = [
        json.loads(line)
        for line in max(folder.glob("*/vis_data/scalars.json"), key=os.path.getmtime)
        .read_text()
        .splitlines()
    ]
    return {
        name: [line[name] for line in lines if name in line]
        for name in {name: 0 for line in lines for name in line}
    }


def _model_of(name):
    from mmengine.hub import get_config

    return {
        **get_config(name).model.to_dict(),
        "backbone": {**get_config(name).model.backbone.to_dict(), "init_cfg": None},
    }


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def batch_of(model, data, indices=(0, 1)):
    """Preprocessed images and data samples of a detector."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    content = json.loads((data / "all.json").read_text())
    inputs, samples = [], []
    for i in indices:
        image = torch.from_numpy(
            np.array(Image.open(data / f"{i}.png"))[:, :, ::-1].copy()
        ).permute(2, 0, 1)
        boxes = [a for a in content["annotations"] if a["image_id"] == i]
        sample = DetDataSample(
            metainfo={
                "img_id": i,
                "img_shape": image.shape[1:],
                "ori_shape": image.shape[1:],
                "scale_factor": (1.0, 1.0),
            }
        )
        xyxy = torch.tensor(
            [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in boxes)], dtype=torch.float32
        ).view(-1, 4)
        sample.gt_instances = InstanceData(
            bboxes=xyxy,
            labels=torch.tensor([a["category_id"] - 1 for a in boxes], dtype=torch.int64),
        )
        inputs.append(image)
        samples.append(sample)
    found = model.data_preprocessor({"inputs": inputs, "data_samples": samples}, True)
    return found["inputs"], found["data_samples"]


def taken(detector, data, names, indices=(0, 1), others=None):
    """The losses of one step, and the tensors of it by name, those that no loss wants included."""
    inputs, samples = batch_of(detector, data, indices)
    samples = others or samples
    kept = {}
    distiller = detector.distiller
    supplied = {name for role in distiller.roles for name in distiller.names(role)}
    readers = {name: term.of for name, term in distiller.terms.items()}
    readers["seen"] = [name for name in names if name in supplied]
    distiller.plan(distiller.list_names(), readers)
    original = distiller.outputs

    def outputs(role, batch, wanted):
        found = original(role, batch, wanted)
        kept.update(found)
        return found

    distiller.__dict__["outputs"] = outputs
    try:
        losses = detector(inputs, samples, mode="loss")
    finally:
        del distiller.__dict__["outputs"]
    return losses, kept


# Tests --------------------------------------------------------------------------------------------
def test_the_plugin_is_imported_without_mmdet_and_says_what_it_lacks():
    code = (
        "import sys; sys.modules['mmdet'] = sys.modules['mmcv'] = None\nfrom "
        "kdtasks.detection.plugin import DistillDetector\ntry:\n    "
        "DistillDetector(student={}, teacher={}, losses={})\nexcept ImportError as error:\n    "
        "print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "needs MMDetection 3 (mmdet and mmcv)" in done.stdout, done.stderr


def test_a_run_of_retinanet_with_adl_as_a_newcomer_starts_it(data, weights, tmp_path):
    config = taught(retinanet(), retinanet(12), ADL, weights(retinanet(12)))
    runner = run(data, tmp_path, config, epochs=2, train=False)
    student, teacher = runner.model.student, runner.model.distiller.model("teacher")
    before, teacher_before = state(student), state(teacher)
    assert same(teacher_before, torch.load(weights(retinanet(12)))["state_dict"])
    runner.train()
    assert same(state(teacher), teacher_before) and not any(
        module.training for module in teacher.modules()
    )
    after = state(student)
    still = [
        name for name, _ in student.named_parameters() if torch.equal(after[name], before[name])
    ]
    # behind a residual branch that starts at 0
    assert all(name.endswith("bn1.weight") for name in still)
    logged = log(tmp_path)
    assert {"loss", "loss_cls", "loss_bbox", "loss_adl", "grad_norm"} - {"grad_norm"} <= set(logged)
    assert (
        len(logged["loss"]) == 8
        and np.isfinite(logged["loss"]).all()
        and all(v > 0 for v in logged["loss_adl"])
    )
    total = np.sum([logged[name] for name in ("loss_cls", "loss_bbox", "loss_adl")], axis=0)
    np.testing.assert_allclose(logged["loss"], total, rtol=1e-5)


def test_optimizer_and_state_dict_know_the_student_and_the_adapter_only(data, weights, tmp_path):
    config = taught(retinanet(), retinanet(12), ADL | HINT, weights(retinanet(12)))
    options = {
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "SGD", "lr": 0.1},
            "paramwise_cfg": {
                "custom_keys": {"losses": {"lr_mult": 10.0}, "backbone": {"lr_mult": 0.1}}
            },
        }
    }
    runner = run(data, tmp_path, config, train=False, **options)
    model = runner.model
    adapter = list(model.distiller.losses.parameters())
    assert [tuple(p.shape) for p in adapter] == [(24, 16, 1, 1), (24,)]
    expected = {id(p) for p in [*model.student.parameters(), *adapter]}
    assert {id(p) for p in model.parameters()} == expected
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    groups = {
        id(p): group["lr"] for group in wrapper.optimizer.param_groups for p in group["params"]
    }
    assert set(groups) == expected
    assert {groups[id(p)] for p in adapter} == {1.0} and {
        groups[id(p)] for p in model.student.backbone.parameters()
    } == {0.1 * 0.1}
    assert same(state(model), state(model.student))
    assert list(model.state_dict()) == list(model.student.state_dict())
    assert model.state_dict()._metadata["backbone.bn1"] == {"version": 2}


def test_init_weights_reaches_the_student_as_its_init_cfg_says_and_no_teacher(
    data, weights, tmp_path
):
    config = taught(retinanet(), retinanet(12), ADL, weights(retinanet(12)))
    backbone = build(retinanet()).backbone
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    config["student"]["backbone"]["init_cfg"] = {
        "type": "Pretrained",
        "checkpoint": str(tmp_path / "backbone.pth"),
    }
    detector = build(config)
    teacher = state(detector.distiller.model("teacher"))
    detector.init_weights()
    assert same(state(detector.student.backbone), state(backbone))
    assert same(state(detector.distiller.model("teacher")), teacher)
    # RetinaHead's init_cfg
    assert torch.allclose(
        detector.student.bbox_head.retina_cls.bias, torch.tensor(-4.595), atol=1e-3
    )


def test_a_checkpoint_is_the_plain_students_and_loads_strictly_in_mmdet(data, weights, tmp_path):
    from mmdet.apis import inference_detector, init_detector
    from mmengine.config import Config
    from mmengine.runner import load_checkpoint

    config = taught(retinanet(), retinanet(12), ADL | HINT, weights(retinanet(12)))
    runner = run(data, tmp_path, config)
    file = tmp_path / "epoch_1.pth"
    content = torch.load(file, weights_only=False)
    plain = build(retinanet())
    assert list(content["state_dict"]) == list(plain.state_dict())
    plain.load_state_dict(content["state_dict"], strict=True)
    assert same(state(plain), state(runner.model.student))
    load_checkpoint(build(retinanet()), str(file), strict=True)
    detector = init_detector(
        Config(
            {
                "model": retinanet(),
                "default_scope": "mmdet",
                "test_dataloader": {
                    "dataset": {
                        "type": "CocoDataset",
                        "pipeline": [
                            {"type": "LoadImageFromFile"},
                            {"type": "Resize", "scale": (128, 128), "keep_ratio": True},
                            {
                                "type": "PackDetInputs",
                                "meta_keys": (
                                    "img_id",
                                    "img_path",
                                    "ori_shape",
                                    "img_shape",
                                    "scale_factor",
                                ),
                            },
                        ],
                    }
                },
            }
        ),
        str(file),
        device="cpu",
    )
    assert same(state(detector), state(runner.model.student))
    assert detector.dataset_meta["classes"] == CLASSES
    inference_detector(detector, str(data / "0.png"))


def test_resume_with_an_adapter_equals_a_run_that_never_stopped(data, weights, tmp_path):
    config = taught(retinanet(), retinanet(12), ADL | HINT, weights(retinanet(12)))
    whole = run(data, tmp_path / "whole", config, epochs=2)
    first = run(data, tmp_path / "parts", config, epochs=1)
    fresh = build(config)
    second = run(data, tmp_path / "parts", config, epochs=1, resume=True, train=False)
    second.load_or_resume()
    adapter = state(second.model.distiller.losses)
    assert same(adapter, state(first.model.distiller.losses)) and not same(
        adapter, state(fresh.distiller.losses)
    )
    assert same(state(second.model), state(first.model))
    resumed = run(data, tmp_path / "parts", config, epochs=2, resume=True)
    assert resumed.iter == whole.iter == 8
    assert len(log(tmp_path / "parts")["loss_hint"]) == 4
    plain = torch.load(tmp_path / "parts" / "epoch_2.pth", weights_only=False)["optimizer"]
    assert len(plain["state"]) == len([p for p in whole.model.parameters() if p.requires_grad])


def test_a_plain_students_checkpoint_starts_a_taught_run_and_leaves_the_adapter(
    data, weights, tmp_path
):
    config = taught(retinanet(), retinanet(12), ADL | HINT, weights(retinanet(12)))
    detector = build(config)
    adapter = state(detector.distiller.losses)
    detector.load_state_dict(torch.load(weights(retinanet()))["state_dict"], strict=True)
    assert same(state(detector.student), torch.load(weights(retinanet()))["state_dict"])
    assert same(state(detector.distiller.losses), adapter)
    with pytest.raises(RuntimeError, match="retina_cls"):
        detector.load_state_dict(torch.load(weights(retinanet(classes=4)))["state_dict"])


def test_ema_copies_the_student_and_not_the_teacher(data, weights, tmp_path):
    config = taught(retinanet(), retinanet(12), ADL | HINT, weights(retinanet(12)))
    hook = {"type": "EMAHook", "momentum": 0.5, "update_buffers": True}
    runner = run(data, tmp_path, config, hooks=[hook])
    ema = next(h for h in runner.hooks if type(h).__name__ == "EMAHook").ema_model.module
    assert ema.student is not runner.model.student and ema.distiller.student is ema.student
    assert ema.distiller.model("teacher") is runner.model.distiller.model("teacher")
    assert not same(state(ema), state(runner.model))
    content = torch.load(tmp_path / "epoch_1.pth", weights_only=False)
    # mmengine saves the average under this name
    assert same(content["state_dict"], state(ema.student))
    assert {name.removeprefix("module.") for name in content["ema_state_dict"]} == {
        "steps",
        *ema.student.state_dict(),
    }
    again = run(data, tmp_path, config, hooks=[hook], resume=True, train=False)
    again.call_hook("before_run")
    again.load_or_resume()
    ema_again = next(h for h in again.hooks if type(h).__name__ == "EMAHook").ema_model.module
    assert same(state(ema_again), state(ema)) and same(state(again.model), state(runner.model))
    assert same(state(ema_again.distiller.losses), state(ema.distiller.losses))
    assert same(state(again.model.distiller.losses), state(runner.model.distiller.losses))


@pytest.mark.parametrize("make", [retinanet, faster_rcnn, gfl, fcos])
def test_with_and_without_a_teacher_the_students_losses_are_the_same_numbers(
    data, weights, tmp_path, make
):
    losses = {
        name: entry
        for name, entry in (CHEN if make is faster_rcnn else ADL).items()
        if "type" in entry and name != "loss_hint"
    }
    # no 'loss' in a name: no gradient
    watching = {name.replace("loss_", ""): entry for name, entry in losses.items()}
    alone = run(data, tmp_path / "alone", make())
    beside = run(data, tmp_path / "beside", taught(make(), make(12), watching, weights(make(12))))
    one, other = log(tmp_path / "alone"), log(tmp_path / "beside")
    for name in one:
        if "loss" in name or name == "acc":
            assert one[name] == other[name], name
    assert set(watching) <= set(other) and len(one["loss"]) == 4
    assert same(state(alone.model), state(beside.model))


def test_adl_sees_the_anchors_that_the_focal_loss_sees(data, weights):
    detector = build(taught(retinanet(), retinanet(12), ADL, weights(retinanet(12)))).train()
    names = [
        "student.cls_logits",
        "student.box_deltas",
        "teacher.cls_logits",
        "teacher.box_deltas",
        "anchors.valid",
    ]
    seen = {}
    head = detector.student.bbox_head
    original = head.get_targets
    head.__dict__["get_targets"] = lambda *args, **kwargs: seen.setdefault(
        "targets", original(*args, **kwargs)
    )
    losses, kept = taken(detector, data, names)
    assert (
        "get_targets" in head.__dict__
        and "forward" not in head.__dict__
        and "extract_feat" not in detector.student.__dict__
    )
    labels, label_weights, targets, box_weights, count = seen["targets"]
    labels, label_weights = torch.cat(labels, 1), torch.cat(label_weights, 1)
    valid = kept["anchors.valid"]
    assert torch.equal(valid, label_weights != 0) and not valid.all() and valid.any()
    logits = kept["student.cls_logits"]
    assert logits.shape == (*valid.shape, 3) == kept["teacher.cls_logits"].shape and kept[
        "student.box_deltas"
    ].shape == (*valid.shape, 4)
    again = sum(
        head.loss_cls(z.reshape(-1, 3), y.reshape(-1), w.reshape(-1), avg_factor=count)
        for z, y, w in zip(
            *(t.split([x.shape[1] for x in targets], 1) for t in (logits, labels, label_weights))
        )
    )
    assert torch.equal(again, losses["loss_cls"])
    again = sum(
        head.loss_bbox(z.reshape(-1, 4), y.reshape(-1, 4), w.reshape(-1, 4), avg_factor=count)
        for z, y, w in zip(
            kept["student.box_deltas"].split([x.shape[1] for x in targets], 1), targets, box_weights
        )
    )
    assert torch.equal(again, losses["loss_bbox"])
    from kdtasks.detection import adl_loss

    assert torch.equal(
        losses["loss_adl"], adl_loss(logits, kept["teacher.cls_logits"], valid=valid)
    )
    teacher = detector.distiller.model("teacher")
    with torch.no_grad():
        maps = teacher.bbox_head(teacher.extract_feat(batch_of(detector, data)[0]))[0]
    # level 0, row 3, column 5, its fifth anchor
    place, anchor = (3, 5), 4
    row = (place[0] * maps[0].shape[3] + place[1]) * 9 + anchor
    assert torch.equal(
        kept["teacher.cls_logits"][1, row], maps[0][1, anchor * 3 : anchor * 3 + 3, *place]
    )


def test_a_run_of_faster_rcnn_with_the_whole_objective_of_chen(data, weights, tmp_path):
    runner = run(
        data,
        tmp_path,
        taught(faster_rcnn(), faster_rcnn(12), CHEN, weights(faster_rcnn(12))),
        epochs=2,
    )
    logged = log(tmp_path)
    terms = [name for name in logged if "loss" in name and name != "loss"]
    assert set(terms) == {*CHEN, "loss_rpn_bbox", "loss_bbox"} and "acc" in logged
    assert all(np.isfinite(logged[name]).all() for name in terms) and len(logged["loss"]) == 8
    np.testing.assert_allclose(
        logged["loss"], np.sum([logged[name] for name in terms], axis=0), rtol=1e-5
    )
    assert same(
        state(runner.model.distiller.model("teacher")),
        torch.load(weights(faster_rcnn(12)))["state_dict"],
    )
    build(faster_rcnn()).load_state_dict(
        torch.load(tmp_path / "epoch_2.pth", weights_only=False)["state_dict"], strict=True
    )


@pytest.mark.parametrize("agnostic", [False, True])
def test_the_samples_of_faster_rcnn_are_those_of_its_own_losses(data, weights, agnostic):
    config = faster_rcnn(12, agnostic=agnostic)
    detector = build(taught(faster_rcnn(agnostic=agnostic), config, CHEN, weights(config))).train()
    names = [
        f"{part}.{what}"
        for part in ("rpn", "rois")
        for what in (
            "student.logits",
            "teacher.logits",
            "student.deltas",
            "teacher.deltas",
            "target",
            "count",
        )
    ]
    names += ["rpn.sampled", "rpn.positive", "rois.boxes", "rois.label"]
    losses, kept = taken(detector, data, names)
    student, teacher = detector.student, detector.distiller.model("teacher")
    rpn, roi = student.rpn_head, student.roi_head.bbox_head
    sampled, positive, count = kept["rpn.sampled"], kept["rpn.positive"], kept["rpn.count"]
    assert (
        sampled.sum() == count == 128 == len(kept["rpn.teacher.logits"])
        and (sampled | ~positive).all()
        and positive.any()
    )
    labels = (~positive[sampled]).long()
    again = rpn.loss_cls(kept["rpn.student.logits"], labels, torch.ones(count), avg_factor=count)
    # mmdet adds level by level
    assert torch.allclose(again * 0.6, losses["loss_rpn_cls"], rtol=1e-6, atol=0)
    again = rpn.loss_bbox(kept["rpn.student.deltas"], kept["rpn.target"], avg_factor=count)
    assert torch.allclose(again, losses["loss_rpn_bbox"], rtol=1e-6, atol=0)
    label, n = kept["rois.label"], kept["rois.count"]
    assert n == len(label) == len(kept["rois.boxes"]) == 64 and kept[
        "rois.student.logits"
    ].shape == (64, 4)
    assert torch.equal(
        0.6 * roi.loss_cls(kept["rois.student.logits"], label, torch.ones(n), avg_factor=float(n)),
        losses["loss_cls"],
    )
    assert torch.equal(
        roi.loss_bbox(kept["rois.student.deltas"], kept["rois.target"], avg_factor=n),
        losses["loss_bbox"],
    )
    assert (
        kept["rois.target"].shape
        == kept["rois.teacher.deltas"].shape
        == (int((label < 3).sum()), 4)
    )
    with torch.no_grad():
        features = teacher.extract_feat(batch_of(detector, data)[0])
        answer = teacher.roi_head._bbox_forward(features, kept["rois.boxes"])
        logits, deltas = teacher.rpn_head(features)
    assert torch.equal(kept["rois.teacher.logits"], answer["cls_score"])
    row = int((label < 3).nonzero()[-1])
    place = 0 if agnostic else int(label[row])
    assert torch.equal(
        kept["rois.teacher.deltas"][-1], answer["bbox_pred"][row, 4 * place : 4 * place + 4]
    )
    flat = torch.cat([m.permute(0, 2, 3, 1).reshape(2, -1) for m in logits], 1)
    assert torch.equal(kept["rpn.teacher.logits"][:, 0], flat[sampled])
    flat = torch.cat([m.permute(0, 2, 3, 1).reshape(2, -1, 4) for m in deltas], 1)
    assert torch.equal(kept["rpn.teacher.deltas"], flat[positive])
    assert not any(t.requires_grad for name, t in kept.items() if ".teacher." in name)
    assert kept["rpn.student.logits"].requires_grad and kept["rois.student.deltas"].requires_grad


def test_the_rpn_loss_from_the_taken_logits_is_mmdets_to_the_last_digit(data, weights):
    config = faster_rcnn()
    # one level: the same order of summation
    config["rpn_head"]["anchor_generator"] |= {"strides": [16], "scales": [2, 4]}
    config["neck"]["num_outs"] = 4
    config["backbone"]["out_indices"], config["neck"]["in_channels"], config["neck"]["num_outs"] = (
        (2,),
        [32],
        1,
    )
    config["roi_head"]["bbox_roi_extractor"]["featmap_strides"] = [16]
    detector = build(
        taught(config, copy.deepcopy(config), {"loss_soft": CHEN["loss_rpn_soft"]}, weights(config))
    ).train()
    losses, kept = taken(
        detector, data, ["rpn.student.logits", "rpn.positive", "rpn.sampled", "rpn.count"]
    )
    labels = (~kept["rpn.positive"]).long()
    logits = torch.zeros(*labels.shape, 1)
    logits[kept["rpn.sampled"]] = kept["rpn.student.logits"].detach()
    again = detector.student.rpn_head.loss_cls(
        logits.reshape(-1, 1),
        labels.reshape(-1),
        kept["rpn.sampled"].float().reshape(-1),
        avg_factor=kept["rpn.count"],
    )
    assert torch.equal(again, losses["loss_rpn_cls"])


@pytest.mark.parametrize("make, numbers", [(gfl, 36), (fcos, 4)])
def test_gfl_and_fcos_learn_with_adl(data, weights, tmp_path, make, numbers):
    runner = run(data, tmp_path, taught(make(), make(12), ADL, weights(make(12))))
    logged = log(tmp_path)
    assert np.isfinite(logged["loss"]).all() and all(v > 0 for v in logged["loss_adl"])
    detector = runner.model.train()
    _, kept = taken(detector, data, ["student.box_deltas", "teacher.box_deltas", "anchors.valid"])
    assert (
        kept["student.box_deltas"].shape
        == kept["teacher.box_deltas"].shape
        == (*kept["anchors.valid"].shape, numbers)
    )
    # in eval FCOS multiplies its boxes by the stride
    if make is fcos:
        teacher = detector.distiller.model("teacher")
        with torch.no_grad():
            in_eval = teacher.bbox_head(teacher.extract_feat(batch_of(detector, data)[0]))[1]
        assert not teacher.bbox_head.training
        first = kept["teacher.box_deltas"][:, : in_eval[0][0, 0].numel()]
        assert torch.equal(first * 8, in_eval[0].permute(0, 2, 3, 1).reshape(2, -1, 4))


@pytest.mark.parametrize(
    "make, taught_by, losses",
    [
        (retinanet, fcos, by_level("PKDLoss", FEATURES, 4)),
        (faster_rcnn, faster_rcnn, by_level("PKDLoss", FEATURES, 4)),
        (fcos, retinanet, by_level("CWDLoss", FEATURES, 4)),
        (gfl, gfl, by_level("CWDLoss", "{role}.bbox_head.gfl_cls@{level}", 4) | LD),
    ],
    ids=["RetinaNet by FCOS", "Faster R-CNN", "FCOS by RetinaNet", "GFL"],
)
def test_pkd_cwd_and_ld_by_the_same_names(data, weights, tmp_path, make, taught_by, losses):
    """The student's checkpoint is a plain one, though a projector has learned beside it."""
    run(data, tmp_path, taught(make(), taught_by(12), losses, weights(taught_by(12))))
    logged = log(tmp_path)
    for name in ["loss", *losses]:
        assert len(logged[name]) == 4 and np.isfinite(logged[name]).all(), name
        assert sum(logged[name]) > 0, name
    load_weights(build(make()), tmp_path / "epoch_1.pth")


def test_ld_is_that_of_mmdets_own_head(data, weights):
    """Of the same weights, images and matched anchors; and of another head it says which."""
    detector = build(taught(gfl(), gfl(12), LD, weights(gfl(12)))).train()
    losses, kept = taken(detector, data, LD["loss_ld"]["of"])
    assert kept["anchors.student.edges"].shape[1:] == (4, 9)
    config = gfl()
    config["bbox_head"] |= {
        "type": "LDHead",
        "loss_ld": {"type": "KnowledgeDistillationKLDivLoss", "loss_weight": 0.25, "T": 10},
    }
    own, teacher = build(config).train(), detector.distiller.model("teacher")
    own.load_state_dict(detector.student.state_dict())
    inputs, samples = batch_of(detector, data)
    with torch.no_grad():
        said = teacher.bbox_head(teacher.extract_feat(inputs))
        expected = own.bbox_head.loss(own.extract_feat(inputs), said, samples)
    torch.testing.assert_close(losses["loss_ld"], sum(expected["loss_ld"]))
    assert sum(expected["loss_ld"]) > 0
    torch.testing.assert_close(losses["loss_bbox"], sum(expected["loss_bbox"]))
    for make in (retinanet, fcos):
        head = {retinanet: "RetinaHead", fcos: "FCOSHead"}[make]
        with pytest.raises(ValueError, match=f"the {head} of student gives 4 numbers for a box"):
            build(taught(make(), make(12), LD, weights(make(12))))


CROSSED = ["cross.teacher.cls_logits", "cross.teacher.box_deltas"]
CROSS = {
    "loss_cross_cls": {
        "type": "kdtasks.detection.QualityFocalLoss",
        "of": (CROSSED[0], "teacher.cls_logits", "anchors.valid", "anchors.count"),
    },
    "loss_cross_box": {
        "type": "kdtasks.detection.CrossBoxLoss",
        "of": (CROSSED[1], "teacher.box_deltas", "teacher.cls_logits", "anchors.valid"),
    },
}


@pytest.mark.parametrize("make, kind", [(retinanet, "deltas"), (fcos, "distances"), (gfl, "edges")])
def test_a_teachers_head_goes_on_from_the_students_features(data, weights, tmp_path, make, kind):
    """It says what it said itself of a student that is its copy; and a short run."""
    losses = copy.deepcopy(CROSS)
    losses["loss_cross_box"]["kind"] = kind
    config = taught(make(), make(), losses, weights(make()), cross_after=1)
    detector = build(config)
    student, teacher = detector.student, detector.distiller.model("teacher")
    student.load_state_dict(teacher.state_dict())
    names = ["teacher.cls_logits", "teacher.box_deltas", *CROSSED, "anchors.count"]
    found, kept = taken(detector.eval(), data, names)
    for own, crossed in zip(names, CROSSED):
        torch.testing.assert_close(kept[crossed].detach(), kept[own], rtol=1e-2, atol=1e-3)
    assert found["loss_cross_cls"] < 0.01
    if hasattr(student.bbox_head, "scales"):
        # a level's scale is the student's
        with torch.no_grad():
            student.bbox_head.scales[0].scale.mul_(2)
        kept = taken(detector, data, names)[1]
        first = slice(0, student.bbox_head.scales[0].scale.numel() * 64)
        torch.testing.assert_close(
            kept[CROSSED[1]][:, first], 2 * kept[names[1]][:, first], rtol=1e-2, atol=1e-3
        )
        kept[CROSSED[1]].sum().backward()
        assert student.bbox_head.scales[0].scale.grad.abs() > 0
        assert teacher.bbox_head.scales[0].scale.grad is None
    run(data, tmp_path, config)
    logged = log(tmp_path)
    assert all(np.isfinite(logged[name]).all() for name in ["loss", *losses])
    assert min(logged["loss_cross_cls"]) > 0
    load_weights(build(make()), tmp_path / "epoch_1.pth")


def test_a_teacher_whose_head_cannot_go_on_is_named_when_the_detector_is_built(weights):
    for make, by, options, words in (
        (retinanet, retinanet(12), {}, "expected equally many channels"),
        (retinanet, retinanet(), {"cross_after": 2}, "cross_after must be from 1 to 1"),
        (yolox, yolox(), {}, "student: YOLOX has no 'bbox_head.cls_convs'"),
    ):
        config = taught(make(), by, CROSS, weights(by), **{"cross_after": 1} | options)
        with pytest.raises(ValueError, match=words):
            build(config)


@pytest.mark.parametrize(
    "make, losses", [(retinanet, ADL | HINT), (faster_rcnn, CHEN), (fcos, ADL)]
)
def test_a_step_runs_each_model_once_whatever_is_wanted(data, weights, make, losses):
    detector = build(taught(make(), make(12), losses, weights(make(12)))).train()
    ran = []
    for role in ("student", "teacher"):
        for path in (
            "backbone",
            "neck",
            *(("rpn_head", "roi_head.bbox_head") if make is faster_rcnn else ("bbox_head",)),
        ):
            module = detector.distiller.model(role).get_submodule(path)
            module.register_forward_hook(lambda *_, name=f"{role}.{path}": ran.append(name))
    detector(*batch_of(detector, data), mode="loss")
    assert len(ran) == len(set(ran)) == (8 if make is faster_rcnn else 6)


@pytest.mark.parametrize(
    "make, losses", [(retinanet, ADL), (faster_rcnn, CHEN), (gfl, ADL), (fcos, ADL)]
)
def test_images_without_boxes(data, weights, make, losses):
    detector = build(taught(make(), make(12), losses, weights(make(12)))).train()
    for indices in ((6,), (6, 0)):
        inputs, samples = batch_of(detector, data, indices)
        found = detector(inputs, samples, mode="loss")
        total = sum(value for name, value in found.items() if "loss" in name)
        assert torch.isfinite(total)
        total.backward()
        assert all(
            torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None
        )


def test_a_teacher_with_another_normalisation_sees_what_it_knows(data, weights):
    teacher = retinanet(12)
    teacher["data_preprocessor"] = {
        "type": "DetDataPreprocessor",
        "mean": [103.53, 116.28, 123.675],
        "std": [1.0, 1.0, 1.0],
        "bgr_to_rgb": False,
        "pad_size_divisor": 32,
    }
    detector = build(taught(retinanet(), teacher, ADL, weights(retinanet(12)))).train()
    _, kept = taken(detector, data, [])
    model = detector.distiller.model("teacher")
    with torch.no_grad():
        images, _ = batch_of(model, data)
        assert (images[0, :, 112:] == 0).all()  # padding
        maps = model.bbox_head(model.extract_feat(images))[0]
    expected = torch.cat([m.permute(0, 2, 3, 1).reshape(2, -1, 3) for m in maps], 1)
    torch.testing.assert_close(kept["teacher.cls_logits"], expected, rtol=1e-4, atol=1e-4)


def test_class_map_selects_the_teachers_columns(data, weights):
    wide = faster_rcnn(12, classes=5)
    detector = build(taught(faster_rcnn(), wide, CHEN, weights(wide), class_map=[4, 0, 2])).train()
    _, kept = taken(
        detector, data, ["rois.teacher.logits", "rois.teacher.deltas", "rois.boxes", "rois.label"]
    )
    teacher = detector.distiller.model("teacher")
    with torch.no_grad():
        answer = teacher.roi_head._bbox_forward(
            teacher.extract_feat(batch_of(detector, data)[0]), kept["rois.boxes"]
        )
    assert torch.equal(kept["rois.teacher.logits"], answer["cls_score"][:, [4, 0, 2, 5]])
    label = kept["rois.label"]
    rows = (label < 3).nonzero()[:, 0]
    expected = torch.stack([answer["bbox_pred"][r].view(5, 4)[[4, 0, 2][label[r]]] for r in rows])
    assert torch.equal(kept["rois.teacher.deltas"], expected)
    one_stage = build(
        taught(
            retinanet(),
            retinanet(classes=5),
            ADL,
            weights(retinanet(classes=5)),
            class_map=[4, 0, 2],
        )
    )
    assert taken(one_stage, data, [])[1]["teacher.cls_logits"].shape[-1] == 3


@pytest.mark.parametrize(
    "student, teacher, losses, more, message",
    [
        (
            retinanet(),
            retinanet(classes=5),
            ADL,
            {},
            r"teacher has 5 classes .*, the student 3: expected class_map",
        ),
        (
            faster_rcnn(),
            faster_rcnn(classes=5),
            CHEN,
            {},
            r"teacher has 5 classes .*, the student 3: expected class_map",
        ),
        (
            retinanet(),
            retinanet(classes=5),
            ADL,
            {"class_map": [0, 1, 5]},
            r"3 of the classes 0 to 4 "
            r"of teacher, one for each "
            r".* got \[0, 1, 5\]",
        ),
        (
            retinanet(),
            retinanet(scales=2),
            ADL,
            {},
            r"anchors \[\(9, 4\).*those of teacher \[\(6, 4\)",
        ),
        (retinanet(), gfl(), ADL, {}, r"anchors \[\(9, 4\).*those of teacher \[\(1, 4\)"),
        (retinanet(), faster_rcnn(), ADL, {}, "no model supplies 'teacher.cls_logits'"),
        (
            retinanet(),
            retinanet(),
            {
                "loss_x": {
                    "type": "torch.nn.MSELoss",
                    "of": ("features.student.9", "features.teacher.9"),
                }
            },
            {},
            "neither a model nor the batch supplies 'features.student.9'",
        ),
        (
            retinanet(),
            retinanet(12),
            {
                "loss_x": {
                    "type": "torch.nn.MSELoss",
                    "of": ("features.student.0", "features.teacher.0"),
                }
            },
            {},
            r"features.student.0 \(1, 16, 48, 48\), features.teacher.0 \(1, 24, 48, 48\)",
        ),
        (
            retinanet(),
            retinanet(),
            {"loss_cls": ADL["loss_adl"]},
            {},
            "two losses are called 'loss_cls'",
        ),
        (
            retinanet(),
            retinanet(),
            {"loss_x": {"type": "torch.nn.MSELoss"}},
            {},
            r"losses.loss_x must "
            r"be a dict\(type=…, "
            r"of=…",
        ),
        (
            retinanet(),
            retinanet(),
            {"loss_x": ADL["loss_adl"] | {"gama": 2.0}},
            {},
            "has no argument 'gama'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_an_error_when_the_detector_is_built(
    weights, student, teacher, losses, more, message
):
    with pytest.raises(ValueError, match=message):
        build(taught(student, teacher, losses, weights(teacher), **more))


def test_other_anchors_of_the_same_number_are_an_error(weights):
    other = retinanet()
    other["bbox_head"]["anchor_generator"]["octave_base_scale"] = 8
    with pytest.raises(
        ValueError, match="at level 0 the student's anchors are .* logits of different anchors"
    ):
        build(taught(retinanet(), other, ADL, weights(other)))
    # features only: no anchor is compared
    build(taught(retinanet(), other, HINT, weights(other)))


def test_an_unlabelled_image_is_a_clear_error_where_none_is_expected(data, weights):
    detector = build(taught(retinanet(), retinanet(), ADL, weights(retinanet())))
    for remove in ("gt_instances", "bboxes"):
        inputs, samples = batch_of(detector, data)
        delattr(samples[1] if remove == "gt_instances" else samples[1].gt_instances, remove)
        with pytest.raises(
            ValueError, match="image 1 of the batch has no gt_instances with bboxes"
        ):
            detector(inputs, samples, mode="loss")
    two = build(
        taught(faster_rcnn(), faster_rcnn(), CHEN, weights(faster_rcnn()), unlabelled="soft")
    )
    inputs, samples = batch_of(two, data)
    del samples[1].gt_instances
    with pytest.raises(ValueError, match="unlabelled images go with dense detectors"):
        two(inputs, samples, mode="loss")


@pytest.mark.parametrize("make", [retinanet, gfl, fcos])
def test_unlabelled_images_enter_the_soft_losses_and_not_the_hard_ones(data, weights, make):
    config = taught(make(), make(12), ADL, weights(make(12)), unlabelled="soft")
    detector = build(config).train()
    plain = copy.deepcopy(detector.student)
    inputs, samples = batch_of(detector, data, (0, 1, 3))
    full = detector(inputs, samples, mode="loss")
    some = copy.deepcopy(samples)
    del some[1].gt_instances.bboxes
    losses, kept = taken(detector, data, ["student.cls_logits"], (0, 1, 3), some)
    assert len(kept["student.cls_logits"]) == 3 == len(kept["anchors.valid"])
    assert kept["anchors.valid"][1].all() and losses.keys() == full.keys()
    # BatchNorm saw all three in both
    features = plain.extract_feat(inputs)
    hard = plain.bbox_head.loss_by_feat(
        *([level[[0, 2]] for level in part] for part in plain.bbox_head(features)),
        [samples[i].gt_instances for i in (0, 2)],
        [samples[i].metainfo for i in (0, 2)],
    )
    for name, value in hard.items():
        expected = value if isinstance(value, torch.Tensor) else sum(value)
        torch.testing.assert_close(losses[name], expected)
        assert losses[name] != full[name]
    none = copy.deepcopy(samples)
    for sample in none:
        del sample.gt_instances
    losses, _ = taken(detector, data, [], (0, 1, 3), none)
    assert losses.keys() == full.keys() and losses["loss_adl"] > 0
    assert all(losses[name] == 0 and losses[name].requires_grad for name in hard)
    with pytest.raises(ValueError, match="unlabelled must be one of"):
        build({**config, "unlabelled": "hard"})


def test_pseudo_boxes_are_the_teachers_in_the_students_classes(data, weights):
    wide = retinanet(12, classes=5)
    config = taught(
        retinanet(),
        wide,
        ADL,
        weights(wide),
        class_map=[4, 0, 2],
        unlabelled="soft+pseudo",
        pseudo_score=0.25,
    )
    detector = build(config).train()
    inputs, samples = batch_of(detector, data, (0, 1, 3))
    found = [[[10.0, 10, 60, 50], [5, 5, 40, 40], [3, 3, 30, 30]], [0, 3, 4], [0.9, 0.8, 0.2]]

    def predict(images, given, rescale):
        from mmengine.structures import InstanceData

        boxes, labels, scores = map(torch.tensor, found)
        for sample in given:
            sample.pred_instances = InstanceData(bboxes=boxes, labels=labels, scores=scores)
        assert not rescale and len(images) == len(given) == 1
        return given

    detector.distiller.model("teacher").predict = predict
    some = copy.deepcopy(samples)
    del some[1].gt_instances
    losses, _ = taken(detector, data, [], (0, 1, 3), some)
    assert "gt_instances" not in some[1] and "pred_instances" not in some[1]
    # class 0 is the student's 1; it has no class 3; the last is not sure
    samples[1].gt_instances = samples[1].gt_instances[:1]
    samples[1].gt_instances.bboxes = torch.tensor(found[0][:1])
    samples[1].gt_instances.labels = torch.tensor([1])
    expected = detector(inputs, samples, mode="loss")
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


@pytest.mark.parametrize("make", [retinanet, fcos])
def test_matched_anchors_give_the_hard_box_loss(data, weights, make):
    names = ("anchors.student.deltas", "anchors.teacher.deltas", "anchors.target", "anchors.count")
    bounded = {"loss_bounded": {"type": BOUNDED, "of": names, "weight": 0.5}}
    config = taught(make(), make(12), bounded, weights(make(12)), unlabelled="soft")
    detector = build(config).train()
    _, samples = batch_of(detector, data, (0, 1, 3))
    del samples[0].gt_instances
    losses, kept = taken(detector, data, ["student.box_deltas", *names], (0, 1, 3), samples)
    student, teacher, target = (kept[name] for name in names[:3])
    assert student.shape == teacher.shape == target.shape == (kept["anchors.count"], 4)
    if make is retinanet:
        again = (student - target).abs().sum() / len(target)
        torch.testing.assert_close(again, losses["loss_bbox"])
    assert kept["anchors.count"] > 0
    whole = kept["student.box_deltas"]
    rows = (whole.reshape(-1, 1, 4) == student[None, :5]).all(2).any(1).nonzero()[:, 0]
    # none of the unlabelled image
    assert len(rows) == 5 and int(rows.min()) >= whole.shape[1]
    other = build(taught(gfl(), gfl(12), {"loss_adl": ADL["loss_adl"]}, weights(gfl(12)))).train()
    with pytest.raises(ValueError, match="GFLHead gives 36 numbers for a box, expected 4"):
        taken(other, data, ["anchors.target"])


def test_prediction_is_the_plain_students(data, weights):
    detector = build(taught(retinanet(), retinanet(12), ADL, weights(retinanet(12)))).eval()
    plain = build(retinanet()).eval()
    plain.load_state_dict(detector.state_dict())
    inputs, samples = batch_of(detector, data)
    for a, b in zip(
        detector(inputs, copy.deepcopy(samples), mode="predict"),
        plain(inputs, copy.deepcopy(samples), mode="predict"),
    ):
        assert torch.equal(a.pred_instances.scores, b.pred_instances.scores) and torch.equal(
            a.pred_instances.bboxes, b.pred_instances.bboxes
        )
    assert all(
        torch.equal(a, b) for x, y in zip(detector(inputs), plain(inputs)) for a, b in zip(x, y)
    )
    assert detector.bbox_head is detector.student.bbox_head and not hasattr(detector, "roi_head")


def test_losses_that_the_student_gives_only_later_are_let_through(data, weights):
    detector = build(taught(yolox(), yolox(), ADL, weights(yolox()))).train()
    inputs, samples = batch_of(detector, data)
    assert set(detector(inputs, samples, mode="loss")) == {
        "loss_cls",
        "loss_bbox",
        "loss_obj",
        "loss_adl",
    }
    # as mmdet's YOLOXModeSwitchHook
    detector.bbox_head.use_l1 = True
    plain, found = (
        detector.student(inputs, samples, mode="loss"),
        detector(inputs, samples, mode="loss"),
    )
    assert set(found) == {*plain, "loss_adl"} and "loss_l1" in found
    assert torch.equal(found["loss_l1"], plain["loss_l1"]) and found["loss_l1"].requires_grad
    copy.deepcopy(detector)
    other = build(taught(yolox(), yolox(), {"loss_l1": ADL["loss_adl"]}, weights(yolox()))).train()
    other.bbox_head.use_l1 = True
    with pytest.raises(
        ValueError, match="the student's own 'loss_l1'.* has the name of a loss of yours"
    ):
        other(inputs, samples, mode="loss")


@pytest.mark.parametrize("make", [vfnet, tood])
def test_heads_that_give_losses_in_training_only(data, weights, make):
    from mmengine.logging import MessageHub

    hub = MessageHub.get_current_instance()
    hub.runtime_info.pop("epoch", None)
    detector = build(taught(make(), make(), ADL, weights(make()))).eval()
    assert hub.get_info("epoch") is None
    before, inputs = state(detector), batch_of(detector, data)
    hub.update_info("epoch", 0)
    in_eval = detector(*inputs, mode="loss")
    assert not any(module.training for module in detector.student.modules()) and same(
        state(detector), before
    )
    assert {"loss_cls", "loss_bbox", "loss_adl"} <= set(in_eval)
    # BatchNorm
    assert set(detector.train()(*inputs, mode="loss")) == set(in_eval) and not same(
        state(detector), before
    )
    hub.runtime_info.pop("epoch")


def test_a_student_that_gives_no_losses_is_a_clear_error(weights):
    config = retinanet()
    # mmdet's head has no assigner then
    config["train_cfg"] = None
    with pytest.raises(
        ValueError,
        match=r"RetinaNet gives no losses for a trial image of 384 x "
        r"384 px: TypeError",
    ):
        build(taught(config, retinanet(), ADL, weights(retinanet())))


def test_a_trial_image_has_masks_where_the_model_wants_them(weights):
    from kdtasks.detection.plugin import example_batch

    config = faster_rcnn()
    config["type"] = "MaskRCNN"
    config["roi_head"] |= {
        "mask_roi_extractor": copy.deepcopy(config["roi_head"]["bbox_roi_extractor"]),
        "mask_head": {
            "type": "FCNMaskHead",
            "num_convs": 1,
            "in_channels": 16,
            "conv_out_channels": 8,
            "num_classes": 3,
            "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
        },
    }
    config["train_cfg"]["rcnn"]["mask_size"] = 14
    detector = build(
        taught(
            config,
            faster_rcnn(),
            {name: CHEN[name] for name in ("loss_rpn_soft", "loss_roi_soft")},
            weights(faster_rcnn()),
        )
    )
    assert "loss_mask" in detector.distiller.loss_names()
    assert "masks" not in example_batch(build(retinanet()))["target"][0].gt_instances


def test_the_students_parameters_have_plain_names_and_layerwise_decay_finds_them(weights):
    from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor
    from mmdet.registry import MODELS
    from mmengine.model import BaseModule

    @MODELS.register_module(name="TinyConvNeXt", force=True)
    class TinyConvNeXt(BaseModule):
        def __init__(self):
            super().__init__()
            self.downsample_layers = torch.nn.ModuleList(
                torch.nn.Conv2d(
                    3 if k == 0 else 8 * 2 ** (k - 1), 8 * 2**k, 3, 4 if k == 0 else 2, 1
                )
                for k in range(4)
            )
            self.stages = torch.nn.ModuleList(
                torch.nn.Sequential(torch.nn.Conv2d(8 * 2**k, 8 * 2**k, 1)) for k in range(4)
            )

        def forward(self, x):
            levels = []
            for down, stage in zip(self.downsample_layers, self.stages):
                levels.append(x := stage(down(x)))
            return levels[1:]

    config = {**retinanet(), "backbone": {"type": "TinyConvNeXt"}}
    detector = build(taught(config, retinanet(12), ADL | HINT, weights(retinanet(12))))
    names = [name for name, _ in detector.student.named_parameters()]
    learned = [
        f"distiller.losses.{name}" for name, _ in detector.distiller.losses.named_parameters()
    ]
    assert [name for name, _ in detector.named_parameters()] == [*names, *learned] and len(
        learned
    ) == 2
    assert [name for name, _ in detector.named_parameters("x")] == [
        f"x.{name}" for name in [*names, *learned]
    ]
    options = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 1.0, "weight_decay": 0.1}}
    constructor = LearningRateDecayOptimizerConstructor(
        options, {"decay_rate": 0.5, "decay_type": "layer_wise", "num_layers": 6}
    )
    rates = [
        {
            name: group["lr"]
            for group in constructor(model).optimizer.param_groups
            for name in group["param_names"]
        }
        for model in (detector, detector.student)
    ]
    assert {name: rates[0][name] for name in names} == rates[1]
    assert rates[0]["backbone.stages.0.0.weight"] == 0.5**6 and rates[0][learned[0]] == 1.0


def test_ddp_and_ema_with_plain_names(data, weights, tmp_path):
    from mmengine.model import ExponentialMovingAverage, MMDistributedDataParallel
    from mmengine.optim import OptimWrapper

    detector = build(taught(retinanet(), retinanet(12), ADL | HINT, weights(retinanet(12)))).train()
    average = ExponentialMovingAverage(detector, momentum=0.5)  # goes by named_parameters
    assert set(average.avg_parameters) == {name for name, _ in detector.named_parameters()}
    average.update_parameters(detector)
    before, inputs = (
        {name: p.detach().clone() for name, p in detector.named_parameters()},
        batch_of(detector, data),
    )
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        model = MMDistributedDataParallel(detector)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        losses = model(*inputs, mode="loss")
        OptimWrapper(optimizer).update_params(sum(value for name, value in losses.items()))
    finally:
        torch.distributed.destroy_process_group()
    moved = {name for name, p in detector.named_parameters() if not torch.equal(p, before[name])}
    assert {
        "backbone.conv1.weight",
        "bbox_head.retina_cls.bias",
        "distiller.losses.loss_hint.projector.weight",
    } <= moved
    average.update_parameters(detector)
    for name, p in average.module.named_parameters():
        torch.testing.assert_close(p, (before[name] + dict(detector.named_parameters())[name]) / 2)


# Teacher checkpoints ------------------------------------------------------------------------------
def test_a_real_runner_checkpoint_is_read_and_nothing_in_it_is_run(data, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    runner = run(data, tmp_path, retinanet(12))
    file = tmp_path / "epoch_1.pth"
    safe = set(torch.serialization.get_safe_globals())
    with pytest.raises(Exception, match="HistoryBuffer|weights_only"):
        torch.load(file, weights_only=True)
    detector = build(taught(retinanet(), retinanet(12), ADL, file))
    assert same(state(detector.distiller.model("teacher")), state(runner.model))
    assert set(torch.serialization.get_safe_globals()) == safe

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'exploded'}",)

    content = torch.load(file, weights_only=False)
    torch.save({**content, "bomb": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match=r"bomb\.pth.*holds posix\.system|bomb\.pth"):
        build(taught(retinanet(), retinanet(12), ADL, tmp_path / "bomb.pth"))
    assert not (tmp_path / "exploded").exists()


def test_a_taught_students_checkpoint_can_teach_in_turn(data, weights, tmp_path):
    run(data, tmp_path, taught(retinanet(), retinanet(12), ADL | HINT, weights(retinanet(12))))
    detector = build(taught(retinanet(), retinanet(), ADL, tmp_path / "epoch_1.pth"))
    saved = torch.load(tmp_path / "epoch_1.pth", weights_only=False)["state_dict"]
    assert same(state(detector.distiller.model("teacher")), saved)


def test_wrong_teacher_checkpoints(weights, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)is not a checkpoint of the teacher.*retina_cls"):
        build(taught(retinanet(), retinanet(12), ADL, weights(retinanet(12, classes=4))))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        build(taught(retinanet(), retinanet(12), ADL, tmp_path / "none.pth"))
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        build(taught(retinanet(), retinanet(12), ADL, tmp_path / "page.pth"))
    with pytest.warns(UserWarning, match="no teacher_checkpoint: it has random weights"):
        build(taught(retinanet(), retinanet(12), ADL))


def test_a_pretrained_teacher_is_loaded_strictly_too(weights, tmp_path):
    def teacher(file, kind=dict, **more):
        pretrained = {"type": "Pretrained", "checkpoint": str(file), **more}
        return {
            **retinanet(12),
            "init_cfg": pretrained
            if kind is dict
            else [{"type": "Normal", "layer": "Linear"}, pretrained],
        }

    right = torch.load(weights(retinanet(12)))["state_dict"]
    torch.save(
        {f"net.{name}": value for name, value in right.items()} | {"other": torch.ones(1)},
        tmp_path / "part.pth",
    )
    for config in (
        teacher(weights(retinanet(12))),
        teacher(weights(retinanet(12)), list),
        teacher(tmp_path / "part.pth", prefix="net"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            detector = build(taught(retinanet(), config))
        assert same(state(detector.distiller.model("teacher")), right)
    with pytest.raises(ValueError, match=r"(?s)is not a checkpoint of the teacher.*retina_cls"):
        build(taught(retinanet(), teacher(weights(retinanet(12, classes=4)))))


@pytest.mark.parametrize("as_init_cfg", [False, True])
def test_an_address_is_no_file(as_init_cfg):
    address, teacher = "https://download.example/retinanet.pth", retinanet()
    if as_init_cfg:
        teacher["init_cfg"] = {"type": "Pretrained", "checkpoint": address}
    with pytest.raises(
        ValueError, match=f"{address}' is an address: download it first, and give the file"
    ):
        build(taught(retinanet(), teacher, checkpoint=None if as_init_cfg else address))


def test_weights_of_losses_are_saved_on_the_cpu(weights):
    from kdtasks.detection.plugin import _to_student_names

    class OnAGPU:
        def cpu(self):
            return "on the CPU"

    content, metadata = {"distiller.losses.loss_hint.projector.weight": OnAGPU()}, {}
    _to_student_names(None, content, "", metadata)
    assert content == {} and metadata == {
        "distillation": {"losses.loss_hint.projector.weight": "on the CPU"}
    }


@pytest.mark.parametrize("loader", ["torch", "mmengine"])
def test_the_students_own_hooks_read_checkpoints_of_older_versions(weights, tmp_path, loader):
    from mmengine.runner import load_checkpoint

    for make, old, new in (
        (fcos, "bbox_head.fcos_", "bbox_head.conv_"),
        (faster_rcnn, "bbox_head.rpn_", "rpn_head.rpn_"),
    ):
        right = torch.load(weights(make()))["state_dict"]
        older = {
            (name.replace(new, old) if name.startswith(("bbox_head", "rpn_head")) else name): value
            for name, value in right.items()
        }
        assert older.keys() != right.keys() or make is not fcos
        torch.save({"state_dict": older}, tmp_path / "older.pth")
        detector = build(
            taught(make(), make(), ADL | HINT if make is fcos else HINT, weights(make()))
        )
        assert not same(state(detector.student), right)
        if loader == "torch":
            detector.load_state_dict(older)
        else:
            load_checkpoint(detector, str(tmp_path / "older.pth"), strict=True)
        assert same(state(detector.student), right)
        lacking = {
            name: value for name, value in right.items() if name != "neck.lateral_convs.0.conv.bias"
        } | {"neck.more": torch.ones(1)}
        found = detector.load_state_dict(lacking, strict=False)
        assert (found.missing_keys, found.unexpected_keys) == (
            ["neck.lateral_convs.0.conv.bias"],
            ["neck.more"],
        )
        with pytest.raises(
            RuntimeError,
            match=r'(?s)Missing.*"neck.lateral_convs.0.conv.bias".*Unexpected.*"neck.more"',
        ):
            detector.load_state_dict(lacking)


def test_deltas_and_places_that_do_not_correspond(data, weights):
    deltas = {
        "loss_x": {"type": "torch.nn.MSELoss", "of": ("student.box_deltas", "teacher.box_deltas")}
    }
    other, short = fcos(), gfl()
    other["bbox_head"]["norm_on_bbox"], short["bbox_head"]["reg_max"] = False, 4
    with pytest.raises(
        ValueError,
        match=r"'norm_on_bbox': True.*teacher as .*'norm_on_bbox': "
        r"False.*their deltas cannot be compared",
    ):
        build(taught(fcos(), other, deltas, weights(other)))
    with pytest.raises(ValueError, match=r"'reg_max': 8.*'reg_max': 4"):
        build(taught(gfl(), short, deltas, weights(short)))
    build(taught(yolox(), yolox(), deltas, weights(yolox())))  # no coder at all, in both
    with pytest.raises(
        ValueError, match="anchors: the student's CenterNetHead has no prior_generator"
    ):
        build(taught(centernet(), centernet(), ADL, weights(centernet())))


def test_names_weights_and_preprocessors_that_do_not_fit(weights):
    from kdtasks.detection.plugin import MMDetDistiller

    for name in ("rois", "rpn", "anchors", "features"):
        with pytest.raises(ValueError, match=f"a teacher cannot be called '{name}'"):
            MMDetDistiller(build(retinanet()), {name: build(retinanet())})
    with pytest.raises(
        ValueError,
        match=r"losses.loss_adl.weight must be a number or a "
        r"dict\(type=…\), got '0.5'",
    ):
        build(
            taught(
                retinanet(),
                retinanet(),
                {"loss_adl": {**ADL["loss_adl"], "weight": "0.5"}},
                weights(retinanet()),
            )
        )
    beside = retinanet()["data_preprocessor"]
    build(taught(retinanet(), retinanet(), ADL, weights(retinanet()), data_preprocessor=beside))
    with pytest.warns(
        UserWarning, match="student: its own data_preprocessor stands; the one beside it differs"
    ):
        build(
            taught(
                retinanet(),
                retinanet(),
                ADL,
                weights(retinanet()),
                data_preprocessor={**beside, "bgr_to_rgb": False},
            )
        )


def test_config_files_and_schedules(data, weights, tmp_path):
    for name, model in (("student", retinanet()), ("teacher", retinanet(12))):
        (tmp_path / f"{name}.py").write_text(f"model = {model!r}\n")
    losses = {
        "loss_adl": {
            **ADL["loss_adl"],
            "weight": {"type": "kdtasks.core.Linear", "start": 0.0, "end": 1.0},
        }
    }
    config = taught(
        str(tmp_path / "student.py"), str(tmp_path / "teacher.py"), losses, weights(retinanet(12))
    )
    run(data, tmp_path / "run", config)
    logged = log(tmp_path / "run")["loss_adl"]
    # four steps, the first of weight 0
    assert len(logged) == 3 and logged[0] > 0
    library = "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py"
    detector = build(
        taught(
            library,
            library,
            {
                "gap": {
                    "type": "torch.nn.MSELoss",
                    "of": ("features.student.0", "features.teacher.0"),
                }
            },
            weights(_model_of(library)),
        )
    )
    assert (
        type(detector.student).__name__ == "RetinaNet"
        and detector.student.bbox_head.num_classes == 80
    )
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="has no 'model'"):
        build(taught(str(tmp_path / "empty.py"), retinanet(), ADL, weights(retinanet())))


CONFIGS = sorted((ROOT / "configs" / "detection" / "mmdet").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_two_steps_by_mmdets_own_tool(path, data, tmp_path, monkeypatch):
    """As it lies there; only the data, the size of the images and the files are others."""
    import mmdet
    from mmengine.config import Config

    model = Config.fromfile(path).model
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True},
        # the fifth level of the pyramid has 2 x 2 places
        {"type": "Resize", "scale": (192, 192), "keep_ratio": True},
        {"type": "PackDetInputs"},
    ]
    dataset = {
        "data_root": str(data),
        "ann_file": "all.json",
        "data_prefix": {"img": ""},
        "metainfo": {"classes": CLASSES},
        "indices": 4,
        "pipeline": pipeline,
    }
    changed = {
        "_base_": [str(path)],
        "model": {
            "student": {"backbone": {"init_cfg": None}},
            "teacher_checkpoint": str(tmp_path / "teacher.pth"),
        },
        "train_dataloader": {"num_workers": 0, "persistent_workers": False, "dataset": dataset},
        "train_cfg": {"max_epochs": 1},
        "default_hooks": {"logger": {"interval": 1}},
        # mmengine has one of a name in a process
        "visualizer": {"name": path.stem},
        "val_cfg": None,
        "val_dataloader": None,
        "val_evaluator": None,
        "log_level": "ERROR",
    }
    small = tmp_path / "small.py"
    small.write_text("".join(f"{key} = {value!r}\n" for key, value in changed.items()))
    torch.save(
        {"state_dict": build(_model_of(model.teacher)).state_dict()}, tmp_path / "teacher.pth"
    )
    tool = Path(mmdet.__path__[0]) / ".mim" / "tools" / "train.py"
    monkeypatch.setattr(sys, "argv", [str(tool), str(small), "--work-dir", str(tmp_path / "run")])
    runpy.run_path(str(tool), run_name="__main__")
    logged = log(tmp_path / "run")
    for name in ["loss", "loss_cls", "loss_bbox", *model.losses]:
        assert len(logged[name]) == 2 and np.isfinite(logged[name]).all(), name
    plain = build(Config.fromfile(path).model.student)
    load_weights(plain, tmp_path / "run" / "epoch_1.pth")


def test_student_file_of_the_library_loads_too(data, weights, tmp_path):
    """What DistillDetector saves without optimizer is a plain state_dict for kdtasks as well."""
    detector = build(taught(retinanet(), retinanet(12), ADL | HINT, weights(retinanet(12))))
    torch.save({"state_dict": detector.state_dict(), "meta": {}}, tmp_path / "student.pth")
    plain = build(retinanet())
    load_weights(plain, tmp_path / "student.pth")
    assert same(state(plain), state(detector.student))


def test_cascade_rcnn_keeps_its_own_losses(data, weights):
    config = faster_rcnn()
    box_head = config["roi_head"]["bbox_head"]
    config["type"] = "CascadeRCNN"
    config["roi_head"] |= {
        "type": "CascadeRoIHead",
        "num_stages": 2,
        "stage_loss_weights": [1, 0.5],
        "bbox_head": [copy.deepcopy(box_head), copy.deepcopy(box_head)],
    }
    config["train_cfg"]["rcnn"] = [copy.deepcopy(config["train_cfg"]["rcnn"]) for _ in range(2)]
    losses = {name: CHEN[name] for name in ("loss_rpn_soft", "loss_hint")} | {
        "loss_first": {"of": "student.s0.loss_cls", "weight": 0.5}
    }
    detector = build(taught(config, copy.deepcopy(config), losses, weights(config))).train()
    inputs, samples = batch_of(detector, data)
    found = detector(inputs, samples, mode="loss")
    assert {
        "loss_first",
        "s0.loss_bbox",
        "s1.loss_cls",
        "s1.loss_bbox",
        "s1.acc",
        "loss_rpn_cls",
        "loss_rpn_soft",
    } <= set(found)
    assert "s0.loss_cls" not in found
    with pytest.raises(
        ValueError, match="neither a model nor the batch supplies 'rois.student.logits'"
    ):
        build(
            taught(
                config, copy.deepcopy(config), {"loss_soft": CHEN["loss_roi_soft"]}, weights(config)
            )
        )
