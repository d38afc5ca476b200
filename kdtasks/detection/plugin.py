"""The door to MMDetection 3: any of its one- and two-stage detectors taught by another, inside an ordinary mmdet config.

``model = dict(type='kdtasks.detection.plugin.DistillDetector', student=…, teacher=…, losses=…)`` is all that a config needs:
mmengine finds a full dotted path by itself. The student runs as mmdet wrote it, once a step; what its heads see and sample
is noted on the way. The teacher is run part by part on exactly that (the student's images, its sampled anchors, its RoIs)
and draws no random number. mmdet and mmcv are imported when a detector is built.
"""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.model import BaseModel
from torch import Tensor, nn

from kdtasks.core import Distiller, Teacher
from kdtasks.core.features import Taps
from kdtasks.core.weights import read_weights
from kdtasks.engine import builder

TRIAL_SIDE = 384                                           # px of the one image that tells losses, levels and channels: 3 x 128


class DistillDetector(BaseModel):
    """An mmdet detector with a teacher, for mmengine's Runner.

    ``mode='loss'`` gives the student's own losses and the distillation losses, ``'predict'`` and ``'tensor'`` are the plain
    student. The teacher is frozen, in eval, and in no ``parameters()``, ``state_dict()`` or EMA copy; ``init_weights`` reaches
    the student only, as its ``init_cfg`` says.

    A checkpoint's ``state_dict`` has the plain student's names and nothing else, so mmdet loads it strictly into the plain
    student. Weights of the losses themselves (a hint's adapter) travel in its ``_metadata``, and come back on resume.

    Attributes that this class lacks (``bbox_head``, ``with_neck``) are the student's.

    Args:
        student: an mmdet model config; or the path of an mmdet config file that has one; or the name of one that mmdet
            brings along, ``'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'``.
        teacher: the same.
        losses: ``{name: dict(type=…, of=…, weight=…)}`` as in kdtasks configs; :class:`MMDetDistiller` lists the names for
            ``of``. Names that contain ``loss`` train. A weight may be a ``dict(type='kdtasks.core.Linear', …)``.
        teacher_checkpoint: a file that mmengine or torch saved, loaded strictly and without unpickling code. None: what the
            teacher's ``init_cfg`` gives.
        class_map: the teacher's class for each of the student's, counted as mmdet does, without background; None: they are
            equal.
        data_preprocessor: of the student, where its config has none (the Runner passes a config's on).

    Raises:
        ImportError: MMDetection is not installed.
        ValueError: no one- or two-stage detector; a wrong loss entry or name; a checkpoint of another model; heads whose
            anchors, strides, classes or shapes do not correspond (all models are tried on one image of 384 x 384 px).
    """

    def __init__(self, student: Mapping | str | Path, teacher: Mapping | str | Path, losses: Mapping[str, Mapping],
                 teacher_checkpoint: str | Path | None = None, class_map: Sequence[int] | None = None,
                 data_preprocessor: Mapping | nn.Module | None = None):
        model = _detector(student, "student", data_preprocessor)
        super().__init__(model.data_preprocessor)
        del self._modules["data_preprocessor"]             # the student has it, and once is enough
        with _random_streams_kept():
            taught_by = _taught(_detector(teacher, "teacher"), teacher_checkpoint)
            terms = {name: _term(name, entry) for name, entry in losses.items()}
            device = get_device()                          # the Runner's: some heads average over its processes
            self.distiller = MMDetDistiller(model.to(device), {"teacher": taught_by.to(device)}, terms, class_map=class_map)
            self.distiller.build(example_batch(model))     # an adapter has its weights before the optimizer is made
            self.to("cpu")
        self.register_state_dict_post_hook(_to_student_names)
        self.register_load_state_dict_pre_hook(_from_student_names)

    @property
    def student(self) -> nn.Module:
        """The plain mmdet detector that learns."""
        return self.distiller.student

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            distiller = self.__dict__.get("_modules", {}).get("distiller")
            if distiller is None or name.startswith("__"):
                raise
            return getattr(distiller.student, name)

    def init_weights(self) -> None:
        """As the student's ``init_cfg`` says. The Runner calls it, after the teacher's weights are loaded."""
        self.student.init_weights()

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"):
        """``inputs`` (B, 3, H, W), preprocessed; a dict of losses for ``mode='loss'``, else what the student gives."""
        if mode != "loss":
            return self.student(inputs, data_samples, mode=mode)
        self._follow_runner()
        return self.distiller({"input": inputs, "target": data_samples})

    def _follow_runner(self) -> None:
        """Tell the weights that change how far the Runner is."""
        from mmengine.logging import MessageHub

        hub = MessageHub.get_current_instance()
        iteration, total = hub.get_info("iter"), hub.get_info("max_iters")
        if iteration is not None and total:
            self.distiller.progress = (iteration, total)


class MMDetDistiller(Distiller):
    """A :class:`~kdtasks.core.Distiller` of mmdet detectors; a batch is ``{'input': images, 'target': data_samples}``.

    ``input`` (B, 3, H, W) is what the student's data_preprocessor gives. Every image needs ``gt_instances``; they may be
    empty. Names beside submodules (``'student.backbone.layer3'``), where t is a teacher's name:

    ==============================================  ===================================================================
    ``student.<name>``                              the student's own losses (``student.loss_cls``), a list of levels summed;
                                                    those in no ``of`` enter with weight 1
    ``student.cls_logits``, ``t.cls_logits``        (B, A, K), all levels, by location, its anchors innermost; one-stage
    ``student.box_deltas``, ``t.box_deltas``        (B, A, n), n = 4 as the head gives them, GFL 4·(reg_max + 1); one-stage
    ``anchors.valid``                               bool (B, A): False where the label weight is 0 (in between two
                                                    thresholds, outside); all True for heads that weigh none
    ``rpn.student.logits``, ``rpn.t.logits``        (M, 1), the anchors that the student's RPN sampled, image by image
    ``rpn.student.deltas``, ``rpn.t.deltas``, ``rpn.target``  (P, 4), the positive ones among them
    ``rois.student.logits``, ``rois.t.logits``      (N, C + 1), the proposals that the student's RoI head sampled; background
                                                    is the last column
    ``rois.student.deltas``, ``rois.t.deltas``, ``rois.target``  (P, 4), positive ones, the box of their true class
    ``rpn.count``, ``rois.count``                   what the hard box loss of this head divides by: M; N
    ``features.student.<i>``, ``features.t.<i>``    (B, C, H, W), level i = 0, 1, … of the neck's output
    ==============================================  ===================================================================

    Deltas are encoded: a RoI head's coder divides by (0.1, 0.1, 0.2, 0.2), an RPN's by 1. Two-stage names also exist as rows:
    bool ``rpn.sampled``, ``rpn.positive`` (B, A); ``rois.boxes`` (N, 5) of image index and x1, y1, x2, y2; ``rois.label`` (N,).

    Args:
        student, teachers, losses: as in :class:`~kdtasks.core.Distiller`, mmdet detectors among them.
        class_map: the teachers' class for each of the student's, without background; None: they are equal.

    Raises:
        ValueError: a model that is no one- or two-stage detector; on the first run: heads that do not correspond.
    """

    def __init__(self, student: nn.Module, teachers: Mapping[str, nn.Module] | None = None,
                 losses: Mapping[str, tuple] | None = None, *, class_map: Sequence[int] | None = None):
        models = {"student": student, **{n: m.model if isinstance(m, Teacher) else m for n, m in (teachers or {}).items()}}
        self._kinds = {role: _kind(model, role) for role, model in models.items()}
        self._levels = {role: _number_of_levels(model) for role, model in models.items()}
        self._own = _own_losses(student)
        self._checked: set[tuple[str, str]] = set()
        listed = {of for entry in (losses or {}).values() for of in ([entry[1]] if isinstance(entry[1], str) else entry[1])}
        others = {name: (None, f"student.{name}", 1.0) for name in self._own          # accuracies; a cascade's 's0.loss_cls'
                  if not name.startswith("loss_") and f"student.{name}" not in listed}
        if not others.keys().isdisjoint(losses or {}):
            raise ValueError(f"the student's own {min(others.keys() & losses.keys())!r} has this name; rename your entry")
        super().__init__(student, teachers, {**others, **(losses or {})})
        self.register_buffer("class_map", None if class_map is None else torch.tensor(list(class_map)), persistent=False)

    # Names -----------------------------------------------------------------------------------------------------------
    def names(self, role: str) -> list[str]:
        """Everything in the table above that this role computes."""
        found = [f"features.{role}.{level}" for level in range(self._levels[role])]
        if self._kinds[role] == "one-stage":
            found += [f"{role}.cls_logits", f"{role}.box_deltas"]
            found += ["anchors.valid"] if role == "student" else []
        for part in _parts(self.student) & _parts(self.model(role)):
            found += [f"{part}.{role}.logits", f"{part}.{role}.deltas"]
            if role == "student":
                found += [f"{part}.target", f"{part}.count"]
                found += ["rpn.sampled", "rpn.positive"] if part == "rpn" else ["rois.boxes", "rois.label"]
        if role == "student":
            found += [f"student.{name}" for name in self._own] + ["student.seen"]
        return found + super().names(role)[1:]                          # no bare 'student': it is no one tensor

    def outputs(self, role: str, batch: Mapping[str, object], wanted: list[str]) -> dict[str, object]:
        """The wanted names of one role; a teacher that wants the student's samples has it run first, once for all of them."""
        if role == "student":
            return self._student_outputs(batch, wanted)
        return self._teacher_outputs(role, batch, wanted)

    # The student -----------------------------------------------------------------------------------------------------
    def _student_outputs(self, batch: Mapping[str, object], wanted: list[str]) -> dict[str, object]:
        model, samples = self.student, batch["target"]
        for i, sample in enumerate(samples or [None] * len(batch["input"])):
            if sample is None or "gt_instances" not in sample:
                raise ValueError(f"image {i} of the batch has no gt_instances: unlabelled images are not for this plugin; an "
                                 "image without objects has empty ones")
        with ExitStack() as stack:
            seen = {name: stack.enter_context(_noted(owner, method)) for name, (owner, method) in _noted_methods(model).items()}
            losses, values = self._run("student", wanted, batch["input"], samples,
                                       lambda images, samples: model(images, samples, mode="loss"))
        unknown = [name for name in losses if name not in self._own]
        if unknown:
            raise ValueError(f"{type(model).__name__} gave losses that it did not give before: {unknown}")
        found = {f"student.{name}": _summed(value) for name, value in losses.items()} | values
        taken = _OneStage(seen, model, len(batch["input"])) if self._kinds["student"] == "one-stage" else _TwoStage(seen, model)
        found["student.seen"] = taken
        return found | {name: taken.get(name) for name in wanted if name not in found}

    def _run(self, role: str, wanted: Sequence[str], images: Tensor, also, call: Callable) -> tuple[object, dict]:
        """One call with taps on the wanted submodules: its output, and their values by name."""
        key = (role, tuple(wanted))
        if key not in self._taps:
            modules = set(super().names(role))
            paths = [name.removeprefix(f"{role}.") for name in wanted if name.split("@")[0] in modules]
            self._taps[key] = Taps(self.model(role), paths, call)
        output, values = self._taps[key](images, also)
        return output, {f"{role}.{path}": value for path, value in values.items()}

    # A teacher -------------------------------------------------------------------------------------------------------
    def _teacher_outputs(self, role: str, batch: Mapping[str, object], wanted: list[str]) -> dict[str, object]:
        model, heads = self.model(role), _heads(role, wanted)
        for part in heads:
            self._check(role, part, wanted)
        seen = batch["student.seen"] if heads & {"rpn", "rois"} else None       # the student runs here, before the teacher
        rois = seen.get("rois.boxes") if "rois" in heads else None
        images = _renormalized(self.student.data_preprocessor, model.data_preprocessor, batch["input"], batch["target"])
        with self.teachers[role].ready():
            parts, found = self._run(role, wanted, images, rois,
                                     lambda images, rois: self._teacher_parts(role, heads, images, rois))
        for name in wanted:
            if name.startswith(f"features.{role}."):
                found[name] = parts["features"][int(name.rpartition(".")[2])]
            elif name == f"{role}.cls_logits":
                logits, head = _flat(parts["bbox"], model.bbox_head)[0], model.bbox_head
                found[name] = self._students_classes(logits, head.cls_out_channels > head.num_classes)
            elif name == f"{role}.box_deltas":
                found[name] = _flat(parts["bbox"], model.bbox_head)[1]
            elif name == f"rpn.{role}.logits":
                found[name] = _flat(parts["rpn"], model.rpn_head)[0][seen.get("rpn.sampled")]
            elif name == f"rpn.{role}.deltas":
                found[name] = _flat(parts["rpn"], model.rpn_head)[1][seen.get("rpn.positive")]
            elif name == f"rois.{role}.logits":
                found[name] = self._students_classes(parts["rois"]["cls_score"], background=True)
            elif name == f"rois.{role}.deltas":
                labels = seen.get("rois.label")
                rows = _foreground(labels, self.student.roi_head.bbox_head)
                labels = labels[rows] if self.class_map is None else self.class_map[labels[rows]]
                found[name] = _of_class(parts["rois"]["bbox_pred"], rows, labels, model.roi_head.bbox_head)
        return found

    def _teacher_parts(self, role: str, heads: set[str], images: Tensor, rois: Tensor | None) -> dict:
        model = self.model(role)
        parts = {"features": model.extract_feat(images)}
        for part, head in (("bbox", "bbox_head"), ("rpn", "rpn_head")):
            if part in heads:                                           # FCOS scales its boxes by the stride in eval only
                students = getattr(self.student, head, None)
                with _flag(getattr(model, head), model.training if students is None else students.training):
                    parts[part] = getattr(model, head)(parts["features"])
        if "rois" in heads:
            parts["rois"] = model.roi_head._bbox_forward(parts["features"], rois)
        return parts

    def _students_classes(self, logits: Tensor, background: bool) -> Tensor:
        """(…, Kt) -> (…, Ks): the columns of the student's classes, and the background's, which is the last."""
        if self.class_map is None:
            return logits
        picked = logits.index_select(-1, self.class_map)
        return torch.cat([picked, logits[..., -1:]], -1) if background else picked

    def _check(self, role: str, part: str, wanted: Sequence[str]) -> None:
        """Once: the teacher's head corresponds to the student's."""
        if (role, part) in self._checked or not _compared(role, part, wanted):
            return
        ours, theirs = _head(self.student, part), _head(self.model(role), part)
        if ours is None:
            raise ValueError(f"{role} has a {part} head, the student has none to compare with")
        if part != "rois":
            _check_priors(role, part, ours.prior_generator, theirs.prior_generator)
        if part != "rpn":
            self._check_classes(role, part, ours, theirs)
        if any(name in wanted for name in (f"{part}.{role}.deltas", f"{role}.box_deltas")):
            units = [(type(head.bbox_coder).__name__, *(tuple(getattr(head.bbox_coder, k, ())) for k in ("means", "stds")))
                     for head in (ours, theirs)]
            if units[0] != units[1]:
                raise ValueError(f"{part}: the student encodes its boxes as {units[0]}, {role} as {units[1]}; their deltas "
                                 "cannot be compared")
        self._checked.add((role, part))

    def _check_classes(self, role: str, part: str, ours: nn.Module, theirs: nn.Module) -> None:
        known = None if self.class_map is None else self.class_map.tolist()
        if known is not None and (len(known) != ours.num_classes or not all(0 <= k < theirs.num_classes for k in known)):
            raise ValueError(f"class_map must give {ours.num_classes} of the classes 0 to {theirs.num_classes - 1} of {role}, "
                             f"one for each class of the student; got {known}")
        shapes = [f"({'N' if part == 'rois' else 'B, A'}, {n})" for n in (_width(ours, part), _width(theirs, part))]
        other_kind = _width(ours, part) - ours.num_classes != _width(theirs, part) - theirs.num_classes
        if (known is None and shapes[0] != shapes[1]) or other_kind:
            raise ValueError(f"the student's class logits are {shapes[0]} for {ours.num_classes} classes, those of {role} "
                             f"{shapes[1]} for {theirs.num_classes}: "
                             + ("one has a background column, the other none" if other_kind else
                                "say with class_map which of its classes are the student's"))


# What the student's heads saw -----------------------------------------------------------------------------------------
def _noted_methods(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The methods whose calls are noted while the student runs."""
    noted = {"features": (model, "extract_feat")}
    for part in ("bbox", *_parts(model)):
        head = _head(model, part)
        if head is not None:
            if part == "rois":
                noted["rois"] = (model.roi_head, "_bbox_forward")
            else:
                noted[part] = (head, "forward")
            if hasattr(head, "get_targets"):
                noted[f"{part}.targets"] = (head, "get_targets")
    return noted


@contextmanager
def _noted(owner: nn.Module, method: str) -> Iterator[list]:
    """Calls of a method of this one instance, as ``[(arguments, result), …]``; the instance is as before afterwards."""
    calls: list = []
    there, before, original = method in owner.__dict__, owner.__dict__.get(method), getattr(owner, method)

    def noting(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append((args, result))
        return result

    owner.__dict__[method] = noting
    try:
        yield calls
    finally:
        if there:
            owner.__dict__[method] = before
        else:
            del owner.__dict__[method]


@contextmanager
def _flag(module: nn.Module, training: bool) -> Iterator[None]:
    """A module's own ``training``, not its children's, for a while."""
    before, module.training = module.training, training
    try:
        yield
    finally:
        module.training = before


class _OneStage:
    """The tensors of one forward of a one-stage student."""

    def __init__(self, seen: Mapping[str, list], model: nn.Module, batch_size: int):
        self.seen, self.head, self.batch_size = seen, model.bbox_head, batch_size

    def get(self, name: str) -> Tensor:
        if name.startswith("features."):
            return _result(self.seen, "features")[int(name.rpartition(".")[2])]
        outputs = _result(self.seen, "bbox")
        logits, deltas = _flat(outputs, self.head)
        if name == "anchors.valid":
            return self._valid(logits, [level[0, 0].numel() for level in outputs[0]])
        return logits if name == "student.cls_logits" else deltas

    def _valid(self, logits: Tensor, places: list[int]) -> Tensor:
        """Where the label weight is not 0: the list that follows the (whole-numbered) labels in the targets, if one does."""
        anchors = logits.shape[1]
        sizes = [anchors * n // sum(places) for n in places]
        for _, targets in self.seen.get("bbox.targets", []):
            lists = [t for t in targets if isinstance(t, list | tuple) and t and all(isinstance(x, Tensor) for x in t)]
            for labels, weights in itertools.pairwise(lists):
                if labels[0].is_floating_point() or [x.shape for x in labels] != [x.shape for x in weights]:
                    continue
                if [x.numel() for x in weights] == [self.batch_size * n for n in sizes]:             # a tensor a level
                    return torch.cat([x.reshape(self.batch_size, -1) for x in weights], 1) != 0
                if [x.numel() for x in weights] == [anchors] * self.batch_size:                      # a tensor an image
                    return torch.stack([x.reshape(-1) for x in weights]) != 0
        return logits.new_ones(logits.shape[:2], dtype=torch.bool)


class _TwoStage:
    """The tensors of one forward of a two-stage student."""

    def __init__(self, seen: Mapping[str, list], model: nn.Module):
        self.seen, self.model = seen, model

    def get(self, name: str):
        part, _, what = name.partition(".")
        if part == "features":
            return _result(self.seen, "features")[int(name.rpartition(".")[2])]
        head = _head(self.model, part)
        if what in ("student.deltas", "target") and head.reg_decoded_bbox:
            raise ValueError(f"{name}: the student's {part} head compares decoded boxes (reg_decoded_bbox=True), not deltas")
        return self._rpn(what, head) if part == "rpn" else self._rois(what, head)

    def _rpn(self, what: str, head: nn.Module):
        labels, label_weights, targets, _, count = _result(self.seen, "rpn.targets")[:5]
        if what == "count":
            return count
        sampled = torch.cat(label_weights, 1) > 0                       # (B, A)
        if what in ("sampled", "student.logits"):
            return sampled if what == "sampled" else _flat(_result(self.seen, "rpn"), head)[0][sampled]
        positive = _foreground(torch.cat(labels, 1), head)
        if what == "target":
            return torch.cat(targets, 1)[positive]
        return positive if what == "positive" else _flat(_result(self.seen, "rpn"), head)[1][positive]

    def _rois(self, what: str, head: nn.Module):
        (_, boxes), predicted = self.seen["rois"][0][0][:2], _result(self.seen, "rois")
        labels, _, targets, _ = _result(self.seen, "rois.targets")
        rows = _foreground(labels, head)
        return {"boxes": lambda: boxes, "label": lambda: labels, "count": lambda: len(labels), "target": lambda: targets[rows],
                "student.logits": lambda: predicted["cls_score"],
                "student.deltas": lambda: _of_class(predicted["bbox_pred"], rows, labels[rows], head)}[what]()


def _result(seen: Mapping[str, list], name: str):
    """What the one noted call gave."""
    calls = seen.get(name, [])
    if len(calls) != 1:
        raise ValueError(f"the student's {name} ran {len(calls)} times in one forward, want once: it cannot be told "
                         "which of its tensors are meant")
    return calls[0][1]


def _flat(outputs: tuple, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Maps ``[(B, n·K, H, W), …]`` and ``[(B, n·4, H, W), …]`` of n anchors a place -> (B, A, K), (B, A, 4)."""
    maps = outputs[:2] if isinstance(outputs, tuple) else ()
    if len(maps) != 2 or not all(isinstance(level, Tensor) and level.dim() == 4 for part in maps for level in part):
        raise ValueError(f"{type(head).__name__} gives no class and box maps (B, channels, H, W) for each level")
    classes = head.cls_out_channels
    numbers = maps[1][0].shape[1] * classes // maps[0][0].shape[1]
    logits, deltas = (torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, size) for level in part], 1)
                      for part, size in zip(maps, (classes, numbers)))
    return logits, deltas


def _foreground(labels: Tensor, head: nn.Module) -> Tensor:
    """bool: mmdet's background is class ``num_classes``."""
    return (labels >= 0) & (labels < head.num_classes)


def _of_class(deltas: Tensor, rows: Tensor, labels: Tensor, head: nn.Module) -> Tensor:
    """(N, 4C), or (N, 4) where one box is for all classes -> (P, 4): of each row the box of its class."""
    deltas = deltas[rows]
    if head.reg_class_agnostic:
        return deltas
    return deltas.unflatten(1, (head.num_classes, -1))[torch.arange(len(deltas), device=deltas.device), labels]


def _summed(value) -> Tensor:
    """A loss as mmengine's ``parse_losses`` reads it: the mean, summed over a list."""
    return value.mean() if isinstance(value, Tensor) else sum(level.mean() for level in value)


# Detectors and their heads --------------------------------------------------------------------------------------------
def _kind(model: nn.Module, role: str) -> str:
    if hasattr(model, "extract_feat") and hasattr(model, "data_preprocessor"):
        if hasattr(model, "roi_head"):
            return "two-stage"
        if hasattr(model, "bbox_head"):
            return "one-stage"
    raise ValueError(f"{role} is a {type(model).__name__}; want one of mmdet's one-stage detectors (with a bbox_head) or "
                     "two-stage ones (with a roi_head)")


def _parts(model: nn.Module) -> set[str]:
    """``rpn`` and ``rois``, where the detector has them; a cascade's several box heads are none of ours."""
    return {part for part in ("rpn", "rois") if _head(model, part) is not None}


def _head(model: nn.Module, part: str) -> nn.Module | None:
    if part != "rois":
        return getattr(model, f"{part}_head", None)
    head = getattr(getattr(model, "roi_head", None), "bbox_head", None)
    return None if isinstance(head, nn.ModuleList) else head


def _heads(role: str, wanted: Sequence[str]) -> set[str]:
    """Which of a teacher's heads have to run."""
    prefixes = {"bbox": (f"{role}.cls_logits", f"{role}.box_deltas", f"{role}.bbox_head"),
                "rpn": (f"rpn.{role}.", f"{role}.rpn_head"), "rois": (f"rois.{role}.", f"{role}.roi_head")}
    return {part for part, starts in prefixes.items() if any(name.startswith(starts) for name in wanted)}


def _compared(role: str, part: str, wanted: Sequence[str]) -> bool:
    """Whether a head's answers are wanted, and not only submodules of it."""
    return any(name in wanted for name in (f"{role}.cls_logits", f"{role}.box_deltas", f"{part}.{role}.logits",
                                           f"{part}.{role}.deltas"))


def _width(head: nn.Module, part: str) -> int:
    return head.num_classes + 1 if part == "rois" else head.cls_out_channels


def _check_priors(role: str, part: str, ours, theirs) -> None:
    """Strides, and base anchors where both have them."""
    strides = [[tuple(stride) for stride in generator.strides] for generator in (ours, theirs)]
    if strides[0] != strides[1]:
        raise ValueError(f"{part}: the student's levels have strides {strides[0]}, those of {role} {strides[1]}")
    anchors = [getattr(generator, "base_anchors", None) for generator in (ours, theirs)]
    if anchors[0] is None or anchors[1] is None:
        return
    shapes = [[tuple(level.shape) for level in generator] for generator in anchors]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{part}: the student's levels have anchors {shapes[0]} at each place, those of {role} {shapes[1]}")
    for level, (a, b) in enumerate(zip(*anchors)):
        if not torch.allclose(a, b.to(a)):
            raise ValueError(f"{part}: at level {level} the student's anchors are {a.tolist()}, those of {role} {b.tolist()}; "
                             "logits of different anchors cannot be compared")


def _renormalized(student: nn.Module, teacher: nn.Module, images: Tensor, samples: list) -> Tensor:
    """The student's images as the teacher's data_preprocessor would have given them: mean, deviation, channels, padding."""
    def norm(preprocessor):
        normalizes = getattr(preprocessor, "_enable_normalize", False)
        mean, std = (preprocessor.mean, preprocessor.std) if normalizes else (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
        return mean.to(images), std.to(images)

    (mean, std), (other_mean, other_std) = norm(student), norm(teacher)
    turned = getattr(student, "_channel_conversion", False) != getattr(teacher, "_channel_conversion", False)
    if not turned and torch.equal(mean, other_mean) and torch.equal(std, other_std):
        return images
    raw = images * std + mean
    moved = ((raw.flip(1) if turned else raw) - other_mean) / other_std
    for image, sample in zip(moved, samples):
        height, width = sample.metainfo["img_shape"][:2]
        image[:, height:], image[:, :, width:] = teacher.pad_value, teacher.pad_value
    return moved


# Building -------------------------------------------------------------------------------------------------------------
def _detector(config: Mapping | str | Path, role: str, preprocessor: Mapping | nn.Module | None = None) -> nn.Module:
    """The detector of a model config, or of an mmdet config file."""
    try:
        from mmdet.registry import MODELS
    except ImportError as error:
        raise ImportError(f"DistillDetector needs MMDetection 3 (mmdet and mmcv): {error}") from error
    from mmengine.config import Config, ConfigDict
    from mmengine.hub import get_config

    if isinstance(config, str | Path):
        file = get_config(config) if "::" in str(config) else Config.fromfile(config)
        if "model" not in file:
            raise ValueError(f"{role}: {str(config)!r} has no 'model'")
        config, preprocessor = file.model, preprocessor or file.get("data_preprocessor")
    config = ConfigDict(copy.deepcopy(dict(config)))       # mmdet reads train_cfg.rpn as an attribute
    if preprocessor is not None:
        config.setdefault("data_preprocessor", preprocessor)
    config.setdefault("_scope_", "mmdet")                  # without a Runner too
    model = MODELS.build(config)
    _kind(model, role)
    return model


def _taught(model: nn.Module, checkpoint: str | Path | None) -> Teacher:
    """The teacher with its weights."""
    if checkpoint is None:
        if not (isinstance(model.init_cfg, Mapping) and model.init_cfg.get("type") == "Pretrained"):
            warnings.warn(f"the teacher ({type(model).__name__}) has no teacher_checkpoint: it has random weights, except for "
                          "what its init_cfg loads", stacklevel=3)
        model.init_weights()
        return Teacher(model)
    state = read_checkpoint(checkpoint)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{str(checkpoint)!r} is not a checkpoint of the teacher: {error}") from error
    return Teacher(model)


class _Nothing:
    """Stands for what a checkpoint holds beside tensors and plain values: nothing of it is run or kept."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state_dict of a file of mmengine's Runner, or of any other that :func:`~kdtasks.core.weights.read_weights` reads.

    A Runner's file also holds its log (HistoryBuffer, NumPy arrays), which torch refuses with ``weights_only=True``. Here
    every such name is bound to an empty class, so that the weights are read, and no code of the file is run.

    Raises:
        FileNotFoundError, ValueError: as :func:`~kdtasks.core.weights.read_weights`.
    """
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:                                      # no file, or no archive of torch: read_weights says what is wrong
        foreign = []
    with torch.serialization.safe_globals([(_Nothing, name) for name in foreign]):
        return read_weights(path)[0]


def _term(name: str, entry: Mapping) -> tuple:
    """A loss entry of the config as a term of the Distiller."""
    if not isinstance(entry, Mapping) or "of" not in entry:
        raise builder.ConfigError(f"losses.{name} must be a dict(type=…, of=…, weight=…), got {entry!r}")
    loss = {key: value for key, value in entry.items() if key not in ("of", "weight")}
    weight = entry.get("weight", 1.0)
    return (builder.bind(loss, f"losses.{name}") if loss else None, entry["of"],
            builder.build(weight, f"losses.{name}.weight") if isinstance(weight, Mapping) else weight)


def example_batch(model: nn.Module) -> dict[str, object]:
    """A black image of 384 x 384 px with one box of class 0, as the detector's data_preprocessor would give it."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    device, size = next(model.parameters()).device, (TRIAL_SIDE, TRIAL_SIDE)
    sample = DetDataSample(metainfo={"img_id": 0, "img_shape": size, "ori_shape": size, "pad_shape": size,
                                     "batch_input_shape": size, "scale_factor": (1.0, 1.0)})
    box = torch.tensor([[0.25, 0.25, 0.75, 0.75]], device=device) * TRIAL_SIDE
    sample.gt_instances = InstanceData(bboxes=box, labels=torch.zeros(1, dtype=torch.int64, device=device))
    if getattr(model, "with_mask", False):
        import numpy as np
        from mmdet.structures.mask import BitmapMasks

        sample.gt_instances.masks = BitmapMasks(np.ones((1, *size), np.uint8), *size)
    return {"input": torch.zeros(1, 3, *size, device=device), "target": [sample]}


def _number_of_levels(model: nn.Module) -> int:
    with _at_rest(model):
        return len(model.extract_feat(example_batch(model)["input"]))


def _own_losses(model: nn.Module) -> list[str]:
    """The names of what the detector gives in mode='loss'."""
    batch = example_batch(model)
    with _at_rest(model):
        return list(model(batch["input"], batch["target"], mode="loss"))


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """In eval, without gradient, no random stream moving; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), _random_streams_kept():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _random_streams_kept():
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else [])


# Checkpoints ----------------------------------------------------------------------------------------------------------
def _to_student_names(detector: nn.Module, state: dict, prefix: str, local_metadata: dict) -> None:
    """A state_dict with the plain student's names; what the losses learn goes to the metadata of the detector."""
    student, losses = f"{prefix}distiller.student.", f"{prefix}distiller."
    learned = {}
    for name in [name for name in state if name.startswith(losses)]:
        value = state.pop(name)
        if name.startswith(student):
            state[prefix + name.removeprefix(student)] = value
        else:
            learned[name.removeprefix(losses)] = value
    if learned:
        local_metadata["distillation"] = learned
    versions = getattr(state, "_metadata", {})
    for name in [name for name in versions if name.startswith(losses)]:
        version = versions.pop(name)
        if name.startswith(student):
            versions[prefix + name.removeprefix(student)] = version


def _from_student_names(detector: nn.Module, state: dict, prefix: str, local_metadata: dict, *_) -> None:
    """The reverse. Losses whose weights the state_dict lacks (a plain student's) keep those they have."""
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}distiller.student.{name.removeprefix(prefix)}"] = state.pop(name)
    own = {f"losses.{name}": value for name, value in detector.distiller.losses.state_dict().items()}
    learned = local_metadata.get("distillation", {})
    for name, value in own.items():
        state[f"{prefix}distiller.{name}"] = learned.get(name, value)
