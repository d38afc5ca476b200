"""What detectors supply to losses: class logits, box deltas, features, and the rows that the
student's own losses use.

The student runs as its library wrote it, once a step; its own losses and random samples are
untouched. What its parts see on the way is recorded, and a teacher is run, part by part, on exactly
that: the student's images, its sampled anchors, its sampled proposals. A teacher draws no random
number.

This file says when each part runs, and which rows of a teacher are compared with which rows of
the student; :mod:`~kdtasks.detection.answers` says which names there are. How a library's detectors
supply them stands in its back end:
:mod:`~kdtasks.detection.torchvision_distiller`, :mod:`~kdtasks.detection.mmdet_distiller`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdtasks.core import Distiller
from kdtasks.core.names import TensorName
from kdtasks.core.recorder import FeatureRecorder
from kdtasks.detection import cross_heads
from kdtasks.detection.answers import OF_BOTH, OF_STUDENT, OF_TEACHER, Answers, name_of, part_of
from kdtasks.detection.class_map import check_classes
from kdtasks.detection.forward import Forward, Seen

# the heads whose rows are compared; a teacher cannot have their names
PARTS = ("anchors", "rpn", "rois")


def _crosses(role: str, wanted: Iterable[str]) -> bool:
    """Whether some name is of what a teacher's head makes of the student's features."""
    return any(name.startswith(f"cross.{role}.") for name in wanted)


class DetectionDistiller(Distiller, ABC):
    """A :class:`~kdtasks.core.Distiller` of detectors; use the one of your library,
    :class:`~kdtasks.detection.torchvision_distiller.TorchvisionDistiller` or
    :class:`~kdtasks.detection.mmdet_distiller.MMDetDistiller`, which says what a batch holds.

    With ``labelled`` (B,) in a batch, the detector's own losses see labelled images only, and the
    others' ``target`` is not read; of dense detectors alone, as an RPN without boxes samples
    nothing to compare.

    Names beside submodules (``'student.backbone.body.layer4'``), where t is ``student`` or a
    teacher's name:

    ``student.loss_<name>``
        The student's own losses; those in no ``of`` enter with weight 1.
    ``features.t.<key>``
        (B, C, H, W), level by level: torchvision's by the keys of the backbone's output, mmdet's by
        their place in the neck's, 0, 1, ….

    Of dense (one-stage) detectors:

    ``t.cls_logits``
        (B, A, K), all levels. SSD's are those of a softmax with the background at 0, so a loss on
        sigmoids (ADL) sees K one-against-all logits.
    ``t.box_deltas``
        (B, A, n), n = 4 deltas; mmdet's GFL has 4·(reg_max + 1).
    ``anchors.valid``
        bool (B, A): not ignored by the hard class loss (IoU between two thresholds, outside of the
        image).
    ``anchors.t.deltas``, ``anchors.target``
        (P, 4), the anchors that are matched to a box.
    ``anchors.t.logits``
        (P, K) of the same anchors.
    ``anchors.t.edges``
        (P, 4, reg_max + 1), their boxes as logits of bins of left, top, right and bottom, where the
        head gives such: mmdet's GFL, none of torchvision's.
    ``anchors.count``
        P, what the hard box loss divides by (torchvision's RetinaNet only nearly: it divides image
        by image).

    ``cross.t.cls_logits``, ``cross.t.box_deltas``
        Those of a teacher's head that goes on from the student's features (CrossKD), with gradient;
        of heads with a stack of convolutions each for classes and boxes.

    Of two-stage detectors:

    ``rpn.t.logits``
        (M, 1), the anchors that the student's RPN sampled.
    ``rpn.t.deltas``, ``rpn.target``
        (P, 4), the positive ones among them.
    ``rois.t.logits``
        (N, C + 1), the proposals that the student's RoI head sampled. The background is
        torchvision's first column, mmdet's last.
    ``rois.t.deltas``, ``rois.target``
        (P, 4), positive ones, the box of their true class.
    ``rpn.count``, ``rois.count``
        M; N: what the hard box loss of this head divides by.
    ``rpn.sampled``, ``rpn.positive``, ``rois.boxes``, ``rois.label``
        The rows themselves: bool (B, A) twice; (N, 5) of image index and x1, y1, x2, y2; (N,).

    Deltas are encoded, each head's by its own coder: torchvision multiplies by (10, 10, 5, 5) in
    RoI heads and SSD, by 1 in RPN and RetinaNet, so squared errors differ by up to 100 between
    heads; mmdet's RoI heads divide by (0.1, 0.1, 0.2, 0.2). A teacher's are in the units of the
    student's coder, or refused.

    Args:
        student, teachers, losses: as in :class:`~kdtasks.core.Distiller`.
        peers: none; a detector learns from frozen teachers here.
        compile: False; compile a detector's backbone yourself.
        class_map: the teacher's class for each of the student's, counted from 0 and without the
            background, as the data's list of class names has them; None: they are equal.
        unlabelled: ``'soft'``: an unlabelled image enters only losses that read no target.
            ``'soft+pseudo'``: also the detector's own, with the first teacher's detections for
            boxes, unless there are none. ADL's release has such boxes, made beforehand on
            unaugmented images, and drops an image without any; here they are made in each step, on
            the image as the student gets it.
        pseudo_score: the least score of such a detection. No value is published; 0.5 is ours.
        cross_after: of ``cross.*``: the convolution of each of the student's stacks, counted from
            1, behind which the teacher's head goes on. In CrossKD 3 of 4 for RetinaNet, GFL and
            ATSS, 2 of 4 for FCOS.

    Raises:
        ValueError: a model that is no detector of this library; an option that is none; on the
            first run: a teacher whose anchors, strides, classes or deltas are not the student's.
    """

    # the submodule that is the head of each part
    HEADS: ClassVar[Mapping[str, str]]
    # the submodules that are a dense head's stacks, of classes and of boxes
    STACKS: ClassVar[Sequence[str]]
    # the label of the first class; 1: the background is 0, and num_classes counts it
    FIRST_LABEL: ClassVar[int]

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        losses: Mapping[str, tuple] | None = None,
        *,
        peers: Sequence[nn.Module] = (),
        compile: bool | dict = False,
        class_map: Sequence[int] | None = None,
        unlabelled: str = "soft",
        pseudo_score: float = 0.5,
        cross_after: int = 3,
    ):
        check_choice("unlabelled", unlabelled, ("soft", "soft+pseudo"))
        if peers or compile:
            raise ValueError(
                "detectors have no peers, and are not compiled whole (compile=False; "
                "student.backbone.compile() compiles the part that pays)"
            )
        for name in teachers or {}:
            if name in (*PARTS, "features", "cross"):
                raise ValueError(
                    f"a teacher cannot be called {name!r}: '{name}.*' are names of tensors"
                )
        self.unlabelled, self.pseudo_score = unlabelled, pseudo_score
        self.cross_after = cross_after
        super().__init__(student, teachers, losses)
        self.register_buffer(
            "class_map",
            None if class_map is None else torch.tensor(list(class_map), dtype=torch.int64),
            persistent=False,
        )

    # What a back end supplies ---------------------------------------------------------------------
    @abstractmethod
    def parts_of(self, role: str) -> set[str]:
        """Which of :data:`PARTS` a detector has."""

    @abstractmethod
    def feature_keys(self, role: str) -> Sequence[str]:
        """The keys of its features."""

    @abstractmethod
    def loss_names(self) -> Sequence[str]:
        """What the student calls its own losses."""

    @abstractmethod
    def run_student(
        self,
        batch: Mapping[str, object],
        targets: Sequence,
        rows: list[int] | None,
        wanted: Sequence[str],
    ) -> tuple[dict[str, Tensor], dict[str, object], Seen]:
        """Its own losses by name, of the images ``rows`` (None: all); the recorded submodules; and
        what it saw.
        """

    @abstractmethod
    def run_teacher(
        self,
        role: str,
        parts: set[str],
        batch: Mapping[str, object],
        seen: Seen | None,
        wanted: Sequence[str],
    ) -> tuple[Forward, dict[str, object]]:
        """The teacher's features and the heads of some parts, on what the student saw; and the
        recorded submodules.
        """

    @abstractmethod
    def run_head(self, role: str, forward: Forward) -> Forward:
        """The dense head of a teacher once more, on the features of its forward."""

    @abstractmethod
    def check_rows(self, role: str, part: str, forward: Forward, seen: Seen | None) -> None:
        """Raises ValueError where the teacher's rows are not those of the student."""

    @abstractmethod
    def units(self, role: str, part: str) -> Tensor | None:
        """What a teacher's deltas are multiplied by to be in the student's units; None: 1."""

    @abstractmethod
    def student_columns(self, part: str, seen: Seen | None) -> tuple[int, str | None]:
        """How many columns the student's class logits have, and which is the background's."""

    @abstractmethod
    def class_count(self, role: str) -> int | None:
        """Classes of a detector, without the background; None: it does not tell."""

    @abstractmethod
    def labels_of(self, target: object) -> Tensor:
        """The labels of one image's target."""

    @abstractmethod
    def make_target(
        self, batch: Mapping[str, object], image: int, found: Mapping[str, Tensor] | None = None
    ) -> object:
        """The target of one image, as the batch has it, or with the boxes ``found`` there."""

    @abstractmethod
    def no_boxes(self, batch: Mapping[str, object], image: int) -> object:
        """The target of an image in which there is nothing."""

    @abstractmethod
    def detect(
        self, role: str, batch: Mapping[str, object], rows: Sequence[int]
    ) -> list[dict[str, Tensor]]:
        """``boxes``, ``labels`` and ``scores`` that a teacher, in eval, finds in some images, in
        the student's classes.
        """

    def follows(self, role: str) -> bool:
        """Whether a teacher's turn reads what the student saw."""
        return True

    # Names ----------------------------------------------------------------------------------------
    def names(self, role: str) -> list[str]:
        """Everything in the table above that this role computes; of a teacher of another kind,
        features and submodules.
        """
        parts = self.parts_of(role) & self.parts_of("student")
        table = {**OF_BOTH, **(OF_STUDENT if role == "student" else OF_TEACHER)}
        names = [f"features.{role}.{key}" for key in self.feature_keys(role)]
        names += [name_of(name, role) for name in table if part_of(name) in parts]
        if role == "student":
            names += [f"student.{name}" for name in self.loss_names()] + ["student.seen"]
        # no 'student' or 'teacher': no one tensor is the output
        return names + self.submodules(role)

    def needs(self, role: str) -> list[str]:
        """A teacher follows what the student saw and sampled, and had halfway in its head."""
        if role not in self.teachers:
            return []
        names = ["student.seen"] if self.follows(role) else []
        crosses = _crosses(role, self.wanted[role])
        return names + (self._halfway("student") if crosses else [])

    def _halfway(self, role: str) -> list[str]:
        """Names of what a head has at :attr:`cross_after`: of each stack all levels."""
        model, levels = self.model(role), range(len(self.feature_keys("student")))
        paths = [
            cross_heads.path_before_relu(model, stack, self.cross_after, role)
            for stack in self.STACKS
        ]
        return [f"{role}.{path}@{level}" for path in paths for level in levels]

    def is_compared(self, role: str, part: str, wanted: Iterable[str]) -> bool:
        """Whether some loss reads rows of this head, and not only a submodule of it."""
        table = {name_of(name, role) for name in OF_BOTH | OF_TEACHER if part_of(name) == part}
        return not table.isdisjoint(wanted)

    def parts_to_run(self, role: str, wanted: Sequence[str]) -> set[str]:
        """The heads of which some loss reads rows or a submodule."""
        paths = {name.split("@")[0].split(".")[1] for name in wanted if name.startswith(f"{role}.")}
        return {
            part
            for part, path in self.HEADS.items()
            if path in paths or self.is_compared(role, part, wanted)
        }

    # Tensors --------------------------------------------------------------------------------------
    def outputs(
        self, role: str, batch: Mapping[str, object], wanted: list[str]
    ) -> dict[str, object]:
        """The wanted names of one role; a teacher runs after the student, if it follows it."""
        if role == "student":
            losses, values, seen = self.run_student(batch, *self._targets(batch), wanted)
            forward, results = seen, {f"student.{name}": value for name, value in losses.items()}
            results["student.seen"] = seen
        else:
            seen, results = batch.get("student.seen"), {}
            parts = self.parts_to_run(role, wanted)
            halfway = self._halfway(role) if _crosses(role, wanted) else []
            recorded = list(dict.fromkeys([*wanted, *halfway]))
            forward, values = self.run_teacher(role, parts, batch, seen, recorded)
            for part in parts:
                if self.is_compared(role, part, wanted):
                    self.check_rows(role, part, forward, seen)
                    if part != "rpn":
                        self._check_classes(role, part, forward, seen)
        results |= {f"{role}.{path}": value for path, value in values.items()}
        answers = Answers(self, role, forward, seen)
        table = {name_of(name, role): supply for name, supply in {**OF_BOTH, **OF_STUDENT}.items()}
        if _crosses(role, wanted):
            results |= self._cross(role, batch, results, forward, seen)
        for name in wanted:
            if name in table:
                results[name] = table[name](answers)
            elif name.startswith(f"features.{role}."):
                results[name] = forward.features[name.removeprefix(f"features.{role}.")]
        return results

    def _cross(
        self,
        role: str,
        batch: Mapping[str, object],
        outputs: Mapping[str, Tensor],
        forward: Forward,
        seen: Seen | None,
    ) -> dict[str, Tensor]:
        """What a teacher's head gives, and a gradient for, from the student's features on."""
        head = self.HEADS["anchors"]
        values: dict[str, list[Tensor]] = {}
        for student_name, teacher_name in zip(self._halfway("student"), self._halfway(role)):
            path = teacher_name.removeprefix(f"{role}.{head}.").split("@")[0]
            student, teacher = batch[student_name], outputs[teacher_name]
            # in a teacher's turn they are off
            with torch.set_grad_enabled(student.requires_grad):
                value = cross_heads.aligned(student, teacher, f"{teacher_name}, cross_after")
            values.setdefault(path, []).append(value)
        heads = (getattr(self.model(owner), head) for owner in (role, "student"))
        gradients = any(value.requires_grad for levels in values.values() for value in levels)
        with (
            self.teachers[role].ready(),
            torch.set_grad_enabled(gradients),
            cross_heads.crossed(*heads, values),
        ):
            answers = Answers(self, role, self.run_head(role, forward), seen)
            return {name_of(name, role): supply(answers) for name, supply in OF_TEACHER.items()}

    def record(
        self,
        role: str,
        wanted: Sequence[str],
        call: Callable,
        *inputs: object,
        needed: Sequence[str] = (),
    ) -> tuple[object, dict[str, object]]:
        """One call that also records the submodules that are wanted, or needed: its output, and
        their values by path.
        """
        facts, key = self.facts(role), ("recorder", *wanted)
        if key not in facts:
            modules = set(self.submodules(role))
            parts = [TensorName.parse(name) for name in wanted]
            paths = [name.local for name in parts if name.base in modules]
            facts[key] = FeatureRecorder(self.model(role), [*needed, *paths], call)
        return facts[key](*inputs)

    # Labels ---------------------------------------------------------------------------------------
    def _targets(self, batch: Mapping[str, object]) -> tuple[list, list[int] | None]:
        """Boxes for each image, and which images the hard losses see (None: all)."""
        count, labelled = len(batch["input"]), batch.get("labelled")
        batch_targets = batch.get("target") or [None] * count
        flags = [True] * count if labelled is None else labelled.tolist()
        if any(target is None for target, flag in zip(batch_targets, flags) if flag):
            raise ValueError(
                "an image of the batch has no target, and no 'labelled' says that it has none"
            )
        targets = [
            self.make_target(batch, i) if flag else self.no_boxes(batch, i)
            for i, flag in enumerate(flags)
        ]
        self._check_labels(targets)
        rows, unlabelled_rows = (
            [i for i, flag in enumerate(flags) if flag is kind] for kind in (True, False)
        )
        if not unlabelled_rows:
            return targets, None
        if "anchors" not in self.parts_of("student"):
            raise ValueError(
                f"{type(self.student).__name__}: unlabelled images go with dense detectors "
                "(RetinaNet, FCOS, SSD); an RPN without boxes samples nothing to compare"
            )
        if self.unlabelled == "soft+pseudo" and self.teachers:
            for i, boxes in self._pseudo_boxes(batch, unlabelled_rows):
                targets[i] = self.make_target(batch, i, boxes)
                rows.append(i)
        return targets, sorted(rows)

    def _pseudo_boxes(
        self, batch: Mapping[str, object], rows: Sequence[int]
    ) -> list[tuple[int, dict[str, Tensor]]]:
        """The images in which the first teacher finds something with at least ``pseudo_score``, and
        what.
        """
        answers = self.detect(next(iter(self.teachers)), batch, rows)
        masks = [answer["scores"] >= self.pseudo_score for answer in answers]
        targets = [
            {name: answer[name][mask] for name in ("boxes", "labels")}
            for answer, mask in zip(answers, masks)
        ]
        return [(i, target) for i, target in zip(rows, targets) if len(target["labels"])]

    def _check_labels(self, targets: Sequence) -> None:
        """On the first run.

        Raises:
            ValueError: a label that the student has no class for.
        """
        classes = self.class_count("student")
        if "labels checked" in self.facts("student") or classes is None:
            return
        labels = [self.labels_of(target) for target in targets]
        start = self.FIRST_LABEL
        highest = max(
            [int(part.max()) for part in labels if len(part)]
            + [len(self.classes or ()) - 1 + start]
        )
        if highest >= classes + start:
            note = "num_classes counts the background, so " if start else ""
            raise ValueError(
                f"the data has labels up to {highest}, the student has "
                f"num_classes={classes + start}: {note}expected {highest + 1}"
            )
        self.facts("student")["labels checked"] = True

    # Classes --------------------------------------------------------------------------------------
    def _check_classes(self, role: str, part: str, forward: Forward, seen: Seen | None) -> None:
        if ("classes checked", part) in self.facts("student", role):
            return
        columns, background = self.student_columns(part, seen)
        if (background is None) != (forward.background(part) is None):
            raise ValueError(
                f"the student's class logits have {columns} columns, those of {role} "
                f"{forward.logits(part).shape[-1]}: one has a background column, the other none"
            )
        extra = int(background is not None)
        self._compare_classes(role, forward.logits(part).shape[-1] - extra, columns - extra)
        self.facts("student", role)["classes checked", part] = True

    def check_detected_classes(self, role: str) -> None:
        """:meth:`_compare_classes` before a teacher's first detections, where both numbers are
        known.
        """
        counts = self.class_count(role), self.class_count("student")
        facts = self.facts("student", role)
        if "detected classes checked" not in facts and None not in counts:
            self._compare_classes(role, *counts)
            facts["detected classes checked"] = True

    def _compare_classes(self, role: str, theirs: int, ours: int) -> None:
        """Numbers and names of a teacher's classes and the student's, without the background; see
        :func:`~kdtasks.detection.class_map.check_classes`.
        """
        names = getattr(self.teachers[role], "classes", None), self.classes
        check_classes(role, (theirs, ours), names, self.class_map)


def check_choice(name: str, value: object, choices: Sequence) -> None:
    """Raises ValueError for an option that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
