"""scikit-learn's handwritten digits."""

import numpy as np
import torch

from kdtasks.images.arrays import ImageArrays
from kdtasks.images.subsets import in_hash_order

# salt of view_hash
_SPLIT = 0x1C
# of all 1797 images
_DIGITS = ((0.3053,), (0.3760,))


def digits(
    train: bool = True,
    test_fraction: float = 0.3,
    part: str | None = None,
    seed: int = 0,
    augment: dict | list | None = None,
) -> ImageArrays:
    """scikit-learn's 1797 real handwritten digits, 1x8x8; its values 0..16 become 0..255. Nothing
    is downloaded.

    Args:
        train: the training images, or else the test images.
        test_fraction: share of each class that is for the test.
        part: ``'teacher'`` or ``'student'``: one of two halves of the training images, none in
            both; None: all of them.
        seed: of the split. The same one gives the same test images whatever ``part`` is.
        augment: of the training images, see :class:`ImageArrays`; digits are not mirrored.

    Raises:
        ValueError: an unknown ``part``, a part of the test images, or ``test_fraction`` outside (0,
            1).
    """
    from sklearn.datasets import load_digits

    if part not in (None, "teacher", "student"):
        raise ValueError(f"part must be 'teacher', 'student' or None, got {part!r}")
    if part and not train:
        raise ValueError(
            f"part={part!r} belongs to train=True: teacher and student share the test images"
        )
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    data = load_digits()
    target = torch.from_numpy(data.target).long()
    # (1797,1,8,8)
    images = torch.from_numpy(np.round(data.images * 255 / 16).astype(np.uint8))[:, None]
    index = []
    for places in in_hash_order(target, seed, _SPLIT).values():
        test = round(test_fraction * len(places))
        rest = places[test:]
        index.append(
            places[:test]
            if not train
            else {None: rest, "teacher": rest[::2], "student": rest[1::2]}[part]
        )
    index = torch.cat(index).sort().values
    return ImageArrays(
        images[index],
        target[index],
        [str(d) for d in range(10)],
        *_DIGITS,
        augment if train else None,
    )


# what --dry-run needs to know without reading
digits.image_shape = (1, 8, 8)
