"""A save that fails, whichever: the old file is whole, nothing else is left, one line says it."""

import errno
import os
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import few_shapes, load, metrics, short, silent, tensors, untrained  # noqa: F401

from minicoca import __main__ as cli
from minicoca import bench, files, params, report
from minicoca.data import shapes
from minicoca.training import log
from minicoca.training import run as training_run
from minicoca.training.loop import Stopped

RUN_FILES = (
    "tokenizer.model", "config.json", "metrics.jsonl", "resume.safetensors", "model.safetensors",
    "results.json", "README.md", "left_out.txt",
)  # fmt: skip


@contextmanager
def disk_of(size):
    """No file can grow beyond so many bytes: what fits is written, the rest is an error."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def fails(patch, name, call="replace", times=0):
    """`os.replace` (or `os.fsync`) finds the disk full when a file of this name is saved, after
    it went well so many times."""
    original, left = getattr(os, call), [times]

    def full(*given):
        about = given[1] if call == "replace" else os.readlink(f"/proc/self/fd/{given[0]}")
        if Path(about).name.startswith(name):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*given)

    patch.setattr(os, call, full)


@given(st.binary(max_size=60), st.binary(min_size=1, max_size=60), st.integers(0, 59))
def test_a_file_is_old_or_new_never_between(tmp_path, old, new, room):
    for path, save, want in (
        (tmp_path / "whole", files.write_atomically, new),
        (tmp_path / "log", files.append, old + new),
    ):
        path.write_bytes(old)
        if len(want) <= room:
            with disk_of(room):
                save(path, new)
            assert path.read_bytes() == want
        else:
            with (
                disk_of(room),
                pytest.raises(OSError, match=f"^{path} was not written"),
            ):
                save(path, new)
            assert path.read_bytes() == old
        assert {p.name for p in tmp_path.iterdir()} <= {"whole", "log"}


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_where_nothing_can_be_written_no_file_is_lost(tmp_path, monkeypatch, call):
    path = tmp_path / "config.json"
    path.write_text("old")
    fails(monkeypatch, "config.json", call)
    with pytest.raises(OSError, match="config.json was not written: No space left on device"):
        files.write_atomically(path, b"new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    for wrong, why in ((path / "x", "Not a directory|File exists"), ("/dev/null", "no ordinary")):
        with pytest.raises(OSError, match=f"^{wrong} was not written: .*({why})"):
            files.write_atomically(wrong, b"new")
    assert Path("/dev/null").is_char_device()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps that left a file out."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        one_split(patch)
        silent(short(steps=2), folder)
    assert {p.name for p in folder.iterdir()} == {*RUN_FILES, "held_out.png"}
    return folder


def one_split(patch, drawn=False):
    """Little to evaluate, one picture to draw, and a file that was left out."""
    whole = load(0, 32, 60, 20)
    split = {"held_out": whole.evaluations["held_out"]}
    dataset = replace(whole, evaluations=split, left_out="1 image: gone.png")
    patch.setattr(shapes, "load", lambda seed, side, *_: dataset)
    patch.setattr(training_run, "evaluate", lambda *given: ({"images": 1}, []))
    if drawn:
        patch.setattr(training_run, "make_picture", report.make_picture)


@pytest.mark.parametrize("name", RUN_FILES)
def test_every_writer_of_a_run_leaves_the_old_file(finished, tmp_path, monkeypatch, capsys, name):
    """In a new folder nothing half-written stands; in an old one all stands as it did."""
    one_split(monkeypatch)
    monkeypatch.chdir(tmp_path)
    fails(monkeypatch, name)
    code = cli.main(["train", "--steps", "2", "--image-layers", "1", "--run", "new"])
    err = capsys.readouterr().err.splitlines()
    assert code == 1 and err[-1].startswith(f"minicoca: new/{name} was not written: No space left")
    began = RUN_FILES.index(name) > RUN_FILES.index("resume.safetensors")
    assert began == err[-1].endswith("with: minicoca train --resume new")
    there = {p.name for p in Path("new").iterdir()} if Path("new").exists() else set()
    assert there == set(RUN_FILES[: RUN_FILES.index(name)])

    before = {path: path.read_bytes() for path in finished.iterdir()}
    if name not in ("tokenizer.model", "resume.safetensors"):  # written by whoever begins or steps
        assert cli.main(["train", "--resume", str(finished)]) == 1
        assert f"{finished / name} was not written" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in finished.iterdir()}
    assert after.keys() == before.keys() and after[finished / name] == before[finished / name]


def test_a_picture_that_cannot_be_written_costs_itself(tmp_path, monkeypatch, capsys):
    """What is only to be looked at never fails a run that is finished."""
    one_split(monkeypatch, drawn=True)
    monkeypatch.chdir(tmp_path)
    fails(monkeypatch, "held_out.png")
    assert cli.main(["train", "--steps", "2", "--image-layers", "1", "--run", "new"]) == 0
    assert "no picture of held_out: new/held_out.png was not written" in capsys.readouterr().out
    assert {p.name for p in Path("new").iterdir()} == set(RUN_FILES)


@pytest.mark.slow  # tests/faults refuse every call, one by one
def test_a_full_disk_stops_a_run_that_goes_on_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "finish", lambda *given: {})
    silent(short(), tmp_path / "whole")
    for name, well in (("resume.safetensors", 2), ("model.safetensors", 0)):
        folder = tmp_path / name
        with monkeypatch.context() as patch:
            fails(patch, name, times=well)
            with pytest.raises(Stopped, match=f"{name} was not written.*--resume"):
                silent(short(), folder)
        silent(None, folder, taking_up=True)
        runs = (tmp_path / "whole", folder)
        a, b = (params.flatten(tensors(place, "model.safetensors")) for place in runs)
        assert all(np.array_equal(a[key], b[key]) for key in a)
        assert metrics(tmp_path / "whole") == metrics(folder)


def test_a_log_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    append, calls = files.append, []

    def full(path, data, size):
        calls.append(path)
        with disk_of(Path(path).stat().st_size + 5 if len(calls) > 1 else 10_000):
            append(path, data, size)

    monkeypatch.setattr(log, "append", full)
    with pytest.raises(Stopped, match="metrics.jsonl was not written: (File|No space).*--resume"):
        silent(short(), tmp_path / "run")
    assert [list(r) for r in metrics(tmp_path / "run")] == [["step", "command"]]


def test_outputs_that_a_person_names(tmp_path, monkeypatch, capsys):
    """Vectors, sheets, figures: one line, exit code 1, and nothing where nothing was."""
    monkeypatch.chdir(tmp_path)
    untrained(Path("runs/one"))
    Path("pictures").mkdir()
    Image.new("RGB", (8, 8)).save("pictures/0.png")
    monkeypatch.setattr(bench.measure, "roofline", lambda *given: {"tflop_s": 1.0})
    small = ("--preset", "tiny", "--batch-size", "2", "--repeats", "1", "--device", "cpu")
    monkeypatch.setattr(bench, "in_fresh_process", lambda *given: 1)
    before = set(tmp_path.rglob("*"))
    for path, *command in (
        ("v.npz", "embed", "pictures", "--out"),
        ("s.png", "search", "pictures", "a star", "--sheet"),
        ("d.png", "data", "shapes", "--sheet"),
        ("f.json", "bench", "step", *small, "--json"),
    ):
        with monkeypatch.context() as patch:
            fails(patch, path)
            assert cli.main([*command, path]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == f"minicoca: {path} was not written: No space left on device"
        assert set(tmp_path.rglob("*")) == before


def test_what_is_saved_may_be_read_by_others(tmp_path):
    """And written by its owner alone."""
    for _ in range(2):  # new, and in place of an old one
        params.write_atomically(tmp_path / "file", b"x")
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
