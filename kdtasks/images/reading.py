"""The one reader of image files: :func:`read_image` says what becomes of each kind.

Every task reads its images with it.
"""

import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import PIL.Image

BACKGROUND = (255, 255, 255)  # white, as a page or a viewer has it
PIXELS = "KDTASKS_MAX_PIXELS"  # environment variable
_ORIENTATION = 0x0112  # of EXIF
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_said: set[str] = set()  # what this process has warned of already


def read_image(
    path: str | Path,
    channels: int = 3,
    background: Sequence[int] = BACKGROUND,
    annotated: Sequence[int] | None = None,
    max_pixels: int | None = None,
) -> "PIL.Image.Image":
    """An image file with 8 bits a channel: a PIL image of mode RGB, or L for ``channels=1``.

    - 8-bit RGB and grey: the pixels as they are; grey in RGB is three equal channels, RGB in grey
      is the luma of BT.601.
    - 1 bit: 0 and 255. Palettes, CMYK, YCbCr, LAB: as PIL turns them into RGB; color profiles are
      not applied.
    - Transparency (RGBA, LA, palettes and colors that are clear): composited on ``background``.
    - 16 bits, grey, PNG, PGM and TIFF: round(value · 255 / 65535), with the file's own largest
      value where it says another (12-bit TIFF, PGM). 16 bits, color: PIL keeps the upper byte,
      which is at most one level away; of PPM it rounds too.
    - 32-bit whole numbers, signed ones, and floating-point numbers: an error, for no file says
      their range.
    - EXIF's orientation is applied, so the image is upright. With ``annotated`` it is not where
      the pixels as stored have that size already: the numbers of an annotation are in pixels of
      the image whose size it names.
    - Animated GIF, WebP and PNG, TIFF of several pages: the first frame, which is said once.

    Args:
        path: of the file.
        channels: 3 or 1.
        background: RGB, 0..255.
        annotated: (height, width) that an annotation says the image has; None: no annotation.
        max_pixels: a larger image is refused before it is decoded, since a file of a few kilobytes
            can hold gigabytes; None: the environment variable KDTASKS_MAX_PIXELS, or else PIL's
            ``Image.MAX_IMAGE_PIXELS``, 89 million.

    Raises:
        OSError: no such file, no image, or not whole.
        ValueError: an empty file, too many pixels, or pixels whose range is unknown. None names the
            file: who asks does.
    """
    from PIL import Image

    with _opened(path, max_pixels) as image:
        _say_first_frame(image, path)
        stored = (image.height, image.width)
        # a PNG file may say its orientation at the end
        image.load()
        turn = _orientation(image)
        image = _levels(image)
        if image.has_transparency_data:
            image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            if image.getextrema()[3][0] < 255:
                image = Image.alpha_composite(
                    Image.new("RGBA", image.size, (*background, 255)), image
                )
            image = image.convert("RGB")
        image = image.convert("L" if channels == 1 else "RGB")
        if turn == 1:
            return image
        if annotated is not None and tuple(annotated) == stored:
            _say_ambiguous(turn, stored, path)
            return image
        return image.transpose(getattr(Image.Transpose, _UPRIGHT[turn]))


def image_size(path: str | Path, max_pixels: int | None = None) -> tuple[int, int]:
    """(height, width) of what :func:`read_image` gives, from the head of the file."""
    with _opened(path, max_pixels) as image:
        may_be_turned = image.format != "PNG" or "exif" in image.info or _says_more_behind(path)
        if may_be_turned and _orientation(image) > 4:  # these swap the sides
            return image.width, image.height
        return image.height, image.width


@contextmanager
def _opened(path: str | Path, max_pixels: int | None) -> "Iterator[PIL.Image.Image]":
    """A PIL image whose pixels have not been read yet, and are not too many."""
    from PIL import Image, UnidentifiedImageError

    limit = _limit(max_pixels)
    try:
        image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"it has more than the {limit} pixels allowed; the environment variable "
            f"{PIXELS}=<number> allows more ({error})"
        ) from error
    except UnidentifiedImageError as error:
        if not os.path.getsize(path):
            raise ValueError("the file is empty, 0 bytes") from error
        raise
    with image:
        if limit is not None and image.width * image.height > limit:
            raise ValueError(
                f"it has {image.width} x {image.height} pixels, more than the {limit} pixels "
                f"allowed; the environment variable {PIXELS}=<number> allows more"
            )
        yield image


def _limit(max_pixels: int | None) -> int | None:
    from PIL import Image

    if max_pixels is None and (text := os.environ.get(PIXELS)):
        if not text.isdigit() or not int(text):
            raise ValueError(f"{PIXELS} must be a number of pixels, got {text!r}")
        max_pixels = int(text)
    pil_limit = Image.MAX_IMAGE_PIXELS
    if max_pixels is not None and pil_limit is not None and max_pixels > pil_limit:
        # PIL's own check would refuse what is allowed
        Image.MAX_IMAGE_PIXELS = max_pixels
    return pil_limit if max_pixels is None else max_pixels


def _say_once(topic: str, message: str) -> None:
    if topic not in _said:
        _said.add(topic)
        warnings.warn(f"{message} (said once, of the first such file)", stacklevel=4)


def _say_first_frame(image: "PIL.Image.Image", path: str | Path) -> None:
    if image.format in ("GIF", "WEBP", "PNG", "TIFF") and getattr(image, "is_animated", False):
        _say_once("frames", f"{path} has several frames or pages: the first one is read")


def _orientation(image: "PIL.Image.Image") -> int:
    """1 to 8, 1 = upright as stored; PIL turns TIFF itself."""
    turn = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)
    return turn if turn in range(1, 9) else 1


def _say_ambiguous(turn: int, stored: tuple[int, int], path: str | Path) -> None:
    # the upright image has the annotated size too
    if turn < 5 or stored[0] == stored[1]:
        _say_once(
            "turn",
            f"{path} has the EXIF orientation {turn}, and the size in its annotation does not tell "
            "whether that is of the upright image: it is taken to be of the pixels as stored, as "
            "COCO's own tools do",
        )


def _says_more_behind(path: str | Path) -> bool:
    """Whether a PNG file has EXIF or XMP data that PIL finds only after decoding the pixels."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            text = file.read(min(length, 32)) if kind in (b"zTXt", b"tEXt", b"iTXt") else b""
            if kind == b"eXIf" or text.startswith((b"Raw profile type", b"XML:com.adobe.xmp")):
                return True
            file.seek(length - len(text) + 4, os.SEEK_CUR)
    return False


def _levels(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """A PIL image with 8 bits a channel."""
    from PIL import Image

    if image.mode[0] not in "IF":
        return image
    is_whole = image.mode != "F" and image.format in ("PNG", "PPM", "TIFF")
    # PGM: PIL scales to 65535
    if not is_whole or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError(
            f"its pixels are of PIL's mode {image.mode!r}, whose range the file does not say: "
            "expected whole numbers from 0 on of 8 or 16 bits a channel"
        )
    tags = image.tag_v2 if image.format == "TIFF" else {}
    top = 2 ** tags.get(258, (16,))[0] - 1  # bits of a sample
    values = np.asarray(image).astype(np.uint32)
    if tags.get(262) == 0:  # white is 0
        values = top - values
    levels = Image.fromarray(((values * 255 + top // 2) // top).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        return Image.merge("LA", (levels, Image.fromarray((values != clear) * np.uint8(255))))
    return levels
