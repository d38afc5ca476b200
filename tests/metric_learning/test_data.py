"""Splits by class, the sets built on them, and embeddings that come with the data."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from kdtasks.engine.loader import Loader
from kdtasks.metric_learning import data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five classes of four images each, of different sizes."""
    root = tmp_path_factory.mktemp("classes")
    generator = np.random.default_rng(0)
    for c in "abcde":
        (root / c).mkdir()
        for i in range(4):
            Image.fromarray(generator.integers(0, 255, (20 + i, 30, 3), dtype=np.uint8)).save(
                root / c / f"{i}.png"
            )
    return root


def test_digits_of_the_test_are_never_trained_on():
    train, test = data.digits(), data.digits(train=False, augment={"crop": 1})
    counts = np.bincount(load_digits().target)
    assert train.classes == list("012345") and test.classes == list("6789")
    assert torch.equal(train.target.bincount(), torch.from_numpy(counts[:6])) and torch.equal(
        test.target.bincount(), torch.from_numpy(counts[6:])
    )
    assert test.augment is None
    pixels = {
        bytes((image * 255 / 16).round().astype(np.uint8)): int(t)
        for image, t in zip(load_digits().images, load_digits().target)
    }
    for part in (train, test):
        assert all(
            pixels[bytes(image.numpy())] == int(part.classes[t])
            for image, t in zip(part.images, part.target.tolist())
        )
    assert data.digits(test_classes=[0, 5]).classes == list("12346789")
    assert (
        data.digits(test_classes=0.4).classes
        == data.digits(test_classes=4).classes
        == list("012345")
    )


@pytest.mark.parametrize(
    "given, test",
    [
        (2, "de"),
        (0.4, "de"),
        (["b", "a"], "ab"),
        (0.5, "de"),
        (4, "bcde"),
        (np.int64(2), "de"),
        (np.float32(0.4), "de"),
        ("b", "b"),
    ],
)
def test_a_split_has_each_class_on_one_side(given, test):
    assert data.split_classes("abcde", given, False) == list(test)
    assert data.split_classes("abcde", given, True) == [c for c in "abcde" if c not in test]


@pytest.mark.parametrize(
    "given",
    [
        0,
        5,
        1.0,
        2.0,
        1.5,
        -1,
        -0.5,
        0.01,
        float("nan"),
        True,
        False,
        None,
        ["a", "x"],
        "bird",
        list("abcde"),
        [],
    ],
)
def test_a_split_without_two_sides_is_refused(given):
    with pytest.raises(ValueError, match="test_classes"):
        data.split_classes("abcde", given, train=True)
        data.split_classes("abcde", given, train=False)


def test_a_folder_in_memory_and_as_files(folder):
    for small in (True, False):
        train, test = (
            data.image_folder(folder, train, ["b", "d"], size=8, small=small)
            for train in (True, False)
        )
        assert train.classes == ["a", "c", "e"] and test.classes == ["b", "d"]
        assert (
            train.target.tolist() == [0] * 4 + [1] * 4 + [2] * 4
            and test.target.tolist() == [0] * 4 + [1] * 4
        )
        batch = next(iter(Loader(train, 6, per_class=3)))
        assert batch["input"].shape == (6, 3, 8, 8) and batch["target"].view(2, 3).unique(
            dim=1
        ).shape == (2, 1)
    with pytest.raises(FileNotFoundError, match="KDTASKS_DATA"):
        data.image_folder(folder / "nowhere")
    with pytest.raises(ValueError, match="resize=77 belongs to small=False"):
        data.image_folder(folder, size=8, resize=77)


def test_files_become_a_square_and_in_training_a_random_part_of_it_perhaps_mirrored(folder):
    train, test = (
        data.image_folder(folder, train, "e", size=7, small=False, mean=[0, 0, 0], std=[1, 1, 1])
        for train in (True, False)
    )
    parts = []
    for part in (train, test):
        # of 30 x 23
        square = Image.open(part.paths[3]).resize((8, 8), Image.Resampling.BILINEAR)
        whole = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
        parts.append([whole[:, y : y + 7, x : x + 7] for y in (0, 1) for x in (0, 1)])
    torch.manual_seed(0)
    views, seen = [*parts[0], *(view.flip(2) for view in parts[0])], set()
    for _ in range(100):
        image, _ = train[3]
        seen.add(next(k for k, view in enumerate(views) if torch.allclose(image, view, atol=1e-6)))
    assert seen == set(range(8)) and all(
        torch.allclose(test[3][0], parts[1][0], atol=1e-6) for _ in range(5)
    )


def test_files_with_kornias_transforms(folder):
    K = pytest.importorskip(
        "kornia.augmentation", reason="needs kornia: pip install 'kdtasks[augment]'"
    )
    settings = {"size": 8, "resize": 8, "small": False, "mean": [0, 0, 0], "std": [1, 1, 1]}
    plain, mirrored = (
        data.image_folder(folder, train, "e", augment=[K.RandomHorizontalFlip(p=1.0)], **settings)
        for train in (False, True)
    )
    square = Image.open(mirrored.paths[3]).resize((8, 8), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
    torch.testing.assert_close(mirrored[3][0], expected.flip(2), atol=1e-6, rtol=0)
    assert plain.augment is None


def test_cifar100_has_80_classes_and_20_others(tmp_path):
    from kdtasks.classification.data import CIFAR100_CLASSES

    for split in ("train", "test"):
        for name in CIFAR100_CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save(
                tmp_path / split / name / "0.png"
            )
    train, test = data.cifar100(True, tmp_path), data.cifar100(False, tmp_path)
    assert train.classes == list(CIFAR100_CLASSES[:80]) and test.classes == list(
        CIFAR100_CLASSES[80:]
    )
    assert (
        train.target.tolist() == list(range(80))
        and "/test/" in test.path(0)
        and train.augment
        and not test.augment
    )


def test_pmls_cub(tmp_path):
    """Its files with two training classes and two test classes; one image is grey."""
    base = tmp_path / "CUB_200_2011"
    names, labels = [], []
    for c in (1, 2, 101, 102):
        for i in range(2):
            path = base / "images" / f"{c:03d}.Bird" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L" if i else "RGB", (40, 24), 100).save(path)
            names.append(f"{len(names) + 1} {c:03d}.Bird/{i}.jpg")
            labels.append(f"{len(labels) + 1} {c}")
    (base / "images.txt").write_text("\n".join(names))
    (base / "image_class_labels.txt").write_text("\n".join(labels))
    train, test = (data.pml_set("CUB", tmp_path, train, size=14) for train in (True, False))
    assert train.classes == ["001.Bird", "002.Bird"] and test.classes == ["101.Bird", "102.Bird"]
    assert train.target.tolist() == test.target.tolist() == [0, 0, 1, 1]
    for part in (train, test):
        batch = next(iter(Loader(part, 4, shuffle=False)))
        assert batch["input"].shape == (4, 3, 14, 14) and batch["target"].tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="no data set 'CUBS': did you mean 'CUB'"):
        data.pml_set("CUBS")
    with pytest.raises(FileNotFoundError, match="Cars196 is not at .*KDTASKS_DATA"):
        data.pml_set("Cars196", tmp_path / "no")


def test_pmls_products_have_numbers_for_names(tmp_path):
    base = tmp_path / "Stanford_Online_Products"
    for split, first in (("train", 1), ("test", 8)):
        lines = ["image_id class_id super_class_id path"]
        for k in range(4):
            path = base / "lamp_final" / f"{split}{k}.JPG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20)).save(path)
            lines.append(f"{k} {first + k // 2} 1 lamp_final/{split}{k}.JPG")
        (base / f"Ebay_{split}.txt").write_text("\n".join(lines) + "\n")
    assert data.pml_set("StanfordOnlineProducts", tmp_path).classes == ["1", "2"]
    assert data.pml_set("StanfordOnlineProducts", tmp_path, train=False).classes == ["8", "9"]


# Embeddings that come with the data ---------------------------------------------------------------


@pytest.mark.parametrize("kind", [".npy", ".pt", ".safetensors", "tensor"])
def test_embeddings_go_with_their_samples(kind, tmp_path):
    rows = torch.arange(714.0)[:, None] * torch.tensor([1.0, -1.0])
    given = rows if kind == "tensor" else tmp_path / f"rows{kind}"
    if kind == ".npy":
        np.save(given, rows.numpy())
    elif kind == ".pt":
        torch.save(rows, given)
    elif kind == ".safetensors":
        from safetensors.torch import save_file

        save_file({"rows": rows}, given)
    wrapped = data.with_teacher(data.digits(train=False), given).to("cpu")
    for batch in Loader(wrapped, 8, per_class=4):
        assert torch.equal(batch["teacher"], rows[batch["index"]])
    assert wrapped.classes == list("6789") and wrapped.images.shape[1:] == (1, 8, 8)


@pytest.mark.parametrize("workers", [0, 1])
def test_embeddings_of_files(folder, workers):
    files = data.image_folder(folder, size=8, small=False)
    loader = Loader(
        data.with_teacher(files, torch.arange(len(files))[:, None]), 6, per_class=2, workers=workers
    )
    for batch in loader:
        assert batch["teacher"][:, 0].tolist() == batch["index"].tolist() and batch[
            "input"
        ].shape == (6, 3, 8, 8)


def test_wrong_embeddings_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no file nowhere.npy"):
        data.with_teacher(data.digits(train=False), "nowhere.npy")
    torch.save({"a": 1}, tmp_path / "dict.pt")
    save_file({"a": torch.zeros(714, 2), "b": torch.zeros(3)}, tmp_path / "two.safetensors")
    (tmp_path / "text.csv").write_text("1,2")
    for given, message in (
        (torch.zeros(3, 2), r"\(714, D\), got embeddings of shape \(3, 2\)"),
        (torch.zeros(714), r"\(N, D\), got embeddings of shape \(714,\)"),
        (tmp_path / "dict.pt", "holds a dict"),
        (tmp_path / "two.safetensors", "holds a dict"),
        (tmp_path / "text.csv", "expected .npy, .safetensors, or .pt"),
    ):
        with pytest.raises(ValueError, match=message):
            data.with_teacher(data.digits(train=False), given)
