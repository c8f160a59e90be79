"""Shards of images and captions in `.tar` files, as webdataset and img2dataset write them.

A shard is gone through once, header by header, and the place of every image is kept; from then on
images are read where they lie, in any order. Nothing is unpacked: names of members are only names.
The files of a sample share their name up to its first dot: `00012.jpg` and `00012.txt` (one caption
a line), or `00012.json` with a caption among its fields.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from minicoca.data.files import is_image
from minicoca.data.records import Reading, Record, parse, split_in, splits_of
from minicoca.images import Piece, name_of, open_file, patiently
from minicoca.words import clip

TAR, BLOCK = ".tar", 512
TEXTS = ("txt", "caption", "cap")
MOST_TEXT = 2**20  # bytes of a caption's file, or of what a header says of the next member
MOST_SHARDS, MOST_FIELDS = 10**6, 1000  # fields: of one PAX header
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
RANGE = re.compile(r"\{([0-9]{1,12})\.\.([0-9]{1,12})\}")  # as in {00000..00127}.tar
REGULAR, LINKS_AND_DEVICES = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6")


class Member(NamedTuple):
    """A file in a shard: where its bytes are, and of which kind it is ("" where regular)."""

    name: str
    start: int
    size: int
    kind: str


def shards_named(pattern: str) -> list[Path]:
    """The files that a name with *, ?, [] or {00..99} stands for, in order. Raises ValueError
    where a range is too long."""
    ranges = [(int(low), int(high), len(low)) for low, high in RANGE.findall(pattern)]
    count = math.prod(max(0, high - low + 1) for low, high, _ in ranges)
    if not 0 < count <= MOST_SHARDS:
        raise ValueError(
            f"{clip(pattern)} stands for {count:,} files; 1 to {MOST_SHARDS:,} can be read"
        )
    names = [pattern]
    for low, high, width in ranges:
        numbers = [f"{number:0{width}}" for number in range(low, high + 1)]
        names = [RANGE.sub(number, name, count=1) for name in names for number in numbers]
    found = [path for name in names for path in (glob.glob(name) or [name])]
    return [Path(path) for path in sorted(set(found))]


def is_pattern(source: Path) -> bool:
    """Whether a name stands for shards, and is no file's own."""
    named = source.suffix.lower() == TAR and any(mark in str(source) for mark in "*?[{")
    return named and not os.path.exists(source)


def read_shards(shards: list[Path], folder: Path, reading: Reading) -> Iterator[Record]:
    """The records of shards, whose images are named by their shard and their member; the shards'
    names, or else their folders', say of which split they are. One that is no tar, or is cut off,
    is named in the report, and read as far as it goes."""
    reading.kind = f"{len(shards)} shards"
    splits = splits_of(folder, shards, reading.report, by_name=True)
    for shard in shards:
        known = os.path.relpath(shard, folder).replace(os.sep, "/")
        samples: dict[str, dict[str, Member]] = {}
        for member in members_of(shard, known, reading):
            folders, _, base = member.name.rpartition("/")
            key, _, ending = base.partition(".")
            sample = samples.setdefault(f"{folders}/{key}", {})
            if sample.setdefault(ending.lower(), member) is not member:
                named = f"{known}/{member.name}"
                reading.report.add("members left out, an earlier one has the name", named)
        split = splits.get(shard) or split_in(shard.stem)
        for sample in samples.values():
            yield from records_of(sample, shard, known, split, reading)


def records_of(
    sample: dict[str, Member], shard: Path, known: str, split: str | None, reading: Reading
) -> Iterator[Record]:
    """One record for each image of a sample."""
    images = [member for member in sample.values() if is_image(Path(member.name))]
    texts = [sample[ending] for ending in TEXTS if ending in sample]
    fields = sample.get("json")
    for member in sample.values():
        if member not in (*images, *texts, fields):
            reading.report.add("members that are no image or caption", f"{known}/{member.name}")
    if not images:
        for member in (*texts, *([fields] if fields and not texts else ())):
            reading.report.add("caption files without a picture", f"{known}/{member.name}")
        return
    captions: object = []
    try:
        if texts:
            captions = text_of(shard, texts[0]).split("\n")
        if fields and (not texts or reading.split):
            where = f"{known}/{fields.name}"
            written, given = reading.said(parse(text_of(shard, fields), where), where)
            captions, split = captions or written, given or split
    except ValueError as error:
        reason = "caption files that cannot be read left out, with their images"
        reading.report.add(reason, str(error))
        return
    for member in images:
        name = f"{known}/{member.name}"
        reading.pieces[name] = Piece(shard, member.name, member.start, member.size)
        yield Record(name, captions, name, split)


def text_of(shard: Path, member: Member) -> str:
    """What a small member holds. Raises ValueError for one that is large, or not UTF-8."""
    piece = Piece(shard, member.name, member.start, member.size)
    if member.size > MOST_TEXT:
        raise ValueError(f"{name_of(piece)}: {member.size:,} bytes, of {MOST_TEXT:,} at most")

    def content() -> bytes:
        with open_file(piece) as file:
            return file.read()

    try:
        return patiently(content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name_of(piece)} is not UTF-8; save it as UTF-8") from error


def members_of(shard: Path, known: str, reading: Reading) -> list[Member]:
    """The regular members of a shard; what else there is, and damage, goes to the report."""

    def all_of_them() -> tuple[list[Member], str]:
        found: list[Member] = []
        with open_file(shard) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                found.extend(walk(file, size))
            except ValueError as error:
                return found, str(error)
        return found, ""

    found, damage = patiently(all_of_them)
    if damage:
        reason = "shards read only as far as they are whole" if found else "shards left out"
        reading.report.add(reason, f"{known}: {damage} (after {len(found):,} members)")
    kept = []
    for member in found:
        hidden = member.name.rpartition("/")[2].startswith(".")
        if member.kind or hidden:
            what = member.kind or "hidden"
            reading.report.add("members left alone", f"{known}/{member.name} ({what})")
        else:
            kept.append(member)
    return kept


def walk(file: BinaryIO, size: int) -> Iterator[Member]:
    """Every member of a tar but folders: ustar's, GNU's and PAX's headers. Raises ValueError where
    they are damaged or cut off; no more than MOST_TEXT bytes are read at once."""
    at, said, shared = 0, {}, {}
    while at + BLOCK <= size:
        file.seek(at)
        header = file.read(BLOCK)
        if header.count(0) == BLOCK and (at or size <= 20 * BLOCK):  # the end
            if file.read(MOST_TEXT).strip(b"\0"):  # as where two were joined by `cat`
                raise ValueError(f"what follows its end, at {at + BLOCK:,} of {size:,} bytes")
            return
        check_header(header)
        kind, length = header[156:157], number_of(header[124:136])
        start, own = at + BLOCK, {**shared, **said}
        if kind not in b"xgLK" and "size" in own:
            length = own["size"]
        if kind in LINKS_AND_DEVICES:
            length = 0  # whatever the header says, nothing of theirs follows
        more = kind == b"S" and header[482]
        while more:  # headers of GNU's sparse members, which no size counts
            more, start = file.read(BLOCK).ljust(BLOCK, b"\0")[504], start + BLOCK
        if start + length > size:
            raise ValueError("it is cut off")
        at = start + -(-length // BLOCK) * BLOCK
        if kind in b"xgLK":
            if length > MOST_TEXT:
                raise ValueError(f"a header of {length:,} bytes is no header")
            content = file.read(length)
            if kind == b"g":
                shared |= records_in(content)
            else:
                said |= extended(kind, content)
            continue
        said = {}
        name = own.get("GNU.sparse.name") or own.get("path") or own_name(header)
        sparse = any(field.startswith("GNU.sparse") for field in own)
        if kind != b"5" and not (kind in REGULAR and name.endswith("/")):
            regular = kind in REGULAR and not sparse
            yield Member(name, start, length, "" if regular else "no regular file")
    raise ValueError("it has no end, and is perhaps cut off" if at else "it is no tar")


def check_header(header: bytes) -> None:
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    try:
        right = number_of(header[148:156]) == total
    except ValueError:
        right = False
    if not right:
        begins = next((kind for mark, kind in COMPRESSED.items() if header.startswith(mark)), "")
        if begins:
            raise ValueError(f"it is compressed by {begins}; unpack that, to a plain .tar")
        raise ValueError("here is no header of a tar")


def number_of(field: bytes) -> int:
    """Octal digits, or GNU's binary form for what is larger. Raises ValueError."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if digits and not re.fullmatch(b"[0-7]+", digits):
        raise ValueError("a size that is no number")
    return int(digits or b"0", 8)


def own_name(header: bytes) -> str:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def extended(kind: bytes, content: bytes) -> dict:
    """What a header says of the member after it."""
    if kind == b"x":
        return records_in(content)
    long = content.split(b"\0")[0].decode("utf-8", "surrogateescape")
    return {"path": long} if kind == b"L" else {}


def records_in(content: bytes) -> dict:
    """PAX's fields: "LENGTH name=value" and the end of the line, one after the other."""
    found: dict = {}
    at, fields = 0, 0
    while at < len(content):
        fields += 1
        if fields > MOST_FIELDS:
            raise ValueError(f"a header of over {MOST_FIELDS:,} fields is no header")
        digits, _, _ = content[at : at + 12].partition(b" ")
        if not digits.isdigit() or not len(digits) + 3 < int(digits) <= len(content) - at:
            raise ValueError("a header whose fields have no lengths")
        name, _, value = content[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        if name in (b"path", b"size") or name.startswith(b"GNU.sparse"):
            found[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += int(digits)
    if "size" in found:
        if not re.fullmatch("[0-9]{1,18}", found["size"]):
            raise ValueError("a size that is no number")
        found["size"] = int(found["size"])
    return found
