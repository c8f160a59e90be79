"""Images without texts, and texts without images, for CoCa's relatives that read nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from minicoca.data.files import TEXT_SUFFIX, Report, files_below, is_image
from minicoca.data.folders import lines_of
from minicoca.data.layouts import records_of
from minicoca.data.pairs import Dataset, Pairs
from minicoca.data.records import Reading, Record, split_in
from minicoca.data.shards import is_pattern
from minicoca.data.splits import split_names
from minicoca.words import clean

WORD = "picture"  # the caption of what has none; nobody reads it


def images(source: Path, reading: Reading) -> tuple[Path, str | None, Iterable[Record]]:
    """As layouts.records_of, for `folder.load`: of a folder all images, whatever stands beside
    them; of lists and shards those that they name."""
    if is_pattern(source) or not os.path.isdir(source):
        return records_of(source, reading)
    reading.kind, reading.what = "images alone", ""
    return reading.root or source, "", _images_below(source, reading)


def _images_below(folder: Path, reading: Reading) -> Iterator[Record]:
    paths = [path for path in files_below(folder, reading.report) if is_image(path)]
    tops = {path: path.relative_to(folder).parts[:-1][:1] for path in paths}
    divided = all(own and split_in(own[0]) for own in tops.values())
    for path in paths:
        split = split_in(tops[path][0]) if divided else None
        yield Record(path.relative_to(folder).as_posix(), WORD, str(path), split)


def is_texts(source: str) -> bool:
    """Whether a source of data is texts alone, by its name."""
    return Path(source).suffix.lower() == TEXT_SUFFIX


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
