"""Photos and crops of boxes, as sets of images: which pixels they are, and what is no such set."""

import pytest
import torch

from kdtasks.detection.data import DetectionData, box_crops, photos

# the left edge of each object, which is a square of 8 pixels
BOXES = {"a.png": [(4, 1), (20, 2)], "b.png": [(0, 2)], "c.png": []}
COLOURS = {1: 250, 2: 100}


def blood(size=(24, 40), **options) -> DetectionData:
    """Grey photos with a square of its class's colour in each box."""
    images, targets = [], []
    for boxes in BOXES.values():
        image = torch.full((3, *size), 20, dtype=torch.uint8)
        for left, label in boxes:
            image[:, 8:16, left : left + 8] = COLOURS[label]
        images.append(image)
        corners = [(left, 8, left + 8, 16) for left, _ in boxes]
        targets.append({"boxes": corners, "labels": [label for _, label in boxes]})
    names = ["red", "white"]
    return DetectionData(list(BOXES), targets, names, images=images, **{"augment": None, **options})


def test_photos_are_the_images_without_labels():
    found = photos(blood(), mean=[0.5] * 3, std=[0.1] * 3)
    assert found.images.shape == (3, 3, 24, 40) and torch.equal(found.images[0], blood().memory[0])
    assert (found.target == -100).all() and [str(path) for path in found.paths] == list(BOXES)


def test_a_crop_shows_its_box():
    found = box_crops(blood(), size=8, context=1.0)
    assert found.target.tolist() == [0, 1, 1] and found.classes == ["red", "white"]
    for image, colour in zip(found.images, (250, 100, 100)):
        assert (image == colour).all()


def test_a_square_beyond_the_edge_is_moved_inside():
    wide = box_crops(blood(), size=16, context=2.0)
    # of b.png: columns 0 to 15, rows 4 to 19
    assert torch.equal(wide.images[2], blood().memory[1][:, 4:20, 0:16])
    whole = box_crops(blood(), size=24, context=9.0)
    assert torch.equal(whole.images[2], blood().memory[1][:, :, 0:24])


def test_so_many_of_each_class():
    assert box_crops(blood(), per_class=1).target.tolist() == [0, 1]


def test_crowds_are_left_out():
    data = blood(train=False)
    data.crowd[1] = 1
    assert box_crops(data).target.tolist() == [0, 1]


def test_what_is_no_such_set():
    with pytest.raises(ValueError, match="expected detection data with augment=None"):
        photos(blood(augment="flip"))
    with pytest.raises(ValueError, match="expected detection data with augment=None"):
        box_crops(blood(augment="flip"))
    with pytest.raises(ValueError, match="size and a context above 0, got 0"):
        box_crops(blood(), size=0)
    mixed = DetectionData(
        ["a", "b"],
        [None, None],
        ["red"],
        images=[torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(3, 6, 5, dtype=torch.uint8)],
        augment=None,
    )
    with pytest.raises(ValueError, match=r"images of one size, got \(3, 4, 5\) and \(3, 6, 5\)"):
        photos(mixed)
    with pytest.raises(ValueError, match="none of 2 images has a box"):
        box_crops(mixed)
