"""Images without texts, and texts without images, for CoCa's relatives that read nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..words import clean
from .files import TEXT_SUFFIX, Report, files_below, is_image
from .folders import lines_of, read_folder
from .layouts import records_of
from .pairs import Dataset, Pairs
from .records import PLACEHOLDER, Reading, Record, gathered, or_train, splits_of
from .shards import is_pattern
from .splits import split_names
from .tables import is_table, is_token_list


def images(source: Path, reading: Reading) -> tuple[Path, str | None, Iterable[Record]]:
    """As layouts.records_of, where captions are not asked for: of a folder with pictures in it all
    of them, whatever stands beside them; of lists and shards those that they name."""
    reading.what = None
    if not is_pattern(source) and os.path.isdir(source):
        paths = [path for path in files_below(source, reading.report) if is_image(path)]
        if paths:
            reading.kind = "images alone"
            return source, "", _records(source, paths, reading)
    return records_of(source, reading)


def _records(folder: Path, paths: list[Path], reading: Reading) -> Iterator[Record]:
    """An image that says nothing of its split is trained on where others say theirs."""
    splits = _splits(folder, paths, reading)
    for path in paths:
        name = path.relative_to(folder).as_posix()
        yield Record(name, PLACEHOLDER, str(path), splits.get(path))


def _splits(folder: Path, paths: list[Path], reading: Reading) -> dict[Path, str]:
    """{image: split} as the same folder is divided where captions are asked for, by a list in it or
    by folders; else by what the folders of images are called, if they name several splits."""
    probe = replace(reading, report=Report(), pieces={}, classes={})
    with suppress(ValueError):
        _, given = gathered(read_folder(folder, probe), probe)
        if given:
            said = {os.path.normpath(name): part for name, part in given.items()}
            found = {path: said.get(path.relative_to(folder).as_posix()) for path in paths}
            return or_train(found, reading.report)
    return splits_of(folder, paths, reading.report)


def is_texts(source: str) -> bool:
    """Whether a source of data is texts alone: a text file, and no list of captions."""
    path = Path(source)
    if path.suffix.lower() != TEXT_SUFFIX or path.is_dir():
        return False
    return not path.exists() or not (is_token_list(path) or is_table(path, Reading(Report())))


def texts(
    source: str | os.PathLike, side: int, *, seed: int = 0, held_out: float, validation: float
) -> Dataset:
    """The lines of a text file, each a text by itself; with each an image that nobody looks at.

    A text decides where it goes, so that one that comes several times is in one split only. Raises
    ValueError where there is none, or the file is not UTF-8, and OSError if it cannot be read.
    """
    source = Path(source)
    lines, report = [text for line in lines_of(source) if (text := clean(line))], Report()
    if not lines:
        raise ValueError(f"{source}: no line of it holds a text")
    once = list(dict.fromkeys(lines))
    given = once, {}, dict(zip(once, once, strict=True)), {}
    parts = split_names(*given, seed, held_out, validation, report)
    part = {once[row]: name for name, rows in parts.items() for row in rows}
    found: dict[str, list[str]] = {name: [] for name in parts}
    for text in lines:
        found[part[text]].append(text)
    blank = np.zeros((1, side, side, 3), np.uint8)

    def split(name: str) -> Pairs:
        shape = len(found[name]), *blank.shape[1:]
        return Pairs(np.broadcast_to(blank, shape), tuple((text,) for text in found[name]))

    sizes = ", ".join(f"{name} {len(own)}" for name, own in found.items())
    return Dataset(
        name=source.stem,
        train=split("train"),
        validation=split("validation") if found["validation"] else None,
        evaluations={"held_out": split("held_out")} if found["held_out"] else {},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        notes=f"{source} (texts alone): {sizes}\n{report}".rstrip(),
        left_out=report.whole(),
    )
