"""Tar shards: indexed once, read where they lie, and never unpacked; whatever they hold."""

import io
import json
import os
import tarfile
from contextlib import nullcontext

import layouts
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import short, silent, stop_after, tensors

from minicoca import images
from minicoca.data import folder as own
from minicoca.data.files import Report, beginning
from minicoca.data.layouts import read_listed
from minicoca.data.records import Reading
from minicoca.data.shards import shards_named, walk
from minicoca.images import ReadError, check, load_image, open_file
from minicoca.params import flatten
from minicoca.training.checkpoint import fingerprint
from minicoca.training.loop import Stopped

FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
KINDS = [
    tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE,
    tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.CONTTYPE,
]  # fmt: skip
LETTERS = "ab./ \u00e9\u4eac"
MEMBERS = st.lists(
    st.tuples(
        st.text(LETTERS, min_size=1, max_size=9).map(lambda t: t.strip("/ ") or "x"),
        st.sampled_from(["", "/deep" * 20, "/deep" * 45]),  # over a header's 100 and 256 letters
        st.sampled_from(KINDS),
        st.binary(max_size=1100),
    ),
    max_size=5,
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(images, "WAITS", (0, 0, 0))


def read(source, **how):
    report = Report()
    return read_listed(source, Reading(report, **how)), report


def picture(colour, side=12, kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, kind)
    return file.getvalue()


def sample(number) -> list[tuple[str, bytes]]:
    named = f"{number:04}"
    text = f"number {number}\nthe {number}"
    return [(f"{named}.png", picture((6 * number, 0, 9))), (f"{named}.txt", text.encode())]


def shards(folder, count=12, each=4):
    folder.mkdir(exist_ok=True)
    for first in range(0, count, each):
        members = [m for n in range(first, min(count, first + each)) for m in sample(n)]
        layouts.tar(folder / f"{first // each:03}.tar", members)
    return folder


@pytest.mark.parametrize("form", FORMS)
@given(MEMBERS, st.booleans())
def test_members_are_those_that_tarfile_finds(form, members, ends):
    file = io.BytesIO()
    kept = []
    with tarfile.open(fileobj=file, mode="w", format=FORMS[form]) as made:
        for name, deep, kind, content in members:
            # Of a name cut at 100 letters, tarfile takes a last "/" for a folder's.
            info = tarfile.TarInfo(name + (deep if kind != tarfile.AREGTYPE else ""))
            info.type, info.linkname = kind, "elsewhere"
            info.size = len(content) if kind in (b"0", b"\0", b"7") else 0
            try:
                made.addfile(info, io.BytesIO(content))
            except ValueError:  # ustar has no room for the name
                continue
            kept.append((info, content))
    if not kept:
        return
    whole = file.getvalue()
    length = len(whole) if ends else len(whole.rstrip(b"\0")) // 512 * 512 + 512
    file = io.BytesIO(whole[:length].ljust(length, b"\0"))
    found = []
    with nullcontext() if ends else pytest.raises(ValueError, match="it has no end"):
        found.extend(walk(file, length))
    expected = []
    with tarfile.open(fileobj=io.BytesIO(whole)) as made:
        for info in made.getmembers():
            if not info.isdir():
                inside = made.extractfile(info).read() if info.isreg() else None
                expected.append((info.name, inside))
    seen = [
        (m.name.rstrip("/"), None if m.kind else file.getvalue()[m.start : m.start + m.size])
        for m in found
    ]
    assert seen == expected


@given(st.lists(st.tuples(st.integers(-30, 400), st.sampled_from([0, 1, 2]), st.integers(-1, 99))))
def test_a_piece_is_a_file_of_its_own(tmp_path_factory, moves):
    folder = tmp_path_factory.mktemp("pieces")
    content = bytes(range(256)) + b"end"
    layouts.tar(folder / "a.tar", [("z.png", b"!" * 700), ("a.png", content), ("b.txt", b"x")])
    (folder / "plain").write_bytes(content)
    with tarfile.open(folder / "a.tar") as made:
        place = made.getmember("a.png").offset_data
    from minicoca.images import Piece

    piece = Piece(folder / "a.tar", "a.png", place, len(content))
    assert piece.stat().st_size == len(content) and piece.is_file()
    with open_file(piece) as one, (folder / "plain").open("rb") as other:
        for offset, whence, count in moves:
            results = []
            for file in (one, other):
                try:
                    results.append((file.seek(offset, whence), file.read(count), file.tell()))
                except OSError:
                    results.append("refused")
                    file.seek(0)
            assert results[0] == results[1]


def test_images_are_read_where_they_lie_in_any_order(tmp_path):
    found = own.load(shards(tmp_path / "s"), 8, held_out=0, validation=0)
    assert len(found.train) == 12 and "3 shards" in found.notes
    assert found.train.captions[7] == ("number 7", "the 7")
    rows = [11, 0, 5, 5, 3]
    colours = found.train.batch(rows)[:, 0, 0]
    np.testing.assert_array_equal(colours, [(6 * row, 0, 9) for row in rows])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]
    assert sorted(path.suffix for path in (tmp_path / "s").iterdir()) == [".tar"] * 3


def test_one_a_folder_and_a_pattern_are_the_same(tmp_path):
    shards(tmp_path / "s")
    ways = [tmp_path / "s", tmp_path / "s" / "*.tar", tmp_path / "s" / "{000..002}.tar"]
    found = [own.load(way, 8, seed=3, held_out=0.3) for way in ways]
    for one in found[1:]:
        assert one.train.captions == found[0].train.captions
        assert fingerprint(one) == fingerprint(found[0])
    alone = own.load(tmp_path / "s" / "001.tar", 8, held_out=0)
    assert [texts[0] for texts in alone.train.captions] == [f"number {n}" for n in range(4, 8)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a{0..2}.tar", ["a0.tar", "a1.tar", "a2.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{0..1}-{0..1}.tar", ["0-0.tar", "0-1.tar", "1-0.tar", "1-1.tar"]),
    ],
)
def test_ranges_of_names(pattern, names):
    assert [str(path) for path in shards_named(pattern)] == names
    with pytest.raises(ValueError, match="stands for 1,000,000,000 files; 1 to 1,000,000 can"):
        shards_named("{0..999}{0..999}{0..999}.tar")
    with pytest.raises(ValueError, match="stands for 0 files"):
        shards_named("{9..0}.tar")


def test_the_fingerprint_notices_another_picture(tmp_path):
    shards(tmp_path / "s")
    before = fingerprint(own.load(tmp_path / "s", 8))
    assert fingerprint(own.load(tmp_path / "s", 8)) == before
    members = [m for n in range(4) for m in sample(n)]
    members[0] = (members[0][0], picture("red", 90))
    layouts.tar(tmp_path / "s" / "000.tar", members)
    assert fingerprint(own.load(tmp_path / "s", 8)) != before


def test_another_picture_under_a_name_is_noticed_as_it_is_read(tmp_path):
    loaded = own.load(shards(tmp_path / "s", 8), 8, held_out=0).train
    begins = {row: beginning(piece) for row, piece in enumerate(loaded.paths)}
    train = own.FolderPairs(loaded.paths, loaded.captions, 8, beginnings=begins, cache_bytes=0)
    path = tmp_path / "s" / "001.tar"
    content = bytearray(path.read_bytes())
    content[train.paths[4].start + 60] ^= 1
    path.write_bytes(content)
    train.batch([3])
    with pytest.raises(ReadError, match=r"001.tar/0004.png is another picture than when"):
        train.batch([4])
    path.unlink()
    with pytest.raises(ReadError, match="001.tar: no such file"):
        train.batch([5])


@pytest.mark.slow
def test_training_goes_on_to_the_last_bit(tmp_path, monkeypatch):
    config = short(
        data=str(shards(tmp_path / "s", 40)), steps=4, batch_size=8, checkpoint_every=2,
        image_size=16, image_layers=1,
    )  # fmt: skip
    silent(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, "torch", 1)
        with pytest.raises(Stopped):
            silent(config, tmp_path / "cut")
    silent(None, tmp_path / "cut", taking_up=True)
    one, other = (
        flatten(tensors(tmp_path / name, "model.safetensors")) for name in ("whole", "cut")
    )
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_what_is_no_image_or_caption_is_counted(tmp_path):
    members = [
        *sample(1),
        ("0001.json", b'{"caption": "not read"}'),
        ("0001.cls", b"3"),
        ("0002.png", picture("red")),
        ("0003.txt", b"lonely"),
        ("0004.png", picture("blue")),
        ("0004.txt", "caf\u00e9".encode("latin-1")),
        ("0005.png", picture("blue")),
        ("0005.json", b'{"caption": "of five"}'),
        ("0006.png", picture("blue")),
        ("0006.json", b'{"other": "of six"}'),
        ("0007.png", picture("blue")),
        ("0007.txt", b"x" * (2**20 + 1)),
        ("0001.png", picture("green")),
        ("./._0001.png", b"\0\5\x16\7"),
    ]
    path = layouts.tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as made:
        link = tarfile.TarInfo("0001.link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    listed, report = read(path)
    assert {name: len(texts) for name, texts in listed.captions.items()} == {
        "a.tar/0001.png": 2,
        "a.tar/0005.png": 1,
    }
    assert {reason: len(names) for reason, names in report.named.items()} == {
        "members left alone": 2,
        "members left out, an earlier one has the name": 1,
        "members that are no image or caption": 1,
        "rows without a caption left out": 1,
        "caption files without a picture": 1,
        "caption files that cannot be read left out, with their images": 3,
    }


def test_sparse_members_are_left_alone(tmp_path):
    """Their bytes are not as they stand."""
    with tarfile.open(tmp_path / "a.tar", "w") as made:
        for name, content in sample(1):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), {"GNU.sparse.major": "1"}
            made.addfile(info, io.BytesIO(content))
    listed, report = read(tmp_path / "a.tar")
    assert not listed.captions and len(report.named["members left alone"]) == 2


def test_names_are_only_names(tmp_path):
    """Nothing is written, wherever a member's name points; and it is read by its place."""
    names = ["../../up.png", "/etc/over.png", "a/../b.png", "b.png", "nul\u0001.png"]
    members = []
    for number, name in enumerate(names):
        members += [(name, picture((number, 0, 0))), (f"{name[:-4]}.txt", b"text")]
    path = layouts.tar(tmp_path / "a.tar", members)
    before = sorted(tmp_path.rglob("*"))
    found = own.load(path, 8, held_out=0)
    assert found.train.batch(range(5))[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert sorted(tmp_path.rglob("*")) == before and not os.path.exists("/etc/over.png")


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=40)
def test_damage_costs_what_it_hits_and_is_named(tmp_path_factory, seed, cut):
    folder = shards(tmp_path_factory.mktemp("damage") / "s", 8)
    rng, path = np.random.default_rng(seed), folder / "000.tar"
    content = bytearray(path.read_bytes())
    if cut:
        del content[rng.integers(512, 5000) :]
    else:
        at = rng.integers(10) * 512
        content[at : at + 512] = rng.bytes(512)
    path.write_bytes(content)
    listed, report = read(folder)
    assert {f"001.tar/{n:04}.png" for n in range(4, 8)} <= listed.captions.keys()
    whole = {f"000.tar/{n:04}.png": (f"number {n}", f"the {n}") for n in range(4)}
    lost = [name for name in whole if name not in listed.captions]
    assert not lost or "000.tar" in str(report)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x1f\x8b" + b"x" * 2000, "it is compressed by gzip; unpack that, to a plain .tar"),
        (b"BZh9" + b"x" * 2000, "compressed by bzip2"),
        (b"x" * 2000, "here is no header of a tar"),
        (b"", "it is no tar"),
        (b"x" * 100, "it is no tar"),
        (bytes(512 * 100), "here is no header of a tar"),
    ],
)
def test_what_is_no_shard_is_one_line(tmp_path, content, why):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=f"no image with a caption can be used. 1 .*{why}"):
        own.load(tmp_path / "a.tar", 8)


def test_bounds_of_pictures_hold_in_shards(tmp_path, monkeypatch):
    from minicoca import bounds
    from minicoca.images import ImageError

    layouts.tar(tmp_path / "a.tar", [("a.png", picture("red", 50)), ("a.txt", b"red")])
    piece = next(iter(read(tmp_path / "a.tar")[0].pieces.values()))
    assert load_image(piece, 8).shape == (8, 8, 3)
    monkeypatch.setattr(bounds, "MAX_MEMORY", 10)
    for look in (check, lambda piece: load_image(piece, 8)):
        with pytest.raises(ImageError, match="a.tar/a.png: .*over the limit"):
            look(piece)


def test_json_of_a_sample_may_say_its_split(tmp_path):
    members = []
    for number, split in enumerate(("train", "test")):
        fields = {"key": number, "Teil": split, "alt": f"of {number}"}
        members += [(f"{number}.png", picture("red")), (f"{number}.txt", b"from text")]
        members += [(f"{number}.json", json.dumps(fields).encode())]
    path = layouts.tar(tmp_path / "a.tar", members)
    listed, _ = read(path, caption="alt", split="Teil")
    assert listed.splits == {"a.tar/0.png": "train", "a.tar/1.png": "held_out"}
