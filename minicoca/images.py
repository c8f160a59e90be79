"""Image files to arrays: decode, turn upright, convert to RGB, resize, crop.

Whatever a file holds (palette, grey, 16 bit, CMYK, transparency) comes out as 8-bit RGB, and
whatever is wrong with it as an `ImageError` that names the file. One that cannot be *read* (the
drive is away, too many files are open) is a `ReadError`: it may be whole all the same. No picture
takes more memory or time than bounds.py allows: it is refused before it is decoded.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import stat
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minicoca import bounds
from minicoca.colours import WHITE, grey_or_rgb
from minicoca.squares import FITS, fitted
from minicoca.words import clip

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the data that CLIP was trained on
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
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


class ChangedError(ReadError):
    """A file holds another picture than it did."""


@dataclass(frozen=True)
class Piece(os.PathLike):
    """A file that lies within another, as an image in a shard: `size` bytes from `start` on. It
    stands for a path wherever a file is opened here."""

    within: Path
    name: str
    start: int
    size: int

    def __fspath__(self) -> str:
        return f"{self.within}/{self.name}"

    __str__ = __fspath__

    def stat(self) -> SimpleNamespace:
        """As of a path: its size. Raises OSError where the other file is not there."""
        return SimpleNamespace(st_size=min(self.size, os.stat(self.within).st_size))

    def is_file(self) -> bool:
        return os.path.isfile(self.within)


class Window(io.RawIOBase):
    """What a piece holds, as a file by itself, which ends where the piece does."""

    def __init__(self, file: BinaryIO, piece: Piece) -> None:
        self.file, self.piece, self.at, self.name = file, piece, 0, str(piece)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.piece.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.at = base + offset
        return self.at

    def readinto(self, buffer) -> int:
        count = min(len(buffer), max(0, self.piece.size - self.at))
        self.file.seek(self.piece.start + self.at)
        content = self.file.read(count)
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


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
    fit: str = "crop",
    seen: Callable[[bytes], None] | None = None,
    max_pixels: int | None = None,
    told: Callable[[str], None] | None = None,
    roughly: bool = False,
) -> np.ndarray:
    """A file as uint8 [side, side, 3].

    fit: how a picture that is no square becomes one, as in `fitted`.
    seen: called with the bytes of the file, before they are decoded.
    max_pixels: the most that are decoded (None: as many as bounds.py says). A JPEG of more is
        decoded at a half, a quarter or an eighth of its sides; `told` is called with a line on it.
    roughly: large JPEGs may always be, as far as `side` allows: much faster, nearly the same.

    Raises ImageError for files that cannot be decoded, ReadError for those that cannot be read,
    ValueError for an unknown `fit`.
    """
    if fit not in FITS:
        raise ValueError(f"fit={fit!r} is none of {', '.join(FITS)}")
    at_least = 2 * side if roughly else None
    return fitted(flat(source, background, at_least, seen, max_pixels, told), side, fit)


def from_picture(picture: Image.Image, side: int, fit: str = "crop") -> np.ndarray:
    """A picture that is open already, as `load_image` makes a file; it stays as it is.

    Raises ImageError where it cannot be decoded.
    """
    try:
        picture.load()
    except Exception as error:
        raise failure(name_of(getattr(picture, "filename", "") or "a picture"), error) from error
    with contextlib.suppress(Exception):  # as in `upright`
        picture = ImageOps.exif_transpose(picture)
    return fitted(grey_or_rgb(picture), side, fit)


def decode(
    source: ImageFile,
    *,
    background: tuple[int, int, int] = WHITE,
    at_least: int | None = None,
) -> Image.Image:
    """A file's first picture: RGB, upright, transparency laid over `background`.

    at_least: the caller will shrink it to this many pixels or fewer a side, so that large JPEGs
        may be decoded at a half, quarter or eighth of their size, which is much faster.

    Raises ImageError for files that cannot be decoded or take more than bounds.py allows, and
    ReadError for those that cannot be read.
    """
    image = flat(source, background, at_least)
    return image if image.mode == "RGB" else image.convert("RGB")


def flat(
    source: ImageFile,
    background: tuple[int, int, int],
    at_least: int | None,
    seen: Callable[[bytes], None] | None = None,
    max_pixels: int | None = None,
    told: Callable[[str], None] | None = None,
) -> Image.Image:
    """`decode`, but what is grey alone stays "L", in a quarter of the memory."""
    # Read whole before anything is decoded: a decoder says the same of bytes that did not come as
    # of bytes that are wrong.
    with open_file(source) as file:
        content = read(file, source)
    if seen:
        seen(content)
    name, file = name_of(source), BytesIO(content)
    with open_image(file, name, at_least, max_pixels, told) as image:
        try:
            image.load()
            # A header may say less than there is: of pictures in icons, and of EXIF at the end.
            refuse(bounds.excess(image, image.size, file, len(content), max_pixels), name)
            return grey_or_rgb(upright(image), background)
        except ImageError:
            raise
        except Exception as error:
            raise failure(name, error) from error


def check(source: ImageFile, told: Callable[[str], None] | None = None) -> None:
    """Reads no more than the header. Raises ImageError if even that shows the file to be bad, or to
    take more than bounds.py allows, and ReadError if it cannot be read. told: as of `load_image`.
    """
    with open_file(source) as file:
        open_image(file, name_of(source), told=told).close()


def open_file(source: ImageFile) -> contextlib.AbstractContextManager[BinaryIO]:
    """The file of a path, opened for a `with`; a file that is open already is left so.

    Raises NoFileError where there is none, ReadError where it cannot be opened.
    """
    if isinstance(source, Piece):
        return io.BufferedReader(Window(open_file(source.within), source))
    if not isinstance(source, str | os.PathLike):
        return contextlib.nullcontext(source)
    if not stat.S_ISREG(status(source).st_mode):  # it would be waited for without end
        raise NoFileError(f"{name_of(source)}: no file, but a folder, pipe or device")
    try:
        return open(source, "rb")
    except OSError as error:
        raise failure(name_of(source), error) from error


def status(path: str | os.PathLike) -> os.stat_result:
    """What the system says of a path. Raises NoFileError, with the reason, or ReadError."""
    try:
        return os.stat(path)
    except OSError as error:
        raise failure(name_of(path), error) from error
    except ValueError as error:  # a name that no file can have
        raise NoFileError(f"{name_of(path)}: no such file") from error


def read(file: BinaryIO, source: ImageFile) -> bytes:
    """All that an open file holds. Raises ImageError if that is more than bounds.py allows."""
    try:
        at = file.tell()
        size = file.seek(0, os.SEEK_END) - at
        file.seek(at)
        if size <= bounds.MAX_MEMORY:
            return file.read()
    except OSError as error:
        raise failure(name_of(source), error) from error
    limit = f"{bounds.MAX_MEMORY / 1e6:,.0f} MB"
    raise ImageError(f"{name_of(source)}: {size / 1e6:,.0f} MB, over the limit of {limit}")


def open_image(
    file: BinaryIO,
    name: str,
    at_least: int | None = None,
    max_pixels: int | None = None,
    told: Callable[[str], None] | None = None,
) -> Image.Image:
    """Opens an image without decoding its pixels, and refuses it if that would take too much: a
    JPEG only where an eighth of its sides would."""
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        refuse(bounds.icon(file) or bounds.strips(file), name)
    except ImageError:
        raise
    except Exception as error:
        raise failure(name, error) from error
    first = ""
    for part in (1, 2, 4, 8):
        image = opened(file, name)
        try:
            full = image.size
            if part > 1:
                image.draft(None, tuple(max(1, length // part) for length in full))
            elif at_least is not None:
                image.draft(None, (at_least, at_least))
            why = bounds.excess(image, full, file, size, max_pixels)
        except Exception as error:
            image.close()
            raise failure(name, error) from error
        if not why:
            break
        first = first or why
        if part == 8 or not bounds.is_jpeg(image):
            image.close()  # and the file with it, which the next part would need
            refuse(first, name)
    if first and told:
        told(f"{name}: {first.partition('; ')[0]}: decoded at 1/{part} of its sides")
    return image


def opened(file: BinaryIO, name: str) -> Image.Image:
    """A file as Pillow opens it, from its beginning."""
    try:
        file.seek(0)
        header = bounds.Header(file)
        try:
            image = Image.open(header, formats=FORMATS)
        except Image.DecompressionBombError:
            file.seek(0)
            if file.read(3) != b"\xff\xd8\xff":
                raise
            file.seek(0)
            image = Image.OPEN["JPEG"][0](header, "")  # which need not be decoded whole
        header.known()
        return image
    except Exception as error:
        raise failure(name, error) from error


def refuse(why: str, name: str) -> None:
    if why:
        raise ImageError(f"{name}: {why}")


def failure(name: str, error: Exception) -> ImageError | ReadError:
    """What to raise instead: the system numbers its errors, and decoders do not."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return NoFileError(f"{name}: no such file")
    if number in NO_FILE:
        return NoFileError(f"{name}: {error.strerror or error}")
    # EINVAL: wrong bytes sent a decoder to a place before the file's beginning.
    if number not in (None, errno.EINVAL):
        return ReadError(f"{name} cannot be read: {error.strerror or error}")
    if os.path.splitext(name)[1].lower() in CLAIMED_SUFFIXES:
        return ImageError(f"{name}: this kind cannot be opened here; convert it to PNG or JPEG")
    if isinstance(error, UnidentifiedImageError):
        return ImageError(f"{name}: not an image, or of an unknown kind")
    # Given a hostile file, Pillow's decoders raise almost anything (struct.error, IndexError,
    # zlib.error, SyntaxError, ...), hence every Exception is caught where a file is read.
    return ImageError(f"{name}: {clip(str(error)) or type(error).__name__}")


def name_of(source: ImageFile) -> str:
    """For messages: of one line, and not too long."""
    is_path = isinstance(source, str | os.PathLike)
    return clip(str(source if is_path else getattr(source, "name", source)), 120)


def upright(image: Image.Image) -> Image.Image:
    """Itself, turned and mirrored as its EXIF orientation asks; damaged EXIF counts as none."""
    # Pixels without a readable orientation are still worth having.
    with contextlib.suppress(Exception):
        if bounds.is_turned(image):
            ImageOps.exif_transpose(image, in_place=True)
    return image
