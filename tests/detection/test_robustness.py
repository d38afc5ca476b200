"""robustness of detectors: rows of the report from any data set that a detection config may have."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_trainer import ADL, DATA, RETINANET, config

from kdtasks.engine import robustness
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.run import Run

pytest.importorskip("kornia.augmentation", reason="needs kdtasks[augment]")
NOISE = {"noise": {"type": "kornia.augmentation.RandomGaussianNoise", "std": 0.5}}
SIZES = ((64, 80), (90, 50), (64, 64), (33, 120))
OBJECT = "<object><name>{0}</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>25</xmax><ymax>25</ymax></bndbox></object>"


class Own:
    """A data set of one's own: pairs, images of several sizes, no mean and std."""

    classes = ("0", "1")

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, i):
        image = torch.rand(3, *SIZES[i], generator=torch.Generator().manual_seed(i))
        boxes = torch.tensor([[5.0, 5.0, 25.0, 25.0]])
        return image * self.scale, {"boxes": boxes, "labels": torch.tensor([1 + i % 2])}

    @staticmethod
    def collate(samples):
        inputs, targets = zip(*samples)
        return {"input": list(inputs), "target": list(targets)}


def written(folder):
    """The same photos, grey ones among them, as COCO's json and as Pascal VOC's folders have them."""
    images, annotations = [], []
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for i, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        photo = Image.fromarray(pixels).convert("L" if i == 1 else "RGB")
        photo.save(folder / "JPEGImages" / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "width": width, "height": height})
        annotations.append({"image_id": i, "category_id": i % 2, "bbox": [5, 5, 20, 20], "id": i})
        text = f"<annotation><size><width>{width}</width><height>{height}</height></size>"
        text += f"{OBJECT.format(i % 2)}</annotation>"
        (folder / "Annotations" / f"{i}.xml").write_text(text)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("0\n1\n2\n3\n")
    named = [{"id": 0, "name": "0"}, {"id": 1, "name": "1"}]
    content = {"images": images, "annotations": annotations, "categories": named}
    (folder / "test.json").write_text(json.dumps(content))


def sets(folder):
    coco = {"type": "kdtasks.detection.data.coco", "images": str(folder / "JPEGImages")}
    voc = {"type": "kdtasks.detection.data.voc", "root": str(folder), "split": "test"}
    few = {"type": "kdtasks.detection.data.few_labels", "images": 4, "dataset": DATA}
    return {
        "coco": {**coco, "annotations": str(folder / "test.json")},
        "coco, one size": {**coco, "annotations": str(folder / "test.json"), "size": (48, 64)},
        "voc": {**voc, "classes": ["0", "1"]},
        "few labels": {**few, "dataset": {**DATA, "train": False, "images": 8}},
        "synthetic": {**DATA, "train": False, "images": 8},
        "own": {"type": f"{__name__}.Own"},
    }


@pytest.mark.parametrize("kind", sets(Path()))
def test_each_kind_of_data_can_be_corrupted(kind, tmp_path):
    written(tmp_path)
    data = {**config()["data"], "test": sets(tmp_path)[kind], "test_batch_size": 3}
    experiment = Experiment(config(data=data, robustness=NOISE))
    robustness.check(experiment)
    loader = experiment.test_loader(experiment.final)
    _, changed = robustness._loaders(experiment, experiment.final, loader)["noise"]
    for plain, other in zip(loader, changed, strict=True):
        assert len(plain["input"]) == len(other["input"])
        for one, image, target in zip(plain["input"], other["input"], other["target"]):
            assert one.shape == image.shape and not torch.equal(one, image)
            assert image.min() >= 0 and image.max() <= 1
            assert target is None or len(target["boxes"])


def test_rows_of_the_results_and_the_report(tmp_path):
    data = {**config()["data"], "test": {"type": f"{__name__}.Own"}, "test_batch_size": 3}
    given = {"robustness": NOISE, "length": {"iterations": 2}, "deployment": False}
    run = Run(
        config(RETINANET, ADL, data=data, **given), tmp_path / "run", device="cpu", quiet=True
    )
    found = run.train()["robustness"]
    assert found["metric"] == "map" and list(found["corruptions"]) == ["none", "noise"]
    for stage, values in found["stages"].items():
        assert values["none"] == run.done[stage]["map"]
    page = (run.work_dir / "report.html").read_text("utf-8")
    assert "<h2>Robustness</h2>" in page and ">noise</td>" in page


def test_images_beyond_their_range_are_named(tmp_path):
    data = {**config()["data"], "test": {"type": f"{__name__}.Own", "scale": 255.0}}
    with pytest.raises(ConfigError, match=r"robustness: the test images lie between .* in \[0,1\]"):
        robustness.check(Experiment(config(data=data, robustness=NOISE)))
