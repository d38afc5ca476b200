"""Low-resolution images by steps of one's own: equal to the steps one by one, the same for a sample
whatever the batch and the device, and the target is the HR patch.
"""

import numpy as np
import pytest
import torch

from kdtasks.super_resolution import imresize
from kdtasks.super_resolution.data import Images, Patches, patch_shapes
from kdtasks.super_resolution.degradation import degraded
from kdtasks.super_resolution.metrics import luma
from kdtasks.super_resolution.pairs import Pairs

kornia = pytest.importorskip("kornia.augmentation", reason="needs kdtasks[augment]")
INDEX, VIEW = torch.tensor([3, 0, 5, 3]), torch.tensor([0, 1, 2, 7])


@pytest.fixture(scope="module")
def pairs():
    draw = np.random.default_rng(0)
    return Pairs([draw.integers(0, 256, (40 + 4 * k, 44, 3), np.uint8) for k in range(3)])


def steps():
    return [
        kornia.RandomGaussianBlur((5, 5), (0.3, 2.0), p=1.0),
        "downscale",
        kornia.RandomGaussianNoise(std=0.05, p=1.0),
        kornia.RandomJPEG((30.0, 80.0), p=0.5),
    ]


def test_steps_without_chance_are_the_steps_one_by_one(pairs):
    patches = Patches(pairs, 8, repeat=4)
    blur = kornia.RandomGaussianBlur((5, 5), (1.0, 1.0), p=1.0)
    jpeg = kornia.RandomJPEG((50.0, 50.0), p=1.0)
    plain = patches.batch(INDEX, VIEW, 1)
    for order in ([blur, "downscale", jpeg], [jpeg, "downscale", blur], ["downscale"]):
        found = degraded(patches, order).batch(INDEX, VIEW, 1)
        assert torch.equal(found["target"], plain["target"])
        for target, input in zip(found["target"], found["input"]):
            want = target[None]
            for step in order:
                want = imresize(want, 0.5) if step == "downscale" else step(want)
                want = want.clamp(0, 1)
            assert torch.allclose(input, (want[0] * 255).round() / 255, atol=1.01 / 255)
            assert ((input * 255).round() / 255 - input).abs().max() < 1e-6


def test_a_view_is_of_seed_index_and_view_alone(pairs):
    data = degraded(Patches(pairs, 8, repeat=4), steps())
    whole = data.batch(INDEX, VIEW, 1)["input"]
    assert whole.shape == (4, 3, 8, 8) and len(data) == 12
    back = data.batch(INDEX.flip(0), VIEW.flip(0), 1)["input"].flip(0)
    assert torch.allclose(whole, back, atol=1.01 / 255)
    for k in range(4):
        alone = data.batch(INDEX[k : k + 1], VIEW[k : k + 1], 1)["input"]
        assert torch.allclose(whole[k], alone[0], atol=1.01 / 255)
    # another view, another seed
    assert not torch.allclose(whole[0], whole[3], atol=0.1)
    other = data.batch(INDEX, VIEW, 2)
    assert not torch.allclose(whole, other["input"], atol=0.1)


def test_test_images_are_the_same_always_and_as_large_as_they_are(pairs):
    one, other = (degraded(Images(pairs), steps(), color="y") for _ in range(2))
    for k in (2, 0, 1):
        torch.manual_seed(k)
        sample, again = one[k], other[k]
        assert torch.equal(sample["input"], again["input"]) and sample["scale"] == 2
        assert sample["input"].shape == (1, 20 + 2 * k, 22)
        assert torch.equal(sample["target"], luma(Images(pairs)[k]["target"][None])[0])


def test_shapes_are_known_without_reading():
    spec = {"type": "x", "color": "y", "dataset": {"type": "y", "scale": 3, "patch": 5}}
    assert patch_shapes(**spec) == ((1, 5, 5), (1, 15, 15))


def test_what_cannot_be_degraded_is_said(pairs):
    patches = Patches(pairs, 8)
    with pytest.raises(ValueError, match="'downscale' once, got it 0 times"):
        degraded(patches, steps()[:1])
    with pytest.raises(ValueError, match="'downscale' once, got it 2 times"):
        degraded(patches, ["downscale", "downscale"])
    with pytest.raises(TypeError, match="expected a 2D transform"):
        degraded(patches, ["downscal", "downscale"])
    with pytest.raises(ValueError, match=r"steps\[1\]: RandomVerticalFlip moves pixels"):
        degraded(patches, ["downscale", kornia.RandomVerticalFlip()])
    with pytest.raises(ValueError, match="color must be 'rgb' or 'y', got 'luma'"):
        degraded(patches, ["downscale"], color="luma")
    image = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="degraded needs RGB images"):
        degraded(Images(Pairs([image], color="y")), ["downscale"])
    with pytest.raises(ValueError, match="with LR images"):
        degraded(Images(Pairs([image], [image[:8, :8]])), ["downscale"])
