"""--report-to: a tracker is told what metrics.jsonl holds, and its failure changes no run."""

import json
import os
import sys
import types
from pathlib import Path

import pytest
from settings_trace import small_data

from minicoca import __main__ as cli
from minicoca.training import track
from minicoca.training.log import Log

ROOT = Path(__file__).parents[1]
QUICK = ["train", "--steps", "20", "--batch-size", "4", "--evaluate-every", "10", "--seed", "1"]


class Fake(types.ModuleType):
    """A tracker that keeps what it is told; from step `fails` on it raises."""

    def __init__(self, name, fails=10**9):
        super().__init__(name)
        self.begun, self.told, self.ended, self.fails = [], [], 0, fails

    def init(self, **how):
        self.begun.append(how)
        return self

    def log(self, figures, step):
        if step >= self.fails:
            raise ConnectionError("no network")
        self.told.append((step, figures))

    def finish(self):
        self.ended += 1


def logged(folder):
    """What the tracker should be told."""
    records = Log.read(folder / "metrics.jsonl")
    return [(r["step"], figures) for r in records if (figures := track.figures_of(r))]


def trained(tmp_path, monkeypatch, name, fake, *flags):
    monkeypatch.setitem(sys.modules, name, fake)
    with small_data():
        assert cli.main([*QUICK, "--run", str(tmp_path / "run"), "--report-to", name, *flags]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_is_told_what_the_log_holds(tmp_path, monkeypatch, name):
    fake = Fake(name)
    run = trained(tmp_path, monkeypatch, name, fake)
    want = logged(run)
    assert fake.told == want and fake.ended == 1
    assert [step for step, _ in want] == [10, 10, 10, 20, 20]
    names = {"loss", "validation/caption_exact", "look/image_rank", "throughput/images_per_second"}
    assert names <= set().union(*(f for _, f in want))
    (begun,) = fake.begun
    assert begun["name"] == "run" and begun["config"]["seed"] == 1


def test_a_tracker_that_fails_is_said_once_and_the_run_is_the_same(tmp_path, monkeypatch, capsys):
    fake = Fake("trackio", fails=15)
    run = trained(tmp_path, monkeypatch, "trackio", fake)
    said = capsys.readouterr().out
    assert said.count("trackio is told no more (ConnectionError: no network)") == 1
    assert [step for step, _ in fake.told] == [10, 10, 10] and fake.ended == 1
    assert [step for step, _ in logged(run)] == [10, 10, 10, 20, 20]
    broken = Fake("trackio")
    broken.init = lambda **how: 1 / 0
    run = trained(tmp_path / "2", monkeypatch, "trackio", broken)
    assert "trackio is told no more (ZeroDivisionError" in capsys.readouterr().out
    assert (run / "model.safetensors").is_file()


def test_one_that_is_not_installed_is_refused_before_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.main([*QUICK, "--run", str(tmp_path / "run"), "--report-to", "wandb"]) == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_figures_are_numbers_alone():
    record = {"step": 3, "loss": 1.5, "command": "x", "validation": {"a": 2, "b": "c"}, "ok": True}
    assert track.figures_of(record) == {"loss": 1.5, "validation/a": 2}
    assert track.figures_of({"step": 0, "command": "minicoca train"}) == {}


@pytest.mark.extras
@pytest.mark.slow
def test_tensorboards_own_reader_finds_every_figure(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with small_data():
        run = tmp_path / "run"
        assert cli.main([*QUICK, "--run", str(run), "--report-to", "tensorboard"]) == 0
    events = EventAccumulator(str(run / track.FOLDER))
    events.Reload()
    want = {}
    for step, figures in logged(run):
        for key, value in figures.items():
            want.setdefault(key, []).append((step, pytest.approx(value, rel=1e-6)))
    assert set(events.Tags()["scalars"]) == set(want)
    for key, points in want.items():
        assert [(e.step, e.value) for e in events.Scalars(key)] == points


@pytest.mark.extras
@pytest.mark.slow
def test_trackios_own_database_has_every_figure(tmp_path, monkeypatch):
    apart = Path(sys.prefix) / "trackio"  # where `make test-slow` puts it
    if apart.is_dir():
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(apart), str(ROOT)]))
    else:
        pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import subprocess

    code = (
        "import json, sys; sys.path.insert(0, 'tests'); from settings_trace import small_data\n"
        "from minicoca import __main__ as cli\n"
        f"with small_data():\n    assert cli.main({QUICK} + ['--run', {str(tmp_path / 'run')!r}, "
        "'--report-to', 'trackio']) == 0\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "print('FOUND' + json.dumps(SQLiteStorage.get_logs('minicoca', 'run'), default=str))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.split("FOUND")[1].splitlines()[0])
    want = logged(tmp_path / "run")
    assert len(found) == len(want)
    for row, (step, figures) in zip(found, want, strict=True):
        assert row["step"] == step
        for key, value in figures.items():
            assert row[key] == pytest.approx(value, rel=1e-6)
