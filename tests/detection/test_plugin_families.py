"""Which families of MMDetection's own configs can be student and teacher, on a CPU and before
anybody initialized them.
"""

import importlib.util

import pytest
import torch

pytestmark = [
    pytest.mark.mmdet,
    pytest.mark.skipif(
        importlib.util.find_spec("mmdet") is None,
        reason="MMDetection is not installed; ../shared/README.md has the one line that makes its "
        "environment",
    ),
]
WIDTHS = (
    "in_channels",
    "out_channels",
    "feat_channels",
    "fc_out_channels",
    "conv_out_channels",
    "embed_dims",
    "channels",
    "feedforward_channels",
    "proposal_feature_channel",
)
SMALLER = {256: 32, 1024: 64, 2048: 64}
FAMILIES = {
    "RetinaNet": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "FCOS": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "ATSS": "atss/atss_r50_fpn_1x_coco.py",
    "GFL": "gfl/gfl_r50_fpn_1x_coco.py",
    "VFNet": "vfnet/vfnet_r50_fpn_1x_coco.py",
    "TOOD": "tood/tood_r50_fpn_1x_coco.py",
    "DDOD": "ddod/ddod_r50_fpn_1x_coco.py",
    "YOLOX": "yolox/yolox_tiny_8xb8-300e_coco.py",
    "RTMDet": "rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
    "CenterNet": "centernet/centernet_r18_8xb16-crop512-140e_coco.py",
    "YOLOF": "yolof/yolof_r50-c5_8xb8-1x_coco.py",
    "DETR": "detr/detr_r50_8xb2-150e_coco.py",
    "Faster R-CNN": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "Mask R-CNN": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "Cascade R-CNN": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "Sparse R-CNN": "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py",
    "QueryInst": "queryinst/queryinst_r50_fpn_1x_coco.py",
}


def small(node, key=None):
    """A model config with few channels, and without files."""
    if isinstance(node, dict):
        for name in list(node):
            node[name] = small(node[name], name)
        if isinstance(node.get("init_cfg"), dict) and node["init_cfg"].get("type") == "Pretrained":
            node["init_cfg"] = None
        return node
    if isinstance(node, list | tuple):
        return type(node)(small(value, key) for value in node)
    return SMALLER.get(node, node) if key in WIDTHS and isinstance(node, int) else node


def model_of(name):
    from mmengine.hub import get_config

    model = small(get_config(f"mmdet::{FAMILIES[name]}").model)
    backbone, neck = model["backbone"], model.get("neck")
    if backbone["type"] == "ResNet":
        backbone.update(depth=18, base_channels=8)
        channels = [8 * 2**k for k in backbone.get("out_indices", (0, 1, 2, 3))]
        key = "in_channel" if "in_channel" in neck else "in_channels"
        neck[key] = channels if isinstance(neck[key], list | tuple) else channels[-1]
    if name == "DETR":
        model["positional_encoding"]["num_feats"] = 16
    return model


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Without the log of every parameter, which takes longer than the step."""
    from mmengine.logging import MessageHub, MMLogger

    torch.set_num_threads(1)
    torch.manual_seed(0)
    MMLogger.get_current_instance().setLevel("ERROR")
    MessageHub.get_current_instance().update_info("epoch", 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_built_taught_and_moves(name):
    from kdtasks.detection.mmdet_detectors import example_batch
    from kdtasks.detection.plugin import DistillDetector

    torch.manual_seed(0)
    detector = DistillDetector(
        model_of(name),
        model_of(name),
        {
            "loss_hint": {
                "type": "kdtasks.detection.HintLoss",
                "of": ("features.student.0", "features.teacher.0"),
            }
        },
    )
    assert not any(getattr(part, "is_init", False) for part in detector.student.modules())
    torch.manual_seed(0)
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    plain = MODELS.build(ConfigDict(model_of(name), _scope_="mmdet"))
    assert all(
        torch.equal(a, b)
        for a, b in zip(detector.student.state_dict().values(), plain.state_dict().values())
    )
    detector.init_weights()
    detector.train()
    batch = example_batch(detector.student)
    torch.manual_seed(0)
    losses = detector(torch.randn_like(batch["input"]), batch["target"], mode="loss")
    assert losses["loss_hint"] > 0 and len(losses) > 1
    detector.parse_losses(losses)[0].backward()
    moved = [value.grad for value in detector.student.parameters() if value.grad is not None]
    assert moved and all(grad.isfinite().all() for grad in moved)


@pytest.mark.parametrize(
    "name, kind",
    [("RetinaNet", "deltas"), ("FCOS", "distances"), ("ATSS", "deltas"), ("GFL", "edges")],
)
def test_pkd_cwd_and_crosskd_of_a_family(name, kind):
    """By the same names in each; and with a teacher of another, PKD alone."""
    from kdtasks.detection.mmdet_detectors import example_batch
    from kdtasks.detection.plugin import DistillDetector

    levels = ("features.student.0", "features.teacher.0")
    own = ("teacher.cls_logits", "anchors.valid")
    losses = {
        "loss_pkd": {"type": "kdtasks.detection.PKDLoss", "of": levels},
        "loss_cwd": {"type": "kdtasks.detection.CWDLoss", "of": levels},
        "loss_cross_cls": {
            "type": "kdtasks.detection.QualityFocalLoss",
            "of": ("cross.teacher.cls_logits", *own, "anchors.count"),
        },
        "loss_cross_box": {
            "type": "kdtasks.detection.CrossBoxLoss",
            "kind": kind,
            "of": ("cross.teacher.box_deltas", "teacher.box_deltas", *own),
        },
    }
    other = {"RetinaNet": "FCOS", "FCOS": "ATSS", "ATSS": "RetinaNet", "GFL": "RetinaNet"}[name]
    for by, taught in ((name, losses), (other, {"loss_pkd": losses["loss_pkd"]})):
        detector = DistillDetector(model_of(name), model_of(by), taught)
        detector.init_weights()
        batch = example_batch(detector.train().student)
        found = detector(torch.randn_like(batch["input"]), batch["target"], mode="loss")
        assert all(found[loss].isfinite() and found[loss] > 0 for loss in taught), found
        detector.parse_losses(found)[0].backward()
        moved = [value.grad for value in detector.student.parameters() if value.grad is not None]
        assert all(grad.isfinite().all() for grad in moved)
        teacher = detector.distiller.model("teacher")
        assert all(value.grad is None for value in teacher.parameters())
