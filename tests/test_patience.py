"""A drive that is away for a minute: training waits for it, and nothing else does. The clock is
ours, so nobody waits here."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from runs import few_shapes, short, silent, tensors  # noqa: F401

from minicoca.data.pairs import Pairs
from minicoca.images import ChangedError, ReadError
from minicoca.params import flatten
from minicoca.training import patience
from minicoca.training.loop import Stopped
from minicoca.training.patience import Patient
from minicoca.training.run import resume

GONE = ReadError(f"a.png cannot be read: {os.strerror(errno.EIO)}")


AWAY = patience.AWAY


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self, monkeypatch, away=AWAY):
        self.now, self.over = 1000.0, False
        monkeypatch.setattr(patience, "time", self)
        monkeypatch.setattr(patience, "Event", lambda: self)
        monkeypatch.setattr(patience, "AWAY", away)

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        assert 0 < seconds <= 5
        self.now += seconds

    def set(self):
        self.over = True

    def is_set(self):
        return self.over


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
    assert ends == f"it can be read again, after {waited:.0f} s"


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
