"""Large images in tiles, the mean over symmetries, and luma networks on colour images."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdtasks.core.precision import raised
from kdtasks.super_resolution.metrics import imresize, luma


@torch.no_grad()
def tiled(
    model: Callable[[Tensor], Tensor], image: Tensor, scale: int, tile: int = 256, overlap: int = 40
) -> Tensor:
    """``model(image)``, computed tile by tile; the same where ``overlap`` is at least the radius of
    the receptive field.

    A tile is computed with ``overlap`` pixels around it, or what the image has of them, and what
    comes of these is cut off: tiles are laid side by side, not blended. All windows have the same
    size. For a network that looks at the whole image (attention over it, pooling to one pixel) it
    is an approximation, and seams may show.

    Args:
        model: (B, C, h, w) -> (B, C', scale * h, scale * w). In eval, if it is a module.
        image: (B, C, H, W). It may lie on another device than the model's parameters: one window at
            a time goes there.
        scale: what the model enlarges by; 1 for one whose input is enlarged already.
        tile: pixels of the input along each side of a tile; the device holds what ``tile + 2 *
            overlap`` need.
        overlap: the radius of the receptive field in pixels of the input. 40 is enough for every
            network of :mod:`~kdtasks.super_resolution.models` with up to 16 blocks; VDSR needs 20,
            ESPCN and FSRCNN less than 10.

    Returns:
        (B, C', scale * H, scale * W) on the image's device, without gradient.

    Raises:
        ValueError: no (B, C, H, W) with pixels, ``tile < 1``, ``overlap < 0``, or a model with
            another scale.
    """
    if image.dim() != 4 or 0 in image.shape[2:]:
        raise ValueError(
            f"image must be (B, C, H, W) with at least one pixel, got {tuple(image.shape)}"
        )
    if tile < 1 or overlap < 0:
        raise ValueError(
            f"expected tile >= 1 and overlap >= 0, got tile={tile} and overlap={overlap}"
        )
    parameter = next(model.parameters(), image) if isinstance(model, nn.Module) else image
    whole = None
    for rows, window_rows, kept_rows in _spans(image.shape[2], scale, tile, overlap):
        for columns, window_columns, kept_columns in _spans(image.shape[3], scale, tile, overlap):
            window = image[..., window_rows, window_columns].to(parameter.device)
            output = model(window)
            size = scale * window.shape[2], scale * window.shape[3]
            if output.shape != (len(image), *output.shape[1:2], *size):
                raise ValueError(
                    f"the model made {tuple(output.shape)} of {tuple(window.shape)}, which is not "
                    f"scale={scale}"
                )
            if whole is None:
                size = (len(image), output.shape[1], scale * image.shape[2], scale * image.shape[3])
                whole = torch.empty(size, dtype=output.dtype, device=image.device)
            whole[..., rows, columns] = output[..., kept_rows, kept_columns]
    return whole


def _spans(size: int, scale: int, tile: int, overlap: int) -> list[tuple[slice, slice, slice]]:
    """Along one side, for each tile: its place in the output, its window in the input, its place in
    the window's output.
    """
    length, spans = min(tile + 2 * overlap, size), []
    for start in range(0, size, tile):
        first = min(max(start - overlap, 0), size - length)
        inside = start - first
        spans.append(
            (
                slice(scale * start, scale * (start + tile)),
                slice(first, first + length),
                # slices end where the image does
                slice(scale * inside, scale * (inside + tile)),
            )
        )
    return spans


@torch.no_grad()
def self_ensemble(model: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """The mean over the 8 symmetries of a square: turn and mirror the image, enlarge it, turn back
    ("x8", EDSR's "+").

    A turned image then gives the turned result. With tiles: ``self_ensemble(lambda x: tiled(model,
    x, scale), image)``.

    Args:
        model: (B, C, h, w) -> (B, C', s * h, s * w). In eval, if it is a module.
        image: (B, C, H, W), H and W need not be equal.

    Returns:
        (B, C', s * H, s * W), without gradient; in the precision of the model's output, averaged in
        float32 at least.
    """
    total = 0
    for turns in range(4):
        for mirrored in (False, True):
            seen = image.flip(-1) if mirrored else image
            output = model(torch.rot90(seen, turns, (-2, -1)).contiguous())
            dtype = output.dtype
            output = torch.rot90(output, -turns, (-2, -1))
            output = output.flip(-1) if mirrored else output
            total = total + raised(output)[0]
    return (total / 8).to(dtype)


def upscale_rgb(
    model: Callable[[Tensor], Tensor], rgb: Tensor, scale: int, enlarged: bool = False
) -> Tensor:
    """A colour image by a network for luma: Y through the network, Cb and Cr enlarged by MATLAB's
    bicubic.

    What the network adds to the bicubic Y is added to red, green and blue alike, times 255/219:
    that leaves Cb and Cr as they are, so there is no need to compute them.

    Args:
        model: Y (B, 1, h, w) in [16/255, 235/255] -> (B, 1, scale * h, scale * w).
        rgb: (B, 3, h, w) in [0, 1].
        scale: what the model enlarges by.
        enlarged: the model takes Y enlarged already, as VDSR does: (B, 1, scale * h, scale * w) ->
            the same shape.

    Returns:
        (B, 3, scale * h, scale * w), not clamped, so values may lie a little outside of [0, 1].

    Raises:
        ValueError: not three channels, or a model with another scale.
    """
    bicubic = imresize(rgb, scale)
    y = luma(bicubic)
    output = model(y if enlarged else luma(rgb))
    if output.shape != y.shape:
        raise ValueError(
            f"the model made {tuple(output.shape)} of Y, expected {tuple(y.shape)}; a network "
            "whose input is enlarged already, like VDSR, needs enlarged=True, and no other may "
            "have it"
        )
    return bicubic + (output - y) * (255 / 219)
