"""ADL's loss, and a step of a detector, against the same with torchvision's parts by hand."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import (
    SGD,
    Line,
    Step,
    apart,
    gradient,
    peak_bytes,
    ratio,
    same_work,
    step_times,
    update,
)
from kdtasks.detection import (
    ADLLoss,
    BoundedRegressionLoss,
    PKDLoss,
    QualityFocalLoss,
    WeightedSoftCrossEntropyLoss,
    adl_loss,
    models,
)
from kdtasks.detection.torchvision_distiller import TorchvisionDistiller

SOFT_TARGETS, BOUNDED = WeightedSoftCrossEntropyLoss(), BoundedRegressionLoss()
DENSE = {"loss_adl": (ADLLoss(), ("student.cls_logits", "teacher.cls_logits", "anchors.valid"))}
FEATURES = {
    f"loss_pkd_{key}": (PKDLoss(), (f"features.student.{key}", f"features.teacher.{key}"))
    for key in ("1", "2", "3")
}
TWO_STAGE = {
    "loss_soft": (SOFT_TARGETS, ("rois.student.logits", "rois.teacher.logits")),
    "loss_bounded": (
        BOUNDED,
        ("rois.student.deltas", "rois.teacher.deltas", "rois.target", "rois.count"),
    ),
}


def adl(o) -> Iterator[Line]:
    """A dense head of 200 000 anchors and 80 classes, with the paper's settings; the soft targets
    of BCE are there before.
    """

    def head(anchors: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        student, teacher = (torch.randn(anchors, 80, device=o.device) * 2 - 4 for _ in range(2))
        return student.to(dtype).requires_grad_(), teacher.to(dtype)

    def formula(student: Tensor, teacher: Tensor) -> Tensor:
        # logarithms
        q, p, rest_q, rest_p = (F.logsigmoid(z) for z in (teacher, student, -teacher, -student))
        kl = q.exp() * (q - p) + rest_q.exp() * (rest_q - rest_p)
        weight = -torch.expm1(-kl + 1.5 * (q.exp() * q + rest_q.exp() * rest_q))
        return (weight * kl).sum() / (1.8 * q).exp().sum().clamp(min=1)

    error = apart(gradient(adl_loss, *head(1000)), gradient(formula, *head(1000, torch.float64)))
    student, teacher = head(200_000)
    target = teacher.sigmoid()
    variants = {
        "ADL": lambda: gradient(adl_loss, student, teacher),
        "BCE with logits": lambda: gradient(F.binary_cross_entropy_with_logits, student, target),
    }
    yield ratio("16 M entries: ", step_times(o, variants), *variants, bar=2.5)
    size = student.numel() * student.element_size()
    yield Line(
        "ADL: memory beside the gradient",
        [peak_bytes(o, variants["ADL"]) / size - 1],
        1.05,
        "tensors",
        "of its size",
    )
    yield Line(
        "ADL: loss and gradient off float64", [1e5 * error], 1.0, "e-5", "relative, 80 000 entries"
    )


def detector_step(o) -> Iterator[Line]:
    """RetinaNet with ADL or PKD, and Faster R-CNN with soft targets and bounded boxes, against the
    same with torchvision's parts by hand; and what the teacher's head costs that goes on from the
    student's features.
    """
    for what, make, bar, steps in (
        ("RetinaNet + ADL: ", "retinanet", 1.05, (dense_by_hand, DENSE)),
        ("RetinaNet + PKD: ", "retinanet", 1.02, (features_by_hand, FEATURES)),
        ("Faster R-CNN + Chen: ", "faster_rcnn", 1.05, (two_stage_by_hand, TWO_STAGE)),
    ):
        by_hand, losses = steps
        variants = {
            "by hand": by_hand(o, make),
            "by hand again": by_hand(o, make),
            "library": detector_library(o, make, losses),
        }
        same_work(variants)
        times = step_times(o, variants)
        yield ratio(what, times, "by hand again", "by hand")
        yield ratio(what, times, "library", "by hand", bar=bar)
    variants = {
        name: detector_library(o, "retinanet", {"loss_classes": (QualityFocalLoss(), of)})
        for name, of in (
            ("crossed classes", ("cross.teacher.cls_logits", "teacher.cls_logits")),
            ("the student's own", ("student.cls_logits", "teacher.cls_logits")),
        )
    }
    yield ratio("CrossKD: ", step_times(o, variants), *variants)


def detectors(o, make: str) -> tuple[nn.Module, nn.Module, list[Tensor], list[dict]]:
    """Teacher, student, 4 images of 128 x 160 and their boxes; sampling takes all, so that no
    variant draws otherwise.
    """
    torch.manual_seed(0)
    settings = {
        "min_size": 128,
        "max_size": 160,
        "extra": None,
        "anchor_sizes": [16, 32, 64],
        "first": 1,
    }
    if make == "faster_rcnn":
        settings |= {
            "rpn_post_nms_top_n_train": 100,
            "rpn_pre_nms_top_n_train": 200,
            "rpn_batch_size_per_image": 10**6,
            "box_batch_size_per_image": 10**6,
            "rpn_positive_fraction": 0.5,
            "representation": 64,
        }
    teacher, student = (
        getattr(models, make)(4, models.small_resnet(width), 16, **settings) for width in (16, 8)
    )
    images = [torch.rand(3, 128, 160, device=o.device) for _ in range(4)]
    boxes = torch.tensor([[10.0, 10, 50, 60], [60, 40, 120, 100]], device=o.device)
    targets = [
        {"boxes": boxes + k, "labels": torch.tensor([1, 3], device=o.device)} for k in range(4)
    ]
    teacher.eval()
    return teacher.requires_grad_(False).to(o.device), student.to(o.device), images, targets


def dense_by_hand(o, make: str) -> Step:
    teacher, student, images, targets = detectors(o, make)
    optimizer, seen, adl, original = (
        torch.optim.SGD(student.parameters(), **SGD),
        {},
        ADLLoss(),
        student.head.compute_loss,
    )
    student.transform.register_forward_hook(
        lambda module, args, output: seen.update(images=output[0])
    )

    def compute_loss(targets, head_outputs, anchors, matched_idxs):
        seen.update(logits=head_outputs["cls_logits"], matched=matched_idxs)
        return original(targets, head_outputs, anchors, matched_idxs)

    student.head.compute_loss = compute_loss

    def step() -> Tensor:
        losses = student(images, targets)
        with torch.no_grad():
            taught = teacher.head(list(teacher.backbone(seen["images"].tensors).values()))[
                "cls_logits"
            ]
        valid = torch.stack([matched != -2 for matched in seen["matched"]])
        return update(sum(losses.values()) + adl(seen["logits"], taught, valid), optimizer)

    return step


def features_by_hand(o, make: str) -> Step:
    teacher, student, images, targets = detectors(o, make)
    optimizer, seen = torch.optim.SGD(student.parameters(), **SGD), {}
    student.transform.register_forward_hook(
        lambda module, args, output: seen.update(images=output[0])
    )
    student.backbone.register_forward_hook(
        lambda module, args, output: seen.update(features=output)
    )

    def normalized(maps: Tensor) -> Tensor:
        centred = maps - maps.mean((0, 2, 3), keepdim=True)
        return centred / (maps.std((0, 2, 3), keepdim=True) + 1e-6)

    def step() -> Tensor:
        losses = student(images, targets)
        with torch.no_grad():
            taught = teacher.backbone(seen["images"].tensors)
        pkd = sum(
            F.mse_loss(normalized(maps), normalized(taught[key])) / 2
            for key, maps in seen["features"].items()
        )
        return update(sum(losses.values()) + pkd, optimizer)

    return step


def two_stage_by_hand(o, make: str) -> Step:
    teacher, student, images, targets = detectors(o, make)
    optimizer, seen, heads, teacher_heads = (
        torch.optim.SGD(student.parameters(), **SGD),
        {},
        student.roi_heads,
        teacher.roi_heads,
    )
    student.transform.register_forward_hook(
        lambda module, args, output: seen.update(images=output[0])
    )
    heads.box_predictor.register_forward_hook(
        lambda module, args, output: seen.update(outputs=output)
    )
    select = heads.select_training_samples

    def select_training_samples(proposals, targets):
        seen["rois"] = chosen = select(proposals, targets)
        return chosen

    heads.select_training_samples = select_training_samples

    def step() -> Tensor:
        losses = student(images, targets)
        rois, _, labels, regression = seen["rois"]
        with torch.no_grad():
            features = teacher.backbone(seen["images"].tensors)
            pooled = teacher_heads.box_roi_pool(features, rois, seen["images"].image_sizes)
            taught, taught_deltas = teacher_heads.box_predictor(teacher_heads.box_head(pooled))
        logits, deltas = seen["outputs"]
        labels, regression = torch.cat(labels), torch.cat(regression)
        rows = torch.where(labels > 0)[0]
        ours, other = (d.unflatten(1, (-1, 4))[rows, labels[rows]] for d in (deltas, taught_deltas))
        more = SOFT_TARGETS(logits, taught) + BOUNDED(ours, other, regression[rows], len(labels))
        return update(sum(losses.values()) + more, optimizer)

    return step


def detector_library(o, make: str, losses: dict) -> Step:
    teacher, student, images, targets = detectors(o, make)
    distiller = TorchvisionDistiller(student, {"teacher": teacher}, losses)
    batch = {"input": images, "target": targets}
    distiller.build(batch)
    optimizer = torch.optim.SGD(distiller.parameters(), **SGD)
    return lambda: update(sum(distiller(batch).values()), optimizer)
