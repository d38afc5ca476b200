"""How torchvision's detectors supply the names of :class:`DetectionDistiller`.

The student runs as torchvision wrote it; the teacher on its resized images, anchors and proposals.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdtasks.detection import detectors
from kdtasks.detection.class_map import students_classes
from kdtasks.detection.distiller import DetectionDistiller, check_choice
from kdtasks.detection.forward import Forward

# of the student, whatever a loss reads
RECORDED = {
    "dense": ("transform", "backbone"),
    "two-stage": ("transform", "backbone", "rpn.anchor_generator", "roi_heads.box_predictor"),
}


class TorchvisionDistiller(DetectionDistiller):
    """A :class:`DetectionDistiller` of RetinaNet, FCOS, SSD, SSDlite, Faster and Mask R-CNN.

    A batch has ``input``, a list of images (3, H, W) in [0,1], or one tensor of them; ``target``, a
    list of dicts with ``boxes`` (n, 4), as x1, y1, x2, y2 in pixels of the image, and ``labels``
    (n,), 0 being the background; and perhaps ``labelled`` (B,). The names that losses can read, and
    all arguments but one, are those of :class:`DetectionDistiller`.

    Args:
        resolution: ``'student'``: the teacher sees the student's resized images. ``'own'``: its own
            transform resizes them, so that it may see larger ones (Chen et al.'s second setting):
            features and RoIs only, as anchors do not correspond.
    """

    HEADS: ClassVar = {"anchors": "head", "rpn": "rpn", "rois": "roi_heads"}
    STACKS = ("head.classification_head.conv", "head.regression_head.conv")
    FIRST_LABEL = 1

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        losses: Mapping[str, tuple] | None = None,
        *,
        resolution: str = "student",
        **options: object,
    ):
        check_choice("resolution", resolution, ("student", "own"))
        self.resolution = resolution
        detectors.kind_of(student, "student")
        super().__init__(student, teachers, losses, **options)
        for name, teacher in self.teachers.items():
            if teacher.input_size is not None or teacher.scale is not None:
                raise ValueError(
                    f"{name}: a detector resizes and normalises by itself; instead of input_size, "
                    "mean and std use its own min_size, image_mean and image_std, and "
                    "resolution='own'"
                )

    # Models ---------------------------------------------------------------------------------------
    def parts_of(self, role: str) -> set[str]:
        """Anchors of a dense detector, RPN and RoI head of one of two stages."""
        dense = detectors.kind_of(self.model(role), role) == "dense"
        return {"anchors"} if dense else {"rpn", "rois"}

    def names(self, role: str) -> list[str]:
        """All but the transform, whose output is no tensor."""
        return [name for name in super().names(role) if name != f"{role}.transform"]

    def feature_keys(self, role: str) -> list[str]:
        """The keys of the backbone's output, found by a forward once."""
        facts = self.facts(role)
        if "levels" not in facts:
            facts["levels"] = detectors.feature_keys(self.model(role))
        return facts["levels"]

    def loss_names(self) -> list[str]:
        """torchvision's, those of dense heads with ``loss_`` before them."""
        return detectors.loss_names(self.student)

    # The student ----------------------------------------------------------------------------------
    def run_student(
        self,
        batch: Mapping[str, object],
        targets: Sequence[dict],
        rows: list[int] | None,
        wanted: Sequence[str],
    ) -> tuple[dict[str, Tensor], dict[str, object], detectors.Seen]:
        """As in training, whatever its mode; its anchors and samples are recorded."""
        model, kind = self.student, detectors.kind_of(self.student, "student")
        seen = detectors.Seen(images=batch["input"])
        recording = (
            detectors.record_dense_inputs(model, seen, rows)
            if kind == "dense"
            else detectors.record_samples(model, seen)
        )
        with detectors.computing_losses(model), recording:
            losses, values = self.record(
                "student", wanted, model, seen.images, targets, needed=RECORDED[kind]
            )
        seen.batch, _ = values.pop("transform")
        seen.features = detectors.levels_of(values["backbone"])
        if kind == "two-stage":
            seen.anchors = values["rpn.anchor_generator"]
            seen.roi_outputs = values["roi_heads.box_predictor"]
        names = detectors.DENSE_LOSSES
        return {names.get(name, name): value for name, value in losses.items()}, values, seen

    def student_columns(self, part: str, seen: detectors.Seen) -> tuple[int, str]:
        """Those of the logits that it gave."""
        return seen.logits(part).shape[-1], seen.background(part)

    def labels_of(self, target: Mapping[str, Tensor]) -> Tensor:
        """``target['labels']``, from 1 on."""
        return target["labels"]

    def make_target(
        self, batch: Mapping[str, object], image: int, found: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Boxes and labels only, without what else a data set says of them."""
        return dict(found) if found else detectors.boxes_only(batch["target"][image])

    def no_boxes(self, batch: Mapping[str, object], image: int) -> dict[str, Tensor]:
        """Empty ``boxes`` and ``labels``."""
        return detectors.no_boxes(batch["input"][image].device)

    # A teacher ------------------------------------------------------------------------------------
    def run_teacher(
        self,
        role: str,
        parts: set[str],
        batch: Mapping[str, object],
        seen: detectors.Seen,
        wanted: Sequence[str],
    ) -> tuple[Forward, dict[str, object]]:
        """Backbone and heads on the student's images, resized for the student or for itself."""
        with self.teachers[role].ready():
            return self.record(
                role, wanted, lambda seen: self._teacher_forward(role, parts, seen), seen
            )

    def _teacher_forward(
        self, role: str, parts: set[str], seen: detectors.Seen
    ) -> "_TeacherForward":
        model = self.model(role)
        if self.resolution == "own":
            images = detectors.resized(model, seen)
        else:
            images = detectors.renormalized(self.student, model, seen.batch)
        forward = _TeacherForward(images, detectors.levels_of(model.backbone(images.tensors)))
        if "anchors" in parts:
            forward = self.run_head(role, forward)
        if "rpn" in parts:
            from torchvision.models.detection.rpn import concat_box_prediction_layers

            # (B·A, 1), (B·A, 4)
            forward.outputs["rpn"] = concat_box_prediction_layers(
                *model.rpn.head(list(forward.features.values()))
            )
        if "rois" in parts:
            rois = detectors.rescaled(seen.rois, seen.batch.image_sizes, images.image_sizes)
            pooled = model.roi_heads.box_roi_pool(forward.features, rois, images.image_sizes)
            # (N, C + 1), (N, 4·(C + 1))
            forward.outputs["rois"] = model.roi_heads.box_predictor(
                model.roi_heads.box_head(pooled)
            )
        return forward

    def run_head(self, role: str, forward: "_TeacherForward") -> "_TeacherForward":
        """The head on the features of a teacher's forward."""
        result = _TeacherForward(forward.images, forward.features)
        outputs = self.model(role).head(list(forward.features.values()))
        result.outputs["anchors"] = outputs["cls_logits"], outputs["bbox_regression"]
        return result

    def check_rows(
        self, role: str, part: str, forward: "_TeacherForward", seen: detectors.Seen
    ) -> None:
        """Anchors: their number each time, the anchors themselves on the first run."""
        if part == "rois":
            return
        if self.resolution == "own":
            raise ValueError(
                f"{role} sees images of another size (resolution='own'), so its anchors are not "
                "the student's: take 'features.*' and 'rois.*' of it, which do not depend on "
                "anchors"
            )
        rows = forward.logits(part).shape[:-1].numel()
        expected = sum(len(anchors) for anchors in seen.anchors)
        same = rows == expected
        if same and "anchors checked" not in self.facts("student", role):
            model = self.model(role)
            generator = (model if part == "anchors" else model.rpn).anchor_generator
            student_anchors = torch.cat(seen.anchors)
            # made in the maps' dtype
            levels = [level.to(student_anchors.dtype) for level in forward.features.values()]
            same = torch.allclose(torch.cat(generator(forward.images, levels)), student_anchors)
        if not same:
            sizes = [
                [tuple(level.shape[-2:]) for level in owner.features.values()]
                for owner in (forward, seen)
            ]
            raise ValueError(
                f"{role} has {rows} anchors in this batch, on feature maps {sizes[0]}, the student "
                f"{expected} on {sizes[1]}; or they differ in size: give both the same strides and "
                "the same anchor_generator"
            )
        self.facts("student", role)["anchors checked"] = True

    def units(self, role: str, part: str) -> Tensor | None:
        """The quotient of both coders' weights, (4,)."""
        facts, key = self.facts("student", role), ("units", part)
        if key not in facts:
            facts[key] = self._units(role, part)
        return facts[key]

    def _units(self, role: str, part: str) -> Tensor | None:
        owners = (self.student, self.model(role))
        if part != "anchors":
            owners = tuple(getattr(owner, self.HEADS[part]) for owner in owners)
        student_coder, teacher_coder = (owner.box_coder for owner in owners)
        if type(student_coder) is not type(teacher_coder):
            raise ValueError(
                f"{role} encodes boxes with {type(teacher_coder).__name__}, the student with "
                f"{type(student_coder).__name__}: their deltas cannot be compared"
            )
        weights = [getattr(coder, "weights", None) for coder in (student_coder, teacher_coder)]
        if weights[0] == weights[1]:
            return None
        factor = torch.tensor(weights[0]).div(torch.tensor(weights[1]))
        return factor.to(next(self.student.parameters()).device)

    def class_count(self, role: str) -> int | None:
        """The columns of its class logits but the background's."""
        columns = detectors.classes_of(self.model(role))
        return None if columns is None else columns - 1

    # Detections -----------------------------------------------------------------------------------
    def detect(
        self, role: str, batch: Mapping[str, object], rows: Sequence[int]
    ) -> list[dict[str, Tensor]]:
        """As :meth:`detections`, of some images of a batch."""
        return self.detections(role, [batch["input"][i] for i in rows])

    @torch.no_grad()
    def detections(self, role: str, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """What a teacher, in eval, finds in images: ``boxes``, ``labels`` and ``scores`` of each,
        in the student's classes.
        """
        self.check_detected_classes(role)
        detections = []
        for answer in self.teachers[role](images):
            labels = students_classes(answer["labels"] - 1, self.class_map) + 1
            # column 0 of a RetinaNet is no class
            mask = (labels > 0) & (answer["boxes"][:, 2:] > answer["boxes"][:, :2]).all(1)
            detections.append(
                {
                    "boxes": answer["boxes"][mask].float(),
                    "labels": labels[mask],
                    "scores": answer["scores"][mask],
                }
            )
        return detections


class _TeacherForward(Forward):
    """Of a teacher's parts.

    Args:
        images: torchvision's ImageList, as the teacher saw them.
        features: by the keys of the backbone's output.
    """

    def __init__(self, images: object, features: dict[str, Tensor]):
        self.images, self.features = images, features
        self.outputs: dict[str, tuple[Tensor, Tensor]] = {}

    def logits(self, part: str) -> Tensor:
        return self.outputs[part][0]

    def deltas(self, part: str) -> Tensor:
        deltas = self.outputs[part][1]
        return detectors.by_class(deltas) if part == "rois" else deltas

    def background(self, part: str) -> str:
        return "first"
