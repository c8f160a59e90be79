"""Results as they come: rows that outlive what ends a command, and files that replace no other."""

import io
import json
import os
import select
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..files import saving, write_output
from ..training.loop import asked_to_stop
from .flags import Usage

OPENING = '{"results": ['
PIECE = 500  # letters: fewer bytes than a pipe takes at once when it has room


class Results:
    """For a `with`: rows printed as they come, as lines or as one JSON document.

    However the command ends, the document is closed, and what was skipped or not reached is said.
    total: how many inputs there are. line: a row as text.
    """

    def __init__(self, arguments, total, line):
        self.json, self.total, self.line = arguments.json, total, line
        self.held, self.shown, self.reached, self.skipped = "", 0, 0, []

    def __enter__(self):
        return self

    def add(self, rows):
        """Rows of as many inputs."""
        self.show(rows, len(rows))

    def show(self, rows, inputs=0):
        """Rows that stand for whatever was reached."""
        if self.json:
            marks = ["," if self.shown + i else OPENING for i in range(len(rows))]
            text = "".join(f"{m}\n{json.dumps(row)}" for m, row in zip(marks, rows, strict=True))
        else:
            text = "".join(f"{self.line(row)}\n" for row in rows)
        shown, reached = self.shown + len(rows), self.reached + inputs
        self.held, self.shown, self.reached = self.held + text, shown, reached  # all or nothing
        self.release()

    def release(self, whole=False):
        """Write what is held, as long as whoever reads it keeps up; or wait until all is `whole`.

        Ctrl-C waits for the end of a piece.
        """
        with asked_to_stop(answer=b"") as asked:
            while self.held and (whole or has_room() and not asked):
                write(self.held[:PIECE])
                self.held = self.held[PIECE:]
        if asked:
            raise KeyboardInterrupt

    @property
    def not_reached(self):
        return self.total - self.reached - len(self.skipped)

    def __exit__(self, kind, error, trace):
        if error and not self.reached and not isinstance(error, KeyboardInterrupt):
            return  # it failed before there was a result
        if self.json:
            skipped = json.dumps(self.skipped)
            end = f'\n], "skipped": {skipped}, "not_reached": {self.not_reached}}}\n'
            self.held += end if self.shown else OPENING + end
        self.release(whole=True)
        if self.skipped:
            tell(f"skipped {len(self.skipped)} of the files:", *self.skipped)
        if error and self.not_reached:
            left = f"{self.not_reached:,} of {self.total:,} were not reached"
            tell(f"minicoca: {left}; these are the results of the others")
        if not error and not self.reached and self.total:
            raise ValueError("none of the images could be read")


def has_room():
    """False where a pipe is full: waiting for its reader would stop the work."""
    try:
        return bool(select.select([], [sys.stdout], [], 0)[1])
    except (OSError, ValueError, TypeError):  # no file of the system's
        return True


def write(text):
    with saving("standard output"):
        if sys.stdout.isatty():
            tqdm.write(text, end="")  # the progress bar makes room
        else:
            sys.stdout.write(text)
    flush()


def flush():
    """Raises OSError, in words, where standard output takes no more."""
    with saving("standard output"):
        if sys.stdout:
            sys.stdout.flush()


class Unheard:
    """A stream to which perhaps nobody listens: then what is said to it is lost, and no error."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        with suppress(OSError, ValueError):  # ValueError: closed by whoever runs us
            return self.stream.write(text)
        return len(text)

    def flush(self):
        with suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextmanager
def unheard():
    """For a `with`: what is printed is said by the way, and work goes on where nobody hears it."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Unheard(s or open(os.devnull, "w")) for s in before)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def tell(first, *others):
    print("\n  ".join([first, *others]), file=sys.stderr)


def check_output(flag, path):
    """Raise Usage, before there is work to lose, where no new file can be written.

    An empty file is none: whoever asks the system for a new name has one.
    """
    empty = os.path.isfile(path) and not os.path.getsize(path)
    if os.path.lexists(path) and not empty:
        raise Usage(f"{flag} {path} is there already: remove it, or give another name")
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise Usage(f"{flag} {path}: {folder} is no folder that can be written into")


def check_picture(flag, path):
    """`check_output` of a picture, whose name is to say its format."""
    if Image.registered_extensions().get(Path(path).suffix.lower()) not in Image.SAVE:
        raise Usage(f"{flag} {path}: the name must end as a picture's does, such as .png")
    check_output(flag, path)


def save_picture(path, picture):
    file = io.BytesIO()
    picture.save(file, Image.registered_extensions()[Path(path).suffix.lower()])
    write_output(path, file.getvalue())


def save_figure(path, figure):
    """A figure of matplotlib's as a picture of whatever kind the name says."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, facecolor="white")
    save_picture(path, Image.open(drawn).convert("RGB"))
