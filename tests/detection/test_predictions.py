"""Detections of a folder of images, as a user of tools/test.py gets them."""

import json

import pytest
import torch
from PIL import Image
from small_detectors import retinanet

from kdtasks.detection import trainer


class Two(torch.nn.Module):
    """Finds the left half, as class 2, and the upper half, as class 1 and not so sure, whatever
    there is.
    """

    def forward(self, images):
        boxes = [
            torch.tensor(
                [[0.0, 0, i.shape[2] / 2, i.shape[1]], [0.0, 0, i.shape[2], i.shape[1] / 2]]
            )
            for i in images
        ]
        return [
            {"boxes": b, "labels": torch.tensor([2, 1]), "scores": torch.tensor([0.9, 0.4])}
            for b in boxes
        ]


@pytest.fixture
def folder(tmp_path):
    """Pictures of three sizes, one below, one that cannot be read."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, size in (("a.png", (60, 40)), ("a.jpg", (40, 40)), ("deep/b.bmp", (30, 90))):
        Image.new("RGB", size, (0, 0, 0)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "in"


@pytest.mark.parametrize("size", [None, (32, 64)])
def test_boxes_are_in_pixels_of_the_file_whatever_size_the_model_sees(
    folder, tmp_path, size, capsys
):
    full = {"data": {"test": {} if size is None else {"size": size}}}
    with pytest.warns(UserWarning, match=r"left out: .*broken.png"):
        failed = trainer.predict(
            Two(), full, folder, tmp_path / "out", score=0.3, classes=["disc", "box"]
        )
    assert failed == [str(folder / "broken.png")]
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert found["categories"] == [{"id": 1, "name": "disc"}, {"id": 2, "name": "box"}]
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in found["images"]}
    assert sizes == {"a.png": (60, 40), "a.jpg": (40, 40), "deep/b.bmp": (30, 90)}
    names = {image["id"]: image["file_name"] for image in found["images"]}
    of = {(names[one["image_id"]], one["category_id"]): one for one in found["annotations"]}
    assert (
        len(of) == 6
        and of["a.png", 2]["bbox"] == [0, 0, 30, 40]
        and of["deep/b.bmp", 1]["bbox"] == [0, 0, 30, 45]
    )
    assert of["a.png", 2]["score"] == pytest.approx(0.9) and of["a.png", 2]["area"] == 1200
    drawn = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")
    )
    assert drawn == ["a.jpg.png", "a.png.png", "deep/b.png"]
    with Image.open(tmp_path / "out" / "deep" / "b.png") as picture:
        # the left box's right edge
        assert picture.size == (30, 90) and picture.getpixel((15, 80)) == (0xD5, 0x5E, 0x00)
    assert "6 detections with a score of at least 0.3 in 3 images" in capsys.readouterr().out


def test_what_coco_reads_and_the_score(folder, tmp_path):
    coco = pytest.importorskip(
        "faster_coco_eval", reason="needs faster-coco-eval: pip install 'kdtasks[detection]'"
    )
    (folder / "broken.png").unlink()
    assert trainer.predict(Two(), {"data": {"test": {}}}, folder, tmp_path / "out", score=0.5) == []
    known = coco.COCO(str(tmp_path / "out" / "detections.json"))
    assert len(known.getAnnIds()) == 3 and [one["name"] for one in known.loadCats([2])] == [
        "class_2"
    ]


def test_a_real_detector_finds_nothing_and_says_so(folder, tmp_path, capsys):
    (folder / "broken.png").unlink()
    trainer.predict(
        retinanet().eval(),
        {"data": {"test": {}}},
        folder,
        tmp_path / "out",
        classes=["x", "y", "z"],
    )
    assert json.loads((tmp_path / "out" / "detections.json").read_text())["annotations"] == []
    assert "0 detections" in capsys.readouterr().out


def test_what_cannot_be(folder, tmp_path):
    with pytest.raises(ValueError, match="expected 0 to 1"):
        trainer.predict(Two(), {"data": {"test": {}}}, folder, tmp_path / "out", score=30)
    assert not (tmp_path / "out").exists()
