"""Runs of several processes: one folder as one process writes it, taken up by any number."""

import hashlib
import json
import os
import signal
import time

import numpy as np
import pytest
from distributed import ended, said, trained
from runs import few_shapes, metrics, noisy_pictures, short, silent, tensors  # noqa: F401

from minicoca import params
from minicoca.__main__ import main
from minicoca.data.pairs import Pairs
from minicoca.engine import train as engine_train
from minicoca.images import ReadError
from minicoca.params import flatten
from minicoca.training import patience
from minicoca.training.run import resume

PLAIN = dict(batch_size=9, augment=1.0)


def interrupted(step, by):
    """What presses Ctrl-C in process number `by` while a step is computed."""

    def before(rank):
        original = engine_train.Trainer.step

        def pressed(self, number, *batch):
            report = original(self, number, *batch)
            if number == step and rank == by:
                os.kill(os.getpid(), signal.SIGINT)
            return report

        engine_train.Trainer.step = pressed

    return before


def same(one, other, tolerance=2e-4):
    """The same log and the same weights, to rounding."""
    for a, b in zip(metrics(one), metrics(other), strict=True):
        a.pop("command", None), b.pop("command", None)
        assert a.keys() == b.keys()
        if "look" in a:  # in which several processes do not say whose the gradient is
            a["look"], b["look"] = (
                {k: v for k, v in x["look"].items() if not k.startswith("gradient")} for x in (a, b)
            )
            assert {"caption", "image_rank", "alike"} <= a["look"].keys()
        for key in a.keys() - {"validation", "gradient_shares"}:
            assert a[key] == pytest.approx(b[key], rel=tolerance), (a["step"], key)
    found = [flatten(tensors(run, "model.safetensors")) for run in (one, other)]
    for name, leaf in found[0].items():
        np.testing.assert_allclose(leaf, found[1][name], atol=20 * tolerance, err_msg=name)


def exchanged(run):
    """What the log of a run says that its processes exchanged."""
    told = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    names = {name for record in told for name in record.get("throughput", {})}
    return names & {"communication_ms", "gradients_ms"}


@pytest.mark.parametrize(
    ("world", "changes"), [(2, dict(parallel="fsdp", optimizer="muon", ema=0.9)), (3, {})]
)
def test_a_run_of_several_is_that_of_one_and_is_taken_up_by_any_number(tmp_path, world, changes):
    """Stopped by Ctrl-C in one process; then more go on, then one; a log, a card, a result."""
    config, out = short(**PLAIN, **changes), tmp_path / "said"
    silent(config, tmp_path / "whole")
    folder = tmp_path / "parts"
    assert ended(trained(world, folder, out, silent, interrupted(3, by=1), config)) == [1] * world
    stopped = [line for line in said(out) if line.startswith("Stopped")]
    assert stopped == [f"Stopped: stopped after step 4 of 14; go on with: "
                       f"minicoca train --resume {folder}"]  # fmt: skip
    out.unlink()
    how = dict(taking_up=True, changes={"parallel": "ddp"})
    more = trained(world + 1, folder, out, silent, interrupted(8, by=0), None, **how)
    assert ended(more) == [1] * (world + 1)
    assert resume(folder, print)[-1]["step"] == 9
    silent(None, folder, taking_up=True)
    same(tmp_path / "whole", folder)
    names = [sorted(path.name for path in (tmp_path / run).iterdir()) for run in ("whole", "parts")]
    assert names[0] == names[1]


def seen_in(folder, before=None):
    """What writes down which pictures a process learns from, step by step."""
    folder.mkdir(exist_ok=True)

    def told(rank):
        if before:
            before(rank)
        original = engine_train.Trainer.step

        def step(self, number, images, texts):
            marks = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
            (folder / f"{number:03} {rank}").write_text("\n".join(marks))
            return original(self, number, images, texts)

        engine_train.Trainer.step = step

    return told


def test_shards_are_read_once_an_epoch_by_any_number_that_change_in_its_middle(tmp_path):
    """Two processes are stopped in an epoch, three in the next, and four end it: every picture once
    an epoch, in the order of one process, and the weights that it ends with."""
    source = of_pictures(tmp_path / "pictures", ()).data
    assert main(["shards", source, "--out", str(tmp_path / "shards"), "--shard-size", "7"]) == 0
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 8
    config = short(data=str(tmp_path / "shards"), steps=14, batch_size=6, evaluate_every=0)
    folder, how, out = tmp_path / "parts", dict(taking_up=True), tmp_path / "said"
    one = trained(1, tmp_path / "whole", out, silent, seen_in(tmp_path / "one"), config)
    assert ended(one) == [0]
    first = seen_in(tmp_path / "many", interrupted(3, by=1))
    assert ended(trained(2, folder, out, silent, first, config)) == [1] * 2
    second = seen_in(tmp_path / "many", interrupted(8, by=0))
    assert ended(trained(3, folder, out, silent, second, None, **how)) == [1] * 3
    third = seen_in(tmp_path / "many")
    assert ended(trained(4, folder, out, silent, third, None, **how)) == [0] * 4
    same(tmp_path / "whole", folder)
    marks = {}
    for kind in ("one", "many"):
        steps = sorted((tmp_path / kind).iterdir())
        marks[kind] = [mark for path in steps for mark in path.read_text().splitlines()]
    ranks = [sum(path.name.startswith(f"{n:03}") for path in steps) for n in (3, 8, 13)]
    assert marks["many"] == marks["one"] and ranks == [2, 3, 4]
    pictures = {*marks["one"]}
    for epoch in (0, 1):
        seen = marks["one"][epoch * len(pictures) : (epoch + 1) * len(pictures)]
        assert len({*seen}) == len(seen) == len(pictures) > 30


def of_pictures(folder, damaged):
    """The settings of a run on 40 pictures; some can be opened, but not decoded."""
    noisy_pictures(folder, 40)
    lines = [f"{i}.png\tnumber {i}" for i in range(40)]
    (folder / "captions.tsv").write_text("image\tcaption\n" + "\n".join(lines))
    for i in damaged:
        path = folder / f"{i}.png"
        path.write_bytes(path.read_bytes()[:-900])
    return short(data=str(folder / "captions.tsv"), batch_size=6, **{"steps": 12})


def test_pictures_are_the_same_whatever_their_number_and_damage_is_told(tmp_path):
    """A damaged one, whichever process meets it, is replaced and named as in a run of one."""
    config = of_pictures(tmp_path / "pictures", (5, 11, 12, 30))
    silent(config, tmp_path / "whole")
    assert ended(trained(3, tmp_path / "parts", tmp_path / "said", silent, None, config)) == [0] * 3
    same(tmp_path / "whole", tmp_path / "parts")
    told = [exchanged(tmp_path / run) for run in ("whole", "parts")]
    assert told == [set(), {"communication_ms", "gradients_ms"}]
    left = [(tmp_path / run / "left_out.txt").read_text() for run in ("whole", "parts")]
    assert left[0] == left[1] and len(left[0].splitlines()) >= 5


def test_a_share_that_is_all_damaged_ends_all_in_one_line(tmp_path):
    """And nobody waits for the one that has nothing."""
    config = of_pictures(tmp_path / "pictures", range(1, 40))
    out, begun = tmp_path / "said", time.monotonic()
    assert ended(trained(3, tmp_path / "run", out, silent, None, config)) == [1] * 3
    assert time.monotonic() - begun < 60
    (line,) = [line for line in said(out) if line.startswith("ValueError")]
    assert "step 0: every image of a process's share of it is damaged" in line


@pytest.mark.parametrize(
    ("changes", "world", "words"),
    [
        (dict(backend="numpy"), 2, "--backend numpy trains in one process"),
        (dict(batch_size=3), 4, "batch_size=3 is less than a pair for each of 4"),
        (dict(batch_size=7, accumulate=4), 2, "2 processes and 4 micro-batches"),
    ],
)
def test_what_several_cannot_do_is_said_once(tmp_path, changes, world, words):
    out = tmp_path / "said"
    codes = ended(trained(world, tmp_path / "run", out, silent, None, short(**changes)))
    assert codes == [1] * world
    assert len(said(out)) == 1 and words in said(out)[0]
    assert not (tmp_path / "run").exists()


def failing(rank_of, what, error):
    """What makes one process fail in its third step, or as it reads."""

    def before(rank):
        if rank != rank_of:
            return
        original = getattr(engine_train.Trainer, what)

        def fail(self, number, *given):
            if number == 2:
                raise error
            return original(self, number, *given)

        setattr(engine_train.Trainer, what, fail)

    return before


@pytest.mark.parametrize("by", [0, 1])
@pytest.mark.parametrize("error", [MemoryError("out of memory"), OSError("drive is away")])
def test_an_error_in_one_process_ends_all_in_one_line(tmp_path, by, error):
    out = tmp_path / "said"
    pids = trained(2, tmp_path / "run", out, silent, failing(by, "step", error), short(**PLAIN))
    assert ended(pids) == [1, 1]
    assert len(said(out)) == 1 and str(error) in said(out)[0], said(out)
    assert "lock" not in os.listdir(tmp_path / "run")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_an_image_that_cannot_be_read_by_one_stops_all_after_a_checkpoint(tmp_path, parallel):
    def before(rank):
        original, calls = Pairs.batch, []

        def batch(self, indices):
            calls.append(1)
            if rank == 1 and len(calls) == 9:
                raise ReadError("a drive is away")
            return original(self, indices)

        Pairs.batch = batch

    out, config = tmp_path / "said", short(evaluate_every=0, parallel=parallel, **PLAIN)
    assert ended(trained(2, tmp_path / "run", out, silent, before, config)) == [1, 1]
    assert len(said(out)) == 1 and "a drive is away" in said(out)[0]
    assert resume(tmp_path / "run", print)[-1]["step"] == 8


def away_for(tries, by, place, name, first):
    """In process `by`, from its `first` call on `place.name` fails so many times."""

    def before(rank):
        patience.AWAY, calls, original = 60.0, [], getattr(place, name)

        def call(*given, **named):
            calls.append(1)
            if rank == by and first <= len(calls) < first + tries:
                raise ReadError("the drive is away")
            return original(*given, **named)

        setattr(place, name, call)

    return before


@pytest.mark.parametrize(
    ("by", "place", "name", "first"), [(1, Pairs, "batch", 5), (0, params, "save", 2)]
)
def test_a_drive_that_one_misses_for_a_while_is_waited_for_by_all(
    tmp_path, by, place, name, first
):  # fmt: skip
    config, out = short(**PLAIN), tmp_path / "said"
    silent(config, tmp_path / "whole")
    before = away_for(2, by, place, name, first)
    assert ended(trained(2, tmp_path / "parts", out, silent, before, config)) == [0, 0]
    text = out.read_text()
    assert text.count("the drive is away; training waits for it") == 1
    assert text.count("training goes on, after") == 1
    same(tmp_path / "whole", tmp_path / "parts")


def test_numbers_that_are_none_stop_all_with_one_word(tmp_path):
    def before(rank):
        original = engine_train.Trainer._images

        def poisoned(self, step, images, *place):
            found = original(self, step, images, *place)
            return found * float("nan") if step == 6 and rank == 1 else found

        engine_train.Trainer._images = poisoned

    out = tmp_path / "said"
    pids = trained(2, tmp_path / "run", out, silent, before, short(evaluate_every=0, **PLAIN))
    assert ended(pids) == [1, 1]
    (line,) = said(out)
    assert line.startswith("Stopped: loss is nan at step 6") and "--learning-rate" in line
    assert resume(tmp_path / "run", print)[-1]["step"] == 5


def test_a_process_that_is_killed_stops_the_run_with_its_cause(tmp_path):
    def before(rank):
        original = engine_train.Trainer.step

        def killed(self, number, *given):
            if number == 7 and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, number, *given)

        engine_train.Trainer.step = killed

    out = tmp_path / "said"
    codes = ended(trained(3, tmp_path / "run", out, silent, before, short(**PLAIN)))
    assert codes == [1, -9, 1]
    (line,) = [line for line in said(out) if "minicoca train" in line]
    assert "one of the 3 processes" in line and line.endswith(f"--resume {tmp_path / 'run'}")
    assert resume(tmp_path / "run", print)[-1]["step"] == 5


def test_other_data_in_one_process_is_noticed(tmp_path):
    def before(rank):
        from minicoca.data import shapes

        load = shapes.load
        shapes.load = lambda seed, side, *_: load(seed + rank, side)

    out = tmp_path / "said"
    pids = trained(2, tmp_path / "run", out, silent, before, short(**PLAIN))
    assert ended(pids) == [1, 1]
    assert len(said(out)) == 1 and "process 1 has other data, settings or files" in said(out)[0]


def test_one_folder_has_one_run(tmp_path):
    from minicoca.training.owner import owned

    (tmp_path / "run").mkdir()
    out = tmp_path / "said"
    with owned(tmp_path / "run"):
        pids = trained(2, tmp_path / "run", out, silent, None, short(**PLAIN))
        assert ended(pids) == [1, 1]
    assert len(said(out)) == 1 and "is being trained by process" in said(out)[0]
