"""Features of convolutions, of hierarchical and of plain transformers, as maps (B, C, H, W)."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor

LAYOUTS = ("nchw", "nhwc", "tokens")
# maps of one scene have proportions that differ by less than this factor
PARTS = 1.3


def to_nchw(
    features: Tensor,
    layout: str | None = None,
    prefix_tokens: int = 0,
    grid: Sequence[int] | None = None,
) -> Tensor:
    """Features as a map (B, C, H, W); a view where that can be.

    Args:
        features: ``'nchw'``: (B, C, H, W), or anything, as it is; ``'nhwc'``: (B, H, W, C), Swin's;
            ``'tokens'``: (B, N, C), ViT's.
        layout: one of these; None: ``'nchw'``.
        prefix_tokens: tokens that come before those of the places and are dropped: 1 of the class,
            and ViT's registers.
        grid: (H, W) of the tokens; None: as many rows as columns.

    Raises:
        ValueError: another layout or number of axes; tokens that do not fill the grid, or no
            square.
    """
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"layout must be one of {list(LAYOUTS)}, got {layout!r}")
    if layout == "nhwc":
        if features.dim() != 4:
            raise ValueError(f"layout='nhwc': expected (B, H, W, C), got {tuple(features.shape)}")
        return features.permute(0, 3, 1, 2)
    if layout != "tokens":
        return features
    if features.dim() != 3 or not 0 <= prefix_tokens < features.shape[1]:
        raise ValueError(
            f"layout='tokens': expected (B, N, C) with N > prefix_tokens={prefix_tokens}, got "
            f"{tuple(features.shape)}"
        )
    places = features.shape[1] - prefix_tokens
    side = round(places**0.5)
    height, width = grid or (side, side)
    if height * width != places:
        raise ValueError(
            f"layout='tokens': {places} tokens of {tuple(features.shape)} "
            f"(prefix_tokens={prefix_tokens}) fill no {height} x {width}: give the right "
            "prefix_tokens (of the class, and registers), or grid=(H, W)"
        )
    return features[:, prefix_tokens:].transpose(1, 2).unflatten(2, (height, width))


def pair_to_nchw(
    student: Tensor,
    teacher: Tensor,
    layout: str | Sequence[str | None] | None = None,
    prefix_tokens: int | Sequence[int] = 0,
    grid: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Both as maps; each argument is for both, or (the student's, the teacher's), a grid of both
    two numbers.

    Raises:
        ValueError: as :func:`to_nchw`; or ``layout`` is None, and only the last axes can be
            channels.
    """
    layouts = (layout, layout) if layout is None or isinstance(layout, str) else tuple(layout)
    prefixes = (prefix_tokens,) * 2 if isinstance(prefix_tokens, int) else tuple(prefix_tokens)
    is_one = grid is None or isinstance(grid[0], int)
    grids = cast("Sequence[Sequence[int] | None]", (grid, grid) if is_one else grid)
    if layout is None:
        check_channels_first(student, teacher)
    student_map, teacher_map = (
        to_nchw(features, axes, prefix, size)
        for features, axes, prefix, size in zip(
            (student, teacher), layouts, prefixes, grids, strict=True
        )
    )
    return student_map, teacher_map


def check_channels_first(*features: Tensor) -> None:
    """Check that features have their channels second.

    Raises:
        ValueError: features of four axes whose channels can only be the last axis: (B, 7, 7, 768)
            is of a square map, and as (B, C, H, W) more than four times as wide as high; or the
            maps of two models have the same height and width if the channels of one are last, and
            other proportions if they are not.
    """
    shapes = [tuple(x.shape) for x in features]
    if any(len(shape) != 4 for shape in shapes):
        return
    last = [shape[1] == shape[2] and shape[3] > 4 * shape[1] for shape in shapes]
    if len(shapes) == 2 and not any(last) and 0 not in (*shapes[0], *shapes[1]):
        proportions = [shape[3] / shape[2] for shape in shapes]
        readings = [
            [shape[2:], *([shape[1:3]] if shape[3] > max(shape[1:3]) else [])] for shape in shapes
        ]
        same = set(readings[0]) & set(readings[1])
        last = [max(proportions) >= PARTS * min(proportions) and bool(same)] * 2
    if any(last):
        raise ValueError(
            f"features {' and '.join(map(str, shapes))} look like (B, H, W, C), as Swin gives "
            "them, and are taken as (B, C, H, W): expected layout='nhwc' (or a pair, the student's "
            "and the teacher's); layout='nchw' says that they are right"
        )
