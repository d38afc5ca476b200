"""torchvision's detectors from inside: what their own losses see in one forward, taken without
changing a number of it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from kdtasks.core.trial import try_out
from kdtasks.detection import forward

# What a detector calls its losses -> what they are called here: mmengine's log, and ours, train
# only what is named a loss.
DENSE_LOSSES = {
    "classification": "loss_classification",
    "bbox_regression": "loss_bbox_regression",
    "bbox_ctrness": "loss_bbox_ctrness",
}
# torchvision's Matcher.BETWEEN_THRESHOLDS
IGNORED = -2


@dataclass
class Seen(forward.Seen):
    """What the parts of the student saw and said in one forward."""

    images: list[Tensor]  # as given
    # torchvision's ImageList: resized, normalised, padded
    batch: object = None
    features: dict[str, Tensor] = field(default_factory=dict)
    targets: list[dict] = field(default_factory=list)  # in resized pixels
    anchors: list[Tensor] = field(default_factory=list)  # (A, 4) an image
    head: dict[str, Tensor] = field(default_factory=dict)  # (B, A, …)
    # (A,) an image: index of the box, -1 background, -2 ignored
    matched: list[Tensor] = field(default_factory=list)
    coder: object = None
    rpn_logits: Tensor | None = None  # (all anchors, 1)
    rpn_deltas: Tensor | None = None  # (all anchors, 4)
    # (all anchors, 4); infinite where an image has no box
    rpn_targets: Tensor | None = None
    # (M,) rows, positive ones first, as in the hard loss
    sampled: Tensor | None = None
    positive: Tensor | None = None  # (P,)
    rois: list[Tensor] = field(default_factory=list)  # (n, 4) an image
    roi_labels: Tensor | None = None  # (N,)
    roi_targets: Tensor | None = None  # (N, 4)
    roi_positive: Tensor | None = None  # (P,)
    roi_outputs: tuple[Tensor, Tensor] | None = None  # (N, C), (N, 4C)

    @property
    def batch_size(self) -> int:
        """Images of the forward."""
        return len(self.batch.image_sizes)

    def logits(self, part: str) -> Tensor:
        """Class logits, as its heads gave them; see the base class for shapes."""
        if part == "anchors":
            return self.head["cls_logits"]
        return self.rpn_logits if part == "rpn" else self.roi_outputs[0]

    def deltas(self, part: str) -> Tensor:
        """Encoded boxes, those of RoIs by class."""
        if part == "anchors":
            return self.head["bbox_regression"]
        return self.rpn_deltas if part == "rpn" else by_class(self.roi_outputs[1])

    def background(self, part: str) -> str:
        """torchvision's first column; of a RetinaNet no class, but there."""
        return "first"

    def valid(self) -> Tensor:
        """All but those that its matcher ignores."""
        return torch.stack([matched != IGNORED for matched in self.matched])

    def find_samples(self, part: str) -> forward.Samples:
        """What torchvision matched to a box, or drew for RPN and RoI head."""
        if part == "anchors":
            return _AnchorSamples(self.targets, self.anchors, self.matched, self.coder)
        if part == "rpn":
            return _RPNSamples(self.sampled, self.positive, self.rpn_targets)
        return _RoISamples(self.rois, self.roi_labels, self.roi_positive, self.roi_targets)


class _AnchorSamples(forward.Samples):
    """The anchors of a dense head that are matched to a box; arguments image by image."""

    def __init__(
        self, targets: list[dict], anchors: list[Tensor], matched: list[Tensor], coder: object
    ):
        self.targets, self.anchors, self.matched, self.coder = targets, anchors, matched, coder

    @cached_property
    def places(self) -> list[Tensor]:
        return [(matched >= 0).nonzero()[:, 0] for matched in self.matched]

    @cached_property
    def positive(self) -> Tensor:
        size = len(self.anchors[0])
        return torch.cat([index + i * size for i, index in enumerate(self.places)])

    @cached_property
    def target(self) -> Tensor:
        return torch.cat(
            [
                _encoded(self.coder, target["boxes"][matched[index]], anchors[index])
                for target, anchors, matched, index in zip(
                    self.targets, self.anchors, self.matched, self.places
                )
            ]
        )

    @property
    def count(self) -> int:
        return len(self.positive)


class _RPNSamples(forward.Samples):
    """The anchors that the RPN sampled; ``targets`` are of all anchors."""

    def __init__(self, sampled: Tensor, positive: Tensor, targets: Tensor):
        self.sampled, self.positive, self.targets = sampled, positive, targets
        self.count = len(sampled)

    @property
    def target(self) -> Tensor:
        return self.targets[self.positive]


class _RoISamples(forward.Samples):
    """The proposals that the RoI head sampled; ``targets`` are of all of them."""

    def __init__(self, rois: list[Tensor], label: Tensor, positive: Tensor, targets: Tensor):
        self.rois, self.label, self.positive, self.targets = rois, label, positive, targets
        self.count = len(label)

    @property
    def classes(self) -> Tensor:
        return self.label[self.positive] - 1

    @property
    def target(self) -> Tensor:
        return self.targets[self.positive]

    @property
    def boxes(self) -> Tensor:
        images = [boxes.new_full((len(boxes), 1), float(i)) for i, boxes in enumerate(self.rois)]
        return torch.cat([torch.cat(images), torch.cat(self.rois)], 1)


def _encoded(coder: object, boxes: Tensor, anchors: Tensor) -> Tensor:
    if hasattr(coder, "encode_single"):
        return coder.encode_single(boxes, anchors)
    # FCOS: distances to the sides, in anchor sizes
    return coder.encode(anchors, boxes)


@contextmanager
def record_dense_inputs(model: nn.Module, seen: Seen, rows: list[int] | None) -> Iterator[None]:
    """Record what the head's loss is given, and give it the labelled images only."""
    owner = model.head if hasattr(model.head, "compute_loss") else model
    original = owner.compute_loss

    def compute_loss(
        targets: list[dict],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        seen.targets, seen.head, seen.coder = targets, head_outputs, model.box_coder
        seen.anchors, seen.matched = anchors, matched_idxs
        if rows is None:
            return original(targets, head_outputs, anchors, matched_idxs)
        if not rows:
            zero = sum(value[:0].sum() for value in head_outputs.values())
            return dict.fromkeys(dense_losses(model), zero)
        # ours come first: no copy
        index = slice(len(rows)) if rows == list(range(len(rows))) else rows
        return original(
            [targets[i] for i in rows],
            {name: value[index] for name, value in head_outputs.items()},
            [anchors[i] for i in rows],
            [matched_idxs[i] for i in rows],
        )

    with replaced(owner, "compute_loss", compute_loss):
        yield


@contextmanager
def record_samples(model: nn.Module, seen: Seen) -> Iterator[None]:
    """Record the anchors and proposals that a two-stage detector samples, with their targets."""
    rpn, roi_heads = model.rpn, model.roi_heads
    sampler, rpn_loss = rpn.fg_bg_sampler, rpn.compute_loss
    select = roi_heads.select_training_samples

    def sample(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = sampler(labels)
        seen.positive = torch.cat(positive).nonzero()[:, 0]
        seen.sampled = torch.cat([seen.positive, torch.cat(negative).nonzero()[:, 0]])
        return positive, negative

    def compute_loss(
        objectness: Tensor, deltas: Tensor, labels: list[Tensor], targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        seen.rpn_logits, seen.rpn_deltas = objectness, deltas
        seen.rpn_targets = torch.cat(targets)
        return rpn_loss(objectness, deltas, labels, targets)

    def select_training_samples(proposals: list[Tensor], targets: list[dict]) -> tuple:
        seen.rois, _, labels, regression_targets = samples = select(proposals, targets)
        seen.roi_labels, seen.roi_targets = torch.cat(labels), torch.cat(regression_targets)
        seen.roi_positive = (seen.roi_labels > 0).nonzero()[:, 0]
        return samples

    with (
        replaced(rpn, "fg_bg_sampler", sample),
        replaced(rpn, "compute_loss", compute_loss),
        replaced(roi_heads, "select_training_samples", select_training_samples),
    ):
        yield


@contextmanager
def replaced(owner: nn.Module, name: str, function: Callable) -> Iterator[None]:
    """An attribute or method replaced on the instance, and as it was afterwards."""
    was_set = name in owner.__dict__
    original = owner.__dict__.get(name)
    owner.__dict__[name] = function
    try:
        yield
    finally:
        if was_set:
            owner.__dict__[name] = original
        else:
            del owner.__dict__[name]


@contextmanager
def computing_losses(model: nn.Module) -> Iterator[None]:
    """torchvision gives losses in train() only; in eval() they are computed with BatchNorm and
    dropout at rest.
    """
    parts = [
        part
        for part in (model, getattr(model, "rpn", None), getattr(model, "roi_heads", None))
        if part is not None
    ]
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = True
        yield
    finally:
        for part, mode in zip(parts, modes):
            part.training = mode


def kind_of(model: nn.Module, role: str) -> str:
    """``'dense'`` or ``'two-stage'``; ValueError for what is no torchvision detector."""
    if hasattr(model, "rpn") and hasattr(model, "roi_heads"):
        return "two-stage"
    if (
        hasattr(model, "head")
        and hasattr(model, "anchor_generator")
        and hasattr(model, "transform")
    ):
        return "dense"
    raise ValueError(
        f"{role} is a {type(model).__name__}; expected one of torchvision's detectors (RetinaNet, "
        "FCOS, SSD, FasterRCNN, MaskRCNN, KeypointRCNN), e.g. from kdtasks.detection.models"
    )


def dense_losses(model: nn.Module) -> list[str]:
    """What a dense detector's forward calls its losses."""
    ctrness = hasattr(getattr(model.head, "regression_head", None), "bbox_ctrness")
    return list(DENSE_LOSSES) if ctrness else list(DENSE_LOSSES)[:2]


def loss_names(model: nn.Module) -> list[str]:
    """The detector's own losses, by the names they have here."""
    if not hasattr(model, "rpn"):
        return [DENSE_LOSSES[name] for name in dense_losses(model)]
    names = ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"]
    return names + [
        f"loss_{part}" for part in ("mask", "keypoint") if getattr(model.roi_heads, f"has_{part}")()
    ]


def classes_of(model: nn.Module) -> int | None:
    """How many classes a detector's head tells apart, background included; None for a head of one's
    own.
    """
    if hasattr(model, "roi_heads"):
        return getattr(
            getattr(getattr(model.roi_heads, "box_predictor", None), "cls_score", None),
            "out_features",
            None,
        )
    head = getattr(model.head, "classification_head", None)
    return getattr(head, "num_classes", None) or getattr(head, "num_columns", None)


@torch.no_grad()
def feature_keys(model: nn.Module) -> list[str]:
    """The keys of the backbone's output, by running it on nothing, which leaves no trace."""
    parameter = next(model.parameters())
    height, width = getattr(model.transform, "fixed_size", None) or (64, 64)
    with try_out(model.backbone):
        return list(
            levels_of(
                model.backbone(
                    torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)
                )
            )
        )


def levels_of(features: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's output as ``{key: (B, C, H, W)}``."""
    return {"0": features} if isinstance(features, Tensor) else dict(features)


def boxes_only(target: Mapping) -> dict:
    """What torchvision reads; it would carry the rest along for nothing."""
    return {
        name: target[name] for name in ("boxes", "labels", "masks", "keypoints") if name in target
    }


def no_boxes(device: torch.device) -> dict[str, Tensor]:
    """The target of an image in which there is nothing."""
    return {
        "boxes": torch.zeros(0, 4, device=device),
        "labels": torch.zeros(0, dtype=torch.int64, device=device),
    }


def by_class(deltas: Tensor) -> Tensor:
    """(N, 4·(C + 1)) -> (N, C, 4), without the background, which comes first."""
    return deltas.unflatten(1, (-1, 4))[:, 1:]


def rescaled(
    boxes: list[Tensor], sizes: list[tuple[int, int]], others: list[tuple[int, int]]
) -> list[Tensor]:
    """Boxes of images of the first (height, width) in pixels of the second."""
    if sizes == others:
        return boxes
    return [
        b * b.new_tensor([w2 / w1, h2 / h1] * 2)
        for b, (h1, w1), (h2, w2) in zip(boxes, sizes, others)
    ]


def resized(teacher: nn.Module, seen: Seen) -> object:
    """An ImageList: the images as the teacher's own transform makes them, padded to the same shares
    as the student's: maps then lie alike.
    """
    images = teacher.transform(list(seen.images))[0]
    pairs = list(zip(images.image_sizes, seen.batch.image_sizes))
    ratios = [
        [teacher_size[axis] / student_size[axis] for teacher_size, student_size in pairs]
        for axis in (0, 1)
    ]
    height, width = (
        max(round(side * sum(ratio) / len(ratio)), *(size[axis] for size in images.image_sizes))
        for axis, (side, ratio) in enumerate(zip(seen.batch.tensors.shape[-2:], ratios))
    )
    padded = images.tensors.new_zeros(*images.tensors.shape[:2], height, width)
    for canvas, image, (h, w) in zip(padded, images.tensors, images.image_sizes):
        canvas[:, :h, :w] = image[:, :h, :w]
    return type(images)(padded, images.image_sizes)


def renormalized(student: nn.Module, teacher: nn.Module, images: object) -> object:
    """An ImageList: the student's images with the teacher's mean and deviation; the padding stays
    zero, as torchvision pads.
    """
    student_stats, teacher_stats = (
        (list(m.transform.image_mean), list(m.transform.image_std)) for m in (student, teacher)
    )
    if student_stats == teacher_stats:
        return images
    mean, std, other_mean, other_std = (
        images.tensors.new_tensor(v).view(3, 1, 1) for v in (*student_stats, *teacher_stats)
    )
    # (B, 3, H, W)
    values = (images.tensors * std + mean - other_mean) / other_std
    for image, (height, width) in zip(values, images.image_sizes):
        image[:, height:], image[:, :, width:] = 0, 0
    return type(images)(values, images.image_sizes)
