"""Shards that are written hold what was read, whatever the layout, to the last byte; and an
interrupted call ends as an uninterrupted one."""

import hashlib
import io
import json
import shutil
import tarfile
import threading

import layouts
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_layouts_as_they_are import SETS, classes
from test_shards import no_waiting as no_waiting
from test_shards import picture

from minicoca import __main__ as cli
from minicoca.commands.flags import Usage
from minicoca.commands.shards import limits_of
from minicoca.data import folder as own
from minicoca.data import packing
from minicoca.data.checksums import CHECKSUMS, compare
from minicoca.data.files import Report


def own_content(name):
    """A picture of its own for each name; some have no ending that says what they are."""
    colour = tuple(hashlib.sha256(name.encode()).digest()[:3])
    return picture(colour, 9, "PNG")


def pairs_of(dataset):
    """{(split, the bytes of a picture): its captions}."""
    splits = {"train": dataset.train, "validation": dataset.validation, **dataset.evaluations}
    return {
        (name, pairs.content(row)): pairs.captions[row]
        for name, pairs in splits.items()
        for row in range(len(pairs) if pairs is not None else 0)
    }


def written(dataset, out, most_bytes=None, most_samples=None, side=None, workers=2):
    report = Report()
    shards = packing.plan(dataset, most_bytes, most_samples)
    return list(packing.write_shards(shards, out, side, report, workers)), report


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("write", layouts.WITHOUT + layouts.WITH, ids=lambda f: f.__name__)
@given(SETS, st.integers(1, 3), st.sampled_from([None, 2000]))
@settings(max_examples=6)
def test_what_is_written_is_what_was_read(tmp_path_factory, write, drawn, count, most):
    """Bytes, captions in order, and splits, also those that were drawn."""
    folder = tmp_path_factory.mktemp("packed")
    captions = {name: texts for name, (texts, _) in drawn.items()}
    splits = {name: split for name, (_, split) in drawn.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "content", own_content)
        (folder / "in").mkdir()
        source = write(folder / "in", captions, splits)
    dataset = own.load(source, 8, held_out=0.3, untrained=True)
    found, _ = written(dataset, folder / "out", most, None if most else count)
    if len(pairs_of(dataset)) > 1 and len({split for split, _ in pairs_of(dataset)}) > 1:
        assert pairs_of(own.load(folder / "out", 8, untrained=True)) == pairs_of(dataset)
    else:  # of one split alone it is not kept, as of any layout
        alone = own.load(folder / "out", 8, held_out=0, validation=0)
        assert {key[1]: text for key, text in pairs_of(alone).items()} == {
            key[1]: text for key, text in pairs_of(dataset).items()
        }
    for name, one, there in found:
        content = (folder / "out" / name).read_bytes()
        assert (one.sha256, one.size) == (hashlib.sha256(content).hexdigest(), len(content))
        assert not there and one.samples >= 1 and (most or one.samples <= count)
        assert one.samples == 1 or not most or len(content) <= most + 10_240
    assert compare(folder / "out", report := Report(), whole=True) == len(found)
    assert not report.named


def test_class_folders_become_captions(tmp_path):
    dataset = own.load(classes(tmp_path / "in"), 8, held_out=0.3)
    written(dataset, tmp_path / "out")
    assert pairs_of(own.load(tmp_path / "out", 8)) == pairs_of(dataset)


@pytest.fixture
def dataset(tmp_path):
    captions = {f"{n:02}.png": [f"number {n}", "a thing"] for n in range(12)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "content", own_content)
        layouts.texts_beside(tmp_path / "in", captions, {})
    return own.load(tmp_path / "in", 8, held_out=0.2)


def test_bytes_are_those_of_the_samples_alone(dataset, tmp_path):
    """Neither clock nor owner, nor how many work at it."""
    for name, workers in (("one", 1), ("other", 5)):
        written(dataset, tmp_path / name, most_samples=3, workers=workers)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "other")
    names = [name for name in files_of(tmp_path / "one") if name != CHECKSUMS]
    with tarfile.open(tmp_path / "one" / names[0]) as made:
        members = made.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}


@pytest.mark.parametrize("stop", range(6))
def test_what_was_interrupted_goes_on_where_it_stopped(dataset, tmp_path, stop, monkeypatch):
    """Whole shards are kept, a damaged and an unfinished one are made anew, to the same bytes."""
    written(dataset, tmp_path / "whole", most_samples=2)
    shards = packing.plan(dataset, None, 2)
    real, made = packing.write_shard, []

    def write(path, *given):
        if len(made) == stop:
            raise KeyboardInterrupt
        made.append(path.name)
        return real(path, *given)

    monkeypatch.setattr(packing, "write_shard", write)
    with pytest.raises(KeyboardInterrupt):
        list(packing.write_shards(shards, tmp_path / "cut", None, Report(), 1))
    (tmp_path / "cut" / f"{shards[-1].name}.0123abcd").write_bytes(b"of a killed call")
    kept = set(made)
    if stop > 1:
        with (tmp_path / "cut" / made[0]).open("r+b") as file:
            file.seek(700)
            file.write(b"?")
        kept -= {made[0]}
    monkeypatch.setattr(packing, "write_shard", real)
    found, _ = written(dataset, tmp_path / "cut", most_samples=2)
    assert {name for name, _, there in found if there} == kept
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_a_folder_of_other_things_is_left_alone(dataset, tmp_path):
    written(dataset, tmp_path / "out", most_samples=5)
    before = files_of(tmp_path / "out")
    for how in ({"most_samples": 4}, {"most_samples": 5, "side": 4}):
        with pytest.raises(ValueError, match="holds shards of other data, or cut in another way"):
            written(dataset, tmp_path / "out", **how)
    with pytest.raises(ValueError, match="is not empty, and holds no checksums.json"):
        written(dataset, tmp_path / "in")
    assert files_of(tmp_path / "out") == before


def test_a_picture_that_changed_stops_the_work(tmp_path):
    """Its beginning, or an end that is longer than what was looked at of it."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.bmp").write_bytes(picture((number, 0, 0), 60, "BMP"))
        (tmp_path / "in" / f"{number}.txt").write_text("a thing")
    path = tmp_path / "in" / "3.bmp"
    for content in (picture("red", 60, "BMP"), path.read_bytes() + b"more"):
        dataset = own.load(tmp_path / "in", 8, held_out=0, validation=0)
        dataset.train._digests.clear()  # as of those beyond the 256 that are read whole at first
        before, shards = path.read_bytes(), packing.plan(dataset, None, None)
        path.write_bytes(content)
        with pytest.raises(OSError, match=f"{path.name} is another picture than when"):
            list(packing.write_shards(shards, tmp_path / f"{len(content)}", None, Report()))
        path.write_bytes(before)
        assert [*files_of(tmp_path / f"{len(content)}")] == [CHECKSUMS]


def test_sizes_and_what_cannot_be_decoded(tmp_path):
    """Larger pictures are made smaller JPEGs, upright and in proportion; others stay as they are;
    a damaged one is left out of these and named."""
    folder = tmp_path / "in"
    folder.mkdir()
    small, wide = picture("red", 16), io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (90, 40), "blue").save(wide, "JPEG", exif=turned)
    content = {"a.png": small, "b.jpg": wide.getvalue(), "c.png": picture("green", 99)[:150]}
    content["named for no kind.data"] = content["b.jpg"]
    for name, own_bytes in content.items():
        (folder / name).write_bytes(own_bytes)
    rows = [{"image": name, "caption": name} for name in content]
    (folder / "list.json").write_text(json.dumps(rows))
    dataset = own.load(folder / "list.json", 8, held_out=0, validation=0, keep_copies=True)
    ((name, one, _),) = written(dataset, tmp_path / "as they are")[0]
    assert one.samples == 4
    with tarfile.open(tmp_path / "as they are" / name) as made:
        assert made.extractfile("00000003.jpg").read() == content["b.jpg"]
    ((name, one, _),), report = written(dataset, tmp_path / "out", side=20)
    with tarfile.open(tmp_path / "out" / name) as made:
        found = {member.name: made.extractfile(member).read() for member in made.getmembers()}
    assert set(found) == {f"0000000{n}" for n in "0.png 0.txt 1.jpg 1.txt 3.jpg 3.txt".split()}
    assert found["00000000.png"] == small and one.samples == 3
    assert Image.open(io.BytesIO(found["00000001.jpg"])).size == (20, 45)
    assert "c.png" in report.named["images left out of the shards"][0]


def test_missing_cut_and_damaged_shards_are_named(dataset, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    found, _ = written(dataset, out, most_samples=2)
    names = [name for name, *_ in found if name.startswith("train")]
    (out / names[0]).unlink()
    with (out / names[1]).open("r+b") as file:
        file.truncate(3000)
    with (out / names[2]).open("r+b") as file:
        file.seek(600)
        file.write(b"?")
    notes = own.load(out, 8).notes
    assert "1 shards missing that checksums.json names" in notes and names[0] in notes
    assert f"1 shards of another size than checksums.json says:\n  {out / names[1]}" in notes
    cli.main(["data", str(out), "--json"])
    said = json.loads(capsys.readouterr().out)["checksums"]
    assert said["right"] == len(found) - 3
    assert "1 shards that do not hold what was written into them (sha256):" in said["wrong"]
    shutil.copytree(out, tmp_path / "half")
    shards = json.loads((out / CHECKSUMS).read_text())
    assert shards["planned"] == len(found)
    (out / CHECKSUMS).write_text("{}")
    with pytest.raises(ValueError, match="was not written by minicoca shards; remove or rename"):
        own.load(out, 8)


def test_an_unfinished_folder_says_so(dataset, tmp_path):
    shards = packing.plan(dataset, None, 2)
    writing = packing.write_shards(shards, tmp_path / "out", None, Report(), 1)
    next(writing)
    writing.close()
    report = Report()
    compare(tmp_path / "out", report)
    (said,) = report.named["folders of shards that were not finished (minicoca shards goes on)"]
    assert f"of {len(shards)}" in said


def test_an_error_stops_the_other_shards(dataset, tmp_path):
    stop = threading.Event()
    stop.set()
    shard = packing.plan(dataset, None, None)[0]
    with pytest.raises(OSError, match="the work was stopped"):
        packing.write_shard(tmp_path / shard.name, shard.samples, None, [], stop)
    assert not [*tmp_path.glob("*.tar*")]


@pytest.mark.parametrize(
    ("text", "limits"),
    [("512MB", (512_000_000, None)), ("2 gb", None), ("1GB", (10**9, None)), ("100", (None, 100)),
     ("0", None), ("-5", None), ("12TB", None), ("", None)],
)  # fmt: skip
def test_sizes_of_shards(text, limits):
    if limits:
        assert limits_of(text) == limits
    else:
        with pytest.raises(Usage, match="bytes, as 512MB, or samples, as 10000"):
            limits_of(text)


def test_the_command_says_what_it_did_and_mistakes_in_a_line(dataset, tmp_path, capsys):
    call = ["shards", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--shard-size", "4"]
    for kept in (0, 1):
        assert not cli.main(call)
        said = capsys.readouterr().out.splitlines()
        count = len(list((tmp_path / "out").glob("*.tar")))
        assert f"({count * kept} were there)" in said[-2] and "12" not in said[-2][:2]
        assert said[-1] == f"minicoca train --data {tmp_path / 'out'}"
    (tmp_path / "file").write_text("")
    for wrong, why in (
        (["shapes", "--out", "x"], "made as it is needed"),
        ([*call[1:3], str(tmp_path / "file")], "is no folder"),
        ([*call[1:4], "--workers", "0"], "--workers 0: at least 1"),
    ):
        assert cli.main(["shards", *wrong]) == 2
        assert why in capsys.readouterr().err
