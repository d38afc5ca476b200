"""Pairs of images: what LR is, that patches of both lie on each other, where they come from, and
what is refused.
"""

import importlib.util
import inspect
import os
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr

from kdtasks.engine.loader import Loader
from kdtasks.super_resolution import data, imresize
from kdtasks.super_resolution.data import Images, Pairs, Patches

PATCH = 5


def picture(h, w, seed=0, channels=3):
    levels = np.random.default_rng(seed).integers(0, 256, (h, w, channels), dtype=np.uint8)
    return levels if channels == 3 else levels[..., 0]


def numbered(h, w, number, scale):
    """LR whose pixels say (row, column, image), and HR with each of them scale x scale times."""
    low = np.stack(
        [*np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), np.full((h, w), number)], 2
    ).astype(np.uint8)
    return low.repeat(scale, 0).repeat(scale, 1), low


def numbered_patches(scale, sizes=((9, 12), (7, 5), (20, 6)), **settings):
    high, low = zip(*(numbered(h, w, i, scale) for i, (h, w) in enumerate(sizes)))
    return Patches(Pairs(high, low, scale), PATCH, **settings)


def drawn(patches, count=4000, view=0, seed=0):
    return patches.batch(torch.arange(count), torch.full((count,), view), seed)


# ------------------------------------------------------------------------------------------ patches
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_patch_is_a_symmetry_of_a_window_and_its_target_lies_on_it(scale):
    patches = numbered_patches(scale)
    batch = drawn(patches, 200)
    assert batch["input"].shape == (200, 3, PATCH, PATCH) and batch["target"].shape == (
        200,
        3,
        PATCH * scale,
        PATCH * scale,
    )
    assert torch.equal(
        batch["target"], batch["input"].repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    )
    for i, patch in enumerate((batch["input"] * 255).round().long()):
        assert (patch[2] == i % 3).all()
        top, left = patch[0].min(), patch[1].min()
        whole = torch.arange(PATCH)
        window = torch.stack(
            [(top + whole)[:, None].expand(PATCH, PATCH), (left + whole).expand(PATCH, PATCH)]
        )
        assert any(torch.equal(patch[:2], turned) for turned in symmetries(window))


def symmetries(x):
    return [
        y for turns in range(4) for y in (x.rot90(turns, (1, 2)), x.rot90(turns, (1, 2)).flip(2))
    ]


def test_places_and_symmetries_are_uniform_up_to_both_edges():
    """12,000 samples of images with 5·8, 3·1 and 16·2 places."""
    count = 12000
    batch = (drawn(numbered_patches(2, repeat=count), count)["input"] * 255).round().long()
    for image, places in enumerate([(5, 8), (3, 1), (16, 2)]):
        mine = batch[image::3]
        found = torch.zeros(places, dtype=torch.long).index_put_(
            (mine[:, 0].amin((1, 2)), mine[:, 1].amin((1, 2))), torch.tensor(1), accumulate=True
        )
        mean = len(mine) / found.numel()
        assert (found - mean).abs().max() < 4.5 * mean**0.5
        corner, beside, below = (mine[:, :2, 0, 0], mine[:, :2, 0, 1], mine[:, :2, 1, 0])
        kinds = torch.cat([beside - corner, below - corner], 1).unique(dim=0, return_counts=True)
        assert (
            len(kinds[0]) == 8
            and (kinds[1] - len(mine) / 8).abs().max() < 4.5 * (len(mine) / 8) ** 0.5
        )


def test_places_do_not_depend_on_the_symmetry():
    batch = (
        (drawn(numbered_patches(2, ((12, 9),), repeat=8000), 8000)["input"] * 255).round().long()
    )
    same_way = batch[:, 0, 1, 0] > batch[:, 0, 0, 0]
    for way in (same_way, ~same_way):
        top = batch[way, 0].amin((1, 2)).bincount(minlength=8)
        assert (top - top.sum() / 8).abs().max() < 4.5 * float(top.sum() / 8) ** 0.5


def test_without_augmentation_nothing_is_turned():
    plain = drawn(numbered_patches(3, augment=False), 300)
    for name, step in (("input", 1), ("target", 3)):
        rows, columns = plain[name][:, 0], plain[name][:, 1]
        assert (rows[:, step:] > rows[:, :-step]).all() and (
            columns[..., step:] > columns[..., :-step]
        ).all()


def test_a_patch_belongs_to_its_seed_index_and_view_alone():
    patches = numbered_patches(2)
    index, view = torch.tensor([7, 2, 40, 2]), torch.tensor([0, 3, 1, 4])
    batch = patches.batch(index, view, 5)
    for i in range(4):
        alone = patches.batch(index[i : i + 1], view[i : i + 1], 5)
        assert all(torch.equal(alone[name][0], batch[name][i]) for name in ("input", "target"))
    whole = drawn(patches, 60)["input"]
    for other in (
        drawn(patches, 60, view=1),
        drawn(patches, 60, seed=1),
        {"input": whole.roll(3, 0)},
    ):
        assert (other["input"] != whole).flatten(1).any(1).float().mean() > 0.8


def test_an_epoch_shows_each_image_as_often():
    patches = numbered_patches(2, repeat=8)
    seen = [batch for batch in Loader(patches, 6, seed=3)]
    assert len(patches) == 24 and len(seen) == 4 and patches.path(4) == "image 1"
    numbers = torch.cat([batch["input"][:, 2, 0, 0] for batch in seen]).mul(255).round().long()
    assert numbers.bincount().tolist() == [8, 8, 8]
    assert torch.equal(numbers, torch.cat([batch["index"] for batch in seen]) % 3)


@pytest.mark.parametrize("scale", [2, 3])
def test_shrinking_the_inside_of_a_target_gives_the_inside_of_its_input(scale):
    patches = Patches(Pairs([picture(40, 50), picture(33, 64, 1)], scale=scale), 10)
    batch = drawn(patches, 64)
    assert len(batch["input"].unique(dim=0)) > 50
    again = imresize(batch["target"].double() * 255, 1 / scale).clamp(0, 255)
    assert ((again - batch["input"] * 255)[..., 2:-2, 2:-2]).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("color", ["rgb", "y"])
def test_an_enlarged_input_is_cut_from_the_enlarged_image(color):
    """At any pixel, of any size, and the border is that of the image."""
    pairs = Pairs([picture(32, 26)], scale=3, color=color, enlarged=True)
    batch = drawn(Patches(pairs, 7, augment=False), 3000)
    small, large = pairs.input.image(0), pairs.target.image(0)
    found = set()
    # (24,18,C,7,7)
    windows = large.unfold(1, 7, 1).unfold(2, 7, 1).permute(1, 2, 0, 3, 4)
    lookup = {windows[i, j].numpy().tobytes(): (i, j) for i in range(24) for j in range(18)}
    for input, target in zip(batch["input"], batch["target"]):
        i, j = lookup[target.numpy().tobytes()]
        assert torch.equal(input, small[:, i : i + 7, j : j + 7])
        found.add((i, j))
    assert len(found) > 0.98 * 24 * 18


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"color": "y"}, {"enlarged": True}], ids=str)
def test_on_a_gpu_a_batch_is_the_same_and_waits_for_nothing(settings):
    patches = Patches(Pairs([picture(40, 50), picture(33, 64, 1)], **settings), 10)
    expected = drawn(patches, 64)
    patches.to("cuda")
    index, view = torch.arange(64).pin_memory(), torch.zeros(64, dtype=torch.long).pin_memory()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = patches.batch(index, view, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name in ("input", "target"):
        assert batch[name].is_cuda
        torch.testing.assert_close(batch[name].cpu(), expected[name], rtol=0, atol=1e-7)


# -------------------------------------------------------------------------------------------- pairs
def halved(line):
    """MATLAB's bicubic at 1/2 in exact numbers; levels as fractions."""

    def cubic(t):
        t = abs(t)
        return (
            (3 * t**3 - 5 * t**2 + 2) / 2
            if t <= 1
            else (-(t**3) + 5 * t**2 - 8 * t + 4) / 2
            if t < 2
            else 0
        )

    mirrored, n = [*line[::-1], *line, *line[::-1]], len(line)
    return [
        sum(
            cubic((k - 2 * x - Fraction(1, 2)) / 2) / 2 * mirrored[k + n]
            for k in range(2 * x - 3, 2 * x + 5)
        )
        for x in range(n // 2)
    ]


def test_lr_is_matlabs_rounded_half_up_and_clipped():
    high = picture(20, 8, channels=1)
    high[:8] = np.eye(8)[3] * 128  # ties
    # overshoots
    high[8:14, :4], high[8:14, 4:] = 0, 255
    low = np.array(
        [
            halved(row)
            for row in np.array(
                [halved([Fraction(int(v)) for v in column]) for column in high.T]
            ).T.tolist()
        ]
    )
    assert (low < 0).any() and (low > 255).any() and (low % 1 == Fraction(1, 2)).any()
    expected = [
        [min(max((v + Fraction(1, 2)).__floor__(), 0), 255) for v in row] for row in low.tolist()
    ]
    found = Pairs([high], scale=2).input.image(0)
    assert (found * 255).tolist() == [expected] * 3


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_hr_is_cut_to_a_multiple_and_images_give_the_whole(scale):
    high = [picture(23, 14), picture(scale, 2 * scale + 1, 1)]
    images = Images(Pairs(high, scale=scale))
    for image, whole in zip([images[0], images[1]], high):
        input, target = image["input"], image["target"]
        h, w = (side // scale * scale for side in whole.shape[:2])
        assert torch.equal(target, torch.from_numpy(whole[:h, :w]).permute(2, 0, 1) / 255)
        levels = (
            imresize(
                torch.from_numpy(whole[:h, :w].astype(float)).permute(2, 0, 1)[None] / 255,
                1 / scale,
            )[0]
            * 255
        )
        assert (input * 255 - levels.clamp(0, 255)).abs().max() <= 0.5 + 1e-5 and (
            (input * 255) % 1
        ).min() < 1e-4
    batches = list(Loader(images, 1, shuffle=False))
    assert [
        batch["target"].shape[2:]
        == (batch["input"].shape[2] * scale, batch["input"].shape[3] * scale)
        for batch in batches
    ] == [True, True]
    assert [batch["scale"].tolist() for batch in batches] == [[scale]] * 2
    assert len(images) == 2 and images.path(1) == "image 1"
    with pytest.raises(IndexError):
        images[2]


def y_of(image):
    return torch.from_numpy(rgb2ycbcr(image)[..., 0])[None] / 255


def test_luma_is_that_of_the_uint8_images():
    high = picture(12, 18)
    rgb, y = Pairs([high], scale=3), Pairs([high], scale=3, color="y")
    low = (rgb.input.image(0) * 255).round().byte().permute(1, 2, 0).numpy()
    torch.testing.assert_close(y.target.image(0).double(), y_of(high), rtol=0, atol=1e-7)
    torch.testing.assert_close(y.input.image(0).double(), y_of(low), rtol=0, atol=1e-7)
    patch = Patches(y, 4).batch(torch.tensor([0]), torch.tensor([0]), 0)
    assert (
        patch["input"].shape == (1, 1, 4, 4)
        and patch["target"].shape == (1, 1, 12, 12)
        and patch["input"].dtype == torch.float32
    )


def test_enlarging_rounds_nothing_in_between():
    high = picture(13, 19)
    # overshoots
    high[6:, :9], high[6:, 9:] = 0, 255
    cut = torch.from_numpy(high[:12, :18].astype(float)).permute(2, 0, 1)[None] / 255
    for color, target in (("rgb", cut), ("y", y_of(high[:12, :18])[None])):
        pairs = Pairs([high], scale=3, color=color, enlarged=True)
        torch.testing.assert_close(pairs.target.image(0).double(), target[0], rtol=0, atol=1e-7)
        expected = imresize(imresize(target, 1 / 3), 3)[0]
        torch.testing.assert_close(pairs.input.image(0).double(), expected, rtol=0, atol=1e-7)
        given = Pairs([high[:12, :18]], [high[:4, :6]], 3, color, enlarged=True)
        low = y_of(high[:4, :6]) if color == "y" else cut[0, :, :4, :6]
        torch.testing.assert_close(
            given.input.image(0).double(), imresize(low[None], 3)[0], rtol=0, atol=1e-7
        )
    assert expected.max() > target.max(), "not clipped"


def test_downsizes_and_scales_give_every_image_once_at_each():
    high = [picture(40, 41), picture(25, 30, 1)]
    pairs = Pairs(high, scale=(2, 3), color="y", enlarged=True, downsizes=(1, 0.7))
    sizes = [(40, 40), (39, 39), (28, 28), (27, 27), (24, 30), (24, 30), (18, 20), (18, 21)]
    assert (
        pairs.target.sizes.tolist() == [list(size) for size in sizes] == pairs.input.sizes.tolist()
    )
    assert pairs.paths == ["image 0"] * 4 + ["image 1"] * 4
    assert [Images(pairs)[i]["scale"] for i in range(8)] == [2, 3] * 4
    smaller = imresize(torch.from_numpy(high[1].astype(float)).permute(2, 0, 1)[None] / 255, 0.7)[0]
    smaller = (smaller * 255).round().clamp(0, 255).permute(1, 2, 0).byte().numpy()
    for i, w in ((6, 20), (7, 21)):
        torch.testing.assert_close(
            pairs.target.image(i).double(), y_of(smaller[:18, :w]), rtol=0, atol=1e-7
        )
        torch.testing.assert_close(
            pairs.input.image(i),
            imresize(imresize(pairs.target.image(i)[None], 1 / (i - 4)), i - 4)[0],
            rtol=0,
            atol=1e-5,
        )


@pytest.mark.parametrize("enlarged, patch", [(True, 14), (False, 7)])
def test_variants_smaller_than_the_patch_are_left_out_and_counted(enlarged, patch):
    """Patches are of the others alone, each as often, and a path is that of the image that is cut."""
    high = [
        np.full((h, w, 3), 50 * i, np.uint8)
        for i, (h, w) in enumerate([(24, 40), (40, 40), (18, 24)])
    ]
    pairs = Pairs(high, enlarged=enlarged, downsizes=(1.0, 0.7, 0.5))
    with pytest.warns(UserWarning) as caught:
        patches = Patches(pairs, patch, repeat=3).to("cpu")
    assert [str(warning.message) for warning in caught] == [
        f"left out 3 of 9 variants of images, smaller than patch={patch}: 2 at downsize 0.5, 1 at "
        "downsize 0.7; the first is of image 0"
    ]
    expected = ["image 0"] * 2 + ["image 1"] * 3 + ["image 2"]
    assert len(patches) == 18 and [patches.path(i) for i in range(12)] == expected * 2
    batch = drawn(patches, 18)
    for name in ("input", "target"):
        levels = (batch[name] * 255).round().long().flatten(1)
        assert [f"image {level // 50}" for level in levels[:, 0].tolist()] == expected * 3 and (
            levels == levels[:, :1]
        ).all()


def test_an_image_without_a_variant_as_large_as_the_patch_is_an_error():
    high = [picture(60, 60), picture(40, 50), picture(60, 60)]
    with pytest.raises(
        ValueError, match="patch=41, but the input made of image 1 has 40x50 .* patch of at most 40"
    ):
        Patches(Pairs(high, enlarged=True, downsizes=(0.5, 1.0, 0.7)), 41)
    with pytest.raises(
        ValueError, match="patch=41, but the input made of image 1 has 39x48 .* patch of at most 39"
    ):
        # at scale 3
        Patches(Pairs([picture(60, 60), picture(41, 50)], scale=(2, 3, 4), enlarged=True), 41)


def test_wrong_settings_are_refused():
    high = [picture(12, 12)]
    for match, settings in {
        "scale must be": {"scale": 1},
        r"got 2\.5": {"scale": 2.5},
        "several scales": {"scale": (2, 3)},
        "'rgb' or 'y'": {"color": "Y"},
        "downsizes must": {"downsizes": (1, 1.5)},
        "made here": {"lr": [picture(6, 6)], "downsizes": (0.5,)},
        "as many": {"lr": []},
        "12x12 pixels.*scale 13": {"scale": 13},
        "cache_dir needs files": {"cache_dir": "here"},
        r"LR image 5x6.*must have 10x12": {"lr": [picture(5, 6)]},
    }.items():
        with pytest.raises(ValueError, match=match):
            Pairs(high, **settings)
    with pytest.raises(ValueError, match="at least one"):
        Pairs([])
    for wrong in (picture(8, 8).astype(float), picture(8, 8)[..., :2], picture(8, 8)[0, 0]):
        with pytest.raises(ValueError, match="uint8 arrays"):
            Pairs([wrong])
    with pytest.raises(ValueError, match=r"patch=7.*image 0.*6x6.*at most 6"):
        Patches(Pairs(high), 7)
    assert Patches(Pairs(high), 6, augment=False).batch(torch.tensor([3]), torch.tensor([0]), 0)[
        "target"
    ].shape[2:] == (12, 12)
    for wrong in ({"patch": 0}, {"patch": 2.0}, {"patch": 2, "repeat": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Patches(Pairs(high), **wrong)


# -------------------------------------------------------------------------------------------- files
def folder(root, images):
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name)
    return root


def levels(path):
    return Pairs([path]).target.image(0).mul(255).round().byte().permute(1, 2, 0).numpy()


def test_what_can_be_read_without_loss_is(tmp_path):
    rgb, grey = picture(6, 8), picture(6, 8, channels=1)
    opaque = np.dstack([rgb, np.full((6, 8), 255, np.uint8)])
    palette = Image.fromarray(rgb).quantize(64)
    kinds = {
        "rgb": (Image.fromarray(rgb), rgb),
        "grey": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "rgba": (Image.fromarray(opaque), rgb),
        "la": (Image.fromarray(np.dstack([grey, opaque[..., 3]]), "LA"), np.dstack([grey] * 3)),
        "palette": (palette, np.asarray(palette.convert("RGB"))),
        "bits": (Image.fromarray(grey > 127), np.dstack([(grey > 127) * np.uint8(255)] * 3)),
    }
    for name, (image, expected) in kinds.items():
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(levels(tmp_path / f"{name}.png"), expected, err_msg=name)
    exif = Image.Exif()
    # as a viewer shows it
    exif[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(levels(tmp_path / "turned.png"), np.rot90(rgb, -1))
    for name in ("deep.png", "deep.tif", "deep.ppm"):
        cv2.imwrite(str(tmp_path / name), rgb[..., ::-1].astype(np.uint16) * 257)
        np.testing.assert_array_equal(levels(tmp_path / name), rgb, err_msg=name)
    Image.fromarray(np.dstack([rgb, 0 * grey])).save(tmp_path / "glass.png")
    assert (levels(tmp_path / "glass.png") == 255).all()


def test_what_would_lose_something_is_an_error_with_the_files_name(tmp_path):
    Image.fromarray(picture(6, 8, channels=1).astype(np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "nothing.png").touch()
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(picture(60, 60)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    for name, why in {
        "float.tif": "'F'",
        "nothing.png": "empty",
        "text.png": "cannot identify",
        "cut.png": "truncated",
        "gone.png": "No such file",
    }.items():
        with pytest.raises(RuntimeError, match=f"{name}.*{why}"):
            Pairs([str(tmp_path / name)])
    folder(tmp_path / "dots", {"dot.png": picture(1, 1)})
    with pytest.raises(ValueError, match=r"dot\.png has 1x1 pixels"):
        data.image_folder(tmp_path / "dots")


def test_a_folder_trains_or_tests(tmp_path, monkeypatch):
    images = {"b.png": picture(20, 24, 1), "a/z.png": picture(30, 21, 2)}
    folder(tmp_path / "data" / "hr", images)
    monkeypatch.setenv("KDTASKS_DATA", str(tmp_path / "data"))
    test, train = (
        data.image_folder("hr", train=False, downsizes=(1, 0.5), scale=3),
        data.image_folder("hr", patch=4, repeat=3, downsizes=(1, 0.5), augment=False),
    )
    assert [Path(test.path(i)).name for i in range(len(test))] == ["z.png", "b.png"]
    for i, whole in enumerate((images["a/z.png"], images["b.png"])):
        assert torch.equal(test[i]["target"], Images(Pairs([whole], scale=3))[0]["target"])
    assert (
        isinstance(train, Patches)
        and len(train) == 12
        and not train.augment
        and train.path(2).endswith("b.png")
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image below"):
        data.image_folder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="KDTASKS_DATA"):
        data.image_folder("nowhere")


def test_more_files_than_are_read_ahead_stay_in_order(tmp_path):
    images = {f"{i:02}.png": np.full((4, 4), i, np.uint8) for i in range(37)}
    test = data.image_folder(folder(tmp_path / "hr", images), train=False)
    assert [round(float(test[i]["target"].mean()) * 255) for i in range(37)] == list(range(37))


@pytest.mark.parametrize(
    "suffix, settings", [("x2", {}), ("", {}), ("_small", {"suffix": "_small"})]
)
def test_folders_are_paired_by_name(tmp_path, suffix, settings):
    names = ["0002", "0010", "more/0002", "x2"]
    high = {f"{name}.png": picture(8, 10, i) for i, name in enumerate(names)}
    low = {f"{name}{suffix}.bmp": picture(4, 5, 50 + i) for i, name in enumerate(names)}
    folder(tmp_path / "hr", high), folder(tmp_path / "lr", low)
    test = data.paired_folders(tmp_path / "hr", tmp_path / "lr", train=False, **settings)
    assert len(test) == 4
    for i in range(4):
        name = os.path.relpath(test.path(i), tmp_path / "hr").removesuffix(".png")
        input, target = (
            x.mul(255).round().byte().permute(1, 2, 0).numpy()
            for x in (test[i]["input"], test[i]["target"])
        )
        np.testing.assert_array_equal(target, high[f"{name}.png"])
        np.testing.assert_array_equal(input, low[f"{name}{suffix}.bmp"])
    assert (
        len(data.paired_folders(tmp_path / "hr", tmp_path / "lr", patch=4, repeat=2, **settings))
        == 8
    )


def test_folders_that_do_not_pair_are_refused(tmp_path):
    hr = folder(tmp_path / "hr", {"a.png": picture(8, 8), "b.png": picture(8, 8)})
    for i, (match, kind, low) in enumerate(
        [
            (
                r"1 images have no partner: .*b\.png\. .*<lr>/<name>\.png or "
                r"<lr>/<name>x2\.png",
                FileNotFoundError,
                ["ax2.png"],
            ),
            (
                r"1 images have no partner: .*lr1.c\.png",
                FileNotFoundError,
                ["a.png", "b.png", "c.png"],
            ),
            (r"a\.png has two LR images", ValueError, ["a.png", "ax2.png", "b.png"]),
            ("differ in their ending only", ValueError, ["a.png", "a.bmp", "b.png"]),
        ]
    ):
        lr = folder(tmp_path / f"lr{i}", {name: picture(4, 4) for name in low})
        with pytest.raises(kind, match=match):
            data.paired_folders(hr, lr, train=False)
    lr = folder(tmp_path / "lr", {"a.png": picture(4, 4), "b.png": picture(4, 5)})
    with pytest.raises(
        ValueError,
        match=r"b\.png has 8x8 pixels, its LR image 4x5: at scale 2 HR "
        r"must have 8x10",
    ):
        data.paired_folders(hr, lr)
    with pytest.raises(ValueError, match="HR must have 12x12"):
        data.paired_folders(
            hr,
            folder(tmp_path / "small", {"ax3.png": picture(4, 4), "bx3.png": picture(4, 4)}),
            scale=3,
        )


def spoilt(path):
    """The same size and time, but no image can be read from it any more."""
    stat = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(len(content) - 60))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    "settings",
    [{}, {"color": "y", "enlarged": True, "scale": [2, 3], "downsizes": [1.0, 0.5]}],
    ids=str,
)
def test_what_is_cached_is_not_decoded_again(tmp_path, settings):
    hr, cache = (
        folder(tmp_path / "hr", {"a.png": picture(40, 44), "b.png": picture(33, 50, 1)}),
        tmp_path / "cache" / "of it",
    )
    settings = {"root": hr, "patch": 6, **settings}
    expected = drawn(data.image_folder(**settings), 50)
    for spoil in (False, True):
        if spoil:
            spoilt(hr / "a.png")
        kept = data.image_folder(**settings, cache_dir=cache)
        assert len(os.listdir(cache)) == 1
        assert all(
            torch.equal(drawn(kept, 50)[name], expected[name]) for name in ("input", "target")
        )
    with pytest.raises(RuntimeError, match=r"a\.png"):
        data.image_folder(**settings)
    enlarged, color = settings.get("enlarged", False), settings.get("color", "rgb")
    for other in (
        {"color": "rgb" if color == "y" else "y"},
        {"scale": 4},
        {"downsizes": (0.6,)},
        {"enlarged": not enlarged, "scale": 2},
    ):
        with pytest.raises(RuntimeError, match=r"a\.png"):
            data.image_folder(**{**settings, **other}, cache_dir=cache)
    folder(hr, {"a.png": picture(40, 44, 9)})
    os.utime(hr / "a.png", (1, 1))
    changed = data.image_folder(**settings, cache_dir=cache)
    assert (
        not torch.equal(drawn(changed, 50)["target"], expected["target"])
        and len(os.listdir(cache)) == 2
    )


def test_two_images_and_a_pair_of_them_are_cached_apart(tmp_path):
    folder(tmp_path, {"a.png": picture(8, 8), "b.png": picture(4, 4, 1)})
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    for _ in range(2):
        both, pair = (
            Pairs([a, b], cache_dir=tmp_path / "cache"),
            Pairs([a], [b], cache_dir=tmp_path / "cache"),
        )
        assert len(both) == 2 and len(pair) == 1 and len(os.listdir(tmp_path / "cache")) == 2
        assert torch.equal(both.target.image(0), pair.target.image(0)) and torch.equal(
            both.target.image(1), pair.input.image(0)
        )


# ----------------------------------------------------------------------------------------- the sets
def test_photos_train_on_some_and_test_on_others():
    import skimage.data
    from sklearn.datasets import load_sample_image

    train, test = data.photos(), data.photos(train=False, scale=3)
    assert (
        not set(data.TRAIN_PHOTOS) & set(data.TEST_PHOTOS) and len(train) == 800 and len(test) == 4
    )
    for i, photo in enumerate(
        (load_sample_image("china.jpg"), skimage.data.rocket(), skimage.data.stereo_motorcycle()[0])
    ):
        h, w = (side // 2 * 2 for side in photo.shape[:2])
        np.testing.assert_array_equal(
            train.pairs.target.image(i).mul(255).permute(1, 2, 0), photo[:h, :w]
        )
    for i, photo in enumerate(
        (
            skimage.data.astronaut(),
            skimage.data.chelsea(),
            skimage.data.coffee(),
            load_sample_image("flower.jpg"),
        )
    ):
        h, w = (side // 3 * 3 for side in photo.shape[:2])
        np.testing.assert_array_equal(test[i]["target"].mul(255).permute(1, 2, 0), photo[:h, :w])
    grey = [(image[0] == image[2]).all() for image in map(train.pairs.target.image, range(8))]
    assert grey == [False] * 3 + [True] * 5 and Path(test.path(0)).stem == "astronaut"


def test_photos_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(data, "TRAIN_PHOTOS", ("camera", "yeti"))
    with pytest.raises(FileNotFoundError, match="no photo 'yeti' in .*skimage"):
        data.photos()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'kdtasks\[sr\]'"):
        data.photos()


@pytest.mark.parametrize(
    "settings",
    [{}, {"scale": 4}, {"color": "y", "patch": 41}, {"enlarged": True, "scale": 3, "patch": 20}],
    ids=str,
)
def test_a_configs_description_says_the_shapes_of_a_patch(settings, tmp_path):
    hr = folder(tmp_path / "hr", {"a.png": picture(200, 200)})
    batch = drawn(data.image_folder(hr, **settings), 1)
    assert data.patch_shapes(type="…", root="hr", repeat=3, **settings) == (
        tuple(batch["input"].shape[1:]),
        tuple(batch["target"].shape[1:]),
    )
    assert data.patch_shapes(scale=[2, 3], enlarged=True, patch=41) == ((3, 41, 41), (3, 41, 41))


def test_all_sets_have_the_same_defaults():
    expected = inspect.signature(data.patch_shapes).parameters
    for make in (data.photos, data.bsds, data.image_folder, data.paired_folders):
        for name in ("scale", "patch", "color", "enlarged"):
            assert inspect.signature(make).parameters[name].default == expected[name].default


def test_bsds_as_it_lies_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("KDTASKS_DATA", str(tmp_path))
    folder(
        tmp_path / "bsds",
        {
            "train/1.jpg": picture(20, 30),
            "b100/2.jpg": picture(30, 20),
            "b100/3.jpg": picture(30, 20),
        },
    )
    assert (
        len(data.bsds(patch=5)) == 16
        and len(data.bsds(train=False)) == 2
        and data.bsds(train=False).path(0).endswith("b100/2.jpg")
    )
    with pytest.raises(FileNotFoundError, match="<root>/b100"):
        data.bsds(root="elsewhere")


def test_the_real_bsds():
    root = Path(os.environ.get("KDTASKS_DATA", "data"), "bsds")
    if not root.is_dir():
        pytest.skip(f"needs BSDS at {root}; KDTASKS_DATA names the folder that holds it")
    paths = sorted(root.glob("b100/*"))
    assert len(paths) == 100 and len(list(root.glob("train/*"))) == 80
    test = Images(Pairs(paths[:2], scale=4))
    assert (
        sorted(test[0]["target"].shape[1:]) == [320, 480] and float(test[0]["target"].std()) > 0.05
    )
