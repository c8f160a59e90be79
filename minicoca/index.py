"""An index: unit vectors of pictures in a folder of flat files, which are grown, and searched where
they lie.

Rows are only ever added behind the others. One counts from when index.json says so, which is
replaced as a whole: what a killed call left behind it is cut off by the next. A row that is dropped
is named in a list; once too many are, what remains is written anew beside it, as a later
generation.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .files import Damaged, append, make_folder, read_json, saving, sync, sync_folder, write_json

INDEX = "index.json"
PARTS = ("vectors", "names", "rows", "dead")  # float32; UTF-8; int64 thrice a row; int64
OURS = re.compile(rf"(?:{'|'.join(PARTS)})\.(\d{{1,9}})|index\.json\.\w{{8}}|lock")
COLUMNS = 3  # of a row: where its name ends, the size of its file and when that was changed
MOST_DEAD = 4  # one in so many rows
PIECE = 2**24  # bytes read at once


class Index:
    """An index as it stood when it was opened; later growth does not change it.

    vectors: [N, E] float32 in the file itself. dead: [D] rows of them that count no more, in order.
    stamps: [N, 2] the size and the time of change (in nanoseconds) of each file when it was read.
    weights, fit, made_by: of which model they are, how pictures were made square, and its run.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        """Raises ValueError where the folder holds no index, and Damaged where that is damaged."""
        self.folder = Path(folder)
        self._read()
        try:
            self._open()
        except Damaged:
            before = self.generation
            self._read()
            if self.generation == before:
                raise
            self._open()  # it was written anew between the two

    def _read(self) -> None:
        path = self.folder / INDEX
        if not path.is_file():
            raise ValueError(f"{self.folder} is no index: it has no {INDEX}")
        found, sealed = read_json(path)
        try:
            self.lengths = {part: int(found["bytes"][part]) for part in PARTS}
            self.checks = {part: int(found["crc32"][part]) for part in PARTS}
            self.width, self.generation = int(found["width"]), int(found["generation"])
            said = [found[name] for name in ("weights", "fit", "made_by")]
            self.weights, self.fit, self.made_by = map(str, said)
            good = sealed and min(self.lengths.values()) >= 0 < self.width
        except (KeyError, TypeError, ValueError):
            good = False
        if not good or len(self) < 0 or self.lengths["vectors"] != 4 * self.width * self.count:
            raise Damaged(f"{path} is no index of ours, or was edited: make another")

    def _open(self) -> None:
        self.vectors = self._mapped("vectors", np.float32).reshape(self.count, self.width)
        rows = self._mapped("rows", np.int64).reshape(self.count, COLUMNS)
        self.ends, self.stamps = rows[:, 0], rows[:, 1:]
        self.dead = np.sort(self._mapped("dead", np.int64))
        self.text = self._mapped("names", np.uint8)
        if len(self.dead) and not 0 <= self.dead[0] <= self.dead[-1] < self.count:
            raise Damaged(f"{self.path('dead')} names rows that there are not: make another index")

    def _mapped(self, part: str, kind: type) -> np.ndarray:
        path, size = self.path(part), self.lengths[part]
        try:
            there = path.stat().st_size
        except OSError as error:
            raise Damaged(f"{path}: {error.strerror or error}") from error
        if there < size:
            raise Damaged(f"{path} was cut off: it has {there:,} bytes of {size:,}; make another")
        count = size // np.dtype(kind).itemsize
        return np.memmap(path, kind, "r", shape=(count,)) if count else np.zeros(0, kind)

    def path(self, part: str) -> Path:
        """The file of a part."""
        return self.folder / f"{part}.{self.generation}"

    @property
    def count(self) -> int:
        """N: rows, dead ones among them."""
        return self.lengths["rows"] // (8 * COLUMNS)

    def __len__(self) -> int:
        return self.count - self.lengths["dead"] // 8

    def name(self, row: int) -> str:
        """The path of a row's file, as it was when it was read."""
        start = self.ends[row - 1] if row else 0
        return os.fsdecode(self.text[start : self.ends[row]].tobytes())

    @property
    def longest(self) -> int:
        """Bytes of the longest name."""
        return int(np.diff(self.ends, prepend=0).max(initial=0))

    def alive(self) -> np.ndarray:
        """[N] whether each row counts."""
        alive = np.ones(self.count, bool)
        alive[self.dead] = False
        return alive

    def rows(self) -> dict[str, int]:
        """{name of a file: its row} of the rows that count."""
        ends, text = self.ends.tolist(), self.text.tobytes()
        starts = [0, *ends][:-1]
        rows = np.flatnonzero(self.alive()).tolist()
        return {os.fsdecode(text[starts[row] : ends[row]]): row for row in rows}

    def batches(self, size: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """(names, vectors [b, E]) of the rows that count, in order."""
        rows = np.flatnonzero(self.alive())
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            yield [self.name(row) for row in some.tolist()], self.vectors[some]

    def check(self, weights: str, fit: str | None = None) -> None:
        """Raise ValueError where the index is of other weights, or of pictures that were made
        square otherwise than `fit` (None: in any way)."""
        if weights != self.weights:
            raise ValueError(
                f"{self.folder} is of other weights, those of {self.made_by}: give that --run, or "
                "another --index"
            )
        if fit not in (None, self.fit):
            raise ValueError(
                f"{self.folder} is of pictures with --fit {self.fit}, not {fit}: leave --fit out, "
                "or give another --index"
            )


class Growing(Index):
    """An index to add to, by one process at a time; `begin` makes a new one."""

    def __init__(self, folder: str | os.PathLike) -> None:
        """Raises as `Index`, also where any byte was damaged. Cuts off what a killed call left."""
        super().__init__(folder)
        for path in self.folder.iterdir():
            found = OURS.fullmatch(path.name)
            if found and found[1] and int(found[1]) != self.generation:
                path.unlink()
        for part in PARTS:
            path = self.path(part)
            with saving(path):
                os.truncate(path, self.lengths[part])
            if crc_of(path) != self.checks[part]:
                raise Damaged(f"{path} does not hold what was written into it: make another index")

    @classmethod
    def begin(
        cls, folder: str | os.PathLike, width: int, weights: str, fit: str, made_by: str
    ) -> Growing:
        """An index without rows, in a folder that is empty or not there. Raises ValueError."""
        folder = Path(folder)
        with saving(folder):
            make_folder(folder)
        if other := next((p for p in folder.iterdir() if not OURS.fullmatch(p.name)), None):
            raise ValueError(f"{folder} is no index, and not empty (it has {other.name})")
        new = cls.__new__(cls)
        new.folder, new.width, new.generation = folder, width, 0
        new.weights, new.fit, new.made_by = weights, fit, made_by
        new._start(0)
        new._commit()
        return cls(folder)

    def add(
        self,
        names: Sequence[str],
        stamps: Sequence[tuple[int, int]],
        vectors: np.ndarray,
        instead_of: Iterable[int] = (),
    ) -> None:
        """Rows of as many files; `instead_of`: rows that are dropped at once. All of it or nothing.

        Raises OSError where they cannot be written.
        """
        encoded = [os.fsencode(name) for name in names]
        ends = self.lengths["names"] + np.cumsum([len(name) for name in encoded], dtype=np.int64)
        rows = np.column_stack([ends, np.array(stamps, np.int64).reshape(-1, 2)])
        vectors = np.ascontiguousarray(vectors, np.float32).reshape(len(names), self.width)
        with self._whole():
            self._append("vectors", vectors.tobytes())
            self._append("names", b"".join(encoded))
            self._append("rows", rows.astype(np.int64).tobytes())
            self._append("dead", np.array(list(instead_of), np.int64).tobytes())

    def drop(self, rows: Iterable[int]) -> None:
        """Rows that count no more."""
        with self._whole():
            self._append("dead", np.array(list(rows), np.int64).tobytes())

    def finish(self) -> None:
        """Write what counts anew where too much does not."""
        self._open()
        if len(self.dead) * MOST_DEAD <= self.count:
            return
        before, old, rows = [self.path(part) for part in PARTS], Index(self.folder), 0
        alive = np.flatnonzero(old.alive())
        size = max(1, PIECE // (4 * self.width))
        self._start(self.generation + 1)
        for start in range(0, len(alive), size):
            some = alive[start : start + size]
            names = [os.fsencode(old.name(row)) for row in some.tolist()]
            ends = self.lengths["names"] + np.cumsum([len(name) for name in names])
            self._append("vectors", old.vectors[some].tobytes())
            self._append("names", b"".join(names))
            kept = np.column_stack([ends, old.stamps[some]]).astype(np.int64)
            self._append("rows", kept.tobytes())
            rows += len(some)
        self._commit()
        for path in before:
            path.unlink(missing_ok=True)
        self._open()

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """For a `with`: what is appended counts at its end, or is taken back."""
        before = dict(self.lengths), dict(self.checks)
        try:
            yield
            self._commit()
        except BaseException:
            self.lengths, self.checks = before
            for part in PARTS:
                os.truncate(self.path(part), self.lengths[part])
            raise

    def _start(self, generation: int) -> None:
        self.generation = generation
        self.lengths, self.checks = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
        for part in PARTS:
            with saving(self.path(part)):
                self.path(part).write_bytes(b"")

    def _append(self, part: str, data: bytes) -> None:
        if data:
            append(self.path(part), data)
            self.lengths[part] += len(data)
            self.checks[part] = zlib.crc32(data, self.checks[part])

    def _commit(self) -> None:
        for part in PARTS:
            sync(self.path(part))
        sync_folder(self.folder)
        fields = {"bytes": self.lengths, "crc32": self.checks, "width": self.width}
        fields |= {"generation": self.generation, "weights": self.weights}
        write_json(self.folder / INDEX, fields | {"fit": self.fit, "made_by": self.made_by})


def crc_of(path: Path) -> int:
    """CRC-32 of all that a file holds."""
    found = 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            found = zlib.crc32(piece, found)
    return found
