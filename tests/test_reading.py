"""A file that cannot be read is not damaged: it is tried again, then the run stops, to be resumed.

The system's errors are played by files that fail at a byte, since no test may unplug a drive.
"""

import errno
import io
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import short, silent, tensors

from minicoca import images
from minicoca.data import folder
from minicoca.data.folder import FolderPairs
from minicoca.images import ImageError, NoFileError, ReadError, check, load_image
from minicoca.params import flatten, load
from minicoca.training.loop import Stopped
from minicoca.training.run import train

PASSING = ["EIO", "EMFILE", "ENFILE", "ETIMEDOUT", "ESTALE", "ENODEV", "ENOTCONN", "EHOSTDOWN"]
KINDS = ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "TGA", "JPEG2000", "PPM"]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(images, "WAITS", (0, 0, 0))


class Failing(io.FileIO):
    """A file on a drive that goes away: reading fails from a byte on."""

    def __init__(self, path, error, last):
        super().__init__(path)
        self.error, self.last = error, last

    def readinto(self, buffer):
        room = self.last - self.tell()
        if room <= 0:
            raise self.error
        return super().readinto(memoryview(buffer)[:room])

    def readall(self):
        return b"".join(iter(lambda: self.read(512), b""))

    def read(self, size=-1):
        if size < 0:
            return self.readall()
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])


def error_of(name):
    return OSError(getattr(errno, name), os.strerror(getattr(errno, name)))


class Drive:
    """Stands for `open`: the first `times` openings of a file fail, or their reading does."""

    def __init__(self, monkeypatch, which, name="EIO", times=10**9, last=None):
        self.which, self.name, self.times, self.last = str(which), name, times, last
        self.tries = 0
        monkeypatch.setattr(images, "open", self, raising=False)

    def __call__(self, path, mode):
        if self.which not in str(path):
            return open(path, mode)
        self.tries += 1
        if self.tries > self.times:
            return open(path, mode)
        if self.last is None:
            raise error_of(self.name)
        return io.BufferedReader(Failing(path, error_of(self.name), self.last), 16)


def picture(path, number=0, size=(40, 30), **how):
    noise = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **how)
    return path


@pytest.mark.parametrize("name", PASSING)
def test_an_error_of_the_system_is_no_damage(tmp_path, monkeypatch, name):
    path = picture(tmp_path / "a.png")
    for last in (None, 0, 100):
        Drive(monkeypatch, path, name, last=last)
        with pytest.raises(ReadError, match="a.png cannot be read: "):
            load_image(path, 8)
        if last != 100:
            with pytest.raises(ReadError, match="a.png cannot be read: "):
                check(path)


@given(st.sampled_from(KINDS), st.floats(0, 1), st.sampled_from(PASSING))
def test_wherever_reading_fails_it_is_never_called_damage(tmp_path_factory, kind, part, name):
    path = picture(tmp_path_factory.mktemp("drive") / f"a.{kind.lower()}", format=kind)
    last = int(part * (path.stat().st_size - 1))
    with pytest.MonkeyPatch.context() as patch:
        Drive(patch, path, name, last=last)
        with pytest.raises(ReadError):
            load_image(path, 8)
        try:
            check(path)
        except ReadError:
            pass  # or the header came before the failure


@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.booleans())
def test_wrong_bytes_are_never_called_a_failure_to_read(tmp_path_factory, kind, seed, cut):
    path = picture(tmp_path_factory.mktemp("damage") / "a.png", format=kind)
    rng, content = np.random.default_rng(seed), bytearray(path.read_bytes())
    for place in rng.integers(0, min(len(content), 200), 12):
        content[place] = rng.integers(256)
    path.write_bytes(content[: rng.integers(len(content))] if cut else content)
    for read in (check, lambda path: load_image(path, 8)):
        try:
            read(path)
        except ImageError as error:
            assert "a.png" in str(error) and not isinstance(error, NoFileError)


def test_a_place_before_the_beginning_of_a_file_is_damage(tmp_path):
    """Where wrong bytes send a decoder, the system says EINVAL; that the file can be read holds."""
    with picture(tmp_path / "a.png").open("rb") as file, pytest.raises(OSError) as told:
        file.seek(-1)
    assert isinstance(images.failure("a.png", told.value), ImageError)


@pytest.mark.parametrize("times", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_a_passing_failure_replaces_nothing(tmp_path, monkeypatch, times, cache_bytes):
    paths = [picture(tmp_path / f"{number}.png", number) for number in range(4)]
    expected = np.stack([load_image(path, 8) for path in paths])
    captions = [(f"number {number}",) for number in range(4)]
    split = FolderPairs(paths, captions, 8, cache_bytes=cache_bytes)
    drive = Drive(monkeypatch, "2.png", "EMFILE", times)
    if times > 3:
        with pytest.raises(ReadError, match="2.png cannot be read"):
            split.batch([1, 2, 3])
        assert drive.tries == 4
        drive.times = 0  # the drive is back
    np.testing.assert_array_equal(split.batch([1, 2, 3, 0]), expected[[1, 2, 3, 0]])
    assert split.captions == captions and not split.report()
    assert (split.shown(np.arange(4)) == np.arange(4)).all()


def test_a_file_that_is_gone_in_the_middle_is_not_replaced(tmp_path):
    paths = [picture(tmp_path / f"{number}.png", number) for number in range(4)]
    split = FolderPairs(paths, [("a",)] * 4, 8, cache_bytes=0)
    split.batch([2])
    paths[2].unlink()
    with pytest.raises(ReadError, match="2.png: no such file"):
        split.batch([1, 2])


@pytest.mark.parametrize("where", ["7.png", "7.txt"])
def test_a_data_set_is_not_begun_with_a_part_that_can_be_read(tmp_path, monkeypatch, where):
    for number in range(12):
        picture(tmp_path / f"{number}.png", number)
        (tmp_path / f"{number}.txt").write_text("a thing")
    whole = folder.load(tmp_path, 8).notes
    Drive(monkeypatch, where, "ETIMEDOUT", times=3)
    assert folder.load(tmp_path, 8).notes == whole
    Drive(monkeypatch, where, "ETIMEDOUT")
    with pytest.raises(OSError, match=f"{where} cannot be read"):
        folder.load(tmp_path, 8)


def test_hashing_and_listing_are_tried_again(tmp_path, monkeypatch):
    for number in range(3):
        picture(tmp_path / f"{number}.bmp", 0)
        (tmp_path / f"{number}.txt").write_text("a thing")
    failures = iter([True] * 3)

    def failing(real):
        def call(*given):
            if next(failures, False):
                raise error_of("EIO")
            return real(*given)

        return call

    from minicoca.data import files

    monkeypatch.setattr(files, "digest", failing(files.digest))
    assert "2 byte-equal copies" in folder.load(tmp_path, 8).notes
    failures = iter([True] * 3)
    monkeypatch.setattr(files.os, "scandir", failing(os.scandir))
    assert "2 byte-equal copies" in folder.load(tmp_path, 8).notes


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """A folder of pictures and three captions; the pixels of two pictures are damaged."""
    place = tmp_path_factory.mktemp("things")
    for number in range(24):
        picture(place / f"{number:02}.png", number)
        (place / f"{number:02}.txt").write_text(f"thing number {number % 3}")
    for number in (4, 5):
        path = place / f"{number:02}.png"
        path.write_bytes(path.read_bytes()[:2000])
    return place


def test_a_drive_that_goes_away_stops_the_run_to_be_resumed(things, tmp_path, monkeypatch):
    """The resumed run's weights are the uninterrupted one's, to the last bit."""
    monkeypatch.setattr(folder, "SAMPLE", 2)  # damage is found in the middle of the run
    monkeypatch.setattr(FolderPairs.__init__, "__kwdefaults__", {
        **FolderPairs.__init__.__kwdefaults__, "cache_bytes": 0
    })  # fmt: skip
    config = short(data=str(things), steps=10, vocabulary=40, validation_part=0.2)
    silent(config, tmp_path / "whole")
    real, asked = FolderPairs.batch, []

    def away(self, indices):
        asked.append(len(indices))
        if len(asked) == 8:  # for step 6; first comes the pixels' mean
            Drive(monkeypatch, things, "EIO")
        return real(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(FolderPairs, "batch", away)
        with pytest.raises(Stopped, match="cannot be read.*--resume"):
            silent(config, tmp_path / "parts")
    assert load(tmp_path / "parts/resume.safetensors")[1]["step"] == "6"  # nothing is lost
    with pytest.raises(Stopped, match="cannot be read.*--resume"):
        silent(None, tmp_path / "parts", taking_up=True)  # still away
    monkeypatch.setattr(images, "open", io.open)
    said = []
    train(None, tmp_path / "parts", taking_up=True, say=said.append)
    for name in ("resume.safetensors", "model.safetensors"):
        one, other = (flatten(tensors(tmp_path / run, name)) for run in ("whole", "parts"))
        assert all(np.array_equal(one[key], other[key]) for key in one)
    assert "damaged images replaced by another" in "\n".join(said)


def test_an_evaluation_that_cannot_read_can_be_taken_up_again(
    things, tmp_path, monkeypatch, capsys
):
    config = short(data=str(things), steps=3, vocabulary=40, held_out_part=0.3, distinct=True)
    real = FolderPairs.batch

    def away(self, indices):
        if len(self) < 12:  # one of the small splits
            raise ReadError("held.png cannot be read")
        return real(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(FolderPairs, "batch", away)
        with pytest.raises(Stopped, match="held.png cannot be read.*--resume"):
            silent(config, tmp_path / "run")
    said = capsys.readouterr().err  # three captions cannot be kept apart in steps of eight
    assert said.count("pairs share a step with an equal image or caption") == 1
    assert "held_out" in silent(None, tmp_path / "run", taking_up=True)
