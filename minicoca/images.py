"""Image files to arrays: decode, turn upright, convert to RGB, resize, crop.

Whatever a file holds (palette, grey, 16 bit, CMYK, transparency) comes out as 8-bit RGB, and
whatever is wrong with it as an `ImageError` that names the file. One that cannot be *read* (the
drive is away, too many files are open) is a `ReadError`: it may be whole all the same.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import stat
import time
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the data that CLIP was trained on
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PIXELS = 64_000_000  # more is refused unread: a small file can claim to hold gigabytes
MAX_BYTES = 2**30
WHITE = (255, 255, 255)
WAITS = (0.1, 0.5, 2.0)  # seconds after which reading is tried again
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow's limit is above ours

# What Pillow lists, but does not decode by itself: another program (Ghostscript) or Windows does,
# or nothing; and IPTC, which wraps a picture of any format, these included.
REFUSED = {"EPS", "WMF", "IPTC", "MPEG", "BUFR", "GRIB", "HDF5", "FPX", "MIC"}
with contextlib.suppress(ImportError):  # HEIC, where its plugin is installed
    importlib.import_module("pillow_heif").register_heif_opener()
Image.init()
FORMATS = tuple(name for name in Image.ID if name not in REFUSED)
IMAGE_SUFFIXES = {  # Pillow opens MPO, JPEGs in one file, as JPEG
    suffix for suffix, name in Image.EXTENSION.items() if name in (*FORMATS, "MPO")
}
CLAIMED_SUFFIXES = {  # pictures, or so they say, of kinds that nothing here opens
    ".heic", ".heif", ".hif", ".svg", ".svgz", ".eps", ".ps", ".ai", ".wmf", ".emf", ".jxl", ".jxr",
    ".avif", ".webp", ".jp2", ".tif", ".tiff", ".exr", ".hdr", ".psb", ".xcf", ".kra", ".djvu",
    ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw",
} - IMAGE_SUFFIXES  # fmt: skip
NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}

ImageFile = str | os.PathLike | BinaryIO
Result = TypeVar("Result")


class ImageError(ValueError):
    """A file is no image, is damaged, or is too large; the message names it and says which."""


class NoFileError(ImageError):
    """There is no such file, or none that we may read."""


class ReadError(OSError):
    """A file could not be opened or read; later it may."""


def patiently(read: Callable[[], Result], again=OSError) -> Result:
    """`read()`, tried again after each of WAITS where it raises `again`; then that is raised."""
    for wait in WAITS:
        try:
            return read()
        except again:
            time.sleep(wait)
    return read()


def load_image(
    source: ImageFile,
    side: int,
    *,
    background: tuple[int, int, int] = WHITE,
    crop: str = "center",
) -> np.ndarray:
    """A file as uint8 [side, side, 3].

    crop: "center" scales the shorter side to `side` and keeps the middle of the longer one;
        "squash" scales both sides and keeps everything.

    Raises ImageError for files that cannot be decoded, ReadError for those that cannot be read,
    ValueError for an unknown `crop`.
    """
    if crop not in ("center", "squash"):
        raise ValueError(f"crop={crop!r} is neither 'center' nor 'squash'")
    image = decode(source, background=background, at_least=2 * side)
    box = centre_box(*image.size, side) if crop == "center" else None
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))


def decode(
    source: ImageFile,
    *,
    background: tuple[int, int, int] = WHITE,
    at_least: int | None = None,
) -> Image.Image:
    """A file's first picture: RGB, upright, transparency laid over `background`.

    at_least: the caller will shrink it to this many pixels or fewer a side, so that large JPEGs
        may be decoded at a half, quarter or eighth of their size, which is much faster.

    Raises ImageError for files that cannot be decoded or have more than MAX_PIXELS pixels, and
    ReadError for those that cannot be read.
    """
    # Read whole before anything is decoded: a decoder says the same of bytes that did not come as
    # of bytes that are wrong.
    with open_file(source) as file:
        content = read(file, source)
    with open_image(BytesIO(content), name_of(source)) as image:
        try:
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            image.load()
            return to_rgb(upright(image), background)
        except Exception as error:
            raise failure(name_of(source), error) from error


def check(source: ImageFile) -> None:
    """Reads no more than the header. Raises ImageError if even that shows the file to be bad, and
    ReadError if it cannot be read."""
    with open_file(source) as file:
        open_image(file, name_of(source)).close()


def open_file(source: ImageFile) -> contextlib.AbstractContextManager[BinaryIO]:
    """The file of a path, opened for a `with`; a file that is open already is left so."""
    if not isinstance(source, str | os.PathLike):
        return contextlib.nullcontext(source)
    try:
        # A pipe or a device would be waited for without end.
        if stat.S_ISREG(os.stat(source).st_mode):
            return open(source, "rb")
    except OSError as error:
        raise failure(name_of(source), error) from error
    except ValueError as error:  # a name that no file can have
        raise NoFileError(f"{source}: no such file") from error
    raise NoFileError(f"{source}: no file, but a folder, pipe or device")


def read(file: BinaryIO, source: ImageFile) -> bytes:
    """All that an open file holds. Raises ImageError if that is over MAX_BYTES."""
    try:
        content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise failure(name_of(source), error) from error
    if len(content) > MAX_BYTES:
        raise ImageError(f"{name_of(source)}: over the limit of {MAX_BYTES:,} bytes")
    return content


def open_image(file: BinaryIO, name: str) -> Image.Image:
    """Opens an image without decoding its pixels, and refuses it if there are too many of them."""
    try:
        image = Image.open(file, formats=FORMATS)
    except Exception as error:
        raise failure(name, error) from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise ImageError(f"{name}: {size} is over the limit of {MAX_PIXELS} pixels")
    return image


def failure(name: str, error: Exception) -> ImageError | ReadError:
    """What to raise instead: the system numbers its errors, and decoders do not."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return NoFileError(f"{name}: no such file")
    if number in NO_FILE:
        return NoFileError(f"{name}: {error.strerror}")
    # EINVAL: wrong bytes sent a decoder to a place before the file's beginning.
    if number not in (None, errno.EINVAL):
        return ReadError(f"{name} cannot be read: {error.strerror}")
    if os.path.splitext(name)[1].lower() in CLAIMED_SUFFIXES:
        return ImageError(f"{name}: this kind cannot be opened here; convert it to PNG or JPEG")
    if isinstance(error, UnidentifiedImageError):
        return ImageError(f"{name}: not an image, or of an unknown kind")
    # Given a hostile file, Pillow's decoders raise almost anything (struct.error, IndexError,
    # zlib.error, SyntaxError, ...), hence every Exception is caught where a file is read.
    return ImageError(f"{name}: {error or type(error).__name__}")


def name_of(source: ImageFile) -> str:
    return str(source if isinstance(source, str | os.PathLike) else getattr(source, "name", source))


def upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as its EXIF orientation asks; damaged EXIF counts as none."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # pixels without a readable orientation are still worth having
        return image


def to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Any Pillow mode to RGB. Numbers wider than 8 bits are scaled as `to_bytes` says."""
    if image.mode == "F" or image.mode.startswith("I"):
        values, clear = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray(to_bytes(values, image.mode))
        if isinstance(clear, int):  # the one grey value that is transparent, in 16 bits
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        below = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def to_bytes(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values [height, width] of a Pillow mode wider than 8 bits to uint8.

    "I;16" has a known range. "I" and "F" do not say theirs: it is taken to be the smallest of 0..1
    (only "F"), 0..255, 0..65535 and 0..largest that holds all values. Negatives and NaN turn black.
    """
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = values.max(initial=0)
    ranges = {"F": (1, 255, 65535), "I": (255, 65535)}.get(mode, (65535,))
    full = next((full for full in ranges if largest <= full), largest)
    return np.rint(values.clip(0, full) * (255 / full)).astype(np.uint8)


def centre_box(width: int, height: int, side: int) -> tuple[float, float, float, float]:
    """The part of an image that remains if its shorter side becomes `side` and then the middle
    `side` x `side` pixels are kept, both rounded to whole pixels as CLIP's preprocessing does.

    Resizing only this part gives the same pixels, give or take rounding, and never makes a huge
    image of a long thin one.
    """
    shorter = min(width, height)
    new_width, new_height = (int(side * length / shorter) for length in (width, height))
    left, top = (round((length - side) / 2) for length in (new_width, new_height))
    across, down = width / new_width, height / new_height
    right, bottom = min((left + side) * across, width), min((top + side) * down, height)
    return left * across, top * down, right, bottom
