"""COCO's twelve figures for boxes, and the average precision of each class, by the library
faster-coco-eval.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

FIGURES = (
    "map",
    "map_50",
    "map_75",
    "map_small",
    "map_medium",
    "map_large",
    "mar_1",
    "mar_10",
    "mar_100",
    "mar_small",
    "mar_medium",
    "mar_large",
)


@torch.no_grad()
def detections_of(
    model: nn.Module, loader: Iterable[Mapping]
) -> tuple[list[dict], list[dict | None]]:
    """What ``model``, in eval, finds in each image of ``loader``, and the images' targets; on the
    CPU, one copy a batch.

    Args:
        model: list of images (3,H,W) -> list of ``dict(boxes, labels, scores)``.
        loader: batches have ``input``, and perhaps ``target`` (None for an unlabelled image) and
            ``index``.

    Returns:
        One entry an image in the loader's order: ``dict(boxes (n,4), labels (n,), scores (n,),
        index)``, the index being the image's place in the data set, or in this order if the batches
        do not tell; and the target or None.
    """
    detections, targets = [], []
    for batch in loader:
        images, start = batch["input"], len(detections)
        index = batch["index"].tolist() if "index" in batch else range(start, start + len(images))
        for answer, place in zip(_on_cpu(model(images)), index):
            detections.append({**answer, "index": place})
        batch_targets = batch.get("target") or [None] * len(images)
        targets += [
            None if target is None else {key: value.cpu() for key, value in target.items()}
            for target in batch_targets
        ]
    return detections, targets


def _on_cpu(answers: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What a model found in each image of a batch, brought to the CPU in one copy."""
    rows = []
    for answer in answers:
        has_class = answer["labels"] > 0  # 0 is no class
        columns = [answer["boxes"], answer["scores"][:, None], answer["labels"][:, None]]
        rows.append(torch.cat([column[has_class].float() for column in columns], 1))
    parts = torch.cat(rows).cpu().split([len(part) for part in rows])  # (Σn, 6)
    return [
        {"boxes": part[:, :4], "labels": part[:, 5].long(), "scores": part[:, 4]} for part in parts
    ]


def class_figures(classes: Sequence[str]) -> list[str]:
    """Names of the classes' figures, ``map_`` and the class in lower_snake; ``map_class_<label>``
    where that says nothing or is the name of another figure.
    """
    names = []
    for label, title in enumerate(classes, 1):
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(title))
        name = "map_" + re.sub(r"\W+|_+", "_", words).strip("_").lower()
        names.append(f"map_class_{label}" if name in ("map_", *FIGURES, *names) else name)
    return names


def coco_metrics(
    detections: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor] | None],
    classes: Sequence[str] | None = None,
) -> dict[str, float]:
    """``map``, ``map_50``, ``map_75``, ``map_{small,medium,large}``, ``mar_{1,10,100}``,
    ``mar_{small,medium,large}`` and ``map_<class>`` for each class, in percent; those without
    ground truth of that size or class are left out.

    Sizes are those of the original image: boxes are divided by the target's ``scale``. A crowd is
    neither to be found nor wrong to be found. Images whose target is None are skipped; those
    without boxes count, and what is found there is wrong.

    Args:
        detections: of each image ``boxes`` (n,4) as x1, y1, x2, y2, ``labels`` (n,) from 1 on,
            ``scores`` (n,).
        targets: of each image ``boxes``, ``labels`` and, if there, ``iscrowd`` (n,), ``scale`` (2,)
            in given pixels per original pixel along x and y, and ``area`` (n,) in given pixels,
            which says how large an object is (default: its box).
        classes: names; label k is ``classes[k-1]``. None: the classes are called ``class_<label>``.

    Raises:
        ImportError: faster-coco-eval is not installed.
        ValueError: lengths that differ, labels without a class, boxes, scores or areas that are not
            finite.
    """
    if len(detections) != len(targets):
        raise ValueError(
            f"expected one entry an image, got {len(detections)} detections and "
            f"{len(targets)} targets"
        )
    labelled = [i for i, target in enumerate(targets) if target is not None]
    truth, answers = ([entries[i] for i in labelled] for entries in (targets, detections))
    scales = [_array(t["scale"]) if "scale" in t else (1.0, 1.0) for t in truth]
    scale = np.array(scales).reshape(-1, 2)
    class_count = None if classes is None else len(classes)
    truth = _table("target", labelled, truth, scale, class_count)
    answers = _table("detection", labelled, answers, scale, class_count)
    if classes is None:
        highest = max(truth["label"].max(initial=0), answers["label"].max(initial=0))
        classes = [f"class_{label}" for label in range(1, highest + 1)]
    # (T,R,K,A,M), (T,K,A,M): see there
    precision, recall = _evaluated(truth, answers, len(labelled), len(classes))
    values = [
        precision[..., 0, -1],
        precision[0, ..., 0, -1],
        precision[5, ..., 0, -1],
        *(precision[..., a, -1] for a in (1, 2, 3)),
        *(recall[..., 0, m] for m in (0, 1, 2)),
        *(recall[..., a, -1] for a in (1, 2, 3)),
        *(precision[:, :, k, 0, -1] for k in range(len(classes))),
    ]
    names = [*FIGURES, *class_figures(classes)]
    figures = [(name, value[value > -1]) for name, value in zip(names, values)]
    return {name: 100 * float(value.mean()) for name, value in figures if value.size}


def _table(
    kind: str,
    images: Sequence[int],
    entries: Sequence[Mapping[str, Tensor]],
    scale: np.ndarray,
    class_count: int | None,
) -> dict[str, np.ndarray]:
    """Rows of all images under each other: ``image``, ``label``, ``box`` (x, y, width, height),
    ``area``, and ``score`` or ``iscrowd``; in original pixels.
    """
    column = _Columns(kind, images, entries)
    image = column.image
    corners = column("boxes", (4,)) / np.tile(scale, 2)[image]
    sides = (corners[:, 2:] - corners[:, :2]).clip(min=0)
    label = column("labels").astype(np.int64)
    wrong = (label < 1) | (label > (label.max(initial=0) if class_count is None else class_count))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"the {kind} of image {images[image[row]]} has label {label[row]}; labels "
            "count from 1"
            + ("" if class_count is None else f", and there are {class_count} classes")
        )
    table = {
        "image": image,
        "label": label,
        "box": np.concatenate([corners[:, :2], sides], 1),
        "area": sides.prod(1),
    }
    if kind == "detection":
        return table | {"score": column("scores")}
    # given pixels an original one
    across = scale.prod(1)[image]
    return table | {
        "area": column("area", default=table["area"] * across) / across,
        "iscrowd": column("iscrowd", default=np.zeros(len(label))),
    }


class _Columns:
    """The values of all images under one key, under each other, checked.

    Args:
        kind: what they are of, for messages.
        images: the places of the images in the data set.
        entries: of each image, tensors by key.
    """

    def __init__(self, kind: str, images: Sequence[int], entries: Sequence[Mapping[str, Tensor]]):
        self.kind, self.images, self.entries = kind, images, entries
        self.counts = np.array([len(entry["boxes"]) for entry in entries], dtype=np.int64)
        self.image = np.repeat(np.arange(len(entries)), self.counts)  # of each row

    def __call__(
        self, key: str, width: tuple = (), default: np.ndarray | None = None
    ) -> np.ndarray:
        parts = self._parts(key, default)
        for place, part, n in zip(self.images, parts, self.counts):
            if part.shape != (n, *width) and (n or part.size):
                raise ValueError(
                    f"the {self.kind} of image {place} has {n} boxes, but {key} of shape "
                    f"{part.shape}; expected {(int(n), *width)}"
                )
        empty = np.zeros((0, *width))
        joined = np.concatenate([part.reshape(-1, *width) for part in parts] or [empty])
        bad = ~np.isfinite(joined).all(axis=tuple(range(1, joined.ndim)))
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"the {self.kind} of image {self.images[self.image[row]]} has {key} that are not "
                f"finite: {joined[row].tolist()}"
            )
        return joined

    def _parts(self, key: str, default: np.ndarray | None) -> list[np.ndarray]:
        ends = np.cumsum(self.counts)
        return [
            _array(entry[key]) if key in entry or default is None else default[end - n : end]
            for entry, n, end in zip(self.entries, self.counts, ends)
        ]


def _array(values: object) -> np.ndarray:
    return np.asarray(torch.as_tensor(values).detach().cpu().double())


def _evaluated(
    truth: Mapping, answers: Mapping, images: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T,R,K,A,M) and recall (T,K,A,M) of 10 overlaps, 101 recalls, the classes, 4 sizes
    (all of them first) and at most 1, 10, 100 detections; -1 where there is no ground truth.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster  # slow to import
    except ImportError as error:
        raise ImportError(
            "COCO's metrics need the package faster-coco-eval: pip install 'kdtasks[detection]' "
            f"({error})"
        ) from error

    def coco(table: Mapping, key: str) -> COCO:
        dataset = {
            "images": [{"id": i} for i in range(images)],
            "categories": [{"id": k} for k in range(1, classes + 1)],
            "annotations": _annotations(table, key),
        }
        return COCO(dataset, print_function=_silent)

    if not images or not classes:
        return np.full((10, 101, classes, 4, 3), -1.0), np.full((10, classes, 4, 3), -1.0)
    evaluation = COCOeval_faster(
        coco(truth, "iscrowd"), coco(answers, "score"), "bbox", print_function=_silent
    )
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _annotations(table: Mapping, key: str) -> list[dict]:
    """The rows of a table as COCO has them; ``key`` is the column that only they have."""
    names = {"image_id": "image", "category_id": "label", "bbox": "box", "area": "area", key: key}
    columns = [table[column].tolist() for column in names.values()]
    return [
        {"id": n, "iscrowd": 0, **dict(zip(names, values))}
        for n, values in enumerate(zip(*columns), 1)
    ]


def _silent(*_) -> None:
    """What the library says of its progress is not shown."""
