"""Pictures that no one would wish to open: (name, bytes, right pixels or None), seeded."""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from minicoca.images import FORMATS

SIDE = 24
TRUTH = np.stack(
    [
        np.add.outer(np.zeros(SIDE), np.linspace(0, 255, SIDE)),
        np.add.outer(np.linspace(0, 255, SIDE), np.zeros(SIDE)),
        np.full((SIDE, SIDE), 90.0),
    ],
    -1,
).astype(np.uint8)
MODES = ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB", "PA")
SIZED = {  # where a header says the width and height, and how
    "BMP": (18, "<ii"), "GIF": (6, "<HH"), "QOI": (4, ">II"), "TGA": (12, "<HH"),
    "PCX": (8, "<HH"), "SGI": (6, ">HH"), "DDS": (12, "<II"), "BLP": (12, "<II"), "ICO": (6, "BB"),
}  # fmt: skip


def stored(image, kind, **options):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, content):
    sum_of_both = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", sum_of_both)


def png(width, height, bits=8, colour=2, pixels=b"", before=b"", after=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    end = chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + before + end


def zeros(count):
    """As many zero bytes, compressed."""
    packer, block = zlib.compressobj(1), bytes(2**20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & (2**20 - 1))), packer.flush()])


def samples():
    """{(format, mode): bytes} of the same picture, in every way that can be written here."""
    whole, found = Image.fromarray(TRUTH), {}
    for kind in sorted(set(FORMATS) & set(Image.SAVE)):
        for mode in MODES:
            try:
                grey = mode in ("I;16", "I", "F")
                image = whole.convert("L").convert(mode) if grey else whole.convert(mode)
                found[kind, mode] = stored(image, kind)
            except (OSError, ValueError, KeyError, TypeError, struct.error):
                continue  # a mode that this format has not
    return found


def of_many_scans(side, count):
    """A JPEG whose last pass is there so many times."""
    noise = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((side, side))
    whole = stored(image, "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + b"\xff\xd9"


def tiff(*tags, after=b""):
    """A TIFF of (tag, type, count, value)s, the values as they are written in their four bytes."""
    entries = b"".join(struct.pack("<HHI4s", *tag) for tag in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + after


def long(value):
    return struct.pack("<I", value)


def a_tile_of(side):
    """A TIFF of one pixel in one tile of zeros, side x side."""
    packed = zeros(side * side)
    tags = {256: 1, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side}
    where = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = [(tag, 4 if tag > 300 else 3, 1, long(value)) for tag, value in tags.items()]
    entries += [(324, 4, 1, long(where)), (325, 4, 1, long(len(packed)))]
    return tiff(*entries, after=packed)


def of_strips(count):
    """A TIFF that lists so many strips, at the same place all of them."""
    where = 8 + 2 + 12 * 8 + 4
    tags = {256: 1, 257: count, 258: 8, 259: 1, 262: 1, 278: 1}
    entries = [(tag, 4, 1, long(value)) for tag, value in tags.items()]
    entries += [(273, 4, count, long(where)), (279, 4, count, long(where))]
    return tiff(*entries, after=long(8) * count)


def icon(picture):
    """An .ico that says of its picture that it is small."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + picture


def icns(picture):
    part = b"ic07" + struct.pack(">I", len(picture) + 8) + picture
    return b"icns" + struct.pack(">I", len(part) + 8) + part


def wavelet(side, precinct=0xFF, bands=None):
    """A small JPEG 2000 picture whose header claims more, all of it one tile."""
    data = bytearray(stored(Image.new("L", (16, 16)), "JPEG2000", no_jp2=True))
    at = data.index(b"\xff\x51") + 6
    for place in (0, 4, 16, 20):
        data[at + place : at + place + 4] = struct.pack(">I", side)
    coding = data.index(b"\xff\x52")
    if precinct != 0xFF:
        levels = data[coding + 9]
        length = int.from_bytes(data[coding + 2 : coding + 4], "big")
        own = bytes([precinct]) * (levels + 1)
        data[coding + 2 : coding + 4] = struct.pack(">H", 12 + levels + 1)
        data[coding + 4] |= 1
        data[coding + 14 : coding + 2 + length] = own
    return bytes(data)


def commented_gif(blocks):
    whole = stored(Image.new("P", (8, 8)), "GIF")
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * blocks + b"\0"
    at = whole.index(b",\0\0\0\0")
    return whole[:at] + comment + whole[at:]


def bombs():
    """Much in little. What fits must be right, what does not must be refused."""
    text = chunk(b"zTXt", b"a\0\0" + zeros(1_000_000))
    profile = chunk(b"iCCP", b"a\0\0" + zeros(50_000_000))
    whole = stored(Image.new("RGB", (64, 64)), "JPEG")
    wide = png(8000, 8000, 16, 0, zeros(8000 * 16_001))
    yield "sixteen_bits.png", wide, np.zeros((SIDE, SIDE, 3), np.uint8)
    for name, colour in (("rgba", 6), ("grey_alpha", 4), ("palette", 3)):
        yield f"{name}.png", png(8000, 8000, 8, colour, b"", chunk(b"PLTE", bytes(768))), None
    yield "texts.png", png(8, 8, 8, 2, zeros(200), text * 300), None
    yield "late_texts.png", png(8, 8, 8, 2, zeros(200), after=text * 300), None
    yield "profile.png", png(8, 8, 8, 2, zeros(200), profile), None
    yield "chunks.png", png(8, 8, 8, 2, zeros(200), chunk(b"teSt", b"") * 400_000), None
    for side, count in ((1600, 3000), (40, 3000)):
        small = "" if side > 40 else "_small"
        yield f"scans{small}.jpg", of_many_scans(side, count), None
    yield "junk.jpg", whole[:2] + bytes(3_000_000) + whole[2:], None
    yield "segments.jpg", whole[:2] + b"\xff\xfe\0\2" * 400_000 + whole[2:], None
    yield "exif.jpg", whole[:2] + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 200, None
    yield "hidden.ico", icon(png(9000, 7000, 8, 6)), None
    yield "hidden_bitmap.ico", icon(struct.pack("<IiiHHI", 40, 9000, 14_000, 1, 32, 0)), None
    yield "hidden.icns", icns(png(9000, 7000, 8, 6)), None
    yield "hidden_wavelet.icns", icns(wavelet(8000)), None
    yield "tile.tif", a_tile_of(24_000), None
    yield "strips.tif", of_strips(1_500_000), None
    yield "tile.jp2", wavelet(7900), None
    yield "precincts.jp2", wavelet(4000, 0), None
    yield "comments.gif", commented_gif(20_000), None
    yield (
        "beyond.gif",
        stored(Image.new("P", (8, 8)), "GIF").replace(
            b",\0\0\0\0\x08\0\x08\0", b",\0\0\0\0\xff\xff\xff\xff"
        ),
        None,
    )
    yield "slow.qoi", b"qoif" + struct.pack(">IIBB", 7000, 7000, 4, 0) + b"\xfd" * 800_000, None
    yield "slow.ppm", b"P6 5000 5000 254\n" + bytes(1000), None
    yield "plain.ppm", b"P3 5000 5000 255\n" + b"1 " * 100_000, None
    yield "slow.dds", dds_of_masks(4000), None


def dds_of_masks(side):
    whole = bytearray(stored(Image.new("RGB", (8, 8)), "DDS"))
    whole[12:20] = struct.pack("<II", side, side)
    return bytes(whole) + bytes(1000)


def all_of_them(seed=0):
    """(name, bytes, right pixels or None) of each hostile picture."""
    rng, kinds = np.random.default_rng(seed), samples()
    for number, ((kind, mode), whole) in enumerate(kinds.items()):
        suffix = (".png", ".jpg", ".gif", "", ".PNG ", ".txt")[number % 6]  # often the wrong one
        same = TRUTH if mode in ("RGB", "RGBA", "CMYK", "YCbCr") and kind not in LOSSY else None
        yield f"whole_{kind}_{mode}{suffix}", whole, same
        yield f"cut_{kind}_{mode}.png", whole[: rng.integers(len(whole))], None
        yield f"twice_{kind}_{mode}.png", whole + whole, same if kind != "JPEG2000" else None
        bad = np.frombuffer(whole, np.uint8).copy()
        for place in rng.integers(0, min(len(bad), 400), 6):
            bad[place] ^= 1 << rng.integers(8)
        yield f"flipped_{kind}_{mode}.png", bad.tobytes(), None
        if kind in SIZED:
            place, form = SIZED[kind]
            lie = bytearray(whole)
            most = 255 if form == "BB" else 2**15 - 1
            struct.pack_into(form, lie, place, most, most)
            yield f"lies_{kind}_{mode}.png", bytes(lie), None
    for width, height in ((0, 0), (1, 0), (60_000, 60_000), (2**31 - 1, 1), (7999, 7999)):
        for bits, colour in ((8, 2), (16, 0), (1, 0), (8, 3)):
            yield (
                f"size_{width}_{height}_{bits}_{colour}.png",
                png(width, height, bits, colour),
                None,
            )
    whole = stored(Image.fromarray(TRUTH), "JPEG", quality=95)
    for number in range(20):
        size = int(rng.integers(2, 60_000))
        exif = b"Exif\0\0II*\0\x08\0\0\0" + rng.bytes(size)
        part = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        yield f"exif_{number}.jpg", whole[:2] + part + whole[2:], None
    eps = stored(Image.fromarray(TRUTH), "EPS")
    for name in ("eps.png", "eps.jpg", "eps.EPS", "eps"):
        yield name, eps, None
    for name, content in (("nothing.png", b""), ("text.jpg", b"a cat"), ("zeros.gif", bytes(999))):
        yield name, content, None
    yield from bombs()


LOSSY = ("GIF", "BLP", "AVIF", "SPIDER", "PALM", "XBM", "MSP", "ICNS", "ICO")  # others here
