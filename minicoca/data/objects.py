"""Lists of captions as JSON: lines of objects, a list of them, COCO, Karpathy's, or by file.

- JSON lines: one object a line, whatever the file is called.
- COCO captions ("images" and "annotations"); Karpathy's ("images" with "sentences" and "split").
- {"a.jpg": "a cat", "b.jpg": ["two dogs", "dogs"]}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from minicoca.data.records import (
    IMAGE_COLUMNS,
    Reading,
    Record,
    brief,
    integer,
    opened,
    parse,
)
from minicoca.images import name_of, open_file
from minicoca.words import clip

LINES = {".jsonl", ".ndjson"}


def begins_as_json(path: Path) -> bool:
    with open_file(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def is_json_lines(path: Path) -> bool:
    """Whether the first line with anything on it is an object by itself, and another follows."""
    if not begins_as_json(path):
        return False
    with opened(path) as file:
        lines = (line for line in file if line.strip())
        first, second = next(lines, ""), next(lines, "")
    try:
        return bool(second) and isinstance(json.loads(first, parse_int=integer), dict)
    except (ValueError, RecursionError):
        return False


def read_json_lines(path: Path, reading: Reading) -> Iterator[Record]:
    reading.kind = "JSON lines"
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{name_of(path)}, line {number}"
            if line.strip():
                yield reading.record(parse(line, where), where)


def read_json(path: Path, reading: Reading) -> Iterator[Record]:
    """Records of a file that is one JSON value. Raises ValueError for what is no list of ours."""
    with opened(path) as file:
        content = parse(file.read(), name_of(path))
    where = name_of(path)
    if isinstance(content, list):
        reading.kind = "a list of JSON objects"
        for number, entry in enumerate(content, 1):
            yield reading.record(entry, f"{where}, entry {number}")
    elif not isinstance(content, dict):
        yield reading.record(content, f"{where}, line 1")
    elif is_karpathy(content):
        reading.kind = "Karpathy's JSON"
        yield from read_karpathy(where, content["images"])
    elif {"images", "annotations"} & content.keys():
        reading.kind = "COCO captions"
        yield from read_whole_coco(where, content)
    elif content and is_by_file(content, reading):
        reading.kind = "JSON of captions by file"
        for name, texts in content.items():
            yield Record(name, texts, f"{where}, {clip(name, 60)}")
    else:
        reading.kind = "one JSON object"
        yield reading.record(content, f"{where}, line 1")


def is_karpathy(content: dict) -> bool:
    images = content.get("images")
    first = images[0] if isinstance(images, list) and images else None
    return "annotations" not in content and isinstance(first, dict) and "sentences" in first


def is_by_file(content: dict, reading: Reading) -> bool:
    """Whether the fields are files, and not what one image's fields are called."""
    ours = {*IMAGE_COLUMNS, *reading.known, reading.image, reading.caption}
    kinds = all(isinstance(value, str | list | None) for value in content.values())
    return kinds and not ours & content.keys()


def read_karpathy(where: str, images: list[dict]) -> Iterator[Record]:
    for number, image in enumerate(images, 1):
        here = f"{where}, image {number}"
        try:
            folder, name = image.get("filepath") or "", image["filename"]
            texts = [sentence["raw"] for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            missing = brief(error.args[0]) if isinstance(error, KeyError) else "a list of objects"
            raise ValueError(f"{here}: {missing} is missing, as Karpathy's JSON has it") from error
        if folder and isinstance(folder, str) and isinstance(name, str):
            name = f"{folder}/{name}"
        yield Record(name, texts, here, image.get("split"))


def read_whole_coco(where: str, content: dict) -> Iterator[Record]:
    try:
        yield from read_coco(where, content["images"], content["annotations"])
    except KeyError as error:
        raise ValueError(
            f"{where} is not COCO captions: {brief(error.args[0])} is missing"
        ) from error
    except TypeError as error:
        raise ValueError(
            f"{where} is not COCO captions: images and annotations must be lists of "
            "objects, as in COCO"
        ) from error


def read_coco(where: str, images: list[dict], notes: list[dict]) -> Iterator[Record]:
    names: dict[str, object] = {}
    twice = []
    for image in images:
        key, name = id_of(image["id"]), image["file_name"]
        if names.setdefault(key, name) != name:
            twice.append((key, names[key], name))
    if twice:
        key, *both = twice[0]
        raise ValueError(
            f"{where}: {len(twice)} image ids belong to two files each, as {clip(key, 40)} "
            f"({' and '.join(clip(str(name), 40) for name in both)}); give every image its own id"
        )
    described = set()
    for number, note in enumerate(notes, 1):
        key = id_of(note["image_id"])
        if key not in names:
            raise ValueError(f"{where}, annotation {number}: no image has the id {clip(key, 60)}")
        described.add(key)
        yield Record(names[key], note["caption"], f"{where}, annotation {number}")
    for key, name in names.items():
        if key not in described:
            about = f"image id {clip(key, 24)} ({clip(str(name), 32)})"
            yield Record(name, None, f"{where}, {about}: no annotation")


def id_of(value: object) -> str:
    """An id as text: whole numbers can be chosen so that a dict of them takes for ever."""
    whole = isinstance(value, float) and value.is_integer()
    return repr(int(value) if whole else value)
