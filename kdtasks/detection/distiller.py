"""What torchvision's detectors supply to losses: class logits, box deltas, features, and the rows that their own losses use.

The student runs as torchvision wrote it, once a step; its own losses and random samples are untouched. What its parts see
on the way is noted, and a teacher is run, part by part, on exactly that: the student's resized images, its sampled anchors,
its sampled proposals. A teacher draws no random number.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdtasks.core import Distiller
from kdtasks.core.features import Taps
from kdtasks.detection import detectors

TAPPED = {"dense": ("transform", "backbone"),                           # of the student
          "two-stage": ("transform", "backbone", "rpn.anchor_generator", "roi_heads.box_predictor")}


class DetectionDistiller(Distiller):
    """A :class:`~kdtasks.core.Distiller` of torchvision's detectors: RetinaNet, FCOS, SSD, SSDlite, Faster and Mask R-CNN.

    A batch has ``input``, a list of images (3, H, W) in [0,1], or one tensor of them; ``target``, a list of dicts with
    ``boxes`` (n, 4), as x1, y1, x2, y2 in pixels of the image, and ``labels`` (n,), 0 being the background. With ``labelled``
    (B,), the detector's own losses see labelled images only, the others' ``target`` is not read.

    Names beside submodules (``'student.backbone.body.layer4'``), where t is a teacher's name:

    ==============================================  ===================================================================
    ``student.loss_<name>``                         the student's own losses; those in no ``of`` enter with weight 1
    ``student.cls_logits``, ``t.cls_logits``        (B, A, K), all levels; dense heads
    ``student.box_deltas``, ``t.box_deltas``        (B, A, 4), in the student's coder units; dense heads
    ``anchors.valid``                               bool (B, A): not ignored by the hard loss (IoU between the thresholds)
    ``anchors.student.deltas``, ``anchors.t.deltas``, ``anchors.target``  (P, 4), anchors matched to a box; dense heads
    ``rpn.student.logits``, ``rpn.t.logits``        (M, 1), the anchors that the student's RPN sampled
    ``rpn.student.deltas``, ``rpn.t.deltas``, ``rpn.target``  (P, 4), the positive ones among them
    ``rois.student.logits``, ``rois.t.logits``      (N, C), the proposals that the student's RoI head sampled
    ``rois.student.deltas``, ``rois.t.deltas``, ``rois.target``  (P, 4), positive ones, the box of their true class
    ``anchors.count``, ``rpn.count``, ``rois.count``  P; M; N: what the hard box loss of this head divides by (of RetinaNet,
                                                    FCOS and SSD only nearly: they divide image by image)
    ``features.student.<key>``, ``features.t.<key>``  (B, C, H, W), by the keys of the backbone's output
    ==============================================  ===================================================================

    Deltas are encoded: box coder weights are (10, 10, 5, 5) in RoI heads and SSD, (1, 1, 1, 1) in RPN and RetinaNet, so
    squared errors differ by up to 100 between heads. A teacher's are brought to the units of the student's coder.

    Args:
        student, teachers, losses: as in :class:`~kdtasks.core.Distiller`.
        peers: none; a detector learns from frozen teachers here.
        compile: False; compile a detector's backbone yourself.
        class_map: the teacher's class for each of the student's classes, background included; None: they are equal.
        resolution: ``'student'``: the teacher sees the student's resized images. ``'own'``: its own transform resizes them, so
            that it may see larger ones (Chen et al.'s second setting): features and RoIs only, as anchors do not correspond.
        unlabelled: ``'soft'``: an unlabelled image enters only losses that read no target. ``'soft+pseudo'``: also the
            detector's own, with the teacher's detections for boxes; one without any is left out, as in the release of ADL.
        pseudo_score: the least score of such a detection. No value is published; 0.5 is ours.

    Raises:
        ValueError: a model that is no torchvision detector, a teacher whose anchors, strides or classes are not the student's
            (on the first run), an option that is none.
    """

    def __init__(self, student: nn.Module, teachers: Mapping[str, nn.Module] | None = None,
                 losses: Mapping[str, tuple] | None = None, *, peers: Sequence[nn.Module] = (), compile: bool | dict = False,
                 class_map: Sequence[int] | None = None, resolution: str = "student", unlabelled: str = "soft",
                 pseudo_score: float = 0.5):
        _one_of("resolution", resolution, ("student", "own"))
        _one_of("unlabelled", unlabelled, ("soft", "soft+pseudo"))
        if peers or compile:
            raise ValueError("detectors have no peers, and are not compiled whole (compile=False; student.backbone.compile() "
                             "compiles the part that pays)")
        self.resolution, self.unlabelled, self.pseudo_score = resolution, unlabelled, pseudo_score
        self.classes: list[str] | None = None                           # names of the data's classes, where known
        self._checked: set[tuple[str, str]] = set()
        self._levels: dict[str, list[str]] = {}
        super().__init__(student, teachers, losses)
        for name, teacher in self.teachers.items():
            if teacher.input_size is not None or teacher.scale is not None:
                raise ValueError(f"{name}: a detector resizes and normalises by itself; instead of input_size, mean and std "
                                 "use its own min_size, image_mean and image_std, and resolution='own'")
        self.register_buffer("class_map", None if class_map is None else torch.tensor(class_map), persistent=False)

    # Names -----------------------------------------------------------------------------------------------------------
    def names(self, role: str) -> list[str]:
        """Everything in the table above that this role computes."""
        kind, model = detectors.kind_of(self.model(role), role), self.model(role)
        found = [f"features.{role}.{key}" for key in self._keys(role)]
        if kind == "dense":
            found += [f"{role}.cls_logits", f"{role}.box_deltas", f"anchors.{role}.deltas"]
        else:
            found += [f"{part}.{role}.{what}" for part in ("rpn", "rois") for what in ("logits", "deltas")]
        if role == "student":
            found += [f"student.{name}" for name in detectors.loss_names(model)] + ["student.seen"]
            heads = ("anchors",) if kind == "dense" else ("rpn", "rois")
            found += [f"{head}.{what}" for head in heads for what in ("target", "count")]
            found += ["anchors.valid"] if kind == "dense" else []
        return found + super().names(role)[1:]                          # no 'student' or 'teacher': no one tensor is the output

    def _keys(self, role: str) -> list[str]:
        """The keys of the backbone's output; found by running it, so only where some loss asks."""
        prefix = f"features.{role}."
        if role not in self._levels and any(name.startswith(prefix) for _, of, _ in self._terms.values() for name in of):
            model = self.model(role)
            height, width = getattr(model.transform, "fixed_size", None) or (256, 256)
            parameter, training = next(model.parameters()), model.backbone.training
            model.backbone.eval()
            with torch.no_grad():
                output = model.backbone(torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype))
            model.backbone.train(training)
            self._levels[role] = list(detectors.levels_of(output))
        return self._levels.get(role, [])

    def outputs(self, role: str, batch: Mapping[str, object], wanted: list[str]) -> dict[str, object]:
        """The wanted names of one role; a teacher has the student run first, and follows it."""
        if role == "student":
            return self._student_outputs(batch, wanted)
        return self._teacher_outputs(role, batch["student.seen"], wanted)

    # The student -----------------------------------------------------------------------------------------------------
    def _student_outputs(self, batch: Mapping[str, object], wanted: list[str]) -> dict[str, object]:
        model, kind = self.student, detectors.kind_of(self.student, "student")
        seen = detectors.Seen(images=batch["input"])
        targets, rows = self._targets(batch)
        run = self._taps_of("student", TAPPED[kind], wanted, model)
        recording = detectors.noting_dense(model, seen, rows) if kind == "dense" else detectors.noting_two_stage(model, seen)
        if rows is not None and kind == "two-stage":
            raise ValueError(f"{type(model).__name__}: unlabelled images go with dense detectors (RetinaNet, FCOS, SSD); an "
                             "RPN without boxes samples nothing to compare")
        with detectors.computing_losses(model), recording:
            losses, values = run(seen.images, targets)
        seen.batch, _ = values.pop("transform")
        seen.features = detectors.levels_of(values["backbone"])
        if kind == "two-stage":
            seen.anchors, seen.roi_outputs = values["rpn.anchor_generator"], values["roi_heads.box_predictor"]
        found = {f"student.{detectors.DENSE_LOSSES.get(name, name)}": value for name, value in losses.items()}
        found |= {"student.seen": seen, **{f"student.{path}": value for path, value in values.items()}}
        return found | {name: self._student_tensor(name, seen) for name in wanted if name not in found}

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
            return {"anchors": lambda: len(seen.anchor_rows()[0]), "rpn": lambda: len(seen.sampled),
                    "rois": lambda: len(seen.roi_labels)}[part]()
        if part == "anchors":
            rows, target = seen.anchor_rows()
            return target if what == "target" else seen.head["bbox_regression"].flatten(0, 1)[rows]
        if part == "rpn":
            return {"student.logits": lambda: seen.rpn_logits[seen.sampled], "target": lambda: seen.rpn_targets[seen.positive],
                    "student.deltas": lambda: seen.rpn_deltas[seen.positive]}[what]()
        logits, deltas = seen.roi_outputs
        if what == "student.logits":
            return logits
        rows = seen.roi_positive
        return seen.roi_targets[rows] if what == "target" else detectors.of_class(deltas, rows, seen.roi_labels[rows])

    def _targets(self, batch: Mapping[str, object]) -> tuple[list[dict], list[int] | None]:
        """Boxes for each image, and which images the hard losses see (None: all)."""
        images, targets, labelled = batch["input"], batch["target"], batch.get("labelled")
        device = images[0].device
        if labelled is None:
            if any(target is None for target in targets):
                raise ValueError("an image of the batch has no target, and the batch has no 'labelled' to say so")
            return [detectors.boxes_only(target) for target in targets], None
        rows = labelled.nonzero()[:, 0].tolist()
        found = [detectors.boxes_only(target) if known else detectors.no_boxes(device)
                 for target, known in zip(targets, labelled.tolist())]
        if self.unlabelled == "soft+pseudo" and self.teachers and len(rows) < len(found):
            others = [i for i in range(len(found)) if i not in set(rows)]
            for i, boxes in zip(others, self._pseudo_boxes([images[i] for i in others])):
                if len(boxes["boxes"]):
                    found[i] = boxes
                    rows.append(i)
        return found, sorted(rows)

    @torch.no_grad()
    def _pseudo_boxes(self, images: list[Tensor]) -> list[dict]:
        """What the first teacher detects with at least ``pseudo_score``, in the student's classes."""
        found = []
        teacher = next(iter(self.teachers.values()))
        for one in teacher(images):
            keep = one["scores"] >= self.pseudo_score
            boxes, labels = one["boxes"][keep], one["labels"][keep]
            if self.class_map is not None:
                match = labels[:, None] == self.class_map[None]                                        # (n, classes)
                boxes, labels = boxes[match.any(1)], match.long().argmax(1)[match.any(1)]
            sound = (boxes[:, 2:] > boxes[:, :2]).all(1)
            found.append({"boxes": boxes[sound].float(), "labels": labels[sound]})
        return found

    # A teacher -------------------------------------------------------------------------------------------------------
    def _teacher_outputs(self, role: str, seen: detectors.Seen, wanted: list[str]) -> dict[str, object]:
        model = self.model(role)
        run = self._taps_of(role, (), wanted, lambda seen: self._teacher_parts(role, model, _heads(role, wanted), seen))
        with self.teachers[role].ready():
            parts, values = run(seen)
        found = {f"{role}.{path}": value for path, value in values.items()}
        return found | {name: self._teacher_tensor(name, role, seen, parts) for name in wanted if name not in found}

    def _teacher_parts(self, role: str, model: nn.Module, heads: set[str], seen: detectors.Seen) -> dict:
        """The teacher's backbone, and those of its heads that some loss wants, on what the student saw."""
        own = self.resolution == "own"
        images = model.transform(list(seen.images))[0] if own else detectors.renormalized(self.student, model, seen.batch)
        parts = {"features": detectors.levels_of(model.backbone(images.tensors))}
        levels = list(parts["features"].values())
        if "head" in heads and hasattr(model, "head"):
            self._check_anchors(role, model.anchor_generator, images, levels, seen)
            parts |= model.head(levels)
        if "rpn" in heads and hasattr(model, "rpn"):
            from torchvision.models.detection.rpn import concat_box_prediction_layers

            self._check_anchors(role, model.rpn.anchor_generator, images, levels, seen)
            parts["rpn"] = concat_box_prediction_layers(*model.rpn.head(levels))                  # (all anchors, 1), (…, 4)
        if "rois" in heads and hasattr(model, "roi_heads"):
            rois = detectors.rescaled(seen.rois, seen.batch.image_sizes, images.image_sizes)
            pooled = model.roi_heads.box_roi_pool(parts["features"], rois, images.image_sizes)
            parts["rois"] = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))       # (N, C), (N, 4C)
        return parts

    def _teacher_tensor(self, name: str, role: str, seen: detectors.Seen, parts: Mapping):
        part, _, what = name.partition(f".{role}.") if not name.startswith(f"{role}.") else name.partition(".")
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
            return logits[seen.sampled] if what == "logits" else deltas[seen.positive] * self._units(role, "rpn")
        if what == "logits":
            return self._classes_of(role, logits, seen.roi_outputs[0])
        self._classes_of(role, logits, seen.roi_outputs[0])
        labels = seen.roi_labels[seen.roi_positive]
        labels = labels if self.class_map is None else self.class_map[labels]
        return detectors.of_class(deltas, seen.roi_positive, labels) * self._units(role, "roi_heads")

    def _classes_of(self, role: str, logits: Tensor, like: Tensor) -> Tensor:
        """The columns of the student's classes."""
        if ("classes", role) not in self._checked:
            self._check_classes(role, logits.shape[-1], like.shape[-1])
        return logits if self.class_map is None else logits.index_select(-1, self.class_map)

    def _check_classes(self, role: str, theirs: int, ours: int) -> None:
        """On the first run.

        Raises:
            ValueError: the teacher's columns are not the student's classes, and no class_map says which are.
        """
        hint = "class_map, the teacher's class for each of the student's (background included)"
        if self.class_map is not None:
            entries, highest = len(self.class_map), int(self.class_map.max())
            if entries != ours or highest >= theirs or int(self.class_map.min()) < 0:
                raise ValueError(f"class_map has {entries} entries up to {highest}; the student has {ours} classes, {role} "
                                 f"{theirs}: want {hint}")
        elif theirs != ours:
            raise ValueError(f"{role} has {theirs} classes (background included), the student {ours}: want {hint}")
        else:
            known = getattr(self.teachers[role], "classes", None)
            if known and self.classes and list(known) != list(self.classes):
                raise ValueError(f"{role} knows the classes {list(known)[:8]}, the data has {list(self.classes)[:8]}: want the "
                                 f"same in the same order, or {hint}")
        self._checked.add(("classes", role))

    def _check_anchors(self, role: str, generator: Callable, images, levels: list[Tensor], seen: detectors.Seen) -> None:
        """Rows of the two heads are compared one by one, so their anchors must be the same; seen on the first run.

        Raises:
            ValueError: they are not.
        """
        if ("anchors", role) in self._checked:
            return
        if self.resolution == "own":
            raise ValueError(f"{role} sees images of another size (resolution='own'), so its anchors are not the student's: "
                             "take 'features.*' and 'rois.*' of it, which do not depend on anchors")
        ours = torch.cat(seen.anchors)
        theirs = torch.cat(generator(images, [level.to(ours.dtype) for level in levels]))     # anchors have the maps' dtype
        if theirs.shape != ours.shape or not torch.allclose(theirs, ours):
            sizes = [[tuple(v.shape[-2:]) for v in maps] for maps in (levels, seen.features.values())]
            raise ValueError(f"{role} has {len(theirs)} anchors in this batch, on feature maps {sizes[0]}, the student "
                             f"{len(ours)} on {sizes[1]}; or they differ in size: give both the same strides and the same "
                             "anchor_generator")
        self._checked.add(("anchors", role))

    def _units(self, role: str, part: str | None = None) -> Tensor | float:
        """What turns the teacher's deltas into the units of the student's box coder."""
        ours, theirs = ((getattr(m, part) if part else m).box_coder for m in (self.student, self.model(role)))
        weights = [getattr(coder, "weights", None) for coder in (ours, theirs)]
        if type(ours) is not type(theirs):
            raise ValueError(f"{role} encodes boxes with {type(theirs).__name__}, the student with {type(ours).__name__}: "
                             "their deltas cannot be compared")
        if weights[0] == weights[1]:
            return 1.0
        return torch.tensor(weights[0]).div(torch.tensor(weights[1])).to(next(self.student.parameters()).device)

    def _taps_of(self, role: str, needed: Sequence[str], wanted: Sequence[str], call: Callable) -> Taps:
        """A forward that records the submodules that are needed here or wanted; made once."""
        key = (role, tuple(wanted))
        if key not in self._taps:
            modules = set(super().names(role))
            paths = [name.removeprefix(f"{role}.") for name in wanted if name.split("@")[0] in modules]
            self._taps[key] = Taps(self.model(role), [*needed, *paths], call)
        return self._taps[key]


def _heads(role: str, wanted: Sequence[str]) -> set[str]:
    """Which of a teacher's heads have to run; all of them for a submodule beyond the backbone."""
    own = {f"{role}.cls_logits": "head", f"{role}.box_deltas": "head"}
    if any(name.startswith(f"{role}.") and not name.startswith(f"{role}.backbone") and name not in own for name in wanted):
        return {"head", "rpn", "rois"}
    parts = {"anchors": "head", "rpn": "rpn", "rois": "rois"}
    return {own.get(name) or parts.get(name.split(".")[0]) for name in wanted} - {None}


def _one_of(name: str, value, known: Sequence) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {list(known)}, got {value!r}")
