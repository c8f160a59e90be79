"""Every hostile picture ends in the right pixels or in one line that names it, within bounds."""

import io
import os
import warnings

import hostile_pictures as hostile
import numpy as np
import pytest
from hostile_use import one_line, used
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from trials import trial

from minicoca import bounds, images
from minicoca.images import ImageError, check, load_image

pytestmark = pytest.mark.slow
SLACK = 60_000_000  # bytes that Python and the allocator keep
TIMES = float(os.environ.get("MINICOCA_FUZZ", "1"))  # of the examples: 100 take about an hour
TOO_MUCH = {  # in memory or in time, some of it hidden from their header
    "rgba.png", "grey_alpha.png", "palette.png", "chunks.png", "scans.jpg", "segments.jpg",
    "hidden.ico", "hidden_bitmap.ico", "hidden.icns", "hidden_wavelet.icns", "tile.tif",
    "strips.tif", "tile.jp2", "precincts.jp2", "slow.qoi", "slow.ppm", "plain.ppm", "slow.dds",
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    place = tmp_path_factory.mktemp("pictures")
    cases = []
    for name, content, truth in hostile.all_of_them():
        (place / name).write_bytes(content)
        cases.append((place / name, truth))
    return cases


def look(case):
    path, truth = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = load_image(path, hostile.SIDE, crop="squash")
    return "right" if truth is None else int(np.abs(image.astype(int) - truth).max())


def test_each_is_right_or_named_within_bounds(corpus):
    assert len(corpus) >= 300
    trial("hostile pictures", len(corpus))
    found = used(look, corpus)
    assert len(found) == len(corpus), f"died of {corpus[len(found)][0]}"
    wrong, refused = [], []
    for (path, truth), (result, memory, seconds) in zip(corpus, found, strict=True):
        if isinstance(result, tuple):
            good = truth is None and result[0] in ("ImageError", "NoFileError")
            good = good and one_line(result[1], path.name)
        else:
            good = result == "right" or result <= 24
        if not good or memory > bounds.MAX_MEMORY + SLACK or seconds > bounds.MAX_SECONDS:
            wrong.append((path.name, result, f"{memory / 1e6:.0f} MB", f"{seconds:.1f} s"))
        if isinstance(result, tuple) and "over the limit" in result[1]:
            refused.append(path.name)
            assert memory < 100_000_000, f"{path.name} was refused too late"
    assert not wrong
    assert not TOO_MUCH - {*refused}, "decoded, though it asks for too much"
    decoded = sum(not isinstance(result, tuple) for result, _, _ in found)
    assert decoded > len(corpus) / 3


def test_headers_alone_are_within_bounds(corpus):
    """As a data set is opened, when nothing is decoded."""

    def header(case):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(case[0], 64)

    found = used(header, corpus)
    assert len(found) == len(corpus), f"died of {corpus[len(found)][0]}"
    for (path, _), (result, memory, seconds) in zip(corpus, found, strict=True):
        assert memory < bounds.MAX_MEMORY and seconds < bounds.MAX_SECONDS, path.name
        assert result is None or one_line(result[1], path.name), result


WHOLE = list(hostile.samples().values())


@settings(max_examples=int(4000 * TIMES))
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=5)), max_size=8),
    st.integers(0, 3000),
    st.booleans(),
)
def test_any_bytes_are_a_picture_or_an_image_error(whole, changes, cut, end):
    trial("fuzzed inputs")
    content = bytearray(whole[:cut] if end else whole)
    for place, other in changes:
        content[place : place + len(other)] = other
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert load_image(io.BytesIO(content), 4).shape == (4, 4, 3)
        except ImageError as error:
            assert 0 < len(str(error)) <= 300 and "\n" not in str(error)


@settings(max_examples=int(1000 * TIMES))
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0\x08\0\0\0", b"\xff\xd8\xff"]),
       st.binary(max_size=300))  # fmt: skip
def test_anything_after_a_right_beginning(beginning, rest):
    trial("fuzzed inputs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError):
            load_image(io.BytesIO(beginning + rest), 4)
            raise ImageError("a picture after all")


PEAKS = [  # (format, mode, options, pixels across and down)
    ("PNG", "RGB", {"compress_level": 1}, (3000, 2000)),
    ("PNG", "I;16", {"compress_level": 1}, (3000, 2000)),
    ("PNG", "RGBA", {"compress_level": 1}, (3000, 2000)),
    ("TIFF", "CMYK", {}, (3000, 2000)),
    ("TIFF", "F", {}, (3000, 2000)),
    ("TIFF", "RGB", {"compression": "tiff_lzw", "strip_size": 2**30}, (3000, 2000)),
    ("GIF", "P", {}, (3000, 2000)),
    ("JPEG", "RGB", {"progressive": True, "subsampling": 0}, (3000, 2000)),
    ("WEBP", "RGB", {"method": 0}, (2000, 1500)),
    ("AVIF", "RGB", {"speed": 10}, (2000, 1500)),
    ("JPEG2000", "RGB", {}, (1500, 1000)),
    ("JPEG2000", "L", {"codeblock_size": (4, 4)}, (1500, 1000)),
    ("ICO", "RGBA", {}, (256, 256)),
    ("QOI", "RGB", {}, (500, 400)),
]


@pytest.mark.parametrize("kind, mode, options, size", PEAKS)
def test_the_memory_that_is_counted_is_what_is_used(kind, mode, options, size, tmp_path):
    """Never much more, so that the limit holds; and not many times less, so that it is fair."""
    if kind not in images.FORMATS:
        pytest.skip("this Pillow was built without it")
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8), dtype=np.uint8)
    large = images.Image.fromarray(noise).resize(size).convert("L" if mode == "I;16" else "RGB")
    path = tmp_path / "a"
    path.write_bytes(hostile.stored(large.convert(mode), kind, **options))
    del large
    content = path.read_bytes()
    file = io.BytesIO(content)
    with images.Image.open(file, formats=images.FORMATS) as image:
        passes = bounds.scans(content) if bounds.is_jpeg(image) else 0
        counted = bounds.memory(image, image.size, file, len(content), passes)
    images.Image.core.set_blocks_max(0)
    ((_, memory, _),) = used(lambda path: images.flat(path, images.WHITE, None).size, [path])
    assert memory < 1.25 * counted + 8_000_000, f"{memory / 1e6:.0f} of {counted / 1e6:.0f} MB"
    assert counted < 6 * memory + 8_000_000, f"{memory / 1e6:.0f} of {counted / 1e6:.0f} MB"


@pytest.mark.parametrize(("mode", "each"), [("L", 1), ("I;16", 2), ("RGB", 3), ("CMYK", 4)])
def test_a_strip_is_counted_with_all_its_bits(mode, each, tmp_path):
    path, pixels = tmp_path / "one strip.tif", 300 * 200
    Image.new(mode, (300, 200)).save(path, compression="tiff_lzw", strip_size=2**30)
    with Image.open(path) as image:
        assert bounds.tiles(image) == each * pixels + bounds.TILE
