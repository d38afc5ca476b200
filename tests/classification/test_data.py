"""Data sets: pixels and labels against the files, augmentation against a loop over images, and
messages for what is wrong.
"""

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from kdtasks.classification import data
from kdtasks.classification.data import ImageArrays
from kdtasks.core.views import view_hash
from kdtasks.engine.loader import Loader
from kdtasks.images import decoding, roots
from kdtasks.images.arrays import AUGMENT, checked_augment
from kdtasks.images.files import IMAGENET

real = pytest.mark.skipif(
    not os.environ.get("KDTASKS_DATA"), reason="KDTASKS_DATA is not set: no CIFAR-100 here"
)


@pytest.fixture
def folder(tmp_path):
    """12 real digits as 3-channel PNG files, four each of 'one', 'three' and 'two'."""
    digits = load_digits()
    for name, digit in (("one", 1), ("two", 2), ("three", 3)):
        (tmp_path / "digits" / name).mkdir(parents=True)
        for i in np.flatnonzero(digits.target == digit)[:4]:
            gray = (digits.images[i] * 15).astype(np.uint8)
            Image.fromarray(np.stack([gray, 255 - gray, gray // 2], -1)).save(
                tmp_path / "digits" / name / f"{i:04d}.png"
            )
    return tmp_path / "digits"


def some_images(n=30, c=3, h=7, w=9):
    images = torch.randint(
        0, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return ImageArrays(
        images, torch.arange(n) % 5, "abcde", mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]
    )


# The batch ----------------------------------------------------------------------------------------


def slow_view(image, number, crop, flip, pad_mode, mean, std):
    """One image (C,H,W), pixel by pixel, with the pad, cut, mirror of the textbooks."""
    c, h, w = image.shape
    mode = "constant" if pad_mode == "zeros" else "reflect"
    padded = np.pad(image.numpy(), ((0, 0), (crop, crop), (crop, crop)), mode=mode)
    base = 2 * crop + 1
    down, across, mirrored = number % base, number // base % base, number // base**2 % 2
    out = torch.empty(c, h, w, dtype=torch.float64)
    for k in range(c):
        for y in range(h):
            for x in range(w):
                x_cut = w - 1 - x if flip and mirrored else x
                out[k, y, x] = (float(padded[k, y + down, x_cut + across]) / 255 - mean[k]) / std[k]
    return out


@pytest.mark.parametrize(
    "augment",
    [
        {"crop": 2, "flip": True},
        {"crop": 3, "flip": True, "pad_mode": "reflect"},
        {"crop": 1},
        {"flip": True},
        {"crop": 6, "pad_mode": "reflect"},
    ],
)
def test_augmentation_equals_a_loop_over_pixels(augment):
    arrays = some_images()
    arrays.augment = checked_augment(augment, (7, 9))
    index = torch.tensor([3, 3, 29, 0, 17, 4, 5, 6])
    view = torch.tensor([0, 1, 0, 5, 2, 2, 2, 2])
    batch = arrays.batch(index, view, seed=11)
    numbers = view_hash(11, index, view, AUGMENT).tolist()
    for row, (i, number) in enumerate(zip(index.tolist(), numbers)):
        expected = slow_view(
            arrays.images[i], number, **arrays.augment, mean=arrays.mean, std=arrays.std
        )
        torch.testing.assert_close(batch["input"][row].double(), expected, atol=1e-5, rtol=0)
    assert (
        batch["input"].dtype == torch.float32 and batch["target"].tolist() == (index % 5).tolist()
    )


def test_without_augmentation_only_normalised():
    arrays = some_images()
    batch = arrays.batch(torch.tensor([4, 2]), torch.tensor([7, 8]), seed=0)
    mean, std = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]).view(2, 3, 1, 1)
    expected = (arrays.images[[4, 2]].double() / 255 - mean) / std
    torch.testing.assert_close(batch["input"].double(), expected, atol=1e-5, rtol=0)
    raw = data.arrays(arrays.images).batch(torch.arange(30), torch.zeros(30).long(), 0)
    assert (
        torch.equal((raw["input"] * 255).round().byte(), arrays.images)
        and raw["target"].tolist() == [-100] * 30
    )


def test_augmentation_does_not_depend_on_the_batch():
    arrays = some_images()
    arrays.augment = checked_augment({"crop": 2, "flip": True}, (7, 9))
    whole = arrays.batch(torch.arange(30), torch.full((30,), 3), 5)["input"]
    for index in (torch.tensor([8]), torch.tensor([20, 8, 8, 1])):
        part = arrays.batch(index, torch.full_like(index, 3), 5)["input"]
        assert torch.equal(part, whole[index])
    assert not torch.equal(whole, arrays.batch(torch.arange(30), torch.full((30,), 4), 5)["input"])
    assert not torch.equal(whole, arrays.batch(torch.arange(30), torch.full((30,), 3), 6)["input"])


def test_every_window_and_side_is_equally_likely():
    """An image whose pixels are all different tells which window it was: 5 x 5 x 2 of them, 200
    times each.
    """
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    arrays = ImageArrays(image, augment={"crop": 2, "flip": True})
    seen = arrays.batch(torch.zeros(10_000).long(), torch.arange(10_000), 0)["input"]
    _, count = (seen * 255).round().byte().flatten(1).unique(dim=0, return_counts=True)
    assert len(count) == 50 and ((count - 200).double().square() / 200).sum() < 49 + 5 * 98**0.5


def test_a_batch_takes_no_time():
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        arrays = ImageArrays(
            torch.zeros(5000, 3, 32, 32, dtype=torch.uint8), augment={"crop": 4, "flip": True}
        )
        index, view, seconds = torch.randperm(5000)[:64], torch.zeros(64).long(), []
        for _ in range(50):
            start = time.perf_counter()
            arrays.batch(index, view, 0)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(torch_threads)
    assert min(seconds) < 3e-3  # about 0.6 ms


def test_statistics_are_mean_and_std_of_the_pixels():
    arrays = some_images()
    pixels = arrays.images.double().transpose(0, 1).flatten(1) / 255
    mean, std = arrays.statistics()
    assert mean == pytest.approx(pixels.mean(1).tolist()) and std == pytest.approx(
        pixels.std(1, unbiased=False).tolist()
    )


def test_subset_keeps_what_belongs_to_an_image(folder):
    arrays = data.image_folder(folder)
    part = arrays.subset(torch.tensor([7, 2]))
    assert torch.equal(part.images, arrays.images[[7, 2]]) and part.target.tolist() == [1, 0]
    assert part.path(0) == arrays.path(7) and part.classes == arrays.classes
    assert len(arrays.subset(arrays.target == 2)) == 4


@pytest.mark.parametrize(
    "error, message, arguments",
    [
        (TypeError, r"must be uint8, got torch.float32", {"images": torch.zeros(2, 1, 4, 4)}),
        (
            ValueError,
            r"must be \(N,C,H,W\), got \(2, 4, 4\)",
            {"images": torch.zeros(2, 4, 4, dtype=torch.uint8)},
        ),
        (
            ValueError,
            r"one target for each of 2 images, got shape \(3,\)",
            {"target": torch.zeros(3)},
        ),
        (
            ValueError,
            r"a class in 0\.\.1 or -100 \(unlabelled\), got 2",
            {"target": torch.tensor([0, 2]), "classes": ["a", "b"]},
        ),
        (ValueError, r"or -100 \(unlabelled\), got -1", {"target": torch.tensor([0, -1])}),
        (ValueError, r"1 channels, but mean=\(0\.1, 0\.2\)", {"mean": [0.1, 0.2]}),
        (ValueError, r"std must be positive, got \(0\.0,\)", {"std": [0]}),
        (
            ValueError,
            r"augment has no 'flipp': did you mean 'flip'\?",
            {"augment": {"flipp": True}},
        ),
        (ValueError, r"crop must be in 0\.\.3 \(image \(4, 4\)\), got 4", {"augment": {"crop": 4}}),
        (
            ValueError,
            r"pad_mode must be 'zeros' or 'reflect', got 'edge'",
            {"augment": {"crop": 1, "pad_mode": "edge"}},
        ),
    ],
)
def test_wrong_arguments_are_named(error, message, arguments):
    with pytest.raises(error, match=message):
        ImageArrays(**{"images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8), **arguments})


# Digits and subsets -------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    train, test = data.digits(), data.digits(train=False)
    assert (train.images.shape[1:], len(train) + len(test)) == ((1, 8, 8), 1797)
    original = {
        tuple(x.flatten()): y
        for x, y in zip(load_digits().images.astype(int), load_digits().target)
    }
    for arrays in (train, test):
        back = (arrays.images.double() * 16 / 255).round().long().flatten(1)
        assert [original[tuple(row)] for row in back.tolist()] == arrays.target.tolist()
    mean, std = ImageArrays(torch.cat([train.images, test.images])).statistics()
    assert mean == pytest.approx(train.mean, abs=1e-3) and std == pytest.approx(train.std, abs=1e-3)


def test_digits_are_split_by_class_without_overlap():
    def rows(**arguments):
        return {tuple(row) for row in data.digits(**arguments).images.flatten(1).tolist()}

    train, test, teacher, student = (
        rows(),
        rows(train=False),
        rows(part="teacher"),
        rows(part="student"),
    )
    assert not train & test and not teacher & student and teacher | student == train
    everything = torch.bincount(torch.from_numpy(load_digits().target))
    assert (torch.bincount(data.digits(train=False).target) - 0.3 * everything).abs().max() <= 0.5
    sizes = [torch.bincount(data.digits(part=part).target) for part in ("teacher", "student")]
    assert (sizes[0] - sizes[1]).abs().max() <= 1
    assert rows(seed=1) != train and rows(seed=0) == train
    assert (
        data.digits(augment={"crop": 1}).augment
        and not data.digits(train=False, augment={"crop": 1}).augment
    )


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("part must be 'teacher', 'student' or None, got 'pupil'", {"part": "pupil"}),
        ("part='teacher' belongs to train=True", {"part": "teacher", "train": False}),
        ("test_fraction must be between 0 and 1, got 1", {"test_fraction": 1}),
    ],
)
def test_wrong_digits(message, arguments):
    with pytest.raises(ValueError, match=message):
        data.digits(**arguments)


def test_labelled_subset_is_balanced_nested_and_seeded():
    target = torch.tensor([0] * 10 + [1] * 20 + [-100] * 50 + [4] * 10)
    few, more = data.labelled_subset(target, 3), data.labelled_subset(target, 8)
    assert target[few].tolist() == [0] * 3 + [1] * 3 + [4] * 3 and few.tolist() == sorted(
        few.tolist()
    )
    assert set(few.tolist()) < set(more.tolist()) and len(more) == 24
    assert data.labelled_subset(target, 3, seed=1).tolist() != few.tolist()
    assert data.labelled_subset(target.tolist(), 3).tolist() == few.tolist()
    with pytest.raises(ValueError, match="per_class=11, but class 0 has 10 labelled samples"):
        data.labelled_subset(target, 11)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        data.labelled_subset(target, 0)


def test_few_labels_hides_the_others_and_nothing_else():
    whole, few = data.digits(), data.few_labels(data.digits(), per_class=3, seed=2)
    kept = (few.target != -100).nonzero()[:, 0]
    assert (
        kept.tolist() == data.labelled_subset(whole.target, 3, seed=2).tolist() and len(kept) == 30
    )
    assert torch.equal(few.target[kept], whole.target[kept]) and torch.equal(
        few.images, whole.images
    )


# Folders ------------------------------------------------------------------------------------------


def test_a_folder_becomes_its_pixels(folder):
    arrays = data.image_folder(folder)
    assert (
        arrays.classes == ["one", "three", "two"]
        and arrays.target.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    )
    for i in range(12):
        assert Path(arrays.path(i)).parent.name == arrays.classes[arrays.target[i]]
        assert np.array_equal(
            arrays.images[i].permute(1, 2, 0), np.asarray(Image.open(arrays.path(i)))
        )


def test_classes_and_subset_number_the_targets(folder):
    by_order = data.image_folder(folder, classes=["one", "two", "three"])
    assert [Path(p).parent.name for p in by_order.paths] == ["one"] * 4 + ["two"] * 4 + [
        "three"
    ] * 4
    assert by_order.target.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    part = data.image_folder(folder, subset=["two", "one"], per_class=2)
    assert part.classes == ["two", "one"] and part.target.tolist() == [0, 0, 1, 1]
    assert [Path(p).name for p in part.paths[:2]] == sorted(os.listdir(folder / "two"))[:2]


def test_size_takes_the_central_square(folder):
    wide = np.zeros((8, 24, 3), np.uint8)
    # the central square and what the resampling sees beside it
    wide[:, 4:20] = 200
    Image.fromarray(wide).save(folder / "one" / "wide.png")
    with pytest.raises(
        ValueError,
        match=r"\(C,H,W\) = \(3, 8, 8\) in .*, \(3, 8, 24\) in "
        r".*wide\.png; pass size=",
    ):
        data.image_folder(folder)
    arrays = data.image_folder(folder, size=4)
    assert arrays.images.shape[1:] == (3, 4, 4) and (arrays.images[4] == 200).all()


def test_class_names_that_differ_are_named(folder):
    with pytest.raises(
        ValueError,
        match=r"not the expected ones: missing \['four'\], not expected "
        r"\['three'\]",
    ):
        data.image_folder(folder, classes=["one", "two", "four"])
    with pytest.raises(ValueError, match=r"no class 'tree': did you mean 'three'"):
        data.image_folder(folder, subset=["tree"])
    with pytest.raises(
        ValueError,
        match=r"per_class=5: too few samples in "
        r"\{'one': 4, 'three': 4, 'two': 4\}",
    ):
        data.image_folder(folder, per_class=5)


def test_missing_data_says_where_how_and_what(monkeypatch, tmp_path):
    monkeypatch.setenv("KDTASKS_DATA", str(tmp_path))
    for make in (
        data.cifar100,
        lambda: data.image_folder("birds"),
        lambda: data.unlabelled_folder("wild"),
    ):
        with pytest.raises(FileNotFoundError) as error:
            make()
        for part in (
            str(tmp_path),
            "environment variable KDTASKS_DATA",
            "pass root=<folder>",
            "layout: <root>/",
        ):
            assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="cifar100/train"):
        data.cifar100()
    monkeypatch.delenv("KDTASKS_DATA")
    assert roots.data_root() == Path("data")
    with pytest.raises(FileNotFoundError, match=r"no file x\.npy nor data/x\.npy"):
        data.arrays("x.npy")


def test_a_path_is_looked_up_below_the_data_root(monkeypatch, folder):
    monkeypatch.setenv("KDTASKS_DATA", str(folder.parent))
    assert len(data.image_folder(folder.name)) == 12


def test_empty_folders(folder, tmp_path):
    (folder / "zero").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image in .*zero; known are \.bmp"):
        data.image_folder(folder)
    with pytest.raises(
        FileNotFoundError,
        match=r"no class folder in .*one\. Expected layout: .* "
        r"unlabelled_folder",
    ):
        data.image_folder(folder / "one")
    with pytest.raises(FileNotFoundError, match=r"no image below .*zero"):
        data.unlabelled_folder(folder / "zero")


@pytest.fixture
def half(folder):
    """One file cut in two."""
    path = sorted((folder / "three").iterdir())[1]
    path.write_bytes(path.read_bytes()[:80])
    return path


def test_an_unreadable_image_is_named(folder, half):
    with pytest.raises(
        RuntimeError,
        match=rf"cannot read image {half}: .* \(skip_bad=True leaves "
        r"it out\)",
    ):
        data.image_folder(folder)


def test_skip_bad_leaves_it_out_and_counts(folder, half, tmp_path):
    with pytest.warns(UserWarning, match=rf"left out 1 unreadable of 12 images: {half}"):
        arrays = data.image_folder(folder, skip_bad=True, cache_dir=tmp_path / "cache")
    assert arrays.target.tolist() == [0] * 4 + [1] * 3 + [2] * 4 and str(half) not in arrays.paths
    for i in range(11):
        assert np.array_equal(
            arrays.images[i].permute(1, 2, 0), np.asarray(Image.open(arrays.path(i)))
        )
    assert not (tmp_path / "cache").exists()
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(RuntimeError, match="none of 12 images can be read"):
        data.image_folder(folder, skip_bad=True)


def test_the_cache_gives_the_same_and_notices_changes(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = data.image_folder(folder, cache_dir=cache)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_read", None)  # no file is read now
        assert torch.equal(data.image_folder(folder, cache_dir=cache).images, first.images)
    Path(first.path(5)).write_bytes(Path(first.path(0)).read_bytes())
    changed = data.image_folder(folder, cache_dir=cache)
    assert torch.equal(changed.images[5], first.images[0])
    assert data.image_folder(folder, size=4, cache_dir=cache).images.shape == (12, 3, 4, 4)


def test_files_read_one_by_one(folder):
    # 8 = 7 / 0.875: nothing is resized
    files = data.image_folder(folder, train=False, small=False, size=7)
    image, target = files[5]
    pixels = np.asarray(Image.open(files.path(5)))
    mean, std = (np.array(values) for values in IMAGENET)
    around = [(pixels[y : y + 7, x : x + 7] / 255 - mean) / std for y in (0, 1) for x in (0, 1)]
    assert target == 1 and any(
        np.allclose(image.permute(1, 2, 0), window, atol=1e-5) for window in around
    )
    batch = next(iter(Loader(data.image_folder(folder, small=False, size=6), 12)))
    assert batch["input"].shape == (12, 3, 6, 6) and batch["target"].tolist() == [
        i // 4 for i in batch["index"].tolist()
    ]
    with pytest.raises(ValueError, match="belong to small=True"):
        data.image_folder(folder, small=False, cache_dir="x")


def test_unlabelled_images_join_a_labelled_set(folder):
    labelled = data.image_folder(folder, augment={"crop": 1}, mean=[0.1] * 3)
    (folder / "two" / "deep").mkdir()
    Image.new("L", (30, 20), 77).save(folder / "two" / "deep" / "gray.bmp")
    wild = data.unlabelled_folder(folder / "two", like=labelled)
    assert (
        wild.images.shape == (5, 3, 8, 8)
        and wild.target.tolist() == [-100] * 5
        and wild.augment == labelled.augment
    )
    assert Path(wild.path(4)).name == "gray.bmp" and (wild.images[4] == 77).all()
    both = data.concat(labelled, wild)
    assert len(both) == 17 and both.classes == labelled.classes and both.path(16) == wild.path(4)
    assert (
        torch.equal(both.images, data.concat(sets=[labelled, wild]).images)
        and both.target.tolist()[12:] == [-100] * 5
    )
    batch = next(iter(Loader(both, 6, labelled="target", unlabelled_per_batch=2)))
    assert (
        batch["labelled"].tolist() == [True] * 4 + [False] * 2 and (batch["index"][4:] >= 12).all()
    )
    assert len(data.unlabelled_folder(folder / "two", size=8, limit=2)) == 2
    with pytest.raises(ValueError, match="come from `like`; pass either"):
        data.unlabelled_folder(folder / "two", like=labelled, size=8)
    with pytest.raises(ValueError, match="the sets differ in mean"):
        data.concat(labelled, data.unlabelled_folder(folder / "two", size=8))
    with pytest.raises(ValueError, match="the sets differ in classes"):
        data.concat(
            data.image_folder(folder, subset=["three"]), data.image_folder(folder, subset=["one"])
        )
    with pytest.raises(ValueError, match="at least one"):
        data.concat()


# Arrays and torchvision ---------------------------------------------------------------------------


def test_arrays_from_memory_and_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    target = np.arange(6) % 3
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "target.npy", target)
    np.savez(tmp_path / "both.npz", images=images, target=target)
    np.savez(tmp_path / "other.npz", image=images)
    for arrays in (
        data.arrays(images, target),
        data.arrays(torch.from_numpy(images), target.tolist()),
        data.arrays(str(tmp_path / "images.npy"), tmp_path / "target.npy"),
        data.arrays(tmp_path / "both.npz"),
    ):
        assert (
            np.array_equal(arrays.images, images.transpose(0, 3, 1, 2))
            and arrays.target.tolist() == target.tolist()
        )
    assert data.arrays(images[..., 0]).images.shape == (6, 1, 5, 4)
    assert data.arrays(images.transpose(0, 3, 1, 2)).images.shape == (6, 3, 5, 4)
    with pytest.raises(ValueError, match="no 'images': did you mean 'image'"):
        data.arrays(tmp_path / "other.npz")


def test_arrays_never_unpickle(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        data.arrays(tmp_path / "objects.npy")


def test_a_torchvision_set_of_files():
    fake = data.torchvision_set("torchvision.datasets.FakeData", size=10, image_size=(3, 20, 30))
    batch = next(iter(Loader(fake, 4)))
    assert batch["input"].shape == (4, 3, 10, 10) and batch["input"].dtype == torch.float32
    with pytest.raises(ValueError, match="has no 'CIFAR1000': did you mean 'CIFAR100'"):
        data.torchvision_set("torchvision.datasets.CIFAR1000")


def test_a_torchvision_set_of_arrays(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    digits = torch.from_numpy((load_digits().images[:9] * 15).astype(np.uint8))
    monkeypatch.setattr(MNIST, "_check_exists", lambda self: True)
    monkeypatch.setattr(MNIST, "_load_data", lambda self: (digits, torch.arange(9)))
    arrays = data.torchvision_set(
        "torchvision.datasets.MNIST", root=str(tmp_path), train=True, mean=[0.5], std=[0.5]
    )
    assert (
        torch.equal(arrays.images, digits[:, None])
        and arrays.target.tolist() == list(range(9))
        and arrays.mean == (0.5,)
    )
    assert arrays.classes[3] == "3 - three"


def test_a_torchvision_set_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("KDTASKS_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError,
        match=rf"SVHN could not read {tmp_path}/birds: "
        r".*KDTASKS_DATA",
    ):
        data.torchvision_set("torchvision.datasets.SVHN", root="birds", split="test")


# CIFAR-100 ----------------------------------------------------------------------------------------


def test_cifar100_has_20_superclasses_of_5():
    assert (
        len(data.CIFAR100_CLASSES) == len(set(data.CIFAR100_CLASSES)) == 100
        and len(data.CIFAR100_SUPERCLASSES) == 20
    )
    assert all(len(members.split()) == 5 for members in data.CIFAR100_SUPERCLASSES.values())
    assert list(data.CIFAR100_SUPERCLASSES) == sorted(data.CIFAR100_SUPERCLASSES)


@real
def test_cifar100_few_classes():
    arrays = data.cifar100(classes=["train", "apple"], per_class=20)
    assert arrays.images.shape == (40, 3, 32, 32) and arrays.classes == ["train", "apple"]
    assert arrays.augment == {"crop": 4, "flip": True, "pad_mode": "zeros"}
    for i in (0, 19, 20, 39):
        assert Path(arrays.path(i)).parent.name == arrays.classes[arrays.target[i]]
        assert np.array_equal(
            arrays.images[i].permute(1, 2, 0), np.asarray(Image.open(arrays.path(i)).convert("RGB"))
        )
    test = data.cifar100(train=False, classes=["train", "apple"])
    assert len(test) == 200 and test.augment is None
    coarse = data.cifar100(classes=["trees", "fish"], per_class=2, fine=False)
    members = {name: set(data.CIFAR100_SUPERCLASSES[name].split()) for name in coarse.classes}
    assert coarse.classes == ["trees", "fish"] and len(coarse) == 20
    assert all(
        Path(coarse.path(i)).parent.name in members[coarse.classes[coarse.target[i]]]
        for i in range(20)
    )
    with pytest.raises(ValueError, match="no class 'aple': did you mean 'apple'"):
        data.cifar100(classes=["aple"])


@real
def test_cifar100_smaller():
    arrays = data.cifar100(classes=["apple"], per_class=3, size=16)
    assert arrays.images.shape == (3, 3, 16, 16) and arrays.augment["crop"] == 2
    image = Image.open(arrays.path(2)).convert("RGB")
    assert np.array_equal(
        arrays.images[2].permute(1, 2, 0), np.asarray(image.resize((16, 16), Image.BICUBIC))
    )


@real
def test_cifar100_mean_and_std_are_the_published_ones(tmp_path):
    """40 images of every class give them to 0.01; all images to 1e-3 (the test below)."""
    arrays = data.cifar100(per_class=40)
    mean, std = arrays.statistics()
    assert mean == pytest.approx(arrays.mean, abs=0.01) and std == pytest.approx(
        arrays.std, abs=0.01
    )
    assert (
        arrays.classes == list(data.CIFAR100_CLASSES)
        and torch.bincount(arrays.target).tolist() == [40] * 100
    )


@real
@pytest.mark.slow
def test_all_of_cifar100(tmp_path):
    start = time.perf_counter()
    arrays = data.cifar100(cache_dir=tmp_path)
    between = time.perf_counter()
    again = data.cifar100(cache_dir=tmp_path)
    print(f"{between - start:.1f} s, from the cache {time.perf_counter() - between:.2f} s")
    assert (
        torch.equal(arrays.images, again.images)
        and torch.bincount(arrays.target).tolist() == [500] * 100
    )
    mean, std = arrays.statistics()
    assert mean == pytest.approx(arrays.mean, abs=1e-3) and std == pytest.approx(
        arrays.std, abs=1e-3
    )


@real
def test_cifar100_in_torchvisions_layout(tmp_path, monkeypatch):
    """The same images, pickled as torchvision has them, in another order, give the same data set."""
    few = data.cifar100(train=False, classes=["bus", "tiger", "apple"], per_class=6)
    number = torch.tensor([data.CIFAR100_CLASSES.index(name) for name in few.classes])[few.target]
    order = torch.tensor([12, 0, 6, 13, 1, 7, 14, 2, 8, 15, 3, 9, 16, 4, 10, 17, 5, 11])
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = few.images[order].flatten(1).numpy()
    (folder / "test").write_bytes(
        pickle.dumps({"data": pixels, "fine_labels": number[order].tolist()})
    )
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(data.CIFAR100_CLASSES)}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    read = data.cifar100(train=False, root=tmp_path, classes=["tiger", "apple"], per_class=4)
    assert read.classes == ["tiger", "apple"] and read.path(0) == "image 0"
    for name in read.classes:
        ours = few.images[few.target == few.classes.index(name)][:4]
        assert torch.equal(read.images[read.target == read.classes.index(name)], ours)
    small = [
        data.cifar100(train=False, root=root, classes=["apple"], per_class=4, size=16).images
        for root in (None, tmp_path)
    ]
    assert torch.equal(*small)
    with pytest.raises(ValueError, match=r"per_class=7: too few samples in \{'apple': 6\}"):
        data.cifar100(train=False, root=tmp_path, classes=["apple"], per_class=7)


@real
def test_real_unlabelled_images_beside_cifar100():
    labelled = data.cifar100(classes=["apple", "bus"], per_class=30)
    wild = data.unlabelled_folder("wild", like=labelled, limit=50)
    both = data.concat(labelled, wild)
    batches = list(Loader(both, 24, labelled="target", unlabelled_per_batch=8))
    assert len(batches) == 60 // 16 and all(
        (batch["target"] == -100).sum() == 8 for batch in batches
    )
    assert all(torch.isfinite(batch["input"]).all() for batch in batches)


@pytest.mark.gpu
def test_on_cuda_the_same():
    here, there = some_images(), some_images().to("cuda")
    here.augment = there.augment = checked_augment({"crop": 2, "flip": True}, (7, 9))
    index, view = torch.arange(30), torch.arange(30) % 4
    a, b = here.batch(index, view, 1), there.batch(index, view, 1)
    assert (
        b["input"].is_cuda
        and torch.equal(a["input"], b["input"].cpu())
        and torch.equal(a["target"], b["target"].cpu())
    )
