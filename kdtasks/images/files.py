"""Image files: the one reader of the library, which files are images, and sets of them.

:func:`read_image` says what becomes of each kind of file. Every task reads its images with it.
"""

import copy
import hashlib
import math
import os
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdtasks.core.classes import class_name, class_numbers, count_classes, renumber
from kdtasks.images.augmentation import KorniaAugmentation, kornia_augmentation
from kdtasks.images.cache import load_arrays, save_arrays

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
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


# Reading ------------------------------------------------------------------------------------------
def read_image(
    path,
    channels: int = 3,
    background: Sequence[int] = BACKGROUND,
    annotated: Sequence[int] | None = None,
    max_pixels: int | None = None,
):
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


def image_size(path, max_pixels: int | None = None) -> tuple[int, int]:
    """(height, width) of what :func:`read_image` gives, from the head of the file."""
    with _opened(path, max_pixels) as image:
        known = image.format != "PNG" or "exif" in image.info
        if (known or _says_more_behind(path)) and _orientation(image) > 4:  # these swap the sides
            return image.width, image.height
        return image.height, image.width


@contextmanager
def _opened(path, max_pixels: int | None) -> Iterator:
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
                f"it has {image.width} x {image.height} pixels, more than the {limit} "
                "pixels "
                f"allowed; the environment variable {PIXELS}=<number> allows more"
            )
        yield image


def _limit(max_pixels: int | None) -> int | None:
    from PIL import Image

    if max_pixels is None and (text := os.environ.get(PIXELS)):
        if not text.isdigit() or not int(text):
            raise ValueError(f"{PIXELS} must be a number of pixels, got {text!r}")
        max_pixels = int(text)
    own = Image.MAX_IMAGE_PIXELS
    if max_pixels is not None and own is not None and max_pixels > own:
        # PIL's own check would refuse what is allowed
        Image.MAX_IMAGE_PIXELS = max_pixels
    return own if max_pixels is None else max_pixels


def _say_once(what: str, message: str) -> None:
    if what not in _said:
        _said.add(what)
        warnings.warn(f"{message} (said once, of the first such file)", stacklevel=4)


def _say_first_frame(image, path) -> None:
    if image.format in ("GIF", "WEBP", "PNG", "TIFF") and getattr(image, "is_animated", False):
        _say_once("frames", f"{path} has several frames or pages: the first one is read")


def _orientation(image) -> int:
    """1 to 8, 1 = upright as stored; PIL turns TIFF itself."""
    turn = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)
    return turn if turn in range(1, 9) else 1


def _say_ambiguous(turn: int, stored: tuple[int, int], path) -> None:
    # the upright image has the annotated size too
    if turn < 5 or stored[0] == stored[1]:
        _say_once(
            "turn",
            f"{path} has the EXIF orientation {turn}, and the size in its annotation "
            "does not "
            "tell whether that is of the upright image: it is taken to be of the "
            "pixels as "
            "stored, as COCO's own tools do",
        )


def _says_more_behind(path) -> bool:
    """Whether a PNG file has EXIF or XMP data that PIL would find only after decoding the pixels."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            text = file.read(min(length, 32)) if kind in (b"zTXt", b"tEXt", b"iTXt") else b""
            if kind == b"eXIf" or text.startswith((b"Raw profile type", b"XML:com.adobe.xmp")):
                return True
            file.seek(length - len(text) + 4, os.SEEK_CUR)
    return False


def _levels(image):
    """A PIL image with 8 bits a channel."""
    from PIL import Image

    if image.mode[0] not in "IF":
        return image
    whole = image.mode != "F" and image.format in ("PNG", "PPM", "TIFF")
    # PGM: PIL scales to 65535
    if not whole or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError(
            f"its pixels are of PIL's mode {image.mode!r}, whose range the file does "
            "not "
            "say: expected whole numbers from 0 on of 8 or 16 bits a channel"
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


# Finding ------------------------------------------------------------------------------------------
def is_hidden(name: str) -> bool:
    """What other programs leave behind: ``._a.jpg``, ``.ipynb_checkpoints``, ``__MACOSX``."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Whether a file of this name is an image; hidden ones are none."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not is_hidden(name)


def images_below(folder: Path) -> list[str]:
    """All image files at any depth, sorted by path."""
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [os.path.join(where, name) for name in names if is_image(name)]
    return sorted(found)


def results_of(
    folder: str | Path | None, out: str | Path | None, suffix: str = ".png"
) -> dict[Path, Path]:
    """For each image below ``folder`` the file below ``out`` that what is made of it goes to.

    It has the image's place and name, with ``suffix`` in the place of the ending; two images that
    differ in their ending only keep it: ``a.jpg.png`` and ``a.png.png``. Nothing is written here.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: one of the two is not given; ``out`` holds files or lies inside ``folder``.
    """
    if folder is None or out is None:
        raise ValueError(
            f"a folder of images and --out go together, got the folder {folder!r} and --out {out!r}"
        )
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}")
    paths = [Path(path) for path in images_below(folder)]
    if not paths:
        raise FileNotFoundError(
            f"no image in {str(folder)!r}: expected {', '.join(sorted(SUFFIXES))}"
        )
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"out={str(out)!r} lies in the folder of the images, {str(folder)!r}: "
            "expected another "
            "place"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"out={str(out)!r} holds files, which could be overwritten: expected a "
            "new or an empty "
            "folder"
        )
    whole = {path: out / f"{path.relative_to(folder)}{suffix}" for path in paths}
    names = {path: out / path.relative_to(folder).with_suffix(suffix) for path in paths}
    while len(set(names.values())) < len(names):
        count = Counter(names.values())
        names = {path: whole[path] if count[name] > 1 else name for path, name in names.items()}
    return names


def class_folders(root: Path) -> dict[str, Path]:
    """``{name of the class: folder}`` of the folders in ``root``, sorted by name."""
    found = {
        class_name(entry.name): root / entry.name
        for entry in os.scandir(root)
        if entry.is_dir() and not is_hidden(entry.name)
    }
    return dict(sorted(found.items()))


# Sets of files ------------------------------------------------------------------------------------
class ImageFiles:
    """A map-style data set of files, decoded when asked for: ``(input float32 (3,H,W), target)``.

    In training a random part of the image, 8 to 100 % of its area, resized to ``size``, and
    mirrored with probability 1/2; in evaluation the central ``size`` of the image resized so that
    its shorter side is ``size / 0.875``.

    With ``augment`` in training what these transforms of ``kornia.augmentation`` make of the whole
    image, float32 in [0,1]; unless they leave it ``size x size`` (``RandomResizedCrop`` does), its
    centre, resized so that its shorter side is ``size``.
    """

    def __init__(
        self,
        paths: Sequence[str],
        target: Sequence[int],
        classes: Sequence[str],
        size: int,
        train: bool,
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
        augment: Sequence[nn.Module] | KorniaAugmentation | None = None,
    ):
        self.paths, self.classes = list(paths), list(classes)
        self.target = torch.as_tensor(target).long()
        self.augment = files_augmentation(augment, size) if train else None
        self.transform = transform(size, train, mean, std, self.augment)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return str(self.paths[index])

    def with_classes(self, names: Sequence[str], drop: bool = False) -> "ImageFiles":
        """The same files, their classes numbered as in ``names``; see
        :func:`kdtasks.core.classes.class_numbers`.
        """
        numbers = class_numbers(
            self.classes, names, count_classes(self.target, len(self.classes)), drop
        )
        other = copy.copy(self)
        other.classes, other.target = list(names), renumber(self.target, numbers)
        return other

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(read_image(self.paths[index])), int(self.target[index])


def files_augmentation(augment, size: int) -> KorniaAugmentation | None:
    """kornia's transforms for images that are a little larger than the ``size`` to come out."""
    return kornia_augmentation(augment, (3, size + 32, size + 32))


def transform(
    size: int,
    train: bool,
    mean: Sequence[float],
    std: Sequence[float],
    augment: KorniaAugmentation | None = None,
):
    """PIL image -> float32 tensor; random numbers from torch's CPU generator."""
    from torchvision.transforms import v2

    scaled, normalized = v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)
    if train and augment:
        centre = [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
        steps = [v2.ToPureTensor(), scaled, augment.one, *centre]
    elif train:
        steps = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), scaled]
    else:
        steps = [v2.Resize(round(size / 0.875), antialias=True), v2.CenterCrop(size), scaled]
    return v2.Compose([v2.ToImage(), *steps, normalized])


def decoded(
    paths: Sequence[str],
    size: Sequence[int] | None,
    channels: int,
    skip_bad: bool,
    cache_dir,
    unreadable: dict[str, str] | None = None,
) -> tuple[Tensor, Tensor]:
    """The images, uint8 (n,C,H,W), and which of ``paths`` they are, (n,); read by as many threads
    as there are processors.

    Those that ``skip_bad`` leaves out are noted in ``unreadable``, path and why.
    """
    cache = None
    if cache_dir is not None:
        listing = [(path, (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in paths]
        key = hashlib.sha256(
            repr((2, size and tuple(size), channels, listing)).encode()
        ).hexdigest()[:32]
        cache = Path(cache_dir) / f"{key}.npz"
        if (kept := load_arrays(cache)) is not None:
            return torch.from_numpy(kept["images"]), torch.arange(len(paths))
    bad: dict[int, str] = {}

    def read(i: int) -> np.ndarray | None:
        try:
            return _read(paths[i], size, channels)
        except Exception as error:
            if not skip_bad:
                raise RuntimeError(
                    f"cannot read image {paths[i]}: {error} (skip_bad=True leaves it out)"
                ) from error
            bad[i] = f"{paths[i]}: {error}"
            return None

    shape = next((image.shape for image in map(read, range(len(paths))) if image is not None), None)
    if shape is None:
        raise RuntimeError(f"none of {len(paths)} images can be read; the first: {bad[0]}")
    images = np.empty((len(paths), *shape), dtype=np.uint8)

    def fill(part: range) -> None:
        for i in part:
            if (image := read(i)) is not None:
                if image.shape != shape:
                    raise ValueError(
                        f"images differ in size: (C,H,W) = {shape} in {paths[0]}, "
                        f"{image.shape} in {paths[i]}; pass size="
                    )
                images[i] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        step = max(1, math.ceil(len(paths) / 64))
        list(
            pool.map(
                fill, (range(at, min(at + step, len(paths))) for at in range(0, len(paths), step))
            )
        )
    if bad:
        if unreadable is not None:
            unreadable.update((paths[i], bad[i].removeprefix(f"{paths[i]}: ")) for i in sorted(bad))
        some = "; ".join(bad[i] for i in sorted(bad)[:3])
        warnings.warn(
            f"left out {len(bad)} unreadable of {len(paths)} images: {some}", stacklevel=3
        )
        good = torch.tensor([i for i in range(len(paths)) if i not in bad])
        return torch.from_numpy(images)[good], good
    if cache is not None:
        save_arrays(cache, images=images)
    return torch.from_numpy(images), torch.arange(len(paths))


def _read(path: str, size: Sequence[int] | None, channels: int) -> np.ndarray:
    """One image, uint8 (C,H,W); with ``size`` its largest central part of that shape, resized."""
    from PIL import Image, ImageOps

    image = read_image(path, channels)
    if size is not None and image.size != (size[1], size[0]):
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)
