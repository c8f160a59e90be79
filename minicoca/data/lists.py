"""One file that lists images and captions: which kind it is, and where its images are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from minicoca.data.files import TEXT_SUFFIX
from minicoca.data.objects import LINES, begins_as_json, is_json_lines, read_json, read_json_lines
from minicoca.data.parquet import PARQUET, read_parquet
from minicoca.data.records import Reading, Record
from minicoca.data.tables import TABLES, is_table, is_token_list, read_table, read_token_list
from minicoca.images import name_of

LISTS = (*TABLES, ".json", *sorted(LINES), ".token", PARQUET)
LOOKED_FOR = 16  # images of a list, to find the folder that holds them
MOST_FOLDERS = 1000  # that are searched for them


def records(path: Path, reading: Reading) -> Iterator[Record]:
    """What a list holds, by its suffix; what no suffix tells, by how it begins. Raises ValueError
    where it is none."""
    suffix = path.suffix.lower()
    if suffix == PARQUET:
        return read_parquet(path, reading)
    if suffix in TABLES:
        return read_table(path, reading)
    if suffix in LINES or is_json_lines(path):
        return read_json_lines(path, reading)
    if suffix == ".json" or begins_as_json(path):
        return read_json(path, reading)
    if is_token_list(path):
        return read_token_list(path, reading)
    if is_table(path, reading):
        return read_table(path, reading)
    kinds = ", ".join((*LISTS, ".tar"))
    texts = "; a text a line is what --objective gpt learns from" * (suffix == TEXT_SUFFIX)
    raise ValueError(
        f"{name_of(path)} is neither a folder nor one of {kinds}, nor does its first line name "
        f"columns; rename or convert it{texts}"
    )


def folder_of(names: Iterable[str], home: Path, beyond: bool) -> Path:
    """The folder that the paths of a list begin in: `home`, or a folder in it that holds the first
    of them, at most two down. beyond: or one beside `home`, if that is called as COCO's lists are;
    others may hold other images of the same names. Where none does, `home`."""
    first = list(islice((name for name in names if name), LOOKED_FOR))
    for folder in (home, *folders_near(home, beyond)):
        if any(os.path.exists(os.path.join(folder, name)) for name in first):
            return folder
    return home


def folders_near(home: Path, beyond: bool) -> Iterator[Path]:
    inner = folders_in(home)
    yield from islice(inner, MOST_FOLDERS)
    yield from islice((deep for folder in inner for deep in folders_in(folder)), MOST_FOLDERS)
    if beyond and home.resolve().name == "annotations":
        yield from islice(folders_in(home / os.pardir), MOST_FOLDERS)


def folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as inside:
            found = [e.name for e in inside if e.name[0] != "." and e.is_dir()]
    except OSError:  # then the images are not found there, which is said of each
        return []
    return [folder / name for name in sorted(found)]


def under(prefix: str, name: str) -> str:
    """A path as written, from another folder."""
    return name if prefix in ("", ".") or os.path.isabs(name) else f"{prefix}/{name}"
