"""Corrupted test images: what kornia gives for each alone, the same in every batch; targets are as
they were.
"""

import pytest
import torch
from torch import nn

from kdtasks.engine.loader import Loader
from kdtasks.images.arrays import ImageArrays
from kdtasks.images.corruption import corrupted

kornia = pytest.importorskip("kornia.augmentation", reason="needs kdtasks[augment]")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def loader(batch_size=5, **options):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 16, 20), dtype=torch.uint8, generator=generator)
    data = ImageArrays(images, torch.arange(12) % 4, "abcd", MEAN, STD)
    return Loader(data, batch_size, shuffle=False, **options)


def images_of(batches):
    return torch.cat([batch["input"] for batch in batches])


def test_each_image_is_what_kornia_makes_of_it_alone():
    found = corrupted(loader(), None, (MEAN, STD))
    assert list(found) == ["blur", "noise", "darker", "brighter", "jpeg"]
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    slow = {
        "blur": kornia.RandomGaussianBlur((5, 5), (1.0, 1.0), p=1.0),
        "darker": lambda x: (x - 0.3).clamp(0, 1),
        "brighter": lambda x: (x + 0.3).clamp(0, 1),
        "jpeg": kornia.RandomJPEG((20.0, 20.0), p=1.0),
    }
    raw = loader().dataset.images.float() / 255
    for name, transform in slow.items():
        got = images_of(found[name][1])
        for image, one in zip(raw, got):
            want = (transform(image[None]).double()[0] - mean) / std
            assert torch.allclose(one.double(), want, atol=2e-5)


def test_noise_has_its_strength_and_is_each_samples_own_whatever_the_batch():
    chosen = {"noise": kornia.RandomGaussianNoise(std=0.05, p=1.0)}
    text, whole = corrupted(loader(12), chosen, (MEAN, STD))["noise"]
    assert "0.05" in text
    noisy = images_of(whole)
    assert torch.equal(noisy, images_of(corrupted(loader(1), chosen, (MEAN, STD))["noise"][1]))
    std = torch.tensor(STD).view(3, 1, 1)
    plain = loader().dataset.images.float() / 255
    inside = (plain > 0.2) & (plain < 0.8)
    added = (noisy - images_of(loader())) * std
    assert added[inside].std() == pytest.approx(0.05, rel=0.1)
    assert (added[0] - added[1])[inside[0] & inside[1]].abs().mean() > 0.02
    for one, other in zip(whole, loader(12)):
        assert torch.equal(one["target"], other["target"]) and len(whole) == 1


def test_a_list_of_images_and_the_layout_of_their_memory():
    class Boxes:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            image = torch.full((3, 8 + i, 9), 0.5)
            return {"input": image, "target": {"boxes": torch.tensor([[0.0, 1.0, 2.0, 3.0]])}}

    def collate(samples):
        return {key: [sample[key] for sample in samples] for key in samples[0]}

    boxes = Loader(Boxes(), 3, shuffle=False, collate=collate)
    (batch,) = corrupted(boxes, None, None)["darker"][1]
    assert [tuple(image.shape) for image in batch["input"]] == [(3, 8, 9), (3, 9, 9), (3, 10, 9)]
    assert all(torch.allclose(image, torch.tensor(0.2)) for image in batch["input"])
    assert batch["target"][2]["boxes"].tolist() == [[0, 1, 2, 3]]
    last = next(iter(corrupted(loader(channels_last=True), None, (MEAN, STD))["darker"][1]))
    assert last["input"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "transform, normalization, message",
    [
        (kornia.RandomHorizontalFlip(p=1.0), (MEAN, STD), "flip: RandomHorizontalFlip moves pix"),
        (nn.Identity(), (MEAN, STD), "expected a 2D transform"),
        (kornia.RandomBoxBlur(p=1.0), None, "says no mean and std: expected images in"),
    ],
)
def test_what_cannot_be_done_is_said(transform, normalization, message):
    with pytest.raises((ValueError, TypeError), match=message):
        images_of(corrupted(loader(), {"flip": transform}, normalization)["flip"][1])
