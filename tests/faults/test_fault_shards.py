"""Shards that are being written: killed at every system call, or on a full, broken or read-only
disk, what goes on afterwards ends as an uninterrupted call."""

import io
import shutil

import pytest
from faulty import ERRORS, dies_at, fails_from, forked, watched
from PIL import Image
from trials import trial

from minicoca.data import folder as own
from minicoca.data.files import Report
from minicoca.data.packing import plan, write_shards

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(5):
        file = io.BytesIO()
        Image.new("RGB", (9, 9), (40 * number, 0, 9)).save(file, "PNG")
        (folder / f"{number}.png").write_bytes(file.getvalue())
        (folder / f"{number}.txt").write_text(f"number {number}")
    return own.load(folder, 8, held_out=0, validation=0)


def write(dataset, out):
    return list(write_shards(plan(dataset, None, 2), out, None, Report(), 1))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(dataset, tmp_path):
    with watched(tmp_path) as number:
        write(dataset, tmp_path / "whole")
    return files_of(tmp_path / "whole"), number[0]


def test_killed_at_every_call(dataset, whole, tmp_path):
    right, count = whole
    assert count > 50
    for call in range(1, count + 1):
        out = tmp_path / "out"

        def die(call=call, out=out):
            with watched(tmp_path, dies_at(call)):
                write(dataset, out)

        assert forked(die) == -9
        write(dataset, out)
        assert files_of(out) == right
        shutil.rmtree(out)
    trial("shards killed at a system call", count)


@pytest.mark.parametrize("error", ERRORS)
def test_disks_that_refuse(dataset, whole, tmp_path, error):
    right, count = whole
    for call in range(1, count + 1, 2):
        out = tmp_path / "out"
        with watched(tmp_path, fails_from(call, ERRORS[error], once=False)):
            try:
                write(dataset, out)
            except OSError as failed:
                assert "was not written" in str(failed)
        write(dataset, out)
        assert files_of(out) == right
        shutil.rmtree(out)
    trial("disks that refused a shard", len(range(1, count + 1, 2)))
