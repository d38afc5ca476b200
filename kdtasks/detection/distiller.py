"""What torchvision's detectors supply to losses: class logits, box deltas, features, and the rows
that their own losses use.

The student runs as torchvision wrote it, once a step; its own losses and random samples are
untouched. What its parts see on the way is noted, and a teacher is run, part by part, on exactly
that: the student's resized images, its sampled anchors, its sampled proposals. A teacher draws no
random number.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdtasks.core import Distiller
from kdtasks.core.recorder import FeatureRecorder
from kdtasks.detection import detectors

TAPPED = {
    "dense": ("transform", "backbone"),  # of the student
    "two-stage": ("transform", "backbone", "rpn.anchor_generator", "roi_heads.box_predictor"),
}


class DetectionDistiller(Distiller):
    """A :class:`~kdtasks.core.Distiller` of torchvision's detectors: RetinaNet, FCOS, SSD, SSDlite,
    Faster and Mask R-CNN.

    A batch has ``input``, a list of images (3, H, W) in [0,1], or one tensor of them; ``target``, a
    list of dicts with ``boxes`` (n, 4), as x1, y1, x2, y2 in pixels of the image, and ``labels``
    (n,), 0 being the background. With ``labelled`` (B,), the detector's own losses see labelled
    images only, the others' ``target`` is not read.

    Names beside submodules (``'student.backbone.body.layer4'``), where t is a teacher's name:

    ==============================================  ===================================================================
    ``student.loss_<name>``                         the student's own losses; those in no ``of`` enter with weight 1
    ``student.cls_logits``, ``t.cls_logits``        (B, A, K), all levels; dense heads. SSD's are those of a softmax with the
                                                    background at 0, so a loss on sigmoids (ADL)
                                                    sees K one-against-all logits
    ``student.box_deltas``, ``t.box_deltas``        (B, A, 4), in the student's coder units; dense heads
    ``anchors.valid``                               bool (B, A): not ignored by the hard loss (IoU between the thresholds)
    ``anchors.student.deltas``, ``anchors.t.deltas``, ``anchors.target``  (P, 4), anchors matched to a box; dense heads
    ``rpn.student.logits``, ``rpn.t.logits``        (M, 1), the anchors that the student's RPN sampled
    ``rpn.student.deltas``, ``rpn.t.deltas``, ``rpn.target``  (P, 4), the positive ones among them
    ``rois.student.logits``, ``rois.t.logits``      (N, C), the proposals that the student's RoI head sampled
    ``rois.student.deltas``, ``rois.t.deltas``, ``rois.target``  (P, 4), positive ones, the box of their true class
    ``anchors.count``, ``rpn.count``, ``rois.count``  P; M; N: what the hard box loss of this head divides by (RetinaNet's only
                                                    nearly: it divides image by image)
    ``features.student.<key>``, ``features.t.<key>``  (B, C, H, W), by the keys of the backbone's output
    ==============================================  ===================================================================

    Deltas are encoded: box coder weights are (10, 10, 5, 5) in RoI heads and SSD, (1, 1, 1, 1) in
    RPN and RetinaNet, so squared errors differ by up to 100 between heads. A teacher's are brought
    to the units of the student's coder.

    Args:
        student, teachers, losses: as in :class:`~kdtasks.core.Distiller`.
        peers: none; a detector learns from frozen teachers here.
        compile: False; compile a detector's backbone yourself.
        class_map: the teacher's class for each of the student's classes, background included; None:
            they are equal.
        resolution: ``'student'``: the teacher sees the student's resized images. ``'own'``: its own
            transform resizes them, so that it may see larger ones (Chen et al.'s second setting):
            features and RoIs only, as anchors do not correspond.
        unlabelled: ``'soft'``: an unlabelled image enters only losses that read no target.
            ``'soft+pseudo'``: also the detector's own, with the first teacher's detections for
            boxes, unless there are none. ADL's release has such boxes, made beforehand on
            unaugmented images, and drops an image without any; here they are made in each step, on
            the image as the student gets it.
        pseudo_score: the least score of such a detection. No value is published; 0.5 is ours.

    Raises:
        ValueError: a model that is no torchvision detector, a teacher whose anchors, strides or
            classes are not the student's (on the first run), an option that is none.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        losses: Mapping[str, tuple] | None = None,
        *,
        peers: Sequence[nn.Module] = (),
        compile: bool | dict = False,
        class_map: Sequence[int] | None = None,
        resolution: str = "student",
        unlabelled: str = "soft",
        pseudo_score: float = 0.5,
    ):
        _one_of("resolution", resolution, ("student", "own"))
        _one_of("unlabelled", unlabelled, ("soft", "soft+pseudo"))
        if peers or compile:
            raise ValueError(
                "detectors have no peers, and are not compiled whole (compile=False; "
                "student.backbone.compile() "
                "compiles the part that pays)"
            )
        self.resolution, self.unlabelled, self.pseudo_score = resolution, unlabelled, pseudo_score
        detectors.kind_of(student, "student")
        for name in teachers or {}:
            if name in ("rpn", "rois", "anchors", "features"):
                raise ValueError(
                    f"a teacher cannot be called {name!r}: '{name}.*' are names of tensors"
                )
        super().__init__(student, teachers, losses)
        for name, teacher in self.teachers.items():
            if teacher.input_size is not None or teacher.scale is not None:
                raise ValueError(
                    f"{name}: a detector resizes and normalises by itself; instead of "
                    "input_size, mean and std "
                    "use its own min_size, image_mean and image_std, and "
                    "resolution='own'"
                )
        self.register_buffer(
            "class_map", None if class_map is None else torch.tensor(class_map), persistent=False
        )

    @property
    def kind(self) -> str:
        """Of the student: ``'dense'`` or ``'two-stage'``."""
        return detectors.kind_of(self.student, "student")

    # Names ----------------------------------------------------------------------------------------
    def names(self, role: str) -> list[str]:
        """Everything in the table above that this role computes; of a teacher of another kind,
        features and submodules.
        """
        kind, model = detectors.kind_of(self.model(role), role), self.model(role)
        found = [f"features.{role}.{key}" for key in self._keys(role)]
        if kind == "dense" == self.kind:
            found += [f"{role}.cls_logits", f"{role}.box_deltas", f"anchors.{role}.deltas"]
        elif kind == self.kind:
            found += [
                f"{part}.{role}.{what}" for part in ("rpn", "rois") for what in ("logits", "deltas")
            ]
        if role == "student":
            found += [f"student.{name}" for name in detectors.loss_names(model)] + ["student.seen"]
            heads = ("anchors",) if kind == "dense" else ("rpn", "rois")
            found += [f"{head}.{what}" for head in heads for what in ("target", "count")]
            found += ["anchors.valid"] if kind == "dense" else []
        submodules = [name for name in super().names(role)[1:] if name != f"{role}.transform"]
        # no 'student' or 'teacher': no one tensor is the output
        return found + submodules

    def _keys(self, role: str) -> list[str]:
        """The keys of the backbone's output; found by running it once."""
        facts = self.facts(role)
        if "levels" not in facts:
            facts["levels"] = detectors.feature_keys(self.model(role))
        return facts["levels"]

    def needs(self, role: str) -> list[str]:
        """A teacher follows what the student saw and sampled."""
        return [] if role == "student" else ["student.seen"]

    def outputs(
        self, role: str, batch: Mapping[str, object], wanted: list[str]
    ) -> dict[str, object]:
        """The wanted names of one role; a teacher runs after the student, and follows it."""
        if role == "student":
            return self._student_outputs(batch, wanted)
        return self._teacher_outputs(role, batch["student.seen"], wanted)

    # The student ----------------------------------------------------------------------------------
    def _student_outputs(self, batch: Mapping[str, object], wanted: list[str]) -> dict[str, object]:
        model, kind = self.student, self.kind
        seen = detectors.Seen(images=batch["input"])
        targets, rows = self._targets(batch)
        if rows is not None and kind == "two-stage":
            raise ValueError(
                f"{type(model).__name__}: unlabelled images go with dense detectors "
                "(RetinaNet, FCOS, SSD); an "
                "RPN without boxes samples nothing to compare"
            )
        run = self._taps_of("student", TAPPED[kind], wanted, model)
        noting = (
            detectors.noting_dense(model, seen, rows)
            if kind == "dense"
            else detectors.noting_two_stage(model, seen)
        )
        with detectors.computing_losses(model), noting:
            losses, values = run(seen.images, targets)
        seen.batch, _ = values.pop("transform")
        seen.features = detectors.levels_of(values["backbone"])
        if kind == "two-stage":
            seen.anchors, seen.roi_outputs = (
                values["rpn.anchor_generator"],
                values["roi_heads.box_predictor"],
            )
        found = {
            f"student.{detectors.DENSE_LOSSES.get(name, name)}": value
            for name, value in losses.items()
        }
        found |= {
            "student.seen": seen,
            **{f"student.{path}": value for path, value in values.items()},
        }
        return found | {
            name: self._student_tensor(name, seen) for name in wanted if name not in found
        }

    def _student_tensor(self, name: str, seen: detectors.Seen):
        part, _, what = name.partition(".")
        if part == "features":
            return seen.features[what.removeprefix("student.")]
        if what == "cls_logits":
            return seen.head["cls_logits"]
        if what == "box_deltas":
            return seen.head["bbox_regression"]
        if name == "anchors.valid":
            return torch.stack([matched != detectors.IGNORED for matched in seen.matched])
        if what == "count":
            return {
                "anchors": lambda: len(seen.anchor_rows()[0]),
                "rpn": lambda: len(seen.sampled),
                "rois": lambda: len(seen.roi_labels),
            }[part]()
        if part == "anchors":
            rows, target = seen.anchor_rows()
            return target if what == "target" else seen.head["bbox_regression"].flatten(0, 1)[rows]
        if part == "rpn":
            return {
                "student.logits": lambda: seen.rpn_logits[seen.sampled],
                "target": lambda: seen.rpn_targets[seen.positive],
                "student.deltas": lambda: seen.rpn_deltas[seen.positive],
            }[what]()
        logits, deltas = seen.roi_outputs
        if what == "student.logits":
            return logits
        rows = seen.roi_positive
        return (
            seen.roi_targets[rows]
            if what == "target"
            else detectors.of_class(deltas, rows, seen.roi_labels[rows])
        )

    def _targets(self, batch: Mapping[str, object]) -> tuple[list[dict], list[int] | None]:
        """Boxes for each image, and which images the hard losses see (None: all)."""
        images, labelled = batch["input"], batch.get("labelled")
        targets = batch.get("target") or [None] * len(images)
        known = [True] * len(images) if labelled is None else labelled.tolist()
        if any(target is None for target, one in zip(targets, known) if one):
            raise ValueError(
                "an image of the batch has no target, and no 'labelled' says that it has none"
            )
        found = [
            detectors.boxes_only(target) if one else detectors.no_boxes(images[0].device)
            for target, one in zip(targets, known)
        ]
        self._check_labels(found)
        rows = [i for i, one in enumerate(known) if one]
        others = [i for i, one in enumerate(known) if not one]
        if self.unlabelled == "soft+pseudo" and self.teachers and others:
            for i, boxes in zip(others, self._pseudo_boxes([images[i] for i in others])):
                if len(boxes["boxes"]):
                    found[i] = boxes
                    rows.append(i)
        return found, sorted(rows) if others else None

    def _check_labels(self, targets: list[dict]) -> None:
        """On the first run.

        Raises:
            ValueError: a label that the student has no class for.
        """
        classes = detectors.classes_of(self.student)
        if "labels checked" in self.facts("student") or classes is None:
            return
        highest = max(
            [int(t["labels"].max()) for t in targets if len(t["labels"])]
            + [len(self.classes or ())]
        )
        if highest >= classes:
            raise ValueError(
                f"the data has labels up to {highest}, the student has "
                f"num_classes={classes}: num_classes counts "
                f"the background, so expected {highest + 1}"
            )
        self.facts("student")["labels checked"] = True

    @torch.no_grad()
    def detections(self, role: str, images: list[Tensor]) -> list[dict]:
        """What a teacher, in eval, finds in images: ``boxes``, ``labels`` and ``scores`` of each,
        in the student's classes.
        """
        theirs, ours = detectors.classes_of(self.model(role)), detectors.classes_of(self.student)
        if (
            "classes checked" not in self.facts("student", role)
            and theirs is not None
            and ours is not None
        ):
            self._check_classes(role, theirs, ours)
        found = []
        for one in self.teachers[role](images):
            labels = one["labels"]
            if self.class_map is not None:
                # (n, classes)
                match = labels[:, None] == self.class_map[None, 1:]
                labels = torch.where(match.any(1), match.long().argmax(1) + 1, 0)
            # column 0 of a RetinaNet is no class
            keep = (labels > 0) & (one["boxes"][:, 2:] > one["boxes"][:, :2]).all(1)
            found.append(
                {
                    "boxes": one["boxes"][keep].float(),
                    "labels": labels[keep],
                    "scores": one["scores"][keep],
                }
            )
        return found

    def _pseudo_boxes(self, images: list[Tensor]) -> list[dict]:
        """What the first teacher finds with at least ``pseudo_score``."""
        found = [
            (one, one["scores"] >= self.pseudo_score)
            for one in self.detections(next(iter(self.teachers)), images)
        ]
        return [{name: one[name][sure] for name in ("boxes", "labels")} for one, sure in found]

    # A teacher ------------------------------------------------------------------------------------
    def _teacher_outputs(
        self, role: str, seen: detectors.Seen, wanted: list[str]
    ) -> dict[str, object]:
        model = self.model(role)
        run = self._taps_of(
            role, (), wanted, lambda seen: self._teacher_parts(role, model, wanted, seen)
        )
        with self.teachers[role].ready():
            parts, values = run(seen)
        found = {f"{role}.{path}": value for path, value in values.items()}
        return found | {
            name: self._teacher_tensor(name, role, seen, parts)
            for name in wanted
            if name not in found
        }

    def _teacher_parts(
        self, role: str, model: nn.Module, wanted: Sequence[str], seen: detectors.Seen
    ) -> dict:
        """The teacher's backbone, and those of its heads that some loss wants, on what the student
        saw.
        """
        heads, own = _heads(role, wanted), self.resolution == "own"
        images = (
            detectors.resized(model, seen)
            if own
            else detectors.renormalized(self.student, model, seen.batch)
        )
        parts = {"features": detectors.levels_of(model.backbone(images.tensors))}
        levels = list(parts["features"].values())
        if "head" in heads:
            parts |= model.head(levels)
            if _compared(role, "head", wanted):
                self._check_anchors(
                    role,
                    model.anchor_generator,
                    images,
                    levels,
                    seen,
                    parts["cls_logits"].shape[:2].numel(),
                )
        if "rpn" in heads:
            from torchvision.models.detection.rpn import concat_box_prediction_layers

            # (all anchors, 1), (…, 4)
            parts["rpn"] = concat_box_prediction_layers(*model.rpn.head(levels))
            if _compared(role, "rpn", wanted):
                self._check_anchors(
                    role, model.rpn.anchor_generator, images, levels, seen, len(parts["rpn"][0])
                )
        if "roi_heads" in heads:
            rois = detectors.rescaled(seen.rois, seen.batch.image_sizes, images.image_sizes)
            pooled = model.roi_heads.box_roi_pool(parts["features"], rois, images.image_sizes)
            # (N, C), (N, 4C)
            parts["rois"] = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
        return parts

    def _teacher_tensor(self, name: str, role: str, seen: detectors.Seen, parts: Mapping):
        part, _, what = (
            name.partition(f".{role}.") if not name.startswith(f"{role}.") else name.partition(".")
        )
        if part == "features":
            return parts["features"][what]
        if what == "cls_logits":
            return self._classes_of(role, parts["cls_logits"], seen.head["cls_logits"])
        if what == "box_deltas":
            return parts["bbox_regression"] * self._units(role)
        if part == "anchors":
            return parts["bbox_regression"].flatten(0, 1)[seen.anchor_rows()[0]] * self._units(role)
        logits, deltas = parts[part]
        if part == "rpn":
            return (
                logits[seen.sampled]
                if what == "logits"
                else deltas[seen.positive] * self._units(role, "rpn")
            )
        if what == "logits":
            return self._classes_of(role, logits, seen.roi_outputs[0])
        self._classes_of(role, logits, seen.roi_outputs[0])
        labels = seen.roi_labels[seen.roi_positive]
        labels = labels if self.class_map is None else self.class_map[labels]
        return detectors.of_class(deltas, seen.roi_positive, labels) * self._units(
            role, "roi_heads"
        )

    def _classes_of(self, role: str, logits: Tensor, like: Tensor) -> Tensor:
        """The columns of the student's classes."""
        if "classes checked" not in self.facts("student", role):
            self._check_classes(role, logits.shape[-1], like.shape[-1])
        return logits if self.class_map is None else logits.index_select(-1, self.class_map)

    def _check_classes(self, role: str, theirs: int, ours: int) -> None:
        """On the first run.

        Raises:
            ValueError: the teacher's columns are not the student's classes, and no class_map says
                which are.
        """
        hint = "class_map, the teacher's class for each of the student's (background included)"
        if self.class_map is not None:
            entries, highest = len(self.class_map), int(self.class_map.max())
            if entries != ours or highest >= theirs or int(self.class_map.min()) < 0:
                raise ValueError(
                    f"class_map has {entries} entries up to {highest}; the student "
                    f"has {ours} classes, {role} "
                    f"{theirs}: expected {hint}"
                )
        elif theirs != ours:
            raise ValueError(
                f"{role} has {theirs} classes (background included), the student "
                f"{ours}: expected {hint}"
            )
        else:
            known = getattr(self.teachers[role], "classes", None)
            if known and self.classes and list(known) != list(self.classes):
                raise ValueError(
                    f"{role} knows the classes {list(known)[:8]}, the data has "
                    f"{list(self.classes)[:8]}: "
                    "expected the "
                    f"same in the same order, or {hint}"
                )
        self.facts("student", role)["classes checked"] = True

    def _check_anchors(
        self,
        role: str,
        generator: Callable,
        images,
        levels: list[Tensor],
        seen: detectors.Seen,
        rows: int,
    ) -> None:
        """Rows of the two heads are compared one by one: their number is compared each time, the
        anchors on the first run.

        Raises:
            ValueError: they are not the same.
        """
        if self.resolution == "own":
            raise ValueError(
                f"{role} sees images of another size (resolution='own'), so its "
                "anchors are not the student's: "
                "take 'features.*' and 'rois.*' of it, which do not depend on anchors"
            )
        expected = sum(len(anchors) for anchors in seen.anchors)
        same = rows == expected
        if same and "anchors checked" not in self.facts("student", role):
            ours = torch.cat(seen.anchors)
            # made in the maps' dtype
            theirs = torch.cat(generator(images, [level.to(ours.dtype) for level in levels]))
            same = torch.allclose(theirs, ours)
        if not same:
            sizes = [
                [tuple(v.shape[-2:]) for v in maps] for maps in (levels, seen.features.values())
            ]
            raise ValueError(
                f"{role} has {rows} anchors in this batch, on feature maps "
                f"{sizes[0]}, the student {expected} on "
                f"{sizes[1]}; or they differ in size: give both the same strides and "
                "the same anchor_generator"
            )
        self.facts("student", role)["anchors checked"] = True

    def _units(self, role: str, part: str | None = None) -> Tensor | float:
        """What turns the teacher's deltas into the units of the student's box coder."""
        facts, key = self.facts("student", role), ("units", part)
        if key not in facts:
            ours, theirs = (
                (getattr(m, part) if part else m).box_coder
                for m in (self.student, self.model(role))
            )
            if type(ours) is not type(theirs):
                raise ValueError(
                    f"{role} encodes boxes with {type(theirs).__name__}, the student "
                    f"with {type(ours).__name__}: "
                    "their deltas cannot be compared"
                )
            weights = [getattr(coder, "weights", None) for coder in (ours, theirs)]
            equal = weights[0] == weights[1]
            facts[key] = (
                1.0
                if equal
                else torch.tensor(weights[0])
                .div(torch.tensor(weights[1]))
                .to(next(self.student.parameters()).device)
            )
        return facts[key]

    def _taps_of(
        self, role: str, needed: Sequence[str], wanted: Sequence[str], call: Callable
    ) -> FeatureRecorder:
        """A forward that records the submodules that are needed here or wanted; made once."""
        facts, key = self.facts(role), ("taps", *wanted)
        if key not in facts:
            modules = set(super().names(role))
            paths = [
                name.removeprefix(f"{role}.") for name in wanted if name.split("@")[0] in modules
            ]
            facts[key] = FeatureRecorder(self.model(role), [*needed, *paths], call)
        return facts[key]


def _heads(role: str, wanted: Sequence[str]) -> set[str]:
    """Which of a teacher's heads have to run: ``head``, ``rpn``, ``roi_heads``."""
    parts = {
        "anchors": "head",
        f"{role}.cls_logits": "head",
        f"{role}.box_deltas": "head",
        "rpn": "rpn",
        "rois": "roi_heads",
    }
    paths = {name: name.split(".")[1] for name in wanted if name.startswith(f"{role}.")}
    found = {parts.get(name) or parts.get(name.split(".")[0]) or paths.get(name) for name in wanted}
    return found & {"head", "rpn", "roi_heads"}


def _compared(role: str, head: str, wanted: Sequence[str]) -> bool:
    """Whether some loss compares this head's rows with the student's, and not only a submodule of
    it.
    """
    return (
        any(
            name in (f"{role}.cls_logits", f"{role}.box_deltas") or name.startswith("anchors.")
            for name in wanted
        )
        if head == "head"
        else any(name.startswith(f"{head}.") for name in wanted)
    )


def _one_of(name: str, value, known: Sequence) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {list(known)}, got {value!r}")
