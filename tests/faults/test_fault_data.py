"""What folders hold beside pictures: pipes, depths, closed doors, pictures that others put in."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from minicoca import images
from minicoca.commands import classify, search
from minicoca.data import emoji_drawings, files, folder
from minicoca.data.files import Report, files_below, in_threads
from minicoca.data.folder import FolderPairs
from minicoca.images import ImageError, ReadError, failure, load_image
from minicoca.tasks.files import find_images

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(images, "WAITS", (0, 0, 0))


def picture(path, number=0, size=(40, 30), **how):
    noise = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **how)
    path.with_suffix(".txt").write_text(f"thing {number}")
    return path


@pytest.fixture
def things(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(6):
        picture(tmp_path / f"data/{number}.bmp", number)
    return tmp_path / "data"


def test_no_ghostscript_for_what_is_called_a_picture(tmp_path, monkeypatch):
    """Nor any other program in PATH."""
    for name in ("gs", "djpeg", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    eps = tmp_path / "drawing"
    Image.new("RGB", (8, 8)).save(eps, "EPS")
    with Image.open(eps) as opened:
        try:
            opened.load()  # as Pillow does by itself
        except OSError:
            pass
    assert (tmp_path / "ran").exists(), "the trap does not work"
    (tmp_path / "ran").unlink()
    for name in ("photo.png", "photo.jpg", "photo.eps", "1f600.png"):
        (tmp_path / name).write_bytes(eps.read_bytes())
        with pytest.raises(ImageError, match=name):
            load_image(tmp_path / name, 8)
        with pytest.raises(ImageError, match=name):
            images.check(tmp_path / name)
        assert emoji_drawings.rgba(eps.read_bytes(), name) is None
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def in_time():
    """A pipe that is waited for ends the test, not the session."""

    def late(*given):
        raise TimeoutError("waited for a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_pipes_are_never_waited_for(things, tmp_path, in_time):
    for name in ("p.png", "p.txt", "0.txt", "q.csv"):
        (things / name).unlink(missing_ok=True)
        os.mkfifo(things / name)
    notes = folder.load(things, 8).notes
    assert "4 left out, no file but a pipe or device" in notes and "p.txt" in notes
    assert "train 4" in notes or "train 5" in notes or "1 rows without a caption" in notes
    assert all(path.suffix != ".png" for path in find_images([things]))
    for name in ("l.csv", "l.json", "l.jsonl", "l.txt", "l"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: no file, but a folder, pipe or device"):
            folder.load(tmp_path / name, 8)
    with pytest.raises(ValueError, match="l.txt: no file"):
        classify.read_lines(tmp_path / "l.txt")
    with pytest.raises(ValueError, match="l.txt: no file"):
        list(emoji_drawings.files_in(tmp_path / "l.txt", {}))
    picture(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("image,caption\na.png,a\ndata/p.png,b\n")
    assert "1 images left out" in folder.load(tmp_path / "list.csv", 8).notes


def test_ctrl_c_begins_nothing_more():
    """Of a thousand files that wait, those in work are finished and no other is begun."""
    begun, asked, interrupted = [], threading.Event(), threading.Event()

    def items():
        yield from range(5000)
        asked.set()

    def slow(number):
        begun.append(number)
        if number == 3:
            asked.wait(30)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as a terminal
            interrupted.wait(30)
        elif number > 3:
            interrupted.wait(30)

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(KeyboardInterrupt):
            try:
                in_threads(pool, slow, items())
            finally:
                interrupted.set()
    assert len(begun) < 100 and begun[:3] == [0, 1, 2]


@pytest.fixture
def abyss(things):
    """Folders in folders, 1,100 of them; whoever clears up after tests cannot."""
    here = os.open(things, os.O_RDONLY)

    def to(name):
        other = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        return other

    for _ in range(1100):
        os.mkdir("deep", dir_fd=here)
        here = to("deep")
    yield things
    for _ in range(1100):
        here = to("..")
        os.rmdir("deep", dir_fd=here)
    os.close(here)


def test_a_folder_may_be_very_deep(abyss):
    """Deeper than the system's names are long: what lies above is used, the rest is said."""
    things = abyss
    report = Report()
    assert len(files_below(things, report)) == 12
    ((reason, names),) = report.named.items()
    assert "folder that may not be read" in reason and "too long" in names[0]
    assert max(map(len, str(report).splitlines())) <= 310
    notes = folder.load(things, 8).notes
    assert "train" in notes and max(map(len, notes.splitlines())) <= 310
    assert len(find_images([things])) == 6
    with pytest.raises(ValueError) as told:
        find_images([str(things / ("deep/" * 1100))])
    assert len(str(told.value)) <= 300 and "too long" in str(told.value)


def test_a_folder_that_may_not_be_read_is_named(things, monkeypatch):
    """Tests may run as root, who may read everything."""
    (things / "closed").mkdir()
    picture(things / "closed/a.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(files.os, "scandir", scandir)
    report = Report()
    assert len(find_images([things], report)) == 6
    assert f"{things}/closed (Permission denied)" in str(report)
    assert f"{things}/closed (Permission denied)" in folder.load(things, 8).notes
    left_out = {}
    list(emoji_drawings.files_in(things, left_out))
    assert any("closed" in reason for reason in left_out)


def test_no_permission_is_not_called_absence(things, monkeypatch):
    def stat(path, *given, **named):
        if str(path).endswith("5.bmp"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *given, **named)

    real = os.stat
    monkeypatch.setattr(images.os, "stat", stat)
    for look in (lambda: find_images([things / "5.bmp"]), lambda: load_image(things / "5.bmp", 8)):
        with pytest.raises(ImageError, match="5.bmp: Permission denied"):
            look()
    asked = type("", (), {"text": False, "image": True, "query": str(things / "5.bmp")})
    with pytest.raises(ValueError, match="5.bmp: Permission denied"):
        search.by_image(asked)


@pytest.mark.parametrize("error", [MemoryError(), ValueError(), KeyError(), OSError(), Exception()])
def test_no_error_is_empty(error):
    assert str(failure("a.png", error)).removeprefix("a.png").strip(": ")
    assert type(error).__name__ in str(failure("a.png", error))


@pytest.mark.parametrize("read_before", [True, False])
def test_another_picture_in_its_place_stops_the_run(things, read_before):
    """Of the same size, even at the same time; the same bytes anew are no other."""
    data = folder.load(things, 8, held_out=0)
    paths = data.train.paths
    split = FolderPairs(paths, data.train.captions, 8, cache_bytes=0,
                        beginnings=data.train._beginnings)  # fmt: skip
    if read_before:
        split.batch(range(6))
    before = split.batch([0])
    content, times = paths[2].read_bytes(), paths[2].stat()
    paths[2].write_bytes(content)
    os.utime(paths[2], (1, 1))
    if read_before:
        split.batch([2])
    np.testing.assert_array_equal(split.batch([0]), before)
    picture(paths[2], 99)
    os.utime(paths[2], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert paths[2].stat().st_size == times.st_size
    with pytest.raises(ReadError, match=f"{paths[2].name} is another picture"):
        split.batch([1, 2])
    paths[2].write_bytes(b"no picture at all")
    with pytest.raises(ReadError, match=f"{paths[2].name} is another picture"):
        split.batch([2])
    paths[2].write_bytes(content)
    split.batch([1, 2])
    assert not split.report()


def test_another_end_of_a_picture_is_noticed(things):
    """Of one whose beginning is longer than what is looked at as data are opened."""
    path = picture(things / "0.bmp", 0, (80, 80))
    split = FolderPairs([path], [("a",)], 8, cache_bytes=0)
    split.batch([0])
    content = bytearray(path.read_bytes())
    assert len(content) > 2 * files.BEGINNING
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ReadError, match="0.bmp is another picture"):
        split.batch([0])


def test_a_file_larger_than_the_limit_is_not_read(things, monkeypatch):
    path, size = things / "0.bmp", (things / "0.bmp").stat().st_size
    monkeypatch.setattr(images.bounds, "MAX_MEMORY", size - 1)
    with open(path, "rb") as file, pytest.raises(ImageError, match="0.bmp: 0 MB, over the limit"):
        images.read(file, path)
    monkeypatch.setattr(images.bounds, "MAX_MEMORY", size)
    with open(path, "rb") as file:
        assert images.read(file, path) == path.read_bytes()


def test_a_sheet_holds_thumbnails(things, tmp_path):
    """Not the pictures as they are."""
    from minicoca.tasks import retrieval

    wide = picture(things / "wide.png", 0, (1000, 3000))
    assert retrieval.thumbnail(wide).size == (120, 120)
    drawn = []

    def contact_sheet(pictures, labels):
        drawn.extend(pictures)
        return Image.new("RGB", (8, 8))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "contact_sheet", contact_sheet)
        search.draw(tmp_path / "s.png", [{"file": str(wide), "cosine": 1.0}] * 3)
    assert [image.size for image in drawn] == [(120, 120)] * 3
