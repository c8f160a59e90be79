"""A drive that is away for a minute, or full: training waits for it, and nothing else does. The
clock is ours, so nobody waits here."""

import errno
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import AWAY, Clock, few_shapes, short, silent, tensors  # noqa: F401

from minicoca import params
from minicoca.data.pairs import Pairs
from minicoca.engine.train import Trainer
from minicoca.images import ChangedError, ReadError
from minicoca.params import flatten
from minicoca.training import patience
from minicoca.training.log import Log
from minicoca.training.loop import Stopped
from minicoca.training.owner import LostError
from minicoca.training.patience import Patient
from minicoca.training.run import resume

GONE = ReadError(f"a.png cannot be read: {os.strerror(errno.EIO)}")


class Drive:
    """Two images, which cannot be read for so many seconds."""

    def __init__(self, clock, seconds, error=GONE):
        self.clock, self.back, self.error, self.tries = clock, clock.now + seconds, error, 0

    def __len__(self):
        return 2

    def batch(self, indices):
        self.tries += 1
        if self.clock.now < self.back:
            raise self.error
        return np.array(indices)


@pytest.mark.parametrize("seconds", [0.1, 3, 60, 89])
def test_it_is_waited_for_and_that_is_said_once(monkeypatch, capsys, seconds):
    clock = Clock(monkeypatch)
    drive = Drive(clock, seconds)
    patient = Patient(drive)
    for _ in range(2):  # the second time nothing is wrong
        assert patient.batch([1, 0]).tolist() == [1, 0]
    waited = clock.now - 1000
    assert seconds <= waited < seconds + 5 and len(patient) == 2 and patient.back == drive.back
    begins, ends = capsys.readouterr().err.splitlines()
    assert begins == f"{GONE}; training waits for it, 90 s at most"
    assert ends == f"training goes on, after {waited:.0f} s"


@pytest.mark.parametrize("away", [0.0, 7.0, 90.0])
def test_it_is_not_waited_for_for_ever(monkeypatch, capsys, away):
    clock = Clock(monkeypatch, away)
    drive = Drive(clock, 1e9)
    with pytest.raises(ReadError) as told:
        Patient(drive).batch([0])
    assert told.value is GONE and clock.now - 1000 == away
    assert len(capsys.readouterr().err.splitlines()) == (away > 0)


def test_what_will_not_come_back_is_not_waited_for(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with pytest.raises(ChangedError):
        Patient(Drive(clock, 50, ChangedError("another picture"))).batch([0])
    for error in (ValueError("all are damaged"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            Patient(Drive(clock, 50, error)).batch([0])
    assert clock.now == 1000 and not capsys.readouterr().err


def test_a_minute_is_waited_for():
    assert AWAY > 60


def test_once_a_run_has_ended_for_another_reason_nobody_waits(monkeypatch):
    """In truth: the thread that reads ahead ends as soon as the run does."""
    monkeypatch.setattr(patience, "AWAY", 60)
    clock, begun = SimpleNamespace(now=0.0), time.monotonic()
    patient = Patient(Drive(clock, 1e9))
    with ThreadPoolExecutor(1) as pool, pytest.raises(Stopped), patient:
        reading = pool.submit(patient.batch, [0])
        raise Stopped("the loss is nan")
    assert isinstance(reading.exception(), ReadError) and time.monotonic() - begun < 20


def test_a_run_that_is_to_stop_does_not_wait_on(monkeypatch):
    clock, asked = Clock(monkeypatch), []
    drive, wait = Drive(clock, 60), clock.wait

    def struck(seconds):
        wait(seconds)
        asked.append(2)

    clock.wait = struck
    with pytest.raises(ReadError):
        Patient(drive, asked).batch([0])
    assert drive.tries == 2


def away_from(monkeypatch, clock, number, seconds):
    """Pairs whose `number`-th batch, and what follows, cannot be read for so long."""
    original, calls, back = Pairs.batch, [], []

    def batch(self, indices):
        calls.append(1)
        if len(calls) == number:
            back.append(clock.now + seconds)
        if back and clock.now < back[0]:
            raise GONE
        return original(self, indices)

    monkeypatch.setattr(Pairs, "batch", batch)


def test_a_run_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch, capsys):
    config = short(steps=8, evaluate_every=0, checkpoint_every=3)
    silent(config, tmp_path / "whole")
    clock = Clock(monkeypatch)
    with monkeypatch.context() as patch:
        away_from(patch, clock, 6, 60)
        silent(config, tmp_path / "parts")
    assert clock.now >= 1060 and "training waits for it" in capsys.readouterr().err
    for name in ("resume.safetensors", "model.safetensors"):
        one, other = (flatten(tensors(tmp_path / run, name)) for run in ("whole", "parts"))
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_run_ends_with_a_checkpoint_where_it_stays_away(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    away_from(monkeypatch, clock, 6, 1000)
    with pytest.raises(Stopped, match="a.png cannot be read.*--resume"):
        silent(short(steps=8, evaluate_every=0), tmp_path / "run")
    assert clock.now == 1000 + AWAY and resume(tmp_path / "run", print)[-1]["step"] >= 4


def test_a_save_is_not_waited_for_where_nothing_was_ever_saved(tmp_path, monkeypatch):
    """A folder that cannot be written to is said at once."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(params, "save", refusing)
    with pytest.raises(OSError, match="no space"):
        silent(short(), tmp_path / "run")
    assert clock.now == 1000


def refusing(path, *given, **named):
    raise OSError(f"{path} was not written: no space left")


def test_a_save_is_waited_for_and_not_for_ever(tmp_path, monkeypatch, capsys):
    clock, save = Clock(monkeypatch), params.save

    def first_alone(path, *given, **named):
        return (save if clock.saves < 2 else refusing)(path, *given, **named)

    def counted(path, *given, **named):
        clock.saves += 1
        return first_alone(path, *given, **named)

    clock.saves = 0
    monkeypatch.setattr(params, "save", counted)
    with pytest.raises(Stopped, match="was not written: no space left; go on from.*--resume"):
        silent(short(steps=8, evaluate_every=0, checkpoint_every=3), tmp_path / "run")
    assert clock.now == 1000 + AWAY and resume(tmp_path / "run", print)[-1]["step"] == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "training waits" in line]
    assert len(told) == 1


def test_a_folder_in_anothers_place_is_not_waited_for(tmp_path, monkeypatch):
    clock, step = Clock(monkeypatch), Trainer.step

    def replaced(self, number, *batch):
        if number == 3:
            (tmp_path / "run").rename(tmp_path / "away")
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "lock").write_text("another's")
        return step(self, number, *batch)

    monkeypatch.setattr(Trainer, "step", replaced)
    with pytest.raises(LostError, match="removed or replaced"):
        silent(short(steps=8, evaluate_every=0, checkpoint_every=3), tmp_path / "run")
    assert clock.now == 1000


@given(data=st.data())
def test_a_log_that_is_refused_at_times_loses_no_line(data):
    """A half-written line that could not be taken away again too."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        log = Log(Path(folder) / "metrics.jsonl", 0)
        write, cut = os.write, os.ftruncate

        def half(handle, piece):
            if data.draw(st.booleans()):
                return write(handle, piece)
            write(handle, bytes(piece)[: data.draw(st.integers(0, len(piece)))])
            raise OSError(errno.ENOSPC, "full")

        def perhaps(handle, size):
            if data.draw(st.booleans()):
                raise OSError(errno.EIO, "broken")
            cut(handle, size)

        patch.setattr(os, "write", half)
        patch.setattr(os, "ftruncate", perhaps)
        records = [{"step": n, "loss": 1 / (1 + n)} for n in range(data.draw(st.integers(1, 8)))]
        for record in records:
            log.write(dict(record))
        patch.undo()
        log.sync()
        assert Log.read(log.path) == records and Log(log.path, 99).lost == 0
