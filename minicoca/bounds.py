"""What a picture takes to decode, in memory and in time, counted before it is decoded.

A small file can ask for much: pixels that are all alike, a thousand passes over them, a picture
hidden in another, tiles as large as the whole. Pillow counts pixels alone, and of some kinds those
of the outermost picture only. The numbers here are bytes and nanoseconds for each pixel, rounded up
from what Pillow 13 takes of photographs and of noise; the tests hold them against what is used.
"""

from __future__ import annotations

import re
import struct
from io import BytesIO
from typing import BinaryIO

from PIL import Image

MAX_PIXELS = 64_000_000
MAX_MEMORY = 300_000_000  # bytes, of the file and all that is made of it
MAX_SECONDS = 5.0
MAX_READS = 300_000  # of a header: it may be one byte long, and its file gigabytes

ORIENTATION = 0x0112  # the tag of EXIF
STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # others: 4
DECODERS = {"WEBP": 15, "AVIF": 12, "HEIF": 12}  # bytes a pixel beside the picture itself
IN_ANOTHER = 20  # bytes a pixel of a picture inside another
IN_PYTHON = 10  # bytes a pixel of decoders that are written in Python
CODE_BLOCK, PRECINCT = 430, 2000  # bytes of each, of JPEG 2000
TILE = 300  # bytes of one that is listed to be decoded

NANOSECONDS = {"WEBP": 50, "AVIF": 60, "HEIF": 60, "JPEG": 10, "MPO": 10, "JPEG2000": 70}
A_SCAN = 3  # of a JPEG, for each pixel
A_BYTE = {"JPEG2000": 200}  # nanoseconds for each byte of the file
OF_CODECS = {"SGI16": 50, "MSP": 50, "bmp_rle": 400, "BLP1": 500, "ppm": 2000}
OTHER_CODECS = 1600  # nanoseconds a pixel of a decoder that is written in Python

JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # no stuffed byte, no restart
JPEG_SIZE = re.compile(rb"\xff[\xc0-\xc2]\0.\x08(....)", re.DOTALL)
PNG_SIZE = re.compile(rb"IHDR(.{8})", re.DOTALL)
CODESTREAM = re.compile(rb"\xff\x4f\xff\x51..(.{34})(..)", re.DOTALL)  # JPEG 2000: sizes, bands
CODING = re.compile(rb"\xff\x52..(.)....(.)(.)(.)..(.{0,33})", re.DOTALL)


class Header:
    """A file whose header is read: no more than MAX_READS times, until it is `known`."""

    def __init__(self, file: BinaryIO):
        self.file, self.left = file, MAX_READS

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def read(self, *size: int) -> bytes:
        self.count()
        return self.file.read(*size)

    def readline(self, *size: int) -> bytes:
        self.count()
        return self.file.readline(*size)

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"its header has no end (over the limit of {MAX_READS:,} parts)")

    def known(self) -> None:
        self.read, self.readline = self.file.read, self.file.readline


def excess(
    image: Image.Image,
    full: tuple[int, int],
    file: BinaryIO,
    size: int,
    max_pixels: int | None = None,
) -> str:
    """Why an opened picture is not to be decoded, in words; empty if it may be.

    full: its size before it was to be decoded to a smaller one. file: its file, of `size` bytes; a
    BytesIO is read to its end, of others no more than the beginning. max_pixels: instead of
    MAX_PIXELS; where it is more, memory and time may be more as well.
    """
    most = max_pixels or MAX_PIXELS
    more = max(1.0, most / MAX_PIXELS)
    if image.width * image.height > most:
        return f"{image.width} x {image.height} is over the limit of {most} pixels"
    passes = scans(file.getvalue()) if is_jpeg(image) and isinstance(file, BytesIO) else 0
    asked = memory(image, full, file, size, passes)
    what = f"{full[0]} x {full[1]} pixels" + f" in {passes:,} scans" * (passes > 100)
    if asked > MAX_MEMORY * more:
        return too_much(f"{what} as {image.mode}", asked, MAX_MEMORY * more)
    needed = seconds(image, full, size, passes)
    if needed > MAX_SECONDS * more:
        limit = f"over the limit of {MAX_SECONDS * more:.3g} s"
        return f"{what} take about {needed:,.0f} s to decode, {limit}; save it anew, or smaller"
    return ""


def too_much(what: str, asked: float, most: float = MAX_MEMORY) -> str:
    limit = f"over the limit of {most / 1e6:,.0f} MB"
    return f"{what} take {asked / 1e6:,.0f} MB to decode, {limit}; make it smaller"


def is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")


def memory(
    image: Image.Image, full: tuple[int, int], file: BinaryIO, size: int, passes: int
) -> float:
    """Bytes at once: the file, the decoder's and ours."""
    pixels = image.width * image.height
    stored = pixels * STORED.get(image.mode, 4)
    return size + stored + max(decoder(image, full, file, passes), converted(image, pixels, stored))


def converted(image: Image.Image, pixels: int, stored: int) -> float:
    """Bytes of what is made of a decoded picture: one that is turned, and one that is RGB."""
    again = stored if is_turned(image) else 0
    if image.has_transparency_data:
        return max(again, 4 * pixels)
    grey = image.mode in ("1", "L", "F") or image.mode.startswith("I")
    kept = image.mode in ("L", "RGB")
    return max(again, 0 if kept else pixels if grey else 4 * pixels)


def is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF counts as none
        return False


def decoder(image: Image.Image, full: tuple[int, int], file: BinaryIO, passes: int) -> float:
    """Bytes that decoding needs beside the picture."""
    pixels = image.width * image.height
    if is_jpeg(image):
        return coefficients(image, full) if passes > 1 or image.info.get("progressive") else 0
    if image.format == "TIFF":
        return tiles(image)
    if image.format in ("JPEG2000", "ICNS", "BLP"):
        return inside(image, file)
    python = any(tile.codec_name in Image.DECODERS for tile in image.tile)
    return pixels * (IN_PYTHON if python else DECODERS.get(image.format, 0))


def coefficients(image: Image.Image, full: tuple[int, int]) -> float:
    """Bytes of a whole JPEG's coefficients, which are kept where there are several scans."""
    across, down = (max(factors) or 1 for factors in list(zip(*image.layer, strict=True))[1:3])
    part = sum(h * v for _, h, v, _ in image.layer) / (across * down)
    return 2 * part * full[0] * full[1]


def tiles(image: Image.Image) -> float:
    """Bytes of a TIFF's largest tile, or strip, and of the list of them."""
    tags, (width, height) = image.tag_v2, image.size
    each, bits = tags.get(277, 1), tags.get(258, (1,))
    bits = sum(bits) if len(bits) > 1 else bits[0] * each
    across, down = tags.get(322, width), tags.get(323, min(tags.get(278, height), height))
    packed = image.tile and image.tile[0].codec_name == "libtiff"
    places = max(len(tags.get(tag, ())) for tag in (273, 324))
    return (across * down * bits / 8 if packed else 0) + TILE * places


def inside(image: Image.Image, file: BinaryIO) -> float:
    """Bytes that the picture inside another needs: of an icon, a texture, a JPEG 2000 file."""
    before = file.tell()
    if image.format == "ICNS":
        starts = [start for start, _ in image.icns.dct.values()]
    else:
        starts = [0]
    asked = 0.0
    for start in starts:
        file.seek(start)
        head = file.read() if image.format == "BLP" else file.read(2**16)
        asked = max(asked, *(IN_ANOTHER * pixels for pixels in sizes(head)), wavelets(head))
    file.seek(before)
    return asked


def sizes(head: bytes) -> list[int]:
    """Pixels of the PNGs and JPEGs whose headers are there; 0 is always among them."""
    png = [struct.unpack(">II", found[1]) for found in PNG_SIZE.finditer(head)]
    jpeg = [struct.unpack(">HH", found[1]) for found in JPEG_SIZE.finditer(head)]
    return [0, *(width * height for width, height in png + jpeg)]


def wavelets(head: bytes) -> float:
    """Bytes of one tile of a JPEG 2000 picture, with its code blocks and precincts."""
    if not (found := CODESTREAM.search(head)):
        return 0
    _, right, bottom, left, top, across, down, _, _ = struct.unpack(">H8I", found[1])
    tile = min(across, right - left) * min(down, bottom - top)
    (bands,) = struct.unpack(">H", found[2])
    asked = 5.0 * tile * bands
    if coding := CODING.search(head, found.end()):
        own, levels, wide, high = (part[0] for part in coding.groups()[:4])
        asked += CODE_BLOCK * tile * bands / 2 ** ((wide & 15) + (high & 15) + 4)
        precincts = coding[5][: levels + 1] if own & 1 else b""
        for level, size in enumerate(precincts):
            pixels = tile / 4 ** (levels - level)
            asked += PRECINCT * bands * pixels / 2 ** ((size & 15) + (size >> 4))
    return asked


def icon(file: BinaryIO) -> str:
    """`excess` of an .ico file, which is decoded as it is opened. Leaves the file at its beginning.

    Its list says that its pictures have 256 x 256 pixels at most; they are what they are.
    """
    head, pixels = file.read(6), 0
    if head[:4] == b"\0\0\1\0":
        count = int.from_bytes(head[4:6], "little")
        entries = file.read(16 * count)
        for place in range(12, len(entries) - 3, 16):
            file.seek(int.from_bytes(entries[place : place + 4], "little"))
            pixels = max(pixels, *sizes(start := file.read(24)), bitmap(start))
    file.seek(0)
    asked = pixels * IN_ANOTHER
    return too_much(f"{pixels:,} pixels of an icon", asked) if asked > MAX_MEMORY else ""


def strips(file: BinaryIO) -> str:
    """`excess` of a TIFF's list of strips or tiles, which Pillow makes as it opens it. Leaves the
    file at its beginning."""
    head = file.read(16)
    order, big = {b"II": "<", b"MM": ">"}.get(head[:2]), b"+" in head[2:4]
    if order and len(head) == 16 and (big or b"*" in head[2:4]):
        place, kind, form = (8, "Q", "HHQ8x") if big else (4, "I", "HHI4x")
        file.seek(struct.unpack_from(order + kind, head, place)[0])
        count = file.read(8 if big else 2)
        count = int.from_bytes(count, "little" if order == "<" else "big")
        size = struct.calcsize(order + form)
        entries = file.read(size * min(count, 2**16))
        listed = struct.iter_unpack(order + form, entries[: len(entries) // size * size])
        most = max((number for tag, _, number in listed if tag in (273, 324)), default=0)
        if most * TILE > MAX_MEMORY:
            return too_much(f"{most:,} strips of a TIFF", most * TILE)
    file.seek(0)
    return ""


def bitmap(head: bytes) -> int:
    """Pixels that the header of a bitmap claims; 0 where it is none."""
    if len(head) < 12 or head[:4] == b"\x89PNG":
        return 0
    small = head[:4] == b"\x0c\0\0\0"
    width, height = struct.unpack("<HH" if small else "<ii", head[4 : 8 if small else 12])
    return abs(width * height) // 2  # the mask stands below it


def scans(content: bytes) -> int:
    """Passes over a JPEG's pixels, up to its end."""
    at, count = 2, 0
    for _ in range(MAX_READS):
        found = JPEG_MARKER.search(content, at)
        if not found or content[found.end() - 1] == 0xD9:
            break
        kind, at = content[found.end() - 1], found.end()
        if kind not in (0x01, 0xD8):
            count += kind == 0xDA
            at += int.from_bytes(content[at : at + 2], "big")
    return count


def seconds(image: Image.Image, full: tuple[int, int], size: int, passes: int) -> float:
    """About how long decoding takes, and what follows on it."""
    drawn = pixels = image.width * image.height
    each = NANOSECONDS.get(image.format, 40)
    if is_jpeg(image):
        pixels, each = full[0] * full[1], each + A_SCAN * passes
    slow = [tile.codec_name for tile in image.tile if tile.codec_name in Image.DECODERS]
    if slow:
        each = OF_CODECS.get(slow[0], OTHER_CODECS)
    return 1e-9 * (pixels * each + drawn * 10 + size * A_BYTE.get(image.format, 10))
