"""Captions kept as they come: whatever ends a call, the next goes on where it stopped."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import noisy_pictures, untrained
from test_results import at_image, call

from minicoca.commands import kept
from minicoca.tasks import files

COUNT, BATCH = 7, 2
SAMPLED = ("--temperature", 2, "--seed", 5)
SINKS = {"rows": ["--out", "o.jsonl"], "texts": ["--write-txt"]}
SINKS["both"] = [*SINKS["rows"], *SINKS["texts"]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures, the second of them broken, and a run."""
    folder = tmp_path_factory.mktemp("kept")
    untrained(folder / "run")
    noisy_pictures(folder / "whole", COUNT)
    return folder


@pytest.fixture
def here(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    monkeypatch.setattr(files, "BATCH", BATCH)
    fresh()


def fresh():
    """As before any call: the same pictures, stamps too, and nothing kept."""
    shutil.rmtree("p", ignore_errors=True)
    shutil.copytree("whole", "p")
    Path("o.jsonl").unlink(missing_ok=True)


def caption(capsys, *flags):
    return call(capsys, "caption", "p", "--run", "run", *flags)


def found():
    """All that is kept: the rows in their order, and the texts."""
    path = Path("o.jsonl")
    rows = path.read_text().splitlines() if path.exists() else []
    return rows, {
        path.name: path.read_text() for path in sorted(Path("p").glob("*.txt")) if path.is_file()
    }


class Killed(BaseException):
    """Nothing catches it, as nothing hears a kill."""


def killed(patch, how, at):
    """Let the process end at the image, in the middle of the row, or before the text, of a number.
    Whatever is not written by then never is."""
    counted = iter(range(100))
    append, write = kept.append, kept.write_atomically

    def half(path, data):
        lines = data.splitlines(True)
        done = [next(counted) for _ in lines]
        if at in done:
            cut = done.index(at)
            append(path, b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])
            raise Killed
        append(path, data)

    def before(path, data):
        if next(counted) == at:
            raise Killed
        write(path, data)

    def die():
        raise Killed

    if how == "image":
        at_image(patch, at, die)
    else:
        name, function = ("append", half) if how == "row" else ("write_atomically", before)
        patch.setattr(kept, name, function)


ALONE = [pytest.param(name, marks=pytest.mark.slow) for name in ("rows", "texts")]


@pytest.mark.parametrize("sinks", ["both", *ALONE])
@given(
    st.lists(st.tuples(st.sampled_from(["image", "row", "text"]), st.integers(0, COUNT - 1))),
    st.booleans(),
)
def test_killed_at_any_moment_it_goes_on_and_equals_one_call(here, capsys, sinks, kills, sampled):
    flags = [*SINKS[sinks], *(SAMPLED if sampled else ())]
    fresh()
    assert caption(capsys, *flags)[0] == 0
    whole = found()
    assert len(whole[0] or whole[1]) == COUNT - 1
    fresh()
    for how, at in kills:
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            killed(patch, how, at)
            caption(capsys, *flags, "--skip-done")
    code, _, err = caption(capsys, *flags, "--skip-done")
    assert found() == whole, err
    again = caption(capsys, *flags, "--skip-done")[2]
    assert found() == whole and f"{COUNT - 1} of {COUNT} are done already" in again


def test_samples_differ_by_image_or_nothing_above_is_tested(here, capsys):
    assert caption(capsys, *SINKS["rows"], *SAMPLED)[0] == 0
    said = [json.loads(line)["caption"] for line in found()[0]]
    assert len(set(said)) > 3


def test_a_line_that_was_cut_off_is_dropped_with_a_word(here, capsys):
    caption(capsys, *SINKS["rows"])
    whole = Path("o.jsonl").read_bytes()
    Path("o.jsonl").write_bytes(whole[:-9])
    code, out, err = caption(capsys, *SINKS["rows"], "--skip-done")
    assert code == 0 and "the last line of o.jsonl was cut off, and is dropped" in err
    assert Path("o.jsonl").read_bytes() == whole and out.count("\n") == 1
    Path("o.jsonl").write_bytes(whole[:-1])  # all of it is there
    assert "cut off" not in caption(capsys, *SINKS["rows"], "--skip-done")[2]
    assert Path("o.jsonl").read_bytes() == whole


@pytest.mark.parametrize("sinks", ["rows", "both"])
def test_a_changed_picture_is_done_again(here, capsys, sinks):
    flags = [*SINKS[sinks], *SAMPLED]
    caption(capsys, *flags)
    before = {row["file"]: row for row in map(json.loads, found()[0])}
    Image.new("RGB", (40, 40), "red").save("p/3.png")
    code, out, err = caption(capsys, *flags, "--skip-done", "--json")
    assert code == 0 and "1 pictures were changed since" in err
    (row,) = json.loads(out)["results"]
    assert row["file"] == "p/3.png"
    rows, texts = found()
    after = {row["file"]: row for row in map(json.loads, rows)}
    assert len(rows) == len(after) == COUNT - 1
    assert after.pop("p/3.png")["size"] != before.pop("p/3.png")["size"] and after == before
    if sinks == "both":
        assert texts["3.txt"] == row["caption"] + "\n"


def test_a_persons_own_text_stays(here, capsys):
    """Told or not told, with rows beside it or without, as a file, a link or a folder."""
    Path("p/0.txt").write_text("my own words")
    Path("p/2.txt").write_text("")  # an empty file is none
    Path("elsewhere.txt").write_text("of another")
    Path("p/3.txt").symlink_to(Path("elsewhere.txt").absolute())
    Path("p/4.txt").mkdir()
    code, out, err = caption(capsys, "--write-txt")
    assert code == 0 and out.count("\n") == COUNT - 4
    for said in (
        "p/0.png: p/0.txt is there already, and kept; --overwrite-txt replaces it",
        "p/3.png: p/3.txt is a link, and is left alone",
        "p/4.png: p/4.txt is no file",
    ):
        assert err.count(said) == 1
    assert Path("p/0.txt").read_text() == "my own words" and Path("p/2.txt").read_text()
    assert Path("p/3.txt").is_symlink() and Path("elsewhere.txt").read_text() == "of another"
    _, out, err = caption(capsys, "--write-txt", "--skip-done")
    assert not out and "4 of 7 are done already" in err
    code, out, err = caption(capsys, *SINKS["both"])
    assert code == 0 and len(found()[0]) == out.count("\n") == COUNT - 1
    assert "p/0.txt holds other words, and is kept" in err and err.count(" is kept") == 1
    assert Path("p/0.txt").read_text() == "my own words"
    caption(capsys, "--write-txt", "--overwrite-txt")
    assert Path("p/0.txt").read_text() == json.loads(found()[0][0])["caption"] + "\n"
    assert Path("elsewhere.txt").read_text() == "of another"


def test_a_text_older_than_its_picture_is_said(here, capsys):
    caption(capsys, "--write-txt")
    os.utime("p/5.png", (2e9, 2e9))
    code, out, err = caption(capsys, "--write-txt", "--skip-done")
    assert code == 1 and not out and "p/5.txt is older than its picture, and kept" in err
    code, out, _ = caption(capsys, "--write-txt", "--skip-done", "--overwrite-txt")
    assert code == 0 and out.startswith("p/5.png") and out.count("\n") == 1


def test_two_images_of_one_name_have_no_text_of_both(here, capsys):
    Image.open("p/0.png").save("p/0.bmp")
    code, out, err = caption(capsys, "--write-txt")
    assert code == 0 and "p/0.png: p/0.txt is that of p/0.bmp" in err
    assert out.count("\n") == COUNT - 1


def test_a_folder_that_may_not_be_written_into_costs_its_files(here, capsys, monkeypatch):
    shutil.copytree("whole", "p/closed")
    access = os.access
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda p, mode: "closed" not in str(p) and access(p, mode))
        code, out, err = caption(capsys, "--write-txt")
    assert code == 0 and out.count("\n") == COUNT - 1
    assert "p/closed/0.txt was not written: its folder may not be written into" in err
    write = kept.write_atomically

    def refused(path, data):
        if "closed" in str(path):
            try:
                raise PermissionError(13, "Permission denied")
            except OSError as error:
                raise OSError(f"{path} was not written: {error.strerror}") from error
        write(path, data)

    monkeypatch.setattr(kept, "write_atomically", refused)
    code, out, err = caption(capsys, *SINKS["both"])
    assert code == 0 and len(found()[0]) == 2 * COUNT - 2
    assert err.count("Permission denied") == COUNT - 1


def test_rows_can_be_printed_as_json_lines(here, capsys):
    code, out, _ = caption(capsys, "--out", "-")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and rows == json.loads(caption(capsys, "--json")[1])["results"]


def test_a_folder_of_rows_is_made(here, capsys):
    shutil.rmtree("new", ignore_errors=True)
    assert caption(capsys, "--out", "new/folder/o.jsonl")[0] == 0
    assert len(Path("new/folder/o.jsonl").read_text().splitlines()) == COUNT - 1


def test_what_is_given_twice_is_kept_once(here, capsys):
    given = ("p", Path("p/0.png").absolute(), "p/../p/2.png", "--run", "run", *SINKS["rows"])
    assert call(capsys, "caption", *given)[0] == 0
    names = [json.loads(line)["file"] for line in found()[0]]
    assert names == [f"p/{i}.png" for i in range(COUNT) if i != 1]


@pytest.mark.parametrize(
    ("flags", "content", "said"),
    [
        (
            ["--out", "o.jsonl"],
            b"x\n",
            "is there already: remove it, or give another name; or --sk",
        ),
        (["--out", "o.jsonl", "--skip-done"], b"x\n{}\n", "o.jsonl: line 1 is no caption's"),
        (["--out", "o.jsonl", "--skip-done"], b'{"file": "a"}\n', "line 1 is no caption's"),
        (["--out", "p", "--skip-done"], b"", "--out p is no file"),
        (["--skip-done"], b"", "--skip-done needs --out FILE or --write-txt"),
        (["--out", "-", "--skip-done"], b"", "--skip-done needs --out FILE or --write-txt"),
        (["--out", "-", "--json"], b"", "give one of them"),
        (["--overwrite-txt"], b"", "--overwrite-txt is of --write-txt"),
    ],
)
def test_what_cannot_be_is_said_before_there_is_work(here, capsys, flags, content, said):
    Path("o.jsonl").write_bytes(content)
    code, out, err = caption(capsys, *flags)
    assert code and not out and said in err, err
    assert Path("o.jsonl").read_bytes() == content
