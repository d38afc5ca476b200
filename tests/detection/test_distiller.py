"""What torchvision's detectors supply: against tensors that the test computes from torchvision's
own parts.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_detectors import batch, faster_rcnn, fcos, mask_rcnn, retinanet, ssdlite
from torchvision.models.detection.retinanet import sigmoid_focal_loss
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import box_iou

from kdtasks.detection import ADLLoss, BoundedRegressionLoss, HintLoss, WeightedSoftCrossEntropyLoss
from kdtasks.detection.torchvision_distiller import TorchvisionDistiller


class Seen:
    """A loss that keeps what it is called with."""

    def __call__(self, *tensors):
        self.tensors = tensors
        floats = [t for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]
        return sum(t.sum() for t in floats) * 0.0 if floats else torch.zeros(())


def pair(make, **kwargs):
    torch.manual_seed(0)
    return make(4, **kwargs), make(8, **kwargs)


def take(names, student, teacher, data, train=True, **options):
    """The named tensors of one step, in a dict, with the distiller and its losses."""
    seen = Seen()
    distiller = TorchvisionDistiller(
        student, {"teacher": teacher}, {"loss_seen": (seen, tuple(names))}, **options
    )
    distiller.build(data)
    distiller.train(train)
    losses = distiller(data)
    return dict(zip(names, seen.tensors)), losses, distiller


def copies(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


RPN = (
    "rpn.student.logits",
    "rpn.teacher.logits",
    "rpn.student.deltas",
    "rpn.teacher.deltas",
    "rpn.target",
    "rpn.count",
)
ROIS = tuple(name.replace("rpn", "rois") for name in RPN)
CHEN = {
    "loss_objectness": (None, "student.loss_objectness", 0.5),
    "loss_classifier": (None, "student.loss_classifier", 0.5),
    "loss_rpn_soft": (WeightedSoftCrossEntropyLoss(), RPN[:2], 0.5),
    "loss_rois_soft": (WeightedSoftCrossEntropyLoss(), ROIS[:2], 0.5),
    "loss_rpn_bounded": (BoundedRegressionLoss(), RPN[2:], 0.5),
    "loss_rois_bounded": (BoundedRegressionLoss(), ROIS[2:], 0.5),
    "loss_hint": (HintLoss(), ("features.student.3", "features.teacher.3"), 0.5),
}


# -------------------------------------------------------------------------------- the student's own
@pytest.mark.parametrize(
    "make, names",
    [
        (retinanet, {"loss_classification", "loss_bbox_regression"}),
        (fcos, {"loss_classification", "loss_bbox_regression", "loss_bbox_ctrness"}),
        (faster_rcnn, {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}),
        (
            mask_rcnn,
            {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"},
        ),
    ],
)
def test_own_losses_are_torchvisions_to_the_last_bit_whatever_the_teacher_does(make, names):
    student, teacher = pair(make)
    data = batch()
    for target in data["target"]:
        target["masks"] = torch.ones(2, 64, 96, dtype=torch.uint8)
    plain = copy.deepcopy(student).train()
    torch.manual_seed(5)
    expected = plain(data["input"], [{k: v.clone() for k, v in t.items()} for t in data["target"]])
    after = torch.get_rng_state()
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {"loss_hint": (HintLoss(), ("features.student.2", "features.teacher.2"))},
    )
    distiller.build(data)
    distiller.train()
    torch.manual_seed(5)
    losses = distiller(data)
    # the teacher draws nothing
    assert torch.equal(torch.get_rng_state(), after)
    assert set(losses) == names | {"loss_hint"}
    assert {n.removeprefix("loss_"): v.item() for n, v in losses.items() if n != "loss_hint"} == {
        n.removeprefix("loss_"): v.item() for n, v in expected.items()
    }


def test_ssdlite_runs_and_renames_its_losses():
    torch.manual_seed(0)
    student, teacher = ssdlite(), ssdlite()
    found, losses, _ = take(
        (
            "student.cls_logits",
            "teacher.cls_logits",
            "anchors.valid",
            "anchors.teacher.deltas",
            "anchors.target",
        ),
        student,
        teacher,
        batch(2, 320, 320),
    )
    assert set(losses) == {"loss_seen", "loss_classification", "loss_bbox_regression"}
    assert found["student.cls_logits"].shape == found["teacher.cls_logits"].shape == (2, 3234, 4)
    assert (
        found["anchors.valid"].all()
        and found["anchors.target"].shape == found["anchors.teacher.deltas"].shape
    )


def test_own_losses_not_listed_enter_with_weight_one_and_listed_ones_with_theirs():
    student, teacher = pair(retinanet)
    data = batch()
    _, plain, _ = take(("student.cls_logits",), student, teacher, data)
    distiller = TorchvisionDistiller(
        student, {"teacher": teacher}, {"loss_mu": (None, "student.loss_classification", 0.25)}
    )
    distiller.train()
    losses = distiller(data)
    assert set(losses) == {"loss_mu", "loss_bbox_regression"}
    torch.testing.assert_close(losses["loss_mu"], 0.25 * plain["loss_classification"])
    torch.testing.assert_close(losses["loss_bbox_regression"], plain["loss_bbox_regression"])


def test_build_and_tensors_move_nothing_and_leave_the_detector_as_it_was():
    student, teacher = pair(faster_rcnn)
    data, before, random = batch(), copies(student), torch.get_rng_state()
    distiller = TorchvisionDistiller(student, {"teacher": teacher}, CHEN)
    attributes = [set(module.__dict__) for module in student.modules()]
    distiller.train()
    distiller.build(data)
    known = distiller.tensors(data)
    assert same(copies(student), before) and torch.equal(torch.get_rng_state(), random)
    assert student.training and student.rpn.training and not teacher.training
    assert [
        set(module.__dict__) for module in student.modules()
    ] == attributes and "rois.teacher.logits" in known
    assert (
        "compute_loss" not in student.rpn.__dict__
        and type(student.rpn.fg_bg_sampler).__name__ != "function"
    )


def test_a_failing_step_puts_the_detector_back():
    student, teacher = pair(retinanet)
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {"loss_adl": (ADLLoss(), ("student.cls_logits", "teacher.cls_logits"))},
    )
    data = batch()
    distiller.build(data)
    data["target"][0]["labels"] = torch.tensor([1, 99])
    with pytest.raises(IndexError):
        distiller.train()(data)
    assert (
        "compute_loss" not in student.head.__dict__ and "forward" not in student.backbone.__dict__
    )


# -------------------------------------------------------------------------------------- dense heads
@pytest.mark.parametrize("make", [retinanet, fcos])
def test_dense_tensors_are_those_of_the_heads(make):
    student, teacher = pair(make)
    data = batch(empty=True)
    names = (
        "student.cls_logits",
        "teacher.cls_logits",
        "student.box_deltas",
        "teacher.box_deltas",
        "features.teacher.2",
    )
    found, _, _ = take(names, student, teacher, data, train=False)
    for role, model in (("student", student.eval()), ("teacher", teacher)):
        with torch.no_grad():
            images, _ = model.transform(data["input"])
            features = model.backbone(images.tensors)
            head = model.head(list(features.values()))
        torch.testing.assert_close(found[f"{role}.cls_logits"], head["cls_logits"])
        torch.testing.assert_close(found[f"{role}.box_deltas"], head["bbox_regression"])
    torch.testing.assert_close(found["features.teacher.2"], features["2"])
    assert not found["teacher.cls_logits"].requires_grad


def test_valid_anchors_are_those_that_the_focal_loss_counts():
    student, teacher = pair(retinanet)
    data = batch(3, empty=True)
    found, losses, distiller = take(("student.cls_logits", "anchors.valid"), student, teacher, data)
    assert (
        found["anchors.valid"].shape == found["student.cls_logits"].shape[:2]
        and found["anchors.valid"][2].all()
    )
    assert not found["anchors.valid"][:2].all()
    total = 0
    anchors = student.anchor_generator(
        distiller.tensors(data)["student.seen"].batch,
        list(distiller.tensors(data)["student.seen"].features.values()),
    )
    for logits, valid, target, boxes in zip(
        found["student.cls_logits"], found["anchors.valid"], data["target"], anchors
    ):
        hard, positive = torch.zeros_like(logits), 0
        if len(target["boxes"]):
            iou = box_iou(target["boxes"], boxes)
            matched = student.proposal_matcher(iou)
            positive = int((matched >= 0).sum())
            hard[matched >= 0, target["labels"][matched[matched >= 0]]] = 1.0
        total = total + sigmoid_focal_loss(logits[valid], hard[valid], reduction="sum") / max(
            1, positive
        )
    torch.testing.assert_close(losses["loss_classification"], total / 3)


def test_matched_anchors_and_their_targets_decode_to_the_boxes():
    student, teacher = pair(retinanet)
    data = batch(2)
    names = (
        "anchors.student.deltas",
        "anchors.teacher.deltas",
        "anchors.target",
        "anchors.count",
        "student.box_deltas",
        "teacher.box_deltas",
    )
    found, _, distiller = take(names, student, teacher, data)
    seen = distiller.tensors(data)["student.seen"]
    row = 0
    for i, (anchors, matched) in enumerate(zip(seen.anchors, seen.matched)):
        for place in (matched >= 0).nonzero()[:, 0].tolist():
            torch.testing.assert_close(
                found["anchors.student.deltas"][row], found["student.box_deltas"][i, place]
            )
            torch.testing.assert_close(
                found["anchors.teacher.deltas"][row], found["teacher.box_deltas"][i, place]
            )
            box = student.box_coder.decode_single(
                found["anchors.target"][row][None], anchors[place][None]
            )[0]
            torch.testing.assert_close(
                box, data["target"][i]["boxes"][matched[place]], atol=1e-3, rtol=1e-4
            )
            row += 1
    assert row == len(found["anchors.target"]) == found["anchors.count"] > 0


def test_a_batch_without_any_box_gives_empty_rows_and_finite_gradients():
    student, teacher = pair(retinanet)
    data = batch(1, empty=True)
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {
            "loss_adl": (ADLLoss(), ("student.cls_logits", "teacher.cls_logits", "anchors.valid")),
            "loss_bounded": (
                BoundedRegressionLoss(),
                ("anchors.student.deltas", "anchors.teacher.deltas", "anchors.target"),
            ),
        },
    )
    distiller.build(data)
    losses = distiller.train()(data)
    sum(losses.values()).backward()
    assert losses["loss_bounded"] == 0 and all(
        p.grad is None or p.grad.isfinite().all() for p in student.parameters()
    )


# --------------------------------------------------------------------------------------- two stages
def test_rpn_tensors_give_the_hard_losses_of_the_rpn_to_the_last_digits():
    student, teacher = pair(faster_rcnn)
    # the last image's targets are infinite
    data = batch(3, empty=True)
    found, losses, _ = take((*RPN, *ROIS), student, teacher, data)
    positive, count = len(found["rpn.target"]), found["rpn.count"]
    assert count == len(found["rpn.student.logits"]) == len(found["rpn.teacher.logits"]) == 3 * 32
    assert found["rpn.target"].isfinite().all() and positive > 0
    labels = torch.zeros(count)
    labels[:positive] = 1  # positive ones first
    torch.testing.assert_close(
        losses["loss_objectness"],
        F.binary_cross_entropy_with_logits(found["rpn.student.logits"][:, 0], labels),
    )
    box = (
        F.smooth_l1_loss(
            found["rpn.student.deltas"], found["rpn.target"], beta=1 / 9, reduction="sum"
        )
        / count
    )
    torch.testing.assert_close(losses["loss_rpn_box_reg"], box)


def test_roi_tensors_give_the_hard_losses_of_the_roi_head_to_the_last_digits():
    student, teacher = pair(faster_rcnn)
    data = batch(3, empty=True)
    found, losses, distiller = take(ROIS, student, teacher, data)
    positive = len(found["rois.target"])
    assert positive > 0 and found["rois.target"].isfinite().all()
    box = (
        F.smooth_l1_loss(
            found["rois.student.deltas"], found["rois.target"], beta=1 / 9, reduction="sum"
        )
        / found["rois.count"]
    )
    torch.testing.assert_close(losses["loss_box_reg"], box)
    known = distiller.tensors(data)
    seen = known["student.seen"]
    logits, deltas = seen.roi_outputs
    again, _ = fastrcnn_loss(logits, deltas, [seen.roi_labels], [seen.roi_targets])
    torch.testing.assert_close(
        again, F.cross_entropy(known["rois.student.logits"], seen.roi_labels)
    )


def test_the_sampled_rows_themselves_can_be_read():
    student, teacher = pair(faster_rcnn)
    names = ("rpn.sampled", "rpn.positive", "rois.boxes", "rois.label", "rpn.target", *ROIS[:1])
    found, _, _ = take(names, student, teacher, batch())
    sampled, positive = found["rpn.sampled"], found["rpn.positive"]
    assert sampled.dtype == torch.bool and sampled.shape == positive.shape
    assert len(sampled) == len(batch()["input"]) and not (positive & ~sampled).any()
    assert positive.sum() == len(found["rpn.target"])
    boxes, label = found["rois.boxes"], found["rois.label"]
    assert boxes.shape == (len(label), 5) and len(label) == len(found["rois.student.logits"])
    assert boxes[:, 0].unique().tolist() == list(range(len(sampled)))
    assert (boxes[:, 3:] >= boxes[:, 1:3]).all() and label.max() > 0


def test_the_teachers_heads_run_on_the_students_anchors_and_proposals():
    student, teacher = pair(faster_rcnn)
    data = batch(2)
    seen = Seen()
    distiller = TorchvisionDistiller(
        student, {"teacher": teacher}, {"loss_seen": (seen, (*RPN[:4], *ROIS[:4]))}
    )
    distiller.train()
    known = distiller.supply(data)
    record = known["student.seen"]
    with torch.no_grad():
        features = teacher.backbone(record.batch.tensors)
        pooled = teacher.roi_heads.box_roi_pool(features, record.rois, record.batch.image_sizes)
        logits, deltas = teacher.roi_heads.box_predictor(teacher.roi_heads.box_head(pooled))
        objectness, _ = teacher.rpn.head(list(features.values()))
    torch.testing.assert_close(known["rois.teacher.logits"], logits)
    for row, place in enumerate(record.roi_positive.tolist()):
        label = int(record.roi_labels[place])
        torch.testing.assert_close(
            known["rois.teacher.deltas"][row], deltas[place, 4 * label : 4 * label + 4]
        )
    flat = torch.cat(
        [torch.cat([level[i].permute(1, 2, 0).flatten() for level in objectness]) for i in range(2)]
    )
    torch.testing.assert_close(known["rpn.teacher.logits"][:, 0], flat[record.sampled])


def test_the_whole_objective_of_chen_trains_the_student_and_not_the_teacher():
    student, teacher = pair(faster_rcnn)
    data, before = batch(3, empty=True), None
    distiller = TorchvisionDistiller(student, {"teacher": teacher}, CHEN)
    distiller.build(data)
    before, taught, names = copies(student), copies(teacher), dict(distiller.named_parameters())
    assert any("losses.loss_hint" in name for name in names) and not any(
        "teacher" in name for name in names
    )
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.02, momentum=0.9)
    distiller.train()
    totals = []
    for _ in range(12):
        torch.manual_seed(1)
        losses = distiller(data)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert set(losses) == {*CHEN, "loss_rpn_box_reg", "loss_box_reg"}
    assert totals[-1] < totals[0] and same(copies(teacher), taught)
    moved = [
        name for name, value in student.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert {name.split(".")[0] for name in moved} == {"backbone", "rpn", "roi_heads"}


def test_a_teacher_with_other_images_gives_rois_on_rescaled_proposals_and_no_anchors():
    torch.manual_seed(0)
    student, teacher = faster_rcnn(4), faster_rcnn(8, min_size=128, max_size=192)
    data = batch(2)
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {
            "loss_seen": (Seen(), ROIS[:4]),
            "loss_hint": (HintLoss(), ("features.student.2", "features.teacher.2")),
        },
        resolution="own",
    )
    shapes = distiller.build(data)
    assert shapes["features.teacher.2"][-1] == 2 * shapes["features.student.2"][-1]
    distiller.train()
    known = distiller.supply(data)
    record = known["student.seen"]
    with torch.no_grad():
        images, _ = teacher.transform(data["input"])
        pooled = teacher.roi_heads.box_roi_pool(
            teacher.backbone(images.tensors), [2 * b for b in record.rois], images.image_sizes
        )
        logits, _ = teacher.roi_heads.box_predictor(teacher.roi_heads.box_head(pooled))
    torch.testing.assert_close(known["rois.teacher.logits"], logits)
    refused = TorchvisionDistiller(
        student, {"teacher": teacher}, {"loss_seen": (Seen(), RPN[:2])}, resolution="own"
    )
    with pytest.raises(ValueError, match="anchors are not the student's"):
        refused.build(data)


# -------------------------------------------------------------------------------- unlabelled images
@pytest.mark.parametrize("make", [retinanet, fcos])
def test_unlabelled_images_enter_the_soft_loss_and_not_the_hard_ones(make):
    student, teacher = pair(make)
    data = batch(3)
    data["target"][2], data["labelled"] = None, torch.tensor([True, True, False])
    found, losses, _ = take(("student.cls_logits", "anchors.valid"), student, teacher, data)
    assert len(found["student.cls_logits"]) == 3 and found["anchors.valid"][2].all()
    plain = copy.deepcopy(student).train()
    # the batch statistics of three images, twice
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    student.load_state_dict(plain.state_dict())
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    distiller = TorchvisionDistiller(
        student, {"teacher": teacher}, {"loss_seen": (Seen(), ("student.cls_logits",))}
    )
    losses = distiller(data)
    expected = plain(data["input"][:2], data["target"][:2])
    for name, value in expected.items():
        torch.testing.assert_close(losses[f"loss_{name}"], value, rtol=1e-5, atol=1e-6)


def test_a_batch_of_unlabelled_images_only_gives_connected_zeros():
    student, teacher = pair(retinanet)
    data = batch(2)
    data["target"], data["labelled"] = [None, None], torch.tensor([False, False])
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {"loss_adl": (ADLLoss(), ("student.cls_logits", "teacher.cls_logits"))},
    )
    losses = distiller.train()(data)
    assert (
        losses["loss_classification"] == losses["loss_bbox_regression"] == 0
        and losses["loss_adl"] > 0
    )
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


def test_pseudo_boxes_are_the_teachers_and_count_for_the_images_that_have_some():
    student, teacher = pair(retinanet)
    data = batch(3)
    data["target"] = [data["target"][0], None, None]
    data["labelled"] = torch.tensor([True, False, False])
    answers = [
        {
            "boxes": torch.tensor([[8.0, 8, 30, 34], [1.0, 1, 9, 9]]),
            "labels": torch.tensor([2, 1]),
            "scores": torch.tensor([0.9, 0.3]),
        },
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "scores": torch.zeros(0),
        },
    ]
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {"loss_adl": (ADLLoss(), ("student.cls_logits", "teacher.cls_logits"))},
        unlabelled="soft+pseudo",
    )
    asked = []
    distiller.teachers["teacher"].forward = lambda images: asked.append(len(images)) or answers
    targets, rows = distiller._targets(data)
    assert asked == [2] and rows == [0, 1]
    assert targets[1]["labels"].tolist() == [2] and targets[1]["boxes"].tolist() == [[8, 8, 30, 34]]
    del distiller.teachers["teacher"].forward
    assert set(distiller.train()(data)) == {
        "loss_adl",
        "loss_classification",
        "loss_bbox_regression",
    }


def test_a_missing_target_and_unlabelled_images_for_an_rpn_are_refused():
    student, teacher = pair(faster_rcnn)
    data = batch(2)
    data["target"][1] = None
    distiller = TorchvisionDistiller(
        student, {"teacher": teacher}, {"loss_seen": (Seen(), RPN[:2])}
    )
    with pytest.raises(ValueError, match="no 'labelled'"):
        distiller.train()(data)
    with pytest.raises(ValueError, match="dense detectors"):
        distiller.train()({**data, "labelled": torch.tensor([True, False])})


# ---------------------------------------------------------------- teachers that are not the student
def test_a_class_map_takes_the_teachers_columns():
    torch.manual_seed(0)
    student, teacher = faster_rcnn(4, num_classes=3), faster_rcnn(8, num_classes=6)
    data = batch(2)
    for target in data["target"]:
        target["labels"] = torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"teacher has 5 classes .*the student 2.*class_map"):
        take(ROIS[:2], student, teacher, data)
    _, _, distiller = take(ROIS[:4], student, teacher, data, class_map=[4, 1])
    distiller.eval()
    known = distiller.supply(data)
    record = known["student.seen"]
    with torch.no_grad():
        features = teacher.backbone(record.batch.tensors)
        pooled = teacher.roi_heads.box_roi_pool(features, record.rois, record.batch.image_sizes)
        logits, deltas = teacher.roi_heads.box_predictor(teacher.roi_heads.box_head(pooled))
    torch.testing.assert_close(known["rois.teacher.logits"], logits[:, [0, 5, 2]])
    for row, place in enumerate(record.roi_positive.tolist()):
        label = [0, 5, 2][int(record.roi_labels[place])]
        torch.testing.assert_close(
            known["rois.teacher.deltas"][row], deltas[place, 4 * label : 4 * label + 4]
        )
    # with the background in front
    with pytest.raises(ValueError, match=r"must give 2 of the classes 0 to 4.*got \[0, 5, 2\]"):
        take(ROIS[:2], student, teacher, data, class_map=[0, 5, 2])


def test_classes_in_another_order_are_refused():
    student, teacher = pair(retinanet)
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {"loss_adl": (ADLLoss(), ("student.cls_logits", "teacher.cls_logits"))},
    )
    distiller.classes, distiller.teachers["teacher"].classes = (
        ["cat", "dog", "bird"],
        ["dog", "cat", "bird"],
    )
    with pytest.raises(ValueError, match="in the same order"):
        distiller.build(batch())


def test_other_anchors_are_refused_with_both_sizes():
    torch.manual_seed(0)
    student = retinanet(4)
    for teacher in (
        retinanet(8, anchor_sizes=[12, 24, 40]),
        retinanet(8, first=0, anchor_sizes=[6, 12, 24, 48]),
    ):
        with pytest.raises(ValueError, match="same strides and the same anchor_generator"):
            take(("student.cls_logits", "teacher.cls_logits"), student, teacher, batch())


def test_deltas_come_in_the_students_coder_units():
    student, teacher = pair(retinanet)
    data = batch()
    names = ("teacher.box_deltas", "anchors.teacher.deltas")
    plain, _, _ = take(names, student, teacher, data, train=False)
    student.box_coder.weights = (10.0, 10.0, 5.0, 5.0)
    scaled, _, _ = take(names, student, teacher, data, train=False)
    for name in names:
        torch.testing.assert_close(scaled[name], plain[name] * torch.tensor([10.0, 10.0, 5.0, 5.0]))


def test_a_teacher_with_its_own_mean_and_deviation_gets_its_own_pixels_and_zero_padding():
    torch.manual_seed(0)
    student = retinanet(4)
    teacher = retinanet(8, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    data = batch(2)
    data["input"][1], data["target"][1]["boxes"] = (
        data["input"][1][:, :, :70],
        torch.tensor([[8.0, 8, 30, 34], [40, 20, 66, 60]]),
    )
    found, _, _ = take(("teacher.cls_logits",), student, teacher, data, train=False)
    with torch.no_grad():
        images, _ = teacher.transform(data["input"])
        head = teacher.head(list(teacher.backbone(images.tensors).values()))
    torch.testing.assert_close(
        found["teacher.cls_logits"], head["cls_logits"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "options, words",
    [
        ({"resolution": "high"}, "'student', 'own'"),
        ({"unlabelled": "hard"}, "soft\\+pseudo"),
        ({"compile": True}, "backbone.compile"),
    ],
)
def test_options_that_are_none_are_refused(options, words):
    student, teacher = pair(retinanet)
    with pytest.raises(ValueError, match=words):
        TorchvisionDistiller(student, {"teacher": teacher}, {}, **options)


def test_what_is_no_detector_and_what_no_detector_has_are_refused():
    with pytest.raises(ValueError, match="torchvision's detectors"):
        TorchvisionDistiller(torch.nn.Linear(2, 2), {}, {})
    student, teacher = pair(retinanet)
    with pytest.raises(
        ValueError,
        match=r"no model supplies "
        r"'student.cls_logit'.*student.cls_logits",
    ):
        TorchvisionDistiller(
            student, {"teacher": teacher}, {"loss_x": (Seen(), ("student.cls_logit",))}
        )
    with pytest.raises(ValueError, match="no model supplies 'teacher'"):
        TorchvisionDistiller(student, {"teacher": teacher}, {"loss_x": (Seen(), ("teacher",))})


def test_submodules_of_both_can_be_named():
    student, teacher = pair(faster_rcnn)
    found, _, _ = take(
        (
            "student.backbone.body.stages.2",
            "teacher.backbone.body.stages.2",
            "teacher.roi_heads.box_head",
        ),
        student,
        teacher,
        batch(),
    )
    assert (
        found["student.backbone.body.stages.2"].shape[1] == 16
        and found["teacher.backbone.body.stages.2"].shape[1] == 32
    )
    assert found["teacher.roi_heads.box_head"].shape[1] == 32


def test_adl_in_bfloat16_and_a_bfloat16_teacher():
    student, teacher = pair(retinanet)
    from kdtasks.core import Teacher

    distiller = TorchvisionDistiller(
        student,
        {"teacher": Teacher(teacher, precision="bfloat16")},
        {"loss_adl": (ADLLoss(), ("student.cls_logits", "teacher.cls_logits", "anchors.valid"))},
    )
    data = batch()
    distiller.build(data)
    with torch.autocast("cpu", torch.bfloat16):
        losses = distiller.train()(data)
    assert losses["loss_adl"].dtype == torch.float32
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


def test_num_classes_without_the_background_is_said():
    student, teacher = pair(retinanet, num_classes=3)
    with pytest.raises(
        ValueError, match="labels up to 3, the student has num_classes=3.*expected 4"
    ):
        take(("student.cls_logits",), student, teacher, batch())


def test_of_a_teacher_of_another_kind_there_are_features_and_submodules_only():
    torch.manual_seed(0)
    one, two = retinanet(4), faster_rcnn(4)
    data = batch()
    for student, teacher, refused in (
        (one, two, ("rpn.teacher.logits", "rois.teacher.logits", "teacher.cls_logits")),
        (
            two,
            one,
            (
                "teacher.cls_logits",
                "teacher.box_deltas",
                "anchors.teacher.deltas",
                "rpn.teacher.logits",
            ),
        ),
    ):
        found, _, _ = take(
            ("features.student.3", "features.teacher.3", "teacher.backbone.body.stages.3"),
            student,
            teacher,
            data,
        )
        assert found["features.student.3"].shape[2:] == found["features.teacher.3"].shape[2:]
        for name in refused:
            with pytest.raises(
                ValueError,
                match=r"no model supplies|neither a model nor the batch "
                r"supplies",
            ):
                take((name,), student, teacher, data)


def test_a_submodule_of_a_head_runs_that_head_only_and_compares_no_anchors():
    torch.manual_seed(0)
    student, teacher = retinanet(4), faster_rcnn(4, min_size=128, max_size=192)
    found, _, _ = take(
        ("teacher.rpn.head.conv@0", "features.student.2"),
        student,
        teacher,
        batch(),
        resolution="own",
    )
    assert found["teacher.rpn.head.conv@0"].shape[1] == 8


def test_maps_of_a_larger_image_lie_as_the_students_do_whatever_is_padded():
    torch.manual_seed(0)
    student, teacher = (
        faster_rcnn(4, min_size=70, max_size=200),
        faster_rcnn(8, min_size=140, max_size=400),
    )
    # 70 x 98 in 96 x 128; 140 x 197 of itself in 160 x 224
    data = batch(1, 64, 90)
    found, _, distiller = take(
        ("features.student.2", "features.teacher.2"), student, teacher, data, resolution="own"
    )
    seen = distiller.tensors(data)["student.seen"]
    from kdtasks.detection.detectors import resized

    images = resized(teacher, seen)
    for axis in (0, 1):
        ours = seen.batch.image_sizes[0][axis] / seen.batch.tensors.shape[2 + axis]
        theirs = images.image_sizes[0][axis] / images.tensors.shape[2 + axis]
        assert abs(ours - theirs) < 0.01
    assert found["features.teacher.2"].shape[-1] == 2 * found["features.student.2"].shape[-1]


def test_weight_zero_on_a_feature_loss_leaves_it_out_everywhere():
    from kdtasks.core.control import control_losses

    student, teacher = pair(faster_rcnn)
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {"loss_hint": (HintLoss(), ("features.student.3", "features.teacher.3"), 0)},
    )
    assert set(distiller.train()(batch())) == {
        "loss_objectness",
        "loss_rpn_box_reg",
        "loss_classifier",
        "loss_box_reg",
    }
    losses = {
        "loss_hint": {"of": ("features.student.3", "features.teacher.3"), "weight": 0},
        "loss_c": {"of": "student.loss_classifier", "alone": 0},
    }
    plain = control_losses(
        losses, {"teacher": None}, set(distiller.names("student")), own_losses=True
    )
    assert set(plain) == {"loss_c"} and plain["loss_c"]["weight"] == 0
    alone = TorchvisionDistiller(student, {}, {"loss_c": (None, "student.loss_classifier", 0)})
    assert "loss_classifier" not in alone.train()(batch()) and "loss_c" not in alone(batch())


def test_a_teachers_detections_are_in_the_students_classes():
    torch.manual_seed(0)
    student, teacher = retinanet(4, num_classes=3), retinanet(8, num_classes=7)
    boxes = torch.tensor([[1.0, 1, 9, 9], [2, 2, 8, 8], [3, 3, 7, 7], [5, 5, 5, 9]])
    found = [
        {
            "boxes": boxes,
            "labels": torch.tensor([5, 0, 4, 5]),
            "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]),
        }
    ]
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {"loss_seen": (Seen(), ("student.cls_logits",))},
        class_map=[3, 4],
    )
    distiller.teachers["teacher"].forward = lambda images: found
    answer = distiller.detections("teacher", [torch.zeros(3, 8, 8)])[0]
    # no class 0, no flat box
    assert (
        answer["labels"].tolist() == [2, 1] and answer["boxes"].tolist() == boxes[[0, 2]].tolist()
    )
    plain = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {"loss_seen": (Seen(), ("student.cls_logits",))},
        unlabelled="soft+pseudo",
    )
    with pytest.raises(ValueError, match="teacher has 6 classes"):
        plain({"input": batch()["input"], "labelled": torch.tensor([False, False])})


def test_all_rows_labelled_and_no_target_where_none_is_read():
    student, teacher = pair(faster_rcnn)
    data = batch(2)
    _, losses, _ = take(RPN[:2], student, teacher, {**data, "labelled": torch.tensor([True, True])})
    assert losses["loss_objectness"] > 0
    student, teacher = pair(retinanet)
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {"loss_adl": (ADLLoss(), ("student.cls_logits", "teacher.cls_logits"))},
    )
    assert (
        distiller.train()({"input": data["input"], "labelled": torch.tensor([False, False])})[
            "loss_adl"
        ]
        > 0
    )


def test_at_rest_images_have_one_size_and_frozen_parts_stay_frozen():
    torch.manual_seed(0)
    student, teacher = (
        retinanet(4, min_size=(64, 80, 96), max_size=200),
        retinanet(8, min_size=64, max_size=200),
    )
    student.train()
    # BatchNorm frozen on purpose
    student.backbone.body.stem.eval()
    distiller = TorchvisionDistiller(
        student,
        {"teacher": teacher},
        {"loss_adl": (ADLLoss(), ("student.cls_logits", "teacher.cls_logits"))},
    )
    assert not student.backbone.body.stem.training and student.backbone.training
    sizes = {distiller.tensors(batch())["student.cls_logits"].shape[1] for _ in range(6)}
    assert len(sizes) == 1
    # in training as before
    assert (
        len({distiller.train().supply(batch())["student.cls_logits"].shape[1] for _ in range(12)})
        > 1
    )


def test_a_teacher_cannot_be_called_as_a_group_of_tensors():
    student, teacher = pair(faster_rcnn)
    with pytest.raises(ValueError, match=r"'rois\.\*'"):
        TorchvisionDistiller(student, {"rois": teacher}, {})


@pytest.mark.gpu
@pytest.mark.parametrize("make", [retinanet, faster_rcnn])
def test_on_cuda(make):
    student, teacher = pair(make)
    losses = (
        CHEN
        if make is faster_rcnn
        else {
            "loss_adl": (ADLLoss(), ("student.cls_logits", "teacher.cls_logits", "anchors.valid"))
        }
    )
    distiller = TorchvisionDistiller(student, {"teacher": teacher}, losses).cuda()
    data = batch(empty=True)
    data = {
        "input": [x.cuda() for x in data["input"]],
        "target": [{k: v.cuda() for k, v in t.items()} for t in data["target"]],
    }
    distiller.build(data)
    sum(distiller.train()(data).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_a_replaced_detector_is_asked_anew_for_all_that_was_known_of_the_former():
    student, teacher = pair(retinanet)
    losses = {"loss_adl": (ADLLoss(), ("student.cls_logits", "teacher.cls_logits"))}
    distiller = TorchvisionDistiller(student, {"teacher": teacher}, losses)
    data = batch()
    distiller.build(data)
    distiller(data)
    distiller.teachers["teacher"] = other = retinanet(8)
    fresh = TorchvisionDistiller(copy.deepcopy(student), {"teacher": other}, losses)
    found, expected = (one.eval()(batch())["loss_adl"] for one in (distiller, fresh))
    assert torch.equal(found, expected)
    distiller.teachers["teacher"] = retinanet(8, num_classes=7)
    with pytest.raises(ValueError, match="teacher has 6 classes"):
        distiller(batch())
    distiller.teachers["teacher"] = retinanet(8, anchor_sizes=[16, 32, 64])
    with pytest.raises(ValueError, match="teacher has .* anchors"):
        distiller(batch())
    distiller.teachers["teacher"] = other
    distiller.student = fcos(4)
    with pytest.raises(ValueError, match="has losses of its own"):
        distiller(batch())
