"""Tiles against the whole image, the eight symmetries, and luma networks on colour."""

import pytest
import torch
from torch import nn

from kdtasks.super_resolution.inference import self_ensemble, tiled, upscale_rgb
from kdtasks.super_resolution.metrics import imresize, luma
from kdtasks.super_resolution.models import EDSR, ESPCN, FSRCNN, VDSR, SRResNet

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def network(name, scale):
    """A small one in eval and float64, and the radius of its receptive field in pixels of the
    input, counted by hand.
    """
    model, radius = {
        "vdsr": lambda: (VDSR(width=3, depth=4), 4),
        # 5x5 and two 3x3; the bicubic image reaches 2
        "espcn": lambda: (ESPCN(scale, widths=(3, 3)), 4),
        # 5x5, two 3x3, and 9x9 on the large image
        "fsrcnn": lambda: (FSRCNN(scale, width=4, shrink=3, depth=2), 6),
        # 5 on the small image, 1 or 2 on the large ones
        "edsr": lambda: (EDSR(scale, 1, width=4, blocks=1), 6),
        # 4 + 2 + 1 + 1 on the small one, 9x9 on the large
        "srresnet": lambda: (SRResNet(scale, 1, width=4, blocks=1), 10),
    }[name]()
    if name == "fsrcnn":
        # its own start is next to nothing
        nn.init.normal_(model.enlarge.weight)
    if name == "espcn":
        nn.init.normal_(model.body[-2].weight, std=0.3)  # and so is this one's
    return model.double().eval(), radius


# -------------------------------------------------------------------------------------------- tiles
@pytest.mark.parametrize(
    "name, scale",
    [
        ("vdsr", 1),
        ("espcn", 2),
        ("espcn", 3),
        ("fsrcnn", 2),
        ("fsrcnn", 3),
        ("edsr", 2),
        ("edsr", 4),
        ("srresnet", 3),
    ],
)
def test_tiles_equal_the_whole_image(name, scale):
    model, radius = network(name, scale)
    for h, w, tile in ((33, 26, 7), (33, 1, 8), (7, 30, 7), (6, 5, 64)):
        image = torch.rand(2, 1, h, w, dtype=F64)
        whole = model(image)
        torch.testing.assert_close(
            tiled(model, image, scale, tile, radius), whole, rtol=1e-10, atol=1e-10
        )
    image = torch.rand(1, 1, 33, 26, dtype=F64)
    # without context there are seams
    assert (tiled(model, image, scale, 5, 0) - model(image)).abs().max() > 1e-3


def test_the_default_overlap_is_enough_for_sixteen_blocks():
    image = torch.rand(1, 1, 100, 3, dtype=F64)
    for model in (SRResNet(2, 1, width=2), EDSR(4, 1, width=2), VDSR(width=2)):
        model = model.double().eval()
        scale = getattr(model, "scale", 1)
        torch.testing.assert_close(
            tiled(model, image, scale, tile=10), model(image), rtol=0, atol=1e-12
        )


def test_a_window_is_all_that_the_model_sees():
    seen = []

    def model(window):
        seen.append(tuple(window.shape))
        return window.repeat_interleave(2, 2).repeat_interleave(2, 3)

    image = torch.rand(2, 3, 25, 40)
    found = tiled(model, image, 2, tile=8, overlap=3)
    assert torch.equal(found, image.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert len(seen) == 4 * 5 and set(seen) == {(2, 3, 14, 14)}  # one size, so one graph


def test_it_keeps_the_models_precision_and_no_graph():
    model = nn.Conv2d(1, 2, 3, padding=1)
    found = tiled(model, torch.rand(1, 1, 6, 6), 1, tile=4, overlap=1)
    assert found.shape == (1, 2, 6, 6) and found.dtype == torch.float32 and not found.requires_grad
    assert (
        tiled(model.bfloat16(), torch.rand(1, 1, 6, 6).bfloat16(), 1, tile=4, overlap=1).dtype
        == torch.bfloat16
    )


@pytest.mark.gpu
def test_the_image_may_stay_on_the_cpu():
    model, radius = network("edsr", 2)
    image = torch.rand(1, 1, 700, 900, dtype=F64)
    whole, model = model(image), model.cuda()
    # first without counting: workspaces
    found = tiled(model, image, 2, tile=64, overlap=radius)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = tiled(model, image, 2, tile=64, overlap=radius)
    used = torch.cuda.max_memory_allocated() - before
    assert found.device == image.device
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-9)
    tiled(model, image[..., :76, :76], 2, tile=64, overlap=radius)  # one window
    torch.cuda.reset_peak_memory_stats()
    tiled(model, image[..., :76, :76], 2, tile=64, overlap=radius)
    assert used <= 1.1 * (torch.cuda.max_memory_allocated() - before)


def test_wrong_arguments():
    model = network("espcn", 2)[0]
    image = torch.rand(1, 1, 8, 8, dtype=F64)
    with pytest.raises(
        ValueError,
        match=r"made \(1, 1, 16, 16\) of \(1, 1, 8, 8\), which is not "
        r"scale=3",
    ):
        tiled(model, image, 3)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\) .* got \(1, 8, 8\)"):
        tiled(model, image[0], 2)
    with pytest.raises(ValueError, match=r"got \(1, 1, 0, 8\)"):
        tiled(model, image[:, :, :0], 2)
    for options in ({"tile": 0}, {"overlap": -1}):
        with pytest.raises(ValueError, match="expected tile >= 1 and overlap >= 0"):
            tiled(model, image, 2, **options)


# --------------------------------------------------------------------------------------- symmetries
def symmetries():
    """The eight as index maps, written without rot90: transposed or not, rows and columns reversed
    or not.
    """
    return [
        lambda x, t=t, v=v, h=h: reverse(x.transpose(-2, -1) if t else x, v, h)
        for t in (0, 1)
        for v in (0, 1)
        for h in (0, 1)
    ]


def reverse(x, vertically, horizontally):
    rows, columns = torch.arange(x.shape[-2]), torch.arange(x.shape[-1])
    rows, columns = (
        rows.flip(0) if vertically else rows,
        columns.flip(0) if horizontally else columns,
    )
    return x[..., rows, :][..., columns]


@pytest.mark.parametrize("h, w", [(6, 6), (5, 8)])
def test_a_turned_image_gives_the_turned_result(h, w):
    model = network("espcn", 2)[0]
    image = torch.rand(2, 1, h, w, dtype=F64)
    found = self_ensemble(model, image)
    assert found.shape == (2, 1, 2 * h, 2 * w) and not found.requires_grad
    for change in symmetries():
        torch.testing.assert_close(
            self_ensemble(model, change(image)), change(found), rtol=1e-12, atol=1e-12
        )
    assert not torch.allclose(model(symmetries()[1](image)), symmetries()[1](model(image)))


def test_it_is_the_mean_of_eight_different_views():
    image, seen = torch.rand(1, 1, 3, 3, dtype=F64), []

    def model(x):
        seen.append(x.clone())
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) + len(seen)

    found = self_ensemble(model, image)
    wanted = [change(image) for change in symmetries()]
    assert len(seen) == 8 and all(any(torch.equal(view, x) for x in seen) for view in wanted)
    torch.testing.assert_close(found, image.repeat_interleave(2, 2).repeat_interleave(2, 3) + 4.5)


def test_the_ensemble_averages_half_precision_in_float32():
    found = self_ensemble(
        lambda x: torch.full_like(x, 40000), torch.rand(1, 1, 2, 3, dtype=torch.float16)
    )
    # whose sum float16 has no number for
    assert found.dtype == torch.float16 and (found == 40000).all()


def test_tiles_and_symmetries_together():
    model, radius = network("edsr", 2)
    image = torch.rand(1, 1, 13, 9, dtype=F64)
    found = self_ensemble(lambda x: tiled(model, x, 2, 4, radius), image)
    torch.testing.assert_close(found, self_ensemble(model, image), rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------- colour
def in_ycbcr(model, rgb, scale, enlarged):
    """The long way: to Y, Cb, Cr, each enlarged, and back, with scikit-image's matrices."""
    color = pytest.importorskip(
        "skimage.color", reason="needs scikit-image: pip install 'kdtasks[sr]'"
    )
    ycbcr = (
        torch.from_numpy(color.rgb2ycbcr(rgb.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2) / 255
    )
    large = imresize(ycbcr, scale)
    large[:, :1] = model(large[:, :1] if enlarged else ycbcr[:, :1])
    return torch.from_numpy(color.ycbcr2rgb((large * 255).permute(0, 2, 3, 1).numpy())).permute(
        0, 3, 1, 2
    )


@torch.no_grad()
@pytest.mark.parametrize("name, enlarged", [("espcn", False), ("vdsr", True)])
def test_luma_goes_through_the_network_and_colour_through_bicubic(name, enlarged):
    model = network(name, 3)[0]
    rgb = torch.rand(2, 3, 5, 7, dtype=F64)
    found = upscale_rgb(model, rgb, 3, enlarged=enlarged)
    torch.testing.assert_close(found, in_ycbcr(model, rgb, 3, enlarged), rtol=0, atol=1e-6)
    y = imresize(luma(rgb), 3) if enlarged else luma(rgb)
    torch.testing.assert_close(luma(found), model(y), rtol=0, atol=1e-12)
    assert (found - imresize(rgb, 3)).abs().max() > 0.01


def test_an_enlarging_network_and_one_that_is_not_are_not_mixed_up():
    rgb = torch.rand(1, 3, 5, 7, dtype=F64)
    with pytest.raises(
        ValueError,
        match=r"made \(1, 1, 5, 7\) of Y, expected \(1, 1, 10, "
        r"14\).*enlarged=True",
    ):
        upscale_rgb(network("vdsr", 1)[0], rgb, 2)
    with pytest.raises(ValueError, match=r"made \(1, 1, 20, 28\) of Y"):
        upscale_rgb(network("espcn", 2)[0], rgb, 2, enlarged=True)
