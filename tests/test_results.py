"""Results as they come: what ends a command takes nothing back, and no file is written over."""

import contextlib
import itertools
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import noisy_pictures, untrained

from minicoca import __main__ as cli
from minicoca.commands import build_parser, results
from minicoca.tasks import files

COUNT, BATCH = 7, 2
COMMANDS = {
    "caption": ("caption", "pictures"),
    "classify": ("classify", "pictures", "--labels", "a star", "a ring"),
    "search": ("search", "pictures", "a star", "-k", 3),
    "embed": ("embed", "pictures"),
}


def fail(error):
    raise error


ENDS = {
    "Ctrl-C": lambda: os.kill(os.getpid(), signal.SIGINT),
    "a polite kill": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "a drive that is away": lambda: fail(OSError("p.png: Input/output error")),
    "no memory": lambda: fail(MemoryError()),
    "a bug": lambda: fail(KeyError("bug")),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, the second of them broken, and a run."""
    folder = tmp_path_factory.mktemp("results")
    untrained(folder / "runs" / "one")
    noisy_pictures(folder / "pictures", COUNT)
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(files, "BATCH", BATCH)
    yield
    for path in {*place.glob("*.npz"), *place.glob("sheet*")}:
        path.unlink()


def call(capsys, *arguments):
    """(exit code, stdout, stderr); a bug's exit code is that of its traceback."""
    try:
        code = cli.main([str(a) for a in arguments])
    except KeyError:
        code = 1
    return code, *capsys.readouterr()


def at_image(monkeypatch, number, act):
    """Do something just before the image of this number is decoded."""
    load, counted = files.load_image, itertools.count()

    def counting(*given, **named):
        if next(counted) == number:
            act()
        return load(*given, **named)

    monkeypatch.setattr(files, "load_image", counting)


def rows_of(out, as_json):
    return json.loads(out)["results"] if as_json else out.splitlines()


@pytest.mark.parametrize("name", COMMANDS)
@given(st.integers(0, COUNT - 1), st.sampled_from(sorted(ENDS)), st.booleans())
def test_what_was_done_is_kept_whatever_ends_it(capsys, name, stop, end, as_json):
    """After `stop` images the whole batches are there, and the document is whole."""
    command = (*COMMANDS[name], *(["--json"] if as_json else []))
    out_file = Path("v.npz")
    command += ("--out", out_file) if name == "embed" else ()
    out_file.unlink(missing_ok=True)
    done = [i for i in range(stop // BATCH * BATCH) if i != 1]
    with pytest.MonkeyPatch.context() as patch:
        at_image(patch, stop, ENDS[end])
        code, out, err = call(capsys, *command)
    assert code == 1
    skipped = 1 if stop > 1 else 0
    left = COUNT - len(done) - skipped
    if not done:
        assert not out or (json.loads(out)["results"], json.loads(out)["not_reached"]) == ([], left)
        return
    assert f"{left} of {COUNT} were not reached" in err
    if end == "Ctrl-C":
        assert err.endswith("minicoca: interrupted\n")
    if as_json:
        document = json.loads(out)
        assert document["not_reached"] == left and len(document["skipped"]) == skipped
    rows = rows_of(out, as_json)
    out_file.rename("part.npz") if name == "embed" else None
    whole = rows_of(call(capsys, *command)[1], as_json)
    if name in ("caption", "classify"):
        assert rows == whole[: len(done)] and len(whole) == COUNT - 1
    elif name == "embed":
        part, every = np.load("part.npz"), np.load("v.npz")
        assert list(part["names"]) == [f"pictures/{i}.png" for i in done]
        np.testing.assert_allclose(part["vectors"], every["vectors"][: len(done)], atol=1e-6)
        assert part["not_reached"] == left and every["not_reached"] == 0
        assert "partial" in str(rows) or rows[0]["not_reached"] == left
        assert "partial" not in str(whole)
    else:
        with pytest.MonkeyPatch.context() as patch:  # as if there were no others
            find = files.find_images
            patch.setattr(files, "find_images", lambda *given: [find(*given)[i] for i in done])
            assert rows == rows_of(call(capsys, *command)[1], as_json)


@pytest.mark.parametrize("name", ["caption", "classify"])
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_rows_are_out_before_the_next_batch_begins(name, flags, monkeypatch):
    """In the file that the output goes to, not in a buffer that a kill would take along."""
    seen, path = [], Path("sheet.out")
    at_image(monkeypatch, 4, lambda: seen.append(path.read_text()))
    with open(path, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main([str(word) for word in (*COMMANDS[name], *flags)]) == 0
    assert all(f"{i}.png" in seen[0] for i in (0, 2, 3)) and "4.png" not in seen[0]
    assert path.read_text().startswith(seen[0])
    assert len(rows_of(path.read_text(), flags)) == COUNT - 1
    if flags:
        document = json.loads(path.read_text())
        assert document["not_reached"] == 0 and "1.png" in document["skipped"][0]


def test_names_stand_in_one_column_from_the_first_row(capsys, monkeypatch):
    monkeypatch.setattr(files, "BATCH", 1)
    longer = Path("pictures/9_a_longer_name.png")
    longer.write_bytes(Path("pictures/0.png").read_bytes())
    monkeypatch.setattr("minicoca.tasks.captioning.caption", lambda *given, **how: ["HERE"])
    out = call(capsys, "caption", "pictures")[1]
    longer.unlink()
    assert len({line.index("HERE") for line in out.splitlines()}) == 1


def test_a_killed_embedding_keeps_half_of_what_it_had(capsys, monkeypatch):
    """What stands on the disk at any moment, as after a kill that cannot be heard."""
    monkeypatch.setattr(files, "BATCH", 1)
    sizes = []

    def look():
        there = Path("v.npz").is_file()
        sizes.append(len(np.load("v.npz")["names"]) if there else 0)
        assert not there or np.load("v.npz")["not_reached"] > 0

    load = files.load_image
    monkeypatch.setattr(files, "load_image", lambda *given, **how: look() or load(*given, **how))
    assert call(capsys, "embed", "pictures", "--out", "v.npz")[0] == 0
    reached = [0, 1, 1, 2, 3, 4, 5]  # the second is no picture
    assert all(2 * size >= done for size, done in zip(sizes, reached, strict=True)), sizes


def test_ctrl_c_waits_for_the_end_of_a_row(monkeypatch):
    class Slow:
        """Half of a text, Ctrl-C, and the other half."""

        text = ""

        def write(self, text):
            self.text += text[: len(text) // 2]
            if not pressed:
                pressed.append(os.kill(os.getpid(), signal.SIGINT))
            self.text += text[len(text) // 2 :]

        def flush(self):
            pass

        def isatty(self):
            return False

    slow, pressed = Slow(), []
    monkeypatch.setattr(sys, "stdout", slow)
    rows = [f"row {i}" for i in range(200)]
    with pytest.raises(KeyboardInterrupt):
        with results.Results(SimpleNamespace(json=True), 300, None) as shown:
            shown.add(rows)
    document = json.loads(slow.text)
    assert document["results"] == rows and document["not_reached"] == 100


def test_a_full_pipe_does_not_stop_the_work(monkeypatch):
    """Whoever reads only after the last image gets every row."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(writer, b"." * 4096)
    os.set_blocking(writer, True)
    decoded, got = threading.Event(), []

    def read():
        got.append(decoded.wait(30))
        while part := os.read(reader, 65536):
            got.append(part)

    thread = threading.Thread(target=read)
    thread.start()
    at_image(monkeypatch, COUNT - 1, decoded.set)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main([*COMMANDS["caption"]]) == 0
        monkeypatch.undo()
    thread.join()
    os.close(reader)
    assert got[0], "it waited for the reader"
    assert len(b"".join(got[1:])[filled:].splitlines()) == COUNT - 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("name", ["caption", "classify", "search", "embed"])
def test_a_full_disk_under_the_output_is_said(name, capsys, monkeypatch):
    command = (*COMMANDS[name], *(("--out", "v.npz") if name == "embed" else ()))
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main([str(word) for word in command]) == 1
        full.write("Python ends without trying again")
        full.flush()
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "minicoca: standard output was not written: No space left on device"
    if name == "embed":
        assert len(np.load("v.npz")["names"]) == COUNT - 1


PICTURE = "pictures/3.png"
OUTPUTS = [
    ("search", "pictures", "a star", "--sheet"),
    ("data", "shapes", "--sheet"),
    ("embed", "pictures", "--out"),
    ("bench", "step", "--json"),
]


@pytest.mark.parametrize("command", OUTPUTS, ids=lambda command: command[0])
def test_no_file_that_is_there_is_written_over(command, capsys, monkeypatch):
    """Found picture or any other file, link or folder: refused before there is work to lose."""
    for module in ("data", "bench", "training.checkpoint"):
        for name in ("load", "load_model", "step"):
            text = f"minicoca.{module}.{name}"
            monkeypatch.setattr(text, lambda *a, **b: pytest.fail("it worked"), raising=False)
    Path("sheet.png").symlink_to("nowhere")
    Path("sheet.npz").write_bytes(b"vectors")
    for path in (PICTURE, "sheet.png", "sheet.npz", "pictures"):
        before = Path(path).read_bytes() if Path(path).is_file() else b""
        code, out, err = call(capsys, *command, path)
        assert code == 2 and not out and path in err, err
        assert "is there already" in err or "must end" in err
        assert before == (Path(path).read_bytes() if Path(path).is_file() else b"")
    assert Path("sheet.png").is_symlink()
    ending = {"--sheet": "png", "--out": "npz", "--json": "json"}[command[-1]]
    code, _, err = call(capsys, *command, f"{PICTURE}/new.{ending}")
    assert code == 2 and "no folder that can be written into" in err


def test_an_empty_file_is_no_file(capsys):
    for name, *command in (("sheet.png", *OUTPUTS[0]), ("v.npz", *OUTPUTS[2])):
        Path(name).touch()
        assert call(capsys, *command, name)[0] == 0 and Path(name).stat().st_size


def test_a_sheet_is_of_the_format_that_its_name_says(capsys):
    for name in ("sheet", "sheet.txt", "sheet.svg"):
        code, _, err = call(capsys, "search", "pictures", "a star", "--sheet", name)
        assert code == 2 and "must end as a picture's does" in err and not Path(name).exists()
    for name, kind in (("sheet.png", "PNG"), ("sheet.JPG", "JPEG")):
        assert call(capsys, "search", "pictures", "a star", "--sheet", name)[0] == 0
        with Image.open(name) as sheet:
            assert sheet.format == kind


def test_a_query_that_is_also_a_files_name(capsys, monkeypatch):
    """The first file found by itself has cosine 1; a sentence has not."""

    def search(*words):
        code, out, err = call(capsys, "search", "pictures", *words, "--json", "-k", 1)
        return json.loads(out)["results"][0] if code == 0 else (code, err)

    assert search(PICTURE) == search("--image", PICTURE) == {"file": PICTURE, "cosine": 1.0}
    Path("sheet star").write_bytes(Path(PICTURE).read_bytes())
    sentences = [search("--text", text) for text in (PICTURE, "sheet star")]
    assert all(row["cosine"] < 0.99 for row in sentences)
    assert search("sheet star")["cosine"] == 1.0
    Path("sheet star").write_text("a file, but no picture")
    code, err = search("sheet star")
    assert code == 1 and "give --text" in err
    assert search("sheet star", "--text") == sentences[1]
    code, err = search("7.png")
    assert code == 2 and "no such file" in err and "--text" in err
    assert search("--text", "7.png")["cosine"] < 0.99
    code, err = search("--image", "a star")
    assert code == 2 and "a star: no such file" in err


@given(st.permutations(range(3)))
def test_the_newest_of_several_runs_is_taken(order):
    """By when its weights were written, not by its name."""
    from minicoca.commands import model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "load_model", lambda folder, *rest: folder.name)
        folders = [Path("several/runs") / name for name in ("a", "b", "c")]
        for folder, age in zip(folders, order, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.safetensors").touch()
            os.utime(folder / "model.safetensors", (1e9 - age, 1e9 - age))
        (Path("several/runs/d")).mkdir(exist_ok=True)  # not finished
        patch.chdir("several")
        arguments = build_parser().parse_args(["caption", "x.png"])
        assert model.open_model(arguments) == "abc"[order.index(0)]
