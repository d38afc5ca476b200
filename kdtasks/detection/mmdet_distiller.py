"""How MMDetection's detectors supply the names of :class:`DetectionDistiller`.

The student runs as mmdet wrote it; the teacher on its images, its sampled anchors and its RoIs.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from kdtasks.core import Teacher
from kdtasks.detection import mmdet_detectors, mmdet_forward
from kdtasks.detection.class_map import students_classes
from kdtasks.detection.distiller import DetectionDistiller
from kdtasks.detection.forward import Forward, Seen


class MMDetDistiller(DetectionDistiller):
    """A :class:`DetectionDistiller` of mmdet's one- and two-stage detectors.

    A batch is ``{'input': images, 'target': data_samples}``, and perhaps ``labelled`` (B,).
    ``input`` (B, 3, H, W) is what the student's data_preprocessor gives. Every labelled image needs
    ``gt_instances``; they may be empty. Own losses that the student did not give when it was built
    go into the batch's dict ``late``, where it has one.

    The names that losses can read, and all arguments, are those of :class:`DetectionDistiller`.
    Lists of an own loss, one a level, are summed; own values that are no losses (``acc``, a
    cascade's ``s0.loss_cls``) enter by their names. Anchors are level by level, within it location
    by location. ``anchors.valid`` is False where the label weight is 0, and all True for heads that
    weigh none; ``anchors.target`` needs a head that assigns encoded boxes (RetinaNet, SSD, FCOS).
    Unlabelled images need a one-stage head that gives a map for each level.

    Raises:
        ValueError: a student that gives no losses; heads that do not correspond, on the first run.
    """

    HEADS = mmdet_detectors.HEADS
    STACKS = ("bbox_head.cls_convs", "bbox_head.reg_convs")
    FIRST_LABEL = 0

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        losses: Mapping[str, tuple] | None = None,
        **options: object,
    ):
        mmdet_detectors.kind_of(student, "student")
        for name, model in (teachers or {}).items():
            mmdet_detectors.kind_of(model.model if isinstance(model, Teacher) else model, name)
        self._first_trial = (student, mmdet_detectors.try_student(student))
        entries = _own_values(self._first_trial[1][1], losses or {})
        super().__init__(student, teachers, {**entries, **(losses or {})}, **options)
        self._first_trial = None

    # Models ---------------------------------------------------------------------------------------
    def parts_of(self, role: str) -> set[str]:
        """By the heads that the detector has."""
        return mmdet_detectors.parts_of(self.model(role))

    def feature_keys(self, role: str) -> list[str]:
        """``'0'``, ``'1'``, …: the neck's levels, counted once by a forward."""
        facts = self.facts(role)
        if role == "student":
            count = self._trial()[0]
        else:
            count = facts["levels"] = facts.get("levels") or mmdet_detectors.count_levels(
                self.model(role)
            )
        return [str(level) for level in range(count)]

    def loss_names(self) -> list[str]:
        """What a trial in ``mode='loss'`` gave."""
        return self._trial()[1]

    def _trial(self) -> tuple[int, list[str]]:
        """The student's levels, and what it gives in mode='loss'."""
        facts = self.facts("student")
        if "trial" not in facts:
            is_tried = self._first_trial and self._first_trial[0] is self.student
            facts["trial"] = (
                self._first_trial[1] if is_tried else mmdet_detectors.try_student(self.student)
            )
        return facts["trial"]

    def follows(self, role: str) -> bool:
        """Where RPN, RoI head or the deltas of matched anchors are read; else it runs first."""
        wanted = self.wanted[role]
        return not self.parts_to_run(role, wanted).isdisjoint(("rpn", "rois")) or any(
            name.startswith(f"anchors.{role}.") for name in wanted
        )

    # The student ----------------------------------------------------------------------------------
    def run_student(
        self,
        batch: Mapping[str, object],
        targets: Sequence,
        rows: list[int] | None,
        wanted: Sequence[str],
    ) -> tuple[dict[str, Tensor], dict[str, object], Seen]:
        """In ``mode='loss'``; what its methods are called with, and return, is recorded."""
        model, images = self.student, batch["input"]
        with ExitStack() as stack:
            calls = {
                name: stack.enter_context(mmdet_detectors.record_calls(owner, method))
                for name, (owner, method) in mmdet_forward.recorded_methods(model).items()
            }
            if rows is not None:
                stack.enter_context(
                    mmdet_forward.labelled_only(model.bbox_head, rows, self.loss_names())
                )
            losses, values = self.record(
                "student",
                wanted,
                lambda images, samples: mmdet_detectors.losses_of(model, images, samples),
                images,
                targets,
            )
        losses = {name: mmdet_forward.sum_loss(value) for name, value in losses.items()}
        late = {name: value for name, value in losses.items() if name not in self.loss_names()}
        if late and "late" not in batch:
            raise ValueError(
                f"{type(model).__name__} gave losses that it did not give before: {list(late)}"
            )
        if late:
            batch["late"].update(late)
        return losses, values, mmdet_forward.StudentForward(calls, model, len(images), rows)

    def student_columns(self, part: str, seen: Seen | None) -> tuple[int, str | None]:
        """What its head is made for; nothing has to run."""
        head = mmdet_detectors.head_of(self.student, part)
        columns = head.num_classes + 1 if part == "rois" else head.cls_out_channels
        return columns, mmdet_forward.background_of(head, part)

    def class_count(self, role: str) -> int | None:
        """The ``num_classes`` of its head."""
        heads = [mmdet_detectors.head_of(self.model(role), part) for part in ("anchors", "rois")]
        return next((head.num_classes for head in heads if hasattr(head, "num_classes")), None)

    def labels_of(self, target: object) -> Tensor:
        """Those of its ``gt_instances``."""
        return target.gt_instances.labels

    def make_target(
        self, batch: Mapping[str, object], image: int, found: Mapping[str, Tensor] | None = None
    ) -> object:
        """The image's data sample; ValueError without boxes, and where nothing says so."""
        sample = batch["target"][image]
        if found is not None:
            return mmdet_detectors.with_boxes(sample, found["boxes"], found["labels"])
        if not mmdet_detectors.is_labelled(sample):
            raise ValueError(
                f"image {image} of the batch has no gt_instances with bboxes, and no 'labelled' "
                "says so; an image without objects has empty ones"
            )
        return sample

    def no_boxes(self, batch: Mapping[str, object], image: int) -> object:
        """The image's own sample, with empty ``gt_instances``."""
        boxes = batch["input"].new_zeros(0, 4)
        labels = boxes.new_zeros(0, dtype=torch.int64)
        return mmdet_detectors.with_boxes(batch["target"][image], boxes, labels)

    # A teacher ------------------------------------------------------------------------------------
    def run_teacher(
        self,
        role: str,
        parts: set[str],
        batch: Mapping[str, object],
        seen: Seen | None,
        wanted: Sequence[str],
    ) -> tuple[Forward, dict[str, object]]:
        """Neck and heads on the student's images and sampled proposals."""
        rois = seen.samples("rois").boxes if "rois" in parts else None
        images = self._images(role, batch["input"], batch["target"])
        with self.teachers[role].ready():
            return self.record(
                role,
                wanted,
                lambda images, rois: self._teacher_forward(role, parts, images, rois),
                images,
                rois,
            )

    def _teacher_forward(
        self, role: str, parts: set[str], images: Tensor, rois: Tensor | None
    ) -> Forward:
        model = self.model(role)
        features, outputs = model.extract_feat(images), {}
        for part in parts & {"anchors", "rpn"}:
            outputs[part] = mmdet_detectors.maps_of(model, part, features)
        if "rois" in parts:
            outputs["rois"] = model.roi_head._bbox_forward(features, rois)
        return mmdet_forward.TeacherForward(features, outputs, model)

    def run_head(self, role: str, forward: Forward) -> Forward:
        """The head as in training, on the features of a teacher's forward."""
        model, features = self.model(role), list(forward.features.values())
        outputs = {"anchors": mmdet_detectors.maps_of(model, "anchors", features)}
        return mmdet_forward.TeacherForward(features, outputs, model)

    def _images(self, role: str, images: Tensor, samples: Sequence) -> Tensor:
        """As the teacher's data_preprocessor would have given them; whether that differs is asked
        once, since on a GPU it waits.
        """
        student_preprocessor, teacher_preprocessor = (
            model.data_preprocessor for model in (self.student, self.model(role))
        )
        facts = self.facts("student", role)
        if "renormalized" not in facts:
            facts["renormalized"] = not mmdet_detectors.same_normalisation(
                student_preprocessor, teacher_preprocessor
            )
        return (
            mmdet_detectors.renormalized(
                student_preprocessor, teacher_preprocessor, images, samples
            )
            if facts["renormalized"]
            else images
        )

    def check_rows(self, role: str, part: str, forward: Forward, seen: Seen | None) -> None:
        """Strides and base anchors, once."""
        facts = self.facts("student", role)
        if part != "rois" and ("places checked", part) not in facts:
            mmdet_detectors.check_priors(
                role,
                part,
                mmdet_detectors.head_of(self.student, part),
                mmdet_detectors.head_of(self.model(role), part),
            )
            facts["places checked", part] = True

    def units(self, role: str, part: str) -> None:
        """None: deltas of other units are refused."""
        facts = self.facts("student", role)
        if ("units checked", part) in facts:
            return
        units = [
            mmdet_detectors.units_of(mmdet_detectors.head_of(model, part))
            for model in (self.student, self.model(role))
        ]
        if units[0] != units[1]:
            raise ValueError(
                f"{part}: the student encodes its boxes as {units[0]}, {role} as {units[1]}; their "
                "deltas cannot be compared"
            )
        facts["units checked", part] = True

    @torch.no_grad()
    def detect(
        self, role: str, batch: Mapping[str, object], rows: Sequence[int]
    ) -> list[dict[str, Tensor]]:
        """By mmdet's own ``predict``, with its thresholds; see the base class."""
        self.check_detected_classes(role)
        # they get their detections written into them
        samples = [self.no_boxes(batch, i) for i in rows]
        images = self._images(role, batch["input"][rows], samples)
        with self.teachers[role].ready():
            answers = self.model(role).predict(images, samples, rescale=False)
        detections = []
        for answer in (sample.pred_instances for sample in answers):
            labels = students_classes(answer.labels, self.class_map)
            mask = (labels >= 0) & (answer.bboxes[:, 2:] > answer.bboxes[:, :2]).all(1)
            detections.append(
                {
                    "boxes": answer.bboxes[mask].float(),
                    "labels": labels[mask],
                    "scores": answer.scores[mask],
                }
            )
        return detections


def _own_values(names: Sequence[str], losses: Mapping[str, tuple]) -> dict[str, tuple]:
    """Entries for what the student gives in mode='loss' and does not call a loss: accuracies, a
    cascade's ``s0.loss_cls``; without what ``losses`` lists.
    """
    listed_names = {
        name
        for entry in losses.values()
        for name in ([entry[1]] if isinstance(entry[1], str) else entry[1])
    }
    entries = {
        name: (None, f"student.{name}", 1.0)
        for name in names
        if not name.startswith("loss_") and f"student.{name}" not in listed_names
    }
    if not entries.keys().isdisjoint(losses):
        raise ValueError(
            f"the student's own {min(entries.keys() & losses.keys())!r} has this name; rename your "
            "entry"
        )
    return entries
