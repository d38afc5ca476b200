"""LPIPS reaches its library in the library's own range and crop. Its trained weights cannot be
fetched here: random ones.
"""

import sys

import pytest
import torch

from kdtasks.super_resolution import perceptual
from kdtasks.super_resolution.perceptual import lpips_rgb


@pytest.fixture(scope="module")
def network():
    lpips = pytest.importorskip("lpips")
    torch.manual_seed(0)
    return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()


def test_it_is_the_librarys_distance_of_the_cropped_images(network):
    a, b = torch.rand(2, 3, 72, 80), torch.rand(2, 3, 72, 80)
    with torch.no_grad():
        # its range is [-1, 1]
        expected = network(a[..., 4:-4, 4:-4] * 2 - 1, b[..., 4:-4, 4:-4] * 2 - 1).flatten()
    torch.testing.assert_close(lpips_rgb(a, b, crop=4, network=network), expected)
    assert lpips_rgb(a, a, network=network).tolist() == [0, 0] and float(expected.min()) > 0
    torch.testing.assert_close(
        lpips_rgb(a + 5 * (a > 0.9), b, network=network),
        lpips_rgb(a.where(a <= 0.9, 1), b, network=network),
    )


def test_wrong_input():
    with pytest.raises(
        ValueError,
        match=r"expected two equal shapes \(B, 3, H, W\), got \(1, 1, "
        r"64, 64\)",
    ):
        lpips_rgb(torch.rand(1, 1, 64, 64), torch.rand(1, 1, 64, 64))
    with pytest.raises(ValueError, match=r"too small for LPIPS"):
        lpips_rgb(torch.rand(1, 3, 40, 64), torch.rand(1, 3, 40, 64), crop=8)
    with pytest.raises(ValueError, match=r"got up to 255: divide by 255"):
        lpips_rgb(torch.full((1, 3, 64, 64), 255.0), torch.full((1, 3, 64, 64), 255.0))


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    perceptual._alexnet.cache_clear()
    with pytest.raises(ImportError, match="pip install lpips"):
        lpips_rgb(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
