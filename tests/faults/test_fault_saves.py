"""Kills, refusals and losses of power at every system call of a run's saves: nothing is lost."""

import os
import random
import signal
import time

import pytest
from faulty import (
    ERRORS,
    STEPS,
    Disk,
    dies_at,
    fails_from,
    forked,
    go_on,
    lay_out,
    names,
    quick,
    same,
    watched,
    whole_run,
)
from runs import Clock, few_shapes, short, silent  # noqa: F401
from trials import trial

from minicoca.engine.train import Trainer
from minicoca.training.loop import Stopped

pytestmark = pytest.mark.slow


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """(an uninterrupted run, its calls)."""
    quick(monkeypatch)
    return tmp_path / "whole", whole_run(tmp_path / "whole")


def test_a_kill_at_any_call_loses_nothing(whole, tmp_path):
    done, calls = whole
    assert calls > 60
    for number in range(1, calls + 1):
        folder = tmp_path / f"killed {number}"

        def die(folder=folder, number=number):
            with watched(folder, dies_at(number)):
                silent(short(**STEPS), folder)

        assert forked(die) == -9, number
        trial("kills at a system call of a save")
        go_on(folder, short(**STEPS))
        assert same(done, folder) and names(folder) == names(done), number


def test_a_kill_at_any_moment_loses_nothing(whole, tmp_path):
    """Wherever the process is: in a step, in a library, between two calls."""
    done, _ = whole
    begun = time.monotonic()
    assert forked(lambda: silent(short(**STEPS), tmp_path / "timed") and 0) == 0
    length, draw, killed = time.monotonic() - begun, random.Random(0), 0
    for number in range(12):
        folder = tmp_path / f"struck {number}"

        def struck(folder=folder):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, unheard
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.001, length))
            silent(short(**STEPS), folder)

        killed += forked(struck) == -signal.SIGALRM
        draw.random()  # the child drew from a copy
        trial("kills at any moment of a run")
        folder.mkdir(exist_ok=True)
        go_on(folder, short(**STEPS)) if names(folder) != names(done) else None
        assert same(done, folder) and names(folder) == names(done), number
    assert killed


@pytest.mark.parametrize("once", [True, False], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", ERRORS)
def test_a_call_that_is_refused_loses_nothing(whole, tmp_path, kind, once):
    done, calls = whole
    between = 1 if kind == "full" and once else 4 if kind == "full" else 9
    for number in range(1, calls + 1, between):
        folder = tmp_path / f"{kind} {number}"
        trial("system calls of a save refused: no space, I/O error, read-only")
        try:
            with watched(folder, fails_from(number, ERRORS[kind], once)):
                silent(short(**STEPS), folder)
        except (OSError, Stopped) as error:
            said = str(error)
            assert str(folder) in said and len(said) < 400 and "\n" not in said
        go_on(folder, short(**STEPS))
        assert same(done, folder) and names(folder) == names(done), number


def test_what_is_refused_for_a_minute_is_waited_for(whole, tmp_path, monkeypatch, capsys):
    """From the first step to the last checkpoint: as if nothing had been."""
    done, calls = whole
    step, marks = Trainer.step, []
    with monkeypatch.context() as patch, watched(tmp_path / "traced") as number:
        heard = lambda *given: marks.append(number[0]) or step(*given)  # noqa: E731
        patch.setattr(Trainer, "step", heard)
        silent(short(**STEPS), tmp_path / "traced")
    kinds = list(ERRORS.values())
    for n in range(marks[0] + 1, marks[-1] + 9):
        folder, until, clock = tmp_path / f"away {n}", [], Clock(monkeypatch)

        def away(number, name, given, n=n, until=until, clock=clock):
            if number == n:
                until.append(clock.now + 60)
            if until and clock.now < until[0] and name not in ("close", "unlink"):
                raise OSError(code := kinds[n % len(kinds)], os.strerror(code))

        with watched(folder, away):
            silent(short(**STEPS), folder)
        trial("a disk that refuses everything for a minute")
        assert same(done, folder) and names(folder) == names(done), n
        said = capsys.readouterr().err
        assert said.count("training waits for it") == said.count("training goes on") == 1, n
    assert marks[-1] - marks[0] > 9


def test_a_loss_of_power_at_any_call_loses_nothing(whole, tmp_path):
    done, _ = whole
    disk = Disk()
    with watched(tmp_path / "traced", after=disk.hear):
        silent(short(**STEPS), tmp_path / "traced")
    assert len(disk.states) > 20
    assert not disk.left | disk.loose, "each file is kept before the next is begun"
    for number, state in enumerate(disk.states):
        folder = tmp_path / f"power {number}"
        trial("losses of power in a save")
        lay_out(state, folder)
        go_on(folder, short(**STEPS))
        assert same(done, folder), (number, sorted(state))
