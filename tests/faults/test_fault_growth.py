"""Twice and four times as much takes no more memory, files or work for each item.

Work is counted in calls, of Python's functions and of those in C, which are the same in every run;
what a call in C takes only seconds of the processor tell, and only much of it.
"""

import contextlib
import gc
import io
import json
import os
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from runs import few_shapes, short, silent  # noqa: F401

from minicoca import __main__ as cli
from minicoca.data.files import Report
from minicoca.data.folder import load
from minicoca.data.layouts import read_captions
from minicoca.images import load_image
from minicoca.reference.train import Trainer
from minicoca.tasks import files
from minicoca.training import loop as training_loop
from minicoca.training.log import Log

pytestmark = pytest.mark.slow
TIMES = (1, 2, 4)
LINES = 1000
open_files = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, as many lists and folders of them as are asked for, and a model."""
    folder = tmp_path_factory.mktemp("growth")
    rng = np.random.default_rng(0)
    for times in TIMES:
        (folder / f"{times}").mkdir()
        rows = ["image,caption"]
        for i in range(32 * times):
            picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8))
            picture.save(folder / f"{times}" / f"{i}.png")
            rows.append(f"{times}/{i}.png,a thing of number {i}")
        (folder / f"{times}.csv").write_text("\n".join(rows))
        entries = ({"image": f"{i}.png", "caption": f"thing {i}"} for i in range(LINES * times))
        (folder / f"{times}.json").write_text("\n".join(map(json.dumps, entries)))
    with pytest.MonkeyPatch.context() as patch:
        from minicoca.data import shapes
        from minicoca.training import run

        whole = shapes.load
        patch.setattr(shapes, "load", lambda seed, side, *_: whole(seed, side, 60, 20))
        patch.setattr(run, "evaluate", lambda *given: ({"images": 1}, []))
        silent(short(steps=1, warmup=0, image_size=64, patch_size=16), folder / "run")
    return folder


def quiet(*arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        assert cli.main([str(argument) for argument in arguments]) == 0, out.getvalue()


def command(name, *more):
    def run(place, times):
        quiet(name, place / f"{times}", *more, "--run", place / "run", "--backend", "numpy")

    return run


def train(place, times):
    config = short(steps=8 * times, backend="numpy", evaluate_every=0, checkpoint_every=999)
    folder = place / f"trained {threading.get_ident()} {times} {len(os.listdir(place))}"
    with pytest.MonkeyPatch.context() as patch:
        from minicoca.training import run

        patch.setattr(run, "evaluate", lambda *given: ({"images": 1}, []))
        silent(config, folder)


def log(place, times):
    path = place / f"{times}.jsonl"
    lines = (json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(LINES * times))
    path.write_text("".join(lines))
    assert len(Log.read(path)) == LINES * times


def a_list(place, times):
    assert len(read_captions(place / f"{times}.json", Report())) == LINES * times


def a_data_set(place, times):
    config = short(data=str(place / f"{times}.csv"))
    dataset = load(config.data, config.image_size)
    assert len(dataset.train.batch(range(8))) == 8


# What is done; bytes that each item may keep, as a part of its result.
WORK = {
    "steps of training": (train, 40),
    "captions": (command("caption", "--json"), 3000),
    "classes": (command("classify", "--labels", "a star", "a ring", "--json"), 3000),
    "a search": (command("search", "a star", "--json", "-k", "3"), 3000),
    "lines of a log": (log, 1500),
    "rows of a list": (a_list, 3000),
    "a data set": (a_data_set, 6000),
}
ITEMS = {"steps of training": 8, "lines of a log": LINES, "rows of a list": LINES}


def calls(work):
    """Calls that `work()` makes, in all its threads."""
    count = [0]

    def seen(frame, event, argument):
        count[0] += event in ("call", "c_call")

    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return count[0]


def seconds(work):
    """Of the processor."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def bytes_at_most(work):
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def most_open(monkeypatch):
    """Files open at once, looked at where items are worked on."""
    most = [open_files()]

    def looking(function):
        def looked(*given, **named):
            most[0] = max(most[0], open_files())
            return function(*given, **named)

        return looked

    monkeypatch.setattr(Trainer, "step", looking(Trainer.step))
    monkeypatch.setattr(files, "load_image", looking(load_image))
    return most


@pytest.mark.parametrize("name", WORK)
def test_four_times_as_much_takes_no_more_for_each(name, place, most_open, monkeypatch):
    monkeypatch.setattr(files, "BATCH", 16)
    monkeypatch.setattr(training_loop, "LOG_EVERY", 1)
    work, kept = WORK[name]
    work(place, 1)  # imports, caches
    before, memory, opened, made, took = open_files(), {}, {}, {}, {}
    for times in TIMES:
        most_open[0] = before
        memory[times] = bytes_at_most(lambda times=times: work(place, times))
        opened[times] = most_open[0]
        made[times] = calls(lambda times=times: work(place, times)) / times
        took[times] = min(seconds(lambda times=times: work(place, times)) for _ in "ab") / times
        assert open_files() == before
    items = ITEMS.get(name, 32)
    assert opened[4] <= opened[1] + 2, opened
    assert memory[4] <= memory[1] * 1.1 + 3 * items * kept, memory
    assert made[4] <= made[1] * 1.1, made
    assert took[4] <= took[1] * 1.8 + 0.001, took
