"""Which split an image is in: the one that its source gives, or one drawn from its own place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from minicoca.data.files import Report
from minicoca.data.layouts import Listed


def one_file_once(
    listed: Listed, report: Report
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """(captions, places) by the first name that is written of each file, with all its captions.
    What `listed` gives to two splits under two names stays in the first.

    A place is what decides the split: the real path below the root. What lies elsewhere is known by
    its written name, so that a folder can be moved or linked and no image changes sides.
    """
    home, first = Path(os.path.realpath(listed.root)), {}
    captions, places, splits = {}, {}, listed.splits
    for name, texts in listed.captions.items():
        if name in listed.pieces:
            captions[name], places[name] = texts, name
            continue
        real = real_path(listed.root / name)
        known = first.setdefault(real, name)
        if known == name:
            captions[name] = texts
            inside = real.is_relative_to(home)
            places[name] = (real.relative_to(home) if inside else PurePath(name)).as_posix()
        else:
            report.add("other names of an image, one with the first", f"{name} is {known}")
            captions[known] = tuple(dict.fromkeys(captions[known] + texts))
            if name in splits and splits.setdefault(known, splits[name]) != splits[name]:
                report.add("images given to two splits, kept in the first", f"{name} is {known}")
    return captions, places


def real_path(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a name that no file can have
        return path


def split_names(
    names: Sequence[str],
    copies: Mapping[int, int],
    places: Mapping[str, str],
    given: Mapping[str, str],
    seed: int,
    held_out: float,
    validation: float,
    report: Report,
) -> dict[str, list[int]]:
    """Rows of `names` by the part they belong to: the one that is given, or else where their place
    sends them, and the nearest of these to "train" where nothing would be; copies are where the
    first of them is."""
    firsts = [row for row in range(len(names)) if row not in copies]
    part = {
        row: given.get(names[row]) or part_of(places[names[row]], seed, held_out, validation)
        for row in firsts
    }
    free = [row for row in firsts if names[row] not in given]
    if "train" not in part.values() and free:
        nearest = max(free, key=lambda row: place_of(places[names[row]], seed))
        part[nearest] = "train"
        report.add("images trained on, since the split left none for it", names[nearest])
    parts: dict[str, list[int]] = {"train": [], "validation": [], "held_out": []}
    for row in range(len(names)):
        first = copies.get(row, row)
        own = (row != first and given.get(names[row])) or part[first]
        parts[own].append(row)
        if own != part[first]:
            report.add("byte-equal copies in another split than the first", f"{names[row]} ({own})")
    return parts


def first_in(rows: Sequence[int], copies: Mapping[int, int]) -> dict[int, int]:
    """Of the rows of one split, those that show what an earlier one does: place -> its place."""
    first: dict[int, int] = {}
    found = {}
    for place, row in enumerate(rows):
        earlier = first.setdefault(copies.get(row, row), place)
        if earlier != place:
            found[place] = earlier
    return found


def part_of(name: str, seed: int, held_out: float, validation: float | None = None) -> str:
    """ "train", "validation" or "held_out", the same for this image in every list it is in."""
    place = place_of(name, seed)
    if place < held_out:
        return "held_out"
    return (
        "validation"
        if place < held_out + (held_out if validation is None else validation)
        else "train"
    )


def place_of(name: str, seed: int) -> float:
    """Where a name falls in 0..1; even over many names."""
    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
