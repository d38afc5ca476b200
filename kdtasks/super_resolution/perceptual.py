"""LPIPS, a distance that looks at features instead of pixels, by the library of its authors (``pip
install lpips``).
"""

import functools

import torch
from torch import Tensor, nn


@torch.no_grad()
def lpips_rgb(
    output: Tensor, target: Tensor, crop: int = 0, network: nn.Module | None = None
) -> Tensor:
    """The learned perceptual distance of Zhang et al. (CVPR 2018, arXiv 1801.03924); 0 for equal
    images, lower is better.

    Values are clamped to [0, 1] and not rounded. The first call fetches AlexNet's weights through
    torchvision.

    Args:
        output: ``(B, 3, H, W)`` in [0, 1].
        target: the same shape.
        crop: pixels left out at each border, as for PSNR.
        network: an ``lpips.LPIPS`` in eval; None: that of the library's default, AlexNet, version
            0.1.

    Returns:
        ``(B,)`` float32.

    Raises:
        ValueError: shapes that differ or are not RGB, values of 0..255, a crop that leaves less
            than 32 pixels.
        ImportError: the package lpips is not installed.
    """
    if output.shape != target.shape or output.dim() != 4 or output.shape[1] != 3:
        raise ValueError(
            f"expected two equal shapes (B, 3, H, W), got {tuple(output.shape)} and "
            f"{tuple(target.shape)}"
        )
    if min(output.shape[2:]) - 2 * crop < 32:
        raise ValueError(
            f"images of {tuple(output.shape[2:])} less crop={crop} are too small for LPIPS: "
            "expected at least 32x32"
        )
    if len(target) and float(target.max()) > 2:
        raise ValueError(
            f"expected values in [0, 1], got up to {float(target.max()):g}: divide by 255"
        )
    inside = slice(crop, output.shape[2] - crop), slice(crop, output.shape[3] - crop)
    images = (image.float().clamp(0, 1)[(..., *inside)] for image in (output, target))
    network = network or _alexnet(str(output.device))
    return network(*images, normalize=True).flatten()


@functools.cache
def _alexnet(device: str) -> nn.Module:
    try:
        import lpips
    except ImportError:
        raise ImportError("lpips_rgb needs the package lpips: pip install lpips") from None
    network = lpips.LPIPS(net="alex", verbose=False)
    network.eval()
    return network.requires_grad_(False).to(device)
