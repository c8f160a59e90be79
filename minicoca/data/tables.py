"""Lists of captions as tables: CSV, TSV, open_clip's, Flickr8k's and Flickr30k's.

The first line names the columns and shows what parts them (a comma, tab, semicolon or "|"),
whatever the file is called. Flickr's `.token` files have no such line, but `a.jpg#0`, a tab and the
caption.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from minicoca.data.records import (
    IMAGE_COLUMNS,
    Reading,
    Record,
    opened,
    refuse_twice,
)
from minicoca.images import name_of, open_file
from minicoca.words import clip

TABLES = {".csv": ",", ".tsv": "\t"}  # the suffix of a table, and what parts its fields
SEPARATORS = (",", "\t", ";", "|")
TOKEN = re.compile(r"(.+)#[0-9]{1,9}[ \t]*\t(.*)", re.DOTALL)
LONGEST_FIELD = 2**24  # letters of a table; Python's own limit is 2**17
LONGEST_HEADER = 2**21  # letters
csv.field_size_limit(LONGEST_FIELD)


def first_line(path: Path) -> str:
    """The first line that holds anything, or the beginning of it; "" where that is no text."""
    with open_file(path) as file:
        begins = file.read(LONGEST_HEADER).decode("utf-8-sig", "ignore")
    lines = begins.splitlines()
    return next((line for line in lines if line.strip()), "")


def names_in(line: str, separator: str) -> list[str]:
    return [name.strip().strip('"').strip().lower() for name in line.split(separator)]


def separator_of(path: Path, reading: Reading, least: int = 2) -> str:
    """What parts the columns that the first line names; "" where of images and captions it names
    fewer than `least`."""
    line = first_line(path)
    images = {reading.image.lower()} if reading.image else set(IMAGE_COLUMNS)
    captions = {reading.caption.lower()} if reading.caption else set(reading.known)
    found = {}
    for separator in SEPARATORS:
        names = set(names_in(line, separator))
        found[separator] = bool(names & images) + bool(names & captions)
    best = max(SEPARATORS, key=found.get)
    return best if found[best] >= least else ""


def is_table(path: Path, reading: Reading) -> bool:
    return bool(separator_of(path, reading))


def is_token_list(path: Path) -> bool:
    """Flickr's own: a.jpg#0, a tab, the caption."""
    return bool(TOKEN.fullmatch(first_line(path)))


def read_token_list(path: Path, reading: Reading) -> Iterator[Record]:
    """Records of Flickr8k's and Flickr30k's `.token` files."""
    reading.kind = "Flickr's token list"
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{name_of(path)}, line {number}"
            if not line.strip():
                continue
            if not (found := TOKEN.fullmatch(line)):
                raise ValueError(f"{where}: not as a.jpg#0, a tab and a caption; mend or remove it")
            yield Record(found[1].strip(), found[2], where)


def read_table(path: Path, reading: Reading) -> Iterator[Record]:
    """Records of a table. Raises ValueError, naming the line, where it breaks its own rules."""
    separator = separator_of(path, reading, 1) or TABLES.get(path.suffix.lower(), ",")
    bars = separator == "|"  # Flickr30k's, whose captions hold quotes that close nothing
    reading.kind = "Flickr30k's results" if bars else f"a table parted by {separator!r}"
    how = {"quoting": csv.QUOTE_NONE} if bars else {"strict": True}
    where = f"{name_of(path)}, line 1"
    with opened(path) as file:
        reader = csv.reader(file, delimiter=separator, **how)
        begun = 1  # the line of the row that is being read
        try:
            header = next(reader, [])
            names = [name.strip().lower() for name in header]
            refuse_twice([name for name in names if name], where, "columns")
            places = columns_of(names, where, reading)
            begun = reader.line_num + 1
            for row in reader:
                begun, where = reader.line_num + 1, f"{name_of(path)}, line {reader.line_num}"
                if row:
                    yield record_of(row, names, places, separator, where)
        except csv.Error as error:
            raise ValueError(f"{name_of(path)}, line {begun}: {no_row(str(error))}") from error


def columns_of(names: list[str], where: str, reading: Reading) -> list[int | None]:
    asked = reading.image, reading.caption, reading.split
    reading.image, reading.caption, reading.split = (name.strip().lower() for name in asked)
    try:
        found = reading.columns(names, where)
    finally:
        reading.image, reading.caption, reading.split = asked
    return [names.index(name) if name else None for name in found]


def record_of(
    row: list[str], names: list[str], places: list[int | None], separator: str, where: str
) -> Record:
    if len(row) > len(names) and separator == "|" and places[1] == len(names) - 1:
        row[places[1] :] = [separator.join(row[places[1] :])]
    if len(row) > len(names):
        raise ValueError(
            f"{where}: more fields than the {len(names)} columns; "
            f"put a field that holds {separator!r} between double quotes"
        )
    image, caption, split = (
        row[place] if place is not None and place < len(row) else "" for place in places
    )
    return Record(image.strip(), caption, where, split)


def no_row(said: str) -> str:
    """What the csv module says against a row, and what to do."""
    if "field limit" in said:
        return (
            f"a field has over {LONGEST_FIELD:,} letters; shorten it, or close the double quote "
            "that it begins with"
        )
    if "unexpected end" in said:
        return "a double quote is not closed before the end of the file; mend the quotes"
    if "NUL" in said:  # Python 3.10 reads none
        return "a NUL byte is in it; remove it"
    return f"{clip(said)}; mend the quotes"
