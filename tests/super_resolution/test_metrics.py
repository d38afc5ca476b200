"""MATLAB's bicubic by loops over its formula, PSNR and SSIM by scikit-image and kornia, and the
conventions they are not.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kdtasks.super_resolution import imresize, psnr_y, ssim_y
from kdtasks.super_resolution.metrics import luma, psnr_rgb, ssim_rgb

F64 = torch.float64


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def photo(b=1, c=3, h=40, w=37, noise=0.0):
    """Uint8 levels / 255: waves with edges, and some noise, as float64."""
    y, x = torch.meshgrid(torch.arange(h, dtype=F64), torch.arange(w, dtype=F64), indexing="ij")
    waves = torch.stack(
        [
            0.5
            + 0.3 * torch.sin(0.3 * x + k) * torch.cos(0.21 * y - k)
            + 0.15 * ((x + k * y) % 11 > 6)
            for k in range(b * c)
        ]
    )
    image = waves.view(b, c, h, w) + noise * torch.randn(b, c, h, w, dtype=F64)
    return image.mul(255).round().clamp(0, 255) / 255


# ----------------------------------------------------------------------------------------- resizing
def cubic(t):
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0.0


def slow_line(line, scale):
    """MATLAB counts from 1: u = x / scale + (1 - 1 / scale) / 2; the line goes on mirrored on both
    sides.
    """
    out = []
    for x in range(1, math.ceil(len(line) * scale) + 1):
        u = x / scale + 0.5 * (1 - 1 / scale)
        total = weights = 0.0
        for k in range(math.floor(u - 2 / min(scale, 1)) - 2, math.ceil(u + 2 / min(scale, 1)) + 3):
            weight, i = cubic(min(scale, 1) * (u - k)), k - 1
            while not 0 <= i < len(line):
                i = -1 - i if i < 0 else 2 * len(line) - 1 - i
            total, weights = total + weight * line[i], weights + weight
        out.append(total / weights)
    return out


def slow_imresize(image, scale):
    planes = [
        np.array(
            [
                slow_line(line, scale)
                for line in np.array([slow_line(column, scale) for column in plane.T]).T
            ]
        )
        for plane in image.flatten(0, 1).numpy()
    ]
    return torch.from_numpy(np.stack(planes)).unflatten(0, image.shape[:2])


@pytest.mark.parametrize("scale", [2, 3, 4, 1 / 2, 1 / 3, 1 / 4, 0.7, 1.5, 0.9, 1 / 7, math.pi / 4])
@pytest.mark.parametrize("h, w", [(12, 24), (13, 7), (5, 1), (1, 2)])
def test_imresize_equals_matlabs_formula(scale, h, w):
    image = torch.rand(2, 2, h, w, dtype=F64)
    expected = slow_imresize(image, scale)
    found = imresize(image, scale)
    assert (
        found.shape == (2, 2, math.ceil(h * scale), math.ceil(w * scale)) and found.is_contiguous()
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(imresize(image.float(), scale), expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4, 1 / 2, 1 / 3, 1 / 4])
def test_imresize_equals_torchs_antialiased_kernel_on_a_mirrored_image(scale):
    image, pad = torch.rand(1, 1, 24, 36, dtype=F64), 24
    wide = torch.from_numpy(np.pad(image[0, 0].numpy(), pad, "symmetric"))[None, None]
    size = [round(n * scale) for n in wide.shape[2:]]
    cut = round(pad * scale)
    expected = F.interpolate(wide, size=size, mode="bicubic", antialias=True)[
        ..., cut:-cut, cut:-cut
    ]
    torch.testing.assert_close(imresize(image, scale), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 1 / 2, 1 / 3])
def test_imresize_is_not_torchs_own_bicubic(scale):
    image, inside = torch.rand(1, 1, 48, 48, dtype=F64), (..., slice(6, -6), slice(6, -6))
    plain, antialiased = (
        (
            imresize(image, scale)
            - F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=antialias)
        ).abs()
        for antialias in (False, True)
    )
    assert plain[inside].max() > 0.01, "its kernel"
    assert antialiased.max() > 0.01 and antialiased[inside].max() < 1e-12, "only its borders"


@pytest.mark.parametrize("scale", [3, 0.7, 1 / 3])
def test_float32_is_as_exact_far_from_the_origin(scale):
    line = torch.rand(1, 1, 1, 3000, dtype=F64)
    torch.testing.assert_close(
        imresize(line.float(), scale).double(), imresize(line, scale), rtol=0, atol=1e-6
    )


def test_sizes_that_the_scale_divides_come_out_exactly():
    for s in (2, 3, 4, 5, 6, 7, 8):
        for n in range(s, 40 * s, s):
            assert imresize(torch.rand(1, 1, n, 1), 1 / s).shape[2] == n // s


def test_resizing_by_one_changes_nothing_and_a_constant_stays():
    image = torch.rand(2, 3, 5, 6, dtype=F64)
    assert torch.equal(imresize(image, 1), image)
    for scale in (0.3, 2.6):
        assert (
            imresize(torch.full((1, 1, 9, 8), 0.25, dtype=F64), scale) - 0.25
        ).abs().max() < 1e-15


def test_imresize_has_a_gradient_also_after_an_evaluation():
    image = torch.rand(1, 2, 5, 6, dtype=F64, requires_grad=True)
    with torch.inference_mode():
        imresize(image, 0.6)
    assert torch.autograd.gradcheck(lambda x: imresize(x, 0.6), image)
    assert torch.autograd.gradcheck(lambda x: imresize(x, 2), image)


def test_imresize_in_an_exported_network_leaves_nothing_behind():
    class Enlarge(torch.nn.Module):
        def forward(self, x):
            return imresize(x, 1.25)

    example, other = torch.rand(1, 1, 17, 19), torch.rand(1, 1, 17, 19)
    exported = torch.export.export(Enlarge(), (example,)).module()
    assert type(imresize(other, 1.25)) is torch.Tensor and torch.equal(
        exported(other), imresize(other, 1.25)
    )


@pytest.mark.gpu
def test_on_a_gpu_the_values_are_the_same():
    target = photo(2, noise=0.1).float()
    for scale in (1 / 3, 2, 0.7):
        torch.testing.assert_close(
            imresize(target.cuda(), scale).cpu(), imresize(target, scale), rtol=0, atol=1e-6
        )
    output = photo(2, noise=0.2).float()
    for metric in (psnr_y, ssim_y, psnr_rgb, ssim_rgb):
        torch.testing.assert_close(
            metric(output.cuda(), target.cuda(), 2).cpu(),
            metric(output, target, 2),
            rtol=1e-6,
            atol=0,
        )


def test_types_and_errors_of_imresize():
    image = torch.rand(1, 1, 6, 6)
    assert imresize(image.half(), 0.5).dtype == torch.float32 and imresize(image[:0], 2).shape == (
        0,
        1,
        12,
        12,
    )
    with pytest.raises(TypeError, match=r"uint8.*imresize\(image / 255"):
        imresize(image.mul(255).byte(), 2)
    for wrong in (image[0], torch.rand(1, 3, 0, 4)):
        with pytest.raises(ValueError, match=r"\(B,C,H,W\)"):
            imresize(wrong, 2)
    for scale in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="scale must be positive"):
            imresize(image, scale)


# --------------------------------------------------------------------------------------------- luma
def test_luma_equals_scikit_images_and_is_not_the_full_range_one():
    from kornia.color import rgb_to_y

    image = torch.rand(2, 3, 8, 9, dtype=F64)
    expected = (
        np.stack([rgb2ycbcr(x.permute(1, 2, 0).numpy())[..., 0] for x in image])[:, None] / 255
    )
    np.testing.assert_allclose(luma(image), expected, rtol=0, atol=1e-14)
    full = rgb_to_y(image)
    torch.testing.assert_close(16 / 255 + 219 / 255 * full, luma(image), rtol=0, atol=1e-7)
    assert (full - luma(image)).abs().max() > 0.03
    ends = luma(torch.tensor([0.0, 1.0], dtype=F64)[:, None, None, None].expand(2, 3, 1, 1))
    torch.testing.assert_close(ends.flatten() * 255, torch.tensor([16.0, 235], dtype=F64))
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 9\)"):
        luma(image[:, :1])


# ------------------------------------------------------------------------------------------ quality
def y_of(image, crop):
    """Levels (h,w) of one image (3,H,W), by scikit-image."""
    levels = np.clip(np.round(image.permute(1, 2, 0).numpy() * 255), 0, 255).astype(np.uint8)
    return rgb2ycbcr(levels)[crop : levels.shape[0] - crop, crop : levels.shape[1] - crop, 0]


SSIM = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@pytest.mark.parametrize("crop", [0, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_psnr_and_ssim_of_the_luma_equal_scikit_images(crop, dtype):
    target = photo(3)
    # leaves [0,1]
    output = target + torch.tensor([0.01, 0.05, 0.3], dtype=F64)[
        :, None, None, None
    ] * torch.randn_like(target)
    pairs = [[y_of(x, crop) for x in pair] for pair in zip(target, output)]
    psnr, ssim = (
        psnr_y(output.to(dtype), target.to(dtype), crop),
        ssim_y(output.to(dtype), target.to(dtype), crop),
    )
    np.testing.assert_allclose(
        psnr, [peak_signal_noise_ratio(*pair, data_range=255) for pair in pairs], rtol=1e-12
    )
    np.testing.assert_allclose(
        ssim, [structural_similarity(*pair, **SSIM) for pair in pairs], rtol=1e-12
    )
    for i in range(3):
        assert psnr[i] == psnr_y(output[i : i + 1].to(dtype), target[i : i + 1].to(dtype), crop), (
            "of each image by itself"
        )


@pytest.mark.parametrize("crop", [0, 3])
def test_rgb_is_one_error_over_the_channels_and_the_mean_of_their_ssim(crop):
    target = photo()
    output = photo(noise=0.04)
    inner = [(x[0, :, crop : 40 - crop, crop : 37 - crop] * 255).numpy() for x in (target, output)]
    assert psnr_rgb(output, target, crop).item() == pytest.approx(
        peak_signal_noise_ratio(*inner, data_range=255), rel=1e-12
    )
    expected = np.mean([structural_similarity(*pair, **SSIM) for pair in zip(*inner)])
    assert ssim_rgb(output, target, crop).item() == pytest.approx(expected, rel=1e-12)
    # each image by itself
    outputs, targets = torch.cat([output, target, 0.9 * output]), target.repeat(3, 1, 1, 1)
    channels = torch.stack(
        [ssim_y(outputs[:, c : c + 1], targets[:, c : c + 1], crop) for c in range(3)], 1
    )
    torch.testing.assert_close(
        ssim_rgb(outputs, targets, crop), channels.mean(1), rtol=1e-12, atol=0
    )


def test_kornias_ssim_without_padding_is_the_same_and_its_psnr_per_image():
    from kornia.metrics import psnr, ssim

    target, output = photo(), photo(noise=0.04)
    y = [torch.from_numpy(y_of(x[0], 2))[None, None] for x in (output, target)]
    assert ssim(*y, 11, 255.0, padding="valid").mean().item() == pytest.approx(
        ssim_y(output, target, 2).item(), rel=1e-6
    )
    assert ssim(*y, 11, 255.0).mean().item() != pytest.approx(
        ssim_y(output, target, 2).item(), rel=1e-4
    )
    assert psnr(*y, 255.0).item() == pytest.approx(psnr_y(output, target, 2).item(), rel=1e-12)
    assert structural_similarity(
        y[0][0, 0].numpy(), y[1][0, 0].numpy(), data_range=255
    ) != pytest.approx(ssim_y(output, target, 2).item(), rel=1e-3)


def test_what_other_conventions_give():
    target = photo()
    output = (
        target
        + 0.03 * torch.randn_like(target) * torch.tensor([0.5, 1, 2], dtype=F64)[:, None, None]
    )
    output[..., :2, :] += 0.1
    value = psnr_y(output, target, 2).item()
    y = [255 * luma(x)[..., 2:-2, 2:-2] for x in (output, target)]
    others = {
        "unrounded": 10 * math.log10(255**2 / (y[0] - y[1]).square().mean()),
        "no crop": psnr_y(output, target, 0),
        "rgb": psnr_rgb(output, target, 2),
        "bgr": psnr_y(output.flip(1), target.flip(1), 2),
    }
    full = [x.mul(255).round().clamp(0, 255)[..., 2:-2, 2:-2] for x in (output, target)]
    full = [0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2] for x in full]
    others["full range"] = 10 * math.log10(255**2 / (full[0] - full[1]).square().mean())
    for name, other in others.items():
        assert abs(value - float(other)) > (0.002 if name == "unrounded" else 0.05), name
    assert value - others["full range"] == pytest.approx(20 * math.log10(255 / 219), rel=1e-3)


def test_known_psnr():
    """One level off everywhere; half of the images by ten."""
    target = torch.full((2, 1, 4, 4), 100 / 255)
    output = target + torch.tensor([1, 10.0])[:, None, None, None] / 255
    assert psnr_y(output, target, 0).tolist() == pytest.approx(
        [20 * math.log10(255), 20 * math.log10(25.5)], rel=1e-14
    )


def test_outputs_are_clipped_and_rounded_as_a_saved_image_is():
    target = photo(noise=0.3)
    assert target.min() == 0 and target.max() == 1
    for near in (
        target + 0.49 / 255,
        target.half(),
        torch.where(target == 1, 7.0, target),
        torch.where(target == 0, -7.0, target),
    ):
        assert psnr_y(near, target.to(near.dtype), 0) == math.inf and ssim_y(
            near, target.to(near.dtype), 0
        ) == pytest.approx(1, abs=1e-12)
    assert psnr_y(target + 0.51 / 255, target, 0) < 60


def test_the_border_does_not_count_and_the_pixels_beside_it_do():
    target = photo()
    for crop in (1, 3):
        for place in ((crop - 1, 20), (40 - crop, 20), (20, crop - 1), (20, 37 - crop)):
            output = target.clone()
            output[..., place[0], place[1]] = 1 - output[..., place[0], place[1]]
            for metric in (psnr_y, psnr_rgb):
                assert (
                    metric(output, target, crop) == math.inf
                    and metric(output, target, crop - 1) < math.inf
                )
            for metric in (ssim_y, ssim_rgb):
                assert (
                    metric(output, target, crop) > 1 - 1e-12
                    and metric(output, target, crop - 1) < 1 - 1e-9
                )


def test_one_channel_is_luma_already():
    target, output = photo(2, 1), photo(2, 1, noise=0.05)
    assert torch.equal(psnr_y(output, target, 2), psnr_rgb(output, target, 2)) and torch.equal(
        ssim_y(output, target, 2), ssim_rgb(output, target, 2)
    )
    assert psnr_y(output + 0.4 / 255, target - 0.4 / 255, 2).equal(psnr_y(output, target, 2))


def test_an_output_that_is_not_finite_is_no_number():
    target = photo()
    output = target.clone()
    output[..., 20, 20] = math.nan
    assert psnr_y(output, target, 2).isnan() and ssim_y(output, target, 2).isnan()


def test_no_images_give_no_values():
    assert psnr_y(torch.rand(0, 3, 8, 8), torch.rand(0, 3, 8, 8), 1).shape == (0,)


@pytest.mark.parametrize("metric", [psnr_y, ssim_y, psnr_rgb, ssim_rgb])
def test_wrong_input_is_refused(metric):
    image = torch.rand(2, 3, 20, 20)
    for output, target in ((image, image[:1]), (image[0], image[0]), (image[:, :2], image[:, :2])):
        with pytest.raises(ValueError, match="equal shapes"):
            metric(output, target, 0)
    for wrong in (image * 255, image - 0.1, image * math.nan):
        with pytest.raises(ValueError, match=r"target must be in \[0,1\]"):
            metric(image, wrong, 0)
    with pytest.raises(TypeError, match="uint8"):
        metric(image, image.mul(255).byte(), 0)
    with pytest.raises(ValueError, match=r"crop=-1.*\(2, 3, 20, 20\)"):
        metric(image, image, -1)
    least = 11 if metric in (ssim_y, ssim_rgb) else 1
    assert metric(image[..., : least + 2, :], image[..., : least + 2, :], 1).shape == (2,)
    with pytest.raises(ValueError, match=f"{least}x{least} pixels"):
        metric(image[..., : least + 1, :], image[..., : least + 1, :], 1)
