"""Super-resolution through the engine: figures by hand, a whole small run in AIL's rounds, and a
folder of images.
"""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from kdtasks.engine import cli
from kdtasks.engine import config as configs
from kdtasks.engine.run import Run
from kdtasks.engine.show import table
from kdtasks.super_resolution import data, imresize, trainer
from kdtasks.super_resolution.ail import importance, teacher_importance
from kdtasks.super_resolution.models import EDSR, ESPCN, FSRCNN, VDSR, SRResNet

# also where the report has none
PICTURES = trainer.pictures
FOLDER = "kdtasks.super_resolution.data.image_folder"
AIL = "kdtasks.super_resolution.ail.AILLoss"


def picture(height, width, seed=0, grey=False):
    """Smooth waves with some noise, uint8 (H,W,3) or (H,W)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 9
    waves = [np.sin(a * y + b * x + c) for a, b, c in rng.normal(size=(3, 3))]
    image = 128 + 60 * np.stack(waves, -1) + rng.normal(0, 8, (height, width, 3))
    return (
        image.clip(0, 255).astype(np.uint8)[..., 0] if grey else image.clip(0, 255).astype(np.uint8)
    )


def folder(path, **images):
    path.mkdir(parents=True)
    for name, image in images.items():
        Image.fromarray(image).save(path / f"{name}.png")
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four training and five test images."""
    root = tmp_path_factory.mktemp("photos")
    folder(root / "train", **{f"t{i}": picture(40, 44, i) for i in range(4)})
    folder(root / "test", **{f"p{i}": picture(30 + 2 * i, 41 - i, 10 + i) for i in range(5)})
    return root


def config(photos, color="y", enlarged=False, stages=True, variant="ail", **changes):
    """AIL in two rounds of two steps."""
    channels, common = (
        1 if color == "y" else 3,
        {"type": FOLDER, "scale": 2, "color": color, "enlarged": enlarged},
    )
    model = (
        {"type": f"{ESPCN.__module__}.ESPCN", "channels": channels}
        if not enlarged
        else {"type": f"{VDSR.__module__}.VDSR", "depth": 3}
    )
    size = (lambda n: {"width": n}) if enlarged else (lambda n: {"widths": [n]})
    plain = {"loss_l1": {"type": "torch.nn.L1Loss", "of": ("student", "target")}}
    teachers = {"teacher": "teacher.last"} if variant == "ail" else {}
    of = ("student", *teachers, "target"), ("student", *teachers, "previous", "target")
    losses = [
        {
            "loss_ail": {
                "type": AIL,
                "round": t,
                "variant": variant,
                "reduction": "mean",
                "of": of[t],
            }
        }
        for t in (0, 1)
    ]
    rounds = [
        {"name": "teacher", "model": "teacher", "losses": plain},
        {"name": "alone", "role": "control", "losses": plain, "length": {"iterations": 4}},
        {"name": "round0", "teachers": teachers, "losses": losses[0]},
        {
            "name": "distilled",
            "student": "keep",
            "teachers": {**teachers, "previous": "round0.last"},
            "losses": losses[1],
        },
    ]
    full = {
        "task": "kdtasks.super_resolution.trainer",
        "student": {**model, **size(4)},
        "teacher": {**model, **size(6)},
        "losses": plain,
        "optimizer": {"type": "torch.optim.Adam", "lr": 0.002},
        "length": {"iterations": 2},
        "log_interval": 1,
        "data": {
            "train": {**common, "root": str(photos / "train"), "patch": 10},
            "batch_size": 4,
            "test_batch_size": 1,
            "test": {**common, "root": str(photos / "test"), "train": False},
        },
    }
    return configs.complete({**full, **({"stages": rounds} if stages else {}), **changes})


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory, drawn_reports):
    run = Run(config(photos), tmp_path_factory.mktemp("runs") / "run", device="cpu", quiet=True)
    run.train()
    return run


# Figures ------------------------------------------------------------------------------------------
class Nearest(nn.Module):
    """Enlarges by repeating pixels, and shifts the colours a little beyond 1."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3) * 1.0371


def by_hand(output, target, crop):
    """psnr_y, ssim_y, psnr_rgb of uint8 (H,W,3), by scikit-image."""
    y = [rgb2ycbcr(image)[crop:-crop, crop:-crop, 0] for image in (target, output)]
    ssim = structural_similarity(
        *y, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )[1]
    inner = [image[crop:-crop, crop:-crop].astype(float) for image in (target, output)]
    return (
        peak_signal_noise_ratio(*y, data_range=255),
        ssim[5:-5, 5:-5].mean(),
        peak_signal_noise_ratio(*inner, data_range=255),
    )


def test_evaluate_is_the_mean_over_images_of_what_scikit_image_finds(photos):
    images = data.image_folder(photos / "test", train=False, scale=3)
    batches = [
        {name: torch.as_tensor(value)[None] for name, value in images[i].items()} for i in range(5)
    ]
    expected = []
    for batch in batches:
        levels = Nearest(3)(batch["input"]).mul(255).round().clamp(0, 255)
        expected.append(
            by_hand(
                *(
                    x[0].permute(1, 2, 0).numpy().astype(np.uint8)
                    for x in (levels, batch["target"] * 255 + 0.1)
                ),
                3,
            )
        )
    found = trainer.evaluate(Nearest(3), batches)
    assert list(found) == ["psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"]
    assert [found[name] for name in ("psnr_y", "ssim_y", "psnr_rgb")] == pytest.approx(
        np.mean(expected, 0).tolist(), rel=1e-6
    )


def test_evaluate_of_luma_that_is_enlarged_already_leaves_out_a_border_as_wide_as_the_scale(photos):
    images = data.image_folder(photos / "test", train=False, scale=4, color="y", enlarged=True)
    batch = {name: torch.as_tensor(value)[None] for name, value in images[0].items()}
    found = trainer.evaluate(Nearest(1), [batch])
    y = [
        (x[0, 0, 4:-4, 4:-4].double() * 255).round()
        for x in (Nearest(1)(batch["input"]), batch["target"])
    ]
    assert found["psnr_y"] == pytest.approx(
        float(10 * torch.log10(255**2 / (y[0] - y[1]).square().mean()))
    )
    assert list(found) == ["psnr_y", "ssim_y"]
    wrong = [
        {name: value for name, value in batch.items() if name != "scale"},
        {**batch, "scale": torch.tensor([2, 3])},
    ]
    for batch in wrong:
        with pytest.raises(ValueError, match="expected one scale of at least 2 for a batch, got"):
            trainer.evaluate(Nearest(1), [batch])


@pytest.mark.parametrize("enlarged", [False, True])
def test_a_network_that_gives_the_bicubic_picture_is_reported(photos, enlarged):
    images = data.image_folder(photos / "test", train=False, color="y", enlarged=enlarged)
    batch = {name: torch.as_tensor(value)[None] for name, value in images[0].items()}
    network = VDSR(4, 3) if enlarged else ESPCN(2, widths=[4])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.evaluate(network, [batch])
        nn.init.zeros_([p for p in network.parameters() if p.dim() == 4][-1])
        with pytest.warns(RuntimeWarning, match="bicubic picture"):
            trainer.evaluate(network, [batch])


@pytest.mark.parametrize("settings", [{}, {"color": "rgb"}, {"enlarged": True}], ids=str)
def test_example_has_the_shapes_of_the_data(photos, settings):
    run = Run(config(photos, **settings), "unused", device="cpu")
    real, made = (
        next(iter(run.experiment.train_loader(run.experiment.stages[0]))),
        trainer.example(run.experiment.config, 4),
    )
    assert all(made[name].shape == real[name].shape for name in ("input", "target", "index"))
    assert run.experiment.distiller(run.experiment.stages[0], load=False).build(made)


# A run --------------------------------------------------------------------------------------------
def test_a_whole_run_and_its_pictures(finished):
    stages = finished.results["stages"]
    assert list(stages) == ["teacher", "alone", "round0", "distilled"]
    assert {name for name in stages["distilled"] if name != "seconds"} == {"psnr_y", "ssim_y"}
    loader = finished.experiment.test_loader(finished.experiment.stages[-1])
    assert trainer.evaluate(finished.trained("distilled"), loader)["psnr_y"] == pytest.approx(
        stages["distilled"]["psnr_y"]
    )
    titles = [title for title, _ in trainer.pictures(finished)]
    assert [title.split()[0] for title in titles] == [
        "4",
        "Errors",
        "AIL's",
        "Gain",
    ] and "luma alone" in titles[0]
    gain = stages["distilled"]["psnr_y"] - stages["alone"]["psnr_y"]
    assert f"from alone to distilled: mean {gain:+.3f} dB" in titles[3]
    assert (finished.work_dir / "report.html").read_text().count("data:image/") >= 6


def test_ssim_has_four_digits_wherever_it_is_shown(finished, photos, tmp_path, capsys):
    """In the table at the end, in train.log and by tools/test.py; PSNR keeps the digits that it
    had.
    """
    found = finished.results["stages"]["distilled"]
    psnr, ssim = found["psnr_y"], found["ssim_y"]
    parts, task = finished.experiment.arms, finished.experiment.task
    table(finished.results, parts, task)
    rows = [row.split() for row in capsys.readouterr().out.replace("│", " ").splitlines()]
    row = next(row for row in rows if row[:1] == ["distilled"])
    assert f"{psnr:.2f}" in row and f"{ssim:.4f}" in row
    table({**finished.results, "primary": "ssim_y"}, parts, task)
    difference = ssim - finished.results["stages"]["alone"]["ssim_y"]
    assert f"{difference:+.4f}" in capsys.readouterr().out
    assert (
        f"psnr_y {psnr:.3f}  ssim_y {ssim:.4f}"
        in (finished.work_dir / "train.log").read_text().splitlines()[-1]
    )
    (tmp_path / "c.py").write_text(
        "\n".join(f"{key} = {value!r}" for key, value in config(photos).items())
    )
    cli.test([str(tmp_path / "c.py"), str(finished.work_dir / "student.pth"), "--device", "cpu"])
    assert capsys.readouterr().out.splitlines() == [f"psnr_y {psnr:.3f}", f"ssim_y {ssim:.4f}"]


def test_the_importance_drawn_is_that_of_the_rounds(finished):
    from kdtasks.super_resolution.pictures import look

    _, shown = look({}, finished.experiment.test_loader(finished.experiment.stages[0]), 2)
    maps = trainer.importance_of(finished, finished.experiment.stages, shown)
    assert list(maps) == ["round0", "distilled"]
    for k, one in enumerate(shown):
        with torch.no_grad():
            initial = teacher_importance(finished.trained("teacher")(one.input), one.target)
            later = importance(initial, finished.trained("round0")(one.input), one.target, 1)
        assert torch.allclose(maps["round0"][k], initial, atol=1e-6) and torch.allclose(
            maps["distilled"][k], later, atol=1e-6
        )


@pytest.mark.parametrize(
    "without, titles, names",
    [
        (["alone"], ["4", "Errors", "AIL's", "Gain"], ["bicubic", "distilled", "teacher"]),
        (["distilled"], ["4", "Errors", "AIL's", "Gain"], ["alone", "round0", "teacher"]),
        (["round0", "distilled"], ["4", "Errors", "Gain"], ["bicubic", "alone", "teacher"]),
        (["alone", "round0", "distilled"], ["4", "Errors"], ["teacher"]),
        (["teacher", "alone", "round0", "distilled"], [], []),
    ],
)
def test_pictures_of_what_there_is(finished, tmp_path, without, titles, names):
    shutil.copytree(finished.work_dir, tmp_path / "run")
    done = {name: values for name, values in finished.done.items() if name not in without}
    (tmp_path / "run" / "stages" / "done.json").write_text(json.dumps(done))
    drawn = trainer.pictures(
        Run(finished.experiment.config, tmp_path / "run", device="cpu", quiet=True)
    )
    assert [title.split()[0] for title, _ in drawn] == titles
    if drawn:
        assert [text.get_text() for text in drawn[1][1].texts if text.get_weight() == "bold"][
            1 : len(names) + 1
        ] == names


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer, "pictures", lambda run: [])


def test_a_teacher_from_a_file_is_drawn_and_a_former_student_is_not(
    photos, finished, tmp_path, no_pictures
):
    file, full = str(finished.folder(finished.experiment.stages[0]) / "last.pth"), config(photos)
    full["stages"] = full["stages"][1:]
    for stage in full["stages"][1:]:
        stage["teachers"] = (
            {"previous": "round0.last", "teacher": file}
            if stage["name"] == "distilled"
            else {"teacher": file}
        )
    run = Run(full, tmp_path / "run", device="cpu", quiet=True)
    run.train()
    drawn = PICTURES(run)
    heads = [
        text.get_text()
        for text in drawn[0][1].texts
        if text.get_text() and not text.get_text().endswith("dB")
    ]
    assert heads == ["LR", "bicubic", "alone", "distilled", "teacher", "HR"] and len(drawn) == 4


def test_rounds_without_a_teacher(photos, tmp_path, no_pictures):
    full = config(photos, "rgb", variant="no_teacher", teacher=None)
    full["stages"] = full["stages"][1:]
    run = Run(full, tmp_path / "run", device="cpu", quiet=True)
    run.train()
    drawn = PICTURES(run)
    assert len(drawn) == 4 and "stage by stage: on average 1.00 in round0, 0.1" in drawn[2][0]


# A folder of images -------------------------------------------------------------------------------
@pytest.fixture
def album(tmp_path):
    """Odd sizes; grey, and an alpha channel."""
    opaque = np.dstack([picture(31, 44, 3), np.full((31, 44), 255, np.uint8)])
    return folder(
        tmp_path / "album",
        alpha=opaque,
        color=picture(33, 46, 1),
        grey=picture(40, 29, 2, grey=True),
        turned=np.rot90(picture(33, 46, 1)),
    )


def read(path):
    return np.array(Image.open(path).convert("RGB"))


SETTINGS = [("rgb", False), ("y", False), ("y", True)]


def network(color, enlarged):
    torch.manual_seed(0)
    model = VDSR(4, 3) if enlarged else ESPCN(2, 3 if color == "rgb" else 1, [4])
    with torch.no_grad():
        if enlarged:
            for p in list(model.parameters())[-2:]:
                p *= 0.1
        else:
            # its own start is next to nothing
            nn.init.normal_(model.body[-2].weight, std=0.03)
    return model.eval()


@pytest.mark.parametrize("color, enlarged", SETTINGS)
def test_predict_measures_what_it_writes(photos, album, tmp_path, capsys, color, enlarged):
    before = {path.name: path.read_bytes() for path in album.iterdir()}
    model, full = network(color, enlarged), config(photos, color, enlarged)
    assert trainer.predict(model, full, album, tmp_path / "new" / "out", measured=True) == []
    assert {path.name: path.read_bytes() for path in album.iterdir()} == before
    figures = json.loads((tmp_path / "new" / "out" / "figures.json").read_text())
    assert figures["scale"] == 2 and set(figures["images"]) == set(before)
    for name, found in figures["images"].items():
        whole = read(album / name)
        target = whole[: whole.shape[0] // 2 * 2, : whole.shape[1] // 2 * 2]
        written = Image.open(tmp_path / "new" / "out" / name)
        assert written.mode == "RGB" and read(tmp_path / "new" / "out" / name).shape == target.shape
        assert (found["psnr_y"], found["ssim_y"]) == pytest.approx(
            by_hand(np.array(written), target, 2)[:2], rel=1e-5
        )
        small = imresize(torch.from_numpy(target).permute(2, 0, 1)[None].double() / 255, 0.5)
        small = small if enlarged else (small * 255).round().clamp(0, 255) / 255
        bicubic = (
            (imresize(small, 2)[0].permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
        )
        assert found["bicubic_psnr_y"] == pytest.approx(by_hand(bicubic, target, 2)[0], abs=0.02)
    mean = np.mean([found["psnr_y"] for found in figures["images"].values()])
    assert (
        figures["mean"]["psnr_y"] == pytest.approx(mean)
        and f"{mean:.2f}" in capsys.readouterr().out.splitlines()[-1]
    )


def strict(text):
    """JSON as others read it."""

    def refused(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refused)


@pytest.mark.filterwarnings("ignore:the network gives the bicubic")
def test_an_image_without_error_is_null_and_not_in_the_mean(photos, tmp_path, capsys):
    """Images of one colour: repeating pixels hits both, and 1.0371 times that hits black alone."""
    album = folder(
        tmp_path / "album",
        black=np.zeros((30, 32, 3), np.uint8),
        flat=np.full((30, 32, 3), 77, np.uint8),
        wave=picture(40, 44),
    )
    found = {}
    for name, model in (("right", Repeat()), ("wrong", Nearest(2))):
        trainer.predict(model, config(photos, "rgb"), album, tmp_path / name, measured=True)
        found[name] = strict((tmp_path / name / "figures.json").read_text())
        rows = found[name]["images"]
        assert [
            rows[f"{image}.png"]["bicubic_psnr_y"] is None for image in ("black", "flat", "wave")
        ] == [True, True, False]
        kept = [row["psnr_y"] for row in rows.values() if row["psnr_y"] is not None]
        assert len(kept) == {"right": 1, "wrong": 2}[name] and found[name]["mean"][
            "psnr_y"
        ] == pytest.approx(sum(kept) / len(kept))
        assert found[name]["mean"]["ssim_y"] == pytest.approx(
            np.mean([row["ssim_y"] for row in rows.values()])
        )
        assert (
            capsys.readouterr()
            .out.splitlines()[-1]
            .startswith(f"mean of 3, PSNR {len(kept)} and 1 ")
        )
        images = data.image_folder(album, train=False)
        batches = [
            {key: torch.as_tensor(value)[None] for key, value in images[i].items()}
            for i in range(3)
        ]
        assert trainer.evaluate(model, batches)["psnr_y"] == pytest.approx(
            found[name]["mean"]["psnr_y"]
        )
    assert trainer.evaluate(Repeat(), batches[:2])["psnr_y"] == np.inf
    (album / "wave.png").unlink()
    trainer.predict(Repeat(), config(photos, "rgb"), album, tmp_path / "all", measured=True)
    assert strict((tmp_path / "all" / "figures.json").read_text())["mean"]["psnr_y"] is None


class Repeat(nn.Module):
    def forward(self, x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_a_network_that_gives_no_number_is_not_hidden_by_the_mean(photos):
    images = data.image_folder(photos / "test", train=False)
    batches = [
        {key: torch.as_tensor(value)[None] for key, value in images[i].items()} for i in range(2)
    ]
    for batch, factor in zip(batches, (1, np.nan)):
        batch["input"] = batch["input"] * factor
    assert np.isnan(trainer.evaluate(Repeat(), batches)["psnr_y"])


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize(
    "scale, enlarged, made",
    [(3, False, (99, 138)), (1, False, (33, 46)), (2, True, (132, 184))],
    ids=str,
)
def test_a_network_of_another_scale_is_an_error_before_anything_is_saved(
    photos, tmp_path, measured, scale, enlarged, made
):
    album = folder(
        tmp_path / "album", color=picture(66 if measured else 33, 92 if measured else 46)
    )
    with pytest.raises(
        ValueError,
        match=rf"made \(1, 3, {made[0]}, {made[1]}\) of color.png, "
        r"expected \(1, 3, 66, 92\): the data has scale=2",
    ):
        trainer.predict(
            Nearest(scale),
            config(photos, "rgb", enlarged),
            album,
            tmp_path / "out",
            measured=measured,
        )
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("enlarged", [False, True])
def test_predict_agrees_with_evaluate(photos, tmp_path, enlarged):
    model, full = Nearest(1) if enlarged else network("rgb", False), config(photos, "rgb", enlarged)
    trainer.predict(model, full, photos / "test", tmp_path / "out", measured=True)
    run = Run(full, "unused", device="cpu")
    with torch.no_grad():
        found = trainer.evaluate(model, run.experiment.test_loader(run.experiment.stages[0]))
    mean = json.loads((tmp_path / "out" / "figures.json").read_text())["mean"]
    assert (mean["psnr_y"], mean["ssim_y"]) == pytest.approx((found["psnr_y"], found["ssim_y"]))


@pytest.mark.parametrize("color, enlarged", SETTINGS)
def test_inputs_are_enlarged_as_they_are_whole_in_tiles_and_turned(
    photos, album, tmp_path, color, enlarged
):
    model, full = network(color, enlarged), config(photos, color, enlarged)
    whole, tiles, turned = ({"tile": None}, {"tile": 13}, {"ensemble": True})
    found = []
    for k, options in enumerate((whole, tiles, turned)):
        trainer.predict(model, full, album, tmp_path / str(k), measured=False, **options)
        assert sorted(path.name for path in (tmp_path / str(k)).iterdir()) == [
            "alpha.png",
            "color.png",
            "grey.png",
            "turned.png",
        ]
        found.append({path.stem: read(path).astype(int) for path in (tmp_path / str(k)).iterdir()})
    rgb = torch.from_numpy(read(album / "color.png")).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        if color == "rgb":
            expected = model(rgb)
        # Y through the network, Cb and Cr by bicubic
        else:
            ycbcr = (
                torch.tensor(rgb2ycbcr(rgb[0].permute(1, 2, 0).numpy()))
                .permute(2, 0, 1)[None]
                .float()
                / 255
            )
            large = imresize(ycbcr, 2)
            y = model(large[:, :1] if enlarged else ycbcr[:, :1])
            from skimage.color import ycbcr2rgb

            both = torch.cat([y, large[:, 1:]], 1)[0].permute(1, 2, 0).double().numpy() * 255
            expected = torch.from_numpy(ycbcr2rgb(both)).permute(2, 0, 1)[None]
    expected = (expected[0].permute(1, 2, 0) * 255).clamp(0, 255).numpy()
    assert (
        found[0]["color"].shape == (66, 92, 3) and abs(found[0]["color"] - expected).max() <= 0.51
    )
    assert found[0]["grey"].shape == (80, 58, 3) and found[0]["alpha"].shape == (62, 88, 3)
    assert all(abs(found[1][name] - found[0][name]).max() <= 1 for name in found[0])
    assert [abs(np.rot90(images["color"]) - images["turned"]).max() <= 1 for images in found] == [
        False,
        False,
        True,
    ]


def test_files_that_cannot_be_used_are_left_out_and_named(photos, album, tmp_path):
    (album / "broken.jpg").write_bytes(b"no image")
    Image.fromarray(np.zeros((20, 20), np.float32)).save(album / "float.tif")
    (album / "._color.png").write_bytes(b"of an archive")
    (album / "notes.txt").write_text("no image")
    for measured in (True, False):
        with pytest.warns(UserWarning) as caught:
            failed = trainer.predict(
                network("rgb", False),
                config(photos, "rgb"),
                album,
                tmp_path / str(measured),
                measured=measured,
            )
        assert [path.rsplit("/", 1)[1] for path in failed] == ["broken.jpg", "float.tif"]
        messages = [str(warning.message) for warning in caught]
        assert (
            all(any(path in message for message in messages) for path in failed)
            and len(messages) == 2
        )
        assert (tmp_path / str(measured) / "color.png").exists() and not (
            tmp_path / str(measured) / "float.png"
        ).exists()
    assert "expected" in next(message for message in messages if "float" in message)


def test_folders_are_searched_and_kept_and_no_two_images_become_one(photos, tmp_path):
    album = tmp_path / "album"
    for name in (
        "same.jpg",
        "same.png",
        "same.jpg.png",
        "deep/er/same.png",
        "deep/other.bmp",
        ".hidden/x.png",
    ):
        (album / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(20 + len(name), 30)).save(album / name)
    assert (
        trainer.predict(
            network("rgb", False), config(photos, "rgb"), album, tmp_path / "out", measured=True
        )
        == []
    )
    made = {
        path.relative_to(tmp_path / "out").as_posix(): Image.open(path).height
        for path in (tmp_path / "out").rglob("*.png")
    }
    origin = {
        "same.jpg.png": "same.jpg",
        "same.png.png": "same.png",
        "same.jpg.png.png": "same.jpg.png",
        "deep/er/same.png": "deep/er/same.png",
        "deep/other.png": "deep/other.bmp",
    }
    assert made == {out: (20 + len(name)) // 2 * 2 for out, name in origin.items()}
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert set(figures["images"]) == set(origin.values())


def test_a_picture_too_small_for_ssim_is_enlarged_and_measured_without_it(photos, tmp_path, capsys):
    album = folder(
        tmp_path / "album", whole=picture(40, 40), thin=picture(40, 14), tiny=picture(4, 4)
    )
    with pytest.warns(UserWarning) as caught:
        assert (
            trainer.predict(
                network("rgb", False), config(photos, "rgb"), album, tmp_path / "out", measured=True
            )
            == []
        )
    said = sorted(str(warning.message) for warning in caught)
    assert len(said) == 2 and "thin.png is 40x14" in said[0] and "its SSIM is left out" in said[0]
    assert "tiny.png is 4x4" in said[1] and "its PSNR and SSIM are left out" in said[1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "whole.png",
        "thin.png",
        "tiny.png",
        "figures.json",
    }
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    rows = figures["images"]
    assert rows["thin.png"]["ssim_y"] is None and set(rows["tiny.png"].values()) == {None}
    assert figures["mean"]["ssim_y"] == rows["whole.png"]["ssim_y"]
    assert figures["mean"]["psnr_y"] == pytest.approx(
        (rows["whole.png"]["psnr_y"] + rows["thin.png"]["psnr_y"]) / 2
    )
    assert capsys.readouterr().out.splitlines()[-1].startswith("mean of 3, PSNR 2 and 2, SSIM 1 ")


def test_predict_endangers_no_file(photos, album, tmp_path):
    model, full = network("rgb", False), config(photos, "rgb")
    taken = folder(tmp_path / "taken", mine=picture(12, 12))
    for out, match in (
        (album, "lies in the folder"),
        (album / "deep" / "er", "lies in the folder"),
        (taken, "holds files"),
        (tmp_path / "album" / ".." / "album", "lies in the folder"),
    ):
        with pytest.raises(ValueError, match=match):
            trainer.predict(model, full, album, out, measured=False)
    assert not (album / "deep").exists()
    with pytest.raises(FileNotFoundError, match="no folder"):
        trainer.predict(model, full, tmp_path / "nowhere", tmp_path / "out", measured=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in"):
        trainer.predict(model, full, tmp_path / "empty", tmp_path / "out", measured=False)
    full["data"]["test"]["scale"] = [2, 3]
    with pytest.raises(ValueError, match=r"scale=\[2, 3\], expected one"):
        trainer.predict(model, full, taken, tmp_path / "out", measured=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "student, large",
    [
        (ESPCN(2, 3, [4]), False),
        (ESPCN(2, 3, [4], residual=False), False),
        (FSRCNN(2, 3), False),
        (EDSR(2, blocks=1, width=4), False),
        (SRResNet(2, blocks=1, width=4), False),
        (VDSR(4, 3), True),
    ],
    ids=["residual", "espcn", "fsrcnn", "edsr", "srresnet", "vdsr"],
)
def test_onnx_enlarges_images_of_any_size(tmp_path, student, large):
    onnxruntime = pytest.importorskip("onnxruntime")
    from kdtasks.engine.export_formats import FORMATS

    student = student.eval()
    channels = 1 if large else 3
    form = trainer.onnx_form(student, torch.rand(3, channels, 24, 30))
    assert len({example[0].shape for example in form.examples}) == 2
    FORMATS["onnx"].write(form, {}, tmp_path / "s.onnx", None)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"]
    )
    assert [str(size) for size in session.get_inputs()[0].shape] == [
        "batch",
        str(channels),
        "height",
        "width",
    ]
    for example, outputs in zip(
        form.examples, FORMATS["onnx"].run(None, form, tmp_path / "s.onnx")
    ):
        with torch.no_grad():
            assert torch.allclose(outputs[0], student(*example), atol=1e-5)
    for size in ((1, channels, 7, 50), (2, channels, 41, 13)):
        image = torch.rand(size)
        with torch.no_grad():
            assert np.allclose(
                session.run(None, {"input": image.numpy()})[0], student(image), atol=1e-5
            )
