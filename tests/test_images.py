"""Every way in which a picture can be stored must come out as the same upright RGB, or be named."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from minicoca import bounds, images, squares
from minicoca.colours import to_bytes
from minicoca.images import ImageError, decode, load_image


@pytest.fixture
def random():
    return np.random.default_rng(0)


def stored(image: Image.Image, kind: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def pixels(file, **options) -> np.ndarray:
    return np.asarray(decode(file, **options)).astype(int)


ORIENTATIONS = {  # how a camera that was held like this stores an upright picture
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation(random, orientation):
    upright = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.fromarray(np.ascontiguousarray(ORIENTATIONS[orientation](upright)))
    np.testing.assert_array_equal(pixels(stored(turned, exif=exif)), upright)


def test_damaged_exif_is_no_reason_to_lose_an_image(random):
    upright = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    file = stored(Image.fromarray(upright), exif=b"Exif\0\0MM\0*\xff\xff\xff\xffrubbish")
    np.testing.assert_array_equal(pixels(file), upright)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA"])
def test_opaque_modes(mode):
    red_left = Image.new("RGB", (8, 4), "white")
    red_left.paste("black", (0, 0, 4, 4))
    expected = np.asarray(red_left)
    np.testing.assert_array_equal(pixels(stored(red_left.convert(mode))), expected)


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30)])
def test_transparency_shows_the_background(background):
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0] = [(255, 0, 0, 255), (255, 0, 0, 128), (255, 0, 0, 0)]
    half = (np.array([255, 0, 0]) * 128 + np.array(background) * 127) / 255
    got = pixels(stored(Image.fromarray(rgba)), background=background)
    np.testing.assert_allclose(got[0], [(255, 0, 0), half, background], atol=1)

    grey = Image.fromarray(np.array([[[90, 255], [90, 0]]], dtype=np.uint8), "LA")
    got = pixels(stored(grey), background=background)
    np.testing.assert_array_equal(got[0], [(90, 90, 90), background])


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry(kind):
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    palette.putpixel((1, 0), 1)
    got = pixels(stored(palette, kind, transparency=0), background=(1, 2, 3))
    np.testing.assert_array_equal(got[0], [(1, 2, 3), (0, 0, 255)])


def test_transparent_grey_level():
    grey = Image.fromarray(np.array([[7, 90]], dtype=np.uint8))
    got = pixels(stored(grey, transparency=7), background=(1, 2, 3))
    np.testing.assert_array_equal(got[0], [(1, 2, 3), (90, 90, 90)])


def test_a_grey_of_16_bits_can_be_transparent():
    values = np.full((4, 4), 1028, np.uint16)
    values[0] = 65535 // 3
    got = load_image(stored(Image.fromarray(values), transparency=1028), 4)
    np.testing.assert_array_equal(got[1:], 255)
    np.testing.assert_array_equal(got[0], 85)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(kind):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    got = pixels(stored(Image.fromarray(values), kind))
    np.testing.assert_array_equal(got[0, :, 0], [0, 1, 128, 255])
    assert (got == got[..., :1]).all()


def test_values_wider_than_sixteen_bits():
    floats = np.array([[0, 0.5, 1.0]], dtype=np.float32)
    integers = np.array([[0, 100_000, 200_000]], dtype=np.int32)
    for values in (floats, integers):
        got = pixels(stored(Image.fromarray(values), "TIFF"))
        np.testing.assert_array_equal(got[0, :, 0], [0, 128, 255])
    strange = np.array([[np.nan, np.inf, -np.inf, -3.0, 200.0]])
    np.testing.assert_array_equal(to_bytes(strange, "F"), [[0, 0, 0, 0, 200]])
    np.testing.assert_array_equal(to_bytes(np.array([[0, 255]]), "I"), [[0, 255]])
    np.testing.assert_array_equal(to_bytes(np.array([[0, 255]]), "I;16"), [[0, 1]])
    np.testing.assert_array_equal(to_bytes(np.zeros((1, 2)), "F"), [[0, 0]])


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])  # Pillow writes the JPEG inverted, as Adobe does
def test_cmyk(kind):
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    np.testing.assert_allclose(pixels(stored(cyan, kind))[8, 8], (0, 255, 255), atol=3)


def test_first_picture_of_an_animation():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    file = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(file)[0, 0], (255, 0, 0))


def test_damaged_files_are_named(tmp_path, random):
    noise = Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = stored(noise, "JPEG").getvalue()
    contents = {"truncated.jpg": whole[: len(whole) // 2], "empty.png": b"", "text.png": b"hello"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            load_image(tmp_path / name, 8)
    with pytest.raises(ImageError, match="missing.png: no such file"):
        load_image(tmp_path / "missing.png", 8)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ImageError, match="pipe.png"):
            load_image(tmp_path / "pipe.png", 8)


@pytest.mark.parametrize("side", [9_000, 60_000])  # over our limit; over Pillow's own as well
def test_bomb_is_refused_before_decoding(tmp_path, side):
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ImageError, match=r"bomb.png.*(limit|exceeds)"):
        images.check(tmp_path / "bomb.png")


def test_hostile_bytes_raise_nothing_else(random):
    picture = Image.fromarray(random.integers(0, 256, (12, 9, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        good = np.frombuffer(stored(picture, kind).getvalue(), dtype=np.uint8)
        for _ in range(60):
            bad = good.copy()
            bad[random.integers(0, len(bad), 8)] = random.integers(0, 256, 8)
            try:
                assert load_image(io.BytesIO(bad.tobytes()), 4).shape == (4, 4, 3)
            except ImageError:
                pass


@pytest.mark.parametrize("width, height, side", [(301, 200, 32), (90, 333, 57), (700, 20, 20)])
def test_centre_is_resize_then_crop(random, width, height, side):
    picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    new_width, new_height = (int(side * n / min(width, height)) for n in (width, height))
    left, top = round((new_width - side) / 2), round((new_height - side) / 2)
    resized = np.asarray(picture.resize((new_width, new_height), Image.Resampling.BICUBIC))
    wanted = resized[top : top + side, left : left + side]
    np.testing.assert_array_equal(load_image(stored(picture), side), wanted)
    with pytest.MonkeyPatch.context() as patch:  # as of pictures of many pixels, or long and thin
        patch.setattr(squares, "MOST_SCALED", 0)
        got = load_image(stored(picture), side).astype(int)
        np.testing.assert_allclose(got, wanted.astype(int), atol=1)


def test_a_long_thin_picture_is_not_scaled_whole():
    """It would have a thousand million pixels."""
    for size in ((400_000, 20), (20, 400_000)):
        picture = Image.new("L", size, 200)
        for fit in squares.FITS:
            got = squares.fitted(picture, 224, fit)
            assert got.shape == (224, 224, 3) and (got == 200).any()


def test_pad_keeps_everything_in_black():
    wide, tall = (40, 10), (10, 40)
    cases = [(wide, 16, np.s_[6:10]), (tall, 16, np.s_[:, 6:10]), (wide, 15, np.s_[5:9])]
    for size, side, box in [*cases, (tall, 15, np.s_[:, 5:9])]:
        got = load_image(stored(Image.new("RGB", size, "red")), side, fit="pad")
        wanted = np.zeros((side, side, 3), np.uint8)
        wanted[box] = (255, 0, 0)
        np.testing.assert_array_equal(got, wanted)


def test_every_size_has_a_centre():
    for width in range(1, 60):
        for side in (1, 7, 32):
            left, top, right, bottom = squares.centre_box(width, 13, side)
            assert 0 <= left < right <= width and 0 <= top < bottom <= 13


def test_squash_keeps_everything_and_centre_the_middle():
    stripes = Image.new("RGB", (300, 100), "white")
    stripes.paste("red", (0, 0, 80, 100))
    assert (load_image(stored(stripes), 10) == 255).all()
    squashed = load_image(stored(stripes), 9, fit="squash")
    np.testing.assert_allclose(squashed[4, 0], (255, 0, 0), atol=3)
    with pytest.raises(ValueError, match="'centre' is none of crop, pad, squash"):
        load_image(stored(stripes), 9, fit="centre")


def test_shrinking_averages_instead_of_skipping():
    board = np.indices((256, 256)).sum(0) % 2 * 255
    got = load_image(stored(Image.fromarray(board.astype(np.uint8))), 16)
    np.testing.assert_allclose(got, 127.5, atol=2)


def test_large_jpeg_is_decoded_small_and_looks_the_same(random):
    blobs = Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    photo = stored(
        blobs.resize((600, 400), Image.Resampling.BICUBIC), "JPEG", quality=95
    ).getvalue()
    assert decode(io.BytesIO(photo), at_least=64).size == (150, 100)
    full = decode(io.BytesIO(photo)).resize((48, 32), Image.Resampling.BICUBIC)
    got = load_image(io.BytesIO(photo), 32, roughly=True).astype(int)
    assert 0 < np.abs(got - np.asarray(full)[:, 8:40].astype(int)).mean() < 2
    np.testing.assert_array_equal(load_image(io.BytesIO(photo), 32), np.asarray(full)[:, 8:40])


@pytest.mark.parametrize(
    "most, part", [(60_000, 1), (59_999, 2), (15_000, 2), (3_750, 4), (950, 8)]
)
def test_a_jpeg_over_the_limit_is_decoded_smaller(random, most, part):
    """By no more than it takes, with one line; and refused only where an eighth is too large."""
    blobs = Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    photo = stored(blobs.resize((300, 200), Image.Resampling.BICUBIC), "JPEG").getvalue()
    said = []
    got = load_image(io.BytesIO(photo), 20, max_pixels=most, told=said.append)
    full = load_image(io.BytesIO(photo), 20)
    assert np.abs(got.astype(int) - full).mean() < 12 and (got == full).all() == (part == 1)
    reduced = Image.open(io.BytesIO(photo))
    reduced.draft(None, (300 // part, 200 // part))
    np.testing.assert_array_equal(got, squares.fitted(reduced.convert("RGB"), 20))
    limit = f"300 x 200 is over the limit of {most} pixels: decoded at 1/{part} of its sides"
    assert len(said) == (part > 1) and all(line.endswith(limit) for line in said)
    images.check(io.BytesIO(photo))
    with pytest.raises(ImageError, match="300 x 200 is over the limit of 900 pixels"):
        load_image(io.BytesIO(photo), 20, max_pixels=900)
    with pytest.raises(ImageError, match="300 x 200 is over the limit"):
        load_image(stored(blobs.resize((300, 200))), 20, max_pixels=59_999)


def test_a_jpeg_that_pillow_itself_would_refuse_is_decoded_smaller(monkeypatch):
    photo = stored(Image.new("RGB", (300, 200), "red"), "JPEG").getvalue()
    monkeypatch.setattr(bounds, "MAX_PIXELS", 20_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 25_000)  # twice that is refused
    assert load_image(io.BytesIO(photo), 8).shape == (8, 8, 3)
    with pytest.raises(ImageError, match="exceeds limit"):
        load_image(stored(Image.new("RGB", (300, 200))), 8)


def test_more_pixels_may_take_more_memory_and_time(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_PIXELS", 600)
    monkeypatch.setattr(bounds, "MAX_MEMORY", 4000)
    monkeypatch.setattr(bounds, "MAX_SECONDS", 4e-5)
    picture = Image.new("RGB", (40, 30))
    with pytest.raises(ImageError, match="over the limit of 600 pixels"):
        load_image(stored(picture), 8)
    assert load_image(stored(picture), 8, max_pixels=1200).shape == (8, 8, 3)


def test_a_picture_of_the_most_pixels_is_read_and_one_more_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_PIXELS", 6)
    for width, height, good in ((2, 3, True), (6, 1, True), (7, 1, False)):
        path = tmp_path / f"{width}x{height}.png"
        Image.new("RGB", (width, height)).save(path)
        if good:
            assert images.decode(path).size == (width, height)
        else:
            with pytest.raises(images.ImageError, match="7 x 1 is over the limit of 6 pixels"):
                images.decode(path)
