"""What MMDetection's detectors supply to losses: class logits, box deltas, features, and the rows
that their own losses use.

The student runs as mmdet wrote it, once a step; what its heads see and sample is noted on the way.
The teacher is run part by part on exactly that: the student's images, its sampled anchors, its
RoIs. It draws no random number.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from kdtasks.core import Distiller, Teacher
from kdtasks.core.recorder import FeatureRecorder
from kdtasks.core.trial import try_out
from kdtasks.detection.detectors import replaced

# px of the one image that tells losses, levels and channels: 3 x 128
TRIAL_SIDE = 384
# and 'student', which the Distiller refuses itself
_NO_TEACHERS = {"features", "anchors", "rpn", "rois"}


class MMDetDistiller(Distiller):
    """A :class:`~kdtasks.core.Distiller` of mmdet detectors; a batch is ``{'input': images,
    'target': data_samples}``.

    ``input`` (B, 3, H, W) is what the student's data_preprocessor gives. Every image needs
    ``gt_instances``; they may be empty. Own losses that the student did not give when it was built
    go into the batch's dict ``late``, where it has one. Names beside submodules
    (``'student.backbone.layer3'``), where t is a teacher's name:

    ==============================================  ===================================================================
    ``student.<name>``                              the student's own losses (``student.loss_cls``), a list of levels summed;
                                                    those in no ``of`` enter with weight 1
    ``student.cls_logits``, ``t.cls_logits``        (B, A, K), all levels, by location, its anchors innermost; one-stage
    ``student.box_deltas``, ``t.box_deltas``        (B, A, n), n = 4 as the head gives them, GFL 4·(reg_max + 1); one-stage
    ``anchors.valid``                               bool (B, A): False where the label weight is 0 (in between two
                                                    thresholds, outside); all True for heads that
                                                    weigh none
    ``rpn.student.logits``, ``rpn.t.logits``        (M, 1), the anchors that the student's RPN sampled, image by image
    ``rpn.student.deltas``, ``rpn.t.deltas``, ``rpn.target``  (P, 4), the positive ones among them
    ``rois.student.logits``, ``rois.t.logits``      (N, C + 1), the proposals that the student's RoI head sampled; background
                                                    is the last column
    ``rois.student.deltas``, ``rois.t.deltas``, ``rois.target``  (P, 4), positive ones, the box of their true class
    ``rpn.count``, ``rois.count``                   what the hard box loss of this head divides by: M; N
    ``features.student.<i>``, ``features.t.<i>``    (B, C, H, W), level i = 0, 1, … of the neck's output
    ==============================================  ===================================================================

    Deltas are encoded: a RoI head's coder divides by (0.1, 0.1, 0.2, 0.2), an RPN's by 1. Two-stage
    names also exist as rows:
    bool ``rpn.sampled``, ``rpn.positive`` (B, A); ``rois.boxes`` (N, 5) of image index and x1, y1,
    x2, y2; ``rois.label`` (N,).

    Args:
        student, teachers, losses: as in :class:`~kdtasks.core.Distiller`, mmdet detectors among
            them.
        class_map: the teachers' class for each of the student's, without background; None: they are
            equal.

    Raises:
        ValueError: a model that is no one- or two-stage detector; a student that gives no losses;
            on the first run: heads that do not correspond.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        losses: Mapping[str, tuple] | None = None,
        *,
        class_map: Sequence[int] | None = None,
    ):
        models = {
            "student": student,
            **{n: m.model if isinstance(m, Teacher) else m for n, m in (teachers or {}).items()},
        }
        for role, model in models.items():
            kind_of(model, role)
        if not _NO_TEACHERS.isdisjoint(models):
            raise ValueError(
                f"a teacher cannot be called {min(_NO_TEACHERS & models.keys())!r}: "
                "other names begin with it"
            )
        self._first_trial = (student, _tried(student))
        own = self._first_trial[1][1]
        listed = {
            of
            for entry in (losses or {}).values()
            for of in ([entry[1]] if isinstance(entry[1], str) else entry[1])
        }
        # accuracies; a cascade's 's0.loss_cls'
        others = {
            name: (None, f"student.{name}", 1.0)
            for name in own
            if not name.startswith("loss_") and f"student.{name}" not in listed
        }
        if not others.keys().isdisjoint(losses or {}):
            raise ValueError(
                f"the student's own {min(others.keys() & losses.keys())!r} has this "
                "name; rename your entry"
            )
        super().__init__(student, teachers, {**others, **(losses or {})})
        self._first_trial = None
        self.register_buffer(
            "class_map",
            None if class_map is None else torch.tensor(list(class_map)),
            persistent=False,
        )

    # Names ----------------------------------------------------------------------------------------
    @property
    def _own(self) -> list[str]:
        """What the student gives in mode='loss'."""
        return self._trial()[1]

    def _trial(self) -> tuple[int, list[str]]:
        facts = self.facts("student")
        if "trial" not in facts:
            known = self._first_trial and self._first_trial[0] is self.student
            facts["trial"] = self._first_trial[1] if known else _tried(self.student)
        return facts["trial"]

    def _level_count(self, role: str) -> int:
        if role == "student":
            return self._trial()[0]
        facts = self.facts(role)
        if "levels" not in facts:
            facts["levels"] = _levels(self.model(role))
        return facts["levels"]

    def _is_renormalized(self, role: str) -> bool:
        """Whether a teacher wants other means and deviations; asked once, since on a GPU it waits."""
        facts = self.facts("student", role)
        if "renormalized" not in facts:
            norms = [
                _plain(_norm(model.data_preprocessor)) for model in (self.student, self.model(role))
            ]
            facts["renormalized"] = norms[0] != norms[1]
        return facts["renormalized"]

    def names(self, role: str) -> list[str]:
        """Everything in the table above that this role computes."""
        found = [f"features.{role}.{level}" for level in range(self._level_count(role))]
        if kind_of(self.model(role), role) == "one-stage":
            found += [f"{role}.cls_logits", f"{role}.box_deltas"]
            found += ["anchors.valid"] if role == "student" else []
        for part in _parts(self.student) & _parts(self.model(role)):
            found += [f"{part}.{role}.logits", f"{part}.{role}.deltas"]
            if role == "student":
                found += [f"{part}.target", f"{part}.count"]
                found += (
                    ["rpn.sampled", "rpn.positive"]
                    if part == "rpn"
                    else ["rois.boxes", "rois.label"]
                )
        if role == "student":
            found += [f"student.{name}" for name in self._own] + ["student.seen"]
        # no bare 'student': it is no one tensor
        return found + super().names(role)[1:]

    def needs(self, role: str) -> list[str]:
        """A teacher whose RPN or RoI head is compared follows the student's samples."""
        follows = role in self.teachers and _heads(role, self.wanted[role]) & {"rpn", "rois"}
        return ["student.seen"] if follows else []

    def outputs(
        self, role: str, batch: Mapping[str, object], wanted: list[str]
    ) -> dict[str, object]:
        """The wanted names of one role; a teacher that needs the student's samples runs after it,
        any other before.
        """
        if role == "student":
            return self._student_outputs(batch, wanted)
        return self._teacher_outputs(role, batch, wanted)

    # The student ----------------------------------------------------------------------------------
    def _student_outputs(self, batch: Mapping[str, object], wanted: list[str]) -> dict[str, object]:
        model, samples = self.student, batch["target"]
        for i, sample in enumerate(samples or [None] * len(batch["input"])):
            if sample is None or "gt_instances" not in sample:
                raise ValueError(
                    f"image {i} of the batch has no gt_instances: unlabelled images "
                    "are not for this plugin; an "
                    "image without objects has empty ones"
                )
        with ExitStack() as stack:
            seen = {
                name: stack.enter_context(_noted(owner, method))
                for name, (owner, method) in _noted_methods(model).items()
            }
            losses, values = self._run(
                "student",
                wanted,
                batch["input"],
                samples,
                lambda images, samples: _losses(model, images, samples),
            )
        losses = {name: _summed(value) for name, value in losses.items()}
        late = {name: value for name, value in losses.items() if name not in self._own}
        if late and "late" not in batch:
            raise ValueError(
                f"{type(model).__name__} gave losses that it did not give before: {list(late)}"
            )
        if late:
            batch["late"].update(late)
        found = {f"student.{name}": value for name, value in losses.items()} | values
        found["student.seen"] = taken = _Seen(seen, model, len(batch["input"]))
        return found | {name: taken.get(name) for name in wanted if name not in found}

    def _run(
        self, role: str, wanted: Sequence[str], images: Tensor, also, call: Callable
    ) -> tuple[object, dict]:
        """One call with taps on the wanted submodules: its output, and their values by name."""
        facts, key = self.facts(role), ("taps", *wanted)
        if key not in facts:
            modules = set(super().names(role))
            paths = [
                name.removeprefix(f"{role}.") for name in wanted if name.split("@")[0] in modules
            ]
            facts[key] = FeatureRecorder(self.model(role), paths, call)
        output, values = facts[key](images, also)
        return output, {f"{role}.{path}": value for path, value in values.items()}

    # A teacher ------------------------------------------------------------------------------------
    def _teacher_outputs(
        self, role: str, batch: Mapping[str, object], wanted: list[str]
    ) -> dict[str, object]:
        model, heads = self.model(role), _heads(role, wanted)
        for part in heads:
            self._check(role, part, wanted)
        seen = batch["student.seen"] if heads & {"rpn", "rois"} else None
        rois = seen.get("rois.boxes") if "rois" in heads else None
        images = batch["input"]
        if self._is_renormalized(role):
            images = _renormalized(
                self.student.data_preprocessor, model.data_preprocessor, images, batch["target"]
            )
        with self.teachers[role].ready():
            parts, found = self._run(
                role,
                wanted,
                images,
                rois,
                lambda images, rois: self._teacher_parts(role, heads, images, rois),
            )
        for name in wanted:
            if name.startswith(f"features.{role}."):
                found[name] = parts["features"][int(name.rpartition(".")[2])]
            elif name == f"{role}.cls_logits":
                logits, head = _flat(parts["bbox"], model.bbox_head, 0), model.bbox_head
                found[name] = self._students_classes(
                    logits, head.cls_out_channels > head.num_classes
                )
            elif name == f"{role}.box_deltas":
                found[name] = _flat(parts["bbox"], model.bbox_head, 1)
            elif name == f"rpn.{role}.logits":
                found[name] = _flat(parts["rpn"], model.rpn_head, 0)[seen.get("rpn.sampled")]
            elif name == f"rpn.{role}.deltas":
                found[name] = _flat(parts["rpn"], model.rpn_head, 1)[seen.get("rpn.positive")]
            elif name == f"rois.{role}.logits":
                found[name] = self._students_classes(parts["rois"]["cls_score"], background=True)
            elif name == f"rois.{role}.deltas":
                labels = seen.get("rois.label")
                rows = _foreground(labels, self.student.roi_head.bbox_head)
                labels = labels[rows] if self.class_map is None else self.class_map[labels[rows]]
                found[name] = _of_class(
                    parts["rois"]["bbox_pred"], rows, labels, model.roi_head.bbox_head
                )
        return found

    def _teacher_parts(
        self, role: str, heads: set[str], images: Tensor, rois: Tensor | None
    ) -> dict:
        model = self.model(role)
        parts = {"features": model.extract_feat(images)}
        for part, head in (("bbox", "bbox_head"), ("rpn", "rpn_head")):
            # FCOS scales its boxes by the stride in eval only
            if part in heads:
                with _training([getattr(model, head)]):
                    parts[part] = getattr(model, head)(parts["features"])
        if "rois" in heads:
            parts["rois"] = model.roi_head._bbox_forward(parts["features"], rois)
        return parts

    def _students_classes(self, logits: Tensor, background: bool) -> Tensor:
        """(…, Kt) -> (…, Ks): the columns of the student's classes, and the background's, which is
        the last.
        """
        if self.class_map is None:
            return logits
        picked = logits.index_select(-1, self.class_map)
        return torch.cat([picked, logits[..., -1:]], -1) if background else picked

    def _check(self, role: str, part: str, wanted: Sequence[str]) -> None:
        """Once: the teacher's head corresponds to the student's."""
        checked = self.facts("student", role).setdefault("checked", set())
        if part in checked or not _compared(role, part, wanted):
            return
        ours, theirs = _head(self.student, part), _head(self.model(role), part)
        if ours is None:
            raise ValueError(f"{role} has a {part} head, the student has none to compare with")
        if part != "rois":
            _check_priors(role, part, ours, theirs)
        if part != "rpn":
            self._check_classes(role, part, ours, theirs)
        if any(name in wanted for name in (f"{part}.{role}.deltas", f"{role}.box_deltas")):
            units = [_units(head) for head in (ours, theirs)]
            if units[0] != units[1]:
                raise ValueError(
                    f"{part}: the student encodes its boxes as {units[0]}, {role} as "
                    f"{units[1]}; their deltas "
                    "cannot be compared"
                )
        checked.add(part)

    def _check_classes(self, role: str, part: str, ours: nn.Module, theirs: nn.Module) -> None:
        known = None if self.class_map is None else self.class_map.tolist()
        if known is not None and (
            len(known) != ours.num_classes or not all(0 <= k < theirs.num_classes for k in known)
        ):
            raise ValueError(
                f"class_map must give {ours.num_classes} of the classes 0 to "
                f"{theirs.num_classes - 1} of {role}, "
                f"one for each class of the student; got {known}"
            )
        shapes = [
            f"({'N' if part == 'rois' else 'B, A'}, {n})"
            for n in (_width(ours, part), _width(theirs, part))
        ]
        other_kind = (
            _width(ours, part) - ours.num_classes != _width(theirs, part) - theirs.num_classes
        )
        if (known is None and shapes[0] != shapes[1]) or other_kind:
            raise ValueError(
                f"the student's class logits are {shapes[0]} for {ours.num_classes} "
                f"classes, those of {role} "
                f"{shapes[1]} for {theirs.num_classes}: "
                + (
                    "one has a background column, the other none"
                    if other_kind
                    else "say with class_map which of its classes are the student's"
                )
            )


# What the student's heads saw ---------------------------------------------------------------------
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
    """Calls of a method of this one instance, as ``[(arguments, result), …]``."""
    calls: list = []
    original = getattr(owner, method)

    def noting(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append((args, result))
        return result

    with replaced(owner, method, noting):
        yield calls


@contextmanager
def _training(modules: Iterable[nn.Module]) -> Iterator[None]:
    """The modules' own ``training`` set, not their children's, for a while."""
    modes = [(module, module.training) for module in modules]
    try:
        for module, _ in modes:
            module.training = True
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _losses(model: nn.Module, images: Tensor, samples: list) -> dict:
    """What a detector gives in mode='loss', in eval too: many heads want ``training`` for it;
    BatchNorm, dropout lie deeper.
    """
    with _training([model, *model.children()]):
        return model(images, samples, mode="loss")


class _Seen:
    """The tensors of one forward of the student, by the names in :class:`MMDetDistiller`."""

    def __init__(self, calls: Mapping[str, list], model: nn.Module, batch_size: int):
        self.calls, self.model, self.batch_size = calls, model, batch_size

    def get(self, name: str):
        part, _, what = name.partition(".")
        if part == "features":
            return _result(self.calls, "features")[int(what.rpartition(".")[2])]
        if part in ("rpn", "rois"):
            head = _head(self.model, part)
            if what in ("student.deltas", "target") and head.reg_decoded_bbox:
                raise ValueError(
                    f"{name}: the student's {part} head compares decoded boxes "
                    "(reg_decoded_bbox=True), no deltas"
                )
            return self._rpn(what, head) if part == "rpn" else self._rois(what, head)
        outputs, head = _result(self.calls, "bbox"), self.model.bbox_head
        if name == "anchors.valid":
            return self._valid(_maps(outputs, head)[0], head.cls_out_channels)
        return _flat(outputs, head, 0 if what == "cls_logits" else 1)

    def _valid(self, maps: Sequence[Tensor], classes: int) -> Tensor:
        """Where the label weight is not 0: the list that follows the (whole-numbered) labels in the
        targets, if one does.
        """
        sizes = [level[0].numel() // classes for level in maps]  # the anchors of each level
        for _, targets in self.calls.get("bbox.targets", []):
            lists = [
                t
                for t in targets
                if isinstance(t, list | tuple) and t and all(isinstance(x, Tensor) for x in t)
            ]
            for labels, weights in itertools.pairwise(lists):
                if labels[0].is_floating_point() or [x.shape for x in labels] != [
                    x.shape for x in weights
                ]:
                    continue
                # a tensor a level
                if [x.numel() for x in weights] == [self.batch_size * n for n in sizes]:
                    return torch.cat([x.reshape(self.batch_size, -1) for x in weights], 1) != 0
                # a tensor an image
                if [x.numel() for x in weights] == [sum(sizes)] * self.batch_size:
                    return torch.stack([x.reshape(-1) for x in weights]) != 0
        return maps[0].new_ones((self.batch_size, sum(sizes)), dtype=torch.bool)

    def _rpn(self, what: str, head: nn.Module):
        labels, label_weights, targets, _, count = _result(self.calls, "rpn.targets")[:5]
        if what == "count":
            return count
        if what in ("sampled", "student.logits"):
            sampled = torch.cat(label_weights, 1) > 0  # (B, A)
            return (
                sampled
                if what == "sampled"
                else _flat(_result(self.calls, "rpn"), head, 0)[sampled]
            )
        positive = _foreground(torch.cat(labels, 1), head)
        if what == "target":
            return torch.cat(targets, 1)[positive]
        return (
            positive if what == "positive" else _flat(_result(self.calls, "rpn"), head, 1)[positive]
        )

    def _rois(self, what: str, head: nn.Module):
        if what in ("boxes", "student.logits"):
            predicted = _result(self.calls, "rois")
            return (
                predicted["cls_score"] if what == "student.logits" else self.calls["rois"][0][0][1]
            )
        labels, _, targets, _ = _result(self.calls, "rois.targets")
        if what in ("label", "count"):
            return labels if what == "label" else len(labels)
        rows = _foreground(labels, head)
        if what == "target":
            return targets[rows]
        return _of_class(_result(self.calls, "rois")["bbox_pred"], rows, labels[rows], head)


def _result(seen: Mapping[str, list], name: str):
    """What the one noted call gave."""
    calls = seen.get(name, [])
    if len(calls) != 1:
        raise ValueError(
            f"the student's {name} ran {len(calls)} times in one forward, expected "
            "once: it cannot be told "
            "which of its tensors are meant"
        )
    return calls[0][1]


def _maps(outputs: tuple, head: nn.Module) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """A dense head's maps of logits and of deltas, a level each."""
    maps = outputs[:2] if isinstance(outputs, tuple) else ()
    if len(maps) != 2 or not all(
        isinstance(level, Tensor) and level.dim() == 4 for part in maps for level in part
    ):
        raise ValueError(
            f"{type(head).__name__} gives no class and box maps (B, channels, H, W) for each level"
        )
    return maps


def _flat(outputs: tuple, head: nn.Module, part: int) -> Tensor:
    """Maps of n anchors a place, part 0 ``[(B, n·K, H, W), …]`` or part 1 ``[(B, n·4, H, W), …]``
    -> (B, A, K) or (B, A, 4).
    """
    maps, classes = _maps(outputs, head), head.cls_out_channels
    size = maps[part][0].shape[1] * classes // maps[0][0].shape[1]
    return torch.cat(
        [level.permute(0, 2, 3, 1).reshape(len(level), -1, size) for level in maps[part]], 1
    )


def _foreground(labels: Tensor, head: nn.Module) -> Tensor:
    """bool: mmdet's background is class ``num_classes``."""
    return (labels >= 0) & (labels < head.num_classes)


def _of_class(deltas: Tensor, rows: Tensor, labels: Tensor, head: nn.Module) -> Tensor:
    """(N, 4C), or (N, 4) where one box is for all classes -> (P, 4): of each row the box of its
    class.
    """
    deltas = deltas[rows]
    if head.reg_class_agnostic:
        return deltas
    return deltas.unflatten(1, (head.num_classes, -1))[
        torch.arange(len(deltas), device=deltas.device), labels
    ]


def _summed(value) -> Tensor:
    """A loss as mmengine's ``parse_losses`` reads it: the mean, summed over a list."""
    return value.mean() if isinstance(value, Tensor) else sum(level.mean() for level in value)


# Detectors and their heads ------------------------------------------------------------------------
def kind_of(model: nn.Module, role: str) -> str:
    """``'one-stage'`` or ``'two-stage'``; ValueError for what is neither."""
    if hasattr(model, "extract_feat") and hasattr(model, "data_preprocessor"):
        if hasattr(model, "roi_head"):
            return "two-stage"
        if hasattr(model, "bbox_head"):
            return "one-stage"
    raise ValueError(
        f"{role} is a {type(model).__name__}; expected one of mmdet's one-stage "
        "detectors (with a bbox_head) or "
        "two-stage ones (with a roi_head)"
    )


def _parts(model: nn.Module) -> set[str]:
    """``rpn`` and ``rois``, where the detector has them; a cascade's several box heads are none of
    ours.
    """
    return {part for part in ("rpn", "rois") if _head(model, part) is not None}


def _head(model: nn.Module, part: str) -> nn.Module | None:
    if part != "rois":
        return getattr(model, f"{part}_head", None)
    head = getattr(getattr(model, "roi_head", None), "bbox_head", None)
    return None if isinstance(head, nn.ModuleList) else head


def _heads(role: str, wanted: Sequence[str]) -> set[str]:
    """Which of a teacher's heads have to run."""
    prefixes = {
        "bbox": (f"{role}.cls_logits", f"{role}.box_deltas", f"{role}.bbox_head"),
        "rpn": (f"rpn.{role}.", f"{role}.rpn_head"),
        "rois": (f"rois.{role}.", f"{role}.roi_head"),
    }
    return {
        part for part, starts in prefixes.items() if any(name.startswith(starts) for name in wanted)
    }


def _compared(role: str, part: str, wanted: Sequence[str]) -> bool:
    """Whether a head's answers are wanted, and not only submodules of it."""
    return any(
        name in wanted
        for name in (
            f"{role}.cls_logits",
            f"{role}.box_deltas",
            f"{part}.{role}.logits",
            f"{part}.{role}.deltas",
        )
    )


def _width(head: nn.Module, part: str) -> int:
    return head.num_classes + 1 if part == "rois" else head.cls_out_channels


def _units(head: nn.Module) -> tuple:
    """All that says what a head's deltas mean: its coder and the coder's scale, FCOS's
    norm_on_bbox, GFL's reg_max.
    """
    coder = getattr(head, "bbox_coder", None)
    scale = {
        name: tuple(getattr(coder, name)) for name in ("means", "stds") if hasattr(coder, name)
    }
    kind = {
        name: getattr(head, name) for name in ("norm_on_bbox", "reg_max") if hasattr(head, name)
    }
    return None if coder is None else type(coder).__name__, scale | kind


def _check_priors(role: str, part: str, ours: nn.Module, theirs: nn.Module) -> None:
    """Strides, and base anchors where both have them."""
    generators = [getattr(head, "prior_generator", None) for head in (ours, theirs)]
    for whose, head, generator in zip(("the student's", f"{role}'s"), (ours, theirs), generators):
        if generator is None:
            raise ValueError(
                f"{part}: {whose} {type(head).__name__} has no prior_generator, so it "
                "cannot be told whether its "
                "places are those of the other"
            )
    strides = [[tuple(stride) for stride in generator.strides] for generator in generators]
    if strides[0] != strides[1]:
        raise ValueError(
            f"{part}: the student's levels have strides {strides[0]}, those of {role} {strides[1]}"
        )
    anchors = [getattr(generator, "base_anchors", None) for generator in generators]
    if anchors[0] is None or anchors[1] is None:
        return
    shapes = [[tuple(level.shape) for level in generator] for generator in anchors]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{part}: the student's levels have anchors {shapes[0]} at each place, "
            f"those of {role} {shapes[1]}"
        )
    for level, (a, b) in enumerate(zip(*anchors)):
        if not torch.allclose(a, b.to(a)):
            raise ValueError(
                f"{part}: at level {level} the student's anchors are {a.tolist()}, "
                f"those of {role} {b.tolist()}; "
                "logits of different anchors cannot be compared"
            )


def _norm(preprocessor: nn.Module) -> tuple:
    """Mean, deviation, and whether the channels are turned."""
    mean, std = (
        (preprocessor.mean, preprocessor.std)
        if getattr(preprocessor, "_enable_normalize", False)
        else (0.0, 1.0)
    )
    return mean, std, getattr(preprocessor, "_channel_conversion", False)


def _plain(norm: tuple) -> list:
    return [value.tolist() if isinstance(value, Tensor) else value for value in norm]


def _renormalized(student: nn.Module, teacher: nn.Module, images: Tensor, samples: list) -> Tensor:
    """The student's images as the teacher's data_preprocessor would have given them: mean,
    deviation, channels, padding.
    """
    (mean, std, turned), (other_mean, other_std, other_turned) = _norm(student), _norm(teacher)
    raw = images * std + mean
    moved = (((raw.flip(1) if turned != other_turned else raw) - other_mean) / other_std).to(images)
    for image, sample in zip(moved, samples):
        height, width = sample.metainfo["img_shape"][:2]
        image[:, height:], image[:, :, width:] = teacher.pad_value, teacher.pad_value
    return moved


# The trial ----------------------------------------------------------------------------------------
def example_batch(model: nn.Module) -> dict[str, object]:
    """A black image of 384 x 384 px with one box of class 0, as the detector's data_preprocessor
    would give it.

    It is one class to a semantic head; the box has a mask where some head wants masks (RTMDet
    without one refuses them).
    """
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    device, size = next(model.parameters()).device, (TRIAL_SIDE, TRIAL_SIDE)
    sample = DetDataSample(
        metainfo={
            "img_id": 0,
            "img_shape": size,
            "ori_shape": size,
            "pad_shape": size,
            "batch_input_shape": size,
            "scale_factor": (1.0, 1.0),
        }
    )
    box = torch.tensor([[0.25, 0.25, 0.75, 0.75]], device=device) * TRIAL_SIDE
    sample.gt_instances = InstanceData(
        bboxes=box, labels=torch.zeros(1, dtype=torch.int64, device=device)
    )
    sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, *size, dtype=torch.int64, device=device))
    if any("mask" in name for name, _ in model.named_modules()):
        sample.gt_instances.masks = BitmapMasks(np.ones((1, *size), np.uint8), *size)
    return {"input": torch.zeros(1, 3, *size, device=device), "target": [sample]}


def _levels(model: nn.Module) -> int:
    """How many levels its neck gives."""
    with try_out(model):
        return len(model.extract_feat(example_batch(model)["input"]))


def _tried(student: nn.Module) -> tuple[int, list[str]]:
    """How many levels its neck gives, and the names of what it gives in mode='loss'."""
    batch = example_batch(student)
    with try_out(student), _noted(student, "extract_feat") as calls:
        try:
            own = list(_losses(student, batch["input"], batch["target"]))
        except Exception as error:
            raise ValueError(
                f"{type(student).__name__} gives no losses for a trial image of "
                f"{TRIAL_SIDE} x {TRIAL_SIDE} px: "
                f"{error!r}"
            ) from error
    return len(calls[0][1]) if calls else 0, own
