"""Captions kept as they come, as rows of a file and as texts beside the images; and what an earlier
call has kept already.

A row is kept before the text that it holds: after a kill between the two, the text is made of the
row. A row says what its picture was, by size and time, so that a changed one is done again.
"""

import errno
import json
import os
from functools import cache
from pathlib import Path

from ..files import append, make_folder, saving, write_atomically, write_output
from ..training.loop import asked_to_stop
from .flags import Usage
from .model import note
from .results import check_output, tell

STAMP = ("size", "mtime_ns")
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)  # of one file or folder, and not of the rest


def add_flags(parser):
    add = parser.add_argument
    add("--out", type=Path, help="a file of JSON lines to append to, one an image; - prints them")
    add("--write-txt", action="store_true", help="write NAME.txt beside each image")
    add("--overwrite-txt", action="store_true", help="... also where there is one already")
    add("--skip-done", action="store_true", help="leave out what --out or --write-txt holds")


REPLACES = "--overwrite-txt replaces it"


class Kept:
    """For a `with`: where captions are kept, as the flags ask. Raises Usage.

    blocked: a line for each image that is not to be captioned, since its text could not be kept.
    before: of each image that is left to do, how many that were done stand before it.
    """

    def __init__(self, arguments):
        self.go_on, self.texts = arguments.skip_done, arguments.write_txt
        self.overwrite, out = arguments.overwrite_txt, arguments.out
        self.printed = str(out) == "-"
        self.out = None if self.printed else out
        self.rows, self.stamps, self.first, self.before = {}, {}, {}, {}
        self.blocked, self.told = [], []
        if self.overwrite and not self.texts:
            raise Usage("--overwrite-txt is of --write-txt: give it too")
        if self.printed and arguments.json:
            raise Usage("--out - prints JSON lines, and --json one document: give one of them")
        if self.go_on and not (self.out or self.texts):
            raise Usage("--skip-done needs --out FILE or --write-txt: there it sees what is done")
        if self.out and not self.go_on:
            try:
                check_output("--out", self.out)
            except Usage as error:
                taken = "; or --skip-done goes on with it" if os.path.isfile(self.out) else ""
                raise Usage(f"{error}{taken}") from error

    def __enter__(self):
        if self.out:
            with saving(self.out):
                make_folder(self.out.parent)
        if changed := {key(path) for path in self.before} & self.rows.keys():
            rows = [row for name, row in self.rows.items() if name not in changed]
            write_output(self.out, b"".join(map(as_line, rows)))
            note(f"{len(changed):,} pictures were changed since: they are done again")
        return self

    def __exit__(self, *error):
        if self.told:
            tell(f"{len(self.told)} texts were not written:", *self.told)

    def left(self, paths):
        """The paths that are still to be captioned, each file once."""
        if self.out or self.texts:
            once = {}
            for path in paths:
                once.setdefault(key(path), path)
            paths = list(once.values())
            self.stamps = {path: stamp_of(path) for path in paths}
        for path in paths if self.texts else ():
            self.first.setdefault(text_of(path), path)
        if self.out and self.go_on:
            self.rows = read_rows(self.out)
        left, done = [], 0
        for path in paths:
            state = self._state(path)
            done += state == "done"
            if state == "left":
                left.append(path)
                self.before[path] = done
        if done:
            note(f"{done:,} of {len(paths):,} are done already")
        return left

    def _state(self, path):
        """What is to be done of an image: it is "left", "done", or "blocked"."""
        if self.out:
            row = self.rows.get(key(path))
            if row is None or any(row.get(n) != value for n, value in self.stamps[path].items()):
                return "left"
            if self.texts and not has_text(text_of(path)):  # killed between row and text
                self._write_text(path, row["caption"])
            return "done"
        if not self.texts:
            return "left"
        if why := self._closed(path):
            self.blocked.append(why)
            return "blocked"
        text = text_of(path)
        if not has_text(text):
            return "left"
        if self.go_on and not changed_since(path, text):
            return "done"
        if self.overwrite:
            return "left"
        older = "older than its picture" if self.go_on else "there already"
        self.blocked.append(f"{path}: {text} is {older}, and kept; {REPLACES}")
        return "blocked"

    def keep(self, rows):
        """Rows of captions that were just written. Ctrl-C waits until all are kept."""
        with asked_to_stop(answer=b"") as asked:
            if self.out:
                append(self.out, b"".join(as_line(row | self._stamp(row)) for row in rows))
            for row in rows if self.texts else ():
                self._write_text(Path(row["file"]), row["caption"])
        if asked:
            raise KeyboardInterrupt

    def _stamp(self, row):
        return self.stamps[Path(row["file"])]

    def _write_text(self, path, caption):
        text = text_of(path)
        if why := self._closed(path):
            self.told.append(why)
            return
        if self.out and not self.overwrite and has_text(text):
            ours = {caption, self.rows.get(key(path), {}).get("caption")}
            if read_text(text) not in ours:
                self.told.append(f"{path}: {text} holds other words, and is kept; {REPLACES}")
                return
        try:
            write_atomically(text, f"{caption}\n".encode(errors="surrogateescape"))
        except OSError as error:
            if getattr(error.__cause__, "errno", None) not in REFUSED:
                raise
            self.told.append(f"{path}: {error}")

    def _closed(self, path):
        """Why no text can be written beside an image, in words; empty if it can."""
        text = text_of(path)
        if self.first.get(text, path) != path:
            return f"{path}: {text} is that of {self.first[text]}"
        if text.is_symlink():
            return f"{path}: {text} is a link, and is left alone"
        if text.exists() and not text.is_file():
            return f"{path}: {text} is no file"
        if not os.access(text.parent, os.W_OK):
            return f"{path}: {text} was not written: its folder may not be written into"
        return ""


def key(path):
    """By which a file is known, however its path is given."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(real(folder), name)


@cache
def real(folder):
    return os.path.realpath(folder)


def text_of(path):
    return path.with_suffix(".txt")


def stamp_of(path):
    """What a picture is known by; nothing where the system does not tell."""
    try:
        found = os.stat(path)
    except OSError:
        return {}
    return dict(zip(STAMP, (found.st_size, found.st_mtime_ns), strict=True))


def has_text(path):
    """An empty file is none."""
    return path.is_file() and path.stat().st_size > 0


def changed_since(path, text):
    return stamp_of(path).get("mtime_ns", 0) > text.stat().st_mtime_ns


def read_text(path):
    try:
        return path.read_bytes().decode(errors="surrogateescape").rstrip("\n")
    except OSError:
        return None


def as_line(row):
    return f"{json.dumps(row)}\n".encode()


def read_rows(path):
    """{what a file is known by: its row} of a file of ours, which loses a last line that was cut
    off. Raises ValueError, naming the line, where it holds anything else."""
    rows, end = {}, 0
    if not os.path.lexists(path):
        return rows
    if not os.path.isfile(path):
        raise ValueError(f"--out {path} is no file, but a folder, pipe or device")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            row = row_of(line)
            if not line.endswith(b"\n"):
                break
            if row is None:
                raise ValueError(f"--out {path}: line {number} is no caption's; give another name")
            rows[key(row["file"])] = row
            end += len(line)
        else:
            return rows
    os.truncate(path, end)
    if row is not None:  # it lacks no more than the end of its line
        append(path, line + b"\n")
        rows[key(row["file"])] = row
    else:
        note(f"the last line of {path} was cut off, and is dropped")
    return rows


def row_of(line):
    """A row of ours; None where the line is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = isinstance(row, dict) and all(isinstance(row.get(n), str) for n in ("file", "caption"))
    return row if good else None
