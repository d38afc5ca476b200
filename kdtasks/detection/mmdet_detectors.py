"""MMDetection's detectors from inside: their parts and heads, run without changing a number of
what they learn.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdtasks.core.trial import try_out
from kdtasks.detection.detectors import replaced

# px of the one image that tells losses, levels and channels: 3 x 128
TRIAL_SIDE = 384
# the submodule that is the head of each part
HEADS = {"anchors": "bbox_head", "rpn": "rpn_head", "rois": "roi_head"}


def is_labelled(sample: object) -> bool:
    """Whether a data sample has annotations, if of no object."""
    return sample is not None and "gt_instances" in sample and "bboxes" in sample.gt_instances


def with_boxes(sample: object, boxes: Tensor, labels: Tensor) -> object:
    """A data sample of the same image, with nothing else than these boxes."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    result = DetDataSample(metainfo={} if sample is None else sample.metainfo)
    result.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    return result


def kind_of(model: nn.Module, role: str) -> str:
    """``'one-stage'`` or ``'two-stage'``; ValueError for what is neither."""
    if hasattr(model, "extract_feat") and hasattr(model, "data_preprocessor"):
        if hasattr(model, "roi_head"):
            return "two-stage"
        if hasattr(model, "bbox_head"):
            return "one-stage"
    raise ValueError(
        f"{role} is a {type(model).__name__}; expected one of mmdet's one-stage detectors (with a "
        "bbox_head) or two-stage ones (with a roi_head)"
    )


def parts_of(model: nn.Module) -> set[str]:
    """Which parts the detector has; a cascade's several box heads are not supported."""
    return {part for part in HEADS if head_of(model, part) is not None}


def head_of(model: nn.Module, part: str) -> nn.Module | None:
    """The head of a part; None: the detector has none, or a cascade's several."""
    if part != "rois":
        return getattr(model, HEADS[part], None)
    head = getattr(getattr(model, "roi_head", None), "bbox_head", None)
    return None if isinstance(head, nn.ModuleList) else head


def units_of(head: nn.Module) -> tuple:
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


def check_priors(role: str, part: str, ours: nn.Module, theirs: nn.Module) -> None:
    """Strides, and base anchors where both have them."""
    generators = [getattr(head, "prior_generator", None) for head in (ours, theirs)]
    for owner, head, generator in zip(("the student's", f"{role}'s"), (ours, theirs), generators):
        if generator is None:
            raise ValueError(
                f"{part}: {owner} {type(head).__name__} has no prior_generator, so it cannot be "
                "told whether its places are those of the other"
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
            f"{part}: the student's levels have anchors {shapes[0]} at each place, those of "
            f"{role} {shapes[1]}"
        )
    for level, (a, b) in enumerate(zip(*anchors)):
        if not torch.allclose(a, b.to(a)):
            raise ValueError(
                f"{part}: at level {level} the student's anchors are {a.tolist()}, those of "
                f"{role} {b.tolist()}; logits of different anchors cannot be compared"
            )


def _normalisation(preprocessor: nn.Module) -> tuple:
    """Mean, deviation, and whether the channels are turned."""
    mean, std = (
        (preprocessor.mean, preprocessor.std)
        if getattr(preprocessor, "_enable_normalize", False)
        else (0.0, 1.0)
    )
    return mean, std, getattr(preprocessor, "_channel_conversion", False)


def same_normalisation(ours: nn.Module, theirs: nn.Module) -> bool:
    """Of two data_preprocessors; on a GPU it waits."""
    return _plain(_normalisation(ours)) == _plain(_normalisation(theirs))


def _plain(norm: tuple) -> list:
    return [value.tolist() if isinstance(value, Tensor) else value for value in norm]


def renormalized(student: nn.Module, teacher: nn.Module, images: Tensor, samples: list) -> Tensor:
    """The student's images as the teacher's data_preprocessor would have given them: mean,
    deviation, channels, padding.
    """
    mean, std, turned = _normalisation(student)
    other_mean, other_std, other_turned = _normalisation(teacher)
    raw = images * std + mean
    raw = raw.flip(1) if turned != other_turned else raw
    values = ((raw - other_mean) / other_std).to(images)
    for image, sample in zip(values, samples):
        height, width = sample.metainfo["img_shape"][:2]
        image[:, height:], image[:, :, width:] = teacher.pad_value, teacher.pad_value
    return values


# Running one --------------------------------------------------------------------------------------
@contextmanager
def record_calls(owner: nn.Module, method: str) -> Iterator[list]:
    """Calls of a method of this one instance, as ``[(arguments, result), …]``."""
    calls: list = []
    original = getattr(owner, method)

    def call(*args: object, **kwargs: object) -> object:
        result = original(*args, **kwargs)
        calls.append((args, result))
        return result

    with replaced(owner, method, call):
        yield calls


@contextmanager
def set_training(modules: Iterable[nn.Module]) -> Iterator[None]:
    """The modules' own ``training`` set, not their children's, for a while."""
    modes = [(module, module.training) for module in modules]
    try:
        for module, _ in modes:
            module.training = True
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def losses_of(model: nn.Module, images: Tensor, samples: Sequence) -> dict:
    """What a detector gives in mode='loss', in eval too: many heads need ``training`` for it;
    BatchNorm, dropout lie deeper.
    """
    with set_training([model, *model.children()]):
        return model(images, samples, mode="loss")


def maps_of(model: nn.Module, part: str, features: Sequence[Tensor]) -> object:
    """What a head gives for some features, as it does in training: FCOS scales its boxes by the
    stride in eval only.
    """
    head = head_of(model, part)
    with set_training([head]):
        return head(features)


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


def count_levels(model: nn.Module) -> int:
    """How many levels its neck gives."""
    with try_out(model):
        return len(model.extract_feat(example_batch(model)["input"]))


def try_student(student: nn.Module) -> tuple[int, list[str]]:
    """How many levels its neck gives, and the names of what it gives in mode='loss'."""
    batch = example_batch(student)
    with try_out(student), record_calls(student, "extract_feat") as calls:
        try:
            names = list(losses_of(student, batch["input"], batch["target"]))
        except Exception as error:
            raise ValueError(
                f"{type(student).__name__} gives no losses for a trial image of "
                f"{TRIAL_SIDE} x {TRIAL_SIDE} px: {error!r}"
            ) from error
    return len(calls[0][1]) if calls else 0, names
