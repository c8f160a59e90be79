"""Files as a person has them: what a folder holds, and which files are one under several names."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from minicoca.images import CLAIMED_SUFFIXES, IMAGE_SUFFIXES, NO_FILE, open_file, patiently
from minicoca.words import clip

EXAMPLES = 5  # of each kind of trouble, quoted in a report
TEXT_SUFFIX = ".txt"
BEGINNING = 4096  # bytes, by which most files of one size already differ
LONGEST = 300  # letters of a line that is said

Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass
class Report:
    """What was left out, joined or replaced, by the reason."""

    named: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, what: str) -> None:
        self.named[reason].append(what)

    def whole(self, most: int | None = None) -> str:
        """Every name, or the first `most` of each reason."""
        lines = []
        for reason, names in self.named.items():
            lines.append(f"{len(names)} {reason}:")
            lines.extend(f"  {clip(name, LONGEST) if most else name}" for name in names[:most])
            if most and len(names) > most:
                lines.append(f"  ... and {len(names) - most} more")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.whole(EXAMPLES)


def is_image(path: Path) -> bool:
    """By its name alone."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def images_below(folder: Path, report: Report) -> list[Path]:
    """The files below `folder` that are named as images; see `files_below`."""
    return [path for path in files_below(folder, report) if is_image(path)]


def files_below(folder: Path, report: Report) -> list[Path]:
    """Every file below `folder`, in order of name.

    Links are followed, and each real folder is searched once, at its own place if that is below
    `folder`. What is left alone goes to `report`: hidden files, links that lead back or nowhere,
    pipes and devices, pictures of kinds that cannot be opened here, and folders that may not be
    read or lie too deep. Raises OSError where reading a folder fails.
    """
    home = Path(os.path.realpath(folder))
    found, seen = [], set()
    waiting, links = [(folder, home)], []
    while waiting or links:
        here, real = waiting.pop() if waiting else links.pop(0)
        if real in seen:
            report.add("searched once, though more links lead there", f"{here} is {real}")
            continue
        seen.add(real)
        for entry in entries(here, report):
            path, kind = here / entry.name, kind_of(entry)
            if reason := left_alone(path, kind):
                report.add(reason, str(path))
            elif kind == "file":
                found.append(path)
            elif not entry.is_symlink():
                waiting.append((path, real / entry.name))
            elif home.is_relative_to(target := Path(os.path.realpath(path))):
                report.add("not followed, a link back to where it is", f"{path} is {target}")
            else:
                links.append((path, target))
    return sorted(found)


def entries(folder: Path, report: Report) -> list[os.DirEntry]:
    def listed() -> list[os.DirEntry]:
        try:
            with os.scandir(folder) as inside:
                return list(inside)
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            why = error.strerror or type(error).__name__
            report.add("left out, a folder that may not be read", f"{folder} ({why})")
            return []

    return patiently(listed)


def kind_of(entry: os.DirEntry) -> str:
    """What an entry is, or what its link leads to: folder, file, other (a pipe, a device), nothing
    or closed, where we may not look."""

    def looked() -> str:
        try:
            if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
                return "folder" if entry.is_dir() else "file"
            mode = entry.stat().st_mode
        except PermissionError:
            return "closed"
        except OSError as error:
            if error.errno in NO_FILE:
                return "nothing"
            raise
        return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"

    return patiently(looked)


def left_alone(path: Path, kind: str) -> str:
    """Why an entry of a folder is left alone; empty if it is not."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):  # as ._a.png, which macOS writes beside a.png on other drives
        counts = kind == "folder" or suffix in {*IMAGE_SUFFIXES, *CLAIMED_SUFFIXES, TEXT_SUFFIX}
        return "left alone as hidden" * counts
    if kind == "nothing":
        return "left out, a link that leads nowhere"
    if kind == "closed":
        return "left out, what may not be read"
    if kind == "other":
        return "left out, no file but a pipe or device"
    if kind == "file" and suffix in CLAIMED_SUFFIXES:
        return "left out, of a kind that cannot be opened here (convert to PNG or JPEG)"
    return ""


def in_threads(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item]
) -> list[Result]:
    """`function` of every item, in order. Where that ends early, as by Ctrl-C, no more is begun."""
    begun = []
    try:
        for item in items:
            begun.append(pool.submit(function, item))
        return [future.result() for future in begun]
    finally:
        for future in begun:
            future.cancel()


def equal_bytes(paths: Sequence[Path], pool: Executor) -> dict[int, int]:
    """Files that hold the same bytes as an earlier one: their place in `paths` -> the first's."""
    marks: list[tuple] = [() for _ in paths]
    alike = list(range(len(paths)))
    for mark_of in (size, beginning, digest):  # each reads more, of fewer files

        def mark(row: int, mark_of=mark_of) -> object:
            return patiently(lambda: mark_of(paths[row]))

        for row, found in zip(alike, in_threads(pool, mark, alike), strict=True):
            marks[row] += (found,)
        many = Counter(marks[row] for row in alike)
        alike = [row for row in alike if many[marks[row]] > 1]
    first: dict[tuple, int] = {}
    return {row: first[marks[row]] for row in alike if first.setdefault(marks[row], row) != row}


def size(path: Path) -> int:
    return path.stat().st_size


def beginning(path: Path) -> bytes:
    with open_file(path) as file:
        return hashlib.sha256(file.read(BEGINNING)).digest()


def digest(path: Path) -> bytes:
    """SHA-256 of the whole file."""
    sha = hashlib.sha256()
    with open_file(path) as file:
        while part := file.read(2**20):
            sha.update(part)
    return sha.digest()
