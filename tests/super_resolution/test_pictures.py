"""What the report draws: the numbers and pixels behind it, and that it is drawn at all."""

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from kdtasks.engine.loader import Loader
from kdtasks.super_resolution import imresize, pictures, psnr_y
from kdtasks.super_resolution.metrics import luma

COLORS = {"alone": "#E69F00", "distilled": "#0072B2", "teacher": "#5A6472"}


def noisy(height, width, seed=0, channels=3):
    return (
        torch.rand(channels, height, width, generator=torch.Generator().manual_seed(seed)) * 0.6
        + 0.2
    )


class Images:
    """Images of growing size, and what they are at half of it."""

    def __init__(self, count=6, channels=3, enlarged=False):
        self.targets = [noisy(24 + 2 * i, 30, i, channels) for i in range(count)]
        self.enlarged = enlarged

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        small = imresize(self.targets[i][None], 0.5).clamp(0, 1)
        return {
            "input": (imresize(small, 2) if self.enlarged else small)[0],
            "target": self.targets[i],
            "scale": 2,
        }


class Shifted(nn.Module):
    """The bicubic picture and a little more."""

    def __init__(self, shift, scale=2):
        super().__init__()
        self.shift, self.scale = shift, scale

    def forward(self, x):
        return (imresize(x, 2) if self.scale == 2 else x) + self.shift


MODELS = {"alone": Shifted(0.04), "distilled": Shifted(-0.02), "teacher": Shifted(0.3)}


def looked(channels=3, enlarged=False, models=MODELS, count=6, shown=4):
    models = {name: Shifted(model.shift, 1 if enlarged else 2) for name, model in models.items()}
    return pictures.look(models, Loader(Images(count, channels, enlarged), 1, shuffle=False), shown)


# Numbers ------------------------------------------------------------------------------------------
def test_the_most_detailed_square_is_that_of_a_loop():
    image = noisy(40, 52)
    # calm above, on the right
    image[:, :, 26:] *= torch.linspace(0.1, 1, 40)[:, None]
    y = np.pad(luma(image[None])[0, 0].double().numpy(), 3, mode="edge")
    local = np.array([[y[i : i + 7, j : j + 7].var() for j in range(52)] for i in range(40)])
    for scale, size in ((2, 16), (3, 18)):
        step = scale * (size // (4 * scale))
        places = [
            (local[i : i + size, j : j + size].mean(), j, i)
            for i in range(0, 41 - size, step)
            for j in range(0, 53 - size, step)
        ]
        assert pictures.most_detailed(image[None], scale, size) == (*max(places)[1:], size)


def test_a_strong_edge_is_less_detail_than_texture_and_a_small_image_is_taken_whole():
    image = torch.full((1, 1, 64, 128), 0.1)
    # varies more over a square, and hardly within a window
    image[..., :20] = 0.35
    image[..., 80:112] += 0.4 * noisy(64, 32, 1, 1)
    assert pictures.most_detailed(image, 2, 32)[0] == 80
    assert pictures.most_detailed(noisy(9, 11)[None], 3) == (0, 0, 9) and pictures.most_detailed(
        noisy(4, 5)[None], 4
    ) == (0, 0, 4)


def test_squares_are_means():
    values = noisy(170, 90)
    # of 3 pixels: 170 / 80 rounded up
    found = pictures.squares(values[None])
    assert found.shape == (57, 30)
    for i, j in ((0, 0), (20, 7), (56, 29)):
        assert float(found[i, j]) == pytest.approx(
            float(values[:, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].mean())
        )
    assert torch.allclose(pictures.squares(values[None, :, :80, :80]), values[:, :80, :80].mean(0))


@pytest.mark.parametrize("channels, enlarged", [(3, False), (1, False), (1, True)])
def test_all_images_are_measured_and_some_kept(channels, enlarged):
    psnr, shown = looked(channels, enlarged)
    images = Images(6, channels, enlarged)
    assert list(psnr) == ["bicubic", *MODELS] and [one.target.shape[2] for one in shown] == [
        24,
        28,
        30,
        34,
    ]
    for i in range(6):
        bicubic = imresize(imresize(images.targets[i][None], 0.5).clamp(0, 1), 2)
        for name, shift in (("bicubic", 0), ("distilled", -0.02)):
            expected = float(psnr_y(bicubic + shift, images.targets[i][None], crop=2))
            assert float(psnr[name][i]) == pytest.approx(expected, abs=1e-6)
            for one in shown:
                if one.target.shape[2] == 24 + 2 * i:
                    assert one.psnr[name] == pytest.approx(expected, abs=1e-6)
                    assert torch.allclose(
                        one.outputs[name], (bicubic + shift).clamp(0, 1), atol=1e-5
                    )
                    assert torch.equal(one.target[0], images.targets[i]) and torch.equal(
                        one.input[0], images[i]["input"]
                    )


def test_images_of_one_size_may_come_together():
    class Equal(Images):
        def __getitem__(self, i):
            return {
                name: x[..., : 12 if name == "input" else 24, :] if name != "scale" else x
                for name, x in super().__getitem__(i).items()
            }

    (one, few), (two, same) = (
        pictures.look(MODELS, Loader(Equal(7), size, shuffle=False)) for size in (1, 3)
    )
    assert (
        all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
        and len(one["alone"]) == 7
    )
    for a, b in zip(few, same, strict=True):
        assert (
            torch.equal(a.target, b.target)
            and torch.equal(a.input, b.input)
            and a.psnr == pytest.approx(b.psnr, abs=1e-6)
        )
        assert torch.allclose(a.outputs["alone"], b.outputs["alone"], atol=1e-6)


# Figures ------------------------------------------------------------------------------------------
def saved(figure):
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    return figure


def panels(figure):
    """The pictures, row by row, without the bars of colours."""
    return [axes.images[0] for axes in figure.axes if axes.images]


def said(figure, ending):
    return [text for text in figure.texts if text.get_text().endswith(ending)]


@pytest.mark.parametrize("channels, enlarged", [(3, False), (1, False), (1, True)])
def test_details_are_pixels_of_the_images(channels, enlarged):
    _, shown = looked(channels, enlarged)
    title, figure = pictures.draw_details(shown, ["alone", "distilled"], COLORS)
    assert ("luma alone" in title) == (channels == 1)
    drawn = panels(saved(figure))
    assert len(drawn) == 4 * 6
    for k, one in enumerate(shown):
        left, top, size = pictures.most_detailed(one.target, 2)
        whole = [
            imresize(one.target, 0.5).clamp(0, 1).repeat_interleave(2, 2).repeat_interleave(2, 3),
            *one.outputs.values(),
            one.target,
        ]
        for image, panel in zip(whole, drawn[6 * k : 6 * k + 6]):
            part = image[0, :, top : top + size, left : left + size].permute(1, 2, 0).squeeze(2)
            np.testing.assert_allclose(panel.get_array(), part, atol=1e-6)
    values = said(figure, "dB")
    assert [text.get_text() for text in values[:4]] == [
        f"{value:.2f} dB" for value in shown[0].psnr.values()
    ]
    # distilled is better
    assert [text.get_weight() for text in values] == ["normal", "normal", "bold", "normal"] * 4


def test_errors_are_of_the_luma_in_grey_levels_and_share_a_scale_in_a_row():
    _, shown = looked()
    title, figure = pictures.draw_errors(shown, ["alone", "distilled"], COLORS)
    drawn = panels(saved(figure))
    assert len(drawn) == 4 * 5 and "right: their difference" in title
    for k, one in enumerate(shown):
        _, alone, distilled, teacher, gain = drawn[5 * k : 5 * k + 5]
        errors = {
            name: 255 * (luma(one.outputs[name]) - luma(one.target)).abs()[0, 0].numpy()
            for name in MODELS
        }
        for panel, name in ((alone, "alone"), (distilled, "distilled"), (teacher, "teacher")):
            np.testing.assert_allclose(panel.get_array(), errors[name], atol=1e-3)
            assert panel.get_clim() == (
                0,
                pytest.approx(np.quantile(np.stack(list(errors.values())), 0.995), rel=1e-3),
            )
        np.testing.assert_allclose(
            gain.get_array(), errors["alone"] - errors["distilled"], atol=1e-3
        )
        assert gain.get_clim()[0] == -gain.get_clim()[1] < 0
        # alone better, none, distilled
        ends = [tuple(round(255 * x) for x in gain.cmap(value)[:3]) for value in (0.0, 0.5, 1.0)]
        assert ends == [(0xE6, 0x9F, 0x00), (255, 255, 255), (0x00, 0x72, 0xB2)]
    left, top, size = pictures.most_detailed(shown[0].target, 2)
    frame = drawn[0].axes.patches[0]
    height, width = shown[0].target.shape[2:]
    assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == pytest.approx(
        (left / width, 1 - (top + size) / height, size / width, size / height)
    )


def test_importance_of_many_rounds():
    _, shown = looked()
    stages = [f"round{t}" for t in range(9)] + ["distilled"]
    maps = {
        name: [torch.full_like(one.target, (t + 1) / 20 + k / 100) for k, one in enumerate(shown)]
        for t, name in enumerate(stages)
    }
    title, figure = pictures.draw_importance(maps, shown)
    drawn, heads = (
        panels(saved(figure)),
        [text.get_text() for text in figure.texts if text.get_weight() == "bold"],
    )
    assert (
        heads == ["HR", "round0", "round1", "round3", "round5", "round7", "distilled"]
        and len(drawn) == 2 * 7
    )
    # 0.065, 0.515
    assert "0.06 in round0" in title and "0.51 in distilled" in title
    # images 1, 3
    assert [text.get_text() for text in figure.texts if "mean" in text.get_text()][::6] == [
        "mean 0.060",
        "mean 0.080",
    ]
    np.testing.assert_allclose(drawn[6].get_array(), 0.51, atol=1e-6)
    curves = figure.axes[-1].lines
    assert len(curves) == 5 and curves[-1].get_ydata()[[0, -1]].tolist() == pytest.approx(
        [0.065, 0.515]
    )
    assert drawn[1].get_clim() == (0, 1)


def test_one_round_has_no_curve():
    _, shown = looked()
    _, figure = pictures.draw_importance(
        {"distilled": [torch.ones_like(one.target[:, :1]) for one in shown]}, shown
    )
    assert len(panels(saved(figure))) == 4 and not any(axes.lines for axes in figure.axes)


def test_gains():
    psnr = {
        "alone": torch.tensor([30.0, 31.0, math.inf, 28.0]),
        "distilled": torch.tensor([30.5, 30.9, math.inf, 28.2]),
    }
    title, figure = pictures.draw_gains(psnr, ["alone", "distilled"], COLORS)
    assert title.endswith("from alone to distilled: mean +0.200 dB, better in 2 of 3")
    points = saved(figure).axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points, [[30, 0.5], [31, -0.1], [28, 0.2]], atol=1e-5)


@pytest.mark.parametrize(
    "names, pair, heads",
    [
        (
            ["alone", "distilled", "teacher"],
            ["alone", "distilled"],
            ["HR", "alone", "distilled", "teacher", "alone − distilled"],
        ),
        (["distilled"], ["distilled"], ["HR", "bicubic", "distilled", "bicubic − distilled"]),
        (["teacher"], [], ["HR", "teacher"]),
    ],
)
def test_whatever_there_is_is_drawn(names, pair, heads):
    psnr, shown = looked(models={name: MODELS[name] for name in names}, count=2)
    drawn = pictures.draw(psnr, shown, pair, COLORS)
    assert [text.get_text() for text in drawn[1][1].texts if text.get_weight() == "bold"] == heads
    assert len(drawn) == (3 if pair else 2) and all(saved(figure) for _, figure in drawn)
    assert (
        not pair or f"from {pair[0] if len(pair) == 2 else 'bicubic'} to distilled" in drawn[-1][0]
    )


def test_every_text_lies_inside_its_figure_and_off_the_pictures():
    psnr, shown = looked()
    maps = {f"round{t}": [torch.ones_like(one.target) for one in shown] for t in range(10)}
    for _, figure in pictures.draw(psnr, shown, ["alone", "distilled"], COLORS, maps):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        whole, renderer = figure.bbox, canvas.get_renderer()
        texts = [text for text in figure.texts if text.get_text()]
        boxes = [text.get_window_extent(renderer) for text in texts]
        assert all(
            box.x0 >= whole.x0 - 1
            and box.x1 <= whole.x1 + 1
            and box.y0 >= whole.y0
            and box.y1 <= whole.y1
            for box in boxes
        )
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert not any(
            box.shrunk(1, 0.8).overlaps(axes.bbox)
            for box in boxes
            for axes in figure.axes
            if axes.images
        )
