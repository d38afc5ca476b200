"""The door to MMDetection 3: a one- or two-stage detector of it taught by another, inside an
ordinary mmdet config.

``model = dict(type='kdtasks.detection.plugin.DistillDetector', student=…, teacher=…, losses=…)`` is
all that a config needs: mmengine finds a full dotted path by itself.
:class:`kdtasks.detection.distiller.DetectionDistiller` says what losses can be called with. mmdet
and mmcv are imported when a detector is built.

Tested with the families that tests/detection/test_plugin_families.py lists. Others usually work:
the student is tried when it is built, on one image, and what it cannot do is said then.
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.model import BaseModel
from torch import Tensor, nn

from kdtasks.core import Teacher
from kdtasks.core.weights import load_weights
from kdtasks.detection.detectors import replaced
from kdtasks.detection.mmdet_detectors import example_batch, is_labelled, kind_of
from kdtasks.detection.mmdet_distiller import MMDetDistiller
from kdtasks.engine import builder


class DistillDetector(BaseModel):
    """An mmdet detector with a teacher, for mmengine's Runner.

    ``mode='loss'`` gives the student's own losses and the distillation losses, ``'predict'`` and
    ``'tensor'`` are the plain student. The teacher is frozen, in eval, and in no ``parameters()``,
    ``state_dict()`` or EMA copy; ``init_weights`` reaches the student only, as its ``init_cfg``
    says. Own losses that the student gives only later (YOLOX: ``loss_l1``) enter with weight 1.

    A checkpoint's ``state_dict`` has the plain student's names and nothing else, so mmdet loads it
    strictly into the plain student: for ``init_detector``, write ``cfg.model = cfg.model.student``.
    Weights of the losses themselves (a hint's adapter) travel in its ``_metadata``, and come back
    on resume. mmengine 0.10 resumes from its own files on torch >= 2.6 only with
    ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`` in the environment.

    Attributes that this class lacks (``bbox_head``, ``with_neck``) are the student's. In
    ``named_parameters()`` the student's have their plain names, as in mmdet (layer-wise decay goes
    by them); a ``custom_keys`` of mmengine is matched anywhere in the whole path,
    ``distiller.student.backbone.…`` or ``distiller.losses.…``.

    Args:
        student: an mmdet model config; or the path of an mmdet config file that has one; or the
            name of one that mmdet brings along,
            ``'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'``.
        teacher: the same.
        losses: ``{name: dict(type=…, of=…, weight=…)}`` as in kdtasks configs;
            :class:`~kdtasks.detection.distiller.DetectionDistiller` lists the names for ``of``.
            Names that contain ``loss`` train. A weight may be a
            ``dict(type='kdtasks.core.Linear', …)``.
        teacher_checkpoint: a file that mmengine or torch saved, loaded strictly and without
            unpickling code. None: that of a ``Pretrained`` in the teacher's own ``init_cfg``,
            loaded the same way; or else what its parts' ``init_cfg`` give.
        class_map: the teacher's class for each of the student's, counted from 0 and without the
            background; None: they are equal.
        data_preprocessor: of the student, where its config has none (the Runner passes a config's
            on).
        unlabelled: None: an image without annotations is an error. ``'soft'`` or ``'soft+pseudo'``:
            such images (no ``gt_instances`` or none with ``bboxes``, as a pipeline without
            LoadAnnotations packs them) enter distillation losses only, or also the student's own
            with the teacher's detections; of one-stage detectors.
        pseudo_score: the least score of such a detection.
        cross_after: of CrossKD's ``cross.teacher.*``: the convolution of each of the student's
            stacks behind which the teacher's head goes on.

    Raises:
        ImportError: MMDetection is not installed.
        ValueError: no one- or two-stage detector; a wrong loss entry or name; a checkpoint of
            another model, or an address; heads whose anchors, strides, classes, deltas or shapes do
            not correspond; a student that gives no losses (all models are tried on one image of 384
            x 384 px).
    """

    def __init__(
        self,
        student: Mapping | str | Path,
        teacher: Mapping | str | Path,
        losses: Mapping[str, Mapping],
        teacher_checkpoint: str | Path | None = None,
        class_map: Sequence[int] | None = None,
        data_preprocessor: Mapping | nn.Module | None = None,
        unlabelled: str | None = None,
        pseudo_score: float = 0.5,
        cross_after: int = 3,
    ):
        model = _detector(student, "student", data_preprocessor)
        super().__init__(model.data_preprocessor)
        del self._modules["data_preprocessor"]  # the student has it, and once is enough
        self.takes_unlabelled = unlabelled is not None
        with _random_streams_kept(), _epoch_known():
            taught_by = _taught(_detector(teacher, "teacher"), teacher_checkpoint)
            terms = {name: _term(name, entry) for name, entry in losses.items()}
            # the Runner's: some heads average over its processes
            device = get_device()
            with _as_initialized(model.to(device)):
                self.distiller = MMDetDistiller(
                    model,
                    {"teacher": taught_by.to(device)},
                    terms,
                    class_map=class_map,
                    unlabelled=unlabelled or "soft",
                    pseudo_score=pseudo_score,
                    cross_after=cross_after,
                )
                # an adapter has its weights before the optimizer is made
                self.distiller.build(example_batch(model))
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

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The student's by their plain names; those of the losses as ``distiller.losses.…``."""
        student, start = "distiller.student.", f"{prefix}." if prefix else ""
        for name, parameter in super().named_parameters("", recurse, remove_duplicate):
            yield start + name.removeprefix(student), parameter

    def init_weights(self) -> None:
        """As the student's ``init_cfg`` says. The Runner calls it, after the teacher's weights are
        loaded.
        """
        self.student.init_weights()

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"
    ) -> object:
        """``inputs`` (B, 3, H, W), preprocessed; a dict of losses for ``mode='loss'``, else what
        the student gives.
        """
        if mode != "loss":
            return self.student(inputs, data_samples, mode=mode)
        self._follow_runner()
        late: dict[str, Tensor] = {}
        batch = {"input": inputs, "target": data_samples, "late": late}
        labelled = [is_labelled(sample) for sample in data_samples or ()]
        if self.takes_unlabelled and not all(labelled):
            batch["labelled"] = torch.tensor(labelled)
        losses = self.distiller(batch)
        if not late.keys().isdisjoint(losses):
            raise ValueError(
                f"the student's own {min(late.keys() & losses.keys())!r}, which it gives only now, "
                "has the name of a loss of yours: rename that"
            )
        return losses | late

    def _follow_runner(self) -> None:
        """Tell the weights that change how far the Runner is."""
        from mmengine.logging import MessageHub

        hub = MessageHub.get_current_instance()
        iteration, total = hub.get_info("iter"), hub.get_info("max_iters")
        if iteration is not None and total:
            self.distiller.progress = (iteration, total)


# Building -----------------------------------------------------------------------------------------
def _detector(
    config: Mapping | str | Path, role: str, preprocessor: Mapping | nn.Module | None = None
) -> nn.Module:
    """The detector of a model config, or of an mmdet config file."""
    try:
        from mmdet.registry import MODELS
    except ImportError as error:
        raise ImportError(
            f"DistillDetector needs MMDetection 3 (mmdet and mmcv): {error}"
        ) from error
    from mmengine.config import Config, ConfigDict
    from mmengine.hub import get_config

    if isinstance(config, str | Path):
        file = get_config(config) if "::" in str(config) else Config.fromfile(config)
        if "model" not in file:
            raise ValueError(f"{role}: {str(config)!r} has no 'model'")
        config, preprocessor = file.model, preprocessor or file.get("data_preprocessor")
    # mmdet reads train_cfg.rpn as an attribute
    config = ConfigDict(copy.deepcopy(dict(config)))
    if (
        preprocessor is not None
        and config.setdefault("data_preprocessor", preprocessor) != preprocessor
    ):
        warnings.warn(
            f"{role}: its own data_preprocessor stands; the one beside it differs and is not used",
            stacklevel=3,
        )
    config.setdefault("_scope_", "mmdet")  # without a Runner too
    model = MODELS.build(config)
    kind_of(model, role)
    return model


def _taught(model: nn.Module, checkpoint: str | Path | None) -> Teacher:
    """The teacher with its weights."""
    start = ""
    if checkpoint is None:
        # mmengine would load it with strict=False, and silently
        checkpoint, start = _pretrained(model)
    if checkpoint is None:
        warnings.warn(
            f"the teacher ({type(model).__name__}) has no teacher_checkpoint: it has random "
            "weights, except for what its init_cfg loads",
            stacklevel=3,
        )
        model.init_weights()
        return Teacher(model)
    if "://" in str(checkpoint):
        raise ValueError(
            f"the teacher's checkpoint {str(checkpoint)!r} is an address: download it first, and "
            "give the file"
        )
    try:
        load_weights(model, checkpoint, prefix=start)
    except ValueError as error:
        raise ValueError(
            f"{str(checkpoint)!r} is not a checkpoint of the teacher: {error}"
        ) from error
    return Teacher(model)


def _pretrained(model: nn.Module) -> tuple[str | None, str]:
    """The file of a ``Pretrained`` in the detector's own init_cfg, and the prefix of its names
    there.
    """
    entries = [model.init_cfg] if isinstance(model.init_cfg, Mapping) else model.init_cfg or []
    for entry in entries:
        if _is_file(entry):
            prefix = entry.get("prefix")
            return entry["checkpoint"], f"{prefix.rstrip('.')}." if prefix else ""
    return None, ""


def _term(name: str, entry: Mapping) -> tuple:
    """A loss entry of the config as a term of the Distiller."""
    if not isinstance(entry, Mapping) or "of" not in entry:
        raise builder.ConfigError(
            f"losses.{name} must be a dict(type=…, of=…, weight=…), got {entry!r}"
        )
    loss = {key: value for key, value in entry.items() if key not in ("of", "weight")}
    weight = entry.get("weight", 1.0)
    if isinstance(weight, Mapping):
        weight = builder.build(weight, f"losses.{name}.weight")
    if not callable(weight) and (isinstance(weight, bool) or not isinstance(weight, int | float)):
        raise builder.ConfigError(
            f"losses.{name}.weight must be a number or a dict(type=…), got {weight!r}"
        )
    return builder.bind(loss, f"losses.{name}") if loss else None, entry["of"], weight


@contextmanager
def _epoch_known() -> Iterator[None]:
    """Epoch 0 before the Runner has one: TOOD's loss asks for it."""
    from mmengine.logging import MessageHub

    hub = MessageHub.get_current_instance()
    unknown = hub.get_info("epoch") is None
    try:
        if unknown:
            hub.update_info("epoch", 0)
        yield
    finally:
        if unknown:
            hub.runtime_info.pop("epoch", None)


@contextmanager
def _as_initialized(model: nn.Module) -> Iterator[None]:
    """With weights as ``init_weights`` draws them, but from no file; afterwards with those it had,
    and not yet initialized.

    Without them a model may not run: before, the proposals of Sparse R-CNN and QueryInst are no
    boxes.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    configs = [(part, part.init_cfg) for part in model.modules() if getattr(part, "init_cfg", None)]
    try:
        for part, entries in configs:
            entries = [entries] if isinstance(entries, Mapping) else entries
            part.init_cfg = [entry for entry in entries if not _is_file(entry)] or None
        with _random_streams_kept(), replaced(model, "_dump_init_info", _unsaid):
            model.init_weights()
        yield
    finally:
        for part, entries in configs:
            part.init_cfg = entries
        for part in model.modules():
            if hasattr(part, "is_init"):
                part.is_init = False
        model.load_state_dict(state)


def _is_file(entry: Mapping) -> bool:
    return getattr(entry["type"], "__name__", entry["type"]) in ("Pretrained", "PretrainedInit")


def _unsaid() -> None:
    """mmengine logs how each parameter was drawn; the Runner's own call will say it."""


def _random_streams_kept():
    return torch.random.fork_rng(
        devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    )


# Checkpoints --------------------------------------------------------------------------------------
def _to_student_names(detector: nn.Module, state: dict, prefix: str, local_metadata: dict) -> None:
    """A state_dict with the plain student's names; what the losses learn goes to the metadata of
    the detector.
    """
    student, losses = f"{prefix}distiller.student.", f"{prefix}distiller."
    learned = {}
    for name in [name for name in state if name.startswith(losses)]:
        value = state.pop(name)
        if name.startswith(student):
            state[prefix + name.removeprefix(student)] = value
        else:
            learned[name.removeprefix(losses)] = value.cpu()
    if learned:
        local_metadata["distillation"] = learned
    versions = getattr(state, "_metadata", {})
    for name in [name for name in versions if name.startswith(losses)]:
        version = versions.pop(name)
        if name.startswith(student):
            versions[prefix + name.removeprefix(student)] = version


def _versions_below(prefix: str, versions: Mapping[str, dict]) -> OrderedDict:
    return OrderedDict(
        (f"{name}.".removeprefix(prefix)[:-1], version)
        for name, version in versions.items()
        if f"{name}.".startswith(prefix)
    )


def _from_student_names(
    detector: nn.Module,
    state: dict,
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """The reverse. The student loads its weights by itself, so that its own hooks (for checkpoints
    of older versions) see its own names; what it has then goes on. Losses whose weights the
    state_dict lacks (a plain student's) keep those they have.
    """
    student_state = OrderedDict(
        (name.removeprefix(prefix), state.pop(name))
        for name in list(state)
        if name.startswith(prefix)
    )
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        student_state._metadata = _versions_below(prefix, versions)
    student = detector.distiller.student
    assign = local_metadata.get("assign_to_params_buffers", False)
    try:
        result = student.load_state_dict(student_state, strict=False, assign=assign)
        missing += [prefix + name for name in result.missing_keys]
        unexpected += [prefix + name for name in result.unexpected_keys]
    except RuntimeError as error:  # other shapes; all else is loaded
        errors.append(str(error))
    state.update(
        {f"{prefix}distiller.student.{name}": value for name, value in student.state_dict().items()}
    )
    loss_state = {
        f"losses.{name}": value for name, value in detector.distiller.losses.state_dict().items()
    }
    learned = local_metadata.get("distillation", {})
    for name, value in loss_state.items():
        state[f"{prefix}distiller.{name}"] = learned.get(name, value)
