"""kornia's transforms: each sample's view its own whatever the batch, pixels and places against
what they must be, and what is refused.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from kdtasks.core.views import view_hash
from kdtasks.engine.loader import Loader
from kdtasks.images.arrays import ImageArrays
from kdtasks.images.augmentation import KorniaAugmentation
from kdtasks.images.files import ImageFiles
from kdtasks.images.folders import image_folder
from kdtasks.images.sets import torchvision_set
from kdtasks.images.subsets import concat

K = pytest.importorskip(
    "kornia.augmentation", reason="needs kornia: pip install 'kdtasks[augment]'"
)
auto = pytest.importorskip("kornia.augmentation.auto")


def some_images(n=24, size=(12, 10), channels=3, **settings):
    images = torch.randint(
        0, 256, (n, channels, *size), generator=torch.Generator().manual_seed(0)
    ).byte()
    return ImageArrays(images, torch.arange(n) % 4, **settings)


def view(dataset, index, view=0, seed=0):
    index = torch.as_tensor(index)
    return dataset.batch(index, torch.full_like(index, view), seed)["input"]


RECIPES = {
    "crop": (lambda: [K.RandomCrop((12, 10), padding=2), K.RandomHorizontalFlip()], "batch batch"),
    "resized crop": (lambda: [K.RandomResizedCrop((12, 10))], "batch"),
    "erasing": (lambda: [K.RandomErasing()], "batch"),
    "rotation": (lambda: [K.RandomRotation(20.0), K.RandomPerspective()], "batch batch"),
    "blur": (lambda: [K.RandomGaussianBlur((3, 3), (0.1, 2.0))], "batch"),
    "noise": (lambda: [K.RandomGaussianNoise(p=1.0)], "batch"),
    "a fixed one": (lambda: [K.Resize((8, 8)), K.RandomInvert(), K.CenterCrop(6)], "batch " * 3),
    "color": (lambda: [K.ColorJitter(0.3, 0.3, 0.3, 0.1, p=1.0)], "groups"),
    "a chance of the batch": (lambda: [K.RandomCrop((12, 10), padding=2, p=0.5)], "groups"),
    "rand": (lambda: [auto.RandAugment(2, 10)], "groups"),
    "trivial": (lambda: [auto.TrivialAugment()], "groups"),
    "auto": (lambda: [auto.AutoAugment()], "groups"),
    "some of": (
        lambda: [
            K.ImageSequential(
                K.RandomInvert(),
                K.RandomRotation(20.0),
                K.ImageSequential(K.RandomVerticalFlip(), random_apply=1),
                random_apply=(1, 2),
            )
        ],
        "groups",
    ),
    "in a sequence": (
        lambda: [K.ImageSequential(K.RandomInvert(), K.ImageSequential(K.RandomVerticalFlip()))],
        "batch batch",
    ),
    "one kernel a batch": (lambda: [K.RandomMotionBlur((3, 7), 35.0, 0.5, p=1.0)], "alone"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_view_does_not_depend_on_its_batch(recipe):
    make, ways = RECIPES[recipe]
    dataset = some_images(augment=make())
    assert dataset.augment.ways == ways.split()
    random_state = torch.get_rng_state()
    whole = view(dataset, range(24), 3, seed=5)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert whole.isfinite().all() and whole.dtype == torch.float32
    alone = torch.cat([view(dataset, [i], 3, seed=5) for i in range(24)])
    assert torch.equal(whole, alone)
    some = [20, 3, 3, 11, 0]
    assert torch.equal(view(dataset, some, 3, seed=5), whole[some])
    # made anew, copied, sent to another process
    for other in (some_images(augment=make()), pickle.loads(pickle.dumps(dataset))):
        assert torch.equal(view(other, some, 3, seed=5), whole[some])
    for changed in (view(dataset, range(24), 4, seed=5), view(dataset, range(24), 3, seed=6)):
        differs = (changed != whole).flatten(1).any(1)
        assert differs.float().mean() > 0.2
    # the same image at another place
    again = ImageArrays(dataset.images[[7] * 24], augment=make())
    assert len(view(again, range(24)).unique(dim=0)) > 1


def test_transforms_of_a_list_draw_different_numbers():
    twice = view(some_images(augment=[K.RandomInvert(), K.RandomInvert()]), range(24))
    plain = view(some_images(), range(24))
    assert not torch.allclose(twice, plain) and torch.isclose(twice, plain).flatten(1).all(1).any()


def test_pixels_are_those_of_the_transform_then_normalized():
    mean, std = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]).view(2, 3, 1, 1)
    settings = {"mean": mean.flatten().tolist(), "std": std.flatten().tolist()}
    pixels = some_images().images.double() / 255
    for transforms, expected in (
        ([K.RandomInvert(p=1.0)], 1 - pixels),
        ([K.RandomHorizontalFlip(p=1.0)], pixels.flip(3)),
        ([K.RandomVerticalFlip(p=1.0), K.CenterCrop((6, 4))], pixels.flip(2)[..., 3:9, 3:7]),
        # not rounded to levels of 1/255
        ([K.RandomGamma((0.5, 0.5), p=1.0)], pixels.sqrt()),
        ([K.RandomInvert(p=0.0)], pixels),
    ):
        seen = view(some_images(augment=transforms, **settings), range(24))
        torch.testing.assert_close(seen.double(), (expected - mean) / std, atol=1e-5, rtol=0)


def test_every_window_and_side_is_equally_likely():
    """As for the crop and flip by hand: 5 x 5 x 2 views, 200 times each."""
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    augment = [K.RandomCrop((8, 8), padding=2), K.RandomHorizontalFlip()]
    index = torch.zeros(10_000).long()
    seen = ImageArrays(image, augment=augment).batch(index, torch.arange(10_000), 0)["input"]
    _, count = (seen * 255).round().byte().flatten(1).unique(dim=0, return_counts=True)
    assert len(count) == 50 and ((count - 200).double().square() / 200).sum() < 49 + 5 * 98**0.5


def test_noise_is_normal():
    augment = KorniaAugmentation([K.RandomGaussianNoise(0.0, 1.0, p=1.0)], (1, 8, 8))
    number = view_hash(0, torch.arange(2000), 0)
    noise = augment(torch.zeros(2000, 1, 8, 8), number).flatten().double()
    moments = [float(noise.pow(k).mean()) for k in (1, 2, 3, 4)]
    # their standard errors are at most 0.03
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.15)
    rows = noise.view(2000, 64)
    assert (rows[1:] * rows[:-1]).mean().abs() < 0.015 and len(noise.unique()) > 100_000


def test_sets_share_and_compare_their_transforms():
    augment = [K.RandomCrop((12, 10), padding=2), auto.RandAugment(2, 10)]
    first = some_images(augment=augment, classes=list("abcd"))
    assert first.subset(torch.arange(5)).augment is first.augment
    same = some_images(augment=copy.deepcopy(augment), classes=list("abcd"))
    assert len(concat(first, same)) == 48 and "RandomCrop" in repr(first)
    other = some_images(augment=[K.RandomCrop((12, 10), padding=3)], classes=list("abcd"))
    with pytest.raises(ValueError, match="the sets differ in augment: .*RandomCrop"):
        concat(first, other)
    assert some_images(augment=[]).augment is None


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: [K.RandomMixUpV2()], ValueError, "RandomMixUpV2 mixes the samples of a batch"),
        (
            lambda: [K.ImageSequential(K.RandomCutMixV2(num_mix=1, use_correct_lambda=True))],
            ValueError,
            "RandomCutMixV2",
        ),
        (lambda: [K.RandomMosaic((12, 10))], ValueError, "RandomMosaic mixes the samples"),
        (
            lambda: [K.RandomHorizontalFlip(same_on_batch=True)],
            ValueError,
            "RandomHorizontalFlip has same_on_batch=True, .*expected False",
        ),
        (
            lambda: [K.ImageSequential(K.RandomRotation(9.0), random_apply=1, same_on_batch=True)],
            ValueError,
            "ImageSequential has same_on_batch=True",
        ),
        (lambda: ["RandomHorizontalFlp"], TypeError, "did you mean 'RandomHorizontalFlip'"),
        (lambda: [{"type": "x"}], TypeError, r"dict\(type=…\) is for configs"),
        (lambda: [torch.nn.Identity()], TypeError, r"expected a 2D transform .*got Identity\(\)"),
        (lambda: [K.RandomHorizontalFlip3D()], TypeError, "got RandomHorizontalFlip3D"),
        (
            lambda: [K.AugmentationSequential(K.RandomInvert(), data_keys=["input"])],
            TypeError,
            "got AugmentationSequential",
        ),
        (
            lambda: [K.RandomCrop((6, 6), p=0.5)],
            ValueError,
            "RandomCrop cannot be applied .*the size of some images .*expected p=1",
        ),
        (
            lambda: [K.ImageSequential(K.CenterCrop(6), K.RandomInvert(), random_apply=1)],
            ValueError,
            "ImageSequential cannot be applied .*the size of some images",
        ),
        (lambda: [K.RandomCrop((0, 0))], ValueError, r"nothing is left .* \(3, 0, 0\)"),
        (lambda: [K.RandomCrop((4,))], ValueError, "RandomCrop cannot be applied to images of"),
        (
            lambda: [K.CenterCrop(6), K.RandomGaussianBlur((13, 13), (1.0, 2.0), "reflect")],
            ValueError,
            r"RandomGaussianBlur cannot be applied .* = \(3, 6, 6\)",
        ),
        (lambda: {"type": "x"}, ValueError, "augment has no 'type'"),
        (lambda: "flip", ValueError, "augment must be a dict"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        some_images(augment=make())


def test_grey_images_and_a_transform_of_colors():
    assert view(some_images(channels=1, augment=[K.RandomRotation(9.0)]), [1, 2]).shape[1] == 1
    with pytest.raises(ValueError, match=r"RandomHue cannot be applied .* = \(1, 12, 10\)"):
        some_images(channels=1, augment=[K.RandomHue((-0.1, 0.1))])


# Files --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("ant", "bee"):
        (root / name).mkdir()
        for k in range(4):
            # each of a size of its own
            pixels = draw.integers(0, 256, (20 + 3 * k, 26 - k, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return root


def seen(dataset, batch_size, workers=0):
    loader = Loader(dataset, batch_size, seed=3, workers=workers)
    found = {}
    for batch in loader.epoch(2):
        found |= dict(zip(batch["index"].tolist(), batch["input"]))
    return found


def test_a_view_of_a_file_does_not_depend_on_batches_and_workers(folder):
    augment = [K.RandomResizedCrop((16, 16)), K.RandomHorizontalFlip(), K.ColorJitter(0.2, 0.2)]
    files = image_folder(folder, small=False, size=16, augment=augment)
    assert isinstance(files, ImageFiles) and isinstance(files.augment, KorniaAugmentation)
    alone = seen(files, 1)
    assert len(alone) == 8 and alone[0].shape == (3, 16, 16) and type(alone[0]) is torch.Tensor
    for other in (seen(files, 8), seen(files, 2, workers=2)):
        assert all(torch.equal(other[i], alone[i]) for i in range(8))
    named = torchvision_set("ImageFolder", root=folder, size=16, augment=augment)
    assert all(torch.equal(image, alone[i]) for i, image in seen(named, 4).items())


def test_files_without_a_crop_are_cut_in_the_middle_and_normalized(folder):
    settings = {"small": False, "size": 20, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    files = image_folder(folder, augment=[K.RandomHorizontalFlip(p=1.0)], **settings)
    pixels = np.asarray(Image.open(files.path(0)))
    # 20 x 26 -> 20 x 20
    expected = torch.from_numpy(pixels[:, ::-1][:, 3:23].copy()).permute(2, 0, 1).double()
    torch.testing.assert_close(files[0][0].double(), expected / 255 * 2 - 1, atol=1e-5, rtol=0)
    assert files[3][0].shape == (3, 20, 20)
    assert image_folder(folder, train=False, augment=[K.RandomInvert()], **settings).augment is None
    with pytest.raises(ValueError, match=r"augment=dict\(…\) and cache_dir belong to small=True"):
        image_folder(folder, augment={"crop": 1}, **settings)
    with pytest.raises(ValueError, match="RandomMixUpV2 mixes"):
        image_folder(folder, augment=[K.RandomMixUpV2()], **settings)
