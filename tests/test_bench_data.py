"""Decoding is timed on pictures that are decoded, each way as often; rates are of both clocks."""

import json

import pytest

from minicoca import bench_data
from minicoca.data.folder import FolderPairs


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench_data, "SIDES", {"small": (60, 40), "smaller": (30, 40)})


def test_every_way_decodes_every_picture(small, tmp_path, monkeypatch, capsys):
    asked, batch = [], FolderPairs.batch

    def watched(self, rows):
        images = batch(self, rows)
        asked.append((images.shape, self._pool._max_workers, self._kept))
        return images

    monkeypatch.setattr(FolderPairs, "batch", watched)
    rows = bench_data.data(3, 2, (1, 4), tmp_path / "data.json")
    assert [row["way"] for row in rows[:3]] == [
        "Pillow alone", "minicoca, 1 threads", "minicoca, 4 threads",
    ]  # fmt: skip
    assert asked == 2 * 2 * [((3, 224, 224, 3), 1, None), ((3, 224, 224, 3), 4, None)]
    for row in rows:
        for name in ("images_per_second", "images_per_cpu_second"):
            least, middle, most = row[name]
            assert 0 < least <= middle <= most
    assert json.loads((tmp_path / "data.json").read_text())["rows"] == rows
    assert len(capsys.readouterr().out.splitlines()) == 7


def test_rates_are_images_over_seconds(monkeypatch):
    clock = iter([0.0, 0.5, 10.0, 12.5])
    cpu = iter([0.0, 0.25, 0.0, 1.0])
    monkeypatch.setattr(bench_data.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(bench_data.time, "process_time", lambda: next(cpu))
    (row,) = bench_data.timed({"a way": lambda: None}, 5, 2)
    assert row["images_per_second"] == [2.0, 6.0, 10.0]
    assert row["images_per_cpu_second"] == [5.0, 12.5, 20.0]
