"""Runs of several processes, killed and disturbed: nothing is lost, and nobody waits for ever."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from distributed import ended, said, trained
from faulty import STEPS, names, quick, same
from runs import few_shapes, short, silent  # noqa: F401
from trials import trial

from minicoca.engine import train as engine_train
from minicoca.training import run as training_run
from minicoca.training.checkpoint import CHECKPOINT, WEIGHTS
from minicoca.training.run import resume

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CONFIG = dict(**STEPS)
KILLS = 30 * int(os.environ.get("MINICOCA_FUZZ", "1"))


@pytest.fixture
def files_alone(monkeypatch):
    """Runs that look at nothing and draw nothing: these tests are about files."""
    quick(monkeypatch)

    def drawn(folder, model, tokenizer, name, *rest):
        (folder / f"{name}.png").write_bytes(b"")

    monkeypatch.setattr(training_run, "make_picture", drawn)


def go_on(world, folder, out, config):
    """As a person would: resume what there is to resume, else begin again."""
    there = (folder / CHECKPOINT).is_file()
    given = None if there else config
    codes = ended(trained(world, folder, out, silent, None, given, taking_up=there))
    assert codes == [0] * world, out.read_text()


@pytest.mark.parametrize(("seed", "parallel"), [(0, "ddp"), (1, "fsdp")])
def test_a_kill_at_any_moment_of_a_run_of_two_loses_nothing(tmp_path, files_alone, seed, parallel):
    """One process or both, wherever they are: in a save, in an exchange, in a step."""
    done, begun, config = tmp_path / "whole", time.monotonic(), short(parallel=parallel, **CONFIG)
    assert ended(trained(2, done, tmp_path / "said", silent, None, config)) == [0, 0]
    length, draw, killed = time.monotonic() - begun, random.Random(seed), 0
    for number in range(4 * KILLS):  # some find the run at its end
        if killed == KILLS:
            break
        folder, out = tmp_path / f"struck {number}", tmp_path / f"said {number}"
        who, after = draw.choice([(0,), (1,), (0, 1)]), draw.uniform(0.02, length)
        begun = time.monotonic()
        pids = trained(2, folder, out, silent, None, config)
        while not folder.exists() and time.monotonic() - begun < 60:
            time.sleep(0.01)  # until they have met: of one that never came, torchrun tells
        time.sleep(after)
        for rank in who:
            os.kill(pids[rank], signal.SIGKILL)
        struck = time.monotonic()
        codes = ended(pids)
        assert time.monotonic() - struck < 60, codes
        if codes != [0, 0]:  # else it was at its end already
            killed += 1
            trial("kills at any moment of a run of two processes")
        folder.mkdir(exist_ok=True)
        if names(folder) != names(done):
            go_on(2, folder, out, config)
        assert same(done, folder) and names(folder) == names(done), number
    assert killed == KILLS


@pytest.mark.parametrize("by", [0, 1])
def test_a_kill_in_a_save_of_two_loses_nothing(tmp_path, files_alone, by):
    """At each system call of the one that writes; the other has nothing to write."""
    done = tmp_path / "whole"
    assert ended(trained(2, done, tmp_path / "said", silent, None, short(**CONFIG))) == [0, 0]
    for call in ("rename", "fsync"):
        for number in range(1, 12, 2):
            folder, out = tmp_path / f"{call} {number}", tmp_path / f"said {call} {number}"

            def before(rank, call=call, number=number):
                original, calls = getattr(os, "replace" if call == "rename" else call), []

                def die(*given, **how):
                    calls.append(1)
                    if len(calls) == number and rank == by:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return original(*given, **how)

                setattr(os, "replace" if call == "rename" else call, die)

            codes = ended(trained(2, folder, out, silent, before, short(**CONFIG)))
            if -9 in codes:
                trial("kills at a system call of a save of two processes")
            assert codes in ([-9, 1], [0, 0], [-9, 0]) if by == 0 else codes == [0, 0]
            go_on(2, folder, out, short(**CONFIG)) if names(folder) != names(done) else None
            assert same(done, folder), (call, number)


@pytest.fixture
def ends():
    """Closes what a test leaves open."""
    with ExitStack() as stack:
        yield stack


# Rank 1 ends while it is still to let go of what is exchanged last, and keeps Python's lock.
LATE = """
import atexit, os, time
atexit.register(sum, range(10**8))
import torch
from minicoca.training import run

def late():
    if os.environ["RANK"] == "0":
        time.sleep(1)
    torch.distributed.all_gather(kept[:2], kept[2], async_op=True)
    kept.append(torch.distributed.group.WORLD)

kept, run.leave = [torch.ones(2) for _ in range(3)], late
"""


def command(world, folder, ends, restarts=0, steps=4000, before=""):
    """`torchrun ... train` on 60 scenes, as a process. before: what it runs first."""
    few = folder.parent / "few.py"
    few.write_text(
        "import sys\nfrom minicoca.data import shapes\nload = shapes.load\n"
        "shapes.load = lambda seed, side, *_: load(seed, side, 60, 20)\n"
        f"{before}\nfrom minicoca.__main__ import main\nsys.exit(main())\n"
    )
    train = f"train --steps {steps} --checkpoint-every 20 --evaluate-every 0 --batch-size 16"
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}"]
    run += [f"--max-restarts={restarts}", "--standalone", "--", str(few), *train.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*run, "--image-layers", "1", "--run", str(folder)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    ends.enter_context(process)
    ends.callback(process.terminate)  # first, and torchrun ends its own
    return process


def logged(folder):
    """The last step of a log."""
    path = folder / "metrics.jsonl"
    found = re.findall(r'^\{"step": (\d+)', path.read_text() if path.exists() else "", re.M)
    return int(found[-1]) if found else 0


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def workers(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def test_one_of_four_is_killed_and_the_run_stops_with_its_cause(tmp_path, ends):
    process = command(4, tmp_path / "run", ends)
    until(lambda: logged(tmp_path / "run") >= 50)
    begun = time.monotonic()
    os.kill(workers(process)[2], signal.SIGKILL)
    told, _ = process.communicate(timeout=60)
    trial("one of four processes killed under torchrun")
    assert time.monotonic() - begun < 60 and process.returncode
    ours = [line for line in told.splitlines() if line.startswith("minicoca: ")]
    assert len(ours) <= 1  # torchrun may be faster than the one that would say it
    assert "exitcode  : -9" in told or "exitcode: -9" in told
    assert resume(tmp_path / "run", print)[-1]["step"] >= 40


def test_a_process_ends_well_whatever_the_last_exchange_still_holds(tmp_path, ends):
    process = command(2, tmp_path / "run", ends, steps=2, before=LATE)
    told, _ = process.communicate(timeout=120)
    trial("tensors of an exchange let go of as Python ends")
    assert process.returncode == 0 and "terminate called" not in told, told
    assert (tmp_path / "run" / WEIGHTS).is_file()


def test_torchrun_starts_again_from_the_last_checkpoint(tmp_path, ends):
    process = command(2, tmp_path / "run", ends, restarts=3, steps=200)
    for after in (50, 110):
        until(lambda after=after: logged(tmp_path / "run") >= after)
        os.kill(workers(process)[after % 4 // 2], signal.SIGKILL)
        trial("processes killed under torchrun, which restarts them")
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert (tmp_path / "run" / WEIGHTS).is_file()
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    steps = [int(n) for n in re.findall(r'^\{"step": (\d+)', log, re.M)]
    assert steps == sorted(set(steps)) and steps[-1] == 200


@pytest.mark.parametrize("steps", [20, 30])
def test_torchrun_starts_again_no_run_of_before(tmp_path, ends, steps):
    """It restarts a run that was refused, too, and then finds a checkpoint: not even the same
    command takes up what another start of torchrun left."""
    process = command(2, tmp_path / "run", ends, steps=20)
    assert process.communicate(timeout=120) and process.returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert tmp_path / "run" / CHECKPOINT in before
    process = command(2, tmp_path / "run", ends, restarts=1, steps=steps)
    told, _ = process.communicate(timeout=120)
    trial("runs of before that a restart must not take up")
    assert process.returncode and told.count("is not empty") == 2, told
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_a_drive_that_is_away_for_a_while_and_a_clock_that_jumps(tmp_path, files_alone):
    """The others wait while the first cannot write; the time of day is nothing that a run reads."""
    done = tmp_path / "whole"
    assert ended(trained(2, done, tmp_path / "said", silent, None, short(**CONFIG))) == [0, 0]

    def before(rank):
        original, write, now = engine_train.Trainer.step, os.fsync, time.time

        def away(file):
            if rank == 0:
                time.sleep(1.5)
            return write(file)

        def step(self, number, *given):
            os.fsync = away if number == 1 else write
            time.time = (lambda: now() - 10**6) if number >= 2 else now
            return original(self, number, *given)

        engine_train.Trainer.step = step

    codes = ended(trained(2, tmp_path / "parts", tmp_path / "s", silent, before, short(**CONFIG)))
    trial("drives away for a while, clocks that jump, of two processes")
    assert codes == [0, 0] and same(done, tmp_path / "parts")


def test_exploding_gradients_stop_all_and_the_last_checkpoint_is_good(tmp_path):
    def before(rank):
        original = engine_train._backward

        def explode(objective):
            original(objective * (1e38 if rank == 1 and explode.steps == 7 else 1))
            explode.steps += 1

        explode.steps = 0
        engine_train._backward = explode

    out = tmp_path / "said"
    codes = ended(trained(2, tmp_path / "run", out, silent, before, short(evaluate_every=0)))
    trial("gradients that explode in one of two processes")
    assert codes == [1, 1]
    (line,) = said(out)
    assert "gradient_norm is" in line and "at step 7" in line
    assert resume(tmp_path / "run", print)[-1]["step"] == 5
