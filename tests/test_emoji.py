"""Emoji from tiny vendors made here; the real ones are tested too where they are installed."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageDraw, features

from minicoca.data import emoji, emoji_drawings

pytest.importorskip("emoji")
pytestmark = pytest.mark.extras

KEYS = sum((keys[:4] for keys in emoji.things().values()), ())
TINTS = {"one": "red", "two": "green", "three": "blue"}


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, request):
    if "real" not in request.node.name:
        monkeypatch.setattr(emoji_drawings, "VENDORS", {})


def drawing(key: str, tint: str, margin: int = 0) -> Image.Image:
    """A pattern that belongs to the key, in the vendor's colour."""
    random = np.random.default_rng(int(key.replace("-", ""), 16))
    cells = random.integers(0, 2, (6, 6)).astype(bool)
    cells[[0, -1], [0, -1]] = True  # the ink reaches every edge
    image = Image.new("RGBA", (60 + 2 * margin, 60 + 2 * margin))
    pen = ImageDraw.Draw(image)
    for row, column in np.argwhere(cells):
        left, top = margin + 10 * column, margin + 10 * row
        pen.rectangle((left, top, left + 9, top + 9), fill=tint)
    return image


@pytest.fixture
def vendors(tmp_path):
    """Three folders of pictures, each with names and margins of its own."""
    for number, (vendor, tint) in enumerate(TINTS.items()):
        folder = tmp_path / vendor
        folder.mkdir()
        for key in KEYS:
            name = [f"{key}.png", f"emoji_u{key.replace('-', '_')}.png", f"{key.upper()}-FE0F.webp"]
            options = {"lossless": True} if number == 2 else {}
            drawing(key, tint, margin=5 * number).save(folder / name[number], **options)
    return {vendor: tmp_path / vendor for vendor in TINTS}


def load(vendors, tmp_path, **options):
    given = {"held_out": "three", "sources": vendors, "directory": tmp_path / "data"}
    return emoji.load(**{**given, **options})


@pytest.mark.parametrize(
    "name, key",
    [
        ("1f600.png", "1f600"),
        ("emoji_u1f468_200d_1f4bb.png", "1f468-200d-1f4bb"),
        ("1F468-200D-1F4BB.webp", "1f468-200d-1f4bb"),
        ("u2600_fe0f.png", "2600"),
        ("0023-fe0f-20e3.png", "0023-20e3"),
        ("a9.png", "00a9"),
        ("sheet_64.png", None),
        ("readme.png", None),
    ],
)
def test_key_of_file(name, key):
    assert emoji_drawings.key_of_file(name) == key


def test_names():
    names = emoji.all_names()
    assert names["1f603"] == ("\U0001f603", "grinning face with big eyes")
    assert names["2600"][1] == "sun"
    assert emoji.key_of("\u2600\ufe0f") == "2600"
    assert not any("skin tone" in name for _, name in names.values())
    assert len({name for _, name in names.values()}) == len(names)


def test_things():
    counts = {group: len(keys) for group, keys in emoji.things().items()}
    assert sum(counts.values()) == 1015 and counts["food"] == 128
    assert len(emoji.choose_keys("things")) == 1015  # hence all have a name, and none comes twice
    assert emoji.choose_keys("food") == tuple(sorted(emoji.things()["food"]))
    with pytest.raises(ValueError, match="foods.*things"):
        emoji.choose_keys("foods")
    with pytest.raises(ValueError, match="1f3fb"):
        emoji.choose_keys(["1f600", "1f3fb"])


def test_held_out_vendor_is_never_trained_on(vendors, tmp_path):
    data = load(vendors, tmp_path)
    held_out = data.evaluations["held_out"]
    assert len(data.train) == 2 * len(KEYS) and len(held_out) == len(KEYS)
    least_blue = [split.images[..., 2].min(axis=(1, 2)) for split in (held_out, data.train)]
    assert least_blue[0].min() > 200 > least_blue[1].max()  # the held-out vendor paints in blue
    zero_shot = held_out.zero_shot
    assert sorted(zero_shot.names) == sorted(emoji.all_names()[key][1] for key in KEYS)
    assert all(prompts == (name,) for name, prompts in zip(*class_texts(zero_shot), strict=True))
    for image, label in zip(zero_shot.images, zero_shot.labels, strict=True):
        assert held_out.captions[image] == (zero_shot.names[label],)
    np.testing.assert_allclose(data.mean, data.train.images.mean((0, 1, 2)) / 255)
    np.testing.assert_allclose(data.std, data.train.images.std((0, 1, 2)) / 255)


def class_texts(zero_shot):
    return zero_shot.names, zero_shot.prompts


def test_image_and_caption_belong_together(vendors, tmp_path):
    key_of_name = {name: key for key, (_, name) in emoji.all_names().items()}
    data = load(vendors, tmp_path)
    for split, tints in ((data.train, ["red", "green"]), (data.evaluations["held_out"], ["blue"])):
        for row, (caption,) in enumerate(split.captions):
            right = drawing(key_of_name[caption], tints[row // len(KEYS)])
            np.testing.assert_array_equal(split.images[row], emoji_drawings.fit(right, 32))


def test_excluded_vendor_takes_no_part(vendors, tmp_path):
    data = load(vendors, tmp_path, held_out="two", exclude=("three",))
    assert len(data.train) == len(KEYS)
    with pytest.raises(ValueError, match="two vendors"):
        load(vendors, tmp_path, exclude=("one", "two"))


def test_what_is_missing_is_said(vendors, tmp_path):
    with pytest.raises(ValueError, match="twemoji.*(\n.*)*npm pack"):
        load(vendors, tmp_path, held_out="twemoji")
    with pytest.raises(ValueError, match="found: none(.*\n)*.*apt-get install(.*\n)*.*pip install"):
        load({}, tmp_path)
    with pytest.raises(ValueError, match="one=.*nowhere does not exist"):
        load({"one": tmp_path / "nowhere"}, tmp_path)
    (tmp_path / "notes.txt").write_text("no emoji")
    with pytest.raises(ValueError, match="notes.txt"):
        load({"one": tmp_path / "notes.txt"}, tmp_path)


def test_a_name_needs_the_held_out_vendor_and_one_other(vendors, tmp_path):
    first, second = KEYS[:2]
    (vendors["three"] / f"{first.upper()}-FE0F.webp").unlink()
    (vendors["one"] / f"{second}.png").unlink()
    data = load(vendors, tmp_path)
    names = data.evaluations["held_out"].zero_shot.names
    assert emoji.all_names()[first][1] not in names
    assert (emoji.all_names()[first][1],) not in data.train.captions
    assert data.train.captions.count((emoji.all_names()[second][1],)) == 1


def test_unseen_names_are_nowhere_in_training(vendors, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "is_unseen", lambda key: key in KEYS[:3])
    data = load(vendors, tmp_path, unseen_names=True)
    unseen = {(emoji.all_names()[key][1],) for key in KEYS[:3]}
    assert not unseen & set(data.train.captions)
    assert not unseen & set(data.evaluations["held_out"].captions)
    assert len(data.evaluations["held_out"].zero_shot.names) == len(KEYS)
    new = data.evaluations["held_out_names"]
    assert set(new.captions) == unseen and len(new) == 3 * 3 and len(new.zero_shot.names) == 3
    for image, label in zip(new.zero_shot.images, new.zero_shot.labels, strict=True):
        assert new.captions[image] == (new.zero_shot.names[label],)


def test_about_five_percent_are_unseen():
    unseen = [key for key in emoji.choose_keys("things") if emoji.is_unseen(key)]
    assert 0.03 < len(unseen) / 1015 < 0.07
    assert unseen[0] == "1f30a"  # a change would let trained models see their test


def test_fit_forgets_the_margin():
    tight = emoji_drawings.fit(drawing(KEYS[0], "red"), 32)
    loose = Image.new("RGBA", (200, 150))
    loose.paste(drawing(KEYS[0], "red"), (90, 3))
    np.testing.assert_array_equal(emoji_drawings.fit(loose, 32), tight)
    wide = Image.new("RGBA", (64, 16), "black")
    got = emoji_drawings.fit(wide, 32)
    assert (got[:10] == 255).all() and (got[-10:] == 255).all() and (got[15, 2:-2] <= 2).all()
    np.testing.assert_array_equal(got, got[::-1])


def test_a_shadow_counts_as_ink_but_a_trace_does_not():
    canvas = Image.new("RGBA", (200, 200), (0, 0, 0, 10))
    canvas.paste(drawing(KEYS[0], "red"), (90, 3))
    expected = emoji_drawings.fit(canvas.crop((90, 3, 150, 63)), 32)
    np.testing.assert_array_equal(emoji_drawings.fit(canvas, 32), expected)
    canvas.paste((0, 0, 0, 100), (30, 3, 90, 63))
    assert (emoji_drawings.fit(canvas, 32) != expected).any()


def test_alpha_is_over_white():
    half = Image.new("RGBA", (64, 64), (0, 0, 0, 128))
    assert abs(int(emoji_drawings.fit(half, 32)[16, 16, 0]) - 127) <= 1


def test_every_name_is_accounted_for(vendors, tmp_path):
    blank, broken = KEYS[:2]
    Image.new("RGBA", (8, 8)).save(vendors["one"] / f"{blank}.png")
    (vendors["one"] / f"{broken}.png").write_bytes(b"not a picture")
    sheet = emoji.load_sheets(32, vendors, tmp_path / "data")["one"]
    assert sheet.left_out["blank"] == 1 and sheet.left_out["unreadable"] == 1
    assert len(sheet.keys) == len(KEYS) - 2
    assert len(sheet.keys) + sum(sheet.left_out.values()) == len(emoji.all_names())
    assert "1 blank, 1 unreadable" in emoji.describe(32, vendors, tmp_path / "data")


def test_second_start_draws_nothing(vendors, tmp_path, monkeypatch):
    first = load(vendors, tmp_path)
    monkeypatch.setattr(emoji_drawings, "drawings", None)
    second = load(vendors, tmp_path)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert first.notes == second.notes
    with pytest.raises(TypeError):  # another size is another sheet
        load(vendors, tmp_path, side=16)
    drawing(KEYS[0], "red", margin=9).save(vendors["one"] / f"{KEYS[0]}.png")
    with pytest.raises(TypeError):  # a changed source is drawn anew
        load(vendors, tmp_path)


def touched(path):
    """Of the same size and name, but another time."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def other_characters(patch, folder):
    key, names = KEYS[0], emoji.all_names()
    patch.setattr(emoji, "all_names", lambda: names | {key: (names[key][0] + "\ufe0f", "x")})


def other_version(patch, name):
    real = features.version
    patch.setattr(features, "version", lambda asked: "0.1" if asked == name else real(asked))


INGREDIENTS = {
    "a file's time": lambda patch, folder: touched(folder / f"{KEYS[0]}.png"),
    "a file's name": lambda patch, folder: (folder / f"{KEYS[0]}.png").rename(folder / "fe0f.png"),
    "a file more": lambda patch, folder: drawing(KEYS[0], "red").save(folder / "sheet_64.png"),
    "a folder of the same files": lambda patch, folder: folder.rename(folder.parent / "moved"),
    "the names": lambda patch, folder: emoji.all_names().pop(KEYS[0]),
    "their characters": other_characters,
    "Pillow": lambda patch, folder: patch.setattr(emoji_drawings, "Pillow", "0.1"),
    "raqm": lambda patch, folder: other_version(patch, "raqm"),
    "FreeType": lambda patch, folder: other_version(patch, "freetype2"),
    "the margin": lambda patch, folder: patch.setattr(emoji_drawings, "MARGIN", 0.1),
    "the way of drawing": lambda patch, folder: patch.setattr(emoji_drawings, "CACHE_VERSION", 99),
}


@pytest.mark.parametrize("changed", INGREDIENTS)
def test_kept_drawings_are_known_by_all_that_made_them(vendors, tmp_path, monkeypatch, changed):
    folder, names = vendors["one"], dict(emoji.all_names())
    monkeypatch.setattr(emoji, "all_names", lambda: names)
    first = emoji.load_sheets(16, {"one": folder}, tmp_path / "data")["one"]
    drawn = []
    real = emoji_drawings.drawings
    monkeypatch.setattr(
        emoji_drawings, "drawings", lambda *given: drawn.append(given) or real(*given)
    )
    again = emoji.load_sheets(16, {"one": folder}, tmp_path / "data")["one"]
    assert not drawn and again.keys == first.keys
    INGREDIENTS[changed](monkeypatch, folder)
    folder = folder if folder.exists() else tmp_path / "moved"
    emoji.load_sheets(16, {"one": folder}, tmp_path / "data")
    assert len(drawn) == 1, f"{changed} has changed, and the old drawings are used"


def test_a_passing_failure_to_read_is_not_kept(vendors, tmp_path, monkeypatch):
    """Else a drawing would be missing for ever, without a word."""

    def failing(source, left_out):
        for name, content in real(source, left_out):
            if name == f"{KEYS[3]}.png":
                raise OSError(5, "Input/output error")
            yield name, content

    real = emoji_drawings.files_in
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(emoji_drawings, "files_in", failing)
        emoji.load_sheets(16, {"one": vendors["one"]}, tmp_path / "data")
    sheet = emoji.load_sheets(16, {"one": vendors["one"]}, tmp_path / "data")["one"]
    assert len(sheet.keys) == len(KEYS)


def test_tarball_is_as_good_as_its_folder(vendors, tmp_path):
    with tarfile.open(tmp_path / "one.tgz", "w:gz") as archive:
        archive.add(vendors["one"], "package/assets")
        archive.addfile(tarfile.TarInfo("package/README.md"), io.BytesIO())
    packed = load({**vendors, "one": tmp_path / "one.tgz"}, tmp_path)
    np.testing.assert_array_equal(packed.train.images, load(vendors, tmp_path).train.images)


def test_pixel_nearest_neighbour(vendors, tmp_path):
    grey = {"one": vendors["one"], "three": vendors["three"]}
    data = load(grey, tmp_path)
    held_out = data.evaluations["held_out"]
    scores = np.array([[cosine(a, b) for b in data.train.images] for a in held_out.images])
    found = [data.train.captions[best] == held_out.captions[row]
             for row, best in enumerate(scores.argmax(1))]  # fmt: skip
    got = emoji.pixel_nearest_neighbour(data)
    assert got["top1"] == np.mean(found) and got["top5"] >= got["top1"]
    assert got["chance"] == 1 / len(KEYS)

    # the same drawings: always right, also beside a vendor that draws one thing for everything
    for key in KEYS:
        drawing(KEYS[0], "green").save(vendors["two"] / f"emoji_u{key.replace('-', '_')}.png")
    for others in ({"one": vendors["one"]}, {"one": vendors["one"], "two": vendors["two"]}):
        twins = load({**others, "three": vendors["one"]}, tmp_path)
        assert emoji.pixel_nearest_neighbour(twins)["top1"] == 1


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = (255 - image.reshape(16, 2, 16, 2, 3).mean((1, 3)) for image in (one, other))
    return (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())


def colour_font() -> bytes:
    """A font with all ink in colour layers over empty outlines: U+1F600 is a red square."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000, isTTF=True)
    pen_class = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen
    glyphs = {}
    boxes = {".notdef": (0, 0, 200, 600), "grin": None, "blank": None, "ink": (0, -100, 990, 890)}
    for name, box in boxes.items():
        pen = pen_class(None)
        if box:
            left, bottom, right, top = box
            pen.moveTo((left, bottom))
            for corner in ((left, top), (right, top), (right, bottom)):
                pen.lineTo(corner)
            pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({0x1F600: "grin", 0x1F603: "blank"})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (1000, 0) for name in glyphs})
    builder.setupHorizontalHeader(ascent=890, descent=-110)
    builder.setupNameTable({"familyName": "Test"})
    builder.setupOS2()
    builder.setupPost()
    builder.setupCOLR({"grin": [("ink", 0)]})
    builder.setupCPAL([[(1, 0, 0, 1)]])
    file = io.BytesIO()
    builder.save(file)
    return file.getvalue()


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow without raqm")
def test_ink_over_an_empty_outline_is_drawn_whole():
    left_out = {}
    texts = {"1f600": "\U0001f600", "1f603": "\U0001f603", "1f601": "\U0001f601"}
    texts["1f468-200d-1f4bb"] = "\U0001f600\U0001f600"
    ((key, glyph),) = emoji_drawings.glyphs(colour_font(), texts, left_out, "font")
    assert key == "1f600"
    assert max(abs(glyph.width - 127), abs(glyph.height - 127)) <= 1
    assert (np.asarray(glyph)[2:-2, 2:-2] == (255, 0, 0, 255)).all()
    assert left_out == {"blank": 1, "absent": 1, "falls apart into several glyphs": 1}


@pytest.mark.parametrize("vendor", ["noto", "openmoji"])
def test_real_font(vendor):
    source = emoji_drawings.find_sources().get(vendor)
    if source is None or not features.check("raqm"):
        pytest.skip(f"{vendor} is not installed")
    texts = {key: emoji.all_names()[key][0] for key in emoji.choose_keys("food")}
    drawn = dict(emoji_drawings.drawings(source, texts, {}))
    assert drawn.keys() == texts.keys()
    apple = emoji_drawings.fit(drawn["1f34e"], 32)
    red, green, blue = apple[14:24, 8:24].reshape(-1, 3).mean(0)
    assert red > 150 and green < 110 and blue < 110
