"""System calls on a run's files, counted: at the n-th the process dies, or the call fails; and what
a loss of power leaves of them."""

import errno
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from runs import metrics, short, silent, tensors

from minicoca import params
from minicoca.data import shapes
from minicoca.training import run as training_run
from minicoca.training.checkpoint import CHECKPOINT, WEIGHTS, read_json

CALLS = ("open", "write", "fsync", "replace", "ftruncate", "unlink", "close")
STEPS = dict(steps=4, checkpoint_every=2, evaluate_every=0, batch_size=4)


def forked(function):
    """What becomes of `function()` in a process of its own: its exit code, or minus its signal."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        code = 70
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            code = function() or 0
        except SystemExit as end:
            code = end.code
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            code = 71
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def watched(folder, before=lambda number, name, given: None, after=None):
    """`before` hears of every call on files in `folder`, in order, and may raise; `after` of what
    came of it."""
    real, home, number = {name: getattr(os, name) for name in CALLS}, str(folder), [0]

    def wrapped(name):
        def call(*given, **named):
            about = given[-1] if name == "replace" else given[0]
            if isinstance(about, int):
                try:
                    about = os.readlink(f"/proc/self/fd/{about}")
                except OSError:
                    about = ""
            if not str(about).startswith(home):
                return real[name](*given, **named)
            number[0] += 1
            before(number[0], name, given)
            result = real[name](*given, **named)
            if after:
                after(name, given, result)
            return result

        return call

    for name in CALLS:
        setattr(os, name, wrapped(name))
    try:
        yield number
    finally:
        for name in CALLS:
            setattr(os, name, real[name])


def dies_at(last):
    """The process is killed at this call; of a write, when half of it is done."""
    write = os.write

    def before(number, name, given):
        if number == last:
            if name == "write":
                write(given[0], bytes(given[1])[: len(given[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def fails_from(first, code, once):
    """This call, and all that follow unless `once`, are refused by the system."""
    refused = ("close", "unlink")  # the first does not matter, the second tidies up

    def before(number, name, given):
        if number == first or (number > first and not once):
            if name not in refused:
                raise OSError(code, os.strerror(code))

    return before


def whole_run(folder, **changes):
    """An uninterrupted run of few steps, and how many calls it makes."""
    with watched(folder) as number:
        silent(short(**STEPS, **changes), folder)
    return number[0]


def go_on(folder, config):
    """As a person would: resume what there is to resume, else begin again."""
    there = (folder / CHECKPOINT).is_file()
    silent(None if there else config, folder, taking_up=there)


def same(one, other):
    """Whether two runs came to the same, to the last bit."""
    for name in (CHECKPOINT, WEIGHTS):
        a, b = (params.flatten(tensors(folder, name)) for folder in (one, other))
        if a.keys() != b.keys() or not all(np.array_equal(a[k], b[k]) for k in a):
            return False
    changing = ("train_seconds", "images_per_second", "folder", "command", "weights", "run")
    results = [read_json(folder / "results.json")[0] for folder in (one, other)]
    kept = [{k: v for k, v in r.items() if k not in changing} for r in results]
    logs = [metrics(folder) for folder in (one, other)]
    for log in logs:
        for record in log:
            record.pop("command", None)
    return kept[0] == kept[1] and logs[0] == logs[1]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class Disk:
    """What of a folder's files would be there after a loss of power, call by call."""

    def __init__(self):
        self.names, self.kept_names = {}, {}  # a name -> an inode's number
        self.content, self.kept = {}, {}  # an inode's number -> bytes
        self.open, self.states = {}, []
        self.loose, self.left = set(), set()  # names that are written, not kept; left so, and on

    def hear(self, name, given, result):
        if name == "open":
            path = Path(given[0])
            if path.is_dir():
                self.open[result] = None
                return
            self.left |= self.loose
            if path.name not in self.names:
                self.names[path.name] = len(self.content)
                self.content[len(self.content)] = b""
            self.open[result] = self.names[path.name]
        elif name == "write" and self.open.get(given[0]) is not None:
            self.content[self.open[given[0]]] += bytes(given[1])
        elif name == "fsync" and given[0] in self.open:
            node = self.open[given[0]]
            if node is None:
                self.kept_names = dict(self.names)
                self.loose.clear()
            else:
                self.kept[node] = self.content[node]
        elif name == "replace":
            self.names[Path(given[1]).name] = self.names.pop(Path(given[0]).name)
            self.loose.add(Path(given[1]).name)
        elif name == "unlink":
            self.names.pop(Path(given[0]).name, None)
        elif name == "close":
            self.open.pop(given[0], None)
        for found in (self.kept_names, self.names):  # names may, or may not, have been kept
            state = {n: self.kept.get(node, b"") for n, node in found.items()}
            if state not in self.states:
                self.states.append(state)


def lay_out(state, folder):
    folder.mkdir()
    for name, content in state.items():
        (folder / name).write_bytes(content)


def quick(patch):
    """The same few scenes for every run, and no look at what was learned: these tests are about
    files."""
    scenes = shapes.load(0, 32)
    patch.setattr(shapes, "load", lambda seed, side, *_: scenes)
    patch.setattr(training_run, "evaluate", lambda *given: ({"images": 1}, []))


ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO, "read-only": errno.EROFS}
