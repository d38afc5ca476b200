"""Sets without labels, banks and queries, and folders of all kinds of files."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdtasks.engine.loader import Loader
from kdtasks.images.arrays import ImageArrays
from kdtasks.representation.data import bank_and_queries, split, unlabelled_folder, without_labels


def images(n, classes=3, size=4, first=0, **more):
    pixels = torch.arange(first, first + n, dtype=torch.uint8)[:, None, None, None]
    pixels = pixels.expand(n, 3, size, size)
    target = torch.arange(n) % classes
    return ImageArrays(pixels.contiguous(), target, [f"c{k}" for k in range(classes)], **more)


def seen(loader):
    """The pixels of each image in an epoch."""
    return [
        int(value)
        for batch in loader.epoch(0)
        for value in (batch["input"][:, 0, 0, 0] * 255).round()
    ]


def test_what_has_no_labels_is_all_learned_from():
    hidden = without_labels(ImageArrays(images(8).images))
    loader = Loader(hidden, 4)
    assert sorted(seen(loader)) == list(range(8))
    assert "target" not in next(iter(loader)) and not hasattr(hidden, "target")
    assert hidden.path(3) == "image 3"


def test_a_map_style_set_without_labels():
    pairs = [(torch.full((3, 2, 2), k / 255), k) for k in range(6)]
    hidden = without_labels(pairs)
    batch = next(iter(Loader(hidden, 3)))
    assert batch["input"].shape == (3, 3, 2, 2) and batch.get("target") is None


def test_bank_first_then_queries_in_any_order_of_asking():
    both = bank_and_queries(images(6), images(4, first=6))
    assert (both.bank, len(both)) == (6, 10)
    assert seen(Loader(both, 4, shuffle=False)) == [*range(10)]
    index = torch.tensor([9, 0, 6, 5])
    batch = both.batch(index, torch.zeros(4, dtype=torch.long), 0)
    assert (batch["input"][:, 0, 0, 0] * 255).round().tolist() == [9, 0, 6, 5]
    assert batch["target"].tolist() == [0, 0, 0, 2]
    part, place = both.part_of(7)
    assert part is both.parts[1] and place == 1 and both.part_of(5)[1] == 5


def test_queries_have_the_classes_of_the_bank():
    other = images(3, first=3)
    other = ImageArrays(other.images, torch.tensor([0, 1, 2]), ["c2", "c0", "c1"])
    assert bank_and_queries(images(3), other).target.tolist() == [0, 1, 2, 2, 0, 1]


def test_a_split_takes_its_share_of_each_class():
    both = split(images(30), queries=0.3)
    assert both.bank == 21 and both.target[both.bank :].bincount().tolist() == [3, 3, 3]
    assert sorted(seen(Loader(both, 5, shuffle=False))) == list(range(30))
    assert torch.equal(split(images(30), 0.3).target, both.target)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bank_and_queries(images(3), [1]), TypeError, "queries: expected images in memory"),
        (
            lambda: bank_and_queries(ImageArrays(images(3).images), images(3)),
            ValueError,
            "bank: .*labelled",
        ),
        (lambda: bank_and_queries(images(3), images(3, size=5)), ValueError, "4, 4.*5, 5"),
        (
            lambda: bank_and_queries(images(3), images(3, mean=[0.5] * 3)),
            ValueError,
            r"mean \(0.0.* the queries with \(0.5",
        ),
        (
            lambda: bank_and_queries(images(2, paths=["a", "b"]), images(2, paths=["b", "c"])),
            ValueError,
            "1 files are in the bank and queries too, as b",
        ),
        (lambda: split(images(4)), ValueError, "'c1' has one image"),
        (lambda: split(images(9), queries=1.0), ValueError, "share between 0 and 1"),
    ],
)
def test_what_is_no_test_of_a_representation(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_queries_that_find_their_own_copy_are_warned_of():
    with pytest.warns(UserWarning, match=r"2 of 3 queries are .*too.*\(image 0 as image 4\)"):
        bank_and_queries(images(6), images(9).subset(torch.tensor([4, 5, 8])))


def test_a_folder_of_mixed_broken_tiny_and_huge_pictures(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "wide.jpg")
    Image.new("L", (1, 1), 128).save(tmp_path / "tiny.png")
    Image.new("RGBA", (9, 30), (0, 0, 255, 0)).save(tmp_path / "deep" / "clear.webp")
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "deep" / "16.tif")
    (tmp_path / "notes.txt").write_text("no image")
    data = unlabelled_folder(tmp_path, size=8)
    assert len(data) == 4 and data.images.shape == (4, 3, 8, 8)
    # sorted by path: 16 bits are white, what is clear lies on white, tiny is enlarged
    assert data.images[:3, 0, 4, 4].tolist() == [255, 255, 128]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("L", (300, 300)).save(tmp_path / "huge.png")
    monkeypatch.setenv("KDTASKS_MAX_PIXELS", "10000")
    with pytest.raises(RuntimeError, match="broken.png"):
        unlabelled_folder(tmp_path, size=8)
    with pytest.warns(UserWarning, match="left out 2 unreadable of 6"):
        data = unlabelled_folder(tmp_path, size=8, skip_bad=True)
    assert len(data) == 4 and sorted(path.rpartition("/")[2] for path in data.unreadable) == [
        "broken.png",
        "huge.png",
    ]
    with pytest.raises(FileNotFoundError, match="no data set"):
        unlabelled_folder(tmp_path / "none")
