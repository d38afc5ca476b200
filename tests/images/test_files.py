"""The one reader of image files, held against PIL, OpenCV and formulas; every task's data gives
what it gives.
"""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from kdtasks.classification import data
from kdtasks.detection import data as detection
from kdtasks.images import reading
from kdtasks.images.listing import images_below
from kdtasks.images.reading import image_size, read_image
from kdtasks.metric_learning import data as metric
from kdtasks.super_resolution.pairs import Pairs


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(reading, "_said", set())


def picture(height=6, width=9, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def untransformed(dataset):
    dataset.transform = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return dataset[0][0]


def everyone(folder):
    """``{task: uint8 (H,W,3)}`` of the one image in ``folder/<class>``, read by each task's own
    data.
    """
    (name,) = images_below(folder)
    kept = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    found = {
        "classification": data.image_folder(folder, **kept).images[0],
        "unlabelled": data.unlabelled_folder(folder).images[0],
        "metric_learning": untransformed(metric._SquareFiles([name], [0], ["a"], 8, False, **kept)),
        "classification, file by file": untransformed(
            data.image_folder(folder, small=False, **kept)
        ),
        "detection": (detection.unlabelled(folder, classes=["a"], augment=None)[0]["input"] * 255)
        .round()
        .byte(),
        "super_resolution": (Pairs([name], scale=2).target.image(0) * 255).round().byte(),
    }
    return {task: image.permute(1, 2, 0).numpy() for task, image in found.items()}


def saved(tmp_path, image, name, **options):
    folder = tmp_path / name.replace(".", "_") / "a"
    folder.mkdir(parents=True)
    if isinstance(image, np.ndarray):
        assert cv2.imwrite(str(folder / name), image[..., ::-1] if image.ndim == 3 else image)
    else:
        image.save(folder / name, **options)
    return folder.parent


# Kinds --------------------------------------------------------------------------------------------

# 0..65518
DEEP = (np.arange(6 * 8).reshape(6, 8) * 1394).astype(np.uint16)
ROUNDED = np.floor(DEEP / 65535 * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_16_bit_grey_is_scaled_and_not_cut_in_every_task(tmp_path, name):
    for task, image in everyone(saved(tmp_path, DEEP, name)).items():
        np.testing.assert_array_equal(image, np.dstack([ROUNDED] * 3), err_msg=task)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.ppm"])
def test_16_bit_color_is_at_most_a_level_away(tmp_path, name):
    deep = np.random.default_rng(0).integers(0, 65536, (6, 8, 3), dtype=np.uint16)
    (path,) = images_below(saved(tmp_path, deep, name))
    assert np.abs(np.asarray(read_image(path)) - deep / 257.0).max() < 1
    assert np.asarray(read_image(path)).std() > 50


def test_the_range_is_the_one_that_a_file_says(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 1023\n" + np.array([1023, 512], ">u2").tobytes())
    assert np.asarray(read_image(tmp_path / "a.pgm", 1)).tolist() == [[255, 128]]
    Image.fromarray(DEEP).save(tmp_path / "negative.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(
        np.asarray(read_image(tmp_path / "negative.tif", 1)), 255 - ROUNDED
    )
    big = Image.frombytes("I;16B", (8, 6), DEEP.astype(">u2").tobytes())
    big.save(tmp_path / "big.tif")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "big.tif", 1)), ROUNDED)
    for number, kind in enumerate((np.float32, np.int32)):
        Image.fromarray(DEEP.astype(kind)).save(tmp_path / f"{number}.tif")
        with pytest.raises(ValueError, match="mode '[FI]', whose range"):
            read_image(tmp_path / f"{number}.tif")


def test_transparency_lies_on_the_stated_color(tmp_path):
    rgb, alpha = picture(), picture(channels=1, seed=1)
    grey = rgb[..., 0]
    share = alpha[..., None] / 255
    glass = Image.fromarray(np.dstack([rgb, alpha]))
    for task, image in everyone(saved(tmp_path, glass.crop((0, 0, 8, 6)), "glass.png")).items():
        assert np.abs(image - (rgb * share + 255 * (1 - share))[:, :8]).max() <= 1, task
    glass.save(tmp_path / "glass.png")
    blue = np.asarray(read_image(tmp_path / "glass.png", background=(0, 0, 200)))
    assert np.abs(blue - (rgb * share + np.array([0, 0, 200]) * (1 - share))).max() <= 1
    Image.fromarray(np.dstack([grey, alpha]), "LA").save(tmp_path / "la.png")
    assert (
        np.abs(
            np.asarray(read_image(tmp_path / "la.png", 1))
            - (grey * share[..., 0] + 255 * (1 - share[..., 0]))
        ).max()
        <= 1
    )
    Image.new("P", (3, 2), 0).save(tmp_path / "hole.png", transparency=0)
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    Image.fromarray(np.full((2, 3), 700, np.uint16)).save(tmp_path / "deep.png", transparency=700)
    for name in ("hole.png", "key.png", "deep.png"):
        assert (np.asarray(read_image(tmp_path / name)) == 255).all(), name


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_was_right_stays_bit_for_bit(tmp_path, mode, channels):
    image = Image.fromarray(picture(16, 16)).convert(mode)
    name = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(name)
    with Image.open(name) as plain:
        expected = np.asarray(plain.convert("RGB" if channels == 3 else "L"))
    np.testing.assert_array_equal(np.asarray(read_image(name, channels)), expected)


# EXIF ---------------------------------------------------------------------------------------------

TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: np.rot90,
}


def turned(path, orientation, array=None, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture() if array is None else array).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_upright_and_its_size_is_known_from_the_head(tmp_path, orientation):
    for name in ("a.png", "a.tif", "a.webp"):
        path = turned(
            tmp_path / name, orientation, **({"lossless": True} if name == "a.webp" else {})
        )
        np.testing.assert_array_equal(
            np.asarray(read_image(path)), TURNS[orientation](picture()), err_msg=name
        )
        assert image_size(path) == TURNS[orientation](picture()).shape[:2], name
    path = turned(tmp_path / "a.png", orientation)
    # ImageMagick may write eXIf at the end
    chunks = path.read_bytes()
    at = chunks.find(b"eXIf")
    if at > 0:
        (length,) = struct.unpack(">I", chunks[at - 4 : at])
        chunk, rest = chunks[at - 4 : at + 8 + length], chunks[: at - 4] + chunks[at + 8 + length :]
        path.write_bytes(rest[:-12] + chunk + rest[-12:])
        np.testing.assert_array_equal(np.asarray(read_image(path)), TURNS[orientation](picture()))
        assert image_size(path) == TURNS[orientation](picture()).shape[:2]


def test_every_task_sees_an_image_upright(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    turned(tmp_path / "in" / "a" / "a.png", 6, picture(6, 8))
    for task, image in everyone(tmp_path / "in").items():
        np.testing.assert_array_equal(image, np.rot90(picture(6, 8), -1), err_msg=task)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_match_the_picture_whichever_way_the_annotation_saw_it(tmp_path, orientation):
    stored = np.zeros((6, 9, 3), np.uint8)
    stored[1:3, 2:6] = 255
    upright = TURNS[orientation](stored)

    def box(array):
        rows, columns = (np.flatnonzero(array[..., 0].any(axis)) for axis in (1, 0))
        return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]

    path = turned(tmp_path / "a.png", orientation, stored)
    seen = [(stored, stored.shape[:2])] + (
        [(upright, upright.shape[:2]), (upright, None)] if orientation > 4 else []
    )
    for array, size in seen:
        target = {"boxes": [box(array)], "labels": [1]}
        with (
            pytest.warns(UserWarning, match="EXIF orientation")
            if 1 < orientation < 5
            else open(os.devnull)
        ):
            sample = detection.DetectionData([path], [target], ["a"], [size], augment=None)[0]
        assert sample["target"]["boxes"].tolist() == [
            box((sample["input"].permute(1, 2, 0) * 255).numpy())
        ]
        reading._said.clear()


# Frames, hidden files, broken files ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif"])
def test_the_first_frame_is_read_and_that_is_said_once(tmp_path, name):
    first, second = (Image.new("RGB", (9, 6), color) for color in ("red", "blue"))
    first.save(
        tmp_path / name,
        save_all=True,
        append_images=[second],
        **({"lossless": True} if name == "a.webp" else {}),
    )
    with pytest.warns(
        UserWarning,
        match=rf"{name} has several frames or pages: the first one is "
        r"read",
    ) as said:
        images = [np.asarray(read_image(tmp_path / name)) for _ in range(3)]
    assert len(said) == 1 and all((image == [255, 0, 0]).all() for image in images)
    first.save(tmp_path / "one.gif")
    read_image(tmp_path / "one.gif")


def test_a_phones_picture_with_a_preview_is_no_animation(tmp_path, recwarn):
    Image.new("RGB", (9, 6)).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (3, 2))]
    )
    read_image(tmp_path / "a.jpg")
    assert not recwarn


def test_hidden_files_and_folders_are_left_out_of_every_listing(tmp_path):
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(8, 8)).save(tmp_path / name)
    for name in (
        "cat/._a.png",
        "cat/.hidden.png",
        "cat/.ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/cat/._a.png",
        ".ipynb_checkpoints/x.png",
        "dog/__MACOSX/._b.png",
        "._c.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    expected = [str(tmp_path / "cat" / "a.png"), str(tmp_path / "dog" / "b.png")]
    assert images_below(tmp_path) == expected
    assert data.image_folder(tmp_path).paths == expected and data.image_folder(
        tmp_path
    ).classes == ["cat", "dog"]
    assert data.unlabelled_folder(tmp_path).paths == expected
    assert metric.image_folder(tmp_path, test_classes=1).classes == ["cat"]
    assert detection.unlabelled(tmp_path, classes=["a"]).paths == expected


def test_an_empty_file_says_so_in_every_task(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "none.png").touch()
    path = str(tmp_path / "a" / "none.png")
    for read in (
        lambda: data.image_folder(tmp_path),
        lambda: data.unlabelled_folder(tmp_path),
        lambda: Pairs([path]),
        lambda: detection.DetectionData([path], [{"boxes": [], "labels": []}], ["a"]),
    ):
        with pytest.raises(RuntimeError, match=r"none\.png: the file is empty, 0 bytes"):
            read()
    with pytest.raises(ValueError, match="empty, 0 bytes"):
        data.image_folder(tmp_path, small=False)[0]


@pytest.mark.skipif(
    not os.environ.get("KDTASKS_DATA"), reason="KDTASKS_DATA is not set: no real photos here"
)
@pytest.mark.parametrize("folder", ["bsds", "bccd/JPEGImages", "cifar100/test"])
def test_plain_photos_and_pngs_have_pils_pixels(folder):
    root = Path(os.environ["KDTASKS_DATA"], folder)
    if not root.is_dir():
        pytest.skip(f"KDTASKS_DATA has no {folder}")
    paths = images_below(root)
    for path in paths[:: len(paths) // 15]:
        with Image.open(path) as image:
            np.testing.assert_array_equal(
                np.asarray(read_image(path)), np.asarray(image.convert("RGB")), err_msg=path
            )
            assert image_size(path) == (image.height, image.width)


# Bombs --------------------------------------------------------------------------------------------


def bomb(path, width, height):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compressobj(9)
    rows = b"".join(pixels.compress(bytes(width + 1)) for _ in range(height)) + pixels.flush()
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("share", [1.5, 2.5])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_small_file_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path, monkeypatch, share
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr(Image.Image, "load", None)  # nothing is decoded
    (tmp_path / "a").mkdir()
    path = bomb(tmp_path / "a" / "bomb.png", 100, int(share * 100))
    reads = [
        lambda: data.image_folder(tmp_path),
        lambda: data.unlabelled_folder(tmp_path),
        lambda: Pairs([str(path)]),
        lambda: detection.DetectionData([path], [{"boxes": [], "labels": []}], ["a"]),
    ]
    for read in reads:
        with pytest.raises(
            RuntimeError,
            match=r"bomb\.png: .*more than the 10000 pixels "
            r"allowed.*KDTASKS_MAX_PIXELS",
        ):
            read()


@pytest.mark.parametrize("share", [1.5, 2.5])
def test_more_pixels_are_allowed_by_name(tmp_path, monkeypatch, recwarn, share):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    path = bomb(tmp_path / "bomb.png", 100, int(share * 100))
    monkeypatch.setenv("KDTASKS_MAX_PIXELS", "40000")
    assert read_image(path).size == (100, int(share * 100)) and not recwarn
    with pytest.raises(ValueError, match="more than the 50 pixels allowed"):
        read_image(path, max_pixels=50)
    monkeypatch.setenv("KDTASKS_MAX_PIXELS", "lots")
    with pytest.raises(
        ValueError, match="KDTASKS_MAX_PIXELS must be a number of pixels, got 'lots'"
    ):
        read_image(path)
