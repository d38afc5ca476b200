"""A folder of images: what a detector finds in them, as COCO's json and as pictures."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtasks.detection.class_colors import class_color
from kdtasks.detection.coco_metrics import detections_of
from kdtasks.images.folder_flags import add_folder_flags
from kdtasks.images.listing import results_of
from kdtasks.images.reading import read_image

if TYPE_CHECKING:
    from PIL.Image import Image


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of tools/test.py that :func:`predict` takes as keyword arguments."""
    add_folder_flags(parser)
    parser.add_argument(
        "--score",
        type=float,
        default=0.3,
        help="of the least sure detection that is written (default: %(default)s)",
    )


def predict(
    model: nn.Module,
    config: dict,
    folder: str | Path,
    out: str | Path,
    score: float = 0.3,
    classes: Sequence[str] | None = None,
) -> list[str]:
    """Writes ``<out>/detections.json``, and each image at any depth below ``folder`` with its boxes
    to its place below ``out``.

    The json has COCO's ``images`` (``id``, ``file_name`` below ``folder``, ``height``, ``width``),
    ``categories`` (``id`` from 1 on, ``name``) and ``annotations`` (``image_id``, ``category_id``,
    ``bbox`` as x, y, width, height in pixels of the upright image, ``score``, ``area``, ``iscrowd``
    0): pycocotools reads it as a data set, and its ``annotations`` as results.

    Args:
        model: in eval; list of images (3,H,W) in [0,1] -> list of ``dict(boxes, labels, scores)``.
        config: of the run that trained it; images are resized to ``data.test``'s ``size`` where it
            has one, as in the test.
        folder: where the images lie.
        out: a folder that is new or empty, and not inside the other.
        score: of the least sure detection that is written.
        classes: names; label k is ``classes[k - 1]``. None: ``class_<label>``.

    Returns:
        The files that are left out.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: ``out`` holds files or lies inside ``folder``; a ``score`` outside of [0, 1].

    Warns:
        UserWarning: a file cannot be read; it is left out.
    """
    from kdtasks.engine.checkpoint import save_json

    if not 0 <= score <= 1:
        raise ValueError(f"score={score} is no probability: expected 0 to 1")
    names, out, size = results_of(folder, out), Path(out), config["data"]["test"].get("size")
    content, failed = _CocoFile(folder, classes), []
    for path, place in names.items():
        try:
            picture = read_image(path)
        # whatever a broken file raises
        except Exception as error:
            warnings.warn(f"left out: {path}: {error}", stacklevel=2)
            failed.append(str(path))
            continue
        detections = _detect(model, picture, size)
        detections = {
            key: value[detections["scores"] >= score] for key, value in detections.items()
        }
        content.add(path, picture, detections)
        place.parent.mkdir(parents=True, exist_ok=True)
        _draw(picture, detections, classes)
        picture.save(place)
    out.mkdir(parents=True, exist_ok=True)
    save_json(content.as_dict(), out / "detections.json")
    print(
        f"{len(content.annotations)} detections with a score of at least {score:g} in "
        f"{len(content.images)} images: {out / 'detections.json'}"
    )
    return failed


class _CocoFile:
    """Detections as COCO's json holds them."""

    def __init__(self, folder: str | Path, classes: Sequence[str] | None):
        self.folder, self.classes = folder, classes
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def add(self, path: Path, picture: "Image", detections: dict[str, Tensor]) -> None:
        image = {
            "id": len(self.images) + 1,
            "file_name": path.relative_to(self.folder).as_posix(),
            "height": picture.height,
            "width": picture.width,
        }
        self.images.append(image)
        rows = zip(
            detections["boxes"].tolist(),
            detections["labels"].tolist(),
            detections["scores"].tolist(),
        )
        for (left, top, right, bottom), label, score in rows:
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": image["id"],
                "category_id": label,
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            self.annotations.append(annotation)

    def as_dict(self) -> dict[str, list]:
        labels = [annotation["category_id"] for annotation in self.annotations]
        highest = max([len(self.classes or ()), *labels])
        categories = [
            {"id": label, "name": _class_name(self.classes, label)}
            for label in range(1, highest + 1)
        ]
        return {"images": self.images, "categories": categories, "annotations": self.annotations}


def _detect(
    model: nn.Module, picture: "Image", size: int | Sequence[int] | None
) -> dict[str, Tensor]:
    """Boxes in pixels of the picture, labels and scores, on the CPU."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    pixels = pil_to_tensor(picture)  # uint8 (3,H,W)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    image, across = pixels.to(device).float() / 255, torch.ones(4)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        across = torch.tensor([pixels.shape[2] / width, pixels.shape[1] / height] * 2)
        image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
    answer = detections_of(model, [{"input": [image]}])[0][0]
    return {
        "boxes": answer["boxes"] * across,
        "labels": answer["labels"],
        "scores": answer["scores"],
    }


def _class_name(classes: Sequence[str] | None, label: int) -> str:
    return str(classes[label - 1]) if classes and label <= len(classes) else f"class_{label}"


def _draw(picture: "Image", detections: dict[str, Tensor], classes: Sequence[str] | None) -> None:
    """Boxes and what they say into a PIL image, the surest on top."""
    from PIL import ImageDraw, ImageFont

    draw, side = ImageDraw.Draw(picture), min(picture.size)
    line, font = max(1, round(side / 250)), ImageFont.load_default(max(10, round(side / 40)))
    for n in detections["scores"].argsort(stable=True).tolist():
        box, label = detections["boxes"][n].tolist(), int(detections["labels"][n])
        color = class_color(label)
        text = f"{_class_name(classes, label)} {float(detections['scores'][n]):.2f}"
        draw.rectangle(box, outline=color, width=line)
        area = draw.textbbox((box[0], box[1]), text, font=font)
        draw.rectangle(area, fill=color)
        draw.text((box[0], box[1]), text, fill="white", font=font)
