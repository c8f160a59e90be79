"""How images and captions are listed: CSV, TSV, JSON lines, COCO, or texts beside the images.

- CSV, TSV, JSON lines (one object a line): an image column (image, path, filepath, file, filename
  or image_path) and a caption column (caption, captions, text or title). In JSON a caption may be a
  list of them; in all three an image with several captions may also come several times.
- JSON: COCO captions ("images" and "annotations"), or a list of objects as in JSON lines.
- A folder: every image with a text file of the same name beside it, one caption a line.

A mistake in a list stops at once with the line to mend. What has no image or no caption does not:
it is left out and counted.
"""

from __future__ import annotations

import csv
import json
import reprlib
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from io import StringIO, TextIOWrapper
from pathlib import Path

from minicoca.data.files import TEXT_SUFFIX, Report, files_below, is_image
from minicoca.images import failure, name_of, open_file, patiently, read, status
from minicoca.words import clean, clip

IMAGE_COLUMNS = ("image", "path", "filepath", "file", "filename", "image_path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")
TABLES = {".csv": ",", ".tsv": "\t"}  # the suffix of a table, and what parts its fields
LINES = {".jsonl", ".ndjson"}
LONGEST_FIELD = 2**24  # letters of a table; Python's own limit is 2**17
MOST_DIGITS = 1000  # of an integer; what has more is kept as it is written
csv.field_size_limit(LONGEST_FIELD)

Record = tuple[object, object, str]  # image path as written, caption(s), where it was written


def read_captions(source: Path, report: Report) -> dict[str, tuple[str, ...]]:
    """Image path as written -> its captions, cleaned and each once; empty ones go to `report`.

    Raises ValueError if the source is missing, is of an unknown kind or breaks its own rules, and
    OSError if it cannot be read.
    """
    captions: dict[str, dict[str, None]] = {}  # the inner dict is a set that keeps its order
    try:
        for name, texts, where in records(source, report):
            cleaned = clean_all(texts, where, report)
            if not isinstance(name, str | None):
                raise ValueError(f"{where}: image must be a path: {brief(name)}")
            if not name:
                report.add("rows without an image left out", where)
            elif not cleaned:
                report.add("rows without a caption left out", where)
            else:
                captions.setdefault(name, {}).update(dict.fromkeys(cleaned))
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(source)) from error
    except RecursionError as error:
        raise ValueError(f"{name_of(source)}: nested too deep to be a list of captions") from error
    except OSError as error:
        raise failure(name_of(source), error) if error.errno else error from error
    return {name: tuple(texts) for name, texts in captions.items()}


def records(source: Path, report: Report) -> Iterator[Record]:
    """What a list or folder holds, by its suffix; what no suffix tells, by how it begins."""
    suffix, mode = source.suffix.lower(), status(source).st_mode
    if stat.S_ISDIR(mode):
        return read_folder(source, report)
    if suffix in TABLES:
        return read_table(source, TABLES[suffix], report)
    if suffix in LINES or is_json_lines(source):
        return read_json_lines(source, report)
    if suffix == ".json" or begins_as_json(source):
        return read_json(source, report)
    kinds = ", ".join((*TABLES, ".json", ".jsonl"))
    raise ValueError(
        f"{name_of(source)} is neither a folder nor one of {kinds}; rename or convert it"
    )


def opened(path: Path) -> TextIOWrapper:
    """A list as text, its ends of lines as they are. Raises NoFileError where there is no file."""
    return TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="")


def brief(value: object) -> str:
    """A value for a message, however large it is."""
    return clip(reprlib.repr(value), 60)


def clean_all(texts: object, where: str, report: Report) -> list[str]:
    """The captions of a record that can be seen; raises ValueError for what is no text."""
    texts = texts if isinstance(texts, list) else [texts]
    if not all(isinstance(text, str | None) for text in texts):
        raise ValueError(f"{where}: a caption must be text or a list of texts: {brief(texts)}")
    cleaned = [text for text in map(clean, filter(None, texts)) if text]
    if cleaned and len(cleaned) < len(texts):
        report.add("rows with an empty caption beside others", where)
    return cleaned


def not_utf8(path: Path) -> str:
    """Where a file is not UTF-8, in words."""
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = f"byte {error.start + 1} of line {number} is 0x{line[error.start]:02x}"
                return f"{name_of(path)} is not UTF-8 ({byte}); save it as UTF-8"
    return f"{name_of(path)} was not UTF-8 when it was read"


def read_table(path: Path, delimiter: str, report: Report) -> Iterator[Record]:
    where = f"{name_of(path)}, line 1"
    with opened(path) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        begun = 1  # the line of the row that is being read
        try:
            header = next(reader, [])
            names = [name.strip().lower() for name in header]
            refuse_twice([name for name in names if name], where, "columns")
            image, caption = (
                names.index(pick(names, wanted, where, report))
                for wanted in (IMAGE_COLUMNS, CAPTION_COLUMNS)
            )
            begun = reader.line_num + 1
            for row in reader:
                begun, where = reader.line_num + 1, f"{name_of(path)}, line {reader.line_num}"
                if not row:
                    continue
                if len(row) > len(names):
                    raise ValueError(
                        f"{where}: more fields than the {len(names)} columns; "
                        f"put a field that holds {delimiter!r} between double quotes"
                    )
                row += [""] * (max(image, caption) + 1 - len(row))
                yield row[image].strip(), row[caption], where
        except csv.Error as error:
            raise ValueError(f"{name_of(path)}, line {begun}: {no_row(str(error))}") from error


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


def refuse_twice(names: Sequence[str], where: str, what: str) -> None:
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise ValueError(f"{where}: two {what} are called {clip(twice[0])}; rename or join them")


def pick(names: Sequence[str] | dict, wanted: Sequence[str], where: str, report: Report) -> str:
    """The first wanted name that there is; others that would do are not read, which is said."""
    there = [name for name in wanted if name in names]
    if not there:
        given = clip(", ".join(names), 60) if len(names) < 10 else f"{len(names):,} names"
        wanted = ", ".join(wanted)
        raise ValueError(f"{where}: has {given or 'nothing'}, but one must be called {wanted}")
    if there[1:]:
        report.add(f"rows or tables read for {there[0]} alone", f"{where}: {', '.join(there[1:])}")
    return there[0]


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


def read_json_lines(path: Path, report: Report) -> Iterator[Record]:
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{name_of(path)}, line {number}"
            if line.strip():
                yield record_of(parse(line, where), where, report)


def read_json(path: Path, report: Report) -> Iterator[Record]:
    with opened(path) as file:
        content = parse(file.read(), name_of(path))
    if isinstance(content, list):
        for number, entry in enumerate(content, 1):
            yield record_of(entry, f"{name_of(path)}, entry {number}", report)
    elif isinstance(content, dict) and not {"images", "annotations"} & content.keys():
        yield record_of(content, f"{name_of(path)}, line 1", report)
    else:
        try:
            yield from read_coco(name_of(path), content["images"], content["annotations"])
        except KeyError as error:
            raise ValueError(
                f"{name_of(path)} is not COCO captions: {brief(error.args[0])} is missing"
            ) from error
        except TypeError as error:
            raise ValueError(
                f"{name_of(path)} is not COCO captions: images and annotations must be lists of "
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
        yield names[key], note["caption"], f"{where}, annotation {number}"
    for key, name in names.items():
        if key not in described:
            about = f"image id {clip(key, 24)} ({clip(str(name), 32)})"
            yield name, None, f"{where}, {about}: no annotation"


def id_of(value: object) -> str:
    """An id as text: whole numbers can be chosen so that a dict of them takes for ever."""
    whole = isinstance(value, float) and value.is_integer()
    return repr(int(value) if whole else value)


def integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= MOST_DIGITS else digits


def parse(text: str, where: str) -> object:
    def once(fields: list[tuple[str, object]]) -> dict:
        found = dict(fields)
        if len(found) < len(fields):
            refuse_twice([name for name, _ in fields], where, "fields of an object")
        return found

    try:
        return json.loads(text, object_pairs_hook=once, parse_int=integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({clip(str(error))}); mend or remove it") from error
    except RecursionError as error:
        raise ValueError(f"{where}: not JSON (nested too deep); mend or remove it") from error


def record_of(entry: object, where: str, report: Report) -> Record:
    if not isinstance(entry, dict):
        raise ValueError(f'{where}: not an object such as {{"image": "a.png", "caption": "a cat"}}')
    columns = (IMAGE_COLUMNS, CAPTION_COLUMNS)
    image, caption = (pick(entry, wanted, where, report) for wanted in columns)
    return entry[image], entry[caption], where


def read_folder(folder: Path, report: Report) -> Iterator[Record]:
    """Every image below `folder` with the lines of its text file."""
    files = files_below(folder, report)
    texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == TEXT_SUFFIX}
    texts |= {path.with_suffix(""): path for path in files if path.suffix == TEXT_SUFFIX}
    images = [path for path in files if is_image(path)]
    for path in images:
        text = texts.get(path.with_suffix(""), path.with_suffix(TEXT_SUFFIX))
        try:
            lines = lines_of(text) if path.with_suffix("") in texts else []
        except ValueError as error:
            report.add("caption files that cannot be read left out, with their images", str(error))
        else:
            yield path.relative_to(folder).as_posix(), lines, f"{text} (missing or empty)"
    described = {texts.get(path.with_suffix("")) for path in images}
    for path in files:
        if path.suffix.lower() == TEXT_SUFFIX and path not in described:
            report.add("caption files without a picture", str(path))


def lines_of(text: Path) -> list[str]:
    """The lines of a caption file. Raises ValueError if it is not UTF-8 or may not be read."""

    def content() -> bytes:
        with open_file(text) as file:
            return read(file, text)

    try:
        whole = patiently(content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(text)) from error
    return [line for line in StringIO(whole, newline=None) if line.strip()]
