"""What MMDetection's own losses see in one forward of a detector: its maps, and which of its rows
they use.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from kdtasks.detection.detectors import replaced
from kdtasks.detection.forward import Forward, Samples, Seen
from kdtasks.detection.mmdet_detectors import head_of, parts_of


def recorded_methods(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The methods whose calls are recorded while the student runs."""
    methods = {"features": (model, "extract_feat")}
    for part in parts_of(model):
        head = head_of(model, part)
        methods[part] = (model.roi_head, "_bbox_forward") if part == "rois" else (head, "forward")
        if hasattr(head, "get_targets"):
            methods[f"{part}.targets"] = (head, "get_targets")
    return methods


@contextmanager
def labelled_only(head: nn.Module, rows: list[int], names: Sequence[str]) -> Iterator[None]:
    """Give a one-stage head's loss the labelled images only; without any, losses of 0 by these
    names.
    """
    original, calls = head.loss_by_feat, []

    def loss_by_feat(*args: object, **kwargs: object) -> dict[str, Tensor]:
        calls.append(len(args))
        maps = [value for value in args if _is_levels(value)]
        if not maps:
            raise ValueError(
                f"unlabelled images need a head that gives maps (B, channels, H, W) for each "
                f"level, got {type(head).__name__}"
            )
        count = len(maps[0][0])
        if not rows:
            zero = sum(level[:0].sum() for levels in maps for level in levels)
            return dict.fromkeys(names, zero)
        inputs = [_rows_of(value, rows, count) for value in args]
        return original(
            *inputs, **{key: _rows_of(value, rows, count) for key, value in kwargs.items()}
        )

    with replaced(head, "loss_by_feat", loss_by_feat):
        yield
    if not calls:
        raise ValueError(
            f"unlabelled images need a head whose loss is computed in loss_by_feat, got "
            f"{type(head).__name__}"
        )


def _is_levels(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(level, Tensor) and level.dim() == 4 for level in value)
    )


def _rows_of(value: object, rows: list[int], count: int) -> object:
    """Some images of maps, level by level, or of a list with an entry for each image."""
    if _is_levels(value):
        return [level[rows] for level in value]
    if isinstance(value, list | tuple) and len(value) == count:
        return [value[i] for i in rows]
    return value


class _MMDetForward:
    """The tensors of a detector's parts; ``output(part)`` is what its head gave."""

    model: nn.Module
    output: Callable[[str], object]

    def logits(self, part: str) -> Tensor:
        """Class logits, those of all levels in one tensor."""
        if part == "rois":
            return self.output(part)["cls_score"]
        logits = _flat(self.output(part), head_of(self.model, part), 0)
        return logits.flatten(0, 1) if part == "rpn" else logits

    def deltas(self, part: str) -> Tensor:
        """Encoded boxes, those of all levels in one tensor."""
        head = head_of(self.model, part)
        if part == "rois":
            deltas = self.output(part)["bbox_pred"]
            return deltas.unflatten(1, (1 if head.reg_class_agnostic else head.num_classes, -1))
        deltas = _flat(self.output(part), head, 1)
        return deltas.flatten(0, 1) if part == "rpn" else deltas

    def background(self, part: str) -> str | None:
        """Which column mmdet's head has for it."""
        return background_of(head_of(self.model, part), part)


class TeacherForward(_MMDetForward, Forward):
    """Of those parts of a teacher that ran."""

    def __init__(self, features: Sequence[Tensor], outputs: Mapping[str, object], model: nn.Module):
        self.features = {str(level): feature for level, feature in enumerate(features)}
        self.output, self.model = outputs.__getitem__, model


class StudentForward(_MMDetForward, Seen):
    """From the recorded calls of one forward.

    Args:
        calls: as :func:`record_calls` gives them, by the names of :func:`recorded_methods`.
        rows: the images that its own losses saw; None: all.
    """

    def __init__(
        self, calls: Mapping[str, list], model: nn.Module, batch_size: int, rows: list[int] | None
    ):
        self.calls, self.model, self.batch_size, self.rows = calls, model, batch_size, rows

    @property
    def features(self) -> dict[str, Tensor]:
        """What the neck gave, level by level."""
        levels = _result(self.calls, "features")
        return {str(level): feature for level, feature in enumerate(levels)}

    def output(self, part: str) -> object:
        """What a head returned, as mmdet has it."""
        return _result(self.calls, part)

    def deltas(self, part: str) -> Tensor:
        """Encoded boxes; ValueError where the head's targets are boxes that are not encoded."""
        if part != "anchors":
            _check_encoded(part, head_of(self.model, part))
        return super().deltas(part)

    def valid(self) -> Tensor:
        """The anchors that the head's own targets count."""
        return self.samples("anchors").valid

    def find_samples(self, part: str) -> Samples:
        """The rows of a head's own targets."""
        head = head_of(self.model, part)
        if part == "anchors":
            maps, boxes = _maps(self.output(part), head)
            sizes = [level[0].numel() // head.cls_out_channels for level in maps]
            targets = [result for _, result in self.calls.get("anchors.targets", [])]
            samples = _AnchorSamples(
                targets, head, sizes, self.batch_size, self.rows, maps[0].device
            )
            anchors = maps[0].shape[1] // head.cls_out_channels
            samples.numbers = boxes[0].shape[1] // anchors
            return samples
        return {"rpn": _RPNSamples, "rois": _RoISamples}[part](self.calls, head)


class _AnchorSamples(Samples):
    """The anchors of a one-stage head, as its ``get_targets`` assigned them.

    Args:
        results: what ``get_targets`` gave, once or never.
        head: the one-stage head.
        sizes: the anchors of each level.
        count: how many images the batch has.
        rows: the images that were assigned; None: all.

    Attributes:
        numbers: what the head gives for each box.
    """

    numbers: int

    def __init__(
        self,
        results: Sequence[Sequence],
        head: nn.Module,
        sizes: Sequence[int],
        count: int,
        rows: list[int] | None,
        device: torch.device,
    ):
        self.results, self.head, self.sizes = results, head, sizes
        self.batch_size, self.rows, self.device = count, rows, device

    @cached_property
    def valid(self) -> Tensor:
        """bool (B, A): where the label weight is not 0: the list that follows the (whole-numbered)
        labels, if one has their shapes.
        """
        for labels, weights in self._candidates(itertools.pairwise):
            if [x.shape for x in labels] == [x.shape for x in weights]:
                values = self._by_image(weights)
                if values is not None:
                    return self._of_batch(values != 0, True)
        shape = self.batch_size, sum(self.sizes)
        return torch.ones(shape, dtype=torch.bool, device=self.device)

    @cached_property
    def positive(self) -> Tensor:
        labels = self._assigned[0]
        return self._of_batch(_foreground(labels, self.head), False).flatten().nonzero()[:, 0]

    @cached_property
    def target(self) -> Tensor:
        _check_encoded("anchors", self.head)
        if self.numbers != 4:
            raise ValueError(
                f"anchors: the student's {type(self.head).__name__} gives {self.numbers} numbers "
                "for a box, expected 4 deltas"
            )
        labels, boxes = self._assigned
        # the images come in the order of the batch
        return boxes[_foreground(labels, self.head)]

    @property
    def count(self) -> int:
        return len(self.positive)

    @cached_property
    def _assigned(self) -> tuple[Tensor, Tensor]:
        """Of the assigned images: (b, A) labels, and (b, A, 4) boxes."""
        total = sum(self.sizes)
        if self.rows == []:
            labels = torch.full((0, total), self.head.num_classes, device=self.device)
            return labels, torch.zeros(0, total, 4, device=self.device)
        for labels, boxes in self._candidates(lambda lists: itertools.combinations(lists, 2)):
            if [(*x.shape, 4) for x in labels] == [x.shape for x in boxes]:
                values = self._by_image(labels)
                if values is not None:
                    return values, self._by_image(boxes, 4)
        raise ValueError(
            f"anchors: the student's {type(self.head).__name__} assigns no boxes to anchors that "
            "could be told; take 'student.box_deltas' of it"
        )

    def _candidates(self, pairs: Callable) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Lists of whole-numbered tensors, which are labels, each with one that follows it."""
        for result in self.results:
            for labels, followers in pairs([entry for entry in result if _is_tensors(entry)]):
                if not labels[0].is_floating_point():
                    yield labels, followers

    def _by_image(self, values: Sequence[Tensor], *last: int) -> Tensor | None:
        """(b, A, *last) of a tensor for each level or for each image; None if it is neither."""
        images = self.batch_size if self.rows is None else len(self.rows)
        anchors = [value.numel() // math.prod(last) for value in values]
        if anchors == [images * n for n in self.sizes]:
            return torch.cat([value.reshape(images, -1, *last) for value in values], 1)
        if anchors == [sum(self.sizes)] * images:
            return torch.stack([value.reshape(-1, *last) for value in values])
        return None

    def _of_batch(self, values: Tensor, default: bool) -> Tensor:
        """(b, A) of the assigned images -> (B, A)."""
        if self.rows is None:
            return values
        batch_values = values.new_full((self.batch_size, sum(self.sizes)), default)
        batch_values[self.rows] = values
        return batch_values


class _RPNSamples(Samples):
    """The anchors that the RPN sampled, as its ``get_targets`` says."""

    def __init__(self, calls: Mapping[str, list], head: nn.Module):
        targets = _result(calls, "rpn.targets")
        self.labels, self.weights, self.targets, _, self.count = targets[:5]
        self.head = head

    @cached_property
    def sampled(self) -> Tensor:
        return (torch.cat(self.weights, 1) > 0).flatten().nonzero()[:, 0]

    @cached_property
    def positive(self) -> Tensor:
        return _foreground(torch.cat(self.labels, 1), self.head).flatten().nonzero()[:, 0]

    @property
    def target(self) -> Tensor:
        _check_encoded("rpn", self.head)
        return torch.cat(self.targets, 1).flatten(0, 1)[self.positive]


class _RoISamples(Samples):
    """The proposals that the RoI head saw, and what its ``get_targets`` says of them."""

    def __init__(self, calls: Mapping[str, list], head: nn.Module):
        self.calls, self.head = calls, head
        self.boxes = calls["rois"][0][0][1]

    @property
    def label(self) -> Tensor:
        return _result(self.calls, "rois.targets")[0]

    @property
    def count(self) -> int:
        return len(self.label)

    @cached_property
    def positive(self) -> Tensor:
        return _foreground(self.label, self.head).nonzero()[:, 0]

    @property
    def classes(self) -> Tensor:
        return self.label[self.positive]

    @property
    def target(self) -> Tensor:
        _check_encoded("rois", self.head)
        return _result(self.calls, "rois.targets")[2][self.positive]


def _is_tensors(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(entry, Tensor) for entry in value)
    )


def _check_encoded(part: str, head: nn.Module) -> None:
    if getattr(head, "reg_decoded_bbox", False):
        raise ValueError(
            f"{part}: the student's head compares decoded boxes (reg_decoded_bbox=True), no deltas"
        )


def background_of(head: nn.Module, part: str) -> str | None:
    """mmdet's background, where there is one, is the last class."""
    return "last" if part == "rois" or head.cls_out_channels > head.num_classes else None


def _result(calls: Mapping[str, list], name: str) -> object:
    """What the one recorded call gave."""
    records = calls.get(name, [])
    if len(records) != 1:
        raise ValueError(
            f"the student's {name} ran {len(records)} times in one forward, expected once: it "
            "cannot be told which of its tensors are meant"
        )
    return records[0][1]


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


def sum_loss(value: Tensor | Sequence[Tensor]) -> Tensor:
    """A loss as mmengine's ``parse_losses`` reads it: the mean, summed over a list."""
    return value.mean() if isinstance(value, Tensor) else sum(level.mean() for level in value)
