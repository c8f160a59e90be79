"""What can befall the files of a run of one process, befalls those of a run of two: refused calls,
signals at every stage, a folder that vanishes. Nothing is lost, and nobody waits for the other."""

import os
import signal
import time
from itertools import cycle
from pathlib import Path

import pytest
from distributed import ended, said, started, trained
from faulty import ERRORS, STEPS, fails_from, names, quick, same, watched
from runs import few_shapes, short, silent  # noqa: F401
from test_fault_owners import replaced, stages, taken_over, vanish
from trials import trial

from minicoca import __main__ as cli
from minicoca.engine import train as engine_train
from minicoca.training import run as training_run
from minicoca.training.checkpoint import CHECKPOINT, WEIGHTS

pytestmark = pytest.mark.slow
FLAGS = ["--steps", "6", "--checkpoint-every", "3", "--evaluate-every", "4", "--batch-size", "8"]
FLAGS += ["--warmup", "3", "--image-layers", "1"]
COMMON = "reading", "first weights", "step"  # stages that both come to
AT_ONCE = 60  # seconds in which the others end


@pytest.mark.parametrize("once", [True, False], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", ERRORS)
def test_a_call_that_is_refused_to_one_loses_nothing(tmp_path, monkeypatch, kind, once):
    quick(monkeypatch)
    done = tmp_path / "whole"
    assert ended(trained(2, done, tmp_path / "said", silent, None, short(**STEPS))) == [0, 0]
    failed = 0
    for number in range(4, 80, 25):
        folder, out = tmp_path / f"{number}", tmp_path / f"said {number}"

        def before(rank, folder=folder, number=number):
            if rank == 0:
                before.watched = watched(folder, fails_from(number, ERRORS[kind], once))
                before.watched.__enter__()

        begun = time.monotonic()
        codes = ended(trained(2, folder, out, silent, before, short(**STEPS)))
        assert time.monotonic() - begun < AT_ONCE
        trial("system calls of a run of two processes refused: no space, I/O error, read-only")
        if codes != [0, 0]:
            failed += 1
            (line,) = said(out)
            assert str(folder) in line and len(line) < 400
            there = (folder / CHECKPOINT).is_file()
            given = None if there else short(**STEPS)
            more = trained(2, folder, out, silent, None, given, taking_up=there)
            assert ended(more) == [0, 0], out.read_text()
        assert same(done, folder) and names(folder) == names(done), number
    assert failed


def commanded(folder, out, before=None, *words):
    """Exit codes of `minicoca train` in two processes."""

    def call(rank):
        if before:
            before(rank)
        return cli.main(["train", *(words or (*FLAGS, "--run", str(folder)))])

    return ended(started(2, call, out))


def test_a_signal_at_any_stage_ends_both_and_nothing_is_lost(tmp_path, monkeypatch):
    """Ctrl-C, which both hear; a kill of the first; a kill of the other."""
    monkeypatch.chdir(tmp_path)
    assert commanded(Path("whole"), tmp_path / "said") == [0, 0]
    kinds = cycle([(signal.SIGINT, (0, 1)), (signal.SIGTERM, (0,)), (signal.SIGTERM, (1,))])
    for stage, (where, name) in stages(monkeypatch).items():
        number, who = next(kinds) if stage in COMMON else (signal.SIGTERM, (0,))
        run, out = Path(stage.replace(" ", "-")), tmp_path / f"said {stage}"

        def before(rank, where=where, name=name, number=number, who=who):
            original = getattr(where, name)

            def struck(*given, **named):
                os.kill(os.getpid(), number)
                time.sleep(0.001)
                return original(*given, **named)

            if rank in who:
                setattr(where, name, struck)

        begun = time.monotonic()
        codes = commanded(run, out, before)
        assert time.monotonic() - begun < AT_ONCE
        trial("signals at a stage of a run of two processes")
        assert 0 not in codes or stage in ("evaluation", "picture"), (stage, codes)
        if not (run / WEIGHTS).exists() and not (run / CHECKPOINT).exists():
            codes = commanded(run, out)
        else:
            codes = commanded(run, out, None, "--resume", str(run))
        assert codes == [0, 0], out.read_text()
        assert same(Path("whole"), run), stage


@pytest.mark.parametrize("change", [vanish, replaced, taken_over])
@pytest.mark.parametrize(("place", "by"), [("step", 0), ("step", 1), ("evaluate", 0)])
def test_a_folder_that_is_gone_ends_both(tmp_path, change, place, by):
    folder, out = tmp_path / "run", tmp_path / "said"

    def before(rank):
        where = engine_train.Trainer if place == "step" else training_run
        original, done = getattr(where, place), []

        def once(*given, **named):
            if not done and rank == by:
                done.append(1)
                change(folder)
            return original(*given, **named)

        setattr(where, place, once)

    begun = time.monotonic()
    codes = ended(trained(2, folder, out, silent, before, short(**STEPS)))
    assert time.monotonic() - begun < AT_ONCE
    trial("folders of a run of two processes removed or replaced in the middle")
    assert codes == ([1, 0] if place == "evaluate" else [1, 1])
    (line,) = said(out)
    assert str(folder) in line
